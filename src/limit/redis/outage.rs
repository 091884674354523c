//! Decisions without Redis: the outage policy.

use std::num::NonZeroU32;
use std::time::Duration;

use super::charge::ChargeRequest;
use crate::limit::{AnonymousLimits, Limiter as _, RateLimits};
use crate::observe;
use crate::quota::decision::{Decision, Verdict};

/// A policy for charges while Redis is unavailable or too slow. [`Decision::is_local`] returns true for such decisions.
///
/// The policy applies only to failures of Redis, see the rules of [this module](crate::limit::redis). A charge that waits too long
/// in this process is rejected with 503 instead, see [`with_queue_timeout`](super::RedisLimits::with_queue_timeout). Dry runs
/// reject nothing under any policy.
///
/// When Redis is available again, its buckets are used again. Local charges are not carried over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutagePolicy {
    /// Rejects charges with 503.
    Reject,
    /// Admits all charges without counting them.
    Admit,
    /// Charges buckets in this server's memory, with the rate and burst divided by the number of servers. This is the default.
    ///
    /// Local buckets are full when the first outage begins, and refill between outages. In an outage of time `t`, all servers
    /// together admit a subject up to `max(burst, nodes) + rate x t`, in addition to the charges that Redis admitted: each server
    /// has a burst of at least 1. A charge above the divided burst is rejected with 503, since only Redis could have admitted it.
    #[default]
    Local,
}

/// An outage policy with its local buckets.
#[derive(Clone)]
pub(super) enum Fallback {
    Reject,
    Admit,
    Local(RateLimits),
    /// For the sets of buckets of anonymous clients.
    LocalKeys(AnonymousLimits),
}

impl Fallback {
    pub(super) fn new(limits: &RateLimits, policy: OutagePolicy, nodes: NonZeroU32) -> Self {
        match policy {
            OutagePolicy::Reject => Self::Reject,
            OutagePolicy::Admit => Self::Admit,
            OutagePolicy::Local => Self::Local(limits.with_nodes(nodes)),
        }
    }

    /// Returns this policy with new local buckets.
    pub(super) fn with_full_buckets(&self, limits: &RateLimits, nodes: NonZeroU32) -> Self {
        match self {
            Self::Local(_) => Self::new(limits, OutagePolicy::Local, nodes),
            Self::Reject | Self::Admit | Self::LocalKeys(_) => self.clone(),
        }
    }

    /// Returns the form for the sets of buckets of these limits.
    pub(super) fn for_keys(&self, limits: &AnonymousLimits) -> Self {
        match self {
            Self::Reject => Self::Reject,
            Self::Admit => Self::Admit,
            Self::Local(_) | Self::LocalKeys(_) => Self::LocalKeys(limits.clone()),
        }
    }

    /// Returns the form for a route, see [`Limiter::for_route`].
    pub(super) fn for_route(self) -> Self {
        match self {
            Self::Local(limits) => Self::Local(limits.for_route()),
            Self::Reject | Self::Admit | Self::LocalKeys(_) => self,
        }
    }

    /// Decides a charge without Redis. `wait` is the time after which Redis may be available.
    pub(super) fn decide(&self, request: &ChargeRequest, wait: Duration) -> Decision {
        for part in request.parts.iter().filter(|_| !request.is_look) {
            observe::decided_without_redis(part.policy.name());
        }
        let decision = match self {
            Self::Reject => undecided(request, wait),
            Self::Admit => Decision::unlimited(),
            Self::Local(limits) => {
                request.local_decision(limits.decide_counted(request.grant.as_ref(), &request.costs()), wait)
            }
            Self::LocalKeys(limits) => {
                let (hash, cost) = (request.hash.unwrap_or_default(), request.parts[0].cost);
                request.local_decision(limits.decide_hash(hash, cost), wait)
            }
        };
        decision.with_local()
    }
}

impl ChargeRequest {
    /// Returns the cost for each policy of the limiter. Policies that do not limit this caller have no bucket, and no cost.
    fn costs(&self) -> Vec<u32> {
        let mut costs = vec![0; self.parts.last().map_or(0, |part| part.at + 1)];
        self.parts.iter().for_each(|part| costs[part.at] = part.cost);
        costs
    }

    /// Returns the decision by local buckets. Only Redis could admit a charge above the divided burst.
    fn local_decision(&self, decision: Decision, wait: Duration) -> Decision {
        let can_ever_fit = self.parts.iter().all(|part| !part.binds || part.cost <= part.policy.quota().burst());
        match decision.verdict() {
            Verdict::CostAboveBurst if can_ever_fit && !decision.is_admitted() => Decision::unavailable(wait),
            _ => decision,
        }
    }
}

/// Returns the decision about a charge that could not be decided: a rejection, unless all of its policies are dry runs.
pub(super) fn undecided(request: &ChargeRequest, wait: Duration) -> Decision {
    if request.parts.iter().any(|part| part.binds) {
        return Decision::unavailable(wait);
    }
    let parts = request.parts.iter().map(|part| Decision::unavailable_for(part.policy.clone(), wait).with_dry_run());
    Decision::all_of(parts)
}
