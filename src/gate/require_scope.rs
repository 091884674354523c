//! [`RequireScopeLayer`]: requires scopes on routes behind a gate.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::future::ResponseOr;
use super::layer::AuthLayer;
use super::rate_limit::{GateResult, NO_GATE};
use super::settings::Gate;
use super::unlimited::NoStore;
use crate::grant::scopes::{ScopeError, Scopes};
use crate::limit::Unlimited;
use crate::rejection::Rejection;
use crate::respond::{ProblemDetails, Respond};

impl<T, L, R, B> AuthLayer<T, L, R, B> {
    /// Returns a layer for routes behind this gate that require all of these scopes.
    ///
    /// The layer copies the settings that this gate has now, such as the realm, the responder and the URL of the resource metadata.
    /// So set up the gate before.
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
    /// Returns an error if the list is empty, or if a scope has a character that RFC 6749 does not allow.
    pub fn require_scopes<I>(&self, scopes: I) -> Result<RequireScopeLayer<R>, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        RequireScopeLayer::new(Scopes::new(scopes)?, true, self.behind(Unlimited))
    }

    /// Returns a layer for routes behind this gate that require at least one of these scopes. See
    /// [`require_scopes`](Self::require_scopes).
    ///
    /// # Errors
    ///
    /// Returns an error if the list is empty, or if a scope has a character that RFC 6749 does not allow.
    pub fn require_any_scope<I>(&self, scopes: I) -> Result<RequireScopeLayer<R>, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        RequireScopeLayer::new(Scopes::new(scopes)?, false, self.behind(Unlimited))
    }
}

/// A layer that requires scopes on routes behind a gate, made by [`AuthLayer::require_scopes`].
///
/// Grants without the scopes are rejected with 403, and anonymous callers with 401. Without a gate around it, the layer
/// rejects every request with 500. CORS preflights are admitted.
pub struct RequireScopeLayer<R = ProblemDetails> {
    required: Arc<Required<R>>,
}

/// The scopes that a route requires, and the gate that rejects requests without them.
struct Required<R> {
    scopes: Scopes,
    /// Requires all of the scopes, or else one of them.
    all: bool,
    gate: Gate<NoStore, Unlimited, R>,
}

impl<R> Required<R> {
    fn is_met_by(&self, granted: &Scopes) -> bool {
        let mut scopes = self.scopes.iter();
        match self.all {
            true => scopes.all(|scope| granted.contains(scope)),
            false => scopes.any(|scope| granted.contains(scope)),
        }
    }
}

impl<R> RequireScopeLayer<R> {
    fn new(scopes: Scopes, all: bool, gate: Gate<NoStore, Unlimited, R>) -> Result<Self, ScopeError> {
        if scopes.is_empty() {
            // All of no scopes would admit every caller, and one of no scopes would admit none. Both are mistakes.
            return Err(ScopeError::empty());
        }
        Ok(Self { required: Arc::new(Required { scopes, all, gate }) })
    }
}

#[cfg(feature = "utoipa")]
impl<R> RequireScopeLayer<R> {
    /// Returns the sets of scopes of which one suffices.
    pub(crate) fn alternatives(&self) -> Vec<Vec<String>> {
        let scopes = self.required.scopes.iter().map(str::to_owned);
        match self.required.all {
            true => vec![scopes.collect()],
            false => scopes.map(|scope| vec![scope]).collect(),
        }
    }
}

impl<S, R> Layer<S> for RequireScopeLayer<R> {
    type Service = RequireScopeService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        RequireScopeService { inner, required: Arc::clone(&self.required) }
    }
}

impl<R> Clone for RequireScopeLayer<R> {
    fn clone(&self) -> Self {
        Self { required: Arc::clone(&self.required) }
    }
}

impl<R> fmt::Debug for RequireScopeLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RequireScopeLayer").field(&self.required.scopes).finish()
    }
}

/// The service of a [`RequireScopeLayer`].
pub struct RequireScopeService<S, R = ProblemDetails> {
    inner: S,
    required: Arc<Required<R>>,
}

impl<S, R, ReqB, ResB> Service<Request<ReqB>> for RequireScopeService<S, R>
where
    S: Service<Request<ReqB>, Response = Response<ResB>>,
    R: Respond<ResB>,
{
    type Response = Response<ResB>;
    type Error = S::Error;
    type Future = RequireScopeFuture<S::Future, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        let required = &*self.required;
        let rejection = match GateResult::of(&request) {
            GateResult::Preflight => None,
            GateResult::Authenticated(grant) if required.is_met_by(grant.scopes()) => None,
            GateResult::Authenticated(grant) => {
                Some(Rejection::insufficient_scope(required.scopes.clone()).of_grant(grant.id()))
            }
            GateResult::Anonymous(caller) => Some(caller.rejection().with_required_scopes(required.scopes.clone())),
            GateResult::NoGate => Some(Rejection::misconfigured(NO_GATE)),
        };
        let state = match rejection {
            None => ResponseOr::Future { future: self.inner.call(request) },
            Some(rejection) => {
                let response = required.gate.reject_request(rejection, &request);
                ResponseOr::Response { response: Some(response) }
            }
        };
        RequireScopeFuture { state }
    }
}

impl<S: Clone, R> Clone for RequireScopeService<S, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), required: Arc::clone(&self.required) }
    }
}

impl<S, R> fmt::Debug for RequireScopeService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RequireScopeService").field(&self.required.scopes).finish()
    }
}

pin_project_lite::pin_project! {
    /// The future of a [`RequireScopeService`].
    ///
    /// # Panics
    ///
    /// Panics if it is polled again after it was ready.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct RequireScopeFuture<F, B> {
        #[pin]
        state: ResponseOr<F, B>,
    }
}

impl<F, B, E> Future for RequireScopeFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().state.poll(cx)
    }
}

impl<F, B> fmt::Debug for RequireScopeFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequireScopeFuture(..)")
    }
}
