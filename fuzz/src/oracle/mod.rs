//! Extraction of tokens from requests, by the reference parser.
//!
//! ```text
//! authorization(lines):
//!   0 lines -> Absent;  >1 -> BadRequest
//!   v = strip(SP,HTAB);  v == "" -> Absent
//!   scheme = longest prefix of tchar;  not eq-ignore-case "bearer" -> Absent
//!   rest = v[6..];  contains ',' -> BadRequest
//!   rest == "" or rest[0] != SP -> BadToken
//!   tok = rest without leading SP;  b64token and len <= max ? Token : BadToken
//! param(pairs, plus_is_space): names/values percent-decoded once, bytes
//!   0 -> Absent; >1 -> BadRequest; 1 -> b64token ? Token : BadToken
//! json(body):  len>max -> TooLarge; UTF-8? BOM? blank -> Absent; depth>64, syntax -> BadRequest
//!   not object / no "key" / null -> Absent; >1 "key" -> BadRequest; not string -> BadRequest; b64token?
//! text(body):  fields of `;`, name and value of the first `=`, names without case; two, or no `=` -> BadRequest
//! ws(request):  not an upgrade, or no item with the prefix -> Absent;  two items, undecodable, or no other protocol
//!   offered -> BadRequest;  b64token ? Token : BadToken
//! minted(format):  prefix and "_", letters and digits of the given length, CRC-32 of all before as six digits of base62
//! combine(enabled): any TooLarge -> 413; any BadRequest -> 400; count of (Token|BadToken) > 1 -> 400; 0 -> 401 bare;
//!   BadToken -> 401 invalid_token
//! ```

mod body;
pub mod client_ip;
mod gcra;
mod header;
mod json;
pub mod jwt;
mod mint;
mod param;
mod request;
mod self_limit;
#[cfg(test)]
mod tests;

pub use body::{BodyLocation, body_location, text};
pub use gcra::{Cell, Decision, seconds_up};
pub use header::{api_key, authorization, list, websocket};
pub use json::json;
pub use mint::{Misfit, checksum, checksum_text, minted};
pub use param::{form, query, query_of};
pub use request::{Locations, Speaks, Verdict, extract, protocol};
pub use self_limit::{Invalid, Window, self_limit};

/// The content of a location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Absent,
    Token(String),
    BadToken,
    BadRequest,
    TooLarge,
}

/// The token syntax.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub max_len: usize,
    /// Allows all visible ASCII but comma, quote and backslash.
    pub lenient: bool,
}

impl Form {
    pub const DEFAULT: Self = Self { max_len: 8192, lenient: false };

    fn value(self, text: String) -> Found {
        if self.is_token(&text) { Found::Token(text) } else { Found::BadToken }
    }

    fn is_token(self, text: &str) -> bool {
        const B64: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/";
        let body = text.trim_end_matches('=');
        let is_b64 = !body.is_empty() && body.chars().all(|c| B64.contains(c));
        let is_lenient = !text.is_empty() && text.chars().all(|c| ('!'..='~').contains(&c) && !",\"\\".contains(c));
        text.chars().count() <= self.max_len && if self.lenient { is_lenient } else { is_b64 }
    }
}

/// Returns bytes as text of one character per byte.
pub fn latin_1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Returns the bytes of such a text.
pub fn bytes(latin_1: &str) -> Vec<u8> {
    latin_1.chars().map(|c| u8::try_from(c).expect("one character per byte")).collect()
}

/// Strips the white space that HTTP allows around values.
pub fn strip(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}
