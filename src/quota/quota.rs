//! [`Quota`]: a rate and a burst.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use thiserror::Error;

use super::text::Unit;

/// The exclusive upper bound of `burst x interval`. The unchecked arithmetic of governor could overflow above it.
pub(crate) const MAX_SPAN_NS: u64 = 1 << 62;

const SECOND: Duration = Duration::from_secs(1);

/// The numbers of a rate limit: a rate, and a burst, which is the number of units in a full bucket.
///
/// Each subject has a bucket of `burst` units, which is full at first. The bucket regains one unit per
/// [`interval`](Self::interval). Buckets have no reset time.
///
/// The constructors are `const` and panic for invalid numbers. For constants, the panic is a compile error. Use
/// [`try_per`](Self::try_per), [`try_at_most`](Self::try_at_most) and [`try_with_burst`](Self::try_with_burst) for numbers
/// from a file or a database.
///
/// ```
/// use std::time::Duration;
/// use tollgate::Quota;
///
/// const CROSSTRADE: Quota = Quota::per_minute(180).with_burst(20);
/// assert_eq!(CROSSTRADE.burst(), 20);
/// // Rounded up to whole nanoseconds, so that the limit never admits more than the rate.
/// assert_eq!(CROSSTRADE.interval(), Duration::from_nanos(333_333_334));
///
/// assert_eq!(Quota::per_second(10).burst(), 10);
/// assert_eq!(Quota::one_per(Duration::from_secs(90)).burst(), 1);
/// ```
///
/// A burst of `n` that is refilled at `n` per window admits up to `2n - 1` units in some windows. Use
/// [`at_most`](Self::at_most) to admit at most `n` units in any window.
///
/// # Text format
///
/// Quotas are parsed from and printed as `180/min burst 20`, see [`FromStr`](#impl-FromStr-for-Quota). The feature `serde`
/// uses the same text.
#[derive(Clone, Copy)]
pub struct Quota {
    interval_ns: NonZeroU64,
    burst: NonZeroU32,
    pub(super) unit: Unit,
}

/// The error of an invalid [`Quota`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaError {
    /// The rate or the burst is 0.
    #[error("invalid quota: rate and burst must be at least 1")]
    Zero,
    /// The period, window or interval is 0.
    #[error("invalid quota: the period must not be 0")]
    NoTime,
    /// `burst` times `interval` is 146 years or more.
    #[error("invalid quota: a refill must take less than 146 years")]
    TooLong,
    /// `at_most` got a burst above the number of units in a window.
    #[error("invalid quota: the burst is larger than the number of units in a window")]
    BurstAboveWindow,
    /// The text does not have the form `180/min burst 20`.
    #[error("invalid quota: expected a number per period, such as 180/min or 180/min burst 20")]
    Syntax,
}

impl Quota {
    /// Creates a quota of `n` units per second with a burst of `n`.
    ///
    /// # Panics
    ///
    /// Panics if `n` is 0.
    #[must_use]
    pub const fn per_second(n: u32) -> Self {
        must(Self::try_per(n, SECOND))
    }

    /// Creates a quota of `n` units per minute with a burst of `n`.
    ///
    /// # Panics
    ///
    /// Panics if `n` is 0.
    #[must_use]
    pub const fn per_minute(n: u32) -> Self {
        must(Self::try_per(n, Duration::from_secs(60)))
    }

    /// Creates a quota of `n` units per hour with a burst of `n`.
    ///
    /// # Panics
    ///
    /// Panics if `n` is 0.
    #[must_use]
    pub const fn per_hour(n: u32) -> Self {
        must(Self::try_per(n, Duration::from_secs(3_600)))
    }

    /// Creates a quota of `n` units per day (24 hours) with a burst of `n`.
    ///
    /// # Panics
    ///
    /// Panics if `n` is 0.
    #[must_use]
    pub const fn per_day(n: u32) -> Self {
        must(Self::try_per(n, Duration::from_secs(86_400)))
    }

    /// Creates a quota of one unit per `interval` with a burst of 1.
    ///
    /// # Panics
    ///
    /// Panics if `interval` is 0, or 146 years or more.
    #[must_use]
    pub const fn one_per(interval: Duration) -> Self {
        must(Self::try_per(1, interval))
    }

    /// Creates a quota that admits at most `n` units in any window of this length, with this burst.
    ///
    /// The bucket admits `burst` units and then one unit per interval, so the interval is `window / (n - burst + 1)`. A
    /// larger burst means a slower refill: with `burst == n`, the bucket regains one unit per window.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::Quota;
    ///
    /// let minute = Duration::from_secs(60);
    /// let quota = Quota::at_most(100, minute, 41);
    /// assert_eq!(quota.interval(), Duration::from_secs(1));
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if `n`, `window` or `burst` is 0, if `burst` is above `n`, or if a refill takes 146 years or more.
    #[must_use]
    pub const fn at_most(n: u32, window: Duration, burst: u32) -> Self {
        must(Self::try_at_most(n, window, burst))
    }

    /// Sets the burst. The rate does not change.
    ///
    /// # Panics
    ///
    /// Panics if `burst` is 0, or if a refill takes 146 years or more.
    #[must_use]
    pub const fn with_burst(self, burst: u32) -> Self {
        must(self.try_with_burst(burst))
    }

    /// Creates a quota of `n` units per `period` with a burst of `n`, for numbers from a file or a database.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::{Quota, QuotaError};
    ///
    /// let minute = Duration::from_secs(60);
    /// assert_eq!(Quota::try_per(180, minute)?, Quota::per_minute(180));
    /// assert_eq!(Quota::try_per(0, minute), Err(QuotaError::Zero));
    /// # Ok::<_, QuotaError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if a number is 0, or if a refill takes 146 years or more.
    pub const fn try_per(n: u32, period: Duration) -> Result<Self, QuotaError> {
        Self::from_parts(n, period, n, Unit::of(period))
    }

    /// Creates a quota like [`at_most`](Self::at_most), for numbers from a file or a database.
    ///
    /// # Errors
    ///
    /// Returns an error where `at_most` panics.
    pub const fn try_at_most(n: u32, window: Duration, burst: u32) -> Result<Self, QuotaError> {
        if n == 0 || burst == 0 {
            return Err(QuotaError::Zero);
        }
        match n.checked_sub(burst) {
            None => Err(QuotaError::BurstAboveWindow),
            // `burst` is at least 1, so adding 1 cannot overflow.
            Some(rest) => Self::from_parts(rest + 1, window, burst, Unit::None),
        }
    }

    /// Sets the burst like [`with_burst`](Self::with_burst), for numbers from a file or a database.
    ///
    /// # Errors
    ///
    /// Returns an error where `with_burst` panics.
    pub const fn try_with_burst(self, burst: u32) -> Result<Self, QuotaError> {
        Self::from_parts(1, self.interval(), burst, self.unit)
    }

    /// Divides rate and burst among nodes, so that all nodes together admit at most this quota.
    ///
    /// The burst of a node is at least 1. With more nodes than units in the burst, the sum of all bursts is larger than the
    /// burst of this quota.
    pub(crate) fn divided_by(self, nodes: NonZeroU32) -> Self {
        let burst = (self.burst() / nodes.get()).max(1);
        let interval_ns = self.interval_ns().saturating_mul(nodes.get().into());
        // The refill of a valid quota takes less than 146 years, so the interval is capped.
        let slowest = (MAX_SPAN_NS - 1) / u64::from(burst);
        let interval = Duration::from_nanos(interval_ns.min(slowest));
        Self::from_parts(1, interval, burst, Unit::None).unwrap_or(self)
    }

    /// Returns whether the quotas are equal and have the same text.
    pub(crate) fn is_identical(&self, other: &Self) -> bool {
        self == other && self.unit == other.unit
    }

    /// Validates the numbers of all constructors.
    const fn from_parts(n: u32, period: Duration, burst: u32, unit: Unit) -> Result<Self, QuotaError> {
        let Some(burst) = NonZeroU32::new(burst) else { return Err(QuotaError::Zero) };
        if n == 0 {
            return Err(QuotaError::Zero);
        }
        let interval = period.as_nanos().div_ceil(n as u128);
        // Checked before the conversion to `u64`, which would truncate.
        if interval >= MAX_SPAN_NS as u128 || interval * burst.get() as u128 >= MAX_SPAN_NS as u128 {
            return Err(QuotaError::TooLong);
        }
        match NonZeroU64::new(interval as u64) {
            None => Err(QuotaError::NoTime),
            Some(interval_ns) => Ok(Self { interval_ns, burst, unit }),
        }
    }

    /// Returns the time in which the bucket regains one unit, in whole nanoseconds, rounded up.
    #[must_use]
    pub const fn interval(self) -> Duration {
        Duration::from_nanos(self.interval_ns.get())
    }

    /// Returns the number of units in a full bucket.
    #[must_use]
    pub const fn burst(self) -> u32 {
        self.burst.get()
    }

    /// Returns the time in which an empty bucket becomes full.
    #[must_use]
    pub const fn refill(self) -> Duration {
        Duration::from_nanos(self.span_ns())
    }

    pub(crate) const fn interval_ns(self) -> u64 {
        self.interval_ns.get()
    }

    pub(crate) const fn span_ns(self) -> u64 {
        self.interval_ns.get() * self.burst.get() as u64
    }

    pub(crate) const fn burst_nonzero(self) -> NonZeroU32 {
        self.burst
    }
}

const fn must(quota: Result<Quota, QuotaError>) -> Quota {
    match quota {
        Ok(quota) => quota,
        Err(QuotaError::Zero) => panic!("invalid quota: rate and burst must be at least 1"),
        Err(QuotaError::NoTime) => panic!("invalid quota: the period must not be 0"),
        Err(QuotaError::TooLong) => panic!("invalid quota: a refill must take less than 146 years"),
        Err(QuotaError::BurstAboveWindow) => {
            panic!("invalid quota: the burst is larger than the number of units in a window")
        }
        Err(QuotaError::Syntax) => panic!("invalid quota"),
    }
}

impl PartialEq for Quota {
    /// Compares interval and burst: `60/min` and `1/s burst 60` are equal.
    fn eq(&self, other: &Self) -> bool {
        (self.interval_ns, self.burst) == (other.interval_ns, other.burst)
    }
}

impl Eq for Quota {}

impl Hash for Quota {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.interval_ns, self.burst).hash(state);
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quota(one per {:?}, burst {})", self.interval(), self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn invalid_numbers_are_an_error() {
        assert_eq!(Quota::try_per(0, MINUTE), Err(QuotaError::Zero));
        assert_eq!(Quota::try_per(1, Duration::ZERO), Err(QuotaError::NoTime));
        assert_eq!(Quota::per_minute(1).try_with_burst(0), Err(QuotaError::Zero));
        assert_eq!(Quota::per_minute(1).try_with_burst(u32::MAX), Err(QuotaError::TooLong));
        assert_eq!(Quota::try_per(1, Duration::from_nanos(MAX_SPAN_NS)), Err(QuotaError::TooLong));
        assert_eq!(Quota::try_per(1, Duration::MAX), Err(QuotaError::TooLong));
        assert!(Quota::try_per(1, Duration::from_nanos(MAX_SPAN_NS - 1)).is_ok());
        assert_eq!(Quota::try_at_most(5, MINUTE, 6), Err(QuotaError::BurstAboveWindow));
        assert_eq!(Quota::try_at_most(5, MINUTE, 0), Err(QuotaError::Zero));
        assert_eq!(Quota::try_at_most(0, MINUTE, 1), Err(QuotaError::Zero));
        assert_eq!(Quota::try_at_most(u32::MAX, MINUTE, 1).map(Quota::interval), Ok(Duration::from_nanos(14)));
    }

    #[test]
    fn constructors_set_interval_burst_and_refill_time() {
        let second = Duration::from_secs(1);
        for (quota, interval, burst) in [
            (Quota::per_second(1), second, 1),
            (Quota::per_minute(60), second, 60),
            (Quota::per_hour(3_600), second, 3_600),
            (Quota::per_day(86_400), second, 86_400),
            (Quota::one_per(second), second, 1),
            (Quota::per_second(4).with_burst(9), Duration::from_millis(250), 9),
            (Quota::per_second(u32::MAX), Duration::from_nanos(1), u32::MAX),
        ] {
            assert_eq!((quota.interval(), quota.burst()), (interval, burst));
            assert_eq!(quota.refill(), interval * burst);
        }
    }
}
