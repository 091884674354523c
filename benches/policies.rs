//! Compares four policies with one, and two threads with one, on separate subjects and on a shared subject.
//! `cargo bench --bench policies --features axum` prints a table of ratios from the same run.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that panics and prints")]

#[allow(dead_code, reason = "the request benchmark uses the rest")]
mod floor;
mod measured;

use std::convert::Infallible;
use std::future::ready;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};
use tollgate::TokenDigest;

use axum::Router;
use axum::body::Body;
use axum::routing::{RouterIntoService, get};
use criterion::{Criterion, SamplingMode};
use floor::{PLENTY, bearer, request, shuffled, token};
use http::{HeaderValue, Request, Response};
use measured::{Measured, send};
use sha2::{Digest as _, Sha256};
use tollgate::limit::Charge;
use tollgate::{AuthLayer, CurrentGrant, Grant, Limit, MemoryStore, Quota, RateLimits};
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};

const SUBJECTS: usize = 1_000;

fn main() {
    let measured = Measured::since_now();
    let mut criterion = Criterion::default().configure_from_args().sample_size(60);
    for (name, limits) in [("1 policy", one()), ("4 policies", four())] {
        limiter(&mut criterion, name, &limits);
        gate(&mut criterion, name, limits);
    }
    criterion.final_summary();
    println!("\n| 4 policies compared with 1 | ratio |\n|---|---:|");
    for group in ["limiter", "gate"] {
        let median = |row| measured.median_ns(&format!("{group}/{row}"));
        if let (Some(four), Some(one)) = (median("4 policies"), median("1 policy")) {
            println!("| {group} | {:.2} |", four / one);
        }
    }
    scaling();
}

fn one() -> RateLimits {
    RateLimits::new(PLENTY)
}

/// Returns four policies that reject nothing: two for each subject, one for some requests, and one shared by all
/// subjects.
fn four() -> RateLimits {
    let limit = |name, quota| Limit::new(name, quota).expect("a valid name");
    [
        limit("day", Quota::per_second(1_000_000_000).with_burst(5_000)),
        limit("orders", PLENTY).with_cost(|head| u32::from(head.uri.path() == "/orders")),
        limit("everyone", Quota::per_second(1_000_000_000)).shared_by_all(),
    ]
    .into_iter()
    .fold(one(), |limits, limit| limits.and(limit).expect("distinct names"))
}

fn limiter(criterion: &mut Criterion, name: &str, limits: &RateLimits) {
    let grants: Vec<_> = shuffled(SUBJECTS).map(|i| CurrentGrant::new(Grant::new(format!("user-{i}"), ()))).collect();
    let mut group = criterion.benchmark_group("limiter");
    let mut at = 0;
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            at = if at + 1 == grants.len() { 0 } else { at + 1 };
            limits.charge(black_box(&grants[at]), Charge::Units(1))
        });
    });
    group.finish();
}

fn gate(criterion: &mut Criterion, name: &str, limits: RateLimits) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let service = service(limits);
    let headers: Vec<HeaderValue> = shuffled(SUBJECTS).map(bearer).collect();
    let mut group = criterion.benchmark_group("gate");
    group.sampling_mode(SamplingMode::Flat);
    let mut at = 0;
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| runtime.block_on(send(&service, &headers, &mut at, iterations)));
    });
    group.finish();
}

fn service(limits: RateLimits) -> RouterIntoService<Body> {
    Router::new().route("/", get(|| async {})).layer(gate_of(limits)).into_service()
}

fn gate_of(limits: RateLimits) -> AuthLayer<MemoryStore<()>, RateLimits> {
    let tokens: MemoryStore<()> =
        (0..SUBJECTS).map(|i| (TokenDigest::of(token(i)), Grant::new(format!("user-{i}"), ()))).collect();
    AuthLayer::new(tokens).with_rate_limit(limits)
}

const ROUNDS: usize = 15;
const REQUESTS: u64 = 200_000;

/// Prints the throughput of two threads relative to one thread. The rows alternate in each round, and medians are
/// printed.
fn scaling() {
    // A thread that is interrupted between reading the clock and charging has an outdated time. A burst of a second
    // admits it.
    let lasting = || RateLimits::new(Quota::per_second(1_000_000_000));
    let (routed, baseline) = (service(lasting()), Router::new().route("/", get(|| async {})).into_service());
    // The gate alone. Each thread has its own service, as a connection has, and does not clone it.
    let alone = gate_of(lasting())
        .layer(service_fn(|_: Request<Body>| ready(Ok::<_, Infallible>(Response::new(Body::empty())))));
    let distinct: [Vec<HeaderValue>; 2] =
        [0, 1].map(|half| shuffled(SUBJECTS).filter(|i| i % 2 == half).map(bearer).collect());
    let hot: [Vec<HeaderValue>; 2] = [0, 0].map(|i| vec![bearer(i)]);
    let routed = |headers: &[HeaderValue]| pass(headers, async |request| routed.clone().oneshot(request).await);
    let baseline = |headers: &[HeaderValue]| pass(headers, async |request| baseline.clone().oneshot(request).await);
    let alone = |headers: &[HeaderValue]| {
        let mut service = alone.clone();
        pass(headers, async move |request| service.call(request).await);
    };
    // The same work as hashing tokens, with nothing shared.
    let hashes = |_: &[HeaderValue]| {
        let mut bytes = [0; 43];
        for _ in 0..10 * REQUESTS {
            let digest = Sha256::digest(black_box(&bytes));
            bytes[..32].copy_from_slice(&digest);
        }
    };
    let mut ratios = [(); 6].map(|()| Vec::new());
    for _ in 0..ROUNDS {
        ratios[0].push(2.0 * elapsed(&distinct[..1], hashes) / elapsed(&distinct, hashes));
        ratios[1].push(2.0 * elapsed(&distinct[..1], alone) / elapsed(&distinct, alone));
        ratios[2].push(2.0 * elapsed(&hot[..1], alone) / elapsed(&hot, alone));
        ratios[3].push(2.0 * elapsed(&distinct[..1], baseline) / elapsed(&distinct, baseline));
        ratios[4].push(2.0 * elapsed(&distinct[..1], routed) / elapsed(&distinct, routed));
        ratios[5].push(2.0 * elapsed(&hot[..1], routed) / elapsed(&hot, routed));
    }
    println!("\n| throughput of 2 threads | relative to 1 |\n|---|---:|");
    let names = [
        "SHA-256 only",
        "gate only, separate subjects",
        "gate only, one subject",
        "baseline: axum route without a gate",
        "axum route with a gate, separate subjects",
        "axum route with a gate, one subject",
    ];
    for (name, ratios) in names.into_iter().zip(&mut ratios) {
        ratios.sort_by(f64::total_cmp);
        println!("| {name} | {:.2} |", ratios[ROUNDS / 2]);
    }
}

/// Sends requests with these headers in turn. All have to be admitted, since a rejection has another cost.
fn pass(headers: &[HeaderValue], mut send: impl AsyncFnMut(Request<Body>) -> Result<Response<Body>, Infallible>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        for header in headers.iter().cycle().take(REQUESTS as usize) {
            let response = send(request(header)).await.unwrap_or_else(|never| match never {});
            assert!(black_box(response).status().is_success(), "the request was rejected");
        }
    });
}

/// Returns the seconds until all threads have done their work.
fn elapsed(shares: &[Vec<HeaderValue>], work: impl Fn(&[HeaderValue]) + Sync) -> f64 {
    let (begin, end) = (Barrier::new(shares.len() + 1), Barrier::new(shares.len() + 1));
    let mut elapsed = Duration::ZERO;
    thread::scope(|scope| {
        for share in shares {
            let (work, begin, end) = (&work, &begin, &end);
            scope.spawn(move || {
                begin.wait();
                work(share);
                end.wait();
            });
        }
        begin.wait();
        let began = Instant::now();
        end.wait();
        elapsed = began.elapsed();
    });
    elapsed.as_secs_f64()
}
