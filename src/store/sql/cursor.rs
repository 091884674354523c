//! Pages of lists, and positions in lists.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::SqlError;

/// The size and the start of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) limit: NonZeroU32,
    pub(super) after: Option<Cursor>,
}

impl Default for Window {
    fn default() -> Self {
        Self { limit: NonZeroU32::MIN.saturating_add(99), after: None }
    }
}

impl Window {
    /// Returns the number of rows to read. One more than the limit shows whether another page follows.
    pub(super) fn rows(&self) -> i64 {
        i64::from(self.limit.get()) + 1
    }

    /// Removes the row beyond the limit. Returns the last row of the page if another page follows.
    pub(super) fn cut<'a, T>(&self, rows: &'a mut Vec<T>) -> Option<&'a T> {
        let limit = usize::try_from(self.limit.get()).unwrap_or(usize::MAX);
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        rows.last().filter(|_| has_more)
    }
}

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
        // Ids have no control characters, and PostgreSQL rejects null characters.
        position.filter(|text| !text.contains(char::is_control)).map(Self).ok_or(SqlError::Cursor)
    }
}
