//! [`RateLimitLayer`]: an additional rate limit for routes behind a gate.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::future::AuthFuture;
use super::layer::AuthLayer;
use super::settings::Gate;
use super::state::{Caller, Step};
use super::unlimited::NoStore;
use crate::caller::{CurrentGrant, Unauthenticated, WithoutGrant};
use crate::limit::{Charge, Limiter, RateLimits};
use crate::rejection::Rejection;
use crate::request_head::RequestHead;
use crate::respond::{ProblemDetails, Respond};

impl<T, L, R, B> AuthLayer<T, L, R, B> {
    /// Returns a layer that adds a rate limit to routes behind this gate.
    ///
    /// The layer copies the settings that this gate has now, such as the responder, the header format and the URL of the resource
    /// metadata. So set up the gate before.
    ///
    /// Give the limiter its own policy name, because the headers list both policies. The limiter ignores the quotas of grants,
    /// unless [`Limit::with_grant_quotas`](crate::Limit::with_grant_quotas) is set. CORS preflights are charged like anonymous callers.
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
        RateLimitLayer { gate: Arc::new(self.behind(limiter.for_route())) }
    }
}

/// The rejection detail of layers behind a gate that find no gate.
pub(super) const NO_GATE: &str =
    "No gate has processed this request. Perhaps you forgot to add `AuthLayer` around this layer, or added it inside.";

/// A rate limit for routes behind a gate, made by [`AuthLayer::route_rate_limit`].
///
/// Without a gate around it, the layer rejects every request with 500. CORS preflights are charged like anonymous callers.
pub struct RateLimitLayer<L = RateLimits, R = ProblemDetails> {
    gate: Arc<Gate<NoStore, L, R>>,
}

#[cfg(feature = "utoipa")]
impl<L, R> RateLimitLayer<L, R> {
    pub(super) fn limiter(&self) -> &L {
        &self.gate.limiter
    }
}

impl<S, L, R> Layer<S> for RateLimitLayer<L, R> {
    type Service = RateLimitService<S, L, R>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimitService { inner, gate: Arc::clone(&self.gate) }
    }
}

impl<L, R> Clone for RateLimitLayer<L, R> {
    fn clone(&self) -> Self {
        Self { gate: Arc::clone(&self.gate) }
    }
}

impl<L, R> fmt::Debug for RateLimitLayer<L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.gate.debug("RateLimitLayer", f).finish_non_exhaustive()
    }
}

/// The service of a [`RateLimitLayer`].
pub struct RateLimitService<S, L = RateLimits, R = ProblemDetails> {
    inner: S,
    gate: Arc<Gate<NoStore, L, R>>,
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
        let limiter = &*self.gate.limiter;
        let head = RequestHead::of(&request);
        let answer = match GateResult::of(&request) {
            GateResult::Authenticated(grant) => Ok(limiter.charge(grant, Charge::Request(&head))),
            // A preflight has no grant, and the handler runs for it.
            GateResult::Anonymous(_) | GateResult::Preflight => Ok(limiter.charge_anonymous(Charge::Request(&head))),
            GateResult::NoGate => Err(Step::Reject(Rejection::misconfigured(NO_GATE))),
        };
        let step = match answer {
            Ok(answer) => self.gate.limit(Caller::BehindGate, answer, &mut request),
            Err(step) => step,
        };
        let future = match step {
            Step::Admit(admitted) => {
                let gate = self.gate.counted();
                AuthFuture::run(self.inner.call(request), admitted, gate)
            }
            step => AuthFuture::after(step, &mut self.inner, &self.gate, request),
        };
        RateLimitFuture { future }
    }
}

pin_project_lite::pin_project! {
    /// The future of a [`RateLimitService`].
    ///
    /// # Panics
    ///
    /// Panics if it is polled again after it was ready.
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
        Self { inner: self.inner.clone(), gate: self.gate.counted() }
    }
}

impl<S, L, R> fmt::Debug for RateLimitService<S, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.gate.debug("RateLimitService", f).finish_non_exhaustive()
    }
}

/// The result of the gate around this layer.
pub(super) enum GateResult<'a> {
    Authenticated(&'a CurrentGrant),
    Anonymous(&'a WithoutGrant),
    Preflight,
    /// There is no gate around this layer.
    NoGate,
}

impl<'a> GateResult<'a> {
    /// Returns the result from the extensions of a request.
    pub(super) fn of<B>(request: &'a Request<B>) -> Self {
        match request.extensions().get::<CurrentGrant>() {
            Some(grant) => Self::Authenticated(grant),
            None => match request.extensions().get::<WithoutGrant>() {
                Some(caller) if caller.reason == Unauthenticated::Preflight => Self::Preflight,
                Some(caller) => Self::Anonymous(caller),
                None => Self::NoGate,
            },
        }
    }
}
