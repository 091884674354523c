use axum::http::StatusCode;
use serde_json::json as value;

use super::*;

async fn positions(server: &Server) -> Value {
    json(&server.get(READER, "/v1/api/accounts/sim101/positions").await)["positions"].take()
}

/// TradingView sends text unless the alert is JSON, and no header that the user could choose.
#[tokio::test]
async fn text_and_json_alerts_trade() {
    let server = Server::start().await;
    let text = "key=ct_trader;command=PLACE;account=sim101;instrument=ES 12-26;action=BUY;qty=1;\
                order_type=MARKET;tif=DAY;";
    let response = server.alert("text/plain; charset=utf-8", text).await;
    assert_eq!(response.status(), StatusCode::OK, "{response:?}");
    assert_eq!(json(&response)["orders"][0]["status"], "FILLED");
    assert_eq!(positions(&server).await, value!([{ "instrument": "ES 12-26", "qty": 1, "price": 5_000.0 }]));

    let as_json = r#"{"key": "ct_trader", "command": "PLACE", "account": "sim101", "instrument": "ES 12-26",
        "action": "SELL", "qty": 3, "order_type": "MARKET", "tif": "DAY", "strategy": {"ignored": [true]}}"#;
    let response = server.alert("application/json; charset=utf-8", as_json).await;
    assert_eq!(response.status(), StatusCode::OK, "{response:?}");
    assert_eq!(positions(&server).await, value!([{ "instrument": "ES 12-26", "qty": -2, "price": 5_000.0 }]));
    // The token is outside of `Authorization`, so caches need this header.
    assert_eq!(response.headers()["cache-control"], "private");
}

/// TradingView sends JSON as text when it is not sure. The gate and the handler read it by the same rule.
#[tokio::test]
async fn json_alerts_sent_as_text_trade() {
    let server = Server::start().await;
    let order = |qty: u32| {
        format!(
            r#"{{"key": "{TRADER}", "command": "PLACE", "account": "sim101", "instrument": "ES", "action": "BUY",
            "qty": {qty}, "comment": ";key={READER};qty=9;"}}"#
        )
    };
    for content_type in ["text/plain", "Text/Plain; charset=utf-8"] {
        let response = server.alert(content_type, &order(1)).await;
        assert_eq!(response.status(), StatusCode::OK, "{response:?}");
    }
    assert_eq!(server.alert("text/plain", &format!("\u{feff}\r\n {}", order(2))).await.status(), StatusCode::OK);
    assert_eq!(positions(&server).await[0]["qty"], 4);
    // The token in the header, and the body parsed by the handler alone.
    let request = Request::post(server.uri("/v1/webhook"))
        .header("authorization", format!("Bearer {TRADER}"))
        .header("content-type", "text/plain")
        .body(order(1).replace(&format!(r#""key": "{TRADER}", "#), ""))
        .unwrap();
    assert_eq!(send(request).await.status(), StatusCode::OK);
    assert_eq!(positions(&server).await[0]["qty"], 5);

    let last = json(&server.alert("text/plain", &order(1).replace(TRADER, "")).await);
    assert_eq!(last["detail"], "The token is not valid.");
}

#[tokio::test]
async fn a_json_alert_with_a_syntax_error_gets_400() {
    let server = Server::start().await;
    let broken = format!(r#"{{"key": "{TRADER}", "command": "CANCELALLORDERS",}}"#);
    for (content_type, body) in [
        ("application/json", broken.as_str()),
        ("text/plain", &broken),
        ("text/plain; charset=utf-8", "\u{feff}{"),
        ("application/json", "key=ct_trader;command=CANCELALLORDERS;"),
    ] {
        let response = server.alert(content_type, body).await;
        assert_problem(&response, StatusCode::BAD_REQUEST);
        assert_eq!(json(&response)["detail"], "The request body is not valid JSON.", "{content_type}: {body}");
        assert!(response.headers()["www-authenticate"].to_str().unwrap().contains("invalid_request"));
    }
    // Valid JSON without a key is another matter.
    let response = server.alert("text/plain", r#"{"command": "CANCELALLORDERS"}"#).await;
    assert_problem(&response, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn all_commands_are_carried_out() {
    let server = Server::start().await;
    let alert = async |fields: &str| {
        let response = server.alert("text/plain", &format!("Key = ct_trader;\n{fields}")).await;
        assert_eq!(response.status(), StatusCode::OK, "{response:?}");
        json(&response)["orders"].take()
    };
    alert("Command = place;\nAccount = sim101;\nInstrument = ES;\nAction = buy;\nQty = 2").await;
    alert("command=PLACE;account=sim101;instrument=NQ;action=SELL;qty=1;").await;
    alert("command=PLACE;account=sim101;instrument=NQ;action=BUY;qty=1;order_type=LIMIT;tif=GTC;limit_price=9.5;")
        .await;
    assert_eq!(alert("command=CLOSEPOSITION;account=sim101;instrument=ES;").await[0]["action"], "SELL");
    assert_eq!(positions(&server).await, value!([{ "instrument": "NQ", "qty": -1, "price": 18_000.0 }]));
    assert_eq!(alert("command=CANCELALLORDERS;account=sim101;").await[0]["status"], "CANCELLED");
    assert_eq!(alert("command=CANCELALLORDERS;").await, value!([]), "that was all");
    assert_eq!(alert("command=FLATTENEVERYTHING;").await[0]["action"], "BUY");
    assert_eq!(positions(&server).await, value!([]));
}

#[tokio::test]
async fn the_self_limit_is_exact_and_charges_nothing() {
    let server = Server::start().await;
    let alert = async |fields: &str| server.harmless_alert(fields).await;
    // Three in 900 seconds, at 0, 300 and 899.
    for at in [0, 300, 899] {
        server.set_clocks(at);
        assert_eq!(alert("rate_limit=3/900;id=a;").await.status(), StatusCode::OK, "at {at}");
    }
    // Far more rejections than the bucket has units.
    for _ in 0..30 {
        let rejected = alert("rate_limit=3/900;id=a;").await;
        assert_problem(&rejected, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(rejected.headers()["retry-after"], "1");
        assert!(!rejected.headers().contains_key("ratelimit"), "the rate limit is not involved");
    }
    // Another id, another user, the same id without a limit.
    assert_eq!(alert("rate_limit=1;id=b;").await.status(), StatusCode::OK);
    let other = "key=ct_other;command=CANCELALLORDERS;rate_limit=3/900;id=a;";
    assert_eq!(server.alert("text/plain", other).await.status(), StatusCode::OK);
    assert_eq!(alert("id=a;").await.status(), StatusCode::OK);
    // Two tokens of one user share the ids, as they share the bucket.
    let reader = format!("key={READER};command=CANCELALLORDERS;rate_limit=3/900;id=a;");
    assert_problem(&server.alert("text/plain", &reader).await, StatusCode::TOO_MANY_REQUESTS);
    // The first leaves the window after 900 seconds to the second.
    server.set_clocks(900);
    assert_eq!(alert("rate_limit=3/900;id=a;").await.status(), StatusCode::OK);
    assert_eq!(alert("rate_limit=3/900;id=a;").await.headers()["retry-after"], "300");
    // 6 of 20 units are charged.
    server.charge(14).await;
    assert_problem(&alert("").await, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn an_alert_over_the_rate_limit_does_not_count() {
    let server = Server::start().await;
    server.charge(20).await;
    for _ in 0..3 {
        let rejected = server.harmless_alert("rate_limit=1;id=a;").await;
        assert_problem(&rejected, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(rejected.headers()["retry-after"], "1", "the rate limit, not the minute of the self-limit");
        assert_eq!(rejected.headers()["ratelimit"], r#""default";r=0;t=1"#);
    }
}

/// A command may be half done when the broker rejects it, so a charged alert counts.
#[tokio::test]
async fn a_charged_alert_counts_even_if_the_broker_rejects_it() {
    let server = Server::start().await;
    let place = |token: &str, account: &str, id: &str| {
        let order = "command=PLACE;instrument=ES;action=BUY;qty=1;rate_limit=1";
        format!("key={token};{order};account={account};id={id};")
    };
    assert_problem(&server.alert("text/plain", &place(TRADER, "sim999", "a")).await, StatusCode::NOT_FOUND);
    let again = server.alert("text/plain", &place(TRADER, "sim101", "a")).await;
    assert_problem(&again, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(again.headers()["retry-after"], "60", "the minute of the self-limit");
    // Two units are charged so far: this alert and the one without the scope.
    assert_problem(&server.alert("text/plain", &place(READER, "sim101", "b")).await, StatusCode::FORBIDDEN);
    assert_problem(&server.alert("text/plain", &place(READER, "sim101", "b")).await, StatusCode::TOO_MANY_REQUESTS);
    server.charge(18).await;
    assert_problem(&server.alert("text/plain", &place(TRADER, "sim101", "c")).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(positions(&server).await, value!(null), "the bucket is empty, and nothing was traded");
}

/// A strategy that repeats itself sends its alerts at the same time, on several connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_alerts_at_the_same_time_one_is_carried_out() {
    let server = Server::start().await;
    let place =
        format!("key={TRADER};command=PLACE;account=sim101;instrument=ES;action=BUY;qty=1;rate_limit=1/86400;id=a;");
    let alerts = (0..16).map(|_| server.alert("text/plain", &place));
    let responses = futures_util::future::join_all(alerts).await;
    assert_eq!(responses.iter().filter(|response| response.status() == StatusCode::OK).count(), 1);
    for rejected in responses.iter().filter(|response| response.status() != StatusCode::OK) {
        assert_problem(rejected, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(rejected.headers()["retry-after"], "86400");
    }
    assert_eq!(positions(&server).await[0]["qty"], 1);
}

#[tokio::test]
async fn errors_in_alerts_are_named() {
    let server = Server::start().await;
    for (fields, status) in [
        ("command=CANCELALLORDERS;rate_limit=3/0;id=a;", 400),
        ("command=CANCELALLORDERS;rate_limit=1;", 400),
        ("command=CANCELALLORDERS;rate_limit;id=a;", 400),
        ("command=CANCELALLORDERS;id=a;rate_limit=1;rate_limit=1000;", 400),
        ("command=DANCE;", 400),
        ("account=sim101;", 400),
        ("command=PLACE;account=sim101;instrument=ES;action=BUY;", 400),
        ("command=PLACE;account=sim101;instrument=ES;action=BUY;qty=0.5;", 400),
        ("command=PLACE;account=sim101;instrument=<>;action=BUY;qty=1;", 400),
        ("command=PLACE;account=nowhere;instrument=ES;action=BUY;qty=1;", 404),
        // The gate rejects two keys.
        ("command=CANCELALLORDERS;key=ct_other;", 400),
    ] {
        let response = server.alert("text/plain", &format!("key={TRADER};{fields}")).await;
        assert_problem(&response, StatusCode::from_u16(status).unwrap());
        let was_charged = !fields.contains("key=ct_other");
        assert_eq!(response.headers().contains_key("ratelimit"), was_charged, "{fields}");
    }
    assert_eq!(positions(&server).await, value!([]));
    // By the header of a client that can set one, the body may be anything.
    let request = Request::post(server.uri("/v1/webhook")).header("authorization", format!("Bearer {TRADER}"));
    let request = request.header("content-type", "text/csv").body("command,PLACE".to_owned()).unwrap();
    assert_problem(&send(request).await, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}
