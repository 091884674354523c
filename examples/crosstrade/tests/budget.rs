use axum::http::StatusCode;

use super::stream::{Socket, ping};
use super::*;

/// 7 by REST, 7 alerts, the opening of a socket and 5 messages on it: the burst of 20.
#[tokio::test]
async fn three_doors_draw_on_one_budget() {
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
    for refused in [&rest, &alert] {
        assert_problem(refused, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.headers()["retry-after"], "1");
        assert_eq!(refused.headers()["ratelimit-policy"], r#""default";q=20;w=7"#);
        assert_eq!(refused.headers()["ratelimit"], r#""default";r=0;t=1"#);
        assert_eq!(json(refused)["violated-policies"][0], "default");
        assert!(!refused.headers().contains_key("www-authenticate"));
    }
    assert_eq!(rest.body(), alert.body(), "the handler refuses in the gate's words");
    // On the socket a message says so, and the socket stays open.
    for _ in 0..2 {
        let answer = socket.ask(ping()).await;
        assert_eq!(
            (&answer["op"], &answer["status"], &answer["retry_after"]),
            (&"error".into(), &429.into(), &1.into())
        );
    }
    // Nor can another socket be opened.
    assert_eq!(Socket::refused(&server, TRADER).await, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn the_budget_is_the_users_and_not_the_tokens() {
    let server = Server::start().await;
    server.spend(20).await;
    assert_problem(&server.get(READER, "/v1/api/accounts").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(server.get("ct_other", "/v1/api/accounts").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn who_does_not_get_in_pays_nothing_and_who_may_not_does() {
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
async fn crosstrades_own_words_at_every_door() {
    let server = Server::start_with(Errors::CrossTrade).await;
    assert_eq!(server.harmless_alert("rate_limit=1;id=a;").await.status(), StatusCode::OK);
    let by_itself = server.harmless_alert("rate_limit=1;id=a;").await;
    server.spend(19).await;
    let by_gate = server.get(TRADER, "/v1/api/accounts").await;
    let by_handler = server.harmless_alert("").await;
    for (response, wait) in [(by_itself, "60"), (by_gate, "1"), (by_handler, "1")] {
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers()["retry-after"], wait);
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(response.body(), r#"{"error": "Rate limit exceeded"}"#);
    }
    // Everything else stays a problem document.
    assert_problem(&server.get("ct_guess", "/v1/api/accounts").await, StatusCode::UNAUTHORIZED);
}
