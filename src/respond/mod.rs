//! Responses to rejected requests, the last step of the pipeline.
//!
//! This module alone defines the status codes and header fields of rejections. [`ProblemDetails`] is the default responder.
//! [`EmptyBody`] is for bodies that can only be empty, [`ProblemDetails::map_body`] for other body types. A closure from
//! `&Rejection` to a response is also a responder.
//!
//! # Rules
//!
//! 1. The status and error code depend on the cause:
//!
//!    | cause | response |
//!    |---|---|
//!    | no credential, or another scheme | 401 without an error code |
//!    | malformed or invalid token | 401 `invalid_token` |
//!    | invalid request | 400 `invalid_request` |
//!    | missing scope | 403 `insufficient_scope` |
//!    | no HTTPS | 403 without a challenge |
//!    | the server cannot decide | 503 |
//! 2. Every 400, 401 and 403 about credentials has a challenge, except the 403 to a request without HTTPS. 429 and 5xx have
//!    none.
//! 3. Rejections must not be stored: `Cache-Control: no-store`.
//! 4. `Retry-After` is in whole seconds, rounded up and never 0. Every 429 and every 503 has it.
//! 5. A gRPC, gRPC-Web or Connect request is rejected in the format of its [`Protocol`], because its clients read no other.
//!    [`ProblemDetails`] writes all of them. [`EmptyBody`] writes those without content: gRPC and gRPC-Web.
//! 6. A rejection of `HEAD` has no content (RFC 9110, section 9.3.2).
//! 7. A rejection of an HTTP/1 request whose body was not read has `Connection: close` (RFC 9112, section 9.6), because the
//!    server closes the connection. Otherwise a client could send its next request on a closed connection.

use std::borrow::Cow;
use std::mem;

use http::header::Entry;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

mod connect;
pub(crate) mod detail;
mod grpc;
mod problem;
pub(crate) mod ratelimit;

pub use crate::rejection::challenge::{Challenge, ChallengeError, ErrorCode};
pub use problem::{MappedBody, ProblemDetails};
pub use ratelimit::RateLimitHeaders;

use crate::list;
use crate::observe;
use crate::rejection::protocol::Protocol;
use crate::rejection::terms::Challenges;
use crate::rejection::{Rejection, RejectionKind};
use crate::token::TokenLocation;

/// Turns rejections into responses.
///
/// Closures implement this trait; [`AuthLayer::with_response_fn`](crate::AuthLayer::with_response_fn) takes one. A responder
/// does not get the request. The [`Rejection`] holds everything that a response may reveal.
///
/// A responder must not write its own content unless [`Rejection::allows_content`] returns true. Gates cannot enforce this,
/// because they do not know the type of the body.
///
/// ```
/// use http::{Response, StatusCode};
/// use tollgate::respond::Respond;
/// use tollgate::{Rejection, RejectionKind};
///
/// /// Takes the standard head and writes a custom body.
/// fn rate_limit_error(rejection: &Rejection) -> Response<String> {
///     let response: Response<String> = tollgate::EmptyBody.respond(rejection);
///     match rejection.kind() {
///         RejectionKind::OverLimit if rejection.allows_content() => {
///             response.map(|_| r#"{"error": "Rate limit exceeded"}"#.to_owned())
///         }
///         _ => response,
///     }
/// }
/// # let _: &dyn Respond<String> = &rate_limit_error;
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot write a rejection into a body of type `{B}`",
    note = "`ProblemDetails` needs `{B}: From<Bytes>`",
    note = "use `.with_responder(EmptyBody)` where `{B}: Default` (tonic), `.with_responder(ProblemDetails.map_body(..))` for a boxed body, or `.with_response_fn(|rejection| ..)`"
)]
pub trait Respond<B>: Send + Sync + 'static {
    /// Returns the response to a rejection.
    fn respond(&self, rejection: &Rejection) -> Response<B>;

    /// Returns the complete response to a rejection. Gates call this method.
    ///
    /// It puts the rejection into the extensions of the response, so that outer layers can count and log it. It also reports the
    /// rejection to [metrics and events](crate::observe).
    ///
    /// The default implementation adds the headers that [`respond`](Self::respond) left out:
    ///
    /// - `Cache-Control: no-store`, if there is no `Cache-Control`
    /// - `WWW-Authenticate` on a 401 (RFC 9110, section 15.5.2)
    /// - `Retry-After` on a 503
    /// - `Connection: close`, if the connection cannot be used again
    ///
    /// An implementation that overrides this method must do all of this.
    fn reject(&self, rejection: Rejection) -> Response<B> {
        let mut response = written(self, rejection);
        complete(&mut response);
        response
    }
}

/// Reports the rejection, and puts it into the extensions of its response.
#[inline]
fn written<B>(responder: &(impl Respond<B> + ?Sized), rejection: Rejection) -> Response<B> {
    // A provisional response was reported when it was made.
    if rejection.provisional().is_none() {
        observe::rejected(&rejection);
    }
    let mut response = responder.respond(&rejection);
    if rejection.reply().closes {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.extensions_mut().insert(rejection.with_provisional(None));
    response
}

impl<B, F> Respond<B> for F
where
    F: Fn(&Rejection) -> Response<B> + Send + Sync + 'static,
{
    fn respond(&self, rejection: &Rejection) -> Response<B> {
        self(rejection)
    }
}

impl<B, R: Respond<B> + ?Sized> Respond<B> for std::sync::Arc<R> {
    fn respond(&self, rejection: &Rejection) -> Response<B> {
        (**self).respond(rejection)
    }

    fn reject(&self, rejection: Rejection) -> Response<B> {
        (**self).reject(rejection)
    }
}

/// A responder that writes an empty body: for bodies that are only [`Default`], such as tonic's.
///
/// A Connect client then gets no Connect error. It derives the error code from the HTTP status, and reads 429 as UNAVAILABLE.
///
/// ```
/// use http::Response;
/// use tollgate::respond::{EmptyBody, Respond};
/// use tollgate::{Rejection, Scopes};
///
/// let rejection = Rejection::insufficient_scope(Scopes::new(["trade"])?);
/// let response: Response<()> = EmptyBody.respond(&rejection);
/// assert_eq!(response.status(), 403);
/// assert_eq!(
///     response.headers()["www-authenticate"],
///     r#"Bearer realm="api", error="insufficient_scope", scope="trade""#,
/// );
/// # Ok::<_, tollgate::ScopeError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct EmptyBody;

impl<B: Default> Respond<B> for EmptyBody {
    fn respond(&self, rejection: &Rejection) -> Response<B> {
        head(rejection).map(|()| B::default())
    }
}

/// Returns the Bearer challenge of a rejection: none, one without an error, or one with an error.
fn bearer_challenge(rejection: &Rejection, challenges: &Challenges) -> Option<HeaderValue> {
    Some(match rejection.kind() {
        RejectionKind::Missing => match rejection.required_scopes() {
            // Scopes are not error information. So they are allowed without a credential (RFC 6750, section 3.1).
            Some(scopes) => challenges.bearer().clone().with_scope(scopes).to_header_value(),
            None => challenges.challenge(None),
        },
        RejectionKind::MalformedToken
        | RejectionKind::UnknownToken
        | RejectionKind::NotYetValid
        | RejectionKind::ExpiredToken
        | RejectionKind::SenderConstrained => challenges.challenge(Some(ErrorCode::InvalidToken)),
        RejectionKind::InvalidRequest => challenges.challenge(Some(ErrorCode::InvalidRequest)),
        RejectionKind::InsufficientScope => {
            let challenge = challenges.bearer().clone().with_error(ErrorCode::InsufficientScope);
            rejection
                .required_scopes()
                .map_or(challenge.clone(), |scopes| challenge.with_scope(scopes))
                .to_header_value()
        }
        RejectionKind::InsufficientUserAuthentication => {
            let challenge = challenges.bearer().clone().with_error(ErrorCode::InsufficientUserAuthentication);
            match rejection.required_authentication() {
                Some(needed) => challenge.with_authentication_of(needed).to_header_value(),
                None => challenge.to_header_value(),
            }
        }
        // A challenge would invite the client to send its token without HTTPS.
        RejectionKind::HttpsRequired
        | RejectionKind::CostAboveBurst
        | RejectionKind::TooManyFailures
        | RejectionKind::OverLimit
        | RejectionKind::BodyTooLarge
        | RejectionKind::BodyUnreadable
        | RejectionKind::BodyTimeout
        | RejectionKind::StoreUnavailable
        | RejectionKind::LimiterUnavailable
        | RejectionKind::Misconfigured => return None,
    })
}

/// Writes all `WWW-Authenticate` lines of a rejection, one for each challenge (RFC 9110, section 11.6.1).
pub(crate) fn write_challenges(headers: &mut http::HeaderMap, rejection: &Rejection, challenges: &Challenges) {
    if let Some(bearer) = bearer_challenge(rejection, challenges) {
        put_challenges(headers, bearer, challenges);
    }
}

fn put_challenges(headers: &mut http::HeaderMap, bearer: HeaderValue, challenges: &Challenges) {
    headers.insert(header::WWW_AUTHENTICATE, bearer);
    for other in challenges.others() {
        headers.append(header::WWW_AUTHENTICATE, other.clone());
    }
}

/// Returns the challenges of the gate that rejects the request.
fn own_challenges(rejection: &Rejection) -> Cow<'_, Challenges> {
    rejection.challenges().map_or_else(|| Cow::Owned(Challenges::default()), |challenges| Cow::Borrowed(&**challenges))
}

/// Adds required headers that a custom responder may have left out.
fn complete<B>(response: &mut Response<B>) {
    if !response.headers().contains_key(header::CACHE_CONTROL) {
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(NO_STORE));
    }
    if response.status() == StatusCode::SERVICE_UNAVAILABLE && !response.headers().contains_key(header::RETRY_AFTER) {
        let seconds = response.extensions().get().and_then(Rejection::retry_after_secs);
        if let Some(seconds) = seconds {
            response.headers_mut().insert(header::RETRY_AFTER, ratelimit::number(seconds));
        }
    }
    if response.status() == StatusCode::UNAUTHORIZED && !response.headers().contains_key(header::WWW_AUTHENTICATE) {
        if let Some(rejection) = response.extensions().get::<Rejection>().cloned() {
            let challenges = own_challenges(&rejection);
            // A 401 has a challenge whatever it is about (RFC 9110, section 15.5.2).
            let bearer = bearer_challenge(&rejection, &challenges).unwrap_or_else(|| challenges.challenge(None));
            put_challenges(response.headers_mut(), bearer, &challenges);
        }
    }
}

/// Returns the rejection of a response that the gate writes again. A handler that has changed the status keeps its response.
#[inline]
pub(crate) fn provisional<B>(response: &Response<B>) -> Option<&Rejection> {
    let is_unchanged = |rejection: &&Rejection| rejection.provisional() == Some(response.status());
    response.extensions().get::<Rejection>().filter(is_unchanged)
}

/// Replaces a provisional response. Keeps header fields that the handler or inner layers have added, unless the responder writes them.
pub(crate) fn rewrite<B>(provisional: Response<B>, mut written: Response<B>) -> Response<B> {
    let (parts, _) = provisional.into_parts();
    let mut headers = parts.headers;
    for name in [
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::RETRY_AFTER,
        header::WWW_AUTHENTICATE,
    ] {
        headers.remove(name);
    }
    headers.extend(mem::take(written.headers_mut()));
    *written.headers_mut() = headers;
    let rejection = mem::replace(written.extensions_mut(), parts.extensions);
    written.extensions_mut().extend(rejection);
    written
}

/// Returns the response without its body.
fn head(rejection: &Rejection) -> Response<()> {
    let status = match rejection.protocol() {
        Protocol::Grpc | Protocol::GrpcWeb => return grpc::head(rejection),
        Protocol::Connect | Protocol::ConnectStream => connect::status(rejection.kind()),
        Protocol::Http => rejection.status(),
    };
    let mut response = Response::new(());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(NO_STORE));
    write_challenges(headers, rejection, &own_challenges(rejection));
    write_limits(headers, rejection);
    response
}

/// Writes `Retry-After`. The gate writes the rate limit headers, because responses to admitted requests have them too.
fn write_limits(headers: &mut http::HeaderMap, rejection: &Rejection) {
    if let Some(seconds) = rejection.retry_after_secs() {
        headers.insert(header::RETRY_AFTER, ratelimit::number(seconds));
    }
}

/// Prevents shared caches from storing a response to a request with a token outside of `Authorization`. RFC 9111, section 3.5,
/// protects requests with `Authorization` only.
pub(crate) fn keep_private(headers: &mut http::HeaderMap, location: TokenLocation) {
    match headers.entry(header::CACHE_CONTROL) {
        // The usual case.
        Entry::Vacant(free) => _ = free.insert(HeaderValue::from_static("private")),
        Entry::Occupied(_) => amend_cache_control(headers),
    }
    if location == TokenLocation::Query {
        keep_target(headers);
    }
}

/// Prevents links on a page from sending the token in its URL as referrer (RFC 9700, section 4.3.2).
pub(crate) fn keep_target(headers: &mut http::HeaderMap) {
    if !headers.contains_key(header::REFERRER_POLICY) {
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    }
}

/// Makes the `Cache-Control` of a handler private.
fn amend_cache_control(headers: &mut http::HeaderMap) {
    // A directive with a value, such as `private="field"`, concerns that field only.
    let has = |directive: &str| {
        let mut directives = list::members(headers, &header::CACHE_CONTROL);
        directives.any(|own| own.eq_ignore_ascii_case(directive.as_bytes()))
    };
    let is_private = (has("private") && !has("public")) || has("no-store");
    if !is_private {
        // Remove directives that allow caches to store more, and a `private` for some fields. Keep all others.
        let goes = |directive: &[u8]| {
            let name = directive.split(|&byte| byte == b'=').next().unwrap_or_default();
            ["public", "private", "s-maxage", "max-age"].iter().any(|own| name.eq_ignore_ascii_case(own.as_bytes()))
        };
        let kept = list::members(headers, &header::CACHE_CONTROL).filter(|directive| !goes(directive));
        let value = [&b"private"[..]].into_iter().chain(kept).collect::<Vec<_>>().join(&b", "[..]);
        // Valid list members, joined by a comma, are a valid value.
        let value = HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("private"));
        headers.insert(header::CACHE_CONTROL, value);
    }
}

pub(crate) const NO_STORE: &str = "no-store";

/// The response headers of a gate that scripts in browsers can read only if a CORS layer exposes them.
///
/// They are the challenge, `Retry-After`, the [rate limit headers](RateLimitHeaders) in all formats, and the status of gRPC-Web
/// with its pushback.
/// With tower-http: `CorsLayer::new().expose_headers(EXPOSED_HEADERS)`. The CORS layer belongs outside of the gate, so that
/// rejections have CORS headers too.
///
/// ```
/// use tollgate::respond::EXPOSED_HEADERS;
///
/// let value = EXPOSED_HEADERS.map(|name| name.to_string()).join(", ");
/// assert!(value.starts_with("www-authenticate, retry-after, ratelimit, ratelimit-policy"));
/// ```
pub const EXPOSED_HEADERS: [HeaderName; 14] = [
    header::WWW_AUTHENTICATE,
    header::RETRY_AFTER,
    ratelimit::RATELIMIT,
    ratelimit::RATELIMIT_POLICY,
    HeaderName::from_static("ratelimit-limit"),
    HeaderName::from_static("ratelimit-remaining"),
    HeaderName::from_static("ratelimit-reset"),
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
    grpc::GRPC_STATUS,
    grpc::GRPC_MESSAGE,
    grpc::GRPC_STATUS_DETAILS_BIN,
    grpc::GRPC_RETRY_PUSHBACK_MS,
];
