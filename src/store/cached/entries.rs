//! The entries of a cache, and their invalidation.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, RandomState};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter};

use crate::grant::{Grant, GrantId, Subject};
use crate::store::Invalidation;
use crate::store::memory::table::DigestHasher;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, Stepped, stepped};
use crate::token::TokenDigest;

/// The entries of a cache.
pub(super) struct Entries<P> {
    /// Contains only digests that the store knows, which clients cannot choose. Their own bytes serve as the hash.
    grants: Table<Arc<Entry<P>>, BuildHasherDefault<DigestHasher>>,
    /// Contains digests that clients choose. A hash with random keys prevents chosen collisions.
    unknown: Table<Unknown, RandomState>,
    index: Mutex<Index>,
    /// Increases with every invalidation, under the lock of `index`. An answer has the epoch in which its lookup started.
    epoch: AtomicU64,
    /// Grants of earlier epochs are removed.
    cleared_before: AtomicU64,
    /// Grants of earlier epochs may be outdated. They are served only while the store fails. Never less than `cleared_before`.
    outdated_before: AtomicU64,
    /// Negative entries of earlier epochs are removed.
    unknown_cleared_before: AtomicU64,
}

/// A read takes a shared lock, as in `MemoryStore`, and marks the entry as used.
type Table<V, S> = Stepped<Cache<TokenDigest, V, UnitWeighter, S>>;

/// A cached grant.
pub(super) struct Entry<P> {
    grant: Arc<Grant<P>>,
    /// The end of `ttl`, or the expiry of the grant if that is earlier.
    fresh_until: Duration,
    /// The expiry of the grant.
    expires_at: Duration,
    started: Started,
    removed: [RemovedFlag; 2],
}

/// The start of a lookup. Newer answers replace older ones in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Started {
    pub(super) epoch: u64,
    pub(super) at: Duration,
}

#[derive(Clone, Copy)]
struct Unknown {
    until: Duration,
    started: Started,
}

/// True if a grant or a subject was removed. Its entries share one flag, so that a removal does not have to find them.
type RemovedFlag = Arc<AtomicBool>;

/// Finds the entries of grants and subjects.
#[derive(Default)]
struct Index {
    grants: HashMap<GrantId, Weak<AtomicBool>>,
    subjects: HashMap<Subject, Weak<AtomicBool>>,
    removals: Removals,
}

/// The epochs of the last removal of tokens, grants and subjects, by a hash with random keys. After a collision, a key appears to
/// be removed later than it was. The cost is one more lookup, because the answer is not cached.
struct Removals {
    epochs: Box<[u64]>,
    keys: RandomState,
}

impl Default for Removals {
    fn default() -> Self {
        Self { epochs: vec![0; 4_096].into(), keys: RandomState::new() }
    }
}

impl Removals {
    fn last(&self, key: impl Hash) -> u64 {
        self.epochs[self.slot(key)]
    }

    fn set(&mut self, key: impl Hash, epoch: u64) {
        let slot = self.slot(key);
        self.epochs[slot] = epoch;
    }

    fn slot(&self, key: impl Hash) -> usize {
        self.keys.hash_one(key) as usize % self.epochs.len()
    }
}

/// The cached answer for a token.
pub(super) enum Found<P> {
    Grant(Arc<Entry<P>>),
    Unknown,
    /// No answer that may be served without a lookup.
    Nothing,
}

impl<P: Send + Sync + 'static> Entries<P> {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            grants: table(capacity),
            unknown: table(capacity),
            index: Mutex::default(),
            epoch: AtomicU64::new(0),
            cleared_before: AtomicU64::new(0),
            outdated_before: AtomicU64::new(0),
            unknown_cleared_before: AtomicU64::new(0),
        }
    }

    /// Returns the current epoch. Call this before a lookup starts.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn len(&self) -> usize {
        self.grants.len()
    }

    /// Returns the entry of a grant unless it was removed, whatever its age, even if it may be outdated.
    pub(super) fn get(&self, digest: &TokenDigest) -> Option<Arc<Entry<P>>> {
        let entry = self.grants.get(digest)?;
        (entry.started.epoch >= self.cleared_before.load(Ordering::Acquire) && !entry.is_removed()).then_some(entry)
    }

    /// Returns an entry that no invalidation has made outdated. The caller checks the age of a grant.
    #[inline]
    pub(super) fn get_current(&self, digest: &TokenDigest, now: Duration) -> Found<P> {
        if let Some(entry) = self.grants.get(digest) {
            if entry.started.epoch >= self.outdated_before.load(Ordering::Acquire) && !entry.is_removed() {
                return Found::Grant(entry);
            }
        }
        match self.unknown.get(digest) {
            Some(unknown)
                if now < unknown.until
                    && unknown.started.epoch >= self.unknown_cleared_before.load(Ordering::Acquire) =>
            {
                Found::Unknown
            }
            _ => Found::Nothing,
        }
    }

    /// Caches a grant, unless it was removed after its lookup started. A grant that may be outdated is cached as well, because it
    /// is newer than the entry that it replaces.
    pub(super) fn insert(
        &self,
        digest: TokenDigest,
        started: Started,
        grant: Arc<Grant<P>>,
        fresh_until: Duration,
        expires_at: Duration,
    ) {
        // Declared before the guard, so that principals are dropped after the lock: their code is not ours.
        let (_replaced, mut evicted) = (self.grants.peek(&digest), Default::default());
        let _older;
        let mut index = self.index();
        let removals =
            [index.removals.last(digest), index.removals.last(grant.id()), index.removals.last(grant.subject())];
        let cleared = self.cleared_before.load(Ordering::Relaxed);
        if removals.iter().any(|removal| started.epoch < cleared.max(*removal)) {
            // Remove the older entry as well: the store has returned a newer grant.
            _older = self.take_older(&digest, started);
            return;
        }
        let is_older = self.grants.peek(&digest).is_some_and(|entry| entry.started > started)
            || self.unknown.peek(&digest).is_some_and(|unknown| unknown.started > started);
        if is_older {
            return;
        }
        let removed = [flag(&mut index.grants, grant.id()), flag(&mut index.subjects, grant.subject())];
        let entry = Arc::new(Entry { grant, fresh_until, expires_at, started, removed });
        self.grants.insert_with_lifecycle(digest, entry, &mut evicted);
        self.unknown.remove(&digest);
    }

    /// Caches a negative answer, and removes an older grant.
    pub(super) fn insert_unknown(&self, digest: TokenDigest, started: Started, until: Duration) {
        let _older;
        let index = self.index();
        // Even if this answer is too old to be cached: the cost is at most one more lookup.
        _older = self.take_older(&digest, started);
        let removal = index.removals.last(digest).max(self.unknown_cleared_before.load(Ordering::Relaxed));
        if started.epoch >= removal && self.grants.peek(&digest).is_none() {
            self.unknown.insert(digest, Unknown { until, started });
        }
    }

    /// Removes an older grant of a token that the store could not check.
    pub(super) fn remove(&self, digest: &TokenDigest, started: Started) {
        let _older;
        let _index = self.index();
        _older = self.take_older(digest, started);
    }

    /// Removes an entry that is not newer. Call this under the lock of `index`, and drop the result after the lock.
    #[must_use]
    fn take_older(&self, digest: &TokenDigest, started: Started) -> Option<(TokenDigest, Arc<Entry<P>>)> {
        self.grants.peek(digest).filter(|entry| entry.started <= started)?;
        self.grants.remove(digest)
    }

    /// Applies a change.
    pub(super) fn invalidate(&self, change: &Invalidation) {
        let _taken;
        let mut index = self.index();
        let epoch = self.epoch.load(Ordering::Relaxed) + 1;
        match change {
            Invalidation::Token(digest) => {
                index.removals.set(digest, epoch);
                _taken = self.grants.remove(digest);
                self.unknown.remove(digest);
            }
            Invalidation::Grant(id) => {
                index.removals.set(id, epoch);
                mark_removed(index.grants.remove(id));
            }
            Invalidation::Subject(subject) => {
                index.removals.set(subject, epoch);
                mark_removed(index.subjects.remove(subject));
            }
            Invalidation::Added => self.unknown_cleared_before.store(epoch, Ordering::Release),
            Invalidation::Everything => {
                self.outdated_before.store(epoch, Ordering::Release);
                self.unknown_cleared_before.store(epoch, Ordering::Release);
            }
        }
        self.epoch.store(epoch, Ordering::Release);
        drop(index);
        // No lookup sees these entries any more. This frees their memory, and may remove newer ones too.
        if matches!(change, Invalidation::Added | Invalidation::Everything) {
            self.unknown.clear();
        }
    }

    /// Removes all entries.
    pub(super) fn clear(&self) {
        let mut index = self.index();
        let epoch = self.epoch.load(Ordering::Relaxed) + 1;
        (index.grants, index.subjects) = Default::default();
        for start in [&self.cleared_before, &self.outdated_before, &self.unknown_cleared_before, &self.epoch] {
            start.store(epoch, Ordering::Release);
        }
        drop(index);
        self.grants.clear();
        self.unknown.clear();
    }

    /// Locks the index. Never run code of a principal under this lock.
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates a table in shards, each with its own lock.
fn table<V: Clone, S: BuildHasher + Clone + Default>(capacity: u64) -> Table<V, S> {
    let expected = usize::try_from(capacity).unwrap_or(usize::MAX).min(MAX_EXPECTED);
    let mut options = OptionsBuilder::new();
    options.weight_capacity(capacity).estimated_items_capacity(expected).shards(SHARDS);
    stepped(match options.build() {
        Ok(options) => Cache::with_options(options, UnitWeighter, S::default(), DefaultLifecycle::default()),
        // Unreachable: both capacities are set.
        Err(_) => Cache::with(expected, capacity, UnitWeighter, S::default(), DefaultLifecycle::default()),
    })
}

/// As in `MemoryStore`.
const SHARDS: usize = 64;
/// Limits the memory of the cache for hashes of evicted entries, which is half of the expected items.
const MAX_EXPECTED: usize = 1 << 20;

/// Returns the flag that all entries of a grant or subject share.
fn flag<K: Clone + Eq + Hash>(flags: &mut HashMap<K, Weak<AtomicBool>>, key: &K) -> RemovedFlag {
    if let Some(flag) = flags.get(key).and_then(Weak::upgrade) {
        return flag;
    }
    // Drop the flags without entries before the table grows.
    if flags.len() == flags.capacity() {
        flags.retain(|_, flag| flag.strong_count() > 0);
        flags.reserve(flags.len());
    }
    let flag = RemovedFlag::default();
    flags.insert(key.clone(), Arc::downgrade(&flag));
    flag
}

fn mark_removed(flag: Option<Weak<AtomicBool>>) {
    if let Some(flag) = flag.and_then(|flag| flag.upgrade()) {
        flag.store(true, Ordering::Release);
    }
}

impl<P> Entry<P> {
    #[inline]
    fn is_removed(&self) -> bool {
        self.removed.iter().any(|flag| flag.load(Ordering::Acquire))
    }

    /// Returns whether the entry is fresh, or stale for less than `stale` with a grant that has not expired.
    #[inline]
    pub(super) fn is_usable(&self, now: Duration, stale: Duration) -> bool {
        now < self.fresh_until || (now < self.expires_at && now.saturating_sub(self.fresh_until) < stale)
    }

    #[inline]
    pub(super) fn grant(&self) -> Arc<Grant<P>> {
        Arc::clone(&self.grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_without_entries_are_dropped_before_the_table_grows() {
        let mut flags = HashMap::new();
        let kept = flag(&mut flags, &0);
        (1..10_000).for_each(|id| drop(flag(&mut flags, &id)));
        assert!(flags.capacity() < 100, "{}", flags.capacity());
        assert!(Arc::ptr_eq(&kept, &flag(&mut flags, &0)));
    }
}
