//! [`BucketMap`]: the places of the buckets of all subjects under one limit.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;

use crate::grant::bucket_cache::SharedBucket;
use crate::grant::by_subject::GrantsBySubject;
use crate::grant::erased::Erased;
use crate::grant::{GrantHead, Subject};
use crate::quota::Quota;
use crate::quota::bucket::{Bucket, LimiterPolicy};

/// The places of the buckets of all subjects. An entry takes 9 bytes, because the subject is beside the bucket.
pub(super) struct BucketMap {
    /// The grants that contain their bucket, in a table for each type of principals. Most limiters see one type.
    in_grants: Vec<Box<dyn GrantsBySubject>>,
    shared: HashTable<Arc<SharedBucket>>,
    /// The policies of grants with their own quota.
    policies: HashMap<Quota, Arc<LimiterPolicy>>,
    /// Subjects may be chosen by clients, so their hash has random keys.
    keys: RandomState,
    /// The number of buckets at which the next sweep is due.
    sweep_at: usize,
}

/// The place of the bucket of one subject.
#[derive(Clone, Copy)]
pub(super) enum Slot<'a> {
    InGrant { head: &'a GrantHead, references: usize },
    Shared(&'a Arc<SharedBucket>),
}

impl<'a> Slot<'a> {
    pub(super) fn bucket(self) -> Option<&'a Bucket> {
        match self {
            Self::InGrant { head, .. } => head.bucket_cache().own_bucket(),
            Self::Shared(shared) => Some(&shared.bucket),
        }
    }

    /// Returns whether only the map holds the bucket.
    pub(super) fn is_unreferenced(self) -> bool {
        match self {
            Self::InGrant { references, .. } => references == 1,
            Self::Shared(shared) => Arc::strong_count(shared) == 1,
        }
    }
}

/// The grants that were removed from a map.
///
/// Drop this value without a lock: it may drop principals, whose `Drop` is arbitrary code of the service.
#[derive(Default)]
pub(super) struct Removed(Vec<Arc<dyn Erased>>);

impl BucketMap {
    /// The minimum number of buckets for an automatic sweep.
    const FEW: usize = 64;

    pub(super) fn new() -> Self {
        Self {
            in_grants: Vec::new(),
            shared: HashTable::new(),
            policies: HashMap::new(),
            keys: RandomState::new(),
            sweep_at: Self::FEW,
        }
    }

    pub(super) fn get(&self, subject: &Subject) -> Option<Slot<'_>> {
        let hash = self.keys.hash_one(subject);
        let in_grant = self.in_grants.iter().find_map(|table| table.get(hash, subject));
        match in_grant {
            Some((head, references)) => Some(Slot::InGrant { head, references }),
            None => self.shared.find(hash, |shared| shared.subject == *subject).map(Slot::Shared),
        }
    }

    /// Adds a grant that contains its bucket. The map has no other bucket of the subject.
    pub(super) fn insert_grant(&mut self, grant: &Arc<dyn Erased>) {
        let hash = |subject: &Subject| self.keys.hash_one(subject);
        let mut grant = Arc::clone(grant);
        for table in &mut self.in_grants {
            match table.insert(grant, &hash) {
                Ok(()) => return,
                Err(other) => grant = other,
            }
        }
        let mut table = grant.new_table();
        _ = table.insert(grant, &hash);
        self.in_grants.push(table);
    }

    /// Adds a bucket outside of grants. The map has no other bucket of the subject.
    pub(super) fn insert_shared(&mut self, shared: &Arc<SharedBucket>) {
        let hash = |shared: &Arc<SharedBucket>| self.keys.hash_one(&shared.subject);
        self.shared.insert_unique(hash(shared), Arc::clone(shared), hash);
    }

    pub(super) fn remove(&mut self, subject: &Subject, removed: &mut Removed) {
        let hash = self.keys.hash_one(subject);
        removed.0.extend(self.in_grants.iter_mut().find_map(|table| table.remove(hash, subject)));
        if let Ok(entry) = self.shared.find_entry(hash, |shared| shared.subject == *subject) {
            entry.remove();
        }
    }

    /// Returns the policy of grants with this quota. Their buckets share it.
    pub(super) fn policy(&mut self, quota: Quota, new: impl FnOnce() -> LimiterPolicy) -> Arc<LimiterPolicy> {
        Arc::clone(self.policies.entry(quota).or_insert_with(|| Arc::new(new())))
    }

    /// Forgets the policies, because the limiter has another id.
    pub(super) fn clear_policies(&mut self) {
        self.policies.clear();
    }

    /// Sweeps if the number of buckets has doubled since the last sweep.
    pub(super) fn sweep_if_due(&mut self, now: u64, removed: &mut Removed) {
        if self.len() >= self.sweep_at {
            self.sweep(now, removed);
            // Twice the remaining number, so that the cost of a sweep is amortised over as many new buckets.
            self.sweep_at = (self.len() * 2).max(Self::FEW);
        }
    }

    /// Drops all buckets that are full and not referenced.
    pub(super) fn sweep(&mut self, now: u64, removed: &mut Removed) {
        let hash = |subject: &Subject| self.keys.hash_one(subject);
        let is_used = |bucket: &Bucket| bucket.is_used(now);
        for table in &mut self.in_grants {
            let mut is_removed = |head: &GrantHead, is_unreferenced: bool| {
                is_unreferenced && !head.bucket_cache().own_bucket().is_some_and(is_used)
            };
            removed.0.extend(table.remove_if(&mut is_removed, &hash));
        }
        self.in_grants.retain(|table| table.len() != 0);
        // `get_mut` proves that there are no other references, and makes their last charge visible to this thread.
        self.shared.retain(|shared| Arc::get_mut(shared).is_none_or(|shared| is_used(&shared.bucket)));
        self.shared.shrink_to(self.shared.len() * 2, |shared| hash(&shared.subject));
        self.policies.retain(|_, policy| Arc::strong_count(policy) > 1);
    }

    pub(super) fn len(&self) -> usize {
        self.in_grants.iter().map(|table| table.len()).sum::<usize>() + self.shared.len()
    }

    #[cfg(test)]
    pub(super) fn policies(&self) -> usize {
        self.policies.len()
    }
}
