//! What is decided while Redis is away.

use std::num::NonZeroU32;
use std::time::Duration;

use super::gcra::Part;
use crate::caller::CurrentGrant;
use crate::decision::{Decision, Verdict};
use crate::grant::Subject;
use crate::limit::{Charge, Limiter as _, RateLimits};
use crate::quota::Quota;

/// What is decided while Redis is away, or too slow. Such decisions say that they [are local](Decision::is_local).
///
/// When Redis is back its budgets are used again. What was spent meanwhile is not carried there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenDown {
    /// Nobody is let in: 503.
    Refuse,
    /// Everybody is let in, and nothing is counted.
    Admit,
    /// Each server has budgets of its own, in memory, of the rate and burst divided by the number of servers. The default, with
    /// 1 server: set the true number.
    ///
    /// Budgets are full when an outage begins. Per outage and subject, all servers together admit up to
    /// `max(burst, nodes) + rate x t` beside what Redis had admitted: a burst cannot be less than 1 on each. A charge that is
    /// larger than the divided burst is refused with 503, since only Redis could have admitted it.
    LocalBudget {
        /// How many servers share the budgets.
        nodes: NonZeroU32,
    },
}

impl Default for WhenDown {
    fn default() -> Self {
        Self::LocalBudget { nodes: NonZeroU32::MIN }
    }
}

/// Whose budgets are charged.
pub(super) enum Payer {
    Grant(CurrentGrant),
    Anonymous,
}

impl Payer {
    /// `None` of an anonymous caller.
    pub(super) fn subject(&self) -> Option<&Subject> {
        match self {
            Self::Grant(grant) => Some(grant.subject()),
            Self::Anonymous => None,
        }
    }
}

#[derive(Clone)]
pub(super) enum Outage {
    Refuse,
    Admit,
    Local(RateLimits),
}

impl Outage {
    pub(super) fn new(limits: &RateLimits, when_down: WhenDown) -> Self {
        match when_down {
            WhenDown::Refuse => Self::Refuse,
            WhenDown::Admit => Self::Admit,
            WhenDown::LocalBudget { nodes } => Self::Local(limits.clone()),
        }
    }

    /// Decides a charge without Redis, which may be there again after `wait`.
    pub(super) fn decide(&self, payer: &Payer, parts: &[Part], wait: Duration) -> Decision {
        let decision = match self {
            Self::Refuse => Decision::unavailable(wait),
            Self::Admit => Decision::unlimited(),
            Self::Local(limits) => {
                let charge = Charge::Units(parts.first().map_or(0, |part| part.cost));
                let decided = match payer {
                    Payer::Grant(grant) => limits.check_now(grant, charge),
                    Payer::Anonymous => limits.check_anonymous(charge).ready().unwrap_or_else(Decision::unlimited),
                };
                let could_fit = parts.iter().all(|part| part.cost <= part.policy.quota().burst());
                match decided.verdict() {
                    Verdict::CostAboveBurst if could_fit => Decision::unavailable(wait),
                    _ => decided,
                }
            }
        };
        decision.made_locally()
    }
}
