//! Outages of Redis: local buckets, the circuit breaker, and connections.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use tollgate::Limit;
use tollgate::limit::redis::{BreakerState, OutagePolicy, RedisLimits, RedisServer};
use tollgate::limit::{Charge, Limiter as _, RateLimits, Verdict};
use tollgate::{AuthLayer, CurrentGrant, Decision, Grant, Quota, Rejection, RejectionKind};
use tower::ServiceBuilder;

use crate::kit::*;
use crate::proxy::{Fault, Proxy};
use crate::redis_kit::*;
use crate::redis_servers::{PrivateRedis, RedisHome};

#[tokio::test]
async fn local_buckets_are_divided_and_charges_above_them_are_unavailable() {
    let Some(mut server) = PrivateRedis::start("local_buckets_are_divided_and_charges_above_them_are_unavailable")
    else {
        return;
    };
    server.kill();
    let hands = Hands::default();
    let quota = Quota::one_per(HOUR).with_burst(7);
    let to_three = |url: &str, policies| {
        let (server, nodes) = (RedisServer::single(url).unwrap(), NonZeroU32::new(3).unwrap());
        RedisLimits::new(policies, server, SECRET, nodes).unwrap().with_timeout(TIMEOUT)
    };
    let limits =
        to_three(&server.url(), hands.limits(quota).and(Limit::new("few", quota.with_burst(2)).unwrap()).unwrap());
    let bursts: Vec<_> = charge(&limits, 0).await.parts().map(|part| part.policy().unwrap().quota()).collect();
    // 7 / 3 rounded down, and at least 1.
    assert_eq!(bursts, [Quota::one_per(3 * HOUR).with_burst(2), Quota::one_per(3 * HOUR)]);
    let too_large = charge(&limits, 2).await;
    assert_eq!((too_large.verdict(), too_large.is_local()), (Verdict::Unavailable, true));
    assert!(too_large.retry_after().is_some());
    assert_eq!(charge(&limits, 3).await.verdict(), Verdict::CostAboveBurst, "the cost also exceeds the whole burst");
    assert!(charge(&limits, 1).await.is_admitted());
    assert_eq!(charge(&limits, 1).await.verdict(), Verdict::OverLimit);
    hands.advance(3 * HOUR);
    let decision = charge(&limits, 1).await;
    assert!(decision.is_admitted() && decision.is_local());

    // A grant's own quota and the anonymous quota are divided too.
    let limits = to_three(&server.url(), RateLimits::new(Limit::from(quota).with_anonymous(quota.with_burst(9))));
    let plan = CurrentGrant::new(Grant::new("bob", ()).with_quota(quota.with_burst(12)));
    for (decision, burst) in [(limits.charge(&plan, ONE).await, 4), (limits.charge_anonymous(ONE).await, 3)] {
        assert!(decision.is_local());
        assert_eq!(decision.policy().unwrap().quota(), Quota::one_per(3 * HOUR).with_burst(burst));
    }
}

#[tokio::test]
async fn clones_share_local_buckets_unless_their_prefixes_differ() {
    // Nothing listens at this port.
    let limits = to("redis://127.0.0.1:9", RateLimits::new(FIVE));
    let other = limits.clone().with_prefix("other:").unwrap();
    let same = limits.clone().with_outage_policy(OutagePolicy::Local);
    for (limits, remaining) in [(&limits, 4), (&other, 4), (&same, 3), (&limits, 2), (&other, 3)] {
        let decision = charge(limits, 1).await;
        assert_eq!((decision.is_local(), decision.remaining()), (true, remaining));
    }
}

/// Returns a limiter behind a proxy, with a test clock and short timeouts.
async fn behind_a_proxy(home: &RedisHome, policy: OutagePolicy) -> (RedisLimits, Proxy, Hands) {
    let (proxy, hands) = (Proxy::to(home.address()).await, Hands::default());
    let server = RedisServer::single(&home.url_through(proxy.address)).unwrap();
    let server = server.with_connection_timeout(Duration::from_secs(1));
    let limits = RedisLimits::new(hands.limits(FIVE), server, SECRET, ONE_NODE).unwrap();
    let limits = limits.with_prefix(home.prefix()).unwrap().with_timeout(Duration::from_millis(500));
    let limits = limits
        .with_failure_threshold(2.try_into().unwrap())
        .with_backoff(HOUR, HOUR)
        .unwrap()
        .with_outage_policy(policy);
    (limits, proxy, hands)
}

const FAULTS: [Fault; 4] = [Fault::Cut, Fault::Silence, Fault::Garbage, Fault::Delay(Duration::from_secs(8))];

#[tokio::test]
async fn an_outage_opens_the_breaker_and_uses_local_buckets() {
    for fault in FAULTS {
        let Some(home) = RedisHome::new("an_outage_opens_the_breaker_and_uses_local_buckets") else { return };
        let (limits, proxy, hands) = behind_a_proxy(&home, OutagePolicy::default()).await;
        assert_eq!(limits.state(), BreakerState::Closed);
        assert!(charge(&limits, 3).await.is_admitted());
        proxy.set(fault);
        for (left, state) in [(4, BreakerState::Closed), (3, BreakerState::Open)] {
            let decision = charge(&limits, 1).await;
            assert!(decision.is_local() && decision.is_admitted(), "{fault:?}: {decision:?}");
            assert_eq!((decision.remaining(), limits.state()), (left, state), "{fault:?}");
        }
        for left in [2, 1, 0] {
            let decision = limits.charge(&alice(), ONE).ready().expect("an open breaker decides immediately");
            assert_eq!((decision.is_local(), decision.remaining()), (true, left));
        }
        let decision = limits.charge(&alice(), ONE).ready().unwrap();
        assert_eq!((decision.verdict(), decision.is_local()), (Verdict::OverLimit, true));
        proxy.set(Fault::None);
        assert!(limits.charge(&alice(), ONE).ready().unwrap().is_local(), "the pause has not ended");
        let decision = recovered(&limits, &hands).await;
        // Local charges are not carried over. But a charge that was sent may have been made.
        assert!(decision.remaining() <= 2, "{fault:?}: {decision:?}");
        assert_eq!(limits.state(), BreakerState::Closed, "{fault:?}");
    }
}

#[tokio::test]
async fn a_restarted_server_is_asked_again() {
    let test = "a_restarted_server_is_asked_again";
    let Some(mut server) = PrivateRedis::start(test) else { return };
    let hands = Hands::default();
    let limits =
        to(&server.url(), hands.limits(FIVE)).with_failure_threshold(NonZeroU32::MIN).with_backoff(HOUR, HOUR).unwrap();
    assert_eq!(charge(&limits, 4).await.remaining(), 1);
    server.kill();
    let decision = charge(&limits, 1).await;
    assert!(decision.is_local() && decision.remaining() == 4, "{decision:?}");
    assert_eq!(limits.state(), BreakerState::Open);
    hands.advance(HOUR);
    assert!(charge(&limits, 1).await.is_local(), "the probe fails");
    server.start_again();
    // The server has lost all buckets and the script.
    assert_eq!(recovered(&limits, &hands).await.remaining(), 5);
}

#[tokio::test]
async fn a_limiter_starts_without_a_server() {
    let Some(mut server) = PrivateRedis::start("a_limiter_starts_without_a_server") else { return };
    server.kill();
    let hands = Hands::default();
    let limits = to(&server.url(), hands.limits(FIVE)).with_backoff(HOUR, HOUR).unwrap();
    assert!(charge(&limits, 1).await.is_local());
    server.start_again();
    assert_eq!(recovered(&limits, &hands).await.remaining(), 5);
}

/// The next charge comes after the connection timeout of the first attempt.
#[tokio::test]
async fn a_connection_attempt_survives_the_timeout_of_its_charge() {
    let test = "a_connection_attempt_survives_the_timeout_of_its_charge";
    for fault in [Fault::Delay(Duration::from_millis(100)), Fault::Silence] {
        let Some(home) = RedisHome::new(test) else { return };
        let (limits, proxy, _) = behind_a_proxy(&home, OutagePolicy::default()).await;
        proxy.set(fault);
        let short = limits.clone().with_timeout(Duration::from_millis(10));
        assert!(charge(&short, 1).await.is_local(), "{fault:?}");
        proxy.set(Fault::None);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let decision = charge(&limits.with_timeout(TIMEOUT), 1).await;
        assert!(!decision.is_local(), "{fault:?}: {decision:?}");
    }
}

/// The connection takes longer than the default timeout. A charge that times out leaves the attempt to the next one.
#[tokio::test]
async fn the_connection_timeout_can_be_extended() {
    let Some(home) = RedisHome::new("the_connection_timeout_can_be_extended") else { return };
    let proxy = Proxy::to(home.address()).await;
    let server = RedisServer::single(&home.url_through(proxy.address)).unwrap().with_connection_timeout(NEVER);
    let limits = RedisLimits::new(RateLimits::new(FIVE), server, SECRET, ONE_NODE).unwrap();
    let limits = limits.with_prefix(home.prefix()).unwrap().with_timeout(TIMEOUT);
    proxy.set(Fault::Delay(Duration::from_millis(600)));
    let short = limits.clone().with_timeout(Duration::from_millis(10));
    assert!(charge(&short, 1).await.is_local());
    let decision = charge(&limits, 1).await;
    assert!(!decision.is_local(), "{decision:?}");
    assert_eq!(proxy.taken(), 1);
}

#[tokio::test]
async fn a_gate_applies_the_outage_policy() {
    let test = "a_gate_applies_the_outage_policy";
    for policy in [OutagePolicy::Reject, OutagePolicy::Admit, OutagePolicy::default()] {
        let Some(home) = RedisHome::new(test) else { return };
        let (limits, proxy, _) = behind_a_proxy(&home, policy).await;
        proxy.set(Fault::Cut);
        let service = ServiceBuilder::new().layer(AuthLayer::new(memory()).with_rate_limit(limits)).service(echo());
        for _ in 0..4 {
            let response = send(&service, with_token(TOKEN)).await;
            let rejection = response.extensions().get::<Rejection>();
            match policy {
                OutagePolicy::Reject => {
                    let rejection = rejection.unwrap();
                    assert_eq!(rejection.kind(), RejectionKind::LimiterUnavailable);
                    assert!(rejection.decision().unwrap().is_local());
                    assert_eq!(response.status(), 503);
                    let wait = field(response.headers(), "retry-after").unwrap();
                    assert!(["1", "3600"].contains(&wait), "{wait}");
                    assert!(!response.headers().contains_key("www-authenticate"));
                    assert!(!response.headers().contains_key("ratelimit"));
                    let problem = json(response).await;
                    assert_eq!((&problem["status"], &problem["type"]), (&503.into(), &"about:blank".into()));
                }
                _ => {
                    assert_eq!(response.status(), 200);
                    let grant = response.extensions().get::<CurrentGrant>().unwrap();
                    assert!(grant.decisions().all(Decision::is_local));
                    assert_eq!(response.headers().contains_key("ratelimit"), policy != OutagePolicy::Admit);
                }
            }
        }
        let mut request = with_token(TOKEN);
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let response = send(&service, request).await;
        let expected = (policy == OutagePolicy::Reject).then_some("14");
        assert_eq!(field(response.headers(), "grpc-status"), expected);
    }
}

#[tokio::test]
async fn a_dropped_probe_lets_the_next_charge_probe() {
    let Some(home) = RedisHome::new("a_dropped_probe_lets_the_next_charge_probe") else { return };
    let (limits, proxy, hands) = behind_a_proxy(&home, OutagePolicy::Reject).await;
    proxy.set(Fault::Cut);
    for _ in 0..2 {
        assert_eq!(charge(&limits, 1).await.verdict(), Verdict::Unavailable);
    }
    proxy.set(Fault::None);
    hands.advance(HOUR);
    drop(limits.charge(&alice(), ONE));
    assert_eq!(limits.state(), BreakerState::Open);
    assert!(limits.charge(&alice(), ONE).ready().is_none(), "the next charge probes");
}

#[tokio::test]
async fn a_dropped_charge_fails_after_half_of_the_timeout() {
    let Some(home) = RedisHome::new("a_dropped_charge_fails_after_half_of_the_timeout") else { return };
    let (limits, proxy, _) = behind_a_proxy(&home, OutagePolicy::default()).await;
    let limits = limits.with_timeout(Duration::from_secs(1));
    assert!(charge(&limits, 1).await.is_admitted());
    proxy.set(Fault::Silence);
    let drop_after = async |wait| {
        let dropped = tokio::time::timeout(wait, charge(&limits, 1)).await;
        assert!(dropped.is_err(), "{dropped:?}");
    };
    let (short, long) = (Duration::from_millis(1), Duration::from_millis(900));
    for _ in 0..5 {
        drop_after(short).await;
    }
    assert_eq!((limits.state(), proxy.taken()), (BreakerState::Closed, 1));
    drop_after(long).await;
    proxy.set(Fault::None);
    // The next charge resets the number of failures.
    assert!(!charge(&limits, 0).await.is_local());
    assert_eq!((limits.state(), proxy.taken()), (BreakerState::Closed, 2), "a new connection");
    // No connection is made in time.
    proxy.set(Fault::Cut);
    assert!(charge(&limits, 0).await.is_local());
    proxy.set(Fault::Silence);
    assert_eq!(limits.state(), BreakerState::Closed);
    drop_after(long).await;
    assert_eq!(limits.state(), BreakerState::Open);
}

/// Checks that replies to dropped charges do not reach other charges.
#[tokio::test]
async fn dropped_charges_leave_the_connection_usable() {
    let Some(home) = RedisHome::new("dropped_charges_leave_the_connection_usable") else { return };
    let quota = Quota::one_per(HOUR).with_burst(1_000);
    let proxy = Proxy::to(home.address()).await;
    let server = RedisServer::single(&home.url_through(proxy.address)).unwrap();
    let limits = RedisLimits::new(RateLimits::new(quota), server, SECRET, ONE_NODE).unwrap();
    let limits = limits.with_prefix(home.prefix()).unwrap().with_timeout(TIMEOUT);
    assert!(charge(&limits, 1).await.is_admitted());
    proxy.set(Fault::Delay(Duration::from_millis(20)));
    for timeout in [0, 1, 5, 30] {
        for cost in 1..10 {
            let grant = CurrentGrant::new(Grant::new(format!("other-{cost}"), ()));
            _ = tokio::time::timeout(Duration::from_millis(timeout), limits.charge(&grant, Charge::Units(cost))).await;
        }
    }
    proxy.set(Fault::None);
    let left: Vec<_> = futures_util::future::join_all((0..50).map(|_| charge(&limits, 1))).await;
    let left: BTreeSet<_> = left.iter().map(|decision| (decision.is_local(), decision.remaining())).collect();
    assert_eq!(left, (949..999).map(|left| (false, left)).collect());
}
