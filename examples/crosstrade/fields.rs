//! The fields of an alert, in text or in JSON.
//!
//! Both forms end in one list, so both can express the same. A repeated field is an error in both: the value of a placeholder
//! in an alert could contain a field.

use std::fmt;

use axum::http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde::de::value::{Error as FieldError, MapDeserializer};
use serde::de::{Deserializer, Error as _, Visitor};

use crate::problem::ProblemDetails;

/// White space around names and values, and before JSON: the same as for the gate, and no other white space of Unicode.
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// The fields of an alert that the service uses. Others are ignored, `key` among them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Fields {
    pub(crate) command: Field,
    pub(crate) account: Field,
    pub(crate) instrument: Field,
    pub(crate) action: Field,
    pub(crate) qty: Field,
    pub(crate) order_type: Field,
    pub(crate) tif: Field,
    pub(crate) limit_price: Field,
    pub(crate) rate_limit: Field,
    pub(crate) id: Field,
}

impl Fields {
    /// Parses a body by its content type and, for `text/plain`, by its first character: the rule of the gate
    /// (`BodyTokens::with_json_in_text`), so that both read the same fields.
    pub(crate) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Self, ProblemDetails> {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        // A leading byte order mark is not part of the text.
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        match essence.as_str() {
            "text/plain" if begins_object(body) => Self::from_json(body),
            "text/plain" => Self::from_text(body).map_err(|error| ProblemDetails::bad_request(error.to_string())),
            json if json == "application/json" || json.ends_with("+json") => Self::from_json(body),
            _ => {
                let detail = "An alert is `text/plain` or `application/json`.";
                Err(ProblemDetails::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
            }
        }
    }

    fn from_json(body: &[u8]) -> Result<Self, ProblemDetails> {
        serde_json::from_slice(body)
            .map_err(|error| ProblemDetails::bad_request(format!("The alert cannot be read: {error}")))
    }

    /// Parses `name=value;` with names in any case. A non-blank piece without `=` is an error: it may be a mistyped limit.
    fn from_text(body: &[u8]) -> Result<Self, FieldError> {
        let text = std::str::from_utf8(body).map_err(|_| FieldError::custom("The alert is not UTF-8."))?;
        let pieces = text.split(';').map(|piece| piece.trim_matches(SPACE)).filter(|piece| !piece.is_empty());
        let pairs = pieces.map(|piece| match piece.split_once('=') {
            Some((name, value)) => Ok((name.trim_matches(SPACE).to_ascii_lowercase(), value)),
            None => Err(FieldError::custom("The alert has a field without `=`; fields are `name=value;`.")),
        });
        let pairs: Vec<_> = pairs.collect::<Result<_, _>>()?;
        Self::deserialize(MapDeserializer::new(pairs.into_iter()))
    }
}

fn begins_object(body: &[u8]) -> bool {
    body.iter().find(|&&byte| !SPACE.contains(&char::from(byte))) == Some(&b'{')
}

/// A value without white space around it. In JSON it may be a number, which keeps its notation: `3.0` is not 3.
///
/// A missing field and `null` are `None`. (The type is not a plain `Option`, which serde does not read from plain text.)
#[derive(Debug, Default)]
pub(crate) struct Field(pub(crate) Option<String>);

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl Visitor<'_> for FieldVisitor {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a number")
    }

    fn visit_str<E>(self, text: &str) -> Result<Field, E> {
        Ok(Field(Some(text.trim_matches(SPACE).to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Field, E> {
        Ok(Field(Some(number.to_string())))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Field, E> {
        Ok(Field(Some(number.to_string())))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Field, E> {
        Ok(Field(Some(format!("{number:?}"))))
    }

    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field(None))
    }
}
