//! [`Rule`]: the configuration of one policy of a limiter.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::Charge;
use crate::caller::CurrentGrant;
use crate::grant::Subject;
use crate::quota::Quota;
use crate::quota::decision::Decision;
use crate::quota::policy::PolicyName;
use crate::request_head::RequestHead;

pub(super) type PartitionKey = dyn Fn(&Subject) -> Vec<u8> + Send + Sync;
type Cost = dyn Fn(&RequestHead<'_>) -> u32 + Send + Sync;

/// The configuration of one policy, without its buckets.
#[derive(Clone)]
pub(crate) struct Rule {
    pub(crate) name: PolicyName,
    pub(crate) quota: Quota,
    pub(crate) scope: Scope,
    pub(super) cost: Option<Arc<Cost>>,
    /// The quota that all anonymous callers share, if they are limited.
    pub(crate) anonymous: Option<Quota>,
    pub(crate) is_dry_run: bool,
    near_percent: Option<u8>,
    pub(super) partition_key: Option<Arc<PartitionKey>>,
    pub(super) grant_quotas: GrantQuotas,
    /// The number of nodes among which each quota is divided.
    nodes: NonZeroU32,
}

/// The callers that share a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Subject,
    All,
}

/// Whether the quota of a grant replaces that of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrantQuotas {
    Ignored,
    /// In a gate, but not on a route.
    FollowedByDefault,
    /// Everywhere, by [`RateLimits::with_grant_quotas`](super::RateLimits::with_grant_quotas).
    Followed,
}

impl Rule {
    pub(super) fn new(name: PolicyName, quota: Quota) -> Self {
        Self {
            name,
            quota,
            scope: Scope::Subject,
            cost: None,
            anonymous: None,
            is_dry_run: false,
            near_percent: None,
            partition_key: None,
            grant_quotas: GrantQuotas::Ignored,
            nodes: NonZeroU32::MIN,
        }
    }

    /// Creates a further policy of the same limiter.
    pub(super) fn further(&self, name: PolicyName, quota: Quota) -> Self {
        let partition_key = self.partition_key.clone();
        Self { partition_key, ..Self::new(name, quota) }
    }

    #[inline]
    pub(crate) fn cost(&self, charge: Charge<'_>) -> u32 {
        match (charge, &self.cost) {
            (Charge::Units(units), _) => units,
            (Charge::Request(_), None) => 1,
            (Charge::Request(head), Some(cost)) => cost(head),
        }
    }

    /// Returns the quota of the grant, if that quota replaces the one of this policy.
    #[inline]
    pub(super) fn quota_of(&self, grant: &CurrentGrant) -> Option<Quota> {
        let is_followed = self.grant_quotas != GrantQuotas::Ignored && self.scope == Scope::Subject;
        let quota = grant.quota().filter(|_| is_followed);
        quota.map(|quota| quota.divided_by(self.nodes))
    }

    /// Returns whether this policy limits anonymous callers and CORS preflights.
    pub(super) fn limits_anonymous(&self) -> bool {
        self.scope == Scope::All || self.anonymous.is_some()
    }

    /// Returns the name under which anonymous callers are limited.
    ///
    /// A named policy keeps its name. Otherwise the limiter of a gate and that of a route, which share a Redis, would
    /// share the bucket of anonymous callers too.
    pub(crate) fn anonymous_name(&self) -> PolicyName {
        match self.name.is_default() {
            true => PolicyName::anonymous(),
            false => self.name.clone(),
        }
    }

    /// Returns the rule of one of several nodes, which divide the quotas.
    #[cfg(feature = "redis")]
    pub(super) fn divided_by(&self, nodes: NonZeroU32) -> Self {
        Self {
            quota: self.quota.divided_by(nodes),
            anonymous: self.anonymous.map(|quota| quota.divided_by(nodes)),
            nodes,
            ..self.clone()
        }
    }

    pub(super) fn set_near_percent(&mut self, percent: u8) {
        self.near_percent = Some(percent.min(100));
    }

    /// Adds the dry run, the near-limit flag and the partition key of this policy to a decision.
    #[inline]
    pub(crate) fn mark(&self, decision: Decision, grant: Option<&CurrentGrant>) -> Decision {
        match (self.is_dry_run, self.near_percent, &self.partition_key) {
            (false, None, None) => decision,
            _ => self.mark_rare(decision, grant),
        }
    }

    #[cold]
    fn mark_rare(&self, decision: Decision, grant: Option<&CurrentGrant>) -> Decision {
        let decision = match (&self.partition_key, grant) {
            (Some(key), Some(grant)) if self.scope == Scope::Subject => {
                decision.with_partition_key(key(grant.subject()))
            }
            _ => decision,
        };
        let decision = if self.is_dry_run { decision.with_dry_run() } else { decision };
        let (Some(percent), Some(policy)) = (self.near_percent, decision.policy()) else { return decision };
        let burst = policy.quota().burst();
        let used = u64::from(burst - decision.remaining().min(burst));
        match used * 100 >= u64::from(burst) * u64::from(percent) {
            true => decision.with_near_limit(),
            false => decision,
        }
    }
}
