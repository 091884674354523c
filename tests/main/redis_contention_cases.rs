//! Random cases of many concurrent charges: the total stays within the bound, and no charge is decided locally.
#![allow(clippy::print_stdout, reason = "failed tests print the seed and the measured times")]

use std::time::Duration;

use tollgate::limit::redis::{BreakerState, Leases, OutagePolicy};
use tollgate::limit::{RateLimits, Verdict};
use tollgate::{Decision, Quota};

use crate::redis_contention::*;
use crate::redis_servers::{PrivateRedis, time_of};
use crate::slow_wire::SlowWire;

#[derive(Debug)]
struct Case {
    round_trip: Duration,
    timeout: Duration,
    policy: OutagePolicy,
    leases: Option<Leases>,
    nodes: u64,
    threads: u64,
    max_in_flight: u64,
    quota: Quota,
    /// The number of concurrent charges in each wave.
    waves: Vec<u64>,
    largest_cost: u64,
    /// The length of pauses of the runtime.
    stall: Duration,
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let threads = 1 + random.below(3);
        // If the system pauses the thread that reads replies, the other threads' timeouts go on.
        let timeouts = if threads == 1 { [200, 250, 400, 1_000] } else { [1_000, 1_000, 2_000, 3_000] };
        Self {
            round_trip: Duration::from_millis(1 + random.below(50)),
            timeout: Duration::from_millis(random.one_of(&timeouts)),
            policy: random.one_of(&OUTAGE_POLICIES),
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

    /// Runs the case. Returns whether Redis replied in time throughout, so that the result is valid.
    fn run(&self, random: &mut Random, (server, wire): &(PrivateRedis, SlowWire), prefix: &str) -> bool {
        wire.set_round_trip(self.round_trip);
        let limits = || {
            let limits = node(server, wire, RateLimits::new(self.quota)).with_prefix(prefix).unwrap();
            let limits = limits.with_timeout(self.timeout).with_outage_policy(self.policy);
            let limits = limits.with_max_in_flight(u32::try_from(self.max_in_flight).unwrap().try_into().unwrap());
            match self.leases {
                None => limits,
                Some(leases) => limits.with_leases(leases).unwrap(),
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
                decisions.extend(charge_concurrently(&nodes, costs).await);
                stalls.await.unwrap();
                tokio::time::sleep(Duration::from_millis(random.below(100))).await;
            }
        });
        let passed = time_of(&server.url()) - begin;
        let longest = heartbeat.longest();
        let bound = u64::from(self.quota.burst())
            + u64::try_from(passed.as_nanos() / self.quota.interval().as_nanos()).unwrap();
        if longest * 2 > self.timeout {
            println!("Redis took {longest:?} to reply, too slow to test {self:?}");
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
fn concurrent_charges_of_one_subject_stay_within_the_bound_and_are_never_local() {
    let test = "concurrent_charges_of_one_subject_stay_within_the_bound_and_are_never_local";
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
    assert!(checked > 0, "Redis was too slow in every case");
}
