//! Measures the overhead of the gate over an axum route without it, relative to the floor. The floor is the minimum
//! work of any gate that hashes tokens, limits requests and sends rate-limit headers.
//! `cargo bench --bench request --features axum` prints a table of ratios from the same run.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that panics and prints")]

mod floor;
mod measured;

use std::time::Duration;
use tollgate::TokenDigest;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use criterion::{BenchmarkId, Criterion, SamplingMode};
use floor::{FloorLayer, PLENTY, bearer, request, shuffled, token};
use http::HeaderValue;
use measured::{Measured, send};
use tollgate::{AuthLayer, Grant, MemoryStore, Quota, RateLimits};
use tower::ServiceExt;

const SIZES: [usize; 3] = [100, 10_000, 1_000_000];
const ROWS: [&str; 7] = ["baseline", "floor", "empty layer", "admitted", "unknown token", "malformed", "over limit"];

fn main() {
    let measured = Measured::since_now();
    let mut criterion = Criterion::default().configure_from_args().sample_size(60);
    for size in SIZES {
        rows(&mut criterion, size);
    }
    criterion.final_summary();
    print_ratios(&measured);
}

const ONE_A_DAY: Quota = Quota::per_day(1);

fn rows(criterion: &mut Criterion, size: usize) {
    let in_order: Vec<HeaderValue> = (0..size).map(bearer).collect();
    let good: Vec<HeaderValue> = shuffled(size).map(bearer).collect();
    let unknown: Vec<HeaderValue> = (size..size + size.min(10_000)).map(bearer).collect();
    let malformed = [HeaderValue::from_static("Bearer not a token")];

    let store: MemoryStore<u32> =
        (0..size).map(|i| (TokenDigest::of(token(i)), Grant::new(format!("user-{i}"), i as u32))).collect();
    let gate = |quota| AuthLayer::new(store.clone()).with_rate_limit(RateLimits::new(quota));

    let mut group = criterion.benchmark_group("request");
    // The cache misses of a million tokens take a while to settle.
    group.warm_up_time(Duration::from_secs(2)).measurement_time(Duration::from_secs(4));
    group.sampling_mode(SamplingMode::Flat);
    let mut row = |name: &str, app: Router, headers: &[HeaderValue]| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        // `axum::serve` does the same. Otherwise axum rebuilds the layers for every request.
        let service = app.with_state(()).into_service::<Body>();
        let mut at = 0;
        group.bench_function(BenchmarkId::new(name, size), |bencher| {
            bencher.iter_custom(|iterations| runtime.block_on(send(&service, headers, &mut at, iterations)));
        });
    };
    row("baseline", route(), &good);
    row("floor", route().layer(FloorLayer::new(size)), &good);
    row("empty layer", route().layer(tower::layer::util::Identity::new()), &good);
    // Buckets are created in another order than they are measured in. Otherwise they would be adjacent in memory.
    let admitted = route().layer(gate(PLENTY));
    drain(&admitted, &in_order);
    row("admitted", admitted, &good);
    row("unknown token", route().layer(gate(PLENTY)), &unknown);
    row("malformed", route().layer(gate(PLENTY)), &malformed);
    let empty = route().layer(gate(ONE_A_DAY));
    drain(&empty, &in_order);
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
            app.clone().oneshot(request(header)).await.expect("infallible");
        }
    });
}

/// Prints the overhead of each row over the baseline as a multiple of the floor's, from this run.
fn print_ratios(measured: &Measured) {
    let median = |row: &str, size: usize| measured.median_ns(&format!("request/{row}/{size}"));
    println!("\nOverhead over the baseline, as a multiple of the floor's (medians):\n");
    println!("| tokens |{}", ROWS[1..].iter().map(|row| format!(" {row} |")).collect::<String>());
    println!("|---:|{}", "---:|".repeat(ROWS.len() - 1));
    for size in SIZES {
        let Some((baseline, floor)) = median("baseline", size).zip(median("floor", size)) else { continue };
        let cells = ROWS[1..].iter().map(|row| match median(row, size) {
            Some(ns) => format!(" {:.2} |", (ns - baseline) / (floor - baseline)),
            None => " |".to_owned(),
        });
        println!("| {size} |{}", cells.collect::<String>());
    }
}
