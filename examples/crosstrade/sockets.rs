//! How many sockets each user has open. A budget bounds how fast they are opened, and not how many stay.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tollgate::Subject;

/// The most sockets of one user, here and for all his tokens.
pub(crate) const MAX_SOCKETS: usize = 16;

#[derive(Default)]
pub(crate) struct Sockets(Arc<Mutex<HashMap<Subject, usize>>>);

/// A place for one socket, until it is dropped.
pub(crate) struct Place {
    open: Arc<Mutex<HashMap<Subject, usize>>>,
    subject: Subject,
}

impl Sockets {
    /// `None` if there are as many as there may be.
    pub(crate) fn enter(&self, subject: &Subject) -> Option<Place> {
        let mut open = lock(&self.0);
        let sockets = open.entry(subject.clone()).or_default();
        if *sockets == MAX_SOCKETS {
            return None;
        }
        *sockets += 1;
        Some(Place { open: Arc::clone(&self.0), subject: subject.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        if let Some(sockets) = open.get_mut(&self.subject) {
            *sockets -= 1;
            if *sockets == 0 {
                open.remove(&self.subject);
            }
        }
    }
}

fn lock(open: &Mutex<HashMap<Subject, usize>>) -> MutexGuard<'_, HashMap<Subject, usize>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}
