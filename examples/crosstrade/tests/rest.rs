use axum::http::StatusCode;
use serde_json::json as value;

use super::*;

const PLACE: &str = "/v1/api/accounts/sim101/orders/place";
const POSITIONS: &str = "/v1/api/accounts/sim101/positions";

#[tokio::test]
async fn health_needs_no_token_and_is_not_charged() {
    let server = Server::start().await;
    for _ in 0..30 {
        let response = send(Request::get(server.uri("/healthz")).body(String::new()).unwrap()).await;
        assert_eq!((response.status(), response.body().as_str()), (StatusCode::OK, r#"{"status":"ok"}"#));
    }
}

#[tokio::test]
async fn other_routes_need_a_token() {
    let server = Server::start().await;
    for path in ["/v1/api/accounts", POSITIONS, "/v1/api/accounts/sim101/orders", "/ws/stream"] {
        let response = send(Request::get(server.uri(path)).body(String::new()).unwrap()).await;
        assert_problem(&response, StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()["www-authenticate"], r#"Bearer realm="crosstrade""#);
    }
    // Tokens in the query are not accepted.
    let response = send(Request::get(server.uri("/v1/api/accounts?key=ct_trader")).body(String::new()).unwrap()).await;
    assert_problem(&response, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_filled_order_makes_a_position_until_it_is_flattened() {
    let server = Server::start().await;
    assert_eq!(json(&server.get(TRADER, "/v1/api/accounts").await), value!({ "accounts": ["sim101", "sim102"] }));

    let order =
        r#"{"account":"sim101","instrument":"ES 12-26","action":"BUY","qty":3,"order_type":"MARKET","tif":"DAY"}"#;
    let filled = json(&server.post(TRADER, PLACE, order).await);
    assert_eq!((&filled["status"], &filled["fill_price"]), (&"FILLED".into(), &5_000.0.into()));
    server.post(TRADER, PLACE, r#"{"instrument":"es 12-26","action":"sell","qty":1}"#).await;
    let expected = value!({ "positions": [{ "instrument": "ES 12-26", "qty": 2, "price": 5_000.0 }] });
    assert_eq!(json(&server.get(READER, POSITIONS).await), expected);
    assert_eq!(json(&server.get(READER, "/v1/api/accounts/sim102/positions").await), value!({ "positions": [] }));

    let closed = json(&server.post(TRADER, "/v1/api/accounts/sim101/positions/flatten", "").await);
    assert_eq!((&closed["orders"][0]["action"], &closed["orders"][0]["qty"]), (&"SELL".into(), &2.into()));
    assert_eq!(json(&server.get(READER, POSITIONS).await), value!({ "positions": [] }));
}

#[tokio::test]
async fn a_limit_order_stays_working() {
    let server = Server::start().await;
    let order = r#"{"instrument":"NQ 12-26","action":"BUY","qty":1,"order_type":"LIMIT","tif":"GTC","limit_price":1}"#;
    assert_eq!(server.post(TRADER, PLACE, order).await.status(), StatusCode::OK);
    assert_eq!(json(&server.get(TRADER, POSITIONS).await), value!({ "positions": [] }));
    let orders = json(&server.get(TRADER, "/v1/api/accounts/sim101/orders").await);
    assert_eq!((&orders["orders"][0]["status"], &orders["orders"][0]["tif"]), (&"WORKING".into(), &"GTC".into()));
}

#[tokio::test]
async fn a_token_without_the_scope_trade_places_no_order() {
    let server = Server::start().await;
    let response = server.post(READER, PLACE, r#"{"instrument":"ES","action":"BUY","qty":1}"#).await;
    assert_problem(&response, StatusCode::FORBIDDEN);
    let challenge = r#"Bearer realm="crosstrade", error="insufficient_scope", scope="trade""#;
    assert_eq!(response.headers()["www-authenticate"], challenge);
    assert_eq!(json(&server.get(READER, POSITIONS).await), value!({ "positions": [] }));
}

#[tokio::test]
async fn errors_in_orders_are_named() {
    let server = Server::start().await;
    for (body, status) in [
        (r#"{"instrument":"ES","action":"BUY","qty":0}"#, 400),
        (r#"{"instrument":"ES","action":"BUY","qty":-1}"#, 422),
        (r#"{"instrument":"ES","action":"BUY","qty":1000001}"#, 400),
        (r#"{"instrument":"<ES>","action":"BUY","qty":1}"#, 400),
        (r#"{"instrument":" ","action":"BUY","qty":1}"#, 400),
        (r#"{"instrument":"ES","action":"HOLD","qty":1}"#, 422),
        (r#"{"instrument":"ES","action":"BUY","qty":1,"order_type":"LIMIT"}"#, 400),
        (r#"{"account":"sim102","instrument":"ES","action":"BUY","qty":1}"#, 400),
        (r#"{"instrument":"ES","#, 400),
    ] {
        assert_problem(&server.post(TRADER, PLACE, body).await, StatusCode::from_u16(status).unwrap());
    }
    let order = r#"{"instrument":"ES","action":"BUY","qty":1}"#;
    let nowhere = server.post(TRADER, "/v1/api/accounts/nowhere/orders/place", order).await;
    assert_problem(&nowhere, StatusCode::NOT_FOUND);
    // An account of another user gives the same error.
    let foreign = server.post("ct_other", PLACE, order).await;
    assert_eq!((foreign.status(), foreign.body()), (nowhere.status(), nowhere.body()));
    assert_problem(&server.post(TRADER, PLACE, &" ".repeat(70_000)).await, StatusCode::PAYLOAD_TOO_LARGE);
    assert_problem(&server.get(TRADER, PLACE).await, StatusCode::METHOD_NOT_ALLOWED);
    assert_problem(&server.get(TRADER, "/v1/nothing").await, StatusCode::NOT_FOUND);
}
