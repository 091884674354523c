//! [`BearerToken`]: a token, borrowed from its request.

use std::borrow::Cow;
use std::fmt;

use super::digest::TokenDigest;

/// A token as a caller presented it, borrowed from the request.
///
/// - It cannot be printed by accident: `Debug` is redacted, there is no `Display` and no `Serialize`.
/// - It cannot be compared by accident: there is no `==`. Stores work on its [`digest`](Self::digest).
/// - The one way to the bytes is [`expose`](Self::expose), which is easy to find in a review.
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
}

impl<'a> BearerToken<'a> {
    /// Hashes a token, once; a gate does this, and whoever tests a store.
    pub fn new<T: AsRef<[u8]> + ?Sized>(token: &'a T) -> Self {
        Self::decoded(Cow::Borrowed(token.as_ref()))
    }

    /// A token that may have been written in another way in the request, such as with percent signs.
    pub(crate) fn decoded(bytes: Cow<'a, [u8]>) -> Self {
        Self { digest: TokenDigest::of(&bytes), bytes }
    }

    /// The same token for a store that keeps it under another digest.
    #[cfg(feature = "pepper")]
    pub(crate) fn with_digest(&self, digest: TokenDigest) -> BearerToken<'_> {
        BearerToken { bytes: Cow::Borrowed(&self.bytes), digest }
    }

    /// The SHA-256 digest of the token; for a store behind `store::PepperedStore`, the HMAC of it.
    #[must_use]
    pub fn digest(&self) -> &TokenDigest {
        &self.digest
    }

    /// The token itself.
    ///
    /// Only for stores that must show it to somebody else (token introspection). Never log it, never use it as a key.
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
