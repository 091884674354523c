//! The service of `axum.rs` on hyper alone, for HTTP/1 and HTTP/2 on one port.
//!
//! `cargo run --example hyper` serves on 127.0.0.1:3000. `-- --listen ADDRESS:PORT` selects another address.
//! `TowerToHyperService` adapts the tower service for hyper. The handler reads the caller from the request's extensions.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::convert::Infallible;
use std::error::Error;
use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota, RateLimits, RequestHead, TokenDigest};
use tower::ServiceBuilder;

const QUOTA: Quota = Quota::per_minute(180).with_burst(20);

/// The service's own data about a caller.
struct User {
    name: &'static str,
}

type Gate = AuthLayer<MemoryStore<User>, RateLimits>;

fn gate(token: &str, limits: RateLimits) -> Gate {
    let tokens = MemoryStore::from_iter([(TokenDigest::of(token), Grant::new("alice", User { name: "Alice" }))]);
    AuthLayer::new(tokens).with_rate_limit(limits)
}

async fn hello(gate: Gate, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(match Authenticated::<User>::from_extensions(request.extensions()) {
        Ok(caller) => respond(request.method(), format!("hello, {}\n", caller.principal().name)),
        // CORS preflights pass the gate without a grant.
        Err(rejection) => gate.reject(rejection.for_request(&RequestHead::of(&request))),
    })
}

/// Omits the content of responses to HEAD. hyper sends it over HTTP/2, and clients treat it as a protocol error.
fn respond(method: &Method, text: String) -> Response<Full<Bytes>> {
    let length = text.len();
    let mut response = Response::new(if method == Method::HEAD { Full::default() } else { Full::from(text) });
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    response
}

/// Serves until `stop`, then ends after the requests in progress, or after 10 seconds.
async fn serve(listener: TcpListener, gate: Gate, stop: impl Future<Output = ()>) {
    let handler = {
        let gate = gate.clone();
        move |request| hello(gate.clone(), request)
    };
    let app = TowerToHyperService::new(ServiceBuilder::new().layer(gate).service_fn(handler));
    let mut server = auto::Builder::new(TokioExecutor::new());
    // hyper needs a timer to limit the time for request headers.
    server.http1().timer(TokioTimer::new());
    server.http2().timer(TokioTimer::new());

    let connections = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = server.serve_connection(TokioIo::new(stream), app.clone()).into_owned();
                let connection = connections.watch(connection);
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        eprintln!("{peer}: {error}");
                    }
                });
            }
            // The client has closed the connection already.
            Err(error) if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) => {}
            Err(error) => {
                // Usually a lack of file descriptors, which takes time to pass.
                eprintln!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    // The OS rejects new connections from here on, instead of queueing them.
    drop(listener);
    if tokio::time::timeout(Duration::from_secs(10), connections.shutdown()).await.is_err() {
        eprintln!("some connections were cut off");
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(listen) = parse(&args) else {
        eprintln!("usage: hyper [--listen ADDRESS:PORT]");
        std::process::exit(2);
    };
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let token = random_token()?;
    println!("curl -i -H 'Authorization: Bearer {token}' 'http://{}/'", listener.local_addr()?);
    serve(listener, gate(&token, RateLimits::new(QUOTA)), async { _ = tokio::signal::ctrl_c().await }).await;
    Ok(())
}

/// Returns a token of 256 random bits.
fn random_token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().fold("tg_".to_owned(), |token, byte| format!("{token}{byte:02x}")))
}

fn parse(args: &[String]) -> Option<SocketAddr> {
    match args {
        [] => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 3000))),
        [flag, listen] if flag == "--listen" => listen.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::{StatusCode, Version};
    use http_body_util::{BodyExt, Empty};
    use hyper_util::client::legacy::Client;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;

    struct Server {
        addr: SocketAddr,
        stop: oneshot::Sender<()>,
        task: JoinHandle<()>,
    }

    impl Server {
        /// Serves on a free port. The clock stands still, so that buckets do not refill on a slow machine.
        async fn start(token: &str) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let gate = gate(token, RateLimits::new(QUOTA).with_clock(|| Duration::ZERO));
            let (stop, stopped) = oneshot::channel();
            let task = tokio::spawn(serve(listener, gate, async { stopped.await.unwrap() }));
            Self { addr, stop, task }
        }

        fn get(&self) -> http::request::Builder {
            Request::get(format!("http://{}/", self.addr))
        }

        async fn stop(self) {
            self.stop.send(()).unwrap();
            self.task.await.unwrap();
        }
    }

    async fn send(version: Version, request: http::request::Builder) -> Response<String> {
        let client =
            Client::builder(TokioExecutor::new()).http2_only(version == Version::HTTP_2).build_http::<Empty<Bytes>>();
        let (head, body) = client.request(request.body(Empty::new()).unwrap()).await.unwrap().into_parts();
        assert_eq!(head.version, version);
        let body = body.collect().await.unwrap().to_bytes();
        Response::from_parts(head, String::from_utf8(body.into()).unwrap())
    }

    #[tokio::test]
    async fn both_http_versions_charge_one_bucket() {
        let server = Server::start("tg_secret").await;
        for (version, remaining) in [(Version::HTTP_11, 19), (Version::HTTP_2, 18)] {
            let response = send(version, server.get().header("authorization", "Bearer tg_secret")).await;
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.body(), "hello, Alice\n");
            assert_eq!(response.headers()["ratelimit-policy"], r#""default";q=20;w=7"#);
            assert_eq!(response.headers()["ratelimit"], format!(r#""default";r={remaining};t=1"#));
        }
        server.stop().await;
    }

    #[tokio::test]
    async fn responses_to_head_have_no_content_in_both_versions() {
        let server = Server::start("tg_secret").await;
        for version in [Version::HTTP_11, Version::HTTP_2] {
            for authorization in ["Bearer tg_secret", "Bearer tg_guess"] {
                let request = |method| server.get().method(method).header("authorization", authorization);
                let get = send(version, request("GET")).await;
                let head = send(version, request("HEAD")).await;
                assert_eq!(head.status(), get.status());
                assert_eq!(head.headers()["content-length"], get.body().len().to_string());
                assert_eq!(head.body(), "", "{version:?} {authorization}");
            }
        }
        server.stop().await;
    }

    #[tokio::test]
    async fn requests_and_preflights_without_a_token_get_401() {
        let server = Server::start("tg_secret").await;
        let preflight = server
            .get()
            .method("OPTIONS")
            .header("origin", "https://elsewhere.example")
            .header("access-control-request-method", "GET");
        for request in [server.get(), preflight] {
            let response = send(Version::HTTP_11, request).await;
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            assert_eq!(response.headers()["www-authenticate"], r#"Bearer realm="api""#);
            assert_eq!(response.headers()["content-type"], "application/problem+json");
        }
        server.stop().await;
    }

    #[tokio::test]
    async fn requests_beyond_the_burst_get_429() {
        let server = Server::start("tg_secret").await;
        let request = || send(Version::HTTP_11, server.get().header("authorization", "Bearer tg_secret"));
        for _ in 0..20 {
            assert_eq!(request().await.status(), StatusCode::OK);
        }
        let response = request().await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "1");
        server.stop().await;
    }

    #[test]
    fn arguments_are_an_optional_address() {
        let parse = |args: &[&str]| parse(&args.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(parse(&[]), "127.0.0.1:3000".parse().ok());
        assert_eq!(parse(&["--listen", "[::1]:0"]), "[::1]:0".parse().ok());
        for wrong in [&["--listen"][..], &["--listen", "3000"], &["--help"], &["--listen", "[::1]:0", "x"]] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
