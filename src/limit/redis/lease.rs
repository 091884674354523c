//! Cells that a server buys ahead: what is bought, when, and why no more is admitted by that. The rules are those of
//! [`Leases`].
//!
//! # Proof of rule 3
//!
//! Cells that are bought at a time `a` are spent from `a` to `a + d`, where `d` is 0 for a charge that is made at once,
//! and the time of a lease otherwise. (Here it is counted from before Redis was asked, and by a clock that may run slow
//! by 1 part in 64.) The purchase of `n` cells sets the budget's theoretical arrival time to
//! `max(TAT, a + d) + n x interval`, and is made only if that is not above `a + burst x interval`.
//!
//! Take the `N` cells that are spent from `s` to `e`, and the purchases that they come from. The first of these has
//! `a + d >= s`, so that `TAT` is `s` and the time of its own cells, or more; and each of the others adds the time of its
//! cells. So `TAT` is at last `s + N x interval` or more. The last of them was made at an `a <= e`, so that `TAT` was at
//! most `e + burst x interval`. Hence `N <= burst + (e - s) / interval`.

use std::time::Duration;

use super::gcra::State;
use crate::limit::state::decision_without_wait;
use crate::quota::Quota;
use crate::quota::decision::{Decision, Verdict};
use crate::quota::policy::Policy;

/// How cells are bought ahead, see [`RedisLimits::with_leases`](super::RedisLimits::with_leases).
///
/// # Rules
///
/// 1. A lease is some cells of one budget, bought by one call of the script and spent on one server until it ends. What is
///    left then is lost: at most one lease a server and budget. (Of a budget that all share: a server and subject.)
/// 2. Redis charges a lease as cells that are spent at its end, and sells it only if they would fit now. Charges of other
///    servers, with leases and without, are made beside it as ever. But no server of the same prefix may have
///    [refunds](crate::RateLimits::with_refunds): the time until a lease's end would be given back as if it had been paid.
/// 3. Over any time `t` of Redis' clock all servers together admit no more than `burst + rate x t`.
/// 4. A lease is an eighth of the burst at most, and a quarter of what is left in the budget. It ends after the time in
///    which an eighth of the burst comes back, or [`with_longest`](Self::with_longest). Of less than two cells, or for less
///    than 5 milliseconds, there are none: where the burst is below 16, and near the limit, each charge asks Redis.
/// 5. A lease is meant to last for half of its time at the pace of the charges before it, and is at most twice the one
///    before. So the first charge buys nothing ahead, and a subject with fewer than four charges in a lease's time never
///    does.
/// 6. For a subject one purchase is pending at a time on a server. A charge that comes meanwhile and does not find enough waits
///    for it, for half of the deadline. After that it asks Redis itself, and buys nothing ahead. The bound of rule 3 holds.
/// 7. A charge of several budgets takes cells from all of them or from none. Where one of them has no leases, or is on trial
///    and exhausted, Redis is asked.
/// 8. What decisions say of a budget is what this server has heard of it last, at most the time of a lease ago.
/// 9. No task runs. A subject whose leases have ended is forgotten when others come.
///
/// Two things only let more pass, by one lease a server at most each: that Redis has lost a budget, which then begins full, and a
/// change of quota, since other servers may spend what they bought under the old one until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leases {
    longest_ns: u64,
}

impl Default for Leases {
    /// For a second at most.
    fn default() -> Self {
        Self { longest_ns: 1_000_000_000 }
    }
}

impl Leases {
    /// The same with another time after which a lease ends at the latest. Below 5 milliseconds there are none.
    ///
    /// A shorter time loses less to a server that does not spend what it has, and asks Redis more often.
    #[must_use]
    pub fn with_longest(self, longest: Duration) -> Self {
        Self { longest_ns: u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// What is sold ahead of a quota, if anything.
    pub(super) fn plan(self, quota: Quota) -> Option<Plan> {
        let most = quota.burst() / PART_OF_BURST;
        let time_ns = self.longest_ns.min(quota.interval_ns() * u64::from(most));
        (most >= FEWEST && time_ns >= SHORTEST_NS).then_some(Plan { most, time_ns })
    }
}

const PART_OF_BURST: u32 = 8;
const PART_OF_REST: u64 = 4;
const FEWEST: u32 = 2;
const SHORTEST_NS: u64 = 5_000_000;

/// The leases of one quota.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    most: u32,
    time_ns: u64,
}

/// Cells that are to be bought beside a charge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    /// 0 if there is nothing to buy.
    pub(super) cells: u32,
    /// How long Redis has to reckon with them.
    pub(super) hold_ns: u64,
}

/// What a server has of one budget, and knows of it. Times are nanoseconds of its own clock.
#[derive(Debug)]
pub(super) struct Stock {
    policy: Policy,
    plan: Plan,
    /// Cells of the current lease, which are there until `ends_at`.
    left: u32,
    ends_at: u64,
    /// Before Redis was asked the last time.
    asked_at: u64,
    /// The cells that came then, those that were spent at once too.
    came: u32,
    /// The order before.
    ordered: u32,
    /// What Redis has said is owed, and when that was heard.
    owed_ns: u64,
    told_at: u64,
}

/// Cells that were taken out for a charge which is not decided yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) cells: u32,
    ends_at: u64,
}

impl Stock {
    pub(super) fn new(policy: Policy, plan: Plan) -> Self {
        Self { policy, plan, left: 0, ends_at: 0, asked_at: 0, came: 0, ordered: 1, owed_ns: 0, told_at: 0 }
    }

    pub(super) fn quota(&self) -> Quota {
        self.policy.quota()
    }

    /// How many cells could be spent at once.
    pub(super) fn left(&self, now: u64) -> u32 {
        if now < self.ends_at { self.left } else { 0 }
    }

    /// Takes so many cells, or as many as there are. For what is above the burst there are none, since it can never be.
    pub(super) fn take(&mut self, now: u64, cells: u32) -> Taken {
        let cells = if cells > self.quota().burst() { 0 } else { cells.min(self.left(now)) };
        self.left -= cells;
        Taken { cells, ends_at: self.ends_at }
    }

    /// Puts back what was not spent, if the lease that it is of is still the current one.
    pub(super) fn put_back(&mut self, taken: Taken) {
        if taken.ends_at == self.ends_at {
            self.left += taken.cells;
        }
    }

    /// Whether Redis has said of late what the budget's state is.
    pub(super) fn knows(&self, now: u64) -> bool {
        self.told_at > 0 && now.saturating_sub(self.told_at) < self.plan.time_ns
    }

    /// Whether a lease may be had, by what Redis has said before.
    pub(super) fn may_buy(&self, now: u64) -> bool {
        let owed_ns = self.owed_at(now).max(self.plan.time_ns);
        let rest = self.quota().span_ns().saturating_sub(owed_ns) / self.quota().interval_ns();
        rest / PART_OF_REST >= u64::from(FEWEST)
    }

    /// What to buy beside a charge. `waiting` is the number of cells that others wait for.
    pub(super) fn order(&self, now: u64, waiting: u32) -> Order {
        let spent = u128::from(self.came - self.left.min(self.came));
        let passed = u128::from(now.saturating_sub(self.asked_at).max(1));
        let by_pace = spent * u128::from(self.plan.time_ns) / (2 * passed);
        let by_pace = by_pace.min((2 * self.ordered).into()) as u32;
        let cells = by_pace.max(waiting).min(self.plan.most);
        let cells = if cells < FEWEST { 0 } else { cells };
        // As seen from Redis, a clock that runs slow ends a lease late.
        Order { cells, hold_ns: self.plan.time_ns + self.plan.time_ns.div_ceil(63) }
    }

    /// A charge was made in Redis, and this came of the order beside it.
    pub(super) fn receive(&mut self, asked_at: u64, now: u64, charged: u32, order: Order, ahead: u32) {
        if ahead > 0 || self.left(now) == 0 {
            self.left = ahead;
            self.ends_at = asked_at.saturating_add(self.plan.time_ns);
            self.asked_at = asked_at;
            self.came = charged.saturating_add(ahead);
            self.ordered = order.cells.max(1);
        }
    }

    /// Redis has said what is owed.
    pub(super) fn hear(&mut self, now: u64, state: State) {
        (self.owed_ns, self.told_at) = (state.owed_ns, now);
    }

    /// Whether nothing would be lost with this.
    pub(super) fn is_over(&self, now: u64) -> bool {
        now >= self.ends_at && !self.knows(now)
    }

    fn owed_at(&self, now: u64) -> u64 {
        self.owed_ns.saturating_sub(now.saturating_sub(self.told_at))
    }

    /// The decision about a charge that was made: what is here can be spent as well as what is there.
    pub(super) fn admitted(&self, now: u64) -> Decision {
        let here_ns = u64::from(self.left(now)) * self.quota().interval_ns();
        decision_without_wait(self.policy.clone(), Verdict::Admitted, self.owed_at(now).saturating_sub(here_ns))
    }
}
