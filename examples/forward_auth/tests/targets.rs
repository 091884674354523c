//! The gate checks the original method and target, and not those that a client writes into fields.

use std::net::Ipv4Addr;

use axum::Router;
use axum::http::StatusCode;
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::proxy::Proxy;

with_each_proxy! {
    original_method_and_target_are_checked
    service_gets_the_target_that_was_checked
    ambiguous_targets_never_reach_the_service
    target_that_is_not_ascii_has_one_form
    contents_reach_the_service
    contents_do_not_reach_the_gate
}

async fn original_method_and_target_are_checked(proxy: Proxy) {
    let setup = Setup::start(proxy);
    for (method, target, authorization, expected) in [
        ("GET", "/v1/orders", EVE, 200),
        ("HEAD", "/v1/orders", EVE, 200),
        ("POST", "/v1/orders", EVE, 403),
        ("POST", "/v1/orders", ALICE, 200),
        ("PUT", "/v1/orders", ALICE, 405),
        ("POST", "/v1/prices", ALICE, 405),
        ("GET", "/", ALICE, 404),
        ("GET", "/v1", ALICE, 404),
        ("GET", "/gate", ALICE, 404),
        ("GET", "/admin", "", 401),
    ] {
        let forged = request(method, target, authorization)
            .header("x-original-method", "GET")
            .header("x-original-uri", "/v1/orders")
            .header("x-forwarded-method", "GET")
            .header("x-forwarded-uri", "/v1/orders")
            .header("x-forwarded-host", "other.test");
        let response = setup.send(forged).await;
        assert_eq!(response.status, expected, "{method} {target} {authorization}: {response:?}");
    }
}

async fn service_gets_the_target_that_was_checked(proxy: Proxy) {
    let setup = Setup::start(proxy);
    for target in ["/v1/a", "/v1/a/", "/v1/a%20b%40c?d=/../e//%2f", "/v1/orders?"] {
        let response = setup.send(request("GET", target, EVE)).await;
        // The client of this test sends no empty query.
        let seen = response.seen();
        assert_eq!(seen["target"].as_str().unwrap().trim_end_matches('?'), target.trim_end_matches('?'));
    }
    // The host of an absolute target changes nothing about its path.
    let (status, response) = raw(&setup, "GET http://127.0.0.1/v1/a?b=1 HTTP/1.1", "127.0.0.1").await;
    assert!(status == 200 && response.contains(r#""target": "/v1/a?b=1""#), "{response}");
    let (status, response) = raw(&setup, "POST http://127.0.0.1/v1/orders HTTP/1.1", "127.0.0.1/v1/a?").await;
    assert!(status >= 400, "{response}");
}

async fn ambiguous_targets_never_reach_the_service(proxy: Proxy) {
    let setup = Setup::start(proxy);
    for target in [
        "/v1/../admin",
        "/v1/a/../../admin",
        "/v1/./orders",
        "//v1/orders",
        "/v1//orders",
        "/v1/%2e%2e/admin",
        "/v1/a%2f..%2f..%2fadmin",
        "/v1/%6frders",
        "/v1/orders;a=b",
        "/v1/orders%00",
        "/v1/orders%3fa",
        "/v1/%c0%ae%c0%ae/admin",
        "/v1/orders#a",
        "/v1/a\\..\\admin",
        "*",
    ] {
        let (status, response) = raw(&setup, &format!("GET {target} HTTP/1.1"), "127.0.0.1").await;
        let is_seen = response.contains(r#""target""#);
        assert!(!is_seen && (400..500).contains(&status), "{target}: {response}");
    }
}

/// Caddy sends the service the encoded form, which is the form that the gate has checked. nginx sends the bytes.
async fn target_that_is_not_ascii_has_one_form(proxy: Proxy) {
    let setup = Setup::start(proxy);
    let (status, response) = raw(&setup, "GET /v1/\u{e9} HTTP/1.1", "127.0.0.1").await;
    match proxy {
        Proxy::Caddy => assert!(status == 200 && response.contains(r#""target": "/v1/%C3%A9""#), "{response}"),
        _ => assert!(status == 400 && !response.contains(r#""target""#), "{response}"),
    }
}

async fn contents_reach_the_service(proxy: Proxy) {
    let setup = Setup::start(proxy);
    let content = "x".repeat(100_000);
    let response = setup.send_from(Ipv4Addr::LOCALHOST, request("POST", "/v1/orders", ALICE), &content).await;
    assert_eq!(response.seen()["body"], content);
    let mut head = String::from("POST /v1/orders HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n");
    head += &format!("authorization: {ALICE}\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    let (status, response) = exchange(&setup, &head).await;
    assert!(status == 200 && response.contains(r#""body": "abcde""#), "{response}");
    // The burst of 20 is used.
    let response = setup.send_from(Ipv4Addr::LOCALHOST, request("POST", "/v1/orders", ALICE), &content).await;
    assert_eq!(response.status, 429);
}

async fn contents_do_not_reach_the_gate(proxy: Proxy) {
    let gate = Router::new().fallback(|content: Bytes| async move {
        let status = if content.is_empty() { StatusCode::OK } else { StatusCode::IM_A_TEAPOT };
        (status, [("x-auth-subject", "alice"), ("x-auth-scopes", ""), ("x-auth-remaining", "1")])
    });
    let setup = Setup::with(proxy, gate, None);
    let response = setup.send_from(Ipv4Addr::LOCALHOST, request("POST", "/v1/orders", ""), "content").await;
    assert_eq!(response.seen()["body"], "content");
}

/// Sends a request line as it is. Returns the status and the whole response.
async fn raw(setup: &Setup, line: &str, host: &str) -> (u16, String) {
    exchange(setup, &format!("{line}\r\nhost: {host}\r\nauthorization: {ALICE}\r\nconnection: close\r\n\r\n")).await
}

async fn exchange(setup: &Setup, text: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(setup.proxy.addr).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.unwrap();
    let response = String::from_utf8_lossy(&response).into_owned();
    (response.split(' ').nth(1).unwrap().parse().unwrap(), response)
}
