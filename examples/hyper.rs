//! The service of `axum.rs` on hyper alone, for HTTP/1 and HTTP/2 on one port.
//!
//! `cargo run --example hyper --features mint` serves on 127.0.0.1:3000. `-- ADDRESS:PORT` selects another address.
//! `TowerToHyperService` adapts the tower service for hyper. The handler reads the caller from the request's extensions.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::convert::Infallible;
use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tollgate::mint::TokenFormat;
use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota, RateLimits, RequestHead, TokenDigest};
use tower::ServiceBuilder;

const QUOTA: Quota = Quota::per_minute(180).with_burst(20);

/// The service's own data about a caller.
struct User {
    name: &'static str,
}

type Gate = AuthLayer<MemoryStore<User>, RateLimits>;

fn gate(token: TokenDigest, limits: RateLimits) -> Gate {
    let tokens = MemoryStore::from_iter([(token, Grant::new("alice", User { name: "Alice" }))]);
    AuthLayer::new(tokens).with_rate_limit(limits)
}

async fn hello(gate: Gate, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(match Authenticated::<User>::from_extensions(request.extensions()) {
        // hyper would send the content, and clients of HTTP/2 would treat it as a protocol error.
        Ok(_) if request.method() == Method::HEAD => Response::new(Full::default()),
        Ok(caller) => Response::new(format!("hello, {}\n", caller.principal().name).into()),
        // CORS preflights pass the gate without a grant.
        Err(rejection) => gate.reject(rejection.for_request(&RequestHead::of(&request))),
    })
}

/// Serves until `stop`, then ends after the requests in progress, or after 10 seconds.
async fn serve(listener: TcpListener, gate: Gate, stop: impl Future<Output = ()>) {
    let handler = {
        let gate = gate.clone();
        move |request| hello(gate.clone(), request)
    };
    let app = TowerToHyperService::new(ServiceBuilder::new().layer(gate).service_fn(handler));
    let mut server = auto::Builder::new(TokioExecutor::new());
    // hyper needs a timer to limit the time for request headers. It does not limit the time until the first bytes, by
    // which hyper-util distinguishes HTTP/1 from HTTP/2. Put a reverse proxy in front, or limit the connections of each address.
    server.http1().timer(TokioTimer::new());
    server.http2().timer(TokioTimer::new());

    let connections = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let Ok((stream, peer)) = accepted else {
            // Usually a lack of file descriptors, which takes time to pass.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let connection = server.serve_connection(TokioIo::new(stream), app.clone()).into_owned();
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("{peer}: {error}");
            }
        });
    }
    // The OS rejects new connections from here on, instead of queueing them.
    drop(listener);
    _ = tokio::time::timeout(Duration::from_secs(10), connections.shutdown()).await;
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listen = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(&listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let token = TokenFormat::new("tg")?.mint()?;
    println!("curl -i -H 'Authorization: Bearer {}' 'http://{}/'", token.expose(), listener.local_addr()?);
    let gate = gate(token.digest(), RateLimits::new(QUOTA));
    serve(listener, gate, async { _ = tokio::signal::ctrl_c().await }).await;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::Version;
    use http_body_util::{BodyExt, Empty};
    use hyper_util::client::legacy::Client;

    use super::*;

    async fn send(version: Version, request: http::request::Builder) -> Response<Bytes> {
        let http2 = version == Version::HTTP_2;
        let client = Client::builder(TokioExecutor::new()).http2_only(http2).build_http::<Empty<Bytes>>();
        let (head, body) = client.request(request.body(Empty::new()).unwrap()).await.unwrap().into_parts();
        assert_eq!(head.version, version);
        Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn both_http_versions_charge_one_bucket() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/", listener.local_addr().unwrap());
        let limits = RateLimits::new(QUOTA).with_clock(|| Duration::ZERO);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let server = tokio::spawn(serve(listener, gate(TokenDigest::of("tg_secret"), limits), async {
            stopped.await.unwrap();
        }));

        for (version, remaining) in [(Version::HTTP_11, 19), (Version::HTTP_2, 18)] {
            let response = send(version, Request::get(&uri).header("authorization", "Bearer tg_secret")).await;
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["ratelimit"], format!(r#""default";r={remaining};t=1"#));
            assert_eq!(response.body(), "hello, Alice\n");
        }
        let head = Request::head(&uri).header("authorization", "Bearer tg_secret");
        assert_eq!(send(Version::HTTP_2, head).await.body(), "");
        let preflight = Request::options(&uri).header("origin", "https://elsewhere.example");
        for request in [Request::get(&uri), preflight.header("access-control-request-method", "GET")] {
            let response = send(Version::HTTP_11, request).await;
            assert_eq!(response.status(), 401);
            assert_eq!(response.headers()["www-authenticate"], r#"Bearer realm="api""#);
        }
        stop.send(()).unwrap();
        server.await.unwrap();
    }
}
