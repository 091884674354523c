//! Compares a cache and store combinators with a memory store: a lookup alone, and a request through the gate. Also measures
//! a thousand concurrent lookups of one token, which need a single lookup of the inner store.
//! `cargo bench --bench stores --features axum,cache,tokio` prints a table of ratios from the same run.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that panics and prints")]

#[allow(dead_code, reason = "the request benchmark uses the rest")]
mod floor;
mod measured;

use std::collections::HashMap;
use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tollgate::TokenDigest;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use criterion::{BenchmarkId, Criterion, SamplingMode};
use floor::{PLENTY, bearer, shuffled, token};
use http::HeaderValue;
use measured::{Measured, send};
use tollgate::store::{CachedStore, CircuitBreaker, GateStore, by_head, by_prefix, first_of, from_fn, map};
use tollgate::{Answer, AuthLayer, BearerToken, Grant, MemoryStore, RateLimits, TokenStore};

const SIZES: [usize; 2] = [100, 10_000];
const ROWS: [&str; 8] = ["memory", "again", "cached", "breaker", "map", "first_of", "by_prefix", "by_head"];
const TTL: Duration = Duration::from_secs(3_600);

fn main() {
    let measured = Measured::since_now();
    let mut criterion = Criterion::default().configure_from_args().sample_size(60);
    for size in SIZES {
        hits(&mut criterion, size);
    }
    misses(&mut criterion);
    criterion.final_summary();
    print_ratios(&measured);
}

fn hits(criterion: &mut Criterion, size: usize) {
    let tokens: Vec<String> = shuffled(size).map(token).collect();
    let headers: Vec<HeaderValue> = shuffled(size).map(bearer).collect();
    let memory: MemoryStore<u32> =
        (0..size).map(|i| (TokenDigest::of(token(i)), Grant::new(format!("user-{i}"), i as u32))).collect();
    // Capacity for all tokens and a reserve, so that nothing is evicted.
    let cached = CachedStore::builder(memory.clone(), TTL).with_capacity(2 * size as u64).build();
    let cached = cached.expect("settings");
    let breaker = CircuitBreaker::with_timeout(memory.clone(), Duration::from_secs(1));
    // Fill the cache before measuring.
    for token in &tokens {
        assert!(cached.lookup(&BearerToken::new(token)).ready().is_some_and(|found| found.is_ok()));
    }

    let mapped = map(memory.clone(), |grant| grant);
    let both = first_of(MemoryStore::new(), memory.clone());
    let prefixes = by_prefix([("other_", MemoryStore::new()), ("tg_", memory.clone())]).expect("two prefixes");
    let tenants = HashMap::from([("/", memory.clone())]);
    let tenants = by_head(move |head| tenants.get(head.uri.path()).cloned());

    lookup(criterion, "memory", size, &memory, &tokens);
    // A second baseline run, which shows the measurement noise.
    lookup(criterion, "again", size, &memory, &tokens);
    lookup(criterion, "cached", size, &cached, &tokens);
    lookup(criterion, "breaker", size, &breaker, &tokens);
    lookup(criterion, "map", size, &mapped, &tokens);
    lookup(criterion, "first_of", size, &both, &tokens);
    lookup(criterion, "by_prefix", size, &prefixes, &tokens);

    // One limiter for all rows, because a grant keeps the bucket of one limiter.
    let limits = RateLimits::new(PLENTY);
    gated(criterion, "memory", size, memory.clone(), &limits, &headers);
    gated(criterion, "again", size, memory, &limits, &headers);
    gated(criterion, "cached", size, cached, &limits, &headers);
    gated(criterion, "breaker", size, breaker, &limits, &headers);
    gated(criterion, "map", size, mapped, &limits, &headers);
    gated(criterion, "first_of", size, both, &limits, &headers);
    gated(criterion, "by_prefix", size, prefixes, &limits, &headers);
    gated(criterion, "by_head", size, tenants, &limits, &headers);
}

/// Measures lookups. The digest is computed before: its cost is the same for all stores.
fn lookup<T: TokenStore>(criterion: &mut Criterion, name: &str, size: usize, store: &T, tokens: &[String]) {
    let tokens: Vec<BearerToken<'_>> = tokens.iter().map(BearerToken::new).collect();
    for token in &tokens {
        black_box(token.digest());
    }
    let mut group = criterion.benchmark_group("lookup");
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    let mut at = 0;
    group.bench_function(BenchmarkId::new(name, size), |bencher| {
        bencher.iter(|| {
            let answer = store.lookup(black_box(&tokens[at]));
            at = if at + 1 == tokens.len() { 0 } else { at + 1 };
            let Answer::Ready(Ok(Some(grant))) = answer else { panic!("not cached") };
            grant
        });
    });
    group.finish();
}

fn gated(
    criterion: &mut Criterion,
    name: &str,
    size: usize,
    store: impl GateStore,
    limits: &RateLimits,
    headers: &[HeaderValue],
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let gate = AuthLayer::with_timeout(store, Duration::from_secs(2)).with_rate_limit(limits.clone());
    let app = Router::new().route("/", get(|| async {})).layer(gate);
    let service = app.with_state(()).into_service::<Body>();
    let mut group = criterion.benchmark_group("gate");
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    group.sampling_mode(SamplingMode::Flat);
    let mut at = 0;
    group.bench_function(BenchmarkId::new(name, size), |bencher| {
        bencher.iter_custom(|iterations| runtime.block_on(send(&service, headers, &mut at, iterations)));
    });
    group.finish();
}

/// Measures a thousand callers with one uncached token, before the store has answered the first of them.
fn misses(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    criterion.bench_function("1,000 misses of one token", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..iterations {
                let asked = Arc::new(AtomicUsize::new(0));
                let count = Arc::clone(&asked);
                let store = from_fn(move |_digest| {
                    let count = Arc::clone(&count);
                    async move {
                        count.fetch_add(1, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                        Ok::<_, Infallible>(Some(Grant::new("alice", ())))
                    }
                });
                let cache = CachedStore::new(store, TTL).expect("settings");
                let token = token(0);
                let begin = std::time::Instant::now();
                let lookups: Vec<_> =
                    (0..1_000).map(|_| cache.lookup(&BearerToken::new(&token)).into_future()).collect();
                let found = runtime.block_on(futures_util::future::join_all(lookups));
                elapsed += begin.elapsed();
                assert!(found.iter().all(|found| matches!(found, Ok(Some(_)))));
                assert_eq!(asked.load(Ordering::Relaxed), 1, "one lookup of the inner store");
            }
            elapsed
        });
    });
}

fn print_ratios(measured: &Measured) {
    println!("\nRelative to a memory store (medians):\n");
    println!("| | tokens | memory, ns |{}", ROWS[1..].iter().map(|row| format!(" {row} |")).collect::<String>());
    println!("|---|---:|---:|{}", "---:|".repeat(ROWS.len() - 1));
    for (group, size) in ["lookup", "gate"].into_iter().flat_map(|group| SIZES.map(|size| (group, size))) {
        let median = |row: &str| measured.median_ns(&format!("{group}/{row}/{size}"));
        let Some(memory) = median("memory") else { continue };
        let cells = ROWS[1..].iter().map(|row| match median(row) {
            Some(ns) => format!(" {:.2} |", ns / memory),
            None => " |".to_owned(),
        });
        println!("| {group} | {size} | {memory:.0} |{}", cells.collect::<String>());
    }
}
