//! A cache of rejections by Redis: a repeated charge that must be rejected costs no round trip.
//!
//! # Rules
//!
//! 1. An entry holds the time until each bucket is full. Other charges only increase it. So Redis would reject a charge for which
//!    the rest of that time leaves no room. Exception: a charge by another quota, as after a change of quota, can shorten the time.
//! 2. The rest is counted from before the command was sent, and slightly fast, since two clocks never run alike. In doubt Redis is
//!    asked. The advertised retry time is counted from after the reply.
//! 3. An entry belongs to buckets with the same quotas. `local_cache.rs` tells apart buckets that differ in nothing else.
//! 4. An entry is used for at most ten seconds: an operator may have deleted the bucket's key.
//! 5. The reported state of the limiter's other policies is as old as the rejection.
//! 6. The number of entries is bounded. Charges of further subjects ask Redis.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use super::gcra::{Part, State};
use super::key::Tag;
use crate::quota::Quota;

/// The cached rejections of all subjects.
#[derive(Default)]
pub(super) struct RejectionCache {
    /// False until the first rejection, so that charges before it take no lock.
    is_used: AtomicBool,
    entries: RwLock<Entries>,
}

#[derive(Default)]
struct Entries {
    by_subject: HashMap<Tag, Entry>,
    /// The time of the next sweep, in nanoseconds of the local clock.
    sweep_at: u64,
}

struct Entry {
    /// The times of the command and of its reply, in nanoseconds of the local clock.
    sent_at: u64,
    replied_at: u64,
    owed: Box<[(Quota, u64)]>,
}

impl RejectionCache {
    const MOST: usize = 16_384;
    const LONGEST_NS: u64 = 10_000_000_000;
    const SWEEP_NS: u64 = 1_000_000_000;

    /// Returns the states of the buckets, if Redis would certainly reject this charge.
    pub(super) fn find(&self, tag: &Tag, parts: &[Part], now: u64) -> Option<Vec<State>> {
        if !self.is_used.load(Ordering::Relaxed) {
            return None;
        }
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let Entry { sent_at, replied_at, owed } = entries.by_subject.get(tag)?;
        let passed = now.saturating_sub(*sent_at);
        let same =
            parts.len() == owed.len() && parts.iter().zip(owed).all(|(part, (of, _))| part.policy.quota() == *of);
        if passed > Self::LONGEST_NS || !same {
            return None;
        }
        // A clock that is being adjusted is wrong by up to 1 part in 2,000. One millisecond covers the resolution.
        let passed = passed + passed / 512 + 1_000_000;
        let rejects = |(part, (_, owed)): (&Part, &(Quota, u64))| part.binds && !part.fits(owed.saturating_sub(passed));
        parts.iter().zip(owed).any(rejects).then(|| {
            let since = now.saturating_sub(*replied_at);
            let state = |(part, (_, owed)): (&Part, &(Quota, u64))| State {
                fits: part.fits(owed.saturating_sub(passed)),
                owed_ns: owed.saturating_sub(since),
            };
            parts.iter().zip(owed).map(state).collect()
        })
    }

    /// Removes the entry of a subject.
    pub(super) fn remove(&self, tag: &Tag) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).by_subject.remove(tag);
    }

    /// Stores the states of a charge, if Redis rejected it and there is room.
    pub(super) fn insert(
        &self,
        tag: Tag,
        parts: &[Part],
        states: impl Iterator<Item = State> + Clone,
        sent_at: u64,
        replied_at: u64,
    ) {
        let rejects =
            |(part, state): (&Part, State)| part.binds && !state.fits && part.cost <= part.policy.quota().burst();
        if !parts.iter().zip(states.clone()).any(rejects) {
            return;
        }
        let owed = parts.iter().zip(states).map(|(part, state)| (part.policy.quota(), state.owed_ns)).collect();
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let Entries { by_subject, sweep_at } = &mut *entries;
        if by_subject.len() >= Self::MOST && replied_at >= *sweep_at {
            *sweep_at = replied_at + Self::SWEEP_NS;
            by_subject.retain(|_, entry| entry.is_useful(replied_at));
        }
        if by_subject.len() < Self::MOST || by_subject.contains_key(&tag) {
            by_subject.insert(tag, Entry { sent_at, replied_at, owed });
            self.is_used.store(true, Ordering::Relaxed);
        }
    }
}

impl Entry {
    /// Returns whether a charge may still be rejected by this entry.
    fn is_useful(&self, now: u64) -> bool {
        let passed = now.saturating_sub(self.sent_at);
        passed <= RejectionCache::LONGEST_NS && self.owed.iter().any(|(_, owed)| *owed > passed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::part;
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const SENT_AT: u64 = 5 * SECOND;
    const REPLIED_AT: u64 = SENT_AT + 10_000_000;
    const ONE: Quota = Quota::per_second(1);

    fn tag(number: u64) -> Tag {
        u128::from(number).to_le_bytes()
    }

    fn rejected(owed_ns: u64) -> State {
        State { fits: false, owed_ns }
    }

    /// Returns a cache with one rejection.
    fn cache(parts: &[Part], states: &[State]) -> RejectionCache {
        let cache = RejectionCache::default();
        cache.insert(tag(0), parts, states.iter().copied(), SENT_AT, REPLIED_AT);
        cache
    }

    #[test]
    fn a_rejection_is_cached_until_the_charge_may_fit() {
        let one = [part(b"", ONE, 1)];
        let cache = cache(&one, &[rejected(SECOND)]);
        // The last time with less than a second after a 512th and a millisecond are added.
        let last = SENT_AT + 997_052_631;
        assert_eq!(cache.find(&tag(0), &one, last + 1), None);
        // The wait is counted from the reply.
        assert_eq!(cache.find(&tag(0), &one, last), Some(vec![rejected(SECOND - (last - REPLIED_AT))]));
        assert_eq!(cache.find(&tag(0), &one, SENT_AT), Some(vec![rejected(SECOND)]));
        assert_eq!(cache.find(&tag(0), &[part(b"", ONE, 0)], SENT_AT), None, "0 units always fit");
        assert_eq!(cache.find(&tag(1), &one, SENT_AT), None, "another subject");
        cache.remove(&tag(0));
        assert_eq!(cache.find(&tag(0), &one, SENT_AT), None);
    }

    #[test]
    fn a_rejection_is_cached_for_at_most_ten_seconds() {
        let one = [part(b"", Quota::per_hour(1), 1)];
        let cache = cache(&one, &[rejected(3_600 * SECOND)]);
        assert!(cache.find(&tag(0), &one, SENT_AT + 10 * SECOND).is_some());
        assert!(cache.find(&tag(0), &one, SENT_AT + 10 * SECOND + 1).is_none());
    }

    #[test]
    fn a_rejection_belongs_to_its_quotas_and_to_policies_that_bind() {
        let [one, other] = [ONE, Quota::per_hour(9)].map(|quota| part(b"", quota, 1));
        let dry_run = Part { binds: false, ..one.clone() };
        let states = [rejected(SECOND), State { fits: true, owed_ns: 400 * SECOND }];
        let cache_of_two = cache(&[one.clone(), other.clone()], &states);
        let find = |parts: &[Part]| cache_of_two.find(&tag(0), parts, SENT_AT);
        assert_eq!(find(&[one.clone(), other.clone()]).unwrap(), states);
        assert_eq!(find(&[other.clone(), other.clone()]), None);
        assert_eq!(find(std::slice::from_ref(&one)), None);
        assert_eq!(find(&[dry_run.clone(), other.clone()]), None);

        for (part, state) in [
            (&dry_run, rejected(SECOND)),
            (&one, State { fits: true, owed_ns: SECOND }),
            (&Part { cost: 2, ..one.clone() }, rejected(0)),
        ] {
            assert!(!cache(std::slice::from_ref(part), &[state]).is_used.into_inner(), "{state:?}");
        }
        assert!(cache(&[one], &[rejected(1)]).is_used.into_inner(), "the cost is the burst");
    }

    #[test]
    fn the_number_of_rejections_is_bounded() {
        let cache = RejectionCache::default();
        let one = [part(b"", ONE, 1)];
        let most = RejectionCache::MOST as u64;
        let insert = |number, owed_ns, at| cache.insert(tag(number), &one, [rejected(owed_ns)].into_iter(), at, at);
        let has = |number, at| cache.find(&tag(number), &one, at).is_some();
        (0..most - 2).for_each(|number| insert(number, SECOND, SENT_AT));
        insert(most - 2, SECOND / 2, SENT_AT);
        insert(most - 1, SECOND + 1, SENT_AT);
        // No entry is old. The next sweep is a second later.
        insert(most, 2 * SECOND, SENT_AT);
        assert!(has(0, SENT_AT) && has(most - 1, SENT_AT) && !has(most, SENT_AT));
        insert(0, 4 * SECOND, SENT_AT + 1);
        assert!(has(0, SENT_AT + 2 * SECOND), "a known subject has a place");
        insert(most, 2 * SECOND, SENT_AT + SECOND - 1);
        assert!(!has(most, SENT_AT + SECOND - 1), "not swept again, although an entry is useless");
        insert(most, 2 * SECOND, SENT_AT + SECOND);
        assert!(has(most, SENT_AT + SECOND));
        // What is left is what may still reject.
        assert_eq!(cache.entries.read().unwrap().by_subject.len(), 3);
        assert!(has(0, SENT_AT + SECOND) && cache.entries.read().unwrap().by_subject.contains_key(&tag(most - 1)));
    }
}
