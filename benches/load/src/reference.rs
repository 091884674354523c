//! The service and its baseline without a gate, each in its own process.

use std::io::Write;
use std::sync::Arc;

use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tollgate::{CurrentGrant, Grant, MemoryStore, Quota, RateLimits, TokenDigest};

use crate::access::Access;
use crate::app::{Clocks, MAX_BODY, QUOTA, Service, Settings, User, app};
use crate::errors::Errors;
use crate::ledger::Memory;
use crate::server::{Limits, Listener};
use crate::{Result, problem, rest, server, stream, webhook};

pub(crate) const TOKEN: &str = "ct_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// More than any load, with the burst of the service's own quota, so that the headers are the same.
const PLENTY: Quota = Quota::per_second(1_000_000_000).with_burst(QUOTA.burst());

#[derive(Clone, Copy)]
pub(crate) enum Variant {
    /// The reference service with an unlimited quota.
    Gated,
    /// The same service without gates: handlers receive a caller without authentication.
    Baseline,
    /// The reference service with its own quota.
    Limited,
}

impl Variant {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gated => "gated",
            Self::Baseline => "baseline",
            Self::Limited => "limited",
        }
    }

    pub(crate) fn named(name: &str) -> Result<Self> {
        let all = [Self::Gated, Self::Baseline, Self::Limited];
        all.into_iter().find(|variant| variant.name() == name).ok_or_else(|| format!("unknown variant `{name}`").into())
    }
}

fn settings(quota: Quota) -> Result<Settings> {
    // Ten thousand other tokens, as a service has them.
    let others = (0..10_000).map(|i| (TokenDigest::of(format!("ct_{i:064x}")), grant(&format!("user-{i}"))));
    let tokens = MemoryStore::from_iter(others);
    tokens.replace(TokenDigest::of(TOKEN), grant("demo").with_scopes(["trade"])?);
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

fn grant(user: &str) -> Grant<User> {
    Grant::new(user, User { name: user.to_owned() })
}

/// Returns the routes of [`app`] without gates.
fn without_gates(service: Service) -> Result<Router> {
    let caller = CurrentGrant::new(grant("demo").with_scopes(["trade"])?);
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

/// Serves on a free port and prints its address. Never returns.
pub(crate) fn serve(variant: Variant) -> Result<()> {
    let app = match variant {
        Variant::Gated => app(settings(PLENTY)?)?,
        Variant::Limited => app(settings(QUOTA)?)?,
        Variant::Baseline => without_gates(Service::new(settings(PLENTY)?)?)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        let listeners = vec![Listener::plaintext(listener, app)];
        server::serve(listeners, Limits::for_this_process(), std::future::pending()).await;
        Ok(())
    })
}
