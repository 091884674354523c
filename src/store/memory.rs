use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use thiserror::Error;

use super::{Lookup, TokenStore};
use crate::grant::{Grant, GrantId, Subject};
use crate::pending::answer::{Answer, Immediate};
use crate::token::{BearerToken, TokenDigest};

/// Grants in the memory of this process, by the digests of their tokens. Clones share the grants.
///
/// Everything can be changed while requests are served from many threads. Readers wait for nobody but a writer to the
/// same of 64 shards: for as long as one entry takes, or the growth of that shard's table. Revoking by grant or subject
/// looks at all tokens under one lock. [`replace_all`](Self::replace_all) swaps the whole content at once.
///
/// ```
/// use tollgate::{BearerToken, Grant, MemoryStore, TokenStore};
///
/// let tokens = MemoryStore::new();
/// tokens.insert("first", Grant::new("alice", "Alice"))?;
/// tokens.revoke("first");
/// assert!(tokens.lookup(&BearerToken::new("first")).ready().unwrap()?.is_none());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// Tokens are given as text, of which the digest is kept, or as a [`TokenDigest`].
pub struct MemoryStore<P>(Arc<[Shard<P>; SHARDS]>);

/// Readers of different shards touch different cache lines.
#[repr(align(64))]
struct Shard<P>(RwLock<Table<P>>);

type Table<P> = HashMap<TokenDigest, Arc<Grant<P>>, BuildHasherDefault<DigestHasher>>;

const SHARDS: usize = 64;

/// The token is in the store already. Holds the grant that was to be inserted.
#[derive(Error)]
#[error("the token is in the store already")]
pub struct OccupiedError<P>(pub Box<Grant<P>>);

impl<P> fmt::Debug for OccupiedError<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OccupiedError").field(&self.0).finish()
    }
}

/// A token that cannot be rotated. Nothing was changed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RotateError {
    /// The old token is not in the store.
    #[error("the token is not in the store")]
    NotFound,
    /// The old token has a successor already, and ends with its grace: what came of it would end too.
    #[error("the token was rotated before")]
    Outgoing,
    /// The new token is in the store already, as that of the same grant or of another one.
    #[error("the new token is in the store already")]
    Occupied,
}

impl<P> MemoryStore<P> {
    /// A store without grants.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(std::array::from_fn(|_| Shard(RwLock::default()))))
    }

    /// Adds the grant of a new token.
    ///
    /// # Errors
    ///
    /// If the token is there already; the error returns the grant.
    pub fn insert(&self, token: impl Into<TokenDigest>, grant: Grant<P>) -> Result<(), OccupiedError<P>> {
        let digest = token.into();
        match self.write(&digest).entry(digest) {
            Entry::Occupied(_) => Err(OccupiedError(Box::new(grant))),
            Entry::Vacant(vacant) => {
                vacant.insert(Arc::new(grant));
                Ok(())
            }
        }
    }

    /// Sets the grant of a token, new or not. Returns the grant that it had before.
    pub fn replace(&self, token: impl Into<TokenDigest>, grant: Grant<P>) -> Option<Arc<Grant<P>>> {
        let digest = token.into();
        self.write(&digest).insert(digest, Arc::new(grant))
    }

    /// The grant of a token, for administration. Gates ask by [`lookup`](TokenStore::lookup).
    #[inline]
    #[must_use]
    pub fn get(&self, token: impl Into<TokenDigest>) -> Option<Arc<Grant<P>>> {
        let digest = token.into();
        // Found by 8 bytes of the digest, then confirmed by all 32, in constant time.
        self.0[shard_of(&digest)].read().get(&digest).cloned()
    }

    /// Removes a token. Returns its grant. Requests that were admitted already go on.
    pub fn revoke(&self, token: impl Into<TokenDigest>) -> Option<Arc<Grant<P>>> {
        let digest = token.into();
        self.write(&digest).remove(&digest)
    }

    /// Removes all tokens of a grant, of which a rotation makes two. Returns how many.
    pub fn revoke_grant(&self, id: &GrantId) -> usize {
        self.revoke_if(|grant| grant.id() == id)
    }

    /// Removes all tokens of a subject. Returns how many.
    pub fn revoke_subject(&self, subject: &Subject) -> usize {
        self.revoke_if(|grant| grant.subject() == subject)
    }

    /// Removes tokens whose grants have expired, or whose grace has ended, by this moment. Returns how many. They are refused
    /// all the same, and only take memory.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use tollgate::{Grant, MemoryStore, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("old"), Grant::new("alice", ()))]);
    /// tokens.rotate("old", "new", Duration::from_secs(3_600))?;
    /// assert_eq!(tokens.purge(SystemTime::now()), 0);
    /// assert_eq!(tokens.purge(SystemTime::now() + Duration::from_secs(7_200)), 1);
    /// assert!(tokens.get("old").is_none() && tokens.get("new").is_some());
    /// # Ok::<_, tollgate::store::RotateError>(())
    /// ```
    pub fn purge(&self, before: SystemTime) -> usize {
        self.revoke_if(|grant| grant.head().is_expired(before))
    }

    fn revoke_if(&self, revoked: impl Fn(&Grant<P>) -> bool) -> usize {
        let mut gone = Vec::new();
        // All at once: a rotation must not move a token from a shard that comes to one that was.
        for table in &mut self.write_all() {
            table.retain(|_, grant| {
                let revoked = revoked(grant);
                if revoked {
                    // Dropped after the locks.
                    gone.push(Arc::clone(grant));
                }
                !revoked
            });
        }
        gone.len()
    }

    /// Gives a grant a new token. The old one works for the time of `grace`, but never longer than the grant. Returns
    /// the grant of the new token.
    ///
    /// Both tokens stand for one grant, with the same id, subject and so budget. Nobody sees a moment in which neither
    /// works, nor one in which the old one has lost its expiry. The old one is refused after the grace, and stays until it is
    /// [purged](Self::purge).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::{Grant, MemoryStore, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("old"), Grant::new("alice", ()))]);
    /// tokens.rotate("old", "new", Duration::from_secs(3_600))?;
    /// assert_eq!(tokens.len(), 2);
    /// assert!(tokens.rotate("old", "another", Duration::ZERO).is_err(), "it has a successor");
    /// # Ok::<_, tollgate::store::RotateError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the old token is not there or was rotated before, or the new one is there already.
    pub fn rotate(
        &self,
        old: impl Into<TokenDigest>,
        new: impl Into<TokenDigest>,
        grace: Duration,
    ) -> Result<Arc<Grant<P>>, RotateError> {
        self.rotate_at(old, new, grace, SystemTime::now())
    }

    /// [`rotate`](Self::rotate) by another clock than the system's, such as the one that the gate was given.
    ///
    /// # Errors
    ///
    /// Those of [`rotate`](Self::rotate).
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
            return Err(RotateError::Outgoing);
        }
        if shards.table(&new).contains_key(&new) {
            return Err(RotateError::Occupied);
        }
        let incoming = Arc::new(Grant::clone(&grant));
        shards.table(&new).insert(new, Arc::clone(&incoming));
        if grace.is_zero() {
            shards.table(&old).remove(&old);
        } else {
            // The grace has no end if it is longer than time can tell.
            let outgoing = Grant::clone(&grant).into_rotated(now.checked_add(grace));
            shards.table(&old).insert(old, Arc::new(outgoing));
        }
        Ok(incoming)
    }

    /// Swaps the whole content, for a reload: every look-up sees all of the old or all of the new.
    ///
    /// The new tables are built before anything is locked. Budgets stay: they belong to subjects, not to this store.
    /// Of a token that comes twice the last grant counts.
    pub fn replace_all<T: Into<TokenDigest>>(&self, grants: impl IntoIterator<Item = (T, Grant<P>)>) {
        let mut tables: [Table<P>; SHARDS] = std::array::from_fn(|_| Table::default());
        for (token, grant) in grants {
            let digest = token.into();
            tables[shard_of(&digest)].insert(digest, Arc::new(grant));
        }
        let mut locked = self.write_all();
        for (table, new) in locked.iter_mut().zip(&mut tables) {
            std::mem::swap(&mut **table, new);
        }
        drop(locked);
        // What is in `tables` now, the old content, is dropped here, when nobody waits any more.
    }

    /// How many tokens there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.read().len()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|shard| shard.read().is_empty())
    }

    /// The grants of all tokens, at one moment a shard.
    #[must_use]
    pub fn grants(&self) -> Vec<Arc<Grant<P>>> {
        self.0.iter().flat_map(|shard| shard.read().values().cloned().collect::<Vec<_>>()).collect()
    }

    fn write(&self, digest: &TokenDigest) -> RwLockWriteGuard<'_, Table<P>> {
        self.0[shard_of(digest)].write()
    }

    fn write_all(&self) -> Vec<RwLockWriteGuard<'_, Table<P>>> {
        self.0.iter().map(Shard::write).collect()
    }

    /// Locks the shards of two tokens, in the order in which everybody locks several.
    fn write_both(&self, a: &TokenDigest, b: &TokenDigest) -> TwoShards<'_, P> {
        let (low, high) = (shard_of(a).min(shard_of(b)), shard_of(a).max(shard_of(b)));
        let first = self.0[low].write();
        let second = (low != high).then(|| self.0[high].write());
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
    // Under these locks only whole entries are moved, so that a panic elsewhere leaves nothing half done.
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

    #[inline]
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

/// Of a token that comes twice the last grant counts.
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

/// Takes the 8 bytes that a digest hands over as they are: they are uniformly distributed, and only digests of tokens
/// that somebody put into the store are ever in the table, so that strangers cannot fill a bucket.
#[derive(Clone, Copy, Default)]
pub(super) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        // Never called for digests; any other key still gets a hash.
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
