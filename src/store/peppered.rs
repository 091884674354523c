use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::vec;

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use super::sealed::NeverWaits;
use super::{Lookup, TokenStore};
use crate::pending::answer::Answer;
use crate::token::{BearerToken, TokenDigest};

/// A store whose grants are kept under HMAC-SHA-256 of their tokens' digests, by a key that the store does not have: a
/// *pepper*. Who reads the store, or a backup of it, cannot tell whether a token that he has is in there; who can write to it,
/// but does not know the pepper, cannot put in a token of his own.
///
/// Tokens are random, so that SHA-256 keeps them secret without any pepper. It is for digests that leave the process.
///
/// # Rules
///
/// 1. A grant is kept under `HMAC-SHA-256(pepper, SHA-256(token))` (RFC 2104), which [`digest`](Self::digest) gives. It is made
///    of the digest, so that a table of SHA-256 digests can be given a pepper without its tokens.
/// 2. Looked up under the current pepper, then under the older ones, from new to old. The first that finds a grant, or cannot
///    find out, decides.
/// 3. A pepper ends when no grant is kept under it any more: a rotated token's successor is kept under the current one. A
///    grant that moves to another pepper has to stand under both for as long as a request takes.
/// 4. The store is asked at once if it answers at once. Otherwise it is asked for the next only when it has not found the one
///    before.
///
/// ```
/// use tollgate::{AuthLayer, Grant, MemoryStore, store::{Pepper, PepperedStore}};
///
/// # let (new, old) = ([1; 32], [2; 32]);
/// let tokens = MemoryStore::new();
/// let store = PepperedStore::new(tokens.clone(), Pepper::new(new)?).with_older(Pepper::new(old)?);
///
/// tokens.insert(store.digest("a-new-token"), Grant::new("alice", ()))?;
/// // To revoke one, whichever pepper it has:
/// for digest in store.digests("an-old-token") {
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
    /// A store that keeps grants under this pepper.
    #[must_use]
    pub fn new(store: T, pepper: Pepper) -> Self {
        Self { store, current: pepper, older: Vec::new() }
    }

    /// The same, in which grants may be kept under this pepper too, older than those that were given before.
    #[must_use]
    pub fn with_older(mut self, pepper: Pepper) -> Self {
        self.older.push(pepper);
        self
    }

    /// Under what a new token's grant is kept: its digest by the current pepper.
    pub fn digest(&self, token: impl Into<TokenDigest>) -> TokenDigest {
        self.current.digest(token)
    }

    /// Under what a token's grant may be kept: its digests by all peppers, the current one first.
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
            // Those behind are lazy, so that to ask for them now costs nothing, and nobody has to keep the token for them.
            Answer::Pending(current) => {
                Answer::Pending(PepperedStoreFuture { current, older: answers.collect::<Vec<_>>().into_iter() })
            }
        }
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        self.digests(token).any(|digest| self.store.is_cached(&token.with_digest(digest)))
    }
}

/// The first answer that is anything but "unknown", or that has to be waited for.
fn first<F, P, E>(answers: &mut impl Iterator<Item = Answer<F>>) -> Answer<F>
where
    F: Future<Output = Lookup<P, E>>,
{
    answers.find(|answer| !matches!(answer, Answer::Ready(Ok(None)))).unwrap_or(Answer::Ready(Ok(None)))
}

pin_project_lite::pin_project! {
    /// The future of a [`PepperedStore`] store. There is none if the store never waits.
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

// It holds a future that cannot exist, and so cannot exist either.
impl<F: Future + NeverWaits> NeverWaits for PepperedStoreFuture<F> {}

impl<F: Future> fmt::Debug for PepperedStoreFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PepperedStoreFuture(..)")
    }
}

/// The secret key of a [`PepperedStore`] store: 32 random bytes or more, from a secrets manager, kept apart from the store.
///
/// `Debug` is redacted, and the bytes are overwritten when it is dropped. Those that it was made of are the caller's, and
/// what HMAC has on the stack while it computes is not overwritten.
pub struct Pepper(Box<Zeroizing<[u8; BLOCK_LEN]>>);

impl Pepper {
    /// A pepper of these bytes. They must be random, not a password.
    ///
    /// # Errors
    ///
    /// If there are fewer than 32.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, PepperLengthError> {
        let bytes = bytes.as_ref();
        if bytes.len() < MIN_LEN {
            return Err(PepperLengthError(()));
        }
        Ok(Self::of(bytes))
    }

    /// The key as the block that HMAC makes of it: longer ones are hashed, shorter ones end in zeros (RFC 2104, section 2).
    fn of(bytes: &[u8]) -> Self {
        // Boxed before it is filled, so that no move leaves a copy behind.
        let mut block = Box::new(Zeroizing::new([0; BLOCK_LEN]));
        if bytes.len() <= BLOCK_LEN {
            block[..bytes.len()].copy_from_slice(bytes);
        } else {
            block[..32].copy_from_slice(&Sha256::digest(bytes));
        }
        Self(block)
    }

    /// `HMAC-SHA-256(pepper, SHA-256(token))`. Takes the token, or its digest, such as one that was kept without a pepper:
    ///
    /// ```
    /// use tollgate::{TokenDigest, store::Pepper};
    ///
    /// let pepper = Pepper::new([7; 32])?;
    /// assert_eq!(pepper.digest("a-token"), pepper.digest(TokenDigest::of("a-token")));
    /// # Ok::<_, tollgate::store::PepperLengthError>(())
    /// ```
    pub fn digest(&self, token: impl Into<TokenDigest>) -> TokenDigest {
        TokenDigest::from_bytes(self.hmac(&token.into().to_bytes()))
    }

    fn hmac(&self, message: &[u8]) -> [u8; 32] {
        let block: &[u8; BLOCK_LEN] = &self.0;
        <Hmac<Sha256> as Mac>::new(block.into()).chain_update(message).finalize().into_bytes().into()
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(..)")
    }
}

/// The pepper has fewer than 32 bytes.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a pepper has 32 bytes or more")]
pub struct PepperLengthError(());

const MIN_LEN: usize = 32;
/// The block of SHA-256.
const BLOCK_LEN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: [u8; 32]) -> String {
        TokenDigest::from_bytes(bytes).to_hex()
    }

    /// RFC 4231, sections 4.2, 4.3, 4.7 and 4.8: short keys end in zeros, long ones are hashed.
    #[test]
    fn hmac_is_that_of_the_standard() {
        let one = Pepper::of(&[0x0b; 20]).hmac(b"Hi There");
        assert_eq!(hex(one), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
        let two = Pepper::of(b"Jefe").hmac(b"what do ya want for nothing?");
        assert_eq!(hex(two), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let six = Pepper::of(&[0xaa; 131]).hmac(b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(hex(six), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    }

    /// The formula of RFC 2104 by hand, for every length around that of a block.
    #[test]
    fn peppers_of_all_lengths_are_keys_of_the_formula() {
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
    fn peppers_do_not_outlive_themselves() {
        fn is_zeroised<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        is_zeroised(&*Pepper::of(&[1; 32]).0);
    }
}
