//! What Redis has refused, so that who asks again too soon costs no trip.
//!
//! # Rules
//!
//! 1. What is remembered of a budget is that so much was owed. It only grows by what others spend, so that a charge which
//!    does not fit beside what is left of it would be refused by Redis.
//! 2. What is left is counted from before Redis was asked, and a little fast, since two clocks never run alike: in doubt
//!    Redis is asked. What a client is told to wait is counted from after.
//! 3. Redis is asked again after ten seconds at the latest: somebody may have forgiven a debt there.
//! 4. What is told of the other policies of the limiter is as old as the refusal.
//! 5. A limited number of subjects is remembered; others ask Redis.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use super::gcra::{Part, State};
use super::key::Tag;
use crate::quota::Quota;

/// All refusals that are remembered, by subject.
#[derive(Default)]
pub(super) struct Denied {
    /// Whether there are any, so that who was never refused costs no lock.
    is_used: AtomicBool,
    refusals: RwLock<Refusals>,
}

#[derive(Default)]
struct Refusals {
    by_subject: HashMap<Tag, Refusal>,
    /// Nanoseconds of the local clock before which it is of no use to look for what can be forgotten.
    sweep_at: u64,
}

struct Refusal {
    /// Nanoseconds of the local clock before Redis was asked, and after.
    asked_at: u64,
    told_at: u64,
    owed: Box<[(Quota, u64)]>,
}

impl Denied {
    const MOST: usize = 16_384;
    const LONGEST_NS: u64 = 10_000_000_000;
    const SWEEP_NS: u64 = 1_000_000_000;

    /// The states in which Redis would certainly refuse this charge.
    pub(super) fn recall(&self, tag: &Tag, parts: &[Part], now: u64) -> Option<Vec<State>> {
        if !self.is_used.load(Ordering::Relaxed) {
            return None;
        }
        let refusals = self.refusals.read().unwrap_or_else(PoisonError::into_inner);
        let Refusal { asked_at, told_at, owed } = refusals.by_subject.get(tag)?;
        let passed = now.saturating_sub(*asked_at);
        let same =
            parts.len() == owed.len() && parts.iter().zip(owed).all(|(part, (of, _))| part.policy.quota() == *of);
        if passed > Self::LONGEST_NS || !same {
            return None;
        }
        // A clock that is being set right runs wrong by 1 in 2,000; and a tick.
        let passed = passed + passed / 512 + 1_000_000;
        let refuses = |(part, (_, owed)): (&Part, &(Quota, u64))| part.binds && !part.fits(owed.saturating_sub(passed));
        parts.iter().zip(owed).any(refuses).then(|| {
            let since = now.saturating_sub(*told_at);
            let state = |(part, (_, owed)): (&Part, &(Quota, u64))| State {
                fits: part.fits(owed.saturating_sub(passed)),
                owed_ns: owed.saturating_sub(since),
            };
            parts.iter().zip(owed).map(state).collect()
        })
    }

    /// Remembers a refusal, if it is one, and there is room.
    pub(super) fn remember(&self, tag: Tag, parts: &[Part], states: &[State], asked_at: u64, told_at: u64) {
        if !parts
            .iter()
            .zip(states)
            .any(|(part, state)| part.binds && !state.fits && part.cost <= part.policy.quota().burst())
        {
            return;
        }
        let owed = parts.iter().zip(states).map(|(part, state)| (part.policy.quota(), state.owed_ns)).collect();
        let mut refusals = self.refusals.write().unwrap_or_else(PoisonError::into_inner);
        let Refusals { by_subject, sweep_at } = &mut *refusals;
        if by_subject.len() >= Self::MOST && told_at >= *sweep_at {
            *sweep_at = told_at + Self::SWEEP_NS;
            by_subject.retain(|_, refusal| refusal.is_of_use(told_at));
        }
        if by_subject.len() < Self::MOST || by_subject.contains_key(&tag) {
            by_subject.insert(tag, Refusal { asked_at, told_at, owed });
            self.is_used.store(true, Ordering::Relaxed);
        }
    }
}

impl Refusal {
    /// Whether anything may still be refused by it.
    fn is_of_use(&self, now: u64) -> bool {
        let passed = now.saturating_sub(self.asked_at);
        passed <= Denied::LONGEST_NS && self.owed.iter().any(|(_, owed)| *owed > passed)
    }
}
