//! Token locations in the body: selects the one that a request uses, and reads it.

use std::ops::Range;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, header};

use super::header::strip_ows;
use super::{Extracted, InvalidRequest, TokenLocationError, TokenSyntax, enable, form, json, location_name, text};
use crate::request_head::RequestHead;
use crate::token::TokenLocation;

/// The enabled locations in the body, each with the name of the field that holds the token.
#[derive(Clone, Debug)]
pub(crate) struct BodyTokens {
    pub(crate) form: Option<Arc<str>>,
    pub(crate) json: Option<Arc<str>>,
    pub(crate) text: Option<Arc<str>>,
    /// `true` if a text body that begins with `{` is read as JSON.
    pub(crate) sniff: bool,
    /// The maximum nesting depth of JSON.
    pub(crate) max_depth: usize,
}

/// The location that a request uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyLocation {
    Form,
    Json,
    Text,
}

impl Default for BodyTokens {
    fn default() -> Self {
        Self { form: None, json: None, text: None, sniff: false, max_depth: json::MAX_DEPTH }
    }
}

impl BodyTokens {
    /// Enables text bodies. Field names cannot be quoted.
    pub(crate) fn enable_text(&mut self, field: &str) -> Result<(), TokenLocationError> {
        let field = location_name(field)?;
        match text::is_name(&field) {
            true => enable(&mut self.text, field),
            false => Err(TokenLocationError::Name),
        }
    }

    /// Returns the location that a request uses, by its method and content type.
    ///
    /// # Rules
    ///
    /// 1. Only `POST`, `PUT` and `PATCH` have a location in the body: RFC 6750, section 2.2, requires a method whose body has
    ///    defined semantics.
    /// 2. The media type is compared without case and parameters.
    /// 3. A body with a content encoding has no location. Neither has a body of framed messages: gRPC (also
    ///    `application/grpc+json`), gRPC-Web and streaming Connect.
    /// 4. Two content types are an invalid request if any location in the body is enabled. So is a charset that is neither
    ///    UTF-8 nor US-ASCII.
    pub(crate) fn location_for(&self, head: &RequestHead<'_>) -> Result<Option<BodyLocation>, InvalidRequest> {
        let has_body = matches!(*head.method, Method::POST | Method::PUT | Method::PATCH);
        if self.are_disabled() || !has_body || is_encoded(head.headers) {
            return Ok(None);
        }
        let mut types = head.headers.get_all(header::CONTENT_TYPE).iter();
        let Some(value) = types.next().map(HeaderValue::as_bytes) else { return Ok(None) };
        let end = memchr::memchr(b';', value).unwrap_or(value.len());
        let (essence, parameters) = (strip_ows(&value[..end]), &value[end..]);
        let is = |name: &[u8]| essence.eq_ignore_ascii_case(name);
        let begins = |with: &[u8]| essence.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
        if types.next().is_some() {
            return Err(InvalidRequest::SeveralContentTypes);
        }
        // Messages of these protocols are framed, whatever the suffix says.
        let is_framed = begins(b"application/grpc+")
            || begins(b"application/grpc-web+")
            || begins(b"application/grpc-web-text+")
            || begins(b"application/connect+");
        let json_suffix = essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json");
        let location = if self.form.is_some() && is(b"application/x-www-form-urlencoded") {
            BodyLocation::Form
        } else if self.json.is_some() && (is(b"application/json") || json_suffix && !is_framed) {
            BodyLocation::Json
        } else if (self.text.is_some() || self.sniffs()) && is(b"text/plain") {
            BodyLocation::Text
        } else {
            return Ok(None);
        };
        if has_other_charset(parameters) { Err(InvalidRequest::OtherCharset) } else { Ok(Some(location)) }
    }

    /// Reads this location. Returns the result, the kind of location, and the range of the credential in the body.
    pub(crate) fn extract<'a>(
        &self,
        location: BodyLocation,
        body: &'a [u8],
        syntax: TokenSyntax,
    ) -> (Extracted<'a>, TokenLocation, Range<usize>) {
        let is_json = location == BodyLocation::Json
            || (location == BodyLocation::Text && self.sniffs() && json::begins_object(body));
        let ((extracted, span), location) = match (location, &self.form, &self.json, &self.text) {
            (BodyLocation::Form, Some(name), ..) => (form::locate(body, name, syntax), TokenLocation::FormBody),
            (_, _, Some(name), _) if is_json => {
                (json::locate(body, name, syntax, self.max_depth), TokenLocation::JsonBody)
            }
            (BodyLocation::Text, _, _, Some(name)) => (text::locate(body, name, syntax), TokenLocation::TextBody),
            // A text body, and only JSON in text bodies is enabled.
            _ => ((Extracted::Nothing, 0..0), TokenLocation::TextBody),
        };
        (extracted, location, span)
    }

    fn are_disabled(&self) -> bool {
        self.form.is_none() && self.json.is_none() && self.text.is_none()
    }

    /// Returns whether text bodies are checked for JSON. This requires the JSON location.
    fn sniffs(&self) -> bool {
        self.sniff && self.json.is_some()
    }
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let mut codings = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .map(strip_ows);
    codings.any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

fn has_other_charset(parameters: &[u8]) -> bool {
    // The usual spelling, in one comparison.
    if parameters == b"; charset=utf-8" {
        return false;
    }
    parameters.split(|&byte| byte == b';').map(strip_ows).any(|parameter| {
        let Some(at) = parameter.iter().position(|&byte| byte == b'=') else { return false };
        let (name, value) = (strip_ows(&parameter[..at]), strip_ows(&parameter[at + 1..]));
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        let known = value.eq_ignore_ascii_case(b"utf-8") || value.eq_ignore_ascii_case(b"us-ascii");
        name.eq_ignore_ascii_case(b"charset") && !known
    })
}
