//! Clients get the status, the fields and the body of a rejection by the gate.

use std::net::Ipv4Addr;

use axum::{Router, middleware};

use super::setup::{Gate, app, send};
use super::*;
use crate::options::Options;
use crate::proxy::{Front, Proxy, check_original, problem};

with_each_proxy! {
    rejections_are_those_of_the_gate
    every_status_is_kept
}

async fn rejections_are_those_of_the_gate(proxy: Proxy) {
    let setup = Setup::start(proxy);
    // A gate that gets the requests as they are.
    let direct = Gate::start(app(&Options::new(Proxy::Envoy)));
    let mut kinds = Vec::new();
    for (method, target, authorization, content_type) in [
        ("GET", "/v1/a", "", "text/plain"),
        ("HEAD", "/v1/a", "", "text/plain"),
        ("GET", "/v1/a.html", "Bearer tg_guess", "text/plain"),
        ("GET", "/v1/a", "Bearer a, b", "text/plain"),
        ("POST", "/v1/orders", EVE, "application/json"),
        ("POST", "/v1/orders", "", "application/grpc"),
        ("POST", "/v1/orders", "", "application/connect+json"),
        ("POST", "/v1/orders", EVE, "application/json"),
        ("HEAD", "/v1/orders", "Bearer tg_guess", "application/grpc-web"),
        ("POST", "/v1/orders", EVE, "application/json"),
        ("GET", "/", ALICE, "text/plain"),
        ("PUT", "/v1/orders", ALICE, "text/plain"),
        ("GET", "/v1/../a", ALICE, "text/plain"),
    ] {
        let request = || request(method, target, authorization).header("content-type", content_type);
        let proxied = setup.send(request()).await;
        let expected = send(direct.addr, Ipv4Addr::LOCALHOST, request(), "").await;
        assert_eq!((proxied.status, &proxied.body), (expected.status, &expected.body), "{method} {target}");
        let names = ["www-authenticate", "retry-after", "ratelimit", "ratelimit-policy", "cache-control"];
        for name in names {
            assert_eq!(proxied.field(name), expected.field(name), "{method} {target} {name}");
        }
        if method != "HEAD" {
            assert_eq!(proxied.field("content-type"), "application/problem+json", "{method} {target}");
        }
        for (name, _) in &proxied.headers {
            assert!(!name.as_str().starts_with("x-auth-"), "{name}");
        }
        kinds.push(proxied.status.as_u16());
    }
    assert_eq!(kinds, [401, 401, 401, 400, 403, 401, 401, 403, 401, 429, 404, 405, 400]);
}

/// Also those that no request of the other test causes, such as 503 while a store is down.
async fn every_status_is_kept(proxy: Proxy) {
    let front = Front::new(proxy, ["127.0.0.1"].into_iter()).unwrap();
    let answer = |request: axum::extract::Request| async move {
        let status: u16 = request.uri().path()[1..].parse().unwrap();
        ([("retry-after", "7")], problem(status.try_into().unwrap(), "The store is down."))
    };
    let gate = Router::new().fallback(answer).layer(middleware::from_fn_with_state(front, check_original));
    let setup = Setup::with(proxy, gate, None);
    for status in [400, 401, 403, 404, 405, 429, 500, 503] {
        let response = setup.send(request("GET", &format!("/{status}"), "")).await;
        assert_eq!((response.status.as_u16(), response.field("retry-after")), (status, "7"));
        let body: serde_json::Value = serde_json::from_str(&response.body).unwrap();
        assert_eq!((&body["status"], body["detail"].as_str()), (&status.into(), Some("The store is down.")));
    }
    // A success that no route has marked is none, and nothing else is a decision.
    for status in [200, 204, 302] {
        assert_eq!(setup.send(request("GET", &format!("/{status}"), "")).await.status, 500, "{status}");
    }
}
