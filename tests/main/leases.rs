//! Leases: units charged in Redis in advance, as callers see them.

use std::num::NonZeroU32;
use std::task::{Context, Waker};
use std::time::Duration;

use tollgate::limit::redis::{Leases, RedisLimits, RedisLimitsError, RedisServer};
use tollgate::limit::{Charge, Limiter as _, RateLimits, Verdict};
use tollgate::{Answer, CurrentGrant, Grant, Limit, Quota};

use crate::kit::*;
use crate::proxy::{Fault, Proxy};
use crate::redis_servers::PrivateRedis;

const HOUR: Duration = Duration::from_secs(3_600);
/// A timeout that only a hanging test exceeds.
const NEVER: Duration = Duration::from_secs(30);
/// Refills nothing during a test. Leases last a second.
const MANY: Quota = Quota::one_per(HOUR).with_burst(8_000);

fn leased(url: &str, limits: RateLimits) -> RedisLimits {
    let server = RedisServer::single(url).unwrap();
    let limits =
        RedisLimits::new(limits, server, [7; 32], NonZeroU32::MIN).unwrap().with_leases(Leases::default()).unwrap();
    limits.with_timeout(Duration::from_secs(10))
}

fn caller(subject: &str) -> CurrentGrant {
    CurrentGrant::new(Grant::new(subject, ()))
}

/// Charges one unit this many times in sequence and returns the last decision.
async fn charge_times(limits: &RedisLimits, grant: &CurrentGrant, times: u32) -> tollgate::Decision {
    let mut last = None;
    for _ in 0..times {
        let decision = limits.charge(grant, ONE).await;
        assert!(decision.is_admitted() && !decision.is_local(), "{decision:?}");
        last = Some(decision);
    }
    last.unwrap()
}

#[tokio::test]
async fn concurrent_callers_wait_for_one_lease() {
    let Some(server) = PrivateRedis::start("concurrent_callers_wait_for_one_lease") else { return };
    let limits = leased(&server.url(), RateLimits::new(Limit::from(MANY).with_anonymous(MANY)));
    for caller in [Some(caller("alice")), Some(caller("bob")), None] {
        let before = server.trips();
        let charges: Vec<_> = (0..256)
            .map(|_| {
                let (limits, caller) = (limits.clone(), caller.clone());
                tokio::spawn(async move {
                    match caller {
                        Some(caller) => limits.charge(&caller, ONE).await,
                        None => limits.charge_anonymous(ONE).await,
                    }
                })
            })
            .collect();
        for charge in charges {
            assert!(charge.await.unwrap().is_admitted());
        }
        // The first caller leases for itself. The second lease covers all waiting callers. One more trip is a NOSCRIPT.
        let trips = server.trips() - before;
        assert!(trips <= 4, "{trips} trips");
    }
}

#[tokio::test]
async fn the_reported_remaining_can_be_charged() {
    let Some(server) = PrivateRedis::start("the_reported_remaining_can_be_charged") else { return };
    let limits = leased(&server.url(), RateLimits::new(Quota::one_per(HOUR).with_burst(80)));
    let alice = caller("alice");
    let last = charge_times(&limits, &alice, 30).await;
    // The burst less the charges, and less the one cell that is held back for the duration of a lease.
    assert!((49..=50).contains(&last.remaining()), "{last:?}");
    let Answer::Ready(looked) = limits.charge(&alice, Charge::Units(0)) else { panic!("a look asks Redis") };
    assert_eq!(looked.remaining(), last.remaining());
    // The cost exceeds the burst, although the leased units and Redis could cover it together.
    assert_eq!(limits.charge(&alice, Charge::Units(81)).await.verdict(), Verdict::CostAboveBurst);
    charge_times(&limits, &alice, last.remaining()).await;
    let rejected = limits.charge(&alice, Charge::Units(2)).await;
    assert_eq!((rejected.verdict(), rejected.remaining()), (Verdict::OverLimit, 0));
    assert!(rejected.retry_after().unwrap() > HOUR);
}

#[tokio::test]
async fn one_lease_covers_several_policies() {
    let Some(server) = PrivateRedis::start("one_lease_covers_several_policies") else { return };
    let limit = |name, burst| Limit::new(name, Quota::one_per(HOUR).with_burst(burst)).unwrap();
    let policies = RateLimits::new(MANY).and(limit("few", 100)).unwrap();
    let policies = policies.and(limit("all", 160).shared_by_all()).unwrap();
    let limits = leased(&server.url(), policies.and(limit("dry run", 50).with_dry_run()).unwrap());
    let (alice, bob) = (caller("alice"), caller("bob"));

    let before = server.trips();
    let decision = charge_times(&limits, &alice, 40).await;
    assert_eq!(decision.parts().count(), 4);
    assert!(!decision.would_be_rejected());
    assert!(server.trips() - before < 30, "{} trips", server.trips() - before);
    // A dry run rejects nothing.
    let mut admitted = 40;
    loop {
        let decision = limits.charge(&alice, ONE).await;
        if !decision.is_admitted() {
            assert_eq!(decision.violated().map(|policy| policy.name()).collect::<Vec<_>>(), ["few"]);
            break;
        }
        admitted += 1;
    }
    assert!((99..=100).contains(&admitted), "{admitted}");
    // Rejected charges cost nothing: the rest is available to others.
    for _ in 0..20 {
        assert!(!limits.charge(&alice, ONE).await.is_admitted());
    }
    let mut of_bob = 0;
    loop {
        let decision = limits.charge(&bob, ONE).await;
        if !decision.is_admitted() {
            assert_eq!(decision.violated().map(|policy| policy.name()).collect::<Vec<_>>(), ["all"]);
            break;
        }
        of_bob += 1;
    }
    // Each caller may hold a lease of the shared bucket that it could not use.
    let both = admitted + of_bob;
    assert!((160 - 2 * 20 - 2..=160).contains(&both), "{admitted} and {of_bob}");
}

#[test]
fn leases_with_refunds_are_an_error() {
    let server = RedisServer::single("redis://127.0.0.1").unwrap();
    let limits = RateLimits::new(MANY).with_refunds();
    let limits = RedisLimits::new(limits, server, [7; 32], NonZeroU32::MIN).unwrap();
    assert_eq!(limits.with_leases(Leases::default()).unwrap_err(), RedisLimitsError::LeasesWithRefunds);
}

#[test]
fn a_longest_pause_below_the_first_is_an_error() {
    let server = RedisServer::single("redis://127.0.0.1").unwrap();
    let limits = RedisLimits::new(RateLimits::new(MANY), server, [7; 32], NonZeroU32::MIN).unwrap();
    let (short, long) = (Duration::from_secs(1), Duration::from_secs(2));
    assert!(limits.clone().with_backoff(long, short).is_err());
    assert!(limits.with_backoff(long, long).is_ok());
}

#[tokio::test]
async fn another_prefix_or_quota_has_its_own_lease() {
    let Some(server) = PrivateRedis::start("another_prefix_or_quota_has_its_own_lease") else { return };
    let limits = leased(&server.url(), RateLimits::new(MANY));
    charge_times(&limits, &caller("alice"), 100).await;
    let before = server.trips();
    let other = limits.clone().with_prefix("other:").unwrap();
    assert_eq!(charge_times(&other, &caller("alice"), 1).await.remaining(), MANY.burst() - 1);
    let plan = CurrentGrant::new(Grant::new("alice", ()).with_quota(MANY.with_burst(4_000)));
    assert!(charge_times(&limits, &plan, 1).await.remaining() < 4_000 - 100);
    assert_eq!(server.trips() - before, 2);
}

/// Checks that a dropped lease request frees its turn, and that a silent Redis does not block waiting callers.
#[tokio::test]
async fn a_stuck_lease_request_blocks_no_caller() {
    let Some(server) = PrivateRedis::start("a_stuck_lease_request_blocks_no_caller") else { return };
    let proxy = Proxy::to(server.address()).await;
    let limits = leased(&server.url_through(proxy.address), RateLimits::new(MANY));
    let alice = caller("alice");
    charge_times(&limits, &alice, 1).await;

    // Polls until the request is sent to Redis.
    let Answer::Pending(mut lease) = limits.charge(&alice, ONE) else { panic!("no lease is needed") };
    let mut context = Context::from_waker(Waker::noop());
    assert!(std::pin::Pin::new(&mut lease).poll(&mut context).is_pending());
    let waiting = limits.charge(&alice, ONE);
    let mut waiting = Box::pin(waiting.into_future());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    drop(lease);
    assert!(tokio::time::timeout(NEVER, waiting).await.expect("the caller waits forever").is_admitted());

    proxy.set(Fault::Silence);
    let limits = limits.with_timeout(Duration::from_millis(300));
    let bob = caller("bob");
    let charges: Vec<_> = (0..16)
        .map(|_| {
            let (limits, bob) = (limits.clone(), bob.clone());
            tokio::spawn(async move { limits.charge(&bob, ONE).await })
        })
        .collect();
    for charge in charges {
        let decision = tokio::time::timeout(NEVER, charge).await.expect("the caller waits forever").unwrap();
        assert!(decision.is_local(), "{decision:?}");
    }
}

#[tokio::test]
async fn a_charge_waits_for_half_of_the_timeout_for_a_lease() {
    let Some(server) = PrivateRedis::start("a_charge_waits_for_half_of_the_timeout_for_a_lease") else { return };
    let timeout = Duration::from_secs(4);
    let limits = leased(&server.url(), RateLimits::new(MANY)).with_timeout(timeout);
    let alice = caller("alice");
    charge_times(&limits, &alice, 1).await;
    // This request is sent, and its reply is never read.
    let Answer::Pending(mut lease) = limits.charge(&alice, ONE) else { panic!("no lease is needed") };
    assert!(std::pin::Pin::new(&mut lease).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let decision = tokio::time::timeout(timeout, limits.charge(&alice, ONE)).await.expect("the charge waits too long");
    assert!(decision.is_admitted() && !decision.is_local(), "{decision:?}");
    drop(lease);
}
