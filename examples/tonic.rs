//! A gRPC service with API-token authentication and a rate limit.
//!
//! `cargo run --example tonic --features mint` serves tonic's health service on 127.0.0.1:50051, calls it as a client would, and
//! prints the answers. `-- ADDRESS:PORT` selects another address.
//!
//! The gate rejects gRPC requests with UNAUTHENTICATED, RESOURCE_EXHAUSTED or UNAVAILABLE, without a message in the body. So
//! the responder is [`EmptyBody`], which works with tonic's type of bodies.
#![allow(clippy::print_stdout)]

use std::error::Error;

use tokio::net::TcpListener;
use tollgate::mint::TokenFormat;
use tollgate::{AuthLayer, EmptyBody, Grant, MemoryStore, Quota, RateLimits, TokenDigest};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

const QUOTA: Quota = Quota::per_minute(5).with_burst(5);

async fn serve(
    listener: TcpListener,
    token: TokenDigest,
    limits: RateLimits,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let tokens = MemoryStore::from_iter([(token, Grant::new("alice", ()))]);
    let gate = AuthLayer::new(tokens).with_rate_limit(limits).with_responder(EmptyBody);
    let (_, health) = tonic_health::server::health_reporter();
    let incoming = TcpIncoming::from(listener);
    Server::builder().layer(gate).add_service(health).serve_with_incoming_shutdown(incoming, stop).await
}

/// Calls the health service. The value is the `authorization` metadata, if there is one.
async fn check(channel: &Channel, value: Option<&AsciiMetadataValue>) -> Result<Response<HealthCheckResponse>, Status> {
    let mut request = Request::new(HealthCheckRequest::default());
    if let Some(value) = value {
        request.metadata_mut().insert("authorization", value.clone());
    }
    HealthClient::new(channel.clone()).check(request).await
}

fn bearer(token: &str) -> Result<AsciiMetadataValue, tonic::metadata::errors::InvalidMetadataValue> {
    let mut value: AsciiMetadataValue = format!("Bearer {token}").parse()?;
    // Debug output of requests omits sensitive values.
    value.set_sensitive(true);
    Ok(value)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listen = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:50051".to_owned());
    let listener = TcpListener::bind(&listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let endpoint = Endpoint::from_shared(format!("http://{}", listener.local_addr()?))?;
    let token = TokenFormat::new("tg")?.mint()?;
    let ctrl_c = async { _ = tokio::signal::ctrl_c().await };
    let server = tokio::spawn(serve(listener, token.digest(), RateLimits::new(QUOTA), ctrl_c));

    let (channel, alice) = (endpoint.connect().await?, bearer(token.expose())?);
    println!("without a token: {:?}", check(&channel, None).await.map_err(|status| status.code()).err());
    for call in 1..=6 {
        match check(&channel, Some(&alice)).await {
            Ok(response) => println!("call {call}: {}", response.get_ref().status().as_str_name()),
            Err(status) => println!("call {call}: {:?}: {}", status.code(), status.message()),
        }
    }
    println!("serving grpc.health.v1.Health on {} until ctrl-c; the token is {}", endpoint.uri(), token.expose());
    Ok(server.await??)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn the_gate_rejects_with_grpc_statuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", listener.local_addr().unwrap())).unwrap();
        // The clock stands still, so that buckets do not refill on a slow machine.
        let limits = RateLimits::new(QUOTA).with_clock(|| Duration::ZERO);
        tokio::spawn(serve(listener, TokenDigest::of("tg_secret"), limits, std::future::pending()));
        let channel = endpoint.connect().await.unwrap();

        let (alice, guess) = (bearer("tg_secret").unwrap(), bearer("tg_guess").unwrap());
        for remaining in (0..5).rev() {
            let response = check(&channel, Some(&alice)).await.unwrap();
            let ratelimit = format!(r#""default";r={remaining};t=12"#);
            assert_eq!(response.metadata().get("ratelimit").unwrap(), ratelimit.as_str());
            // An invalid token does not charge Alice.
            let status = check(&channel, Some(&guess)).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "The token is not valid."));
        }
        let status = check(&channel, Some(&alice)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.metadata().get("retry-after").unwrap(), "12");
        assert_eq!(check(&channel, None).await.unwrap_err().code(), Code::Unauthenticated);
    }
}
