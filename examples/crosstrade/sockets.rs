//! The number of open sockets per user, and of open meters of the account page. The rate limit bounds how fast sockets are
//! opened, and not how many stay open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tollgate::Subject;

/// The maximum number of sockets of one user in this process, for all tokens of the user.
pub(crate) const MAX_SOCKETS: usize = 16;

#[derive(Default)]
pub(crate) struct Sockets(Arc<Mutex<HashMap<Subject, usize>>>);

/// Counts one socket until it is dropped.
pub(crate) struct Place {
    open: Arc<Mutex<HashMap<Subject, usize>>>,
    subject: Subject,
}

impl Sockets {
    /// Counts a socket. Returns `None` if the user has [`MAX_SOCKETS`] open.
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
