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
    // Boxed: few rejections have these, and handlers return `Result<_, Rejection>`.
    decision: Option<Box<Decision>>,
    needs: Option<Box<Needs>>,
    source: Option<StoreError>,
    /// For [`RejectionKind::Misconfigured`]: the missing or misplaced layer.
    hint: &'static str,
    /// For [`RejectionKind::InvalidRequest`].
    reason: InvalidRequest,
    /// For [`RejectionKind::TooManyFailures`]: nanoseconds until the next attempt is allowed.
    wait: Option<NonZeroU64>,
    would_be_throttled: bool,
    // Boxed: only gates with a function for it set one.
    request_id: Option<Box<HeaderValue>>,
    /// The status of a response that the gate around the handler writes again.
    provisional: Option<StatusCode>,
}

/// The requirements that the request did not meet.
#[derive(Clone)]
enum Needs {
    Scopes(Scopes),
    Authentication(Challenge),
}

impl Rejection {
    pub(crate) fn new(kind: RejectionKind) -> Self {
        Self {
            kind,
            reply: Reply::default(),
            challenges: None,
            grant: None,
            decision: None,
            needs: None,
            source: None,
            hint: "",
            reason: InvalidRequest::SeveralCredentials,
            wait: None,
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
        Self { needs: Some(Box::new(Needs::Scopes(scopes))), ..Self::new(RejectionKind::InsufficientScope) }
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
        let kind = RejectionKind::InsufficientUserAuthentication;
        Ok(Self { needs: Some(Box::new(Needs::Authentication(needs))), ..Self::new(kind) })
    }

    /// Creates a rejection of a charge: 429, 400 if it can never be admitted, or 503 if the limiter is unavailable.
    pub(crate) fn over_limit(decision: Decision) -> Self {
        let kind = match decision.verdict() {
            Verdict::CostAboveBurst => RejectionKind::CostAboveBurst,
            Verdict::Unavailable => RejectionKind::LimiterUnavailable,
            Verdict::OverLimit | Verdict::Admitted => RejectionKind::OverLimit,
        };
        Self { decision: Some(Box::new(decision)), ..Self::new(kind) }
    }

    /// Creates a rejection after too many failed attempts: 429, with the time to wait in nanoseconds.
    pub(crate) fn too_many_failures(wait: NonZeroU64) -> Self {
        Self { wait: Some(wait), ..Self::new(RejectionKind::TooManyFailures) }
    }

    /// Marks a rejection that a failure throttle would have made earlier if it were not a dry run.
    pub(crate) fn with_would_be_throttled(self) -> Self {
        Self { would_be_throttled: true, ..self }
    }

    /// Creates a rejection of an invalid request: 400, with this reason.
    pub(crate) fn invalid_request(reason: InvalidRequest) -> Self {
        Self { reason, ..Self::new(RejectionKind::InvalidRequest) }
    }

    pub(crate) fn misconfigured(hint: &'static str) -> Self {
        Self { hint, ..Self::new(RejectionKind::Misconfigured) }
    }

    pub(crate) fn unavailable(source: StoreError) -> Self {
        Self { source: Some(source), ..Self::new(RejectionKind::StoreUnavailable) }
    }

    /// Adds the id of the rejected grant, for logs.
    #[must_use]
    pub fn of_grant(self, grant: &GrantId) -> Self {
        Self { grant: Some(grant.clone()), ..self }
    }

    /// Sets the protocol of the response. [`Protocol::of`] returns the protocol of a request.
    ///
    /// Gates and extractors do this themselves. A handler that has the request calls [`for_request`](Self::for_request).
    #[must_use]
    pub fn with_protocol(self, protocol: Protocol) -> Self {
        Self { reply: self.reply.with_protocol(protocol), ..self }
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
    pub fn for_request(self, head: &RequestHead<'_>) -> Self {
        Self { reply: Reply::to(head), ..self }
    }

    /// Sets the id of the request, for [`request_id`](Self::request_id).
    ///
    /// Gates [with request ids](crate::AuthLayer::with_request_id) do this themselves. A handler needs it only if it writes the
    /// response itself, as for [`AuthLayer::reject`](crate::AuthLayer::reject) or on a WebSocket.
    #[must_use]
    pub fn with_request_id(self, id: HeaderValue) -> Self {
        Self { request_id: Some(Box::new(id)), ..self }
    }

    /// Sets the status of a provisional response: the gate around the handler writes it again.
    pub(crate) fn with_provisional(self, provisional: Option<StatusCode>) -> Self {
        Self { provisional, ..self }
    }

    /// Adds what a gate knows about the request of a rejection that the handler returned.
    pub(crate) fn for_admitted(mut self, is_head: bool, request_id: Option<Box<HeaderValue>>) -> Self {
        self.reply.is_head |= is_head;
        Self { request_id: self.request_id.or(request_id), ..self }
    }

    pub(crate) fn with_challenges(self, challenges: &Arc<Challenges>) -> Self {
        Self { challenges: Some(Arc::clone(challenges)), ..self }
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
        self.decision.as_deref()
    }

    /// Returns the required scopes.
    #[must_use]
    pub fn required_scopes(&self) -> Option<&Scopes> {
        match self.needs.as_deref() {
            Some(Needs::Scopes(scopes)) => Some(scopes),
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

    /// Returns the value of the `Retry-After` header: the time to wait in whole seconds, rounded up and never 0.
    ///
    /// Returns `Some` for each 429 and each 503. While a store or a limiter is unavailable, the default is 1 second.
    #[must_use]
    pub fn retry_after_secs(&self) -> Option<u64> {
        let ns = u64::try_from(self.retry_after()?.as_nanos()).unwrap_or(u64::MAX);
        Some(secs_up(ns).max(1))
    }

    pub(crate) fn with_required_scopes(self, scopes: Scopes) -> Self {
        Self { needs: Some(Box::new(Needs::Scopes(scopes))), ..self }
    }

    /// Returns the required authentication, as a challenge that has only these parameters.
    pub(crate) fn required_authentication(&self) -> Option<&Challenge> {
        match self.needs.as_deref() {
            Some(Needs::Authentication(challenge)) => Some(challenge),
            _ => None,
        }
    }

    pub(crate) fn challenges(&self) -> Option<&Arc<Challenges>> {
        self.challenges.as_ref()
    }

    /// Returns the error of the store, if the store failed.
    pub(crate) fn store_error(&self) -> Option<&StoreError> {
        self.source.as_ref()
    }

    /// Returns the reason of [`RejectionKind::InvalidRequest`].
    pub(crate) fn reason(&self) -> InvalidRequest {
        self.reason
    }

    pub(crate) fn hint(&self) -> &'static str {
        self.hint
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
