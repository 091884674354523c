use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderValue, Response, header};

use super::{Respond, connect, detail, head, ratelimit, written};
use crate::decision::Decision;
use crate::policy::Policy;
use crate::protocol::Protocol;
use crate::rejection::{Rejection, RejectionKind};

/// Refuses with a problem details body (RFC 9457), `application/problem+json`: the default responder.
///
/// ```
/// use bytes::Bytes;
/// use http::Response;
/// use tollgate::{Problem, Rejection, Scopes, respond::Respond};
///
/// let rejection = Rejection::insufficient_scope(Scopes::new(["trade"])?);
/// let response: Response<Bytes> = Problem.respond(&rejection);
/// assert_eq!(response.headers()["content-type"], "application/problem+json");
/// # Ok::<_, tollgate::InvalidScope>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Problem;

impl Problem {
    /// The same for any other type of body, which the function makes of the bytes.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http_body_util::{BodyExt, Full, combinators::BoxBody};
    /// use tollgate::{AuthLayer, Grant, MemoryStore, Problem};
    ///
    /// fn boxed(bytes: Bytes) -> BoxBody<Bytes, std::io::Error> {
    ///     Full::new(bytes).map_err(|never| match never {}).boxed()
    /// }
    ///
    /// let tokens = MemoryStore::from_iter([("a-token", Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_responder(Problem.map_body(boxed));
    /// # let _ = gate;
    /// ```
    pub fn map_body<B, F>(self, body: F) -> MapBody<F>
    where
        F: Fn(Bytes) -> B + Send + Sync + 'static,
    {
        MapBody(body)
    }
}

impl<B: From<Bytes>> Respond<B> for Problem {
    fn respond(&self, rejection: &Rejection) -> Response<B> {
        respond(rejection).map(B::from)
    }

    fn refuse(&self, rejection: Rejection) -> Response<B> {
        // Its head is complete, which this saves a flood the look for.
        written(self, rejection)
    }
}

/// A responder made by [`Problem::map_body`].
#[derive(Clone, Copy, Debug)]
pub struct MapBody<F>(F);

impl<B, F> Respond<B> for MapBody<F>
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
        // The length that GET would have. Servers would add the length of what is left, which is 0.
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

/// The problem type of draft-ietf-httpapi-ratelimit-headers-10 for 429.
fn over_limit(rejection: &Rejection) -> Bytes {
    const BEFORE: &str = r#"{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Too Many Requests","status":429,"detail":""#;
    const BETWEEN: &str = r#"","violated-policies":["#;
    const AFTER: &str = "]}";

    let mut digits = itoa::Buffer::new();
    let text = detail::pieces(rejection, &mut digits);
    let violated = || rejection.decision().into_iter().flat_map(Decision::violated).map(Policy::name);
    // Exact for nearly all names, so that the bytes need no second allocation.
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

/// RFC 8259, section 7.
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
    fn only_what_json_wants_escaped_is_escaped() {
        let mut out = String::new();
        write_json_string(&mut out, "\0\t\u{1f} !\"\\/\u{7f}\u{e9}");
        assert_eq!(out, "\"\\u0000\\u0009\\u001f !\\\"\\\\/\u{7f}\u{e9}\"");
    }
}
