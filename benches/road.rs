//! What the gate adds to a bare axum route, beside the floor: what any gate must pay that hashes tokens, limits them
//! and tells so. `cargo bench --bench road --features axum` ends with a table of ratios from the same run.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that panics and prints")]

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::routing::get;
use axum::{Router, response::Response};
use criterion::{BenchmarkId, Criterion, SamplingMode};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use http::{HeaderName, HeaderValue, Request};
use sha2::{Digest, Sha256};
use tollgate::{AuthLayer, Grant, MemoryStore, Quota, RateLimits};
use tower::{Layer, Service, ServiceExt};

const SIZES: [usize; 3] = [100, 10_000, 1_000_000];
const ROWS: [&str; 7] = ["bare", "floor", "empty layer", "admitted", "unknown token", "malformed", "over limit"];

fn main() {
    let mut criterion = Criterion::default().configure_from_args().sample_size(60);
    for size in SIZES {
        rows(&mut criterion, size);
    }
    criterion.final_summary();
    print_ratios();
}

/// A quota that admits whatever a benchmark sends.
const PLENTY: Quota = Quota::per_second(1_000_000_000);
const NEARLY_NOTHING: Quota = Quota::per_day(1);

fn rows(criterion: &mut Criterion, size: usize) {
    let tokens: Vec<String> = (0..size).map(token).collect();
    let good: Vec<HeaderValue> = shuffled(&tokens).map(|token| bearer(token)).collect();
    let unknown: Vec<HeaderValue> = (size..size + size.min(10_000)).map(|i| bearer(&token(i))).collect();
    let malformed = [HeaderValue::from_static("Bearer not a token")];

    let store: MemoryStore<u32> =
        tokens.iter().zip(0..).map(|(token, i)| (token.as_str(), Grant::new(format!("user-{i}"), i))).collect();
    let gate = |quota| AuthLayer::new(store.clone()).with_rate_limit(RateLimits::new(quota));

    let mut group = criterion.benchmark_group("road");
    // The cache misses of a million tokens take a while to settle.
    group.warm_up_time(Duration::from_secs(2)).measurement_time(Duration::from_secs(4));
    group.sampling_mode(SamplingMode::Flat);
    let mut row = |name: &str, app: Router, headers: &[HeaderValue]| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        // As `axum::serve` does it: otherwise axum makes the layers anew at every request.
        let service = app.with_state(()).into_service::<Body>();
        let mut at = 0;
        group.bench_function(BenchmarkId::new(name, size), |bencher| {
            bencher.iter_custom(|iterations| {
                runtime.block_on(async {
                    let begin = std::time::Instant::now();
                    for _ in 0..iterations {
                        let mut request = Request::new(Body::empty());
                        request.headers_mut().insert(http::header::AUTHORIZATION, headers[at].clone());
                        at = if at + 1 == headers.len() { 0 } else { at + 1 };
                        black_box(service.clone().oneshot(request).await).expect("infallible");
                    }
                    begin.elapsed()
                })
            });
        });
    };
    row("bare", route(), &good);
    row("floor", route().layer(FloorLayer::new(&tokens)), &good);
    row("empty layer", route().layer(tower::layer::util::Identity::new()), &good);
    row("admitted", route().layer(gate(PLENTY)), &good);
    row("unknown token", route().layer(gate(PLENTY)), &unknown);
    row("malformed", route().layer(gate(PLENTY)), &malformed);
    let empty = route().layer(gate(NEARLY_NOTHING));
    drain(&empty, &good);
    row("over limit", empty, &good);
    group.finish();
}

fn route() -> Router {
    Router::new().route("/", get(|| async {}))
}

fn drain(app: &Router, headers: &[HeaderValue]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let app = app.clone().with_state::<()>(());
    runtime.block_on(async {
        for header in headers {
            let mut request = Request::new(Body::empty());
            request.headers_mut().insert(http::header::AUTHORIZATION, header.clone());
            app.clone().oneshot(request).await.expect("infallible");
        }
    });
}

fn token(i: usize) -> String {
    // 43 characters, as 256 random bits have in base64.
    format!("tg_{:040x}", (i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

fn bearer(token: &str) -> HeaderValue {
    format!("Bearer {token}").parse().expect("a header value")
}

/// An order without any pattern that a prefetcher could learn, the same in each run.
fn shuffled(tokens: &[String]) -> impl Iterator<Item = &String> {
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for i in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(i, (state % (i as u64 + 1)) as usize);
    }
    order.into_iter().map(|i| &tokens[i])
}

/// The floor: one SHA-256, one probe, one governor decision on a cell of the token's own with clock and remaining, one
/// request extension, two response headers, in one tower layer. It checks nothing and refuses nothing.
#[derive(Clone)]
struct FloorLayer(Arc<Floor>);

struct Floor {
    tokens: HashMap<[u8; 32], Arc<Record>, BuildHasherDefault<Identity>>,
    clock: governor::clock::DefaultClock,
    start: governor::clock::QuantaInstant,
}

struct Record {
    cell: InMemoryState,
    #[expect(dead_code, reason = "what a handler would read")]
    user: u32,
}

impl FloorLayer {
    fn new(tokens: &[String]) -> Self {
        use governor::clock::Clock as _;
        let tokens = tokens
            .iter()
            .zip(0..)
            .map(|(token, user)| {
                (Sha256::digest(token).into(), Arc::new(Record { cell: InMemoryState::default(), user }))
            })
            .collect();
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
struct FloorService<S> {
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
            Err(_) => panic!("the floor refuses nothing"),
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
    struct FloorFuture<F> { #[pin] future: F, remaining: u32 }
}

impl<F: Future<Output = Result<Response, E>>, E> Future for FloorFuture<F> {
    type Output = Result<Response, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.future.poll(cx))?;
        let headers = response.headers_mut();
        let policy = HeaderValue::from_static("\"default\";q=1000000000;w=1");
        headers.insert(HeaderName::from_static("ratelimit-policy"), policy);
        headers.insert(HeaderName::from_static("ratelimit"), HeaderValue::from(*this.remaining));
        Poll::Ready(Ok(response))
    }
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

/// Reads what criterion measured, and prints each row's cost over the bare route as a multiple of the floor's.
fn print_ratios() {
    let median = |row: &str, size: usize| -> Option<f64> {
        let file = criterion_dir().join(format!("road/{row}/{size}/new/estimates.json"));
        let estimates: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
        estimates["median"]["point_estimate"].as_f64()
    };
    println!("\nOverhead over the bare route, as a multiple of the floor's (medians):\n");
    println!("| tokens |{}", ROWS[1..].iter().map(|row| format!(" {row} |")).collect::<String>());
    println!("|---:|{}", "---:|".repeat(ROWS.len() - 1));
    for size in SIZES {
        let Some((bare, floor)) = median("bare", size).zip(median("floor", size)) else { continue };
        let cells = ROWS[1..].iter().map(|row| match median(row, size) {
            Some(ns) => format!(" {:.2} |", (ns - bare) / (floor - bare)),
            None => " |".to_owned(),
        });
        println!("| {size} |{}", cells.collect::<String>());
    }
}

fn criterion_dir() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    target.join("criterion")
}
