//! [`Bucket`]: the state of one subject under one policy.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::cell::{FROZEN, Outcome, carry_over, decide, read, refund, swap};
use super::policy::Policy;
use super::quota::Quota;
use crate::sync::InMemoryState;

/// The bucket of one subject under one policy.
pub(crate) struct Bucket {
    cell: InMemoryState,
    policy: Arc<LimiterPolicy>,
}

/// A policy and the limiter whose buckets have it. All these buckets share it, so that a bucket takes 16 bytes.
pub(crate) struct LimiterPolicy {
    pub(crate) limiter_id: u64,
    pub(crate) policy: Policy,
}

impl Bucket {
    /// Creates a bucket with this theoretical arrival time.
    pub(crate) fn with_tat(policy: Arc<LimiterPolicy>, tat: u64) -> Self {
        let cell = InMemoryState::default();
        swap(&cell, tat);
        Self { cell, policy }
    }

    /// Returns the id that the limiter had when the bucket was created.
    #[inline]
    pub(crate) fn limiter_id(&self) -> u64 {
        self.policy.limiter_id
    }

    #[inline]
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy.policy
    }

    /// Charges the bucket, unless the bucket is frozen.
    #[inline]
    pub(crate) fn charge(&self, now: u64, cost: NonZeroU32) -> Outcome {
        decide(&self.cell, self.policy().quota(), now, cost)
    }

    /// Returns whether the bucket is not full at this time. A frozen bucket never becomes full.
    pub(crate) fn is_used(&self, now: u64) -> bool {
        read(&self.cell) > now
    }

    /// Returns the theoretical arrival time, or `None` if the bucket is frozen.
    pub(crate) fn tat(&self) -> Option<u64> {
        let tat = read(&self.cell);
        (tat < FROZEN).then_some(tat)
    }

    /// Returns a copy for a decision that must not change this bucket, or `None` if the bucket is frozen.
    pub(crate) fn copy(&self) -> Option<Self> {
        Some(Self::with_tat(Arc::clone(&self.policy), self.tat()?))
    }

    /// Refunds this many nanoseconds of a charge under this quota. Returns `None` if the bucket is frozen.
    ///
    /// A bucket of another quota does not change: the value of the charge is unknown after a change of plan.
    pub(crate) fn refund(&self, quota: Quota, ns: u64) -> Option<()> {
        match self.policy().quota() == quota {
            true => refund(&self.cell, ns).then_some(()),
            false => self.tat().map(drop),
        }
    }

    /// Returns the time until the bucket is full, with the same number of used units under another quota.
    pub(crate) fn full_in(&self, quota: Quota, now: u64) -> u64 {
        let used_ns = read(&self.cell).saturating_sub(now);
        carry_over(used_ns, self.policy().quota().interval_ns(), quota)
    }

    /// Freezes this bucket permanently. Returns the time until it would have been full.
    pub(crate) fn discard(&self, now: u64) -> u64 {
        swap(&self.cell, FROZEN).saturating_sub(now)
    }

    /// Freezes this bucket. Returns the theoretical arrival time with the same number of used units under another policy,
    /// rounded up.
    pub(crate) fn freeze(&self, policy: &Policy, now: u64) -> u64 {
        let used_ns = swap(&self.cell, FROZEN).saturating_sub(now);
        let carried_ns = carry_over(used_ns, self.policy().quota().interval_ns(), policy.quota());
        now.saturating_add(carried_ns).min(FROZEN - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::quota::cell::LATEST_NS;
    use crate::quota::policy::PolicyName;

    /// A charge continues with the next bucket if a bucket is frozen. If every next bucket were frozen, the charge would not end.
    #[test]
    fn used_units_under_another_policy_are_below_the_time_of_a_frozen_bucket() {
        let policy = |quota| LimiterPolicy { limiter_id: 0, policy: Policy::named(&PolicyName::default_name(), quota) };
        let short = policy(Quota::one_per(Duration::from_nanos(1)).with_burst(u32::MAX));
        let longest = policy(Quota::one_per(Duration::from_nanos(LATEST_NS)));
        let bucket = Bucket::with_tat(Arc::new(short), LATEST_NS + u64::from(u32::MAX));
        let tat = bucket.freeze(&longest.policy, LATEST_NS);
        assert_eq!(Bucket::with_tat(Arc::new(longest), tat).tat(), Some(FROZEN - 1));
        assert_eq!(bucket.tat(), None);
    }
}
