//! Compares rate limits in Redis with a plain call of the same script, and with the layer of another crate, with several numbers
//! of charges in flight. `just redis-bench` prints the tables. Without Redis the benchmark is skipped.
//!
//! All sides run on one thread of one process and alternate in rounds. They are compared within each round, so that other
//! load affects all of them. The time of a charge includes the wait for Redis. The CPU time is that of this process alone.
//!
//! `just redis-bench SIDE CHARGES IN_FLIGHT` makes charges of one side only, for a profiler.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that panics and prints")]

mod sides;

use std::cell::Cell;
use std::env;
use std::error::Error;
use std::fs;
use std::time::Instant;

use futures_util::future::join_all;
use sides::{Side, Sides};
use tokio::runtime::{Builder, Runtime};

const IN_FLIGHT: [usize; 3] = [1, 64, 1_000];
const ROUNDS: usize = 25;
/// The first rounds connect and fill caches.
const WARM_UP: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("TOLLGATE_TEST_REDIS").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let Some(sides) = runtime.block_on(Sides::new(&url)) else {
        println!("skipped: no Redis");
        return Ok(());
    };
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => IN_FLIGHT.into_iter().for_each(|in_flight| compare(&runtime, &sides, in_flight)),
        [side, charges, in_flight] => {
            let side = Side::ALL.into_iter().find(|of| of.name() == side).ok_or("no such side")?;
            _ = measure(&runtime, &sides, side, charges.parse()?, in_flight.parse()?);
        }
        _ => return Err("the options are: SIDE CHARGES IN_FLIGHT".into()),
    }
    Ok(())
}

/// The nanoseconds of one charge.
#[derive(Clone, Copy, Default)]
struct Cost {
    elapsed: f64,
    cpu: f64,
}

fn compare(runtime: &Runtime, sides: &Sides, in_flight: usize) {
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let mut costs = [Cost::default(); Side::ALL.len()];
        // Each round begins with another side.
        for at in 0..costs.len() {
            let at = (at + round) % costs.len();
            let side = Side::ALL[at];
            let charges = if in_flight == 1 { side.charges() / 40 } else { side.charges() };
            costs[at] = measure(runtime, sides, side, charges, in_flight);
        }
        if round >= WARM_UP {
            rounds.push(costs);
        }
    }
    let median = |of: &dyn Fn(&[Cost; Side::ALL.len()]) -> f64| {
        let mut all: Vec<_> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    println!("\n{in_flight} in flight (medians of {} rounds):\n", rounds.len());
    println!("| | us | relative to the script only | CPU time relative to the script only |\n|---|---:|---:|---:|");
    for (at, side) in Side::ALL.into_iter().enumerate() {
        let us = median(&|round| round[at].elapsed) / 1_000.0;
        let ratio = median(&|round| round[at].elapsed / round[0].elapsed);
        let cpu = median(&|round| round[at].cpu / round[0].cpu);
        println!("| {} | {us:.2} | {ratio:.2} | {cpu:.2} |", side.name());
    }
}

/// Makes charges of one side, with a fixed number of them in flight.
fn measure(runtime: &Runtime, sides: &Sides, side: Side, charges: u64, in_flight: usize) -> Cost {
    let left = Cell::new(charges);
    let one_by_one = async || {
        while let Some(rest) = left.get().checked_sub(1) {
            left.set(rest);
            sides.charge(side, rest as usize).await;
        }
    };
    let (begin, cpu) = (Instant::now(), cpu_ns());
    runtime.block_on(join_all((0..in_flight).map(|_| one_by_one())));
    let each = |ns: f64| ns / charges as f64;
    Cost { elapsed: each(begin.elapsed().as_nanos() as f64), cpu: each((cpu_ns() - cpu) as f64) }
}

/// Returns the CPU time of this thread on Linux, and 0 elsewhere.
fn cpu_ns() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or_default()
}
