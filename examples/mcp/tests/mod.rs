//! Tests of the example over sockets.

mod requests;
mod sdks;
mod sessions;

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::net::TcpListener;
use tollgate::TokenDigest;

use super::*;

/// May read and trade, with a second token.
const ALICE: &str = "tg_alice";
const ALICE_2: &str = "tg_alice_2";
/// May only read.
const BOB: &str = "tg_bob";

/// Serves on a free port. The clock stands still, so that buckets do not refill on a slow machine.
async fn start(server: Option<&AuthorizationServer>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let grant = |id: &str, subject: &str, scopes: &[&str]| {
        Grant::new(id, User { name: subject.to_owned() }).with_subject(subject).with_scopes(scopes).unwrap()
    };
    let opaque = MemoryStore::from_iter([
        (TokenDigest::of(ALICE), grant("1", "alice", &["read", "trade"])),
        (TokenDigest::of(ALICE_2), grant("2", "alice", &["read", "trade"])),
        (TokenDigest::of(BOB), grant("3", "bob", &["read"])),
    ]);
    let app = app(opaque, &url, server, || Duration::ZERO).unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// Sends a request with the header fields of MCP and these, and returns the response with its whole body.
async fn send(request: http::request::Builder, body: impl Into<Body>) -> http::Response<String> {
    let request = request
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(body.into())
        .unwrap();
    let (parts, body) = open(request).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    http::Response::from_parts(parts, String::from_utf8(body.into()).unwrap())
}

async fn open(request: Request) -> http::Response<hyper::body::Incoming> {
    Client::builder(TokioExecutor::new()).build_http().request(request).await.unwrap()
}

fn post(url: &str, token: &str) -> http::request::Builder {
    Request::post(url).header("authorization", format!("Bearer {token}"))
}

/// Calls a tool without a session, as clients do since MCP 2026-07-28.
async fn call(url: &str, token: &str, tool: &str) -> http::Response<String> {
    let request = post(url, token)
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/call")
        .header("mcp-name", tool);
    send(request, message(1, tool).to_string()).await
}

fn message(id: u32, tool: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {
        "name": tool,
        "arguments": { "symbol": "ACME", "quantity": 3 },
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    } })
}

fn field<'a, B>(response: &'a http::Response<B>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// Returns the units that are left for tools.
fn units<B>(response: &http::Response<B>) -> &str {
    let (_, tools) = field(response, "ratelimit").split_once(r#""tools";r="#).unwrap();
    tools.split(';').next().unwrap()
}
