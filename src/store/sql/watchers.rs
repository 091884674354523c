//! The watchers in this process: changes by this process reach them before the method that makes the change returns.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::Database;
use crate::observe::{self, StoreChange};
use crate::store::Invalidation;

/// The functions of all running [`Database::watch`] calls. Clones of a database share them.
#[derive(Default)]
pub(super) struct Watchers(Mutex<Vec<Weak<Watcher>>>);

type Watcher = Mutex<dyn FnMut(Invalidation) + Send>;

impl Watchers {
    /// Adds a function until its owner drops it.
    pub(super) fn add<F: FnMut(Invalidation) + Send + 'static>(&self, on_change: F) -> Arc<Mutex<F>> {
        let watcher = Arc::new(Mutex::new(on_change));
        let weak: Weak<Watcher> = Arc::<Mutex<F>>::downgrade(&watcher);
        let mut watchers = lock(&self.0);
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(weak);
        watcher
    }

    fn running(&self) -> Vec<Arc<Watcher>> {
        lock(&self.0).iter().filter_map(Weak::upgrade).collect()
    }
}

/// Calls a watcher, and counts the report.
pub(super) fn call<F: FnMut(Invalidation) + ?Sized>(watcher: &Mutex<F>, change: Invalidation) {
    observe::store_changed(match change {
        Invalidation::Added => StoreChange::Added,
        Invalidation::Everything => StoreChange::Everything,
        Invalidation::Token(_) | Invalidation::Grant(_) | Invalidation::Subject(_) => StoreChange::Named,
    });
    lock(watcher)(change);
}

/// Ignores poisoning: a watcher that has panicked must not prevent later revocations.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The changes of one transaction. They are reported on drop.
///
/// Drop it after the commit, so that lookups which begin after the report read the new rows. After a failure or a cancellation,
/// it reports as well, because the transaction may have been committed and only the reply was lost.
#[must_use = "changes are reported on drop"]
pub(super) struct Reports<'a> {
    watchers: &'a Watchers,
    changes: Vec<Invalidation>,
}

impl Database {
    pub(super) fn reports(&self) -> Reports<'_> {
        Reports { watchers: &self.0.watchers, changes: Vec::new() }
    }
}

impl Reports<'_> {
    /// The tokens of a grant have changed.
    pub(super) fn grant(&mut self, id: &str) {
        self.changes.push(Invalidation::Grant(id.into()));
    }

    /// Unknown tokens may be known now.
    pub(super) fn added(&mut self) {
        self.changes.push(Invalidation::Added);
    }
}

impl Drop for Reports<'_> {
    fn drop(&mut self) {
        for watcher in self.watchers.running() {
            for change in &self.changes {
                call(&watcher, change.clone());
            }
        }
    }
}

impl fmt::Debug for Watchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchers").field("running", &self.running().len()).finish()
    }
}
