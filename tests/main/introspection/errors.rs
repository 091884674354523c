//! Introspection errors, and what they concern.

use std::error::Error as _;

use http::{Response, StatusCode, header};
use serde_json::json;
use tokio::net::TcpListener;
use tollgate::StoreError;
use tollgate::store::contract::Contract;

use crate::kit::introspection::*;
use crate::kit::*;

#[tokio::test]
async fn an_unreachable_server_is_an_outage() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    Contract::new(store(address)).knows(TOKEN, "alice").check_outage().await;
    let error = fails(store(address), "down").await;
    assert!(!error.is_timeout() && error.source().is_some());
    assert_eq!(error.to_string(), "the introspection request failed");
}

#[tokio::test]
async fn malformed_responses_are_outages() {
    let active = |member: &str| format!(r#"{{"active":true,"sub":"alice",{member}}}"#);
    let mut bodies: Vec<String> = [
        "",
        " ",
        "null",
        "true",
        "[]",
        "\"CANARY\"",
        "{",
        "{}",
        "<html>CANARY</html>",
        "\u{feff}{\"active\":false}",
        r#"{"active":"true","sub":"CANARY"}"#,
        r#"{"active":1}"#,
        r#"{"active":null}"#,
        r#"{"Active":true,"sub":"alice"}"#,
        r#"{"active":true,"sub":"alice""#,
        r#"{"active":true,"sub":"alice"}x"#,
        r#"{"active":false,"active":true,"sub":"a"}"#,
        r#"{"active":true,"active":true,"sub":"a"}"#,
        r#"{"active":false,"active":false}"#,
        r#"{"active":false,"\u0061ctive":false}"#,
        r#"{"active":true}"#,
        r#"{"active":true,"sub":""}"#,
        r#"{"active":true,"sub":"alice","sub":"bob"}"#,
    ]
    .map(str::to_owned)
    .into();
    for name in ["sub", "client_id", "username", "jti", "iss"] {
        bodies.extend(
            ["null", "7", "[\"CANARY\"]", "{}", "\"\""].map(|v| format!(r#"{{"active":true,"{name}":{v},"x":0}}"#)),
        );
    }
    for wrong in ["null", "7", "[\"a\"]", "true", r#""a\tb""#, r#""CANARY\"""#, r#""a\\b""#, r#""é""#, r#""\u0000""#] {
        bodies.push(active(&format!("\"scope\":{wrong}")));
    }
    for name in ["exp", "nbf", "iat"] {
        for wrong in ["null", "-1", "-0.5", "\"4000000000\"", "true", "[]", "{}", "1e999", "-1e300", "NaN"] {
            bodies.push(active(&format!("\"{name}\":{wrong}")));
        }
    }
    for wrong in ["null", "7", "true", "\"CANARY\"", "[]"] {
        bodies.push(active(&format!("\"cnf\":{wrong}")));
    }
    for wrong in ["null", "7", "{}", "[7]", "[\"CANARY\",null]", "[[]]"] {
        bodies.push(active(&format!("\"aud\":{wrong}")));
    }
    for wrong in ["null", "7", "\"\"", "\"CANARY\"", "\"mac\"", "[\"Bearer\"]"] {
        bodies.push(active(&format!("\"token_type\":{wrong}")));
    }
    // Responses that repeat the token.
    bodies.push(format!(r#"{{"active":"{TOKEN}"}}"#));
    bodies.push(format!(r#"{{"active":true,"sub":"{TOKEN}"}}"#));
    bodies.push(active(&format!("\"scope\":\"{TOKEN}\\t\"")));
    for body in bodies {
        let sent = body.clone();
        fails(store(server(move |_| answer(sent.clone())).await.0), &body).await;
    }
    let (address, _) = server(|_| answer(&b"{\"active\":true,\"sub\":\"\xff\"}"[..])).await;
    fails(store(address), "no UTF-8").await;
}

#[tokio::test]
async fn wrong_statuses_and_media_types_are_outages() {
    let good = || json!({"active": true, "sub": "alice"}).to_string();
    for (types, is_json) in [
        (&["application/json"][..], true),
        (&["Application/JSON ; charset=utf-8"], true),
        (&["application/vnd.acme+json"], true),
        (&[], false),
        (&["text/json"], false),
        (&["text/html"], false),
        (&["application/+json"], false),
        (&["application/jsonp"], false),
        (&["application/token-introspection+jwt"], false),
        (&["application/json", "application/json"], false),
        (&["application/json", "text/html"], false),
    ] {
        let (address, _) = server(move |_| {
            let mut answer = Response::new(Body::new(good().into()));
            for value in types {
                answer.headers_mut().append(header::CONTENT_TYPE, value.parse().unwrap());
            }
            answer
        })
        .await;
        if is_json {
            assert!(ask(&store(address)).await.unwrap().is_some(), "{types:?}");
        } else {
            fails(store(address), &format!("{types:?}")).await;
        }
    }
    for status in [201, 202, 203, 204, 206, 304, 400, 401, 403, 404, 405, 429, 500, 502, 503] {
        let (address, _) = server(move |_| {
            let mut answer = answer(good());
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            answer
        })
        .await;
        let error = fails(store(address), &status.to_string()).await;
        assert_eq!(error.status().map(|status| status.as_u16()), Some(status));
        assert_eq!(error.is_credentials(), status == 401 || status == 403, "{status}");
        assert!(error.to_string().contains(&status.to_string()) && !error.is_timeout());
    }
}

/// Checks the table of the documentation.
#[tokio::test]
async fn errors_concern_the_store_or_one_token() {
    let about_the_token = [400, 402, 404, 409, 410, 413, 414, 422, 431, 451];
    let about_the_store = [201, 204, 301, 302, 401, 403, 405, 407, 408, 415, 429, 500, 501, 502, 503, 504];
    let statuses = about_the_token.map(|status| (status, true)).into_iter();
    for (status, concerns_token) in statuses.chain(about_the_store.map(|status| (status, false))) {
        let (address, _) = server(move |_| {
            let mut answer = answer(json!({"error": "invalid_request"}).to_string());
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            answer
        })
        .await;
        assert_eq!(fails(store(address), &status.to_string()).await.concerns_token(), concerns_token, "{status}");
    }
    for (body, concerns_token) in [
        (r#"{"active":true}"#, true),
        (r#"{"active":true,"sub":7}"#, true),
        (r#"{"active":true,"sub":"alice","exp":"tomorrow"}"#, true),
        (r#"{"active":true,"sub":"alice","sub":"bob"}"#, true),
        (r#"{"active":true,"sub":"alice","token_type":"mac"}"#, true),
        (r#"{"error":"invalid_token"}"#, true),
        ("[]", true),
        // Users may choose such a name or number.
        (r#" {"active":true,"sub":"alice","username":"\ud800"}"#, true),
        (r#"{"active":true,"sub":"alice","number":1e999}"#, true),
        (r#"{"active":true,"sub":"a name that is much longer than the limit allows"}"#, true),
        ("", false),
        ("Internal error", false),
        (r#"{"active":true,"sub":"#, false),
    ] {
        let (address, _) = server(move |_| answer(body)).await;
        let store = builder(address).with_max_answer(64).build().unwrap();
        assert_eq!(fails(store, body).await.concerns_token(), concerns_token, "{body}");
    }
    let (address, _) = server(|_| Response::new(Body::new("<html>Maintenance</html>".into()))).await;
    assert!(!fails(store(address), "HTML").await.concerns_token());

    let address = says(json!({"active": true, "sub": "alice"})).await.0;
    let rejecting = builder(address).with_principal(|_| Err::<(), _>("no such user"));
    assert!(fails(rejecting.build().unwrap(), "a principal").await.concerns_token());
    let failing = builder(address).with_principal(|_| Err::<(), _>(StoreError::new("the directory is down")));
    assert!(!fails(failing.build().unwrap(), "a directory").await.concerns_token());
    let wrapped = || std::io::Error::other(StoreError::new("the directory is down"));
    let failing = builder(address).with_principal(move |_| Err::<(), _>(wrapped()));
    assert!(!fails(failing.build().unwrap(), "a wrapped error").await.concerns_token());
}
