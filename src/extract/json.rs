//! Tokens in JSON bodies.
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Extracted, InvalidRequest, TokenSyntax};

/// Reads the token of a JSON body: the member of the top-level object with this name (RFC 8259).
///
/// # Rules
///
/// 1. The whole body is checked, not only the part before the member: UTF-8, grammar, escapes, and a nesting depth of at
///    most 64. One byte order mark at the beginning is dropped. An invalid body is [`Extracted::Ambiguous`].
/// 2. The name is compared after unescaping, with case. Members of nested objects are ignored.
/// 3. A second such member is [`Extracted::Ambiguous`], with any escapes: parsers differ in which member they use, and the
///    handler may use another parser.
/// 4. `null`, a missing member, a top level that is not an object and an empty body are [`Extracted::Nothing`].
/// 5. A string is not trimmed. Any other type of value is [`Extracted::Ambiguous`].
/// 6. Numbers are checked but not converted. No number is too large.
///
/// ```
/// use tollgate::extract::{Extracted, TokenSyntax, json};
///
/// let alert = br#"{"key": "S3cret", "command": "PLACE", "qty": 1}"#;
/// let Extracted::Token(token) = json(alert, "key", TokenSyntax::default()) else { panic!() };
/// assert_eq!(token.expose(), b"S3cret");
///
/// let twice = br#"{"key": "S3cret", "\u006bey": "evil"}"#;
/// assert!(matches!(json(twice, "key", TokenSyntax::default()), Extracted::Ambiguous(_)));
/// ```
pub fn json<'a>(body: &'a [u8], name: &str, syntax: TokenSyntax) -> Extracted<'a> {
    locate(body, name, syntax, MAX_DEPTH).0
}

/// The default maximum nesting depth of arrays and objects.
pub(super) const MAX_DEPTH: usize = 64;

/// White space of RFC 8259, section 2.
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// Returns whether a body begins with a JSON object: `{` after at most one byte order mark and white space. For bodies whose
/// content type is not JSON.
pub(super) fn begins_object(body: &[u8]) -> bool {
    let body = body.strip_prefix(super::BOM).unwrap_or(body);
    let first = body.iter().find(|&&byte| !SPACE.contains(&char::from(byte)));
    first == Some(&b'{')
}

pub(super) fn locate<'a>(
    body: &'a [u8],
    name: &str,
    syntax: TokenSyntax,
    max_depth: usize,
) -> (Extracted<'a>, Range<usize>) {
    let nothing = (Extracted::Nothing, 0..0);
    let wrong = |reason| (Extracted::Ambiguous(reason), 0..0);
    let Ok(text) = std::str::from_utf8(body.strip_prefix(super::BOM).unwrap_or(body)) else {
        return wrong(InvalidRequest::InvalidUtf8);
    };
    let text = text.trim_matches(SPACE);
    if text.is_empty() {
        return nothing;
    }
    // `serde_json` skips values of any depth, and does not check escapes in them.
    if let Err(reason) = check_depth_and_pairs(text.as_bytes(), max_depth) {
        return wrong(reason);
    }
    let raw = match top_level(text, name) {
        Ok(Member::Absent) => return nothing,
        Ok(Member::Once(raw)) => raw.get(),
        Ok(Member::Repeated) => return wrong(InvalidRequest::RepeatedField),
        Err(_) => return wrong(InvalidRequest::InvalidJson),
    };
    if raw == "null" {
        return nothing;
    }
    let Some(written) = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return wrong(InvalidRequest::NotAString);
    };
    let value = match written.contains('\\') {
        // The string was checked when it was skipped, and has no escapes.
        false => Cow::Borrowed(written.as_bytes()),
        true => match serde_json::from_str::<String>(raw) {
            Ok(text) => Cow::Owned(text.into_bytes()),
            Err(_) => return wrong(InvalidRequest::InvalidJson),
        },
    };
    // The slice is part of the body.
    let begin = written.as_ptr() as usize - body.as_ptr() as usize;
    (Extracted::value(value, syntax), begin..begin + written.len())
}

fn top_level<'a>(text: &'a str, name: &str) -> serde_json::Result<Member<'a>> {
    if !text.starts_with('{') {
        return serde_json::from_str::<IgnoredAny>(text).map(|_| Member::Absent);
    }
    let mut parser = serde_json::Deserializer::from_str(text);
    let member = parser.deserialize_map(TopLevel { name })?;
    parser.end().map(|()| member)
}

/// The occurrences of the member in the top-level object.
enum Member<'a> {
    Absent,
    Once(&'a RawValue),
    Repeated,
}

struct TopLevel<'n> {
    name: &'n str,
}

impl<'de> Visitor<'de> for TopLevel<'_> {
    type Value = Member<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Member<'de>, A::Error> {
        let mut member = Member::Absent;
        while let Some(is_it) = map.next_key_seed(IsName(self.name))? {
            match (is_it, &member) {
                (false, _) => _ = map.next_value::<IgnoredAny>()?,
                (true, Member::Absent) => member = Member::Once(map.next_value()?),
                (true, _) => {
                    map.next_value::<IgnoredAny>()?;
                    member = Member::Repeated;
                }
            }
        }
        Ok(member)
    }
}

/// Compares a member name after unescaping, without storing it.
struct IsName<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for IsName<'_> {
    type Value = bool;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsName<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

/// Checks what `serde_json` does not check in skipped values: the depth, and that surrogates come in pairs.
///
/// Only strings and brackets are recognized. Other invalid JSON passes here, and is rejected by the parser afterwards.
fn check_depth_and_pairs(text: &[u8], max_depth: usize) -> Result<(), InvalidRequest> {
    // Most bodies have few brackets and no `\u` escapes.
    let has_units = memchr::memchr_iter(b'\\', text).any(|at| text.get(at + 1) == Some(&b'u'));
    if !has_units && count_opened(text) <= max_depth {
        return Ok(());
    }
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > max_depth {
                    return Err(InvalidRequest::DeepJson);
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => match end_of_string(text, at) {
                Some(end) => at = end,
                None => return Err(InvalidRequest::InvalidJson),
            },
            _ => {}
        }
    }
    Ok(())
}

/// Counts the opening brackets and braces, including those in strings.
fn count_opened(text: &[u8]) -> usize {
    // `[` and `{` differ in the bit 0x20. Sums of up to 255 bytes fit into a `u8`, so that the loop is vectorized.
    let in_chunk = |chunk: &[u8]| chunk.iter().fold(0_u8, |count, &byte| count + u8::from(byte | 0x20 == b'{'));
    text.chunks(255).map(|chunk| usize::from(in_chunk(chunk))).sum()
}

/// Returns the position after the closing quote of a string, if there is one and the surrogates come in pairs.
fn end_of_string(text: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += memchr::memchr2(b'"', b'\\', &text[at..])?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        match unit(text, at) {
            Some(0xd800..=0xdbff) => match unit(text, at + 6) {
                Some(0xdc00..=0xdfff) => at += 12,
                _ => return None,
            },
            Some(0xdc00..=0xdfff) => return None,
            Some(_) => at += 6,
            // Any other escape has two bytes, unless the text ends here.
            None => at = (at + 2).min(text.len()),
        }
    }
}

/// Returns the UTF-16 code unit of a `\uXXXX` escape at this position.
fn unit(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_opening_brackets_and_braces_are_counted() {
        for (text, count) in [("", 0), ("{[]}", 2), (r#"{"a":"[;{"}"#, 3), ("\u{15b}[", 1)] {
            assert_eq!(count_opened(text.as_bytes()), count, "{text}");
            assert_eq!(count_opened(text.repeat(1_000).as_bytes()), count * 1_000, "{text}");
        }
    }
}
