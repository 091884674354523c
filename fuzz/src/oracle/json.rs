//! Tokens in JSON bodies.

use super::{Form, Found, latin_1};

/// Extracts from a JSON body, which is read completely into a tree that keeps every member.
pub fn json(body: &[u8], name: &str, form: Form) -> Found {
    let Ok(text) = std::str::from_utf8(body) else { return Found::BadRequest };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_matches(SPACE).is_empty() {
        return Found::Absent;
    }
    let Some(Json::Object(members)) = read(text) else {
        return if read(text).is_some() { Found::Absent } else { Found::BadRequest };
    };
    let values: Vec<&Json> = members.iter().filter(|(own, _)| own == name).map(|(_, value)| value).collect();
    match values[..] {
        [] | [Json::Null] => Found::Absent,
        [Json::Text(value)] => form.value(latin_1(value.as_bytes())),
        _ => Found::BadRequest,
    }
}

const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];
const MAX_DEPTH: usize = 64;

#[derive(Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Boolean,
    /// As it is written.
    Number(String),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// Reads a document by RFC 8259, section 2, with a depth of at most 64.
fn read(text: &str) -> Option<Json> {
    read_within(text, MAX_DEPTH)
}

/// Reads a document with a maximum depth.
pub(super) fn read_within(text: &str, depth: usize) -> Option<Json> {
    let (value, rest) = value(text, depth)?;
    rest.is_empty().then_some(value)
}

/// Reads a value with its surrounding white space, and with at most this depth. Returns the rest.
fn value(text: &str, depth: usize) -> Option<(Json, &str)> {
    let text = text.trim_start_matches(SPACE);
    let (value, rest) = match text.chars().next()? {
        '{' | '[' if depth == 0 => return None,
        '{' => {
            let member = |text| {
                let (name, rest) = string(str::trim_start_matches(text, SPACE))?;
                let (value, rest) = value(rest.trim_start_matches(SPACE).strip_prefix(':')?, depth - 1)?;
                Some(((name, value), rest))
            };
            let (members, rest) = list(&text[1..], '}', member)?;
            (Json::Object(members), rest)
        }
        '[' => list(&text[1..], ']', |text| value(text, depth - 1)).map(|(items, rest)| (Json::Array(items), rest))?,
        '"' => string(text).map(|(text, rest)| (Json::Text(text), rest))?,
        _ => {
            let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c)).unwrap_or(text.len());
            let value = match &text[..end] {
                "null" => Json::Null,
                "true" | "false" => Json::Boolean,
                word => is_number(word).then(|| Json::Number(word.to_owned()))?,
            };
            (value, &text[end..])
        }
    };
    Some((value, rest.trim_start_matches(SPACE)))
}

/// Reads items separated by commas, up to the closing bracket.
fn list<'a, T>(
    text: &'a str,
    close: char,
    item: impl Fn(&'a str) -> Option<(T, &'a str)>,
) -> Option<(Vec<T>, &'a str)> {
    let mut items = Vec::new();
    if let Some(rest) = text.trim_start_matches(SPACE).strip_prefix(close) {
        return Some((items, rest));
    }
    let mut text = text;
    loop {
        let (next, rest) = item(text)?;
        items.push(next);
        match rest.strip_prefix(close) {
            Some(rest) => return Some((items, rest)),
            None => text = rest.strip_prefix(',')?,
        }
    }
}

/// Reads a string as UTF-16. Surrogates must occur in pairs.
fn string(text: &str) -> Option<(String, &str)> {
    let mut chars = text.strip_prefix('"')?.chars();
    let mut units: Vec<u16> = Vec::new();
    loop {
        let plain = match chars.next()? {
            '"' => return Some((String::from_utf16(&units).ok()?, chars.as_str())),
            '\\' => match chars.next()? {
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => {
                    let digits: Vec<u16> =
                        chars.by_ref().take(4).map_while(|c| c.to_digit(16)).map(|digit| digit as u16).collect();
                    let [a, b, c, d] = digits[..] else { return None };
                    units.push(a << 12 | b << 8 | c << 4 | d);
                    continue;
                }
                c if "\"\\/".contains(c) => c,
                _ => return None,
            },
            c if c < ' ' => return None,
            c => c,
        };
        units.extend_from_slice(plain.encode_utf16(&mut [0; 2]));
    }
}

/// Checks a number by RFC 8259, section 6.
fn is_number(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(w, f)| (w, Some(f)));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let has_leading_zero = whole.len() > 1 && whole.starts_with('0');
    is_digits(whole)
        && !has_leading_zero
        && fraction.is_none_or(is_digits)
        && exponent.is_none_or(|exponent| is_digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_grammar() {
        for number in ["0", "-0", "10", "1.5", "0.0", "1e9", "1E+9", "-1.25e-300", "1e999999"] {
            assert!(is_number(number), "{number}");
        }
        for wrong in ["", "-", "+1", "01", "-01", "1.", ".5", "1e", "1e+", "1.e1", "NaN", "Infinity", "1-", "0x1"] {
            assert!(!is_number(wrong), "{wrong}");
        }
    }

    /// Compares documents that both parsers decide on: no large numbers, no depth, no lone surrogates in skipped names.
    #[test]
    fn the_grammar_matches_serde_json() {
        for text in [
            "{}",
            "[]",
            "null",
            "nul",
            "{\"a\":1}",
            "{\"a\":1,}",
            "{,}",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{\"a\" 1}",
            "{a:1}",
            "\"\\u00e9\\n\"",
            "\"\\x\"",
            "\"\t\"",
            "\"",
            "{\"a\":{\"b\":[true,false,null]}} ",
            "1 1",
            "{} {}",
            "[1",
            "-",
            "\"\\ud83d\\ude00\"",
            "\"\\ud83d\"",
            "\"\\ude00\"",
            "\"\\u12\"",
            "{\"a\":}",
            "{\"a\"}",
            "truefalse",
            "\u{b}1",
        ] {
            let theirs = serde_json::from_str::<serde_json::Value>(text).is_ok();
            assert_eq!(read(text).is_some(), theirs, "{text}");
        }
    }

    #[test]
    fn the_maximum_depth_is_64() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(read(&nested(64)).is_some());
        assert!(read(&nested(65)).is_none());
    }

    #[test]
    fn every_member_is_kept_and_names_are_unescaped() {
        let Some(Json::Object(members)) = read(r#"{"key":"a","\u006bey":null}"#) else { panic!() };
        assert_eq!(members, [("key".to_owned(), Json::Text("a".to_owned())), ("key".to_owned(), Json::Null)]);
    }
}
