//! Reads documents, and checks responses against them, with code of its own.

use http::{HeaderMap, Method, Response};
use serde_json::Value;

use crate::kit::*;

/// The fields that a gate writes. Others come from the server or the handler.
const FIELDS: [&str; 12] = [
    "cache-control",
    "ratelimit",
    "ratelimit-limit",
    "ratelimit-policy",
    "ratelimit-remaining",
    "ratelimit-reset",
    "referrer-policy",
    "retry-after",
    "www-authenticate",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
];

pub struct Document(pub Value);

impl Document {
    pub fn of(api: &utoipa::openapi::OpenApi) -> Self {
        Self(serde_json::to_value(api).unwrap())
    }

    pub fn operation(&self, method: &Method, path: &str) -> &Value {
        &self.0["paths"][path][method.as_str().to_lowercase()]
    }

    /// Follows a reference of the document.
    pub fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value.get("$ref").and_then(Value::as_str) {
            None => value,
            Some(to) => self.0.pointer(to.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{to} exists")),
        }
    }

    /// Returns the names of the security schemes of an operation. Each is a requirement of its own, with scopes. The empty
    /// requirement has the name "".
    pub fn security(&self, method: &Method, path: &str) -> Vec<(String, Vec<String>)> {
        let requirements = self.operation(method, path)["security"].as_array().expect("a list");
        let one = |requirement: &Value| match requirement.as_object().unwrap().iter().next() {
            None => (String::new(), Vec::new()),
            Some((name, scopes)) => {
                assert!(!self.0["components"]["securitySchemes"][name].is_null(), "{name} exists");
                let scopes = scopes.as_array().unwrap().iter().map(|scope| scope.as_str().unwrap().to_owned());
                (name.clone(), scopes.collect())
            }
        };
        requirements.iter().map(one).collect()
    }

    /// Returns the statuses of rejections.
    pub fn rejections(&self, method: &Method, path: &str) -> Vec<u16> {
        let responses = self.operation(method, path)["responses"].as_object().unwrap();
        let statuses = responses.keys().map(|status| status.parse::<u16>().unwrap());
        statuses.filter(|status| *status >= 400).collect()
    }

    /// Checks the status, the fields and the content of a response.
    pub async fn check<B>(&self, method: &Method, path: &str, response: Response<B>)
    where
        B: http_body::Body<Data = bytes::Bytes>,
        B::Error: std::fmt::Debug,
    {
        let status = response.status();
        let described = &self.operation(method, path)["responses"][status.as_str()];
        assert!(!described.is_null(), "{method} {path}: the document has no {status}");
        let described = self.resolved(described);
        self.check_headers(described, response.headers(), status.is_success());
        if status.is_success() {
            return;
        }
        let content_type = field(response.headers(), "content-type").map(str::to_owned);
        let body = text(response).await;
        match content_type {
            None => assert!(described.get("content").is_none() && body.is_empty(), "{status} has no content"),
            Some(content_type) => {
                let content = described["content"].as_object().unwrap();
                assert_eq!(content.keys().collect::<Vec<_>>(), [&content_type]);
                let content = &content[&content_type];
                let body: Value = serde_json::from_str(&body).unwrap();
                self.check_value(&content["schema"], &body);
                for example in content["examples"].as_object().unwrap().values() {
                    self.check_value(&content["schema"], &example["value"]);
                    assert_eq!(example["value"]["status"], status.as_u16());
                }
            }
        }
    }

    /// Of responses to admitted requests, only rate limit headers are described. The others depend on the handler.
    fn check_headers(&self, described: &Value, headers: &HeaderMap, is_admitted: bool) {
        for name in FIELDS.into_iter().filter(|name| !is_admitted || name.contains("ratelimit")) {
            let entries = described["headers"].as_object().into_iter().flatten();
            let mut named = entries.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, header)| header);
            let header = named.next();
            for value in values(headers, name) {
                let header = header.unwrap_or_else(|| panic!("{name}: {value} is described"));
                let value = match header["schema"]["type"].as_str().unwrap() {
                    "integer" => Value::from(value.parse::<u64>().unwrap_or_else(|_| panic!("{name}: {value}"))),
                    _ => Value::from(value),
                };
                self.check_value(&header["schema"], &value);
            }
        }
    }

    /// Checks a value against a schema. An unknown keyword is an error of this test.
    pub fn check_value(&self, schema: &Value, value: &Value) {
        let schema = self.resolved(schema);
        for (keyword, expected) in schema.as_object().unwrap() {
            match keyword.as_str() {
                "description" | "format" => {}
                "type" => assert!(has_type(expected.as_str().unwrap(), value), "{value} is {expected}"),
                "minimum" => assert!(value.as_f64() >= expected.as_f64(), "{value} >= {expected}"),
                "maximum" => assert!(value.as_f64() <= expected.as_f64(), "{value} <= {expected}"),
                "required" => {
                    for name in expected.as_array().unwrap() {
                        assert!(value.get(name.as_str().unwrap()).is_some(), "{value} has {name}");
                    }
                }
                "properties" => {
                    for (name, value) in value.as_object().unwrap() {
                        let schema = expected.get(name).unwrap_or_else(|| panic!("{name} is described"));
                        self.check_value(schema, value);
                    }
                }
                "items" => value.as_array().unwrap().iter().for_each(|item| self.check_value(expected, item)),
                other => panic!("unknown keyword {other}"),
            }
        }
    }
}

fn has_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => panic!("unknown type {name}"),
    }
}
