//! The last station: say no, in the words of the standards.
//!
//! This is the only place that knows the status codes and header fields of answers. [`ProblemDetails`] is the default
//! responder, [`EmptyBody`] is for bodies that can only be empty, [`ProblemDetails::map_body`] for any other body, and a closure
//! from `&Rejection` to a response is a responder too.
//!
//! # Rules
//!
//! 1. Nothing usable was presented: 401 without an error code. The token is wrong: 401 `invalid_token`. The request is
//!    wrong: 400 `invalid_request`. Rights are missing: 403. The server cannot tell: 503.
//! 2. Every 400 to 403 that speaks of credentials has a challenge; 429 and 5xx have none.
//! 3. No refusal may be stored: `Cache-Control: no-store`.
//! 4. `Retry-After` is in whole seconds, rounded up and never 0. Every 429 and every 503 has it.
//! 5. A request of gRPC, gRPC-Web or Connect is rejected in the format of its [`Protocol`], since its clients read
//!    nothing else. [`ProblemDetails`] writes all of them, [`EmptyBody`] those without content: gRPC and gRPC-Web.
//! 6. A rejection of `HEAD` has no content (RFC 9110, section 9.3.2).
//! 7. A rejection of an HTTP/1 request whose body was not read has `Connection: close` (RFC 9112, section 9.6): the server closes
//!    the connection, and a client that sent its next request on it would fail.

use http::header::Entry;
use http::{HeaderValue, Response, StatusCode, header};

mod connect;
pub(crate) mod detail;
mod grpc;
pub(crate) mod list;
mod problem;
pub(crate) mod ratelimit;

pub use crate::rejection::challenge::{Challenge, ChallengeError, ErrorCode};
pub use problem::{MappedBody, ProblemDetails};
pub use ratelimit::RateLimitHeaders;

use crate::observe;
use crate::rejection::protocol::Protocol;
use crate::rejection::terms::Terms;
use crate::rejection::{Rejection, RejectionKind};
use crate::token::TokenLocation;

/// Writes refusals.
///
/// Closures implement it; [`AuthLayer::with_response_fn`](crate::AuthLayer::with_response_fn) takes one. A responder
/// never sees the request: what it may say is in the [`Rejection`].
///
/// A responder must not write content of its own unless [`Rejection::allows_content`] returns true. Gates cannot enforce this: they
/// do not know the type of the body.
///
/// ```
/// use http::{Response, StatusCode};
/// use tollgate::respond::Respond;
/// use tollgate::{Rejection, RejectionKind};
///
/// /// Takes the standard head and writes a body of its own.
/// fn crosstrade(rejection: &Rejection) -> Response<String> {
///     let response: Response<String> = tollgate::EmptyBody.respond(rejection);
///     match rejection.kind() {
///         RejectionKind::OverLimit if rejection.allows_content() => {
///             response.map(|_| r#"{"error": "Rate limit exceeded"}"#.to_owned())
///         }
///         _ => response,
///     }
/// }
/// # let _: &dyn Respond<String> = &crosstrade;
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot write a refusal into a body of type `{B}`",
    note = "`ProblemDetails` needs `{B}: From<Bytes>`",
    note = "use `.with_responder(EmptyBody)` where `{B}: Default` (tonic), `.with_responder(ProblemDetails.map_body(..))` for a boxed body, or `.with_response_fn(|rejection| ..)`"
)]
pub trait Respond<B>: Send + Sync + 'static {
    /// Writes a refusal.
    fn respond(&self, rejection: &Rejection) -> Response<B>;

    /// Writes a refusal and puts it into the extensions of the response, as gates do, so that outer layers can count
    /// and log it. It is here that a refusal is [told](crate::observe) to recorders and subscribers.
    ///
    /// What [`respond`](Self::respond) leaves out is added: that no cache stores the answer, unless it speaks of caches, to a
    /// 401 how to authenticate (RFC 9110, section 15.5.2), and to a 503 `Retry-After`. `Connection: close` is added where the
    /// connection cannot be used again. Whoever writes this method anew does all of that himself.
    fn reject(&self, rejection: Rejection) -> Response<B> {
        let mut response = written(self, rejection);
        complete(&mut response);
        response
    }
}

/// An answer that carries the refusal which it is about.
#[inline]
fn written<B>(responder: &(impl Respond<B> + ?Sized), rejection: Rejection) -> Response<B> {
    observe::refused(&rejection);
    let mut response = responder.respond(&rejection);
    if rejection.reply().closes {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.extensions_mut().insert(rejection);
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

/// Refuses with the head alone: for bodies that are only [`Default`], such as tonic's.
///
/// Clients of Connect then get an HTTP status without an error, and derive the code from it: they read 429 as UNAVAILABLE.
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

/// The Bearer challenge of a refusal: none, one without an error, or one with.
fn bearer_challenge(rejection: &Rejection, terms: &Terms) -> Option<HeaderValue> {
    Some(match rejection.kind() {
        RejectionKind::Missing => match rejection.required_scopes() {
            // Scopes are no error information, so that they may be told to those who presented nothing.
            Some(scopes) => terms.bearer().clone().with_scope(scopes).to_header_value(),
            None => terms.challenge(None),
        },
        RejectionKind::MalformedToken
        | RejectionKind::UnknownToken
        | RejectionKind::NotYetValid
        | RejectionKind::ExpiredToken
        | RejectionKind::SenderConstrained => terms.challenge(Some(ErrorCode::InvalidToken)),
        RejectionKind::InvalidRequest => terms.challenge(Some(ErrorCode::InvalidRequest)),
        RejectionKind::InsufficientScope => {
            let challenge = terms.bearer().clone().with_error(ErrorCode::InsufficientScope);
            rejection
                .required_scopes()
                .map_or(challenge.clone(), |scopes| challenge.with_scope(scopes))
                .to_header_value()
        }
        RejectionKind::InsufficientUserAuthentication => {
            let challenge = terms.bearer().clone().with_error(ErrorCode::InsufficientUserAuthentication);
            match rejection.required_authentication() {
                Some(needed) => challenge.with_authentication_of(needed).to_header_value(),
                None => challenge.to_header_value(),
            }
        }
        RejectionKind::CostAboveBurst
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

/// Writes all `WWW-Authenticate` lines of a refusal, one a challenge (RFC 9110, section 11.6.1).
pub(crate) fn write_challenges(headers: &mut http::HeaderMap, rejection: &Rejection, terms: &Terms) {
    if let Some(bearer) = bearer_challenge(rejection, terms) {
        headers.insert(header::WWW_AUTHENTICATE, bearer);
        for other in terms.others() {
            headers.append(header::WWW_AUTHENTICATE, other.clone());
        }
    }
}

/// The same in the words of the gate that refuses.
fn write_own_challenges(headers: &mut http::HeaderMap, rejection: &Rejection) {
    match rejection.terms() {
        Some(terms) => write_challenges(headers, rejection, terms),
        None => write_challenges(headers, rejection, &Terms::default()),
    }
}

/// Adds what no refusal may be without, and a responder of the service's own may have left out.
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
            write_own_challenges(response.headers_mut(), &rejection);
        }
    }
}

/// Everything of a refusal but its body.
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
    write_own_challenges(headers, rejection);
    write_limits(headers, rejection);
    response
}

/// `Retry-After`, which every dialect has. The `RateLimit` fields of all policies are written by the gate, on success
/// and refusal alike.
fn write_limits(headers: &mut http::HeaderMap, rejection: &Rejection) {
    if let Some(seconds) = rejection.retry_after_secs() {
        headers.insert(header::RETRY_AFTER, ratelimit::number(seconds));
    }
}

/// Keeps shared caches from an answer to a request whose token they do not know as one (RFC 9111, section 3.5, protects
/// requests with `Authorization` only).
pub(crate) fn keep_private(headers: &mut http::HeaderMap, location: TokenLocation) {
    match headers.entry(header::CACHE_CONTROL) {
        // What most answers are.
        Entry::Vacant(free) => _ = free.insert(HeaderValue::from_static("private")),
        Entry::Occupied(_) => amend_cache_control(headers),
    }
    if location == TokenLocation::Query {
        keep_target(headers);
    }
}

/// Keeps links on a page from carrying the token away that is in its target (RFC 9700, section 4.3.2).
pub(crate) fn keep_target(headers: &mut http::HeaderMap) {
    if !headers.contains_key(header::REFERRER_POLICY) {
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    }
}

/// Makes private what a handler said of caches.
fn amend_cache_control(headers: &mut http::HeaderMap) {
    // With a value, `private="field"`, a directive is about that field only, and is not this one.
    let says = |directive: &str| {
        let mut directives = list::members(headers, &header::CACHE_CONTROL);
        directives.any(|own| own.eq_ignore_ascii_case(directive.as_bytes()))
    };
    let kept_already = (says("private") && !says("public")) || says("no-store");
    if !kept_already {
        // What lets caches store more goes, and what is private in part is private now; the rest stays.
        let goes = |directive: &[u8]| {
            let name = directive.split(|&byte| byte == b'=').next().unwrap_or_default();
            ["public", "private", "s-maxage", "max-age"].iter().any(|own| name.eq_ignore_ascii_case(own.as_bytes()))
        };
        let kept = list::members(headers, &header::CACHE_CONTROL).filter(|directive| !goes(directive));
        let value = [&b"private"[..]].into_iter().chain(kept).collect::<Vec<_>>().join(&b", "[..]);
        // Members of values, joined by a comma, are a value.
        let value = HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("private"));
        headers.insert(header::CACHE_CONTROL, value);
    }
}

const NO_STORE: &str = "no-store";
