use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter};

use crate::grant::{Grant, GrantId, Subject};
use crate::store::Invalidation;
use crate::store::memory::DigestHasher;
use crate::token::TokenDigest;

/// What a cache remembers.
pub(super) struct Memory<P> {
    /// Only digests that a store has vouched for, so that nobody can choose them: their own bytes are the hash.
    known: Table<Arc<Known<P>>, BuildHasherDefault<DigestHasher>>,
    /// Those of strangers, by a hash that they do not know.
    unknown: Table<Unknown, RandomState>,
    fates: Mutex<Fates>,
    /// Grows with every invalidation, under the lock of `fates`. An answer has the epoch in which the store was asked.
    epoch: AtomicU64,
    /// Grants of earlier epochs were removed.
    cleared: AtomicU64,
    /// Grants of earlier epochs may be outdated, and are for use while the store fails. Never less than `cleared`.
    doubted: AtomicU64,
    /// "Unknown" of earlier epochs was removed.
    unknown_since: AtomicU64,
}

/// A use of what is in there is a lock for readers, as in `MemoryStore`, and a mark on the entry.
type Table<V, S> = Cache<TokenDigest, V, UnitWeighter, S>;

pub(super) struct Known<P> {
    grant: Arc<Grant<P>>,
    /// When it is old.
    until: Duration,
    /// When the grant expires.
    ends: Duration,
    asked: Asked,
    fates: [Fate; 2],
}

/// When a store was asked: the order in which answers replace each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asked {
    pub(super) epoch: u64,
    pub(super) at: Duration,
}

#[derive(Clone, Copy)]
struct Unknown {
    until: Duration,
    epoch: u64,
}

/// Whether a grant, or a subject, was forgotten. All entries of it share one, so that nobody has to find them.
type Fate = Arc<AtomicBool>;

#[derive(Default)]
struct Fates {
    grants: HashMap<GrantId, Weak<AtomicBool>>,
    subjects: HashMap<Subject, Weak<AtomicBool>>,
    removed: Removed,
}

/// The epochs in which tokens, grants and subjects were removed last, by a hash with random keys. Those that share a place only
/// appear to be removed later than they were: an answer is then not kept, and the store is asked once more.
struct Removed {
    epochs: Box<[u64]>,
    keys: RandomState,
}

impl Default for Removed {
    fn default() -> Self {
        Self { epochs: vec![0; 4_096].into(), keys: RandomState::new() }
    }
}

impl Removed {
    fn last(&self, key: impl Hash) -> u64 {
        self.epochs[self.place(key)]
    }

    fn set(&mut self, key: impl Hash, epoch: u64) {
        let place = self.place(key);
        self.epochs[place] = epoch;
    }

    fn place(&self, key: impl Hash) -> usize {
        self.keys.hash_one(key) as usize % self.epochs.len()
    }
}

pub(super) enum Remembered<P> {
    Known(Arc<Known<P>>),
    Unknown,
    /// Nothing that may be used without asking the store.
    Nothing,
}

impl<P: Send + Sync + 'static> Memory<P> {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            known: table(capacity),
            unknown: table(capacity),
            fates: Mutex::default(),
            epoch: AtomicU64::new(0),
            cleared: AtomicU64::new(0),
            doubted: AtomicU64::new(0),
            unknown_since: AtomicU64::new(0),
        }
    }

    /// Has to be read before a store is asked.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// A grant, however old, also if it may be outdated, unless it was removed.
    pub(super) fn known(&self, digest: &TokenDigest) -> Option<Arc<Known<P>>> {
        let known = self.known.get(digest)?;
        (known.asked.epoch >= self.cleared.load(Ordering::Acquire) && !known.is_removed()).then_some(known)
    }

    /// What may be used without asking the store, if it is not too old.
    #[inline]
    pub(super) fn recall(&self, digest: &TokenDigest, now: Duration) -> Remembered<P> {
        if let Some(known) = self.known.get(digest) {
            if known.asked.epoch >= self.doubted.load(Ordering::Acquire) && !known.is_removed() {
                return Remembered::Known(known);
            }
        }
        match self.unknown.get(digest) {
            Some(unknown) if now < unknown.until && unknown.epoch >= self.unknown_since.load(Ordering::Acquire) => {
                Remembered::Unknown
            }
            _ => Remembered::Nothing,
        }
    }

    /// Keeps an answer, unless it was removed after the store was asked. One that may be outdated by now is kept as well, because
    /// it is newer than what it replaces.
    pub(super) fn keep(
        &self,
        digest: TokenDigest,
        asked: Asked,
        grant: Arc<Grant<P>>,
        until: Duration,
        ends: Duration,
    ) {
        // Principals are somebody else's code, and dropped when nothing is locked.
        let (_replaced, mut evicted) = (self.known.peek(&digest), Default::default());
        let _older;
        let mut fates = self.fates();
        let removed = [fates.removed.last(digest), fates.removed.last(grant.id()), fates.removed.last(grant.subject())];
        let cleared = self.cleared.load(Ordering::Relaxed);
        if removed.iter().any(|removed| asked.epoch < cleared.max(*removed)) {
            // Nor is what it would have replaced of any use: the store has said something newer.
            _older = self.take_older(&digest, asked);
            return;
        }
        if self.known.peek(&digest).is_some_and(|known| known.asked > asked) {
            return;
        }
        let fates = [of(&mut fates.grants, grant.id()), of(&mut fates.subjects, grant.subject())];
        let known = Arc::new(Known { grant, until, ends, asked, fates });
        self.known.insert_with_lifecycle(digest, known, &mut evicted);
        self.unknown.remove(&digest);
    }

    pub(super) fn keep_unknown(&self, digest: TokenDigest, asked: Asked, until: Duration) {
        let _older;
        let fates = self.fates();
        // Even if this answer is too old to be kept: at worst a grant is asked for once more.
        _older = self.take_older(&digest, asked);
        let removed = fates.removed.last(digest).max(self.unknown_since.load(Ordering::Relaxed));
        if asked.epoch >= removed && self.known.peek(&digest).is_none() {
            self.unknown.insert(digest, Unknown { until, epoch: asked.epoch });
        }
    }

    /// The store could not check a token, so that its earlier answer must not be used any more.
    pub(super) fn remove(&self, digest: &TokenDigest, asked: Asked) {
        let _older;
        let _fates = self.fates();
        _older = self.take_older(digest, asked);
    }

    /// Under the lock of `fates`. What is returned has to be dropped outside of it.
    #[must_use]
    fn take_older(&self, digest: &TokenDigest, asked: Asked) -> Option<(TokenDigest, Arc<Known<P>>)> {
        self.known.peek(digest).filter(|known| known.asked <= asked)?;
        self.known.remove(digest)
    }

    pub(super) fn forget(&self, change: &Invalidation) {
        let _taken;
        let mut fates = self.fates();
        let epoch = self.epoch.load(Ordering::Relaxed) + 1;
        match change {
            Invalidation::Token(digest) => {
                fates.removed.set(digest, epoch);
                _taken = self.known.remove(digest);
                self.unknown.remove(digest);
            }
            Invalidation::Grant(id) => {
                fates.removed.set(id, epoch);
                end(fates.grants.remove(id));
            }
            Invalidation::Subject(subject) => {
                fates.removed.set(subject, epoch);
                end(fates.subjects.remove(subject));
            }
            Invalidation::Added => self.unknown_since.store(epoch, Ordering::Release),
            Invalidation::Everything => {
                self.doubted.store(epoch, Ordering::Release);
                self.unknown_since.store(epoch, Ordering::Release);
            }
        }
        self.epoch.store(epoch, Ordering::Release);
        drop(fates);
        // Nobody sees it any more; this is for its memory. What has come meanwhile may go too.
        if matches!(change, Invalidation::Added | Invalidation::Everything) {
            self.unknown.clear();
        }
    }

    /// Removes everything.
    pub(super) fn clear(&self) {
        let mut fates = self.fates();
        let epoch = self.epoch.load(Ordering::Relaxed) + 1;
        (fates.grants, fates.subjects) = Default::default();
        for since in [&self.cleared, &self.doubted, &self.unknown_since, &self.epoch] {
            since.store(epoch, Ordering::Release);
        }
        drop(fates);
        self.known.clear();
        self.unknown.clear();
    }

    /// Nothing of a principal's runs under this lock.
    fn fates(&self) -> MutexGuard<'_, Fates> {
        self.fates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for so many, in parts with a lock each.
fn table<V: Clone, S: BuildHasher + Clone + Default>(capacity: u64) -> Table<V, S> {
    let expected = usize::try_from(capacity).unwrap_or(usize::MAX).min(MOST_EXPECTED);
    let mut options = OptionsBuilder::new();
    options.weight_capacity(capacity).estimated_items_capacity(expected).shards(SHARDS);
    match options.build() {
        Ok(options) => Cache::with_options(options, UnitWeighter, S::default(), DefaultLifecycle::default()),
        // Never: both capacities are given.
        Err(_) => Cache::with(expected, capacity, UnitWeighter, S::default(), DefaultLifecycle::default()),
    }
}

/// As many as `MemoryStore` has.
const SHARDS: usize = 64;
/// Of so many that had to go lately half is remembered, by their hash, so that what comes back stays.
const MOST_EXPECTED: usize = 1 << 20;

/// The fate of a grant or subject, as its other entries have it.
fn of<K: Clone + Eq + Hash>(fates: &mut HashMap<K, Weak<AtomicBool>>, key: &K) -> Fate {
    if let Some(fate) = fates.get(key).and_then(Weak::upgrade) {
        return fate;
    }
    // Those of which no entry is left, before the table grows for them.
    if fates.len() == fates.capacity() {
        fates.retain(|_, fate| fate.strong_count() > 0);
        fates.reserve(fates.len());
    }
    let fate = Fate::default();
    fates.insert(key.clone(), Arc::downgrade(&fate));
    fate
}

fn end(fate: Option<Weak<AtomicBool>>) {
    if let Some(fate) = fate.and_then(|fate| fate.upgrade()) {
        fate.store(true, Ordering::Release);
    }
}

impl<P> Known<P> {
    #[inline]
    fn is_removed(&self) -> bool {
        self.fates.iter().any(|fate| fate.load(Ordering::Acquire))
    }

    /// Whether it is no older than it may be and this much, and its grant has not expired.
    #[inline]
    pub(super) fn is_usable(&self, now: Duration, stale: Duration) -> bool {
        now < self.until || (now < self.ends && now.saturating_sub(self.until) < stale)
    }

    #[inline]
    pub(super) fn grant(&self) -> Arc<Grant<P>> {
        Arc::clone(&self.grant)
    }
}
