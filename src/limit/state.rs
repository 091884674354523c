//! [`LimitState`]: one limit with its buckets, and the charge of one bucket.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::bucket_map::Removed;
use super::buckets::{BucketOwner, Buckets};
use super::limit::{Limit, Scope};
use super::refunds::RefundTotal;
use crate::caller::CurrentGrant;
use crate::grant::Subject;
use crate::grant::bucket_cache::BucketCache;
use crate::quota::Quota;
use crate::quota::bucket::Bucket;
use crate::quota::cell::Outcome;
use crate::quota::decision::{Decision, Verdict};
use crate::quota::policy::{Policy, PolicyName};

/// One limit with its buckets. Clones share the buckets.
#[derive(Clone)]
pub(super) struct LimitState {
    limit: Limit,
    buckets: BucketSet,
}

#[derive(Clone)]
enum BucketSet {
    PerSubject {
        buckets: Arc<Buckets>,
        /// See [`GrantQuotas::Unfollowed`](super::limit::GrantQuotas::Unfollowed).
        apart: Arc<Buckets>,
        anonymous: Option<Arc<SharedBucket>>,
    },
    Shared(Arc<SharedBucket>),
}

/// One bucket that many callers share.
struct SharedBucket {
    buckets: Buckets,
    subject: Subject,
    bucket_cache: BucketCache,
}

impl SharedBucket {
    fn new(name: PolicyName, quota: Quota) -> Arc<Self> {
        Arc::new(Self { buckets: Buckets::new(name, quota), subject: "".into(), bucket_cache: BucketCache::default() })
    }

    fn owner(&self) -> (&Buckets, BucketOwner<'_>) {
        let (subject, bucket_cache) = (&self.subject, &self.bucket_cache);
        (&self.buckets, BucketOwner { subject, bucket_cache, grant: None })
    }
}

impl LimitState {
    /// Creates the state of a limit. All buckets are full.
    pub(super) fn new(limit: Limit) -> Self {
        let buckets = || Arc::new(Buckets::new(limit.name.clone(), limit.quota));
        let buckets = match limit.scope {
            Scope::All => BucketSet::Shared(SharedBucket::new(limit.name.clone(), limit.quota)),
            Scope::Subject => BucketSet::PerSubject {
                buckets: buckets(),
                apart: buckets(),
                anonymous: limit.anonymous.map(|quota| SharedBucket::new(limit.anonymous_name(), quota)),
            },
        };
        Self { limit, buckets }
    }

    /// Returns the settings. The quotas are those at creation, see [`current`](Self::current).
    pub(super) fn limit(&self) -> &Limit {
        &self.limit
    }

    /// Returns the settings with the current quotas.
    pub(super) fn current(&self) -> Limit {
        let mut limit = self.limit.clone();
        (limit.quota, limit.anonymous) = (self.quota(), self.anonymous_quota());
        limit
    }

    /// Returns the quota of callers without their own quota.
    pub(super) fn quota(&self) -> Quota {
        self.default_buckets().quota()
    }

    pub(super) fn anonymous_quota(&self) -> Option<Quota> {
        match &self.buckets {
            BucketSet::PerSubject { anonymous, .. } => anonymous.as_ref().map(|shared| shared.buckets.quota()),
            // Anonymous callers are charged to the shared bucket.
            BucketSet::Shared(_) => None,
        }
    }

    /// Changes the quota of callers without their own quota, for all clones.
    pub(super) fn set_quota(&self, quota: Quota) {
        self.default_buckets().set_quota(quota);
        if let BucketSet::PerSubject { apart, .. } = &self.buckets {
            apart.set_quota(quota);
        }
    }

    /// Changes the quota of anonymous callers, for all clones. Has no effect if they have no bucket of their own.
    pub(super) fn set_anonymous_quota(&self, quota: Quota) {
        if let BucketSet::PerSubject { anonymous: Some(shared), .. } = &self.buckets {
            shared.buckets.set_quota(quota);
        }
    }

    fn default_buckets(&self) -> &Buckets {
        match &self.buckets {
            BucketSet::PerSubject { buckets, .. } => buckets,
            BucketSet::Shared(shared) => &shared.buckets,
        }
    }

    /// Returns the quota of a caller, or `None` if this caller is not limited. `grant` is `None` for anonymous callers.
    #[cfg(feature = "redis")]
    pub(super) fn quota_of(&self, grant: Option<&CurrentGrant>) -> Option<Quota> {
        let (buckets, owner) = self.owner(grant)?;
        Some(owner.quota().unwrap_or_else(|| buckets.quota()))
    }

    /// Returns the policy of callers whose grant has this quota, or none.
    pub(super) fn policy(&self, of_grant: Option<Quota>) -> Policy {
        match self.limit.own_quota(of_grant) {
            Some(quota) => Policy::named(&self.limit.name, quota),
            None => self.default_buckets().policy(),
        }
    }

    /// Returns the policy of a caller, or `None` if this caller is not limited. `grant` is `None` for anonymous callers.
    #[cfg(feature = "redis")]
    pub(super) fn policy_of(&self, grant: Option<&CurrentGrant>) -> Option<Policy> {
        match (&self.buckets, grant) {
            (BucketSet::PerSubject { anonymous, .. }, None) => Some(anonymous.as_ref()?.buckets.policy()),
            _ => Some(self.policy(grant.and_then(CurrentGrant::quota))),
        }
    }

    /// Changes settings that do not affect the buckets. The buckets are kept.
    pub(super) fn changed(mut self, change: impl FnOnce(&mut Limit)) -> Self {
        change(&mut self.limit);
        self
    }

    /// Returns the owner of the bucket to charge, or `None` if this caller is not limited. `grant` is `None` for anonymous
    /// callers.
    #[inline]
    fn owner<'a>(&'a self, grant: Option<&'a CurrentGrant>) -> Option<(&'a Buckets, BucketOwner<'a>)> {
        match (&self.buckets, grant) {
            (BucketSet::PerSubject { buckets, apart, .. }, Some(grant)) => {
                let head = grant.erased().head();
                // The quota is not beside the bucket, so it is read only where it matters.
                let is_apart = !self.limit.follows_grants() && self.limit.is_apart(head.quota());
                let buckets = if is_apart { apart } else { buckets };
                let (subject, bucket_cache) = (head.subject(), head.bucket_cache());
                Some((buckets, BucketOwner { subject, bucket_cache, grant: Some((grant.erased(), &self.limit)) }))
            }
            (BucketSet::PerSubject { anonymous, .. }, None) => anonymous.as_deref().map(SharedBucket::owner),
            (BucketSet::Shared(shared), _) => Some(shared.owner()),
        }
    }

    /// Charges the bucket. Returns `None` if this caller is not limited. Pass the decision to [`Limit::mark`].
    pub(super) fn charge(
        &self,
        grant: Option<&CurrentGrant>,
        now: u64,
        cost: u32,
        removed: &mut Removed,
    ) -> Option<Decision> {
        let (buckets, owner) = self.owner(grant)?;
        Some(buckets.with(owner, now, removed, |bucket| decision(bucket, now, cost)))
    }

    /// Charges the bucket, if only this caller's grant is charged to it. Otherwise, returns `None` and charges nothing.
    #[inline(always)]
    pub(super) fn charge_own(&self, grant: Option<&CurrentGrant>, now: u64, cost: u32) -> Option<Decision> {
        let (buckets, owner) = self.owner(grant)?;
        decision(buckets.own(owner)?, now, cost)
    }

    /// Returns the decision of [`charge`](Self::charge) without a charge. If the charge fits, the decision describes the
    /// bucket as it is.
    pub(super) fn peek(
        &self,
        grant: Option<&CurrentGrant>,
        now: u64,
        cost: u32,
        removed: &mut Removed,
    ) -> Option<Decision> {
        let (buckets, owner) = self.owner(grant)?;
        let peek = |bucket: &Bucket| {
            let decided = decision(&bucket.copy()?, now, cost)?;
            if decided.is_admitted() { decision(bucket, now, 0) } else { Some(decided) }
        };
        Some(buckets.with(owner, now, removed, peek))
    }

    /// Returns the total of refunds to the bucket of a caller, or `None` if this caller is not limited.
    pub(super) fn refund_total(&self, grant: Option<&CurrentGrant>) -> Option<Arc<RefundTotal<Subject>>> {
        let (buckets, owner) = self.owner(grant)?;
        Some(buckets.refund_total(owner.subject))
    }

    /// Refunds this many nanoseconds of a charge under this quota.
    pub(super) fn refund(&self, grant: Option<&CurrentGrant>, quota: Quota, ns: u64) {
        if let Some((buckets, owner)) = self.owner(grant) {
            buckets.refund(owner, quota, ns);
        }
    }

    /// Returns the state of the bucket of a subject whose grant has this quota, or none. Creates and changes no bucket.
    pub(super) fn usage(&self, subject: &Subject, of_grant: Option<Quota>, now: u64) -> Decision {
        let policy = self.policy(of_grant);
        let full_in = match &self.buckets {
            BucketSet::Shared(shared) => shared.buckets.full_in(&shared.subject, policy.quota(), now),
            BucketSet::PerSubject { apart, .. } if self.limit.is_apart(of_grant) => {
                apart.full_in(subject, policy.quota(), now)
            }
            BucketSet::PerSubject { buckets, .. } => buckets.full_in(subject, policy.quota(), now),
        };
        self.usage_of(policy, full_in)
    }

    /// Returns the state of a bucket that is full after this time.
    pub(super) fn usage_of(&self, policy: Policy, full_in_ns: u64) -> Decision {
        let mut decision = Decision::without_wait(policy, Verdict::Admitted, full_in_ns);
        self.limit.mark(&mut decision, None);
        decision
    }

    /// Makes all buckets of a subject full. A shared bucket does not change.
    pub(super) fn reset(&self, subject: &Subject, now: u64, removed: &mut Removed) {
        if let BucketSet::PerSubject { buckets, apart, .. } = &self.buckets {
            buckets.reset(subject, now, removed);
            apart.reset(subject, now, removed);
        }
    }

    pub(super) fn sweep(&self, now: u64) {
        if let BucketSet::PerSubject { buckets, apart, .. } = &self.buckets {
            buckets.sweep(now);
            apart.sweep(now);
        }
    }

    pub(super) fn subjects(&self) -> usize {
        match &self.buckets {
            BucketSet::PerSubject { buckets, apart, .. } => buckets.len() + apart.len(),
            BucketSet::Shared(_) => 0,
        }
    }

    #[cfg(test)]
    pub(super) fn buckets(&self) -> &Buckets {
        self.default_buckets()
    }
}

/// Charges a bucket and returns the decision, or `None` if the bucket is frozen.
#[inline(always)]
fn decision(bucket: &Bucket, now: u64, cost: u32) -> Option<Decision> {
    let outcome = match NonZeroU32::new(cost) {
        Some(cost) => bucket.charge(now, cost),
        None => Outcome::Admitted { tat: bucket.tat()?.max(now) },
    };
    let before = match outcome {
        Outcome::Frozen => return None,
        Outcome::AboveBurst => bucket.tat()?,
        Outcome::Admitted { .. } | Outcome::Rejected { .. } => 0,
    };
    Some(decision_of(bucket.policy().clone(), outcome, before, now))
}

/// Returns the decision of a charge. `before` is the theoretical arrival time if nothing was charged.
#[inline(always)]
pub(super) fn decision_of(policy: Policy, outcome: Outcome, before: u64, now: u64) -> Decision {
    let (verdict, tat) = match outcome {
        Outcome::Rejected { tat, wait } => {
            return Decision::from_ns(policy, Verdict::OverLimit, 0, wait, tat.saturating_sub(now));
        }
        Outcome::Admitted { tat } => (Verdict::Admitted, tat),
        Outcome::AboveBurst | Outcome::Frozen => (Verdict::CostAboveBurst, before.max(now)),
    };
    Decision::without_wait(policy, verdict, tat.saturating_sub(now))
}
