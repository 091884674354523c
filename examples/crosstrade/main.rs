//! A paper-trading broker with three doors and one budget, after CrossTrade's API: REST, webhooks, a WebSocket.
//!
//! `cargo run --example crosstrade --all-features` serves on 127.0.0.1:8080 and prints curl lines to try.
//!
//! | to read | for |
//! |---|---|
//! | `app.rs` | the gates: which door takes which credential, and what draws on the budget |
//! | `webhook.rs`, `alert.rs`, `fields.rs` | alerts whose token is in the body, charged by the handler |
//! | `self_limit.rs` | the limit that an alert sets itself: exact, and all of it without I/O |
//! | `stream.rs`, `rpc.rs` | a WebSocket: a charge a message, and the end of it when the token ends, or nobody is there |
//! | `sockets.rs` | how many of them a user may have |
//! | `errors.rs`, `problem.rs` | a responder of one's own, and the service's own errors |
//! | `peers.rs` | who may fail how often to say who he is |
//! | `server.rs` | bounds on what a stranger may send: the size of a head, and its time |
//! | `metrics.rs` | what is counted, for Prometheus, on a listener of its own |
//! | `ledger.rs`, `replicas.rs` | budgets in memory, or in Redis for several replicas |
//! | `tokens.rs`, `database.rs` | tokens in SQLite or PostgreSQL, behind a cache that is told of every change |
//! | `rest.rs`, `order.rs`, `broker.rs` | something to protect |
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that talks to the terminal it runs in")]

use std::error::Error;
use std::fmt::Display;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tollgate::RateLimits;

use app::{Clocks, QUOTA, Settings, app};
use args::{Command, Options, SECRET, USAGE};
use ledger::{Ledger, Memory};
use replicas::{Replicas, Shared};
use server::GRACE;

mod alert;
mod app;
mod args;
mod broker;
mod database;
mod errors;
mod fields;
mod instructions;
mod ledger;
mod metrics;
mod order;
mod peers;
mod problem;
mod replicas;
mod rest;
mod rpc;
mod self_limit;
mod server;
mod sockets;
mod stream;
#[cfg(test)]
mod tests;
mod tokens;
mod webhook;

/// How long a client may take to send the head of a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    ExitCode::from(run(&args).await)
}

/// Runs the program until it is asked to stop. Returns its exit code.
async fn run(args: &[String]) -> u8 {
    // Why requests are refused, for whoever reads the service's log.
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_max_level(tracing::Level::INFO).init();
    let options = match args::parse(args) {
        Ok(Command::Serve(options)) => options,
        Ok(Command::Help) => {
            println!("{USAGE}");
            return 0;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{USAGE}");
            return 2;
        }
    };
    match serve(options).await {
        Ok(()) => 0,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(error) = source {
                let cause = error.to_string();
                // Some errors contain the text of their source.
                if !text.contains(&cause) {
                    text = text + ": " + &cause;
                }
                source = error.source();
            }
            eprintln!("error: {text}");
            1
        }
    }
}

async fn bind(addr: SocketAddr, arg: &str) -> Result<TcpListener, String> {
    let bound = TcpListener::bind(addr).await;
    bound.map_err(|error| format!("cannot listen on {addr}: {error}\nchoose another address by {arg}"))
}

async fn serve(Options { listen, database, replicas, metrics, errors }: Options) -> Result<(), Box<dyn Error>> {
    let listener = bind(listen, "--listen").await?;
    let scraped = match metrics {
        None => None,
        Some(addr) => Some((bind(addr, "--metrics").await?, metrics::install()?)),
    };
    let url = database.unwrap_or_else(database::default_url);
    let database = database::open(&url).await?;
    // Two tokens of one user: they share the budget, because they share the subject.
    let (trader, reader) = database::demo_tokens(&database).await?;
    let tokens = database::tokens(&database)?;
    let (close, closing) = watch::channel(false);
    let (clocks, log) = (Clocks::system(), Arc::new(|line: &dyn Display| eprintln!("{line}")));
    let ledger = ledger(replicas, &clocks)?;
    let app = app(Settings { tokens, ledger, errors, clocks, log, closing })?;
    if let Some((listener, handle)) = scraped {
        println!("metrics on http://{}/metrics", listener.local_addr()?);
        let mut closing = close.subscribe();
        let stop = async move { _ = closing.wait_for(|closing| *closing).await };
        tokio::spawn(server::serve(listener, metrics::app(handle), HEAD_DEADLINE, stop));
    }
    println!("{}", instructions::text(listener.local_addr()?, trader.expose(), reader.expose()));

    let stop = async {
        asked_to_stop().await;
        _ = close.send(true);
    };
    server::serve(listener, app, HEAD_DEADLINE, stop).await;
    // Sockets are no longer the server's: they are gone when nobody looks at `closing` any more.
    _ = tokio::time::timeout(GRACE, close.closed()).await;
    Ok(())
}

/// Counts in memory, or in Redis with all other replicas.
fn ledger(replicas: Option<Replicas>, clocks: &Clocks) -> Result<Arc<dyn Ledger>, Box<dyn Error>> {
    let limits = RateLimits::new(QUOTA);
    let Some(replicas) = replicas else { return Ok(Arc::new(Memory::new(limits, Arc::clone(&clocks.steady)))) };
    let secret = std::env::var(SECRET).map_err(|_| {
        format!("`--redis` needs {SECRET}, the same for all replicas: 32 random characters or more\n`openssl rand -hex 32` makes one")
    })?;
    Ok(Arc::new(Shared::new(&replicas, secret.as_bytes(), limits)?))
}

/// Waits for ctrl-c or a polite kill; for ever where nobody can listen for them.
async fn asked_to_stop() {
    let ctrl_c = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => _ = signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = ctrl_c => {}
        () = terminate => {}
    }
}
