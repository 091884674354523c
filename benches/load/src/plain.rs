//! The plain service: hyper's HTTP/1 server and a handler that answers immediately, with and without a gate.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tollgate::{AuthLayer, Grant, MemoryStore, Quota, RateLimits, TokenDigest};
use tower::{Layer, Service, service_fn};

use crate::Result;
use crate::kinds::token;

/// The number of tokens, which requests use in turn.
pub(crate) const TOKENS: usize = 100_000;

/// More than any load, so that all requests are admitted.
const PLENTY: Quota = Quota::per_second(1_000_000_000).with_burst(20);

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from("ok\n")))
}

/// Serves requests with a known token.
pub(crate) async fn gated(listener: TcpListener) -> Result<()> {
    let tokens: MemoryStore<()> =
        (0..TOKENS).map(|i| (TokenDigest::of(token(i)), Grant::new(format!("user-{i}"), ()))).collect();
    let gate = AuthLayer::new(tokens).with_rate_limit(RateLimits::new(PLENTY));
    serve(listener, gate.layer(service_fn(answer))).await
}

/// Serves all requests.
pub(crate) async fn baseline(listener: TcpListener) -> Result<()> {
    serve(listener, service_fn(answer)).await
}

async fn serve<S>(listener: TcpListener, service: S) -> Result<()>
where
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let service = TowerToHyperService::new(service);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone()));
    }
}
