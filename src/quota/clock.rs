//! Clocks of limiters and caches.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use governor::clock::{Clock as _, QuantaClock};

use super::cell::LATEST_NS;

/// A clock for budgets: the time since a fixed moment of its own, which never jumps and had better not step back.
///
/// A step back neither panics nor hands out quota: budgets stand still until the clock has caught up. Closures are
/// clocks, so that a test turns its own hands:
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use std::time::Duration;
/// use tollgate::limit::{Charge, RateLimits};
/// use tollgate::{CurrentGrant, Grant, Quota};
///
/// let seconds = Arc::new(AtomicU64::new(0));
/// let hands = Arc::clone(&seconds);
/// let limits = RateLimits::new(Quota::per_minute(1))
///     .with_clock(move || Duration::from_secs(hands.load(Ordering::Relaxed)));
/// let alice = CurrentGrant::new(Grant::new("alice", ()));
///
/// assert!(limits.charge(&alice, Charge::Units(1)).is_admitted());
/// assert!(!limits.charge(&alice, Charge::Units(1)).is_admitted());
/// seconds.store(60, Ordering::Relaxed);
/// assert!(limits.charge(&alice, Charge::Units(1)).is_admitted());
/// ```
pub trait Clock: Send + Sync + 'static {
    /// The time since the fixed moment. Budgets end 146 years after it.
    fn now(&self) -> Duration;
}

impl<F: Fn() -> Duration + Send + Sync + 'static> Clock for F {
    fn now(&self) -> Duration {
        self()
    }
}

/// The operating system's monotonic clock, through [`Instant`], counted from when this was made.
///
/// By default budgets read the processor's time stamp counter, which is faster. On a hypervisor whose counter drifts,
/// choose this one.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock(Instant);

impl MonotonicClock {
    /// Starts at zero.
    #[must_use]
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// What a limiter or a cache reads the time from; the default is known by type, so that it can be inlined.
#[derive(Clone)]
pub(crate) enum Time {
    Counter { clock: QuantaClock, start: governor::clock::QuantaInstant },
    Given(Arc<dyn Clock>),
}

impl Time {
    pub(crate) fn counter() -> Self {
        let clock = QuantaClock::default();
        let start = clock.now();
        Self::Counter { clock, start }
    }

    /// Nanoseconds since the clock's fixed moment, at most [`LATEST_NS`].
    #[inline]
    pub(crate) fn now_ns(&self) -> u64 {
        use governor::clock::Reference as _;
        match self {
            Self::Counter { clock, start } => clock.now().duration_since(*start).as_u64().min(LATEST_NS),
            Self::Given(clock) => u64::try_from(clock.now().as_nanos()).unwrap_or(LATEST_NS).min(LATEST_NS),
        }
    }
}

/// For the breaker of budgets in Redis.
#[cfg(feature = "redis")]
impl Clock for Time {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.now_ns())
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter { .. } => "Counter",
            Self::Given(_) => "Given",
        })
    }
}
