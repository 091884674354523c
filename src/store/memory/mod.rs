//! [`MemoryStore`]: grants in the memory of this process.

pub(super) mod table;

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use thiserror::Error;

use table::Table;

use super::{Lookup, TokenStore};
use crate::grant::terms::SharedTerms;
use crate::grant::{Grant, GrantId, Subject};
use crate::pending::answer::{Answer, Immediate};
use crate::token::{BearerToken, TokenDigest};

/// A store in the memory of this process. Clones share the grants.
///
/// Any thread may change the store while requests are served. The store has 64 shards. A reader waits only for a writer to the
/// same shard, for the time of one change or of the growth of the shard's table. A revocation by grant or subject locks the whole
/// store while it visits all tokens. [`replace_all`](Self::replace_all) replaces the whole content atomically.
///
/// The store keeps digests, not tokens. Pass a [`TokenDigest`] or what converts to one, such as a minted secret.
///
/// ```
/// use tollgate::{BearerToken, Grant, MemoryStore, TokenDigest, TokenStore};
///
/// let tokens = MemoryStore::new();
/// tokens.insert(TokenDigest::of("first"), Grant::new("alice", "Alice"))?;
/// tokens.revoke(TokenDigest::of("first"));
/// assert!(tokens.lookup(&BearerToken::new("first")).ready().unwrap()?.is_none());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct MemoryStore<P>(Arc<Inner<P>>);

struct Inner<P> {
    shards: [Shard<P>; SHARDS],
    /// Locked after the shards, and never while code of the service runs.
    terms: Mutex<SharedTerms>,
}

/// Aligned, so that readers of different shards use different cache lines.
#[repr(align(64))]
struct Shard<P>(RwLock<Table<P>>);

const SHARDS: usize = 64;

/// The error of an insertion whose token already exists. Contains the grant that was not inserted.
#[derive(Error)]
#[error("the token already exists")]
pub struct OccupiedError<P>(pub Box<Grant<P>>);

impl<P> fmt::Debug for OccupiedError<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OccupiedError").field(&self.0).finish()
    }
}

/// The error of a failed rotation. The store is unchanged.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RotateError {
    /// The old token is not in the store.
    #[error("the token does not exist")]
    NotFound,
    /// The old token was rotated before, and expires after its grace period. Another successor would expire with it.
    #[error("the token was already rotated")]
    Rotated,
    /// The new token is already in the store, with the same grant or another one.
    #[error("the new token already exists")]
    Occupied,
}

impl<P> MemoryStore<P> {
    /// Creates a store without grants.
    #[must_use]
    pub fn new() -> Self {
        let shards = std::array::from_fn(|_| Shard(RwLock::default()));
        Self(Arc::new(Inner { shards, terms: Mutex::default() }))
    }

    /// Adds the grant of a new token.
    ///
    /// # Errors
    ///
    /// If the token already exists. The error contains the grant.
    pub fn insert(&self, token: impl Into<TokenDigest>, grant: Grant<P>) -> Result<(), OccupiedError<P>> {
        let (digest, grant) = (token.into(), self.with_shared_terms(grant));
        self.write(&digest).insert(digest, grant).map_err(OccupiedError)
    }

    /// Sets the grant of a new or existing token. Returns the previous grant.
    pub fn replace(&self, token: impl Into<TokenDigest>, grant: Grant<P>) -> Option<Arc<Grant<P>>> {
        let (digest, grant) = (token.into(), self.with_shared_terms(grant));
        self.write(&digest).replace(digest, grant)
    }

    /// Returns the grant of a token, for administration. Gates call [`lookup`](TokenStore::lookup).
    #[inline]
    #[must_use]
    pub fn get(&self, token: impl Into<TokenDigest>) -> Option<Arc<Grant<P>>> {
        let digest = token.into();
        let shard = self.0.shards[shard_of(&digest)].read();
        let grant = shard.get(&digest)?;
        // The bucket is usually in the cache line after that of the reference count. On x86 the atomic operations below delay later
        // loads, so the gate would wait for one line after the other.
        grant.head().bucket_cache().touch();
        Some(Arc::clone(grant))
    }

    /// Removes a token. Returns its grant. Requests that are already admitted continue.
    pub fn revoke(&self, token: impl Into<TokenDigest>) -> Option<Arc<Grant<P>>> {
        let digest = token.into();
        self.write(&digest).remove(&digest)
    }

    /// Removes all tokens of a grant. Returns their number. After a rotation, a grant has two tokens.
    pub fn revoke_grant(&self, id: &GrantId) -> usize {
        self.revoke_if(|grant| grant.id() == id)
    }

    /// Removes all tokens of a subject. Returns their number.
    pub fn revoke_subject(&self, subject: &Subject) -> usize {
        self.revoke_if(|grant| grant.subject() == subject)
    }

    /// Removes tokens whose grant or grace period has expired by this time. Returns their number. The gate rejects expired tokens in
    /// any case, so this only frees memory.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use tollgate::{Grant, MemoryStore, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("old"), Grant::new("alice", ()))]);
    /// tokens.rotate(TokenDigest::of("old"), TokenDigest::of("new"), Duration::from_secs(3_600))?;
    /// assert_eq!(tokens.purge(SystemTime::now()), 0);
    /// assert_eq!(tokens.purge(SystemTime::now() + Duration::from_secs(7_200)), 1);
    /// assert!(tokens.get(TokenDigest::of("old")).is_none() && tokens.get(TokenDigest::of("new")).is_some());
    /// # Ok::<_, tollgate::store::RotateError>(())
    /// ```
    pub fn purge(&self, before: SystemTime) -> usize {
        self.revoke_if(|grant| grant.head().is_expired(before))
    }

    fn revoke_if(&self, revoked: impl Fn(&Grant<P>) -> bool) -> usize {
        let mut removed = Vec::new();
        // Lock all shards: a concurrent rotation must not move a token from a shard not yet visited to a visited one.
        for table in &mut self.write_all() {
            // The removed grants are dropped after the locks.
            table.retain(|grant| !revoked(grant), &mut removed);
        }
        removed.len()
    }

    /// Adds a new token to a grant. The old token works for the grace period, but never longer than the grant. Returns the grant of
    /// the new token.
    ///
    /// Both tokens have the same id and subject, and therefore share their buckets. The change is atomic: no reader sees a time at
    /// which neither token works, or at which the old token has no expiry. After the grace period, the gate rejects the old
    /// token, which stays in the store until [`purge`](Self::purge).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::{Grant, MemoryStore, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("old"), Grant::new("alice", ()))]);
    /// let (old, new) = (TokenDigest::of("old"), TokenDigest::of("new"));
    /// tokens.rotate(old, new, Duration::from_secs(3_600))?;
    /// assert_eq!(tokens.len(), 2);
    /// assert!(tokens.rotate(old, TokenDigest::of("another"), Duration::ZERO).is_err(), "already rotated");
    /// # Ok::<_, tollgate::store::RotateError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the old token does not exist or was already rotated, or if the new token already exists.
    pub fn rotate(
        &self,
        old: impl Into<TokenDigest>,
        new: impl Into<TokenDigest>,
        grace: Duration,
    ) -> Result<Arc<Grant<P>>, RotateError> {
        self.rotate_at(old, new, grace, SystemTime::now())
    }

    /// Rotates a token at the given time, for example that of the gate's clock. See [`rotate`](Self::rotate).
    ///
    /// # Errors
    ///
    /// See [`rotate`](Self::rotate).
    pub fn rotate_at(
        &self,
        old: impl Into<TokenDigest>,
        new: impl Into<TokenDigest>,
        grace: Duration,
        now: SystemTime,
    ) -> Result<Arc<Grant<P>>, RotateError> {
        let (old, new) = (old.into(), new.into());
        let mut shards = self.write_both(&old, &new);
        let grant = Arc::clone(shards.table(&old).get(&old).ok_or(RotateError::NotFound)?);
        if grant.is_rotated() {
            return Err(RotateError::Rotated);
        }
        // Principals need not be `Clone`.
        if shards.table(&new).insert(new, Grant::copy_of(&grant)).is_err() {
            return Err(RotateError::Occupied);
        }
        if grace.is_zero() {
            shards.table(&old).remove(&old);
        } else {
            // The grace period is unlimited if its end is beyond the range of `SystemTime`.
            let rotated = Grant::copy_of(&grant).into_rotated(now.checked_add(grace));
            shards.table(&old).replace(old, self.with_shared_terms(rotated));
        }
        shards.table(&new).get(&new).cloned().ok_or(RotateError::NotFound)
    }

    /// Replaces the whole content atomically, for a reload. Every lookup sees either the old content or the new one.
    ///
    /// The new tables are built before any lock is taken, so both contents are in memory until the change. Tables do not grow if the
    /// iterator has an exact size hint. Buckets are unchanged, because they belong to subjects. If a token occurs twice, its last
    /// grant is used.
    pub fn replace_all<T: Into<TokenDigest>>(&self, grants: impl IntoIterator<Item = (T, Grant<P>)>) {
        let mut tables: [Table<P>; SHARDS] = std::array::from_fn(|_| Table::default());
        let grants = grants.into_iter();
        // No spread: it would double the tables whose mean is just below a doubling.
        let mean = grants.size_hint().0 / SHARDS;
        tables.iter_mut().for_each(|table| table.reserve(mean));
        let mut terms = SharedTerms::default();
        for (token, mut grant) in grants {
            let digest = token.into();
            grant.share_terms(&mut terms);
            tables[shard_of(&digest)].replace(digest, grant);
        }
        let mut locked = self.write_all();
        for (table, new) in locked.iter_mut().zip(&mut tables) {
            std::mem::swap(&mut **table, new);
        }
        std::mem::swap(&mut *self.terms(), &mut terms);
        drop(locked);
        // `tables` and `terms` now hold the old content, which is dropped here, after the locks.
    }

    /// Returns the number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Returns whether the store has no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.shards.iter().all(|shard| shard.read().len() == 0)
    }

    /// Returns the grants of all tokens. Each shard is read at a different time.
    #[must_use]
    pub fn grants(&self) -> Vec<Arc<Grant<P>>> {
        self.0.shards.iter().flat_map(|shard| shard.read().iter().cloned().collect::<Vec<_>>()).collect()
    }

    fn with_shared_terms(&self, mut grant: Grant<P>) -> Grant<P> {
        grant.share_terms(&mut self.terms());
        grant
    }

    fn terms(&self) -> MutexGuard<'_, SharedTerms> {
        self.0.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, digest: &TokenDigest) -> RwLockWriteGuard<'_, Table<P>> {
        self.0.shards[shard_of(digest)].write()
    }

    fn write_all(&self) -> Vec<RwLockWriteGuard<'_, Table<P>>> {
        self.0.shards.iter().map(Shard::write).collect()
    }

    /// Locks the shards of two tokens, in the order of shards, which prevents deadlocks.
    fn write_both(&self, a: &TokenDigest, b: &TokenDigest) -> TwoShards<'_, P> {
        let (low, high) = (shard_of(a).min(shard_of(b)), shard_of(a).max(shard_of(b)));
        let first = self.0.shards[low].write();
        let second = (low != high).then(|| self.0.shards[high].write());
        TwoShards { low, first, second }
    }
}

struct TwoShards<'a, P> {
    low: usize,
    first: RwLockWriteGuard<'a, Table<P>>,
    second: Option<RwLockWriteGuard<'a, Table<P>>>,
}

impl<P> TwoShards<'_, P> {
    fn table(&mut self, digest: &TokenDigest) -> &mut Table<P> {
        match &mut self.second {
            Some(second) if shard_of(digest) != self.low => second,
            _ => &mut self.first,
        }
    }
}

fn shard_of(digest: &TokenDigest) -> usize {
    digest.shard_bits() % SHARDS
}

impl<P> Shard<P> {
    // Ignores poisoning: every change under these locks is complete.
    #[inline]
    fn read(&self) -> RwLockReadGuard<'_, Table<P>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table<P>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Send + Sync + 'static> TokenStore for MemoryStore<P> {
    type Principal = P;
    type Error = Infallible;
    type Future = Immediate<Lookup<P, Infallible>>;

    #[inline(always)]
    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        Answer::Ready(Ok(self.get(token)))
    }
}

impl<P> Clone for MemoryStore<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P> Default for MemoryStore<P> {
    fn default() -> Self {
        Self::new()
    }
}

/// If a token occurs twice, its last grant is used.
impl<P, T: Into<TokenDigest>> FromIterator<(T, Grant<P>)> for MemoryStore<P> {
    fn from_iter<I: IntoIterator<Item = (T, Grant<P>)>>(grants: I) -> Self {
        let store = Self::new();
        store.replace_all(grants);
        store
    }
}

impl<P> fmt::Debug for MemoryStore<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore({} tokens)", self.len())
    }
}
