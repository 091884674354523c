//! [`KeyTable`]: buckets of keys that clients can choose, such as addresses, in a table of fixed size.
//!
//! # Rules
//!
//! 1. A key has a bucket in one set of [`WAYS`] buckets. Different keys have different buckets, as long as the set has room.
//! 2. A new key takes the bucket of its set with the most free units, and inherits its used units. Usually this bucket is full, so
//!    nothing is inherited.
//! 3. No key is ever admitted more than its quota: the used units of a key without a bucket are at most those of the least used
//!    bucket of its set. The least used bucket is replaced by one with as many or more, so this stays true.
//! 4. A rejected charge changes nothing. So a flood of keys takes buckets only as long as their set admits it.
//! 5. A refund never leaves fewer used units than a replaced key of the set had, so that rule 3 holds.
//!
//! This is the algorithm Space-Saving (Metwally, Agrawal, El Abbadi, 2005) with GCRA cells as counters, in many small sets.

use std::num::NonZeroU32;
use std::sync::PoisonError;

use crate::quota::Quota;
use crate::quota::cell::{FROZEN, Outcome, carry_over, decide, read, swap};
use crate::quota::policy::Policy;
use crate::sync::{InMemoryState, Mutex, MutexGuard};

/// The number of buckets in a set. They are in two or three cache lines.
const WAYS: usize = 8;

#[derive(Default)]
struct Entry {
    /// The hash of the key. 0 if the bucket has no key yet.
    key: u64,
    cell: InMemoryState,
}

struct Set {
    entries: [Entry; WAYS],
    policy: Policy,
    /// The latest theoretical arrival time of the keys that were replaced.
    replaced: u64,
}

pub(super) struct KeyTable {
    sets: Box<[Mutex<Set>]>,
    /// Held during a change of the policy, so that all sets have the same policy afterwards.
    change: Mutex<()>,
}

/// The result of a charge.
pub(super) struct Charged {
    pub(super) policy: Policy,
    pub(super) outcome: Outcome,
    /// The theoretical arrival time before the charge.
    pub(super) before: u64,
}

impl KeyTable {
    /// Creates a table with at least this number of buckets, rounded up to a power of two.
    pub(super) fn new(capacity: usize, policy: &Policy) -> Self {
        let sets = capacity.next_power_of_two().div_ceil(WAYS).max(1);
        let set = || Set { entries: Default::default(), policy: policy.clone(), replaced: 0 };
        Self { sets: (0..sets).map(|_| Mutex::new(set())).collect(), change: Mutex::new(()) }
    }

    pub(super) fn capacity(&self) -> usize {
        self.sets.len() * WAYS
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.sets)
    }

    pub(super) fn policy(&self) -> Policy {
        self.lock(0).policy.clone()
    }

    /// Changes the policy, set by set. The used units of all keys are carried over. Concurrent changes follow one another.
    pub(super) fn set_policy(&self, policy: impl FnOnce() -> Policy, now: impl Fn() -> u64) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let policy = policy();
        if self.policy() == policy {
            return;
        }
        for set in &self.sets {
            let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
            let (now, from) = (now(), set.policy.quota());
            let carried = |tat: u64| {
                let carried_ns = carry_over(tat.saturating_sub(now), from.interval_ns(), policy.quota());
                now.saturating_add(carried_ns).min(FROZEN - 1)
            };
            for entry in &set.entries {
                swap(&entry.cell, carried(read(&entry.cell)));
            }
            set.replaced = carried(set.replaced);
            set.policy = policy.clone();
        }
    }

    /// Returns the index of the set of a key, by its hash. The number of sets is a power of two.
    fn set_of(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.sets.len() - 1)
    }

    /// Locks the set of a key.
    fn lock(&self, hash: u64) -> MutexGuard<'_, Set> {
        self.sets[self.set_of(hash)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Charges the bucket of a key, by its hash.
    pub(super) fn charge(&self, hash: u64, now: u64, cost: u32) -> Charged {
        let key = hash.max(1);
        let set = &mut *self.lock(hash);
        let known = set.entries.iter().position(|entry| entry.key == key);
        let least_used = || (0..WAYS).min_by_key(|&at| read(&set.entries[at].cell));
        let at = known.or_else(least_used).unwrap_or(0);
        let entry = &mut set.entries[at];
        let before = read(&entry.cell);
        let outcome = match NonZeroU32::new(cost) {
            Some(cost) => decide(&entry.cell, set.policy.quota(), now, cost),
            None => Outcome::Admitted { tat: before.max(now) },
        };
        if cost > 0 && entry.key != key && matches!(outcome, Outcome::Admitted { .. }) {
            entry.key = key;
            set.replaced = set.replaced.max(before);
        }
        Charged { policy: set.policy.clone(), outcome, before }
    }

    /// Refunds this many nanoseconds of a charge under this quota to the bucket of a key.
    pub(super) fn refund(&self, hash: u64, quota: Quota, ns: u64) {
        let set = self.lock(hash);
        let entry = set.entries.iter().find(|entry| entry.key == hash.max(1));
        // After a change of quota, the value of the charge is unknown.
        if let Some(entry) = entry.filter(|_| quota == set.policy.quota()) {
            let tat = read(&entry.cell);
            swap(&entry.cell, tat.saturating_sub(ns).max(set.replaced.min(tat)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::limit::refunds::{MadeCharge, RefundTotal, RefundTotals};
    use crate::limit::state::decision_of;

    fn quota() -> Quota {
        Quota::one_per(Duration::from_nanos(10)).with_burst(3)
    }

    fn table(capacity: usize) -> KeyTable {
        KeyTable::new(capacity, &Policy::new("test", quota()).unwrap())
    }

    fn admits(table: &KeyTable, key: u64, now: u64, cost: u32) -> bool {
        matches!(table.charge(key, now, cost).outcome, Outcome::Admitted { .. })
    }

    proptest! {
        /// Compares with an exact bucket for each key.
        #[test]
        fn no_key_is_admitted_more_than_its_quota(
            steps in prop::collection::vec((1..40_u64, 0..4_u32, 0..8_u64), 1..400),
            keys in 1..40_u64,
        ) {
            let table = table(WAYS);
            let (mut exact, mut now) = (HashMap::<u64, u64>::new(), 0);
            for (key, cost, time) in steps {
                now += time;
                let tat = exact.entry(key % keys).or_default();
                let after = (*tat).max(now) + u64::from(cost) * 10;
                let fits = after <= now + 30;
                let is_admitted = admits(&table, key % keys + 1, now, cost);
                prop_assert!(!is_admitted || fits);
                // With a bucket for each key, charges of other keys do not matter.
                prop_assert!(is_admitted == fits || keys > WAYS as u64);
                if is_admitted && cost > 0 {
                    *tat = after;
                }
            }
        }
    }

    proptest! {
        /// Compares with an exact bucket for each key that counts only requests without a refund.
        #[test]
        fn no_key_is_admitted_more_than_its_quota_with_refunds(
            steps in prop::collection::vec((1..40_u64, 1..4_u32, 0..8_u64, any::<bool>()), 1..400),
            keys in 1..40_u64,
        ) {
            let (table, totals) = (table(WAYS), Arc::default());
            let (mut counted, mut now) = (HashMap::<u64, u64>::new(), 0);
            let mut pending = Vec::new();
            for (key, cost, time, is_refund) in steps {
                now += time;
                let key = key % keys + 1;
                if is_refund && !pending.is_empty() {
                    let (key, made) = pending.swap_remove(cost as usize % pending.len());
                    refund(&table, made, key, now);
                    continue;
                }
                let Some(made) = charge(&table, &totals, key, now, cost) else { continue };
                // Every second charge counts, whatever happens later.
                match (cost + key as u32) % 2 {
                    0 => pending.push((key, made)),
                    _ => {
                        let tat = counted.entry(key).or_default();
                        *tat = (*tat).max(now) + u64::from(cost) * 10;
                        prop_assert!(*tat <= now + 30);
                    }
                }
            }
        }
    }

    type Made = (MadeCharge, Arc<RefundTotal<u64>>);

    /// Charges a key, and returns the charge for a refund.
    fn charge(table: &KeyTable, totals: &Arc<RefundTotals<u64>>, key: u64, now: u64, cost: u32) -> Option<Made> {
        let total = totals.of(key);
        let refunded = total.get();
        let charged = table.charge(key, now, cost);
        let decision = decision_of(charged.policy, charged.outcome, charged.before, now);
        MadeCharge::of(&decision, now, cost).map(|made| (made.after(refunded), total))
    }

    fn refund(table: &KeyTable, (made, total): Made, key: u64, now: u64) {
        total.refund(made, now, |ns| table.refund(key, made.quota(), ns));
    }

    #[test]
    fn refund_returns_the_part_of_a_charge_that_is_not_regained() {
        let (table, totals) = (table(WAYS), Arc::default());
        let made = charge(&table, &totals, 1, 0, 3).unwrap();
        assert!(!admits(&table, 1, 0, 1) && admits(&table, 2, 0, 3));
        refund(&table, made, 1, 0);
        assert!(!admits(&table, 2, 0, 1), "the refund belongs to another key");
        let made = charge(&table, &totals, 1, 0, 3).unwrap();
        refund(&table, made, 1, 5);
        assert!(admits(&table, 1, 5, 3) && !admits(&table, 1, 14, 1));
    }

    #[test]
    fn refund_of_a_regained_charge_returns_nothing() {
        let (table, totals) = (table(WAYS), Arc::default());
        let [first, second] = [1, 2].map(|cost| charge(&table, &totals, 1, 0, cost).unwrap());
        refund(&table, first, 1, 0);
        // Without the first charge, the second one is regained at 20.
        assert!(admits(&table, 1, 20, 3));
        refund(&table, second, 1, 20);
        assert!(!admits(&table, 1, 20, 1));
    }

    #[test]
    fn only_admitted_units_replace_a_key() {
        for cost in [0, 3] {
            let (table, totals) = (table(WAYS), Arc::default());
            let made = charge(&table, &totals, 1, 0, 1).unwrap();
            assert!((2..=WAYS as u64).all(|key| admits(&table, key, 0, 2)));
            // The bucket of the first key is used least. Three more units do not fit.
            assert_eq!(admits(&table, 1_000, 0, cost), cost == 0);
            refund(&table, made, 1, 0);
            assert!(admits(&table, 1, 0, 3), "the refund found the key after a charge of {cost} units");
        }
    }

    #[test]
    fn refund_leaves_the_used_units_of_replaced_keys() {
        let (table, totals) = (table(WAYS), Arc::default());
        let mut made: Vec<_> = (1..=8).map(|key| charge(&table, &totals, key, 0, 2).unwrap()).collect();
        assert!(admits(&table, 9, 0, 1), "replaces key 1");
        refund(&table, made.remove(1), 2, 0);
        assert!(admits(&table, 1, 0, 1) && !admits(&table, 1, 0, 1));
    }

    #[test]
    fn a_flood_of_keys_leaves_each_bucket_its_own_units() {
        let table = table(1_024);
        // A key that has used its burst keeps its bucket: others have more free units.
        (0..3).for_each(|_| assert!(admits(&table, 7 << 32, 0, 1)));
        let flood = (1..=1_000_u64).map(|key| key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let admitted = flood.filter(|&key| admits(&table, key, 0, 1)).count();
        assert!(admitted > 900, "{admitted}");
        assert!(!admits(&table, 7 << 32, 0, 1) && !admits(&table, 7 << 32, 9, 1));
        assert!(admits(&table, 7 << 32, 10, 1));
    }

    #[test]
    fn a_million_keys_are_admitted_no_more_than_the_table_holds() {
        let table = table(1_024);
        let keys = (1..=1_000_000_u64).map(|key| key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let admitted = keys.filter(|&key| admits(&table, key, 0, 1)).count();
        assert_eq!(admitted, 1_024 * 3);
        // They regain their units as fast as so many keys do.
        assert!(admits(&table, 1, 10, 1));
        assert_eq!((table.capacity(), table.memory_bytes() / 1_024), (1_024, 20));
    }

    #[test]
    fn sets_have_more_keys_than_buckets_as_rarely_as_documented() {
        let (table, hasher) = (table(65_536), BuildHasherDefault::<DefaultHasher>::new());
        for (keys, percent) in [(32_768_u64, 2), (65_536, 41)] {
            let mut sets = vec![0; table.sets.len()];
            (1..=keys).for_each(|key| sets[table.set_of(hasher.hash_one(key))] += 1);
            let crowded = sets.iter().filter(|&&keys| keys > WAYS).count();
            assert_eq!((crowded * 100 + sets.len() / 2) / sets.len(), percent);
        }
    }

    #[test]
    fn concurrent_charges_of_one_key_never_exceed_its_quota() {
        let policy = Policy::new("test", Quota::per_hour(100)).unwrap();
        for _ in 0..20 {
            let table = KeyTable::new(WAYS, &policy);
            let charge = |key| admits(&table, key, 0, 1);
            let admitted: usize = std::thread::scope(|scope| {
                let work = || (0..100).filter(|_| charge(1)).count();
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(admitted, 100);
        }
    }
}
