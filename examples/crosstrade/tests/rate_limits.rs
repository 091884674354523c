use axum::http::StatusCode;

use super::stream::{Socket, ping};
use super::*;

/// 7 requests by REST, 7 alerts, a WebSocket handshake and 5 messages: the burst of 20.
#[tokio::test]
async fn rest_alerts_and_sockets_charge_one_bucket() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, TRADER).await;
    for _ in 0..7 {
        assert_eq!(server.get(TRADER, "/v1/api/accounts").await.status(), StatusCode::OK);
        assert_eq!(server.harmless_alert("").await.status(), StatusCode::OK);
    }
    for _ in 0..5 {
        assert_eq!(socket.ask(ping()).await["op"], "pong");
    }

    let rest = server.get(TRADER, "/v1/api/accounts").await;
    let alert = server.harmless_alert("").await;
    for rejected in [&rest, &alert] {
        assert_problem(rejected, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(rejected.headers()["retry-after"], "1");
        assert_eq!(rejected.headers()["ratelimit-policy"], r#""default";q=20;w=7"#);
        assert_eq!(rejected.headers()["ratelimit"], r#""default";r=0;t=1"#);
        assert_eq!(json(rejected)["violated-policies"][0], "default");
        assert!(!rejected.headers().contains_key("www-authenticate"));
    }
    assert_eq!(rest.body(), alert.body(), "the handler's rejection equals the gate's");
    // On the socket the error is a message, and the socket stays open.
    for _ in 0..2 {
        let answer = socket.ask(ping()).await;
        assert_eq!(
            (&answer["op"], &answer["status"], &answer["retry_after"]),
            (&"error".into(), &429.into(), &1.into())
        );
    }
    // A handshake is rejected too.
    assert_eq!(Socket::rejected(&server, TRADER).await, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn tokens_of_one_user_share_a_bucket() {
    let server = Server::start().await;
    server.charge(20).await;
    assert_problem(&server.get(READER, "/v1/api/accounts").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(server.get("ct_other", "/v1/api/accounts").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn unauthenticated_requests_are_not_charged_and_forbidden_ones_are() {
    let server = Server::start().await;
    for _ in 0..30 {
        assert_problem(&server.get("ct_guess", "/v1/api/accounts").await, StatusCode::UNAUTHORIZED);
        assert_problem(&server.alert("text/plain", "key=ct_guess;command=PLACE;").await, StatusCode::UNAUTHORIZED);
    }
    for _ in 0..10 {
        let response = server.post(READER, "/v1/api/accounts/sim101/positions/flatten", "").await;
        assert_problem(&response, StatusCode::FORBIDDEN);
        let response = server.alert("text/plain", &format!("key={READER};command=FLATTENEVERYTHING;")).await;
        assert_problem(&response, StatusCode::FORBIDDEN);
    }
    assert_problem(&server.get(TRADER, "/v1/api/accounts").await, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn crosstrade_errors_are_used_on_every_route() {
    let server = Server::start_with(Errors::CrossTrade).await;
    assert_eq!(server.harmless_alert("rate_limit=1;id=a;").await.status(), StatusCode::OK);
    let by_itself = server.harmless_alert("rate_limit=1;id=a;").await;
    server.charge(19).await;
    let by_gate = server.get(TRADER, "/v1/api/accounts").await;
    let by_handler = server.harmless_alert("").await;
    for (response, wait) in [(by_itself, "60"), (by_gate, "1"), (by_handler, "1")] {
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers()["retry-after"], wait);
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(response.body(), r#"{"error": "Rate limit exceeded"}"#);
    }
    // Other errors stay problem documents.
    assert_problem(&server.get("ct_guess", "/v1/api/accounts").await, StatusCode::UNAUTHORIZED);
}
