//! The gate around axum routers and handlers.

use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{any, get, post};
use http::{Request, Response, StatusCode};
use tollgate::TokenDigest;
use tollgate::limit::RateLimits;
use tollgate::respond::Respond as _;
use tollgate::{
    AuthLayer, Authenticated, Charge, CurrentGrant, Grant, Limit, MemoryStore, ProblemDetails, Quota, RateLimitHeaders,
    Rejection, Scopes,
};
use tower::ServiceExt;

use crate::kit::{Hands, TOKEN, field, json, text};

#[derive(Debug)]
struct User {
    name: &'static str,
}

fn tokens() -> MemoryStore<User> {
    MemoryStore::from_iter([(
        TokenDigest::of(TOKEN),
        Grant::new("alice", User { name: "Alice" }).with_scopes(["trade"]).unwrap(),
    )])
}

async fn private(caller: Authenticated<User>) -> String {
    format!("hello, {}", caller.principal().name)
}

async fn public(caller: Option<Authenticated<User>>) -> String {
    format!("hello, {}", caller.map_or("guest", |caller| caller.principal().name))
}

async fn ask(app: &Router, method: &str, path: &str, token: Option<&str>) -> axum::response::Response {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn handlers_receive_the_caller() {
    let gate = AuthLayer::new(tokens());
    let app = Router::new()
        .route("/private", get(private).route_layer(gate.clone()))
        .route("/public", get(public).route_layer(gate.clone().allow_anonymous()))
        .route("/orders", post(private).route_layer((gate.clone(), gate.require_scopes(["trade"]).unwrap())))
        .route("/admin", post(private).route_layer((gate.clone(), gate.require_scopes(["admin"]).unwrap())));
    assert_eq!(text(ask(&app, "GET", "/private", Some(TOKEN)).await).await, "hello, Alice");
    assert_eq!(ask(&app, "GET", "/private", None).await.status(), 401);
    assert_eq!(text(ask(&app, "GET", "/public", Some(TOKEN)).await).await, "hello, Alice");
    assert_eq!(text(ask(&app, "GET", "/public", None).await).await, "hello, guest");
    assert_eq!(ask(&app, "GET", "/public", Some("unknown")).await.status(), 401);
    assert_eq!(text(ask(&app, "POST", "/orders", Some(TOKEN)).await).await, "hello, Alice");
    assert_eq!(ask(&app, "POST", "/admin", Some(TOKEN)).await.status(), 403);
}

#[tokio::test]
async fn a_missing_gate_is_named_in_the_error() {
    let app = Router::new()
        .route("/private", get(private))
        .route("/public", get(public))
        .route("/type", get(|_: Authenticated<String>| async {}).route_layer(AuthLayer::new(tokens())));
    for (path, hint) in [
        ("/private", "Perhaps you forgot to add `AuthLayer`"),
        ("/public", "Perhaps you forgot to add `AuthLayer`"),
        ("/type", "of another type"),
    ] {
        let response = ask(&app, "GET", path, Some(TOKEN)).await;
        assert_eq!(response.status(), 500);
        let detail = json(response).await["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(hint), "{path}: {detail}");
    }
}

#[tokio::test]
async fn preflights_reach_only_handlers_with_an_optional_caller() {
    let gate = AuthLayer::new(tokens());
    let app = Router::new().route("/private", any(private)).route("/public", any(public)).layer(gate);
    let preflight = |path: &str| {
        let request =
            Request::options(path).header("origin", "https://x").header("access-control-request-method", "GET");
        app.clone().oneshot(request.body(Body::empty()).unwrap())
    };
    // A handler that needs a caller is never called without one, whatever passed the gate.
    assert_eq!(preflight("/private").await.unwrap().status(), 401);
    assert_eq!(text(preflight("/public").await.unwrap()).await, "hello, guest");
}

/// Checks that an extractor's challenge has the gate's parameters.
#[tokio::test]
async fn extractors_send_the_challenge_of_the_gate() {
    let gate = AuthLayer::new(tokens()).with_realm("trading").unwrap();
    let gate = gate.with_resource_metadata("https://api.example/.well-known/oauth-protected-resource").unwrap();
    let app = Router::new().route("/", get(private)).layer(gate.allow_anonymous());
    let response = ask(&app, "GET", "/", None).await;
    assert_eq!(response.status(), 401);
    let challenge =
        r#"Bearer realm="trading", resource_metadata="https://api.example/.well-known/oauth-protected-resource""#;
    assert_eq!(field(response.headers(), "www-authenticate"), Some(challenge));
    assert_eq!(ask(&app, "GET", "/", Some(TOKEN)).await.status(), 200);
}

#[tokio::test]
async fn handlers_can_be_tested_without_a_gate() {
    let caller = Authenticated::new(Grant::new("bob", User { name: "Bob" }));
    assert_eq!(private(caller).await, "hello, Bob");

    let app: Router = Router::new().route("/", get(private));
    let mut request = Request::new(Body::empty());
    request.extensions_mut().insert(CurrentGrant::new(Grant::new("bob", User { name: "Bob" })));
    assert_eq!(text(app.oneshot(request).await.unwrap()).await, "hello, Bob");
}

#[tokio::test]
async fn handlers_charge_the_bucket_of_the_gate() {
    #[derive(Clone)]
    struct Service {
        limits: RateLimits,
    }
    async fn job(State(service): State<Service>, caller: Authenticated<User>) -> String {
        let before = caller.decisions().next().unwrap().remaining();
        let steps = (0..10).take_while(|_| service.limits.charge(&caller.current(), Charge::Units(1)).is_admitted());
        format!("{before} left, {} steps", steps.count())
    }
    let limits = RateLimits::new(Quota::per_hour(5).with_burst(5));
    let app = Router::new()
        .route("/", get(job))
        .layer(AuthLayer::new(tokens()).with_rate_limit(limits.clone()))
        .with_state(Service { limits });
    assert_eq!(text(ask(&app, "GET", "/", Some(TOKEN)).await).await, "4 left, 4 steps");
    assert_eq!(ask(&app, "GET", "/", Some(TOKEN)).await.status(), 429);
}

#[tokio::test]
async fn rejections_are_responses() {
    async fn handler() -> Result<&'static str, Rejection> {
        Err(Rejection::insufficient_scope(Scopes::new(["admin"]).unwrap()))
    }
    let response = handler().await.into_response();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(
        field(response.headers(), "www-authenticate"),
        Some(r#"Bearer realm="api", error="insufficient_scope", scope="admin""#)
    );
    assert_eq!(field(response.headers(), "content-type"), Some("application/problem+json"));
    assert!(response.extensions().get::<Rejection>().is_some());
}

/// Checks that the extractor reads the request and rejects gRPC requests with gRPC errors.
#[tokio::test]
async fn extractors_reject_grpc_requests_with_a_grpc_status() {
    let app = Router::new().route("/", get(private)).route("/public", get(public));
    for path in ["/", "/public"] {
        let request = Request::get(path).header("content-type", "application/grpc").body(Body::empty());
        let response = app.clone().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(field(response.headers(), "grpc-status"), Some("13"), "no gate");
    }
}

#[tokio::test]
async fn layers_have_nameable_types() {
    struct App {
        gate: AuthLayer<MemoryStore<User>, RateLimits>,
    }
    fn gate() -> AuthLayer<MemoryStore<User>, RateLimits> {
        AuthLayer::new(tokens()).with_rate_limit(RateLimits::new(Quota::per_minute(180).with_burst(20)))
    }
    let app = App { gate: gate() };
    let router = Router::<()>::new().route("/", get(private)).layer(app.gate.clone());
    assert_eq!(ask(&router, "GET", "/", Some(TOKEN)).await.status(), 200);
    let rejected: axum::response::Response = app.gate.reject(Rejection::insufficient_scope(Scopes::default()));
    assert_eq!(rejected.status(), 403);
}

/// Handlers that charge the gate's limit and return the rejection as their error, or write it.
#[tokio::test]
async fn a_rejection_by_a_handler_is_in_the_rate_limit_fields() {
    async fn export(State(limits): State<RateLimits>, caller: Authenticated<User>) -> Result<(), Rejection> {
        limits.charge(&caller.current(), Charge::Units(2)).into_result()?;
        limits.charge(&caller.current(), Charge::Units(5)).into_result()?;
        Ok(())
    }
    async fn write(limits: State<RateLimits>, caller: Authenticated<User>) -> Result<(), Response<Body>> {
        export(limits, caller).await.map_err(|rejection| ProblemDetails.reject(rejection))
    }
    for (dialect, name, expected) in [
        (RateLimitHeaders::Draft11, "ratelimit", r#""default";r=0;t=3"#),
        (RateLimitHeaders::Draft07, "ratelimit", "limit=5, remaining=0, reset=3"),
        (RateLimitHeaders::XDelta, "x-ratelimit-reset", "3"),
        (RateLimitHeaders::XEpoch, "x-ratelimit-reset", "1003"),
    ] {
        for handler in [get(export), get(write)] {
            let limits = Hands::default().limits(Quota::per_minute(60).with_burst(5));
            let gate = AuthLayer::new(tokens()).with_wall_clock(|| UNIX_EPOCH + Duration::from_secs(1_000));
            let gate = gate.with_rate_limit_headers(dialect).with_rate_limit(limits.clone());
            let app = Router::new().route("/export", handler).layer(gate).with_state(limits);
            let response = ask(&app, "GET", "/export", Some(TOKEN)).await;
            assert_eq!(response.status(), 429, "{dialect:?}");
            assert_eq!(field(response.headers(), "retry-after"), Some("3"), "{dialect:?}");
            assert_eq!(field(response.headers(), name), Some(expected), "{dialect:?}");
        }
    }
}

/// The layer that is added last runs first.
#[tokio::test]
async fn a_scope_that_is_checked_first_spares_the_limit_of_the_route() {
    let gate = AuthLayer::new(tokens());
    let scope = || gate.require_scopes(["admin"]).unwrap();
    for scope_is_first in [true, false] {
        let limits = RateLimits::new(Limit::new("orders", Quota::per_hour(5)).unwrap());
        let limit = gate.route_rate_limit(limits.clone());
        let orders = match scope_is_first {
            true => post(private).route_layer(limit).route_layer(scope()),
            false => post(private).route_layer(scope()).route_layer(limit),
        };
        let app = Router::new().route("/orders", orders).layer(gate.clone());
        assert_eq!(ask(&app, "POST", "/orders", Some(TOKEN)).await.status(), 403);
        let left = limits.peek(&CurrentGrant::new(Grant::new("alice", ()))).remaining();
        assert_eq!(left, if scope_is_first { 5 } else { 4 });
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_behind_a_gate_are_charged() {
    let gate = AuthLayer::new(tokens()).with_rate_limit(RateLimits::new(Quota::per_hour(2)));
    let app = Router::new().route("/", get(private)).layer(gate);
    for (method, path, status) in [("GET", "/unknown", 404), ("POST", "/", 405), ("GET", "/", 429)] {
        assert_eq!(ask(&app, method, path, Some(TOKEN)).await.status(), status, "{method} {path}");
    }
}
