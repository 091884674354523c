//! Refusals in gRPC's words: HTTP status 200, everything in the head ("Trailers-Only"), nothing in the body.
//!
//! The table from HTTP to gRPC status is for clients that got no `grpc-status`; servers must not rely on it. A 429
//! would be read as UNAVAILABLE, and retried.

use http::{HeaderValue, Response, header};

use super::{GRPC_MESSAGE, GRPC_STATUS, NO_STORE, write_limits};
use crate::rejection::{Rejection, RejectionKind};

pub(super) fn head(rejection: &Rejection) -> Response<()> {
    // The messages are ASCII without a percent sign, so that they need no percent-encoding.
    let (status, message) = match rejection.kind() {
        RejectionKind::TooManyFailures => ("8", "too many attempts to authenticate have failed"),
        RejectionKind::OverLimit => ("8", "the budget is spent"),
        RejectionKind::InsufficientScope => ("7", "the token lacks a scope"),
        RejectionKind::StoreUnavailable => ("14", "the token store is unavailable"),
        RejectionKind::LimiterUnavailable => ("14", "the limiter is unavailable"),
        RejectionKind::Misconfigured => ("13", "the gate is not set up correctly"),
        // About a quota, and not about credentials: a client must not fetch a new token and try again.
        RejectionKind::CostAboveBurst => ("8", "the request costs more than the budget can ever hold"),
        RejectionKind::Missing => ("16", "no credentials were presented"),
        RejectionKind::InvalidRequest => ("16", "the credentials are ambiguous"),
        RejectionKind::BodyTooLarge => ("8", "the body is too large"),
        RejectionKind::BodyUnreadable => ("16", "the body could not be read"),
        RejectionKind::BodyTimeout => ("16", "the body did not come in time"),
        RejectionKind::ExpiredToken => ("16", "the token has expired"),
        RejectionKind::InsufficientUserAuthentication => ("16", "the user has to authenticate again"),
        RejectionKind::MalformedToken
        | RejectionKind::UnknownToken
        | RejectionKind::NotYetValid
        | RejectionKind::SenderConstrained => ("16", "the token is not valid"),
    };
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    // To a cache it is an answer like any other, of status 200.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(NO_STORE));
    headers.insert(GRPC_STATUS, HeaderValue::from_static(status));
    headers.insert(GRPC_MESSAGE, HeaderValue::from_static(message));
    write_limits(headers, rejection);
    response
}
