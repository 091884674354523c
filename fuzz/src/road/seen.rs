use tollgate::{TokenLocation as RealCarrier, CurrentGrant, TokenDigest, Unauthenticated};

use super::gate::Seen;
use super::model::Expected;
use super::options::{OTHER, Options};
use crate::oracle::{self, Found, latin_1, list};
use crate::request::{TokenLocation, Sent};

/// The inner service got what it is to get, and nothing else.
pub fn check(seen: Option<&Seen>, expected: &Expected, request: &Sent, options: &Options) {
    let Some(seen) = seen else { return assert!(matches!(expected, Expected::Refused { .. }), "{expected:?}") };
    let extensions = &seen.head.extensions;
    let caller = extensions.get::<CurrentGrant>();
    let stranger = extensions.get::<Unauthenticated>().copied();
    match expected {
        Expected::Refused { kind, .. } => panic!("{kind:?} reached the inner service"),
        Expected::Preflight => assert_eq!(stranger, Some(Unauthenticated::Preflight)),
        Expected::Anonymous => assert_eq!(stranger, Some(Unauthenticated::Anonymous)),
        Expected::Admitted { token, location, .. } => {
            let caller = caller.expect("a grant");
            assert_eq!(caller.location(), real(*location));
            assert_eq!(caller.token_digest(), Some(TokenDigest::of(oracle::bytes(token))));
            assert_eq!(&seen.asked[..], std::slice::from_ref(token), "what the store was asked for");
        }
    }
    if !matches!(expected, Expected::Admitted { .. }) {
        assert!(caller.is_none() && seen.asked.is_empty());
    }
    let is_body = matches!(expected, Expected::Admitted { location: TokenLocation::Form | TokenLocation::Json | TokenLocation::Text, .. });
    match expected {
        Expected::Admitted { token, location, .. } if is_body && options.removes_credentials => {
            check_masked(seen, token, *location, request);
        }
        _ => assert!(seen.body == request.body, "the body was changed"),
    }
    check_head(seen, expected, request, options);
}

/// Some bytes became stars, and the token is not there any more.
fn check_masked(seen: &Seen, token: &str, location: TokenLocation, request: &Sent) {
    assert_eq!(seen.body.len(), request.body.len());
    let pairs = || seen.body.iter().zip(&request.body);
    let is_same = |(is, was): (&u8, &u8)| is == was || *is == b'*';
    assert!(pairs().all(is_same), "more than stars");
    let changed: Vec<usize> = pairs().enumerate().filter(|(_, (is, was))| is != was).map(|(at, _)| at).collect();
    if let (Some(first), Some(last)) = (changed.first(), changed.last()) {
        assert!(seen.body[*first..=*last].iter().all(|byte| *byte == b'*'), "in one piece");
    }
    // Read again, it is stars: valid where any printable character is.
    let form = oracle::Form { lenient: true, max_len: usize::MAX };
    let body = latin_1(&seen.body);
    let again = match location {
        TokenLocation::Form => oracle::form(&body, "access_token", form),
        TokenLocation::Text => oracle::text(&seen.body, "key", form),
        _ => oracle::json(&seen.body, "key", form),
    };
    let Found::Token(stars) = again else { panic!("the body cannot be read any more: {again:?}") };
    assert!(stars.chars().all(|c| c == '*') && stars.len() >= token.len(), "{stars} is left of {token}");
}

/// Fields that hold credentials are marked or gone; all others are as they were.
fn check_head(seen: &Seen, expected: &Expected, request: &Sent, options: &Options) {
    let (doors, headers) = (&options.doors, &seen.head.headers);
    let is_preflight = matches!(expected, Expected::Preflight);
    let is_gone = is_preflight || options.removes_credentials;
    let bearer = oracle::authorization(&request.lines("authorization"), doors.token);
    let is_beside = doors.api_key_yields && bearer != Found::Absent && !is_preflight;
    // What is of another scheme is not the gate's to take.
    let is_bearer_gone = is_preflight || (is_gone && bearer != Found::Absent);
    let credentials = [("authorization", is_bearer_gone), ("x-api-key", doors.api_key && is_gone && !is_beside)];
    for (name, is_gone) in credentials {
        let lines: Vec<String> = headers.get_all(name).iter().map(|line| latin_1(line.as_bytes())).collect();
        assert_eq!(lines, if is_gone { vec![] } else { request.lines(name) }, "{name}");
        let is_secret = name == "authorization" || doors.api_key;
        assert!(headers.get_all(name).iter().all(|line| line.is_sensitive() || !is_secret), "{name} is printed");
    }
    if let Some(prefix) = &doors.websocket {
        let is_kept = |item: &String| !item.starts_with(prefix.as_str());
        let kept: Vec<String> = list(&request.lines("sec-websocket-protocol")).into_iter().filter(is_kept).collect();
        let lines = headers.get_all("sec-websocket-protocol").iter().map(|line| latin_1(line.as_bytes()));
        assert_eq!(list(&lines.collect::<Vec<_>>()), kept);
    }
    let target = seen.head.uri.to_string();
    let query = oracle::query_of(&target).unwrap_or_default();
    if doors.query && is_gone && (is_preflight || ["GET", "HEAD"].contains(&&*request.method)) {
        assert_eq!(oracle::query("GET", query, "access_token", doors.token), Found::Absent, "in {target}");
    }
    let others = ["cookie", "content-type", OTHER];
    for name in others {
        let lines: Vec<String> = headers.get_all(name).iter().map(|line| latin_1(line.as_bytes())).collect();
        assert_eq!(lines, request.lines(name), "{name}");
    }
}

fn real(location: TokenLocation) -> RealCarrier {
    match location {
        TokenLocation::Header => RealCarrier::AuthorizationHeader,
        TokenLocation::ApiKey => RealCarrier::ApiKeyHeader,
        TokenLocation::Query => RealCarrier::Query,
        TokenLocation::WebSocket => RealCarrier::WebSocketProtocol,
        TokenLocation::Other => RealCarrier::Other,
        TokenLocation::Form => RealCarrier::FormBody,
        TokenLocation::Json => RealCarrier::JsonBody,
        TokenLocation::Text => RealCarrier::TextBody,
    }
}
