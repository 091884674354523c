//! Orders, in the format of CrossTrade's API.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::problem::ProblemDetails;

/// The maximum quantity of one order.
const MAX_QTY: u64 = 1_000_000;
/// The maximum length of an instrument's name in bytes.
const MAX_INSTRUMENT_LEN: usize = 64;

/// An order as received: the same fields in REST, in messages of the stream and in alerts.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Ticket {
    /// In REST the account is in the path, and this field must be the same.
    pub(crate) account: Option<String>,
    pub(crate) instrument: String,
    pub(crate) action: Action,
    pub(crate) qty: u64,
    #[serde(default)]
    pub(crate) order_type: OrderType,
    #[serde(default)]
    pub(crate) tif: TimeInForce,
    pub(crate) limit_price: Option<f64>,
}

impl Ticket {
    /// Returns an order that closes a position of any size.
    pub(crate) fn market(instrument: String, action: Action, qty: u64) -> Self {
        let (order_type, tif) = (OrderType::Market, TimeInForce::Day);
        Self { account: None, instrument, action, qty, order_type, tif, limit_price: None }
    }

    /// Checks the ticket and normalizes it for the broker.
    pub(crate) fn checked(mut self) -> Result<Self, ProblemDetails> {
        self.instrument = instrument(&self.instrument)?;
        if !(1..=MAX_QTY).contains(&self.qty) {
            return Err(ProblemDetails::bad_request(format!("`qty` is a whole number from 1 to {MAX_QTY}.")));
        }
        self.limit_price = match self.order_type {
            OrderType::Market => None,
            OrderType::Limit => match self.limit_price {
                Some(price) if price.is_finite() && price > 0.0 => Some(price),
                _ => return Err(ProblemDetails::bad_request("A LIMIT order needs a `limit_price` above 0.")),
            },
        };
        Ok(self)
    }
}

/// Normalizes the name of an instrument, as positions show it: `ES 12-26`, `MES1!`, `BRK.B`.
pub(crate) fn instrument(name: &str) -> Result<String, ProblemDetails> {
    let name = name.trim();
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b" -._!/:^".contains(&byte);
    match name.len() {
        1..=MAX_INSTRUMENT_LEN if name.bytes().all(is_fine) => Ok(name.to_ascii_uppercase()),
        _ => Err(ProblemDetails::bad_request("`instrument` is a name such as ES 12-26, of at most 64 characters.")),
    }
}

/// Defines an enum of a few words, without regard to case.
macro_rules! word {
    ($(#[$doc:meta])* $Name:ident, $field:literal: $($(#[$attr:meta])* $Variant:ident = $word:literal),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub(crate) enum $Name {
            $($(#[$attr])* #[serde(rename = $word)] $Variant),+
        }

        impl FromStr for $Name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let words = [$(($word, Self::$Variant)),+];
                let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text.trim()));
                found.map(|&(_, it)| it).ok_or_else(|| {
                    format!("`{}` is one of {}.", $field, words.map(|(word, _)| word).join(", "))
                })
            }
        }

        impl TryFrom<String> for $Name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
    };
}

word! {
    /// The direction of an order.
    Action, "action": Buy = "BUY", Sell = "SELL"
}
word! {
    /// The price of an order.
    #[derive(Default)]
    OrderType, "order_type": #[default] Market = "MARKET", Limit = "LIMIT"
}
word! {
    /// How long a limit order works. The broker stores the value and does not use it.
    #[derive(Default)]
    TimeInForce, "tif": #[default] Day = "DAY", Gtc = "GTC"
}

impl Action {
    /// Returns the signed change of a position.
    pub(crate) fn signed(self, qty: u64) -> i64 {
        match self {
            Self::Buy => qty as i64,
            Self::Sell => -(qty as i64),
        }
    }
}
