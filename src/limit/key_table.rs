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
//!
//! This is the algorithm Space-Saving (Metwally, Agrawal, El Abbadi, 2005) with GCRA cells as counters, in many small sets.

use std::num::NonZeroU32;
use std::sync::PoisonError;

use crate::quota::Quota;
use crate::quota::cell::{Outcome, decide, read};
use crate::sync::{InMemoryState, Mutex};

/// The number of buckets in a set. They are in two or three cache lines.
const WAYS: usize = 8;

#[derive(Default)]
struct Entry {
    /// The hash of the key. 0 if the bucket has no key yet.
    key: u64,
    cell: InMemoryState,
}

pub(super) struct KeyTable {
    sets: Box<[Mutex<[Entry; WAYS]>]>,
}

impl KeyTable {
    /// Creates a table with at least this number of buckets, rounded up to a power of two.
    pub(super) fn new(capacity: usize) -> Self {
        let sets = capacity.next_power_of_two().div_ceil(WAYS).max(1);
        Self { sets: (0..sets).map(|_| Mutex::default()).collect() }
    }

    pub(super) fn capacity(&self) -> usize {
        self.sets.len() * WAYS
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.sets)
    }

    /// Returns the index of the set of a key, by its hash. The number of sets is a power of two.
    fn set_of(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.sets.len() - 1)
    }

    /// Charges the bucket of a key, by its hash. Also returns the theoretical arrival time before the charge.
    pub(super) fn charge(&self, hash: u64, quota: Quota, now: u64, cost: u32) -> (Outcome, u64) {
        let key = hash.max(1);
        let mut set = self.sets[self.set_of(hash)].lock().unwrap_or_else(PoisonError::into_inner);
        let known = set.iter().position(|entry| entry.key == key);
        let least_used = || (0..WAYS).min_by_key(|&at| read(&set[at].cell));
        let at = known.or_else(least_used).unwrap_or(0);
        let entry = &mut set[at];
        let before = read(&entry.cell);
        let outcome = match NonZeroU32::new(cost) {
            Some(cost) => decide(&entry.cell, quota, now, cost),
            None => Outcome::Admitted { tat: before.max(now) },
        };
        if cost > 0 && matches!(outcome, Outcome::Admitted { .. }) {
            entry.key = key;
        }
        (outcome, before)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn quota() -> Quota {
        Quota::one_per(Duration::from_nanos(10)).with_burst(3)
    }

    fn admits(table: &KeyTable, key: u64, now: u64, cost: u32) -> bool {
        matches!(table.charge(key, quota(), now, cost).0, Outcome::Admitted { .. })
    }

    proptest! {
        /// Compares with an exact bucket for each key.
        #[test]
        fn no_key_is_admitted_more_than_its_quota(
            steps in prop::collection::vec((1..40_u64, 0..4_u32, 0..8_u64), 1..400),
            keys in 1..40_u64,
        ) {
            let table = KeyTable::new(WAYS);
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

    #[test]
    fn a_flood_of_keys_leaves_each_bucket_its_own_units() {
        let table = KeyTable::new(1_024);
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
        let table = KeyTable::new(1_024);
        let keys = (1..=1_000_000_u64).map(|key| key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let admitted = keys.filter(|&key| admits(&table, key, 0, 1)).count();
        assert_eq!(admitted, 1_024 * 3);
        // They regain their units as fast as so many keys do.
        assert!(admits(&table, 1, 10, 1));
        assert_eq!((table.capacity(), table.memory_bytes() / 1_024), (1_024, 17));
    }

    #[test]
    fn sets_have_more_keys_than_buckets_as_rarely_as_documented() {
        let (table, hasher) = (KeyTable::new(65_536), BuildHasherDefault::<DefaultHasher>::new());
        for (keys, percent) in [(32_768_u64, 2), (65_536, 41)] {
            let mut sets = vec![0; table.sets.len()];
            (1..=keys).for_each(|key| sets[table.set_of(hasher.hash_one(key))] += 1);
            let crowded = sets.iter().filter(|&&keys| keys > WAYS).count();
            assert_eq!((crowded * 100 + sets.len() / 2) / sets.len(), percent);
        }
    }

    #[test]
    fn concurrent_charges_of_one_key_never_exceed_its_quota() {
        let quota = Quota::per_hour(100);
        for _ in 0..20 {
            let table = KeyTable::new(WAYS);
            let charge = |key| matches!(table.charge(key, quota, 0, 1).0, Outcome::Admitted { .. });
            let admitted: usize = std::thread::scope(|scope| {
                let work = || (0..100).filter(|_| charge(1)).count();
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(admitted, 100);
        }
    }
}
