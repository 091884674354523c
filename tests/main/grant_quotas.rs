//! The quota of a grant replaces the quota of one limit, and of no other.

use std::sync::Arc;
use std::time::Duration;
use tollgate::TokenDigest;

use http::{Request, Response};
use tollgate::limit::{Charge, Limiter, RateLimits};
use tollgate::{AuthLayer, CurrentGrant, Grant, Limit, LimitError, MemoryStore, Quota};
use tower::Layer;

use crate::kit::*;

/// The quota of a customer: 600 a minute, 100 of them at the same time.
const PLAN: Quota = Quota::per_minute(600).with_burst(100);
const THREE: Quota = Quota::per_second(3);

pub fn customer() -> CurrentGrant {
    CurrentGrant::new(Grant::new("customer", ()).with_quota(PLAN))
}

fn tokens() -> MemoryStore<()> {
    MemoryStore::from_iter([
        (TokenDigest::of(TOKEN), Grant::new("customer", ()).with_quota(PLAN)),
        (TokenDigest::of("tg_a_token_without_a_plan"), Grant::new("other", ())),
    ])
}

fn limit(name: &str, quota: Quota) -> Limit {
    Limit::new(name, quota).unwrap()
}

fn orders() -> RateLimits {
    RateLimits::new(limit("orders", THREE)).with_clock(|| Duration::ZERO)
}

/// Sends this many requests at the same time and returns the number of admitted ones. All others must get 429.
async fn admitted<S>(service: &S, requests: usize) -> usize
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = std::convert::Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    let barrier = Arc::new(tokio::sync::Barrier::new(requests));
    let answers: Vec<_> = (0..requests)
        .map(|_| {
            let (service, barrier) = (service.clone(), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                send(&service, with_token(TOKEN)).await.status().as_u16()
            })
        })
        .collect();
    let mut admitted = 0;
    for answer in answers {
        match answer.await.unwrap() {
            200 => admitted += 1,
            status => assert_eq!(status, 429),
        }
    }
    admitted
}

/// A handler that keeps a clone sees the quota of the grant. The route must not: neither immediately nor after some time, when
/// the larger quota of the grant has refilled more.
fn assert_clones_do_not_change_the_quota_of_a_route(handler: &RateLimits, hands: &Hands) {
    // A store keeps its grants, with their buckets.
    let caller = CurrentGrant::new(Arc::new(Grant::new("customer", ()).with_quota(PLAN)));
    let route = handler.clone().for_route();
    let admitted_on_route = || (0..50).filter(|_| route.charge(&caller, Charge::Units(1)).is_admitted()).count();
    assert_eq!(handler.peek(&caller).remaining(), 100);
    assert_eq!(admitted_on_route(), 3);
    assert_eq!(handler.peek(&caller).remaining(), 100);
    hands.advance(Duration::from_secs(10));
    assert!(handler.charge(&caller, Charge::Units(100)).is_admitted());
    assert_eq!(admitted_on_route(), 0);
    hands.advance(Duration::from_secs(1190));
    assert_eq!(admitted_on_route(), 1);
    // Forms for other routes share the bucket.
    assert!(!handler.clone().for_route().charge(&caller, Charge::Units(1)).is_admitted());
}

#[test]
fn clones_do_not_change_the_quota_of_a_route() {
    let hands = Hands::default();
    assert_clones_do_not_change_the_quota_of_a_route(&hands.limits(Quota::per_hour(3)), &hands);
    let several = hands.limits(Quota::per_hour(3)).and(limit("day", Quota::per_day(9_000))).unwrap();
    assert_clones_do_not_change_the_quota_of_a_route(&several, &hands);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_limit_has_its_own_quota_whatever_the_quota_of_the_grant() {
    for route in [orders(), RateLimits::new(THREE).with_clock(|| Duration::ZERO)] {
        let gate = AuthLayer::new(tokens());
        let service = gate.clone().layer(gate.route_rate_limit(route).layer(echo()));
        assert_eq!(admitted(&service, 50).await, 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quota_of_a_grant_replaces_that_of_the_gate() {
    let plans = RateLimits::new(Quota::per_minute(1)).with_clock(|| Duration::ZERO);
    let gate = AuthLayer::new(tokens()).with_rate_limit(plans);
    assert_eq!(admitted(&gate.layer(echo()), 120).await, 100);
    assert_eq!(send(&gate.layer(echo()), with_token("tg_a_token_without_a_plan")).await.status(), 200);
    let second = send(&gate.layer(echo()), with_token("tg_a_token_without_a_plan")).await;
    assert_eq!(second.status(), 429, "a grant without a quota has the quota of the policy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_gate_on_the_same_store_limits_by_its_own_quota() {
    let store = tokens();
    let plans = RateLimits::new(Quota::per_minute(1)).with_clock(|| Duration::ZERO);
    let public = AuthLayer::new(store.clone()).with_rate_limit(plans).layer(echo());
    let admin = RateLimits::new(limit("admin", THREE)).with_clock(|| Duration::ZERO);
    let admin = AuthLayer::new(store).with_rate_limit(admin).layer(echo());
    assert_eq!(admitted(&admin, 50).await, 3);
    assert_eq!(admitted(&public, 50).await, 50);
}

/// Returns the names of the policies and their bursts.
fn bursts(decision: &tollgate::Decision) -> Vec<(String, u32)> {
    let burst = |part: &tollgate::Decision| {
        let policy = part.policy().unwrap();
        (policy.name().to_owned(), policy.quota().burst())
    };
    decision.parts().map(burst).collect()
}

fn named(expected: &[(&str, u32)]) -> Vec<(String, u32)> {
    expected.iter().map(|(name, burst)| ((*name).to_owned(), *burst)).collect()
}

#[test]
fn only_the_limit_with_grant_quotas_follows_them() {
    let of = |limits: RateLimits| bursts(&limits.peek(&customer()));
    let first = || RateLimits::new(Quota::per_minute(7));
    let day = || limit("day", Quota::per_day(9));
    assert_eq!(of(first().and(day()).unwrap()), named(&[("default", 100), ("day", 9)]));
    let two = || first().and(day().with_grant_quotas()).unwrap();
    assert_eq!(of(two()), named(&[("default", 7), ("day", 100)]));
    let three = two().and(limit("orders", THREE)).unwrap();
    assert_eq!(of(three), named(&[("default", 7), ("day", 100), ("orders", 3)]));
    assert_eq!(of(orders()), named(&[("orders", 3)]));
    let orders = || limit("orders", THREE);
    assert_eq!(of(RateLimits::new(orders().with_grant_quotas())), named(&[("orders", 100)]));
    assert_eq!(of(RateLimits::new(orders().with_grant_quotas().shared_by_all())), named(&[("orders", 3)]));
    assert_eq!(of(RateLimits::new(orders().shared_by_all().with_grant_quotas())), named(&[("orders", 3)]));
}

#[test]
fn a_default_limit_follows_grant_quotas_unless_another_limit_does_whatever_the_order() {
    let of = |limits: RateLimits| bursts(&limits.peek(&customer()));
    let default = || Limit::from(Quota::per_minute(7));
    let orders = || limit("orders", THREE);
    let explicit = RateLimits::new(orders().with_grant_quotas()).and(default()).unwrap();
    assert_eq!(of(explicit), named(&[("orders", 100), ("default", 7)]));
    assert_eq!(of(RateLimits::new(orders()).and(default()).unwrap()), named(&[("orders", 3), ("default", 100)]));
}

#[test]
fn a_second_limit_with_grant_quotas_returns_an_error() {
    let day = || limit("day", Quota::per_day(9)).with_grant_quotas();
    for first in [limit("orders", THREE).with_grant_quotas(), Limit::from(THREE).with_grant_quotas()] {
        assert_eq!(RateLimits::new(first).and(day()).unwrap_err(), LimitError::GrantQuotas);
    }
}

#[test]
fn on_a_route_only_an_explicit_choice_follows_grant_quotas() {
    let of = |limits: RateLimits| bursts(&limits.for_route().peek(&customer()));
    let day = limit("day", Quota::per_day(9));
    let two = |day| RateLimits::new(Quota::per_minute(7)).and(day).unwrap();
    assert_eq!(of(two(day.clone())), named(&[("default", 7), ("day", 9)]));
    assert_eq!(of(two(day.with_grant_quotas())), named(&[("default", 7), ("day", 100)]));
    assert_eq!(of(RateLimits::new(THREE)), named(&[("default", 3)]));
    assert_eq!(of(RateLimits::new(Limit::from(THREE).with_grant_quotas())), named(&[("default", 100)]));
}

#[tokio::test]
async fn a_handler_and_its_route_share_a_bucket() {
    let (gate, orders) = (AuthLayer::new(tokens()), orders());
    let service = gate.clone().layer(gate.route_rate_limit(orders.clone()).layer(echo()));
    assert_eq!(send(&service, with_token(TOKEN)).await.status(), 200);
    assert_eq!(orders.charge(&customer(), ONE).remaining(), 1);
    assert_eq!(send(&service, with_token(TOKEN)).await.status(), 200);
    assert!(!orders.charge(&customer(), ONE).is_admitted());
}

#[test]
fn anonymous_callers_of_a_named_limit_have_its_name() {
    let names = |limits: RateLimits| {
        let decision = limits.charge_anonymous(Charge::Units(0)).ready().unwrap();
        decision.parts().map(|part| part.policy().unwrap().name().to_owned()).collect::<Vec<_>>()
    };
    let two = Quota::per_minute(2);
    assert_eq!(names(RateLimits::new(Limit::from(two).with_anonymous(two))), ["anonymous"]);
    assert_eq!(names(RateLimits::new(limit("orders", two).with_anonymous(two))), ["orders"]);
}

#[test]
fn near_limit_and_dry_run_use_the_quota_that_applies() {
    let limits = limit("orders", THREE).with_near_limit(100).unwrap().with_dry_run();
    let limits = RateLimits::new(limits).with_clock(|| Duration::ZERO);
    let decisions: Vec<_> = (0..4).map(|_| limits.charge(&customer(), ONE)).collect();
    assert_eq!(
        decisions.iter().map(|decision| decision.is_near_limit()).collect::<Vec<_>>(),
        [false, false, true, true]
    );
    assert_eq!(
        decisions.iter().map(|decision| decision.would_be_rejected()).collect::<Vec<_>>(),
        [false, false, false, true]
    );
}

/// The same limits in Redis.
#[cfg(feature = "redis")]
mod in_redis {
    use std::num::NonZeroU32;

    use tollgate::limit::redis::{Leases, OutagePolicy, RedisLimits, RedisServer};

    use super::*;
    use crate::redis_servers::RedisHome;

    /// A bucket regains no unit while a test runs.
    const SLOW: Quota = Quota::one_per(Duration::from_secs(3_600));

    /// Returns a named and a default limit. On a route, both have their own quota.
    fn routes() -> [RateLimits; 2] {
        [RateLimits::new(limit("orders", SLOW.with_burst(3))), RateLimits::new(SLOW.with_burst(3))]
    }

    fn at(url: &str, limits: RateLimits, prefix: &str) -> RedisLimits {
        let redis = RedisServer::single(url).unwrap();
        let limits = RedisLimits::new(limits, redis, [7; 32], NonZeroU32::MIN).unwrap();
        limits.with_prefix(prefix).unwrap().with_timeout(Duration::from_secs(10))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_route_limit_in_redis_has_its_own_quota() {
        for route in routes() {
            let Some(home) = RedisHome::new("a_route_limit_in_redis_has_its_own_quota") else { return };
            // Two servers of one application.
            let services: Vec<_> = (0..2)
                .map(|_| {
                    let gate = AuthLayer::new(tokens());
                    gate.clone()
                        .layer(gate.route_rate_limit(at(home.url(), route.clone(), home.prefix())).layer(echo()))
                })
                .collect();
            let (first, second) = tokio::join!(admitted(&services[0], 50), admitted(&services[1], 50));
            assert_eq!(first + second, 3);
        }
    }

    #[tokio::test]
    async fn leases_for_a_route_have_its_own_quota() {
        let many = SLOW.with_burst(8_000);
        let tokens = || {
            MemoryStore::from_iter([(
                TokenDigest::of(TOKEN),
                Grant::new("customer", ()).with_quota(SLOW.with_burst(90_000)),
            )])
        };
        for route in [limit("orders", many), many.into()] {
            let Some(home) = RedisHome::new("leases_for_a_route_have_its_own_quota") else { return };
            let route = route.with_cost(|head| head.headers["x-cost"].to_str().unwrap().parse().unwrap());
            let route = RateLimits::new(route);
            let limits = at(home.url(), route, home.prefix()).with_leases(Leases::default()).unwrap();
            let gate = AuthLayer::new(tokens());
            let service = gate.clone().layer(gate.route_rate_limit(limits).layer(echo()));
            for (cost, status) in [("8001", 400), ("1", 200), ("1", 200), ("7998", 200), ("1", 429)] {
                let mut request = with_token(TOKEN);
                request.headers_mut().insert("x-cost", cost.parse().unwrap());
                assert_eq!(send(&service, request).await.status(), status, "{cost}");
            }
        }
    }

    #[tokio::test]
    async fn in_redis_only_an_explicit_choice_follows_grant_quotas_on_a_route() {
        let Some(home) = RedisHome::new("in_redis_only_an_explicit_choice_follows_grant_quotas_on_a_route") else {
            return;
        };
        let own = || Limit::from(SLOW.with_burst(3));
        let of = async |limits: &RedisLimits| bursts(&limits.charge(&customer(), Charge::Units(0)).await);
        let limits = at(home.url(), RateLimits::new(own()), home.prefix());
        assert_eq!(of(&limits).await, named(&[("default", 100)]));
        assert_eq!(of(&limits.clone().for_route()).await, named(&[("default", 3)]));
        assert_eq!(of(&limits).await, named(&[("default", 100)]), "a clone stays as it was");
        let route = limits.clone().for_route();
        assert!(route.charge(&customer(), Charge::Units(3)).await.is_admitted());
        assert!(limits.charge(&customer(), Charge::Units(100)).await.is_admitted(), "two buckets");
        assert!(
            !limits.clone().for_route().charge(&customer(), Charge::Units(1)).await.is_admitted(),
            "one for routes"
        );
        let explicit = at(home.url(), RateLimits::new(own().with_grant_quotas()), home.prefix()).for_route();
        assert_eq!(of(&explicit).await, named(&[("default", 100)]));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn without_redis_a_route_limit_has_its_own_quota() {
        // Nothing listens at this address.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        drop(listener);
        for route in routes() {
            for explicit in [false, true] {
                let limits = at(&url, route.clone(), "nowhere:");
                let limits = if explicit { limits.with_outage_policy(OutagePolicy::Local) } else { limits };
                let gate = AuthLayer::new(tokens());
                let service = gate.clone().layer(gate.route_rate_limit(limits).layer(echo()));
                assert_eq!(admitted(&service, 50).await, 3);
            }
        }
    }
}
