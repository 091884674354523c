//! The responder of the service: problem documents, or CrossTrade's own errors.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use tollgate::respond::Respond;
use tollgate::{ProblemDetails as Standard, Rejection};

use crate::problem::ProblemDetails;

/// The format of responses with status 429 to a rate limit. All other errors are problem documents (RFC 9457).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errors {
    /// A problem document.
    ProblemDetails,
    /// The format of CrossTrade's API.
    CrossTrade,
}

impl Respond<Body> for Errors {
    fn respond(&self, rejection: &Rejection) -> Response<Body> {
        // Keeps the status and the headers of the standard responder, and replaces the body only.
        self.adapt(Standard.respond(rejection))
    }
}

impl Errors {
    /// Renders an error of a handler.
    pub(crate) fn reject(self, problem: ProblemDetails) -> Response<Body> {
        self.adapt(problem.into_response())
    }

    fn adapt(self, mut response: Response<Body>) -> Response<Body> {
        if self == Self::CrossTrade && response.status() == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *response.body_mut() = Body::from(r#"{"error": "Rate limit exceeded"}"#);
        }
        response
    }
}
