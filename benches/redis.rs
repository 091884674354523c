//! What budgets in Redis cost beside a bare call of the same script, with 64 requests on their way, and what leases save.
//! `just redis-bench` ends with a table of ratios from the same run. Where no Redis answers it says so.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that panics and prints")]

#[allow(dead_code, reason = "the road uses the rest")]
mod floor;
#[allow(dead_code, reason = "the road uses the rest")]
mod measured;

use std::cell::Cell;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode};
use futures_util::future::join_all;
use measured::Measured;
use redis::aio::MultiplexedConnection;
use tollgate::limit::redis::{Leases, RedisLimits, RedisServer};
use tollgate::limit::{Charge, Limiter as _, RateLimits};
use tollgate::{CurrentGrant, Grant, Quota};

/// Never exhausted here: no core makes so many charges of one of the subjects.
const QUOTA: Quota = Quota::per_second(100_000);
const SUBJECTS: usize = 1_000;
const IN_FLIGHT: usize = 64;
const ROWS: [&str; 3] = ["bare script", "exact", "leased"];

fn main() {
    let url = std::env::var("TOLLGATE_TEST_REDIS").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let Some(connection) = runtime.block_on(connect(&url)) else { return println!("skipped: no Redis") };
    let measured = Measured::since_now();
    let mut criterion = Criterion::default().configure_from_args().sample_size(40);
    let mut group = criterion.benchmark_group("redis");
    group.warm_up_time(Duration::from_secs(2)).measurement_time(Duration::from_secs(6));
    group.sampling_mode(SamplingMode::Flat);

    let prefix = format!("tollgate-bench-{}:", std::process::id());
    let script = Script::load(&runtime, connection, &prefix);
    group.bench_function(ROWS[0], |bencher| {
        bencher.iter_custom(|count| runtime.block_on(in_flight(count, |at| script.charge(at))));
    });
    for (row, leases) in [(ROWS[1], None), (ROWS[2], Some(Leases::default()))] {
        let subjects: Vec<_> = (0..SUBJECTS).map(|i| CurrentGrant::new(Grant::new(format!("user-{i}"), ()))).collect();
        let limits = limits(&url, &prefix, leases);
        let charge = async |at: usize| {
            let decision = limits.check(&subjects[at % SUBJECTS], Charge::Units(1)).wait().await;
            assert!(decision.is_admitted() && !decision.is_local(), "Redis has to admit what is measured");
        };
        group.bench_function(row, |bencher| {
            bencher.iter_custom(|count| runtime.block_on(in_flight(count, charge)));
        });
    }
    group.finish();
    criterion.final_summary();
    print_ratios(&measured);
}

fn limits(url: &str, prefix: &str, leases: Option<Leases>) -> RedisLimits {
    let server = RedisServer::single(url).expect("a URL");
    let limits = RedisLimits::new(RateLimits::new(QUOTA), server, [7; 32]).expect("a secret");
    let limits = limits.with_prefix(prefix).expect("a prefix").with_deadline(Duration::from_secs(10));
    match leases {
        None => limits,
        Some(leases) => limits.with_leases(leases),
    }
}

/// The time of so many charges, of which so many are on their way at once.
async fn in_flight<F: Future<Output = ()>>(count: u64, charge: impl Fn(usize) -> F) -> Duration {
    let left = Cell::new(count);
    let begin = Instant::now();
    let one_by_one = async || {
        while let Some(rest) = left.get().checked_sub(1) {
            left.set(rest);
            charge(rest as usize).await;
        }
    };
    join_all((0..IN_FLIGHT).map(|_| one_by_one())).await;
    begin.elapsed()
}

async fn connect(url: &str) -> Option<MultiplexedConnection> {
    // As the limiter has it: a shorter queue would make those wait that are measured.
    let config = redis::AsyncConnectionConfig::new()
        .set_response_timeout(Some(Duration::from_secs(10)))
        .set_pipeline_buffer_size(1_024);
    redis::Client::open(url).ok()?.get_multiplexed_async_connection_with_config(&config).await.ok()
}

/// What a service would write by hand that has this script.
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
        // As long as those of the limiter.
        let keys = (0..SUBJECTS).map(|i| format!("{prefix}{{bare-script-{i:010}}}:default")).collect();
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
        assert_eq!(answer.0, 1, "Redis has to admit what is measured");
    }
}

fn print_ratios(measured: &Measured) {
    let [bare, exact, leased] = ROWS.map(|row| measured.median_ns(&format!("redis/{row}")));
    let (Some(bare), Some(exact), Some(leased)) = (bare, exact, leased) else { return };
    println!("\nA charge, with {IN_FLIGHT} on their way (medians):\n");
    println!("| | us | beside the bare script | a second and core |\n|---|---:|---:|---:|");
    for (row, ns) in ROWS.into_iter().zip([bare, exact, leased]) {
        println!("| {row} | {:.2} | {:.2} | {:.0} |", ns / 1_000.0, ns / bare, 1e9 / ns);
    }
    println!("\nLeases answer {:.1} times as many as Redis does.", exact / leased);
}
