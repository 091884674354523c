//! The counted requests: one kind at a time, through a gate in plain tower.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use tollgate::{AuthLayer, Grant, MemoryStore, Quota, RateLimits, TokenDigest};
use tower::{Layer, Service};

#[derive(Clone, Copy)]
pub enum Case {
    Admitted,
    Unknown,
    Malformed,
    OverLimit,
}

pub const CASES: [(&str, Case); 4] = [
    ("admitted", Case::Admitted),
    ("unknown token", Case::Unknown),
    ("malformed", Case::Malformed),
    ("over limit", Case::OverLimit),
];

const TOKENS: usize = 100;

fn token(i: usize) -> String {
    // 43 characters, as 256 random bits have in base64.
    format!("tg_{:040x}", (i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

/// Prepares requests of one kind and sends them.
pub fn run(case: Case, count: usize) {
    let (quota, status) = match case {
        Case::Admitted => (Quota::per_second(1_000_000_000).with_burst(20), StatusCode::OK),
        Case::Unknown | Case::Malformed => (Quota::per_minute(180), StatusCode::UNAUTHORIZED),
        Case::OverLimit => (Quota::per_day(1), StatusCode::TOO_MANY_REQUESTS),
    };
    let mut service = gate(quota).layer(Answers);
    // The first request of a token creates its bucket.
    requests(Case::Admitted, TOKENS).into_iter().for_each(|request| drop(answer(&mut service, request)));
    let requests = requests(case, count);
    assert!(counted(&mut service, requests, status), "not all responses were {status}");
}

fn gate(quota: Quota) -> AuthLayer<MemoryStore<usize>, RateLimits> {
    let store: MemoryStore<usize> =
        (0..TOKENS).map(|i| (TokenDigest::of(token(i)), Grant::new(format!("user-{i}"), i))).collect();
    // A deterministic clock that advances a microsecond at each reading.
    let micros = AtomicU64::new(0);
    let clock = move || Duration::from_micros(micros.fetch_add(1, Ordering::Relaxed));
    AuthLayer::new(store).with_rate_limit(RateLimits::new(quota).with_clock(clock))
}

fn requests(case: Case, count: usize) -> Vec<Request<Bytes>> {
    let authorization = |i: usize| match case {
        Case::Admitted | Case::OverLimit => format!("Bearer {}", token(i % TOKENS)),
        Case::Unknown => format!("Bearer {}", token(i + TOKENS)),
        Case::Malformed => "Bearer not a token".to_owned(),
    };
    let request = |i| Request::get("/").header(header::AUTHORIZATION, authorization(i)).body(Bytes::new());
    (0..count).map(|i| request(i).expect("a request")).collect()
}

/// Callgrind counts only within this function, by its name.
#[inline(never)]
fn counted<S>(service: &mut S, requests: Vec<Request<Bytes>>, status: StatusCode) -> bool
where
    S: Service<Request<Bytes>, Response = Response<Bytes>, Error = Infallible>,
{
    let mut all = true;
    for request in requests {
        all &= black_box(answer(service, request)).status() == status;
    }
    all
}

fn answer<S>(service: &mut S, request: Request<Bytes>) -> Response<Bytes>
where
    S: Service<Request<Bytes>, Response = Response<Bytes>, Error = Infallible>,
{
    match pin!(service.call(request)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(response)) => response,
        Poll::Pending => panic!("the response is immediate"),
    }
}

#[derive(Clone)]
struct Answers;

impl Service<Request<Bytes>> for Answers {
    type Response = Response<Bytes>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Bytes>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(Bytes::new())))
    }
}
