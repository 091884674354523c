//! Compares rate limits in Redis with a plain call of the same script, with 64 requests in flight, and measures leases.
//! `just redis-bench` prints a table. The three alternate in short rounds and are compared within each round, so that
//! other load affects all of them. Without Redis the benchmark is skipped.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that panics and prints")]

use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use tollgate::limit::redis::{Leases, RedisLimits, RedisServer};
use tollgate::limit::{Charge, Limiter as _, RateLimits};
use tollgate::{CurrentGrant, Grant, Quota};

/// Never exhausted: one core cannot charge a subject this often.
const QUOTA: Quota = Quota::per_second(100_000);
const SUBJECTS: usize = 1_000;
const IN_FLIGHT: usize = 64;
const ROUNDS: usize = 45;
/// Charges in a round. Leases get more, so that most charges come after the leases have grown.
const BY_REDIS: u64 = 3_000;
const BY_LEASE: u64 = 200_000;

fn main() {
    let url = std::env::var("TOLLGATE_TEST_REDIS").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let Some(connection) = runtime.block_on(connect(&url)) else { return println!("skipped: no Redis") };
    let prefix = format!("tollgate-bench-{}:", std::process::id());
    let script = Script::load(&runtime, connection, &prefix);
    let subjects: Vec<_> = (0..SUBJECTS).map(|i| CurrentGrant::new(Grant::new(format!("user-{i}"), ()))).collect();
    let (exact, leased) = (limits(&url, &prefix, None), limits(&url, &prefix, Some(Leases::default())));
    let charge = async |limits: &RedisLimits, at: usize| {
        let decision = limits.charge(&subjects[at % SUBJECTS], Charge::Units(1)).await;
        assert!(decision.is_admitted() && !decision.is_local(), "Redis has to admit the measured charges");
    };
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let baseline = || runtime.block_on(in_flight(BY_REDIS, |at| script.charge(at)));
        let through = || runtime.block_on(in_flight(BY_REDIS, |at| charge(&exact, at)));
        let (baseline, exact_ns) = match round % 2 {
            0 => (baseline(), through()),
            _ => {
                let through = through();
                (baseline(), through)
            }
        };
        let leased_ns = runtime.block_on(in_flight(BY_LEASE, |at| charge(&leased, at)));
        // The first rounds connect and fill caches.
        if round > 4 {
            rounds.push([baseline, exact_ns, leased_ns]);
        }
    }
    print(&rounds);
}

fn print(rounds: &[[f64; 3]]) {
    let median = |of: &dyn Fn(&[f64; 3]) -> f64| {
        let mut all: Vec<_> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    println!("A charge, with {IN_FLIGHT} in flight (medians of {} rounds):\n", rounds.len());
    println!("| | us | relative to the script only | charges per second and core |\n|---|---:|---:|---:|");
    for (at, row) in ["script only (baseline)", "exact", "leased"].into_iter().enumerate() {
        let (ns, ratio) = (median(&|round| round[at]), median(&|round| round[at] / round[0]));
        println!("| {row} | {:.2} | {ratio:.2} | {:.0} |", ns / 1_000.0, 1e9 / ns);
    }
    println!("\nWith leases a core makes {:.1} times as many charges.", median(&|round| round[1] / round[2]));
}

fn limits(url: &str, prefix: &str, leases: Option<Leases>) -> RedisLimits {
    let server = RedisServer::single(url).expect("a URL");
    let limits = RedisLimits::new(RateLimits::new(QUOTA), server, [7; 32], NonZeroU32::MIN).expect("a secret");
    let limits = limits.with_prefix(prefix).expect("a prefix").with_timeout(Duration::from_secs(10));
    match leases {
        None => limits,
        Some(leases) => limits.with_leases(leases).expect("no refunds"),
    }
}

/// Returns the nanoseconds for one charge, with a fixed number of charges in flight.
async fn in_flight<F: Future<Output = ()>>(count: u64, charge: impl Fn(usize) -> F) -> f64 {
    let left = Cell::new(count);
    let begin = Instant::now();
    let one_by_one = async || {
        while let Some(rest) = left.get().checked_sub(1) {
            left.set(rest);
            charge(rest as usize).await;
        }
    };
    join_all((0..IN_FLIGHT).map(|_| one_by_one())).await;
    begin.elapsed().as_nanos() as f64 / count as f64
}

async fn connect(url: &str) -> Option<MultiplexedConnection> {
    // The limiter's own settings: a shorter queue would delay the measured calls.
    let config = redis::AsyncConnectionConfig::new()
        .set_response_timeout(Some(Duration::from_secs(10)))
        .set_pipeline_buffer_size(1_024);
    redis::Client::open(url).ok()?.get_multiplexed_async_connection_with_config(&config).await.ok()
}

/// A hand-written client for the same script.
struct Script {
    hash: String,
    connection: MultiplexedConnection,
    keys: Vec<String>,
}

impl Script {
    fn load(runtime: &tokio::runtime::Runtime, mut connection: MultiplexedConnection, prefix: &str) -> Self {
        let clock = "local t = redis.call('TIME') local now = t[1] * 1000000 + t[2]";
        let code = format!("{clock}\n{}", include_str!("../src/limit/redis/gcra.lua"));
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(code);
        let hash = runtime.block_on(load.query_async(&mut connection)).expect("a script");
        // Keys as long as those of the limiter.
        let keys = (0..SUBJECTS).map(|i| format!("{prefix}{{only-script-{i:010}}}:default")).collect();
        Self { hash, connection, keys }
    }

    async fn charge(&self, at: usize) {
        let interval_ns = QUOTA.interval().as_nanos() as u64;
        let span_ns = interval_ns * u64::from(QUOTA.burst());
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.hash).arg(1).arg(&self.keys[at % SUBJECTS]);
        let numbers = [1, interval_ns, span_ns / 1_000, span_ns % 1_000, interval_ns / 1_000, interval_ns % 1_000, 0];
        for number in numbers {
            call.arg(number);
        }
        let answer: (u64, u64, u64, u64) = call.query_async(&mut self.connection.clone()).await.expect("an answer");
        assert_eq!(answer.0, 1, "Redis has to admit the measured charges");
    }
}
