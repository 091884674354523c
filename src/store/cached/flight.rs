use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Shared, WeakShared};

use crate::rejection::store_error::StoreError;
use crate::store::Lookup;
use crate::token::TokenDigest;

/// A look-up that is under way, shared by all who wait for it. It goes on for as long as one of them does.
pub(super) type Flight<P> = Shared<BoxFuture<P>>;

type BoxFuture<P> = Pin<Box<dyn Future<Output = Lookup<P, StoreError>> + Send>>;

/// Nobody joins a look-up that has been under way for longer: it may never come back.
const JOINABLE: Duration = Duration::from_secs(5);

/// The look-ups that are under way.
pub(super) struct Flights<P> {
    open: Arc<Mutex<Open<P>>>,
    next: AtomicU64,
}

type Open<P> = HashMap<TokenDigest, Entry<P>>;

struct Entry<P> {
    id: u64,
    /// That of the memory when it started. Who asks after an invalidation must not hear what was before it.
    epoch: u64,
    since: Duration,
    flight: WeakShared<BoxFuture<P>>,
}

impl<P> Default for Flights<P> {
    fn default() -> Self {
        Self { open: Arc::default(), next: AtomicU64::new(0) }
    }
}

impl<P: Send + Sync + 'static> Flights<P> {
    pub(super) fn join(&self, digest: &TokenDigest, epoch: u64, now: Duration) -> Option<Flight<P>> {
        let open = lock(&self.open);
        let entry = open.get(digest).filter(|entry| entry.can_be_joined(epoch, now))?;
        entry.flight.upgrade()
    }

    pub(super) fn is_under_way(&self, digest: &TokenDigest, epoch: u64, now: Duration) -> bool {
        lock(&self.open).get(digest).is_some_and(|entry| entry.can_be_joined(epoch, now))
    }

    /// Starts a look-up, or joins one that somebody else has started meanwhile; then the future is dropped, which nobody has
    /// polled.
    pub(super) fn start(
        &self,
        digest: TokenDigest,
        epoch: u64,
        now: Duration,
        future: impl Future<Output = Lookup<P, StoreError>> + Send + 'static,
    ) -> Flight<P> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let landing = Landing { open: Arc::clone(&self.open), digest, id };
        let future: BoxFuture<P> = Box::pin(async move {
            // Dropped with the future, whether it was polled to its end, half-way, or never.
            let _landing = landing;
            future.await
        });
        let flight = future.shared();
        let joined = {
            let mut open = lock(&self.open);
            let other = open.get(&digest).filter(|entry| entry.can_be_joined(epoch, now));
            match other.and_then(|entry| entry.flight.upgrade()) {
                Some(other) => Some(other),
                None => {
                    if let Some(weak) = flight.downgrade() {
                        open.insert(digest, Entry { id, epoch, since: now, flight: weak });
                    }
                    None
                }
            }
        };
        joined.unwrap_or(flight)
    }
}

impl<P> Entry<P> {
    fn can_be_joined(&self, epoch: u64, now: Duration) -> bool {
        self.epoch == epoch && now.saturating_sub(self.since) < JOINABLE
    }
}

/// Takes a look-up out of those under way when it ends.
struct Landing<P> {
    open: Arc<Mutex<Open<P>>>,
    digest: TokenDigest,
    id: u64,
}

impl<P> Drop for Landing<P> {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        if open.get(&self.digest).is_some_and(|entry| entry.id == self.id) {
            open.remove(&self.digest);
        }
    }
}

/// No look-up is polled or dropped under this lock, and only whole entries are moved.
fn lock<P>(open: &Mutex<Open<P>>) -> MutexGuard<'_, Open<P>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}
