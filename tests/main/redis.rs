//! Budgets in Redis: exact over all servers, and what is said while Redis is away.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tollgate::limit::redis::{BreakerState, OutagePolicy, RedisLimits, RedisLimitsError, RedisServer};
use tollgate::limit::{Charge, Limiter, RateLimits, Verdict};
use tollgate::{AuthLayer, CurrentGrant, Decision, Grant, Limit, Quota, Rejection, RejectionKind};
use tower::ServiceBuilder;

use crate::kit::*;
use crate::proxy::{Fault, Proxy};
use crate::redis_servers::{PrivateRedis, RedisCluster, RedisHome, RedisSentinel, Reply};

const SECRET: [u8; 32] = [7; 32];
const HOUR: Duration = Duration::from_secs(3_600);
/// Nothing comes back while a test runs.
const FIVE: Quota = Quota::one_per(HOUR).with_burst(5);
/// Nothing takes so long, on any machine, unless it hangs.
const NEVER: Duration = Duration::from_secs(30);
const PATIENT: Duration = Duration::from_secs(10);

/// Whose local budgets are not divided.
const ALONE: NonZeroU32 = NonZeroU32::MIN;

fn alice() -> CurrentGrant {
    CurrentGrant::new(Grant::new("alice", ()))
}

/// One server of several: a connection and a memory of its own.
fn at(home: &RedisHome, limits: RateLimits) -> RedisLimits {
    let server = RedisServer::single(home.url()).unwrap();
    RedisLimits::new(limits, server, SECRET, ALONE).unwrap().with_prefix(home.prefix()).unwrap().with_timeout(PATIENT)
}

fn to(url: &str, limits: RateLimits) -> RedisLimits {
    RedisLimits::new(limits, RedisServer::single(url).unwrap(), SECRET, ALONE).unwrap().with_timeout(PATIENT)
}

async fn charge(limits: &RedisLimits, units: u32) -> Decision {
    tokio::time::timeout(NEVER, limits.charge(&alice(), Charge::Units(units))).await.expect("a charge hangs")
}

#[tokio::test]
async fn servers_share_a_budget() {
    let Some(home) = RedisHome::new("servers_share_a_budget") else { return };
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
        assert!(charge(server, 0).await.is_admitted(), "to look is free");
    }
    // Another subject, another secret and another prefix are other budgets.
    let bob = CurrentGrant::new(Grant::new("bob", ()));
    assert!(servers[0].charge(&bob, Charge::Units(5)).await.is_admitted());
    let server = RedisServer::single(home.url()).unwrap();
    let other = RedisLimits::new(RateLimits::new(FIVE), server, [8; 32], ALONE).unwrap();
    let other = other.with_timeout(PATIENT).with_prefix(home.prefix()).unwrap();
    assert!(charge(&other, 5).await.is_admitted());
    let prefix = format!("{}-other", home.prefix());
    assert!(charge(&servers[1].clone().with_prefix(&prefix).unwrap(), 5).await.is_admitted());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sum_of_what_many_charge_at_once_is_exact() {
    let Some(home) = RedisHome::new("the_sum_of_what_many_charge_at_once_is_exact") else { return };
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
    // Ones fit until the last cell is gone.
    assert_eq!(admitted, 100);
}

#[tokio::test]
async fn keys_name_nobody_and_end_when_the_budget_is_full() {
    let Some(home) = RedisHome::new("keys_name_nobody_and_end_when_the_budget_is_full") else { return };
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
        let Reply::Int(left) = wire.ask(&["PTTL", &key]).unwrap() else { panic!("no number") };
        assert!((1..=2 * HOUR.as_millis() as i64 + 1).contains(&left), "{key}: {left}");
        let Reply::Text(value) = wire.ask(&["GET", &key]).unwrap() else { panic!("no text") };
        assert!(value.bytes().all(|byte| byte.is_ascii_digit() || byte == b' '), "{value}");
    }
    // The one of a second is gone after it, and the budget is full then.
    let later = async {
        while home.keys().len() > 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(NEVER, later).await.expect("a key does not end");
    assert_eq!(limits.charge(&own, Charge::Units(0)).await.remaining(), 3);
}

#[tokio::test]
async fn another_quota_carries_what_is_owed() {
    let Some(home) = RedisHome::new("another_quota_carries_what_is_owed") else { return };
    let limits = at(&home, RateLimits::new(FIVE));
    let plan = |quota| CurrentGrant::new(Grant::new("alice", ()).with_quota(quota));
    assert!(charge(&limits, 4).await.is_admitted());
    let ten = plan(Quota::one_per(HOUR / 2).with_burst(10));
    let decision = limits.charge(&ten, Charge::Units(6)).await;
    assert!(decision.is_admitted() && decision.remaining() == 0, "4 cells are owed: {decision:?}");
    assert_eq!(charge(&limits, 1).await.verdict(), Verdict::OverLimit, "and 10 now");
}

#[tokio::test]
async fn who_was_refused_is_refused_again_without_a_trip() {
    let test = "who_was_refused_is_refused_again_without_a_trip";
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
        let decision = answer.ready().expect("it is known");
        let wait = decision.retry_after().unwrap();
        assert_eq!((decision.verdict(), decision.remaining(), decision.is_local()), (Verdict::OverLimit, 0, false));
        assert!(wait <= Duration::from_millis(2_000 - passed), "{wait:?}");
        assert!(limits.charge(&alice(), Charge::Units(3)).ready().is_some(), "what costs more does not fit either");
    }
    assert_eq!(server.trips(), before);
    // What may fit is asked for: nothing, another's, a plan that changed, and when the time has come.
    assert!(limits.charge(&alice(), Charge::Units(0)).ready().is_none());
    assert!(limits.charge(&CurrentGrant::new(Grant::new("bob", ())), ONE).ready().is_none());
    let plan = CurrentGrant::new(Grant::new("alice", ()).with_quota(Quota::per_second(1).with_burst(6)));
    assert!(limits.charge(&plan, ONE).ready().is_none());
    hands.set_ns(3_000_000_000);
    assert!(limits.charge(&alice(), ONE).ready().is_none());

    // However long one has to wait, Redis is asked again after some seconds: it may have been told to forgive.
    let limits = to(&server.url(), hands.limits(FIVE)).with_prefix("other:").unwrap();
    assert!(charge(&limits, 5).await.is_admitted() && !charge(&limits, 1).await.is_admitted());
    hands.advance(Duration::from_secs(9));
    assert!(limits.charge(&alice(), ONE).ready().is_some());
    hands.advance(Duration::from_secs(2));
    assert!(limits.charge(&alice(), ONE).ready().is_none());
}

/// Policies of all kinds, of which nothing comes back while a test runs.
fn policies() -> RateLimits {
    let limit = |name, burst| Limit::new(name, Quota::one_per(HOUR).with_burst(burst)).unwrap();
    RateLimits::new(limit("plan", 12).with_near_limit(50).unwrap().with_grant_quotas())
        .and(limit("narrow", 7).with_anonymous(Quota::one_per(HOUR).with_burst(3)))
        .unwrap()
        .and(limit("trial", 4).with_dry_run())
        .unwrap()
        .and(limit("everybody", 15).shared_by_all())
        .unwrap()
        .with_partition_key(|subject| vec![subject.as_str().len() as u8])
}

/// All of a decision but its times, which differ by what passes between.
fn gist(decision: &Decision) -> Vec<impl Eq + std::fmt::Debug> {
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
async fn several_policies_are_charged_as_in_memory() {
    let test = "several_policies_are_charged_as_in_memory";
    let callers = [
        Some(alice()),
        Some(CurrentGrant::new(Grant::new("bob", ()).with_quota(Quota::one_per(HOUR).with_burst(9)))),
        None,
    ];
    let mut random = 7_u64;
    for _ in 0..12 {
        let Some(home) = RedisHome::new(test) else { return };
        // With refunds no refusal is remembered, which may be older than what the other server did.
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
            assert_eq!(gist(&decided), gist(&expected), "step {step}, {units} units, {caller:?}");
        }
        let keys = home.keys();
        for of_all in ["{shared}:everybody", "{anonymous}:narrow"] {
            assert!(keys.contains(&format!("{}{of_all}", home.prefix())), "{keys:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_same_time_a_charge_meets_all_policies_or_none() {
    let Some(home) = RedisHome::new("at_the_same_time_a_charge_meets_all_policies_or_none") else { return };
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
    // What the common budget refused has cost nobody anything of his own.
    for (subject, spent) in admitted.into_iter().enumerate() {
        let grant = CurrentGrant::new(Grant::new(format!("subject-{subject}"), ()));
        let left: Vec<_> =
            servers[0].charge(&grant, Charge::Units(0)).await.parts().map(|part| part.remaining()).collect();
        assert_eq!(left, [60 - spent, 0]);
    }
}

#[tokio::test]
async fn charges_are_given_back_while_they_are_owed() {
    let Some(home) = RedisHome::new("charges_are_given_back_while_they_are_owed") else { return };
    let quota = Quota::one_per(HOUR).with_burst(5);
    let quick = Limit::new("quick", Quota::one_per(Duration::from_millis(1)).with_burst(5)).unwrap();
    let limits = || RateLimits::new(quota).and(quick.clone()).unwrap();
    let (one, other) = (at(&home, limits().with_refunds()), at(&home, limits()));
    let first = charge(&one, 3).await;
    assert_eq!(charge(&other, 1).await.remaining(), 1);
    first.refund().await;
    assert_eq!(charge(&other, 0).await.remaining(), 4);
    first.refund().await;
    assert_eq!(charge(&other, 0).await.remaining(), 4, "once");
    // The quick one is full by itself, and gets no fuller; its key has ended.
    assert!(home.keys().len() <= 2);
    // Who was refused there asks again, since somebody may have given something back.
    assert!(!charge(&one, 5).await.is_admitted());
    assert!(one.charge(&alice(), Charge::Units(5)).ready().is_none());
    // By another quota nobody knows what it is worth, and what is paid off is not owed.
    let second = charge(&one, 4).await;
    assert!(second.is_admitted());
    let plan = CurrentGrant::new(Grant::new("alice", ()).with_quota(Quota::one_per(HOUR / 2).with_burst(5)));
    assert_eq!(one.charge(&plan, Charge::Units(0)).await.remaining(), 0);
    second.refund().await;
    assert_eq!(one.charge(&plan, Charge::Units(0)).await.remaining(), 0);
}

#[tokio::test]
async fn local_budgets_are_divided_and_what_is_too_large_for_them_is_unknown() {
    let Some(mut server) = PrivateRedis::start("local_budgets_are_divided") else { return };
    server.kill();
    let hands = Hands::default();
    let quota = Quota::one_per(HOUR).with_burst(7);
    let to_three = |url: &str, policies| {
        let (server, nodes) = (RedisServer::single(url).unwrap(), NonZeroU32::new(3).unwrap());
        RedisLimits::new(policies, server, SECRET, nodes).unwrap().with_timeout(PATIENT)
    };
    let limits =
        to_three(&server.url(), hands.limits(quota).and(Limit::new("few", quota.with_burst(2)).unwrap()).unwrap());
    let bursts: Vec<_> = charge(&limits, 0).await.parts().map(|part| part.policy().unwrap().quota()).collect();
    // 7 / 3, and no less than 1.
    assert_eq!(bursts, [Quota::one_per(3 * HOUR).with_burst(2), Quota::one_per(3 * HOUR)]);
    let too_large = charge(&limits, 2).await;
    assert_eq!((too_large.verdict(), too_large.is_local()), (Verdict::Unavailable, true));
    assert!(too_large.retry_after().is_some());
    assert_eq!(charge(&limits, 3).await.verdict(), Verdict::CostAboveBurst, "Redis would say so too");
    assert!(charge(&limits, 1).await.is_admitted());
    assert_eq!(charge(&limits, 1).await.verdict(), Verdict::OverLimit);
    hands.advance(3 * HOUR);
    let decision = charge(&limits, 1).await;
    assert!(decision.is_admitted() && decision.is_local());

    // Of a grant's own quota, and of what strangers share, each server has its part as well.
    let limits = to_three(&server.url(), RateLimits::new(Limit::from(quota).with_anonymous(quota.with_burst(9))));
    let plan = CurrentGrant::new(Grant::new("bob", ()).with_quota(quota.with_burst(12)));
    for (decision, burst) in [(limits.charge(&plan, ONE).await, 4), (limits.charge_anonymous(ONE).await, 3)] {
        assert!(decision.is_local());
        assert_eq!(decision.policy().unwrap().quota(), Quota::one_per(3 * HOUR).with_burst(burst));
    }
}

#[tokio::test]
async fn a_script_that_the_server_forgot_is_sent_again() {
    let Some(server) = PrivateRedis::start("a_script_that_the_server_forgot_is_sent_again") else { return };
    let limits = to(&server.url(), RateLimits::new(FIVE));
    for left in [4, 3, 2] {
        let decision = charge(&limits, 1).await;
        assert!(decision.is_admitted() && !decision.is_local() && decision.remaining() == left, "{decision:?}");
        server.ask(&["SCRIPT", "FLUSH"]).unwrap();
    }
}

/// A limiter through a proxy, by a clock of the test's, that is quick to give up.
async fn behind_a_proxy(home: &RedisHome, when_down: OutagePolicy) -> (RedisLimits, Proxy, Hands) {
    let (proxy, hands) = (Proxy::to(home.address()).await, Hands::default());
    let server = RedisServer::single(&home.url_through(proxy.address)).unwrap();
    let server = server.with_connection_timeout(Duration::from_secs(1));
    let limits = RedisLimits::new(hands.limits(FIVE), server, SECRET, ALONE).unwrap();
    let limits = limits.with_prefix(home.prefix()).unwrap().with_timeout(Duration::from_millis(500));
    let limits = limits.with_failure_threshold(2).with_backoff(HOUR, HOUR).with_outage_policy(when_down);
    (limits, proxy, hands)
}

const FAULTS: [Fault; 4] = [Fault::Cut, Fault::Silence, Fault::Garbage, Fault::Delay(Duration::from_secs(8))];

/// Charges until Redis decides again, an hour by the clock between.
async fn recovered(limits: &RedisLimits, hands: &Hands) -> Decision {
    let recover = async {
        loop {
            let decision = charge(limits, 0).await;
            if !decision.is_local() {
                return decision;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            hands.advance(HOUR);
        }
    };
    tokio::time::timeout(NEVER, recover).await.expect("Redis is not asked again")
}

#[tokio::test]
async fn in_an_outage_budgets_are_local_and_redis_is_left_alone() {
    for fault in FAULTS {
        let Some(home) = RedisHome::new("in_an_outage_budgets_are_local_and_redis_is_left_alone") else { return };
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
            let decision = limits.charge(&alice(), ONE).ready().expect("nobody waits for an open breaker");
            assert_eq!((decision.is_local(), decision.remaining()), (true, left));
        }
        let decision = limits.charge(&alice(), ONE).ready().unwrap();
        assert_eq!((decision.verdict(), decision.is_local()), (Verdict::OverLimit, true));
        proxy.set(Fault::None);
        assert!(limits.charge(&alice(), ONE).ready().unwrap().is_local(), "not before the pause is over");
        let decision = recovered(&limits, &hands).await;
        // What was spent here is not carried there; but a charge that was sent may have been made.
        assert!(decision.remaining() <= 2, "{fault:?}: {decision:?}");
        assert_eq!(limits.state(), BreakerState::Closed, "{fault:?}");
    }
}

#[tokio::test]
async fn a_server_that_was_killed_is_asked_again_when_it_is_back() {
    let test = "a_server_that_was_killed_is_asked_again_when_it_is_back";
    let Some(mut server) = PrivateRedis::start(test) else { return };
    let hands = Hands::default();
    let limits = to(&server.url(), hands.limits(FIVE)).with_failure_threshold(1).with_backoff(HOUR, HOUR);
    assert_eq!(charge(&limits, 4).await.remaining(), 1);
    server.kill();
    let decision = charge(&limits, 1).await;
    assert!(decision.is_local() && decision.remaining() == 4, "{decision:?}");
    assert_eq!(limits.state(), BreakerState::Open);
    hands.advance(HOUR);
    assert!(charge(&limits, 1).await.is_local(), "a probe");
    server.start_again();
    // It has forgotten all budgets and the script.
    assert_eq!(recovered(&limits, &hands).await.remaining(), 5);
}

#[tokio::test]
async fn no_server_is_needed_to_start() {
    let Some(mut server) = PrivateRedis::start("no_server_is_needed_to_start") else { return };
    server.kill();
    let hands = Hands::default();
    let limits = to(&server.url(), hands.limits(FIVE)).with_backoff(HOUR, HOUR);
    assert!(charge(&limits, 1).await.is_local());
    server.start_again();
    assert_eq!(recovered(&limits, &hands).await.remaining(), 5);
}

/// The next charge comes when the time for the connection is over that this one began.
#[tokio::test]
async fn a_connection_is_made_although_the_charge_that_began_it_could_not_wait() {
    let test = "a_connection_is_made_although_the_charge_that_began_it_could_not_wait";
    for fault in [Fault::Delay(Duration::from_millis(100)), Fault::Silence] {
        let Some(home) = RedisHome::new(test) else { return };
        let (limits, proxy, _) = behind_a_proxy(&home, OutagePolicy::default()).await;
        proxy.set(fault);
        let hurried = limits.clone().with_timeout(Duration::from_millis(10));
        assert!(charge(&hurried, 1).await.is_local(), "{fault:?}");
        proxy.set(Fault::None);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let decision = charge(&limits.with_timeout(PATIENT), 1).await;
        assert!(!decision.is_local(), "{fault:?}: {decision:?}");
    }
}

/// Longer than a connection may take unless it is said. Who cannot wait for it leaves it to the next.
#[tokio::test]
async fn a_connection_may_take_as_long_as_was_said() {
    let Some(home) = RedisHome::new("a_connection_may_take_as_long_as_was_said") else { return };
    let proxy = Proxy::to(home.address()).await;
    let server = RedisServer::single(&home.url_through(proxy.address)).unwrap().with_connection_timeout(NEVER);
    let limits = RedisLimits::new(RateLimits::new(FIVE), server, SECRET, ALONE).unwrap();
    let limits = limits.with_prefix(home.prefix()).unwrap().with_timeout(PATIENT);
    proxy.set(Fault::Delay(Duration::from_millis(600)));
    let hurried = limits.clone().with_timeout(Duration::from_millis(10));
    assert!(charge(&hurried, 1).await.is_local());
    let decision = charge(&limits, 1).await;
    assert!(!decision.is_local(), "{decision:?}");
    assert_eq!(proxy.taken(), 1);
}

#[tokio::test]
async fn a_gate_refuses_admits_or_limits_while_redis_is_away() {
    let test = "a_gate_refuses_admits_or_limits_while_redis_is_away";
    for when_down in [OutagePolicy::Reject, OutagePolicy::Admit, OutagePolicy::default()] {
        let Some(home) = RedisHome::new(test) else { return };
        let (limits, proxy, _) = behind_a_proxy(&home, when_down).await;
        proxy.set(Fault::Cut);
        let service = ServiceBuilder::new().layer(AuthLayer::new(memory()).with_rate_limit(limits)).service(echo());
        for _ in 0..4 {
            let response = send(&service, with_token(TOKEN)).await;
            let rejection = response.extensions().get::<Rejection>();
            match when_down {
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
                    assert_eq!(response.headers().contains_key("ratelimit"), when_down != OutagePolicy::Admit);
                }
            }
        }
        let mut request = with_token(TOKEN);
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let response = send(&service, request).await;
        let expected = (when_down == OutagePolicy::Reject).then_some("14");
        assert_eq!(field(response.headers(), "grpc-status"), expected);
    }
}

#[tokio::test]
async fn a_probe_that_is_dropped_leaves_its_turn() {
    let Some(home) = RedisHome::new("a_probe_that_is_dropped_leaves_its_turn") else { return };
    let (limits, proxy, hands) = behind_a_proxy(&home, OutagePolicy::Reject).await;
    proxy.set(Fault::Cut);
    for _ in 0..2 {
        assert_eq!(charge(&limits, 1).await.verdict(), Verdict::Unavailable);
    }
    proxy.set(Fault::None);
    hands.advance(HOUR);
    drop(limits.charge(&alice(), ONE));
    assert_eq!(limits.state(), BreakerState::Open);
    assert!(limits.charge(&alice(), ONE).ready().is_none(), "the next may probe");
}

/// Charges that nobody waits for leave the connection as it was: the answers do not come to others.
#[tokio::test]
async fn charges_that_are_dropped_leave_the_connection_as_it_was() {
    let Some(home) = RedisHome::new("charges_that_are_dropped_leave_the_connection_as_it_was") else { return };
    let quota = Quota::one_per(HOUR).with_burst(1_000);
    let proxy = Proxy::to(home.address()).await;
    let server = RedisServer::single(&home.url_through(proxy.address)).unwrap();
    let limits = RedisLimits::new(RateLimits::new(quota), server, SECRET, ALONE).unwrap();
    let limits = limits.with_prefix(home.prefix()).unwrap().with_timeout(PATIENT);
    assert!(charge(&limits, 1).await.is_admitted());
    proxy.set(Fault::Delay(Duration::from_millis(20)));
    for patience in [0, 1, 5, 30] {
        for cost in 1..10 {
            let grant = CurrentGrant::new(Grant::new(format!("other-{cost}"), ()));
            _ = tokio::time::timeout(Duration::from_millis(patience), limits.charge(&grant, Charge::Units(cost))).await;
        }
    }
    proxy.set(Fault::None);
    let left: Vec<_> = futures_util::future::join_all((0..50).map(|_| charge(&limits, 1))).await;
    let left: BTreeSet<_> = left.iter().map(|decision| (decision.is_local(), decision.remaining())).collect();
    assert_eq!(left, (949..999).map(|left| (false, left)).collect());
}

#[tokio::test]
async fn a_cluster_keeps_each_subject_on_one_node() {
    let Some(cluster) = RedisCluster::start("a_cluster_keeps_each_subject_on_one_node") else { return };
    let urls = cluster.urls();
    let server = RedisServer::cluster(urls.iter().map(|url| &**url)).unwrap().with_connection_timeout(PATIENT);
    let limits = RedisLimits::new(RateLimits::new(FIVE), server, SECRET, ALONE).unwrap().with_timeout(PATIENT);
    for subject in ["alice", "bob", "carol", "dave", "eve", "frank", "grace", "heidi"] {
        let grant = CurrentGrant::new(Grant::new(subject, ()));
        for left in (0..5).rev() {
            let decision = limits.charge(&grant, ONE).await;
            assert_eq!((decision.is_local(), decision.remaining()), (false, left), "{subject}: {decision:?}");
        }
        assert!(!limits.charge(&grant, ONE).await.is_admitted());
    }
    // All budgets of a subject are on its node; those of all are elsewhere.
    let cluster_of = || RedisServer::cluster(urls.iter().map(|url| &**url)).unwrap();
    let several = RateLimits::new(FIVE).and(Limit::new("day", FIVE.with_burst(4)).unwrap()).unwrap();
    let limits =
        RedisLimits::new(several.clone(), cluster_of(), SECRET, ALONE).unwrap().with_prefix("several:").unwrap();
    let decision = charge(&limits.with_timeout(PATIENT), 2).await;
    assert_eq!((decision.is_local(), decision.remaining()), (false, 2));
    let all = several.and(Limit::new("all", FIVE).unwrap().shared_by_all()).unwrap();
    assert_eq!(RedisLimits::new(all, cluster_of(), SECRET, ALONE).unwrap_err(), RedisLimitsError::SharedOnCluster);
    let only =
        RedisLimits::new(RateLimits::new(Limit::from(FIVE).shared_by_all()), cluster_of(), SECRET, ALONE).unwrap();
    assert!(!charge(&only.with_timeout(PATIENT), 2).await.is_local());
    let asked = cluster.0.iter().filter(|node| node.trips() > 0).count();
    assert!(asked > 1, "all subjects are on one node");
}

#[tokio::test]
async fn the_master_that_a_sentinel_names_is_asked_and_the_next_one_after_it() {
    let test = "the_master_that_a_sentinel_names_is_asked_and_the_next_one_after_it";
    let (Some(servers), Some(next)) = (RedisSentinel::start(test), PrivateRedis::start(test)) else { return };
    let (url, hands) = (servers.sentinel.url(), Hands::default());
    let server = RedisServer::sentinel("redis://tollgate", [&*url]).unwrap().with_connection_timeout(PATIENT);
    let limits = RedisLimits::new(hands.limits(FIVE), server, SECRET, ALONE).unwrap();
    let limits = limits.with_timeout(PATIENT).with_failure_threshold(1).with_backoff(HOUR, HOUR);
    let decision = charge(&limits, 5).await;
    assert!(decision.is_admitted() && !decision.is_local(), "{decision:?}");
    assert!(servers.master.trips() > 0);

    // A failover, as the sentinel sees it: another master, and the old one only copies.
    let (host, port) = ("127.0.0.1", next.port().to_string());
    servers.master.ask(&["REPLICAOF", host, &port]).unwrap();
    servers.sentinel.ask(&["SENTINEL", "REMOVE", "tollgate"]).unwrap();
    servers.sentinel.ask(&["SENTINEL", "MONITOR", "tollgate", host, &port, "1"]).unwrap();
    assert!(limits.charge(&CurrentGrant::new(Grant::new("bob", ())), ONE).await.is_local(), "it may not be written to");
    hands.advance(HOUR);
    assert_eq!(recovered(&limits, &hands).await.remaining(), 5);
    assert!(next.trips() > 0);
}

/// As where the machine of the master and of a Sentinel has lost its power.
#[tokio::test]
async fn a_sentinel_that_is_silent_keeps_nobody_from_the_others() {
    let Some(servers) = RedisSentinel::start("a_sentinel_that_is_silent_keeps_nobody_from_the_others") else { return };
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("redis://{}", silent.local_addr().unwrap());
    let (url, hands) = (servers.sentinel.url(), Hands::default());
    let server = RedisServer::sentinel("redis://tollgate", [&*silent, &*url]).unwrap();
    // Less than the client library waits for one of them.
    let server = server.with_connection_timeout(Duration::from_millis(900));
    let limits = RedisLimits::new(hands.limits(FIVE), server, SECRET, ALONE).unwrap().with_timeout(PATIENT);
    assert_eq!(recovered(&limits, &hands).await.remaining(), 5);
}

/// What the threat model says a user of Redis needs is enough.
#[tokio::test]
async fn few_rights_suffice_and_a_wrong_password_is_an_outage() {
    let test = "few_rights_suffice_and_a_wrong_password_is_an_outage";
    let (Some(server), Some(servers)) = (PrivateRedis::start(test), RedisSentinel::start(test)) else { return };
    let Some(cluster) = RedisCluster::start(test) else { return };
    let allow = |server: &PrivateRedis, more: &[&str]| {
        let rights = ["~tollgate:*", "+evalsha", "+eval", "+time", "+get", "+set", "+pexpireat"];
        server.ask(&[&["ACL", "SETUSER", "gate", "on", ">hunter2"], &rights[..], more].concat()).unwrap();
    };
    allow(&server, &[]);
    allow(&servers.master, &["+role"]);
    cluster.0.iter().for_each(|node| allow(node, &["+cluster|slots"]));
    for (password, is_local) in [("hunter2", false), ("hunter3", true)] {
        let of = |address: String| format!("redis://gate:{password}@{address}/");
        let nodes: Vec<_> = cluster.0.iter().map(|node| of(node.address())).collect();
        let ways = [
            RedisServer::single(&of(server.address())),
            RedisServer::sentinel(&of("tollgate".to_owned()), [&*servers.sentinel.url()]),
            RedisServer::cluster(nodes.iter().map(|url| &**url)),
        ];
        for way in ways {
            let limits = RateLimits::new(FIVE).with_refunds();
            let way = way.unwrap().with_connection_timeout(PATIENT);
            let limits = RedisLimits::new(limits, way, SECRET, ALONE).unwrap().with_timeout(PATIENT);
            // On connections that others have not yet made.
            let before = charge(&limits, 0).await.remaining();
            let decision = charge(&limits, 2).await;
            assert!(decision.is_admitted() && decision.is_local() == is_local, "{limits:?}: {decision:?}");
            decision.refund().await;
            assert_eq!(charge(&limits, 0).await.remaining(), before, "{limits:?}");
        }
    }
}

#[test]
fn what_is_wrong_is_said_when_building_and_shows_no_password() {
    let bad = ["", "127.0.0.1", "http://:hunter2@host", "redis://:hunter2@host:port", "redis://:hunter2@host/x"];
    for url in bad {
        let error = RedisServer::single(url).unwrap_err();
        assert_eq!(error, RedisLimitsError::Url);
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        assert!(RedisServer::cluster([url]).is_err());
        assert!(RedisServer::sentinel("redis://name", [url]).is_err());
        assert!(RedisServer::sentinel(url, ["redis://host"]).is_err());
    }
    assert!(RedisServer::cluster([]).is_err() && RedisServer::sentinel("redis://name", []).is_err());
    assert!(
        RedisServer::sentinel("rediss://name", ["redis://host"]).is_ok(),
        "the servers may want TLS, and Sentinels not"
    );
    let server = RedisServer::single("rediss://user:hunter2@host:6380/1").unwrap();
    let shown = format!("{server:?}");
    let limits = RedisLimits::new(RateLimits::new(FIVE), server, SECRET, ALONE).unwrap();
    assert!(!format!("{shown} {limits:?}").contains("hunter2"));
    let server = RedisServer::single("redis://host").unwrap();
    let short = RedisLimits::new(RateLimits::new(FIVE), server, [7; 31], ALONE);
    assert_eq!(short.unwrap_err(), RedisLimitsError::ShortSecret);
    assert_eq!(limits.with_prefix("{x}").unwrap_err(), RedisLimitsError::Prefix);
    let _: Arc<dyn Limiter<Future = tollgate::limit::redis::RedisFuture>> = Arc::new(
        RedisLimits::new(RateLimits::new(FIVE), RedisServer::single("redis://host").unwrap(), SECRET, ALONE).unwrap(),
    );
}
