//! [`Rejection`]: a rejected request, with its reason and everything that the response needs.

use std::error::Error;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};

use super::challenge::{Challenge, ChallengeError};
use super::kind::RejectionKind;
use super::store_error::StoreError;
use super::terms::Challenges;
use crate::grant::GrantId;
use crate::grant::scopes::Scopes;
use crate::quota::clock::secs_up;
use crate::quota::decision::{Decision, Verdict};
use crate::rejection::invalid_request::InvalidRequest;
use crate::rejection::protocol::{Protocol, Reply};
use crate::request_head::RequestHead;

/// A rejected request: the reason, and everything that the response needs.
///
/// A gate puts the rejection into the extensions of the response, so that outer layers can count and log it. A rejection holds
/// no token.
///
/// A handler that needs more than the grant allows creates a rejection itself.
/// [`AuthLayer::reject`](crate::AuthLayer::reject) turns it into a response, with the realm and the responder of the gate:
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
    /// The challenges of the gate. `None` until a gate has processed the rejection.
    challenges: Option<Arc<Challenges>>,
    grant: Option<GrantId>,
    cause: Cause,
    would_be_throttled: bool,
    // Boxed: only gates with a function for it set one.
    request_id: Option<Box<HeaderValue>>,
    /// The status of a response that the gate around the handler writes again.
    provisional: Option<StatusCode>,
}

/// The details of a rejection that depend on its kind. One value, because rejections are moved several times.
#[derive(Clone)]
enum Cause {
    /// The kind says everything.
    Kind,
    InvalidRequest(InvalidRequest),
    Scopes(Scopes),
    Authentication(Box<Challenge>),
    /// Nanoseconds until the next attempt is allowed.
    Failures(NonZeroU64),
    Limit(Decision),
    Store(StoreError),
    /// The missing or misplaced layer.
    Misconfigured(&'static str),
}

impl Rejection {
    pub(crate) fn new(kind: RejectionKind) -> Self {
        Self::of(kind, Cause::Kind)
    }

    fn of(kind: RejectionKind, cause: Cause) -> Self {
        Self {
            kind,
            reply: Reply::default(),
            challenges: None,
            grant: None,
            cause,
            would_be_throttled: false,
            request_id: None,
            provisional: None,
        }
    }

    /// Creates a rejection of a request without a credential: 401 without an error code.
    #[must_use]
    pub fn missing() -> Self {
        Self::new(RejectionKind::Missing)
    }

    /// Creates a rejection of a grant that lacks one of these scopes: 403.
    #[must_use]
    pub fn insufficient_scope(scopes: Scopes) -> Self {
        Self::of(RejectionKind::InsufficientScope, Cause::Scopes(scopes))
    }

    /// Creates a rejection that requires the user to authenticate again (RFC 9470, section 3): 401.
    ///
    /// `acr_values` are the accepted authentication methods, preferred first. `max_age` is the maximum time since the user
    /// authenticated.
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
    /// Returns an error if a value is empty or has a space, a quote, a backslash, a control or a non-ASCII character.
    pub fn insufficient_user_authentication<I>(acr_values: I, max_age: Option<Duration>) -> Result<Self, ChallengeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut needs = Challenge::bearer(Challenge::DEFAULT_REALM)?.with_acr_values(acr_values)?;
        if let Some(max_age) = max_age {
            needs = needs.with_max_age(max_age);
        }
        Ok(Self::of(RejectionKind::InsufficientUserAuthentication, Cause::Authentication(Box::new(needs))))
    }

    /// Creates a rejection of a charge: 429, 400 if it can never be admitted, or 503 if the limiter is unavailable.
    pub(crate) fn over_limit(decision: Decision) -> Self {
        let kind = match decision.verdict() {
            Verdict::CostAboveBurst => RejectionKind::CostAboveBurst,
            Verdict::Unavailable => RejectionKind::LimiterUnavailable,
            Verdict::OverLimit | Verdict::Admitted => RejectionKind::OverLimit,
        };
        Self::of(kind, Cause::Limit(decision))
    }

    /// Creates a rejection after too many failed attempts: 429, with the time to wait in nanoseconds.
    pub(crate) fn too_many_failures(wait: NonZeroU64) -> Self {
        Self::of(RejectionKind::TooManyFailures, Cause::Failures(wait))
    }

    /// Marks a rejection that a failure throttle would have made earlier if it were not a dry run.
    pub(crate) fn with_would_be_throttled(mut self) -> Self {
        self.would_be_throttled = true;
        self
    }

    /// Creates a rejection of an invalid request: 400, with this reason.
    pub(crate) fn invalid_request(reason: InvalidRequest) -> Self {
        Self::of(RejectionKind::InvalidRequest, Cause::InvalidRequest(reason))
    }

    pub(crate) fn misconfigured(hint: &'static str) -> Self {
        Self::of(RejectionKind::Misconfigured, Cause::Misconfigured(hint))
    }

    pub(crate) fn unavailable(source: StoreError) -> Self {
        Self::of(RejectionKind::StoreUnavailable, Cause::Store(source))
    }

    /// Adds the id of the rejected grant, for logs.
    #[must_use]
    pub fn of_grant(mut self, grant: &GrantId) -> Self {
        self.grant = Some(grant.clone());
        self
    }

    /// Sets the protocol of the response. [`Protocol::of`] returns the protocol of a request.
    ///
    /// Gates and extractors do this themselves. A handler that has the request calls [`for_request`](Self::for_request).
    #[must_use]
    pub fn with_protocol(mut self, protocol: Protocol) -> Self {
        self.reply = self.reply.with_protocol(protocol);
        self
    }

    /// Adapts the response to the request:
    ///
    /// - The response has the [protocol](Protocol::of) of the request.
    /// - The response to `HEAD` has no content.
    /// - An HTTP/1 connection is closed after the response if the request has a body that no gate has read. This method cannot
    ///   know whether the handler has read it.
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
    pub fn for_request(mut self, head: &RequestHead<'_>) -> Self {
        self.reply = Reply::to(head);
        self
    }

    /// Sets the id of the request, for [`request_id`](Self::request_id).
    ///
    /// Gates [with request ids](crate::AuthLayer::with_request_id) do this themselves. A handler needs it only if it writes the
    /// response itself, as for [`AuthLayer::reject`](crate::AuthLayer::reject) or on a WebSocket.
    #[must_use]
    pub fn with_request_id(mut self, id: HeaderValue) -> Self {
        self.request_id = Some(Box::new(id));
        self
    }

    /// Sets the status of a provisional response: the gate around the handler writes it again.
    pub(crate) fn with_provisional(mut self, provisional: Option<StatusCode>) -> Self {
        self.provisional = provisional;
        self
    }

    /// Adds what a gate knows about the request of a rejection that the handler returned.
    pub(crate) fn for_admitted(mut self, is_head: bool, request_id: Option<Box<HeaderValue>>) -> Self {
        self.reply.is_head |= is_head;
        self.request_id = self.request_id.or(request_id);
        self
    }

    pub(crate) fn with_challenges(mut self, challenges: &Arc<Challenges>) -> Self {
        self.challenges = Some(Arc::clone(challenges));
        self
    }

    /// Returns the reason for the rejection.
    #[must_use]
    pub fn kind(&self) -> RejectionKind {
        self.kind
    }

    /// Returns the protocol of the response.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.reply.protocol()
    }

    /// Returns whether a responder may write its own content: only over HTTP, and not in response to `HEAD`.
    ///
    /// HTTP/2 clients treat content in response to `HEAD` as a protocol error (RFC 9113, section 8.1.1), and hyper does not
    /// remove it. The other [protocols](Self::protocol) define the content.
    #[must_use]
    pub fn allows_content(&self) -> bool {
        self.protocol() == Protocol::Http && !self.reply.is_head
    }

    pub(crate) fn reply(&self) -> &Reply {
        &self.reply
    }

    /// Returns the id of the rejected grant, if a grant was found and was the reason.
    #[must_use]
    pub fn grant(&self) -> Option<&GrantId> {
        self.grant.as_ref()
    }

    /// Returns the decision of the limiter, if the limiter rejected the request.
    #[must_use]
    pub fn decision(&self) -> Option<&Decision> {
        match &self.cause {
            Cause::Limit(decision) => Some(decision),
            _ => None,
        }
    }

    /// Returns the required scopes.
    #[must_use]
    pub fn required_scopes(&self) -> Option<&Scopes> {
        match &self.cause {
            Cause::Scopes(scopes) => Some(scopes),
            _ => None,
        }
    }

    /// Returns the id of the request, for an error body that clients can quote to a support desk.
    ///
    /// Returns `Some` if the gate has a function for it; see [`AuthLayer::with_request_id`](crate::AuthLayer::with_request_id).
    #[must_use]
    pub fn request_id(&self) -> Option<&HeaderValue> {
        self.request_id.as_deref()
    }

    /// Returns the status of the provisional response, if a gate around the handler writes it again.
    pub(crate) fn provisional(&self) -> Option<StatusCode> {
        self.provisional
    }

    /// Returns the realm of the gate, if a gate has processed the rejection.
    #[must_use]
    pub fn realm(&self) -> Option<&str> {
        self.challenges.as_ref()?.bearer().realm()
    }

    /// Returns whether the failure throttle would have rejected the request if it were not a
    /// [dry run](crate::limit::FailureThrottle::with_dry_run).
    #[must_use]
    pub fn would_be_throttled(&self) -> bool {
        self.would_be_throttled
    }

    /// Returns the time after which the request may succeed, if known. The default is 1 second while a store or a limiter is
    /// unavailable.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let known = match &self.cause {
            Cause::Limit(decision) => decision.retry_after(),
            Cause::Failures(wait) => Some(Duration::from_nanos(wait.get())),
            Cause::Store(error) => error.retry_after(),
            _ => None,
        };
        match self.kind {
            RejectionKind::StoreUnavailable | RejectionKind::LimiterUnavailable => {
                Some(known.unwrap_or(Duration::from_secs(1)))
            }
            _ => known,
        }
    }

    /// Returns the value of the `Retry-After` header: the time to wait in whole seconds, rounded up and never 0.
    ///
    /// Returns `Some` for each 429 and each 503. While a store or a limiter is unavailable, the default is 1 second.
    #[must_use]
    pub fn retry_after_secs(&self) -> Option<u64> {
        if let Cause::Limit(decision) = &self.cause {
            return decision.retry_after_secs();
        }
        let ns = u64::try_from(self.retry_after()?.as_nanos()).unwrap_or(u64::MAX);
        Some(secs_up(ns).max(1))
    }

    pub(crate) fn with_required_scopes(mut self, scopes: Scopes) -> Self {
        self.cause = Cause::Scopes(scopes);
        self
    }

    /// Returns the required authentication, as a challenge that has only these parameters.
    pub(crate) fn required_authentication(&self) -> Option<&Challenge> {
        match &self.cause {
            Cause::Authentication(challenge) => Some(challenge),
            _ => None,
        }
    }

    /// Returns whether the head of the response depends on nothing but the kind, the protocol and the challenges.
    pub(crate) fn head_depends_on_kind_only(&self) -> bool {
        matches!(self.cause, Cause::Kind | Cause::InvalidRequest(_) | Cause::Misconfigured(_))
    }

    pub(crate) fn challenges(&self) -> Option<&Arc<Challenges>> {
        self.challenges.as_ref()
    }

    /// Returns the error of the store, if the store failed.
    pub(crate) fn store_error(&self) -> Option<&StoreError> {
        match &self.cause {
            Cause::Store(error) => Some(error),
            _ => None,
        }
    }

    /// Returns the reason of [`RejectionKind::InvalidRequest`].
    pub(crate) fn reason(&self) -> InvalidRequest {
        match self.cause {
            Cause::InvalidRequest(reason) => reason,
            _ => InvalidRequest::SeveralCredentials,
        }
    }

    pub(crate) fn hint(&self) -> &'static str {
        match self.cause {
            Cause::Misconfigured(hint) => hint,
            _ => "",
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
            .field("decision", &self.decision())
            .field("source", &self.store_error())
            .finish_non_exhaustive()
    }
}

impl Error for Rejection {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.store_error().map(|source| source as _)
    }
}
