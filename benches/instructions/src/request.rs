//! The counted requests: one kind at a time, through a gate in plain tower.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::request::Builder;
use http::{Request, Response, StatusCode, header};
use tollgate::gate::IdentityLayer;
use tollgate::limit::{AnonymousLimits, ClientIp, Clock};
use tollgate::{AuthLayer, Grant, MemoryStore, Quota, RateLimits, TokenDigest};
use tower::{Layer, Service};

#[derive(Clone, Copy)]
pub enum Case {
    Admitted,
    Unknown,
    Malformed,
    /// Over the limit for a second, the usual wait.
    OverLimit,
    /// Over the limit for a day. The numbers of such a wait are rendered for each response.
    OverLimitForLong,
    /// No token, through a gate for public routes.
    ByAddress,
}

pub const CASES: [(&str, Case); 6] = [
    ("admitted", Case::Admitted),
    ("unknown token", Case::Unknown),
    ("malformed", Case::Malformed),
    ("over limit", Case::OverLimit),
    ("over limit for a day", Case::OverLimitForLong),
    ("by address", Case::ByAddress),
];

const TOKENS: usize = 100;

fn token(i: usize) -> String {
    // 43 characters, as 256 random bits have in base64.
    format!("tg_{:040x}", (i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

/// Prepares requests of one kind and sends them.
pub fn run(case: Case, count: usize) {
    let (quota, status) = match case {
        Case::Admitted | Case::ByAddress => (Quota::per_second(1_000_000_000).with_burst(20), StatusCode::OK),
        Case::Unknown | Case::Malformed => (Quota::per_minute(180), StatusCode::UNAUTHORIZED),
        Case::OverLimit => (Quota::per_second(1), StatusCode::TOO_MANY_REQUESTS),
        Case::OverLimitForLong => (Quota::per_day(1), StatusCode::TOO_MANY_REQUESTS),
    };
    // The first request of a token or an address creates its bucket.
    match case {
        Case::ByAddress => send(by_address(quota).layer(Answers), case, case, count, status),
        _ => send(gate(quota).layer(Answers), Case::Admitted, case, count, status),
    }
}

fn send<S>(mut service: S, first: Case, case: Case, count: usize, status: StatusCode)
where
    S: Service<Request<Bytes>, Response = Response<Bytes>, Error = Infallible>,
{
    requests(first, TOKENS).into_iter().for_each(|request| drop(answer(&mut service, request)));
    let requests = requests(case, count);
    assert!(counted(&mut service, requests, status), "not all responses were {status}");
}

fn gate(quota: Quota) -> AuthLayer<MemoryStore<usize>, RateLimits> {
    let store: MemoryStore<usize> =
        (0..TOKENS).map(|i| (TokenDigest::of(token(i)), Grant::new(format!("user-{i}"), i))).collect();
    AuthLayer::new(store).with_rate_limit(RateLimits::new(quota).with_clock(clock()))
}

fn by_address(quota: Quota) -> IdentityLayer<AnonymousLimits> {
    let limits = AnonymousLimits::by_client_ip(quota, ClientIp::peer()).expect("a valid limit");
    AuthLayer::anonymous().with_rate_limit(limits.with_clock(clock()))
}

/// A deterministic clock that advances a microsecond at each reading.
fn clock() -> impl Clock {
    let micros = AtomicU64::new(0);
    move || Duration::from_micros(micros.fetch_add(1, Ordering::Relaxed))
}

fn requests(case: Case, count: usize) -> Vec<Request<Bytes>> {
    let address = |i: usize| SocketAddr::from((Ipv4Addr::from_bits((i % TOKENS) as u32), 40_000));
    let request = |i: usize| match case {
        Case::Admitted | Case::OverLimit | Case::OverLimitForLong => {
            with_token(format!("Bearer {}", token(i % TOKENS)))
        }
        Case::Unknown => with_token(format!("Bearer {}", token(i + TOKENS))),
        Case::Malformed => with_token("Bearer not a token".to_owned()),
        Case::ByAddress => Request::get("/").extension(address(i)),
    };
    (0..count).map(|i| request(i).body(Bytes::new()).expect("a request")).collect()
}

fn with_token(authorization: String) -> Builder {
    Request::get("/").header(header::AUTHORIZATION, authorization)
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
