//! Events by `tracing`.
use std::error::Error;
use std::fmt::Write as _;

use super::Breaker;
use crate::grant::GrantId;
use crate::quota::policy::Policy;
use crate::rejection::protocol::Protocol;
use crate::rejection::store_error::StoreError;
use crate::rejection::{Rejection, RejectionKind};

const TARGET: &str = "tollgate";

macro_rules! rejection_event {
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
        // Any client can cause these, as often as it likes. A log at level INFO must not be filled by clients.
        RejectionKind::Missing
        | RejectionKind::MalformedToken
        | RejectionKind::UnknownToken
        | RejectionKind::InvalidRequest
        | RejectionKind::BodyTooLarge
        | RejectionKind::BodyUnreadable
        | RejectionKind::BodyTimeout
        | RejectionKind::TooManyFailures => rejection_event!(DEBUG, rejection),
        // These need a token that the store knows. Without a grant, the bucket is shared by anonymous callers.
        RejectionKind::NotYetValid
        | RejectionKind::ExpiredToken
        | RejectionKind::SenderConstrained
        | RejectionKind::InsufficientScope
        | RejectionKind::InsufficientUserAuthentication
        | RejectionKind::OverLimit
        | RejectionKind::CostAboveBurst => match rejection.grant() {
            Some(_) => rejection_event!(INFO, rejection),
            None => rejection_event!(DEBUG, rejection),
        },
        // Anyone who sends a token without HTTPS has exposed it. With a grant, an operator must replace the token.
        RejectionKind::HttpsRequired => match rejection.grant() {
            Some(_) => rejection_event!(WARN, rejection),
            None => rejection_event!(DEBUG, rejection),
        },
        // A client can cause this by its choice of a token.
        RejectionKind::StoreUnavailable if rejection.store_error().is_some_and(StoreError::concerns_token) => {
            rejection_event!(DEBUG, rejection);
        }
        // Faults of the service. WARN may pass by itself, ERROR needs a fix.
        RejectionKind::StoreUnavailable | RejectionKind::LimiterUnavailable => rejection_event!(WARN, rejection),
        RejectionKind::Misconfigured => rejection_event!(ERROR, rejection),
    }
}

/// Returns the names of the violated policies, separated by commas.
fn policies(rejection: &Rejection) -> Option<String> {
    let violated: Vec<&str> = rejection.decision()?.violated().map(Policy::name).collect();
    // Empty if the limiter's server did not answer: then no policy was violated.
    (!violated.is_empty()).then(|| violated.join(", "))
}

/// Returns the error of a store and its causes, outermost first.
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
    macro_rules! dry_run_event {
        ($level:ident $(, $grant:ident)?) => {
            tracing::event!(
                target: TARGET, tracing::Level::$level, policy $(, $grant)?,
                "rate limit exceeded in dry run"
            )
        };
    }
    match grant.map(GrantId::as_str) {
        Some(grant) => dry_run_event!(INFO, grant),
        // The bucket is shared by anonymous callers, which any client can be.
        None => dry_run_event!(DEBUG),
    }
}

pub(super) fn breaker_changed(breaker: &'static str, to: Breaker) {
    let state = to.name();
    match to {
        Breaker::Open => {
            tracing::event!(target: TARGET, tracing::Level::WARN, breaker, state, "circuit breaker opened");
        }
        Breaker::HalfOpen => {
            tracing::event!(target: TARGET, tracing::Level::DEBUG, breaker, state, "circuit breaker half-open");
        }
        Breaker::Closed => {
            tracing::event!(target: TARGET, tracing::Level::INFO, breaker, state, "circuit breaker closed");
        }
    }
}
