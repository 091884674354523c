//! The targets for the parsers. Their input is the content of the location, byte for byte. Header lines end in LF.

use std::net::{IpAddr, SocketAddr};

use http::header::{AUTHORIZATION, FORWARDED, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use tollgate::extract::{self, Extracted, TokenCharset, TokenSyntax};
use tollgate::gate::ForwardedProto;
use tollgate::limit::ClientIp;
use tollgate::{BearerToken, RequestHead};

use crate::oracle::{self, Form, Found, latin_1};

/// The default token syntax, short tokens, and the lenient character set.
const FORMS: [Form; 3] = [Form::DEFAULT, Form { max_len: 8, lenient: false }, Form { max_len: 64, lenient: true }];

pub const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
pub const PREFIX: &str = "base64url.bearer.authorization.example.";

/// Returns the crate's token syntax for a form.
pub fn token_form(form: Form) -> TokenSyntax {
    let charset = if form.lenient { TokenCharset::Lenient } else { TokenCharset::B64Token };
    TokenSyntax::default().with_charset(charset).with_max_len(form.max_len)
}

pub fn header(data: &[u8]) {
    let Some(headers) = headers(AUTHORIZATION, data) else { return };
    for form in FORMS {
        same(extract::authorization(&headers, token_form(form)), oracle::authorization(&lines(data), form));
    }
}

pub fn api_key(data: &[u8]) {
    let Some(headers) = headers(API_KEY, data) else { return };
    for form in FORMS {
        same(extract::api_key(&headers, &API_KEY, token_form(form)), oracle::api_key(&lines(data), form));
    }
}

pub fn query(data: &[u8]) {
    let Ok(target) = Uri::try_from([b"/?", data].concat()) else { return };
    let text = latin_1(&[b"/?", data].concat());
    let query = oracle::query_of(&text).unwrap_or_default();
    for (method, form) in [Method::GET, Method::HEAD, Method::POST].into_iter().zip(FORMS) {
        let should_be = oracle::query(method.as_str(), query, "access_token", form);
        same(extract::query(&method, &target, "access_token", token_form(form)), should_be);
    }
}

pub fn form(data: &[u8]) {
    for form in FORMS {
        let should_be = oracle::form(&latin_1(data), "access_token", form);
        same(extract::form(data, "access_token", token_form(form)), should_be);
    }
}

/// Checks the bytes. Since few bytes are valid JSON, also checks a sequence of JSON fragments, one for each byte.
pub fn json(data: &[u8]) {
    let fragments = data.iter().take(64).map(|byte| JSON_FRAGMENTS[usize::from(*byte) % JSON_FRAGMENTS.len()]);
    for body in [data, fragments.collect::<String>().as_bytes()] {
        for form in FORMS {
            same(extract::json(body, "key", token_form(form)), oracle::json(body, "key", form));
        }
    }
}

/// All fragments that a JSON parser has to know. The first two begin and end most bodies.
const JSON_FRAGMENTS: [&str; 32] = [
    "{\"key\":\"",
    "\"}",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\"key\":",
    ",\"key\":\"b\"",
    "\"Key\":",
    "\"\\u006bey\":",
    "\"a\":",
    "null",
    "true",
    "-1.5e+9",
    "0",
    "1",
    ".",
    "E",
    "-",
    "abc",
    "==",
    "\\ud83d",
    "\\ude00",
    "\\u0041",
    "\\\\",
    "\\n",
    "\u{e9}",
    " \r\n\t",
    "\u{feff}",
];

pub fn text(data: &[u8]) {
    for form in FORMS {
        same(extract::text(data, "key", token_form(form)), oracle::text(data, "key", form));
    }
}

pub fn websocket(data: &[u8]) {
    let Some(headers) = headers(SEC_WEBSOCKET_PROTOCOL, data) else { return };
    let mut request = Request::new(());
    *request.headers_mut() = headers;
    same(extract::websocket(&RequestHead::of(&request), PREFIX, TokenSyntax::default()), Found::Absent);
    request.headers_mut().insert(UPGRADE, HeaderValue::from_static("h2c, WebSocket"));
    for form in FORMS {
        let should_be = oracle::websocket(&lines(data), PREFIX, form);
        same(extract::websocket(&RequestHead::of(&request), PREFIX, token_form(form)), should_be);
    }
}

/// Checks the lines of each field, and that nothing before the element of a proxy changes the client's address or its scheme.
pub fn client_ip(data: &[u8]) {
    const PROXY: [u8; 4] = [10, 0, 0, 1];
    const CLIENT: [u8; 4] = [198, 51, 100, 7];
    let proxy = IpAddr::from(PROXY);
    let client = |source: &ClientIp, name: &HeaderName, data: &[u8]| {
        let mut request = Request::new(());
        *request.headers_mut() = headers(name.clone(), data)?;
        request.extensions_mut().insert(SocketAddr::from((PROXY, 40_000)));
        source.of(&RequestHead::of(&request))
    };
    let by_list = ClientIp::x_forwarded_for(["10.0.0.0/8"]).expect("a valid network");
    let by_element = ClientIp::forwarded(["10.0.0.0/8"]).expect("a valid network");
    let x_forwarded_for = HeaderName::from_static("x-forwarded-for");

    let Some(found) = client(&by_list, &x_forwarded_for, data) else { return };
    assert_eq!(found, oracle::client_ip::x_forwarded_for(proxy, &lines(data)));
    let found = client(&by_element, &FORWARDED, data);
    assert_eq!(found, Some(oracle::client_ip::forwarded(proxy, &lines(data))));

    let found = client(&by_list, &x_forwarded_for, &[data, b",198.51.100.7"].concat());
    assert_eq!(found, Some(IpAddr::from(CLIENT)));
    let found = client(&by_element, &FORWARDED, &[data, b", for=198.51.100.7;proto=https"].concat());
    assert!([Some(IpAddr::from(CLIENT)), Some(proxy)].contains(&found), "{found:?}");

    let is_https = |source: &ForwardedProto, name: &HeaderName, data: &[u8]| {
        let mut request = Request::new(());
        *request.headers_mut() = headers(name.clone(), data).expect("lines that were accepted before");
        request.extensions_mut().insert(SocketAddr::from((PROXY, 40_000)));
        source.is_https(&RequestHead::of(&request))
    };
    let by_list = ForwardedProto::x_forwarded_proto(["10.0.0.0/8"]).expect("a valid network");
    let by_element = ForwardedProto::forwarded(["10.0.0.0/8"]).expect("a valid network");
    let x_forwarded_proto = HeaderName::from_static("x-forwarded-proto");

    assert_eq!(is_https(&by_list, &x_forwarded_proto, data), oracle::client_ip::x_forwarded_proto(&lines(data)));
    assert_eq!(is_https(&by_element, &FORWARDED, data), oracle::client_ip::forwarded_proto(&lines(data)));
    assert!(!is_https(&by_list, &x_forwarded_proto, &[data, b",http"].concat()));
    assert!(!is_https(&by_element, &FORWARDED, &[data, b", for=198.51.100.7;proto=http"].concat()));
}

fn lines(data: &[u8]) -> Vec<String> {
    data.split(|&byte| byte == b'\n').map(latin_1).collect()
}

/// Returns the lines as lines of a field, if `http` accepts them.
fn headers(name: HeaderName, data: &[u8]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in data.split(|&byte| byte == b'\n') {
        headers.append(&name, HeaderValue::from_bytes(line).ok()?);
    }
    Some(headers)
}

/// Asserts that the crate and the oracle agree, and that `Debug` does not print the token.
fn same(is: Extracted<'_>, should_be: Found) {
    let printed = format!("{is:?}");
    let (found, prints) = match is {
        Extracted::Nothing => (Found::Absent, "Nothing".to_owned()),
        Extracted::Token(token) => {
            (Found::Token(latin_1(token.expose())), format!("{:?}", Extracted::Token(BearerToken::new("another"))))
        }
        Extracted::Malformed => (Found::BadToken, "Malformed".to_owned()),
        Extracted::Ambiguous(reason) => (Found::BadRequest, format!("Ambiguous({reason:?})")),
        other => panic!("unexpected result: {other:?}"),
    };
    assert_eq!(found, should_be);
    assert_eq!(printed, prints);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_lines_are_absent() {
        assert!(matches!(extract::authorization(&HeaderMap::new(), TokenSyntax::default()), Extracted::Nothing));
        assert_eq!(oracle::authorization(&[], Form::DEFAULT), Found::Absent);
        assert!(matches!(extract::api_key(&HeaderMap::new(), &API_KEY, TokenSyntax::default()), Extracted::Nothing));
        assert_eq!(oracle::api_key(&[], Form::DEFAULT), Found::Absent);
    }

    #[test]
    #[should_panic]
    fn a_different_token_is_detected() {
        same(Extracted::Token(BearerToken::new("a")), Found::Token("b".to_owned()));
    }

    #[test]
    #[should_panic]
    fn a_different_result_is_detected() {
        same(Extracted::Malformed, Found::Absent);
    }
}
