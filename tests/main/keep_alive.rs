//! HTTP/1 connections after a rejection: closed if the body of the request was not read, otherwise kept.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use http::{HeaderMap, Request, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tollgate::gate::BodyTokens;
use tollgate::limit::RateLimits;
use tollgate::{AuthLayer, Authenticated, Quota, Rejection, Scopes};
use tower::Layer;

use crate::kit::{Body, TOKEN, User, echo, field, memory, run, send, serve, values};

/// Returns an app with a route for each layer that rejects requests.
fn app() -> Router {
    let gate = AuthLayer::new(memory());
    let never = RateLimits::new(tollgate::Limit::new("never", Quota::per_hour(1)).unwrap().with_cost(|_| 2));
    let body_tokens = BodyTokens::with_timeout(Duration::from_millis(20)).with_json("key").unwrap().with_limit(64);
    let body = gate.clone().with_body_tokens(body_tokens);
    let admin = || gate.require_scopes(["admin"]).unwrap();
    Router::new()
        .route("/gate", get(|| async {}).post(|| async {}).route_layer(gate.clone()))
        .route("/scope", post(|| async {}).route_layer((gate.clone(), admin())))
        .route("/limit", post(|| async {}).route_layer((gate.clone(), gate.route_rate_limit(never))))
        .route("/extractor", post(|_: Authenticated<User>| async {}))
        .route("/body", post(|body: String| async { body }).route_layer(body.clone()))
        .route("/body/scope", post(|| async {}).route_layer((body, admin())))
}

/// A client that reuses its connection unless the last response had `Connection: close`.
struct Client {
    addr: SocketAddr,
    kept: Option<TcpStream>,
    connections: usize,
}

impl Client {
    fn new(addr: SocketAddr) -> Self {
        Self { addr, kept: None, connections: 0 }
    }

    /// Sends the head and the first part of a body, and reads the response. Sends the rest if the connection is kept. Returns the
    /// head of the response.
    async fn ask(&mut self, head: &str, first: &str, rest: &str) -> io::Result<String> {
        let mut stream = match self.kept.take() {
            Some(stream) => stream,
            None => {
                self.connections += 1;
                TcpStream::connect(self.addr).await?
            }
        };
        // The server may close the connection after its response, before everything is sent.
        _ = stream.write_all(format!("{head}\r\nhost: x\r\n\r\n{first}").as_bytes()).await;
        let response = read_response(&mut stream).await?;
        if !response.contains("\r\nconnection: close\r\n") {
            stream.write_all(rest.as_bytes()).await?;
            self.kept = Some(stream);
        }
        Ok(response)
    }
}

/// Reads a response with `Content-Length`, after any interim responses, and returns its head.
async fn read_response(stream: &mut TcpStream) -> io::Result<String> {
    let mut read = String::new();
    let mut piece = vec![0; 65_536];
    loop {
        if let Some(rest) = read.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n") {
            read = rest.to_owned();
        }
        if let Some((head, body)) = read.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if body.len() >= length.parse().unwrap() {
                return Ok(format!("{head}\r\n"));
            }
        }
        let length = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut piece)).await??;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read += std::str::from_utf8(&piece[..length]).unwrap();
    }
}

#[tokio::test]
async fn next_request_on_a_kept_connection_succeeds() {
    let addr = serve(app()).await;
    let long = "x".repeat(200_000);
    let long_length = format!("content-length: {}", long.len());
    let framings = [
        ("content-length: 1", "", "x"),
        ("content-length: 2", "x", "x"),
        ("content-length: 1\r\nexpect: 100-continue", "", "x"),
        ("transfer-encoding: chunked", "", "1\r\nx\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked", "1\r\nx\r\n", "0\r\n\r\n"),
        (&long_length, "", &long),
        (&long_length, &long[..100_000], &long[100_000..]),
    ];
    for (path, token, content_type, statuses) in [
        ("/gate", "unknown", "text/plain", &["401"][..]),
        ("/scope", TOKEN, "text/plain", &["403"]),
        ("/limit", TOKEN, "text/plain", &["400"]),
        ("/extractor", TOKEN, "text/plain", &["500"]),
        ("/body", "unknown", "text/plain", &["401"]),
        // Too long or too slow.
        ("/body", TOKEN, "application/json", &["413", "408"]),
    ] {
        let mut client = Client::new(addr);
        for (framing, first, rest) in framings {
            // The second request uses the same connection, if it was kept.
            for _ in 0..2 {
                let request = format!("{path}, {framing}, {} bytes first", first.len());
                let head = format!(
                    "POST {path} HTTP/1.1\r\nauthorization: Bearer {token}\r\ncontent-type: {content_type}\r\n{framing}"
                );
                let response = client.ask(&head, first, rest).await;
                let response = response.unwrap_or_else(|error| panic!("{request}: {error}"));
                assert!(statuses.contains(&&response["HTTP/1.1 ".len()..][..3]), "{request}: {response}");
            }
        }
    }
}

#[tokio::test]
async fn connection_is_kept_if_the_body_was_read() {
    let mut client = Client::new(serve(app()).await);
    let json = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let requests = [
        ("GET /gate HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "401"),
        ("POST /gate HTTP/1.1\r\ncontent-length: 0\r\n\r\n".to_owned(), "401"),
        (json("/body", r#"{"key": "unknown"}"#), "401"),
        (json("/body", "{}"), "401"),
        (json("/body", "{"), "400"),
        (json("/body/scope", &format!(r#"{{"key": "{TOKEN}"}}"#)), "403"),
    ];
    for (request, status) in requests {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let response = client.ask(head, body, "").await.unwrap_or_else(|error| panic!("{request}: {error}"));
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {response}");
    }
    assert_eq!(client.connections, 1);
}

#[tokio::test]
async fn connection_close_is_sent_only_over_http_1_with_an_unread_body() {
    let gate = AuthLayer::new(memory());
    let service = gate.layer(echo());
    let rejected = |version: Version, name: &'static str, value: &'static str| {
        let request = Request::post("/").version(version).header(name, value).body(Body::default()).unwrap();
        let service = service.clone();
        async move { values(send(&service, request).await.headers(), "connection") }
    };
    for version in [Version::HTTP_09, Version::HTTP_10, Version::HTTP_11] {
        for (name, value) in [("content-length", "1"), ("content-length", "x"), ("transfer-encoding", "chunked")] {
            assert_eq!(rejected(version, name, value).await, ["close"], "{version:?} {name}: {value}");
        }
        for (name, value) in [("content-length", "0"), ("accept", "*/*")] {
            assert!(rejected(version, name, value).await.is_empty(), "{version:?} {name}: {value}");
        }
    }
    for version in [Version::HTTP_2, Version::HTTP_3] {
        assert!(rejected(version, "content-length", "1").await.is_empty(), "{version:?}: RFC 9113, section 8.2.2");
    }
    // Responses of a handler and of a custom responder.
    let mut admitted = crate::kit::with_token(TOKEN);
    admitted.headers_mut().insert("content-length", "1".parse().unwrap());
    assert_eq!(field(send(&service, admitted).await.headers(), "connection"), None);
    let own = gate.clone().with_response_fn(|_| http::Response::new(Body::default())).layer(echo());
    let request = Request::post("/").header("content-length", "1").body(Body::default()).unwrap();
    assert_eq!(field(send(&own, request).await.headers(), "connection"), Some("close"));
    let by_hand: HeaderMap = {
        let request = Request::post("/").header("content-length", "1").body(()).unwrap();
        let rejection = Rejection::insufficient_scope(Scopes::new(["admin"]).unwrap());
        let response: http::Response<Body> = gate.reject(rejection.for_request(&tollgate::RequestHead::of(&request)));
        response.headers().clone()
    };
    assert_eq!(field(&by_hand, "connection"), Some("close"));
}

/// Node.js with a keep-alive agent sends sequential requests of 70 KB.
#[tokio::test(flavor = "multi_thread")]
async fn node_keep_alive_agent_loses_no_request() {
    const SCRIPT: &str = "
        const http = require('node:http');
        const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
        const one = () => new Promise(done => {
            const headers = { authorization: 'Bearer unknown', 'content-length': 70000 };
            const request = http.request({ port: process.argv[1], path: '/gate', method: 'POST', agent, headers }, response => {
                response.resume();
                response.on('end', () => done(response.statusCode));
            });
            request.on('error', error => done(error.code));
            request.end(Buffer.alloc(70000, 'x'));
        });
        (async () => {
            const seen = {};
            for (let at = 0; at < 40; at++) { const what = await one(); seen[what] = (seen[what] || 0) + 1; }
            console.log(JSON.stringify(seen));
            process.exit(0);
        })();";
    let port = serve(app()).await.port().to_string();
    let test = "node_keep_alive_agent_loses_no_request";
    if let Some(seen) = run("node", &["-e", SCRIPT, &port], test).await {
        assert_eq!(seen.trim(), r#"{"401":40}"#);
    }
}
