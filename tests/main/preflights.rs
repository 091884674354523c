//! CORS preflights and rate limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use tollgate::limit::{Charge, FailureThrottle, Limiter};
use tollgate::{
    Answer, AuthLayer, CurrentGrant, Decision, Grant, Limit, Quota, RateLimits, Rejection, RejectionKind,
    Unauthenticated,
};
use tower::Layer;

use crate::kit::*;

const ONE_AN_HOUR: Quota = Quota::per_hour(1);

fn per_minute() -> Limit {
    Quota::per_minute(60).into()
}

fn named(name: &str, quota: Quota) -> Limit {
    Limit::new(name, quota).unwrap()
}

fn limits(limit: Limit) -> RateLimits {
    RateLimits::new(limit).with_clock(|| Duration::ZERO)
}

/// An inner service that counts the requests that reach it.
fn counting(runs: &Arc<AtomicUsize>) -> impl Inner {
    let runs = Arc::clone(runs);
    tower::service_fn(move |request: Request<Body>| {
        runs.fetch_add(1, Ordering::SeqCst);
        let mut response = Response::new(Body::default());
        *response.extensions_mut() = request.extensions().clone();
        std::future::ready(Ok(response))
    })
}

trait Inner:
    tower::Service<Request<Body>, Response = Response<Body>, Error = std::convert::Infallible, Future: Send + 'static>
    + Clone
    + Send
    + 'static
{
}

impl<S> Inner for S where
    S: tower::Service<
            Request<Body>,
            Response = Response<Body>,
            Error = std::convert::Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + 'static
{
}

/// Sends three preflights, of which the first passes and the others are rejected with 429 before the inner service.
async fn assert_one_passes<S>(service: &S, runs: &AtomicUsize)
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = std::convert::Infallible> + Clone,
{
    let first = send(service, preflight()).await;
    assert_eq!(first.status(), 200);
    assert_eq!(Unauthenticated::from_extensions(first.extensions()), Some(Unauthenticated::Preflight));
    for _ in 0..2 {
        let rejected: Response<Body> = send(service, preflight()).await;
        assert_eq!(rejected.status(), 429);
        assert_eq!(rejected.headers()["retry-after"], "3600");
        let rejection = rejected.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), RejectionKind::OverLimit);
        assert!(rejection.grant().is_none());
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

/// A limiter whose answer is always pending.
struct Remote(RateLimits);

impl Limiter for Remote {
    type Future = std::pin::Pin<Box<dyn Future<Output = Decision> + Send>>;

    fn charge(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future> {
        let decision = self.0.charge(grant, charge);
        Answer::Pending(Box::pin(async move {
            tokio::task::yield_now().await;
            decision
        }))
    }

    fn charge_anonymous(&self, charge: Charge<'_>) -> Answer<Self::Future> {
        let decision = self.0.charge_anonymous(charge).ready().unwrap();
        Answer::Pending(Box::pin(async move {
            tokio::task::yield_now().await;
            decision
        }))
    }
}

#[tokio::test]
async fn a_gate_charges_preflights_like_anonymous_callers() {
    for limits in [
        limits(per_minute().with_anonymous(ONE_AN_HOUR)),
        limits(per_minute()).and(named("all", ONE_AN_HOUR).shared_by_all()).unwrap(),
        limits(per_minute()).and(named("day", Quota::per_day(9)).with_anonymous(ONE_AN_HOUR)).unwrap(),
    ] {
        let runs = Arc::<AtomicUsize>::default();
        let gate = AuthLayer::new(memory()).with_rate_limit(limits);
        assert_one_passes(&gate.layer(counting(&runs)), &runs).await;

        let runs = Arc::<AtomicUsize>::default();
        let gate = AuthLayer::new(memory())
            .with_rate_limit(Remote(self::limits(Limit::from(ONE_AN_HOUR).with_anonymous(ONE_AN_HOUR))));
        assert_one_passes(&gate.layer(counting(&runs)), &runs).await;
    }
}

#[tokio::test]
async fn a_route_limiter_charges_preflights_like_anonymous_callers() {
    for route in [per_minute().with_anonymous(ONE_AN_HOUR), named("all", ONE_AN_HOUR).shared_by_all()] {
        let gate = AuthLayer::new(memory());
        let runs = Arc::<AtomicUsize>::default();
        let service = gate.clone().layer(gate.route_rate_limit(limits(route.clone())).layer(counting(&runs)));
        assert_one_passes(&service, &runs).await;

        let runs = Arc::<AtomicUsize>::default();
        let pending = Remote(limits(route));
        let service = gate.clone().layer(gate.route_rate_limit(pending).layer(counting(&runs)));
        assert_one_passes(&service, &runs).await;
    }
}

#[tokio::test]
async fn a_gate_without_tokens_leaves_the_token_to_an_inner_gate() {
    let gate = AuthLayer::new(memory()).without_preflight_bypass();
    let service = AuthLayer::anonymous().layer(gate.layer(echo()));
    let mut request = preflight();
    request.headers_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    assert_eq!(send(&service, request).await.status(), 200);
    assert_eq!(send(&service, preflight()).await.status(), 401);
}

#[tokio::test]
async fn a_gate_without_tokens_identifies_no_preflight() {
    let gate = AuthLayer::identified_by(|_| -> Option<Grant<()>> { panic!("a preflight was identified") })
        .with_rate_limit(limits(per_minute().with_anonymous(ONE_AN_HOUR)));
    let runs = Arc::<AtomicUsize>::default();
    assert_one_passes(&gate.layer(counting(&runs)), &runs).await;
}

#[tokio::test]
async fn preflights_and_anonymous_callers_share_a_bucket() {
    let gate = AuthLayer::new(memory())
        .allow_anonymous()
        .with_rate_limit(limits(per_minute().with_anonymous(Quota::per_hour(2))));
    let service = gate.layer(echo());
    let first: Response<Body> = send(&service, preflight()).await;
    assert_eq!(first.headers()["ratelimit"], "\"anonymous\";r=1;t=1800");
    assert_eq!(send(&service, get()).await.status(), 200);
    assert_eq!(send(&service, preflight()).await.status(), 429);
    assert_eq!(send(&service, get()).await.status(), 429);
    let holder: Response<Body> = send(&service, with_token(TOKEN)).await;
    assert_eq!(holder.headers()["ratelimit"], "\"default\";r=59;t=1", "the bucket of a caller is untouched");
}

#[cfg(feature = "body")]
#[tokio::test]
async fn a_body_gate_charges_preflights() {
    use tollgate::gate::BodyTokens;

    let body_tokens = BodyTokens::with_timeout(Duration::from_secs(5)).with_json("key").unwrap();
    let gate = AuthLayer::new(memory())
        .with_rate_limit(limits(per_minute().with_anonymous(ONE_AN_HOUR)))
        .with_body_tokens(body_tokens);
    let runs = Arc::<AtomicUsize>::default();
    let inner = counting(&runs);
    let inner = tower::ServiceExt::map_request(inner, |request: Request<tollgate::gate::ReplayBody<Body>>| {
        request.map(|_| Body::default())
    });
    let service = gate.layer(inner);
    assert_one_passes(&service, &runs).await;
}

#[tokio::test]
async fn without_an_anonymous_limit_preflights_are_neither_charged_nor_counted() {
    let costly = per_minute().with_cost(|_| panic!("the cost of a preflight was computed"));
    let costly = limits(costly).and(named("day", ONE_AN_HOUR)).unwrap();
    let gate = AuthLayer::new(memory()).with_rate_limit(costly.clone());
    let service = gate.clone().layer(gate.route_rate_limit(costly).layer(echo()));
    for _ in 0..5 {
        let response: Response<Body> = send(&service, preflight()).await;
        assert_eq!(response.status(), 200);
        assert!(!response.headers().keys().any(|name| name.as_str().contains("ratelimit")));
    }
}

#[tokio::test]
async fn rejected_preflights_are_not_failed_attempts() {
    let throttle = FailureThrottle::new(Quota::per_hour(1), |_| Some(1_u8));
    let gate = AuthLayer::new(memory())
        .with_failure_throttle(throttle)
        .with_rate_limit(limits(per_minute().with_anonymous(ONE_AN_HOUR)));
    let service = gate.layer(echo());
    for status in [200, 429, 429, 429] {
        assert_eq!(send(&service, preflight()).await.status(), status);
    }
    assert_eq!(send(&service, with_token("unknown")).await.status(), 401, "the first failed attempt of this peer");
    let second: Response<Body> = send(&service, with_token("unknown")).await;
    assert_eq!(second.extensions().get::<Rejection>().unwrap().kind(), RejectionKind::TooManyFailures);
}

#[tokio::test]
async fn the_cost_of_a_preflight_is_computed_without_its_credentials() {
    let seen = Arc::<AtomicUsize>::default();
    let secrets = Arc::clone(&seen);
    let limit = per_minute().with_anonymous(ONE_AN_HOUR).with_cost(move |head| {
        secrets.fetch_add(usize::from(head.headers.contains_key("authorization")), Ordering::SeqCst);
        u32::from(head.method == "OPTIONS")
    });
    let service = AuthLayer::new(memory()).with_rate_limit(limits(limit)).layer(echo());
    let mut request = preflight();
    request.headers_mut().insert("authorization", "Bearer secret".parse().unwrap());
    assert_eq!(send(&service, request).await.status(), 200);
    assert_eq!(send(&service, preflight()).await.status(), 429);
    assert_eq!(seen.load(Ordering::SeqCst), 0);
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn limits_in_redis_charge_preflights_too() {
    use std::num::NonZeroU32;
    use tollgate::limit::redis::{RedisLimits, RedisServer};

    use crate::redis_servers::RedisHome;

    for policies in [
        RateLimits::new(per_minute().with_anonymous(ONE_AN_HOUR)),
        RateLimits::new(named("all", ONE_AN_HOUR).shared_by_all()),
    ] {
        for on_route in [false, true] {
            let Some(home) = RedisHome::new("limits_in_redis_charge_preflights_too") else { return };
            let redis = RedisServer::single(home.url()).unwrap();
            let limits = RedisLimits::new(policies.clone(), redis, [7; 32], NonZeroU32::MIN).unwrap();
            let limits = limits.with_prefix(home.prefix()).unwrap().with_timeout(Duration::from_secs(10));
            let (gate, runs) = (AuthLayer::new(memory()), Arc::<AtomicUsize>::default());
            match on_route {
                false => assert_one_passes(&gate.with_rate_limit(limits).layer(counting(&runs)), &runs).await,
                true => {
                    let route = gate.route_rate_limit(limits).layer(counting(&runs));
                    assert_one_passes(&gate.layer(route), &runs).await;
                }
            }
        }
    }
}
