//! The service's own errors, as problem documents (RFC 9457).

use std::error::Error;
use std::time::Duration;

use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::body::BodyTimeout;

/// An error with a status and a sentence for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProblemDetails {
    pub(crate) status: StatusCode,
    pub(crate) detail: String,
    retry_after: Option<Duration>,
}

impl ProblemDetails {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), retry_after: None }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// Converts an extractor's error, or returns 408 if the body did not arrive in time.
    fn of_body(error: &(dyn Error + 'static), status: StatusCode, text: String) -> Self {
        match BodyTimeout::caused(error) {
            true => Self::new(StatusCode::REQUEST_TIMEOUT, "The body did not arrive in time."),
            false => Self::new(status, text),
        }
    }

    /// Returns a 429 with this wait.
    pub(crate) fn too_many(detail: impl Into<String>, retry_after: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, detail).with_retry_after(retry_after)
    }

    pub(crate) fn with_retry_after(self, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..self }
    }
}

/// Returns whole seconds for `Retry-After`: rounded up and never 0, so that a client that waits is not too early.
fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

impl IntoResponse for ProblemDetails {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let body = json!({
            "type": "about:blank",
            "title": title,
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let headers = [(header::CONTENT_TYPE, "application/problem+json"), (header::CACHE_CONTROL, "no-store")];
        let mut response = (self.status, headers, body.to_string()).into_response();
        if let Some(wait) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        // The rest of the body is not read, so the connection cannot be reused.
        if matches!(self.status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<JsonRejection> for ProblemDetails {
    fn from(rejection: JsonRejection) -> Self {
        Self::of_body(&rejection, rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for ProblemDetails {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<BytesRejection> for ProblemDetails {
    fn from(rejection: BytesRejection) -> Self {
        Self::of_body(&rejection, rejection.status(), rejection.body_text())
    }
}

/// Answers unknown paths.
pub(crate) async fn not_found() -> ProblemDetails {
    ProblemDetails::new(StatusCode::NOT_FOUND, "There is nothing at this path.")
}

/// Answers methods that a path does not support.
pub(crate) async fn method_not_allowed() -> ProblemDetails {
    ProblemDetails::new(StatusCode::METHOD_NOT_ALLOWED, "This path does not take this method.")
}
