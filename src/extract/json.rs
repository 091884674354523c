use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Extracted, InvalidRequest, TokenSyntax};

/// The token of a JSON body: the member of the top-level object with this name (RFC 8259).
///
/// # Rules
///
/// 1. The whole body is checked, not only what stands before the member: UTF-8 (one byte order mark at the beginning is
///    dropped), grammar, escapes, and a depth of 64 at the most. What fails is [`Extracted::Ambiguous`].
/// 2. The name is compared after unescaping, with case. Members of nested objects do not count.
/// 3. A second such member, however it is written, is [`Extracted::Ambiguous`]: which of two counts depends on the
///    parser, and the handler may have another one.
/// 4. `null`, no such member, a top level that is no object and an empty body are [`Extracted::Nothing`]. Any other value
///    that is no string is [`Extracted::Ambiguous`]. A string is taken as it is, without trimming.
/// 5. Numbers are checked and not converted, so that none is too large.
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
pub fn json<'a>(body: &'a [u8], name: &str, form: TokenSyntax) -> Extracted<'a> {
    locate(body, name, form, MAX_DEPTH).0
}

/// How deep arrays and objects may be nested, unless something else is said.
pub(super) const MAX_DEPTH: usize = 64;

/// White space of RFC 8259, section 2.
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// Returns whether a body whose type says nothing of JSON begins as an object: `{` after at most one byte order mark and
/// white space.
pub(super) fn begins_object(body: &[u8]) -> bool {
    let body = body.strip_prefix(super::BOM).unwrap_or(body);
    let first = body.iter().find(|&&byte| !SPACE.contains(&char::from(byte)));
    first == Some(&b'{')
}

pub(super) fn locate<'a>(
    body: &'a [u8],
    name: &str,
    form: TokenSyntax,
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
    // `serde_json` walks what it skips to any depth, and does not look into escapes there.
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
        // It was checked when it was skipped, and nothing in it stands for something else.
        false => Cow::Borrowed(written.as_bytes()),
        true => match serde_json::from_str::<String>(raw) {
            Ok(text) => Cow::Owned(text.into_bytes()),
            Err(_) => return wrong(InvalidRequest::InvalidJson),
        },
    };
    // The slice lies in the body, which is where it is found.
    let begin = written.as_ptr() as usize - body.as_ptr() as usize;
    (Extracted::value(value, form), begin..begin + written.len())
}

fn top_level<'a>(text: &'a str, name: &str) -> serde_json::Result<Member<'a>> {
    if !text.starts_with('{') {
        return serde_json::from_str::<IgnoredAny>(text).map(|_| Member::Absent);
    }
    let mut parser = serde_json::Deserializer::from_str(text);
    let member = parser.deserialize_map(TopLevel { name })?;
    parser.end().map(|()| member)
}

/// What the top level says of the member.
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

/// Compares a name after unescaping, without keeping it.
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

/// Checks what `serde_json` does not check in values that it skips: the depth, and that surrogates come in pairs.
///
/// Reads tokens only as far as it must, to know what is a string. What is no JSON may pass here: it fails next.
fn check_depth_and_pairs(text: &[u8], max_depth: usize) -> Result<(), InvalidRequest> {
    // Alerts have few brackets, and no escapes of that kind.
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

/// How many brackets and braces are opened, in strings too.
fn count_opened(text: &[u8]) -> usize {
    // They differ in the bit that is set here. Counted in bytes as far as one can hold, which is several at once.
    let in_chunk = |chunk: &[u8]| chunk.iter().fold(0_u8, |count, &byte| count + u8::from(byte | 0x20 == b'{'));
    text.chunks(255).map(|chunk| usize::from(in_chunk(chunk))).sum()
}

/// The place after the quote that ends a string, if there is one and its surrogates come in pairs.
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
            // Another escape: two bytes, unless the text ends here.
            None => at = (at + 2).min(text.len()),
        }
    }
}

/// The UTF-16 code unit of an escape `\uXXXX` at this place.
fn unit(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_is_counted_and_nothing_else() {
        for (text, count) in [("", 0), ("{[]}", 2), (r#"{"a":"[;{"}"#, 3), ("\u{15b}[", 1)] {
            assert_eq!(count_opened(text.as_bytes()), count, "{text}");
            assert_eq!(count_opened(text.repeat(1_000).as_bytes()), count * 1_000, "{text}");
        }
    }
}
