use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter};

use crate::grant::{Grant, GrantId, Subject};
use crate::store::Change;
use crate::store::memory::DigestHasher;
use crate::token::TokenDigest;

/// What a cache remembers.
pub(super) struct Memory<P> {
    /// Only digests that a store has vouched for, so that nobody can choose them: their own bytes are the hash.
    known: Table<Arc<Known<P>>, BuildHasherDefault<DigestHasher>>,
    /// Those of strangers, by a hash that they do not know.
    unknown: Table<Unknown, RandomState>,
    fates: Mutex<Fates>,
    /// Grows with every invalidation, under the lock of `fates`: what a store was asked for before is not kept.
    epoch: AtomicU64,
    /// The epochs in which all grants, and all that was unknown, were forgotten.
    known_since: AtomicU64,
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
    epoch: u64,
    fates: [Fate; 2],
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
}

pub(super) enum Remembered<P> {
    Known(Arc<Known<P>>),
    Unknown,
    Nothing,
}

impl<P: Send + Sync + 'static> Memory<P> {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            known: table(capacity),
            unknown: table(capacity),
            fates: Mutex::default(),
            epoch: AtomicU64::new(0),
            known_since: AtomicU64::new(0),
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

    /// A grant, however old, unless it was forgotten.
    #[inline]
    pub(super) fn known(&self, digest: &TokenDigest) -> Option<Arc<Known<P>>> {
        let known = self.known.get(digest)?;
        let forgotten = known.epoch < self.known_since.load(Ordering::Acquire)
            || known.fates.iter().any(|fate| fate.load(Ordering::Acquire));
        (!forgotten).then_some(known)
    }

    #[inline]
    pub(super) fn recall(&self, digest: &TokenDigest, now: Duration) -> Remembered<P> {
        if let Some(known) = self.known(digest) {
            return Remembered::Known(known);
        }
        match self.unknown.get(digest) {
            Some(unknown) if now < unknown.until && unknown.epoch >= self.unknown_since.load(Ordering::Acquire) => {
                Remembered::Unknown
            }
            _ => Remembered::Nothing,
        }
    }

    pub(super) fn keep(&self, digest: TokenDigest, epoch: u64, grant: Arc<Grant<P>>, until: Duration, ends: Duration) {
        // Principals are somebody else's code, and dropped when nothing is locked.
        let (_replaced, mut evicted) = (self.known.peek(&digest), Default::default());
        let mut fates = self.fates();
        if self.epoch() != epoch {
            return;
        }
        let fates = [of(&mut fates.grants, grant.id()), of(&mut fates.subjects, grant.subject())];
        let known = Arc::new(Known { grant, until, ends, epoch, fates });
        self.known.insert_with_lifecycle(digest, known, &mut evicted);
        self.unknown.remove(&digest);
    }

    pub(super) fn keep_unknown(&self, digest: TokenDigest, epoch: u64, until: Duration) {
        let _removed = self.known.peek(&digest);
        let _fates = self.fates();
        // Even if what was said is too old to be kept: at worst a grant is asked for once more.
        self.known.remove(&digest);
        if self.epoch() == epoch {
            self.unknown.insert(digest, Unknown { until, epoch });
        }
    }

    pub(super) fn forget(&self, change: &Change) {
        let _removed = match change {
            Change::Token(digest) => self.known.peek(digest),
            _ => None,
        };
        let mut fates = self.fates();
        let epoch = self.epoch.load(Ordering::Relaxed) + 1;
        match change {
            Change::Token(digest) => {
                self.known.remove(digest);
                self.unknown.remove(digest);
            }
            Change::Grant(id) => end(fates.grants.remove(id)),
            Change::Subject(subject) => end(fates.subjects.remove(subject)),
            Change::Added => self.unknown_since.store(epoch, Ordering::Release),
            Change::Everything => {
                self.known_since.store(epoch, Ordering::Release);
                self.unknown_since.store(epoch, Ordering::Release);
                *fates = Fates::default();
            }
        }
        self.epoch.store(epoch, Ordering::Release);
        drop(fates);
        // Nobody sees it any more; this is for its memory. What has come meanwhile may go too.
        if matches!(change, Change::Everything) {
            self.known.clear();
        }
        if matches!(change, Change::Added | Change::Everything) {
            self.unknown.clear();
        }
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
