//! An axum service behind a gate: who calls, and how much they may.
//!
//! `cargo run --example axum --features axum` serves on 127.0.0.1:3000 and prints three curl lines to try. Most of this
//! file is the program around the service; the service is [`app`] and [`hello`].
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use tollgate::TokenDigest;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota, RateLimits};

const QUOTA: Quota = Quota::per_minute(180).with_burst(20);

/// What this service knows of its callers.
struct User {
    name: &'static str,
}

fn app(token: &str, limits: RateLimits) -> Router {
    let tokens = MemoryStore::from_iter([(TokenDigest::of(token), Grant::new("alice", User { name: "Alice" }))]);
    let gate = AuthLayer::new(tokens).with_rate_limit(limits);
    Router::new().route("/", get(hello)).layer(gate)
}

/// A handler that takes `Authenticated` cannot be reached without a token, wherever it is mounted.
async fn hello(who: Authenticated<User>) -> String {
    format!("hello, {}\n", who.principal().name)
}

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let listen = match parse(&args) {
        Ok(Command::Serve(listen)) => listen,
        Ok(Command::Help) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match serve(listen).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(listen: SocketAddr) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| format!("cannot listen on {listen}: {error}\nchoose another address by --listen"))?;
    let token = random_token()?;
    println!("{}", instructions(listener.local_addr()?, &token));
    axum::serve(listener, app(&token, RateLimits::new(QUOTA))).with_graceful_shutdown(ctrl_c()).await?;
    Ok(())
}

/// 256 bits of the operating system's randomness: nobody guesses them, so that a store may keep a plain digest of them.
fn random_token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("tg_{hex}"))
}

fn instructions(addr: SocketAddr, token: &str) -> String {
    // One curl for all requests of the last line: a process for each would give the budget time to refill.
    format!(
        "listening on http://{addr}/ until ctrl-c; the token of this run is {token}

# with the token: 200, and RateLimit headers that tell the budget
curl -i -H 'Authorization: Bearer {token}' 'http://{addr}/'

# without one: 401, and a challenge that tells how to get in
curl -i 'http://{addr}/'

# 25 requests in a row: 429 as soon as the burst of {burst} is spent, and fine again a third of a second later
curl -s -o /dev/null -w '%{{http_code}} ' -H 'Authorization: Bearer {token}' 'http://{addr}/?[1-25]'; echo
",
        burst = QUOTA.burst()
    )
}

const USAGE: &str = "usage: axum [--listen ADDRESS:PORT]

  --listen ADDRESS:PORT  where to listen, 127.0.0.1:3000 if not given; port 0 takes a free one
  -h, --help             this text";

#[derive(Debug, PartialEq)]
enum Command {
    Serve(SocketAddr),
    Help,
}

fn parse(args: &[String]) -> Result<Command, String> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [] => Ok(Command::Serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 3000)))),
        ["-h" | "--help", ..] => Ok(Command::Help),
        ["--listen"] => Err("`--listen` needs an address and a port".to_owned()),
        ["--listen", listen] => match listen.parse() {
            Ok(listen) => Ok(Command::Serve(listen)),
            Err(_) => Err(format!("`{listen}` is no address and port, such as 127.0.0.1:3000")),
        },
        ["--listen", _, unknown, ..] | [unknown, ..] => Err(format!("unknown argument `{unknown}`")),
    }
}

/// Waits for ctrl-c; for ever where nobody can listen for it.
async fn ctrl_c() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
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

    /// Serves on a free port, by a clock that stands still: however slow the machine is, nothing is refilled.
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
    async fn greets_who_has_a_token() {
        let token = random_token().unwrap();
        let response = request(start(&token).await, Some(&token)).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["ratelimit-policy"], r#""default";q=20;w=7"#);
        assert_eq!(response.headers()["ratelimit"], r#""default";r=19;t=1"#);
        assert_eq!(response.body(), "hello, Alice\n");
    }

    #[tokio::test]
    async fn challenges_who_has_none() {
        let response = request(start("tg_secret").await, None).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()["www-authenticate"], r#"Bearer realm="api""#);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }

    #[tokio::test]
    async fn admits_the_burst_and_no_more() {
        let addr = start("tg_secret").await;
        for _ in 0..20 {
            assert_eq!(request(addr, Some("tg_secret")).await.status(), StatusCode::OK);
            // Costs Alice nothing.
            assert_eq!(request(addr, Some("tg_guess")).await.status(), StatusCode::UNAUTHORIZED);
        }
        let response = request(addr, Some("tg_secret")).await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["ratelimit"], r#""default";r=0;t=1"#);
    }

    #[test]
    fn prints_three_lines_to_paste() {
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
    fn tokens_are_fresh_and_long() {
        let (a, b) = (random_token().unwrap(), random_token().unwrap());
        assert_ne!(a, b);
        assert!(a.starts_with("tg_") && a.len() == 3 + 64, "32 bytes in hex");
    }

    #[test]
    fn arguments() {
        let parse = |args: &[&str]| parse(&args.iter().map(ToString::to_string).collect::<Vec<_>>());
        let serve = |addr: &str| Ok(Command::Serve(addr.parse().unwrap()));
        assert_eq!(parse(&[]), serve("127.0.0.1:3000"));
        assert_eq!(parse(&["--listen", "[::1]:0"]), serve("[::1]:0"));
        assert_eq!(parse(&["--help"]), Ok(Command::Help));

        let error = |args: &[&str]| parse(args).unwrap_err();
        assert_eq!(error(&["--listen"]), "`--listen` needs an address and a port");
        assert_eq!(error(&["--listen", "3000"]), "`3000` is no address and port, such as 127.0.0.1:3000");
        assert_eq!(
            error(&["--listen", "127.0.0.1:99999"]),
            "`127.0.0.1:99999` is no address and port, such as 127.0.0.1:3000"
        );
        assert_eq!(error(&["--port", "3000"]), "unknown argument `--port`");
        assert_eq!(error(&["--listen", "127.0.0.1:0", "--verbose"]), "unknown argument `--verbose`");
    }
}
