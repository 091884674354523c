//! Tokens in text bodies.
use super::{Extracted, InvalidRequest, TokenSyntax};

/// Reads the token of a text body of `name=value;` fields, the format of CrossTrade's webhooks.
///
/// # Rules
///
/// 1. A body that is not UTF-8 is [`Extracted::Ambiguous`]. One byte order mark at the beginning is dropped.
/// 2. Fields are separated by `;` only. The last field needs no `;`. A field is split at its first `=`.
/// 3. Spaces, tabs and line ends around a name or value are removed.
/// 4. The name is matched without case. The value has no escapes and no quotes.
/// 5. A second such field, or one without `=`, is [`Extracted::Ambiguous`]: alert texts have placeholders, and the text that
///    replaces one could contain a field.
/// 6. An empty value is [`Extracted::Malformed`].
///
/// ```
/// use tollgate::extract::{Extracted, TokenSyntax, text};
///
/// let alert = b"key=S3cret; command=PLACE; account=sim101; qty=1;";
/// let Extracted::Token(token) = text(alert, "key", TokenSyntax::default()) else { panic!() };
/// assert_eq!(token.expose(), b"S3cret");
///
/// let injected = b"key=S3cret; comment=;key=evil;";
/// assert!(matches!(text(injected, "key", TokenSyntax::default()), Extracted::Ambiguous(_)));
/// ```
pub fn text<'a>(body: &'a [u8], name: &str, syntax: TokenSyntax) -> Extracted<'a> {
    locate(body, name, syntax).0
}

pub(super) fn locate<'a>(body: &'a [u8], name: &str, syntax: TokenSyntax) -> (Extracted<'a>, std::ops::Range<usize>) {
    if std::str::from_utf8(body).is_err() {
        return (Extracted::Ambiguous(InvalidRequest::InvalidUtf8), 0..0);
    }
    let mut found = None;
    // A mark is allowed before the first field only.
    let mut begin = if body.starts_with(super::BOM) { super::BOM.len() } else { 0 };
    for end in memchr::memchr_iter(b';', body).chain([body.len()]) {
        let field = &body[begin..end];
        begin = end + 1;
        // A call of `memchr` costs more than the search in a short name.
        let (own, value) = match field.iter().position(|&byte| byte == b'=') {
            Some(equals) => (&field[..equals], Some(&field[equals + 1..])),
            None => (field, None),
        };
        if !trim(own).eq_ignore_ascii_case(name.as_bytes()) {
            continue;
        }
        match value {
            Some(value) if found.is_none() => {
                let left = value.iter().take_while(|&&byte| is_space(byte)).count();
                let begin = end - value.len() + left;
                let value = trim(value);
                found = Some((value, begin..begin + value.len()));
            }
            Some(_) => return (Extracted::Ambiguous(InvalidRequest::RepeatedField), 0..0),
            None => return (Extracted::Ambiguous(InvalidRequest::FieldWithoutValue), 0..0),
        }
    }
    match found {
        None => (Extracted::Nothing, 0..0),
        Some((value, span)) => (Extracted::value(value, syntax), span),
    }
}

/// Returns whether a field can have this name.
pub(super) fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    trim(bytes) == bytes && !bytes.starts_with(super::BOM) && !bytes.iter().any(|byte| b"=;".contains(byte))
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn trim(bytes: &[u8]) -> &[u8] {
    let begin = bytes.iter().take_while(|&&byte| is_space(byte)).count();
    let end = bytes[begin..].iter().rev().take_while(|&&byte| is_space(byte)).count();
    &bytes[begin..bytes.len() - end]
}
