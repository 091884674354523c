//! The reference service and its baseline without a gate.

use std::sync::Arc;

use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tollgate::{CurrentGrant, Grant, MemoryStore, Quota, RateLimits, TokenDigest};

use crate::access::Access;
use crate::app::{Clocks, MAX_BODY, QUOTA, Service, Settings, User, app};
use crate::errors::Errors;
use crate::kinds::token;
use crate::ledger::Memory;
use crate::server::{Limits, Listener};
use crate::{Result, problem, rest, server, stream, webhook};

/// The number of tokens, which requests use in turn.
pub(crate) const TOKENS: usize = 10_000;

/// More than any load, with the burst of the service's own quota, so that the headers are the same.
const PLENTY: Quota = Quota::per_second(1_000_000_000).with_burst(QUOTA.burst());

/// Serves requests with a known token, and admits all of them.
pub(crate) async fn gated(listener: TcpListener) -> Result<()> {
    serve(listener, app(settings(PLENTY)?)?).await
}

/// Serves requests with a known token, with the service's own quota.
pub(crate) async fn limited(listener: TcpListener) -> Result<()> {
    serve(listener, app(settings(QUOTA)?)?).await
}

/// Serves all requests by the same routes and handlers without gates. Handlers get a caller without authentication.
pub(crate) async fn baseline(listener: TcpListener) -> Result<()> {
    serve(listener, without_gates(Service::new(settings(PLENTY)?)?)?).await
}

async fn serve(listener: TcpListener, app: Router) -> Result<()> {
    let listeners = vec![Listener::plaintext(listener, app)];
    server::serve(listeners, Limits::for_this_process(), std::future::pending()).await;
    Ok(())
}

fn settings(quota: Quota) -> Result<Settings> {
    let tokens = MemoryStore::new();
    for i in 0..TOKENS {
        tokens.replace(TokenDigest::of(token(i)), grant(&format!("user-{i}"))?);
    }
    let (_, closing) = watch::channel(false);
    let clocks = Clocks::system();
    let ledger = Arc::new(Memory::new(RateLimits::new(quota), Arc::clone(&clocks.steady)));
    Ok(Settings {
        tokens: tokens.into(),
        ledger,
        errors: Errors::ProblemDetails,
        clocks,
        access: Access::plaintext(),
        closing,
        website: None,
    })
}

/// Returns the grant of a subject. All subjects use the accounts of one user, so that all responses have the same length.
fn grant(subject: &str) -> Result<Grant<User>> {
    Ok(Grant::new(subject, User { name: "demo".to_owned() }).with_scopes(["trade"])?)
}

/// Returns the routes of [`app`] without gates.
fn without_gates(service: Service) -> Result<Router> {
    let caller = CurrentGrant::new(grant("demo")?);
    let rest = Router::new()
        .route("/accounts", get(rest::accounts))
        .route("/accounts/{account}/positions", get(rest::positions))
        .route("/accounts/{account}/orders", get(rest::orders))
        .route("/accounts/{account}/orders/place", post(rest::place))
        .route("/accounts/{account}/positions/flatten", post(rest::flatten));
    Ok(Router::new()
        .nest("/v1/api", rest)
        .route("/v1/webhook", post(webhook::receive))
        .route("/ws/stream", get(stream::open))
        .route("/healthz", get(|| async {}))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(Extension(caller))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(Arc::new(service)))
}
