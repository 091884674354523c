//! [`CachedStoreBuilder`]: the settings of a cache.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thiserror::Error;

use super::CachedStore;
use crate::quota::clock::{Clock, Time};
use crate::store::TokenStore;

const UNKNOWN_TTL: Duration = Duration::from_secs(5);
const CAPACITY: u64 = 10_000;
const MAX_TIME: Duration = Duration::from_secs(366 * 86_400);

/// Runs the refresh of an entry in the background.
pub(super) type Spawn = dyn Fn(Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync;

/// The error of a cache with an invalid setting.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheSettingsError {
    /// A time is zero or longer than 366 days.
    #[error("invalid cache time: must be more than 0 and at most 366 days")]
    Time,
    /// The capacity is zero.
    #[error("invalid cache capacity: must be at least 1")]
    Capacity,
}

/// The settings of a [`CachedStore`], created by [`CachedStore::builder`]. [`build`](Self::build) checks them.
#[must_use = "a builder does nothing before `build`"]
pub struct CachedStoreBuilder<T> {
    store: T,
    capacity: u64,
    unknown_ttl: Duration,
    stale_while_revalidate: Option<(Duration, Arc<Spawn>)>,
    stale_on_error: Option<Duration>,
    settings: Settings,
}

/// The settings that lookups need.
pub(super) struct Settings {
    pub(super) ttl: Duration,
    pub(super) unknown_ttl: Duration,
    pub(super) stale_while_revalidate: Duration,
    pub(super) stale_on_error: Duration,
    pub(super) spawn: Option<Arc<Spawn>>,
    pub(super) time: Time,
    pub(super) wall_clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Settings {
    #[inline]
    pub(super) fn now(&self) -> Duration {
        Duration::from_nanos(self.time.now_ns())
    }
}

impl<T: TokenStore> CachedStoreBuilder<T> {
    pub(super) fn new(store: T, ttl: Duration) -> Self {
        Self {
            store,
            capacity: CAPACITY,
            unknown_ttl: UNKNOWN_TTL,
            stale_while_revalidate: None,
            stale_on_error: None,
            settings: Settings {
                ttl,
                unknown_ttl: Duration::ZERO,
                stale_while_revalidate: Duration::ZERO,
                stale_on_error: Duration::ZERO,
                spawn: None,
                time: Time::counter(),
                wall_clock: Arc::new(SystemTime::now),
            },
        }
    }

    /// Sets how long a negative answer is cached. Default: 5 seconds. A value above `ttl` has the effect of `ttl`. Zero disables
    /// the caching of negative answers.
    ///
    /// A new token is rejected for up to this time, unless the cache gets [`Invalidation::Added`](crate::store::Invalidation).
    pub fn with_unknown_ttl(mut self, ttl: Duration) -> Self {
        self.unknown_ttl = ttl;
        self
    }

    /// Sets the maximum number of grants, and of negative entries. Default: 10,000 of each.
    pub fn with_capacity(mut self, grants: u64) -> Self {
        self.capacity = grants;
        self
    }

    /// Serves grants that are older than `ttl` by at most `bound`, while a background task refreshes them. `spawn` runs that task.
    /// Callers then do not wait for entries that are in constant use.
    ///
    /// The store must limit its own lookups with a timeout, because the timeout of the gate does not apply to the task.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::MemoryStore;
    /// use tollgate::store::CachedStore;
    ///
    /// let cache = CachedStore::builder(MemoryStore::<()>::new(), Duration::from_secs(30))
    ///     .with_stale_while_revalidate(Duration::from_secs(30), |refresh| _ = tokio::spawn(refresh))
    ///     .build()?;
    /// # let _ = cache;
    /// # Ok::<_, tollgate::store::CacheSettingsError>(())
    /// ```
    pub fn with_stale_while_revalidate(
        mut self,
        bound: Duration,
        spawn: impl Fn(Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync + 'static,
    ) -> Self {
        self.stale_while_revalidate = Some((bound, Arc::new(spawn)));
        self
    }

    /// Serves grants that are older than `ttl` by at most `bound`, while the store fails. Default: a grant older than `ttl` is not
    /// served, and the gate responds with 503.
    ///
    /// The longer the bound, the longer a token may work that was revoked while the store could not be reached.
    ///
    /// A store that does not answer has not failed: the request waits until the timeout of the gate. Put a
    /// [`CircuitBreaker`](crate::store::CircuitBreaker) with a shorter timeout between the cache and a store without a timeout of
    /// its own.
    pub fn with_stale_on_error(mut self, bound: Duration) -> Self {
        self.stale_on_error = Some(bound);
        self
    }

    /// Sets the clock for the age of entries, such as [`MonotonicClock`](crate::limit::MonotonicClock). Default: the counter of
    /// the processor, which may drift on some machines.
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.settings.time = Time::Given(Arc::new(clock));
        self
    }

    /// Sets the clock for the expiry of grants. Default: the clock of the system.
    pub fn with_wall_clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.settings.wall_clock = Arc::new(now);
        self
    }

    /// Creates the cache.
    ///
    /// # Errors
    ///
    /// If the capacity, `ttl` or a bound is zero. If a time is longer than 366 days.
    pub fn build(self) -> Result<CachedStore<T>, CacheSettingsError> {
        let Self { store, capacity, unknown_ttl, stale_while_revalidate, stale_on_error, mut settings } = self;
        settings.ttl = checked(settings.ttl)?;
        if unknown_ttl > MAX_TIME {
            return Err(CacheSettingsError::Time);
        }
        settings.unknown_ttl = unknown_ttl.min(settings.ttl);
        if let Some((bound, spawn)) = stale_while_revalidate {
            settings.stale_while_revalidate = checked(bound)?;
            settings.spawn = Some(spawn);
        }
        if let Some(bound) = stale_on_error {
            settings.stale_on_error = checked(bound)?;
        }
        if capacity == 0 {
            return Err(CacheSettingsError::Capacity);
        }
        Ok(CachedStore::with_settings(store, settings, capacity))
    }
}

fn checked(time: Duration) -> Result<Duration, CacheSettingsError> {
    if time.is_zero() || time > MAX_TIME { Err(CacheSettingsError::Time) } else { Ok(time) }
}

impl<T> fmt::Debug for CachedStoreBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStoreBuilder")
            .field("ttl", &self.settings.ttl)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}
