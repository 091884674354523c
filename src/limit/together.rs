//! Several policies, of which a charge meets all or none.
//!
//! # Rules
//!
//! 1. Charges of one subject take turns, so that none sees what another is about to give back. Subjects meet only at
//!    budgets that all share: one of them is charged last, by itself, and for more of them all charges take turns.
//! 2. The budgets are charged one after the other. At the first refusal what was charged is given back, at the same
//!    instant and before the turn ends, which restores each budget exactly.
//! 3. What a request costs, what a partition is called, and how principals are dropped is the service's code, and runs before
//!    the turn or after it.
//!
//! A turn is not a cell of its own: who holds a clone of the limiter from before it got further policies charges the
//! first one without a turn, and may be refused for what is given back an instant later.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::PoisonError;

use super::accounts::Gone;
use super::lane::{Lane, Made};
use super::rule::{Rule, Scope};
use crate::caller::CurrentGrant;
use crate::quota::decision::{Decision, Verdict};
use crate::sync::{Mutex, MutexGuard};

/// Whose turn it is.
pub(super) struct Turns {
    hasher: RandomState,
    subjects: Box<[Turn]>,
    all: Turn,
}

/// Alone in its cache lines, since others are taken by other threads.
#[derive(Default)]
#[repr(align(128))]
struct Turn(Mutex<()>);

impl Turn {
    fn take(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turns {
    /// More than there are threads, so that different subjects seldom wait for each other.
    const SUBJECTS: usize = 64;

    pub(super) fn new() -> Self {
        let subjects = std::iter::repeat_with(Turn::default).take(Self::SUBJECTS).collect();
        Self { hasher: RandomState::new(), subjects, all: Turn::default() }
    }

    fn of(&self, grant: Option<&CurrentGrant>) -> &Turn {
        let hash = grant.map_or(0, |grant| self.hasher.hash_one(grant.subject()));
        &self.subjects[hash as usize % self.subjects.len()]
    }
}

/// One policy's part in a charge.
struct Part<'a> {
    /// Which lane it is.
    at: usize,
    lane: &'a Lane,
    cost: u32,
    decision: Decision,
}

/// Charges all lanes or none, each what it costs there, and keeps what can be given back, if somebody wants it.
pub(super) fn charge(
    lanes: &[Lane],
    turns: &Turns,
    grant: Option<&CurrentGrant>,
    now: u64,
    cost: &dyn Fn(usize, &Rule) -> u32,
    keep: Option<&mut Vec<(usize, Made)>>,
) -> Decision {
    let in_scope = |scope| lanes.iter().enumerate().filter(move |(_, lane)| lane.rule().scope == scope);
    let mut parts: Vec<Part<'_>> = in_scope(Scope::Subject)
        .chain(in_scope(Scope::All))
        .map(|(at, lane)| Part { at, lane, cost: cost(at, lane.rule()), decision: Decision::unlimited() })
        .collect();
    let mut gone = Gone::default();
    let turn = turns.of(grant).take();
    let turn_of_all = (in_scope(Scope::All).count() > 1).then(|| turns.all.take());

    let mut refused = None;
    for (at, part) in parts.iter_mut().enumerate() {
        let decided = match refused {
            None => part.lane.charge(grant, now, part.cost, &mut gone),
            Some(_) => part.lane.look(grant, now, part.cost, &mut gone),
        };
        part.decision = decided.unwrap_or_else(Decision::unlimited);
        if part.decision.verdict() != Verdict::Admitted && !part.lane.rule().is_dry_run {
            refused.get_or_insert(at);
        }
    }
    let made = |part: &Part<'_>| part.lane.made(&part.decision, now, part.cost);
    for part in &mut parts[..refused.unwrap_or(0)] {
        if let Some(made) = made(part) {
            part.lane.give_back(grant, now, made);
            // How the budget stands without the charge.
            let stands = part.lane.look(grant, now, part.cost, &mut gone);
            part.decision = stands.unwrap_or_else(Decision::unlimited);
        }
    }
    if let (Some(keep), None) = (keep, refused) {
        keep.extend(parts.iter().filter_map(|part| Some((part.at, made(part)?))));
    }
    drop((turn, turn_of_all));
    drop(gone);
    Decision::all_of(parts.into_iter().map(|part| part.lane.rule().mark(part.decision, grant)))
}
