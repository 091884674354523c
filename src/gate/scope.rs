use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::future::once;
use super::inner::{NO_GATE, Passage};
use super::settings::Shared;
use super::unlimited::{NoStore, Unlimited};
use crate::grant::scopes::{ScopeError, Scopes};
use crate::rejection::{Rejection, RejectionKind};
use crate::request_head::RequestHead;
use crate::respond::{ProblemDetails, Respond};

/// A guard for routes behind a gate, made by [`AuthLayer::require_scopes`](crate::AuthLayer::require_scopes).
///
/// A grant without the scopes is refused with 403, an anonymous caller with 401. Without a gate around it every request
/// is refused with 500. CORS preflights pass.
pub struct RequireScopeLayer<R = ProblemDetails> {
    shared: Arc<Demand<R>>,
}

/// The scopes that a route needs, and the gate that answers without them.
struct Demand<R> {
    scopes: Scopes,
    all: bool,
    gate: Shared<NoStore, Unlimited, R>,
}

impl<R> Demand<R> {
    fn is_met_by(&self, granted: &Scopes) -> bool {
        let mut scopes = self.scopes.iter();
        match self.all {
            true => scopes.all(|scope| granted.contains(scope)),
            false => scopes.any(|scope| granted.contains(scope)),
        }
    }
}

impl<R> RequireScopeLayer<R> {
    pub(super) fn all_of(scopes: Scopes, gate: Shared<NoStore, Unlimited, R>) -> Result<Self, ScopeError> {
        Self::new(scopes, true, gate)
    }

    pub(super) fn any_of(scopes: Scopes, gate: Shared<NoStore, Unlimited, R>) -> Result<Self, ScopeError> {
        Self::new(scopes, false, gate)
    }

    fn new(scopes: Scopes, all: bool, gate: Shared<NoStore, Unlimited, R>) -> Result<Self, ScopeError> {
        if scopes.is_empty() {
            // An empty list would mean "everybody" or "nobody", and neither is what anybody meant.
            return Err(ScopeError::empty());
        }
        Ok(Self { shared: Arc::new(Demand { scopes, all, gate }) })
    }
}

impl<S, R> Layer<S> for RequireScopeLayer<R> {
    type Service = RequireScopeService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        RequireScopeService { inner, shared: Arc::clone(&self.shared) }
    }
}

impl<R> Clone for RequireScopeLayer<R> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<R> fmt::Debug for RequireScopeLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RequireScopeLayer").field(&self.shared.scopes).finish()
    }
}

/// The service of a [`RequireScopeLayer`].
pub struct RequireScopeService<S, R = ProblemDetails> {
    inner: S,
    shared: Arc<Demand<R>>,
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
        let demand = &*self.shared;
        let rejection = match Passage::of(&request) {
            Passage::Preflight => None,
            Passage::Granted(grant) if demand.is_met_by(grant.scopes()) => None,
            Passage::Granted(grant) => Some(Rejection::insufficient_scope(demand.scopes.clone()).of_grant(grant.id())),
            Passage::Anonymous => {
                Some(Rejection::new(RejectionKind::Missing).with_required_scopes(demand.scopes.clone()))
            }
            Passage::None => Some(Rejection::misconfigured(NO_GATE)),
        };
        let state = match rejection {
            None => Guard::Running { future: self.inner.call(request) },
            Some(rejection) => {
                let response = demand.gate.reject(rejection.for_request(&RequestHead::of(&request)));
                Guard::Refused { response: Some(response) }
            }
        };
        RequireScopeFuture { state }
    }
}

impl<S: Clone, R> Clone for RequireScopeService<S, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<S, R> fmt::Debug for RequireScopeService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RequireScopeService").field(&self.shared.scopes).finish()
    }
}

pin_project_lite::pin_project! {
    /// The future of a [`RequireScopeService`] service.
    ///
    /// # Panics
    ///
    /// If it is polled again after it was ready.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct RequireScopeFuture<F, B> {
        #[pin]
        state: Guard<F, B>,
    }
}

pin_project_lite::pin_project! {
    #[project = GuardProj]
    enum Guard<F, B> {
        Refused { response: Option<Response<B>> },
        Running { #[pin] future: F },
    }
}

impl<F, B, E> Future for RequireScopeFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            GuardProj::Refused { response } => Poll::Ready(Ok(once(response))),
            GuardProj::Running { future } => future.poll(cx),
        }
    }
}

impl<F, B> fmt::Debug for RequireScopeFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequireScopeFuture(..)")
    }
}
