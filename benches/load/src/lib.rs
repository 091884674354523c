//! Load test: `wrk` drives the reference service and a baseline with the same routes and handlers but without a gate,
//! over loopback. Prints the server's processor time for each kind of request, and checks the number of requests that a
//! rate limit admits. A second baseline run shows the measurement noise.
//!
//! Needs Linux, for `/proc`, and `wrk` on the path.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

// The unchanged reference service. Its paths start at the crate root, so its modules are declared here.
#[path = "../../../examples/crosstrade/access.rs"]
#[allow(dead_code, reason = "there is no TLS and no proxy here")]
mod access;
#[path = "../../../examples/crosstrade/alert.rs"]
mod alert;
#[path = "../../../examples/crosstrade/app.rs"]
#[allow(dead_code, reason = "there is no website here")]
mod app;
#[path = "../../../examples/crosstrade/body.rs"]
mod body;
#[path = "../../../examples/crosstrade/broker.rs"]
mod broker;
#[path = "../../../examples/crosstrade/connections.rs"]
mod connections;
#[path = "../../../examples/crosstrade/errors.rs"]
mod errors;
#[path = "../../../examples/crosstrade/excerpt.rs"]
mod excerpt;
#[path = "../../../examples/crosstrade/fields.rs"]
mod fields;
#[path = "../../../examples/crosstrade/io.rs"]
mod io;
#[path = "../../../examples/crosstrade/ledger.rs"]
#[allow(dead_code, reason = "there is no website here")]
mod ledger;
#[path = "../../../examples/crosstrade/live.rs"]
#[allow(dead_code, reason = "no database reports changes here")]
mod live;
#[path = "../../../examples/crosstrade/order.rs"]
mod order;
#[path = "../../../examples/crosstrade/peers.rs"]
mod peers;
#[path = "../../../examples/crosstrade/plaintext.rs"]
#[allow(dead_code, reason = "there is no TLS and no proxy here")]
mod plaintext;
#[path = "../../../examples/crosstrade/problem.rs"]
mod problem;
#[path = "../../../examples/crosstrade/protocol.rs"]
#[allow(dead_code, reason = "there is no TLS and no proxy here")]
mod protocol;
#[path = "../../../examples/crosstrade/proxies.rs"]
#[allow(dead_code, reason = "there is no TLS and no proxy here")]
mod proxies;
#[path = "../../../examples/crosstrade/rest.rs"]
mod rest;
#[path = "../../../examples/crosstrade/rpc.rs"]
mod rpc;
#[path = "../../../examples/crosstrade/self_limit.rs"]
mod self_limit;
#[path = "../../../examples/crosstrade/server.rs"]
mod server;
#[path = "../../../examples/crosstrade/socket.rs"]
mod socket;
#[path = "../../../examples/crosstrade/sockets.rs"]
mod sockets;
#[path = "../../../examples/crosstrade/stream.rs"]
mod stream;
#[path = "../../../examples/crosstrade/streams.rs"]
#[allow(dead_code, reason = "there is no TLS and no proxy here")]
mod streams;
#[path = "../../../examples/crosstrade/tls.rs"]
#[allow(dead_code, reason = "there is no TLS and no proxy here")]
mod tls;
#[path = "../../../examples/crosstrade/tokens.rs"]
mod tokens;
#[path = "../../../examples/crosstrade/webhook.rs"]
mod webhook;

mod baseline;
mod drive;

use baseline::Variant;
use drive::{Kind, Server};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// The time of one measurement of one kind of request. Rounds alternate between the servers, so that other load affects
/// all of them. The median of the ratios is printed.
const ROUND: Duration = Duration::from_secs(1);
const ROUNDS: usize = 15;
/// The duration of the rate-limit measurement.
const LIMIT_RUN: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => run(),
        ["serve", variant] => Variant::named(variant).and_then(baseline::serve),
        _ => Err("usage: tollgate-load".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (first, second, gated) =
        (Server::start(Variant::Baseline)?, Server::start(Variant::Baseline)?, Server::start(Variant::Gated)?);
    // Each row with the row that it is compared with.
    let rows = [
        ("bearer, baseline", &first, Kind::Bearer, 0),
        ("bearer, second baseline run (measurement noise)", &second, Kind::Bearer, 0),
        ("bearer", &gated, Kind::Bearer, 0),
        ("webhook, baseline", &first, Kind::Webhook, 3),
        ("webhook", &gated, Kind::Webhook, 3),
        ("flood of unknown tokens", &gated, Kind::Unknown, 0),
        ("flood of unknown tokens, relative to valid requests", &gated, Kind::Unknown, 2),
    ];
    for (_, server, kind, _) in &rows {
        // Warm up.
        server.drive(*kind, ROUND)?;
    }
    let mut costs = rows.map(|_| Vec::with_capacity(ROUNDS));
    for round in 0..ROUNDS {
        // Alternate the direction, so that no row always follows the same one.
        let order: Vec<usize> =
            if round % 2 == 0 { (0..rows.len()).collect() } else { (0..rows.len()).rev().collect() };
        for at in order {
            let (_, server, kind, _) = rows[at];
            costs[at].push(server.drive(kind, ROUND)?.cpu_per_request());
        }
    }
    println!("| requests | processor time of the server | relative to the compared row | range over all rounds |");
    println!("|---|---:|---:|---|");
    for ((name, _, _, base), ours) in rows.iter().zip(&costs) {
        let ratios = sorted(ours.iter().zip(&costs[*base]).map(|(ours, base)| ours / base));
        let (micros, range) = (median(&sorted(ours.iter().copied())) * 1e6, (ratios[0], ratios[ROUNDS - 1]));
        println!("| {name} | {micros:.2} µs | {:.3} | {:.3} to {:.3} |", median(&ratios), range.0, range.1);
    }
    drop((first, second, gated));
    rate_limit()
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// Checks how many requests of one user the quota of the reference service admits in a period.
fn rate_limit() -> Result<()> {
    let quota = app::QUOTA;
    let server = Server::start(Variant::Limited)?;
    let sent = server.drive(Kind::Bearer, LIMIT_RUN)?;
    let admitted = sent.requests - sent.rejected;
    // The bound from the burst and the time between the first and the last request. `wrk` reports the time of all
    // requests, so this is an upper bound. The last unit may be refilled at the very end, so one less is correct too.
    let most = u64::from(quota.burst()) + sent.time.div_duration_f64(quota.interval()) as u64;
    let seconds = sent.time.as_secs_f64();
    println!(
        "{admitted} of {} requests in {seconds:.2} s were admitted; 180 per minute with burst 20 allow {most}.",
        sent.requests
    );
    match admitted == most || admitted + 1 == most {
        true => Ok(()),
        false => Err(format!("{admitted} requests were admitted, but the quota allows {most}").into()),
    }
}
