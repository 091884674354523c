//! Shared code of the benchmarks: tokens, their order, and the floor.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::Response;
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use http::{HeaderName, HeaderValue, Request};
use sha2::{Digest, Sha256};
use tollgate::Quota;
use tower::{Layer, Service};

/// A quota that admits every benchmark request, with a typical burst.
pub(crate) const PLENTY: Quota = Quota::per_second(1_000_000_000).with_burst(20);

pub(crate) fn token(i: usize) -> String {
    // 43 characters, as 256 random bits have in base64.
    format!("tg_{:040x}", (i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

/// Returns the `Authorization` header of a token.
pub(crate) fn bearer(i: usize) -> HeaderValue {
    format!("Bearer {}", token(i)).parse().expect("a header value")
}

/// Returns a request with this header, as a server builds it from bytes that it has just read.
/// A clone would share cold memory, and only the gate would be slowed down by that.
pub(crate) fn request(authorization: &HeaderValue) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    let copy = HeaderValue::from_bytes(authorization.as_bytes()).expect("it was a header value before");
    request.headers_mut().insert(http::header::AUTHORIZATION, copy);
    request
}

/// Returns the numbers below `size` in an order that no prefetcher can learn, the same in each run.
pub(crate) fn shuffled(size: usize) -> impl Iterator<Item = usize> {
    let mut order: Vec<usize> = (0..size).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for i in (1..size).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(i, (state % (i as u64 + 1)) as usize);
    }
    order.into_iter()
}

/// The floor: one SHA-256, one map lookup, one request extension and two response headers, in one tower layer. It makes
/// one governor decision on the token's own cell, with clock and remaining. It checks nothing and rejects nothing.
#[derive(Clone)]
pub(crate) struct FloorLayer(Arc<Floor>);

struct Floor {
    tokens: HashMap<[u8; 32], Arc<Record>, BuildHasherDefault<Identity>>,
    clock: governor::clock::DefaultClock,
    start: governor::clock::QuantaInstant,
}

struct Record {
    cell: InMemoryState,
    #[expect(dead_code, reason = "a handler would read it")]
    user: u32,
}

impl FloorLayer {
    /// Builds a floor with the tokens below `size`.
    pub(crate) fn new(size: usize) -> Self {
        use governor::clock::Clock as _;
        let record = |i: usize| {
            let record = Record { cell: InMemoryState::default(), user: i as u32 };
            (Sha256::digest(token(i)).into(), Arc::new(record))
        };
        let tokens = (0..size).map(record).collect();
        let clock = governor::clock::DefaultClock::default();
        let start = clock.now();
        Self(Arc::new(Floor { tokens, clock, start }))
    }
}

impl<S> Layer<S> for FloorLayer {
    type Service = FloorService<S>;

    fn layer(&self, inner: S) -> FloorService<S> {
        FloorService { inner, floor: Arc::clone(&self.0) }
    }
}

#[derive(Clone)]
pub(crate) struct FloorService<S> {
    inner: S,
    floor: Arc<Floor>,
}

impl<S: Service<Request<Body>, Response = Response>> Service<Request<Body>> for FloorService<S> {
    type Response = Response;
    type Error = S::Error;
    type Future = FloorFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let token = &request.headers()[http::header::AUTHORIZATION].as_bytes()[7..];
        let digest: [u8; 32] = Sha256::digest(token).into();
        let record = Arc::clone(&self.floor.tokens[&digest]);
        let remaining = self.floor.decide(&record.cell);
        request.extensions_mut().insert(record);
        FloorFuture { future: self.inner.call(request), remaining }
    }
}

impl Floor {
    fn decide(&self, cell: &InMemoryState) -> u32 {
        use governor::clock::{Clock as _, Reference as _};
        let now = self.clock.now().duration_since(self.start);
        let quota = governor::Quota::with_period(PLENTY.interval())
            .expect("not zero")
            .allow_burst(NonZeroU32::new(PLENTY.burst()).expect("not zero"));
        let limiter: governor::RateLimiter<_, _, _, StateInformationMiddleware> =
            governor::RateLimiter::new(quota, Borrowed(cell), Given(Cell::new(0), now.as_u64()));
        match limiter.check() {
            Ok(state) => state.remaining_burst_capacity(),
            // The floor rejects nothing, not even a charge with an outdated time.
            Err(_) => 0,
        }
    }
}

struct Borrowed<'a>(&'a InMemoryState);

impl StateStore for Borrowed<'_> {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, key: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<governor::nanos::Nanos>) -> Result<(T, governor::nanos::Nanos), E>,
    {
        self.0.measure_and_replace(key, f)
    }
}

struct Given(Cell<u64>, u64);

impl governor::clock::Clock for Given {
    type Instant = governor::nanos::Nanos;

    fn now(&self) -> governor::nanos::Nanos {
        governor::nanos::Nanos::new(self.0.replace(self.1))
    }
}

pin_project_lite::pin_project! {
    pub(crate) struct FloorFuture<F> { #[pin] future: F, remaining: u32 }
}

impl<F: Future<Output = Result<Response, E>>, E> Future for FloorFuture<F> {
    type Output = Result<Response, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.future.poll(cx))?;
        let headers = response.headers_mut();
        let policy = HeaderValue::from_static("\"default\";q=20;w=1");
        headers.insert(HeaderName::from_static("ratelimit-policy"), policy);
        headers.insert(HeaderName::from_static("ratelimit"), number(*this.remaining));
        Poll::Ready(Ok(response))
    }
}

/// Uses one allocation. `HeaderValue::from` uses two.
fn number(number: u32) -> HeaderValue {
    HeaderValue::from_str(itoa::Buffer::new().format(number)).expect("digits")
}

#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(Ok(first)) = bytes.get(..8).map(TryInto::try_into) {
            self.0 = u64::from_le_bytes(first);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
