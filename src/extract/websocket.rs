//! Tokens in the sub-protocols of WebSocket handshakes.
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use http::{HeaderMap, HeaderValue, Method, Version, header};

use super::header::strip_ows;
use super::{Extracted, InvalidRequest, TokenSyntax};
use crate::request_head::RequestHead;

/// Reads the token from the sub-protocols that a WebSocket client offers. Scripts in browsers can set these.
///
/// # Rules
///
/// 1. Only WebSocket handshakes are read: `GET` with `Upgrade: websocket`, or extended `CONNECT` over HTTP/2 or HTTP/3
///    (RFC 8441).
/// 2. The sub-protocol with the prefix holds the token, in base64url without padding, because sub-protocols are HTTP tokens.
///    All `Sec-WebSocket-Protocol` lines are read.
/// 3. A second sub-protocol with the prefix, and one that cannot be decoded, are [`Extracted::Ambiguous`]. So is a client that
///    offers no other sub-protocol.
/// 4. A decoded value that is not a token is [`Extracted::Malformed`].
///
/// The gate removes the sub-protocol with the token, so that no server can select it and send it back.
///
/// ```
/// use http::Request;
/// use tollgate::RequestHead;
/// use tollgate::extract::{Extracted, TokenSyntax, websocket};
///
/// let request = Request::get("/ws/stream")
///     .header("connection", "Upgrade")
///     .header("upgrade", "websocket")
///     .header("sec-websocket-protocol", "base64url.bearer.authorization.example.dG9rLTE, chat")
///     .body(())?;
/// let prefix = "base64url.bearer.authorization.example.";
/// let Extracted::Token(token) = websocket(&RequestHead::of(&request), prefix, TokenSyntax::default()) else { panic!() };
/// assert_eq!(token.expose(), b"tok-1");
/// # Ok::<_, http::Error>(())
/// ```
pub fn websocket<'a>(head: &RequestHead<'a>, prefix: &str, syntax: TokenSyntax) -> Extracted<'a> {
    if !opens_websocket(head) {
        return Extracted::Nothing;
    }
    let mut others = 0;
    let mut found = None;
    for item in items(head.headers) {
        match item.strip_prefix(prefix.as_bytes()) {
            None => others += 1,
            Some(encoded) if found.is_none() => found = Some(encoded),
            Some(_) => return Extracted::Ambiguous(InvalidRequest::SeveralCredentials),
        }
    }
    match found.map(|encoded| BASE64_URL_SAFE_NO_PAD.decode(encoded)) {
        None => Extracted::Nothing,
        Some(Ok(token)) if others > 0 => Extracted::value(token, syntax),
        Some(Ok(_)) => Extracted::Ambiguous(InvalidRequest::OnlyTokenProtocol),
        Some(Err(_)) => Extracted::Ambiguous(InvalidRequest::EncodedToken),
    }
}

fn opens_websocket(head: &RequestHead<'_>) -> bool {
    match *head.method {
        Method::GET => head.headers.get_all(header::UPGRADE).iter().any(|value| {
            value.as_bytes().split(|&byte| byte == b',').any(|item| strip_ows(item).eq_ignore_ascii_case(b"websocket"))
        }),
        // `:protocol` cannot be read here. `CONNECT` over HTTP/1 has no sub-protocols.
        Method::CONNECT => matches!(head.version, Version::HTTP_2 | Version::HTTP_3),
        _ => false,
    }
}

/// Returns the items of all lines, without empty ones.
fn items(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .map(strip_ows)
        .filter(|item| !item.is_empty())
}

/// Removes the token from the offered sub-protocols.
pub(crate) fn without_token(headers: &mut HeaderMap, prefix: &str) {
    if !items(headers).any(|item| item.starts_with(prefix.as_bytes())) {
        return;
    }
    let kept: Vec<&[u8]> = items(headers).filter(|item| !item.starts_with(prefix.as_bytes())).collect();
    // Parts of valid values, joined by a comma, are a valid value.
    let kept = HeaderValue::from_bytes(&kept.join(&b", "[..]));
    match kept {
        Ok(value) if !value.is_empty() => _ = headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value),
        _ => _ = headers.remove(header::SEC_WEBSOCKET_PROTOCOL),
    }
}
