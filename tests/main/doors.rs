//! Token locations in the head of a request: what each finds, how they combine, and what the inner service receives.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version};
use proptest::prelude::*;
use tollgate::extract::{Extracted, TokenLocationError, TokenSyntax, api_key, query, websocket};
use tollgate::gate::BodyTokens;
use tollgate::{
    AuthLayer, CurrentGrant, Grant, MemoryStore, Quota, Rejection, RejectionKind, RequestHead, TokenDigest,
    TokenLocation, TokenStore,
};
use tower::{Layer, Service, ServiceExt};

use crate::kit::*;

const PREFIX: &str = "base64url.bearer.authorization.example.";
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Enables all locations in the head.
fn with_all_locations<T, L>(layer: AuthLayer<T, L>) -> AuthLayer<T, L> {
    layer
        .with_api_key_header(API_KEY)
        .unwrap()
        .with_discouraged_query_token("access_token")
        .unwrap()
        .with_websocket_token(PREFIX)
        .unwrap()
        .with_token_from(|head| {
            let cookies = head.headers.get_all("cookie").iter();
            cookies.filter_map(|cookie| Some(cookie.as_bytes().strip_prefix(b"session=")?.to_vec())).collect::<Vec<_>>()
        })
}

const HEAD_LOCATIONS: [TokenLocation; 5] = [
    TokenLocation::AuthorizationHeader,
    TokenLocation::ApiKeyHeader,
    TokenLocation::Query,
    TokenLocation::WebSocketProtocol,
    TokenLocation::Other,
];

/// Adds a token to a request, at this location.
fn with_token_at(mut request: Request<Body>, location: TokenLocation, token: &str) -> Request<Body> {
    let line = |value: String| HeaderValue::try_from(value).unwrap();
    match location {
        TokenLocation::AuthorizationHeader => {
            request.headers_mut().append("authorization", line(format!("Bearer {token}")));
        }
        TokenLocation::ApiKeyHeader => {
            request.headers_mut().append(API_KEY, line(token.to_owned()));
        }
        TokenLocation::Query => {
            let encoded = token.replace('!', "%21").replace(' ', "%20");
            *request.uri_mut() = format!("/?qty=1&access_token={encoded}&side=buy").parse().unwrap();
        }
        TokenLocation::WebSocketProtocol => {
            let protocol_item = format!("chat, {PREFIX}{}, v2", BASE64_URL_SAFE_NO_PAD.encode(token));
            request.headers_mut().append("sec-websocket-protocol", line(protocol_item));
            request.headers_mut().append("connection", HeaderValue::from_static("Upgrade"));
            request.headers_mut().append("upgrade", HeaderValue::from_static("websocket"));
        }
        TokenLocation::Other => {
            request.headers_mut().append("cookie", line(format!("session={token}")));
        }
        other => panic!("{other:?} is no location in the head"),
    }
    request
}

/// The request as the inner service received it.
#[derive(Clone, Debug)]
struct Received {
    uri: Uri,
    headers: HeaderMap,
    location: Option<TokenLocation>,
}

/// Returns an inner service that responds with what it received, under these header fields.
fn recorder(
    fields: &'static [(&'static str, &'static str)],
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static> + Clone {
    tower::service_fn(move |request: Request<Body>| async move {
        let location = request.extensions().get::<CurrentGrant>().map(CurrentGrant::location);
        let mut response = Response::new(Body::default());
        for (name, value) in fields {
            response.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        let (head, _) = request.into_parts();
        response.extensions_mut().insert(Received { uri: head.uri, headers: head.headers, location });
        Ok(response)
    })
}

async fn received<T: TokenStore>(layer: &AuthLayer<T>, request: Request<Body>) -> Received {
    let response = send(&layer.layer(recorder(&[])), request).await;
    response.extensions().get::<Received>().unwrap_or_else(|| panic!("rejected: {response:?}")).clone()
}

/// Returns why a gate rejects a request.
async fn rejection_kind<T: TokenStore>(layer: &AuthLayer<T>, request: Request<Body>) -> RejectionKind {
    let response = send(&layer.layer(recorder(&[])), request).await;
    response.extensions().get::<Rejection>().unwrap_or_else(|| panic!("admitted: {response:?}")).kind()
}

fn pending_gate() -> AuthLayer<tollgate::BoxStore<User>> {
    AuthLayer::with_timeout(slow(), Duration::from_secs(5))
}

#[tokio::test]
async fn each_location_works_alone_and_is_reported() {
    async fn check<T: TokenStore>(layer: AuthLayer<T>) {
        let layer = with_all_locations(layer);
        for location in HEAD_LOCATIONS {
            assert_eq!(received(&layer, with_token_at(get(), location, TOKEN)).await.location, Some(location));
            assert_eq!(rejection_kind(&layer, with_token_at(get(), location, "unknown")).await, RejectionKind::UnknownToken);
            assert_eq!(
                rejection_kind(&layer, with_token_at(get(), location, "mal formed!")).await,
                RejectionKind::MalformedToken
            );
        }
        assert_eq!(rejection_kind(&layer, get()).await, RejectionKind::Missing);
    }
    check(AuthLayer::new(memory())).await;
    check(pending_gate()).await;
}

#[tokio::test]
async fn two_credentials_are_rejected_even_if_equal() {
    for layer in [AuthLayer::new(memory()), AuthLayer::new(memory()).allow_anonymous()] {
        let layer = with_all_locations(layer);
        for first in HEAD_LOCATIONS {
            for second in HEAD_LOCATIONS.into_iter().filter(|&second| second != first) {
                for (one, other) in [(TOKEN, TOKEN), (TOKEN, "mal formed!"), ("mal formed!", "mal formed!")] {
                    let request = with_token_at(with_token_at(get(), first, one), second, other);
                    let response = send(&layer.layer(recorder(&[])), request).await;
                    assert_eq!(response.status(), 400, "{first:?} and {second:?}");
                    assert_eq!(
                        field(response.headers(), "www-authenticate"),
                        Some(r#"Bearer realm="api", error="invalid_request""#)
                    );
                }
            }
        }
        let all = HEAD_LOCATIONS.into_iter().fold(get(), |request, location| with_token_at(request, location, TOKEN));
        assert_eq!(rejection_kind(&layer, all).await, RejectionKind::InvalidRequest);
    }
}

#[tokio::test]
async fn an_error_in_one_location_is_not_hidden_by_another() {
    let layer = with_all_locations(AuthLayer::new(memory()));
    let with = |name: &'static str, value: &str| {
        let mut request = with_token_at(get(), TokenLocation::Query, TOKEN);
        request.headers_mut().append(name, value.parse().unwrap());
        request
    };
    for (name, value) in
        [("authorization", "Bearer a,b"), ("x-api-key", "a,b"), ("x-api-key", ""), ("cookie", "session=")]
    {
        assert_eq!(rejection_kind(&layer, with(name, value)).await, RejectionKind::InvalidRequest, "{name}: {value}");
    }
    // Another scheme and another cookie are not credentials for this gate.
    for (name, value) in [("authorization", "Basic Zm9v"), ("authorization", ""), ("cookie", "theme=dark")] {
        assert_eq!(received(&layer, with(name, value)).await.location, Some(TokenLocation::Query), "{name}: {value}");
    }
}

#[tokio::test]
async fn disabled_locations_are_ignored_and_forwarded_unchanged() {
    let closed = AuthLayer::new(memory()).with_credentials_removed();
    for token in [TOKEN, "mal formed!"] {
        let others = HEAD_LOCATIONS[1..].iter().fold(get(), |request, &location| with_token_at(request, location, token));
        let (uri, headers) = (others.uri().clone(), others.headers().clone());
        assert_eq!(rejection_kind(&closed, with_token_at(get(), HEAD_LOCATIONS[1], token)).await, RejectionKind::Missing);
        let received_request = received(&closed, with_token_at(others, TokenLocation::AuthorizationHeader, TOKEN)).await;
        assert_eq!(received_request.location, Some(TokenLocation::AuthorizationHeader));
        // Disabled locations are forwarded unchanged.
        assert_eq!((received_request.uri, received_request.headers), (uri, headers));
    }
    // With one more location enabled, only that one counts.
    let one = AuthLayer::new(memory()).with_api_key_header(API_KEY).unwrap();
    let request = with_token_at(with_token_at(get(), TokenLocation::Query, TOKEN), TokenLocation::WebSocketProtocol, TOKEN);
    assert_eq!(rejection_kind(&one, request).await, RejectionKind::Missing);
    let request = with_token_at(with_token_at(get(), TokenLocation::Query, TOKEN), TokenLocation::ApiKeyHeader, TOKEN);
    assert_eq!(received(&one, request).await.location, Some(TokenLocation::ApiKeyHeader));
}

#[tokio::test]
async fn an_api_key_header_holds_exactly_the_token() {
    let layer = AuthLayer::new(memory()).with_api_key_header(API_KEY).unwrap();
    let with = |lines: &[&[u8]]| {
        let mut request = get();
        for line in lines {
            request.headers_mut().append(API_KEY, HeaderValue::from_bytes(line).unwrap());
        }
        request
    };
    let token = TOKEN.as_bytes();
    for good in [token.to_vec(), [b" \t", token, b"\t "].concat()] {
        let received_request = received(&layer, with(&[&good])).await;
        assert_eq!(received_request.location, Some(TokenLocation::ApiKeyHeader));
        assert!(received_request.headers[API_KEY].is_sensitive());
        assert_eq!(received_request.headers[API_KEY].as_bytes(), good, "forwarded unchanged");
    }
    let bearer = [b"Bearer ", token].concat();
    let no_break = [b"\xa0", token].concat();
    for (lines, kind) in [
        (&[&b""[..]][..], RejectionKind::MalformedToken),
        (&[b" \t"], RejectionKind::MalformedToken),
        (&[&bearer], RejectionKind::MalformedToken),
        (&[&no_break], RejectionKind::MalformedToken),
        (&[b"\xff"], RejectionKind::MalformedToken),
        (&[b"a,b"], RejectionKind::InvalidRequest),
        (&[token, token], RejectionKind::InvalidRequest),
        (&[b"", token], RejectionKind::InvalidRequest),
        (&[b"unknown"], RejectionKind::UnknownToken),
    ] {
        assert_eq!(rejection_kind(&layer, with(lines)).await, kind, "{lines:?}");
    }
    let response = send(&layer.layer(recorder(&[])), get()).await;
    assert_eq!(field(response.headers(), "www-authenticate"), Some("Bearer realm=\"api\""), "only the Bearer scheme");
}

#[tokio::test]
async fn unless_bearer_ignores_the_api_key_header_beside_bearer_credentials() {
    let layer = AuthLayer::new(memory()).with_api_key_header_unless_bearer(API_KEY).unwrap().with_credentials_removed();
    let both = with_token_at(with_token(TOKEN), TokenLocation::ApiKeyHeader, "of another purpose");
    let received_request = received(&layer, both).await;
    assert_eq!(received_request.location, Some(TokenLocation::AuthorizationHeader));
    assert_eq!(received_request.headers[API_KEY], "of another purpose", "not a credential, so not removed");

    let mut basic = with_token_at(get(), TokenLocation::ApiKeyHeader, TOKEN);
    basic.headers_mut().insert("authorization", HeaderValue::from_static("Basic Zm9v"));
    for request in [with_token_at(get(), TokenLocation::ApiKeyHeader, TOKEN), basic] {
        let received_request = received(&layer, request).await;
        assert_eq!(received_request.location, Some(TokenLocation::ApiKeyHeader));
        assert!(!received_request.headers.contains_key(API_KEY));
    }
    let malformed = with_token_at(with_token("mal formed"), TokenLocation::ApiKeyHeader, TOKEN);
    assert_eq!(send(&layer.layer(echo()), malformed).await.status(), 401, "a malformed Bearer credential counts too");

    // The repeated field is not a credential here and is not rejected. It must still be marked sensitive.
    let twice = with_token_at(with_token(TOKEN), TokenLocation::ApiKeyHeader, "one");
    let received_request = received(&layer, with_token_at(twice, TokenLocation::ApiKeyHeader, "two")).await;
    let lines: Vec<_> = received_request.headers.get_all(API_KEY).iter().map(|line| (line, line.is_sensitive())).collect();
    assert!(lines.len() == 2 && lines.iter().all(|(_, is_sensitive)| *is_sensitive), "{lines:?}");
}

#[tokio::test]
async fn with_credentials_removed_removes_the_token_from_every_location() {
    async fn check<T: TokenStore>(layer: AuthLayer<T>) {
        let layer = with_all_locations(layer).with_credentials_removed();
        for location in HEAD_LOCATIONS {
            let request = with_token_at(get(), location, TOKEN);
            let before =
                Received { uri: request.uri().clone(), headers: request.headers().clone(), location: Some(location) };
            let received_request = received(&layer, request).await;
            assert_eq!(received_request.location, before.location);
            let (mut headers, mut uri) = (before.headers, before.uri);
            match location {
                TokenLocation::AuthorizationHeader => _ = headers.remove("authorization"),
                TokenLocation::ApiKeyHeader => _ = headers.remove(API_KEY),
                TokenLocation::Query => uri = Uri::from_static("/?qty=1&side=buy"),
                TokenLocation::WebSocketProtocol => {
                    headers.insert("sec-websocket-protocol", HeaderValue::from_static("chat, v2"));
                }
                // The gate does not know where a closure finds its token.
                _ => {}
            }
            assert_eq!((received_request.uri, received_request.headers), (uri, headers), "{location:?}: nothing else changes");
        }
    }
    check(AuthLayer::new(memory())).await;
    check(pending_gate()).await;
}

#[tokio::test]
async fn forwarded_credentials_are_marked_sensitive() {
    let layer = with_all_locations(AuthLayer::new(memory()));
    for location in HEAD_LOCATIONS {
        let request = with_token_at(get(), location, TOKEN);
        let before = (request.uri().clone(), request.headers().clone());
        let received_request = received(&layer, request).await;
        for (name, value) in &received_request.headers {
            let secret = name == "authorization" || name == API_KEY;
            assert_eq!(value.is_sensitive(), secret, "{name}");
        }
        if location != TokenLocation::WebSocketProtocol {
            assert_eq!((received_request.uri, received_request.headers), before, "{location:?}");
        }
    }
}

#[tokio::test]
async fn preflights_forward_no_credentials() {
    let layer = with_all_locations(AuthLayer::new(memory()));
    for layer in [layer.clone(), layer.with_credentials_removed()] {
        for location in [TokenLocation::AuthorizationHeader, TokenLocation::ApiKeyHeader, TokenLocation::Query] {
            let received_request = received(&layer, with_token_at(preflight(), location, TOKEN)).await;
            assert_eq!((received_request.location, received_request.headers), (None, preflight().headers().clone()), "{location:?}");
            assert!(!received_request.uri.to_string().contains(TOKEN), "{location:?}");
        }
    }
}

// Query.

#[tokio::test]
async fn query_parameters_are_compared_after_one_decoding() {
    let tokens = MemoryStore::from_iter(["abc", "a+b", "a-b", "a=="].map(|token| (token, Grant::new(token, ()))));
    let layer = AuthLayer::new(tokens).with_discouraged_query_token("access_token").unwrap();
    let to = |method: Method, uri: &str| Request::builder().method(method).uri(uri).body(Body::default()).unwrap();
    for (uri, grant) in [
        ("/?access_token=abc", "abc"),
        ("/?access%5Ftoken=abc", "abc"),
        ("/?%61%63%63%65%73%73%5f%74%6f%6B%65%6e=%61%62%63", "abc"),
        ("/?a=1;access_token=2&access_token=abc", "abc"),
        ("/?Access_Token=x&access_token=abc", "abc"),
        ("/?xaccess_token=x&access_token=abc&access_tokenx=y", "abc"),
        ("/?%&%zz=%&access_token=abc", "abc"),
        ("/?access_token=a+b", "a+b"),
        ("/?access_token=a%2Bb", "a+b"),
        ("/?access_token=a%2Db", "a-b"),
        ("/?access_token=a==", "a=="),
        ("/?&&access_token=abc&&", "abc"),
        ("http://api.example/?access_token=abc", "abc"),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let response = send(&layer.layer(echo()), to(method, uri)).await;
            let current = response.extensions().get::<CurrentGrant>().unwrap_or_else(|| panic!("{uri} is rejected"));
            assert_eq!(current.id().as_str(), grant, "{uri}");
        }
    }
    for (uri, kind) in [
        ("/", RejectionKind::Missing),
        ("/?", RejectionKind::Missing),
        ("/?access%255Ftoken=abc", RejectionKind::Missing),
        ("/?ACCESS_TOKEN=abc", RejectionKind::Missing),
        ("/?a=1;access_token=abc", RejectionKind::Missing),
        ("/access_token=abc", RejectionKind::Missing),
        ("/?=access_token", RejectionKind::Missing),
        ("/?access_token", RejectionKind::MalformedToken),
        ("/?access_token=", RejectionKind::MalformedToken),
        ("/?access_token=a%2", RejectionKind::MalformedToken),
        ("/?access_token=a%252Db", RejectionKind::MalformedToken),
        ("/?access_token=a%20b", RejectionKind::MalformedToken),
        ("/?access_token=%61%C3", RejectionKind::MalformedToken),
        ("/?access_token=abc;", RejectionKind::MalformedToken),
        ("/?access_token=abc&access_token=abc", RejectionKind::InvalidRequest),
        ("/?access_token=abc&access%5Ftoken", RejectionKind::InvalidRequest),
        ("/?access_token=&access_token=", RejectionKind::InvalidRequest),
    ] {
        assert_eq!(rejection_kind(&layer, to(Method::GET, uri)).await, kind, "{uri}");
    }
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        assert_eq!(rejection_kind(&layer, to(method.clone(), "/?access_token=abc")).await, RejectionKind::Missing, "{method}");
    }
}

/// Returns other query parameters, with any characters that a target can hold.
fn other_parameters() -> impl Strategy<Value = Vec<String>> {
    let parameter = "[a-zA-Z0-9=;:@/?!$'()*+,._~%-]{0,12}".prop_filter("a name other than access_token", |parameter: &String| {
        let name = parameter.split('=').next().unwrap_or_default();
        *name.as_bytes() != *b"access_token"
    });
    prop::collection::vec(parameter, 0..6)
}

proptest! {
    #[test]
    fn removing_the_token_keeps_the_rest_of_the_target_unchanged(
        others in other_parameters(),
        at in any::<prop::sample::Index>(),
        name in prop::sample::select(vec!["access_token", "access%5Ftoken", "%61ccess_toke%6E"]),
        base in prop::sample::select(vec![
            "/",
            "/a%2Fb/%c3%a9",
            "http://api.example:8080/x",
            "https://u@h/access_token=1",
        ]),
        waits in any::<bool>(),
    ) {
        let mut pairs = others.clone();
        pairs.insert(at.index(others.len() + 1), format!("{name}={TOKEN}"));
        let request = Request::get(format!("{base}?{}", pairs.join("&"))).body(Body::default()).unwrap();
        let expected = if others.is_empty() { base.to_owned() } else { format!("{base}?{}", others.join("&")) };
        let received_request = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
            if waits {
                received(&pending_gate().with_discouraged_query_token("access_token").unwrap().with_credentials_removed(), request).await
            } else {
                let layer = AuthLayer::new(memory()).with_discouraged_query_token("access_token").unwrap();
                received(&layer.with_credentials_removed(), request).await
            }
        });
        prop_assert_eq!(received_request.location, Some(TokenLocation::Query));
        prop_assert_eq!(received_request.uri.to_string(), expected);
    }

    /// Checks that names are compared after decoding.
    #[test]
    fn every_percent_encoding_of_the_name_matches(
        escaped in prop::collection::vec(any::<bool>(), 12),
        upper in any::<bool>(),
    ) {
        let name: String = "access_token"
            .bytes()
            .zip(escaped)
            .map(|(byte, escaped)| match (escaped, upper) {
                (false, _) => char::from(byte).to_string(),
                (true, true) => format!("%{byte:02X}"),
                (true, false) => format!("%{byte:02x}"),
            })
            .collect();
        let uri: Uri = format!("/?{name}=abc").parse().unwrap();
        let extracted = query(&Method::GET, &uri, "access_token", TokenSyntax::default());
        prop_assert!(matches!(extracted, Extracted::Token(token) if token.expose() == b"abc"));
        // The name is decoded once: an escape that decodes to an escape is not decoded again.
        let uri: Uri = format!("/?{}=abc", name.replace('%', "%25")).parse().unwrap();
        let extracted = query(&Method::GET, &uri, "access_token", TokenSyntax::default());
        prop_assert_eq!(matches!(extracted, Extracted::Nothing), name.contains('%'));
    }
}

#[tokio::test]
async fn a_target_of_maximum_length_is_read_completely() {
    // As many names as fit. Each one has to be decoded.
    let filler = "%61&".repeat(16_000);
    let layer =
        AuthLayer::new(memory()).with_discouraged_query_token("access_token").unwrap().with_credentials_removed();
    let request = Request::get(format!("/?{filler}access%5Ftoken={TOKEN}")).body(Body::default()).unwrap();
    let received_request = received(&layer, request).await;
    assert_eq!(received_request.uri.to_string(), format!("/?{}", filler.trim_end_matches('&')));
    let request = Request::get(format!("/?access_token=x&{filler}access%5Ftoken=x")).body(Body::default()).unwrap();
    assert_eq!(rejection_kind(&layer, request).await, RejectionKind::InvalidRequest);
}

#[tokio::test]
async fn responses_to_tokens_outside_authorization_are_private() {
    type Fields = &'static [(&'static str, &'static str)];
    async fn answer<T: TokenStore>(layer: &AuthLayer<T>, location: TokenLocation, fields: Fields) -> HeaderMap {
        let response = send(&with_all_locations(layer.clone()).layer(recorder(fields)), with_token_at(get(), location, TOKEN)).await;
        assert_eq!(response.status(), 200);
        response.headers().clone()
    }
    async fn check<T: TokenStore>(layer: AuthLayer<T>) {
        let table: [(Fields, &[&str]); 14] = [
            (&[], &["private"]),
            (&[("cache-control", "public, max-age=60")], &["private"]),
            (&[("cache-control", "max-age=60")], &["private"]),
            (&[("cache-control", "s-maxage=60"), ("cache-control", "must-revalidate")], &["private, must-revalidate"]),
            (&[("cache-control", "public, no-cache")], &["private, no-cache"]),
            (&[("cache-control", "private=\"set-cookie\"")], &["private"]),
            (&[("cache-control", "public, private")], &["private"]),
            (&[("cache-control", "private, max-age=60"), ("cache-control", "public")], &["private"]),
            // Quoted text is a list of fields, not a directive.
            (
                &[("cache-control", "no-cache=\"a, private, b\", no-transform")],
                &["private, no-cache=\"a, private, b\", no-transform"],
            ),
            (
                &[("cache-control", "community=\"a \\\", no-store\", private")],
                &["community=\"a \\\", no-store\", private"],
            ),
            (&[("cache-control", "no-store")], &["no-store"]),
            (&[("cache-control", "max-age=0, No-Store")], &["max-age=0, No-Store"]),
            (&[("cache-control", "Private, max-age=60")], &["Private, max-age=60"]),
            (&[("cache-control", "max-age=60"), ("cache-control", "no-store")], &["max-age=60", "no-store"]),
        ];
        for (fields, expected) in table {
            for location in HEAD_LOCATIONS {
                let headers = answer(&layer, location, fields).await;
                let cached = values(&headers, "cache-control");
                if location == TokenLocation::AuthorizationHeader {
                    let unchanged: Vec<_> = fields.iter().map(|(_, value)| *value).collect();
                    assert_eq!(cached, unchanged, "{location:?}: caches recognise this one");
                } else {
                    assert_eq!(cached, expected, "{location:?} {fields:?}");
                }
                let referrer = if location == TokenLocation::Query { vec!["no-referrer"] } else { vec![] };
                assert_eq!(values(&headers, "referrer-policy"), referrer, "{location:?}");
            }
        }
        let headers = answer(&layer, TokenLocation::Query, &[("referrer-policy", "same-origin")]).await;
        assert_eq!(values(&headers, "referrer-policy"), ["same-origin"], "the handler's own is kept");
    }
    check(AuthLayer::new(memory())).await;
    check(pending_gate()).await;
    // The token of a rejected request may be valid later.
    let rejected =
        send(&with_all_locations(AuthLayer::new(memory())).layer(recorder(&[])), with_token_at(get(), TokenLocation::Query, "x")).await;
    assert_eq!(values(rejected.headers(), "referrer-policy"), ["no-referrer"]);
    // Without a credential the handler's header is kept.
    let layer = with_all_locations(AuthLayer::new(memory())).allow_anonymous();
    let response = send(&layer.layer(recorder(&[("cache-control", "public")])), get()).await;
    assert_eq!(values(response.headers(), "cache-control"), ["public"]);
}

#[tokio::test]
async fn without_authorization_header_ignores_and_forwards_it() {
    let closed = AuthLayer::new(memory()).without_authorization_header();
    assert_eq!(rejection_kind(&closed, with_token(TOKEN)).await, RejectionKind::Missing);
    let layer = AuthLayer::new(memory()).with_api_key_header_unless_bearer(API_KEY).unwrap();
    let layer = layer.without_authorization_header().with_credentials_removed();
    assert_eq!(rejection_kind(&layer, with_token(TOKEN)).await, RejectionKind::Missing);
    let mut request = with_token_at(with_token("of-a-proxy"), TokenLocation::ApiKeyHeader, TOKEN);
    request.headers_mut().append("authorization", "Bearer another".parse().unwrap());
    let received_request = received(&layer, request).await;
    assert_eq!(received_request.location, Some(TokenLocation::ApiKeyHeader));
    assert_eq!(values(&received_request.headers, "authorization"), ["Bearer of-a-proxy", "Bearer another"], "not a credential for this gate");
    assert!(received_request.headers.get_all("authorization").iter().all(HeaderValue::is_sensitive), "still marked as secrets");
    assert_eq!(values(&received_request.headers, "x-api-key"), [""; 0]);
}

#[test]
fn invalid_locations_return_errors() {
    let gate = || AuthLayer::new(memory());
    let name = |name: &str| HeaderName::try_from(name).unwrap();
    let error = |result: Result<AuthLayer<_>, TokenLocationError>| result.map(drop).unwrap_err();

    for used in [
        "access-control-request-method",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "host",
        "origin",
        "sec-websocket-protocol",
        "transfer-encoding",
        "upgrade",
    ] {
        assert_eq!(error(gate().with_api_key_header(name(used))), TokenLocationError::Field, "{used}");
        assert_eq!(error(gate().with_api_key_header_unless_bearer(name(used))), TokenLocationError::Field, "{used}");
    }
    assert_eq!(error(gate().with_discouraged_query_token("")), TokenLocationError::Name);
    // Escapes can express any name.
    assert!(gate().with_discouraged_query_token("a&b=c \u{e9}").is_ok());
    for prefix in ["", "a b", "a,", "\u{e9}", "a/b", "\"a\""] {
        assert_eq!(error(gate().with_websocket_token(prefix)), TokenLocationError::Name, "{prefix:?}");
    }

    let once = with_all_locations(gate());
    assert_eq!(error(once.clone().with_api_key_header(name("x-other"))), TokenLocationError::Open);
    assert_eq!(error(once.clone().with_api_key_header_unless_bearer(name("x-other"))), TokenLocationError::Open);
    assert_eq!(error(once.clone().with_discouraged_query_token("other")), TokenLocationError::Open);
    assert_eq!(error(once.with_websocket_token("other.")), TokenLocationError::Open);

    let body_tokens = || BodyTokens::with_timeout(Duration::from_secs(1));
    let error = |result: Result<BodyTokens, TokenLocationError>| result.map(drop).unwrap_err();
    for field in ["", " key", "key\n", "a=b", "a;b", "\u{feff}key"] {
        assert_eq!(error(body_tokens().with_text(field)), TokenLocationError::Name, "{field:?}");
    }
    assert!(body_tokens().with_text("my key \u{e9}").is_ok());
    assert_eq!(error(body_tokens().with_json("")), TokenLocationError::Name);
    assert_eq!(error(body_tokens().with_form("")), TokenLocationError::Name);
    let once = body_tokens().with_json("a").unwrap().with_text("a").unwrap().with_form("a").unwrap();
    assert_eq!(error(once.clone().with_json("b")), TokenLocationError::Open);
    assert_eq!(error(once.clone().with_text("b")), TokenLocationError::Open);
    assert_eq!(error(once.with_form("b")), TokenLocationError::Open);
}

// Websocket.

fn upgrade(protocols: &[&str]) -> Request<Body> {
    let mut request = get();
    request.headers_mut().insert("connection", HeaderValue::from_static("Upgrade"));
    request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    for line in protocols {
        request.headers_mut().append("sec-websocket-protocol", line.parse().unwrap());
    }
    request
}

fn protocol_item(token: &str) -> String {
    format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(token))
}

#[tokio::test]
async fn websocket_tokens_are_removed_from_the_offered_protocols() {
    let layer = AuthLayer::new(memory()).with_websocket_token(PREFIX).unwrap();
    let own = protocol_item(TOKEN);
    for (lines, left) in [
        (&[&*format!("chat, {own}")][..], "chat"),
        (&[&*format!("{own}, chat")], "chat"),
        (&[&*format!("{own},chat,superchat")], "chat, superchat"),
        (&["v2 , chat", &own, "superchat"], "v2, chat, superchat"),
        (&[&own, ",, chat ,"], "chat"),
    ] {
        let received_request = received(&layer, upgrade(lines)).await;
        assert_eq!(received_request.location, Some(TokenLocation::WebSocketProtocol));
        assert_eq!(values(&received_request.headers, "sec-websocket-protocol"), [left], "{lines:?}");
        assert_eq!(values(&received_request.headers, "upgrade"), ["websocket"]);
    }
    // Without a WebSocket handshake no protocol may remain.
    let mut request = with_token(TOKEN);
    request.headers_mut().insert("sec-websocket-protocol", own.parse().unwrap());
    assert_eq!(values(&received(&layer, request).await.headers, "sec-websocket-protocol"), [""; 0]);
    for (lines, kind) in [
        (vec!["chat".to_owned()], RejectionKind::Missing),
        (vec![], RejectionKind::Missing),
        (vec![own.clone()], RejectionKind::InvalidRequest),
        (vec![format!("{own},")], RejectionKind::InvalidRequest),
        (vec![format!("chat, {own}, {own}")], RejectionKind::InvalidRequest),
        (vec![format!("chat, {own}"), own.clone()], RejectionKind::InvalidRequest),
        (vec![format!("chat, {PREFIX}YWI=")], RejectionKind::InvalidRequest),
        (vec![format!("chat, {PREFIX}a+b/")], RejectionKind::InvalidRequest),
        (vec![format!("chat, {PREFIX}a")], RejectionKind::InvalidRequest),
        (vec![format!("chat, {PREFIX}")], RejectionKind::MalformedToken),
        (vec![format!("chat, {}", protocol_item("a b"))], RejectionKind::MalformedToken),
        (vec![format!("chat, {}", protocol_item("unknown"))], RejectionKind::UnknownToken),
        (vec![format!("chat, {}", own.to_uppercase())], RejectionKind::Missing),
    ] {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(rejection_kind(&layer, upgrade(&lines)).await, kind, "{lines:?}");
    }
}

#[tokio::test]
async fn only_websocket_handshakes_are_searched() {
    let layer = AuthLayer::new(memory()).with_websocket_token(PREFIX).unwrap();
    let offer = format!("chat, {}", protocol_item(TOKEN));
    let request = |method: Method, version: Version, upgrades: &[&'static str]| {
        let mut request = upgrade(&[&offer]);
        *request.method_mut() = method;
        *request.version_mut() = version;
        request.headers_mut().remove("upgrade");
        for upgrade in upgrades {
            request.headers_mut().append("upgrade", HeaderValue::from_static(upgrade));
        }
        request
    };
    for (method, version, upgrades) in [
        (Method::GET, Version::HTTP_11, &["WebSocket"][..]),
        (Method::GET, Version::HTTP_11, &["h2c, websocket"]),
        (Method::GET, Version::HTTP_11, &["h2c", " websocket\t"]),
        // HTTP/2 and HTTP/3 use `:protocol` for the upgrade.
        (Method::CONNECT, Version::HTTP_2, &[]),
        (Method::CONNECT, Version::HTTP_3, &[]),
    ] {
        let received_request = received(&layer, request(method.clone(), version, upgrades)).await;
        assert_eq!(received_request.location, Some(TokenLocation::WebSocketProtocol), "{method} {version:?} {upgrades:?}");
        assert_eq!(values(&received_request.headers, "sec-websocket-protocol"), ["chat"]);
    }
    for (method, version, upgrades) in [
        (Method::GET, Version::HTTP_11, &[][..]),
        (Method::GET, Version::HTTP_11, &["h2c"]),
        (Method::GET, Version::HTTP_11, &["websockets"]),
        (Method::GET, Version::HTTP_2, &[]),
        (Method::POST, Version::HTTP_11, &["websocket"]),
        (Method::CONNECT, Version::HTTP_11, &["websocket"]),
    ] {
        let kind = rejection_kind(&layer, request(method.clone(), version, upgrades)).await;
        assert_eq!(kind, RejectionKind::Missing, "{method} {version:?} {upgrades:?}");
        // A location that is not searched does not conflict with another credential.
        let request = with_token_at(request(method, version, upgrades), TokenLocation::AuthorizationHeader, TOKEN);
        assert_eq!(received(&layer, request).await.location, Some(TokenLocation::AuthorizationHeader));
    }
}

// Doors of one's own.

#[tokio::test]
async fn with_token_from_extracts_by_closure() {
    let layer = AuthLayer::new(memory())
        .with_token_from(|head| Some(head.headers.get("authorization")?.as_bytes().strip_prefix(b"Token ")?.to_vec()))
        .with_token_from(|head| Some(head.uri.path().strip_prefix("/t/")?.as_bytes().to_vec()));
    let by_scheme = |value: String| {
        let mut request = get();
        request.headers_mut().insert("authorization", value.parse().unwrap());
        request
    };
    let by_path = |token: &str| Request::get(format!("/t/{token}")).body(Body::default()).unwrap();

    let received_request = received(&layer, by_scheme(format!("Token {TOKEN}"))).await;
    assert_eq!(received_request.location, Some(TokenLocation::Other));
    assert!(received_request.headers["authorization"].is_sensitive(), "always marked");
    assert_eq!(received(&layer, by_path(TOKEN)).await.location, Some(TokenLocation::Other));
    assert_eq!(received(&layer, with_token(TOKEN)).await.location, Some(TokenLocation::AuthorizationHeader));

    assert_eq!(rejection_kind(&layer, get()).await, RejectionKind::Missing);
    assert_eq!(rejection_kind(&layer, by_path("")).await, RejectionKind::MalformedToken);
    assert_eq!(rejection_kind(&layer, by_scheme("Token a,b".to_owned())).await, RejectionKind::MalformedToken);
    assert_eq!(rejection_kind(&layer, by_path("unknown")).await, RejectionKind::UnknownToken);
    let mut both = by_path(TOKEN);
    *both.headers_mut() = by_scheme(format!("Token {TOKEN}")).headers().clone();
    assert_eq!(rejection_kind(&layer, both).await, RejectionKind::InvalidRequest);

    // A closure that finds two tokens is ambiguous.
    let mut two = get();
    for value in [format!("session={TOKEN}"), format!("session={TOKEN}")] {
        two.headers_mut().append("cookie", value.parse().unwrap());
    }
    let cookies = AuthLayer::new(memory()).with_token_from(|head| {
        let lines = head.headers.get_all("cookie").iter();
        lines.filter_map(|line| Some(line.as_bytes().strip_prefix(b"session=")?.to_vec())).collect::<Vec<_>>()
    });
    assert_eq!(rejection_kind(&cookies, two).await, RejectionKind::InvalidRequest);

    // The maximum token length applies to closures too.
    let short = layer.with_max_token_len(TOKEN.len() - 1);
    assert_eq!(rejection_kind(&short, by_path(TOKEN)).await, RejectionKind::MalformedToken);
}

#[tokio::test]
async fn all_locations_charge_the_same_bucket() {
    let limits = Hands::default().limits(Quota::per_minute(60).with_burst(5));
    let service = with_all_locations(AuthLayer::new(memory()).with_rate_limit(limits)).layer(echo());
    for location in HEAD_LOCATIONS {
        assert_eq!(send(&service, with_token_at(get(), location, TOKEN)).await.status(), 200, "{location:?}");
    }
    for location in HEAD_LOCATIONS {
        let response = send(&service, with_token_at(get(), location, TOKEN)).await;
        assert_eq!(response.status(), 429, "{location:?}");
        assert_eq!(values(response.headers(), "cache-control"), ["no-store"]);
    }
}

#[tokio::test]
async fn inner_errors_pass_with_any_location() {
    let layer = with_all_locations(AuthLayer::new(memory()));
    for location in HEAD_LOCATIONS {
        let gate = layer.layer(tower::service_fn(|_: Request<Body>| async { Err::<Response<Body>, _>("inner") }));
        assert_eq!(gate.oneshot(with_token_at(get(), location, TOKEN)).await.unwrap_err(), "inner");
    }
}

#[tokio::test]
async fn no_debug_output_contains_a_token() {
    let mut printed = String::new();
    let layer = with_all_locations(AuthLayer::new(memory())).with_credentials_removed();
    let limited = layer.clone().with_rate_limit(Hands::default().limits(Quota::per_minute(60)));
    let body_tokens = BodyTokens::with_timeout(Duration::from_secs(1)).with_json("key").unwrap().with_text("key").unwrap();
    let with_body = layer.clone().with_body_tokens(body_tokens.clone());
    write!(printed, "{layer:?}{layer:#?}{limited:?}{body_tokens:?}{with_body:?}").unwrap();
    assert!(printed.contains("x-api-key") && printed.contains("access_token"), "the locations are printed");

    let printing = tower::service_fn(|request: Request<Body>| async move {
        Ok::<_, Infallible>(Response::new(Body::from(format!("{request:?}{request:#?}"))))
    });
    let service = layer.layer(printing);
    // Printing a request prints its cookies: the gate does not know where a closure finds its token.
    let known = &HEAD_LOCATIONS[..4];
    for &location in known {
        write!(printed, "{:?}{service:?}", service.clone().call(with_token_at(get(), location, TOKEN))).unwrap();
        let tokens = [TOKEN.to_owned(), format!("{TOKEN}x"), format!("{TOKEN} {TOKEN}")];
        for request in tokens.iter().map(|token| with_token_at(get(), location, token)).chain(
            known
                .iter()
                .filter(|&&other| other != location)
                .map(|&other| with_token_at(with_token_at(get(), location, TOKEN), other, TOKEN)),
        ) {
            let head = RequestHead::of(&request);
            let extracted = match location {
                TokenLocation::ApiKeyHeader => api_key(head.headers, &API_KEY, TokenSyntax::default()),
                TokenLocation::WebSocketProtocol => websocket(&head, PREFIX, TokenSyntax::default()),
                _ => query(head.method, head.uri, "access_token", TokenSyntax::default()),
            };
            write!(printed, "{extracted:?}").unwrap();
            drop(extracted);
            let response = send(&service, request).await;
            write!(printed, "{:?}", response.headers()).unwrap();
            if let Some(rejection) = response.extensions().get::<Rejection>() {
                write!(printed, "{rejection}{rejection:?}{rejection:#?}").unwrap();
            }
            if let Some(current) = response.extensions().get::<CurrentGrant>() {
                write!(printed, "{current:?}").unwrap();
            }
            printed += &text(response).await;
        }
    }
    let in_base64 = BASE64_URL_SAFE_NO_PAD.encode(TOKEN);
    let in_bytes = format!("{:?}", TOKEN.as_bytes());
    for secret in [TOKEN, &TOKEN[3..], &in_base64, in_bytes.trim_matches(['[', ']']), &TokenDigest::of(TOKEN).to_hex()]
    {
        assert!(!printed.contains(secret), "printed: {printed}");
    }
    assert!(printed.len() > 4_000, "too little was printed");
}

#[tokio::test]
async fn query_parameters_of_other_methods_are_forwarded() {
    let layer =
        AuthLayer::new(memory()).with_discouraged_query_token("access_token").unwrap().with_credentials_removed();
    for (method, left) in [(Method::GET, "/?a=1"), (Method::POST, "/?access_token=other&a=1")] {
        let mut request = with_token(TOKEN);
        if method == Method::GET {
            request.headers_mut().remove("authorization");
        }
        let token = if method == Method::GET { TOKEN } else { "other" };
        *request.uri_mut() = format!("/?access_token={token}&a=1").parse().unwrap();
        *request.method_mut() = method;
        assert_eq!(received(&layer, request).await.uri, left);
    }
}
