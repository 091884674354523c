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

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};

use arc_swap::ArcSwap;

use super::refunds::{RefundTotal, RefundTotals};
use crate::grant::Subject;
use crate::grant::erased::Erased;
use crate::observe;
use crate::quota::Quota;
use crate::quota::bucket::{Bucket, BucketCache};
use crate::quota::policy::{Policy, PolicyName};
use crate::sync::{Mutex, MutexGuard};

/// The owner of a bucket: the subject, its quota, and the cache of its grant.
#[derive(Clone, Copy)]
pub(super) struct BucketOwner<'a> {
    pub(super) subject: &'a Subject,
    pub(super) bucket_cache: &'a BucketCache,
    pub(super) quota: Option<Quota>,
    /// The grant that contains the bucket cache, if there is one.
    pub(super) grant: Option<&'a Arc<dyn Erased>>,
}

/// The buckets of all subjects under one limit.
pub(super) struct Buckets {
    /// Identifies the buckets of the current default policy in bucket caches. Changes with the policy, under the lock of the map.
    id: AtomicU64,
    name: PolicyName,
    /// The policy of grants without their own quota. Changed under the lock of the map.
    default: ArcSwap<Policy>,
    map: Mutex<Map>,
    /// Created with the first charge that can be refunded.
    refund_totals: OnceLock<Arc<RefundTotals<Subject>>>,
}

#[derive(Default)]
struct Map {
    slots: HashMap<Subject, Slot>,
    /// The number of buckets at which the next sweep is due.
    sweep_at: usize,
}

/// The place of the bucket of one subject.
#[derive(Clone)]
enum Slot {
    InGrant(Arc<dyn Erased>),
    Shared(Arc<Bucket>),
}

impl Slot {
    fn bucket(&self) -> Option<&Bucket> {
        match self {
            Self::InGrant(grant) => grant.head().bucket_cache().own_bucket(),
            Self::Shared(bucket) => Some(bucket),
        }
    }

    /// Returns whether only the map holds the bucket.
    fn is_unreferenced(&self) -> bool {
        match self {
            Self::InGrant(grant) => Arc::strong_count(grant) == 1,
            Self::Shared(bucket) => Arc::strong_count(bucket) == 1,
        }
    }

    /// Returns whether the bucket is referenced elsewhere, or is not full.
    fn is_needed(&mut self, now: u64) -> bool {
        // `get_mut` proves that there are no other references, and makes their last charge visible to this thread.
        let is_unique = match self {
            Self::InGrant(grant) => Arc::get_mut(grant).is_some(),
            Self::Shared(bucket) => Arc::get_mut(bucket).is_some(),
        };
        !is_unique || self.bucket().is_some_and(|bucket| bucket.is_used(now))
    }
}

/// The slots that were removed from a map.
///
/// Drop this value without a lock: the slots may drop principals, whose `Drop` is arbitrary code of the service.
#[derive(Default)]
pub(super) struct Removed(Vec<Slot>);

impl Buckets {
    /// The minimum number of buckets for an automatic sweep.
    const FEW: usize = 64;

    pub(super) fn new(name: PolicyName, default: Quota) -> Self {
        Self {
            id: AtomicU64::new(next_id()),
            default: ArcSwap::from_pointee(Policy::named(&name, default)),
            name,
            map: Mutex::new(Map { sweep_at: Self::FEW, ..Map::default() }),
            refund_totals: OnceLock::new(),
        }
    }

    /// Returns the total of refunds to the bucket of a subject.
    pub(super) fn refund_total(&self, subject: &Subject) -> Arc<RefundTotal<Subject>> {
        self.refund_totals.get_or_init(Arc::default).of(subject.clone())
    }

    /// Returns the policy of grants without their own quota.
    pub(super) fn policy(&self) -> Policy {
        Policy::clone(&self.default.load())
    }

    /// Returns the quota of grants without their own quota.
    pub(super) fn quota(&self) -> Quota {
        self.default.load().quota()
    }

    /// Changes the quota of grants without their own quota. Each bucket follows when it is charged or read next.
    pub(super) fn set_quota(&self, quota: Quota) {
        // While Redis is unavailable, each charge calls this, usually without a change.
        if self.quota() == quota {
            return;
        }
        let _map = self.lock();
        if self.quota() != quota {
            self.default.store(Arc::new(Policy::named(&self.name, quota)));
            self.id.store(next_id(), Ordering::Release);
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
                    f(&bucket)
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
            let bucket = map.slots.get(owner.subject).and_then(Slot::bucket);
            // Buckets in the map are not frozen.
            _ = bucket.and_then(|bucket| bucket.refund(quota, ns));
        }
    }

    /// Returns the time until the bucket of a subject is full, by the units of this quota. Creates and changes no bucket.
    pub(super) fn full_in(&self, subject: &Subject, quota: Quota, now: u64) -> u64 {
        let map = self.lock();
        map.slots.get(subject).and_then(Slot::bucket).map_or(0, |bucket| bucket.full_in(quota, now))
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
        let Some(slot) = map.slots.remove(subject) else { return 0 };
        let used_ns = slot.bucket().map_or(0, |bucket| bucket.discard(now));
        removed.0.push(slot);
        self.unlock_and_report(map);
        used_ns
    }

    /// Finds or creates the bucket of the owner. Returns the current id, and `None` if the bucket is stored in the owner's cache.
    #[cold]
    fn find_or_create(&self, owner: BucketOwner<'_>, now: u64, removed: &mut Removed) -> (u64, Option<Arc<Bucket>>) {
        let mut map = self.lock();
        let (id, default) = (self.id.load(Ordering::Relaxed), self.policy());
        let quota = owner.quota.unwrap_or(default.quota());
        if map.slots.len() >= map.sweep_at {
            map.sweep(now, removed);
            // Twice the remaining number, so that the cost of a sweep is amortised over as many new buckets.
            map.sweep_at = (map.slots.len() * 2).max(Self::FEW);
        }
        let slot = map.slots.get(owner.subject);
        match (slot, owner.grant) {
            (Some(Slot::Shared(bucket)), _) if bucket.policy().quota() == quota => {
                return (id, Some(Arc::clone(bucket)));
            }
            // A concurrent request with the same grant has created the bucket.
            (Some(Slot::InGrant(slot)), Some(grant))
                if std::ptr::addr_eq(Arc::as_ptr(slot), Arc::as_ptr(grant)) && owner.bucket_cache.own(id).is_some() =>
            {
                return (id, None);
            }
            _ => {}
        }
        let policy = match quota == default.quota() {
            true => default,
            false => Policy::named(&self.name, quota),
        };
        let is_unreferenced = slot.is_none_or(Slot::is_unreferenced);
        let tat = slot.and_then(Slot::bucket).map_or(0, |bucket| bucket.freeze(&policy, now));
        let bucket = Bucket::with_tat(policy, tat);
        // A grant that only the request holds is dropped with the request, so it cannot keep a bucket.
        let grant = owner.grant.filter(|grant| is_unreferenced && Arc::strong_count(grant) > 1);
        let stored = match grant {
            Some(grant) => owner.bucket_cache.set_own(id, bucket).map(|()| Slot::InGrant(Arc::clone(grant))),
            None => Err(bucket),
        };
        let (slot, shared) = match stored {
            Ok(slot) => (slot, None),
            Err(bucket) => {
                let bucket = Arc::new(bucket);
                (Slot::Shared(Arc::clone(&bucket)), Some(bucket))
            }
        };
        removed.0.extend(map.slots.insert(owner.subject.clone(), slot));
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
    fn unlock_and_report(&self, map: MutexGuard<'_, Map>) {
        let subjects = map.slots.len();
        drop(map);
        observe::buckets(self.name.as_str(), subjects);
    }

    pub(super) fn len(&self) -> usize {
        self.lock().slots.len()
    }

    fn lock(&self) -> MutexGuard<'_, Map> {
        // A panic under the lock cannot leave a partial change.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Map {
    fn sweep(&mut self, now: u64, removed: &mut Removed) {
        self.slots.retain(|_, slot| {
            let is_needed = slot.is_needed(now);
            if !is_needed {
                removed.0.push(slot.clone());
            }
            is_needed
        });
        self.slots.shrink_to(self.slots.len() * 2);
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
    use crate::grant::Grant;
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

    /// Returns the address of the grant that contains the bucket of a subject, or else the bucket.
    fn slot(limits: &RateLimits, subject: &str) -> Result<*const (), Arc<Bucket>> {
        match limits.buckets().lock().slots[&Subject::from(subject)].clone() {
            Slot::InGrant(grant) => Ok(Arc::as_ptr(&grant).cast()),
            Slot::Shared(bucket) => Err(bucket),
        }
    }

    #[test]
    fn bucket_moves_out_of_its_grant_when_a_second_grant_is_charged() {
        let limits = limits();
        let [first, second, third] = ["s"; 3].map(stored_grant);
        let is_in = |grant: &Arc<Grant<()>>| slot(&limits, "s").is_ok_and(|own| own == Arc::as_ptr(grant).cast());
        assert_eq!(charge(&limits, &first, 1), 4);
        assert!(is_in(&first));

        // A concurrent request with the same grant finds the bucket in the grant.
        let concurrent = CurrentGrant::new(Arc::clone(&first));
        let head = concurrent.erased().head();
        let grant = Some(concurrent.erased());
        let owner = BucketOwner { subject: head.subject(), bucket_cache: head.bucket_cache(), quota: None, grant };
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
        assert_eq!(slot(&limits, "s").ok(), Some(Arc::as_ptr(&new).cast()));
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
