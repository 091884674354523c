//! Tests of the example, on a real socket: the generated client, and the page in a browser.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::*;

#[cfg(unix)]
mod browser;
#[cfg(unix)]
#[path = "../../../tests/chromium.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod chromium;
mod client;

const TRADER: &str = "tg_trader";
const READER: &str = "tg_reader";

/// Serves on a free port. The clock stands still, so that buckets do not refill on a slow machine.
async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let tokens = Tokens { trader: TokenDigest::of(TRADER), reader: TokenDigest::of(READER) };
    let app = app(&tokens, RateLimits::new(QUOTA).with_clock(|| Duration::ZERO)).unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    addr
}

async fn get(addr: SocketAddr, path: &str) -> Response<Body> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::get(format!("http://{addr}{path}")).body(Body::empty()).unwrap();
    client.request(request).await.unwrap().map(Body::new)
}

async fn document(addr: SocketAddr) -> String {
    let body = get(addr, "/openapi.json").await.into_body();
    String::from_utf8(axum::body::to_bytes(body, 1 << 20).await.unwrap().into()).unwrap()
}

#[tokio::test]
async fn public_operations_have_no_rejections() {
    let addr = start().await;
    let document: Value = serde_json::from_str(&document(addr).await).unwrap();
    assert_eq!(document["info"]["title"], "Paper trading");
    let operation = |path: &str, method: &str| document["paths"][path][method].clone();
    let statuses = |operation: &Value| {
        operation["responses"].as_object().unwrap().keys().map(|status| status.parse().unwrap()).collect::<Vec<u16>>()
    };
    assert_eq!(operation("/health", "get").get("security"), None);
    assert_eq!(statuses(&operation("/health", "get")), [200]);
    assert_eq!(statuses(&operation("/balance", "get")), [200, 400, 401, 429]);
    assert_eq!(statuses(&operation("/orders", "post")), [200, 400, 401, 403, 429]);
    assert_eq!(get(addr, "/health").await.status(), 200);
    assert_eq!(get(addr, "/balance").await.status(), 401);
    assert_eq!(get(addr, "/docs/").await.status(), 200);
}
