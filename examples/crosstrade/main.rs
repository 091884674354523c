//! A paper-trading broker with three doors and one budget, after CrossTrade's API: REST, webhooks, a WebSocket.
//!
//! `cargo run --example crosstrade --all-features` serves on 127.0.0.1:8080 and prints curl lines to try.
//!
//! | to read | for |
//! |---|---|
//! | `app.rs` | the gates: which door takes which credential, and what draws on the budget |
//! | `webhook.rs`, `alert.rs`, `fields.rs` | alerts whose token is in the body, charged by the handler |
//! | `self_limit.rs` | the limit that an alert sets itself: exact, and all of it without I/O |
//! | `stream.rs`, `rpc.rs` | a WebSocket: a charge a message, and the end of it when the token ends |
//! | `errors.rs`, `problem.rs` | a responder of one's own, and the service's own errors |
//! | `peers.rs` | who may fail how often to say who he is |
//! | `server.rs` | bounds on what a stranger may send: the size of a head, and its time |
//! | `tokens.rs`, `database.rs` | tokens in SQLite or PostgreSQL, behind a cache that is told of every change |
//! | `rest.rs`, `order.rs`, `broker.rs` | something to protect |
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that talks to the terminal it runs in")]

use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tollgate::RateLimits;

use app::{Clocks, QUOTA, Settings, app};
use args::{Command, Options, USAGE};
use server::GRACE;

mod alert;
mod app;
mod args;
mod broker;
mod database;
mod errors;
mod fields;
mod instructions;
mod order;
mod peers;
mod problem;
mod rest;
mod rpc;
mod self_limit;
mod server;
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
    let options = match args::parse(&args) {
        Ok(Command::Serve(options)) => options,
        Ok(Command::Help) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match serve(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = error.source();
            while let Some(error) = source {
                eprintln!("  because: {error}");
                source = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn serve(Options { listen, database, errors }: Options) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| format!("cannot listen on {listen}: {error}\nchoose another address by --listen"))?;
    let url = database.unwrap_or_else(database::default_url);
    let database = database::open(&url).await?;
    // Two tokens of one user: they share the budget, because they share the subject.
    let (trader, reader) = database::demo_tokens(&database).await?;
    let tokens = database::tokens(&database)?;
    let (close, closing) = watch::channel(false);
    let limits = RateLimits::new(QUOTA);
    let (clocks, log) = (Clocks::system(), Arc::new(|line: &dyn Display| eprintln!("{line}")));
    let app = app(Settings { tokens, limits, errors, clocks, log, closing })?;
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
