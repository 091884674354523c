//! Positions in lists.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::SqlError;

/// The end of a page, from which the next page continues. Its text is opaque, and safe in URLs.
///
/// A cursor stays valid while rows are added and deleted, also if its own row is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    pub(super) fn new(position: impl Into<String>) -> Self {
        Self(position.into())
    }

    pub(super) fn position(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(&self.0))
    }
}

impl FromStr for Cursor {
    type Err = SqlError;

    fn from_str(text: &str) -> Result<Self, SqlError> {
        let position = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        position.map(Self).ok_or(SqlError::Cursor)
    }
}
