//! Tokens in header fields: `Authorization` and API keys.
use http::{HeaderMap, HeaderName, header};

use super::{Extracted, InvalidRequest, TokenSyntax, is_tchar, is_token};
use crate::token::BearerToken;

/// Reads the token of the `Authorization` header (RFC 6750, section 2.1, and RFC 9110, section 11).
///
/// # Rules
///
/// 1. The value is read as bytes. A value that is not UTF-8 is malformed, not missing.
/// 2. No field line, an empty value and another scheme are [`Extracted::Nothing`].
/// 3. More than one line, with any schemes, is [`Extracted::Ambiguous`]. So is a comma in Bearer credentials, because proxies
///    join two lines with a comma.
/// 4. Spaces and tabs around the value are removed. Other white space is part of the value.
/// 5. The scheme is matched without case. One or more spaces (not tabs) and the token follow, and nothing else.
///
/// # ABNF
///
/// ```text
/// credentials = "Bearer" 1*SP b64token
/// b64token    = 1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="
/// ```
///
/// # Example
///
/// ```
/// use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
/// use tollgate::extract::{Extracted, TokenSyntax, authorization};
///
/// let mut headers = HeaderMap::new();
/// assert!(matches!(authorization(&headers, TokenSyntax::default()), Extracted::Nothing));
///
/// headers.insert(AUTHORIZATION, HeaderValue::from_static("bearer  mF_9.B5f-4.1JqM"));
/// let Extracted::Token(token) = authorization(&headers, TokenSyntax::default()) else { panic!() };
/// assert_eq!(token.expose(), b"mF_9.B5f-4.1JqM");
///
/// headers.append(AUTHORIZATION, HeaderValue::from_static("Basic Zm9v"));
/// assert!(matches!(authorization(&headers, TokenSyntax::default()), Extracted::Ambiguous(_)));
/// ```
pub fn authorization(headers: &HeaderMap, syntax: TokenSyntax) -> Extracted<'_> {
    one_line(headers, &header::AUTHORIZATION, |value| authorization_value(value, syntax))
}

/// Reads the token of the only line of the `Authorization` header.
#[inline]
pub(crate) fn authorization_value(value: &[u8], syntax: TokenSyntax) -> Extracted<'_> {
    match value.strip_prefix(b"Bearer ") {
        // The usual spelling. No token contains white space, so there is none to strip.
        Some(token) if is_token(token, syntax) => Extracted::Token(BearerToken::new(token)),
        _ => credentials(strip_ows(value), syntax),
    }
}

/// Reads the token of another header field, such as `X-API-Key`. The whole value is the token, without a scheme.
///
/// # Rules
///
/// 1. No field line is [`Extracted::Nothing`].
/// 2. An empty value is [`Extracted::Malformed`], because the field has no other purpose.
/// 3. More than one line, or a comma in the value, is [`Extracted::Ambiguous`].
/// 4. Spaces and tabs around the value are removed.
///
/// ```
/// use http::{HeaderMap, HeaderName, HeaderValue};
/// use tollgate::extract::{Extracted, TokenSyntax, api_key};
///
/// let name = HeaderName::from_static("x-api-key");
/// let mut headers = HeaderMap::new();
/// headers.insert(&name, HeaderValue::from_static("k_123"));
/// let Extracted::Token(token) = api_key(&headers, &name, TokenSyntax::default()) else { panic!() };
/// assert_eq!(token.expose(), b"k_123");
/// ```
pub fn api_key<'a>(headers: &'a HeaderMap, name: &HeaderName, syntax: TokenSyntax) -> Extracted<'a> {
    one_line(headers, name, |value| match value.contains(&b',') {
        true => Extracted::Ambiguous(InvalidRequest::SeveralCredentials),
        false => Extracted::value(strip_ows(value), syntax),
    })
}

/// Reads a field that may have only one line.
fn one_line<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    read: impl FnOnce(&'a [u8]) -> Extracted<'a>,
) -> Extracted<'a> {
    match headers.get(name) {
        None => Extracted::Nothing,
        // Only then can a field have several lines.
        Some(_) if headers.len() > headers.keys_len() && headers.get_all(name).iter().nth(1).is_some() => {
            Extracted::Ambiguous(InvalidRequest::SeveralCredentials)
        }
        Some(line) => read(line.as_bytes()),
    }
}

/// Returns the bytes after the scheme, if the scheme is Bearer.
fn after_scheme(value: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer";

    let (scheme, rest) = value.split_at_checked(SCHEME.len())?;
    // The scheme ends before the first byte that is not a `tchar`: `Bearers` is another scheme.
    let is_it = scheme.eq_ignore_ascii_case(SCHEME) && !rest.first().is_some_and(|&byte| is_tchar(byte));
    is_it.then_some(rest)
}

/// Returns whether `Authorization` has Bearer credentials, well-formed or not.
pub(crate) fn has_bearer(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    lines.any(|line| after_scheme(strip_ows(line.as_bytes())).is_some())
}

fn credentials(value: &[u8], syntax: TokenSyntax) -> Extracted<'_> {
    let Some(rest) = after_scheme(value) else { return Extracted::Nothing };
    let token = &rest[rest.iter().take_while(|&&byte| byte == b' ').count()..];
    if token.len() < rest.len() && is_token(token, syntax) {
        // No charset contains a comma, so that these are not two joined lines.
        Extracted::Token(BearerToken::new(token))
    } else if rest.contains(&b',') {
        Extracted::Ambiguous(InvalidRequest::SeveralCredentials)
    } else {
        Extracted::Malformed
    }
}

/// Strips optional white space: SP and HTAB only. `str::trim` would also strip Unicode white space.
pub(super) fn strip_ows(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_scheme_requires_a_space_before_the_token() {
        let syntax = TokenSyntax::default();
        assert!(matches!(credentials(b"Bearer /abc", syntax), Extracted::Token(_)));
        // `/` cannot be in a scheme, but can be in a token.
        assert!(matches!(credentials(b"Bearer/abc", syntax), Extracted::Malformed));
        assert!(matches!(credentials(b"Bearer\tabc", syntax), Extracted::Malformed));
        assert!(matches!(credentials(b"Bearer", syntax), Extracted::Malformed));
        for other in [&b"Bearerabc"[..], b"Bearers abc", b"Digest abc", b"Digest", b"Basic abc", b""] {
            assert!(matches!(credentials(other, syntax), Extracted::Nothing));
        }
    }
}
