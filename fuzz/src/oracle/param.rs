//! Tokens in queries and forms.

use super::{Form, Found};

/// Returns the query of a target.
pub fn query_of(target: &str) -> Option<&str> {
    let without_fragment = target.split('#').next()?;
    without_fragment.split_once('?').map(|(_, query)| query)
}

/// Extracts from a query, if the method may have a token there.
pub fn query(method: &str, query: &str, name: &str, form: Form) -> Found {
    if method == "GET" || method == "HEAD" { parameter(query, name, false, form) } else { Found::Absent }
}

/// Extracts from a form.
pub fn form(body: &str, name: &str, form: Form) -> Found {
    parameter(body, name, true, form)
}

fn parameter(pairs: &str, name: &str, plus_is_space: bool, form: Form) -> Found {
    let decode = |text: &str| percent_decode(&if plus_is_space { text.replace('+', " ") } else { text.to_owned() });
    let pairs = pairs.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values: Vec<String> =
        pairs.filter(|(own, _)| decode(own) == name).map(|(_, value)| decode(value)).collect();
    match values.len() {
        0 => Found::Absent,
        1 => form.value(values.remove(0)),
        _ => Found::BadRequest,
    }
}

/// Decodes escapes once. Invalid escapes are kept.
fn percent_decode(text: &str) -> String {
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.chars().all(|c| c.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => decoded = decoded + &char::from(byte).to_string() + &part[2..],
            None => decoded = decoded + "%" + part,
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_once() {
        for (text, decoded) in
            [("a%41b", "aAb"), ("%2541", "%41"), ("%", "%"), ("%4", "%4"), ("%%41", "%A"), ("%+1%\u{e9}", "%+1%\u{e9}")]
        {
            assert_eq!(percent_decode(text), decoded);
        }
        assert_eq!(percent_decode("%E9"), "\u{e9}");
    }

    #[test]
    fn the_query_ends_at_the_fragment() {
        assert_eq!(query_of("/a?b?c=1#?d"), Some("b?c=1"));
        assert_eq!(query_of("/a#b?c"), None);
    }
}
