//! Connect: rejections are JSON errors. A unary call gets the error with an HTTP status, a streaming call in its last message,
//! with status 200.
//!
//! Without the JSON error, clients derive the code from the HTTP status, and read 429 as UNAVAILABLE.

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
use http::{HeaderValue, Response, StatusCode, header};

use super::grpc;
use super::problem::write_json_string;
use super::{NO_STORE, write_limits};
use crate::rejection::{Rejection, RejectionKind};

/// Returns the name of the error code and its HTTP status. Connect has the same codes as gRPC.
fn code(kind: RejectionKind) -> (&'static str, StatusCode) {
    match grpc::status(kind) {
        "3" => ("invalid_argument", StatusCode::BAD_REQUEST),
        "7" => ("permission_denied", StatusCode::FORBIDDEN),
        "8" => ("resource_exhausted", StatusCode::TOO_MANY_REQUESTS),
        "14" => ("unavailable", StatusCode::SERVICE_UNAVAILABLE),
        "16" => ("unauthenticated", StatusCode::UNAUTHORIZED),
        _ => ("internal", StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// Returns the HTTP status for a unary call.
pub(super) fn status(kind: RejectionKind) -> StatusCode {
    code(kind).1
}

/// Returns the content for a unary call.
pub(super) fn error(rejection: &Rejection) -> Vec<u8> {
    let mut json = String::from(r#"{"code":""#);
    json.push_str(code(rejection.kind()).0);
    json.push_str(r#"","message":"#);
    write_json_string(&mut json, &grpc::message(rejection));
    if let Some(wait) = rejection.retry_after() {
        json.push_str(r#","details":[{"type":"google.rpc.RetryInfo","value":""#);
        BASE64_STANDARD_NO_PAD.encode_string(grpc::retry_info(grpc::whole_millis(wait)), &mut json);
        json.push_str(r#""}]"#);
    }
    json.push('}');
    json.into_bytes()
}

/// Returns the header section for a streaming call.
pub(super) fn stream_head(rejection: &Rejection) -> Response<()> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(NO_STORE));
    write_limits(headers, rejection);
    response
}

/// Returns the content for a streaming call: one message with the end-of-stream flag.
pub(super) fn end_of_stream(rejection: &Rejection) -> Vec<u8> {
    const END_STREAM: u8 = 0b10;
    let message = [br#"{"error":"#, &error(rejection)[..], b"}"].concat();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[END_STREAM], &length.to_be_bytes()[..], &message].concat()
}
