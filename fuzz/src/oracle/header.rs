//! Tokens in header fields.

use super::{Form, Found, bytes, latin_1, strip};

const TCHAR: &str = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Extracts from the `Authorization` lines of a request.
pub fn authorization(lines: &[String], form: Form) -> Found {
    let [line] = lines else { return if lines.is_empty() { Found::Absent } else { Found::BadRequest } };
    let value = strip(line);
    let scheme: String = value.chars().take_while(|c| TCHAR.contains(*c)).collect();
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Found::Absent;
    }
    let rest = &value[scheme.len()..];
    if rest.contains(',') {
        Found::BadRequest
    } else if !rest.starts_with(' ') {
        Found::BadToken
    } else {
        form.value(rest.trim_start_matches(' ').to_owned())
    }
}

/// Extracts from the lines of the API-key header.
pub fn api_key(lines: &[String], form: Form) -> Found {
    match lines {
        [] => Found::Absent,
        [line] if !line.contains(',') => form.value(strip(line).to_owned()),
        _ => Found::BadRequest,
    }
}

/// Extracts from the `Sec-WebSocket-Protocol` lines of a WebSocket handshake.
pub fn websocket(lines: &[String], prefix: &str, form: Form) -> Found {
    let (with_prefix, others): (Vec<String>, Vec<String>) =
        list(lines).into_iter().partition(|item| item.starts_with(prefix));
    match &with_prefix[..] {
        [] => Found::Absent,
        [item] if !others.is_empty() => match base64url(&item[prefix.len()..]) {
            Some(token) => form.value(latin_1(&token)),
            None => Found::BadRequest,
        },
        _ => Found::BadRequest,
    }
}

/// Returns the items of a list field without empty ones.
pub fn list(lines: &[String]) -> Vec<String> {
    let items = lines.iter().flat_map(|line| line.split(',')).map(strip);
    items.filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// Decodes RFC 4648, section 5, without padding. The unused bits at the end are zero (section 3.5).
fn base64url(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bits = String::new();
    for byte in bytes(text) {
        bits += &format!("{:06b}", ALPHABET.find(char::from(byte))?);
    }
    let (whole, rest) = bits.split_at(bits.len() / 8 * 8);
    if rest.len() == 6 || rest.contains('1') {
        return None;
    }
    (0..whole.len() / 8).map(|at| u8::from_str_radix(&whole[at * 8..][..8], 2).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_follows_rfc_4648() {
        for (text, decoded) in [("", ""), ("Zg", "f"), ("Zm8", "fo"), ("Zm9v", "foo"), ("Zm9vYmE", "fooba")] {
            assert_eq!(base64url(text).as_deref(), Some(decoded.as_bytes()));
        }
        assert_eq!(base64url("-_8").as_deref(), Some(&[0xfb, 0xff][..]));
        for wrong in ["Z", "Zh", "Zg==", "Zm9", "+/8", "Zm9v Z", "\u{e9}A"] {
            assert_eq!(base64url(wrong), None, "{wrong}");
        }
    }
}
