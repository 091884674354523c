//! What is decided while Redis is away.

use std::num::NonZeroU32;
use std::time::Duration;

use super::charge::Asked;
use crate::limit::{Limiter as _, RateLimits};
use crate::observe;
use crate::quota::decision::{Decision, Verdict};

/// What is decided while Redis is away, or replies too slowly. Such decisions [are local](Decision::is_local).
///
/// The cause is always a failure of Redis, see the rules of [this module](crate::limit::redis). A charge that waits too long in
/// this process is rejected with 503 instead, see [`with_queue_timeout`](super::RedisLimits::with_queue_timeout). Policies that
/// are dry runs reject nothing, whatever is chosen here.
///
/// When Redis is back its budgets are used again. What was spent meanwhile is not carried there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutagePolicy {
    /// Charges are rejected with 503.
    Reject,
    /// Everybody is let in, and nothing is counted.
    Admit,
    /// Each server has budgets of its own, in memory, of the rate and burst divided by the number of servers: the default.
    ///
    /// Budgets are full when the first outage begins, and fill up between outages. In an outage of time `t`, all servers together
    /// admit a subject up to `max(burst, nodes) + rate x t` beside what Redis had admitted: a burst cannot be less than 1 on
    /// each. A charge that is larger than the divided burst is refused with 503, since only Redis could have admitted it.
    #[default]
    Local,
}

/// The same with budgets.
#[derive(Clone)]
pub(super) enum Outage {
    Reject,
    Admit,
    Local(RateLimits),
}

impl Outage {
    pub(super) fn new(limits: &RateLimits, when_down: OutagePolicy, nodes: NonZeroU32) -> Self {
        match when_down {
            OutagePolicy::Reject => Self::Reject,
            OutagePolicy::Admit => Self::Admit,
            OutagePolicy::Local => Self::Local(limits.divided_by(nodes)),
        }
    }

    /// Returns the form for a route, see [`Limiter::for_route`].
    pub(super) fn for_route(self) -> Self {
        match self {
            Self::Local(limits) => Self::Local(limits.for_route()),
            Self::Reject | Self::Admit => self,
        }
    }

    /// Decides a charge without Redis, which may be there again after `wait`.
    pub(super) fn decide(&self, asked: &Asked, wait: Duration) -> Decision {
        for part in asked.parts.iter().filter(|_| !asked.is_look) {
            observe::decided_without_redis(part.policy.name());
        }
        let decision = match self {
            Self::Reject => undecided(asked, wait),
            Self::Admit => Decision::unlimited(),
            Self::Local(limits) => {
                let decision = limits.decide_counted(asked.grant.as_ref(), &asked.costs);
                let can_ever_fit =
                    asked.parts.iter().all(|part| !part.binds || part.cost <= part.policy.quota().burst());
                match decision.verdict() {
                    Verdict::CostAboveBurst if can_ever_fit && !decision.is_admitted() => Decision::unavailable(wait),
                    _ => decision,
                }
            }
        };
        decision.with_local()
    }
}

/// Decides a charge that nobody could decide. Rejects it unless all of its policies are dry runs.
pub(super) fn undecided(asked: &Asked, wait: Duration) -> Decision {
    if asked.parts.iter().any(|part| part.binds) {
        return Decision::unavailable(wait);
    }
    let parts = asked.parts.iter().map(|part| Decision::unavailable_for(part.policy.clone(), wait).with_dry_run());
    Decision::all_of(parts)
}
