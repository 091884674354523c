//! A typical hand-written gate: a map of plaintext tokens and a keyed governor. It does not hash, sends no challenge,
//! and sends headers only with rejections.

use std::collections::HashMap;
use std::convert::Infallible;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures_util::future::{Either, Ready, ready};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, RateLimiter};
use http::{HeaderMap, StatusCode, header};
use tower::{Layer, Service};

use super::{BURST, Limit};
use crate::floor::token;
use crate::row::Row;

/// The cheapest identifier of a caller. Other stacks key their limits by it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct User(pub u32);

pub type Users = HashMap<String, User>;

pub fn users(size: usize) -> Users {
    (0..size).map(|i| (token(i), User(i as u32))).collect()
}

/// Returns the caller of a request, by its `Authorization` header.
pub fn authenticate(users: &Users, headers: &HeaderMap) -> Option<User> {
    let token = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
    users.get(token).copied()
}

pub type Limits = DefaultKeyedRateLimiter<User>;

pub fn limits(limit: Limit) -> Limits {
    RateLimiter::keyed(match limit {
        Limit::Unlimited => {
            governor::Quota::per_second(NonZeroU32::new(1_000_000_000).expect("not zero")).allow_burst(BURST)
        }
        Limit::OnePerDay => governor::Quota::per_hour(NonZeroU32::MIN),
    })
}

/// Charges the caller, or returns a response with the retry time.
pub fn charge(limits: &Limits, user: User) -> Result<(), Response> {
    limits.check_key(&user).map_err(|rejection| {
        let wait = rejection.wait_time_from(DefaultClock::default().now()).as_secs() + 1;
        (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, wait.to_string())]).into_response()
    })
}

struct Gate {
    users: Users,
    limits: Limits,
}

impl Gate {
    fn new(size: usize, limit: Limit) -> Arc<Self> {
        Arc::new(Self { users: users(size), limits: limits(limit) })
    }

    fn admit(&self, request: &mut Request) -> Result<(), Response> {
        let user = authenticate(&self.users, request.headers()).ok_or_else(unauthorized)?;
        charge(&self.limits, user)?;
        request.extensions_mut().insert(user);
        Ok(())
    }
}

pub fn unauthorized() -> Response {
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")]).into_response()
}

pub fn routed(size: usize, limit: Limit) -> Row {
    async fn middleware(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
        match gate.admit(&mut request) {
            Ok(()) => next.run(request).await,
            Err(rejection) => rejection,
        }
    }
    super::routed(from_fn_with_state(Gate::new(size, limit), middleware))
}

pub fn plain(size: usize, limit: Limit) -> Row {
    let gate = Gate::new(size, limit);
    super::plain(AdmitLayer(move |request: &mut Request| gate.admit(request)))
}

/// `from_fn` without axum: a layer that admits a request or responds to it.
#[derive(Clone)]
pub struct AdmitLayer<F>(pub F);

impl<F: Clone, S> Layer<S> for AdmitLayer<F> {
    type Service = Admit<F, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Admit { admit: self.0.clone(), inner }
    }
}

#[derive(Clone)]
pub struct Admit<F, S> {
    admit: F,
    inner: S,
}

impl<F, S> Service<Request> for Admit<F, S>
where
    F: Fn(&mut Request) -> Result<(), Response>,
    S: Service<http::Request<Body>, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        match (self.admit)(&mut request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(rejection) => Either::Right(ready(Ok(rejection))),
        }
    }
}
