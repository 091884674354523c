//! gRPC and gRPC-Web: rejections have HTTP status 200, all fields in the header section ("Trailers-Only"), and no body.
//!
//! `grpc-status` is always sent. Clients derive the code from the HTTP status only if it is missing, and would read 429 as
//! UNAVAILABLE.

use std::borrow::Cow;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
use http::{HeaderName, HeaderValue, Response, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::{NO_STORE, ratelimit, write_limits};
use crate::rejection::{Rejection, RejectionKind};

pub(super) fn head(rejection: &Rejection) -> Response<()> {
    let (status, message) = (status(rejection.kind()), message(rejection));
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(rejection.reply().content_type()));
    // Caches see a response with status 200.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(NO_STORE));
    headers.insert(GRPC_STATUS, HeaderValue::from_static(status));
    match rejection.retry_after() {
        Some(wait) => {
            let wait = whole_millis(wait);
            let code = status.parse().unwrap_or_default();
            let details = status_details(code, &message, &retry_info(wait));
            headers.insert(GRPC_RETRY_PUSHBACK_MS, ratelimit::number(pushback(wait)));
            if let Ok(value) = HeaderValue::try_from(BASE64_STANDARD_NO_PAD.encode(details)) {
                headers.insert(GRPC_STATUS_DETAILS_BIN, value);
            }
        }
        // Waiting does not help. A negative value stops clients that retry this status.
        None if status == RESOURCE_EXHAUSTED => {
            headers.insert(GRPC_RETRY_PUSHBACK_MS, HeaderValue::from_static("-1"));
        }
        None => {}
    }
    if let Ok(value) = HeaderValue::try_from(utf8_percent_encode(&message, ESCAPED).to_string()) {
        headers.insert(GRPC_MESSAGE, value);
    }
    write_limits(headers, rejection);
    response
}

/// Returns the `grpc-status`.
pub(super) fn status(kind: RejectionKind) -> &'static str {
    match kind {
        RejectionKind::HttpsRequired | RejectionKind::InsufficientScope => "7",
        // A cost above the burst is about the quota, not about credentials: the client must not fetch a new token.
        RejectionKind::TooManyFailures
        | RejectionKind::OverLimit
        | RejectionKind::CostAboveBurst
        | RejectionKind::BodyTooLarge => RESOURCE_EXHAUSTED,
        // Not about credentials either: the client must keep its token.
        RejectionKind::BodyUnreadable | RejectionKind::BodyTimeout => "3",
        RejectionKind::Misconfigured => "13",
        RejectionKind::StoreUnavailable | RejectionKind::LimiterUnavailable => "14",
        RejectionKind::Missing
        | RejectionKind::MalformedToken
        | RejectionKind::UnknownToken
        | RejectionKind::NotYetValid
        | RejectionKind::ExpiredToken
        | RejectionKind::SenderConstrained
        | RejectionKind::InvalidRequest
        | RejectionKind::InsufficientUserAuthentication => "16",
    }
}

/// Returns the text of a rejection, with the required scopes. Over HTTP they are in the challenge.
pub(super) fn message(rejection: &Rejection) -> Cow<'static, str> {
    let mut text = rejection.detail();
    if let (RejectionKind::InsufficientScope, Some(scopes)) = (rejection.kind(), rejection.required_scopes()) {
        for (at, scope) in scopes.iter().enumerate() {
            let before = if at == 0 { " Required: " } else { " " };
            text.to_mut().extend([before, scope]);
        }
    }
    text
}

const RESOURCE_EXHAUSTED: &str = "8";
pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(super) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(crate) const GRPC_RETRY_PUSHBACK_MS: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
pub(super) const GRPC_STATUS_DETAILS_BIN: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// The ASCII characters that gRPC percent-encodes in a message.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Rounds up to whole milliseconds, at least 1, so that a client is not rejected after this time.
pub(super) fn whole_millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

/// Limits `grpc-retry-pushback-ms` to a signed 32-bit number (gRFC A6). Clients read a larger number as "do not retry".
fn pushback(millis: u64) -> u64 {
    millis.min(i32::MAX.unsigned_abs().into())
}

/// Encodes `google.rpc.RetryInfo`: `retry_delay` (1), a `google.protobuf.Duration` of `seconds` (1) and `nanos` (2).
pub(super) fn retry_info(millis: u64) -> Vec<u8> {
    let mut delay = Vec::new();
    put_number(&mut delay, 1, millis / 1_000);
    put_number(&mut delay, 2, millis % 1_000 * 1_000_000);
    let mut info = Vec::new();
    put_bytes(&mut info, 1, &delay);
    info
}

/// Encodes `google.rpc.Status`: `code` (1), `message` (2) and `details` (3), a `google.protobuf.Any` of `type_url` (1) and
/// `value` (2).
fn status_details(code: u64, message: &str, retry_info: &[u8]) -> Vec<u8> {
    let mut any = Vec::new();
    put_bytes(&mut any, 1, b"type.googleapis.com/google.rpc.RetryInfo");
    put_bytes(&mut any, 2, retry_info);
    let mut status = Vec::new();
    put_number(&mut status, 1, code);
    put_bytes(&mut status, 2, message.as_bytes());
    put_bytes(&mut status, 3, &any);
    status
}

/// Writes an integer field of a protobuf message. 0 is the default and is left out.
fn put_number(out: &mut Vec<u8>, field: u8, number: u64) {
    if number > 0 {
        out.push(field << 3);
        put_varint(out, number);
    }
}

/// Writes a field of a protobuf message that is a string, bytes or a message.
fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}
