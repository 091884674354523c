//! [`Buckets`]: the buckets of all subjects under one limit.
//!
//! # Rules
//!
//! 1. A subject has at most one bucket that is not frozen. Buckets are created, replaced and dropped only under the lock.
//! 2. The policy of a bucket never changes. When a request has another quota, the old bucket is frozen permanently. Its used
//!    units are carried over to a new bucket. A charge of a frozen bucket fails and is repeated with the new bucket.
//!    A change of the default quota changes the id in bucket caches, so that each next request looks up its bucket.
//! 3. A bucket is dropped only if it is full, so that no state is lost. Only the map may hold the bucket at that time, so
//!    that no concurrent charge is lost.
//! 4. A bucket is stored in its grant while only that grant is charged to it, so that a request reads fewer cache lines. This
//!    requires that a store in memory or another holder keeps the grant. The map then holds the grant.
//! 5. When a second grant is charged to the same bucket, the bucket is frozen as in rule 2. The new bucket is stored outside
//!    of the grants.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};

use arc_swap::ArcSwap;

use super::bucket_map::{BucketMap, Removed, Slot};
use super::limit::Limit;
use super::refunds::{RefundTotal, RefundTotals};
use crate::grant::Subject;
use crate::grant::bucket_cache::{BucketCache, SharedBucket};
use crate::grant::erased::Erased;
use crate::observe;
use crate::quota::Quota;
use crate::quota::bucket::{Bucket, LimiterPolicy};
use crate::quota::policy::{Policy, PolicyName};
use crate::sync::{Mutex, MutexGuard};

/// The owner of a bucket: the subject, and the cache of its grant.
#[derive(Clone, Copy)]
pub(super) struct BucketOwner<'a> {
    pub(super) subject: &'a Subject,
    pub(super) bucket_cache: &'a BucketCache,
    /// The grant that contains the bucket cache, and the limit of the bucket, if the owner has a grant.
    pub(super) grant: Option<(&'a Arc<dyn Erased>, &'a Limit)>,
}

impl BucketOwner<'_> {
    /// Returns the quota that the grant has under the limit. Read rarely, because the quota is not beside the bucket.
    pub(super) fn quota(&self) -> Option<Quota> {
        let (grant, limit) = self.grant?;
        limit.own_quota(grant.head().quota())
    }
}

/// The buckets of all subjects under one limit.
pub(super) struct Buckets {
    /// Identifies the buckets of the current default policy in bucket caches. Changes with the policy, under the lock of the map.
    id: AtomicU64,
    name: PolicyName,
    /// The policy of grants without their own quota, with the current id. Changed under the lock of the map.
    default: ArcSwap<LimiterPolicy>,
    map: Mutex<BucketMap>,
    /// Created with the first charge that can be refunded.
    refund_totals: OnceLock<Arc<RefundTotals<Subject>>>,
}

impl Buckets {
    pub(super) fn new(name: PolicyName, default: Quota) -> Self {
        let default = LimiterPolicy { limiter_id: next_id(), policy: Policy::named(&name, default) };
        Self {
            id: AtomicU64::new(default.limiter_id),
            default: ArcSwap::from_pointee(default),
            name,
            map: Mutex::new(BucketMap::new()),
            refund_totals: OnceLock::new(),
        }
    }

    /// Returns the total of refunds to the bucket of a subject.
    pub(super) fn refund_total(&self, subject: &Subject) -> Arc<RefundTotal<Subject>> {
        self.refund_totals.get_or_init(Arc::default).of(subject.clone())
    }

    /// Returns the policy of grants without their own quota.
    pub(super) fn policy(&self) -> Policy {
        self.default.load().policy.clone()
    }

    /// Returns the quota of grants without their own quota.
    pub(super) fn quota(&self) -> Quota {
        self.default.load().policy.quota()
    }

    /// Changes the quota of grants without their own quota. Each bucket follows when it is charged or read next.
    pub(super) fn set_quota(&self, quota: Quota) {
        // While Redis is unavailable, each charge calls this, usually without a change.
        if self.quota() == quota {
            return;
        }
        let mut map = self.lock();
        if self.quota() != quota {
            let default = LimiterPolicy { limiter_id: next_id(), policy: Policy::named(&self.name, quota) };
            let id = default.limiter_id;
            self.default.store(Arc::new(default));
            self.id.store(id, Ordering::Release);
            map.clear_policies();
        }
    }

    /// Returns the bucket that only this owner is charged to, if there is one.
    #[inline]
    pub(super) fn own<'a>(&self, owner: BucketOwner<'a>) -> Option<&'a Bucket> {
        owner.bucket_cache.own(self.id.load(Ordering::Acquire))
    }

    /// Calls `f` with the bucket of this owner until `f` returns a value, which it does unless the bucket is frozen.
    ///
    /// Slots that are removed from the map are added to `removed`.
    #[inline]
    pub(super) fn with<T>(
        &self,
        owner: BucketOwner<'_>,
        now: u64,
        removed: &mut Removed,
        mut f: impl FnMut(&Bucket) -> Option<T>,
    ) -> T {
        // The quota of a grant never changes, so the buckets that are cached with this id have the quota of the owner.
        if let Some(done) = owner.bucket_cache.charge(self.id.load(Ordering::Acquire), &mut f) {
            return done;
        }
        loop {
            // A concurrent request with another quota may freeze the new bucket. Then the loop creates another one.
            let done = match self.find_or_create(owner, now, removed) {
                (id, Some(bucket)) => {
                    owner.bucket_cache.add_shared(id, &bucket);
                    f(&bucket.bucket)
                }
                (id, None) => owner.bucket_cache.own(id).and_then(&mut f),
            };
            if let Some(done) = done {
                return done;
            }
        }
    }

    /// Refunds this many nanoseconds of a charge under this quota to the current bucket of the subject. Creates no bucket.
    pub(super) fn refund(&self, owner: BucketOwner<'_>, quota: Quota, ns: u64) {
        let id = self.id.load(Ordering::Acquire);
        if owner.bucket_cache.charge(id, |bucket| bucket.refund(quota, ns)).is_none() {
            let map = self.lock();
            let bucket = map.get(owner.subject).and_then(Slot::bucket);
            // Buckets in the map are not frozen.
            _ = bucket.and_then(|bucket| bucket.refund(quota, ns));
        }
    }

    /// Returns the time until the bucket of a subject is full, by the units of this quota. Creates and changes no bucket.
    pub(super) fn full_in(&self, subject: &Subject, quota: Quota, now: u64) -> u64 {
        let map = self.lock();
        map.get(subject).and_then(Slot::bucket).map_or(0, |bucket| bucket.full_in(quota, now))
    }

    /// Makes the bucket of a subject full. Charges until now are not refunded later.
    pub(super) fn reset(&self, subject: &Subject, now: u64, removed: &mut Removed) {
        let total = self.refund_totals.get().map(|totals| totals.of(subject.clone()));
        match total {
            Some(total) => total.reset(|| self.discard(subject, now, removed)),
            None => _ = self.discard(subject, now, removed),
        }
    }

    /// Drops the bucket of a subject. Returns the time until it would have been full.
    fn discard(&self, subject: &Subject, now: u64, removed: &mut Removed) -> u64 {
        let mut map = self.lock();
        let used_ns = map.get(subject).and_then(Slot::bucket).map_or(0, |bucket| bucket.discard(now));
        map.remove(subject, removed);
        self.unlock_and_report(map);
        used_ns
    }

    /// Finds or creates the bucket of the owner. Returns the current id, and `None` if the bucket is stored in the owner's cache.
    #[cold]
    fn find_or_create(
        &self,
        owner: BucketOwner<'_>,
        now: u64,
        removed: &mut Removed,
    ) -> (u64, Option<Arc<SharedBucket>>) {
        let mut map = self.lock();
        let default = self.default.load_full();
        let (id, quota) = (default.limiter_id, owner.quota().unwrap_or(default.policy.quota()));
        map.sweep_if_due(now, removed);
        let policy = match quota == default.policy.quota() {
            true => default,
            false => map.policy(quota, || LimiterPolicy { limiter_id: id, policy: Policy::named(&self.name, quota) }),
        };
        let slot = map.get(owner.subject);
        let grant = owner.grant.map(|(grant, _)| grant);
        let is_replaced = match (slot, grant) {
            (Some(Slot::Shared(shared)), _) if shared.bucket.policy().quota() == quota => {
                return (id, Some(Arc::clone(shared)));
            }
            // A concurrent request with the same grant has created the bucket.
            (Some(Slot::InGrant { head, .. }), Some(grant))
                if std::ptr::eq(head, grant.head()) && owner.bucket_cache.own(id).is_some() =>
            {
                return (id, None);
            }
            // A rotation replaces a grant by copies, which refer to it.
            (Some(Slot::InGrant { head, .. }), Some(grant)) if grant.is_copy_of(head) => true,
            (slot, _) => slot.is_none_or(Slot::is_unreferenced),
        };
        let tat = slot.and_then(Slot::bucket).map_or(0, |bucket| bucket.freeze(&policy.policy, now));
        let bucket = Bucket::with_tat(policy, tat);
        map.remove(owner.subject, removed);
        // A grant that only the request holds is dropped with the request, so it cannot keep a bucket.
        let grant = grant.filter(|grant| is_replaced && Arc::strong_count(grant) > 1);
        let stored = match grant {
            Some(grant) => owner.bucket_cache.set_own(bucket).map(|()| map.insert_grant(grant)),
            None => Err(bucket),
        };
        let shared = stored.err().map(|bucket| Arc::new(SharedBucket { subject: owner.subject.clone(), bucket }));
        if let Some(shared) = &shared {
            map.insert_shared(shared);
        }
        self.unlock_and_report(map);
        (id, shared)
    }

    /// Drops all buckets that are full and not referenced.
    pub(super) fn sweep(&self, now: u64) {
        let mut removed = Removed::default();
        let mut map = self.lock();
        map.sweep(now, &mut removed);
        self.unlock_and_report(map);
    }

    /// Releases the lock, and then reports the number of buckets.
    fn unlock_and_report(&self, map: MutexGuard<'_, BucketMap>) {
        let subjects = map.len();
        drop(map);
        observe::buckets(self.name.as_str(), subjects);
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BucketMap> {
        // A panic under the lock cannot leave a partial change.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns an id that no bucket cache contains yet.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::caller::CurrentGrant;
    use crate::grant::{Grant, GrantHead};
    use crate::limit::{Charge, RateLimits};

    const QUOTA: Quota = Quota::per_minute(60).with_burst(5);

    fn limits() -> RateLimits {
        RateLimits::new(QUOTA).with_clock(|| Duration::ZERO)
    }

    /// Returns a grant that the test keeps, as a store in memory does.
    fn stored_grant(subject: &str) -> Arc<Grant<()>> {
        Arc::new(Grant::new(subject, ()))
    }

    fn charge(limits: &RateLimits, grant: &Arc<Grant<()>>, units: u32) -> u32 {
        limits.charge(&CurrentGrant::new(Arc::clone(grant)), Charge::Units(units)).remaining()
    }

    /// Returns the address of the head of the grant that contains the bucket of a subject, or else the bucket.
    fn slot(limits: &RateLimits, subject: &str) -> Result<*const GrantHead, Arc<SharedBucket>> {
        match limits.buckets().lock().get(&subject.into()).unwrap() {
            Slot::InGrant { head, .. } => Ok(head),
            Slot::Shared(bucket) => Err(Arc::clone(bucket)),
        }
    }

    fn owner<'a>(grant: &'a CurrentGrant, limit: &'a Limit) -> BucketOwner<'a> {
        let head = grant.erased().head();
        BucketOwner { subject: head.subject(), bucket_cache: head.bucket_cache(), grant: Some((grant.erased(), limit)) }
    }

    #[test]
    fn bucket_moves_out_of_its_grant_when_a_second_grant_is_charged() {
        let limits = limits();
        let [first, second, third] = ["s"; 3].map(stored_grant);
        let is_in = |grant: &Arc<Grant<()>>| slot(&limits, "s").is_ok_and(|own| std::ptr::eq(own, grant.head()));
        assert_eq!(charge(&limits, &first, 1), 4);
        assert!(is_in(&first));

        // A concurrent request with the same grant finds the bucket in the grant.
        let concurrent = CurrentGrant::new(Arc::clone(&first));
        let limit = QUOTA.into();
        let owner = owner(&concurrent, &limit);
        assert!(limits.buckets().find_or_create(owner, 0, &mut Removed::default()).1.is_none());
        assert!(is_in(&first));
        drop(concurrent);

        assert_eq!(charge(&limits, &second, 1), 3);
        let shared = slot(&limits, "s").err().unwrap();
        for (grant, left) in [(&third, 2), (&first, 1), (&second, 0)] {
            assert_eq!(charge(&limits, grant, 1), left);
            assert!(Arc::ptr_eq(&shared, &slot(&limits, "s").err().unwrap()), "created once");
        }
    }

    #[test]
    fn bucket_moves_to_the_new_grant_when_a_store_replaces_the_grant() {
        let limits = limits();
        let (old, new) = (stored_grant("s"), stored_grant("s"));
        assert_eq!(charge(&limits, &old, 2), 3);
        drop(old);
        assert_eq!(charge(&limits, &new, 1), 2);
        assert!(slot(&limits, "s").is_ok_and(|own| std::ptr::eq(own, new.head())));
    }

    #[test]
    fn bucket_moves_to_the_copy_that_replaces_its_grant() {
        let limits = limits();
        let old = stored_grant("s");
        assert_eq!(charge(&limits, &old, 2), 3);
        let new = Arc::new(Grant::copy_of(&old));
        drop(old);
        assert_eq!(charge(&limits, &new, 1), 2);
        assert!(slot(&limits, "s").is_ok_and(|own| std::ptr::eq(own, new.head())));
    }

    #[test]
    fn principals_of_several_types_share_the_bucket_of_their_subject() {
        let limits = limits();
        let first = stored_grant("s");
        let [other_type, alone] = ["s", "alone"].map(|subject| Arc::new(Grant::new(subject, 1_u8)));
        let charge_other =
            |grant: &Arc<Grant<u8>>| limits.charge(&CurrentGrant::new(Arc::clone(grant)), Charge::Units(1)).remaining();
        assert_eq!((charge(&limits, &first, 1), charge_other(&alone)), (4, 4));
        assert!(slot(&limits, "s").is_ok() && slot(&limits, "alone").is_ok());
        assert_eq!((charge_other(&other_type), charge(&limits, &first, 1)), (3, 2));
        assert!(slot(&limits, "s").is_err());
        assert_eq!(limits.subjects(), 2);
        drop((first, other_type, alone));
        limits.buckets().sweep(u64::MAX >> 2);
        assert_eq!(limits.subjects(), 0);
    }

    #[test]
    fn sweep_releases_the_policies_of_quotas_that_no_bucket_has() {
        let limits = limits();
        let grant = |burst| CurrentGrant::new(Grant::new(format!("{burst}"), ()).with_quota(QUOTA.with_burst(burst)));
        for burst in 100..200 {
            assert!(limits.charge(&grant(burst), Charge::Units(0)).is_admitted());
        }
        let kept = grant(7);
        assert!(limits.charge(&kept, Charge::Units(1)).is_admitted());
        limits.buckets().sweep(0);
        assert_eq!(limits.buckets().lock().policies(), 1);
    }

    #[test]
    fn new_grants_keep_their_bucket_after_a_change_of_the_default_quota() {
        let limits = limits();
        let grant = |subject: &str| Arc::new(Grant::new(subject, ()).with_quota(QUOTA.with_burst(9)));
        let (before, after) = (grant("before"), grant("after"));
        assert_eq!(charge(&limits, &before, 1), 8);
        limits.buckets().set_quota(QUOTA.with_burst(6));
        assert_eq!(charge(&limits, &after, 1), 8);
        // The policy of the new bucket has the new id of the limiter, although both grants have the same quota.
        assert!(limits.buckets().own(owner(&CurrentGrant::new(after), &QUOTA.into())).is_some());
    }

    #[test]
    fn shared_bucket_moves_into_a_grant_when_no_other_grant_references_it() {
        for is_referenced in [false, true] {
            let limits = limits();
            let old = CurrentGrant::new(Grant::new("s", ()).with_quota(QUOTA.with_burst(9)));
            assert!(limits.charge(&old, Charge::Units(1)).is_admitted());
            let _old = is_referenced.then_some(old);
            let new = stored_grant("s");
            assert_eq!(charge(&limits, &new, 1), 3);
            assert_eq!(slot(&limits, "s").is_err(), is_referenced);
        }
    }

    #[test]
    fn grant_that_only_the_request_holds_is_dropped_with_the_request() {
        let limits = limits();
        let grant = stored_grant("s");
        let dropped = Arc::downgrade(&grant);
        assert!(limits.charge(&CurrentGrant::new(grant), Charge::Units(1)).is_admitted());
        assert!(dropped.upgrade().is_none());
        assert_eq!(charge(&limits, &stored_grant("s"), 1), 3);
    }

    #[test]
    fn charge_of_a_cached_bucket_takes_no_lock() {
        let limits = limits();
        let [own, shared, other] = ["own", "shared", "shared"].map(stored_grant);
        for grant in [&own, &other, &shared] {
            charge(&limits, grant, 1);
        }
        let _lock = limits.buckets().lock();
        assert_eq!((charge(&limits, &own, 1), charge(&limits, &shared, 1)), (3, 2));
    }

    #[test]
    fn grant_with_a_frozen_bucket_reads_and_charges_the_new_bucket() {
        let limits = limits();
        let old = CurrentGrant::new(Grant::new("s", ()).with_quota(QUOTA.with_burst(9)));
        assert!(limits.charge(&old, Charge::Units(3)).is_admitted());
        assert_eq!(charge(&limits, &stored_grant("s"), 1), 1);
        assert_eq!(limits.peek(&old).remaining(), 5);
        assert_eq!(charge(&limits, &stored_grant("s"), 1), 0);
        assert_eq!(limits.charge(&old, Charge::Units(10)).remaining(), 4);
    }

    #[test]
    fn sweep_runs_when_the_number_of_buckets_has_doubled() {
        let limits = limits();
        let alive: Vec<_> = (0..64).map(|i| stored_grant(&format!("alive {i}"))).collect();
        for grant in &alive {
            charge(&limits, grant, 0);
        }
        // These buckets are full and not referenced.
        for i in 65..=128 {
            charge(&limits, &stored_grant(&format!("dropped {i}")), 0);
            assert_eq!(limits.subjects(), i);
        }
        charge(&limits, &stored_grant("one more"), 0);
        assert_eq!(limits.subjects(), alive.len() + 1);
    }

    #[test]
    fn sweep_drops_a_bucket_from_the_moment_it_is_full() {
        for (now, left) in [(0, 1), (999_999_999, 1), (1_000_000_000, 0)] {
            let limits = limits();
            assert!(limits.charge(&CurrentGrant::new(Grant::new("s", ())), Charge::Units(1)).is_admitted());
            limits.buckets().sweep(now);
            assert_eq!(limits.subjects(), left, "after {now} ns");
        }
    }
}
