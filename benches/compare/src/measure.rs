//! Measures every row once in each round, so that other load affects all rows alike.

use std::sync::Barrier;
use std::thread;

use http::HeaderValue;

use crate::allocations;
use crate::floor::{bearer, shuffled};
use crate::row::Row;
use crate::stacks::{Limit, STACKS, Stack};

/// The figures of one row.
pub struct Figures {
    pub stack: &'static Stack,
    pub tokens: usize,
    pub threads: usize,
    /// Nanoseconds for each request.
    pub ns: f64,
    /// Overhead over the baseline.
    pub overhead_ns: f64,
    /// Half of the interquartile range of the overheads of all rounds.
    pub spread_ns: f64,
    /// Allocations for each request, above the baseline.
    pub allocs: f64,
}

/// Requests of one row in one round are sent in chunks. A chunk is shorter than a scheduler's time slice, so the median
/// chunk was not interrupted.
const CHUNKS: usize = 80;
const CHUNK: usize = 500;
/// Requests before the measurement, so that no row suffers from caches that other rows have filled.
const WARM_UP: usize = 20_000;

/// Measures all rows with this number of tokens, for each number of threads.
pub fn measure(tokens: usize, threads: &[usize], rounds: usize) -> Vec<Figures> {
    let in_order: Vec<HeaderValue> = (0..tokens).map(bearer).collect();
    let headers: Vec<HeaderValue> = shuffled(tokens).map(bearer).collect();
    let rows: Vec<Row> = STACKS.iter().map(|stack| (stack.build)(tokens, Limit::Unlimited)).collect();
    // Every bucket is created in advance, in another order than it is measured in. Otherwise the buckets of some crates
    // would be adjacent in memory.
    for row in &rows {
        row.send(&in_order);
    }
    let allocs: Vec<f64> = rows.iter().map(|row| allocations_a_request(row, &headers)).collect();
    let base = |stack: &Stack| STACKS.iter().position(|other| other.name == stack.base).expect("a row");

    let mut figures = Vec::new();
    for &threads in threads {
        let rounds: Vec<Vec<f64>> =
            (0..rounds).map(|round| rows.iter().map(|row| one(row, &headers, threads, round)).collect()).collect();
        for (at, stack) in STACKS.iter().enumerate() {
            let mut overheads: Vec<f64> = rounds.iter().map(|round| round[at] - round[base(stack)]).collect();
            let mut all: Vec<f64> = rounds.iter().map(|round| round[at]).collect();
            figures.push(Figures {
                stack,
                tokens,
                threads,
                ns: quantile(&mut all, 0.5),
                overhead_ns: quantile(&mut overheads, 0.5),
                spread_ns: (quantile(&mut overheads, 0.75) - quantile(&mut overheads, 0.25)) / 2.0,
                allocs: allocs[at] - allocs[base(stack)],
            });
        }
    }
    figures
}

/// Returns the allocations of one request.
fn allocations_a_request(row: &Row, headers: &[HeaderValue]) -> f64 {
    const COUNTED: usize = 10_000;
    let count = |requests| {
        let before = allocations::count();
        row.send(headers.iter().cycle().take(requests));
        allocations::count() - before
    };
    // The difference excludes allocations that happen once.
    let (few, many) = (count(COUNTED), count(2 * COUNTED));
    (many - few) as f64 / COUNTED as f64
}

/// Returns the nanoseconds for a request while this number of threads sends requests.
fn one(row: &Row, headers: &[HeaderValue], threads: usize, round: usize) -> f64 {
    let barrier = Barrier::new(threads);
    let times = |thread: usize| -> Vec<f64> {
        // If there are enough tokens, none is repeated within a short time. Each thread has its own tokens: otherwise
        // one thread could charge a bucket with an outdated time and be rejected.
        let own: Vec<&HeaderValue> = headers.iter().skip(thread).step_by(threads).collect();
        let begin = round * (WARM_UP + CHUNKS * CHUNK);
        let mut order = own.iter().copied().cycle().skip(begin % own.len());
        row.send(order.by_ref().take(WARM_UP));
        barrier.wait();
        (0..CHUNKS).map(|_| row.send(order.by_ref().take(CHUNK)).as_nanos() as f64 / CHUNK as f64).collect()
    };
    let times = &times;
    let mut times = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || times(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("all requests are admitted")).collect::<Vec<_>>()
    });
    quantile(&mut times, 0.5)
}

fn quantile(values: &mut [f64], at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * at).round() as usize]
}
