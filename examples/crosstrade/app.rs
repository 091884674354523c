//! The service: three doors, each with its gate, and one budget behind all of them.
//!
//! | door | credential | charged by |
//! |---|---|---|
//! | `/v1/api/..` | `Authorization: Bearer` | the gate |
//! | `/v1/webhook` | the same, or `key` in the body | the handler, because an alert may set itself a limit that comes first |
//! | `/ws/stream` | the same, or a sub-protocol | the gate for opening it, the handler for each message |

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use tokio::sync::watch;
use tollgate::gate::BodyTokens;
use tollgate::limit::{Clock, MonotonicClock};
use tollgate::{AuthLayer, BoxStore, Quota, Scopes, Unlimited};

use crate::broker::Broker;
use crate::errors::Errors;
use crate::ledger::{Budgets, Ledger};
use crate::sockets::Sockets;
use crate::tokens::Tokens;
use crate::{peers, problem, rest, stream, webhook};

/// 3 a second, 20 at once, and for all doors together.
pub(crate) const QUOTA: Quota = Quota::per_minute(180).with_burst(20);
/// The scope that orders need.
pub(crate) const TRADE: &str = "trade";
/// What a sub-protocol begins with that holds a token.
pub(crate) const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.crosstrade.";
/// The largest body, and the largest message of a WebSocket. Orders have some hundred bytes.
pub(crate) const MAX_BODY: usize = 65_536;
/// What is remembered is answered at once; this is for a database that does not answer.
const STORE_DEADLINE: Duration = Duration::from_millis(2_500);
/// The time for the body of an alert: TradingView gives up after 3 seconds. `server.rs` limits the time of all bodies.
pub(crate) const BODY_DEADLINE: Duration = Duration::from_secs(2);

/// What this service knows of its callers.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) name: String,
}

/// What the service is made of, so that a test makes it of something else.
pub(crate) struct Settings {
    pub(crate) tokens: Tokens,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) errors: Errors,
    pub(crate) clocks: Clocks,
    /// Turns true when the service is about to stop.
    pub(crate) closing: watch::Receiver<bool>,
}

/// The time, in two kinds: tokens expire at a date, self-limits count what has passed.
#[derive(Clone)]
pub(crate) struct Clocks {
    pub(crate) wall: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    pub(crate) steady: Arc<dyn Clock>,
}

impl Clocks {
    pub(crate) fn system() -> Self {
        Self { wall: Arc::new(SystemTime::now), steady: Arc::new(MonotonicClock::new()) }
    }
}

/// What the handlers share.
pub(crate) struct Service {
    /// To refuse in the gate's words.
    pub(crate) gate: AuthLayer<BoxStore<User>, Unlimited, Errors>,
    /// What orders need.
    pub(crate) trade: Scopes,
    pub(crate) tokens: Tokens,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) broker: Broker,
    pub(crate) sockets: Sockets,
    pub(crate) errors: Errors,
    pub(crate) clocks: Clocks,
    pub(crate) closing: watch::Receiver<bool>,
}

impl Service {
    pub(crate) fn new(settings: Settings) -> Result<Self, Box<dyn Error>> {
        let Settings { tokens, ledger, errors, clocks, closing } = settings;
        let wall = Arc::clone(&clocks.wall);
        let gate = AuthLayer::with_timeout(tokens.store(), STORE_DEADLINE)
            .with_realm("crosstrade")?
            .with_responder(errors)
            .with_wall_clock(move || wall())
            .with_failure_throttle(peers::throttle(Arc::clone(&clocks.steady)))
            // No handler has to see a token, so that each may log what it sees.
            .with_credentials_removed();
        let broker = Broker::new([("demo", "sim101"), ("demo", "sim102")]);
        let trade = Scopes::new([TRADE])?;
        let sockets = Sockets::default();
        Ok(Self { gate, trade, tokens, ledger, broker, sockets, errors, clocks, closing })
    }
}

pub(crate) fn app(settings: Settings) -> Result<Router, Box<dyn Error>> {
    let service = Service::new(settings)?;
    let gate = service.gate.clone();
    let metered = gate.clone().with_rate_limit(Budgets(Arc::clone(&service.ledger)));
    let may_trade = metered.require_scopes(service.trade.iter())?;
    let body_doors = BodyTokens::with_timeout(BODY_DEADLINE)
        .with_json("key")?
        .with_text("key")?
        // TradingView sends JSON as `text/plain` when it is not sure that it is JSON.
        .with_json_in_text()
        .with_limit(MAX_BODY);

    let rest = Router::new()
        .route("/accounts", get(rest::accounts))
        .route("/accounts/{account}/positions", get(rest::positions))
        .route("/accounts/{account}/orders", get(rest::orders))
        .route("/accounts/{account}/orders/place", post(rest::place).route_layer(may_trade.clone()))
        .route("/accounts/{account}/positions/flatten", post(rest::flatten).route_layer(may_trade))
        .route_layer(metered.clone());
    let webhook = post(webhook::receive).route_layer(gate.with_body_tokens(body_doors));
    let stream = get(stream::open).route_layer(metered.with_websocket_token(TOKEN_PROTOCOL)?);
    Ok(Router::new()
        .nest("/v1/api", rest)
        .route("/v1/webhook", webhook)
        .route("/ws/stream", stream)
        .route("/healthz", get(|| async { axum::Json(serde_json::json!({ "status": "ok" })) }))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Arc::new(service)))
}
