//! [`Rejection`]: why a request was rejected.

use std::error::Error;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::challenge::{Challenge, ChallengeError};
use super::store_error::StoreError;
use super::terms::Terms;
use crate::grant::GrantId;
use crate::grant::scopes::Scopes;
use crate::quota::decision::{Decision, Verdict, secs_up};
use crate::rejection::invalid_request::InvalidRequest;
use crate::rejection::protocol::{Protocol, Reply};
use crate::request_head::RequestHead;

/// Why a request was refused, and all that is needed to say so.
///
/// A gate puts it into the extensions of its answer, so that outer layers can count and log it. It holds no token.
///
/// A handler that finds out by itself that a grant does not suffice makes one, and
/// [`AuthLayer::reject`](crate::AuthLayer::reject) writes it with the realm and the responder of the gate:
///
/// ```
/// use tollgate::{Rejection, RejectionKind, Scopes};
///
/// let missing = Rejection::insufficient_scope(Scopes::new(["orders:write"])?);
/// assert_eq!(missing.kind(), RejectionKind::InsufficientScope);
/// # Ok::<_, tollgate::ScopeError>(())
/// ```
#[derive(Clone)]
pub struct Rejection {
    kind: RejectionKind,
    reply: Reply,
    /// How the gate speaks; `None` until a gate has seen it.
    terms: Option<Arc<Terms>>,
    grant: Option<GrantId>,
    // Boxed: few refusals have these, and `Result<_, Rejection>` is what handlers return.
    decision: Option<Box<Decision>>,
    needs: Option<Box<Needs>>,
    source: Option<StoreError>,
    /// For [`RejectionKind::Misconfigured`]: what was forgotten.
    hint: &'static str,
    /// For [`RejectionKind::InvalidRequest`].
    reason: InvalidRequest,
    /// For [`RejectionKind::TooManyFailures`]: nanoseconds until the next attempt may be made.
    wait: Option<NonZeroU64>,
    would_be_throttled: bool,
}

/// What a caller would have to bring.
#[derive(Clone)]
enum Needs {
    Scopes(Scopes),
    Authentication(Challenge),
}

/// The reasons for which a request can be refused, with the status and the challenge's `error` that they get over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionKind {
    /// 401: nothing was presented.
    Missing,
    /// 401 `invalid_token`: what was presented is no token.
    MalformedToken,
    /// 401 `invalid_token`: no grant belongs to the token, or none any more.
    UnknownToken,
    /// 401 `invalid_token`: the grant is not valid yet. Looks like an unknown token.
    NotYetValid,
    /// 401 `invalid_token`: the grant has expired.
    ExpiredToken,
    /// 401 `invalid_token`: the token is bound to a key and came without proof. Looks like an unknown token.
    SenderConstrained,
    /// 400 `invalid_request`: more than one credential, or a request that leaves open which is meant.
    InvalidRequest,
    /// 403 `insufficient_scope`: the grant does not allow this.
    InsufficientScope,
    /// 401 `insufficient_user_authentication`: the user has to authenticate again, or better (RFC 9470).
    InsufficientUserAuthentication,
    /// 429: too many attempts of the peer to authenticate have failed. Says nothing of the token.
    TooManyFailures,
    /// 429: the budget is spent.
    OverLimit,
    /// 400: the request costs more than the budget can ever hold.
    CostAboveBurst,
    /// 413: the body is longer than the doors in it allow.
    BodyTooLarge,
    /// 400: the body could not be read to its end.
    BodyUnreadable,
    /// 408: the body did not come in time.
    BodyTimeout,
    /// 503: the store could not tell, or not in time.
    StoreUnavailable,
    /// 503: the limiter could not tell, or not in time.
    LimiterUnavailable,
    /// 500: layers are missing or in the wrong order.
    Misconfigured,
}

impl RejectionKind {
    /// Returns the word for this kind in metrics and events, as in `OBSERVE.md`: `over_limit`, for example.
    ///
    /// For operators: it tells kinds apart that look the same to clients.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::MalformedToken => "malformed_token",
            Self::UnknownToken => "unknown_token",
            Self::NotYetValid => "not_yet_valid",
            Self::ExpiredToken => "expired_token",
            Self::SenderConstrained => "sender_constrained",
            Self::InvalidRequest => "invalid_request",
            Self::InsufficientScope => "insufficient_scope",
            Self::InsufficientUserAuthentication => "insufficient_user_authentication",
            Self::TooManyFailures => "too_many_failures",
            Self::OverLimit => "over_limit",
            Self::CostAboveBurst => "cost_above_burst",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyUnreadable => "body_unreadable",
            Self::BodyTimeout => "body_timeout",
            Self::StoreUnavailable => "store_unavailable",
            Self::LimiterUnavailable => "limiter_unavailable",
            Self::Misconfigured => "misconfigured",
        }
    }
}

impl Rejection {
    pub(crate) fn new(kind: RejectionKind) -> Self {
        Self {
            kind,
            reply: Reply::default(),
            terms: None,
            grant: None,
            decision: None,
            needs: None,
            source: None,
            hint: "",
            reason: InvalidRequest::SeveralCredentials,
            wait: None,
            would_be_throttled: false,
        }
    }

    /// Nothing was presented, and something is needed: 401 without an error code.
    #[must_use]
    pub fn missing() -> Self {
        Self::new(RejectionKind::Missing)
    }

    /// The grant lacks one of these scopes: 403.
    #[must_use]
    pub fn insufficient_scope(scopes: Scopes) -> Self {
        Self { needs: Some(Box::new(Needs::Scopes(scopes))), ..Self::new(RejectionKind::InsufficientScope) }
    }

    /// The user has to authenticate by one of these methods, most wanted first, or not longer ago than this (RFC 9470,
    /// section 3): 401.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::Rejection;
    ///
    /// let step_up = Rejection::insufficient_user_authentication(["myACR"], Some(Duration::from_secs(5)))?;
    /// # let _ = step_up;
    /// # Ok::<_, tollgate::respond::ChallengeError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If a value is empty or has a space, a quote, a backslash, a control or a non-ASCII character.
    pub fn insufficient_user_authentication<I>(acr_values: I, max_age: Option<Duration>) -> Result<Self, ChallengeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut needs = Challenge::bearer(Challenge::DEFAULT_REALM)?.with_acr_values(acr_values)?;
        if let Some(max_age) = max_age {
            needs = needs.with_max_age(max_age);
        }
        let kind = RejectionKind::InsufficientUserAuthentication;
        Ok(Self { needs: Some(Box::new(Needs::Authentication(needs))), ..Self::new(kind) })
    }

    /// What a charge that was not admitted is refused with: 429, 400 if it can never be, or 503 if nobody knows.
    pub(crate) fn over_limit(decision: Decision) -> Self {
        let kind = match decision.verdict() {
            Verdict::CostAboveBurst => RejectionKind::CostAboveBurst,
            Verdict::Unavailable => RejectionKind::LimiterUnavailable,
            Verdict::OverLimit | Verdict::Admitted => RejectionKind::OverLimit,
        };
        Self { decision: Some(Box::new(decision)), ..Self::new(kind) }
    }

    /// Too many attempts have failed: 429, for so many nanoseconds.
    pub(crate) fn too_many_failures(wait: NonZeroU64) -> Self {
        Self { wait: Some(wait), ..Self::new(RejectionKind::TooManyFailures) }
    }

    /// The same, and it says that only a dry run of the throttle has let it come so far.
    pub(crate) fn let_in_by_dry_run(self) -> Self {
        Self { would_be_throttled: true, ..self }
    }

    /// The request is wrong, for this reason: 400.
    pub(crate) fn invalid_request(reason: InvalidRequest) -> Self {
        Self { reason, ..Self::new(RejectionKind::InvalidRequest) }
    }

    pub(crate) fn misconfigured(hint: &'static str) -> Self {
        Self { hint, ..Self::new(RejectionKind::Misconfigured) }
    }

    pub(crate) fn unavailable(source: StoreError) -> Self {
        Self { source: Some(source), ..Self::new(RejectionKind::StoreUnavailable) }
    }

    /// The same, and it names the grant that was refused: for logs.
    #[must_use]
    pub fn of_grant(self, grant: &GrantId) -> Self {
        Self { grant: Some(grant.clone()), ..self }
    }

    /// Sets the protocol of the response: [`Protocol::of`] returns that of a request.
    ///
    /// Gates and extractors do this themselves. A handler that has the request calls [`for_request`](Self::for_request).
    #[must_use]
    pub fn with_protocol(self, protocol: Protocol) -> Self {
        Self { reply: self.reply.with_protocol(protocol), ..self }
    }

    /// Adapts the response to the request: to its [protocol](Protocol::of), to `HEAD`, whose responses have no content, and to a
    /// body that will not be read, after which a connection of HTTP/1 has to be closed.
    ///
    /// Gates and extractors do this themselves.
    ///
    /// ```
    /// use http::{Request, Response};
    /// use tollgate::{AuthLayer, Grant, RequestHead, MemoryStore, Rejection, Scopes, TokenDigest};
    ///
    /// let gate = AuthLayer::new(MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]));
    /// let request = Request::head("/orders").body(())?;
    /// let rejection = Rejection::insufficient_scope(Scopes::new(["orders:read"])?);
    /// let response: Response<bytes::Bytes> = gate.reject(rejection.for_request(&RequestHead::of(&request)));
    /// assert_eq!(response.status(), 403);
    /// assert!(response.body().is_empty());
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn for_request(self, head: &RequestHead<'_>) -> Self {
        Self { reply: Reply::to(head), ..self }
    }

    pub(crate) fn under(self, terms: &Arc<Terms>) -> Self {
        Self { terms: Some(Arc::clone(terms)), ..self }
    }

    /// Why.
    #[must_use]
    pub fn kind(&self) -> RejectionKind {
        self.kind
    }

    /// The protocol of the response.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.reply.protocol()
    }

    /// Returns whether a responder may write content of its own: over HTTP, and not in response to `HEAD`.
    ///
    /// HTTP/2 clients treat content in response to `HEAD` as a protocol error (RFC 9113, section 8.1.1), and hyper sends what it is
    /// given. The other [protocols](Self::protocol) prescribe the content.
    #[must_use]
    pub fn allows_content(&self) -> bool {
        self.protocol() == Protocol::Http && !self.reply.is_head
    }

    pub(crate) fn reply(&self) -> &Reply {
        &self.reply
    }

    /// The grant that was refused, if one was found and is what was refused.
    #[must_use]
    pub fn grant(&self) -> Option<&GrantId> {
        self.grant.as_ref()
    }

    /// What the limiter decided, if it was the limiter that refused.
    #[must_use]
    pub fn decision(&self) -> Option<&Decision> {
        self.decision.as_deref()
    }

    /// The scopes that would have been needed.
    #[must_use]
    pub fn required_scopes(&self) -> Option<&Scopes> {
        match self.needs.as_deref() {
            Some(Needs::Scopes(scopes)) => Some(scopes),
            _ => None,
        }
    }

    /// The gate's protection space, if a gate has seen this.
    #[must_use]
    pub fn realm(&self) -> Option<&str> {
        self.terms.as_ref()?.bearer().realm()
    }

    /// Whether the throttle of failures would have refused this, had it not been a
    /// [dry run](crate::limit::FailureThrottle::with_dry_run).
    #[must_use]
    pub fn would_be_throttled(&self) -> bool {
        self.would_be_throttled
    }

    /// The time after which the request may succeed, if it is known. While a store or a limiter is unavailable and does not say
    /// for how long, it is 1 second.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let limit = self.decision().and_then(Decision::retry_after);
        let attempt = || self.wait.map(|wait| Duration::from_nanos(wait.get()));
        let known = limit.or_else(attempt).or_else(|| self.source.as_ref()?.retry_after());
        match self.kind {
            RejectionKind::StoreUnavailable | RejectionKind::LimiterUnavailable => {
                Some(known.unwrap_or(Duration::from_secs(1)))
            }
            _ => known,
        }
    }

    /// Returns the value of the header field `Retry-After`: the time after which the client may try again, in whole seconds,
    /// rounded up and never 0.
    ///
    /// `Some` for each 429 and each 503. While a store or a limiter is unavailable and does not say for how long, it is 1
    /// second.
    #[must_use]
    pub fn retry_after_secs(&self) -> Option<u64> {
        let ns = u64::try_from(self.retry_after()?.as_nanos()).unwrap_or(u64::MAX);
        Some(secs_up(ns).max(1))
    }

    pub(crate) fn with_required_scopes(self, scopes: Scopes) -> Self {
        Self { needs: Some(Box::new(Needs::Scopes(scopes))), ..self }
    }

    /// The methods and age that would have been needed, as a challenge that has only these.
    pub(crate) fn required_authentication(&self) -> Option<&Challenge> {
        match self.needs.as_deref() {
            Some(Needs::Authentication(challenge)) => Some(challenge),
            _ => None,
        }
    }

    pub(crate) fn terms(&self) -> Option<&Arc<Terms>> {
        self.terms.as_ref()
    }

    /// Why the store could not tell, if that is the reason.
    pub(crate) fn store_error(&self) -> Option<&StoreError> {
        self.source.as_ref()
    }

    /// The reason of [`RejectionKind::InvalidRequest`].
    pub(crate) fn reason(&self) -> InvalidRequest {
        self.reason
    }

    pub(crate) fn hint(&self) -> &'static str {
        self.hint
    }
}

impl Decision {
    /// The decision itself if the caller may go on, and otherwise the refusal that says so: 429, 400 if the charge can never
    /// fit, or 503 if the limiter could not tell. For handlers that charge by themselves.
    ///
    /// ```
    /// use http::Response;
    /// use tollgate::limit::{Charge, RateLimits};
    /// use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let (gate, limits) = (AuthLayer::new(tokens), RateLimits::new(Quota::per_minute(1)));
    /// let who = Authenticated::new(Grant::new("alice", ())).current();
    ///
    /// assert!(limits.charge(&who, Charge::Units(1)).into_result().is_ok());
    /// let rejection = limits.charge(&who, Charge::Units(1)).into_result().unwrap_err();
    /// // Whose budget it is, for who logs it.
    /// let response: Response<bytes::Bytes> = gate.reject(rejection.of_grant(who.id()));
    /// assert_eq!(response.status(), 429);
    /// assert_eq!(response.headers()["ratelimit"], r#""default";r=0;t=60"#);
    /// ```
    ///
    /// # Errors
    ///
    /// If the caller may not go on; then nothing was charged.
    pub fn into_result(self) -> Result<Self, Rejection> {
        match self.is_admitted() {
            true => Ok(self),
            false => Err(Rejection::over_limit(self)),
        }
    }
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejection")
            .field("kind", &self.kind)
            .field("protocol", &self.protocol())
            .field("realm", &self.realm())
            .field("grant", &self.grant)
            .field("decision", &self.decision)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Error for Rejection {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
