//! Pending lookups, which concurrent requests for one token share.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Shared, WeakShared};

use crate::rejection::store_error::StoreError;
use crate::store::Lookup;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::token::TokenDigest;

/// A pending lookup. Clones wait for the same result. The lookup is dropped with its last clone.
pub(super) type SharedLookup<P> = Shared<BoxFuture<P>>;

type BoxFuture<P> = Pin<Box<dyn Future<Output = Lookup<P, StoreError>> + Send>>;

/// The age after which no request joins a pending lookup, because it may never complete.
const MAX_JOIN_AGE: Duration = Duration::from_secs(5);

/// The pending lookups of a cache.
pub(super) struct PendingLookups<P> {
    pending: Arc<Mutex<Pending<P>>>,
    next_id: AtomicU64,
}

type Pending<P> = HashMap<TokenDigest, Entry<P>>;

struct Entry<P> {
    id: u64,
    /// The epoch of the entries when the lookup started. A request after an invalidation must not join an older lookup.
    epoch: u64,
    started_at: Duration,
    lookup: WeakShared<BoxFuture<P>>,
}

impl<P> Default for PendingLookups<P> {
    fn default() -> Self {
        Self { pending: Arc::default(), next_id: AtomicU64::new(0) }
    }
}

impl<P: Send + Sync + 'static> PendingLookups<P> {
    pub(super) fn join(&self, digest: &TokenDigest, epoch: u64, now: Duration) -> Option<SharedLookup<P>> {
        let pending = lock(&self.pending);
        let entry = pending.get(digest).filter(|entry| entry.can_be_joined(epoch, now))?;
        entry.lookup.upgrade()
    }

    pub(super) fn is_pending(&self, digest: &TokenDigest, epoch: u64, now: Duration) -> bool {
        lock(&self.pending).get(digest).is_some_and(|entry| entry.can_be_joined(epoch, now))
    }

    /// Starts a lookup. If another thread has started one meanwhile, joins that one and drops `future` unpolled.
    pub(super) fn start(
        &self,
        digest: TokenDigest,
        epoch: u64,
        now: Duration,
        future: impl Future<Output = Lookup<P, StoreError>> + Send + 'static,
    ) -> SharedLookup<P> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let entry = RemoveOnDrop { pending: Arc::clone(&self.pending), digest, id };
        let future: BoxFuture<P> = Box::pin(async move {
            // Moved into the future, so that the entry is removed when the future is dropped, completed or not.
            let _entry = entry;
            future.await
        });
        let lookup = future.shared();
        let joined = {
            let mut pending = lock(&self.pending);
            let other = pending.get(&digest).filter(|entry| entry.can_be_joined(epoch, now));
            match other.and_then(|entry| entry.lookup.upgrade()) {
                Some(other) => Some(other),
                None => {
                    if let Some(weak) = lookup.downgrade() {
                        pending.insert(digest, Entry { id, epoch, started_at: now, lookup: weak });
                    }
                    None
                }
            }
        };
        joined.unwrap_or(lookup)
    }
}

impl<P> Entry<P> {
    fn can_be_joined(&self, epoch: u64, now: Duration) -> bool {
        self.epoch == epoch && now.saturating_sub(self.started_at) < MAX_JOIN_AGE
    }
}

/// Removes a lookup from the pending ones when it ends.
struct RemoveOnDrop<P> {
    pending: Arc<Mutex<Pending<P>>>,
    digest: TokenDigest,
    id: u64,
}

impl<P> Drop for RemoveOnDrop<P> {
    fn drop(&mut self) {
        let mut pending = lock(&self.pending);
        if pending.get(&self.digest).is_some_and(|entry| entry.id == self.id) {
            pending.remove(&self.digest);
        }
    }
}

/// Locks the pending lookups. Never poll or drop a lookup under this lock. Ignores poisoning: every write stores a complete entry.
fn lock<P>(pending: &Mutex<Pending<P>>) -> MutexGuard<'_, Pending<P>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[test]
    fn a_lookup_removes_itself_and_no_later_lookup_when_it_ends() {
        let lookups = PendingLookups::<()>::default();
        let digest = TokenDigest::of("a-token");
        let is_pending = |epoch| lookups.is_pending(&digest, epoch, Duration::ZERO);
        let [first, second] = [1, 2].map(|epoch| lookups.start(digest, epoch, Duration::ZERO, pending()));
        drop(first);
        assert!(is_pending(2));
        drop(second);
        assert!(lock(&lookups.pending).is_empty());
    }
}
