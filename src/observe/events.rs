use std::error::Error;
use std::fmt::Write as _;

use super::Breaker;
use crate::grant::GrantId;
use crate::quota::policy::Policy;
use crate::rejection::protocol::Protocol;
use crate::rejection::store_error::StoreError;
use crate::rejection::{Rejection, RejectionKind};

const TARGET: &str = "tollgate";

macro_rules! refusal {
    ($level:ident, $rejection:ident) => {
        tracing::event!(
            target: TARGET,
            tracing::Level::$level,
            kind = $rejection.kind().as_str(),
            protocol = protocol($rejection.protocol()),
            grant = $rejection.grant().map(GrantId::as_str),
            policy = policies($rejection).as_deref(),
            retry_after_s = $rejection.retry_after_secs(),
            concerns = $rejection.store_error().map(|error| if error.concerns_token() { "token" } else { "store" }),
            error = causes($rejection).as_deref(),
            hint = Some($rejection.hint()).filter(|hint| !hint.is_empty()),
            "{}", $rejection
        )
    };
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "http",
        Protocol::Grpc => "grpc",
        Protocol::GrpcWeb => "grpc-web",
        Protocol::Connect | Protocol::ConnectStream => "connect",
    }
}

pub(super) fn rejected(rejection: &Rejection) {
    match rejection.kind() {
        // What anybody can send, as often as he likes: a log that is read every day must not be his to fill.
        RejectionKind::Missing
        | RejectionKind::MalformedToken
        | RejectionKind::UnknownToken
        | RejectionKind::InvalidRequest
        | RejectionKind::BodyTooLarge
        | RejectionKind::BodyUnreadable
        | RejectionKind::BodyTimeout
        | RejectionKind::TooManyFailures => refusal!(DEBUG, rejection),
        // What needs a token that a store knows, unless nobody is named: budgets that strangers share.
        RejectionKind::NotYetValid
        | RejectionKind::ExpiredToken
        | RejectionKind::SenderConstrained
        | RejectionKind::InsufficientScope
        | RejectionKind::InsufficientUserAuthentication
        | RejectionKind::OverLimit
        | RejectionKind::CostAboveBurst => match rejection.grant() {
            Some(_) => refusal!(INFO, rejection),
            None => refusal!(DEBUG, rejection),
        },
        // A client may cause this by its choice of a token.
        RejectionKind::StoreUnavailable if rejection.store_error().is_some_and(StoreError::concerns_token) => {
            refusal!(DEBUG, rejection);
        }
        // The service's own faults: one that passes, and one that somebody has to mend.
        RejectionKind::StoreUnavailable | RejectionKind::LimiterUnavailable => refusal!(WARN, rejection),
        RejectionKind::Misconfigured => refusal!(ERROR, rejection),
    }
}

/// Whose limits were met, separated by commas.
fn policies(rejection: &Rejection) -> Option<String> {
    let violated: Vec<&str> = rejection.decision()?.violated().map(Policy::name).collect();
    // None where it was no policy: the limiter's server did not answer.
    (!violated.is_empty()).then(|| violated.join(", "))
}

/// Why a store failed, from the outside in.
fn causes(rejection: &Rejection) -> Option<String> {
    let mut cause = rejection.source()?.source();
    let mut text = String::new();
    while let Some(error) = cause {
        let separator = if text.is_empty() { "" } else { ": " };
        // Writing into a string does not fail.
        _ = write!(text, "{separator}{error}");
        cause = error.source();
    }
    Some(text)
}

pub(super) fn would_reject(policy: &str, grant: Option<&GrantId>) {
    macro_rules! told {
        ($level:ident $(, $grant:ident)?) => {
            tracing::event!(
                target: TARGET, tracing::Level::$level, policy $(, $grant)?,
                "a policy that only watches would have refused"
            )
        };
    }
    match grant.map(GrantId::as_str) {
        Some(grant) => told!(INFO, grant),
        // Of budgets that strangers share.
        None => told!(DEBUG),
    }
}

pub(super) fn breaker_changed(breaker: &'static str, to: Breaker) {
    let state = to.name();
    match to {
        Breaker::Open => {
            tracing::event!(target: TARGET, tracing::Level::WARN, breaker, state, "what has failed is not asked for a while");
        }
        Breaker::HalfOpen => {
            tracing::event!(target: TARGET, tracing::Level::DEBUG, breaker, state, "one request tries it");
        }
        Breaker::Closed => {
            tracing::event!(target: TARGET, tracing::Level::INFO, breaker, state, "it is there again");
        }
    }
}
