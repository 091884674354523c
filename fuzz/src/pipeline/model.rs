//! The model: the expected result of each request.

use std::collections::BTreeMap;

use tollgate::RejectionKind;

use super::options::{INTERVAL_NS, Options};
use crate::oracle::{self, Cell, Decision, Locations, Verdict};
use crate::request::{Sent, TokenLocation};

/// The expected result of a request.
#[derive(Clone, Debug)]
pub enum Expected {
    Preflight,
    Anonymous,
    Admitted { token: String, location: TokenLocation, decision: Decision },
    Rejected { kind: RejectionKind, decision: Option<Decision> },
}

/// A model of a gate, its store and its buckets, without the crate's code.
pub struct Model {
    locations: Locations,
    anonymous: bool,
    burst: u32,
    buckets: BTreeMap<&'static str, Cell>,
}

/// The state of a token in the store. All tokens are valid but those with these beginnings.
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

/// Returns the subject of a token. Several tokens share one bucket.
pub fn subject(token: &str) -> &'static str {
    if token.chars().count().is_multiple_of(2) { "alice" } else { "bob" }
}

impl Model {
    pub fn new(options: &Options) -> Self {
        let Options { locations, anonymous, burst, .. } = options.clone();
        Self { locations, anonymous, burst, buckets: BTreeMap::new() }
    }

    pub fn expect(&mut self, request: &Sent, now: i128) -> Expected {
        let rejected = |kind| Expected::Rejected { kind, decision: None };
        let (token, location) = match oracle::extract(request, &self.locations) {
            Verdict::Token(token, location) => (token, location),
            Verdict::Pass => return Expected::Preflight,
            Verdict::Missing if self.anonymous => return Expected::Anonymous,
            Verdict::Missing => return rejected(RejectionKind::Missing),
            Verdict::BadToken => return rejected(RejectionKind::MalformedToken),
            Verdict::BadRequest => return rejected(RejectionKind::InvalidRequest),
            Verdict::TooLarge => return rejected(RejectionKind::BodyTooLarge),
        };
        match condition(&token) {
            Condition::Good => {}
            Condition::Unknown => return rejected(RejectionKind::UnknownToken),
            Condition::Expired => return rejected(RejectionKind::ExpiredToken),
            Condition::NotYetValid => return rejected(RejectionKind::NotYetValid),
            Condition::SenderConstrained => return rejected(RejectionKind::SenderConstrained),
            Condition::Unavailable => return rejected(RejectionKind::StoreUnavailable),
        }
        let full = Cell { interval: INTERVAL_NS, burst: self.burst.into(), tat: 0 };
        let decision = self.buckets.entry(subject(&token)).or_insert(full).charge(now);
        match decision.allowed {
            true => Expected::Admitted { token, location, decision },
            false => Expected::Rejected { kind: RejectionKind::OverLimit, decision: Some(decision) },
        }
    }
}
