//! [`LimitState`]: one limit with its buckets, and the charge of one bucket.

use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};

use super::buckets::{BucketOwner, Buckets, Removed};
use super::limit::{Limit, Scope};
use super::refund_totals::RefundTotals;
use crate::caller::CurrentGrant;
use crate::grant::Subject;
use crate::quota::Quota;
use crate::quota::bucket::{Bucket, BucketCache};
use crate::quota::cell::Outcome;
use crate::quota::decision::{Decision, Verdict};
use crate::quota::policy::{Policy, PolicyName};
use crate::sync::MutexGuard;

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
        apart: Arc<OnceLock<Buckets>>,
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
        (&self.buckets, BucketOwner { subject, bucket_cache, quota: None, grant: None })
    }
}

/// The data of a charge that a refund needs.
#[derive(Clone, Copy)]
pub(super) struct MadeCharge {
    cost: NonZeroU32,
    quota: Quota,
    /// The time at which the bucket is full again, without further charges and refunds.
    full_at: u64,
    /// The total of refunds before the charge.
    refunded_before: u64,
}

impl MadeCharge {
    /// Sets the total of refunds before the charge.
    pub(super) fn after(self, refunded_before: u64) -> Self {
        Self { refunded_before, ..self }
    }
}

impl LimitState {
    /// Creates the state of a limit. All buckets are full.
    pub(super) fn new(limit: Limit) -> Self {
        let buckets = match limit.scope {
            Scope::All => BucketSet::Shared(SharedBucket::new(limit.name.clone(), limit.quota)),
            Scope::Subject => BucketSet::PerSubject {
                buckets: Arc::new(Buckets::new(limit.name.clone(), limit.quota)),
                apart: Arc::default(),
                anonymous: limit.anonymous.map(|quota| SharedBucket::new(limit.anonymous_name(), quota)),
            },
        };
        Self { limit, buckets }
    }

    pub(super) fn limit(&self) -> &Limit {
        &self.limit
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
                let buckets = match self.limit.is_apart(grant) {
                    false => buckets,
                    true => self.apart(apart),
                };
                let (quota, grant) = (self.limit.quota_of(grant), grant.erased());
                let head = grant.head();
                let (subject, bucket_cache) = (head.subject(), head.bucket_cache());
                Some((buckets, BucketOwner { subject, bucket_cache, quota, grant: Some(grant) }))
            }
            (BucketSet::PerSubject { anonymous, .. }, None) => anonymous.as_deref().map(SharedBucket::owner),
            (BucketSet::Shared(shared), _) => Some(shared.owner()),
        }
    }

    /// Returns the buckets of grants whose quota is not followed. A function of its own, because the usual charge is shorter without
    /// this code.
    #[cold]
    fn apart<'a>(&self, apart: &'a OnceLock<Buckets>) -> &'a Buckets {
        apart.get_or_init(|| Buckets::new(self.limit.name.clone(), self.limit.quota))
    }

    /// Charges the bucket. Returns `None` if this caller is not limited. Pass the decision to [`Limit::mark`].
    #[inline]
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

    /// Returns the data for a refund of this decision, if units were charged.
    pub(super) fn made_charge(&self, decision: &Decision, now: u64, cost: u32) -> Option<MadeCharge> {
        let quota = decision.policy().filter(|_| decision.verdict() == Verdict::Admitted)?.quota();
        let full_at = now.saturating_add(decision.full_in_ns());
        Some(MadeCharge { cost: NonZeroU32::new(cost)?, quota, full_at, refunded_before: 0 })
    }

    /// Returns the total of refunds to this bucket, locked.
    pub(super) fn refunded<'a>(&self, totals: &'a RefundTotals, grant: Option<&CurrentGrant>) -> MutexGuard<'a, u64> {
        let subject = grant.filter(|_| self.limit.scope == Scope::Subject).map(CurrentGrant::subject);
        totals.lock(self.limit.name.as_str(), subject)
    }

    /// Refunds a charge, and adds the refund to the totals.
    pub(super) fn refund(&self, totals: &RefundTotals, grant: Option<&CurrentGrant>, now: u64, made: MadeCharge) {
        let mut refunded = self.refunded(totals, grant);
        // The total may wrap around. Differences of totals are still correct.
        let full_at = made.full_at.saturating_sub(refunded.wrapping_sub(made.refunded_before));
        *refunded = refunded.wrapping_add(self.undo(grant, now, MadeCharge { full_at, ..made }));
    }

    /// Refunds the part of a charge that the bucket has not regained yet. Returns the refunded nanoseconds.
    ///
    /// Charges are regained in the order in which they were made. The bucket never gets more units than without the charge:
    ///
    /// - With the charge and later charges `s`, the bucket is not full before `full_at + s`.
    /// - Without the charge, it would be full at `full_at - charge + s`. If it had been full in between, it would be full
    ///   again at most `s` after that moment.
    /// - The refund leaves the later of these two times, with `now` as that moment.
    ///
    /// Refunds that were made meanwhile reduce `full_at`, see [`refund`](Self::refund).
    pub(super) fn undo(&self, grant: Option<&CurrentGrant>, now: u64, made: MadeCharge) -> u64 {
        let charge = u64::from(made.cost.get()) * made.quota.interval_ns();
        let refund = charge.min(made.full_at.saturating_sub(now));
        if let Some((buckets, owner)) = self.owner(grant).filter(|_| refund > 0) {
            buckets.refund(owner, made.quota, refund);
        }
        refund
    }

    pub(super) fn sweep(&self, now: u64) {
        if let BucketSet::PerSubject { buckets, apart, .. } = &self.buckets {
            buckets.sweep(now);
            apart.get().into_iter().for_each(|buckets| buckets.sweep(now));
        }
    }

    pub(super) fn subjects(&self) -> usize {
        match &self.buckets {
            BucketSet::PerSubject { buckets, apart, .. } => buckets.len() + apart.get().map_or(0, Buckets::len),
            BucketSet::Shared(_) => 0,
        }
    }

    #[cfg(test)]
    pub(super) fn buckets(&self) -> &Buckets {
        match &self.buckets {
            BucketSet::PerSubject { buckets, .. } => buckets,
            BucketSet::Shared(shared) => &shared.buckets,
        }
    }
}

/// Charges a bucket and returns the decision, or `None` if the bucket is frozen.
#[inline]
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
#[inline]
pub(super) fn decision_of(policy: Policy, outcome: Outcome, before: u64, now: u64) -> Decision {
    let (verdict, tat) = match outcome {
        Outcome::Rejected { tat, wait } => {
            return Decision::from_ns(policy, Verdict::OverLimit, 0, wait, tat.saturating_sub(now));
        }
        Outcome::Admitted { tat } => (Verdict::Admitted, tat),
        Outcome::AboveBurst | Outcome::Frozen => (Verdict::CostAboveBurst, before.max(now)),
    };
    decision_without_wait(policy, verdict, tat.saturating_sub(now))
}

/// Returns the decision of a charge that fits or never fits. The bucket is full after `full_in` nanoseconds.
#[inline]
pub(super) fn decision_without_wait(policy: Policy, verdict: Verdict, full_in: u64) -> Decision {
    let quota = policy.quota();
    // A partially regained unit counts as used. After a change of plan, more units than the burst can be used.
    let used = full_in.div_ceil(quota.interval_ns()).min(quota.burst().into());
    let remaining = quota.burst() - used as u32;
    let more_in = full_in.saturating_sub(used.saturating_sub(1) * quota.interval_ns());
    Decision::from_ns(policy, verdict, remaining, more_in, full_in)
}
