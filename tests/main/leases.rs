//! Cells that are bought ahead, as callers see them.

use std::num::NonZeroU32;
use std::task::{Context, Waker};
use std::time::Duration;

use tollgate::limit::redis::{Leases, RedisLimits, RedisServer};
use tollgate::limit::{Charge, Limiter as _, RateLimits, Verdict};
use tollgate::{Answer, CurrentGrant, Grant, Quota};

use crate::kit::*;
use crate::proxy::{Fault, Proxy};
use crate::redis_servers::PrivateRedis;

const HOUR: Duration = Duration::from_secs(3_600);
/// Nothing takes so long, on any machine, unless it hangs.
const NEVER: Duration = Duration::from_secs(30);
/// Nothing comes back while a test runs, and leases last a second.
const MANY: Quota = Quota::one_per(HOUR).with_burst(8_000);

fn leased(url: &str, limits: RateLimits) -> RedisLimits {
    let server = RedisServer::single(url).unwrap();
    let limits = RedisLimits::new(limits, server, [7; 32], NonZeroU32::MIN).unwrap().with_leases(Leases::default());
    limits.with_deadline(Duration::from_secs(10))
}

fn who(subject: &str) -> CurrentGrant {
    CurrentGrant::new(Grant::new(subject, ()))
}

/// Spends so often one after the other, and returns the last decision.
async fn spend(limits: &RedisLimits, grant: &CurrentGrant, times: u32) -> tollgate::Decision {
    let mut last = None;
    for _ in 0..times {
        let decision = limits.charge(grant, ONE).await;
        assert!(decision.is_admitted() && !decision.is_local(), "{decision:?}");
        last = Some(decision);
    }
    last.unwrap()
}

#[tokio::test]
async fn who_comes_while_others_buy_waits_and_buys_no_second_lease() {
    let Some(server) = PrivateRedis::start("who_comes_while_others_buy_waits_and_buys_no_second_lease") else { return };
    let limits = leased(&server.url(), RateLimits::new(MANY).with_anonymous(MANY));
    for caller in [Some(who("alice")), Some(who("bob")), None] {
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
        // The first buys for itself alone. The second knows how many wait, and buys for all of them. (And a NOSCRIPT.)
        let trips = server.trips() - before;
        assert!(trips <= 4, "{trips} trips");
    }
}

#[tokio::test]
async fn what_is_told_to_remain_can_be_spent() {
    let Some(server) = PrivateRedis::start("what_is_told_to_remain_can_be_spent") else { return };
    let limits = leased(&server.url(), RateLimits::new(Quota::one_per(HOUR).with_burst(80)));
    let alice = who("alice");
    let told = spend(&limits, &alice, 30).await;
    // All but what was spent, and the cell that is kept back for the time of a lease, a second.
    assert!((49..=50).contains(&told.remaining()), "{told:?}");
    let looked = limits.charge(&alice, Charge::Units(0)).await;
    assert_eq!(looked.remaining(), told.remaining());
    // Some of it is here, and the rest would fit in Redis: together they are still above the burst.
    assert_eq!(limits.charge(&alice, Charge::Units(81)).await.verdict(), Verdict::CostAboveBurst);
    spend(&limits, &alice, told.remaining()).await;
    let refused = limits.charge(&alice, Charge::Units(2)).await;
    assert_eq!((refused.verdict(), refused.remaining()), (Verdict::OverLimit, 0));
    assert!(refused.retry_after().unwrap() > HOUR);
}

#[tokio::test]
async fn several_policies_are_paid_together() {
    let Some(server) = PrivateRedis::start("several_policies_are_paid_together") else { return };
    let policies = RateLimits::new(MANY).and("few", Quota::one_per(HOUR).with_burst(100)).unwrap();
    let policies = policies.and("all", Quota::one_per(HOUR).with_burst(160)).unwrap().shared_by_all();
    let trial = Quota::one_per(HOUR).with_burst(50);
    let limits = leased(&server.url(), policies.and("trial", trial).unwrap().with_dry_run());
    let (alice, bob) = (who("alice"), who("bob"));

    let before = server.trips();
    let decision = spend(&limits, &alice, 40).await;
    assert_eq!(decision.parts().count(), 4);
    assert!(!decision.would_be_rejected());
    assert!(server.trips() - before < 30, "{} trips", server.trips() - before);
    // What is on trial refuses nobody.
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
    // What was refused has cost nothing: all have the rest for others.
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
    // Of the budget that they share, each may have bought a lease that he could not spend.
    let both = admitted + of_bob;
    assert!((160 - 2 * 20 - 2..=160).contains(&both), "{admitted} and {of_bob}");
}

#[tokio::test]
async fn refunds_keep_a_limiter_exact() {
    let Some(server) = PrivateRedis::start("refunds_keep_a_limiter_exact") else { return };
    let limits = leased(&server.url(), RateLimits::new(MANY).with_refunds());
    let last = spend(&limits, &who("alice"), 20).await;
    assert_eq!(last.remaining(), MANY.burst() - 20);
    assert!(server.trips() >= 20);
    last.refund().await;
    assert_eq!(limits.charge(&who("alice"), Charge::Units(0)).await.remaining(), MANY.burst() - 19);
}

#[tokio::test]
async fn another_prefix_and_another_quota_are_another_stock() {
    let Some(server) = PrivateRedis::start("another_prefix_and_another_quota_are_another_stock") else { return };
    let limits = leased(&server.url(), RateLimits::new(MANY));
    spend(&limits, &who("alice"), 100).await;
    let before = server.trips();
    let other = limits.clone().with_prefix("other:").unwrap();
    assert_eq!(spend(&other, &who("alice"), 1).await.remaining(), MANY.burst() - 1);
    let plan = CurrentGrant::new(Grant::new("alice", ()).with_quota(MANY.with_burst(4_000)));
    assert!(spend(&limits, &plan, 1).await.remaining() < 4_000 - 100);
    assert_eq!(server.trips() - before, 2);
}

/// Who is dropped while it buys leaves its turn, and who waits for a silent Redis does not wait for ever.
#[tokio::test]
async fn nobody_is_kept_by_a_purchase_that_never_ends() {
    let Some(server) = PrivateRedis::start("nobody_is_kept_by_a_purchase_that_never_ends") else { return };
    let proxy = Proxy::to(server.address()).await;
    let limits = leased(&server.url_through(proxy.address), RateLimits::new(MANY));
    let alice = who("alice");
    spend(&limits, &alice, 1).await;

    // Polled until it has gone to Redis, and no further.
    let Answer::Pending(mut purchase) = limits.charge(&alice, ONE) else { panic!("nothing to buy") };
    let mut context = Context::from_waker(Waker::noop());
    assert!(std::pin::Pin::new(&mut purchase).poll(&mut context).is_pending());
    let waiting = limits.charge(&alice, ONE);
    let mut waiting = Box::pin(waiting.into_future());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    drop(purchase);
    assert!(tokio::time::timeout(NEVER, waiting).await.expect("it waits for ever").is_admitted());

    proxy.set(Fault::Silence);
    let limits = limits.with_deadline(Duration::from_millis(300));
    let bob = who("bob");
    let charges: Vec<_> = (0..16)
        .map(|_| {
            let (limits, bob) = (limits.clone(), bob.clone());
            tokio::spawn(async move { limits.charge(&bob, ONE).await })
        })
        .collect();
    for charge in charges {
        let decision = tokio::time::timeout(NEVER, charge).await.expect("it waits for ever").unwrap();
        assert!(decision.is_local(), "{decision:?}");
    }
}
