//! What four policies cost beside one, and what a second thread brings: on subjects of its own, and on one that both have.
//! `cargo bench --bench policies --features axum` ends with a table of ratios from the same run.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that panics and prints")]

#[allow(dead_code, reason = "the road uses the rest")]
mod floor;
mod measured;

use std::convert::Infallible;
use std::future::ready;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::{RouterIntoService, get};
use criterion::{Criterion, SamplingMode};
use floor::{PLENTY, bearer, request, shuffled, token};
use http::{HeaderValue, Request, Response};
use measured::{Measured, send};
use sha2::{Digest as _, Sha256};
use tollgate::limit::Charge;
use tollgate::{AuthLayer, CurrentGrant, Grant, MemoryStore, Quota, RateLimits};
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
    println!("\n| 4 policies beside 1 | ratio |\n|---|---:|");
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

/// None of them refuses: for each subject, for some requests, and for all subjects together.
fn four() -> RateLimits {
    let further = |limits: RateLimits, name, quota| limits.and(name, quota).expect("a name");
    let limits = further(one(), "day", Quota::per_second(1_000_000_000).with_burst(5_000));
    let limits = further(limits, "orders", PLENTY).with_cost(|head| u32::from(head.uri.path() == "/orders"));
    further(limits, "everybody", Quota::per_second(1_000_000_000)).shared_by_all()
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
    let tokens: MemoryStore<()> = (0..SUBJECTS).map(|i| (token(i), Grant::new(format!("user-{i}"), ()))).collect();
    AuthLayer::new(tokens).with_rate_limit(limits)
}

const ROUNDS: usize = 15;
const REQUESTS: u64 = 200_000;

/// How much is done in a time by two threads, beside what one does. Rounds of all rows by turns; medians.
fn scaling() {
    // A thread that is interrupted between its look at the clock and its charge comes with a time that is over, and is not to be
    // refused for that: a burst of a second.
    let lasting = || RateLimits::new(Quota::per_second(1_000_000_000));
    let (routed, bare) = (service(lasting()), Router::new().route("/", get(|| async {})).into_service());
    // The gate alone: each thread has a service of its own, as a connection has, and nobody clones it.
    let alone = gate_of(lasting())
        .layer(service_fn(|_: Request<Body>| ready(Ok::<_, Infallible>(Response::new(Body::empty())))));
    let distinct: [Vec<HeaderValue>; 2] =
        [0, 1].map(|half| shuffled(SUBJECTS).filter(|i| i % 2 == half).map(bearer).collect());
    let hot: [Vec<HeaderValue>; 2] = [0, 0].map(|i| vec![bearer(i)]);
    let routed = |headers: &[HeaderValue]| pass(headers, async |request| routed.clone().oneshot(request).await);
    let bare = |headers: &[HeaderValue]| pass(headers, async |request| bare.clone().oneshot(request).await);
    let alone = |headers: &[HeaderValue]| {
        let mut service = alone.clone();
        pass(headers, async move |request| service.call(request).await);
    };
    // The same work as the hash of a token, with nothing shared.
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
        ratios[3].push(2.0 * elapsed(&distinct[..1], bare) / elapsed(&distinct, bare));
        ratios[4].push(2.0 * elapsed(&distinct[..1], routed) / elapsed(&distinct, routed));
        ratios[5].push(2.0 * elapsed(&hot[..1], routed) / elapsed(&hot, routed));
    }
    println!("\n| 2 threads beside 1, in the same time | times as much |\n|---|---:|");
    let names = [
        "bare SHA-256",
        "the gate alone, subjects of their own",
        "the gate alone, one subject",
        "an axum route without a gate",
        "an axum route behind the gate, subjects of their own",
        "an axum route behind the gate, one subject",
    ];
    for (name, ratios) in names.into_iter().zip(&mut ratios) {
        ratios.sort_by(f64::total_cmp);
        println!("| {name} | {:.2} |", ratios[ROUNDS / 2]);
    }
}

/// Sends requests with these headers in turn, all of which have to be let in: a refusal costs something else.
fn pass(headers: &[HeaderValue], mut send: impl AsyncFnMut(Request<Body>) -> Result<Response<Body>, Infallible>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        for header in headers.iter().cycle().take(REQUESTS as usize) {
            let response = send(request(header)).await.unwrap_or_else(|never| match never {});
            assert!(black_box(response).status().is_success(), "it was refused");
        }
    });
}

/// Seconds until a thread for each has done its work.
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
