//! [`ProblemDetails`]: rejections as `application/problem+json`.

use std::borrow::Cow;
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
        Protocol::Http => (http_head(rejection), body(rejection)),
        Protocol::Grpc | Protocol::GrpcWeb => (head(rejection), Bytes::new()),
        Protocol::Connect => (with_content_type(head(rejection), rejection), connect::error(rejection).into()),
        Protocol::ConnectStream => {
            let head = with_content_type(connect::stream_head(rejection), rejection);
            (head, connect::end_of_stream(rejection).into())
        }
    };
    if rejection.reply().is_head {
        // The length of the content of `GET`. Servers would add the length of the empty content.
        response.headers_mut().insert(header::CONTENT_LENGTH, ratelimit::number(content.len() as u64));
        content = Bytes::new();
    }
    response.map(|()| content)
}

/// Returns the head of problem details. Frequent ones are copied, because a copy needs no hashes.
fn http_head(rejection: &Rejection) -> Response<()> {
    let render = || with_content_type(head(rejection), rejection);
    match rejection.challenges().filter(|_| rejection.head_depends_on_kind_only()) {
        Some(challenges) => {
            let mut response = Response::new(());
            *response.status_mut() = rejection.status();
            *response.headers_mut() = challenges.head(rejection.kind(), || render().into_parts().0.headers);
            response
        }
        None => render(),
    }
}

fn with_content_type(mut response: Response<()>, rejection: &Rejection) -> Response<()> {
    let value = match rejection.protocol() {
        // Known to the compiler, which checks it once.
        Protocol::Http => const { HeaderValue::from_static("application/problem+json") },
        _ => HeaderValue::from_static(rejection.reply().content_type()),
    };
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

fn body(rejection: &Rejection) -> Bytes {
    match detail::fixed_body(rejection) {
        Some(body) => Bytes::from_static(body.as_bytes()),
        None if rejection.kind() == RejectionKind::Misconfigured => misconfigured(rejection.hint()),
        None => over_limit(rejection),
    }
}

fn over_limit(rejection: &Rejection) -> Bytes {
    let of_one_policy = rejection.decision().filter(|decision| !decision.is_of_several()).and_then(Decision::policy);
    match of_one_policy {
        Some(policy) if rejection.retry_after_secs() == Some(1) => {
            policy.body_after_1_s(|| render_over_limit(rejection))
        }
        _ => render_over_limit(rejection).into(),
    }
}

/// Renders problem details with the type of draft-ietf-httpapi-ratelimit-headers-11 for 429.
fn render_over_limit(rejection: &Rejection) -> Vec<u8> {
    const BEFORE: &[u8] = br#"{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Too Many Requests","status":429,"detail":""#;
    const BETWEEN: &[u8] = br#"","violated-policies":["#;
    const AFTER: &[u8] = b"]}";

    let mut digits = itoa::Buffer::new();
    let [sentence, retry, seconds, unit] = detail::pieces(rejection, &mut digits).map(str::as_bytes);
    let mut names = rejection.decision().into_iter().flat_map(Decision::violated).map(Policy::quoted_name);
    let first = Cow::Borrowed(names.next().unwrap_or_default());
    let names = names.fold(first, |names, name| Cow::Owned([&*names, name].join(&b',')));
    [BEFORE, sentence, retry, seconds, unit, BETWEEN, &names, AFTER].concat()
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
    use std::time::Duration;

    use super::*;
    use crate::quota::Quota;
    use crate::quota::decision::Verdict;

    #[test]
    fn kept_body_is_sent_only_for_one_policy_and_a_wait_of_a_second() {
        let over = |name, secs| {
            let policy = Policy::new(name, Quota::per_second(1)).unwrap();
            Decision::new(policy, Verdict::OverLimit, 0, Duration::from_secs(secs), Duration::from_secs(secs))
        };
        let body = |decision| {
            let response: Response<Bytes> = ProblemDetails.respond(&Rejection::over_limit(decision));
            String::from_utf8(response.into_body().into()).unwrap()
        };
        for _ in 0..2 {
            for (decision, wait, names) in [
                (over("a \"b\\", 1), "1 second", r#""a \"b\\""#),
                (over("a \"b\\", 2), "2 seconds", r#""a \"b\\""#),
                (over("a \"b\\", 3), "3 seconds", r#""a \"b\\""#),
                (over("c", 1), "1 second", r#""c""#),
                (Decision::all_of([over("a \"b\\", 1), over("c", 1)]), "1 second", r#""a \"b\\","c""#),
                (Decision::all_of([over("a \"b\\", 1), over("d", 1)]), "1 second", r#""a \"b\\","d""#),
            ] {
                let body = body(decision);
                let end = format!("Retry after {wait}.\",\"violated-policies\":[{names}]}}");
                assert!(body.ends_with(&end), "{body}");
            }
        }
    }

    #[test]
    fn json_string_escapes_quotes_backslashes_and_controls_only() {
        let mut out = String::new();
        write_json_string(&mut out, "\0\t\u{1f} !\"\\/\u{7f}\u{e9}");
        assert_eq!(out, "\"\\u0000\\u0009\\u001f !\\\"\\\\/\u{7f}\u{e9}\"");
    }
}
