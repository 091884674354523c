//! Parses alerts: bytes in, a command out.

use std::fmt::Display;
use std::str::FromStr;

use axum::http::HeaderMap;

use crate::fields::{Field, Fields};
use crate::order::{Ticket, instrument};
use crate::problem::ProblemDetails;
use crate::self_limit::{self, SelfLimit};

/// The command of an alert, and its own limit.
#[derive(Debug)]
pub(crate) struct Alert {
    pub(crate) command: Command,
    pub(crate) limit: Option<(String, SelfLimit)>,
}

#[derive(Debug)]
pub(crate) enum Command {
    Place {
        account: String,
        ticket: Ticket,
    },
    ClosePosition {
        account: String,
        instrument: String,
    },
    /// Closes positions and cancels working orders, of all accounts if none is named.
    FlattenEverything {
        account: Option<String>,
    },
    CancelAllOrders {
        account: Option<String>,
    },
}

impl Alert {
    pub(crate) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Self, ProblemDetails> {
        let mut fields = Fields::parse(headers, body)?;
        let (rate_limit, id) = (fields.rate_limit.0.take(), fields.id.0.take());
        let limit = self_limit::parse(rate_limit.as_deref().map(str::as_bytes), id.as_deref().map(str::as_bytes))
            .map_err(|invalid| ProblemDetails::bad_request(invalid.as_str()))?;
        let limit = limit.zip(id).map(|(limit, id)| (id, limit));
        Ok(Self { command: Command::of(fields)?, limit })
    }
}

impl Command {
    fn of(fields: Fields) -> Result<Self, ProblemDetails> {
        let command: String = required(fields.command, "command")?;
        let account = fields.account.0;
        let named = |account: Option<String>| account.ok_or_else(|| missing("account"));
        Ok(match command.to_ascii_uppercase().as_str() {
            "PLACE" => {
                let ticket = Ticket {
                    account: None,
                    instrument: required(fields.instrument, "instrument")?,
                    action: required(fields.action, "action")?,
                    qty: required(fields.qty, "qty")?,
                    order_type: optional(fields.order_type, "order_type")?.unwrap_or_default(),
                    tif: optional(fields.tif, "tif")?.unwrap_or_default(),
                    limit_price: optional(fields.limit_price, "limit_price")?,
                };
                Self::Place { account: named(account)?, ticket: ticket.checked()? }
            }
            "CLOSEPOSITION" => {
                let name: String = required(fields.instrument, "instrument")?;
                Self::ClosePosition { account: named(account)?, instrument: instrument(&name)? }
            }
            "FLATTENEVERYTHING" => Self::FlattenEverything { account },
            "CANCELALLORDERS" => Self::CancelAllOrders { account },
            _ => {
                let known = "PLACE, CLOSEPOSITION, FLATTENEVERYTHING, CANCELALLORDERS";
                return Err(ProblemDetails::bad_request(format!("`command` is one of {known}.")));
            }
        })
    }
}

fn required<T: FromStr<Err: Display>>(field: Field, name: &str) -> Result<T, ProblemDetails> {
    optional(field, name)?.ok_or_else(|| missing(name))
}

fn optional<T: FromStr<Err: Display>>(field: Field, name: &str) -> Result<Option<T>, ProblemDetails> {
    let wrong = |error| ProblemDetails::bad_request(format!("`{name}` cannot be read: {error}"));
    field.0.map(|text| text.parse().map_err(wrong)).transpose()
}

fn missing(name: &str) -> ProblemDetails {
    ProblemDetails::bad_request(format!("The alert has no `{name}`."))
}
