//! The handler of the webhook. The gate has authenticated the caller; the handler checks the alert's own limit and the rate limit.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tollgate::{Authenticated, Decision, Rejection, TokenLocation};

use crate::alert::{Alert, Command};
use crate::app::{Service, TRADE, User};
use crate::broker::Order;
use crate::excerpt::Excerpt;
use crate::problem::ProblemDetails;
use crate::self_limit::Denied;

/// Takes an alert.
///
/// An alert that its own limit rejects costs nothing. Every other alert costs one unit, even if it is invalid or cannot be
/// carried out. A charged alert counts towards its own limit even if the broker rejects it: half of it may be done.
pub(crate) async fn receive(
    State(service): State<Arc<Service>>,
    caller: Authenticated<User>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = body.map_err(ProblemDetails::from);
    let alert = body.as_ref().map_err(ProblemDetails::clone).and_then(|body| Alert::parse(&headers, body));
    let decision = match charge(&service, &caller, alert.as_ref()).await {
        Ok(decision) => decision,
        Err(error) => return error.respond(&service, &caller),
    };
    // After the charge: the rate limit of a token limits its lines in the log too.
    if let Ok(body) = &body {
        log(&caller, body);
    }
    let mut response = match execute(&service, &caller, alert) {
        Ok(orders) => Json(json!({ "success": true, "orders": orders })).into_response(),
        Err(error) => error.respond(&service, &caller),
    };
    // The headers advertise the charge in any case.
    service.gate.advertise(&decision, response.headers_mut());
    response
}

/// Why an alert was not carried out: a rejection of the gate, or an error of the service.
enum AlertError {
    Gate(Rejection),
    Service(ProblemDetails),
}

impl AlertError {
    fn respond(self, service: &Service, caller: &Authenticated<User>) -> Response {
        match self {
            Self::Gate(rejection) => service.gate.reject(rejection.of_grant(caller.grant().id())),
            Self::Service(problem) => {
                tracing::info!(
                    grant = caller.grant().id().as_str(),
                    status = problem.status.as_u16(),
                    "alert rejected"
                );
                service.errors.reject(problem)
            }
        }
    }
}

impl From<Rejection> for AlertError {
    fn from(rejection: Rejection) -> Self {
        Self::Gate(rejection)
    }
}

impl From<ProblemDetails> for AlertError {
    fn from(problem: ProblemDetails) -> Self {
        Self::Service(problem)
    }
}

impl From<Denied<Rejection>> for AlertError {
    fn from(denied: Denied<Rejection>) -> Self {
        let (detail, wait) = match denied {
            Denied::NotAccepted(rejection) => return Self::Gate(rejection),
            Denied::OverLimit(wait) => ("The alert's own `rate_limit` is reached for its `id`.", wait),
            Denied::TooManyIds(wait) => ("You limit more ids at a time than can be kept.", wait),
        };
        Self::Service(ProblemDetails::too_many(detail, wait))
    }
}

/// Charges the caller, and counts the alert towards its own limit.
async fn charge(
    service: &Service,
    caller: &Authenticated<User>,
    alert: Result<&Alert, &ProblemDetails>,
) -> Result<Decision, AlertError> {
    let own = alert.ok().and_then(|alert| alert.limit.as_ref());
    let own = own.map(|(id, limit)| (id.as_bytes(), *limit));
    Ok(service.ledger.charge_alert(&caller.current(), own).await?)
}

fn execute(
    service: &Service,
    caller: &Authenticated<User>,
    alert: Result<Alert, ProblemDetails>,
) -> Result<Vec<Order>, AlertError> {
    if !caller.grant().scopes().contains(TRADE) {
        return Err(Rejection::insufficient_scope(service.trade.clone()).into());
    }
    Ok(trade(service, &caller.principal().name, alert?.command)?)
}

fn trade(service: &Service, user: &str, command: Command) -> Result<Vec<Order>, ProblemDetails> {
    let broker = &service.broker;
    let named_or_all = |account: Option<String>| account.map_or_else(|| broker.accounts(user), |name| vec![name]);
    match command {
        Command::Place { account, ticket } => Ok(vec![broker.place(user, &account, ticket)?]),
        Command::ClosePosition { account, instrument } => broker.close(user, &account, Some(&instrument)),
        Command::FlattenEverything { account } => {
            let mut orders = Vec::new();
            for account in named_or_all(account) {
                orders.extend(broker.cancel_all(user, &account)?);
                orders.extend(broker.close(user, &account, None)?);
            }
            Ok(orders)
        }
        Command::CancelAllOrders { account } => {
            let accounts = named_or_all(account);
            let cancelled: Result<Vec<_>, _> = accounts.iter().map(|name| broker.cancel_all(user, name)).collect();
            Ok(cancelled?.concat())
        }
    }
}

/// Logs an alert, because users ask about theirs. If the key was in the body, the gate has overwritten it. Otherwise the body was
/// not searched for keys, and is not logged.
fn log(caller: &Authenticated<User>, body: &[u8]) {
    let (grant, user) = (caller.grant().id().as_str(), &*caller.principal().name);
    match caller.location() {
        TokenLocation::TextBody | TokenLocation::JsonBody => {
            tracing::info!(grant, user, body = %Excerpt(body), "alert");
        }
        _ => tracing::info!(grant, user, bytes = body.len(), "alert"),
    }
}
