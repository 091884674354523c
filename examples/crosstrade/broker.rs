//! A paper broker: market orders are filled immediately at a fixed price, limit orders stay working.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use serde::Serialize;

use crate::order::{Action, OrderType, Ticket, TimeInForce};
use crate::problem::ProblemDetails;

/// The maximum number of orders, and of positions, of an account. Finished orders are dropped to make room, working ones are not.
const MAX_KEPT: usize = 1_000;

/// An accepted order.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Order {
    id: u64,
    account: String,
    instrument: String,
    action: Action,
    qty: u64,
    order_type: OrderType,
    tif: TimeInForce,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_price: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fill_price: Option<f64>,
    status: Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Status {
    Filled,
    Working,
    Cancelled,
}

/// The net position of an account in one instrument, below 0 if more was sold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Position {
    pub(crate) instrument: String,
    pub(crate) qty: i64,
    pub(crate) price: f64,
}

#[derive(Debug, Default)]
struct Account {
    positions: BTreeMap<String, i64>,
    orders: VecDeque<Order>,
}

/// All accounts, by user and name.
#[derive(Debug, Default)]
struct Book {
    accounts: BTreeMap<(String, String), Account>,
    last_id: u64,
}

#[derive(Debug)]
pub(crate) struct Broker(Mutex<Book>);

impl Broker {
    pub(crate) fn new<const N: usize>(accounts: [(&str, &str); N]) -> Self {
        let accounts = accounts.map(|(user, name)| ((user.to_owned(), name.to_owned()), Account::default()));
        Self(Mutex::new(Book { accounts: BTreeMap::from(accounts), last_id: 0 }))
    }

    /// Returns the names of a user's accounts.
    pub(crate) fn accounts(&self, user: &str) -> Vec<String> {
        self.book().accounts.keys().filter(|(owner, _)| owner == user).map(|(_, name)| name.clone()).collect()
    }

    pub(crate) fn positions(&self, user: &str, account: &str) -> Result<Vec<Position>, ProblemDetails> {
        let mut book = self.book();
        let positions = &book.account(user, account)?.positions;
        let position = |(instrument, &qty): (&String, _)| {
            let instrument = instrument.clone();
            Position { price: price(&instrument), instrument, qty }
        };
        Ok(positions.iter().map(position).collect())
    }

    /// Returns the orders of an account, oldest first.
    pub(crate) fn orders(&self, user: &str, account: &str) -> Result<Vec<Order>, ProblemDetails> {
        Ok(self.book().account(user, account)?.orders.iter().cloned().collect())
    }

    /// Places an order that was [checked](Ticket::checked).
    pub(crate) fn place(&self, user: &str, account: &str, ticket: Ticket) -> Result<Order, ProblemDetails> {
        self.book().place(user, account, ticket)
    }

    /// Closes the position in an instrument, or all positions if none is named.
    pub(crate) fn close(
        &self,
        user: &str,
        account: &str,
        instrument: Option<&str>,
    ) -> Result<Vec<Order>, ProblemDetails> {
        let mut book = self.book();
        let positions = book.account(user, account)?.positions.clone();
        let named = positions.into_iter().filter(|(name, _)| instrument.is_none_or(|named| named == name));
        let mut orders = Vec::new();
        for (instrument, held) in named {
            let action = if held > 0 { Action::Sell } else { Action::Buy };
            let qty = held.unsigned_abs();
            orders.push(book.place(user, account, Ticket::market(instrument, action, qty))?);
        }
        Ok(orders)
    }

    /// Cancels the working orders of an account.
    pub(crate) fn cancel_all(&self, user: &str, account: &str) -> Result<Vec<Order>, ProblemDetails> {
        let mut book = self.book();
        let working = book.account(user, account)?.orders.iter_mut().filter(|order| order.status == Status::Working);
        let cancelled = working.map(|order| {
            order.status = Status::Cancelled;
            order.clone()
        });
        Ok(cancelled.collect())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Returns an account of this user. An account of another user gives the same error as a missing one.
    fn account(&mut self, user: &str, account: &str) -> Result<&mut Account, ProblemDetails> {
        self.accounts
            .get_mut(&(user.to_owned(), account.to_owned()))
            .ok_or_else(|| ProblemDetails::new(StatusCode::NOT_FOUND, "You have no account of this name."))
    }

    fn place(&mut self, user: &str, name: &str, ticket: Ticket) -> Result<Order, ProblemDetails> {
        let id = self.last_id + 1;
        let account = self.account(user, name)?;
        account.make_room(&ticket.instrument)?;
        let Ticket { instrument, action, qty, order_type, tif, limit_price, .. } = ticket;
        let (status, fill_price) = match order_type {
            OrderType::Limit => (Status::Working, None),
            OrderType::Market => {
                account.fill(&instrument, action.signed(qty));
                (Status::Filled, Some(price(&instrument)))
            }
        };
        let account_name = name.to_owned();
        let order = Order {
            account: account_name,
            id,
            instrument,
            action,
            qty,
            order_type,
            tif,
            limit_price,
            fill_price,
            status,
        };
        account.orders.push_back(order.clone());
        self.last_id = id;
        Ok(order)
    }
}

impl Account {
    fn make_room(&mut self, instrument: &str) -> Result<(), ProblemDetails> {
        let full = |what| {
            Err(ProblemDetails::new(StatusCode::CONFLICT, format!("The account has {MAX_KEPT} {what} already.")))
        };
        if self.positions.len() >= MAX_KEPT && !self.positions.contains_key(instrument) {
            return full("positions");
        }
        if self.orders.len() >= MAX_KEPT {
            let Some(finished) = self.orders.iter().position(|order| order.status != Status::Working) else {
                return full("working orders");
            };
            self.orders.remove(finished);
        }
        Ok(())
    }

    fn fill(&mut self, instrument: &str, signed: i64) {
        let held = self.positions.entry(instrument.to_owned()).or_default();
        *held += signed;
        if *held == 0 {
            self.positions.remove(instrument);
        }
    }
}

/// Returns the fixed price of an instrument, by the root of its name.
fn price(instrument: &str) -> f64 {
    match instrument.trim_start_matches('M').get(..2) {
        Some("ES") => 5_000.0,
        Some("NQ") => 18_000.0,
        Some("CL") => 75.0,
        Some("GC") => 2_400.0,
        _ => 100.0,
    }
}
