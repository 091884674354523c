//! [`Document`]: the metadata of a gate, and the responses to requests for it.

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

use super::resource::ProtectedResource;
use crate::gate::settings::{IsSecure, Settings};
use crate::rejection::protocol::Reply;
use crate::request_head::RequestHead;
use crate::respond::NO_STORE;
use crate::respond::ratelimit::number;

/// The metadata of a gate, written once.
pub(super) struct Document {
    pub(super) resource: ProtectedResource,
    pub(super) json: Bytes,
    cache_control: HeaderValue,
    is_secure: Option<IsSecure>,
}

impl Document {
    pub(super) fn new(resource: &ProtectedResource, settings: &Settings, has_form_token: bool) -> Self {
        let json = resource.document(&bearer_methods(settings, has_form_token)).into();
        let cache_control = format!("public, max-age={}", resource.max_age().as_secs());
        // Digits are valid in a field value.
        let cache_control = HeaderValue::try_from(cache_control).unwrap_or(HeaderValue::from_static("public"));
        Self { resource: resource.clone(), json, cache_control, is_secure: settings.is_secure.clone() }
    }

    /// Returns whether the gate responds to this request with the metadata.
    ///
    /// The query counts, because it is a part of the identifier. A gate that requires HTTPS treats a request without it
    /// like all others.
    pub(super) fn is_for(&self, head: &RequestHead<'_>) -> bool {
        let target = head.uri.path_and_query().map(http::uri::PathAndQuery::as_str);
        target == Some(self.resource.url().target()) && self.is_secure.as_ref().is_none_or(|is_secure| is_secure(head))
    }

    /// Returns the response to a request for the metadata.
    pub(super) fn respond(&self, head: &RequestHead<'_>) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        match *head.method {
            Method::GET | Method::HEAD => {
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                headers.insert(header::CACHE_CONTROL, self.cache_control.clone());
                headers.insert(header::CONTENT_LENGTH, number(self.json.len() as u64));
                if head.method == Method::GET {
                    *response.body_mut() = self.json.clone();
                }
            }
            Method::OPTIONS => {
                *response.status_mut() = StatusCode::NO_CONTENT;
                allow_preflight(response.headers_mut());
            }
            _ => {
                *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
                response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(NO_STORE));
            }
        }
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        if !matches!(*head.method, Method::GET | Method::HEAD) {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
        }
        if Reply::to(head).closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Allows scripts of all origins. Clients send header fields of their own, such as `MCP-Protocol-Version`.
fn allow_preflight(headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD"));
    // `*` does not include `Authorization`, which some clients send with every request.
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*, authorization"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("3600"));
}

/// Returns the methods of RFC 6750, sections 2.1 to 2.3, that the gate accepts.
fn bearer_methods(settings: &Settings, has_form_token: bool) -> Vec<&'static str> {
    let locations = &settings.locations;
    let methods = [
        ("header", !locations.authorization_disabled),
        ("body", has_form_token),
        ("query", locations.query.as_deref() == Some(ACCESS_TOKEN)),
    ];
    methods.into_iter().filter(|(_, is_enabled)| *is_enabled).map(|(method, _)| method).collect()
}

/// The name of the form field and the query parameter of RFC 6750.
pub(super) const ACCESS_TOKEN: &str = "access_token";

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Document").field(&self.resource.url().as_str()).finish()
    }
}
