//! [`BucketCache`]: the buckets that a grant keeps.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use once_cell::race::OnceBox;

use super::names::Subject;
use crate::quota::bucket::Bucket;

/// The buckets that one grant was charged to. Reading the first of them takes no lock.
///
/// Most requests find their bucket here, without a lookup in a map.
#[derive(Default)]
#[repr(C)]
pub(crate) struct BucketCache {
    /// The bucket that only this grant is charged to.
    own: OnceLock<Bucket>,
    shared: OnceBox<SharedBuckets>,
}

/// A bucket that several grants may be charged to.
pub(crate) struct SharedBucket {
    pub(crate) subject: Subject,
    pub(crate) bucket: Bucket,
}

/// A short linked list of shared buckets, with the id that their limiter had when they were added.
enum SharedBuckets {
    Element {
        limiter_id: u64,
        bucket: Arc<SharedBucket>,
        next: OnceBox<SharedBuckets>,
    },
    /// The end of the longest list. A long-lived grant can be charged after many changes of a quota.
    Further(Further),
}

type Further = Box<Mutex<Vec<(u64, Arc<SharedBucket>)>>>;

impl BucketCache {
    /// The length of the list. Each element is read without a lock.
    const LIST: usize = 8;

    #[inline]
    pub(crate) fn own(&self, limiter_id: u64) -> Option<&Bucket> {
        self.own.get().filter(|bucket| bucket.limiter_id() == limiter_id)
    }

    /// Starts to load the own bucket from memory. Nothing waits for it.
    #[inline]
    pub(crate) fn touch(&self) {
        std::hint::black_box(self.own.get().is_some());
    }

    /// Returns the own bucket, whatever its id.
    pub(crate) fn own_bucket(&self) -> Option<&Bucket> {
        self.own.get()
    }

    /// Sets the own bucket, or returns the bucket if there is already one.
    pub(crate) fn set_own(&self, bucket: Bucket) -> Result<(), Bucket> {
        self.own.set(bucket)
    }

    /// Calls `f` with each bucket of this limiter until `f` returns a value, which it does unless the bucket is frozen.
    #[inline]
    pub(crate) fn charge<T>(&self, limiter_id: u64, mut f: impl FnMut(&Bucket) -> Option<T>) -> Option<T> {
        match self.own(limiter_id).and_then(&mut f) {
            Some(done) => Some(done),
            None => self.charge_shared(limiter_id, &mut f),
        }
    }

    /// Not inlined, so that the compiler inlines `f` above.
    #[inline(never)]
    fn charge_shared<T>(&self, limiter_id: u64, f: &mut dyn FnMut(&Bucket) -> Option<T>) -> Option<T> {
        let mut place = &self.shared;
        loop {
            match place.get()? {
                SharedBuckets::Element { limiter_id: id, bucket, next } => {
                    if *id == limiter_id {
                        if let Some(done) = f(&bucket.bucket) {
                            return Some(done);
                        }
                    }
                    place = next;
                }
                SharedBuckets::Further(further) => {
                    return find(further, limiter_id).and_then(|shared| f(&shared.bucket));
                }
            }
        }
    }

    /// Adds a shared bucket.
    pub(crate) fn add_shared(&self, limiter_id: u64, bucket: &Arc<SharedBucket>) {
        let mut place = &self.shared;
        for length in 0.. {
            let element = place.get_or_init(|| {
                Box::new(match length < Self::LIST {
                    true => SharedBuckets::Element { limiter_id, bucket: Arc::clone(bucket), next: OnceBox::new() },
                    false => SharedBuckets::Further(Further::default()),
                })
            });
            match element {
                SharedBuckets::Element { limiter_id: id, bucket: cached, next } => {
                    if *id == limiter_id && Arc::ptr_eq(cached, bucket) {
                        return;
                    }
                    place = next;
                }
                SharedBuckets::Further(further) => {
                    let mut further = lock(further);
                    // Frozen buckets are never charged again. A bucket has another id after a change of the default quota.
                    let is_useful =
                        |cached: &Arc<SharedBucket>| !Arc::ptr_eq(cached, bucket) && cached.bucket.tat().is_some();
                    further.retain(|(id, cached)| *id != limiter_id && is_useful(cached));
                    further.push((limiter_id, Arc::clone(bucket)));
                    return;
                }
            }
        }
    }
}

#[cold]
fn find(further: &Further, limiter_id: u64) -> Option<Arc<SharedBucket>> {
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
    use super::*;
    use crate::quota::Quota;
    use crate::quota::bucket::LimiterPolicy;
    use crate::quota::policy::{Policy, PolicyName};

    #[test]
    fn cache_keeps_one_entry_for_each_bucket_after_many_changes() {
        let policy = Policy::named(&PolicyName::default_name(), Quota::per_minute(5));
        let policy = Arc::new(LimiterPolicy { limiter_id: 0, policy });
        let [bucket, other] = [(); 2]
            .map(|()| Arc::new(SharedBucket { subject: "s".into(), bucket: Bucket::with_tat(Arc::clone(&policy), 0) }));
        let cache = BucketCache::default();
        for id in 0..1_000 {
            cache.add_shared(2 * id, &bucket);
            cache.add_shared(2 * id + 1, &other);
            assert!(cache.charge(2 * id, |found| std::ptr::eq(found, &bucket.bucket).then_some(())).is_some());
        }
        let references = [&bucket, &other].map(Arc::strong_count);
        assert!(references.into_iter().all(|count| count <= 2 + BucketCache::LIST), "{references:?}");
    }
}
