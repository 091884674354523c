//! Gates for callers that something else has authenticated, and the same gate twice.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use http::{Request, Response};
use tollgate::limit::{FailureThrottle, RateLimits};
use tollgate::{AuthLayer, Authenticated, Grant, Limit, Quota, Rejection, RequestHead};
use tower::ServiceExt;

use crate::kit::{TOKEN, field, json, memory};

#[derive(Clone)]
struct Session {
    user: &'static str,
    is_pro: bool,
}

fn grant(session: &Session) -> Grant<Session> {
    let grant = Grant::new(session.user, session.clone()).with_scopes(["read"]).unwrap();
    if session.is_pro { grant.with_quota(Quota::per_hour(3)) } else { grant }
}

async fn send(app: &Router, path: &str, session: Option<(&'static str, bool)>) -> Response<Body> {
    let mut request = Request::get(path).body(Body::empty()).unwrap();
    if let Some((user, is_pro)) = session {
        request.extensions_mut().insert(Session { user, is_pro });
    }
    app.clone().oneshot(request).await.unwrap()
}

#[tokio::test]
async fn callers_of_a_session_have_a_bucket_a_quota_and_scopes() {
    let limit = Limit::from(Quota::per_hour(1)).with_anonymous(Quota::per_hour(2));
    let gate = AuthLayer::identified_by(|head| head.extensions.get::<Session>().map(grant))
        .with_rate_limit(RateLimits::new(limit).with_clock(|| Duration::ZERO));
    let app: Router = Router::new()
        .route(
            "/",
            get(|caller: Option<Authenticated<Session>>| async move {
                caller.map_or("anonymous", |caller| caller.principal().user)
            }),
        )
        .route("/private", get(|_: Authenticated<Session>| async {}))
        .route("/write", get(|| async {}).route_layer(gate.require_scopes(["write"]).unwrap()))
        .layer(gate);
    for (session, status) in [
        (Some(("alice", false)), 200),
        (Some(("alice", false)), 429),
        (Some(("bob", true)), 200),
        (Some(("bob", true)), 200),
        (None, 200),
    ] {
        assert_eq!(send(&app, "/", session).await.status(), status, "{:?}", session.map(|(user, _)| user));
    }
    let private = send(&app, "/private", Some(("carol", false))).await;
    assert_eq!(field(private.headers(), "cache-control"), Some("private"), "a session has no `Authorization`");
    assert_eq!(send(&app, "/write", Some(("bob", true))).await.status(), 403);
    assert_eq!(send(&app, "/private", None).await.status(), 401);
    assert_eq!(send(&app, "/", None).await.status(), 429, "two anonymous requests in an hour");
}

#[tokio::test]
async fn an_expired_grant_is_rejected() {
    let gate = AuthLayer::identified_by(|_| Some(Grant::new("alice", ()).with_expiry(std::time::UNIX_EPOCH)));
    let app: Router = Router::new().route("/", get(|| async {})).layer(gate);
    assert_eq!(send(&app, "/", None).await.status(), 401);
}

async fn with_token(app: &Router, path: &str) -> Response<Body> {
    let request = Request::get(path).header("authorization", format!("Bearer {TOKEN}"));
    app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn the_same_gate_on_a_router_and_its_route_is_an_error() {
    let limits = RateLimits::new(Quota::per_hour(100));
    let gate = AuthLayer::new(memory()).allow_anonymous().with_rate_limit(limits);
    // Changes of the gate do not change its limiter.
    for inner in [gate.clone(), gate.clone().with_realm("other").unwrap()] {
        let app: Router = Router::new()
            .route("/twice", get(|| async {}).route_layer(inner))
            .route("/once", get(|| async {}))
            .layer(gate.clone());
        assert_eq!(with_token(&app, "/once").await.status(), 200);
        let response = with_token(&app, "/twice").await;
        assert_eq!(response.status(), 500);
        let detail = json(response).await["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with("The same gate has already charged this request."), "{detail}");
    }
    let app: Router = Router::new().route("/", get(|| async {}).route_layer(gate.clone())).layer(gate);
    assert_eq!(send(&app, "/", None).await.status(), 500, "anonymous");
}

/// The inner gate finds no token, because the outer one has removed it.
#[tokio::test]
async fn the_same_gate_twice_is_an_error_if_it_removes_credentials() {
    let limits = RateLimits::new(Quota::per_hour(100));
    let gate = AuthLayer::new(memory()).allow_anonymous().with_credentials_removed().with_rate_limit(limits);
    let app: Router = Router::new().route("/", get(|| async {}).route_layer(gate.clone())).layer(gate);
    assert_eq!(with_token(&app, "/").await.status(), 500);
}

#[tokio::test]
async fn different_gates_and_gates_without_a_limit_may_be_nested() {
    let limited = || AuthLayer::new(memory()).with_rate_limit(RateLimits::new(Quota::per_hour(100)));
    let app: Router = Router::new().route("/", get(|| async {}).route_layer(limited())).layer(limited());
    assert_eq!(with_token(&app, "/").await.status(), 200);
    let gate = AuthLayer::new(memory()).allow_anonymous();
    let app: Router = Router::new().route("/", get(|| async {}).route_layer(gate.clone())).layer(gate);
    assert_eq!(with_token(&app, "/").await.status(), 200);
    assert_eq!(send(&app, "/", None).await.status(), 200);
}

/// Cost functions see the route of axum, on a router, on a route and behind `nest`.
#[tokio::test]
async fn costs_see_the_matched_path() {
    fn cost(head: &RequestHead<'_>) -> u32 {
        match head.extensions.get::<axum::extract::MatchedPath>().map(axum::extract::MatchedPath::as_str) {
            Some("/orders/{id}" | "/v1/orders/{id}") => 10,
            _ => 1,
        }
    }
    let gate = || {
        let limit = Limit::from(Quota::per_hour(100)).with_cost(cost);
        AuthLayer::new(memory()).with_rate_limit(RateLimits::new(limit).with_clock(|| Duration::ZERO))
    };
    let orders = || Router::<()>::new().route("/orders/{id}", get(|| async {}));
    for (app, path) in [
        (orders().layer(gate()), "/orders/17"),
        (orders().route_layer(gate()), "/orders/17"),
        (Router::new().nest("/v1", orders().layer(gate())), "/v1/orders/17"),
        (Router::new().nest("/v1", orders()).layer(gate()), "/v1/orders/17"),
    ] {
        let response = with_token(&app, path).await;
        assert_eq!(field(response.headers(), "ratelimit"), Some(r#""default";r=90;t=36"#), "{path}");
    }
}

async fn sign_in(State(failures): State<FailureThrottle>, request: axum::extract::Request) -> Response<Body> {
    let attempt = match failures.begin_attempt(&RequestHead::of(&request)) {
        Ok(attempt) => attempt,
        Err(rejection) => return rejection.into_response(),
    };
    tokio::task::yield_now().await;
    match request.uri().query() {
        Some("right") => attempt.succeed(),
        Some("wrong") => attempt.fail(),
        _ => drop(attempt),
    }
    Response::new(Body::empty())
}

#[tokio::test]
async fn a_sign_in_route_counts_failures_and_dropped_attempts() {
    let throttle = || FailureThrottle::new(Quota::per_hour(3), |_| Some(())).with_clock(|| Duration::ZERO);
    for query in ["wrong", "dropped"] {
        let app = Router::new().route("/", post(sign_in)).with_state(throttle());
        let ask = async |query: &str| {
            let request = Request::post(format!("/?{query}")).body(Body::empty()).unwrap();
            app.clone().oneshot(request).await.unwrap()
        };
        for _ in 0..10 {
            assert_eq!(ask("right").await.status(), 200, "successes are not counted");
        }
        for status in [200, 200, 200, 429, 429] {
            assert_eq!(ask(query).await.status(), status, "{query}");
        }
        let response = ask("right").await;
        assert_eq!(response.status(), 429);
        assert!(field(response.headers(), "retry-after").is_some());
        assert!(response.extensions().get::<Rejection>().is_some());
    }
}

/// Attempts that begin before others end have their room reserved.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_attempts_never_exceed_the_quota_of_failures() {
    let failures = FailureThrottle::new(Quota::per_hour(20), |_| Some(())).with_clock(|| Duration::ZERO);
    let app = Router::new().route("/", post(sign_in)).with_state(failures);
    let ask = |_| {
        let app = app.clone();
        tokio::spawn(async move {
            app.oneshot(Request::post("/?wrong").body(Body::empty()).unwrap()).await.unwrap().status().as_u16()
        })
    };
    let mut admitted = 0;
    for task in (0..500).map(ask).collect::<Vec<_>>() {
        admitted += usize::from(task.await.unwrap() == 200);
    }
    assert_eq!(admitted, 20);
}
