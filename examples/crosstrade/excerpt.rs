//! Request bodies in the log.

use std::fmt::{self, Write as _};

/// The number of bytes of an alert in the log. Alerts have some hundred bytes.
pub(crate) const MAX_EXCERPT: usize = 512;

/// The beginning of a body, escaped so that it stays on one line.
pub(crate) struct Excerpt<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(body) = *self;
        let mut end = body.len().min(MAX_EXCERPT);
        // Do not cut a character of UTF-8.
        while end < body.len() && end > MAX_EXCERPT - 4 && body[end] & 0xC0 == 0x80 {
            end -= 1;
        }
        f.write_char('"')?;
        for chunk in body[..end].utf8_chunks() {
            write!(f, "{}{}", chunk.valid().escape_debug(), chunk.invalid().escape_ascii())?;
        }
        f.write_char('"')?;
        if end < body.len() { write!(f, " and {} bytes more", body.len() - end) } else { Ok(()) }
    }
}
