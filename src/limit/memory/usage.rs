//! Usage and reset of a subject's buckets.

use super::RateLimits;
use crate::grant::Subject;
use crate::limit::bucket_map::Removed;
use crate::quota::Quota;
use crate::quota::decision::Decision;

impl RateLimits {
    /// Returns the state of a subject's buckets, without a charge and without its token. `quota` is the
    /// [quota of the subject's grant](crate::Grant::with_quota), or `None` for the default quota.
    ///
    /// The decision has a [part](Decision::parts) for each limit. Support usually needs [`Decision::remaining`] and
    /// [`Decision::full_in`]. The call creates and changes no bucket. A wrong quota changes no bucket either.
    ///
    /// [`Decision::remaining`] is the number of units that are admitted next. A bucket refills by the quota of its last charge, so after
    /// a change of the quota, [`Decision::full_in`] is exact from the next charge on. With several limits, the times of the decision
    /// are those of the limit with the fewest units left.
    ///
    /// On a route, a limit that was converted from a quota has other buckets, see [`Limit`](crate::Limit#grants-quotas). For their
    /// state, call this method on [`for_route`](crate::Limiter::for_route) of a clone.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::{Charge, CurrentGrant, Grant, Quota, RateLimits};
    ///
    /// let plan = Quota::per_minute(60).with_burst(20);
    /// let limits = RateLimits::new(Quota::per_minute(10)).with_clock(|| Duration::ZERO);
    /// let alice = CurrentGrant::new(Grant::new("alice", ()).with_quota(plan));
    /// assert!(limits.charge(&alice, Charge::Units(15)).is_admitted());
    ///
    /// let usage = limits.usage(&"alice".into(), Some(plan));
    /// assert_eq!((usage.remaining(), usage.full_in()), (5, Duration::from_secs(15)));
    ///
    /// limits.reset(&"alice".into());
    /// assert_eq!(limits.usage(&"alice".into(), Some(plan)).remaining(), 20);
    /// ```
    #[must_use]
    pub fn usage(&self, subject: &Subject, quota: Option<Quota>) -> Decision {
        let now = self.time.now_ns();
        Decision::all_of(self.states().iter().map(|state| state.usage(subject, quota, now)))
    }

    /// Makes all buckets of a subject full. Buckets that all subjects share do not change.
    ///
    /// Charges before this call are not refunded later.
    pub fn reset(&self, subject: &Subject) {
        let mut removed = Removed::default();
        let lock = self.locks.get().map(|locks| locks.lock(Some(subject)));
        for state in self.states() {
            state.reset(subject, self.time.now_ns(), &mut removed);
        }
        drop(lock);
    }
}
