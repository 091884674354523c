use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use thiserror::Error;

mod flight;
mod memory;

use flight::{Flight, Flights};
use memory::{Asked, Memory, Remembered};

use super::{Invalidation, Lookup, TokenStore};
use crate::observe::{self, Cached};
use crate::pending::answer::Answer;
use crate::quota::clock::{Clock, Time};
use crate::rejection::store_error::StoreError;
use crate::token::{BearerToken, TokenDigest};

/// A cache in front of a store. Clones share it.
///
/// What it remembers is answered at once, without a future. What it does not is asked for once, however many requests want
/// to know: they wait for one look-up together. Failures are never remembered.
///
/// ```
/// use std::time::Duration;
/// use tollgate::store::{CachedStore, from_fn};
/// use tollgate::{AuthLayer, Grant};
///
/// let store = from_fn(|_digest| async { Ok::<Option<Grant<()>>, std::io::Error>(None) });
/// let cache = CachedStore::new(store, Duration::from_secs(60))?.with_capacity(100_000)?;
/// let gate = AuthLayer::with_timeout(cache, Duration::from_secs(2));
/// # let _ = gate;
/// # Ok::<_, tollgate::store::CacheSettingsError>(())
/// ```
///
/// # How stale an answer can be
///
/// | | at most |
/// |---|---|
/// | a grant | `ttl`, and with [`with_stale_while_revalidate`](Self::with_stale_while_revalidate) its bound on top |
/// | a grant, while the store fails | `ttl`, and the bound of [`with_stale_on_error`](Self::with_stale_on_error) on top |
/// | "unknown" | [`with_unknown_ttl`](Self::with_unknown_ttl), 5 seconds by default, and never more than `ttl` |
///
/// All of it is counted from the moment at which the store was asked. A request that joins a lookup gets its answer, for which
/// the store was asked at most 5 seconds before. A grant that has expired is asked for anew in any case.
///
/// The store fails if it returns an error [about the store](StoreError::concerns_token). Nothing older is served instead of an
/// error about one token, because that is the answer of a working store.
///
/// # Invalidation
///
/// After [`invalidate`](Self::invalidate) returns, no lookup sees the entries that it removed, nor joins lookups that began
/// before. Requests that are already waiting get their answer, but what was read before its invalidation is not kept.
///
/// [`Invalidation::Everything`] removes no grant, because it is reported when a connection was lost: when the store is least able to
/// answer. It marks all entries as possibly outdated, and the next lookup of each entry asks the store. If the store answers,
/// its answer counts. If the store fails, or a [`CircuitBreaker`](crate::store::CircuitBreaker) in front of it is open, the old grant is
/// served, but no longer than the table allows, and the next lookup asks again.
///
/// So a token that was revoked without a message is accepted until the first lookup that the store answers after
/// `Invalidation::Everything`, and never longer than `ttl` plus the bound of `with_stale_on_error`. To remove everything immediately,
/// call [`clear`](Self::clear).
///
/// [`Invalidation::Token`] names a token by the digest that this cache is asked by: put it next to the store, inside of `PepperedStore`.
///
/// # Memory
///
/// At most [`with_capacity`](Self::with_capacity) grants, 10,000 by default, and as many unknown tokens, apart from them, so
/// that a flood of junk pushes out no grant.
pub struct CachedStore<T: TokenStore>(Arc<Inner<T>>);

struct Inner<T: TokenStore> {
    store: Arc<T>,
    settings: Settings,
    memory: Memory<T::Principal>,
    flights: Flights<T::Principal>,
}

#[derive(Clone)]
struct Settings {
    ttl: Duration,
    unknown_ttl: Duration,
    capacity: u64,
    stale_while_revalidate: Duration,
    stale_on_error: Duration,
    spawn: Option<Arc<Spawn>>,
    time: Time,
    wall_clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Settings {
    #[inline]
    fn now(&self) -> Duration {
        Duration::from_nanos(self.time.now_ns())
    }
}

type Spawn = dyn Fn(Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync;

const UNKNOWN_TTL: Duration = Duration::from_secs(5);
const CAPACITY: u64 = 10_000;
/// A year. What is older than that is no cache's business.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// What no cache can be set to.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheSettingsError {
    /// A time of zero, where nothing would ever be remembered, or of more than a year.
    #[error("a cache remembers for more than no time and less than a year")]
    Time,
    /// A capacity of zero.
    #[error("a cache has to have room for something")]
    Capacity,
}

impl<T: TokenStore> CachedStore<T> {
    /// Remembers grants for the time of `ttl`.
    ///
    /// # Errors
    ///
    /// If it is zero, or more than a year.
    pub fn new(store: T, ttl: Duration) -> Result<Self, CacheSettingsError> {
        let ttl = checked(ttl)?;
        Ok(Self::of(
            Arc::new(store),
            Settings {
                ttl,
                unknown_ttl: UNKNOWN_TTL.min(ttl),
                capacity: CAPACITY,
                stale_while_revalidate: Duration::ZERO,
                stale_on_error: Duration::ZERO,
                spawn: None,
                time: Time::counter(),
                wall_clock: Arc::new(SystemTime::now),
            },
        ))
    }

    fn of(store: Arc<T>, settings: Settings) -> Self {
        let memory = Memory::new(settings.capacity);
        Self(Arc::new(Inner { store, settings, memory, flights: Flights::default() }))
    }

    /// The same with another time for which "unknown" is remembered, never longer than a grant is; zero is not at all. A token that becomes known is
    /// refused for so long, unless [`Invalidation::Added`] is told.
    ///
    /// # Errors
    ///
    /// If it is more than a year.
    pub fn with_unknown_ttl(self, ttl: Duration) -> Result<Self, CacheSettingsError> {
        if !ttl.is_zero() {
            checked(ttl)?;
        }
        Ok(self.map(|settings| settings.unknown_ttl = ttl.min(settings.ttl)))
    }

    /// The same with room for so many grants, and for as many unknown tokens.
    ///
    /// # Errors
    ///
    /// If it is zero.
    pub fn with_capacity(self, grants: u64) -> Result<Self, CacheSettingsError> {
        if grants == 0 {
            return Err(CacheSettingsError::Capacity);
        }
        Ok(self.map(|settings| settings.capacity = grants))
    }

    /// The same, and a grant that is older than `ttl`, but by no more than the bound, is still answered, while it is asked for
    /// anew by a task that `spawn` runs: callers do not wait for what is used all the time.
    ///
    /// The store has to bound its waits by itself, since no gate waits for that task.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::MemoryStore;
    /// use tollgate::store::CachedStore;
    ///
    /// let cache = CachedStore::new(MemoryStore::<()>::new(), Duration::from_secs(30))?
    ///     .with_stale_while_revalidate(Duration::from_secs(30), |refresh| _ = tokio::spawn(refresh))?;
    /// # let _ = cache;
    /// # Ok::<_, tollgate::store::CacheSettingsError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the bound is zero or more than a year.
    pub fn with_stale_while_revalidate(
        self,
        bound: Duration,
        spawn: impl Fn(Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync + 'static,
    ) -> Result<Self, CacheSettingsError> {
        let bound = checked(bound)?;
        Ok(self.map(|settings| {
            settings.stale_while_revalidate = bound;
            settings.spawn = Some(Arc::new(spawn));
        }))
    }

    /// The same, and while the store fails, a grant that is older than `ttl`, but by no more than the bound, is still
    /// answered. Without it a grant is refused by 503 when its `ttl` is over and the store is down.
    ///
    /// The longer the bound, the longer a token may work that was revoked while the store could not be reached.
    ///
    /// A store that is silent has not failed: who waits for it until the gate's deadline is refused. Put a
    /// [`CircuitBreaker`](crate::store::CircuitBreaker) with a shorter deadline between the cache and a store that does not end its waits
    /// by itself.
    ///
    /// # Errors
    ///
    /// If the bound is zero or more than a year.
    pub fn with_stale_on_error(self, bound: Duration) -> Result<Self, CacheSettingsError> {
        let bound = checked(bound)?;
        Ok(self.map(|settings| settings.stale_on_error = bound))
    }

    /// The same by another clock than the processor's counter, such as
    /// [`MonotonicClock`](crate::limit::MonotonicClock) where that counter drifts.
    #[must_use]
    pub fn with_clock(self, clock: impl Clock) -> Self {
        self.map(|settings| settings.time = Time::Given(Arc::new(clock)))
    }

    /// The same by another clock for the expiry of grants than the system's.
    #[must_use]
    pub fn with_wall_clock(self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.map(|settings| settings.wall_clock = Arc::new(now))
    }

    /// Begins anew, with nothing remembered: what was cloned before keeps its own memory.
    fn map(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.0.settings.clone();
        change(&mut settings);
        Self::of(Arc::clone(&self.0.store), settings)
    }

    /// Removes what has changed; after [`Invalidation::Everything`], marks all grants as possibly outdated.
    pub fn invalidate(&self, change: &Invalidation) {
        self.0.memory.forget(change);
    }

    /// Removes all entries, also if the store cannot be asked for them again: for an emergency, such as a leak of tokens.
    pub fn clear(&self) {
        self.0.memory.clear();
    }
}

impl<T: TokenStore> Inner<T> {
    /// Asks the store, or joins those who wait for it already.
    fn ask(self: &Arc<Self>, token: &BearerToken<'_>, now: Duration) -> Answer<Flight<T::Principal>> {
        let digest = *token.digest();
        let epoch = self.memory.epoch();
        if let Some(flight) = self.flights.join(&digest, epoch, now) {
            return Answer::Pending(flight);
        }
        match self.store.lookup(token) {
            Answer::Ready(found) => {
                let asked = Asked { epoch, at: now };
                Answer::Ready(self.land(digest, asked, found.map_err(StoreError::new)))
            }
            Answer::Pending(future) => {
                let inner = Arc::clone(self);
                let flight = async move {
                    let asked = Asked { epoch, at: inner.settings.now() };
                    inner.land(digest, asked, future.await.map_err(StoreError::new))
                };
                Answer::Pending(self.flights.start(digest, epoch, now, flight))
            }
        }
    }

    /// Remembers what the store says, or falls back to what it said before. An answer is as old as its question: nobody knows
    /// when in between the store has looked.
    fn land(
        &self,
        digest: TokenDigest,
        asked: Asked,
        found: Lookup<T::Principal, StoreError>,
    ) -> Lookup<T::Principal, StoreError> {
        let Settings { ttl, unknown_ttl, stale_on_error, .. } = self.settings;
        let now = self.settings.now();
        match found {
            Ok(Some(grant)) => {
                let left =
                    grant.expires_at().map(|end| end.duration_since((self.settings.wall_clock)()).unwrap_or_default());
                let ends = left.map_or(Duration::MAX, |left| now.saturating_add(left));
                self.memory.keep(digest, asked, Arc::clone(&grant), asked.at.saturating_add(ttl).min(ends), ends);
                Ok(Some(grant))
            }
            Ok(None) => {
                self.memory.keep_unknown(digest, asked, asked.at.saturating_add(unknown_ttl));
                Ok(None)
            }
            Err(error) if error.concerns_token() => {
                self.memory.remove(&digest, asked);
                Err(error)
            }
            Err(error) => match self.memory.known(&digest) {
                Some(known) if known.is_usable(now, stale_on_error) => Ok(Some(known.grant())),
                _ => Err(error),
            },
        }
    }

    /// Has a task ask the store, unless somebody does. What it says at once need not be late.
    fn refresh(self: &Arc<Self>, token: &BearerToken<'_>, now: Duration) -> Option<Lookup<T::Principal, StoreError>> {
        let spawn = self.settings.spawn.as_ref()?;
        if self.flights.is_under_way(token.digest(), self.memory.epoch(), now) {
            return None;
        }
        match self.ask(token, now) {
            Answer::Ready(found) => Some(found),
            Answer::Pending(flight) => {
                spawn(Box::pin(async move { _ = flight.await }));
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
        match inner.memory.recall(token.digest(), now) {
            Remembered::Known(known) if known.is_usable(now, Duration::ZERO) => {
                observe::cached(Cached::Hit);
                return Answer::Ready(Ok(Some(known.grant())));
            }
            Remembered::Known(known) if known.is_usable(now, inner.settings.stale_while_revalidate) => {
                observe::cached(Cached::Stale);
                return match inner.refresh(token, now) {
                    Some(Ok(found)) => Answer::Ready(Ok(found)),
                    Some(Err(error)) if error.concerns_token() => Answer::Ready(Err(error)),
                    Some(Err(_)) | None => Answer::Ready(Ok(Some(known.grant()))),
                };
            }
            Remembered::Unknown => {
                observe::cached(Cached::Unknown);
                return Answer::Ready(Ok(None));
            }
            Remembered::Known(_) | Remembered::Nothing => observe::cached(Cached::Miss),
        }
        match inner.ask(token, now) {
            Answer::Ready(found) => Answer::Ready(found),
            Answer::Pending(flight) => Answer::Pending(CachedFuture(flight)),
        }
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        let Inner { settings, memory, .. } = &*self.0;
        memory.known(token.digest()).is_some_and(|known| known.is_usable(settings.now(), settings.stale_on_error))
    }
}

/// The future of a [`CachedStore`]: waits for a look-up, together with whoever asked for the same token.
pub struct CachedFuture<P>(Flight<P>);

impl<P> Future for CachedFuture<P> {
    type Output = Lookup<P, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

fn checked(time: Duration) -> Result<Duration, CacheSettingsError> {
    if time.is_zero() || time > LONGEST { Err(CacheSettingsError::Time) } else { Ok(time) }
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
            .field("grants", &self.0.memory.len())
            .finish_non_exhaustive()
    }
}

impl<P> fmt::Debug for CachedFuture<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CachedFuture(..)")
    }
}
