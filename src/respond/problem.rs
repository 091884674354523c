use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderValue, Response, header};

use super::{Respond, head, written};
use crate::decision::Decision;
use crate::policy::Policy;
use crate::rejection::{Protocol, Rejection, RejectionKind};

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
    let mut response = head(rejection);
    if rejection.protocol() == Protocol::Grpc {
        return response.map(|()| Bytes::new());
    }
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response.map(|()| body(rejection))
}

/// A problem of type `about:blank`, whose title is the phrase of its status (RFC 9457, section 4.2.1).
macro_rules! blank {
    ($status:literal, $title:literal, $detail:literal) => {
        Bytes::from_static(
            concat!(
                r#"{"type":"about:blank","title":""#,
                $title,
                r#"","status":"#,
                $status,
                r#","detail":""#,
                $detail,
                r#""}"#
            )
            .as_bytes(),
        )
    };
}

fn body(rejection: &Rejection) -> Bytes {
    match rejection.kind() {
        RejectionKind::Missing => blank!("401", "Unauthorized", "This resource needs a token, and none was presented."),
        RejectionKind::MalformedToken
        | RejectionKind::UnknownToken
        | RejectionKind::NotYetValid
        | RejectionKind::SenderConstrained => blank!("401", "Unauthorized", "The token is not valid."),
        RejectionKind::ExpiredToken => blank!("401", "Unauthorized", "The token has expired."),
        RejectionKind::InsufficientUserAuthentication => {
            blank!("401", "Unauthorized", "The user has to authenticate again, as the challenge says.")
        }
        RejectionKind::InvalidRequest => {
            blank!(
                "400",
                "Bad Request",
                "It is not clear which credential is meant: a request carries one, in one place and once, and a body that may hold it is well-formed."
            )
        }
        RejectionKind::CostAboveBurst => {
            blank!(
                "400",
                "Bad Request",
                "This request costs more than the budget can ever hold; waiting does not help."
            )
        }
        RejectionKind::InsufficientScope => {
            blank!("403", "Forbidden", "The token does not have the scope that this resource needs.")
        }
        RejectionKind::BodyTooLarge => {
            blank!("413", "Content Too Large", "The body is larger than this resource takes.")
        }
        RejectionKind::BodyUnreadable => blank!("400", "Bad Request", "The body could not be read to its end."),
        RejectionKind::BodyTimeout => blank!("408", "Request Timeout", "The body did not come in time."),
        RejectionKind::StoreUnavailable => {
            blank!("503", "Service Unavailable", "The token could not be checked. This says nothing about the token.")
        }
        RejectionKind::LimiterUnavailable => {
            blank!("503", "Service Unavailable", "The budget of this token could not be read.")
        }
        RejectionKind::Misconfigured => misconfigured(rejection.hint()),
        RejectionKind::TooManyFailures => Bytes::from_static(TOO_MANY_FAILURES.as_bytes()),
        RejectionKind::OverLimit => over_limit(rejection),
    }
}

/// The problem type of draft-ietf-httpapi-ratelimit-headers-10 for 429 because of what looks like abuse.
const TOO_MANY_FAILURES: &str = r#"{"type":"https://iana.org/assignments/http-problem-types#abnormal-usage-detected","title":"Too Many Requests","status":429,"detail":"Too many attempts to authenticate have failed.","violated-policies":["failures"]}"#;

/// The problem type of draft-ietf-httpapi-ratelimit-headers-10 for 429.
fn over_limit(rejection: &Rejection) -> Bytes {
    const BEFORE: &str = r#"{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Too Many Requests","status":429,"detail":"The budget of this token is spent.","violated-policies":["#;
    const AFTER: &str = "]}";

    let violated = || rejection.decision().into_iter().flat_map(Decision::violated).map(Policy::name);
    // Exact for nearly all names, so that the bytes need no second allocation.
    let names: usize = violated().map(|name| name.len() + r#"",""#.len()).sum();
    let mut body = String::with_capacity(BEFORE.len() + names.saturating_sub(1) + AFTER.len());
    body.push_str(BEFORE);
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
fn write_json_string(out: &mut String, text: &str) {
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
