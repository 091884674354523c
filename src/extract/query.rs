//! Tokens in the query.
use std::borrow::Cow;

use http::{Method, Uri};
use percent_encoding::percent_decode;

use super::{Extracted, InvalidRequest, TokenSyntax};

/// Reads the token of a query parameter (RFC 6750, section 2.3) of a `GET` or `HEAD` request.
///
/// # Rules
///
/// 1. Parameters are separated by `&`, never by `;`. A name without `=` has an empty value.
/// 2. Names and values are percent-decoded once. A broken escape is kept as it is.
/// 3. `+` is a plus sign: RFC 6750 refers to RFC 3986 for the query, which gives it no other meaning.
/// 4. More than one such parameter is [`Extracted::Ambiguous`]. An empty parameter is [`Extracted::Malformed`].
///
/// ```
/// use http::{Method, Uri};
/// use tollgate::extract::{Extracted, TokenSyntax, query};
///
/// let uri = Uri::from_static("/quotes?symbol=ES&access%5Ftoken=mF_9.B5f%2D4.1JqM");
/// let Extracted::Token(token) = query(&Method::GET, &uri, "access_token", TokenSyntax::default()) else { panic!() };
/// assert_eq!(token.expose(), b"mF_9.B5f-4.1JqM");
/// ```
pub fn query<'a>(method: &Method, uri: &'a Uri, name: &str, syntax: TokenSyntax) -> Extracted<'a> {
    match uri.query() {
        Some(query) if allows_query_token(method) => one_value(query.as_bytes(), name, Escapes::Percent, syntax).0,
        _ => Extracted::Nothing,
    }
}

/// Returns whether requests of this method may have a token in the query.
pub(crate) fn allows_query_token(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// The escapes of names and values.
#[derive(Clone, Copy)]
pub(super) enum Escapes {
    Percent,
    /// Percent-encoding, and `+` for a space.
    #[cfg(feature = "body")]
    Form,
}

impl Escapes {
    fn decode(self, bytes: &[u8]) -> Cow<'_, [u8]> {
        match self {
            #[cfg(feature = "body")]
            Self::Form if bytes.contains(&b'+') => self.decoded(bytes).collect(),
            _ => percent_decode(bytes).into(),
        }
    }

    /// Decodes byte by byte, so that comparing a name never allocates.
    fn decoded(self, bytes: &[u8]) -> impl Iterator<Item = u8> {
        let is_space = move |&byte: &u8| byte == b'+' && !matches!(self, Self::Percent);
        // A percent escape contains no `+`.
        bytes.split(is_space).enumerate().flat_map(|(at, part)| {
            let space = (at > 0).then_some(b' ');
            space.into_iter().chain(percent_decode(part))
        })
    }
}

/// Returns the value of the only pair with this name, and its range.
pub(super) fn one_value<'a>(
    pairs: &'a [u8],
    name: &str,
    escapes: Escapes,
    syntax: TokenSyntax,
) -> (Extracted<'a>, std::ops::Range<usize>) {
    let mut found = None;
    let mut at = 0;
    for pair in pairs.split(|&byte| byte == b'&') {
        let (own, value) = split_pair(pair);
        if escapes.decoded(own).eq(name.bytes()) {
            if found.is_some() {
                let reason = match escapes {
                    Escapes::Percent => InvalidRequest::SeveralCredentials,
                    #[cfg(feature = "body")]
                    Escapes::Form => InvalidRequest::RepeatedField,
                };
                return (Extracted::Ambiguous(reason), 0..0);
            }
            found = Some((value, at + pair.len() - value.len()..at + pair.len()));
        }
        at += pair.len() + 1;
    }
    match found {
        None => (Extracted::Nothing, 0..0),
        Some((value, span)) => (Extracted::value(escapes.decode(value), syntax), span),
    }
}

fn split_pair(pair: &[u8]) -> (&[u8], &[u8]) {
    match pair.iter().position(|&byte| byte == b'=') {
        Some(at) => (&pair[..at], &pair[at + 1..]),
        None => (pair, &[]),
    }
}

/// Returns the URI without this parameter, for handlers and logs.
pub(crate) fn without_parameter(uri: &Uri, name: &str) -> Option<Uri> {
    let kept: Vec<&str> = uri
        .query()?
        .split('&')
        .filter(|pair| !percent_decode(split_pair(pair.as_bytes()).0).eq(name.bytes()))
        .collect();
    let target = match kept.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), kept.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target.parse().ok()?);
    Uri::from_parts(parts).ok()
}
