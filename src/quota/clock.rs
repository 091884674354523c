//! [`Clock`]: the clocks of limiters and caches.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use governor::clock::{Clock as _, QuantaClock};

use super::cell::LATEST_NS;

/// A clock for rate limits. It returns the time since a fixed moment, without jumps, and should not step back.
///
/// A step back causes no panic and admits no additional requests: buckets are not refilled until the clock catches up.
/// Closures implement this trait, so tests can control the time:
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use std::time::Duration;
/// use tollgate::limit::{Charge, RateLimits};
/// use tollgate::{CurrentGrant, Grant, Quota};
///
/// let seconds = Arc::new(AtomicU64::new(0));
/// let now = Arc::clone(&seconds);
/// let limits = RateLimits::new(Quota::per_minute(1))
///     .with_clock(move || Duration::from_secs(now.load(Ordering::Relaxed)));
/// let alice = CurrentGrant::new(Grant::new("alice", ()));
///
/// assert!(limits.charge(&alice, Charge::Units(1)).is_admitted());
/// assert!(!limits.charge(&alice, Charge::Units(1)).is_admitted());
/// seconds.store(60, Ordering::Relaxed);
/// assert!(limits.charge(&alice, Charge::Units(1)).is_admitted());
/// ```
pub trait Clock: Send + Sync + 'static {
    /// Returns the time since the fixed moment. Rate limits work for 146 years after that moment.
    fn now(&self) -> Duration;
}

impl<F: Fn() -> Duration + Send + Sync + 'static> Clock for F {
    fn now(&self) -> Duration {
        self()
    }
}

/// The monotonic clock of the operating system, by [`Instant`], as the time since its creation.
///
/// By default, rate limits read the time stamp counter of the processor, which is faster. Its rate is measured once, when the
/// process starts, and can be wrong by some parts in 10,000 if the machine is busy then. A client that waits for hours may then
/// come back seconds too early, and be rejected again. Use this clock for such limits, and on hypervisors whose counter drifts.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock(Instant);

impl MonotonicClock {
    /// Creates a clock that starts at zero.
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

/// The clock of a limiter or a cache. The default clock is a variant of its own, so that the compiler can inline it.
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

    /// Returns the nanoseconds since the fixed moment of the clock, at most [`LATEST_NS`].
    #[inline]
    pub(crate) fn now_ns(&self) -> u64 {
        use governor::clock::Reference as _;
        match self {
            Self::Counter { clock, start } => clock.now().duration_since(*start).as_u64().min(LATEST_NS),
            Self::Given(clock) => u64::try_from(clock.now().as_nanos()).unwrap_or(LATEST_NS).min(LATEST_NS),
        }
    }
}

/// For the circuit breaker of rate limits in Redis.
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

/// Converts nanoseconds to whole seconds, rounded up.
pub(crate) const fn secs_up(ns: u64) -> u64 {
    ns.div_ceil(1_000_000_000)
}
