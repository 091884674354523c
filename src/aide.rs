//! Integration with aide (feature `aide`): the extractor and rejections in documented handlers.

use aide::OperationInput;
use aide::OperationOutput;
use aide::generate::GenContext;
use aide::openapi::{MediaType, Operation, Response};
use http::StatusCode;

use crate::caller::Authenticated;
use crate::rejection::Rejection;

/// Describes the response to requests without a token: 401. `Option<Authenticated<P>>` is an input as well.
impl<P> OperationInput for Authenticated<P> {
    fn inferred_early_responses(_: &mut GenContext, _: &mut Operation) -> Vec<(Option<u16>, Response)> {
        let status = StatusCode::UNAUTHORIZED.as_u16();
        vec![(Some(status), response(&Rejection::missing().detail()))]
    }
}

/// Describes the default response: the status depends on the rejection.
impl OperationOutput for Rejection {
    type Inner = Self;

    fn operation_response(_: &mut GenContext, _: &mut Operation) -> Option<Response> {
        Some(response("The request was rejected."))
    }

    fn inferred_responses(ctx: &mut GenContext, operation: &mut Operation) -> Vec<(Option<u16>, Response)> {
        Self::operation_response(ctx, operation).map(|response| (None, response)).into_iter().collect()
    }
}

/// Returns a response with problem details.
fn response(description: &str) -> Response {
    let content = [("application/problem+json".to_owned(), MediaType::default())];
    Response { description: description.to_owned(), content: content.into_iter().collect(), ..Response::default() }
}
