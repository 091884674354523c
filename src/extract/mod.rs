//! The first station: find the caller's token.
//!
//! Each place where a token can be is a *location*; one that a gate looks into is an open *door*. A parser is a function
//! of bytes: total and linear, so that it can be fuzzed alone. What the doors hold is combined by one rule: a request
//! carries one credential.
//!
//! # Rules
//!
//! 1. Presence counts: an empty or malformed token is presented, and refused, not absent.
//! 2. Where it cannot be told which token is meant, the request is wrong (`invalid_request`), even if all are equal.
//! 3. A closed door is not looked into: what is behind it neither counts nor hurts.

use std::borrow::Cow;

#[cfg(feature = "body")]
pub(crate) mod body;
mod doors;
#[cfg(feature = "body")]
mod form;
mod header;
#[cfg(feature = "body")]
mod json;
mod query;
#[cfg(feature = "body")]
mod text;
mod websocket;

pub use doors::TokenLocationError;
#[cfg(feature = "body")]
pub use form::form;
pub use header::{api_key, authorization};
#[cfg(feature = "body")]
pub use json::json;
pub use query::query;
#[cfg(feature = "body")]
pub use text::text;
pub use websocket::websocket;

pub(crate) use doors::{HeadDoors, door_name, open};
pub(crate) use header::has_bearer;
pub(crate) use query::{has_query_door, without_parameter};
pub(crate) use websocket::without_token;

pub use crate::rejection::invalid_request::InvalidRequest;
use crate::token::{BearerToken, TokenLocation};

/// Which bytes make a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenCharset {
    /// `b64token` of RFC 6750, section 2.1: letters, digits, `-._~+/`, then any number of `=`.
    #[default]
    B64Token,
    /// All visible ASCII but `,` `"` and `\`: for RFC 8959 (`secret-token:`) and for keys that were issued long ago.
    Lenient,
}

/// The form of tokens, the same for all carriers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenSyntax {
    /// The bytes that may be in it.
    pub alphabet: TokenCharset,
    /// The most bytes that it may have. More are refused before anything is hashed.
    pub max_len: usize,
}

impl TokenSyntax {
    /// The most bytes of a token unless something else is said.
    pub const DEFAULT_MAX_LEN: usize = 8_192;
}

impl Default for TokenSyntax {
    fn default() -> Self {
        Self { alphabet: TokenCharset::default(), max_len: Self::DEFAULT_MAX_LEN }
    }
}

/// What a location holds.
#[derive(Debug)]
pub enum Extracted<'a> {
    /// Nothing that this location is about.
    Nothing,
    /// A well-formed token.
    Token(BearerToken<'a>),
    /// A credential, but not a well-formed token: refused like an unknown token.
    Malformed,
    /// The request is wrong, for this reason: it has more than one credential, or a body that cannot be parsed.
    Ambiguous(InvalidRequest),
}

impl<'a> Extracted<'a> {
    /// A value that some location holds, if it has the form of a token.
    fn value(bytes: impl Into<Cow<'a, [u8]>>, form: TokenSyntax) -> Self {
        let bytes = bytes.into();
        match is_token(&bytes, form) {
            true => Self::Token(BearerToken::decoded(bytes)),
            false => Self::Malformed,
        }
    }

    /// What two doors hold together, and the location of it.
    pub(crate) fn and(self, location: TokenLocation, other: Self, of: TokenLocation) -> (Self, TokenLocation) {
        match (self, other) {
            (this, Self::Nothing) => (this, location),
            (Self::Nothing, other) => (other, of),
            // The first reason: a client that removes it is told the next.
            (Self::Ambiguous(reason), _) | (_, Self::Ambiguous(reason)) => (Self::Ambiguous(reason), location),
            _ => (Self::Ambiguous(InvalidRequest::SeveralCredentials), location),
        }
    }
}

/// The byte order mark of UTF-8.
#[cfg(feature = "body")]
const BOM: &[u8] = b"\xef\xbb\xbf";

/// `b64token` without its padding. Written without branches, so that the compiler checks many bytes at once.
const fn is_b64(byte: u8) -> bool {
    is_alphanumeric(byte)
        | (byte == b'-')
        | (byte == b'.')
        | (byte == b'_')
        | (byte == b'~')
        | (byte == b'+')
        | (byte == b'/')
}

const fn is_lenient(byte: u8) -> bool {
    (byte.wrapping_sub(0x21) <= 0x7e - 0x21) & (byte != b',') & (byte != b'"') & (byte != b'\\')
}

const fn is_alphanumeric(byte: u8) -> bool {
    ((byte | 0x20).wrapping_sub(b'a') < 26) | (byte.wrapping_sub(b'0') < 10)
}

/// RFC 9110, section 5.6.2.
const fn is_tchar(byte: u8) -> bool {
    is_alphanumeric(byte)
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

/// Whether the bytes are a token of this form.
fn is_token(bytes: &[u8], form: TokenSyntax) -> bool {
    if bytes.is_empty() || bytes.len() > form.max_len {
        return false;
    }
    match form.alphabet {
        TokenCharset::B64Token => {
            let padding = bytes.iter().rev().take_while(|&&byte| byte == b'=').count();
            let body = &bytes[..bytes.len() - padding];
            !body.is_empty() && all(body, is_b64)
        }
        TokenCharset::Lenient => all(bytes, is_lenient),
    }
}

/// Like `Iterator::all`, but to the end in any case, 16 bytes at a time: nearly all tokens are well-formed, and longer.
#[inline]
fn all(bytes: &[u8], is: impl Fn(u8) -> bool) -> bool {
    let wrong = |chunk: &[u8; 16]| chunk.iter().fold(0, |wrong, &byte| wrong | u8::from(!is(byte)));
    match bytes.last_chunk() {
        // The last 16 overlap those before, if the length is no multiple.
        Some(last) => {
            let chunks = bytes.chunks_exact(16).map(|chunk| chunk.first_chunk().map_or(1, &wrong));
            chunks.fold(wrong(last), |all, wrong| all | wrong) == 0
        }
        None => bytes.iter().all(|&byte| is(byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classes_are_the_grammar() {
        for byte in 0..=u8::MAX {
            let alphanumeric = byte.is_ascii_alphanumeric();
            assert_eq!(is_b64(byte), alphanumeric || b"-._~+/".contains(&byte), "b64 {byte:#x}");
            assert_eq!(is_tchar(byte), alphanumeric || b"!#$%&'*+-.^_`|~".contains(&byte), "tchar {byte:#x}");
            assert_eq!(is_lenient(byte), byte.is_ascii_graphic() && !b",\"\\".contains(&byte), "lenient {byte:#x}");
        }
    }

    #[test]
    fn the_form_bounds_a_token() {
        let form = TokenSyntax { max_len: 4, ..TokenSyntax::default() };
        for (token, expected) in
            [("", false), ("a", true), ("abcd", true), ("abcde", false), ("ab==", true), ("=", false), ("a=b", false)]
        {
            assert_eq!(is_token(token.as_bytes(), form), expected, "{token}");
        }
        let lenient = TokenSyntax { alphabet: TokenCharset::Lenient, ..TokenSyntax::default() };
        for (token, expected) in [("a:b%20", true), ("=", true), ("a b", false), ("a,b", false), ("caf\u{e9}", false)] {
            assert_eq!(is_token(token.as_bytes(), lenient), expected, "{token}");
        }
    }

    #[test]
    fn a_wrong_byte_is_found_wherever_it_is_and_two_are_as_well() {
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
