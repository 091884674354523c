//! Rate limits in Redis: exact over all servers, atomic across policies, and refundable.

use std::time::Duration;

use tollgate::Limit;
use tollgate::limit::redis::{Leases, RedisLimits, RedisServer};
use tollgate::limit::{Charge, Limiter as _, RateLimits, Verdict};
use tollgate::{CurrentGrant, Decision, Grant, Quota};

use crate::kit::*;
use crate::redis_kit::*;
use crate::redis_servers::{PrivateRedis, RedisHome, Reply};

#[tokio::test]
async fn servers_share_a_bucket() {
    let Some(home) = RedisHome::new("servers_share_a_bucket") else { return };
    let servers = [at(&home, RateLimits::new(FIVE)), at(&home, RateLimits::new(FIVE))];
    for (round, server) in servers.iter().cycle().take(5).enumerate() {
        let decision = charge(server, 1).await;
        assert!(decision.is_admitted() && !decision.is_local(), "{decision:?}");
        assert_eq!(decision.remaining(), 4 - round as u32);
        assert_eq!(decision.policy().unwrap().name(), "default");
        assert!(decision.full_in() > HOUR * round as u32 && decision.full_in() <= HOUR * (round as u32 + 1));
    }
    for server in &servers {
        let decision = charge(server, 1).await;
        assert_eq!(decision.verdict(), Verdict::OverLimit);
        let wait = decision.retry_after().unwrap();
        assert!(wait <= HOUR && wait > HOUR - NEVER, "{wait:?}");
        assert_eq!(charge(server, 6).await.verdict(), Verdict::CostAboveBurst);
        assert!(charge(server, 0).await.is_admitted(), "a charge of 0 units is free");
    }
    // Another subject, another secret and another prefix have separate buckets.
    let bob = CurrentGrant::new(Grant::new("bob", ()));
    assert!(servers[0].charge(&bob, Charge::Units(5)).await.is_admitted());
    let server = RedisServer::single(home.url()).unwrap();
    let other = RedisLimits::new(RateLimits::new(FIVE), server, [8; 32], ONE_NODE).unwrap();
    let other = other.with_timeout(TIMEOUT).with_prefix(home.prefix()).unwrap();
    assert!(charge(&other, 5).await.is_admitted());
    let prefix = format!("{}-other", home.prefix());
    assert!(charge(&servers[1].clone().with_prefix(&prefix).unwrap(), 5).await.is_admitted());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_charges_admit_exactly_the_burst() {
    let Some(home) = RedisHome::new("concurrent_charges_admit_exactly_the_burst") else { return };
    let quota = Quota::one_per(HOUR).with_burst(100);
    let servers: Vec<_> = (0..4).map(|_| at(&home, RateLimits::new(quota))).collect();
    let charges: Vec<_> = (0..400)
        .map(|n: usize| {
            let server = servers[n % 4].clone();
            tokio::spawn(async move { (charge(&server, 1 + n as u32 % 3).await, 1 + n as u32 % 3) })
        })
        .collect();
    let mut admitted = 0;
    for charge in charges {
        let (decision, cost) = charge.await.unwrap();
        assert!(!decision.is_local(), "{decision:?}");
        admitted += if decision.is_admitted() { cost } else { 0 };
    }
    // Charges of one unit fit until the bucket is empty.
    assert_eq!(admitted, 100);
}

#[tokio::test]
async fn keys_contain_no_subject_and_expire_when_the_bucket_is_full() {
    let Some(home) = RedisHome::new("keys_contain_no_subject_and_expire_when_the_bucket_is_full") else { return };
    let limits = RateLimits::new(Limit::new("orders", FIVE).unwrap().with_anonymous(FIVE).with_grant_quotas());
    let limits = at(&home, limits);
    assert!(charge(&limits, 2).await.is_admitted());
    let own = CurrentGrant::new(Grant::new("id", ()).with_subject("bob@example.org").with_quota(Quota::per_second(3)));
    assert!(limits.charge(&own, ONE).await.is_admitted());
    assert!(limits.charge_anonymous(ONE).await.is_admitted());
    let (keys, mut wire) = (home.keys(), home.wire());
    assert_eq!(keys.len(), 3);
    for key in keys {
        let rest = key.strip_prefix(home.prefix()).unwrap();
        assert!(!["alice", "bob", "example", "id"].iter().any(|word| rest.contains(word)), "{rest}");
        let (tag, policy) = rest.strip_prefix('{').unwrap().split_once("}:").unwrap();
        assert!((tag == "anonymous" || tag.len() == 22) && policy == "orders", "{rest}");
        let Reply::Int(left) = wire.ask(&["PTTL", &key]).unwrap() else { panic!("not a number") };
        assert!((1..=2 * HOUR.as_millis() as i64 + 1).contains(&left), "{key}: {left}");
        let Reply::Text(value) = wire.ask(&["GET", &key]).unwrap() else { panic!("not a text") };
        assert!(value.bytes().all(|byte| byte.is_ascii_digit() || byte == b' '), "{value}");
        assert_eq!(value.split(' ').count(), 3, "{value}: a history is for refunds only");
    }
    // The key with a quota per second expires after a second, when its bucket is full.
    let later = async {
        while home.keys().len() > 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(NEVER, later).await.expect("the key never expires");
    assert_eq!(limits.charge(&own, Charge::Units(0)).await.remaining(), 3);
}

#[tokio::test]
async fn a_change_of_quota_carries_charges_over() {
    let Some(home) = RedisHome::new("a_change_of_quota_carries_charges_over") else { return };
    let limits = at(&home, RateLimits::new(FIVE));
    let plan = |quota| CurrentGrant::new(Grant::new("alice", ()).with_quota(quota));
    assert!(charge(&limits, 4).await.is_admitted());
    let ten = plan(Quota::one_per(HOUR / 2).with_burst(10));
    let decision = limits.charge(&ten, Charge::Units(6)).await;
    assert!(decision.is_admitted() && decision.remaining() == 0, "4 units are carried over: {decision:?}");
    assert_eq!(charge(&limits, 1).await.verdict(), Verdict::OverLimit, "10 units are charged");
}

#[tokio::test]
async fn repeated_rejections_cost_no_round_trip() {
    let test = "repeated_rejections_cost_no_round_trip";
    let Some(server) = PrivateRedis::start(test) else { return };
    let hands = Hands::default();
    hands.set_ns(1_000_000_000);
    let quota = Quota::one_per(Duration::from_secs(2)).with_burst(5);
    let limits = to(&server.url(), hands.limits(quota));
    assert!(charge(&limits, 5).await.is_admitted());
    assert!(!charge(&limits, 1).await.is_admitted());
    let before = server.trips();
    for passed in [0, 500, 1_000] {
        hands.set_ns(1_000_000_000 + passed * 1_000_000);
        let answer = limits.charge(&alice(), ONE);
        let decision = answer.ready().expect("the rejection is cached");
        let wait = decision.retry_after().unwrap();
        assert_eq!((decision.verdict(), decision.remaining(), decision.is_local()), (Verdict::OverLimit, 0, false));
        assert!(wait <= Duration::from_millis(2_000 - passed), "{wait:?}");
        assert!(limits.charge(&alice(), Charge::Units(3)).ready().is_some(), "a larger charge does not fit either");
    }
    assert_eq!(server.trips(), before);
    // Redis is asked about charges that may fit: of 0 units, of another subject, of a changed quota, and after the retry time.
    assert!(limits.charge(&alice(), Charge::Units(0)).ready().is_none());
    assert!(limits.charge(&CurrentGrant::new(Grant::new("bob", ())), ONE).ready().is_none());
    let plan = CurrentGrant::new(Grant::new("alice", ()).with_quota(Quota::per_second(1).with_burst(6)));
    assert!(limits.charge(&plan, ONE).ready().is_none());
    hands.set_ns(3_000_000_000);
    assert!(limits.charge(&alice(), ONE).ready().is_none());

    // Redis is asked again after ten seconds, since an operator may have deleted the key.
    let limits = to(&server.url(), hands.limits(FIVE)).with_prefix("other:").unwrap();
    assert!(charge(&limits, 5).await.is_admitted() && !charge(&limits, 1).await.is_admitted());
    hands.advance(Duration::from_secs(9));
    assert!(limits.charge(&alice(), ONE).ready().is_some());
    hands.advance(Duration::from_secs(2));
    assert!(limits.charge(&alice(), ONE).ready().is_none());
}

/// Returns policies of all kinds, which refill nothing during a test.
fn policies() -> RateLimits {
    let limit = |name, burst| Limit::new(name, Quota::one_per(HOUR).with_burst(burst)).unwrap();
    RateLimits::new(limit("plan", 12).with_near_limit(50).unwrap().with_grant_quotas())
        .and(limit("narrow", 7).with_anonymous(Quota::one_per(HOUR).with_burst(3)))
        .unwrap()
        .and(limit("dry run", 4).with_dry_run())
        .unwrap()
        .and(limit("shared", 15).shared_by_all())
        .unwrap()
        .with_partition_key(|subject| vec![subject.as_str().len() as u8])
}

/// Returns all of a decision except exact times, which differ between the servers.
fn without_times(decision: &Decision) -> Vec<impl Eq + std::fmt::Debug> {
    [decision]
        .into_iter()
        .chain(decision.parts())
        .map(|part| {
            let policy = part.policy().map(|policy| (policy.name().to_owned(), policy.quota()));
            let flags = (part.is_admitted(), part.is_dry_run(), part.would_be_rejected(), part.is_near_limit());
            let hours = (part.full_in().as_secs().div_ceil(60) / 60, part.retry_after().is_some());
            (policy, part.verdict(), part.remaining(), flags, hours)
        })
        .collect()
}

#[tokio::test]
async fn several_policies_are_charged_like_in_memory() {
    let test = "several_policies_are_charged_like_in_memory";
    let callers = [
        Some(alice()),
        Some(CurrentGrant::new(Grant::new("bob", ()).with_quota(Quota::one_per(HOUR).with_burst(9)))),
        None,
    ];
    let mut random = 7_u64;
    for _ in 0..12 {
        let Some(home) = RedisHome::new(test) else { return };
        // Refunds disable the cache of rejections, which may be older than charges of the other server.
        let server = || at(&home, policies().with_refunds());
        let (memory, servers) = (policies(), [server(), server()]);
        for step in 0..25 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (caller, units) = (&callers[(random >> 33) as usize % 3], (random >> 40) as u32 % 9);
            let (expected, decided) = match caller {
                Some(grant) => (
                    memory.charge(grant, Charge::Units(units)),
                    servers[step % 2].charge(grant, Charge::Units(units)).await,
                ),
                None => (
                    memory.charge_anonymous(Charge::Units(units)).ready().unwrap(),
                    servers[step % 2].charge_anonymous(Charge::Units(units)).await,
                ),
            };
            assert!(!decided.is_local());
            assert_eq!(without_times(&decided), without_times(&expected), "step {step}, {units} units, {caller:?}");
        }
        let keys = home.keys();
        for key in ["{shared}:shared", "{anonymous}:narrow"] {
            assert!(keys.contains(&format!("{}{key}", home.prefix())), "{keys:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_charges_are_atomic_across_policies() {
    let Some(home) = RedisHome::new("concurrent_charges_are_atomic_across_policies") else { return };
    let quota = |burst| Quota::one_per(HOUR).with_burst(burst);
    let limits = || RateLimits::new(quota(60)).and(Limit::new("all", quota(100)).unwrap().shared_by_all()).unwrap();
    let servers: Vec<_> = (0..4).map(|_| at(&home, limits())).collect();
    let charges: Vec<_> = (0..300)
        .map(|n: usize| {
            let server = servers[n % 4].clone();
            let grant = CurrentGrant::new(Grant::new(format!("subject-{}", n % 3), ()));
            tokio::spawn(async move { (n % 3, server.charge(&grant, ONE).await.is_admitted()) })
        })
        .collect();
    let mut admitted = [0; 3];
    for charge in charges {
        let (subject, is_admitted) = charge.await.unwrap();
        admitted[subject] += u32::from(is_admitted);
    }
    assert_eq!(admitted.iter().sum::<u32>(), 100);
    // A rejection by the shared bucket charges no other bucket.
    for (subject, charged) in admitted.into_iter().enumerate() {
        let grant = CurrentGrant::new(Grant::new(format!("subject-{subject}"), ()));
        let left: Vec<_> =
            servers[0].charge(&grant, Charge::Units(0)).await.parts().map(|part| part.remaining()).collect();
        assert_eq!(left, [60 - charged, 0]);
    }
}

#[tokio::test]
async fn refunds_return_what_has_not_refilled() {
    let Some(home) = RedisHome::new("refunds_return_what_has_not_refilled") else { return };
    let quota = Quota::one_per(HOUR).with_burst(5);
    let limits = || {
        RateLimits::new(quota)
            .and(Limit::new("quick", Quota::one_per(Duration::from_millis(1)).with_burst(5)).unwrap())
            .unwrap()
    };
    let (one, other) = (at(&home, limits().with_refunds()), at(&home, limits()));
    let first = charge(&one, 3).await;
    assert_eq!(charge(&other, 1).await.remaining(), 1);
    first.refund().await;
    assert_eq!(charge(&other, 0).await.remaining(), 4);
    first.refund().await;
    assert_eq!(charge(&other, 0).await.remaining(), 4, "a second refund does nothing");
    // The quick bucket has refilled, and a refund does not overfill it. Its key has expired.
    assert!(home.keys().len() <= 2);
    // Rejections are not cached, since another server may refund units.
    assert!(!charge(&one, 5).await.is_admitted());
    assert!(one.charge(&alice(), Charge::Units(5)).ready().is_none());
    // After a change of quota, a refund returns nothing.
    let second = charge(&one, 4).await;
    assert!(second.is_admitted());
    let plan = CurrentGrant::new(Grant::new("alice", ()).with_quota(Quota::one_per(HOUR / 2).with_burst(5)));
    assert_eq!(one.charge(&plan, Charge::Units(0)).await.remaining(), 0);
    second.refund().await;
    assert_eq!(one.charge(&plan, Charge::Units(0)).await.remaining(), 0);
}

#[tokio::test]
async fn a_flushed_script_is_sent_again() {
    let Some(server) = PrivateRedis::start("a_flushed_script_is_sent_again") else { return };
    let limits = to(&server.url(), RateLimits::new(FIVE));
    for left in [4, 3, 2] {
        let decision = charge(&limits, 1).await;
        assert!(decision.is_admitted() && !decision.is_local() && decision.remaining() == left, "{decision:?}");
        server.ask(&["SCRIPT", "FLUSH"]).unwrap();
    }
}

#[tokio::test]
async fn a_grant_without_a_quota_has_its_own_rejections_and_leases() {
    let Some(home) = RedisHome::new("a_grant_without_a_quota_has_its_own_rejections_and_leases") else { return };
    let quota = Quota::one_per(Duration::from_secs(1)).with_burst(1_000);
    let own = CurrentGrant::new(Grant::new("alice", ()).with_quota(quota));
    for leases in [None, Some(Leases::default())] {
        let limits = at(&home, RateLimits::new(quota));
        let limits = limits.with_prefix(&format!("{}{}:", home.prefix(), leases.is_some())).unwrap();
        let route = match leases {
            None => limits.for_route(),
            Some(leases) => limits.with_leases(leases).unwrap().for_route(),
        };
        let charge_own = async |units| route.charge(&own, Charge::Units(units)).await;
        assert!(charge_own(500).await.is_admitted());
        // With leases, some units are left on this server.
        assert!(charge(&route, 1).await.remaining() >= 990, "{leases:?}");
        while charge_own(9).await.is_admitted() {}
        assert!(route.charge(&own, Charge::Units(9)).ready().is_some(), "the rejection is cached");
        assert!(charge(&route, 9).await.is_admitted(), "{leases:?}");
    }
}
