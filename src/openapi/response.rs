//! The responses to rejected requests, each described by examples that the gate itself writes.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, Response as HttpResponse, StatusCode, header};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{Header, Ref, RefOr, Response, ResponseBuilder};

use crate::gate::Description;
use crate::rejection::{Rejection, RejectionKind};
use crate::respond::{ProblemDetails, Respond as _};

/// The content of rejections.
#[derive(Clone)]
pub(super) struct Content {
    content_type: String,
    schema_name: String,
    /// The schema, and those that it refers to.
    pub(super) schemas: Vec<(String, RefOr<Schema>)>,
    is_problem_details: bool,
}

impl Content {
    pub(super) fn of<S: ToSchema>(content_type: &str) -> Self {
        let name = S::name().into_owned();
        let mut schemas = vec![(name.clone(), S::schema())];
        S::schemas(&mut schemas);
        Self { content_type: content_type.to_owned(), schema_name: name, schemas, is_problem_details: false }
    }

    pub(super) fn problem_details() -> Self {
        Self { is_problem_details: true, ..Self::of::<ProblemDetails>("application/problem+json") }
    }

    /// Returns the content of a response with one of these reasons.
    fn described(&self, kinds: &[RejectionKind]) -> utoipa::openapi::Content {
        let schema = Ref::from_schema_name(self.schema_name.clone());
        let mut content = ContentBuilder::new().schema(Some(schema));
        if self.is_problem_details {
            let examples = kinds.iter().filter_map(|kind| Some((kind.as_str(), problem(*kind)?)));
            content = content.examples_from_iter(
                examples.map(|(name, value)| (name, ExampleBuilder::new().value(Some(value)).build())),
            );
        }
        content.build()
    }
}

/// Returns the content of [`ProblemDetails`].
fn problem(kind: RejectionKind) -> Option<Value> {
    let response: HttpResponse<Bytes> = ProblemDetails.respond(&Description::example(kind));
    serde_json::from_slice(response.body()).ok()
}

/// Returns the status of a rejection.
pub(super) fn status(kind: RejectionKind) -> StatusCode {
    Description::example(kind).status()
}

/// Returns the response with one of these reasons, which all have the same status. `is_charged` adds rate limit headers.
pub(super) fn response(
    gate: &Description,
    content: Option<&Content>,
    kinds: &[RejectionKind],
    is_charged: bool,
) -> Response {
    let reasons = kinds.iter().map(|kind| format!("- {}\n", Rejection::new(*kind).detail()));
    let status = kinds.first().copied().map(status).unwrap_or_default();
    let title = status.canonical_reason().unwrap_or_default();
    let mut response = ResponseBuilder::new().description(format!("{title}:\n\n{}", reasons.collect::<String>()));
    let mut heads: Vec<_> =
        kinds.iter().map(|kind| gate.head(Description::example(*kind)).into_parts().0.headers).collect();
    if is_charged {
        heads.push(gate.limit_headers());
    }
    for (name, header) in headers(&heads) {
        response = response.header(name, header);
    }
    if let Some(content) = content {
        response = response.content(content.content_type.clone(), content.described(kinds));
    }
    response.build()
}

/// Describes the fields of these examples.
pub(super) fn headers(examples: &[HeaderMap]) -> BTreeMap<String, Header> {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for headers in examples {
        for name in headers.keys() {
            let lines: Vec<_> = headers.get_all(name).iter().filter_map(|line| line.to_str().ok()).collect();
            let value = lines.join(", ");
            let known = values.entry(name.as_str().to_owned()).or_default();
            if !known.contains(&value) {
                known.push(value);
            }
        }
    }
    values.into_iter().map(|(name, values)| (spelled(&name), described(&name, &values))).collect()
}

/// Describes a field by its name and by examples of its value.
fn described(name: &str, values: &[String]) -> Header {
    let numbers: Option<Vec<u64>> = values.iter().map(|value| value.parse().ok()).collect();
    let schema = match &numbers {
        Some(_) => ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(u8::from(name == header::RETRY_AFTER))),
        None => ObjectBuilder::new().schema_type(Type::String),
    };
    let examples: Vec<Value> = match numbers {
        Some(numbers) => numbers.into_iter().map(Value::from).collect(),
        None => values.iter().map(|value| Value::from(value.as_str())).collect(),
    };
    let described = HeaderBuilder::new().schema(Some(schema)).description(description(name));
    match &examples[..] {
        [example] => described.example(Some(example.clone())).build(),
        several => described
            .examples_from_iter(several.iter().enumerate().map(|(at, value)| {
                (format!("example{}", at + 1), ExampleBuilder::new().value(Some(value.clone())).build())
            }))
            .build(),
    }
}

fn description(name: &str) -> Option<&'static str> {
    Some(match name {
        "cache-control" => "Caches must not store this response.",
        "referrer-policy" => "Links must not reveal a token in the URL.",
        "retry-after" => "The number of seconds after which the request may succeed.",
        "www-authenticate" => "How to authenticate (RFC 9110, section 11.6.1; RFC 6750, section 3).",
        "ratelimit" => "The state of each rate limit.",
        "ratelimit-policy" => "The rate limits.",
        "ratelimit-limit" | "x-ratelimit-limit" => "The rate limit with the fewest remaining units.",
        "ratelimit-remaining" | "x-ratelimit-remaining" => "The number of units that remain.",
        "ratelimit-reset" | "x-ratelimit-reset" => "When units are available again.",
        _ => return None,
    })
}

/// Returns the usual spelling of a field name.
fn spelled(name: &str) -> String {
    let parts = name.split('-').map(|part| match part {
        "ratelimit" => "RateLimit".to_owned(),
        "www" => "WWW".to_owned(),
        other => {
            let (first, rest) = other.split_at(other.len().min(1));
            first.to_ascii_uppercase() + rest
        }
    });
    parts.collect::<Vec<_>>().join("-")
}
