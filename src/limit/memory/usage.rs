//! The buckets of a subject, for people and support.

use super::RateLimits;
use crate::grant::Subject;
use crate::limit::buckets::Removed;
use crate::limit::limit::Scope;
use crate::quota::Quota;
use crate::quota::decision::Decision;

impl RateLimits {
    /// Returns the state of a subject's buckets, without a charge and without its token. `quota` is the
    /// [quota of the subject's grant](crate::Grant::with_quota), or `None` for the default quota.
    ///
    /// The decision has a [part](Decision::parts) for each limit. [`Decision::remaining`] and [`Decision::full_in`] are what support
    /// needs. No bucket is created or changed, also by a wrong quota.
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
        let lock = self.several.as_ref().map(|several| several.locks.lock(Some(subject)));
        for (at, state) in self.states().iter().enumerate().filter(|(_, state)| state.limit().scope == Scope::Subject) {
            let now = self.time.now_ns();
            match &self.refund_totals {
                Some(totals) => {
                    totals.of((at, Some(subject.clone()))).reset(|| state.reset(subject, now, &mut removed));
                }
                None => _ = state.reset(subject, now, &mut removed),
            }
        }
        drop(lock);
    }
}
