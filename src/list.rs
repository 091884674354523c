//! Lists in header fields, with quoted strings.

use http::{HeaderMap, HeaderName};

/// Returns the members of all lines of a field, trimmed and without empty ones (RFC 9110, section 5.6.1). A comma in a quoted
/// string does not separate.
pub(crate) fn members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().flat_map(|line| split(line.as_bytes(), b','))
}

/// Returns the members of one line, trimmed and without empty ones.
pub(crate) fn split(line: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut quotes = Quotes::default();
    line.split(move |&byte| quotes.is_outside(byte) && byte == separator)
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

/// Returns whether the line ends outside of a quoted string.
pub(crate) fn is_terminated(line: &[u8]) -> bool {
    let mut quotes = Quotes::default();
    line.iter().for_each(|&byte| _ = quotes.is_outside(byte));
    !quotes.quoted
}

/// The quoted strings of a line, read from the left.
#[derive(Default)]
struct Quotes {
    quoted: bool,
    escaped: bool,
}

impl Quotes {
    /// Reads a byte. Returns whether the byte is outside of quoted strings.
    fn is_outside(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.quoted => self.escaped = true,
            b'"' => self.quoted = !self.quoted,
            _ => return !self.quoted,
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_separate_outside_of_quotes_only() {
        for (line, expected) in [
            ("", &[][..]),
            (" , ,", &[]),
            ("a, b\t,c", &["a", "b", "c"]),
            (r#"private="a, b", max-age=1"#, &[r#"private="a, b""#, "max-age=1"]),
            (r#""a\",";q=1, "b\\";q=2"#, &[r#""a\",";q=1"#, r#""b\\";q=2"#]),
            // Outside of quotes a backslash is an ordinary character.
            (r#"a\, b, \"c, d""#, &["a\\", "b", r#"\"c, d""#]),
            (r#"a, "open, end"#, &["a", r#""open, end"#]),
        ] {
            let found: Vec<&[u8]> = split(line.as_bytes(), b',').collect();
            assert_eq!(found, expected.iter().map(|member| member.as_bytes()).collect::<Vec<_>>(), "{line}");
        }
    }
}
