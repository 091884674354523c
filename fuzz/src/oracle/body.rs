//! Text bodies, and the choice of the body location by the head of a request.

use super::{Form, Found, latin_1, strip};
use crate::request::Sent;

/// Extracts from a text body of `name=value;` fields.
pub fn text(body: &[u8], name: &str, form: Form) -> Found {
    let Ok(text) = std::str::from_utf8(body) else { return Found::BadRequest };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let trim = |text: &str| text.trim_matches([' ', '\t', '\r', '\n']).to_owned();
    let fields = text.split(';').map(|field| match field.split_once('=') {
        Some((name, value)) => (trim(name), Some(trim(value))),
        None => (trim(field), None),
    });
    let values: Vec<Option<String>> =
        fields.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect();
    match &values[..] {
        [] => Found::Absent,
        [Some(value)] => form.value(latin_1(value.as_bytes())),
        _ => Found::BadRequest,
    }
}

/// The body location of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLocation {
    Form,
    Json,
    Text,
}

const FRAMED: [&str; 4] =
    ["application/grpc+", "application/grpc-web+", "application/grpc-web-text+", "application/connect+"];

/// Returns the body location that the head of a request selects, enabled or not, and whether its charset is supported.
/// Returns `BadRequest` for two content types.
pub fn body_location(request: &Sent) -> Result<Option<(BodyLocation, bool)>, Found> {
    let encodings = super::list(&request.lines("content-encoding"));
    let is_encoded = encodings.iter().any(|coding| !coding.eq_ignore_ascii_case("identity"));
    if !["POST", "PUT", "PATCH"].contains(&&*request.method) || is_encoded {
        return Ok(None);
    }
    let types = request.lines("content-type");
    let content_type = match &types[..] {
        [] => return Ok(None),
        [content_type] => content_type.to_ascii_lowercase(),
        _ => return Err(Found::BadRequest),
    };
    let mut parts = content_type.split(';').map(strip);
    let location = match parts.next().unwrap_or_default() {
        "application/x-www-form-urlencoded" => BodyLocation::Form,
        "application/json" => BodyLocation::Json,
        "text/plain" => BodyLocation::Text,
        // Framed, even with `+json`.
        other if FRAMED.iter().any(|framed| other.starts_with(framed)) => return Ok(None),
        other if other.ends_with("+json") && other != "+json" => BodyLocation::Json,
        _ => return Ok(None),
    };
    let mut charsets = parts.filter_map(|part| part.split_once('=')).filter(|(name, _)| strip(name) == "charset");
    let is_readable = charsets.all(|(_, value)| {
        let value = strip(value);
        ["utf-8", "us-ascii", "\"utf-8\"", "\"us-ascii\""].contains(&value)
    });
    Ok(Some((location, is_readable)))
}
