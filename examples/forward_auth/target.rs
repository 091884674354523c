//! The original target. A path that a proxy, this gate and a service may read differently is rejected.

use axum::http::Uri;

/// Parses a target, if its path has one meaning only.
///
/// # Errors
///
/// Returns the reason. The gate checks one reading of a path, and the service may act on another one. So these are
/// rejected:
///
/// - empty segments (`//`) and dot segments (`/./`, `/../`), which some servers remove and others keep;
/// - `;` and `\`, which some servers treat as separators;
/// - percent-encoded characters that need no encoding (`%61`) or separate parts (`%2f`, `%5c`, `%3b`, `%3f`, `%23`), an encoded `%`,
///   control characters, and text that is not UTF-8;
/// - characters that a path cannot have (RFC 3986, section 3.3).
pub(crate) fn parse(target: &str) -> Result<Uri, &'static str> {
    let path = target.split('?').next().unwrap_or_default();
    let Some(segments) = path.strip_prefix('/') else { return Err("The target does not begin with a path.") };
    let mut segments = segments.split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        if matches!(segment, "." | "..") || (segment.is_empty() && !is_last) {
            return Err("The path has an empty segment or a dot segment.");
        }
        if !is_plain(segment.as_bytes()) {
            return Err("The path has a character with more than one meaning.");
        }
    }
    // The parser would cut off a fragment.
    match target.contains('#') {
        true => Err("The target has a fragment."),
        false => target.parse().map_err(|_| "The target is malformed."),
    }
}

/// Returns whether the literal parts of a route have one form only. Clients may percent-encode other characters, such as `:`, and the
/// route would not match then.
pub(crate) fn is_unambiguous(route: &str) -> bool {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let is_parameter = |segment: &str| segment.starts_with('{') && segment.ends_with('}');
    route.split('/').all(|segment| is_parameter(segment) || segment.bytes().all(is_unreserved))
}

/// Returns whether a segment consists of characters that stand for themselves, and of necessary percent-encodings.
fn is_plain(mut segment: &[u8]) -> bool {
    let is_literal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte);
    let mut decoded = Vec::new();
    while let [first, rest @ ..] = segment {
        segment = rest;
        if *first != b'%' {
            if !is_literal(*first) {
                return false;
            }
            decoded.push(*first);
            continue;
        }
        let [high, low, rest @ ..] = rest else { return false };
        segment = rest;
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (Some(high), Some(low)) = (digit(*high), digit(*low)) else { return false };
        let byte = high << 4 | low;
        if byte.is_ascii_alphanumeric() || byte.is_ascii_control() || b"-._~/\\;%?#".contains(&byte) {
            return false;
        }
        decoded.push(byte);
    }
    std::str::from_utf8(&decoded).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_one_meaning_are_accepted_as_they_are() {
        for target in [
            "/",
            "/v1/orders",
            "/v1/orders/",
            "/v1/a-b._~!$&'()*+,=:@",
            "/v1/a%20b%40c%C3%A9%7b",
            "/v1/orders?next=//../%2e%2e;",
            "/v1/...",
        ] {
            assert_eq!(parse(target).map(|uri| uri.to_string()), Ok(target.to_owned()));
        }
    }

    #[test]
    fn routes_have_one_form_only() {
        for route in ["/", "/v1/orders", "/v1/{*path}", "/v1/{id}/a-b_c~d.e", "/v1/orders/"] {
            assert!(is_unambiguous(route), "{route}");
        }
        for route in ["/v1/orders:cancel", "/v1/%3a", "/v1/@a", "/v1/a+b", "/v1/{id}:cancel", "/v1/a b", "/v1/\u{e9}"] {
            assert!(!is_unambiguous(route), "{route}");
        }
    }

    #[test]
    fn paths_with_several_meanings_are_rejected() {
        for target in [
            "",
            "*",
            "v1/orders",
            "http://api.test/v1/orders",
            "?q=/v1",
            "//v1/orders",
            "/v1//orders",
            "/v1/orders//",
            "/v1/./orders",
            "/v1/../admin",
            "/v1/..",
            "/v1/.",
            "/v1/%2e%2e/admin",
            "/v1/.%2E/admin",
            "/v1%2forders",
            "/v1%5corders",
            "/v1/\\orders",
            "/v1/%6frders",
            "/v1/%252e",
            "/v1/orders%00",
            "/v1/orders%0a",
            "/v1/orders%3f",
            "/v1/orders%23",
            "/v1/orders#x",
            "/v1/orders?q#x",
            "/v1/orders;x=1",
            "/v1/orders%3bx=1",
            // An overlong dot, and a byte that is no UTF-8.
            "/v1/%c0%ae",
            "/v1/%ff",
            "/v1/%",
            "/v1/%2",
            "/v1/%zz",
            "/v1/a b",
            "/v1/\u{e9}",
            "/v1/{a}",
            "/v1/orders?a b",
        ] {
            assert!(parse(target).is_err(), "{target}");
        }
    }
}
