//! A gRPC service with API-token authentication and a rate limit, and a client.
//!
//! `cargo run --example tonic` serves tonic's health service on 127.0.0.1:50051 and prints how to call it by the client in
//! this program. `-- --listen ADDRESS:PORT` selects another address.
//!
//! The gate rejects gRPC requests with UNAUTHENTICATED, RESOURCE_EXHAUSTED or UNAVAILABLE, without a message in the body. So
//! the responder is [`EmptyBody`], which works with tonic's type of bodies.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;
use tollgate::{AuthLayer, EmptyBody, Grant, Limiter, MemoryStore, Quota, RateLimits, TokenDigest, TokenStore};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

const QUOTA: Quota = Quota::per_minute(5).with_burst(5);

fn gate(token: &str, limits: RateLimits) -> AuthLayer<MemoryStore<()>, RateLimits, EmptyBody> {
    let tokens = MemoryStore::from_iter([(TokenDigest::of(token), Grant::new("alice", ()))]);
    AuthLayer::new(tokens).with_rate_limit(limits).with_responder(EmptyBody)
}

async fn serve<T, L>(
    listener: TcpListener,
    gate: AuthLayer<T, L, EmptyBody>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error>
where
    T: TokenStore,
    L: Limiter,
{
    let (_, health) = tonic_health::server::health_reporter();
    let incoming = TcpIncoming::from(listener);
    Server::builder().layer(gate).add_service(health).serve_with_incoming_shutdown(incoming, stop).await
}

/// Calls the health service.
async fn check(channel: Channel, token: Option<&str>) -> Result<Response<HealthCheckResponse>, Status> {
    let mut request = Request::new(HealthCheckRequest::default());
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse();
        let mut value: tonic::metadata::AsciiMetadataValue =
            value.map_err(|_| Status::invalid_argument("the token is not a valid header value"))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    HealthClient::new(channel).check(request).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match parse(&args) {
        Some(Command::Serve(listen)) => run_server(listen).await,
        Some(Command::Check { server, token }) => run_client(server, token.as_deref()).await,
        None => {
            eprintln!("usage: tonic [--listen ADDRESS:PORT]\n       tonic check ADDRESS:PORT [TOKEN]");
            std::process::exit(2);
        }
    }
}

async fn run_server(listen: SocketAddr) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let token = random_token()?;
    println!("{}", instructions(listener.local_addr()?, &token));
    Ok(serve(listener, gate(&token, RateLimits::new(QUOTA)), async { _ = tokio::signal::ctrl_c().await }).await?)
}

async fn run_client(server: SocketAddr, token: Option<&str>) -> Result<(), Box<dyn Error>> {
    let channel = endpoint(server)?.connect().await.map_err(|_| format!("cannot connect to {server}"))?;
    match check(channel, token).await {
        Ok(response) => println!("OK: {}", response.get_ref().status().as_str_name()),
        Err(status) => {
            println!("{:?}: {}", status.code(), status.message());
            if let Some(seconds) = status.metadata().get("retry-after") {
                println!("retry after {} s", seconds.to_str()?);
            }
        }
    }
    Ok(())
}

fn endpoint(server: SocketAddr) -> Result<Endpoint, tonic::transport::Error> {
    Endpoint::from_shared(format!("http://{server}"))
}

/// Returns a token of 256 random bits.
fn random_token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().fold("tg_".to_owned(), |token, byte| format!("{token}{byte:02x}")))
}

fn instructions(addr: SocketAddr, token: &str) -> String {
    format!(
        "serving grpc.health.v1.Health on {addr} until ctrl-c; the token of this run is {token}

# with the token: OK, and ResourceExhausted from the {next}th time in a minute
cargo run -q --example tonic -- check {addr} {token}

# without a token: Unauthenticated
cargo run -q --example tonic -- check {addr}
",
        next = QUOTA.burst() + 1
    )
}

#[derive(Debug, PartialEq)]
enum Command {
    Serve(SocketAddr),
    Check { server: SocketAddr, token: Option<String> },
}

fn parse(args: &[String]) -> Option<Command> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [] => Some(Command::Serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 50_051)))),
        ["--listen", listen] => listen.parse().ok().map(Command::Serve),
        ["check", server] => Some(Command::Check { server: server.parse().ok()?, token: None }),
        ["check", server, token] => Some(Command::Check { server: server.parse().ok()?, token: Some(token.into()) }),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io;
    use std::time::Duration;

    use tollgate::store::from_fn;
    use tonic::Code;
    use tonic_health::pb::health_check_response::ServingStatus;

    use super::*;

    /// Serves on a free port.
    async fn start<T: TokenStore, L: Limiter>(gate: AuthLayer<T, L, EmptyBody>) -> Channel {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, gate, std::future::pending()));
        endpoint(addr).unwrap().connect().await.unwrap()
    }

    /// Returns limits whose clock stands still, so that buckets do not refill on a slow machine.
    fn limits() -> RateLimits {
        RateLimits::new(QUOTA).with_clock(|| Duration::ZERO)
    }

    #[tokio::test]
    async fn a_valid_token_is_admitted() {
        let response = check(start(gate("tg_secret", limits())).await, Some("tg_secret")).await.unwrap();
        assert_eq!(response.metadata().get("ratelimit").unwrap(), r#""default";r=4;t=12"#);
        assert_eq!(response.into_inner().status(), ServingStatus::Serving);
    }

    #[tokio::test]
    async fn invalid_tokens_are_rejected_with_grpc_statuses() {
        let channel = start(gate("tg_secret", limits())).await;
        for (token, message) in [
            (None, "This resource requires a token. The request has none."),
            (Some("tg_guess"), "The token is not valid."),
            (Some("no token"), "The token is not valid."),
        ] {
            let status = check(channel.clone(), token).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (Code::Unauthenticated, message));
        }
    }

    #[tokio::test]
    async fn requests_beyond_the_burst_get_resource_exhausted() {
        let channel = start(gate("tg_secret", limits())).await;
        for _ in 0..5 {
            check(channel.clone(), Some("tg_secret")).await.unwrap();
            // An invalid token does not charge Alice.
            check(channel.clone(), Some("tg_guess")).await.unwrap_err();
        }
        let status = check(channel, Some("tg_secret")).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.metadata().get("retry-after").unwrap(), "12");
        assert_eq!(status.metadata().get("ratelimit").unwrap(), r#""default";r=0;t=12"#);
    }

    #[tokio::test]
    async fn a_failing_store_gives_unavailable() {
        let down = from_fn(|_| async { Err::<Option<Grant<()>>, _>(io::Error::other("connection reset")) });
        let gate = AuthLayer::with_timer(down, Duration::from_secs(5), tokio::time::sleep)
            .with_rate_limit(limits())
            .with_responder(EmptyBody);
        let status = check(start(gate).await, Some("tg_secret")).await.unwrap_err();
        let message = "The service cannot check tokens at the moment. The token may be valid.";
        assert_eq!((status.code(), status.message()), (Code::Unavailable, message));
        assert_eq!(status.metadata().get("retry-after").unwrap(), "1");
    }

    #[tokio::test]
    async fn serve_returns_after_stop() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        serve(listener, gate("tg_secret", limits()), std::future::ready(())).await.unwrap();
    }

    #[test]
    fn prints_two_commands() {
        let text = instructions(SocketAddr::from(([127, 0, 0, 1], 8080)), "tg_secret");
        let commands = text.lines().filter_map(|line| line.strip_prefix("cargo run -q --example tonic -- "));
        let commands: Vec<_> = commands
            .map(|command| parse(&command.split(' ').map(str::to_owned).collect::<Vec<_>>()).unwrap())
            .collect();
        let server = SocketAddr::from(([127, 0, 0, 1], 8080));
        let check = |token: Option<&str>| Command::Check { server, token: token.map(str::to_owned) };
        assert_eq!(commands, [check(Some("tg_secret")), check(None)]);
    }

    #[test]
    fn arguments_select_server_or_client() {
        let parse = |args: &[&str]| parse(&args.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(parse(&[]), "127.0.0.1:50051".parse().ok().map(Command::Serve));
        assert_eq!(parse(&["--listen", "[::1]:0"]), "[::1]:0".parse().ok().map(Command::Serve));
        for wrong in [&["--listen"][..], &["--listen", "3000"], &["--help"], &["check"], &["check", "x"]] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
