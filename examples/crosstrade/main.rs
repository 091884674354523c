//! The reference service: a paper-trading broker after CrossTrade's API, with REST, webhooks, a WebSocket and one rate limit.
//!
//! `cargo run --example crosstrade --all-features` serves on 127.0.0.1:8080 and prints curl lines to try.
//!
//! | file | content |
//! |---|---|
//! | `app.rs` | the routes and their gates: token locations, and which requests are charged |
//! | `webhook.rs`, `alert.rs`, `fields.rs` | alerts with the token in the body, charged by the handler |
//! | `self_limit.rs` | the limit that an alert sets itself: exact, without I/O |
//! | `stream.rs`, `rpc.rs` | a WebSocket: one charge per message; closed when the token ends or the client is gone |
//! | `socket.rs` | the frames of a WebSocket, and how the connection ends |
//! | `live.rs` | the grants of open sockets, looked up after a change |
//! | `sockets.rs` | the maximum number of sockets of a user |
//! | `errors.rs`, `problem.rs` | a custom responder, and the service's own errors |
//! | `peers.rs` | the limit of failed authentications for each peer |
//! | `server.rs`, `connections.rs` | the listeners, with limits on connections, per peer and in total; graceful shutdown |
//! | `protocol.rs`, `streams.rs` | one connection: TLS, HTTP/1 and HTTP/2, with a time limit for each step |
//! | `tls.rs`, `plaintext.rs` | the certificate, reloaded without a restart; redirects from plaintext to HTTPS |
//! | `access.rs`, `proxies.rs` | which requests came over HTTPS; the addresses of clients behind proxies |
//! | `body.rs`, `io.rs` | timeouts for request bodies, and for clients that do not read |
//! | `log.rs`, `excerpt.rs` | a log that no client can fill, and that never blocks a request |
//! | `metrics.rs` | metrics for Prometheus, on a separate listener |
//! | `ledger.rs`, `replicas.rs` | rate limits in memory, or in Redis for several replicas |
//! | `tokens.rs`, `database.rs` | tokens in SQLite or PostgreSQL, behind a cache with immediate invalidation |
//! | `rest.rs`, `order.rs`, `broker.rs` | the protected service |
//! | `website/` | sign-in, the account page with the Reveal button, and the page for support |
//! | `sealing.rs`, `demo.rs` | the key of the tokens that can be revealed; the users that are printed at the start |
//!
//! # Limits
//!
//! | what | limit | beyond it |
//! |---|---|---|
//! | open connections | three quarters of the open files that the process may have (`ulimit -n`) | 503, `Connection: close` |
//! | open connections of one IPv4 address or IPv6 /64 network | a quarter of that; no limit for TradingView | 503, `Connection: close` |
//! | a TLS handshake | 5 s; it counts as an open connection | closed |
//! | an HTTP/2 connection | 32 open streams; 10 s without a stream; GOAWAY 2 s before the end | `REFUSED_STREAM`; closed |
//! | a request's head | 16 KiB, 64 fields, 10 s; idle connections too | 431; closed after the time |
//! | a request's body | 64 KiB, 5 s; 2 s for alerts | 413; 408 |
//! | the client's reading of a response | 10 s after the kernel's buffer is full; for HTTP/2 after each part | closed |
//! | shutdown, after SIGTERM or ctrl-c | 10 s; 2 s for idle connections; `Connection: close` on all responses | closed |
//! | failed sign-ins and tokens of an address | one in 2 s, with a burst of 60 | 429 |
//! | reveals of a user, and passwords for them, in this process | one in 10 s, with a burst of 30 | 429 |
//! | passwords that are hashed at the same time | 2; 19 MiB each | others wait |
//! | a session | 30 minutes without a page, 12 hours | sign in again |
//! | open meters of a user, in this process | 16 | 429 |
//! | a page | 50 users, 50 sessions, 20 entries of the audit trail | older entries by a link; a search finds other users |
//! | the website's database | 4 connections; 2 s for a connection, 2 s for a statement | 503 |
//! | counts of rejections that wait for the database | 10,000 | not counted |
//! | the log | 64 lines of each token and kind in 10 s; 512 bytes of an alert | summaries |
//!
//! # HTTPS
//!
//! | options | what clients reach | requests in plaintext |
//! |---|---|---|
//! | none | plaintext on a loopback address | admitted: they do not leave the machine |
//! | `--tls-cert`, `--tls-key` | HTTPS, with `Strict-Transport-Security` except for `localhost` | `--http`: 403 for the API, 308 for pages |
//! | `--behind-proxy` | a proxy, which terminates TLS | 403 if the proxy does not send `X-Forwarded-Proto: https` |
//!
//! Behind a proxy all connections come from a few addresses. These are limited in total only. The limits per address hold for
//! the client's address, which the proxy appends to `X-Forwarded-For`: failed authentications, and the number of requests
//! and WebSockets that are open at the same time. The proxy must limit slow clients, pass on `Host`, from which the pages make
//! addresses to copy, and set `Strict-Transport-Security`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tollgate::RateLimits;

use access::Access;
use app::{Clocks, QUOTA, Settings, app};
use args::{Command, Options, SECRET, USAGE};
use demo::Demo;
use ledger::{Ledger, Memory};
use proxies::Proxies;
use replicas::{Replicas, Shared};
use server::{Limits, Listener};
use tls::Tls;
use website::Website;

mod access;
mod alert;
mod app;
mod args;
mod body;
mod broker;
mod connections;
mod database;
mod demo;
mod errors;
mod excerpt;
mod fields;
mod instructions;
mod io;
mod ledger;
mod live;
mod log;
mod metrics;
mod order;
mod peers;
mod plaintext;
mod problem;
mod protocol;
mod proxies;
mod replicas;
mod rest;
mod rpc;
mod sealing;
mod self_limit;
mod server;
mod socket;
mod sockets;
mod stream;
mod streams;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;
mod webhook;
mod website;

/// The maximum number of connections of scrapers. They are counted separately from those of clients.
const SCRAPERS: usize = 8;

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    ExitCode::from(run(&args).await)
}

/// Runs the program until it is asked to stop. Returns its exit code.
async fn run(args: &[String]) -> u8 {
    let _guard = log::start();
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

async fn serve(options: Options) -> Result<(), Box<dyn Error>> {
    let Options { listen, database, replicas, metrics, errors, self_service, tls: tls_options, proxies } = options;
    let tls = match &tls_options {
        None => None,
        Some(options) => Some(Arc::new(Tls::open(options.files.clone()).await?)),
    };
    let proxies = if proxies.is_empty() { None } else { Some(Proxies::new(&proxies)?) };
    let listener = bind(listen, "--listen").await?;
    let scraped = match metrics {
        None => None,
        Some(addr) => Some((bind(addr, "--metrics").await?, metrics::install()?)),
    };
    let plaintext = match tls_options.as_ref().and_then(|options| options.http) {
        None => None,
        Some(addr) => Some(bind(addr, "--http").await?),
    };
    let url = database.unwrap_or_else(database::default_url);
    let database = database::open(&url).await?;
    let (clocks, limits) = (Clocks::system(), Limits { proxies: proxies.clone(), ..Limits::for_this_process() });
    let website = Website::open(&url, database.clone(), Arc::clone(&clocks.wall), self_service).await?;
    let demo = Demo::set_up(&database, &website.users).await?;
    let tokens = database::tokens(&database)?;
    let (close, closing) = watch::channel(false);
    let ledger = ledger(replicas, &clocks)?;
    let is_proxied = proxies.is_some();
    let access = match (&tls, proxies) {
        (_, Some(proxies)) => Access::behind(proxies),
        (Some(_), None) => Access::tls(),
        (None, None) => Access::plaintext(),
    };
    let app = app(Settings { tokens, ledger, errors, clocks, access, closing, website: Some(website.into_routes()) })?;
    if let Some((listener, handle)) = scraped {
        println!("metrics on http://{}/metrics", listener.local_addr()?);
        let mut closing = close.subscribe();
        let stop = async move { _ = closing.wait_for(|closing| *closing).await };
        let limits = Limits { connections: SCRAPERS, connections_per_peer: SCRAPERS, rejections: 0, ..limits.clone() };
        let listener = Listener::plaintext(listener, metrics::app(handle));
        tokio::spawn(server::serve(vec![listener], limits, stop));
    }
    let signal = stop_signal()?;
    let addr = listener.local_addr()?;
    let mut listeners = Vec::new();
    if let Some(tls) = &tls {
        reload_on_change(Arc::clone(tls))?;
        if let Some(tcp) = plaintext {
            println!("redirecting http://{}/ to HTTPS", tcp.local_addr()?);
            listeners.push(Listener::plaintext(tcp, plaintext::app(app.clone(), Arc::clone(tls), addr.port())));
        }
    }
    let authority = instructions::authority(addr, tls.as_deref());
    let cert = tls_options.as_ref().map(|options| &*options.files.cert);
    if is_proxied {
        println!(
            "behind a proxy: API requests that do not come through it by HTTPS get 403, such as those of the lines below"
        );
    }
    let Demo { trader, reader, password } = demo;
    println!("{}", instructions::text(&authority, cert, trader.expose(), reader.expose(), &password));
    listeners.push(Listener { tcp: listener, app, tls });

    let stop = async {
        signal.await;
        _ = close.send(true);
    };
    server::serve(listeners, limits, stop).await;
    Ok(())
}

/// Reloads the certificate when its files change, and after SIGHUP. The handler is installed by the call.
fn reload_on_change(tls: Arc<Tls>) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};

        let mut hangup = signal(SignalKind::hangup())?;
        let tls = Arc::clone(&tls);
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                tls.reload().await;
            }
        });
    }
    tokio::spawn(async move { tls.watch().await });
    Ok(())
}

/// Creates the limits: in memory, or in Redis for all replicas.
fn ledger(replicas: Option<Replicas>, clocks: &Clocks) -> Result<Arc<dyn Ledger>, Box<dyn Error>> {
    let limits = RateLimits::new(QUOTA);
    let Some(replicas) = replicas else { return Ok(Arc::new(Memory::new(limits, Arc::clone(&clocks.steady)))) };
    let secret = std::env::var(SECRET).map_err(|_| {
        format!("`--redis` needs {SECRET}, the same for all replicas: 32 random characters or more\n`openssl rand -hex 32` makes one")
    })?;
    Ok(Arc::new(Shared::new(&replicas, secret.as_bytes(), limits)?))
}

/// Waits for ctrl-c or SIGTERM. The handlers are installed by the call, before the first poll.
#[cfg(unix)]
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Waits for ctrl-c.
#[cfg(not(unix))]
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
