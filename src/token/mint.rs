//! Creates random tokens, and checks the format of tokens without a store (feature `mint`).
//!
//! ```text
//! acme_4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq3mlp22
//! ──┬─ ─────────────────────┬───────────────────── ──┬───
//! prefix                  body                   checksum
//! ```
//!
//! A double click selects the whole token. No token location, URL, JSON or `name=value;` text has to escape it. Scanners for
//! leaked secrets can recognise it. The format is that of GitHub's tokens.
//!
//! # ABNF
//!
//! ```text
//! token    = prefix "_" body checksum
//! prefix   = ALPHA *base62 *( "_" 1*base62 )  ; at most 32 characters
//! body     = 43base62                         ; for 256 random bits; the length depends on the number of bits
//! checksum = 6base62                          ; CRC-32, most significant digit first, padded with zeros
//! base62   = DIGIT / ALPHA                    ; "0" is 0, "A" is 10, "a" is 36
//! ```
//!
//! # Rules
//!
//! 1. The body comes from the random source of the operating system. Every character has the same probability (OWASP ASVS
//!    5.0, section 7.2.3: 128 bits or more).
//! 2. The checksum covers all preceding characters, including the prefix and the underscore (CRC-32 of ISO-HDLC, as in gzip
//!    and PNG). A body under another prefix is therefore invalid, such as a test token renamed to a live one. A scanner can
//!    check a match without the length of the prefix.
//! 3. CRC-32 detects every change of one character and every swap of two neighbours within the body or the checksum. Other
//!    changes pass with a probability of 1 in 2^32. Changes of the length are always detected.
//! 4. The checksum provides no security, because every client can compute it. It keeps junk away from stores, and shows
//!    typing errors early. Clients get the same response as for an unknown token.
//!
//! # Example
//!
//! ```
//! use tollgate::{AuthLayer, Grant, MemoryStore, mint::{CheckError, TokenFormat}, store::CheckedStore};
//!
//! let format = TokenFormat::new("acme")?;
//! let tokens = MemoryStore::new();
//!
//! let secret = format.mint()?;
//! tokens.insert(&secret, Grant::new("alice", ()))?;
//! println!("Your token, which is not shown again: {}", secret.expose());
//!
//! // Typing errors and junk are rejected without a lookup in the store.
//! assert_eq!(format.check("acme_4nQzH0vJ2cUe"), Err(CheckError::Length));
//! let gate = AuthLayer::new(CheckedStore::new(tokens, format));
//! # let _ = gate;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::ops::RangeInclusive;

use thiserror::Error;
use zeroize::Zeroizing;

use crate::token::TokenDigest;

/// The format of a service's tokens: a prefix and a number of random bits.
///
/// Use one format for the lifetime of the service, because tokens of another format are invalid. Give each environment its
/// own prefix (`acme_live`, `acme_test`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFormat {
    /// The prefix with its underscore.
    lead: Box<str>,
    random_bits: u32,
    body_len: usize,
}

impl TokenFormat {
    /// Creates a format with this prefix and 256 random bits.
    ///
    /// The prefix consists of up to 32 letters, digits and underscores. It begins with a letter, does not end with an
    /// underscore, and contains no two underscores in a row.
    ///
    /// # Errors
    ///
    /// Returns an error if the prefix has another form.
    pub fn new(prefix: &str) -> Result<Self, FormatError> {
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let is_prefix = prefix.len() <= MAX_PREFIX_LEN
            && prefix.starts_with(|first: char| first.is_ascii_alphabetic())
            && prefix.split('_').all(is_word);
        if !is_prefix {
            return Err(FormatError::Prefix);
        }
        let lead = format!("{prefix}_").into();
        Ok(Self { lead, random_bits: DEFAULT_RANDOM_BITS, body_len: body_len(DEFAULT_RANDOM_BITS) })
    }

    /// Sets the minimum number of random bits, from 128 (22 characters) to 512. Default: 256 (43 characters).
    ///
    /// # Errors
    ///
    /// Returns an error if the number is out of range.
    pub fn with_random_bits(self, bits: u32) -> Result<Self, FormatError> {
        if bits < *RANDOM_BITS.start() {
            return Err(FormatError::TooFewBits);
        }
        if bits > *RANDOM_BITS.end() {
            return Err(FormatError::TooManyBits);
        }
        Ok(Self { random_bits: bits, body_len: body_len(bits), ..self })
    }

    /// Returns the prefix, without the underscore that separates it from the body.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.lead[..self.lead.len() - 1]
    }

    /// Returns the minimum number of random bits of a token.
    #[must_use]
    pub fn random_bits(&self) -> u32 {
        self.random_bits
    }

    /// Returns the number of characters of a token.
    #[must_use]
    pub fn token_len(&self) -> usize {
        self.lead.len() + self.body_len + CHECKSUM_LEN
    }

    /// Creates a random token. Store its digest, show the token to its owner, and drop it.
    ///
    /// # Errors
    ///
    /// Returns an error if the random source of the operating system fails.
    pub fn mint(&self) -> Result<Secret, RandomnessError> {
        self.mint_from(getrandom::fill).map_err(RandomnessError)
    }

    fn mint_from<E>(&self, mut fill: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<Secret, E> {
        // Allocated in full, because a reallocation would leave a copy behind.
        let mut token = Zeroizing::new(String::with_capacity(self.token_len()));
        token.push_str(&self.lead);
        let body_end = self.lead.len() + self.body_len;
        let mut random = Zeroizing::new([0_u8; 64]);
        while token.len() < body_end {
            fill(&mut *random)?;
            // 248 is four times the size of the alphabet. Larger values are dropped: they would favour its first characters.
            let fair = random.iter().filter(|byte| **byte < 248);
            let missing = body_end - token.len();
            token.extend(fair.map(|byte| char::from(BASE62[usize::from(byte % 62)])).take(missing));
        }
        let checksum = checksum(token.as_bytes());
        token.extend(checksum.map(char::from));
        Ok(Secret(token))
    }

    /// Checks the format of a token. Only a store can tell whether the token is valid.
    ///
    /// The work is bounded by the format and does not depend on the length of the text. The checks run in the order prefix,
    /// length, characters, checksum. The error contains no part of the token.
    ///
    /// # Errors
    ///
    /// Returns the first check that fails.
    pub fn check(&self, token: impl AsRef<[u8]>) -> Result<(), CheckError> {
        let token = token.as_ref();
        let rest = token.strip_prefix(self.lead.as_bytes()).ok_or(CheckError::Prefix)?;
        if token.len() != self.token_len() {
            return Err(CheckError::Length);
        }
        if !rest.iter().all(u8::is_ascii_alphanumeric) {
            return Err(CheckError::Charset);
        }
        let (covered, presented) = token.split_at(token.len() - CHECKSUM_LEN);
        // Not in constant time: every client can compute the checksum of its token.
        if presented != checksum(covered) {
            return Err(CheckError::Checksum);
        }
        Ok(())
    }

    /// Returns a regular expression for scanners that search logs, repositories and messages for leaked tokens.
    ///
    /// The expression has the same meaning in all common dialects (POSIX extended, PCRE, RE2, Hyperscan, Rust's `regex`). It
    /// has no anchors, so it also finds tokens after an escape such as `%3D` or `\n`. It does not cover the checksum: pass
    /// each match to [`check`](Self::check), which leaves 1 false match in 2^32.
    ///
    /// ```
    /// use regex::Regex;
    /// use tollgate::mint::TokenFormat;
    ///
    /// let format = TokenFormat::new("acme")?;
    /// assert_eq!(format.pattern(), "acme_[0-9A-Za-z]{49}");
    ///
    /// let log = format!("POST /webhook?key%3D{} 200", format.mint()?.expose());
    /// let pattern = Regex::new(&format.pattern())?;
    /// let leaked = pattern.find_iter(&log).filter(|found| format.check(found.as_str()).is_ok());
    /// assert_eq!(leaked.count(), 1);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn pattern(&self) -> String {
        // The prefix contains no special characters of regular expressions.
        format!("{}[0-9A-Za-z]{{{}}}", self.lead, self.body_len + CHECKSUM_LEN)
    }

    /// Returns whether a token begins with the prefix of this format.
    pub(crate) fn claims(&self, token: &[u8]) -> bool {
        token.starts_with(self.lead.as_bytes())
    }
}

/// A token, to be shown to its owner.
///
/// - The type cannot be printed by accident. `Debug` is redacted; `Display`, `Serialize` and `Clone` are not implemented.
/// - Stores keep the [`digest`](Self::digest) of the token, which does not lead back to it. `drop` overwrites its memory.
/// - Only [`expose`](Self::expose) returns the text. Code reviews can search for this method. The service is responsible for
///   its copies.
pub struct Secret(Zeroizing<String>);

impl Secret {
    #[cfg(all(feature = "reveal", any(feature = "sqlite", feature = "postgres")))]
    pub(crate) fn new(token: Zeroizing<String>) -> Self {
        Self(token)
    }

    /// Returns the token, to be shown to its owner. Never log it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the SHA-256 digest of the token, under which a store keeps the grant.
    #[must_use]
    pub fn digest(&self) -> TokenDigest {
        TokenDigest::of(self.0.as_bytes())
    }
}

impl From<&Secret> for TokenDigest {
    fn from(secret: &Secret) -> Self {
        secret.digest()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The error of an invalid [`TokenFormat`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormatError {
    /// The prefix is not a letter followed by up to 31 letters, digits and single inner underscores.
    #[error("invalid token prefix: must be a letter, then up to 31 letters, digits and single inner underscores")]
    Prefix,
    /// The number of random bits is below 128.
    #[error("invalid number of random bits: must be at least 128")]
    TooFewBits,
    /// The number of random bits is above 512.
    #[error("invalid number of random bits: must be at most 512")]
    TooManyBits,
}

/// The error of [`TokenFormat::check`]. A gate does not send it to clients.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CheckError {
    /// The token does not begin with the prefix of the format.
    #[error("invalid token: wrong prefix")]
    Prefix,
    /// The token is too short or too long.
    #[error("invalid token: wrong length")]
    Length,
    /// The token contains a character that is neither a letter nor a digit.
    #[error("invalid token: invalid character")]
    Charset,
    /// The checksum does not match. The token was mistyped or made up.
    #[error("invalid token: wrong checksum")]
    Checksum,
}

/// The error of a random source that failed.
#[derive(Debug, Error)]
#[error("the random source of the operating system failed")]
pub struct RandomnessError(#[source] getrandom::Error);

#[cfg(any(feature = "sqlite", feature = "postgres"))]
impl RandomnessError {
    pub(crate) fn new(error: getrandom::Error) -> Self {
        Self(error)
    }
}

/// Returns the smallest number of characters that hold this many bits: `bits / log2(62)`, rounded up.
fn body_len(bits: u32) -> usize {
    // Rounded down, so that a body is never too short.
    const LOG2_62_E9: u64 = 5_954_196_310;
    (u64::from(bits) * 1_000_000_000).div_ceil(LOG2_62_E9) as usize
}

/// Returns the CRC-32 in base62. Six digits hold 32 bits; five do not.
fn checksum(covered: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut rest = crc32fast::hash(covered);
    let mut text = [0; CHECKSUM_LEN];
    for digit in text.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    text
}

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const CHECKSUM_LEN: usize = 6;
const MAX_PREFIX_LEN: usize = 32;
const DEFAULT_RANDOM_BITS: u32 = 256;
const RANDOM_BITS: RangeInclusive<u32> = 128..=512;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Returns a random source that yields 0, 1, 2 and so on.
    fn counting() -> impl FnMut(&mut [u8]) -> Result<(), Infallible> {
        let mut next = 0_u8;
        move |bytes| {
            for byte in bytes {
                *byte = next;
                next = next.wrapping_add(1);
            }
            Ok(())
        }
    }

    #[test]
    fn all_characters_are_equally_likely() {
        // Two passes through all values of a byte. Each pass drops 8 values.
        let format = TokenFormat { body_len: 2 * 248, ..TokenFormat::new("t").unwrap() };
        let secret = format.mint_from(counting()).unwrap();
        let body = &secret.expose()[2..498];
        for digit in BASE62 {
            assert_eq!(body.bytes().filter(|byte| byte == digit).count(), 8, "{}", char::from(*digit));
        }
    }

    #[test]
    fn a_failing_random_source_yields_no_token() {
        let format = TokenFormat::new("t").unwrap();
        assert_eq!(format.mint_from(|_| Err("no randomness")).map(drop), Err("no randomness"));
        // A failure in the middle of a token.
        let mut fills = 0;
        let unfair = |bytes: &mut [u8]| {
            bytes.fill(255);
            bytes[0] = 1;
            fills += 1;
            if fills < 43 { Ok(()) } else { Err("no more") }
        };
        assert_eq!(format.mint_from(unfair).map(drop), Err("no more"));
        assert_eq!(fills, 43, "each call yields one character");
    }

    #[test]
    fn secrets_are_zeroised_on_drop_and_never_reallocated() {
        fn is_zeroised<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        let secret = TokenFormat::new("acme").unwrap().mint().unwrap();
        is_zeroised(&secret.0);
        assert_eq!(secret.0.len(), 54);
        assert_eq!(secret.0.capacity(), 54, "a reallocation would leave a copy behind");
    }

    /// Uses integers: the body has the smallest length whose power of 62 reaches the power of 2.
    #[test]
    fn the_body_has_the_smallest_sufficient_length() {
        // Powers of 62, as little-endian 32-bit words.
        let mut power = vec![1_u64];
        let bits_of = |power: &[u64]| 32 * (power.len() as u32 - 1) + (power.last().unwrap().ilog2());
        for characters in 1..=87 {
            let before = bits_of(&power);
            let mut carry = 0;
            for word in &mut power {
                let product = *word * 62 + carry;
                (*word, carry) = (product & 0xffff_ffff, product >> 32);
            }
            if carry > 0 {
                power.push(carry);
            }
            for bits in before + 1..=bits_of(&power) {
                if RANDOM_BITS.contains(&bits) {
                    assert_eq!(body_len(bits), characters, "{bits} bits");
                }
            }
        }
        assert!(bits_of(&power) >= 512);
    }
}
