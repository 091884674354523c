//! An axum service with API-token authentication and a rate limit.
//!
//! `cargo run --example axum --features axum,mint` serves on 127.0.0.1:3000 and prints three curl lines to try.
//! `-- ADDRESS:PORT` selects another address.
#![allow(clippy::print_stdout)]

use std::error::Error;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tollgate::mint::TokenFormat;
use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota, RateLimits, TokenDigest};

const QUOTA: Quota = Quota::per_minute(180).with_burst(20);

/// The service's own data about a caller.
struct User {
    name: &'static str,
}

fn app(token: TokenDigest, limits: RateLimits) -> Router {
    let tokens = MemoryStore::from_iter([(token, Grant::new("alice", User { name: "Alice" }))]);
    let gate = AuthLayer::new(tokens).with_rate_limit(limits);
    Router::new().route("/", get(hello)).layer(gate)
}

/// Greets the caller. A handler that takes `Authenticated` never runs without a valid token.
async fn hello(caller: Authenticated<User>) -> String {
    format!("hello, {}\n", caller.principal().name)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listen = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(&listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let token = TokenFormat::new("tg")?.mint()?;
    let (at, secret) = (listener.local_addr()?, token.expose());
    // The last line is one curl process. Starting a process for each request would give the bucket time to refill.
    println!(
        "listening on http://{at}/ until ctrl-c; the token of this run is {secret}

# with the token: 200, and RateLimit headers
curl -i -H 'Authorization: Bearer {secret}' 'http://{at}/'

# without a token: 401, and a challenge
curl -i 'http://{at}/'

# 25 requests in a row: 429 after the burst of 20; one more request passes every third of a second
curl -s -o /dev/null -w '%{{http_code}} ' -H 'Authorization: Bearer {secret}' 'http://{at}/?[1-25]'; echo"
    );
    let app = app(token.digest(), RateLimits::new(QUOTA));
    Ok(axum::serve(listener, app).with_graceful_shutdown(async { _ = tokio::signal::ctrl_c().await }).await?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use axum::body::Body;
    use axum::http::{Request, Response};
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;

    use super::*;

    /// Serves on a free port. The clock stands still, so that buckets do not refill on a slow machine.
    async fn start() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let app = app(TokenDigest::of("tg_secret"), RateLimits::new(QUOTA).with_clock(|| Duration::ZERO));
        tokio::spawn(async move { axum::serve(listener, app).await });
        addr
    }

    async fn request(addr: SocketAddr, authorization: &str) -> Response<Body> {
        let request = Request::get(format!("http://{addr}/")).header("authorization", authorization);
        let client = Client::builder(TokioExecutor::new()).build_http();
        client.request(request.body(Body::empty()).unwrap()).await.unwrap().map(Body::new)
    }

    #[tokio::test]
    async fn only_the_token_is_admitted_until_its_burst_is_used() {
        let addr = start().await;
        for remaining in (0..20).rev() {
            let response = request(addr, "Bearer tg_secret").await;
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["ratelimit"], format!(r#""default";r={remaining};t=1"#));
            assert_eq!(axum::body::to_bytes(response.into_body(), 100).await.unwrap(), "hello, Alice\n");

            // An invalid token does not charge Alice.
            let response = request(addr, "Bearer tg_guess").await;
            assert_eq!(response.status(), 401);
            assert_eq!(response.headers()["www-authenticate"], r#"Bearer realm="api", error="invalid_token""#);
        }
        let response = request(addr, "Bearer tg_secret").await;
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    }
}
