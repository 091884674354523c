//! The doors in the body: which of them fits a request, and what it holds.

use std::ops::Range;
use std::sync::Arc;

use http::{HeaderMap, Method, header};

use super::header::strip_ows;
use super::{Extracted, InvalidRequest, TokenLocationError, TokenSyntax, door_name, form, json, open, text};
use crate::rejection::protocol::Protocol;
use crate::request_head::RequestHead;
use crate::token::TokenLocation;

/// The open doors in the body, by the name of the field that holds the token.
#[derive(Clone, Debug)]
pub(crate) struct BodyTokens {
    pub(crate) form: Option<Arc<str>>,
    pub(crate) json: Option<Arc<str>>,
    pub(crate) text: Option<Arc<str>>,
    /// Whether a text body that begins with `{` is JSON.
    pub(crate) sniff: bool,
    /// How deep JSON may be nested.
    pub(crate) max_depth: usize,
}

/// A door that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
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
    /// Opens the door in texts, whose fields have no quotes.
    pub(crate) fn open_text(&mut self, field: &str) -> Result<(), TokenLocationError> {
        let field = door_name(field)?;
        match text::is_name(&field) {
            true => open(&mut self.text, field),
            false => Err(TokenLocationError::Name),
        }
    }

    /// The door that fits a request, by its method and the type of its body.
    ///
    /// # Rules
    ///
    /// 1. `POST`, `PUT` and `PATCH` only: RFC 6750, section 2.2, wants a method whose body has a meaning.
    /// 2. The type is compared without case and parameters. A body that is encoded in any way fits no door, and neither
    ///    does gRPC, gRPC-Web or a stream of Connect, whose messages are framed, `application/grpc+json` too.
    /// 3. Two types, and a charset that is neither UTF-8 nor US-ASCII, are contradictions; two types only if any door is
    ///    open.
    pub(crate) fn fitting(&self, head: &RequestHead<'_>) -> Result<Option<Door>, InvalidRequest> {
        let has_body = matches!(*head.method, Method::POST | Method::PUT | Method::PATCH);
        if self.are_closed() || !has_body || is_encoded(head.headers) || Protocol::of(head) == Protocol::Grpc {
            return Ok(None);
        }
        let mut types = head.headers.get_all(header::CONTENT_TYPE).iter();
        let (essence, parameters) = match (types.next(), types.next()) {
            (None, _) => return Ok(None),
            (Some(_), Some(_)) => return Err(InvalidRequest::SeveralContentTypes),
            (Some(value), None) => {
                let value = value.as_bytes();
                let end = value.iter().position(|&byte| byte == b';').unwrap_or(value.len());
                (strip_ows(&value[..end]), &value[end..])
            }
        };
        let is = |name: &[u8]| essence.eq_ignore_ascii_case(name);
        let begins = |with: &[u8]| essence.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
        let is_framed = begins(b"application/grpc-web+") || begins(b"application/connect+");
        let json_suffix = essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json");
        let door = if self.form.is_some() && is(b"application/x-www-form-urlencoded") {
            Door::Form
        } else if self.json.is_some() && (is(b"application/json") || json_suffix && !is_framed) {
            Door::Json
        } else if (self.text.is_some() || self.sniffs()) && is(b"text/plain") {
            Door::Text
        } else {
            return Ok(None);
        };
        if has_other_charset(parameters) { Err(InvalidRequest::OtherCharset) } else { Ok(Some(door)) }
    }

    /// What the body holds behind this door, the location, and where the credential stands.
    pub(crate) fn look<'a>(
        &self,
        door: Door,
        body: &'a [u8],
        form_of_token: TokenSyntax,
    ) -> (Extracted<'a>, TokenLocation, Range<usize>) {
        let is_json = door == Door::Json || (door == Door::Text && self.sniffs() && json::begins_object(body));
        let ((presented, span), location) = match (door, &self.form, &self.json, &self.text) {
            (Door::Form, Some(name), ..) => (form::locate(body, name, form_of_token), TokenLocation::FormBody),
            (_, _, Some(name), _) if is_json => {
                (json::locate(body, name, form_of_token, self.max_depth), TokenLocation::JsonBody)
            }
            (Door::Text, _, _, Some(name)) => (text::locate(body, name, form_of_token), TokenLocation::TextBody),
            // A text, where only JSON in texts is looked for.
            _ => ((Extracted::Nothing, 0..0), TokenLocation::TextBody),
        };
        (presented, location, span)
    }

    fn are_closed(&self) -> bool {
        self.form.is_none() && self.json.is_none() && self.text.is_none()
    }

    /// Only if there is a JSON door to go through.
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
    parameters.split(|&byte| byte == b';').map(strip_ows).any(|parameter| {
        let Some(at) = parameter.iter().position(|&byte| byte == b'=') else { return false };
        let (name, value) = (strip_ows(&parameter[..at]), strip_ows(&parameter[at + 1..]));
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        let known = value.eq_ignore_ascii_case(b"utf-8") || value.eq_ignore_ascii_case(b"us-ascii");
        name.eq_ignore_ascii_case(b"charset") && !known
    })
}
