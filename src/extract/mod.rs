//! Token extraction, the first step of the pipeline: finds the token in a request.
//!
//! A *token location* is a place in a request where a token can be. Each parser is a function of bytes. It accepts any input
//! and runs in linear time, so that it can be fuzzed alone.
//!
//! # Rules
//!
//! 1. A request has exactly one credential. An empty or malformed token counts as a credential, and is rejected.
//! 2. If several credentials are found, the request is invalid (`invalid_request`), even if all are equal.
//! 3. Locations that are not enabled are ignored.

use std::borrow::Cow;

use thiserror::Error;

#[cfg(feature = "body")]
pub(crate) mod body;
#[cfg(feature = "body")]
mod form;
mod head;
mod header;
#[cfg(feature = "body")]
mod json;
mod query;
#[cfg(feature = "body")]
mod text;
mod websocket;

#[cfg(feature = "body")]
pub use form::form;
pub use head::TokenLocationError;
pub use header::{api_key, authorization};
#[cfg(feature = "body")]
pub use json::json;
pub use query::query;
#[cfg(feature = "body")]
pub use text::text;
pub use websocket::websocket;

pub(crate) use head::{HeadLocations, enable, location_name};
pub(crate) use header::{authorization_value, has_bearer};
pub(crate) use query::{allows_query_token, without_parameter};
pub(crate) use websocket::without_token;

pub use crate::rejection::invalid_request::InvalidRequest;
use crate::token::{BearerToken, TokenLocation};

/// The set of bytes that a token may contain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenCharset {
    /// `b64token` of RFC 6750, section 2.1: letters, digits, `-._~+/`, then any number of `=`.
    #[default]
    B64Token,
    /// All visible ASCII characters except `,`, `"` and `\`: for RFC 8959 (`secret-token:`) and for existing keys.
    Lenient,
}

/// The syntax of tokens: the allowed bytes and the maximum length. It is the same for all token locations.
///
/// ```
/// use tollgate::extract::{TokenCharset, TokenSyntax};
///
/// let syntax = TokenSyntax::default().with_charset(TokenCharset::Lenient).with_max_len(256);
/// assert_eq!((syntax.charset(), syntax.max_len()), (TokenCharset::Lenient, 256));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenSyntax {
    charset: TokenCharset,
    max_len: usize,
}

impl TokenSyntax {
    /// The default maximum length of a token, in bytes.
    pub const DEFAULT_MAX_LEN: usize = 8_192;

    /// Sets the bytes that a token may contain. Default: [`TokenCharset::B64Token`].
    #[must_use]
    pub const fn with_charset(self, charset: TokenCharset) -> Self {
        Self { charset, ..self }
    }

    /// Sets the maximum length of a token, in bytes. Default: [`DEFAULT_MAX_LEN`](Self::DEFAULT_MAX_LEN).
    ///
    /// Longer tokens are rejected before they are hashed.
    #[must_use]
    pub const fn with_max_len(self, max_len: usize) -> Self {
        Self { max_len, ..self }
    }

    /// Returns the bytes that a token may contain.
    #[must_use]
    pub const fn charset(self) -> TokenCharset {
        self.charset
    }

    /// Returns the maximum length of a token, in bytes.
    #[must_use]
    pub const fn max_len(self) -> usize {
        self.max_len
    }

    /// Checks a token, as gates do. A gate does not send the error to clients: it explains to operators why a token is malformed.
    ///
    /// ```
    /// use tollgate::extract::{TokenSyntax, TokenSyntaxError};
    ///
    /// assert_eq!(TokenSyntax::default().check("tg_abc"), Ok(()));
    /// assert_eq!(TokenSyntax::default().check("tg abc"), Err(TokenSyntaxError::Charset));
    /// ```
    ///
    /// # Errors
    ///
    /// Returns the first rule that the token breaks. The error contains no part of the token.
    pub fn check(self, token: impl AsRef<[u8]>) -> Result<(), TokenSyntaxError> {
        let token = token.as_ref();
        match is_token(token, self) {
            true => Ok(()),
            false if token.is_empty() => Err(TokenSyntaxError::Empty),
            false if token.len() > self.max_len => Err(TokenSyntaxError::TooLong),
            false => Err(TokenSyntaxError::Charset),
        }
    }
}

/// The error of [`TokenSyntax::check`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenSyntaxError {
    /// The token is empty.
    #[error("malformed token: it is empty")]
    Empty,
    /// The token is longer than [`TokenSyntax::max_len`].
    #[error("malformed token: it is too long")]
    TooLong,
    /// The token has a byte that [`TokenSyntax::charset`] does not allow, or `=` before the end.
    #[error("malformed token: it has a character that tokens cannot have")]
    Charset,
}

impl Default for TokenSyntax {
    fn default() -> Self {
        Self { charset: TokenCharset::default(), max_len: Self::DEFAULT_MAX_LEN }
    }
}

/// The result of reading one token location.
#[derive(Debug)]
#[non_exhaustive]
pub enum Extracted<'a> {
    /// No credential.
    Nothing,
    /// A well-formed token.
    Token(BearerToken<'a>),
    /// A credential that is not a well-formed token. It is rejected like an unknown token.
    Malformed,
    /// An invalid request: it has more than one credential, or a body that cannot be parsed.
    Ambiguous(InvalidRequest),
}

impl<'a> Extracted<'a> {
    /// Checks the syntax of a value that a location holds.
    fn value(bytes: impl Into<Cow<'a, [u8]>>, syntax: TokenSyntax) -> Self {
        let bytes = bytes.into();
        match is_token(&bytes, syntax) {
            true => Self::Token(BearerToken::decoded(bytes)),
            false => Self::Malformed,
        }
    }

    /// Combines the results of two locations, and returns the location of the combined result.
    pub(crate) fn and(self, location: TokenLocation, other: Self, of: TokenLocation) -> (Self, TokenLocation) {
        match (self, other) {
            (this, Self::Nothing) => (this, location),
            (Self::Nothing, other) => (other, of),
            // Only the first reason is reported. A client that fixes it gets the next one.
            (Self::Ambiguous(reason), _) | (_, Self::Ambiguous(reason)) => (Self::Ambiguous(reason), location),
            _ => (Self::Ambiguous(InvalidRequest::SeveralCredentials), location),
        }
    }
}

/// The byte order mark of UTF-8.
#[cfg(feature = "body")]
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Returns whether the byte is in `b64token`, without its padding. It has no branches, so that the compiler vectorizes it.
const fn is_b64(byte: u8) -> bool {
    let is_letter = (byte | 0x20).wrapping_sub(b'a') < 26;
    // `-`, `.` and `/` come before the digits. Each comparison less is one less in each block.
    let is_digit_or_before = byte.wrapping_sub(b'-') <= b'9' - b'-';
    is_letter | is_digit_or_before | (byte == b'_') | (byte == b'~') | (byte == b'+')
}

const fn is_lenient(byte: u8) -> bool {
    (byte.wrapping_sub(0x21) <= 0x7e - 0x21) & (byte != b',') & (byte != b'"') & (byte != b'\\')
}

const fn is_alphanumeric(byte: u8) -> bool {
    ((byte | 0x20).wrapping_sub(b'a') < 26) | (byte.wrapping_sub(b'0') < 10)
}

/// Returns whether the byte is a `tchar` (RFC 9110, section 5.6.2).
const fn is_tchar(byte: u8) -> bool {
    is_alphanumeric(byte)
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

/// Returns whether the bytes are a token of this syntax.
fn is_token(bytes: &[u8], syntax: TokenSyntax) -> bool {
    if bytes.is_empty() || bytes.len() > syntax.max_len {
        return false;
    }
    match syntax.charset {
        TokenCharset::B64Token => {
            let padding = bytes.iter().rev().take_while(|&&byte| byte == b'=').count();
            let body = &bytes[..bytes.len() - padding];
            !body.is_empty() && all(body, is_b64)
        }
        TokenCharset::Lenient => all(bytes, is_lenient),
    }
}

/// Works like `Iterator::all`, but ends only after a whole block of 16 bytes, so that the compiler vectorizes the check of a block.
#[inline]
fn all(bytes: &[u8], is: impl Fn(u8) -> bool) -> bool {
    let is_valid = |block: &[u8; 16]| block.iter().fold(true, |valid, &byte| valid & is(byte));
    match bytes.last_chunk() {
        // The last block overlaps the previous one if the length is not a multiple of 16.
        Some(last) => is_valid(last) && bytes.chunks_exact(16).all(|block| block.first_chunk().is_some_and(is_valid)),
        None => bytes.iter().all(|&byte| is(byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_classes_match_the_grammar() {
        for byte in 0..=u8::MAX {
            let alphanumeric = byte.is_ascii_alphanumeric();
            assert_eq!(is_b64(byte), alphanumeric || b"-._~+/".contains(&byte), "b64 {byte:#x}");
            assert_eq!(is_tchar(byte), alphanumeric || b"!#$%&'*+-.^_`|~".contains(&byte), "tchar {byte:#x}");
            assert_eq!(is_lenient(byte), byte.is_ascii_graphic() && !b",\"\\".contains(&byte), "lenient {byte:#x}");
        }
    }

    #[test]
    fn token_syntax_limits_length_and_bytes() {
        let syntax = TokenSyntax::default().with_max_len(4);
        assert_eq!(syntax.max_len(), 4);
        assert_eq!(syntax.check(""), Err(TokenSyntaxError::Empty));
        assert_eq!(syntax.check("a=b="), Err(TokenSyntaxError::Charset));
        assert_eq!(syntax.check("a=b=c"), Err(TokenSyntaxError::TooLong));
        assert_eq!(syntax.check("ab=="), Ok(()));
        for (token, expected) in
            [("", false), ("a", true), ("abcd", true), ("abcde", false), ("ab==", true), ("=", false), ("a=b", false)]
        {
            assert_eq!(is_token(token.as_bytes(), syntax), expected, "{token}");
        }
        let lenient = TokenSyntax::default().with_charset(TokenCharset::Lenient);
        for (token, expected) in [("a:b%20", true), ("=", true), ("a b", false), ("a,b", false), ("caf\u{e9}", false)] {
            assert_eq!(is_token(token.as_bytes(), lenient), expected, "{token}");
        }
    }

    #[test]
    fn one_or_two_invalid_bytes_are_found_at_any_position() {
        for len in 1..50 {
            let good = vec![b'a'; len];
            assert!(is_token(&good, TokenSyntax::default()), "{len}");
            for (one, other) in (0..len).flat_map(|one| (one..len).map(move |other| (one, other))) {
                let mut bad = good.clone();
                (bad[one], bad[other]) = (b',', b',');
                assert!(!is_token(&bad, TokenSyntax::default()), "{one} and {other} of {len}");
            }
        }
    }
}
