//! The webhook door. The gate has found out who calls; the alert's own limit and the budget are checked here.

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
/// Alerts that their own limit stops cost nothing. Everything else costs one unit of the budget, alerts that cannot be
/// read or carried out included. What was paid for counts towards the alert's own limit, whatever the broker says then:
/// half of it may be done.
pub(crate) async fn receive(
    State(service): State<Arc<Service>>,
    who: Authenticated<User>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = body.map_err(ProblemDetails::from);
    let alert = body.as_ref().map_err(ProblemDetails::clone).and_then(|body| Alert::parse(&headers, body));
    let charge = match pay(&service, &who, alert.as_ref()).await {
        Ok(charge) => charge,
        Err(refusal) => return refusal.respond(&service, &who),
    };
    // After the charge: the rate limit of a token limits its lines in the log too.
    if let Ok(body) = &body {
        log(&who, body);
    }
    let mut response = match execute(&service, &who, alert) {
        Ok(orders) => Json(json!({ "success": true, "orders": orders })).into_response(),
        Err(refusal) => refusal.respond(&service, &who),
    };
    // What was paid is told, whatever came of it.
    service.gate.advertise(&charge, response.headers_mut());
    response
}

/// Why an alert was not carried out, and in whose words that is said.
enum Refusal {
    AsGate(Rejection),
    AsService(ProblemDetails),
}

impl Refusal {
    fn respond(self, service: &Service, who: &Authenticated<User>) -> Response {
        match self {
            Self::AsGate(rejection) => service.gate.reject(rejection.of_grant(who.grant().id())),
            Self::AsService(problem) => {
                tracing::info!(grant = who.grant().id().as_str(), status = problem.status.as_u16(), "alert rejected");
                service.errors.reject(problem)
            }
        }
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::AsGate(rejection)
    }
}

impl From<ProblemDetails> for Refusal {
    fn from(problem: ProblemDetails) -> Self {
        Self::AsService(problem)
    }
}

impl From<Denied<Rejection>> for Refusal {
    fn from(denied: Denied<Rejection>) -> Self {
        let (detail, wait) = match denied {
            Denied::NotAccepted(rejection) => return Self::AsGate(rejection),
            Denied::OverLimit(wait) => ("The alert's own `rate_limit` is reached for its `id`.", wait),
            Denied::TooManyIds(wait) => ("You limit more ids at a time than can be kept.", wait),
        };
        Self::AsService(ProblemDetails::too_many(detail, wait))
    }
}

/// Charges the budget, and counts the alert towards its own limit.
async fn pay(
    service: &Service,
    who: &Authenticated<User>,
    alert: Result<&Alert, &ProblemDetails>,
) -> Result<Decision, Refusal> {
    let own = alert.ok().and_then(|alert| alert.limit.as_ref());
    let own = own.map(|(id, limit)| (id.as_bytes(), *limit));
    Ok(service.ledger.pay_alert(&who.current(), own).await?)
}

fn execute(
    service: &Service,
    who: &Authenticated<User>,
    alert: Result<Alert, ProblemDetails>,
) -> Result<Vec<Order>, Refusal> {
    if !who.grant().scopes().contains(TRADE) {
        return Err(Rejection::insufficient_scope(service.trade.clone()).into());
    }
    Ok(trade(service, &who.principal().name, alert?.command)?)
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

/// Logs an alert, because users ask what became of theirs. The gate has overwritten the key if it was in the body. If it was
/// not, nobody has looked for keys there, and the body is not logged.
fn log(who: &Authenticated<User>, body: &[u8]) {
    let (grant, user) = (who.grant().id().as_str(), &*who.principal().name);
    match who.location() {
        TokenLocation::TextBody | TokenLocation::JsonBody => {
            tracing::info!(grant, user, body = %Excerpt(body), "alert")
        }
        _ => tracing::info!(grant, user, bytes = body.len(), "alert"),
    }
}
