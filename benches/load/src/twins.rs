//! The service and its twins, each in a process of its own.

use std::io::Write;
use std::sync::Arc;

use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tollgate::{CurrentGrant, Grant, MemoryStore, Quota, RateLimits};

use crate::app::{Clocks, MAX_BODY, QUOTA, Service, Settings, User, app};
use crate::errors::Errors;
use crate::ledger::Memory;
use crate::server::Limits;
use crate::{Result, problem, rest, server, stream, webhook};

pub(crate) const TOKEN: &str = "ct_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// More than any load, with the burst of the service's own quota, so that answers tell of it as they do there.
const PLENTY: Quota = Quota::per_second(1_000_000_000).with_burst(QUOTA.burst());

#[derive(Clone, Copy)]
pub(crate) enum Twin {
    /// The reference service, with a budget that does not end.
    Gated,
    /// The same without gates: handlers find a caller whom nobody has looked for.
    Bare,
    /// The reference service with its own quota.
    Budget,
}

impl Twin {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gated => "gated",
            Self::Bare => "bare",
            Self::Budget => "budget",
        }
    }

    pub(crate) fn named(name: &str) -> Result<Self> {
        let all = [Self::Gated, Self::Bare, Self::Budget];
        all.into_iter().find(|twin| twin.name() == name).ok_or_else(|| format!("there is no twin `{name}`").into())
    }
}

fn settings(quota: Quota) -> Result<Settings> {
    // Ten thousand others, as a service has them.
    let others = (0..10_000).map(|i| (format!("ct_{i:064x}"), grant(&format!("user-{i}"))));
    let tokens = MemoryStore::from_iter(others);
    tokens.replace(TOKEN, grant("demo").with_scopes(["trade"])?);
    let (_, closing) = watch::channel(false);
    let clocks = Clocks::system();
    let ledger = Arc::new(Memory::new(RateLimits::new(quota), Arc::clone(&clocks.steady)));
    Ok(Settings { tokens: tokens.into(), ledger, errors: Errors::ProblemDetails, clocks, closing })
}

fn grant(user: &str) -> Grant<User> {
    Grant::new(user, User { name: user.to_owned() })
}

/// The routes of [`app`], without gates.
fn bare(service: Service) -> Result<Router> {
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

/// Serves on a free port, says which, and never ends.
pub(crate) fn serve(twin: Twin) -> Result<()> {
    let app = match twin {
        Twin::Gated => app(settings(PLENTY)?)?,
        Twin::Budget => app(settings(QUOTA)?)?,
        Twin::Bare => bare(Service::new(settings(PLENTY)?)?)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        server::serve(listener, app, Limits::for_this_process(), std::future::pending()).await;
        Ok(())
    })
}
