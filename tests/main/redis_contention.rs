//! Many concurrent charges: a local queue is not treated as an outage, and the total never exceeds what Redis admits.
#![allow(clippy::print_stdout, reason = "failed tests print the seed and the measured times")]

use std::num::NonZeroU32;
use std::slice::from_ref;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tollgate::Limit;
use tollgate::limit::redis::{BreakerState, Leases, OutagePolicy, RedisLimits, RedisServer};
use tollgate::limit::{Charge, Limiter as _, RateLimits, Verdict};
use tollgate::{CurrentGrant, Decision, Grant, Quota};

use crate::kit::*;
use crate::redis_servers::PrivateRedis;
use crate::slow_wire::SlowWire;

pub const SECRET: [u8; 32] = [7; 32];
pub const HOUR: Duration = Duration::from_secs(3_600);
/// A timeout that only a hanging test exceeds.
pub const NEVER: Duration = Duration::from_secs(60);
pub const OUTAGE_POLICIES: [OutagePolicy; 3] = [OutagePolicy::Reject, OutagePolicy::Admit, OutagePolicy::Local];

pub fn alice() -> CurrentGrant {
    CurrentGrant::new(Grant::new("alice", ()))
}

/// Returns one server, whose queue never times out.
pub fn node(server: &PrivateRedis, wire: &SlowWire, limits: RateLimits) -> RedisLimits {
    let server = RedisServer::single(&server.url_through(wire.address())).unwrap();
    RedisLimits::new(limits, server, SECRET, NonZeroU32::MIN).unwrap().with_queue_timeout(NEVER)
}

pub fn start(test: &str, round_trip: Duration) -> Option<(PrivateRedis, SlowWire)> {
    let server = PrivateRedis::start(test)?;
    let wire = SlowWire::to(server.address(), round_trip);
    Some((server, wire))
}

/// Makes concurrent charges of one subject, each in its own task.
pub async fn charge_concurrently(nodes: &[RedisLimits], costs: impl IntoIterator<Item = u32>) -> Vec<(u32, Decision)> {
    let charge = |(at, cost): (usize, u32)| {
        let node = nodes[at % nodes.len()].clone();
        tokio::spawn(async move { (cost, node.charge(&alice(), Charge::Units(cost)).await) })
    };
    let charges: Vec<_> = costs.into_iter().enumerate().map(charge).collect();
    let mut decisions = Vec::new();
    for charge in charges {
        decisions.push(tokio::time::timeout(NEVER, charge).await.expect("the charge hangs").unwrap());
    }
    decisions
}

pub fn admitted(decisions: &[(u32, Decision)]) -> u64 {
    decisions.iter().filter(|(_, decision)| decision.is_admitted()).map(|(cost, _)| u64::from(*cost)).sum()
}

pub fn count(decisions: &[(u32, Decision)], is: impl Fn(&Decision) -> bool) -> usize {
    decisions.iter().filter(|(_, decision)| is(decision)).count()
}

/// Returns whether Redis was so slow that a local decision may be correct.
///
/// The limit is half of the default timeout.
pub fn is_too_slow(test: &str, longest: Duration) -> bool {
    let is_too_slow = longest > Duration::from_millis(125);
    if is_too_slow {
        println!("Redis took {longest:?} to reply, too slow to test {test}");
    }
    is_too_slow
}

/// A reproducible sequence of random numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    pub fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }
}

/// Makes more charges than sequential lease requests can serve within the timeout.
#[tokio::test]
async fn a_charge_that_waits_too_long_for_a_lease_asks_redis_itself() {
    let test = "a_charge_that_waits_too_long_for_a_lease_asks_redis_itself";
    for policy in OUTAGE_POLICIES {
        for (burst, charges) in [(180, 300), (1_500, 4_000)] {
            let Some((server, wire)) = start(test, Duration::from_millis(20)) else { return };
            let limits = node(&server, &wire, RateLimits::new(Quota::one_per(HOUR).with_burst(burst)));
            let limits = limits.with_outage_policy(policy).with_leases(Leases::default()).unwrap();
            let heartbeat = wire.watch();
            let decisions = charge_concurrently(from_ref(&limits), (0..charges).map(|_| 1)).await;
            let longest = heartbeat.longest();
            if is_too_slow(test, longest) {
                continue;
            }
            assert_eq!(count(&decisions, Decision::is_local), 0, "{policy:?}");
            assert_eq!(count(&decisions, |decision| decision.verdict() == Verdict::Unavailable), 0, "{policy:?}");
            // The rest of a lease, an eighth of the burst, stays for later charges. A lease holds back the refill of its duration, less
            // than one unit.
            let (admitted, burst) = (admitted(&decisions), u64::from(burst));
            assert!((burst - burst / 8 - 1..=burst).contains(&admitted), "{policy:?}: {admitted}");
            assert_eq!(limits.state(), BreakerState::Closed);
        }
    }
}

/// A lease ends before its reply arrives.
#[tokio::test]
async fn a_reply_that_takes_longer_than_a_lease_costs_one_lease() {
    const CHARGES: u32 = 20;
    const ROUNDS: u32 = 5;
    let test = "a_reply_that_takes_longer_than_a_lease_costs_one_lease";
    let Some((server, wire)) = start(test, Duration::from_millis(40)) else { return };
    let quota = Quota::one_per(HOUR).with_burst(2_000);
    let limits = node(&server, &wire, RateLimits::new(quota)).with_timeout(NEVER);
    let limits = limits.with_leases(Leases::default().with_longest(Duration::from_millis(20))).unwrap();
    for _ in 0..ROUNDS {
        let decisions = charge_concurrently(from_ref(&limits), [1; CHARGES as usize]).await;
        assert_eq!(admitted(&decisions), u64::from(CHARGES));
    }
    let left = limits.usage(alice().subject(), None).await.unwrap().remaining();
    // The first charge leases what the others of its round wait for. A lease holds back less than one unit.
    let least = 2_000 - ROUNDS * CHARGES - (CHARGES - 1) - 1;
    assert!(left >= least, "{left} of {least}");
}

#[tokio::test]
async fn redis_decides_six_thousand_concurrent_charges() {
    let test = "redis_decides_six_thousand_concurrent_charges";
    for leases in [None, Some(Leases::default())] {
        let Some((server, wire)) = start(test, Duration::from_millis(16)) else { return };
        let mut limits = node(&server, &wire, RateLimits::new(Quota::one_per(HOUR).with_burst(2_000)));
        if let Some(leases) = leases {
            limits = limits.with_leases(leases).unwrap();
        }
        let heartbeat = wire.watch();
        let decisions = charge_concurrently(from_ref(&limits), [1; 6_000]).await;
        let longest = heartbeat.longest();
        if is_too_slow(test, longest) {
            continue;
        }
        assert_eq!(count(&decisions, Decision::is_local), 0);
        assert_eq!(count(&decisions, |decision| decision.verdict() == Verdict::Unavailable), 0);
        // The rest of a lease may stay for later charges.
        let least = if leases.is_some() { 1_749 } else { 2_000 };
        assert!((least..=2_000).contains(&admitted(&decisions)), "{}", admitted(&decisions));
        assert_eq!(limits.state(), BreakerState::Closed);
    }
}

/// Each charge has another subject, so that none uses a cached rejection or a lease of another.
#[tokio::test]
async fn redis_decides_charges_of_six_thousand_concurrent_subjects() {
    let test = "redis_decides_charges_of_six_thousand_concurrent_subjects";
    let Some((server, wire)) = start(test, Duration::from_millis(16)) else { return };
    let limits = node(&server, &wire, RateLimits::new(Quota::one_per(HOUR).with_burst(20)));
    let heartbeat = wire.watch();
    let charges: Vec<_> = (0..6_000)
        .map(|subject| {
            let (limits, grant) = (limits.clone(), CurrentGrant::new(Grant::new(subject.to_string(), ())));
            tokio::spawn(async move { limits.charge(&grant, ONE).await })
        })
        .collect();
    let mut decisions = Vec::new();
    for charge in charges {
        decisions.push((1, charge.await.unwrap()));
    }
    let longest = heartbeat.longest();
    if is_too_slow(test, longest) {
        return;
    }
    assert_eq!(count(&decisions, Decision::is_local), 0);
    assert_eq!(admitted(&decisions), 6_000);
}

/// When the process continues, the timeout has expired, and the command is not even sent.
#[tokio::test]
async fn a_paused_process_does_not_count_as_a_redis_failure() {
    let test = "a_paused_process_does_not_count_as_a_redis_failure";
    let Some((server, wire)) = start(test, Duration::from_millis(10)) else { return };
    let limits = node(&server, &wire, RateLimits::new(Quota::one_per(HOUR).with_burst(180)));
    let limits = limits.with_timeout(Duration::from_millis(400));
    assert!(!limits.charge(&alice(), ONE).await.is_local());
    for leases in [None, Some(Leases::default())] {
        let limits = match leases {
            None => limits.clone(),
            Some(leases) => limits.clone().with_leases(leases).unwrap(),
        };
        let stall = async { std::thread::sleep(Duration::from_millis(1_000)) };
        let grant = alice();
        let charges = futures_util::future::join_all((0..8).map(|_| limits.charge(&grant, ONE).into_future()));
        let (decisions, ()) = tokio::join!(charges, stall);
        assert!(decisions.iter().all(|decision| !decision.is_local()), "{leases:?}");
    }
}

/// The connection takes most of the timeout, and so does the command.
#[tokio::test]
async fn connection_time_does_not_reduce_the_command_timeout() {
    let test = "connection_time_does_not_reduce_the_command_timeout";
    let Some((server, wire)) = start(test, Duration::ZERO) else { return };
    let quota = Quota::one_per(HOUR).with_burst(180);
    // Redis has the script then, so that one trip is enough.
    assert!(!node(&server, &wire, RateLimits::new(quota)).charge(&alice(), ONE).await.is_local());
    wire.set_round_trip(Duration::from_millis(500));
    let limits = node(&server, &wire, RateLimits::new(quota)).with_timeout(Duration::from_millis(800));
    let before = wire.connections();
    let decisions = charge_concurrently(from_ref(&limits), [1; 300]).await;
    assert_eq!(count(&decisions, Decision::is_local), 0);
    assert_eq!((admitted(&decisions), limits.state()), (179, BreakerState::Closed));
    assert_eq!(wire.connections() - before, 1);
}

#[tokio::test]
async fn a_queue_timeout_is_no_outage_and_adds_no_local_quota() {
    let test = "a_queue_timeout_is_no_outage_and_adds_no_local_quota";
    for policy in OUTAGE_POLICIES {
        for leases in [None, Some(Leases::default())] {
            let Some((server, wire)) = start(test, Duration::from_millis(30)) else { return };
            let quota = Quota::one_per(HOUR).with_burst(100);
            let mut limits = node(&server, &wire, RateLimits::new(quota)).with_outage_policy(policy);
            limits = limits.with_timeout(NEVER).with_max_in_flight(NonZeroU32::MIN);
            limits = limits.with_queue_timeout(Duration::from_millis(100)).with_failure_threshold(NonZeroU32::MIN);
            if let Some(leases) = leases {
                // A lease request has half of the timeout, which would be too long here.
                limits = limits.with_leases(leases).unwrap().with_timeout(Duration::from_millis(400));
            }
            let decisions = charge_concurrently(from_ref(&limits), [1; 1_000]).await;
            let timed_out = count(&decisions, |decision| decision.verdict() == Verdict::Unavailable);
            assert!(timed_out > 0 || leases.is_some(), "{policy:?}");
            assert_eq!(count(&decisions, Decision::is_local), 0, "{policy:?}");
            assert!(admitted(&decisions) <= 100, "{policy:?}: {}", admitted(&decisions));
            assert_eq!(limits.state(), BreakerState::Closed);
            let retry = decisions.iter().find(|(_, decision)| decision.verdict() == Verdict::Unavailable);
            assert!(retry.is_none_or(|(_, decision)| decision.retry_after_secs() == Some(1)), "{retry:?}");
        }
    }
}

#[tokio::test]
async fn a_dry_run_rejects_nothing_when_the_queue_times_out() {
    let test = "a_dry_run_rejects_nothing_when_the_queue_times_out";
    let Some((server, wire)) = start(test, Duration::from_millis(50)) else { return };
    let limits = RateLimits::new(Limit::from(Quota::one_per(HOUR).with_burst(10)).with_dry_run());
    let limits = node(&server, &wire, limits).with_max_in_flight(NonZeroU32::MIN);
    let limits = limits.with_timeout(NEVER).with_queue_timeout(Duration::from_millis(20));
    let decisions = charge_concurrently(from_ref(&limits), [1; 50]).await;
    assert_eq!(admitted(&decisions), 50);
    assert!(count(&decisions, |decision| decision.verdict() == Verdict::Unavailable) > 0);
}

#[tokio::test]
async fn dry_runs_reject_nothing_in_an_outage() {
    let Some(mut server) = PrivateRedis::start("dry_runs_reject_nothing_in_an_outage") else { return };
    server.kill();
    for policy in OUTAGE_POLICIES {
        let quota = Quota::one_per(HOUR).with_burst(1);
        let one = RateLimits::new(Limit::from(quota).with_anonymous(quota).with_dry_run());
        let two = one.clone().and(Limit::new("other", quota).unwrap().with_dry_run()).unwrap();
        for (limits, policies) in [(one.clone(), 1), (two, 2)] {
            let redis = RedisServer::single(&server.url()).unwrap();
            let limits = RedisLimits::new(limits, redis, SECRET, NonZeroU32::MIN).unwrap();
            let limits = limits.with_outage_policy(policy).with_failure_threshold(2.try_into().unwrap());
            for _ in 0..6 {
                for decision in [limits.charge(&alice(), ONE).await, limits.charge_anonymous(ONE).await] {
                    assert!(decision.is_admitted() && decision.is_local(), "{policy:?}: {decision:?}");
                }
            }
            let decision = limits.charge(&alice(), ONE).await;
            assert_eq!(decision.would_be_rejected(), policy != OutagePolicy::Admit, "{policy:?}: {decision:?}");
            let named = decision.parts().filter(|part| part.policy().is_some()).count();
            assert_eq!(named, if policy == OutagePolicy::Admit { 0 } else { policies });
        }
        // A dry run does not change the decisions of an enforced policy.
        let redis = RedisServer::single(&server.url()).unwrap();
        let both = one.and(Limit::new("binding", quota).unwrap()).unwrap();
        let limits = RedisLimits::new(both, redis, SECRET, NonZeroU32::MIN).unwrap().with_outage_policy(policy);
        let first = limits.charge(&alice(), ONE).await.is_admitted();
        let second = limits.charge(&alice(), ONE).await.is_admitted();
        let expected = match policy {
            OutagePolicy::Reject => (false, false),
            OutagePolicy::Admit => (true, true),
            _ => (true, false),
        };
        assert_eq!((first, second), expected, "{policy:?}");
    }
}

/// While Redis is silent, queued charges are decided as soon as the breaker opens.
///
/// They add at most one local quota to what Redis has admitted.
#[tokio::test]
async fn a_breaker_that_opens_under_load_adds_one_local_quota() {
    let test = "a_breaker_that_opens_under_load_adds_one_local_quota";
    for leases in [None, Some(Leases::default())] {
        let Some((server, wire)) = start(test, Duration::from_millis(10)) else { return };
        let quota = Quota::one_per(HOUR).with_burst(500);
        let mut limits = node(&server, &wire, RateLimits::new(quota)).with_backoff(HOUR, HOUR).unwrap();
        if let Some(leases) = leases {
            limits = limits.with_leases(leases).unwrap();
        }
        let first = charge_concurrently(from_ref(&limits), [1; 200]).await;
        assert_eq!((count(&first, Decision::is_local), admitted(&first)), (0, 200));
        wire.set_silent(true);
        let begin = Instant::now();
        let then = charge_concurrently(from_ref(&limits), [1; 3_000]).await;
        assert_eq!(limits.state(), BreakerState::Open);
        // The queue timeout is far longer.
        assert!(begin.elapsed() < NEVER / 2);
        let (local, by_redis): (Vec<_>, Vec<_>) = then.into_iter().partition(|(_, decision)| decision.is_local());
        assert!(admitted(&local) <= 500, "{}", admitted(&local));
        // From leases granted before.
        assert!(admitted(&by_redis) <= 300, "{}", admitted(&by_redis));
        assert!(leases.is_some() || by_redis.is_empty());
    }
}

/// Checks that a dropped charge frees its permit, wherever it waits.
#[tokio::test]
async fn dropped_charges_free_their_permits() {
    let test = "dropped_charges_free_their_permits";
    for leases in [None, Some(Leases::default())] {
        let Some((server, wire)) = start(test, Duration::from_millis(5)) else { return };
        let quota = Quota::one_per(HOUR).with_burst(10_000);
        let mut limits = node(&server, &wire, RateLimits::new(quota).with_refunds()).with_timeout(NEVER);
        if let Some(leases) = leases {
            limits = node(&server, &wire, RateLimits::new(quota)).with_timeout(NEVER).with_leases(leases).unwrap();
        }
        let limits = limits.with_max_in_flight(2.try_into().unwrap());
        let (mut random, grant) = (Random(7), alice());
        for _ in 0..20 {
            let mut charges: Vec<_> = (0..12).map(|_| Box::pin(limits.charge(&grant, ONE).into_future())).collect();
            let mut context = Context::from_waker(Waker::noop());
            // Some charges are dropped before anything has happened, and some later.
            charges.retain_mut(|charge| charge.as_mut().poll(&mut context).is_pending() && random.below(3) > 0);
            let timeout = Duration::from_millis(random.below(15));
            _ = tokio::time::timeout(timeout, futures_util::future::join_all(charges)).await;
        }
        let decisions = charge_concurrently(from_ref(&limits), [1; 40]).await;
        assert_eq!((admitted(&decisions), count(&decisions, Decision::is_local)), (40, 0));
        if leases.is_none() {
            let before = limits.charge(&alice(), Charge::Units(0)).await.remaining();
            let refunds: Vec<_> = decisions.iter().map(|(_, decision)| decision.refund()).collect();
            futures_util::future::join_all(refunds).await;
            assert_eq!(limits.charge(&alice(), Charge::Units(0)).await.remaining(), before + 40);
        }
    }
}

/// After a pause one of many charges probes. The others are decided meanwhile, and none asks twice.
#[tokio::test]
async fn one_of_many_charges_probes() {
    let test = "one_of_many_charges_probes";
    let Some((server, wire)) = start(test, Duration::from_millis(20)) else { return };
    let hands = Hands::default();
    let limits = node(&server, &wire, hands.limits(Quota::one_per(HOUR).with_burst(1_000)));
    let limits = limits
        .with_backoff(HOUR, HOUR)
        .unwrap()
        .with_failure_threshold(NonZeroU32::MIN)
        .with_outage_policy(OutagePolicy::Reject);
    let limits = limits.with_max_in_flight(NonZeroU32::MIN);
    wire.set_silent(true);
    charge_concurrently(from_ref(&limits), [1; 100]).await;
    assert_eq!(limits.state(), BreakerState::Open);
    wire.set_silent(false);
    let begin = Instant::now();
    loop {
        hands.advance(HOUR);
        let before = server.trips();
        let decisions = charge_concurrently(from_ref(&limits), [1; 100]).await;
        if limits.state() == BreakerState::Closed {
            assert_eq!(admitted(&decisions), 1);
            // One more trip is a NOSCRIPT.
            assert!(server.trips() - before <= 2);
            return;
        }
        assert!(begin.elapsed() < NEVER, "the breaker never closes");
    }
}
