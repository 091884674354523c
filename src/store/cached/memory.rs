use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use moka::sync::Cache;

use crate::grant::{Grant, GrantId, Subject};
use crate::store::Change;
use crate::store::memory::DigestHasher;
use crate::token::TokenDigest;

/// What a cache remembers.
pub(super) struct Memory<P> {
    /// Only digests that a store has vouched for, so that nobody can choose them.
    known: Cache<TokenDigest, Arc<Known<P>>, BuildHasherDefault<DigestHasher>>,
    /// Those of strangers, by a hash that they do not know.
    unknown: Cache<TokenDigest, Unknown>,
    fates: Mutex<Fates>,
    /// Grows with every invalidation, under the lock of `fates`: what a store was asked for before is not kept.
    epoch: AtomicU64,
    /// The epochs in which all grants, and all that was unknown, were forgotten.
    known_since: AtomicU64,
    unknown_since: AtomicU64,
}

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
            known: Cache::builder().max_capacity(capacity).build_with_hasher(BuildHasherDefault::default()),
            unknown: Cache::new(capacity),
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

    pub(super) fn len(&self) -> u64 {
        self.known.entry_count()
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
        let mut fates = self.fates();
        if self.epoch() != epoch {
            return;
        }
        let fates = [of(&mut fates.grants, grant.id()), of(&mut fates.subjects, grant.subject())];
        self.known.insert(digest, Arc::new(Known { grant, until, ends, epoch, fates }));
        self.unknown.invalidate(&digest);
    }

    pub(super) fn keep_unknown(&self, digest: TokenDigest, epoch: u64, until: Duration) {
        let _fates = self.fates();
        // Even if what was said is too old to be kept: at worst a grant is asked for once more.
        self.known.invalidate(&digest);
        if self.epoch() == epoch {
            self.unknown.insert(digest, Unknown { until, epoch });
        }
    }

    pub(super) fn forget(&self, change: &Change) {
        let mut fates = self.fates();
        let epoch = self.epoch.load(Ordering::Relaxed) + 1;
        match change {
            Change::Token(digest) => {
                self.known.invalidate(digest);
                self.unknown.invalidate(digest);
            }
            Change::Grant(id) => end(fates.grants.remove(id)),
            Change::Subject(subject) => end(fates.subjects.remove(subject)),
            Change::Added => self.unknown_since.store(epoch, Ordering::Release),
            Change::Everything => {
                self.known_since.store(epoch, Ordering::Release);
                self.unknown_since.store(epoch, Ordering::Release);
                *fates = Fates::default();
                self.known.invalidate_all();
            }
        }
        if matches!(change, Change::Added | Change::Everything) {
            self.unknown.invalidate_all();
        }
        self.epoch.store(epoch, Ordering::Release);
    }

    /// Nothing that runs under this lock comes back to it: moka has no listener of ours.
    fn fates(&self) -> MutexGuard<'_, Fates> {
        self.fates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
