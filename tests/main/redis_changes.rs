//! Changes in Redis while the service runs: quotas, refunds, and usage and reset of a subject.

use std::convert::Infallible;

use http::{Request, Response, StatusCode};
use tollgate::limit::redis::Leases;
use tollgate::limit::{Charge, Limiter as _, RateLimits};
use tollgate::{AuthLayer, CurrentGrant, Decision, Grant, Limit, LimitError, Quota};
use tower::{Layer, service_fn};

use crate::kit::*;
use crate::redis_kit::*;
use crate::redis_servers::{PrivateRedis, RedisHome};

#[tokio::test]
async fn change_in_redis_applies_to_all_clones_and_to_local_buckets() {
    let Some(redis) = PrivateRedis::start("change_in_redis_applies_to_all_clones_and_to_local_buckets") else { return };
    let limits = to(&redis.url(), RateLimits::new(FIVE));
    let clone = limits.clone().with_timeout(TIMEOUT);
    assert_eq!(charge(&limits, 3).await.remaining(), 2);
    clone.set_quotas([("default", FIVE.with_burst(9))]).unwrap();
    assert_eq!(charge(&limits, 1).await.remaining(), 5);
    assert_eq!(charge(&clone, 1).await.remaining(), 4);
    assert_eq!(limits.set_quotas([("other", FIVE)]), Err(LimitError::Unknown));

    drop(redis);
    let local = charge(&limits, 1).await;
    assert!(local.is_local(), "{local:?}");
    assert_eq!(local.remaining(), 8);
    clone.set_quotas([("default", FIVE.with_burst(7))]).unwrap();
    assert_eq!(charge(&limits, 0).await.remaining(), 6);
}

#[tokio::test]
async fn change_of_the_anonymous_quota_applies_in_redis() {
    let Some(home) = RedisHome::new("change_of_the_anonymous_quota_applies_in_redis") else { return };
    let limits = at(&home, RateLimits::new(Limit::from(FIVE).with_anonymous(FIVE)));
    assert!(limits.charge_anonymous(Charge::Units(2)).await.is_admitted());
    limits.clone().set_anonymous_quotas([("default", FIVE.with_burst(9))]).unwrap();
    assert_eq!(limits.charge_anonymous(Charge::Units(0)).await.remaining(), 7);
}

#[tokio::test]
async fn servers_with_different_quotas_count_the_same_units() {
    let Some(home) = RedisHome::new("servers_with_different_quotas_count_the_same_units") else { return };
    let [old, new] = [(); 2].map(|()| at(&home, RateLimits::new(FIVE)));
    assert_eq!(charge(&old, 2).await.remaining(), 3);
    new.set_quotas([("default", Quota::one_per(HOUR / 2).with_burst(10))]).unwrap();
    assert_eq!(charge(&new, 2).await.remaining(), 6);
    assert_eq!(charge(&old, 1).await.remaining(), 0);
    assert!(!charge(&old, 1).await.is_admitted());
    assert_eq!(charge(&new, 1).await.remaining(), 4);
}

#[tokio::test]
async fn usage_and_reset_hold_over_all_servers() {
    let Some(home) = RedisHome::new("usage_and_reset_hold_over_all_servers") else { return };
    let plan = FIVE.with_burst(50);
    let limits = || RateLimits::new(FIVE).and(Limit::new("few", FIVE.with_burst(2)).unwrap()).unwrap();
    let [first, second] = [at(&home, limits()), at(&home, limits())];
    let subject = "alice".into();
    let grant = CurrentGrant::new(Grant::new("alice", ()).with_quota(plan));
    let remaining = |usage: &Decision| usage.parts().map(Decision::remaining).collect::<Vec<_>>();
    assert_eq!(remaining(&second.usage(&subject, Some(plan)).await.unwrap()), [50, 2]);
    assert!(first.charge(&grant, Charge::Units(2)).await.is_admitted());
    assert_eq!(remaining(&second.usage(&subject, Some(plan)).await.unwrap()), [48, 0]);
    // By a wrong quota, the same units are used. The bucket does not change.
    assert_eq!(remaining(&second.usage(&subject, None).await.unwrap()), [3, 0]);
    assert_eq!(remaining(&second.usage(&subject, Some(plan)).await.unwrap()), [48, 0]);

    assert!(!second.charge(&grant, Charge::Units(1)).await.is_admitted());
    second.reset(&subject).await.unwrap();
    assert_eq!(remaining(&first.usage(&subject, Some(plan)).await.unwrap()), [50, 2]);
    assert!(second.charge(&grant, Charge::Units(1)).await.is_admitted(), "the cached rejection is removed");
}

#[tokio::test]
async fn charge_before_a_reset_is_not_refunded() {
    let Some(home) = RedisHome::new("redis_changes::charge_before_a_reset_is_not_refunded") else { return };
    let limits = at(&home, RateLimits::new(FIVE).with_refunds());
    let before = charge(&limits, 3).await;
    limits.reset(&"alice".into()).await.unwrap();
    let after = charge(&limits, 5).await;
    before.refund().await;
    assert_eq!(charge(&limits, 0).await.remaining(), 0);
    after.refund().await;
    assert_eq!(charge(&limits, 0).await.remaining(), 5);
}

#[tokio::test]
async fn reset_ends_leases_of_this_server() {
    let Some(home) = RedisHome::new("reset_ends_leases_of_this_server") else { return };
    let quota = Quota::one_per(HOUR).with_burst(1_000);
    let limits = at(&home, RateLimits::new(quota)).with_leases(Leases::default()).unwrap();
    for _ in 0..100 {
        assert!(charge(&limits, 1).await.is_admitted());
    }
    limits.reset(&"alice".into()).await.unwrap();
    let decision = charge(&limits, 1).await;
    assert_eq!(decision.remaining(), 999);
}

#[tokio::test]
async fn usage_and_reset_are_errors_while_redis_is_unavailable() {
    let Some(mut redis) = PrivateRedis::start("usage_and_reset_are_errors_while_redis_is_unavailable") else { return };
    redis.kill();
    let limits = to(&redis.url(), RateLimits::new(FIVE));
    assert_eq!(
        limits.usage(&"alice".into(), None).await.unwrap_err().to_string(),
        "Redis is unavailable, or too many commands are in flight"
    );
    assert!(charge(&limits, 5).await.is_local());
    assert!(limits.reset(&"alice".into()).await.is_err());
    assert_eq!(charge(&limits, 1).await.remaining(), 4, "local buckets are full");
}

#[tokio::test]
async fn response_with_a_status_refunds_its_request_on_all_servers() {
    let Some(home) = RedisHome::new("response_with_a_status_refunds_its_request_on_all_servers") else { return };
    let limit = || Limit::new("plan", FIVE).unwrap().with_refund_if(|status| status.is_server_error());
    let [first, second] = [(); 2].map(|()| {
        let gate = AuthLayer::new(memory()).with_rate_limit(at(&home, RateLimits::new(limit())));
        gate.layer(service_fn(async |request: Request<Body>| {
            let mut response = Response::new(Body::default());
            if request.uri().path() == "/fails" {
                *response.status_mut() = StatusCode::BAD_GATEWAY;
            }
            Ok::<_, Infallible>(response)
        }))
    });
    let path = |path: &str| {
        let mut request = with_token(TOKEN);
        *request.uri_mut() = path.parse().unwrap();
        request
    };
    let left =
        |response: Response<Body>| values(response.headers(), "ratelimit")[0].split(';').nth(1).unwrap().to_owned();
    assert_eq!(left(send(&first, path("/")).await), "r=4");
    for server in [&first, &second].into_iter().cycle().take(10) {
        assert_eq!(left(send(server, path("/fails")).await), "r=4");
    }
    for (server, expected) in [(&second, "r=3"), (&first, "r=2"), (&second, "r=1"), (&first, "r=0")] {
        assert_eq!(left(send(server, path("/")).await), expected);
    }
    assert_eq!(send(&second, path("/fails")).await.status(), 429);
}
