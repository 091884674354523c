//! `just load`: the reference service, and a twin with the same routes and handlers and no gate, are driven by `wrk` over
//! loopback. Tells what processor time of the server each kind of request takes, and how many requests a budget admits.
//! A second twin without gates is measured as well: how far it is from the first is what chance does.
//!
//! Needs Linux, for `/proc`, and `wrk` on the path.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

// The reference service, as it is. Its names are rooted in the crate, and so they stand here.
#[path = "../../../examples/crosstrade/alert.rs"]
mod alert;
#[path = "../../../examples/crosstrade/app.rs"]
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
mod ledger;
#[path = "../../../examples/crosstrade/live.rs"]
#[allow(dead_code, reason = "no database reports changes here")]
mod live;
#[path = "../../../examples/crosstrade/order.rs"]
mod order;
#[path = "../../../examples/crosstrade/peers.rs"]
mod peers;
#[path = "../../../examples/crosstrade/problem.rs"]
mod problem;
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
#[path = "../../../examples/crosstrade/tokens.rs"]
mod tokens;
#[path = "../../../examples/crosstrade/webhook.rs"]
mod webhook;

mod drive;
mod twins;

use drive::{Kind, Server};
use twins::Twin;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// One measurement of one kind of request. Rounds alternate between the twins, so that a busy machine disturbs both; of
/// their ratios the median counts.
const ROUND: Duration = Duration::from_secs(1);
const ROUNDS: usize = 15;
/// How long a budget is spent.
const SPENT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => run(),
        ["serve", twin] => Twin::named(twin).and_then(twins::serve),
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
    let (bare, other, gated) = (Server::start(Twin::Bare)?, Server::start(Twin::Bare)?, Server::start(Twin::Gated)?);
    // Each with the row that it is compared with.
    let rows = [
        ("bearer, bare twin", &bare, Kind::Bearer, 0),
        ("bearer, another bare twin: what the measurement is worth", &other, Kind::Bearer, 0),
        ("bearer", &gated, Kind::Bearer, 0),
        ("webhook, bare twin", &bare, Kind::Webhook, 3),
        ("webhook", &gated, Kind::Webhook, 3),
        ("flood of unknown tokens", &gated, Kind::Unknown, 0),
        ("flood, compared with good requests", &gated, Kind::Unknown, 2),
    ];
    for (_, server, kind, _) in &rows {
        // Warm.
        server.drive(*kind, ROUND)?;
    }
    let mut costs = rows.map(|_| Vec::with_capacity(ROUNDS));
    for round in 0..ROUNDS {
        // Forwards and backwards, so that no row always comes after the same one.
        let order: Vec<usize> =
            if round % 2 == 0 { (0..rows.len()).collect() } else { (0..rows.len()).rev().collect() };
        for at in order {
            let (_, server, kind, _) = rows[at];
            costs[at].push(server.drive(kind, ROUND)?.cpu_per_request());
        }
    }
    println!("| requests | processor time of the server | of that it is compared with | in each round |");
    println!("|---|---:|---:|---|");
    for ((name, _, _, twin), ours) in rows.iter().zip(&costs) {
        let ratios = sorted(ours.iter().zip(&costs[*twin]).map(|(ours, twin)| ours / twin));
        let (micros, range) = (median(&sorted(ours.iter().copied())) * 1e6, (ratios[0], ratios[ROUNDS - 1]));
        println!("| {name} | {micros:.2} µs | {:.3} | {:.3} to {:.3} |", median(&ratios), range.0, range.1);
    }
    drop((bare, other, gated));
    budget()
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// How many requests of one user are admitted in a time, by the quota of the reference service.
fn budget() -> Result<()> {
    let quota = app::QUOTA;
    let server = Server::start(Twin::Budget)?;
    let sent = server.drive(Kind::Bearer, SPENT)?;
    let admitted = sent.requests - sent.refused;
    // What the burst and the time between the first and the last request allow. The time is that of `wrk`, which includes
    // all requests, so that this is a bound from above; one below it is the moment in which the last unit comes.
    let most = u64::from(quota.burst()) + sent.time.div_duration_f64(quota.interval()) as u64;
    let seconds = sent.time.as_secs_f64();
    println!(
        "{admitted} of {} requests in {seconds:.2} s were admitted; 180 a minute, burst 20, allow {most}.",
        sent.requests
    );
    match admitted == most || admitted + 1 == most {
        true => Ok(()),
        false => Err(format!("{admitted} were admitted, and {most} are allowed").into()),
    }
}
