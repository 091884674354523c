//! [`PepperedStore`]: a store that keeps HMACs of digests, and [`Pepper`], the key.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::vec;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use super::sealed::NeverWaits;
use super::{Lookup, TokenStore};
use crate::pending::answer::Answer;
use crate::token::{BearerToken, TokenDigest};

/// A store of HMACs. Grants are stored under the HMAC-SHA-256 of the token's digest, with a key that the store does not have: a
/// *pepper*.
///
/// A reader of the store or of its backup cannot check whether a token is valid. A writer without the pepper cannot add a token.
///
/// Tokens are random, so SHA-256 protects them without a pepper. A pepper additionally protects digests outside of the process.
///
/// # Rules
///
/// 1. A grant is stored under `HMAC-SHA-256(pepper, SHA-256(token))` (RFC 2104), which [`digest`](Self::digest) returns. The HMAC
///    is computed from the digest, so an existing table of SHA-256 digests can be peppered without its tokens.
/// 2. A lookup tries the current pepper, then the older ones from new to old. The first grant or error is the result.
/// 3. Remove a pepper when no grant is stored under it. The successor of a rotated token is stored under the current pepper. To
///    move a grant to another pepper, keep it under both for the duration of a request.
/// 4. If the inner store is immediate, lookups are immediate. Otherwise, the lookup for the next pepper starts after the one before
///    has found nothing.
///
/// ```
/// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest, store::{Pepper, PepperedStore}};
///
/// # let (new, old) = ([1; 32], [2; 32]);
/// let tokens = MemoryStore::new();
/// let store = PepperedStore::new(tokens.clone(), Pepper::new(new)?).with_older(Pepper::new(old)?);
///
/// tokens.insert(store.digest(TokenDigest::of("a-new-token")), Grant::new("alice", ()))?;
/// // Revoke a token under any pepper:
/// for digest in store.digests(TokenDigest::of("an-old-token")) {
///     tokens.revoke(digest);
/// }
/// let gate = AuthLayer::new(store);
/// # let _ = gate;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PepperedStore<T> {
    store: T,
    current: Pepper,
    /// From new to old.
    older: Vec<Pepper>,
}

impl<T> PepperedStore<T> {
    /// Creates a store with its current pepper.
    #[must_use]
    pub fn new(store: T, pepper: Pepper) -> Self {
        Self { store, current: pepper, older: Vec::new() }
    }

    /// Adds an older pepper, under which grants may still be stored. Add peppers from new to old.
    #[must_use]
    pub fn with_older(mut self, pepper: Pepper) -> Self {
        self.older.push(pepper);
        self
    }

    /// Returns the digest under which a new token is stored, made with the current pepper.
    pub fn digest(&self, token: impl Into<TokenDigest>) -> TokenDigest {
        self.current.digest(token)
    }

    /// Returns the digests under which a token may be stored, made with all peppers. The current pepper is first.
    pub fn digests(&self, token: impl Into<TokenDigest>) -> impl Iterator<Item = TokenDigest> {
        let token = token.into();
        std::iter::once(&self.current).chain(&self.older).map(move |pepper| pepper.digest(token))
    }
}

impl<T: TokenStore> TokenStore for PepperedStore<T> {
    type Principal = T::Principal;
    type Error = T::Error;
    type Future = PepperedStoreFuture<T::Future>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        let mut answers = self.digests(token).map(|digest| self.store.lookup(&token.with_digest(digest)));
        match first(&mut answers) {
            Answer::Ready(found) => Answer::Ready(found),
            // Create the other lookups now, so that the future does not have to own the token. They are lazy.
            Answer::Pending(current) => {
                Answer::Pending(PepperedStoreFuture { current, older: answers.collect::<Vec<_>>().into_iter() })
            }
        }
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        self.digests(token).any(|digest| self.store.is_cached(&token.with_digest(digest)))
    }
}

/// Returns the first answer that is pending or is not "unknown".
fn first<F, P, E>(answers: &mut impl Iterator<Item = Answer<F>>) -> Answer<F>
where
    F: Future<Output = Lookup<P, E>>,
{
    answers.find(|answer| !matches!(answer, Answer::Ready(Ok(None)))).unwrap_or(Answer::Ready(Ok(None)))
}

pin_project_lite::pin_project! {
    /// The future of a [`PepperedStore`]. An immediate store has none.
    pub struct PepperedStoreFuture<F: Future> {
        #[pin]
        current: F,
        older: vec::IntoIter<Answer<F>>,
    }
}

impl<F, P, E> Future for PepperedStoreFuture<F>
where
    F: Future<Output = Lookup<P, E>>,
{
    type Output = Lookup<P, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match ready!(this.current.as_mut().poll(cx)) {
                Ok(None) => {}
                found => return Poll::Ready(found),
            }
            match first(this.older) {
                Answer::Ready(found) => return Poll::Ready(found),
                Answer::Pending(next) => this.current.set(next),
            }
        }
    }
}

// It contains a future that cannot exist, so it cannot exist either.
impl<F: Future + NeverWaits> NeverWaits for PepperedStoreFuture<F> {}

impl<F: Future> fmt::Debug for PepperedStoreFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PepperedStoreFuture(..)")
    }
}

/// The secret key of a [`PepperedStore`]: at least 32 random bytes. Keep it in a secrets manager, apart from the store.
///
/// `Debug` is redacted, and the key is overwritten on drop. The caller must overwrite the bytes that it was created from. Copies
/// on the stack, which HMAC makes while it computes, are not overwritten.
pub struct Pepper(Box<Zeroizing<[u8; BLOCK_LEN]>>);

impl Pepper {
    /// Creates a pepper. The bytes must be random, not a password.
    ///
    /// # Errors
    ///
    /// If there are fewer than 32 bytes.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, PepperLengthError> {
        let bytes = bytes.as_ref();
        if bytes.len() < MIN_LEN {
            return Err(PepperLengthError(()));
        }
        Ok(Self::of(bytes))
    }

    /// Expands the key to a block: longer keys are hashed, shorter keys are padded with zeros (RFC 2104, section 2).
    fn of(bytes: &[u8]) -> Self {
        // Boxed before it is filled, so that no move leaves a copy.
        let mut block = Box::new(Zeroizing::new([0; BLOCK_LEN]));
        if bytes.len() <= BLOCK_LEN {
            block[..bytes.len()].copy_from_slice(bytes);
        } else {
            block[..32].copy_from_slice(&Sha256::digest(bytes));
        }
        Self(block)
    }

    /// Returns `HMAC-SHA-256(pepper, SHA-256(token))` for the digest of a token, such as one that was stored without a pepper.
    ///
    /// ```
    /// use tollgate::{TokenDigest, store::Pepper};
    ///
    /// let pepper = Pepper::new([7; 32])?;
    /// assert_ne!(pepper.digest(TokenDigest::of("a-token")), TokenDigest::of("a-token"));
    /// # Ok::<_, tollgate::store::PepperLengthError>(())
    /// ```
    pub fn digest(&self, token: impl Into<TokenDigest>) -> TokenDigest {
        TokenDigest::from_bytes(self.hmac(&token.into().to_bytes()))
    }

    fn hmac(&self, message: &[u8]) -> [u8; 32] {
        let block: &[u8; BLOCK_LEN] = &self.0;
        <Hmac<Sha256> as KeyInit>::new(block.into()).chain_update(message).finalize().into_bytes().into()
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(..)")
    }
}

/// The error of a pepper with fewer than 32 bytes.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("invalid pepper: must have at least 32 bytes")]
pub struct PepperLengthError(());

const MIN_LEN: usize = 32;
/// The block length of SHA-256.
const BLOCK_LEN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: [u8; 32]) -> String {
        TokenDigest::from_bytes(bytes).to_hex()
    }

    /// Checks vectors of RFC 4231, sections 4.2, 4.3 and 4.7: short keys are padded, long keys are hashed.
    #[test]
    fn hmac_matches_rfc_4231() {
        let one = Pepper::of(&[0x0b; 20]).hmac(b"Hi There");
        assert_eq!(hex(one), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
        let two = Pepper::of(b"Jefe").hmac(b"what do ya want for nothing?");
        assert_eq!(hex(two), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let six = Pepper::of(&[0xaa; 131]).hmac(b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(hex(six), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    }

    /// Compares with the formula of RFC 2104 for key lengths around the block length.
    #[test]
    fn digests_of_all_key_lengths_match_rfc_2104() {
        for len in 32..=130_u8 {
            let bytes: Vec<u8> = (0..len).map(|at| at.wrapping_mul(37) ^ len).collect();
            let mut key = if len > 64 { Sha256::digest(&bytes).to_vec() } else { bytes.clone() };
            key.resize(64, 0);
            let pad = |with: u8| key.iter().map(|byte| byte ^ with).collect::<Vec<u8>>();
            let inner = Sha256::digest([pad(0x36), TokenDigest::of("a token").to_bytes().to_vec()].concat());
            let outer = Sha256::digest([pad(0x5c), inner.to_vec()].concat());
            assert!(
                Pepper::new(&bytes).unwrap().digest(TokenDigest::of("a token"))
                    == TokenDigest::from_bytes(outer.into()),
                "{len} bytes"
            );
        }
    }

    #[test]
    fn peppers_are_overwritten_on_drop() {
        fn is_zeroised<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        is_zeroised(&*Pepper::of(&[1; 32]).0);
    }
}
