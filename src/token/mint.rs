//! New tokens, and a check of tokens that needs no store (feature `mint`).
//!
//! ```text
//! acme_4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq3mlp22
//! ──┬─ ─────────────────────┬───────────────────── ──┬───
//! prefix                  body                   checksum
//! ```
//!
//! Made so that double-clicking selects all of it, that no door, URL, JSON or `name=value;` text needs an escape for it,
//! and that scanners for leaked secrets can tell it from everything else. The shape is GitHub's.
//!
//! # ABNF
//!
//! ```text
//! token    = prefix "_" body checksum
//! prefix   = ALPHA *base62 *( "_" 1*base62 )  ; at most 32 characters
//! body     = 43base62                         ; 256 random bits; as many as the bits need
//! checksum = 6base62                          ; CRC-32, most significant digit first, with zeros in front
//! base62   = DIGIT / ALPHA                    ; "0" is 0, "A" is 10, "a" is 36
//! ```
//!
//! # Rules
//!
//! 1. The body is drawn from the operating system's random source, every character with the same probability
//!    (OWASP ASVS 5.0, section 7.2.3: 128 bits or more).
//! 2. The checksum is that of all that precedes it, prefix and underscore too (CRC-32 of ISO-HDLC, as in gzip and PNG). So a
//!    body under another prefix does not fit, such as a test token renamed to a live one, and a scanner can check what it
//!    found without knowing where the prefix ends.
//! 3. CRC-32 finds every change of one character and every swap of neighbours within the body or the checksum; anything else
//!    passes once in 2^32. A change of length is always found.
//! 4. The checksum is no security, since anybody can compute it. It spares stores the junk and callers the puzzle. Outward,
//!    a token that does not fit is unknown like any other.
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
//! // Typing errors and junk are refused before the store is asked.
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

/// The shape of a service's tokens: a prefix, and how many random bits they have.
///
/// A service has one, and keeps it for ever: tokens that were minted in another shape do not fit. Give environments prefixes of
/// their own (`acme_live`, `acme_test`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFormat {
    /// The prefix with its underscore.
    lead: Box<str>,
    random_bits: u32,
    body_len: usize,
}

impl TokenFormat {
    /// Tokens with this prefix and 256 random bits.
    ///
    /// The prefix has up to 32 letters, digits and underscores; it begins with a letter, and no underscore stands at its end
    /// or beside another.
    ///
    /// # Errors
    ///
    /// If the prefix is anything else.
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

    /// The same with so many random bits at the least, from 128 to 512: 22 characters for 128 bits, 43 for 256.
    ///
    /// # Errors
    ///
    /// If there are fewer or more.
    pub fn with_random_bits(self, bits: u32) -> Result<Self, FormatError> {
        if bits < *RANDOM_BITS.start() {
            return Err(FormatError::TooFewBits);
        }
        if bits > *RANDOM_BITS.end() {
            return Err(FormatError::TooManyBits);
        }
        Ok(Self { random_bits: bits, body_len: body_len(bits), ..self })
    }

    /// What stands before the body, without the last underscore.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.lead[..self.lead.len() - 1]
    }

    /// How many random bits a token has, at the least.
    #[must_use]
    pub fn random_bits(&self) -> u32 {
        self.random_bits
    }

    /// How many characters a token has.
    #[must_use]
    pub fn token_len(&self) -> usize {
        self.lead.len() + self.body_len + CHECKSUM_LEN
    }

    /// A new token. Keep its digest, show it to its owner, and drop it.
    ///
    /// # Errors
    ///
    /// If the operating system has no randomness to give.
    pub fn mint(&self) -> Result<Secret, RandomnessError> {
        self.mint_from(getrandom::fill).map_err(RandomnessError)
    }

    fn mint_from<E>(&self, mut fill: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<Secret, E> {
        // As large as it will be, so that no copy is left behind by a growth.
        let mut token = Zeroizing::new(String::with_capacity(self.token_len()));
        token.push_str(&self.lead);
        let body_end = self.lead.len() + self.body_len;
        let mut random = Zeroizing::new([0_u8; 64]);
        while token.len() < body_end {
            fill(&mut *random)?;
            // Of 256 bytes 248 stand for four times the alphabet. The others are dropped: they would favour its beginning.
            let fair = random.iter().filter(|byte| **byte < 248);
            let missing = body_end - token.len();
            token.extend(fair.map(|byte| char::from(BASE62[usize::from(byte % 62)])).take(missing));
        }
        let checksum = checksum(token.as_bytes());
        token.extend(checksum.map(char::from));
        Ok(Secret(token))
    }

    /// Whether this could be one of the service's tokens, by its form alone. Only a store knows whether it is.
    ///
    /// The work is bounded by the format, however long the text is that is checked. The error tells the first of prefix,
    /// length, alphabet and checksum that does not fit, and holds nothing of the token.
    ///
    /// # Errors
    ///
    /// If it cannot be one.
    pub fn check(&self, token: impl AsRef<[u8]>) -> Result<(), CheckError> {
        let token = token.as_ref();
        let rest = token.strip_prefix(self.lead.as_bytes()).ok_or(CheckError::Prefix)?;
        if token.len() != self.token_len() {
            return Err(CheckError::Length);
        }
        if !rest.iter().all(u8::is_ascii_alphanumeric) {
            return Err(CheckError::TokenCharset);
        }
        let (covered, presented) = token.split_at(token.len() - CHECKSUM_LEN);
        // In whatever time: whoever presents a token can compute its checksum.
        if presented != checksum(covered) {
            return Err(CheckError::Checksum);
        }
        Ok(())
    }

    /// A regular expression for scanners that look for leaked tokens, in logs, repositories and messages.
    ///
    /// It means the same in all usual dialects (POSIX extended, PCRE, RE2, Hyperscan, Rust's `regex`). It has no anchors, so
    /// that it finds tokens wherever they stand, behind an escape such as `%3D` or `\n` too. What it matches is what
    /// [`check`](Self::check) accepts but for the checksum: let `check` look at each match, and one in 2^32 is wrong.
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
        // Nothing in the prefix has a meaning in a regular expression.
        format!("{}[0-9A-Za-z]{{{}}}", self.lead, self.body_len + CHECKSUM_LEN)
    }

    /// Whether a text begins as tokens of this format do.
    pub(crate) fn claims(&self, token: &[u8]) -> bool {
        token.starts_with(self.lead.as_bytes())
    }
}

/// A token that was just minted, for as long as it takes to show it to its owner.
///
/// - It cannot be printed by accident: `Debug` is redacted, there is no `Display`, no `Serialize` and no `Clone`.
/// - It cannot be asked for again: stores keep its [`digest`](Self::digest), and its memory is overwritten when it is dropped.
/// - The one way to the text is [`expose`](Self::expose), which is easy to find in a review. Copies are the caller's.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The token itself, to be shown once. Never log it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The SHA-256 digest of the token, under which a store keeps its grant.
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

/// Why tokens cannot have such a [`TokenFormat`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormatError {
    /// The prefix is not a letter, then up to 31 letters, digits and single underscores between them.
    #[error("a prefix is up to 32 letters, digits and single underscores within, the first of them a letter")]
    Prefix,
    /// Such tokens could be guessed.
    #[error("a token needs 128 random bits or more")]
    TooFewBits,
    /// Nobody needs such tokens.
    #[error("a token has 512 random bits or fewer")]
    TooManyBits,
}

/// Why a text is no token of a [`TokenFormat`]. For people who mistyped, and for tests; a gate does not tell.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CheckError {
    /// It begins in another way, as tokens of somebody else do.
    #[error("the token has another prefix")]
    Prefix,
    /// It is cut off, or something stands behind it.
    #[error("the token is too short or too long")]
    Length,
    /// It has a character that is no letter or digit.
    #[error("the token has a character that none can have")]
    TokenCharset,
    /// It is mistyped, or made up.
    #[error("the token's checksum is wrong")]
    Checksum,
}

/// The operating system has no randomness to give.
#[derive(Debug, Error)]
#[error("the operating system has no randomness to give")]
pub struct RandomnessError(#[source] getrandom::Error);

#[cfg(any(feature = "sqlite", feature = "postgres"))]
impl RandomnessError {
    pub(crate) fn new(error: getrandom::Error) -> Self {
        Self(error)
    }
}

/// The smallest number of characters that have so many bits: `bits / log2(62)`, rounded up.
fn body_len(bits: u32) -> usize {
    // Rounded down, so that a body never comes out too short.
    const LOG2_62_E9: u64 = 5_954_196_310;
    (u64::from(bits) * 1_000_000_000).div_ceil(LOG2_62_E9) as usize
}

/// CRC-32 in base62. Six digits hold more than 32 bits, five do not.
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

    /// Fills with 0, 1, 2 and so on.
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
    fn every_character_is_as_likely_as_every_other() {
        // Two turns through the values of a byte, of which 8 are dropped each time.
        let format = TokenFormat { body_len: 2 * 248, ..TokenFormat::new("t").unwrap() };
        let secret = format.mint_from(counting()).unwrap();
        let body = &secret.expose()[2..498];
        for digit in BASE62 {
            assert_eq!(body.bytes().filter(|byte| byte == digit).count(), 8, "{}", char::from(*digit));
        }
    }

    #[test]
    fn a_source_that_fails_gives_no_token() {
        let format = TokenFormat::new("t").unwrap();
        assert_eq!(format.mint_from(|_| Err("no randomness")).map(drop), Err("no randomness"));
        // Also when it fails in the middle of a token.
        let mut fills = 0;
        let unfair = |bytes: &mut [u8]| {
            bytes.fill(255);
            bytes[0] = 1;
            fills += 1;
            if fills < 43 { Ok(()) } else { Err("no more") }
        };
        assert_eq!(format.mint_from(unfair).map(drop), Err("no more"));
        assert_eq!(fills, 43, "each gave one character");
    }

    #[test]
    fn secrets_do_not_outlive_themselves() {
        fn is_zeroised<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        let secret = TokenFormat::new("acme").unwrap().mint().unwrap();
        is_zeroised(&secret.0);
        assert_eq!(secret.0.len(), 54);
        assert_eq!(secret.0.capacity(), 54, "it has not grown, which leaves a copy behind");
    }

    /// In whole numbers: the power of 62 reaches that of 2, and one character less does not.
    #[test]
    fn a_body_is_as_long_as_its_bits_need() {
        // Little-endian words of a number that 62 is multiplied to.
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
