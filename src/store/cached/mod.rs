//! [`CachedStore`]: a cache with immediate invalidation.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

mod builder;
mod entries;
#[cfg(all(test, tollgate_shuttle))]
mod interleavings;
mod lookups;

pub use builder::{CacheSettingsError, CachedStoreBuilder};

use builder::Settings;
use entries::{Entries, Found, Started};
use lookups::{PendingLookups, SharedLookup};

use super::{Invalidation, Lookup, TokenStore};
use crate::observe::{self, Cached};
use crate::pending::answer::Answer;
use crate::rejection::store_error::StoreError;
use crate::token::{BearerToken, TokenDigest};

/// Caches the answers of another [`TokenStore`]. Clones share one cache.
///
/// A cached grant is returned immediately. On a miss, one lookup is sent to the inner store. Concurrent requests for the same
/// token wait for that lookup. Errors are never cached.
///
/// ```
/// use std::time::Duration;
/// use tollgate::store::{CachedStore, from_fn};
/// use tollgate::{AuthLayer, Grant};
///
/// let store = from_fn(|_digest| async { Ok::<Option<Grant<()>>, std::io::Error>(None) });
/// let cache = CachedStore::builder(store, Duration::from_secs(60)).with_capacity(100_000).build()?;
/// let gate = AuthLayer::with_timeout(cache, Duration::from_secs(2));
/// # let _ = gate;
/// # Ok::<_, tollgate::store::CacheSettingsError>(())
/// ```
///
/// # How stale can an answer be?
///
/// | answer | at most |
/// |---|---|
/// | a grant | `ttl`, plus the bound of [`with_stale_while_revalidate`](CachedStoreBuilder::with_stale_while_revalidate) |
/// | a grant, while the store fails | `ttl`, plus the bound of [`with_stale_on_error`](CachedStoreBuilder::with_stale_on_error) |
/// | "unknown" | [`with_unknown_ttl`](CachedStoreBuilder::with_unknown_ttl), 5 seconds by default, and never more than `ttl` |
///
/// The age of an answer is counted from the start of its lookup. A request joins only lookups that started less than 5 seconds
/// ago. An expired grant is always looked up again.
///
/// The store fails if it returns an error [about the store](StoreError::concerns_token). After an error about one token, the
/// cache serves no older answer, because the store works.
///
/// # Invalidation
///
/// After [`invalidate`](Self::invalidate) returns, no lookup sees the old entry or joins a lookup that started before. Requests
/// that are already waiting get their answer. An answer that was read before its invalidation is not cached.
///
/// [`Invalidation::Everything`] removes no grant, because it usually reports a lost connection, when the store may still be down.
/// It marks all entries as possibly outdated. The next lookup of each entry goes to the store. If the store answers, its answer
/// replaces the entry. If the store fails, or a [`CircuitBreaker`](crate::store::CircuitBreaker) in front of it is open, the old
/// grant is served within the limits of the table, and the next lookup tries again.
///
/// A token that was revoked without a message is therefore accepted until the store answers a lookup after
/// `Invalidation::Everything`. It is never accepted for longer than `ttl` plus the bound of `with_stale_on_error`. Call
/// [`clear`](Self::clear) to remove everything immediately.
///
/// [`Invalidation::Token`] names the digest that this cache looks up. Put the cache inside a `PepperedStore`, next to the store.
///
/// # Memory
///
/// The cache holds at most [`with_capacity`](CachedStoreBuilder::with_capacity) grants (10,000 by default) and the same number of
/// negative entries. The two are evicted separately, so junk tokens never evict grants.
pub struct CachedStore<T: TokenStore>(Arc<Inner<T>>);

struct Inner<T: TokenStore> {
    store: T,
    settings: Settings,
    entries: Entries<T::Principal>,
    lookups: PendingLookups<T::Principal>,
}

impl<T: TokenStore> CachedStore<T> {
    /// Creates a cache with the default settings, which serves grants for at most `ttl`.
    ///
    /// # Errors
    ///
    /// If `ttl` is zero or longer than 366 days.
    pub fn new(store: T, ttl: Duration) -> Result<Self, CacheSettingsError> {
        Self::builder(store, ttl).build()
    }

    /// Creates a builder for a cache with other settings.
    pub fn builder(store: T, ttl: Duration) -> CachedStoreBuilder<T> {
        CachedStoreBuilder::new(store, ttl)
    }

    fn with_settings(store: T, settings: Settings, capacity: u64) -> Self {
        Self(Arc::new(Inner { store, settings, entries: Entries::new(capacity), lookups: PendingLookups::default() }))
    }

    /// Removes the entries that a change concerns. After [`Invalidation::Everything`], marks all grants as possibly outdated.
    pub fn invalidate(&self, change: &Invalidation) {
        self.0.entries.invalidate(change);
    }

    /// Removes all entries, even if the store is down and cannot restore them. Use it in an emergency, such as leaked tokens.
    pub fn clear(&self) {
        self.0.entries.clear();
    }
}

impl<T: TokenStore> Inner<T> {
    /// Joins a pending lookup of the token, or sends one to the store.
    fn ask(self: &Arc<Self>, token: &BearerToken<'_>, now: Duration) -> Answer<SharedLookup<T::Principal>> {
        let digest = *token.digest();
        let epoch = self.entries.epoch();
        if let Some(lookup) = self.lookups.join(&digest, epoch, now) {
            return Answer::Pending(lookup);
        }
        match self.store.lookup(token) {
            Answer::Ready(found) => {
                let started = Started { epoch, at: now };
                Answer::Ready(self.record(digest, started, found.map_err(StoreError::new)))
            }
            Answer::Pending(future) => {
                let inner = Arc::clone(self);
                let lookup = async move {
                    let started = Started { epoch, at: inner.settings.now() };
                    inner.record(digest, started, future.await.map_err(StoreError::new))
                };
                Answer::Pending(self.lookups.start(digest, epoch, now, lookup))
            }
        }
    }

    /// Caches an answer of the store. Returns an older grant instead of an error about the store, if the settings allow that.
    ///
    /// The age of an answer counts from the start of its lookup, because the time at which the store read it is not known.
    fn record(
        &self,
        digest: TokenDigest,
        started: Started,
        found: Lookup<T::Principal, StoreError>,
    ) -> Lookup<T::Principal, StoreError> {
        let Settings { ttl, unknown_ttl, stale_on_error, .. } = self.settings;
        let now = self.settings.now();
        match found {
            Ok(Some(grant)) => {
                let left =
                    grant.expires_at().map(|end| end.duration_since((self.settings.wall_clock)()).unwrap_or_default());
                let ends = left.map_or(Duration::MAX, |left| now.saturating_add(left));
                self.entries.insert(
                    digest,
                    started,
                    Arc::clone(&grant),
                    started.at.saturating_add(ttl).min(ends),
                    ends,
                );
                Ok(Some(grant))
            }
            Ok(None) => {
                self.entries.insert_unknown(digest, started, started.at.saturating_add(unknown_ttl));
                Ok(None)
            }
            Err(error) if error.concerns_token() => {
                self.entries.remove(&digest, started);
                Err(error)
            }
            Err(error) => match self.entries.get(&digest) {
                Some(entry) if entry.is_usable(now, stale_on_error) => Ok(Some(entry.grant())),
                _ => Err(error),
            },
        }
    }

    /// Refreshes an entry in the background, unless a lookup of the token is pending. Returns an immediate answer of the store.
    fn refresh(self: &Arc<Self>, token: &BearerToken<'_>, now: Duration) -> Option<Lookup<T::Principal, StoreError>> {
        let spawn = self.settings.spawn.as_ref()?;
        if self.lookups.is_pending(token.digest(), self.entries.epoch(), now) {
            return None;
        }
        match self.ask(token, now) {
            Answer::Ready(found) => Some(found),
            Answer::Pending(lookup) => {
                spawn(Box::pin(async move { _ = lookup.await }));
                None
            }
        }
    }
}

impl<T: TokenStore> TokenStore for CachedStore<T> {
    type Principal = T::Principal;
    type Error = StoreError;
    type Future = CachedFuture<T::Principal>;

    #[inline]
    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        let inner = &self.0;
        let now = inner.settings.now();
        match inner.entries.get_current(token.digest(), now) {
            Found::Grant(entry) if entry.is_usable(now, Duration::ZERO) => {
                observe::cached(Cached::Hit);
                return Answer::Ready(Ok(Some(entry.grant())));
            }
            Found::Grant(entry) if entry.is_usable(now, inner.settings.stale_while_revalidate) => {
                observe::cached(Cached::Stale);
                return match inner.refresh(token, now) {
                    Some(Ok(found)) => Answer::Ready(Ok(found)),
                    Some(Err(error)) if error.concerns_token() => Answer::Ready(Err(error)),
                    Some(Err(_)) | None => Answer::Ready(Ok(Some(entry.grant()))),
                };
            }
            Found::Unknown => {
                observe::cached(Cached::Unknown);
                return Answer::Ready(Ok(None));
            }
            Found::Grant(_) | Found::Nothing => observe::cached(Cached::Miss),
        }
        match inner.ask(token, now) {
            Answer::Ready(found) => Answer::Ready(found),
            Answer::Pending(lookup) => Answer::Pending(CachedFuture(lookup)),
        }
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        let Inner { settings, entries, .. } = &*self.0;
        entries.get(token.digest()).is_some_and(|entry| entry.is_usable(settings.now(), settings.stale_on_error))
    }
}

/// The future of a [`CachedStore`]: waits for a lookup, which concurrent requests for the same token share.
pub struct CachedFuture<P>(SharedLookup<P>);

impl<P> Future for CachedFuture<P> {
    type Output = Lookup<P, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T: TokenStore> Clone for CachedStore<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: TokenStore> fmt::Debug for CachedStore<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStore")
            .field("ttl", &self.0.settings.ttl)
            .field("grants", &self.0.entries.len())
            .finish_non_exhaustive()
    }
}

impl<P> fmt::Debug for CachedFuture<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CachedFuture(..)")
    }
}
