//! Many charges at the same time: no local queue is taken for an outage, and nothing adds to what Redis admits.
#![allow(clippy::print_stdout, reason = "a failed test shows the seed, and what the machine did")]

use std::num::NonZeroU32;
use std::slice::from_ref;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tollgate::limit::redis::{BreakerState, Leases, OutagePolicy, RedisLimits, RedisServer};
use tollgate::limit::{Charge, Limiter as _, RateLimits, Verdict};
use tollgate::{CurrentGrant, Decision, Grant, Limit, Quota};

use crate::kit::*;
use crate::redis_servers::{PrivateRedis, time_of};
use crate::slow_wire::SlowWire;

const SECRET: [u8; 32] = [7; 32];
const HOUR: Duration = Duration::from_secs(3_600);
/// Nothing takes so long, on any machine, unless it hangs.
const NEVER: Duration = Duration::from_secs(60);
const OUTAGE_POLICIES: [OutagePolicy; 3] = [OutagePolicy::Reject, OutagePolicy::Admit, OutagePolicy::Local];

fn alice() -> CurrentGrant {
    CurrentGrant::new(Grant::new("alice", ()))
}

/// One server of a service, whose queue never times out.
fn node(server: &PrivateRedis, wire: &SlowWire, limits: RateLimits) -> RedisLimits {
    let server = RedisServer::single(&server.url_through(wire.address())).unwrap();
    RedisLimits::new(limits, server, SECRET, NonZeroU32::MIN).unwrap().with_queue_timeout(NEVER)
}

fn start(test: &str, round_trip: Duration) -> Option<(PrivateRedis, SlowWire)> {
    let server = PrivateRedis::start(test)?;
    let wire = SlowWire::to(server.address(), round_trip);
    Some((server, wire))
}

/// Makes the charges of one subject at the same time, each in a task of its own.
async fn all_at_once(nodes: &[RedisLimits], costs: impl IntoIterator<Item = u32>) -> Vec<(u32, Decision)> {
    let charge = |(at, cost): (usize, u32)| {
        let node = nodes[at % nodes.len()].clone();
        tokio::spawn(async move { (cost, node.charge(&alice(), Charge::Units(cost)).await) })
    };
    let charges: Vec<_> = costs.into_iter().enumerate().map(charge).collect();
    let mut decisions = Vec::new();
    for charge in charges {
        decisions.push(tokio::time::timeout(NEVER, charge).await.expect("a charge hangs").unwrap());
    }
    decisions
}

fn admitted(decisions: &[(u32, Decision)]) -> u64 {
    decisions.iter().filter(|(_, decision)| decision.is_admitted()).map(|(cost, _)| u64::from(*cost)).sum()
}

fn count(decisions: &[(u32, Decision)], is: impl Fn(&Decision) -> bool) -> usize {
    decisions.iter().filter(|(_, decision)| is(decision)).count()
}

/// Whether Redis took so long that a local decision may be right. The default deadline is twice as long.
fn is_too_slow(test: &str, longest: Duration) -> bool {
    let is_too_slow = longest > Duration::from_millis(125);
    if is_too_slow {
        println!("Redis took {longest:?} to reply, which says nothing of {test}");
    }
    is_too_slow
}

/// A reproducible sequence of random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }
}

#[derive(Debug)]
struct Case {
    round_trip: Duration,
    deadline: Duration,
    when_down: OutagePolicy,
    leases: Option<Leases>,
    nodes: u64,
    threads: u64,
    max_in_flight: u64,
    quota: Quota,
    /// Charges that come at the same time, several times.
    waves: Vec<u64>,
    largest_cost: u64,
    /// How long the runtime stands still now and then.
    stall: Duration,
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let threads = 1 + random.below(3);
        // Where the system lets one thread wait that has to read, the others count on.
        let deadlines = if threads == 1 { [200, 250, 400, 1_000] } else { [1_000, 1_000, 2_000, 3_000] };
        Self {
            round_trip: Duration::from_millis(1 + random.below(50)),
            deadline: Duration::from_millis(random.one_of(&deadlines)),
            when_down: random.one_of(&OUTAGE_POLICIES),
            leases: random.one_of(&[None, Some(Leases::default()), Some(Leases::default())]),
            nodes: 1 + random.below(3),
            threads,
            max_in_flight: random.one_of(&[4, 64, 256, 256]),
            quota: Quota::per_second(random.one_of(&[20, 100, 500])).with_burst(20 + random.below(500) as u32),
            waves: (0..1 + random.below(3)).map(|_| 50 + random.below(500)).collect(),
            largest_cost: 1 + random.below(3),
            stall: Duration::from_millis(random.one_of(&[0, 0, 60, 700])),
        }
    }

    fn runtime(&self) -> tokio::runtime::Runtime {
        let mut builder = match self.threads {
            1 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        builder.worker_threads(self.threads as usize).enable_all().build().unwrap()
    }

    /// Runs it. Returns whether Redis replied in time all the while, so that the result says something.
    fn run(&self, random: &mut Random, (server, wire): &(PrivateRedis, SlowWire), prefix: &str) -> bool {
        wire.set_round_trip(self.round_trip);
        let limits = || {
            let limits = node(server, wire, RateLimits::new(self.quota)).with_prefix(prefix).unwrap();
            let limits = limits.with_timeout(self.deadline).with_outage_policy(self.when_down);
            let limits = limits.with_max_in_flight(u32::try_from(self.max_in_flight).unwrap().try_into().unwrap());
            match self.leases {
                None => limits,
                Some(leases) => limits.with_leases(leases),
            }
        };
        let nodes: Vec<_> = (0..self.nodes).map(|_| limits()).collect();
        let mut decisions = Vec::new();
        let heartbeat = wire.watch();
        let begin = time_of(&server.url());
        self.runtime().block_on(async {
            for wave in &self.waves {
                let costs: Vec<_> = (0..*wave).map(|_| 1 + random.below(self.largest_cost) as u32).collect();
                let stall = (self.stall, Duration::from_millis(random.below(60)));
                let stalls = tokio::spawn(async move {
                    tokio::time::sleep(stall.1).await;
                    std::thread::sleep(stall.0);
                });
                decisions.extend(all_at_once(&nodes, costs).await);
                stalls.await.unwrap();
                tokio::time::sleep(Duration::from_millis(random.below(100))).await;
            }
        });
        let passed = time_of(&server.url()) - begin;
        let longest = heartbeat.longest();
        let bound = u64::from(self.quota.burst())
            + u64::try_from(passed.as_nanos() / self.quota.interval().as_nanos()).unwrap();
        if longest * 2 > self.deadline {
            println!("Redis took {longest:?} to reply, which says nothing of {self:?}");
            return false;
        }
        let local = count(&decisions, Decision::is_local);
        assert_eq!(local, 0, "{local} of {} were local, the longest round trip was {longest:?}", decisions.len());
        assert!(admitted(&decisions) <= bound, "{} of {bound}", admitted(&decisions));
        let unknown = count(&decisions, |decision| decision.verdict() == Verdict::Unavailable);
        assert_eq!(unknown, 0);
        assert!(nodes.iter().all(|node| node.state() == BreakerState::Closed));
        true
    }
}

#[test]
fn charges_of_one_subject_at_the_same_time_keep_to_the_bound_and_are_never_local() {
    let test = "charges_of_one_subject_at_the_same_time_keep_to_the_bound_and_are_never_local";
    let Some(servers) = start(test, Duration::ZERO) else { return };
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    let seed = std::env::var("TOLLGATE_TEST_SEED").map_or(u64::from_ne_bytes(seed), |seed| seed.parse().unwrap());
    println!("TOLLGATE_TEST_SEED={seed}");
    let mut random = Random(seed);
    let mut checked = 0;
    for at in 0..24 {
        let case = Case::random(&mut random);
        println!("{at}: {case:?}");
        checked += u32::from(case.run(&mut random, &servers, &format!("case-{at}:")));
    }
    assert!(checked > 0, "Redis was never fast enough to say anything");
}

/// More charges than purchases can serve within the deadline, one after the other.
#[tokio::test]
async fn a_charge_that_waits_too_long_for_a_purchase_asks_redis_itself() {
    let test = "a_charge_that_waits_too_long_for_a_purchase_asks_redis_itself";
    for when_down in OUTAGE_POLICIES {
        for (burst, charges) in [(180, 300), (1_500, 4_000)] {
            let Some((server, wire)) = start(test, Duration::from_millis(20)) else { return };
            let limits = node(&server, &wire, RateLimits::new(Quota::one_per(HOUR).with_burst(burst)));
            let limits = limits.with_outage_policy(when_down).with_leases(Leases::default());
            let heartbeat = wire.watch();
            let decisions = all_at_once(from_ref(&limits), (0..charges).map(|_| 1)).await;
            let longest = heartbeat.longest();
            if is_too_slow(test, longest) {
                continue;
            }
            assert_eq!(count(&decisions, Decision::is_local), 0, "{when_down:?}");
            assert_eq!(count(&decisions, |decision| decision.verdict() == Verdict::Unavailable), 0, "{when_down:?}");
            // What is left of a lease, an eighth of the burst, is there for those who come later. And a lease keeps back what comes
            // back in its time, less than one cell.
            let (admitted, burst) = (admitted(&decisions), u64::from(burst));
            assert!((burst - burst / 8 - 1..=burst).contains(&admitted), "{when_down:?}: {admitted}");
            assert_eq!(limits.state(), BreakerState::Closed);
        }
    }
}

#[tokio::test]
async fn six_thousand_charges_at_the_same_time_are_decided_by_redis() {
    let test = "six_thousand_charges_at_the_same_time_are_decided_by_redis";
    for leases in [None, Some(Leases::default())] {
        let Some((server, wire)) = start(test, Duration::from_millis(16)) else { return };
        let mut limits = node(&server, &wire, RateLimits::new(Quota::one_per(HOUR).with_burst(2_000)));
        if let Some(leases) = leases {
            limits = limits.with_leases(leases);
        }
        let heartbeat = wire.watch();
        let decisions = all_at_once(from_ref(&limits), [1; 6_000]).await;
        let longest = heartbeat.longest();
        if is_too_slow(test, longest) {
            continue;
        }
        assert_eq!(count(&decisions, Decision::is_local), 0);
        assert_eq!(count(&decisions, |decision| decision.verdict() == Verdict::Unavailable), 0);
        // And maybe a lease that is left over for those who come later.
        let least = if leases.is_some() { 1_749 } else { 2_000 };
        assert!((least..=2_000).contains(&admitted(&decisions)), "{}", admitted(&decisions));
        assert_eq!(limits.state(), BreakerState::Closed);
    }
}

/// Each of another subject, so that none is answered by what another was told.
#[tokio::test]
async fn six_thousand_subjects_at_the_same_time_are_decided_by_redis() {
    let test = "six_thousand_subjects_at_the_same_time_are_decided_by_redis";
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

/// When the process goes on, the timeout is over, and the command is not even sent.
#[tokio::test]
async fn a_process_that_stands_still_takes_redis_for_alive() {
    let test = "a_process_that_stands_still_takes_redis_for_alive";
    let Some((server, wire)) = start(test, Duration::from_millis(10)) else { return };
    let limits = node(&server, &wire, RateLimits::new(Quota::one_per(HOUR).with_burst(180)));
    let limits = limits.with_timeout(Duration::from_millis(400));
    assert!(!limits.charge(&alice(), ONE).await.is_local());
    for leases in [None, Some(Leases::default())] {
        let limits = match leases {
            None => limits.clone(),
            Some(leases) => limits.clone().with_leases(leases),
        };
        let stall = async { std::thread::sleep(Duration::from_millis(1_000)) };
        let grant = alice();
        let charges = futures_util::future::join_all((0..8).map(|_| limits.charge(&grant, ONE).into_future()));
        let (decisions, ()) = tokio::join!(charges, stall);
        assert!(decisions.iter().all(|decision| !decision.is_local()), "{leases:?}");
    }
}

/// The connection takes most of the deadline, and the command as much again.
#[tokio::test]
async fn the_time_for_a_connection_is_not_taken_from_the_command() {
    let test = "the_time_for_a_connection_is_not_taken_from_the_command";
    let Some((server, wire)) = start(test, Duration::ZERO) else { return };
    let quota = Quota::one_per(HOUR).with_burst(180);
    // Redis knows the script then, so that one trip is enough.
    assert!(!node(&server, &wire, RateLimits::new(quota)).charge(&alice(), ONE).await.is_local());
    wire.set_round_trip(Duration::from_millis(500));
    let limits = node(&server, &wire, RateLimits::new(quota)).with_timeout(Duration::from_millis(800));
    let before = wire.taken();
    let decisions = all_at_once(from_ref(&limits), [1; 300]).await;
    assert_eq!(count(&decisions, Decision::is_local), 0);
    assert_eq!((admitted(&decisions), limits.state()), (179, BreakerState::Closed));
    assert_eq!(wire.taken() - before, 1);
}

#[tokio::test]
async fn a_charge_that_waits_longer_than_the_queue_timeout_is_no_outage_and_no_second_quota() {
    let test = "a_charge_that_waits_longer_than_the_queue_timeout_is_no_outage_and_no_second_quota";
    for when_down in OUTAGE_POLICIES {
        for leases in [None, Some(Leases::default())] {
            let Some((server, wire)) = start(test, Duration::from_millis(30)) else { return };
            let quota = Quota::one_per(HOUR).with_burst(100);
            let mut limits = node(&server, &wire, RateLimits::new(quota)).with_outage_policy(when_down);
            limits = limits.with_timeout(NEVER).with_max_in_flight(NonZeroU32::MIN);
            limits = limits.with_queue_timeout(Duration::from_millis(100)).with_failure_threshold(1);
            if let Some(leases) = leases {
                // A purchase has half of the deadline, and that is for ever here.
                limits = limits.with_leases(leases).with_timeout(Duration::from_millis(400));
            }
            let decisions = all_at_once(from_ref(&limits), [1; 1_000]).await;
            let timed_out = count(&decisions, |decision| decision.verdict() == Verdict::Unavailable);
            assert!(timed_out > 0 || leases.is_some(), "{when_down:?}");
            assert_eq!(count(&decisions, Decision::is_local), 0, "{when_down:?}");
            assert!(admitted(&decisions) <= 100, "{when_down:?}: {}", admitted(&decisions));
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
    let decisions = all_at_once(from_ref(&limits), [1; 50]).await;
    assert_eq!(admitted(&decisions), 50);
    assert!(count(&decisions, |decision| decision.verdict() == Verdict::Unavailable) > 0);
}

#[tokio::test]
async fn dry_runs_reject_nothing_while_redis_is_away() {
    let Some(mut server) = PrivateRedis::start("dry_runs_reject_nothing_while_redis_is_away") else { return };
    server.kill();
    for when_down in OUTAGE_POLICIES {
        let quota = Quota::one_per(HOUR).with_burst(1);
        let one = RateLimits::new(Limit::from(quota).with_anonymous(quota).with_dry_run());
        let two = one.clone().and(Limit::new("other", quota).unwrap().with_dry_run()).unwrap();
        for (limits, policies) in [(one.clone(), 1), (two, 2)] {
            let redis = RedisServer::single(&server.url()).unwrap();
            let limits = RedisLimits::new(limits, redis, SECRET, NonZeroU32::MIN).unwrap();
            let limits = limits.with_outage_policy(when_down).with_failure_threshold(2);
            for _ in 0..6 {
                for decision in [limits.charge(&alice(), ONE).await, limits.charge_anonymous(ONE).await] {
                    assert!(decision.is_admitted() && decision.is_local(), "{when_down:?}: {decision:?}");
                }
            }
            let decision = limits.charge(&alice(), ONE).await;
            assert_eq!(decision.would_be_rejected(), when_down != OutagePolicy::Admit, "{when_down:?}: {decision:?}");
            let named = decision.parts().filter(|part| part.policy().is_some()).count();
            assert_eq!(named, if when_down == OutagePolicy::Admit { 0 } else { policies });
        }
        // Beside a policy that limits in earnest it changes nothing.
        let redis = RedisServer::single(&server.url()).unwrap();
        let both = one.and(Limit::new("binding", quota).unwrap()).unwrap();
        let limits = RedisLimits::new(both, redis, SECRET, NonZeroU32::MIN).unwrap().with_outage_policy(when_down);
        let first = limits.charge(&alice(), ONE).await.is_admitted();
        let second = limits.charge(&alice(), ONE).await.is_admitted();
        let expected = match when_down {
            OutagePolicy::Reject => (false, false),
            OutagePolicy::Admit => (true, true),
            _ => (true, false),
        };
        assert_eq!((first, second), expected, "{when_down:?}");
    }
}

/// While Redis is silent those that wait in the queue are decided as soon as the breaker opens, and add no more than a server's
/// own quota to what Redis has admitted.
#[tokio::test]
async fn a_breaker_that_opens_under_load_adds_one_local_quota() {
    let test = "a_breaker_that_opens_under_load_adds_one_local_quota";
    for leases in [None, Some(Leases::default())] {
        let Some((server, wire)) = start(test, Duration::from_millis(10)) else { return };
        let quota = Quota::one_per(HOUR).with_burst(500);
        let mut limits = node(&server, &wire, RateLimits::new(quota)).with_backoff(HOUR, HOUR);
        if let Some(leases) = leases {
            limits = limits.with_leases(leases);
        }
        let first = all_at_once(from_ref(&limits), [1; 200]).await;
        assert_eq!((count(&first, Decision::is_local), admitted(&first)), (0, 200));
        wire.set_silent(true);
        let begin = Instant::now();
        let then = all_at_once(from_ref(&limits), [1; 3_000]).await;
        assert_eq!(limits.state(), BreakerState::Open);
        // The queue timeout is far longer.
        assert!(begin.elapsed() < NEVER / 2);
        let (local, by_redis): (Vec<_>, Vec<_>) = then.into_iter().partition(|(_, decision)| decision.is_local());
        assert!(admitted(&local) <= 500, "{}", admitted(&local));
        // Of leases that were bought before.
        assert!(admitted(&by_redis) <= 300, "{}", admitted(&by_redis));
        assert!(leases.is_some() || by_redis.is_empty());
    }
}

/// Wherever it waits, a charge that is dropped leaves its place to the next.
#[tokio::test]
async fn charges_that_are_dropped_leave_their_places() {
    let test = "charges_that_are_dropped_leave_their_places";
    for leases in [None, Some(Leases::default())] {
        let Some((server, wire)) = start(test, Duration::from_millis(5)) else { return };
        let quota = Quota::one_per(HOUR).with_burst(10_000);
        let mut limits = node(&server, &wire, RateLimits::new(quota).with_refunds()).with_timeout(NEVER);
        if let Some(leases) = leases {
            limits = node(&server, &wire, RateLimits::new(quota)).with_timeout(NEVER).with_leases(leases);
        }
        let limits = limits.with_max_in_flight(2.try_into().unwrap());
        let (mut random, grant) = (Random(7), alice());
        for _ in 0..20 {
            let mut charges: Vec<_> = (0..12).map(|_| Box::pin(limits.charge(&grant, ONE).into_future())).collect();
            let mut context = Context::from_waker(Waker::noop());
            // Some go before anything has happened, and some in the middle.
            charges.retain_mut(|charge| charge.as_mut().poll(&mut context).is_pending() && random.below(3) > 0);
            let patience = Duration::from_millis(random.below(15));
            _ = tokio::time::timeout(patience, futures_util::future::join_all(charges)).await;
        }
        let decisions = all_at_once(from_ref(&limits), [1; 40]).await;
        assert_eq!((admitted(&decisions), count(&decisions, Decision::is_local)), (40, 0));
        if leases.is_none() {
            let before = limits.charge(&alice(), Charge::Units(0)).await.remaining();
            let refunds: Vec<_> = decisions.iter().map(|(_, decision)| decision.refund()).collect();
            futures_util::future::join_all(refunds).await;
            assert_eq!(limits.charge(&alice(), Charge::Units(0)).await.remaining(), before + 40);
        }
    }
}

/// After a pause one of many charges asks; the others are decided meanwhile, and none asks twice.
#[tokio::test]
async fn under_load_one_charge_probes() {
    let test = "under_load_one_charge_probes";
    let Some((server, wire)) = start(test, Duration::from_millis(20)) else { return };
    let hands = Hands::default();
    let limits = node(&server, &wire, hands.limits(Quota::one_per(HOUR).with_burst(1_000)));
    let limits = limits.with_backoff(HOUR, HOUR).with_failure_threshold(1).with_outage_policy(OutagePolicy::Reject);
    let limits = limits.with_max_in_flight(NonZeroU32::MIN);
    wire.set_silent(true);
    all_at_once(from_ref(&limits), [1; 100]).await;
    assert_eq!(limits.state(), BreakerState::Open);
    wire.set_silent(false);
    let begin = Instant::now();
    loop {
        hands.advance(HOUR);
        let before = server.trips();
        let decisions = all_at_once(from_ref(&limits), [1; 100]).await;
        if limits.state() == BreakerState::Closed {
            assert_eq!(admitted(&decisions), 1);
            // And one more trip, since Redis does not know the script.
            assert!(server.trips() - before <= 2);
            return;
        }
        assert!(begin.elapsed() < NEVER, "it never closes");
    }
}
