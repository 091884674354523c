//! Load test: `wrk` drives the reference service, and a plain hyper server, over loopback. Each is compared with a baseline
//! that has the same routes and handlers but no gate, and with the same gate that reports metrics to a recorder. The load test
//! prints the server's processor time for each kind of request, and checks the number of requests that a rate limit admits. A
//! second baseline shows the measurement noise.
//!
//! Needs Linux, for `/proc`, and `wrk` on the path.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

use std::error::Error;
use std::process::ExitCode;

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

#[cfg(feature = "metrics")]
#[path = "../../../examples/crosstrade/metrics.rs"]
#[allow(dead_code, reason = "the metrics are not served here")]
mod metrics;

mod compare;
mod drive;
mod kinds;
mod plain;
mod reference;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Runs the load test, or one of its servers. Returns the exit code of the program.
pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare::run(),
        ["serve", variant] => drive::Variant::serve(variant),
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
