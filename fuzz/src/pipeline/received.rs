//! Checks of the request that the inner service received.

use tollgate::{CurrentGrant, TokenDigest, TokenLocation as CrateLocation, Unauthenticated};

use super::gate::Received;
use super::model::Expected;
use super::options::{OTHER, Options};
use crate::oracle::{self, Found, latin_1, list};
use crate::request::{Sent, TokenLocation};

/// Checks that the inner service received exactly the expected request.
pub fn check(received: Option<&Received>, expected: &Expected, request: &Sent, options: &Options) {
    let Some(received) = received else {
        return assert!(matches!(expected, Expected::Rejected { .. }), "{expected:?}");
    };
    let extensions = &received.head.extensions;
    let caller = extensions.get::<CurrentGrant>();
    let unauthenticated = Unauthenticated::from_extensions(extensions);
    match expected {
        Expected::Rejected { kind, .. } => panic!("{kind:?} reached the inner service"),
        Expected::Preflight => assert_eq!(unauthenticated, Some(Unauthenticated::Preflight)),
        Expected::Anonymous => assert_eq!(unauthenticated, Some(Unauthenticated::Anonymous)),
        Expected::Admitted { token, location, .. } => {
            let caller = caller.expect("a grant");
            assert_eq!(caller.location(), crate_location(*location));
            assert_eq!(caller.token_digest(), Some(TokenDigest::of(oracle::bytes(token))));
            assert_eq!(&received.asked[..], std::slice::from_ref(token), "what the store was asked for");
        }
    }
    if !matches!(expected, Expected::Admitted { .. }) {
        assert!(caller.is_none() && received.asked.is_empty());
    }
    let is_body = matches!(
        expected,
        Expected::Admitted { location: TokenLocation::Form | TokenLocation::Json | TokenLocation::Text, .. }
    );
    match expected {
        Expected::Admitted { token, location, .. } if is_body && options.removes_credentials => {
            check_masked(received, token, *location, request);
        }
        _ => assert!(received.body == request.body, "the body was changed"),
    }
    check_head(received, expected, request, options);
}

/// Checks that some bytes became stars and that the token is gone.
fn check_masked(received: &Received, token: &str, location: TokenLocation, request: &Sent) {
    assert_eq!(received.body.len(), request.body.len());
    let pairs = || received.body.iter().zip(&request.body);
    let is_same = |(is, was): (&u8, &u8)| is == was || *is == b'*';
    assert!(pairs().all(is_same), "bytes other than stars were written");
    let changed: Vec<usize> = pairs().enumerate().filter(|(_, (is, was))| is != was).map(|(at, _)| at).collect();
    if let (Some(first), Some(last)) = (changed.first(), changed.last()) {
        assert!(received.body[*first..=*last].iter().all(|byte| *byte == b'*'), "the stars are not contiguous");
    }
    // Extracted again, the token is stars, which the lenient character set allows.
    let form = oracle::Form { lenient: true, max_len: usize::MAX };
    let body = latin_1(&received.body);
    let again = match location {
        TokenLocation::Form => oracle::form(&body, "access_token", form),
        TokenLocation::Text => oracle::text(&received.body, "key", form),
        _ => oracle::json(&received.body, "key", form),
    };
    let Found::Token(stars) = again else { panic!("the masked body cannot be parsed: {again:?}") };
    assert!(stars.chars().all(|c| c == '*') && stars.len() >= token.len(), "{stars} is left of {token}");
}

/// Checks that fields with credentials are marked or removed, and that all others are unchanged.
fn check_head(received: &Received, expected: &Expected, request: &Sent, options: &Options) {
    let (locations, headers) = (&options.locations, &received.head.headers);
    let is_preflight = matches!(expected, Expected::Preflight);
    let is_gone = is_preflight || options.removes_credentials;
    let bearer = oracle::authorization(&request.lines("authorization"), locations.token);
    let is_beside = locations.api_key_unless_bearer && bearer != Found::Absent && !is_preflight;
    // Credentials of another scheme are kept.
    let is_bearer_gone = is_preflight || (is_gone && bearer != Found::Absent);
    let credentials = [("authorization", is_bearer_gone), ("x-api-key", locations.api_key && is_gone && !is_beside)];
    for (name, is_gone) in credentials {
        let lines: Vec<String> = headers.get_all(name).iter().map(|line| latin_1(line.as_bytes())).collect();
        assert_eq!(lines, if is_gone { vec![] } else { request.lines(name) }, "{name}");
        let is_secret = name == "authorization" || locations.api_key;
        assert!(headers.get_all(name).iter().all(|line| line.is_sensitive() || !is_secret), "{name} is printed");
    }
    if let Some(prefix) = &locations.websocket {
        let is_kept = |item: &String| !item.starts_with(prefix.as_str());
        let kept: Vec<String> = list(&request.lines("sec-websocket-protocol")).into_iter().filter(is_kept).collect();
        let lines = headers.get_all("sec-websocket-protocol").iter().map(|line| latin_1(line.as_bytes()));
        assert_eq!(list(&lines.collect::<Vec<_>>()), kept);
    }
    let target = received.head.uri.to_string();
    let query = oracle::query_of(&target).unwrap_or_default();
    if locations.query && is_gone && (is_preflight || ["GET", "HEAD"].contains(&&*request.method)) {
        assert_eq!(oracle::query("GET", query, "access_token", locations.token), Found::Absent, "in {target}");
    }
    let others = ["cookie", "content-type", OTHER];
    for name in others {
        let lines: Vec<String> = headers.get_all(name).iter().map(|line| latin_1(line.as_bytes())).collect();
        assert_eq!(lines, request.lines(name), "{name}");
    }
}

fn crate_location(location: TokenLocation) -> CrateLocation {
    match location {
        TokenLocation::Header => CrateLocation::AuthorizationHeader,
        TokenLocation::ApiKey => CrateLocation::ApiKeyHeader,
        TokenLocation::Query => CrateLocation::Query,
        TokenLocation::WebSocket => CrateLocation::WebSocketProtocol,
        TokenLocation::Other => CrateLocation::Other,
        TokenLocation::Form => CrateLocation::FormBody,
        TokenLocation::Json => CrateLocation::JsonBody,
        TokenLocation::Text => CrateLocation::TextBody,
    }
}
