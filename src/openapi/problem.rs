//! The schema of problem details.

use std::borrow::Cow;

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::respond::ProblemDetails;

/// The schema of the content that [`ProblemDetails`] writes.
impl PartialSchema for ProblemDetails {
    fn schema() -> RefOr<Schema> {
        let text = |description: &str| ObjectBuilder::new().schema_type(Type::String).description(Some(description));
        let uri_reference = SchemaFormat::Custom("uri-reference".to_owned());
        let status = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(400))
            .maximum(Some(599))
            .description(Some("The status of the response."));
        let policies = ArrayBuilder::new()
            .items(ObjectBuilder::new().schema_type(Type::String))
            .description(Some("The names of the rate limits that are exhausted. On 429 only."));
        ObjectBuilder::new()
            .description(Some("Why the request was rejected: problem details (RFC 9457)."))
            .property("type", text("The type of the problem.").format(Some(uri_reference)))
            .property("title", text("The name of the type, or of the status."))
            .property("status", status)
            .property("detail", text("The reason, for people."))
            .property("violated-policies", policies)
            .required("type")
            .required("title")
            .required("status")
            .required("detail")
            .into()
    }
}

/// The schema `RejectionProblem`. Operations can use it for rejections that they describe themselves.
impl ToSchema for ProblemDetails {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("RejectionProblem")
    }
}
