//! Comma-separated lists in header fields.

use http::{HeaderMap, HeaderName};

/// Returns the members of all lines of a field, trimmed and without empty ones (RFC 9110, section 5.6.1). A comma in a quoted
/// string does not separate.
pub(super) fn members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().flat_map(|line| split(line.as_bytes()))
}

fn split(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    line.split(move |&byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' => return !quoted,
            _ => {}
        }
        false
    })
    .map(<[u8]>::trim_ascii)
    .filter(|member| !member.is_empty())
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
            let found: Vec<&[u8]> = split(line.as_bytes()).collect();
            assert_eq!(found, expected.iter().map(|member| member.as_bytes()).collect::<Vec<_>>(), "{line}");
        }
    }
}
