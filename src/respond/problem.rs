//! [`ProblemDetails`]: rejections as `application/problem+json`.
use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderValue, Response, header};

use super::{Respond, connect, detail, head, ratelimit, written};
use crate::quota::decision::Decision;
use crate::quota::policy::Policy;
use crate::rejection::protocol::Protocol;
use crate::rejection::{Rejection, RejectionKind};

/// A responder that writes problem details (RFC 9457), `application/problem+json`. It is the default.
///
/// ```
/// use bytes::Bytes;
/// use http::Response;
/// use tollgate::{ProblemDetails, Rejection, Scopes, respond::Respond};
///
/// let rejection = Rejection::insufficient_scope(Scopes::new(["trade"])?);
/// let response: Response<Bytes> = ProblemDetails.respond(&rejection);
/// assert_eq!(response.headers()["content-type"], "application/problem+json");
/// # Ok::<_, tollgate::ScopeError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ProblemDetails;

impl ProblemDetails {
    /// Returns a responder for another body type. The function creates the body from the bytes.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http_body_util::{BodyExt, Full, combinators::BoxBody};
    /// use tollgate::{AuthLayer, Grant, MemoryStore, ProblemDetails, TokenDigest};
    ///
    /// fn boxed(bytes: Bytes) -> BoxBody<Bytes, std::io::Error> {
    ///     Full::new(bytes).map_err(|never| match never {}).boxed()
    /// }
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_responder(ProblemDetails.map_body(boxed));
    /// # let _ = gate;
    /// ```
    pub fn map_body<B, F>(self, body: F) -> MappedBody<F>
    where
        F: Fn(Bytes) -> B + Send + Sync + 'static,
    {
        MappedBody(body)
    }
}

impl<B: From<Bytes>> Respond<B> for ProblemDetails {
    fn respond(&self, rejection: &Rejection) -> Response<B> {
        respond(rejection).map(B::from)
    }

    fn reject(&self, rejection: Rejection) -> Response<B> {
        // The head is already complete: skip the checks, so that floods of rejections stay cheap.
        written(self, rejection)
    }
}

/// The responder that [`ProblemDetails::map_body`] returns.
#[derive(Clone, Copy, Debug)]
pub struct MappedBody<F>(F);

impl<B, F> Respond<B> for MappedBody<F>
where
    F: Fn(Bytes) -> B + Send + Sync + 'static,
{
    fn respond(&self, rejection: &Rejection) -> Response<B> {
        respond(rejection).map(&self.0)
    }
}

fn respond(rejection: &Rejection) -> Response<Bytes> {
    let (mut response, mut content) = match rejection.protocol() {
        Protocol::Http => (head(rejection), body(rejection)),
        Protocol::Grpc | Protocol::GrpcWeb => (head(rejection), Bytes::new()),
        Protocol::Connect => (head(rejection), connect::error(rejection).into()),
        Protocol::ConnectStream => (connect::stream_head(rejection), connect::end_of_stream(rejection).into()),
    };
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        match rejection.protocol() {
            // Known to the compiler, which checks it once.
            Protocol::Http => const { HeaderValue::from_static("application/problem+json") },
            _ => HeaderValue::from_static(rejection.reply().content_type()),
        },
    );
    if rejection.reply().is_head {
        // The length of the content of `GET`. Servers would add the length of the empty content.
        headers.insert(header::CONTENT_LENGTH, ratelimit::number(content.len() as u64));
        content = Bytes::new();
    }
    response.map(|()| content)
}

fn body(rejection: &Rejection) -> Bytes {
    match detail::fixed_body(rejection) {
        Some(body) => Bytes::from_static(body.as_bytes()),
        None if rejection.kind() == RejectionKind::Misconfigured => misconfigured(rejection.hint()),
        None => over_limit(rejection),
    }
}

/// Returns problem details with the type of draft-ietf-httpapi-ratelimit-headers-11 for 429.
fn over_limit(rejection: &Rejection) -> Bytes {
    const BEFORE: &str = r#"{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Too Many Requests","status":429,"detail":""#;
    const BETWEEN: &str = r#"","violated-policies":["#;
    const AFTER: &str = "]}";

    let mut digits = itoa::Buffer::new();
    let text = detail::pieces(rejection, &mut digits);
    let violated = || rejection.decision().into_iter().flat_map(Decision::violated).map(Policy::name);
    // Exact unless names need escapes, so that no second allocation is needed.
    let names: usize = violated().map(|name| name.len() + r#"",""#.len()).sum();
    let around = BEFORE.len() + text.iter().map(|piece| piece.len()).sum::<usize>() + BETWEEN.len() + AFTER.len();
    let mut body = String::with_capacity(around + names.saturating_sub(1));
    body.push_str(BEFORE);
    body.extend(text);
    body.push_str(BETWEEN);
    for (at, name) in violated().enumerate() {
        if at > 0 {
            body.push(',');
        }
        write_json_string(&mut body, name);
    }
    body.push_str(AFTER);
    body.into()
}

fn misconfigured(hint: &str) -> Bytes {
    let mut body = String::from(r#"{"type":"about:blank","title":"Internal Server Error","status":500,"detail":"#);
    write_json_string(&mut body, hint);
    body.push('}');
    body.into()
}

/// Writes a JSON string (RFC 8259, section 7).
pub(super) fn write_json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            // Writing into a string does not fail.
            c if c < ' ' => _ = write!(out, "\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_string_escapes_quotes_backslashes_and_controls_only() {
        let mut out = String::new();
        write_json_string(&mut out, "\0\t\u{1f} !\"\\/\u{7f}\u{e9}");
        assert_eq!(out, "\"\\u0000\\u0009\\u001f !\\\"\\\\/\u{7f}\u{e9}\"");
    }
}
