//! Challenges and rate-limit fields, read back by independent parsers.

use std::convert::Infallible;
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use http_auth::{ChallengeParser, ChallengeRef};
use proptest::prelude::*;
use sfv::{BareItem, FieldType as _, List, ListEntry, Parser};
use tollgate::limit::RateLimits;
use tollgate::respond::{Challenge, ChallengeError, ErrorCode, RateLimitHeaders, Respond};
use tollgate::{
    AuthLayer, Authenticated, Grant, Limit, MemoryStore, ProblemDetails, Quota, Rejection, Scopes, TokenDigest,
};
use tower::Layer;

use crate::kit::*;

pub fn parse(value: &str) -> Vec<ChallengeRef<'_>> {
    ChallengeParser::new(value).collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{value}: {error}"))
}

pub fn parameters(challenge: &ChallengeRef<'_>) -> Vec<(String, String)> {
    challenge.params.iter().map(|(name, value)| ((*name).to_owned(), value.to_unescaped())).collect()
}

#[test]
fn invalid_parameters_return_specific_errors() {
    let bearer = || Challenge::bearer("r").unwrap();
    assert_eq!(Challenge::new("two words").unwrap_err(), ChallengeError::Scheme);
    assert_eq!(Challenge::new("").unwrap_err(), ChallengeError::Scheme);
    assert_eq!(Challenge::bearer("").unwrap_err(), ChallengeError::Realm);
    assert_eq!(Challenge::new("bearer").unwrap_err(), ChallengeError::Realm, "a Bearer challenge always has a realm");
    assert_eq!(bearer().with_error_description("a \"quote\"").unwrap_err(), ChallengeError::ErrorDescription);
    for uri in ["", "/relative", "https://a b", "1https://x", "https://\u{e9}", ":x"] {
        assert_eq!(bearer().with_error_uri(uri).unwrap_err(), ChallengeError::Uri, "{uri}");
        assert_eq!(bearer().with_resource_metadata(uri).unwrap_err(), ChallengeError::Uri, "{uri}");
    }
    assert_eq!(bearer().with_acr_values(["a b"]).unwrap_err(), ChallengeError::AcrValue);
    for (name, value) in [("realm", "x"), ("Error", "x"), ("a b", "x"), ("algs", "\n"), ("algs", "\u{e9}")] {
        assert_eq!(bearer().with_parameter(name, value).unwrap_err(), ChallengeError::Parameter, "{name}");
    }
    let twice = bearer().with_parameter("algs", "ES256").unwrap().with_parameter("ALGS", "x");
    assert_eq!(twice.unwrap_err(), ChallengeError::Parameter);
}

#[test]
fn every_parameter_is_written() {
    let uri = "https://example.com/x";
    let challenge = Challenge::bearer("r").unwrap().with_error(ErrorCode::InvalidToken);
    let challenge = challenge.with_error_description("too old").unwrap().with_error_uri(uri).unwrap();
    let challenge = challenge.with_scope(&Scopes::new(["a", "b"]).unwrap()).with_acr_values(["c"]).unwrap();
    let challenge = challenge.with_max_age(Duration::from_secs(5)).with_resource_metadata(uri).unwrap();
    let value = challenge.with_parameter("algs", "ES256").unwrap().to_header_value();
    let expected = [
        ("realm", "r"),
        ("error", "invalid_token"),
        ("error_description", "too old"),
        ("error_uri", uri),
        ("scope", "a b"),
        ("acr_values", "c"),
        ("max_age", "5"),
        ("resource_metadata", uri),
        ("algs", "ES256"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(parameters(&parse(value.to_str().unwrap())[0]), expected);
}

#[tokio::test]
async fn each_scheme_has_its_own_header_line() {
    let dpop = Challenge::new("DPoP").unwrap().with_parameter("algs", "ES256 \"x\"").unwrap();
    let dpop = dpop.with_error(ErrorCode::InvalidToken).with_error_description("too old").unwrap();
    let dpop = dpop.with_error_uri("https://example.com/errors").unwrap();
    let service = AuthLayer::new(memory()).with_challenge(dpop).layer(echo());
    for (request, bearer) in
        [(get(), "Bearer realm=\"api\""), (with_token("unknown"), "Bearer realm=\"api\", error=\"invalid_token\"")]
    {
        let response = send(&service, request).await;
        let lines: Vec<_> = response.headers().get_all("www-authenticate").iter().collect();
        // No error for a scheme that the request did not use (RFC 9449, section 7.2).
        assert_eq!(lines, [bearer, r#"DPoP algs="ES256 \"x\"""#]);
        for line in lines {
            parse(line.to_str().unwrap());
        }
    }
}

/// A handler without axum writes its own response. The gate does not change this response.
#[tokio::test]
async fn handlers_without_axum_send_the_challenge_of_the_gate() {
    let handler = tower::service_fn(|request: Request<Body>| async move {
        let caller = Authenticated::<User>::from_extensions(request.extensions());
        let caller = caller.map(|_| Response::new(Body::default()));
        Ok::<_, Infallible>(caller.unwrap_or_else(|rejection| ProblemDetails.reject(rejection)))
    });
    let gate = AuthLayer::new(memory()).allow_anonymous();
    let response: Response<Body> = send(&gate.clone().layer(handler), get()).await;
    assert_eq!(field(response.headers(), "www-authenticate"), Some("Bearer realm=\"api\""));
    let response: Response<Body> = send(&gate.with_realm("trading").unwrap().layer(handler), get()).await;
    assert_eq!(field(response.headers(), "www-authenticate"), Some("Bearer realm=\"trading\""));
}

#[tokio::test]
async fn every_rejection_has_the_challenge_of_its_kind() {
    let tokens = MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]);
    let limits = Hands::default().limits(Quota::per_minute(60).with_burst(1));
    let gate = AuthLayer::new(tokens).with_realm("quote\" and \\").unwrap().with_rate_limit(limits);
    let service = gate.layer(gate.require_scopes(["trade"]).unwrap().layer(echo()));
    for (request, status, error) in [
        (get(), 401, None),
        (with_token("a b"), 401, Some("invalid_token")),
        (with_token("a,b"), 400, Some("invalid_request")),
        (with_token(TOKEN), 403, Some("insufficient_scope")),
    ] {
        let response = send(&service, request).await;
        assert_eq!(response.status(), status);
        let read = parse(field(response.headers(), "www-authenticate").unwrap());
        let parameters = parameters(&read[0]);
        assert_eq!(parameters[0], ("realm".to_owned(), "quote\" and \\".to_owned()));
        let sent = parameters.iter().find(|(name, _)| name == "error").map(|(_, value)| value.as_str());
        assert_eq!(sent, error);
    }
    let over = send(&service, with_token(TOKEN)).await;
    assert_eq!((over.status().as_u16(), over.headers().get("www-authenticate")), (429, None));
}

fn integers(headers: &HeaderMap, name: &str) -> Vec<(String, Vec<(String, i64)>)> {
    let list: List = Parser::new(field(headers, name).unwrap()).parse().unwrap();
    assert_eq!(list.serialize().as_deref(), Some(field(headers, name).unwrap()), "canonical");
    list.iter()
        .map(|entry| {
            let ListEntry::Item(item) = entry else { panic!("a list in a list") };
            let BareItem::String(policy) = &item.bare_item else { panic!("no string") };
            let numbers = item.params.iter().map(|(key, value)| match value {
                BareItem::Integer(number) => (key.as_str().to_owned(), i64::from(*number)),
                other => panic!("{other:?} is no integer"),
            });
            (policy.as_str().to_owned(), numbers.collect())
        })
        .collect()
}

proptest! {
    #[test]
    fn draft_10_fields_are_structured_fields(
        name in prop::collection::vec(0x20..=0x7e_u8, 1..=64),
        interval in 1..100_000_000_000_u64,
        burst in 1..1_000_000_u32,
        used in 0..5_u32,
    ) {
        let name = String::from_utf8(name).unwrap();
        let quota = Quota::one_per(Duration::from_nanos(interval)).with_burst(burst);
        let limits = RateLimits::new(Limit::new(&name, quota).unwrap()).with_clock(|| Duration::from_secs(1));
        let service = AuthLayer::new(memory()).with_rate_limit(limits).layer(echo());
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            for nth in 1..=used + 1 {
                let response = send(&service, with_token(TOKEN)).await;
                let seconds = |ns: u128| i64::try_from(ns.div_ceil(1_000_000_000)).unwrap();
                let window = seconds(u128::from(interval) * u128::from(burst));
                let policy = vec![("q".to_owned(), i64::from(burst)), ("w".to_owned(), window)];
                assert_eq!(integers(response.headers(), "ratelimit-policy"), [(name.clone(), policy)]);
                let left = i64::from(burst.saturating_sub(nth));
                let state = vec![("r".to_owned(), left), ("t".to_owned(), seconds(interval.into()))];
                assert_eq!(integers(response.headers(), "ratelimit"), [(name.clone(), state)]);
                assert_eq!(response.status().as_u16(), if nth > burst { 429 } else { 200 });
            }
        });
    }
}

#[tokio::test]
async fn partition_keys_are_byte_sequences() {
    let limits = Hands::default()
        .limits(Quota::per_minute(60).with_burst(3))
        .with_partition_key(|subject| subject.as_str().as_bytes().repeat(100));
    let service = AuthLayer::new(memory()).with_rate_limit(limits).layer(echo());
    let response = send(&service, with_token(TOKEN)).await;
    let list: List = Parser::new(field(response.headers(), "ratelimit").unwrap()).parse().unwrap();
    let ListEntry::Item(item) = &list[0] else { panic!("a list in a list") };
    assert_eq!(item.params["pk"], BareItem::ByteSequence(b"alice".repeat(100)));
}

#[tokio::test]
async fn draft_07_fields_are_structured_fields() {
    let gate = AuthLayer::new(memory())
        .with_rate_limit_headers(RateLimitHeaders::Draft07)
        .with_rate_limit(Hands::default().limits(Quota::per_minute(60).with_burst(3)));
    let response = send(&gate.layer(echo()), with_token(TOKEN)).await;
    let dictionary: sfv::Dictionary = Parser::new(field(response.headers(), "ratelimit").unwrap()).parse().unwrap();
    let keys: Vec<_> = dictionary.keys().map(|key| key.as_str()).collect();
    assert_eq!(keys, ["limit", "remaining", "reset"]);
    let _: List = Parser::new(field(response.headers(), "ratelimit-policy").unwrap()).parse().unwrap();
}

#[test]
fn rejections_name_the_required_scopes() {
    let scopes = Scopes::new(["a", "b"]).unwrap();
    assert_eq!(Rejection::insufficient_scope(scopes.clone()).required_scopes(), Some(&scopes));
}
