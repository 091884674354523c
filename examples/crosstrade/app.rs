//! The routes of the service. Three interfaces have a gate each, and share one rate limit.
//!
//! | route | credential | charged by |
//! |---|---|---|
//! | `/v1/api/..` | `Authorization: Bearer` | the gate |
//! | `/v1/webhook` | the same, or `key` in the body | the handler, because the alert's own limit is checked first |
//! | `/ws/stream` | the same, or a sub-protocol | the gate for the handshake, the handler for each message |

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use tokio::sync::watch;
use tollgate::gate::BodyTokens;
use tollgate::limit::{Clock, FailureThrottle, MonotonicClock};
use tollgate::{AuthLayer, BoxStore, Quota, Scopes, Unlimited};

use crate::access::Access;
use crate::broker::Broker;
use crate::errors::Errors;
use crate::ledger::{Ledger, LedgerLimiter};
use crate::sockets::Sockets;
use crate::tokens::Tokens;
use crate::{peers, problem, rest, stream, webhook};

/// 3 requests a second with a burst of 20, for all interfaces together.
pub(crate) const QUOTA: Quota = Quota::per_minute(180).with_burst(20);
/// The scope that orders need.
pub(crate) const TRADE: &str = "trade";
/// The prefix of a sub-protocol with a token.
pub(crate) const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.crosstrade.";
/// The largest body, and the largest message of a WebSocket. Orders have some hundred bytes.
pub(crate) const MAX_BODY: usize = 65_536;
/// The timeout for lookups in the database. Cached grants are returned immediately.
const STORE_TIMEOUT: Duration = Duration::from_millis(2_500);
/// The time for the body of an alert: TradingView gives up after 3 seconds. `protocol.rs` limits the time of all bodies.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// The service's own data about a caller.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) name: String,
}

/// The parts of the service, which tests replace.
pub(crate) struct Settings {
    pub(crate) tokens: Tokens,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) errors: Errors,
    pub(crate) clocks: Clocks,
    pub(crate) access: Access,
    /// Turns true when the service is about to stop.
    pub(crate) closing: watch::Receiver<bool>,
    /// `None` serves no pages.
    pub(crate) website: Option<AddRoutes>,
}

/// Adds routes to those of the API, such as the website.
pub(crate) type AddRoutes = Box<dyn FnOnce(Router, Arc<Service>) -> Router + Send>;

/// The clocks: tokens expire at a date, and self-limits need a steady clock.
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

/// The state of all handlers.
pub(crate) struct Service {
    /// For rejections by handlers.
    pub(crate) gate: AuthLayer<BoxStore<User>, Unlimited, Errors>,
    /// The scopes that orders need.
    pub(crate) trade: Scopes,
    pub(crate) tokens: Tokens,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) broker: Broker,
    pub(crate) sockets: Sockets,
    pub(crate) errors: Errors,
    pub(crate) clocks: Clocks,
    pub(crate) access: Access,
    /// The failed authentications of each peer.
    pub(crate) failures: FailureThrottle,
    pub(crate) closing: watch::Receiver<bool>,
}

impl Service {
    pub(crate) fn new(settings: Settings) -> Result<Self, Box<dyn Error>> {
        let Settings { tokens, ledger, errors, clocks, access, closing, website: _ } = settings;
        let failures = peers::throttle(Arc::clone(&clocks.steady), access.client_ip.clone());
        let wall = Arc::clone(&clocks.wall);
        let gate = AuthLayer::with_timeout(tokens.store(), STORE_TIMEOUT)
            .with_realm("crosstrade")?
            .with_responder(errors)
            .with_wall_clock(move || wall())
            .with_failure_throttle(failures.clone())
            // Handlers never see a token, so they may log the whole request.
            .with_credentials_removed();
        let gate = match access.is_https.clone() {
            None => gate,
            Some(is_https) => gate.require_https(move |head| is_https(head)),
        };
        let broker = Broker::new([("demo", "sim101"), ("demo", "sim102"), ("guest", "sim201")]);
        let trade = Scopes::new([TRADE])?;
        let sockets = Sockets::default();
        Ok(Self { gate, trade, tokens, ledger, broker, sockets, errors, clocks, access, failures, closing })
    }
}

pub(crate) fn app(mut settings: Settings) -> Result<Router, Box<dyn Error>> {
    let website = settings.website.take();
    let service = Arc::new(Service::new(settings)?);
    let gate = service.gate.clone();
    let limited = gate.clone().with_rate_limit(LedgerLimiter(Arc::clone(&service.ledger)));
    let may_trade = limited.require_scopes(service.trade.iter())?;
    let body_tokens = BodyTokens::with_timeout(BODY_TIMEOUT)
        .with_json("key")?
        .with_text("key")?
        // TradingView sends some JSON alerts as `text/plain`.
        .with_json_in_text()
        .with_limit(MAX_BODY);

    let rest = Router::new()
        .route("/accounts", get(rest::accounts))
        .route("/accounts/{account}/positions", get(rest::positions))
        .route("/accounts/{account}/orders", get(rest::orders))
        .route("/accounts/{account}/orders/place", post(rest::place).route_layer(may_trade.clone()))
        .route("/accounts/{account}/positions/flatten", post(rest::flatten).route_layer(may_trade))
        .route_layer(limited.clone());
    let webhook = post(webhook::receive).route_layer(gate.with_body_tokens(body_tokens));
    let stream = get(stream::open).route_layer(limited.with_websocket_token(TOKEN_PROTOCOL)?);
    let api = Router::new()
        .nest("/v1/api", rest)
        .route("/v1/webhook", webhook)
        .route("/ws/stream", stream)
        .route("/healthz", get(|| async { axum::Json(serde_json::json!({ "status": "ok" })) }))
        .with_state(Arc::clone(&service));
    let routes = match website {
        None => api,
        Some(add) => add(api, service),
    };
    Ok(routes
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY)))
}
