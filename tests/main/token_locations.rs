//! Token locations in the head of a request: how they combine, and what is rejected when the gate is built.

use std::time::Duration;

use http::{HeaderMap, HeaderName, Request, Response};
use tollgate::extract::TokenLocationError;
use tollgate::gate::BodyTokens;
use tollgate::{AuthLayer, Quota, RejectionKind, TokenLocation, TokenStore};
use tower::{Layer as _, ServiceExt as _};

use crate::kit::location::*;
use crate::kit::*;

#[tokio::test]
async fn each_location_works_alone_and_is_reported() {
    async fn check<T: TokenStore>(layer: AuthLayer<T>) {
        let layer = with_all_locations(layer);
        for location in HEAD_LOCATIONS {
            assert_eq!(received(&layer, with_token_at(get(), location, TOKEN)).await.location, Some(location));
            assert_eq!(
                rejection_kind(&layer, with_token_at(get(), location, "unknown")).await,
                RejectionKind::UnknownToken
            );
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
        let others =
            HEAD_LOCATIONS[1..].iter().fold(get(), |request, &location| with_token_at(request, location, token));
        let (uri, headers) = (others.uri().clone(), others.headers().clone());
        assert_eq!(
            rejection_kind(&closed, with_token_at(get(), HEAD_LOCATIONS[1], token)).await,
            RejectionKind::Missing
        );
        let received_request =
            received(&closed, with_token_at(others, TokenLocation::AuthorizationHeader, TOKEN)).await;
        assert_eq!(received_request.location, Some(TokenLocation::AuthorizationHeader));
        // Disabled locations are forwarded unchanged.
        assert_eq!((received_request.uri, received_request.headers), (uri, headers));
    }
    // With one more location enabled, only that one counts.
    let one = AuthLayer::new(memory()).with_api_key_header(API_KEY).unwrap();
    let request =
        with_token_at(with_token_at(get(), TokenLocation::Query, TOKEN), TokenLocation::WebSocketProtocol, TOKEN);
    assert_eq!(rejection_kind(&one, request).await, RejectionKind::Missing);
    let request = with_token_at(with_token_at(get(), TokenLocation::Query, TOKEN), TokenLocation::ApiKeyHeader, TOKEN);
    assert_eq!(received(&one, request).await.location, Some(TokenLocation::ApiKeyHeader));
}

#[tokio::test]
async fn responses_to_tokens_outside_authorization_are_private() {
    type Fields = &'static [(&'static str, &'static str)];
    async fn answer<T: TokenStore>(layer: &AuthLayer<T>, location: TokenLocation, fields: Fields) -> HeaderMap {
        let response =
            send(&with_all_locations(layer.clone()).layer(recorder(fields)), with_token_at(get(), location, TOKEN))
                .await;
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
    let rejected = send(
        &with_all_locations(AuthLayer::new(memory())).layer(recorder(&[])),
        with_token_at(get(), TokenLocation::Query, "x"),
    )
    .await;
    assert_eq!(values(rejected.headers(), "referrer-policy"), ["no-referrer"]);
    // Without a credential the handler's header is kept.
    let layer = with_all_locations(AuthLayer::new(memory())).allow_anonymous();
    let response = send(&layer.layer(recorder(&[("cache-control", "public")])), get()).await;
    assert_eq!(values(response.headers(), "cache-control"), ["public"]);
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
    assert_eq!(error(once.clone().with_api_key_header(name("x-other"))), TokenLocationError::AlreadyEnabled);
    assert_eq!(
        error(once.clone().with_api_key_header_unless_bearer(name("x-other"))),
        TokenLocationError::AlreadyEnabled
    );
    assert_eq!(error(once.clone().with_discouraged_query_token("other")), TokenLocationError::AlreadyEnabled);
    assert_eq!(error(once.with_websocket_token("other.")), TokenLocationError::AlreadyEnabled);

    let body_tokens = || BodyTokens::with_timeout(Duration::from_secs(1));
    let error = |result: Result<BodyTokens, TokenLocationError>| result.map(drop).unwrap_err();
    for field in ["", " key", "key\n", "a=b", "a;b", "\u{feff}key"] {
        assert_eq!(error(body_tokens().with_text(field)), TokenLocationError::Name, "{field:?}");
    }
    assert!(body_tokens().with_text("my key \u{e9}").is_ok());
    assert_eq!(error(body_tokens().with_json("")), TokenLocationError::Name);
    assert_eq!(error(body_tokens().with_form("")), TokenLocationError::Name);
    let once = body_tokens().with_json("a").unwrap().with_text("a").unwrap().with_form("a").unwrap();
    assert_eq!(error(once.clone().with_json("b")), TokenLocationError::AlreadyEnabled);
    assert_eq!(error(once.clone().with_text("b")), TokenLocationError::AlreadyEnabled);
    assert_eq!(error(once.with_form("b")), TokenLocationError::AlreadyEnabled);
}

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
