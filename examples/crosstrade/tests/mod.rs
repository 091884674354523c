//! Tests of the service with real sockets and clients. The tests set the clocks: nothing refills or expires by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking that it failed")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};
use tollgate::TokenDigest;

use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tollgate::{Grant, MemoryStore, RateLimits};

use crate::access::Access;
use crate::app::{Clocks, QUOTA, Settings, User, app};
use crate::errors::Errors;
use crate::ledger::Memory;
use crate::live::LiveGrants;
use crate::server::{Limits, Listener};
use crate::tokens::Tokens;

mod alert;
#[cfg(unix)]
mod browser;
mod connections;
mod crash;
mod frames;
mod live;
mod log;
mod memory;
mod metrics;
mod outputs;
mod peers;
#[cfg(unix)]
mod process;
mod program;
mod proxies;
mod rate_limits;
mod replicas;
mod rest;
mod revocation;
mod self_limit;
mod server;
mod shutdown;
mod stream;
#[path = "../../../tests/subscribers.rs"]
mod subscribers;
mod tls;
mod webhook;
mod website;

/// A token of `demo` that may trade.
pub(crate) const TRADER: &str = "ct_trader";
/// A token of `demo` that may not trade.
pub(crate) const READER: &str = "ct_reader";

/// A service on a free port, and its clocks.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) tokens: MemoryStore<User>,
    /// Reports changes to open sockets.
    pub(crate) live: LiveGrants,
    /// Seconds, since 1970 by the wall clock and since the start by the steady one.
    pub(crate) seconds: Arc<AtomicU64>,
    pub(crate) close: watch::Sender<bool>,
}

/// Says that a test is skipped, past the capture of the test harness. Fails if the environment variable `required` is set.
pub(crate) fn skip(what: &str, test: &str, required: &str) {
    assert!(std::env::var_os(required).is_none(), "{test}: {what}, and {required} is set");
    _ = writeln!(std::io::stderr(), "skipped: {what}: {test}");
}

/// Returns whether a program is installed, which prints its version with this argument.
pub(crate) fn is_installed(program: &str, version: &str) -> bool {
    let runs = Command::new(program).arg(version).stdin(Stdio::null()).output();
    runs.is_ok_and(|output| output.status.success())
}

/// Short, for tests that wait for it.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_millis(500);

/// Returns limits that tests do not reach, except for the time of heads.
pub(crate) fn limits() -> Limits {
    Limits { head: HEAD_TIMEOUT, ..Limits::for_descriptors(20_000) }
}

/// Serves plaintext.
async fn serve(listener: TcpListener, app: axum::Router, limits: Limits, stop: impl Future<Output = ()>) {
    crate::server::serve(vec![Listener::plaintext(listener, app)], limits, stop).await;
}

/// Returns the tokens of two users.
pub(crate) fn demo_tokens() -> MemoryStore<User> {
    let grant = |id: &str| Grant::new(id, User { name: "demo".to_owned() }).with_subject("demo");
    let other = Grant::new("other", User { name: "other".to_owned() });
    MemoryStore::from_iter([
        (TokenDigest::of(TRADER), grant("demo-1").with_scopes(["trade"]).unwrap()),
        (TokenDigest::of(READER), grant("demo-2")),
        (TokenDigest::of("ct_other"), other.with_scopes(["trade"]).unwrap()),
    ])
}

async fn stop(mut stopped: watch::Receiver<bool>) {
    // A server that is dropped goes on: some tests look at what is left of it.
    if stopped.wait_for(|stopped| *stopped).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Server {
    /// Starts a service whose buckets do not refill, at any clock.
    pub(crate) async fn start() -> Self {
        Self::start_with(Errors::ProblemDetails).await
    }

    pub(crate) async fn start_with(errors: Errors) -> Self {
        let tokens = demo_tokens();
        let server = Self::start_on(tokens.clone().into(), errors).await;
        Self { tokens, ..server }
    }

    /// Starts a service with these tokens.
    pub(crate) async fn start_on(tokens: Tokens, errors: Errors) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start_at(listener, limits(), tokens, errors)
    }

    /// Starts a service with other limits, and tokens in memory.
    pub(crate) async fn start_limited(limits: Limits) -> Self {
        let trader = Grant::new("demo-1", User { name: "demo".to_owned() }).with_scopes(["trade"]).unwrap();
        let tokens = MemoryStore::from_iter([(TokenDigest::of(TRADER), trader)]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start_at(listener, limits, tokens.into(), Errors::ProblemDetails)
    }

    /// Serves on this listener with these limits.
    pub(crate) fn start_at(listener: TcpListener, limits: Limits, tokens: Tokens, errors: Errors) -> Self {
        let addr = listener.local_addr().unwrap();
        let listeners = |app| vec![Listener::plaintext(listener, app)];
        Self::start_on_all(addr, limits, tokens, errors, Access::plaintext(), listeners)
    }

    /// Serves on these listeners, one of which is at `addr`.
    pub(crate) fn start_on_all(
        addr: SocketAddr,
        limits: Limits,
        tokens: Tokens,
        errors: Errors,
        access: Access,
        listeners: impl FnOnce(axum::Router) -> Vec<Listener>,
    ) -> Self {
        let seconds = Arc::new(AtomicU64::new(0));
        let (wall, steady) = (Arc::clone(&seconds), Arc::clone(&seconds));
        let clocks = Clocks {
            wall: Arc::new(move || UNIX_EPOCH + Duration::from_secs(wall.load(Ordering::SeqCst))),
            steady: Arc::new(move || Duration::from_secs(steady.load(Ordering::SeqCst))),
        };
        let quota = RateLimits::new(QUOTA).with_clock(|| Duration::ZERO);
        let ledger = Arc::new(Memory::new(quota, Arc::clone(&clocks.steady)));
        let live = tokens.live().clone();
        let (close, closing) = watch::channel(false);
        let app = app(Settings { tokens, ledger, errors, clocks, access, closing, website: None }).unwrap();
        let (listeners, stopped) = (listeners(app), close.subscribe());
        tokio::spawn(async move { crate::server::serve(listeners, limits, stop(stopped)).await });
        Self { addr, tokens: MemoryStore::new(), live, seconds, close }
    }

    pub(crate) fn set_clocks(&self, seconds: u64) {
        self.seconds.store(seconds, Ordering::SeqCst);
    }

    pub(crate) async fn get(&self, token: &str, path: &str) -> Response<String> {
        let request = Request::get(self.uri(path)).header("authorization", format!("Bearer {token}"));
        send(request.body(String::new()).unwrap()).await
    }

    pub(crate) async fn post(&self, token: &str, path: &str, body: &str) -> Response<String> {
        let request = Request::post(self.uri(path))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json");
        send(request.body(body.to_owned()).unwrap()).await
    }

    /// Sends an alert as TradingView does, with no header but the content type.
    pub(crate) async fn alert(&self, content_type: &str, body: &str) -> Response<String> {
        let request = Request::post(self.uri("/v1/webhook")).header("content-type", content_type);
        send(request.body(body.to_owned()).unwrap()).await
    }

    /// Sends a text alert with the trader's key and these fields, which changes nothing.
    pub(crate) async fn harmless_alert(&self, fields: &str) -> Response<String> {
        self.alert("text/plain; charset=utf-8", &format!("key={TRADER};command=CANCELALLORDERS;{fields}")).await
    }

    /// Charges `demo` by this number of requests.
    pub(crate) async fn charge(&self, requests: usize) {
        for _ in 0..requests {
            assert_eq!(self.get(TRADER, "/v1/api/accounts").await.status(), StatusCode::OK);
        }
    }

    pub(crate) fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }
}

pub(crate) async fn send(request: Request<String>) -> Response<String> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let (head, body) = client.request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Response::from_parts(head, String::from_utf8(body.into()).unwrap())
}

pub(crate) fn json(response: &Response<String>) -> Value {
    serde_json::from_str(response.body()).unwrap_or_else(|error| panic!("{error}: {response:?}"))
}

/// Checks that a response is a problem document with this status and `no-store`.
#[track_caller]
pub(crate) fn assert_problem(response: &Response<String>, status: StatusCode) {
    assert_eq!(response.status(), status, "{response:?}");
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert_eq!(json(response)["status"], status.as_u16());
}
