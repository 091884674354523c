//! [`AuthService`]: runs the pipeline for each request.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use super::future::AuthFuture;
use super::settings::Gate;
use super::state::Step;
use crate::limit::{Limiter, Unlimited};
use crate::respond::{ProblemDetails, Respond};
use crate::store::GateStore;

/// The service of an [`AuthLayer`](crate::AuthLayer).
pub struct AuthService<S, T, L = Unlimited, R = ProblemDetails> {
    inner: S,
    gate: Arc<Gate<T, L, R>>,
}

impl<S, T, L, R> AuthService<S, T, L, R> {
    pub(super) fn new(inner: S, gate: Arc<Gate<T, L, R>>) -> Self {
        Self { inner, gate }
    }
}

impl<S, T, L, R, ReqB, ResB> Service<Request<ReqB>> for AuthService<S, T, L, R>
where
    S: Service<Request<ReqB>, Response = Response<ResB>> + Clone,
    T: GateStore,
    L: Limiter,
    R: Respond<ResB>,
{
    type Response = Response<ResB>;
    type Error = S::Error;
    type Future = AuthFuture<S, ReqB, T, L, R, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    /// Runs the pipeline: extract, authenticate, limit, respond. The steps are in `steps.rs` and `reject.rs`.
    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        let gate = &*self.gate;
        let step = match gate.decide_early(&mut request) {
            Some(step) => step,
            None => {
                let lookup = gate.look_up_and_redact(&mut request);
                gate.authenticate(lookup, &mut request)
            }
        };
        match step {
            Step::Admit(admitted) => {
                let gate = self.gate.counted();
                AuthFuture::run(self.inner.call(request), admitted, gate)
            }
            step => AuthFuture::after(step, &mut self.inner, &self.gate, request),
        }
    }
}

impl<S: Clone, T, L, R> Clone for AuthService<S, T, L, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), gate: self.gate.counted() }
    }
}

impl<S, T, L, R> fmt::Debug for AuthService<S, T, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.gate.debug("AuthService", f).finish_non_exhaustive()
    }
}
