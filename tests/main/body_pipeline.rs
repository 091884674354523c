//! The pipeline after the body: stores, rate limits, anonymous requests and handlers.

use std::convert::Infallible;
use std::time::Duration;

use http::HeaderValue;
use tollgate::store::from_fn;
use tollgate::{
    AuthLayer, BoxStore, CurrentGrant, Grant, Quota, Rejection, RejectionKind, TokenLocation, Unauthenticated,
};
use tower::{Layer as _, ServiceExt as _};

use crate::kit::body::*;
use crate::kit::*;

#[tokio::test]
async fn axum_handlers_receive_the_body_and_the_caller() {
    use axum::routing::post as route;
    async fn handler(caller: tollgate::Authenticated<User>, axum::Json(body): axum::Json<serde_json::Value>) -> String {
        format!("{} {} {:?}", caller.principal().0, body["key"], caller.location())
    }
    let layer = AuthLayer::new(memory()).with_credentials_removed();
    let app =
        axum::Router::new().route("/fast", route(handler).route_layer(layer.with_body_tokens(body_tokens()))).route(
            "/slow",
            route(handler).route_layer(pending_gate().with_body_tokens(body_tokens()).with_rate_limit(plenty())),
        );
    let respond = |path: &str, body: String| {
        let mut request = post(JSON, axum::body::Body::from(body));
        *request.uri_mut() = path.parse().unwrap();
        app.clone().oneshot(request)
    };
    let masked = format!("Alice {:?} JsonBody", "*".repeat(TOKEN.len()));
    assert_eq!(text(respond("/fast", json_with(TOKEN)).await.unwrap()).await, masked);
    assert_eq!(text(respond("/slow", json_with(TOKEN)).await.unwrap()).await, format!("Alice {TOKEN:?} JsonBody"));
    for path in ["/fast", "/slow"] {
        assert_eq!(respond(path, json_with("unknown")).await.unwrap().status(), 401);
        assert_eq!(respond(path, "{".to_owned()).await.unwrap().status(), 400);
        assert_eq!(respond(path, " ".repeat(65_537)).await.unwrap().status(), 413);
    }
}

#[tokio::test(start_paused = true)]
async fn pending_stores_are_awaited_after_the_body() {
    let layer = pending_gate().with_body_tokens(body_tokens());
    let body = json_with(TOKEN);
    let steps = || pieces(body.as_bytes(), &[], &[true], Some(3));
    let (response, _) = respond(&layer, post(JSON, Script::new(steps()))).await;
    assert_eq!(response.extensions().get::<Trailers>(), Some(&Trailers(Some(sums(3)))));
    assert_eq!(response.extensions().get::<CurrentGrant>().unwrap().location(), TokenLocation::JsonBody);
    assert_eq!(response.headers()["cache-control"], "private");
    assert_eq!(text(response).await, body);
    assert_eq!(rejection_kind(&layer, post(JSON, Script::of(json_with("unknown")))).await, RejectionKind::UnknownToken);

    let masking = pending_gate().with_credentials_removed().with_body_tokens(body_tokens());
    let (_, read) = accepted(&masking, post(JSON, Script::new(steps()))).await;
    assert_eq!(read, json_with(&"*".repeat(TOKEN.len())));

    // A store that never answers gets 503 after its own timeout.
    let silent = from_fn(|_| std::future::pending::<Result<Option<Grant<()>>, Infallible>>());
    let timeout = Duration::from_secs(1);
    let layer = AuthLayer::with_timeout(silent, timeout).with_body_tokens(body_tokens());
    let slowly = [Step::Pause(Duration::from_secs(4)), Step::Data(body.into())];
    let begin = tokio::time::Instant::now();
    assert_eq!(rejection_kind(&layer, post(JSON, Script::new(slowly))).await, RejectionKind::StoreUnavailable);
    assert_eq!(begin.elapsed(), Duration::from_secs(5), "the timeout of the store starts with the lookup");
}

#[tokio::test]
async fn allow_anonymous_reads_bodies() {
    for layer in [
        AuthLayer::with_timeout(BoxStore::new(memory()), TIMEOUT),
        AuthLayer::with_timeout(BoxStore::new(slow()), TIMEOUT),
    ] {
        let layer = layer.allow_anonymous().with_credentials_removed().with_body_tokens(body_tokens());
        for (content_type, body) in [
            (JSON, r#"{"qty": 1, "Key": "x"}"#),
            (JSON, r#"{"key": null}"#),
            (JSON, ""),
            (JSON, "[1]"),
            (TEXT, "qty=1"),
            (FORM, "key=1"),
            ("image/png", "key"),
        ] {
            let (response, runs) = respond(&layer, post(content_type, Script::of(body))).await;
            assert_eq!((response.status().as_u16(), runs), (200, 1), "{body}");
            assert_eq!(Unauthenticated::from_extensions(response.extensions()), Some(Unauthenticated::Anonymous));
            assert!(!response.headers().contains_key("cache-control"));
            assert_eq!(text(response).await, body);
        }
        assert_eq!(accepted(&layer, post(JSON, Script::of(json_with(TOKEN)))).await.0, TokenLocation::JsonBody);
        for (content_type, body, kind) in [
            (JSON, json_with("unknown"), RejectionKind::UnknownToken),
            (JSON, json_with("mal formed"), RejectionKind::MalformedToken),
            (JSON, r#"{"key": 1}"#.to_owned(), RejectionKind::InvalidRequest),
            (JSON, "{".to_owned(), RejectionKind::InvalidRequest),
            (TEXT, "key=".to_owned(), RejectionKind::MalformedToken),
            (TEXT, "key".to_owned(), RejectionKind::InvalidRequest),
            (FORM, "access_token=".to_owned(), RejectionKind::MalformedToken),
            (JSON, " ".repeat(65_537), RejectionKind::BodyTooLarge),
        ] {
            assert_eq!(rejection_kind(&layer, post(content_type, Script::of(&body))).await, kind, "{content_type}");
        }
    }
}

#[tokio::test]
async fn bodies_of_preflights_are_not_read() {
    let service = gate().layer(reader::<Body>(&Runs::default()));
    let mut request = preflight();
    request.headers_mut().insert("content-type", HeaderValue::from_static(JSON));
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(Unauthenticated::from_extensions(response.extensions()), Some(Unauthenticated::Preflight));
}

#[tokio::test]
async fn rate_limits_work_before_and_after_with_body_tokens() {
    let limits = || Hands::default().limits(Quota::per_minute(60).with_burst(2));
    for layer in [
        AuthLayer::new(memory()).with_rate_limit(limits()).with_body_tokens(body_tokens()),
        AuthLayer::new(memory()).with_body_tokens(body_tokens()).with_rate_limit(limits()),
    ] {
        let request = || post(JSON, Script::of(json_with(TOKEN)));
        // These requests charge no bucket.
        assert_eq!(
            rejection_kind(&layer, post(JSON, Script::of(json_with("unknown")))).await,
            RejectionKind::UnknownToken
        );
        assert_eq!(rejection_kind(&layer, post(JSON, Script::of("{"))).await, RejectionKind::InvalidRequest);
        assert_eq!(
            rejection_kind(&layer, authorized(post(JSON, Script::new([Step::Fail])))).await,
            RejectionKind::BodyUnreadable
        );
        for left in [1, 0] {
            let (response, _) = respond(&layer, request()).await;
            assert_eq!(field(response.headers(), "ratelimit"), Some(&*format!("\"default\";r={left};t=1")));
        }
        let (response, runs) = respond(&layer, request()).await;
        assert_eq!((response.status().as_u16(), runs), (429, 0));
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.extensions().get::<Rejection>().unwrap().grant().unwrap().as_str(), "alice");
    }
    // A limiter set later does not affect an earlier clone.
    let layer = gate();
    let limited = layer.clone().with_rate_limit(limits());
    for _ in 0..3 {
        assert_eq!(accepted(&layer, post(JSON, Script::of(json_with(TOKEN)))).await.0, TokenLocation::JsonBody);
        respond(&limited, post(JSON, Script::of(json_with(TOKEN)))).await;
    }
    assert_eq!(rejection_kind(&limited, post(JSON, Script::of(json_with(TOKEN)))).await, RejectionKind::OverLimit);
}
