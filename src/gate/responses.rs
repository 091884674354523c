//! The settings of responses of an [`AuthLayer`]: challenges, rate limit headers, the responder and request ids.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Response};

use super::copies::Copies;
use super::layer::AuthLayer;
use super::marker::WithoutMetadata;
use super::settings::Gate;
use crate::grant::scopes::{ScopeError, Scopes};
use crate::quota::decision::Decision;
use crate::rejection::Rejection;
use crate::rejection::terms::Challenges;
use crate::request_head::RequestHead;
use crate::respond::{Challenge, ChallengeError, RateLimitHeaders, Respond};

impl<T, L, R, B> AuthLayer<T, L, R, B> {
    /// Sets the realm of all challenges. Default: `api`.
    ///
    /// # Errors
    ///
    /// Returns an error if the realm is empty or has a control or non-ASCII character.
    pub fn with_realm(self, realm: &str) -> Result<Self, ChallengeError> {
        let bearer = self.gate.terms.bearer().clone().with_realm(realm)?;
        Ok(self.map_terms(|terms| terms.with_bearer(bearer)))
    }

    /// Adds the URL of the protected resource metadata to all challenges (RFC 9728, section 5.1), for metadata that something
    /// else serves. `with_protected_resource` (feature `resource-metadata`) lets the gate serve it, and replaces this URL.
    ///
    /// The URL is never derived from the request's `Host`, which the client chooses.
    ///
    /// # Errors
    ///
    /// Returns an error if the URL is not an absolute URI.
    pub fn with_resource_metadata(self, uri: &str) -> Result<Self, ChallengeError>
    where
        B: WithoutMetadata,
    {
        let bearer = self.gate.terms.bearer().clone().with_resource_metadata(uri)?;
        Ok(self.map_terms(|terms| terms.with_bearer(bearer)))
    }

    /// Adds the scopes that a client should ask for to all challenges (RFC 6750, section 3). An empty list removes them.
    ///
    /// A 401 without credentials has them too, because they are not error information. Where a route requires scopes, its
    /// challenge has those of the route instead.
    ///
    /// ```
    /// use http::Response;
    /// use tollgate::{AuthLayer, Grant, MemoryStore, Rejection, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_challenge_scope(["orders:read"])?;
    /// let response: Response<bytes::Bytes> = gate.reject(Rejection::missing());
    /// assert_eq!(response.headers()["www-authenticate"], r#"Bearer realm="api", scope="orders:read""#);
    /// # Ok::<_, tollgate::ScopeError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if a scope has a character that RFC 6749 does not allow.
    pub fn with_challenge_scope<I>(self, scopes: I) -> Result<Self, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let bearer = self.gate.terms.bearer().clone().with_scope(&Scopes::new(scopes)?);
        Ok(self.map_terms(|terms| terms.with_bearer(bearer)))
    }

    /// Adds the challenge of another scheme that the service accepts, in its own field line.
    ///
    /// The challenge is sent without an error parameter, because rejected clients did not use that scheme.
    #[must_use]
    pub fn with_challenge(self, challenge: Challenge) -> Self {
        self.map_terms(|terms| terms.with_other(challenge))
    }

    /// Sets the format of the rate limit headers. Default: [`RateLimitHeaders::Draft11`].
    #[must_use]
    pub fn with_rate_limit_headers(self, format: RateLimitHeaders) -> Self {
        self.map_settings(|settings| settings.headers = format)
    }

    /// Sets the responder: [`EmptyBody`](crate::EmptyBody), [`ProblemDetails::map_body`](crate::ProblemDetails::map_body), or a custom one.
    ///
    /// If the responder omits them, the gate adds `Cache-Control: no-store`, and a challenge to 401 responses (RFC 9110,
    /// section 15.5.2).
    #[must_use]
    pub fn with_responder<R2>(self, responder: R2) -> AuthLayer<T, L, R2, B> {
        let Gate { store, limiter, terms, settings, .. } = Gate::clone(&self.gate);
        let gate = Gate { store, limiter, responder: Arc::new(responder), terms, settings, copies: Copies::new() };
        AuthLayer { gate: Arc::new(gate), body: self.body }
    }

    /// Sets a closure as the responder. It must follow [`Rejection::allows_content`].
    ///
    /// ```
    /// use http::Response;
    /// use tollgate::{AuthLayer, EmptyBody, Grant, MemoryStore, respond::Respond, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_response_fn(|rejection| {
    ///     let response: Response<String> = EmptyBody.respond(rejection);
    ///     if rejection.allows_content() { response.map(|_| rejection.detail().into_owned()) } else { response }
    /// });
    /// # let _ = gate;
    /// ```
    #[must_use]
    pub fn with_response_fn<ResB, F>(self, respond: F) -> AuthLayer<T, L, F, B>
    where
        F: Fn(&Rejection) -> Response<ResB> + Send + Sync + 'static,
    {
        self.with_responder(respond)
    }

    /// Sets a function that returns the id of a request. Responders get it by [`Rejection::request_id`].
    ///
    /// The gate calls the function before the inner service. So the id is also known for rejections that handlers return. Layers behind
    /// the gate call it again, so return an id that the request has. A layer outside of the gate can set the header or the
    /// extension that the function reads.
    ///
    /// ```
    /// use http::Response;
    /// use tollgate::{AuthLayer, EmptyBody, Grant, MemoryStore, TokenDigest, respond::Respond};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens)
    ///     .with_request_id(|head| head.headers.get("x-request-id").cloned())
    ///     .with_response_fn(|rejection| {
    ///         let mut response: Response<String> = EmptyBody.respond(rejection);
    ///         if let Some(id) = rejection.request_id() {
    ///             response.headers_mut().insert("x-request-id", id.clone());
    ///         }
    ///         response
    ///     });
    /// # let _ = gate;
    /// ```
    #[must_use]
    pub fn with_request_id<F>(self, request_id: F) -> Self
    where
        F: Fn(&RequestHead<'_>) -> Option<HeaderValue> + Send + Sync + 'static,
    {
        self.map_settings(|settings| settings.request_id = Some(Arc::new(request_id)))
    }

    /// Returns the response of this gate to a rejection, with its realm and responder.
    ///
    /// This is for handlers that find out that a grant does not suffice, in services without axum. An axum handler can return
    /// the rejection itself: the gate around it writes the response. A method of a tonic service returns it as a `Status`.
    ///
    /// The gate does not see the request here. Adapt the rejection to the method and the protocol by
    /// [`Rejection::for_request`], and add the grant for events by [`Rejection::of_grant`].
    ///
    /// ```
    /// use http::{HeaderName, Response};
    /// use tollgate::{AuthLayer, Grant, MemoryStore, Rejection, Scopes, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_realm("trading")?;
    /// let response: Response<bytes::Bytes> =
    ///     gate.reject(Rejection::insufficient_scope(Scopes::new(["trade"])?));
    /// assert_eq!(response.status(), 403);
    /// assert_eq!(
    ///     response.headers()["www-authenticate"],
    ///     r#"Bearer realm="trading", error="insufficient_scope", scope="trade""#,
    /// );
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn reject<ResB>(&self, rejection: Rejection) -> Response<ResB>
    where
        R: Respond<ResB>,
    {
        self.gate.reject(rejection)
    }

    /// Writes the rate limit headers for a charge that a handler made itself, in the gate's format.
    ///
    /// ```
    /// use http::HeaderMap;
    /// use tollgate::limit::{Charge, RateLimits};
    /// use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let (gate, limits) = (AuthLayer::new(tokens), RateLimits::new(Quota::per_minute(60)));
    /// let caller = Authenticated::new(Grant::new("alice", ())).current();
    ///
    /// let mut headers = HeaderMap::new();
    /// gate.advertise(&limits.charge(&caller, Charge::Units(10)), &mut headers);
    /// assert_eq!(headers["ratelimit"], r#""default";r=50;t=1"#);
    /// ```
    pub fn advertise(&self, decision: &Decision, headers: &mut HeaderMap) {
        if let Some(advert) = self.gate.advert(decision) {
            advert.write(headers);
        }
    }

    pub(super) fn map_terms(self, change: impl FnOnce(Challenges) -> Challenges) -> Self {
        let gate = Gate::clone(&self.gate);
        let terms = Arc::new(change(Arc::unwrap_or_clone(gate.terms)));
        Self { gate: Arc::new(Gate { terms, ..gate }), body: self.body }
    }
}
