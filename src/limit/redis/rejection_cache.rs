//! A cache of rejections by Redis: a repeated charge that must be rejected costs no round trip.
//!
//! # Rules
//!
//! 1. An entry holds the time until each bucket is full. Other charges only increase it. So Redis would reject a charge that does
//!    not fit into the rest of that time.
//! 2. The rest is counted from before the command was sent, and slightly fast, since two clocks never run alike. In doubt Redis is
//!    asked. The advertised retry time is counted from after the reply.
//! 3. An entry is used for at most ten seconds: an operator may have deleted the bucket's key.
//! 4. The reported state of the limiter's other policies is as old as the rejection.
//! 5. The number of entries is bounded. Charges of further subjects ask Redis.

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
    pub(super) fn insert(&self, tag: Tag, parts: &[Part], states: &[State], sent_at: u64, replied_at: u64) {
        if !parts
            .iter()
            .zip(states)
            .any(|(part, state)| part.binds && !state.fits && part.cost <= part.policy.quota().burst())
        {
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
