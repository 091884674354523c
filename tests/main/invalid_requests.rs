//! The detail of 400 `invalid_request` names the error in the request.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response, header};
use tollgate::gate::{BodyTokens, ReplayBody};
use tollgate::{AuthLayer, Rejection, RejectionKind};
use tower::{Layer, ServiceExt};

use crate::kit::*;

const PREFIX: &str = "base64url.bearer.authorization.example.";
const SEVERAL: &str = "Send exactly one credential.";
const NOT_JSON: &str = "The request body is not valid JSON.";
const REPEATED: &str = "The request body has the field of the token more than once.";

async fn answer(request: Request<Body>) -> Response<Body> {
    let inner = tower::service_fn(|request: Request<ReplayBody<Body>>| async move {
        Ok::<_, Infallible>(Response::new(Body::from(text(Response::new(request.into_body())).await)))
    });
    let body_tokens = BodyTokens::with_timeout(Duration::from_secs(5))
        .with_json("key")
        .unwrap()
        .with_text("key")
        .unwrap()
        .with_form("access_token")
        .unwrap()
        .with_json_in_text();
    let gate = AuthLayer::new(memory())
        .with_websocket_token(PREFIX)
        .unwrap()
        .with_discouraged_query_token("access_token")
        .unwrap();
    gate.with_body_tokens(body_tokens).layer(inner).oneshot(request).await.unwrap()
}

fn post(content_type: &str, body: impl Into<bytes::Bytes>) -> Request<Body> {
    Request::post("/").header(header::CONTENT_TYPE, content_type).body(Body::new(body.into())).unwrap()
}

/// Returns the detail. Checks the status, the kind and the challenge, which are the same for all reasons.
async fn detail_of(request: Request<Body>, what: &str) -> String {
    let response = answer(request).await;
    assert_eq!(response.status(), 400, "{what}");
    assert_eq!(field(response.headers(), "content-type"), Some("application/problem+json"), "{what}");
    let challenge = field(response.headers(), "www-authenticate").unwrap();
    assert!(challenge.ends_with(r#"error="invalid_request""#), "{what}: {challenge}");
    let rejection = response.extensions().get::<Rejection>().unwrap().clone();
    assert_eq!(rejection.kind(), RejectionKind::InvalidRequest, "{what}");
    let problem = json(response).await;
    assert_eq!((&problem["title"], &problem["status"]), (&"Bad Request".into(), &400.into()), "{what}");
    let detail = problem["detail"].as_str().unwrap().to_owned();
    assert_eq!(rejection.to_string(), detail, "{what}: logs and clients get the same text");
    detail
}

#[tokio::test]
async fn detail_names_the_error_in_a_body() {
    let deep = "[".repeat(65) + &"]".repeat(65);
    let json = "application/json";
    for (content_type, body, detail) in [
        (json, "{", NOT_JSON),
        (json, r#"{"key": "a", "qty": }"#, NOT_JSON),
        (json, r#"{"key": "a"} {"key": "b"}"#, NOT_JSON),
        (json, r#"{"x": "\ud800"}"#, NOT_JSON),
        (json, r#"{"key": "\x"}"#, NOT_JSON),
        (json, "key=a;", NOT_JSON),
        ("application/vnd.alert+json", "{", NOT_JSON),
        (json, &deep, "The JSON in the request body is nested too deeply."),
        (json, r#"{"key": "a", "\u006bey": "a"}"#, REPEATED),
        (json, r#"{"key": 1}"#, "The token in the request body is not a JSON string."),
        ("application/json; charset=utf-16", "{}", "The charset of the request body is not UTF-8."),
        ("text/plain; charset=latin1", "key=a;", "The charset of the request body is not UTF-8."),
        ("text/plain", "key=a;KEY=b;", REPEATED),
        ("text/plain", "key;", "The field of the token in the request body has no value."),
        ("application/x-www-form-urlencoded", "access_token=a&access_token=a", REPEATED),
    ] {
        assert_eq!(detail_of(post(content_type, body.to_owned()), body).await, detail, "{content_type}: {body}");
    }
    for content_type in [json, "text/plain"] {
        let body: &[u8] = b"key=\xff;";
        let detail = detail_of(post(content_type, body), "not UTF-8").await;
        assert_eq!(detail, "The request body is not valid UTF-8.", "{content_type}");
    }
    let mut request = post(json, "{}");
    request.headers_mut().append(header::CONTENT_TYPE, "text/plain".parse().unwrap());
    assert_eq!(detail_of(request, "two types").await, "Send exactly one Content-Type header.");
}

#[tokio::test]
async fn detail_names_several_credentials() {
    let with = |name: &'static str, values: &[&str]| {
        let mut request = get();
        for value in values {
            request.headers_mut().append(name, value.parse().unwrap());
        }
        request
    };
    let mut beside = post("application/json", r#"{"key": "a"}"#);
    beside.headers_mut().insert("authorization", "Bearer b".parse().unwrap());
    let twice_in_query = Request::get("/?access_token=a&access_token=b").body(Body::default()).unwrap();
    for (request, what) in [
        (with("authorization", &["Bearer a", "Bearer b"]), "lines"),
        (with("authorization", &["Bearer a, Bearer b"]), "a comma"),
        (twice_in_query, "query"),
        (beside, "header and body"),
    ] {
        assert_eq!(detail_of(request, what).await, SEVERAL);
    }
    // An error in the body takes precedence over a possible second credential in it.
    let mut broken = post("application/json", "{");
    broken.headers_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    assert_eq!(detail_of(broken, "header and broken body").await, NOT_JSON);
}

#[tokio::test]
async fn detail_names_the_error_in_a_websocket_handshake() {
    let only = "Sec-WebSocket-Protocol offers the token alone. Offer the protocol of the service beside it.";
    let encoding = "The token in Sec-WebSocket-Protocol is not base64url without padding.";
    for (protocols, detail) in [
        (format!("{PREFIX}YQ"), only),
        (format!("{PREFIX}YQ=="), encoding),
        (format!("chat, {PREFIX}YQ=="), encoding),
        (format!("chat, {PREFIX}YQ, {PREFIX}YQ"), SEVERAL),
    ] {
        let request = Request::get("/")
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-protocol", &protocols)
            .body(Body::default())
            .unwrap();
        assert_eq!(detail_of(request, &protocols).await, detail, "{protocols}");
    }
}

/// Only the first character decides whether a text body is read as JSON.
#[tokio::test]
async fn text_body_that_begins_with_a_brace_is_json() {
    let found = async |body: &str| answer(post("text/plain", body.to_owned())).await;
    for body in [
        format!(r#"{{"key": "{TOKEN}"}}"#),
        format!("\u{feff} \t\r\n{{\"key\": \"{TOKEN}\"}}\n"),
        // A JSON body has no text fields.
        format!(r#"{{"key": "{TOKEN}", "comment": "x;key=other;"}}"#),
        format!("key={TOKEN};comment={{\"key\": \"other\"}};"),
        format!("\u{feff}\nkey={TOKEN};"),
        // Not white space in JSON. So this is a text body.
        format!("\u{c}{{;key={TOKEN};"),
    ] {
        let response = found(&body).await;
        assert_eq!(response.status(), 200, "{body}");
        assert_eq!(text(response).await, body, "the handler gets what was sent");
    }
    // Invalid JSON is not read as text.
    for body in [
        format!("{{;key={TOKEN};"),
        format!("{{\"key\": \"{TOKEN}\""),
        format!("{{\"key\": \"{TOKEN}\"}};key={TOKEN};"),
    ] {
        assert_eq!(detail_of(post("text/plain", body.clone()), &body).await, NOT_JSON, "{body}");
    }
    // An array has no members. This is a text body without fields.
    for body in [format!("[{{\"key\": \"{TOKEN}\"}}]"), r#"{"command": "PLACE"}"#.to_owned()] {
        let response = found(&body).await;
        assert_eq!(response.status(), 401, "{body}");
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), RejectionKind::Missing, "{body}");
    }
}
