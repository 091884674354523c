//! [`BearerToken`]: a token that is borrowed from a request.

use std::borrow::Cow;
use std::fmt;

use super::digest::TokenDigest;
use super::location::TokenLocation;

/// A token that a client sent, borrowed from the request.
///
/// - The type cannot be printed by accident. `Debug` is redacted; `Display` and `Serialize` are not implemented.
/// - The type cannot be compared by accident. `==` is not implemented; stores compare the [`digest`](Self::digest).
/// - Only [`expose`](Self::expose) returns the bytes. Code reviews can search for this method.
///
/// ```
/// use tollgate::{BearerToken, TokenDigest};
///
/// let token = BearerToken::new("tg_3f9a");
/// assert_eq!(token.digest(), &TokenDigest::of("tg_3f9a"));
/// assert_eq!(format!("{token:?}"), "BearerToken(..)");
/// ```
pub struct BearerToken<'a> {
    bytes: Cow<'a, [u8]>,
    digest: TokenDigest,
    location: Option<TokenLocation>,
}

impl<'a> BearerToken<'a> {
    /// Creates a token and computes its digest once. Gates call this function, and so do tests of stores.
    pub fn new<T: AsRef<[u8]> + ?Sized>(token: &'a T) -> Self {
        Self::decoded(Cow::Borrowed(token.as_ref()))
    }

    /// Creates a token from decoded bytes. The request may contain another spelling, such as percent-encoding.
    #[inline]
    pub(crate) fn decoded(bytes: Cow<'a, [u8]>) -> Self {
        Self { digest: TokenDigest::of(&bytes), bytes, location: None }
    }

    /// Returns the same token with another digest, for stores that transform digests.
    #[cfg(feature = "pepper")]
    pub(crate) fn with_digest(&self, digest: TokenDigest) -> BearerToken<'_> {
        BearerToken { bytes: Cow::Borrowed(&self.bytes), digest, location: self.location }
    }

    /// Sets the location where a gate found the token.
    #[inline]
    pub(crate) fn with_location(mut self, location: TokenLocation) -> Self {
        self.location = Some(location);
        self
    }

    /// Returns the part of the request that contained the token. Returns `None` outside of a gate.
    ///
    /// Record it, but let no answer of a store depend on it: a cache would return the answer for another location.
    #[must_use]
    pub fn location(&self) -> Option<TokenLocation> {
        self.location
    }

    /// Returns the SHA-256 digest of the token. Stores behind `store::PepperedStore` get the HMAC of this digest.
    #[must_use]
    pub fn digest(&self) -> &TokenDigest {
        &self.digest
    }

    /// Returns the bytes of the token.
    ///
    /// Only stores that send the token to another service (token introspection) need the bytes. Never log the token, and
    /// never use it as a key.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for BearerToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(..)")
    }
}
