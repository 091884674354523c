//! An axum service with API-token authentication and a rate limit.
//!
//! `cargo run --example axum --features axum` serves on 127.0.0.1:3000 and prints three curl lines to try.
//! `-- --listen ADDRESS:PORT` selects another address.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota, RateLimits, TokenDigest};

const QUOTA: Quota = Quota::per_minute(180).with_burst(20);

/// The service's own data about a caller.
struct User {
    name: &'static str,
}

fn app(token: &str, limits: RateLimits) -> Router {
    let tokens = MemoryStore::from_iter([(TokenDigest::of(token), Grant::new("alice", User { name: "Alice" }))]);
    let gate = AuthLayer::new(tokens).with_rate_limit(limits);
    Router::new().route("/", get(hello)).layer(gate)
}

/// Greets the caller. A handler that takes `Authenticated` never runs without a valid token.
async fn hello(caller: Authenticated<User>) -> String {
    format!("hello, {}\n", caller.principal().name)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(listen) = parse(&args) else {
        eprintln!("usage: axum [--listen ADDRESS:PORT]");
        std::process::exit(2);
    };
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let token = random_token()?;
    println!("{}", instructions(listener.local_addr()?, &token));
    let app = app(&token, RateLimits::new(QUOTA));
    Ok(axum::serve(listener, app).with_graceful_shutdown(async { _ = tokio::signal::ctrl_c().await }).await?)
}

/// Returns a token of 256 random bits. So many bits cannot be guessed, and a store may keep a fast digest of them.
fn random_token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().fold("tg_".to_owned(), |token, byte| format!("{token}{byte:02x}")))
}

fn instructions(addr: SocketAddr, token: &str) -> String {
    // The last line is one curl process. Starting a process for each request would give the bucket time to refill.
    format!(
        "listening on http://{addr}/ until ctrl-c; the token of this run is {token}

# with the token: 200, and RateLimit headers
curl -i -H 'Authorization: Bearer {token}' 'http://{addr}/'

# without a token: 401, and a challenge
curl -i 'http://{addr}/'

# 25 requests in a row: 429 after the burst of {burst}; one more request passes every third of a second
curl -s -o /dev/null -w '%{{http_code}} ' -H 'Authorization: Bearer {token}' 'http://{addr}/?[1-25]'; echo
",
        burst = QUOTA.burst()
    )
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
    use std::time::Duration;

    use axum::body::Body;
    use axum::http::{Request, Response, StatusCode};
    use http_body_util::BodyExt;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;

    use super::*;

    /// Serves on a free port. The clock stands still, so that buckets do not refill on a slow machine.
    async fn start(token: &str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let app = app(token, RateLimits::new(QUOTA).with_clock(|| Duration::ZERO));
        tokio::spawn(async move { axum::serve(listener, app).await });
        addr
    }

    async fn request(addr: SocketAddr, token: Option<&str>) -> Response<String> {
        let mut request = Request::get(format!("http://{addr}/"));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let client = Client::builder(TokioExecutor::new()).build_http();
        let (head, body) = client.request(request.body(Body::empty()).unwrap()).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Response::from_parts(head, String::from_utf8(body.into()).unwrap())
    }

    #[tokio::test]
    async fn a_valid_token_is_admitted() {
        let token = random_token().unwrap();
        let response = request(start(&token).await, Some(&token)).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["ratelimit-policy"], r#""default";q=20;w=7"#);
        assert_eq!(response.headers()["ratelimit"], r#""default";r=19;t=1"#);
        assert_eq!(response.body(), "hello, Alice\n");
    }

    #[tokio::test]
    async fn a_request_without_a_token_is_challenged() {
        let response = request(start("tg_secret").await, None).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()["www-authenticate"], r#"Bearer realm="api""#);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }

    #[tokio::test]
    async fn requests_beyond_the_burst_get_429() {
        let addr = start("tg_secret").await;
        for _ in 0..20 {
            assert_eq!(request(addr, Some("tg_secret")).await.status(), StatusCode::OK);
            // An invalid token does not charge Alice.
            assert_eq!(request(addr, Some("tg_guess")).await.status(), StatusCode::UNAUTHORIZED);
        }
        let response = request(addr, Some("tg_secret")).await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["ratelimit"], r#""default";r=0;t=1"#);
    }

    #[test]
    fn prints_three_curl_lines() {
        let text = instructions(SocketAddr::from(([127, 0, 0, 1], 8080)), "tg_secret");
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("curl ")).collect();
        assert_eq!(
            lines,
            [
                "curl -i -H 'Authorization: Bearer tg_secret' 'http://127.0.0.1:8080/'",
                "curl -i 'http://127.0.0.1:8080/'",
                "curl -s -o /dev/null -w '%{http_code} ' -H 'Authorization: Bearer tg_secret' \
                 'http://127.0.0.1:8080/?[1-25]'; echo",
            ]
        );
    }

    #[test]
    fn tokens_differ_and_are_long() {
        let (a, b) = (random_token().unwrap(), random_token().unwrap());
        assert_ne!(a, b);
        assert!(a.starts_with("tg_") && a.len() == 3 + 64, "32 bytes in hex");
    }

    #[test]
    fn arguments_are_an_optional_address() {
        let parse = |args: &[&str]| parse(&args.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(parse(&[]), "127.0.0.1:3000".parse().ok());
        assert_eq!(parse(&["--listen", "[::1]:0"]), "[::1]:0".parse().ok());
        let (no_port, large_port) = (["--listen", "3000"], ["--listen", "127.0.0.1:99999"]);
        let (unknown, extra) = (["--port", "3000"], ["--listen", "127.0.0.1:0", "--verbose"]);
        for wrong in [&["--listen"][..], &["--help"], &no_port, &large_port, &unknown, &extra] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
