use http::{HeaderMap, HeaderName, header};

use super::{Extracted, InvalidRequest, TokenSyntax, is_tchar, is_token};
use crate::token::BearerToken;

/// The token of the `Authorization` header, by RFC 6750, section 2.1, and RFC 9110, section 11.
///
/// # Rules
///
/// 1. Bytes, never text: a value that is no UTF-8 is malformed, not missing.
/// 2. No field line, an empty value or another scheme is [`Extracted::Nothing`]. More than one line, whatever the
///    schemes, is [`Extracted::Ambiguous`], and so is a comma in Bearer credentials, which is what a proxy makes of two
///    lines.
/// 3. Spaces and tabs around the value are not part of it; no other white space is white space.
/// 4. The scheme is matched without case. One or more spaces (never tabs) follow, then the token, and nothing else.
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
pub fn authorization(headers: &HeaderMap, form: TokenSyntax) -> Extracted<'_> {
    one_line(headers, &header::AUTHORIZATION, |value| credentials(value, form))
}

/// The token of a header field of the service's own, such as `X-API-Key`: the whole value, without any scheme.
///
/// # Rules
///
/// 1. No field line is [`Extracted::Nothing`]. An empty value is [`Extracted::Malformed`]: a field of one purpose was
///    sent for that purpose.
/// 2. More than one line, or a comma in the value, is [`Extracted::Ambiguous`].
/// 3. Spaces and tabs around the value are not part of it.
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
pub fn api_key<'a>(headers: &'a HeaderMap, name: &HeaderName, form: TokenSyntax) -> Extracted<'a> {
    one_line(headers, name, |value| match value.contains(&b',') {
        true => Extracted::Ambiguous(InvalidRequest::SeveralCredentials),
        false => Extracted::value(value, form),
    })
}

/// Looks into a field that may have one line only.
fn one_line<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    look: impl FnOnce(&'a [u8]) -> Extracted<'a>,
) -> Extracted<'a> {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Extracted::Nothing,
        (Some(line), None) => look(strip_ows(line.as_bytes())),
        (Some(_), Some(_)) => Extracted::Ambiguous(InvalidRequest::SeveralCredentials),
    }
}

/// What follows the scheme, if that is Bearer.
fn after_scheme(value: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer";

    let (scheme, rest) = value.split_at_checked(SCHEME.len())?;
    // The scheme ends where no character of an HTTP token follows: `Bearers` is another one.
    let is_it = scheme.eq_ignore_ascii_case(SCHEME) && !rest.first().is_some_and(|&byte| is_tchar(byte));
    is_it.then_some(rest)
}

/// Whether `Authorization` has Bearer credentials, of whatever form.
pub(crate) fn has_bearer(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    lines.any(|line| after_scheme(strip_ows(line.as_bytes())).is_some())
}

fn credentials(value: &[u8], form: TokenSyntax) -> Extracted<'_> {
    let Some(rest) = after_scheme(value) else { return Extracted::Nothing };
    let token = &rest[rest.iter().take_while(|&&byte| byte == b' ').count()..];
    if token.len() < rest.len() && is_token(token, form) {
        // No alphabet has a comma in it, so that this is not two lines joined.
        Extracted::Token(BearerToken::new(token))
    } else if rest.contains(&b',') {
        Extracted::Ambiguous(InvalidRequest::SeveralCredentials)
    } else {
        Extracted::Malformed
    }
}

/// Strips optional white space, SP and HTAB only: `str::trim` would take Unicode's as well.
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
    fn a_space_stands_between_the_scheme_which_is_bearer_and_the_token() {
        let form = TokenSyntax::default();
        assert!(matches!(credentials(b"Bearer /abc", form), Extracted::Token(_)));
        // No character of a scheme, but one of a token.
        assert!(matches!(credentials(b"Bearer/abc", form), Extracted::Malformed));
        assert!(matches!(credentials(b"Bearer\tabc", form), Extracted::Malformed));
        assert!(matches!(credentials(b"Bearer", form), Extracted::Malformed));
        for other in [&b"Bearerabc"[..], b"Bearers abc", b"Digest abc", b"Digest", b"Basic abc", b""] {
            assert!(matches!(credentials(other, form), Extracted::Nothing));
        }
    }
}
