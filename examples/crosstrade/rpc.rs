//! The methods of the stream: a text in, an answer out.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tollgate::Grant;

use axum::http::StatusCode;

use crate::app::{Service, TRADE, User};
use crate::order::Ticket;
use crate::problem::ProblemDetails;

/// A message of the client.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Message {
    Ping,
    Rpc {
        /// The client's id of its request, which the answer repeats.
        #[serde(default)]
        id: Value,
        method: String,
        #[serde(default)]
        params: Value,
    },
}

/// The account of a method.
#[derive(Debug, Deserialize)]
struct In {
    account: String,
}

/// Answers a message that was charged.
pub(crate) fn answer(service: &Service, grant: &Grant<User>, text: &str) -> Value {
    match serde_json::from_str(text) {
        Err(error) => {
            failed(&Value::Null, &ProblemDetails::bad_request(format!("The message cannot be read: {error}")))
        }
        Ok(Message::Ping) => json!({ "op": "pong" }),
        Ok(Message::Rpc { id, method, params }) => match call(service, grant, &method, params) {
            Ok(result) => json!({ "op": "result", "id": id, "method": method, "result": result }),
            Err(problem) => failed(&id, &problem),
        },
    }
}

pub(crate) fn failed(id: &Value, problem: &ProblemDetails) -> Value {
    json!({ "op": "error", "id": id, "status": problem.status.as_u16(), "error": problem.detail })
}

fn call(service: &Service, grant: &Grant<User>, method: &str, params: Value) -> Result<Value, ProblemDetails> {
    let (broker, user) = (&service.broker, &grant.principal().name);
    let may_trade = || match grant.scopes().contains(TRADE) {
        true => Ok(()),
        false => Err(ProblemDetails::new(StatusCode::FORBIDDEN, "The token does not have the scope `trade`.")),
    };
    Ok(match method {
        "accounts" => json!({ "accounts": broker.accounts(user) }),
        "positions" => json!({ "positions": broker.positions(user, &read::<In>(params)?.account)? }),
        "orders" => json!({ "orders": broker.orders(user, &read::<In>(params)?.account)? }),
        "place" => {
            may_trade()?;
            let ticket = read::<Ticket>(params)?.checked()?;
            let account =
                ticket.account.clone().ok_or_else(|| ProblemDetails::bad_request("The order has no `account`."))?;
            json!(broker.place(user, &account, ticket)?)
        }
        "flatten" => {
            may_trade()?;
            json!({ "orders": broker.close(user, &read::<In>(params)?.account, None)? })
        }
        _ => {
            let detail = "The methods are accounts, positions, orders, place and flatten.";
            return Err(ProblemDetails::new(StatusCode::NOT_FOUND, detail));
        }
    })
}

fn read<T: DeserializeOwned>(params: Value) -> Result<T, ProblemDetails> {
    serde_json::from_value(params).map_err(|error| ProblemDetails::bad_request(format!("`params`: {error}")))
}
