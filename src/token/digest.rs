//! [`TokenDigest`]: the SHA-256 digest under which stores keep grants.

use std::fmt;
use std::hash::{Hash, Hasher};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;

use super::bearer::BearerToken;

/// The SHA-256 digest of a token. Stores keep digests instead of tokens.
///
/// A fast hash without a salt is sufficient: tokens have 128 random bits or more, so dictionary attacks do not apply. A slow
/// hash would let unauthenticated clients exhaust the server's CPU. Never use this type for secrets that people choose.
///
/// `==` runs in constant time. `Debug` is redacted, because a digest identifies a grant in a store. `Hash` writes only 8
/// bytes of the digest, which are uniformly distributed.
///
/// ```
/// use tollgate::TokenDigest;
///
/// let digest = TokenDigest::of("abc");
/// assert_eq!(digest.to_bytes()[..4], [0xba, 0x78, 0x16, 0xbf]);
/// assert_eq!(TokenDigest::from_bytes(digest.to_bytes()), digest);
/// assert_eq!(format!("{digest:?}"), "TokenDigest(..)");
/// ```
///
/// # Importing tokens
///
/// Existing tables of SHA-256 digests can be imported without the tokens. Each digest must cover exactly the bytes that
/// clients send, without a salt. Other digests cannot be imported.
///
/// | stored as | import with |
/// |---|---|
/// | 32 bytes | [`from_bytes`](Self::from_bytes) |
/// | hexadecimal digits, in either case | [`from_hex`](Self::from_hex) |
/// | base64url without padding (RFC 7515) | [`from_base64url`](Self::from_base64url) |
/// | base64, with padding or without | [`from_base64`](Self::from_base64) |
///
/// ```
/// use tollgate::{Grant, MemoryStore, TokenDigest};
///
/// let table = [("alice", "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=")];
/// let tokens = MemoryStore::new();
/// for (name, digest) in table {
///     let digest = TokenDigest::from_base64(digest)?;
///     tokens.insert(digest, Grant::new(name, ()))?;
/// }
/// assert!(tokens.get(TokenDigest::of("abc")).is_some());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy)]
pub struct TokenDigest([u64; 4]);

impl TokenDigest {
    /// Computes the digest of a token.
    pub fn of(token: impl AsRef<[u8]>) -> Self {
        Self::from_bytes(Sha256::digest(token).into())
    }

    /// Creates a digest from the 32 bytes of SHA-256.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        // Big-endian, so that words sort like bytes. Written out, because the compiler does not merge a loop into one load.
        const fn word(b: &[u8; 32], at: usize) -> u64 {
            u64::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3], b[at + 4], b[at + 5], b[at + 6], b[at + 7]])
        }
        Self([word(&bytes, 0), word(&bytes, 8), word(&bytes, 16), word(&bytes, 24)])
    }

    /// Returns the 32 bytes of SHA-256, for stores that keep bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// Parses 64 hexadecimal digits in either case, as `sha256sum` prints them.
    ///
    /// ```
    /// use tollgate::{TokenDigest, TokenDigestError};
    ///
    /// let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    /// assert_eq!(TokenDigest::from_hex(hex), Ok(TokenDigest::of("abc")));
    /// assert_eq!(TokenDigest::of("abc").to_hex(), hex);
    /// assert_eq!(TokenDigest::from_hex("ba78"), Err(TokenDigestError::Length));
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if the text has another length or contains another character.
    pub fn from_hex(hex: &str) -> Result<Self, TokenDigestError> {
        let mut bytes = [0; 32];
        if hex.len() != 2 * bytes.len() {
            return Err(TokenDigestError::Length);
        }
        for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let digit = |at: usize| char::from(digits[at]).to_digit(16).ok_or(TokenDigestError::Encoding);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Ok(Self::from_bytes(bytes))
    }

    /// Returns the digest as 64 lower-case hexadecimal digits, for stores that keep text. Never log it: a digest
    /// identifies a grant.
    #[must_use]
    pub fn to_hex(self) -> String {
        self.0.iter().map(|word| format!("{word:016x}")).collect()
    }

    /// Parses 43 characters of base64url without padding (RFC 4648, section 5).
    ///
    /// ```
    /// use tollgate::TokenDigest;
    ///
    /// let text = "ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0";
    /// assert_eq!(TokenDigest::from_base64url(text), Ok(TokenDigest::of("abc")));
    /// assert_eq!(TokenDigest::of("abc").to_base64url(), text);
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if the text is not base64url without padding, or does not encode 32 bytes.
    pub fn from_base64url(text: &str) -> Result<Self, TokenDigestError> {
        Self::decoded_by(&BASE64_URL_SAFE_NO_PAD, text)
    }

    /// Returns the digest as base64url without padding, the shortest text. Never log it: a digest identifies a grant.
    #[must_use]
    pub fn to_base64url(self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.to_bytes())
    }

    /// Parses base64 of the standard alphabet (RFC 4648, section 4), with or without padding, as
    /// `openssl dgst -sha256 -binary | base64` prints it.
    ///
    /// # Errors
    ///
    /// Returns an error if the text is not base64, or does not encode 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, TokenDigestError> {
        let engine = if text.ends_with('=') { &BASE64_STANDARD } else { &BASE64_STANDARD_NO_PAD };
        Self::decoded_by(engine, text)
    }

    fn decoded_by(engine: &impl base64::Engine, text: &str) -> Result<Self, TokenDigestError> {
        let bytes = engine.decode(text).map_err(|_| TokenDigestError::Encoding)?;
        bytes.try_into().map(Self::from_bytes).map_err(|_| TokenDigestError::Length)
    }

    /// Returns bits that [`Hash`] does not use. A shard that is chosen by these bits does not weaken the hash table in it.
    pub(crate) fn shard_bits(&self) -> usize {
        self.0[3] as usize
    }
}

/// The error of [`TokenDigest::from_hex`] and the other parsers of digests. It does not contain the text.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenDigestError {
    /// The text does not encode 32 bytes.
    #[error("invalid token digest: must be 32 bytes (SHA-256)")]
    Length,
    /// The text contains a character or padding that the encoding does not allow.
    #[error("invalid token digest: invalid encoding")]
    Encoding,
}

impl ConstantTimeEq for TokenDigest {
    /// Compares four words, which is faster than the byte-by-byte comparison of `subtle`.
    fn ct_eq(&self, other: &Self) -> Choice {
        let (a, b) = (&self.0, &other.0);
        ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3])).ct_eq(&0)
    }
}

impl PartialEq for TokenDigest {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for TokenDigest {}

impl Hash for TokenDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

impl From<&BearerToken<'_>> for TokenDigest {
    fn from(token: &BearerToken<'_>) -> Self {
        *token.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_digest_round_trips_and_takes_part_in_equality() {
        let digest = TokenDigest::of("a token");
        for i in 0..32 {
            let mut bytes = digest.to_bytes();
            bytes[i] ^= 1;
            assert_ne!(TokenDigest::from_bytes(bytes), digest, "byte {i}");
            bytes[i] ^= 1;
            assert_eq!(TokenDigest::from_bytes(bytes), digest);
        }
    }

    #[test]
    fn hex_text_of_64_digits_is_parsed_and_other_text_is_an_error() {
        let digest = TokenDigest::of("a token");
        let hex = digest.to_hex();
        assert_eq!(TokenDigest::from_hex(&hex), Ok(digest));
        assert_eq!(TokenDigest::from_hex(&hex.to_uppercase()), Ok(digest));
        for bad in ["", &hex[1..], &format!("{hex}0"), &format!("+{}", &hex[1..]), &format!("\u{e9}{}", &hex[2..])] {
            assert_eq!(TokenDigest::from_hex(bad).ok(), None, "{bad}");
        }
    }

    #[test]
    fn base64_text_is_parsed_in_its_own_alphabet_only() {
        // The digest of `token-2`, by OpenSSL. It contains both characters in which the alphabets differ.
        let digest = TokenDigest::of("token-2");
        let (padded, url) =
            ("D2v/qWYctd0vP3spKfMwYfWKe6f91olTCxowb47Y8+w=", "D2v_qWYctd0vP3spKfMwYfWKe6f91olTCxowb47Y8-w");
        let bare = &padded[..43];
        assert_eq!(digest.to_base64url(), url);
        assert_eq!(TokenDigest::from_base64url(url), Ok(digest));
        assert_eq!(TokenDigest::from_base64(padded), Ok(digest));
        assert_eq!(TokenDigest::from_base64(bare), Ok(digest));

        // The other alphabet, unexpected padding, a non-zero spare bit, and other lengths.
        let spare_bit = |text: &str| text[..42].to_owned() + "x";
        for bad in
            [padded, bare, &format!("{url}="), &spare_bit(url), &url[1..], &format!("{url}A"), &format!("{url}\n"), ""]
        {
            assert_eq!(TokenDigest::from_base64url(bad).ok(), None, "{bad}");
        }
        for bad in [url, &format!("{url}="), &format!("{padded}="), &spare_bit(bare), &padded[1..], " ", "=", ""] {
            assert_eq!(TokenDigest::from_base64(bad).ok(), None, "{bad}");
        }
    }
}
