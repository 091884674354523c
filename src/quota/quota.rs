//! [`Quota`]: a rate and a burst.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use thiserror::Error;

use super::text::Unit;

/// The largest `burst x interval`. Above it governor's arithmetic, which is unchecked, could overflow.
pub(crate) const MAX_SPAN_NS: u64 = 1 << 62;

const SECOND: Duration = Duration::from_secs(1);

/// How much a subject may spend: a rate, and how much of it may come at once (the burst).
///
/// A budget is a bucket of `burst` cells that is refilled one cell at a time, one each [`interval`](Self::interval).
/// It is full at first. There is no moment at which it "resets".
///
/// The constructors say what they mean and cannot be read two ways. They are `const` and panic for what no quota can
/// be, which is a compile error where the quota is a constant. For numbers that come from elsewhere there are
/// [`try_per`](Self::try_per), which all rates can be written with, [`try_at_most`](Self::try_at_most) and
/// [`try_with_burst`](Self::try_with_burst).
///
/// ```
/// use std::time::Duration;
/// use tollgate::Quota;
///
/// const CROSSTRADE: Quota = Quota::per_minute(180).with_burst(20);
/// assert_eq!(CROSSTRADE.burst(), 20);
/// // Rounded up to whole nanoseconds: a quota never admits more than it says.
/// assert_eq!(CROSSTRADE.interval(), Duration::from_nanos(333_333_334));
///
/// assert_eq!(Quota::per_second(10).burst(), 10);
/// assert_eq!(Quota::one_per(Duration::from_secs(90)).burst(), 1);
/// ```
///
/// A burst of `n` refilled at `n` per window admits up to `2n - 1` in an unlucky window. Where "never more than `n` in
/// any window" is meant, say so: [`at_most`](Self::at_most).
///
/// # Text
///
/// A quota is parsed from and printed as `180/min burst 20`; see [`FromStr`](#impl-FromStr-for-Quota). With the feature
/// `serde` it is serialized as this text.
#[derive(Clone, Copy)]
pub struct Quota {
    interval_ns: NonZeroU64,
    burst: NonZeroU32,
    pub(super) unit: Unit,
}

/// Why numbers make no [`Quota`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaError {
    /// The rate or the burst is 0: nothing could ever pass.
    #[error("a quota of zero admits nothing")]
    Zero,
    /// The window or interval is 0: nothing would be limited.
    #[error("the time of a quota must not be zero")]
    NoTime,
    /// `burst` times interval is 146 years or more.
    #[error("the quota would take more than 146 years to refill")]
    TooLong,
    /// `at_most` with a burst above the number admitted in a window.
    #[error("the burst is larger than the number admitted in a window")]
    BurstAboveWindow,
    /// The text has not the form of `180/min burst 20`.
    #[error("invalid quota: expected a number per period, such as 180/min or 180/min burst 20")]
    Syntax,
}

impl Quota {
    /// `n` a second, and a burst of `n`.
    ///
    /// # Panics
    ///
    /// If `n` is 0.
    #[must_use]
    pub const fn per_second(n: u32) -> Self {
        must(Self::try_per(n, SECOND))
    }

    /// `n` a minute, and a burst of `n`.
    ///
    /// # Panics
    ///
    /// If `n` is 0.
    #[must_use]
    pub const fn per_minute(n: u32) -> Self {
        must(Self::try_per(n, Duration::from_secs(60)))
    }

    /// `n` an hour, and a burst of `n`.
    ///
    /// # Panics
    ///
    /// If `n` is 0.
    #[must_use]
    pub const fn per_hour(n: u32) -> Self {
        must(Self::try_per(n, Duration::from_secs(3_600)))
    }

    /// `n` a day (of 24 hours), and a burst of `n`.
    ///
    /// # Panics
    ///
    /// If `n` is 0.
    #[must_use]
    pub const fn per_day(n: u32) -> Self {
        must(Self::try_per(n, Duration::from_secs(86_400)))
    }

    /// One each `interval`, and a burst of 1.
    ///
    /// # Panics
    ///
    /// If `interval` is 0 or 146 years or more.
    #[must_use]
    pub const fn one_per(interval: Duration) -> Self {
        must(Self::try_per(1, interval))
    }

    /// Never more than `n` in any window of this length, wherever it begins, of which `burst` may come at once.
    ///
    /// A bucket of `burst` cells admits `burst` and then one each interval, so that the interval has to be
    /// `window / (n - burst + 1)`. A large burst is paid for with a slow refill: with `burst == n` it is one a window.
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
    /// If `n`, `window` or `burst` is 0, if `burst` is above `n`, or if the quota would take 146 years to refill.
    #[must_use]
    pub const fn at_most(n: u32, window: Duration, burst: u32) -> Self {
        must(Self::try_at_most(n, window, burst))
    }

    /// The same rate with another burst.
    ///
    /// # Panics
    ///
    /// If `burst` is 0 or the quota would take 146 years to refill.
    #[must_use]
    pub const fn with_burst(self, burst: u32) -> Self {
        must(self.try_with_burst(burst))
    }

    /// `n` each `period`, and a burst of `n`, for numbers that come from a file or a database.
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
    /// If a number is 0 or the quota would take 146 years to refill.
    pub const fn try_per(n: u32, period: Duration) -> Result<Self, QuotaError> {
        Self::from_parts(n, period, n, Unit::of(period))
    }

    /// [`at_most`](Self::at_most) for numbers that come from a file or a database.
    ///
    /// # Errors
    ///
    /// Where `at_most` panics.
    pub const fn try_at_most(n: u32, window: Duration, burst: u32) -> Result<Self, QuotaError> {
        if n == 0 || burst == 0 {
            return Err(QuotaError::Zero);
        }
        match n.checked_sub(burst) {
            None => Err(QuotaError::BurstAboveWindow),
            // `burst` is 1 or more, so that adding 1 cannot overflow.
            Some(rest) => Self::from_parts(rest + 1, window, burst, Unit::None),
        }
    }

    /// [`with_burst`](Self::with_burst) for numbers that come from a file or a database.
    ///
    /// # Errors
    ///
    /// Where `with_burst` panics.
    pub const fn try_with_burst(self, burst: u32) -> Result<Self, QuotaError> {
        Self::from_parts(1, self.interval(), burst, self.unit)
    }

    /// What each of so many nodes may admit, so that all of them together admit no more than this: rate and burst divided.
    /// A burst is at least 1, so that it is more than this in sum where there are more nodes than the burst has cells.
    pub(crate) fn divided_by(self, nodes: NonZeroU32) -> Self {
        let burst = (self.burst() / nodes.get()).max(1);
        let interval_ns = self.interval_ns().saturating_mul(nodes.get().into());
        // A span of 146 years is no quota: as slow as there is, then.
        let slowest = (MAX_SPAN_NS - 1) / u64::from(burst);
        let interval = Duration::from_nanos(interval_ns.min(slowest));
        Self::from_parts(1, interval, burst, Unit::None).unwrap_or(self)
    }

    /// The one place where a quota is made and checked.
    const fn from_parts(n: u32, period: Duration, burst: u32, unit: Unit) -> Result<Self, QuotaError> {
        let Some(burst) = NonZeroU32::new(burst) else { return Err(QuotaError::Zero) };
        if n == 0 {
            return Err(QuotaError::Zero);
        }
        let interval = period.as_nanos().div_ceil(n as u128);
        // Checked before the narrowing, so that nothing is cut off.
        if interval >= MAX_SPAN_NS as u128 || interval * burst.get() as u128 >= MAX_SPAN_NS as u128 {
            return Err(QuotaError::TooLong);
        }
        match NonZeroU64::new(interval as u64) {
            None => Err(QuotaError::NoTime),
            Some(interval_ns) => Ok(Self { interval_ns, burst, unit }),
        }
    }

    /// The time in which one cell comes back, in whole nanoseconds, rounded up.
    #[must_use]
    pub const fn interval(self) -> Duration {
        Duration::from_nanos(self.interval_ns.get())
    }

    /// How many cells fit into the bucket: what may be spent at once.
    #[must_use]
    pub const fn burst(self) -> u32 {
        self.burst.get()
    }

    /// The time in which an empty bucket is full again.
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

    pub(crate) const fn cells(self) -> NonZeroU32 {
        self.burst
    }
}

const fn must(quota: Result<Quota, QuotaError>) -> Quota {
    match quota {
        Ok(quota) => quota,
        Err(QuotaError::Zero) => panic!("a quota of zero admits nothing"),
        Err(QuotaError::NoTime) => panic!("the time of a quota must not be zero"),
        Err(QuotaError::TooLong) => panic!("the quota would take more than 146 years to refill"),
        Err(QuotaError::BurstAboveWindow) => panic!("the burst is larger than the number admitted in a window"),
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
    fn what_no_quota_can_be_is_refused() {
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
    fn the_named_rates_are_what_they_say() {
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
