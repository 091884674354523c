//! Requests that do not count, by the status of their response: `Limit::with_refund_if`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path};
use axum::routing::get;
use http::{Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tollgate::limit::{AnonymousLimits, ClientIp, Refund};
use tollgate::{
    AuthLayer, Charge, CurrentGrant, Decision, Grant, Limit, Policy, Quota, RateLimitHeaders, Unauthenticated, Verdict,
};
use tower::{Layer, ServiceExt, service_fn};

use crate::kit::*;

const FIVE: Quota = Quota::one_per(Duration::from_secs(1)).with_burst(5);

fn limit(name: &str) -> Limit {
    Limit::new(name, FIVE).unwrap()
}

/// Returns a router whose responses have the status of the path.
fn statuses() -> Router {
    let respond = |Path(status): Path<u16>| async move { StatusCode::from_u16(status).unwrap() };
    Router::new().route("/{status}", get(respond))
}

async fn status(app: &Router, status: u16) -> Response<Body> {
    let request = with_token(TOKEN);
    let (mut head, body) = request.into_parts();
    head.uri = format!("/{status}").parse().unwrap();
    app.clone().oneshot(Request::from_parts(head, Body::new(body))).await.unwrap()
}

fn remaining(response: &Response<Body>) -> Vec<String> {
    values(response.headers(), "ratelimit")
}

#[tokio::test]
async fn response_with_such_a_status_refunds_its_request() {
    let limits = Hands::default().limits(limit("plan").with_refund_if(|status| status.is_server_error()));
    let app = statuses().layer(AuthLayer::new(memory()).with_rate_limit(limits));
    assert_eq!(remaining(&status(&app, 200).await), [r#""plan";r=4;t=1"#]);
    for _ in 0..10 {
        let failed = status(&app, 503).await;
        assert_eq!(failed.status(), 503);
        assert_eq!(remaining(&failed), [r#""plan";r=4;t=1"#], "as without the request");
    }
    for left in (0..4).rev() {
        assert_eq!(remaining(&status(&app, 404).await), [format!(r#""plan";r={left};t=1"#)]);
    }
    assert_eq!(status(&app, 503).await.status(), 429);
}

#[tokio::test]
async fn refund_affects_its_own_limit_only() {
    let hands = Hands::default();
    let limits = hands.limits(limit("plan").with_refund_if(|status| status.is_server_error()));
    let limits = limits.and(limit("day")).unwrap();
    let gate = AuthLayer::new(memory()).with_rate_limit(limits);
    let failures = hands.limits(limit("failures").with_refund_if(|status| status.is_success()));
    let app = statuses().route_layer(gate.route_rate_limit(failures)).layer(gate);
    let all = |left: [u32; 3]| {
        let item = |(name, left): (&str, u32)| format!(r#""{name}";r={left};t={}"#, u8::from(left < 5));
        vec![["plan", "day", "failures"].into_iter().zip(left).map(item).collect::<Vec<_>>().join(", ")]
    };
    let fields = async |code| {
        let mut items: Vec<_> =
            remaining(&status(&app, code).await).iter().flat_map(|line| line.split(", ")).map(str::to_owned).collect();
        items
            .sort_by_key(|item| ["\"plan\"", "\"day\"", "\"failures\""].iter().position(|name| item.starts_with(name)));
        vec![items.join(", ")]
    };
    assert_eq!(fields(200).await, all([4, 4, 5]));
    assert_eq!(fields(500).await, all([4, 3, 4]));
    assert_eq!(fields(200).await, all([3, 2, 4]));
}

#[tokio::test]
async fn limit_that_is_added_later_can_refund() {
    let failures = limit("failures").with_refund_if(|status| status.is_success());
    let limits = Hands::default().limits(limit("plan")).and(failures).unwrap();
    let app = statuses().layer(AuthLayer::new(memory()).with_rate_limit(limits));
    assert_eq!(remaining(&status(&app, 200).await).join(", "), r#""plan";r=4;t=1, "failures";r=5;t=0"#);
    assert_eq!(remaining(&status(&app, 404).await).join(", "), r#""plan";r=3;t=1, "failures";r=4;t=1"#);
}

#[tokio::test]
async fn only_failures_count_for_each_address() {
    let failures = limit("failures").with_refund_if(|status| status.is_success());
    let limits = AnonymousLimits::by_client_ip(failures, ClientIp::peer()).unwrap();
    let limits = limits.with_clock(Hands::default().clock());
    let app = statuses().layer(AuthLayer::anonymous().with_rate_limit(limits));
    let send = async |host: u8, path: &str| {
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([10, 0, 0, host], 1))));
        app.clone().oneshot(request).await.unwrap()
    };
    for _ in 0..20 {
        assert_eq!(remaining(&send(1, "/200").await), [r#""failures";r=5;t=0"#]);
    }
    for left in (0..5).rev() {
        assert_eq!(remaining(&send(1, "/401").await), [format!(r#""failures";r={left};t=1"#)]);
    }
    assert_eq!(send(1, "/200").await.status(), 429);
    assert_eq!(send(2, "/200").await.status(), 200);
}

#[tokio::test]
async fn concurrent_requests_count_until_their_response() {
    let limits = Hands::default().limits(limit("plan").with_refund_if(|status| status.is_server_error()));
    let (entered, release) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let respond = {
        let (entered, release) = (Arc::clone(&entered), Arc::clone(&release));
        move || {
            let (entered, release) = (Arc::clone(&entered), Arc::clone(&release));
            async move {
                entered.add_permits(1);
                release.acquire().await.unwrap().forget();
                StatusCode::BAD_GATEWAY
            }
        }
    };
    let app = Router::new().route("/{status}", get(respond)).layer(AuthLayer::new(memory()).with_rate_limit(limits));
    let mut pending = JoinSet::new();
    for _ in 0..5 {
        let app = app.clone();
        pending.spawn(async move { status(&app, 200).await.status() });
    }
    tokio::select! {
        all = entered.acquire_many(5) => all.unwrap().forget(),
        response = pending.join_next() => panic!("a response before the release: {response:?}"),
    }
    assert_eq!(status(&app, 200).await.status(), 429, "five requests are in progress");
    release.add_permits(6);
    assert_eq!(pending.join_all().await, [StatusCode::BAD_GATEWAY; 5]);
    let after = status(&app, 200).await;
    assert_eq!((after.status().as_u16(), remaining(&after)), (502, vec![r#""plan";r=5;t=0"#.to_owned()]));
}

#[tokio::test]
async fn requests_without_a_response_count() {
    let limits = Hands::default().limits(limit("plan").with_refund_if(|_| true));
    let gate = AuthLayer::new(memory()).with_rate_limit(limits.clone());
    let failing = gate.layer(service_fn(|_: Request<()>| async { Err::<Response<Body>, _>("connection lost") }));
    let request = || with_token(TOKEN).map(|_| ());
    assert_eq!(failing.oneshot(request()).await.unwrap_err(), "connection lost");
    let hanging = gate.layer(service_fn(|_: Request<()>| std::future::pending::<Result<Response<Body>, &str>>()));
    tokio::select! {
        biased;
        _ = hanging.oneshot(request()) => unreachable!(),
        () = tokio::task::yield_now() => {}
    }
    let seen = gate.layer(service_fn(async |_: Request<()>| Ok::<_, &str>(Response::<Body>::default())));
    assert_eq!(values(seen.oneshot(request()).await.unwrap().headers(), "ratelimit"), [r#""plan";r=3;t=1"#]);
}

#[tokio::test]
async fn anonymous_callers_of_a_gate_are_refunded() {
    let limit = Limit::from(FIVE).with_anonymous(FIVE).with_refund_if(|status| status.is_server_error());
    let gate = AuthLayer::new(memory()).allow_anonymous().with_rate_limit(Hands::default().limits(limit));
    let app = Router::new().route(
        "/",
        get(async |request: Request<Body>| {
            assert_eq!(Unauthenticated::from_extensions(request.extensions()), Some(Unauthenticated::Anonymous));
            StatusCode::INTERNAL_SERVER_ERROR
        }),
    );
    let app = app.layer(gate);
    for _ in 0..10 {
        let response = app.clone().oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 500);
        assert_eq!(remaining(&response), [r#""anonymous";r=5;t=0"#]);
    }
}

#[tokio::test]
async fn missing_scope_outside_of_the_limit_costs_nothing() {
    let plan = Limit::new("plan", FIVE).unwrap().with_grant_quotas();
    let gate = AuthLayer::new(memory());
    let limits = gate.route_rate_limit(Hands::default().limits(plan));
    let respond = || get(async || "placed");
    let app = Router::new()
        .route("/404", respond().route_layer(limits.clone()).route_layer(gate.require_scopes(["admin"]).unwrap()))
        .route("/403", respond().route_layer(gate.require_scopes(["admin"]).unwrap()).route_layer(limits.clone()))
        .route("/200", respond().route_layer(limits))
        .layer(gate);
    for _ in 0..10 {
        assert_eq!(status(&app, 404).await.status(), 403);
    }
    assert_eq!(remaining(&status(&app, 200).await), [r#""plan";r=4;t=1"#]);
    assert_eq!(status(&app, 403).await.status(), 403);
    assert_eq!(remaining(&status(&app, 200).await), [r#""plan";r=2;t=1"#]);
}

#[tokio::test]
async fn date_in_a_header_is_counted_from_the_decision_after_a_refund_too() {
    let now = Arc::new(AtomicU64::new(1_000_000));
    let (wall, passes) = (Arc::clone(&now), Arc::clone(&now));
    let limits = Hands::default().limits(limit("plan").with_refund_if(|status| status.is_server_error()));
    let alice = CurrentGrant::new(Grant::new("alice", ()));
    assert!(limits.charge(&alice, Charge::Units(2)).is_admitted());
    let gate = AuthLayer::new(memory()).with_rate_limit(limits).with_rate_limit_headers(RateLimitHeaders::XEpoch);
    let gate = gate.with_wall_clock(move || UNIX_EPOCH + Duration::from_secs(wall.load(Ordering::SeqCst)));
    let app = Router::new().route(
        "/{status}",
        get(async move |Path(status): Path<u16>| {
            // The handler takes a minute.
            passes.fetch_add(60, Ordering::SeqCst);
            StatusCode::from_u16(status).unwrap()
        }),
    );
    let app = app.layer(gate);
    let counted = status(&app, 200).await;
    assert_eq!(field(counted.headers(), "x-ratelimit-reset"), Some("1000003"));
    let refunded = status(&app, 500).await;
    assert_eq!(field(refunded.headers(), "x-ratelimit-reset"), Some("1000063"));
}

#[tokio::test]
async fn refunds_of_several_limits_run_at_the_same_time() {
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let part = |name: &str| {
        let both = Arc::clone(&both);
        let policy = Policy::new(name, FIVE).unwrap();
        let decision = Decision::new(policy, Verdict::Admitted, 4, Duration::ZERO, Duration::ZERO);
        decision.with_refund(Refund::new(move || async move { _ = both.wait().await }))
    };
    let decision = Decision::all_of([part("first"), part("second")]);
    tokio::time::timeout(Duration::from_secs(30), decision.refund()).await.expect("one refund waits for the other");
}
