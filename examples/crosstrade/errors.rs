//! In whose words the service says no: a responder of one's own.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use tollgate::respond::Respond;
use tollgate::{ProblemDetails as StandardWords, Rejection};

use crate::problem::ProblemDetails;

/// The body of answers with status 429. All other answers are problem documents (RFC 9457) in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errors {
    /// A problem document as well.
    ProblemDetails,
    /// What CrossTrade's own clients expect.
    CrossTrade,
}

/// What gates ask when they refuse.
impl Respond<Body> for Errors {
    fn respond(&self, rejection: &Rejection) -> Response<Body> {
        // Status, `Retry-After` and the like are as the standards want them; only the body is ours.
        self.dress(StandardWords.respond(rejection))
    }
}

impl Errors {
    /// What handlers ask when they refuse.
    pub(crate) fn reject(self, problem: ProblemDetails) -> Response<Body> {
        self.dress(problem.into_response())
    }

    fn dress(self, mut response: Response<Body>) -> Response<Body> {
        if self == Self::CrossTrade && response.status() == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *response.body_mut() = Body::from(r#"{"error": "Rate limit exceeded"}"#);
        }
        response
    }
}
