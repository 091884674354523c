//! The handlers of the REST API. The gate has charged the request before a handler runs.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use serde_json::{Value, json};
use tollgate::Authenticated;

use crate::app::{Service, User};
use crate::broker::Order;
use crate::order::Ticket;
use crate::problem::ProblemDetails;

type Answer<T> = Result<Json<T>, ProblemDetails>;
/// The account in the path, if it is valid.
type Account = Result<Path<String>, PathRejection>;

pub(crate) async fn accounts(State(service): State<Arc<Service>>, caller: Authenticated<User>) -> Json<Value> {
    Json(json!({ "accounts": service.broker.accounts(&caller.principal().name) }))
}

pub(crate) async fn positions(
    State(service): State<Arc<Service>>,
    caller: Authenticated<User>,
    account: Account,
) -> Answer<Value> {
    let positions = service.broker.positions(&caller.principal().name, &account?.0)?;
    Ok(Json(json!({ "positions": positions })))
}

pub(crate) async fn orders(
    State(service): State<Arc<Service>>,
    caller: Authenticated<User>,
    account: Account,
) -> Answer<Value> {
    let orders = service.broker.orders(&caller.principal().name, &account?.0)?;
    Ok(Json(json!({ "orders": orders })))
}

pub(crate) async fn place(
    State(service): State<Arc<Service>>,
    caller: Authenticated<User>,
    account: Account,
    ticket: Result<Json<Ticket>, JsonRejection>,
) -> Answer<Order> {
    let (Path(account), Json(ticket)) = (account?, ticket?);
    if ticket.account.as_ref().is_some_and(|named| *named != account) {
        return Err(ProblemDetails::bad_request("`account` is not the account in the path."));
    }
    service.broker.place(&caller.principal().name, &account, ticket.checked()?).map(Json)
}

pub(crate) async fn flatten(
    State(service): State<Arc<Service>>,
    caller: Authenticated<User>,
    account: Account,
) -> Answer<Value> {
    let orders = service.broker.close(&caller.principal().name, &account?.0, None)?;
    Ok(Json(json!({ "orders": orders })))
}
