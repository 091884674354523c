use http::{HeaderMap, header};

use super::{Presented, TokenForm, is_tchar, is_token};
use crate::token::BearerToken;

/// The token of the `Authorization` header, by RFC 6750, section 2.1, and RFC 9110, section 11.
///
/// # Rules
///
/// 1. Bytes, never text: a value that is no UTF-8 is malformed, not missing.
/// 2. No field line, an empty value or another scheme is [`Presented::Nothing`]. More than one line, whatever the
///    schemes, is [`Presented::Ambiguous`], and so is a comma in Bearer credentials, which is what a proxy makes of two
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
/// use tollgate::extract::{Presented, TokenForm, authorization};
///
/// let mut headers = HeaderMap::new();
/// assert!(matches!(authorization(&headers, TokenForm::default()), Presented::Nothing));
///
/// headers.insert(AUTHORIZATION, HeaderValue::from_static("bearer  mF_9.B5f-4.1JqM"));
/// let Presented::Token(token) = authorization(&headers, TokenForm::default()) else { panic!() };
/// assert_eq!(token.expose(), b"mF_9.B5f-4.1JqM");
///
/// headers.append(AUTHORIZATION, HeaderValue::from_static("Basic Zm9v"));
/// assert!(matches!(authorization(&headers, TokenForm::default()), Presented::Ambiguous));
/// ```
pub fn authorization(headers: &HeaderMap, form: TokenForm) -> Presented<'_> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Presented::Nothing,
        (Some(line), None) => credentials(strip_ows(line.as_bytes()), form),
        (Some(_), Some(_)) => Presented::Ambiguous,
    }
}

fn credentials(value: &[u8], form: TokenForm) -> Presented<'_> {
    const SCHEME: &[u8] = b"bearer";

    let Some((scheme, rest)) = value.split_at_checked(SCHEME.len()) else { return Presented::Nothing };
    // The scheme ends where no character of an HTTP token follows: `Bearers` is another one.
    if !scheme.eq_ignore_ascii_case(SCHEME) || rest.first().is_some_and(|&byte| is_tchar(byte)) {
        return Presented::Nothing;
    }
    let token = &rest[rest.iter().take_while(|&&byte| byte == b' ').count()..];
    if token.len() < rest.len() && is_token(token, form) {
        // No alphabet has a comma in it, so that this is not two lines joined.
        Presented::Token(BearerToken::new(token))
    } else if rest.contains(&b',') {
        Presented::Ambiguous
    } else {
        Presented::Malformed
    }
}

/// Strips optional white space, SP and HTAB only: `str::trim` would take Unicode's as well.
fn strip_ows(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
