//! Requests composed of fragments.

use crate::request::Sent;

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "OPTIONS", "CONNECT", "DELETE"];

const TARGETS: [&str; 8] = [
    "/",
    "/?access_token=query-token",
    "/?a=b&access%5Ftoken=query%2Dtoken&c",
    "/?access_token=a&access_token=a",
    "/?access_token=",
    "http://example/#?access_token=a",
    "/?access_token=a+b",
    "/?ACCESS_TOKEN=a&access_token",
];

const BODIES: [&str; 16] = [
    "",
    "{\"key\":\"json-token\",\"a\":[1]}",
    " {\"\\u006bey\":\"json\\u002dtoken\"}",
    "{\"key\":\"a\",\"key\":\"a\"}",
    "{\"key\":null}",
    "{\"key\":\"\"}",
    "{\"key\":",
    "[\"key\"]",
    "key=text-token;a=b",
    "a=b;\r\nKEY = text-token ;",
    "key=a;key=a;",
    "key",
    "access_token=form-token&a=b",
    "access%5ftoken=form%2dtoken",
    "access_token=a+b",
    "access_token=a&access_token=a",
];

const LINES: [(&str, &str); 45] = [
    ("authorization", "Bearer header-token"),
    ("authorization", "bEARER \t"),
    ("authorization", " Bearer   another-token=="),
    ("authorization", "Bearer a, Bearer b"),
    ("authorization", "Basic Zm9v"),
    ("authorization", "Bearers token"),
    ("authorization", ""),
    ("authorization", "Bearer nope-at-all"),
    ("authorization", "Bearer soon-to-be"),
    ("authorization", "Bearer old-and-gone"),
    ("authorization", "Bearer dpop-bound"),
    ("authorization", "Bearer any-of-them"),
    ("x-api-key", "key-token"),
    ("x-api-key", "\tkey-token "),
    ("x-api-key", "a,b"),
    ("x-api-key", ""),
    ("x-session", "session-token"),
    ("x-session", "\"quoted\""),
    ("upgrade", "websocket"),
    ("upgrade", "h2c , WebSocket"),
    ("sec-websocket-protocol", "base64url.bearer.authorization.example.dG9rLTE, chat"),
    ("sec-websocket-protocol", "base64url.bearer.authorization.example.dG9rLTE"),
    ("sec-websocket-protocol", "chat,, v2"),
    ("sec-websocket-protocol", "base64url.bearer.authorization.example.dG9rLT="),
    ("content-type", "application/json"),
    ("content-type", "Application/Problem+JSON ; Charset=\"utf-8\""),
    ("content-type", "application/json; charset=latin1"),
    ("content-type", "text/plain"),
    ("content-type", " text/plain;charset = us-ascii"),
    ("content-type", "application/x-www-form-urlencoded"),
    ("content-type", "application/grpc"),
    ("content-type", "application/grpc+json"),
    ("content-type", "application/grpc-web"),
    ("content-type", "application/grpc-web+json"),
    ("content-type", "application/grpc-web-text ; x=y"),
    ("content-type", "application/grpc-web-text+json"),
    ("connect-protocol-version", "1"),
    ("content-type", "application/connect+json"),
    ("content-type", "image/png"),
    ("content-encoding", "gzip"),
    ("content-encoding", "identity, "),
    ("origin", "https://app.example"),
    ("access-control-request-method", "POST"),
    ("cookie", "a=b"),
    ("x-api-key", "\u{e9}"),
];

/// Composes a request of fragments, one for each byte. Combinations are found sooner than by mutating text.
pub fn request(data: &[u8]) -> Option<Sent> {
    let (&[method, target, body], lines) = data.split_first_chunk()?;
    fn of<T: Copy>(fragments: &[T], byte: u8) -> T {
        fragments[usize::from(byte) % fragments.len()]
    }
    let lines = lines.iter().take(8).map(|byte| of(&LINES, *byte));
    Some(Sent {
        method: of(&METHODS, method).to_owned(),
        target: of(&TARGETS, target).to_owned(),
        is_http_2: false,
        headers: lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        body: of(&BODIES, body).as_bytes().to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks every pair of lines with every method and body, for varied gates.
    #[test]
    fn all_pairs_pass() {
        let mut number = 0_u32;
        for first in 0..LINES.len() as u8 {
            for second in first..LINES.len() as u8 {
                number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let [disabled, flags, limit, body] = number.to_be_bytes();
                for (disabled, method) in [(0, 0), (0, 2), (disabled, body / 16)] {
                    super::super::check(&[disabled, flags, limit, method, flags / 8, body, first, second]);
                }
            }
        }
    }
}
