//! [`Table`]: the grants of one shard, by the digests in them.

use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::mem;
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::grant::Grant;
use crate::token::TokenDigest;

/// The grants of one shard. An entry takes 9 bytes, because the digest is in the grant.
///
/// 8 bytes of the digest find the entry. The comparison of all 32 bytes takes constant time.
pub(super) struct Table<P>(HashTable<Arc<Grant<P>>>);

impl<P> Table<P> {
    #[inline]
    pub(super) fn get(&self, digest: &TokenDigest) -> Option<&Arc<Grant<P>>> {
        self.0.find(hash(digest), has(digest))
    }

    /// Adds the grant of a new token. Returns the grant if the token already exists.
    pub(super) fn insert(&mut self, digest: TokenDigest, grant: Grant<P>) -> Result<(), Box<Grant<P>>> {
        match self.entry(&digest) {
            Entry::Occupied(_) => Err(Box::new(grant)),
            Entry::Vacant(vacant) => {
                vacant.insert(Arc::new(grant.with_digest(digest)));
                Ok(())
            }
        }
    }

    /// Sets the grant of a new or existing token. Returns the previous grant.
    pub(super) fn replace(&mut self, digest: TokenDigest, grant: Grant<P>) -> Option<Arc<Grant<P>>> {
        let grant = Arc::new(grant.with_digest(digest));
        match self.entry(&digest) {
            Entry::Occupied(mut occupied) => Some(mem::replace(occupied.get_mut(), grant)),
            Entry::Vacant(vacant) => {
                vacant.insert(grant);
                None
            }
        }
    }

    pub(super) fn remove(&mut self, digest: &TokenDigest) -> Option<Arc<Grant<P>>> {
        self.0.find_entry(hash(digest), has(digest)).ok().map(|entry| entry.remove().0)
    }

    /// Removes the grants for which `is_kept` returns false, and adds them to `removed`.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&Grant<P>) -> bool, removed: &mut Vec<Arc<Grant<P>>>) {
        removed.extend(self.0.extract_if(|grant| !is_kept(grant)));
    }

    /// Allocates memory for this number of further grants. Without it, the table grows later.
    pub(super) fn reserve(&mut self, grants: usize) {
        _ = self.0.try_reserve(grants, rehash);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Grant<P>>> {
        self.0.iter()
    }

    fn entry(&mut self, digest: &TokenDigest) -> Entry<'_, Arc<Grant<P>>> {
        self.0.entry(hash(digest), has(digest), rehash)
    }
}

impl<P> Default for Table<P> {
    fn default() -> Self {
        Self(HashTable::new())
    }
}

fn has<P>(digest: &TokenDigest) -> impl Fn(&Arc<Grant<P>>) -> bool {
    move |grant| grant.digest() == digest
}

fn rehash<P>(grant: &Arc<Grant<P>>) -> u64 {
    hash(grant.digest())
}

fn hash(digest: &TokenDigest) -> u64 {
    BuildHasherDefault::<DigestHasher>::default().hash_one(digest)
}

/// Uses 8 bytes of a digest as its hash. Digests are uniformly distributed. A table contains only digests of tokens in the store, so
/// clients cannot cause collisions.
#[derive(Clone, Copy, Default)]
pub(crate) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        // Not called for digests. Other keys get a hash too.
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
