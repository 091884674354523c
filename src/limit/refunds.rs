//! Refunds: [`MadeCharge`] is a charge that can be refunded, and [`RefundTotals`] the totals of refunds by bucket.
//!
//! # Rules
//!
//! 1. Charges are regained in the order in which they were made. A refund returns the part of its charge that is not regained yet.
//!    The bucket never gets more units than without the charge:
//!    - With the charge and later charges `s`, the bucket is not full before `full_at + s`.
//!    - Without the charge, it would be full at `full_at - charge + s`. If it had been full in between, it would be full again at
//!      most `s` after that moment.
//!    - The refund leaves the later of these two times, with `now` as that moment.
//! 2. Refunds that were made since the charge reduce its `full_at`. So a total of refunds is kept for each bucket with charges that
//!    can still be refunded. The total is read before a charge, so that no later refund is missed.
//! 3. Refunds of one bucket are serialised by the lock of its total.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash};
use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError, Weak};

use crate::quota::Quota;
use crate::quota::decision::{Decision, Verdict};
use crate::sync::{Mutex, MutexGuard};

/// The data of a charge that a refund needs.
#[derive(Clone, Copy)]
pub(super) struct MadeCharge {
    cost: NonZeroU32,
    quota: Quota,
    /// The time at which the bucket is full again, without further charges and refunds.
    full_at: u64,
    /// The total of refunds before the charge.
    refunded_before: u64,
}

impl MadeCharge {
    /// Returns the data of an admitted charge, or `None` if no units were charged.
    pub(super) fn of(decision: &Decision, now: u64, cost: u32) -> Option<Self> {
        let quota = decision.policy().filter(|_| decision.verdict() == Verdict::Admitted)?.quota();
        let full_at = now.saturating_add(decision.full_in_ns());
        Some(Self { cost: NonZeroU32::new(cost)?, quota, full_at, refunded_before: 0 })
    }

    /// Sets the total of refunds before the charge.
    pub(super) fn after(self, refunded_before: u64) -> Self {
        Self { refunded_before, ..self }
    }

    pub(super) fn quota(&self) -> Quota {
        self.quota
    }

    /// Returns the charged nanoseconds.
    pub(super) fn charged_ns(&self) -> u64 {
        u64::from(self.cost.get()) * self.quota.interval_ns()
    }

    /// Returns the nanoseconds to refund. `refunded` is the total of refunds until now.
    pub(super) fn refund(&self, now: u64, refunded: u64) -> u64 {
        // The total may wrap around. Differences of totals are still correct.
        let full_at = self.full_at.saturating_sub(refunded.wrapping_sub(self.refunded_before));
        self.charged_ns().min(full_at.saturating_sub(now))
    }
}

/// The totals of refunds, by the key of the bucket.
pub(super) struct RefundTotals<K: Eq + Hash>(Box<[Mutex<Shard<K>>]>);

type Shard<K> = HashMap<K, Weak<RefundTotal<K>>>;

/// The total of refunds of one bucket, in nanoseconds.
pub(super) struct RefundTotal<K: Eq + Hash> {
    totals: Arc<RefundTotals<K>>,
    key: K,
    refunded: Mutex<u64>,
}

impl<K: Clone + Eq + Hash> RefundTotals<K> {
    /// The number of shards, for less lock contention.
    const SHARDS: usize = 64;

    /// Returns the total of a bucket. The total exists until the returned value and all of its clones are dropped.
    pub(super) fn of(self: &Arc<Self>, key: K) -> Arc<RefundTotal<K>> {
        let mut shard = self.shard(&key);
        if let Some(total) = shard.get(&key).and_then(Weak::upgrade) {
            return total;
        }
        let total = Arc::new(RefundTotal { totals: Arc::clone(self), key: key.clone(), refunded: Mutex::new(0) });
        shard.insert(key, Arc::downgrade(&total));
        total
    }
}

impl<K: Eq + Hash> RefundTotals<K> {
    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K>> {
        // Clients do not choose shards, so this hash needs no secret key. A panic under the lock cannot leave a partial change.
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        self.0[hash as usize % self.0.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> Default for RefundTotals<K> {
    fn default() -> Self {
        Self(std::iter::repeat_with(Mutex::default).take(Self::SHARDS).collect())
    }
}

impl<K: Eq + Hash> RefundTotal<K> {
    pub(super) fn get(&self) -> u64 {
        *self.lock()
    }

    /// Refunds a charge: calls `give_back` with the nanoseconds, and adds these to the total.
    pub(super) fn refund(&self, made: MadeCharge, now: u64, give_back: impl FnOnce(u64)) {
        let mut refunded = self.lock();
        let refund = made.refund(now, *refunded);
        give_back(refund);
        // The total may wrap around. Differences of totals are still correct.
        *refunded = refunded.wrapping_add(refund);
    }

    /// Adds the nanoseconds that `reset` returns to the total. Charges before the reset are not refunded then.
    pub(super) fn reset(&self, reset: impl FnOnce() -> u64) {
        let mut refunded = self.lock();
        *refunded = refunded.wrapping_add(reset());
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.refunded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for RefundTotal<K> {
    fn drop(&mut self) {
        let mut shard = self.totals.shard(&self.key);
        // Another total may have replaced this one since its last clone was dropped.
        if shard.get(&self.key).is_some_and(|total| total.strong_count() == 0) {
            shard.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_exists_as_long_as_a_charge_can_be_refunded() {
        let totals = Arc::<RefundTotals<u8>>::default();
        let len = || totals.0.iter().map(|shard| shard.lock().unwrap().len()).sum::<usize>();
        let [first, second, other] = [7, 7, 8].map(|key| totals.of(key));
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &other));
        drop(first);
        assert_eq!(len(), 2);
        drop((second, other));
        assert_eq!(len(), 0);
    }

    #[test]
    fn concurrent_totals_of_one_key_are_never_lost() {
        let totals = Arc::<RefundTotals<u8>>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let (first, second) = (totals.of(1), totals.of(1));
                        assert!(Arc::ptr_eq(&first, &second));
                    }
                });
            }
        });
        assert!(totals.shard(&1).is_empty());
    }
}
