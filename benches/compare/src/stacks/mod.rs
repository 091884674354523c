//! The competitors: each a stack of layers around one and the same route, built anew for a number of tokens.

mod axum_extra;
mod axum_governor;
mod hand_written;
mod tollgate;
mod tower_governor;

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

/// How much each token may spend.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// More than a benchmark can send.
    Plenty,
    /// One request a day.
    One,
}

/// What may come at once of plenty, as usual quotas have it.
const BURST: NonZeroU32 = NonZeroU32::new(20).expect("not zero");

/// What a stack has to refuse, so that nobody measures a broken one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Refuses {
    /// Unknown tokens (401) and spent budgets (429).
    Both,
    /// It is no gate.
    Nothing,
}

/// A row of the table. A stack can be built twice, with other budgets.
pub struct Stack {
    pub name: &'static str,
    /// The row that this one's overhead is counted from.
    pub base: &'static str,
    pub refuses: Refuses,
    pub build: fn(usize, Budget) -> Row,
}

impl Stack {
    const fn axum(name: &'static str, build: fn(usize, Budget) -> Row) -> Self {
        Self { name, base: "bare", refuses: Refuses::Both, build }
    }

    const fn plain(name: &'static str, build: fn(usize, Budget) -> Row) -> Self {
        Self { name, base: "bare, plain tower", refuses: Refuses::Both, build }
    }

    const fn that_refuses_nothing(self) -> Self {
        Self { refuses: Refuses::Nothing, ..self }
    }

    /// Whether it keeps something of each token, and no other row keeps the same.
    pub fn has_tokens(&self) -> bool {
        let keeps_nothing = [self.base, "empty layer"].contains(&self.name);
        self.base == "bare" && !keeps_nothing
    }
}

pub const STACKS: &[Stack] = &[
    Stack::axum("tollgate", tollgate::with_headers),
    Stack::axum("tollgate without headers", tollgate::without_headers),
    Stack::axum("floor", |size, _| routed(FloorLayer::new(size))).that_refuses_nothing(),
    Stack::axum("empty layer", |_, _| routed(Identity::new())).that_refuses_nothing(),
    Stack::axum("hand-written", hand_written::routed),
    Stack::axum("tower_governor", tower_governor::routed),
    Stack::axum("axum-governor", axum_governor::routed),
    Stack::axum("axum-extra + governor", axum_extra::routed),
    Stack::axum("bare", |_, _| routed_bare()).that_refuses_nothing(),
    Stack::plain("tollgate, plain tower", tollgate::plain),
    Stack::plain("floor, plain tower", |size, _| plain(FloorLayer::new(size))).that_refuses_nothing(),
    Stack::plain("hand-written, plain tower", hand_written::plain),
    Stack::plain("tower_governor, plain tower", tower_governor::plain),
    Stack::plain("axum-governor, plain tower", axum_governor::plain),
    Stack::plain("bare, plain tower", |_, _| plain(Identity::new())).that_refuses_nothing(),
];

/// The route, in the layers of a stack.
fn routed<L>(layer: L) -> Row
where
    L: Layer<axum::routing::Route> + Clone + Send + Sync + 'static,
    L::Service: Service<Request<Body>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    <L::Service as Service<Request<Body>>>::Future: Send + 'static,
{
    Row::of(served(route().layer(layer)))
}

fn routed_bare() -> Row {
    Row::of(served(route()))
}

fn route() -> Router {
    Router::new().route("/", get(|| async {}))
}

/// As `axum::serve` does it: otherwise axum makes the layers anew at every request.
fn served(app: Router) -> axum::routing::RouterIntoService<Body> {
    app.with_state(()).into_service()
}

/// The same layers around a service that only answers.
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

/// Proves on a small copy of a stack that it lets the right requests in and no others.
pub fn prove(stack: &Stack) {
    const FEW: usize = 5;
    let row = (stack.build)(FEW, Budget::Plenty);
    for token in (0..FEW).chain(0..FEW) {
        let (status, headers) = row.answer(token);
        assert_eq!(status, StatusCode::OK, "{} admits", stack.name);
        let tells = headers.contains_key("ratelimit") || headers.contains_key("x-ratelimit-remaining");
        assert_eq!(tells, tells_of_budgets(stack.name), "{} tells of budgets", stack.name);
    }
    if stack.refuses == Refuses::Both {
        assert_eq!(row.answer(FEW).0, StatusCode::UNAUTHORIZED, "{} knows no such token", stack.name);
        let row = (stack.build)(FEW, Budget::One);
        for token in 0..FEW {
            assert_eq!(row.answer(token).0, StatusCode::OK, "{} admits once", stack.name);
            let (status, headers) = row.answer(token);
            assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{} limits", stack.name);
            assert!(headers.contains_key("retry-after"), "{} says when to come again", stack.name);
        }
    }
}

fn tells_of_budgets(name: &str) -> bool {
    let name = name.trim_end_matches(", plain tower");
    ["tollgate", "floor", "tower_governor", "axum-governor"].contains(&name)
}
