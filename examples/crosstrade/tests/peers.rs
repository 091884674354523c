//! Tests of the limit of failed authentications.

use axum::body::Body;
use axum::{Router, routing::get};
use tollgate::AuthLayer;
use tollgate::limit::ClientIp;
use tower::ServiceExt;

use super::*;
use crate::peers::{FAILURES, throttle};

#[tokio::test]
async fn a_guessing_peer_gets_429_on_all_routes() {
    let server = Server::start().await;
    for nth in 0..FAILURES.burst() {
        let guess = match nth % 2 {
            0 => server.get(&format!("ct_guess_{nth}"), "/v1/api/accounts").await,
            _ => server.alert("text/plain", &format!("key=ct_guess_{nth};command=CANCELALLORDERS;")).await,
        };
        assert_problem(&guess, StatusCode::UNAUTHORIZED);
    }
    for rejected in [
        server.get("ct_guess", "/v1/api/accounts").await,
        server.get("ct_guess", "/ws/stream").await,
        server.alert("application/json", r#"{"key": "ct_guess"}"#).await,
    ] {
        assert_problem(&rejected, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(rejected.headers()["retry-after"], "2");
        assert_eq!(json(&rejected)["violated-policies"], serde_json::json!(["failures"]));
    }
    assert_eq!(server.get(TRADER, "/v1/api/accounts").await.status(), StatusCode::OK);
    assert_eq!(server.harmless_alert("").await.status(), StatusCode::OK);
    // A request without a token is no failed guess.
    let response = send(Request::get(server.uri("/v1/api/accounts")).body(String::new()).unwrap()).await;
    assert_problem(&response, StatusCode::UNAUTHORIZED);

    server.set_clocks(2);
    assert_problem(&server.get("ct_guess", "/v1/api/accounts").await, StatusCode::UNAUTHORIZED);
    assert_problem(&server.get("ct_guess", "/v1/api/accounts").await, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn wrong_keys_from_tradingview_do_not_lock_out_other_users() {
    let gate = AuthLayer::new(MemoryStore::<()>::new())
        .with_failure_throttle(throttle(Arc::new(|| Duration::ZERO), ClientIp::peer()));
    let app: Router = Router::new().route("/", get(|| async {})).layer(gate);
    let last_of_many = async |address: Option<&str>| {
        let mut last = StatusCode::OK;
        for _ in 0..=FAILURES.burst() {
            let mut request = Request::get("/").header("authorization", "Bearer guess").body(Body::empty()).unwrap();
            if let Some(address) = address {
                request.extensions_mut().insert(SocketAddr::new(address.parse().unwrap(), 80));
            }
            last = app.clone().oneshot(request).await.unwrap().status();
        }
        last
    };
    assert_eq!(last_of_many(Some("52.89.214.238")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(last_of_many(Some("::ffff:34.212.75.30")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(last_of_many(Some("52.89.214.239")).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(last_of_many(None).await, StatusCode::TOO_MANY_REQUESTS);
}
