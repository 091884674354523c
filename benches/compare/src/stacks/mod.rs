//! The compared stacks: layers around the same route, built for a number of tokens.

mod axum_extra;
mod axum_governor;
mod by_address;
mod hand_written;
mod tollgate;
mod tower_governor;
mod tower_rate_limiter;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::num::NonZeroU32;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::get;
use http::{Request, StatusCode};
use tower::layer::util::Identity;
use tower::{Layer, Service};

use crate::floor::FloorLayer;
use crate::row::Row;

/// The rate limit of each token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// More than a benchmark can send.
    Unlimited,
    /// OnePerDay request a day.
    OnePerDay,
}

/// The burst of the unlimited quota, as typical quotas have it.
const BURST: NonZeroU32 = NonZeroU32::new(20).expect("not zero");

/// The rejections that a stack must make. They are verified, so that no broken stack is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rejects {
    /// Unknown tokens (401) and exhausted limits (429).
    Both,
    /// Exhausted limits (429). The stack does not authenticate.
    Limits,
    /// Not a gate.
    Nothing,
}

/// A row of the table. A stack can be built for different limits.
pub struct Stack {
    pub name: &'static str,
    /// The row from which the overhead of this row is measured.
    pub base: &'static str,
    pub rejects: Rejects,
    pub build: fn(usize, Limit) -> Row,
}

impl Stack {
    const fn axum(name: &'static str, build: fn(usize, Limit) -> Row) -> Self {
        Self { name, base: "baseline", rejects: Rejects::Both, build }
    }

    const fn plain(name: &'static str, build: fn(usize, Limit) -> Row) -> Self {
        Self { name, base: "baseline, plain tower", rejects: Rejects::Both, build }
    }

    const fn by_address(name: &'static str, build: fn(usize, Limit) -> Row) -> Self {
        Self { name, base: "baseline, by address", rejects: Rejects::Limits, build }
    }

    const fn without_rejections(self) -> Self {
        Self { rejects: Rejects::Nothing, ..self }
    }

    /// Returns whether the stack keeps data for each token that no other row keeps.
    pub fn has_tokens(&self) -> bool {
        let keeps_nothing = [self.base, "empty layer"].contains(&self.name);
        self.base == "baseline" && !keeps_nothing
    }
}

pub const STACKS: &[Stack] = &[
    Stack::axum("tollgate", tollgate::with_headers),
    Stack::axum("tollgate without headers", tollgate::without_headers),
    Stack::axum("floor", |size, _| routed(FloorLayer::new(size))).without_rejections(),
    Stack::axum("empty layer", |_, _| routed(Identity::new())).without_rejections(),
    Stack::axum("hand-written", hand_written::routed),
    Stack::axum("tower_governor", tower_governor::routed),
    Stack::axum("axum-governor", axum_governor::routed),
    Stack::axum("tower-rate-limiter", tower_rate_limiter::routed),
    Stack::axum("axum-extra + governor", axum_extra::routed),
    Stack::axum("baseline", |_, _| routed_baseline()).without_rejections(),
    Stack::by_address("tollgate, by address", by_address::tollgate),
    Stack::by_address("tollgate without headers, by address", by_address::tollgate_without_headers),
    Stack::by_address("tower_governor, by address", by_address::tower_governor),
    Stack::by_address("tower_governor with headers, by address", by_address::tower_governor_with_headers),
    Stack::by_address("baseline, by address", by_address::baseline).without_rejections(),
    Stack::plain("tollgate, plain tower", tollgate::plain),
    Stack::plain("floor, plain tower", |size, _| plain(FloorLayer::new(size))).without_rejections(),
    Stack::plain("hand-written, plain tower", hand_written::plain),
    Stack::plain("tower_governor, plain tower", tower_governor::plain),
    Stack::plain("axum-governor, plain tower", axum_governor::plain),
    Stack::plain("tower-rate-limiter, plain tower", tower_rate_limiter::plain),
    Stack::plain("baseline, plain tower", |_, _| plain(Identity::new())).without_rejections(),
];

/// Returns the route in the layers of a stack.
fn routed<L>(layer: L) -> Row
where
    L: Layer<axum::routing::Route> + Clone + Send + Sync + 'static,
    L::Service: Service<Request<Body>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    <L::Service as Service<Request<Body>>>::Future: Send + 'static,
{
    Row::of(served(route().layer(layer)))
}

fn routed_baseline() -> Row {
    Row::of(served(route()))
}

fn route() -> Router {
    Router::new().route("/", get(|| async {}))
}

/// `axum::serve` does the same. Otherwise axum rebuilds the layers for every request.
fn served(app: Router) -> axum::routing::RouterIntoService<Body> {
    app.with_state(()).into_service()
}

/// Returns the same layers around a service that only responds.
fn plain<L>(layer: L) -> Row
where
    L: Layer<Answers>,
    L::Service: Service<Request<Body>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
{
    Row::of(layer.layer(Answers))
}

#[derive(Clone)]
pub struct Answers;

impl Service<Request<Body>> for Answers {
    type Response = Response;
    type Error = Infallible;
    type Future = Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        ready(Ok(Response::new(Body::empty())))
    }
}

/// Verifies a small copy of a stack: it admits the right requests and no others.
pub fn verify(stack: &Stack) {
    const FEW: usize = 5;
    let row = (stack.build)(FEW, Limit::Unlimited);
    for token in (0..FEW).chain(0..FEW) {
        let (status, headers) = row.answer(token);
        assert_eq!(status, StatusCode::OK, "{} admits", stack.name);
        let has_headers = headers.contains_key("ratelimit") || headers.contains_key("x-ratelimit-remaining");
        assert_eq!(has_headers, sends_limit_headers(stack.name), "{} sends rate-limit headers", stack.name);
    }
    if stack.rejects == Rejects::Both {
        assert_eq!(row.answer(FEW).0, StatusCode::UNAUTHORIZED, "{} rejects an unknown token", stack.name);
    }
    if stack.rejects != Rejects::Nothing {
        let row = (stack.build)(FEW, Limit::OnePerDay);
        for token in 0..FEW {
            assert_eq!(row.answer(token).0, StatusCode::OK, "{} admits once", stack.name);
            let (status, headers) = row.answer(token);
            assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{} limits", stack.name);
            assert!(headers.contains_key("retry-after"), "{} sends retry-after", stack.name);
        }
    }
}

fn sends_limit_headers(name: &str) -> bool {
    let name = name.trim_end_matches(", plain tower");
    let by_token = ["tollgate", "floor", "tower_governor", "axum-governor", "tower-rate-limiter"];
    let by_address = ["tollgate, by address", "tower_governor with headers, by address"];
    by_token.contains(&name) || by_address.contains(&name)
}
