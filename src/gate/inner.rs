use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::future::{AuthFuture, Caller, Step};
use super::layer::AuthLayer;
use super::scope::RequireScopeLayer;
use super::settings::Shared;
use super::unlimited::{NoStore, Unlimited};
use crate::caller::{CurrentGrant, Unauthenticated};
use crate::grant::scopes::{ScopeError, Scopes};
use crate::limit::{Charge, Limiter, RateLimits};
use crate::quota::decision::Decision;
use crate::rejection::Rejection;
use crate::request_head::RequestHead;
use crate::respond::{ProblemDetails, Respond};

/// The layers that stand behind a gate and speak as it does.
impl<T, L, R, B> AuthLayer<T, L, R, B> {
    /// A layer for routes behind this gate that need all of these scopes. It speaks with the gate's realm and
    /// responder, so that the gate is to be set up before.
    ///
    /// ```
    /// use axum::{Router, routing::post};
    /// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()).with_scopes(["trade"])?)]);
    /// let gate = AuthLayer::new(tokens);
    /// let app: Router = Router::new()
    ///     .route("/orders", post(|| async { "placed" }).route_layer(gate.require_scopes(["trade"])?))
    ///     .layer(gate);
    /// # Ok::<_, tollgate::ScopeError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If there is no scope, or one has a character that RFC 6749 does not allow.
    pub fn require_scopes<I>(&self, scopes: I) -> Result<RequireScopeLayer<R>, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        RequireScopeLayer::all_of(Scopes::new(scopes)?, self.inner_parts(Unlimited))
    }

    /// A layer for routes behind this gate that need one of these scopes, see
    /// [`require_scopes`](Self::require_scopes).
    ///
    /// # Errors
    ///
    /// If there is no scope, or one has a character that RFC 6749 does not allow.
    pub fn require_any_scope<I>(&self, scopes: I) -> Result<RequireScopeLayer<R>, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        RequireScopeLayer::any_of(Scopes::new(scopes)?, self.inner_parts(Unlimited))
    }

    /// Returns a layer that adds a rate limit to routes behind this gate. It uses the responder and the dialect of headers
    /// of the gate.
    ///
    /// Give the limiter a policy name of its own: the headers list both policies. The limiter limits by its own quota, whatever
    /// quotas grants have; [`Limit::with_grant_quotas`](crate::Limit::with_grant_quotas) changes this. CORS preflights are charged like anonymous callers.
    ///
    /// ```
    /// use axum::{Router, routing::post};
    /// use tollgate::{AuthLayer, Grant, Limit, MemoryStore, Quota, RateLimits, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_rate_limit(RateLimits::new(Quota::per_minute(180)));
    /// let orders = gate.route_rate_limit(RateLimits::new(Limit::new("orders", Quota::per_second(3))?));
    /// let app: Router = Router::new()
    ///     .route("/orders", post(|| async { "placed" }).route_layer(orders))
    ///     .layer(gate);
    /// # Ok::<_, tollgate::LimitError>(())
    /// ```
    #[must_use]
    pub fn route_rate_limit<M: Limiter>(&self, limiter: M) -> RateLimitLayer<M, R> {
        RateLimitLayer::from_parts(self.inner_parts(limiter.for_route()))
    }

    /// Refuses as this gate does, with its realm and responder: for handlers that find out by themselves that a grant
    /// does not suffice. Keep a clone of the gate in the handler's state.
    ///
    /// It never sees the request: adapt the rejection to the method and the protocol by [`Rejection::for_request`], and name the
    /// grant for events by [`Rejection::of_grant`].
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
        self.shared().reject(rejection)
    }

    /// Tells the client of a charge that a handler made by itself, in the gate's dialect of rate limit headers, as the gate
    /// does for its own.
    ///
    /// ```
    /// use http::HeaderMap;
    /// use tollgate::limit::{Charge, RateLimits};
    /// use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let (gate, limits) = (AuthLayer::new(tokens), RateLimits::new(Quota::per_minute(60)));
    /// let who = Authenticated::new(Grant::new("alice", ())).current();
    ///
    /// let mut headers = HeaderMap::new();
    /// gate.advertise(&limits.charge(&who, Charge::Units(10)), &mut headers);
    /// assert_eq!(headers["ratelimit"], r#""default";r=50;t=1"#);
    /// ```
    pub fn advertise(&self, decision: &Decision, headers: &mut HeaderMap) {
        if let Some(advert) = self.shared().advert(decision) {
            advert.write(headers);
        }
    }

    fn inner_parts<M>(&self, limiter: M) -> Shared<NoStore, M, R> {
        let Shared { responder, terms, settings, .. } = self.shared();
        Shared {
            store: Arc::new(NoStore),
            limiter: Arc::new(limiter),
            responder: Arc::clone(responder),
            terms: Arc::clone(terms),
            settings: settings.clone(),
        }
    }
}

/// What both layers say where no gate is around them.
pub(super) const NO_GATE: &str =
    "No gate has seen this request. Perhaps you forgot to add `AuthLayer` around this layer, or added it inside.";

/// One more budget for routes behind a gate, made by [`AuthLayer::rate_limit`](crate::AuthLayer::rate_limit).
///
/// Without a gate around it every request is refused with 500. CORS preflights are charged like anonymous callers.
pub struct RateLimitLayer<L = RateLimits, R = ProblemDetails> {
    shared: Arc<Shared<NoStore, L, R>>,
}

impl<L, R> RateLimitLayer<L, R> {
    pub(super) fn from_parts(shared: Shared<NoStore, L, R>) -> Self {
        Self { shared: Arc::new(shared) }
    }
}

impl<S, L, R> Layer<S> for RateLimitLayer<L, R> {
    type Service = RateLimitService<S, L, R>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimitService { inner, shared: Arc::clone(&self.shared) }
    }
}

impl<L, R> Clone for RateLimitLayer<L, R> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<L, R> fmt::Debug for RateLimitLayer<L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.debug("RateLimitLayer", f).finish_non_exhaustive()
    }
}

/// The service of a [`RateLimitLayer`].
pub struct RateLimitService<S, L = RateLimits, R = ProblemDetails> {
    inner: S,
    shared: Arc<Shared<NoStore, L, R>>,
}

impl<S, L, R, ReqB, ResB> Service<Request<ReqB>> for RateLimitService<S, L, R>
where
    S: Service<Request<ReqB>, Response = Response<ResB>> + Clone,
    L: Limiter,
    R: Respond<ResB>,
{
    type Response = Response<ResB>;
    type Error = S::Error;
    type Future = RateLimitFuture<S, ReqB, L, R, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        let limiter = &*self.shared.limiter;
        let head = RequestHead::of(&request);
        let answer = match Passage::of(&request) {
            Passage::Granted(grant) => Ok(limiter.charge(grant, Charge::Request(&head))),
            // A preflight is nobody's either, and the handler runs for it.
            Passage::Anonymous | Passage::Preflight => Ok(limiter.charge_anonymous(Charge::Request(&head))),
            Passage::None => Err(Step::Refuse(Rejection::misconfigured(NO_GATE))),
        };
        let step = match answer {
            Ok(answer) => self.shared.checked(Caller::Behind(None), answer, &mut request),
            Err(step) => step,
        };
        RateLimitFuture { future: AuthFuture::take(step, &mut self.inner, &self.shared, request) }
    }
}

pin_project_lite::pin_project! {
    /// The future of a [`RateLimitService`].
    ///
    /// # Panics
    ///
    /// If it is polled again after it was ready.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct RateLimitFuture<S, ReqB, L, R, ResB>
    where
        S: Service<Request<ReqB>>,
        L: Limiter,
    {
        #[pin]
        future: AuthFuture<S, ReqB, NoStore, L, R, ResB>,
    }
}

impl<S, ReqB, L, R, ResB> Future for RateLimitFuture<S, ReqB, L, R, ResB>
where
    S: Service<Request<ReqB>, Response = Response<ResB>>,
    L: Limiter,
    R: Respond<ResB>,
{
    type Output = Result<Response<ResB>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(cx)
    }
}

impl<S, ReqB, L, R, ResB> fmt::Debug for RateLimitFuture<S, ReqB, L, R, ResB>
where
    S: Service<Request<ReqB>>,
    L: Limiter,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RateLimitFuture(..)")
    }
}

impl<S: Clone, L, R> Clone for RateLimitService<S, L, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<S, L, R> fmt::Debug for RateLimitService<S, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.debug("RateLimitService", f).finish_non_exhaustive()
    }
}

/// How a request came through the gate around this layer.
pub(super) enum Passage<'a> {
    Granted(&'a CurrentGrant),
    Anonymous,
    Preflight,
    /// There is no gate.
    None,
}

impl<'a> Passage<'a> {
    pub(super) fn of<B>(request: &'a Request<B>) -> Self {
        match request.extensions().get::<CurrentGrant>() {
            Some(grant) => Self::Granted(grant),
            None => match request.extensions().get::<Unauthenticated>() {
                Some(Unauthenticated::Anonymous) => Self::Anonymous,
                Some(Unauthenticated::Preflight) => Self::Preflight,
                None => Self::None,
            },
        }
    }
}
