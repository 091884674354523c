//! [`Bucket`]: the state of one subject under one policy, and [`BucketCache`]: the buckets that a grant keeps.

use std::num::NonZeroU32;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::cell::{FROZEN, Outcome, carry_over, decide, read, refund, swap};
use super::policy::Policy;
use super::quota::Quota;
use crate::sync::InMemoryState;

/// The bucket of one subject under one policy.
pub(crate) struct Bucket {
    cell: InMemoryState,
    policy: Policy,
}

impl Bucket {
    /// Creates a bucket with this theoretical arrival time.
    pub(crate) fn with_tat(policy: Policy, tat: u64) -> Self {
        let cell = InMemoryState::default();
        swap(&cell, tat);
        Self { cell, policy }
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Charges the bucket, unless the bucket is frozen.
    #[inline]
    pub(crate) fn charge(&self, now: u64, cost: NonZeroU32) -> Outcome {
        decide(&self.cell, self.policy.quota(), now, cost)
    }

    /// Returns whether the bucket is not full at this time. A frozen bucket never becomes full.
    pub(crate) fn is_used(&self, now: u64) -> bool {
        read(&self.cell) > now
    }

    /// Returns the theoretical arrival time, or `None` if the bucket is frozen.
    pub(crate) fn tat(&self) -> Option<u64> {
        let tat = read(&self.cell);
        (tat < FROZEN).then_some(tat)
    }

    /// Returns a copy for a decision that must not change this bucket, or `None` if the bucket is frozen.
    pub(crate) fn copy(&self) -> Option<Self> {
        Some(Self::with_tat(self.policy.clone(), self.tat()?))
    }

    /// Refunds this many nanoseconds of a charge under this quota. Returns `None` if the bucket is frozen.
    ///
    /// A bucket of another quota does not change: the value of the charge is unknown after a change of plan.
    pub(crate) fn refund(&self, quota: Quota, ns: u64) -> Option<()> {
        match self.policy.quota() == quota {
            true => refund(&self.cell, ns).then_some(()),
            false => self.tat().map(drop),
        }
    }

    /// Returns the time until the bucket is full, with the same number of used units under another quota.
    pub(crate) fn full_in(&self, quota: Quota, now: u64) -> u64 {
        let used_ns = read(&self.cell).saturating_sub(now);
        carry_over(used_ns, self.policy.quota().interval_ns(), quota)
    }

    /// Freezes this bucket permanently. Returns the time until it would have been full.
    pub(crate) fn discard(&self, now: u64) -> u64 {
        swap(&self.cell, FROZEN).saturating_sub(now)
    }

    /// Freezes this bucket. Returns the theoretical arrival time with the same number of used units under another policy,
    /// rounded up.
    pub(crate) fn freeze(&self, policy: &Policy, now: u64) -> u64 {
        let used_ns = swap(&self.cell, FROZEN).saturating_sub(now);
        let carried_ns = carry_over(used_ns, self.policy.quota().interval_ns(), policy.quota());
        now.saturating_add(carried_ns).min(FROZEN - 1)
    }
}

/// The buckets that one grant was charged to. Reading the first of them takes no lock.
///
/// Most requests find their bucket here, without a lookup in a map.
#[derive(Default)]
#[repr(C)]
pub(crate) struct BucketCache {
    /// The bucket that only this grant is charged to, with the id of its limiter.
    own: OnceLock<(u64, Bucket)>,
    shared: SharedBuckets,
}

/// A short linked list of buckets that other grants may be charged to as well.
#[derive(Default)]
struct SharedBuckets {
    here: OnceLock<(u64, Arc<Bucket>)>,
    next: OnceLock<Box<Next>>,
}

enum Next {
    Element(SharedBuckets),
    /// The end of the longest list. A long-lived grant can be charged after many changes of a quota.
    Further(Mutex<Vec<(u64, Arc<Bucket>)>>),
}

impl BucketCache {
    /// The length of the list. Each element is read without a lock.
    const LIST: usize = 8;

    #[inline]
    pub(crate) fn own(&self, limiter_id: u64) -> Option<&Bucket> {
        self.own.get().filter(|(id, _)| *id == limiter_id).map(|(_, bucket)| bucket)
    }

    /// Returns the own bucket, whatever its id.
    pub(crate) fn own_bucket(&self) -> Option<&Bucket> {
        self.own.get().map(|(_, bucket)| bucket)
    }

    /// Sets the own bucket, or returns the bucket if there is already one.
    pub(crate) fn set_own(&self, limiter_id: u64, bucket: Bucket) -> Result<(), Bucket> {
        self.own.set((limiter_id, bucket)).map_err(|(_, bucket)| bucket)
    }

    /// Calls `f` with each bucket of this limiter until `f` returns a value, which it does unless the bucket is frozen.
    #[inline]
    pub(crate) fn charge<T>(&self, limiter_id: u64, mut f: impl FnMut(&Bucket) -> Option<T>) -> Option<T> {
        if let Some(done) = self.own(limiter_id).and_then(&mut f) {
            return Some(done);
        }
        let mut element = &self.shared;
        loop {
            let (id, bucket) = element.here.get()?;
            if *id == limiter_id {
                if let Some(done) = f(bucket) {
                    return Some(done);
                }
            }
            match &**element.next.get()? {
                Next::Element(next) => element = next,
                Next::Further(further) => return find(further, limiter_id).and_then(|bucket| f(&bucket)),
            }
        }
    }

    /// Adds a shared bucket.
    pub(crate) fn add_shared(&self, limiter_id: u64, bucket: &Arc<Bucket>) {
        let mut element = &self.shared;
        for length in 1.. {
            let (id, cached) = element.here.get_or_init(|| (limiter_id, Arc::clone(bucket)));
            if *id == limiter_id && Arc::ptr_eq(cached, bucket) {
                return;
            }
            let next = element.next.get_or_init(|| {
                Box::new(match length < Self::LIST {
                    true => Next::Element(SharedBuckets::default()),
                    false => Next::Further(Mutex::default()),
                })
            });
            match &**next {
                Next::Element(next) => element = next,
                Next::Further(further) => {
                    let mut further = lock(further);
                    // Frozen buckets are never charged again. A bucket has another id after a change of the default quota.
                    let is_useful = |cached: &Bucket| !ptr::eq(cached, &**bucket) && cached.tat().is_some();
                    further.retain(|(id, cached)| *id != limiter_id && is_useful(cached));
                    further.push((limiter_id, Arc::clone(bucket)));
                    return;
                }
            }
        }
    }
}

#[cold]
fn find(further: &Mutex<Vec<(u64, Arc<Bucket>)>>, limiter_id: u64) -> Option<Arc<Bucket>> {
    lock(further).iter().find(|(id, _)| *id == limiter_id).map(|(_, bucket)| Arc::clone(bucket))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clone for BucketCache {
    /// Returns an empty cache. A cloned grant looks up its bucket itself.
    fn clone(&self) -> Self {
        Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::PolicyName;
    use super::*;

    #[test]
    fn cache_keeps_one_entry_for_each_bucket_after_many_changes() {
        let policy = Policy::named(&PolicyName::default_name(), Quota::per_minute(5));
        let [bucket, other] = [(); 2].map(|()| Arc::new(Bucket::with_tat(policy.clone(), 0)));
        let cache = BucketCache::default();
        for id in 0..1_000 {
            cache.add_shared(2 * id, &bucket);
            cache.add_shared(2 * id + 1, &other);
            assert!(cache.charge(2 * id, |found| ptr::eq(found, &*bucket).then_some(())).is_some());
        }
        let references = [&bucket, &other].map(Arc::strong_count);
        assert!(references.into_iter().all(|count| count <= 2 + BucketCache::LIST), "{references:?}");
    }
}
