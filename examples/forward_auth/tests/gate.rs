//! The gate's own answers, without a proxy.

use std::net::{Ipv4Addr, SocketAddr};

use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::response::Response;
use http::request::Builder;
use tower::ServiceExt as _;

use super::*;
use crate::options::Options;
use crate::proxy::Proxy;

/// Returns the answer to a request of a proxy with this address.
async fn ask(proxy: Proxy, from: [u8; 4], request: Builder) -> Response {
    let mut request = request.body(Body::empty()).unwrap();
    request.extensions_mut().insert(ConnectInfo(SocketAddr::from((Ipv4Addr::from(from), 40_000))));
    setup::app(&Options::new(proxy)).oneshot(request).await.unwrap()
}

const LOCAL: [u8; 4] = [127, 0, 0, 1];

/// Returns a request of this proxy about an original request.
fn about(proxy: Proxy, method: &str, target: &str) -> Builder {
    let (method_field, target_field) = match proxy {
        Proxy::Nginx => ("x-original-method", "x-original-uri"),
        Proxy::Caddy | Proxy::Traefik => ("x-forwarded-method", "x-forwarded-uri"),
        Proxy::Envoy => return request(method, target, EVE),
    };
    request("GET", "/", EVE).header(method_field, method).header(target_field, target)
}

const ALL: [Proxy; 4] = [Proxy::Nginx, Proxy::Caddy, Proxy::Traefik, Proxy::Envoy];

#[tokio::test]
async fn each_convention_names_the_original_request() {
    for proxy in ALL {
        let response = ask(proxy, LOCAL, about(proxy, "GET", "/v1/a?b")).await;
        assert_eq!(response.status(), 200, "{proxy:?}");
        assert_eq!(response.headers()["x-auth-subject"], "eve@api.test");
        let response = ask(proxy, LOCAL, about(proxy, "POST", "/v1/orders")).await;
        assert_eq!(response.status(), 403, "{proxy:?}");
        assert!(!response.headers().contains_key("x-auth-subject"));
    }
}

#[tokio::test]
async fn missing_or_malformed_original_request_is_rejected() {
    for proxy in [Proxy::Nginx, Proxy::Caddy, Proxy::Traefik] {
        let names = about(proxy, "GET", "/v1/a");
        let names: Vec<_> = names.headers_ref().unwrap().keys().map(http::HeaderName::as_str).collect();
        let (method, target) = (names[1], names[2]);
        let get = || request("GET", "/v1/a", EVE);
        for (case, request) in [
            ("none", get()),
            ("no target", get().header(method, "GET")),
            ("no method", get().header(target, "/v1/a")),
            ("two targets", get().header(method, "GET").header(target, "/v1/a").header(target, "/v1/a")),
            ("two methods", get().header(method, "GET").header(method, "GET").header(target, "/v1/a")),
            ("a list of methods", get().header(method, "GET, POST").header(target, "/v1/a")),
            ("an empty method", get().header(method, "").header(target, "/v1/a")),
            ("an empty target", get().header(method, "GET").header(target, "")),
            ("no path", get().header(method, "GET").header(target, "http://api.test/v1/a")),
            ("not ASCII", get().header(method, "GET").header(target, &b"/v1/\xff"[..])),
        ] {
            let response = ask(proxy, LOCAL, request).await;
            let status = match proxy {
                Proxy::Nginx => response.headers()["x-auth-status"].to_str().unwrap().to_owned(),
                _ => response.status().as_u16().to_string(),
            };
            assert_eq!((status.as_str(), response.status().is_success()), ("400", false), "{proxy:?}: {case}");
        }
    }
    // The fields of another convention do not count.
    let other = about(Proxy::Caddy, "GET", "/v1/a");
    assert_eq!(ask(Proxy::Nginx, LOCAL, other).await.headers()["x-auth-status"], "400");
    let other = about(Proxy::Nginx, "GET", "/v1/a");
    assert_eq!(ask(Proxy::Traefik, LOCAL, other).await.status(), 400);
}

#[tokio::test]
async fn peer_outside_of_the_trusted_networks_is_rejected() {
    for proxy in ALL {
        let response = ask(proxy, [127, 0, 0, 2], about(proxy, "GET", "/v1/a")).await;
        assert_eq!(response.status(), 403, "{proxy:?}");
        assert!(!response.headers().contains_key("x-auth-subject"));
    }
}

/// Rejections of these protocols have status 200, which a proxy would take for an admission.
#[tokio::test]
async fn no_content_type_turns_a_rejection_into_an_admission() {
    let types = ["application/grpc", "application/grpc-web", "application/grpc-web-text", "application/connect+json"];
    for proxy in ALL {
        for content_type in types {
            let request = about(proxy, "POST", "/v1/orders").header("content-type", content_type);
            let response = ask(proxy, LOCAL, request).await;
            assert_eq!(response.status(), 403, "{proxy:?}: {content_type}");
            assert!(!response.headers().contains_key("grpc-status"));
        }
    }
}

#[tokio::test]
async fn nginx_gets_status_and_body_in_fields() {
    let response = ask(Proxy::Nginx, LOCAL, request("GET", "/", "Bearer tg_guess").header("x-original-method", "GET"));
    assert_eq!(response.await.headers()["x-auth-status"], "400");
    let about = |method| {
        let request = request("GET", "/", "Bearer tg_guess").header("x-original-uri", "/v1/a");
        request.header("x-original-method", method)
    };
    let response = ask(Proxy::Nginx, LOCAL, about("GET")).await;
    assert_eq!((response.status().as_u16(), &response.headers()["x-auth-status"]), (403, &"401".parse().unwrap()));
    let body = response.headers()["x-auth-body"].to_str().unwrap();
    assert!(body.starts_with('{') && body.contains(r#""status":401"#), "{body}");
    assert_eq!(response.headers()["www-authenticate"], r#"Bearer realm="api", error="invalid_token""#);
    assert_eq!(to_bytes(response.into_body(), 100).await.unwrap(), "");
    assert!(!ask(Proxy::Nginx, LOCAL, about("HEAD")).await.headers().contains_key("x-auth-body"));
}

/// The request of the proxy is a `GET`, and its response is complete.
#[tokio::test]
async fn rejection_of_head_is_a_complete_response_to_get() {
    for proxy in [Proxy::Caddy, Proxy::Traefik] {
        let request = about(proxy, "HEAD", "/unknown");
        assert_eq!(ask(proxy, LOCAL, request).await.headers().get("content-length"), None);
        let gate = setup::Gate::start(setup::app(&Options::new(proxy)));
        let response = setup::send(gate.addr, Ipv4Addr::LOCALHOST, about(proxy, "HEAD", "/unknown"), "").await;
        assert_eq!((response.status.as_u16(), response.field("content-length")), (404, "0"));
        let guess = about(proxy, "HEAD", "/v1/a").header("authorization", "Bearer tg_guess");
        let response = setup::send(gate.addr, Ipv4Addr::LOCALHOST, guess, "").await;
        assert_eq!((response.status.as_u16(), response.field("content-length")), (400, "0"));
    }
}

/// Traefik sends the host of the gate as `Host`.
#[tokio::test]
async fn traefik_names_the_original_host() {
    let front = crate::proxy::Front::new(Proxy::Traefik, ["127.0.0.1"].into_iter()).unwrap();
    let host = |request: axum::extract::Request| async move {
        let host = tollgate::RequestHead::of(&request).host().unwrap().to_owned();
        let mut response = crate::proxy::Admitted::response();
        response.headers_mut().insert("x-host", host.parse().unwrap());
        response
    };
    let layer = axum::middleware::from_fn_with_state(front, crate::proxy::check_original);
    let app = axum::Router::new().fallback(host).layer(layer);
    let request =
        about(Proxy::Traefik, "GET", "/v1/a").header("host", "gate").header("x-forwarded-host", "api.test:443");
    let mut request = request.body(Body::empty()).unwrap();
    request.extensions_mut().insert(ConnectInfo(SocketAddr::from((LOCAL, 40_000))));
    assert_eq!(app.oneshot(request).await.unwrap().headers()["x-host"], "api.test");
}
