//! The service gets the caller, and nothing that a client has written in its place.

use std::net::Ipv4Addr;

use super::*;
use crate::proxy::Proxy;

const ALICE_ENCODED: &str = "%C3%85lice%2C%20100%25";

with_each_proxy! {
    service_gets_the_caller_and_not_the_token
    fields_of_the_caller_from_outside_are_removed
    preflight_reaches_the_service_without_a_caller
    failures_are_counted_by_the_address_of_the_client
}

async fn service_gets_the_caller_and_not_the_token(proxy: Proxy) {
    let setup = Setup::start(proxy);
    let response = setup.send(request("POST", "/v1/orders?dry=1", ALICE)).await;
    let seen = response.seen();
    assert_eq!((seen["method"].as_str(), seen["target"].as_str()), (Some("POST"), Some("/v1/orders?dry=1")));
    for (name, expected) in [
        ("x-auth-subject", ALICE_ENCODED),
        ("x-auth-scopes", "read trade"),
        ("x-auth-remaining", "10"),
        ("x-forwarded-for", "127.0.0.1"),
    ] {
        assert_eq!(response.seen_fields(name), [expected], "{name}");
    }
    assert!(response.seen_fields("authorization").is_empty(), "{response:?}");
    // The client gets the fields of the rate limit.
    assert_eq!(response.field("ratelimit"), r#""default";r=10;t=1"#);
    assert_eq!(response.field("ratelimit-policy"), r#""default";q=20;w=7"#);
}

async fn fields_of_the_caller_from_outside_are_removed(proxy: Proxy) {
    let setup = Setup::start(proxy);
    let separators =
        ["X-Auth-Subject", "x-auth-subject", "X_Auth_Subject", "X-Auth_Subject", "X.Auth.Subject", "x~auth!subject"];
    for name in separators {
        let response = setup.get("/v1/a", EVE, (name, "admin")).await;
        assert_eq!(response.seen_fields("x-auth-subject"), ["eve@api.test"], "{name}");
    }
    let forged = request("GET", "/v1/a", EVE)
        .header("x-auth-subject", "admin")
        .header("x-auth-subject", "root")
        .header("x-auth-scopes", "trade")
        .header("x_auth_scopes", "trade")
        .header("x-auth-remaining", "1000");
    let response = setup.send(forged).await;
    assert_eq!(response.seen_fields("x-auth-subject"), ["eve@api.test"]);
    assert_eq!(response.seen_fields("x-auth-scopes"), ["read"]);
    assert_eq!(response.seen_fields("x-auth-remaining"), ["13"]);
    // Services build links from these fields, or take them for the client.
    let forged = request("GET", "/v1/a", EVE)
        .header("x-forwarded-host", "evil.test")
        .header("forwarded", "for=192.0.2.1;host=evil.test")
        .header("x-real-ip", "192.0.2.1");
    let response = setup.send(forged).await;
    let seen = response.seen().to_string();
    assert!(!seen.contains("evil.test") && !seen.contains("192.0.2.1"), "{seen}");
    // Proxies remove fields that `Connection` lists.
    let fields =
        "close, X-Auth-Subject, X-Auth-Scopes, X-Original-URI, X-Forwarded-Uri, X-Forwarded-For, Authorization";
    let response = setup.get("/v1/a", EVE, ("connection", fields)).await;
    assert_eq!(response.seen_fields("x-auth-subject"), ["eve@api.test"]);
    assert_eq!(response.seen_fields("x-auth-scopes"), ["read"]);
}

async fn preflight_reaches_the_service_without_a_caller(proxy: Proxy) {
    let setup = Setup::start(proxy);
    let preflight = |target: &str| {
        let request = request("OPTIONS", target, EVE).header("origin", "https://app.test");
        request
            .header("access-control-request-method", "POST")
            .header("x-auth-subject", "admin")
            .header("x-auth-scopes", "trade")
    };
    let response = setup.send(preflight("/v1/orders")).await;
    assert_eq!(response.seen()["method"], "OPTIONS");
    for name in ["x-auth-subject", "x-auth-scopes", "x-auth-remaining", "authorization"] {
        assert!(response.seen_fields(name).is_empty(), "{name}: {response:?}");
    }
    // Only for paths with a route, and only for preflights.
    assert_eq!(setup.send(preflight("/admin")).await.status, 404);
    assert_eq!(setup.send(request("OPTIONS", "/v1/orders", EVE)).await.status, 405);
    assert_eq!(setup.send(request("OPTIONS", "/v1/orders", "")).await.status, 401);
}

async fn failures_are_counted_by_the_address_of_the_client(proxy: Proxy) {
    let setup = Setup::start(proxy);
    let (guesser, neighbour) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    let attempt = |at: u8| {
        let request = request("GET", "/v1/a", &format!("Bearer tg_guess{at}"));
        request.header("x-forwarded-for", format!("203.0.113.{at}")).header("x-real-ip", format!("203.0.113.{at}"))
    };
    let mut statuses = Vec::new();
    // More than enough, in case that the bucket refills on a slow machine.
    for at in 0..200 {
        let response = setup.send_from(guesser, attempt(at), "").await;
        statuses.push(response.status.as_u16());
        if response.status == 429 {
            assert_ne!(response.field("retry-after"), "");
            break;
        }
    }
    let (last, first) = statuses.split_last().unwrap();
    assert_eq!(
        (*last, first.len() >= 20, first.iter().all(|status| *status == 401)),
        (429, true, true),
        "{statuses:?}"
    );
    assert_eq!(setup.send_from(neighbour, attempt(0), "").await.status, 401);
    // Valid tokens of a store that answers immediately are never throttled.
    assert_eq!(setup.send_from(guesser, request("GET", "/v1/a", EVE), "").await.status, 200);
}
