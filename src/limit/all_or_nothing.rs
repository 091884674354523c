//! Charges several limits atomically: all of them or none.
//!
//! # Rules
//!
//! 1. Charges of one subject are serialised by a lock, so that no charge sees units that another charge is about to refund.
//!    Different subjects compete only for buckets that all subjects share. A single shared bucket is charged last, without a
//!    further lock. With several shared buckets, all charges take one common lock.
//! 2. The buckets are charged one after the other. After the first rejection, all earlier charges are refunded. The refund
//!    uses the same time and happens under the lock, so it restores each bucket exactly.
//! 3. A change of quotas takes all locks, so that a charge sees all old quotas or all new ones.
//! 4. Code of the service runs without the lock: cost functions, partition keys, and the `Drop` of principals.
//!
//! Clones of a limiter that were made before a further limit was added charge the first limit without the lock. Such a
//! charge may be rejected because of units that are refunded a moment later. Their resets and changes of quotas take the locks.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::PoisonError;

use super::bucket_map::Removed;
use super::limit::{Limit, Scope};
use super::refunds::MadeCharge;
use super::state::LimitState;
use crate::caller::CurrentGrant;
use crate::grant::Subject;
use crate::quota::decision::{Decision, Verdict};
use crate::quota::refund::Refund;
use crate::sync::{Mutex, MutexGuard};

/// The locks of charges: several for subjects, which share them by hash, and one for all subjects.
pub(super) struct ChargeLocks {
    hasher: RandomState,
    subjects: Box<[ChargeLock]>,
    all: ChargeLock,
}

/// One lock. The alignment avoids false sharing with the locks of other threads.
#[derive(Default)]
#[repr(align(128))]
struct ChargeLock(Mutex<()>);

impl ChargeLock {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChargeLocks {
    /// The number of locks for subjects. It exceeds the usual number of threads, so different subjects rarely share a held
    /// lock.
    const SUBJECTS: usize = 64;

    pub(super) fn new() -> Self {
        let subjects = std::iter::repeat_with(ChargeLock::default).take(Self::SUBJECTS).collect();
        Self { hasher: RandomState::new(), subjects, all: ChargeLock::default() }
    }

    /// Waits for a charge of this subject, or of anonymous callers, and blocks further ones.
    pub(super) fn lock(&self, subject: Option<&Subject>) -> MutexGuard<'_, ()> {
        let hash = subject.map_or(0, |subject| self.hasher.hash_one(subject));
        self.subjects[hash as usize % self.subjects.len()].lock()
    }

    /// Waits for all charges, and blocks further ones.
    pub(super) fn lock_all(&self) -> Vec<MutexGuard<'_, ()>> {
        // In this order, a charge that holds a lock never waits for a lock that is held here.
        self.subjects.iter().chain([&self.all]).map(ChargeLock::lock).collect()
    }
}

/// The part of one limit in a charge.
struct Part<'a> {
    /// The index of the limit.
    at: usize,
    state: &'a LimitState,
    cost: u32,
    decision: Decision,
}

/// Charges all limits or none. A single limit needs no locks. `cost` returns the cost for a limit, and `refund` the refund of a charge.
pub(super) fn charge(
    states: &[LimitState],
    locks: Option<&ChargeLocks>,
    grant: Option<&CurrentGrant>,
    now: u64,
    cost: &dyn Fn(usize, &Limit) -> u32,
    refund: &dyn Fn(usize, MadeCharge) -> Option<Refund>,
) -> Decision {
    let in_scope = |scope| states.iter().enumerate().filter(move |(_, state)| state.limit().scope == scope);
    let mut parts: Vec<Part<'_>> = in_scope(Scope::Subject)
        .chain(in_scope(Scope::All))
        .map(|(at, state)| Part { at, state, cost: cost(at, state.limit()), decision: Decision::unlimited() })
        .collect();
    let mut removed = Removed::default();
    let subject_lock = locks.map(|locks| locks.lock(grant.map(CurrentGrant::subject)));
    let common_lock = locks.filter(|_| in_scope(Scope::All).count() > 1).map(|locks| locks.all.lock());

    let mut rejected = None;
    for (at, part) in parts.iter_mut().enumerate() {
        let decided = match rejected {
            None => part.state.charge(grant, now, part.cost, &mut removed),
            Some(_) => part.state.peek(grant, now, part.cost, &mut removed),
        };
        part.decision = decided.unwrap_or_else(Decision::unlimited);
        if part.decision.verdict() != Verdict::Admitted && !part.state.limit().is_dry_run {
            rejected.get_or_insert(at);
        }
    }
    for part in &mut parts[..rejected.unwrap_or(0)] {
        if let Some(made) = MadeCharge::of(&part.decision, now, part.cost) {
            part.state.refund(grant, made.quota(), made.charged_ns());
            // The decision describes the bucket without the charge.
            let decision = part.state.peek(grant, now, part.cost, &mut removed);
            part.decision = decision.unwrap_or_else(Decision::unlimited);
        }
    }
    drop((subject_lock, common_lock));
    drop(removed);
    Decision::all_of(parts.into_iter().map(|Part { at, state, cost, mut decision }| {
        let made = MadeCharge::of(&decision, now, cost).filter(|_| rejected.is_none());
        state.limit().mark(&mut decision, grant);
        match made.and_then(|made| Some((refund(at, made)?, made.charged_ns()))) {
            Some((refund, charged_ns)) => state.limit().with_refund(decision, refund, charged_ns),
            None => decision,
        }
    }))
}
