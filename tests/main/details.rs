//! Texts of rejections, which clients can read.

use std::time::{Duration, SystemTime};
use tollgate::TokenDigest;

use http::{Response, StatusCode};
use tollgate::{AuthLayer, Grant, Limit, MemoryStore, Quota, RateLimits, Rejection, RejectionKind};
use tower::Layer;

use crate::kit::*;

/// Returns everything that a client or a log can see of a rejection.
async fn shown(response: Response<Body>) -> (String, serde_json::Value) {
    let rejection = response.extensions().get::<Rejection>().unwrap().clone();
    assert_eq!(rejection.status(), response.status());
    let body = json(response).await;
    assert_eq!(body["detail"], *rejection.detail());
    assert_eq!(rejection.to_string(), rejection.detail());
    (rejection.to_string(), body)
}

#[tokio::test]
async fn invalid_tokens_with_the_same_challenge_have_the_same_text() {
    let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
    let tokens = MemoryStore::from_iter([
        (TokenDigest::of("tg_early"), Grant::new("early", ()).with_not_before(tomorrow)),
        (TokenDigest::of("tg_bound"), Grant::new("bound", ()).with_sender_constraint()),
        (TokenDigest::of("tg_revoked"), Grant::new("revoked", ())),
    ]);
    tokens.revoke(TokenDigest::of("tg_revoked"));
    let service = AuthLayer::new(tokens).layer(echo());
    let mut answers = Vec::new();
    for (token, kind) in [
        ("tg_never", RejectionKind::UnknownToken),
        ("tg_revoked", RejectionKind::UnknownToken),
        ("tg_early", RejectionKind::NotYetValid),
        ("tg_bound", RejectionKind::SenderConstrained),
        ("mal formed", RejectionKind::MalformedToken),
    ] {
        let response: Response<Body> = send(&service, with_token(token)).await;
        assert_eq!(response.extensions().get::<Rejection>().unwrap().kind(), kind);
        answers.push((response.headers().clone(), shown(response).await));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
}

#[tokio::test]
async fn texts_do_not_contain_the_store_error() {
    use tollgate::store::from_fn;

    let store =
        from_fn(|_| async { Err::<Option<Grant<()>>, _>(std::io::Error::other("db7.internal: row 17 is broken")) });
    let service = AuthLayer::with_timeout(store, Duration::from_secs(5)).layer(echo());
    let response: Response<Body> = send(&service, with_token(TOKEN)).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let source = std::error::Error::source(response.extensions().get::<Rejection>().unwrap()).unwrap();
    let causes: Vec<_> = std::iter::successors(Some(source), |error| error.source()).map(|e| e.to_string()).collect();
    assert!(causes.concat().contains("db7.internal"), "operators find it in the sources: {causes:?}");
    let (text, body) = shown(response).await;
    assert!(!format!("{text}{body}").contains("db7"), "{text} {body}");
}

#[tokio::test]
async fn exhausted_limits_have_one_text_with_and_without_a_token() {
    let limits = Hands::default()
        .limits(Limit::from(Quota::per_minute(20).with_burst(1)).with_anonymous(Quota::per_minute(60).with_burst(1)));
    let service = AuthLayer::new(memory()).allow_anonymous().with_rate_limit(limits).layer(echo());
    for (request, text) in [
        (with_token as fn(&str) -> _, "The rate limit is exhausted. Retry after 3 seconds."),
        (|_: &str| get(), "The rate limit is exhausted. Retry after 1 second."),
        (|_: &str| preflight(), "The rate limit is exhausted. Retry after 1 second."),
    ] {
        send::<_, Body>(&service, request(TOKEN)).await;
        let response: Response<Body> = send(&service, request(TOKEN)).await;
        assert_eq!(response.status(), 429);
        let (shown, _) = shown(response).await;
        assert_eq!(shown, text);
    }
    // The same on a route.
    let gate = AuthLayer::new(memory()).allow_anonymous();
    let route = RateLimits::new(Limit::new("orders", Quota::per_hour(1)).unwrap().with_anonymous(Quota::per_hour(1)));
    let service = gate.clone().layer(gate.route_rate_limit(route).layer(echo()));
    for request in [with_token(TOKEN), get()] {
        send::<_, Body>(&service, request.clone()).await;
        let (shown, _) = shown(send(&service, request).await).await;
        assert!(shown.starts_with("The rate limit is exhausted. Retry after "), "{shown}");
    }
}
