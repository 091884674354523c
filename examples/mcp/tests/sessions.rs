//! Sessions of MCP before 2026-07-28.

use super::*;

/// Starts a session and returns its id.
async fn initialize(url: &str, token: &str) -> String {
    let params = json!({
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" },
    });
    let body = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
    let response = send(post(url, token), body.to_string()).await;
    assert_eq!(response.status(), 200, "{response:?}");
    let session = field(&response, "mcp-session-id").to_owned();
    let body = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let response = send(in_session(url, token, &session), body.to_string()).await;
    assert_eq!(response.status(), 202, "{response:?}");
    session
}

fn in_session(url: &str, token: &str, session: &str) -> http::request::Builder {
    post(url, token).header("mcp-protocol-version", "2025-11-25").header("mcp-session-id", session)
}

async fn call_in(url: &str, token: &str, session: &str, tool: &str) -> http::Response<String> {
    let mut message = message(1, tool);
    message["params"].as_object_mut().unwrap().remove("_meta");
    send(in_session(url, token, session), message.to_string()).await
}

#[tokio::test]
async fn sessions_of_a_subject_share_its_limit() {
    let url = start(None).await;
    let first = initialize(&url, ALICE).await;
    let second = initialize(&url, ALICE_2).await;
    assert_ne!(first, second);
    let response = call_in(&url, ALICE, &first, "place_order").await;
    assert_eq!((response.status().as_u16(), units(&response)), (200, "20"));
    assert!(response.body().contains("bought 3 ACME for alice"), "{response:?}");
    for units_left in ["10", "0"] {
        assert_eq!(units(&call_in(&url, ALICE_2, &second, "place_order").await), units_left);
    }
    for (token, session) in [(ALICE, &first), (ALICE_2, &second)] {
        let response = call_in(&url, token, session, "quote").await;
        assert_eq!((response.status().as_u16(), field(&response, "retry-after")), (429, "1"));
    }
    let other = initialize(&url, BOB).await;
    assert_eq!(call_in(&url, BOB, &other, "quote").await.status(), 200);
}

#[tokio::test]
async fn a_tool_requires_its_scopes_in_a_session_too() {
    let url = start(None).await;
    let session = initialize(&url, BOB).await;
    assert_eq!(call_in(&url, BOB, &session, "place_order").await.status(), 403);
    assert_eq!(call_in(&url, BOB, &session, "quote").await.status(), 200);
}

#[tokio::test]
async fn a_session_belongs_to_the_subject_that_started_it() {
    let url = start(None).await;
    let session = initialize(&url, ALICE).await;
    // Another token of the subject continues the session, as after a step-up.
    assert_eq!(call_in(&url, ALICE_2, &session, "quote").await.status(), 200);

    assert_eq!(call_in(&url, BOB, &session, "quote").await.status(), 404);
    for method in ["GET", "DELETE"] {
        let request = in_session(&url, BOB, &session).method(method);
        assert_eq!(send(request, "").await.status(), 404, "{method}");
    }
    // The id of the service, without the code, is not accepted.
    let (id, code) = session.rsplit_once('.').unwrap();
    for (token, session) in
        [(ALICE, id.to_owned()), (ALICE, format!("{id}.")), (ALICE, format!("{id}0.{code}")), (BOB, id.to_owned())]
    {
        assert_eq!(call_in(&url, token, &session, "quote").await.status(), 404, "{session}");
    }
    // A second field does not replace the first.
    let own = initialize(&url, BOB).await;
    let request = in_session(&url, BOB, &own).header("mcp-session-id", id).method("DELETE");
    assert_eq!(send(request, "").await.status(), 202);

    // Nothing has ended the session of alice, and she can listen and end it.
    let request = in_session(&url, ALICE, &session).method("GET").header("accept", "text/event-stream");
    assert_eq!(open(request.body(Body::empty()).unwrap()).await.status(), 200);
    assert_eq!(call_in(&url, ALICE, &session, "quote").await.status(), 200);
    assert_eq!(send(in_session(&url, ALICE, &session).method("DELETE"), "").await.status(), 202);
    assert_eq!(call_in(&url, ALICE, &session, "quote").await.status(), 404);
}
