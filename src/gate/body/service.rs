//! [`BodyAuthService`]: runs the pipeline for requests that may have their token in the body.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::future::BodyAuthFuture;
use super::replay::ReplayBody;
use super::tokens::BodyTokens;
use crate::extract::Extracted;
use crate::gate::future::AuthFuture;
use crate::gate::layer::AuthLayer;
use crate::gate::settings::Gate;
use crate::gate::state::Step;
use crate::limit::{Limiter, Unlimited};
use crate::request_head::RequestHead;
use crate::respond::{ProblemDetails, Respond};
use crate::store::GateStore;
use crate::token::TokenLocation;

/// An [`AuthLayer`] that accepts tokens in request bodies as well, made by [`AuthLayer::with_body_tokens`].
pub type BodyAuthLayer<T, L = Unlimited, R = ProblemDetails> = AuthLayer<T, L, R, BodyTokens>;

/// The service of a [`BodyAuthLayer`], which accepts tokens in request bodies.
///
/// The inner service gets a [`ReplayBody`].
pub struct BodyAuthService<S, T, L = Unlimited, R = ProblemDetails> {
    inner: S,
    gate: Arc<Gate<T, L, R>>,
    tokens: Arc<BodyTokens>,
}

impl<S, T, L, R> BodyAuthService<S, T, L, R> {
    pub(in crate::gate) fn new(inner: S, gate: Arc<Gate<T, L, R>>, tokens: BodyTokens) -> Self {
        Self { inner, gate, tokens: Arc::new(tokens) }
    }
}

impl<S, T, L, R, ReqB, ResB> Service<Request<ReqB>> for BodyAuthService<S, T, L, R>
where
    S: Service<Request<ReplayBody<ReqB>>, Response = Response<ResB>> + Clone,
    T: GateStore,
    L: Limiter,
    R: Respond<ResB>,
    ReqB: Body,
{
    type Response = Response<ResB>;
    type Error = S::Error;
    type Future = BodyAuthFuture<S, ReqB, T, L, R, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    /// Runs the pipeline of [`AuthService`](crate::AuthService). First reads the body, if it may contain a token.
    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        let gate = &*self.gate;
        let step = match gate.decide_early(&mut request) {
            Some(step) => step,
            None => {
                let lookup = match self.tokens.location_of(&RequestHead::of(&request)) {
                    Ok(Some(location)) => {
                        // The instance that was made ready must serve this request. A clone may not be ready.
                        let not_ready_inner = self.inner.clone();
                        let ready_inner = std::mem::replace(&mut self.inner, not_ready_inner);
                        let (gate, tokens) = (self.gate.counted(), Arc::clone(&self.tokens));
                        return BodyAuthFuture::read(location, ready_inner, gate, tokens, request);
                    }
                    Ok(None) => {
                        let (extracted, location) = gate.extract(&request);
                        Ok(gate.look_up(extracted, location, &RequestHead::of(&request)))
                    }
                    // There is no token, so its location does not matter.
                    Err(reason) => {
                        gate.look_up_over_https(Extracted::Ambiguous(reason), TokenLocation::Other, &request)
                    }
                };
                match lookup {
                    Ok(lookup) => {
                        gate.redact(&lookup, &mut request);
                        gate.authenticate(lookup, &mut request)
                    }
                    Err(rejection) => Step::Reject(rejection),
                }
            }
        };
        let request = request.map(ReplayBody::untouched);
        BodyAuthFuture::gate(AuthFuture::after(step, &mut self.inner, &self.gate, request))
    }
}

impl<S: Clone, T, L, R> Clone for BodyAuthService<S, T, L, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), gate: self.gate.counted(), tokens: Arc::clone(&self.tokens) }
    }
}

impl<S, T, L, R> fmt::Debug for BodyAuthService<S, T, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.gate.debug("BodyAuthService", f).field("body", &self.tokens).finish_non_exhaustive()
    }
}
