use std::collections::BTreeMap;

use tollgate::RejectionKind;

use super::options::{INTERVAL_NS, Options};
use crate::oracle::{self, Cell, Decision, Doors, Verdict};
use crate::request::{TokenLocation, Sent};

/// What is to become of a request.
#[derive(Clone, Debug)]
pub enum Expected {
    Preflight,
    Anonymous,
    Admitted { token: String, location: TokenLocation, decision: Decision },
    Refused { kind: RejectionKind, decision: Option<Decision> },
}

/// A gate, its store and its budgets, without any of its code.
pub struct Model {
    doors: Doors,
    anonymous: bool,
    burst: u32,
    budgets: BTreeMap<&'static str, Cell>,
}

/// What the store knows of a token: all are good but those with these beginnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Good,
    Unknown,
    Expired,
    NotYetValid,
    SenderConstrained,
    Unavailable,
}

pub fn condition(token: &str) -> Condition {
    let conditions = [
        ("nope", Condition::Unknown),
        ("gone", Condition::Unknown),
        ("old", Condition::Expired),
        ("soon", Condition::NotYetValid),
        ("dpop", Condition::SenderConstrained),
        ("any", Condition::Unavailable),
    ];
    conditions.iter().find(|(begin, _)| token.starts_with(begin)).map_or(Condition::Good, |(_, condition)| *condition)
}

/// Whose token it is: several have one budget.
pub fn subject(token: &str) -> &'static str {
    if token.chars().count().is_multiple_of(2) { "alice" } else { "bob" }
}

impl Model {
    pub fn new(options: &Options) -> Self {
        let Options { doors, anonymous, burst, .. } = options.clone();
        Self { doors, anonymous, burst, budgets: BTreeMap::new() }
    }

    pub fn expect(&mut self, request: &Sent, now: i128) -> Expected {
        let refused = |kind| Expected::Refused { kind, decision: None };
        let (token, location) = match oracle::look(request, &self.doors) {
            Verdict::Token(token, location) => (token, location),
            Verdict::Pass => return Expected::Preflight,
            Verdict::Missing if self.anonymous => return Expected::Anonymous,
            Verdict::Missing => return refused(RejectionKind::Missing),
            Verdict::BadToken => return refused(RejectionKind::MalformedToken),
            Verdict::BadRequest => return refused(RejectionKind::InvalidRequest),
            Verdict::TooLarge => return refused(RejectionKind::BodyTooLarge),
        };
        match condition(&token) {
            Condition::Good => {}
            Condition::Unknown => return refused(RejectionKind::UnknownToken),
            Condition::Expired => return refused(RejectionKind::ExpiredToken),
            Condition::NotYetValid => return refused(RejectionKind::NotYetValid),
            Condition::SenderConstrained => return refused(RejectionKind::SenderConstrained),
            Condition::Unavailable => return refused(RejectionKind::StoreUnavailable),
        }
        let full = Cell { interval: INTERVAL_NS, burst: self.burst.into(), tat: 0 };
        let decision = self.budgets.entry(subject(&token)).or_insert(full).charge(now);
        match decision.allowed {
            true => Expected::Admitted { token, location, decision },
            false => Expected::Refused { kind: RejectionKind::OverLimit, decision: Some(decision) },
        }
    }
}
