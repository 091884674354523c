//! Usage and reset of a subject's buckets, without its token.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt as _;
use proptest::prelude::*;
use proptest::sample::Index;
use tollgate::limit::{Charge, Limiter as _, RateLimits};
use tollgate::{CurrentGrant, Decision, Grant, Limit, Quota, Subject};

use crate::kit::*;

const SECOND: Duration = Duration::from_secs(1);
const FIVE: Quota = Quota::one_per(SECOND).with_burst(5);
const PLAN: Quota = Quota::one_per(SECOND).with_burst(50);

fn charge(limits: &RateLimits, grant: &CurrentGrant, units: u32) -> Decision {
    limits.charge(grant, Charge::Units(units))
}

fn remaining(decision: &Decision) -> Vec<u32> {
    decision.parts().map(Decision::remaining).collect()
}

#[test]
fn usage_is_that_of_the_subject_by_its_true_quota() {
    let hands = Hands::default();
    let limits = hands.limits(FIVE).and(Limit::new("all", PLAN).unwrap().shared_by_all()).unwrap();
    let (alice, bob): (Subject, Subject) = ("alice".into(), "bob".into());
    let grant = CurrentGrant::new(Grant::new("alice", ()).with_quota(PLAN));
    assert_eq!(remaining(&limits.usage(&alice, None)), [5, 50]);
    assert_eq!(limits.subjects(), 0, "a look creates no bucket");

    charge(&limits, &grant, 20);
    let usage = limits.usage(&alice, Some(PLAN));
    assert_eq!((remaining(&usage), usage.full_in()), (vec![30, 30], 20 * SECOND));
    assert_eq!(remaining(&limits.usage(&bob, None)), [5, 30]);
    // By a wrong quota, the same units are used. The bucket does not change.
    let slow = Quota::one_per(2 * SECOND).with_burst(100);
    let usage = limits.usage(&alice, Some(slow));
    assert_eq!(usage.parts().next().map(|part| (part.remaining(), part.full_in())), Some((80, 40 * SECOND)));
    assert_eq!(remaining(&charge(&limits, &grant, 1)), [29, 29]);
    hands.advance(10 * SECOND);
    assert_eq!(remaining(&limits.usage(&alice, Some(PLAN))), [39, 39]);
}

#[test]
fn usage_of_a_route_ignores_the_quota_of_the_grant() {
    let limits = Hands::default().limits(FIVE);
    let route = limits.clone().for_route();
    let grant = CurrentGrant::new(Grant::new("alice", ()).with_quota(PLAN));
    charge(&limits, &grant, 20);
    charge(&route, &grant, 2);
    assert_eq!(limits.subjects(), 2, "a bucket for each quota");
    assert_eq!(route.usage(&"alice".into(), Some(PLAN)).remaining(), 3);
    assert_eq!(limits.usage(&"alice".into(), Some(PLAN)).remaining(), 30);
    limits.reset(&"alice".into());
    assert_eq!(route.usage(&"alice".into(), Some(PLAN)).remaining(), 5);
    assert_eq!(charge(&limits, &grant, 0).remaining(), 50);
}

#[test]
fn reset_fills_the_buckets_of_the_subject_only() {
    let limits = Hands::default().limits(FIVE).and(Limit::new("all", PLAN).unwrap().shared_by_all()).unwrap();
    let [alice, bob] = ["alice", "bob"].map(|subject| Arc::new(Grant::new(subject, ())));
    let [alice, bob] = [alice, bob].map(CurrentGrant::new);
    charge(&limits, &alice, 5);
    charge(&limits, &bob, 3);
    assert!(!charge(&limits, &alice, 1).is_admitted());
    limits.reset(&"alice".into());
    assert_eq!(remaining(&charge(&limits, &alice, 1)), [4, 41]);
    assert_eq!(remaining(&charge(&limits, &bob, 0)), [2, 41]);
    // Many resets of a grant that a store keeps.
    for _ in 0..30 {
        charge(&limits, &alice, 1);
        limits.reset(&"alice".into());
        assert_eq!(remaining(&charge(&limits, &alice, 0))[0], 5);
    }
}

#[tokio::test]
async fn charge_before_a_reset_is_not_refunded() {
    let limits = Hands::default().limits(FIVE).with_refunds();
    let alice = CurrentGrant::new(Grant::new("alice", ()));
    let before = charge(&limits, &alice, 3);
    limits.reset(&"alice".into());
    let after = charge(&limits, &alice, 5);
    before.refund().await;
    assert_eq!(charge(&limits, &alice, 0).remaining(), 0);
    after.refund().await;
    assert_eq!(charge(&limits, &alice, 0).remaining(), 5);
}

/// A reset by a clone from before `and`, during a charge that the second limit rejects: its first part is not refunded to the
/// new bucket.
#[test]
fn reset_during_a_rejected_charge_adds_no_unit() {
    let early = Hands::default().limits(FIVE);
    let limits = early.clone().and(Limit::new("second", FIVE.with_burst(1)).unwrap()).unwrap();
    let alice = CurrentGrant::new(Grant::new("alice", ()));
    assert!(charge(&limits, &alice, 1).is_admitted());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert!(!charge(&limits, &alice, 1).is_admitted());
                }
            });
        }
        for _ in 0..10_000 {
            early.reset(&"alice".into());
            let admitted = (0..6).filter(|_| charge(&early, &alice, 1).is_admitted()).count();
            // Or stop, so that the threads end.
            if admitted > 5 {
                stop.store(true, Ordering::Relaxed);
            }
            assert!(admitted <= 5, "{admitted}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[derive(Clone, Debug)]
enum Step {
    Charge(u32),
    Wait(u64),
    /// The quota of the limiter.
    Quota(usize),
    /// The quota of the grant.
    GrantQuota(Option<usize>),
    Refund(Index),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u32..25).prop_map(Step::Charge),
        4 => prop_oneof![0_u64..3, 0_u64..10_000, 0_u64..10_000_000_000].prop_map(Step::Wait),
        2 => (0_usize..3).prop_map(Step::Quota),
        2 => prop::option::of(0_usize..3).prop_map(Step::GrantQuota),
        2 => any::<Index>().prop_map(Step::Refund),
        1 => Just(Step::Reset),
    ]
}

fn quota() -> impl Strategy<Value = Quota> {
    let interval = prop_oneof![1..5_000_u64, 1_000_000..2_000_000_000_u64, Just(333_333_334_u64)];
    (interval, 1_u32..20).prop_map(|(interval, burst)| Quota::one_per(Duration::from_nanos(interval)).with_burst(burst))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// After any charges, waits, changes of quotas, refunds and resets, with one limit or two: the usage is what is admitted next.
    #[test]
    fn usage_is_what_is_admitted_next(
        quotas in prop::array::uniform3(quota()),
        second in prop::option::of(quota()),
        steps in prop::collection::vec(step(), 1..30),
        waits_until_full in any::<bool>(),
    ) {
        let hands = Hands::default();
        hands.set_ns(1_000);
        let mut limits = hands.limits(quotas[0]).with_refunds();
        if let Some(second) = second {
            limits = limits.and(Limit::new("second", second).unwrap()).unwrap();
        }
        let subject = Subject::from("alice");
        let (mut grant_quota, mut made) = (None, Vec::new());
        // Each request has a grant of its own, as after a change in a store. Or the same one, which keeps its bucket.
        let grant = |quota: Option<Quota>| {
            let grant = Grant::new("alice", ());
            CurrentGrant::new(match quota {
                Some(quota) => grant.with_quota(quota),
                None => grant,
            })
        };
        let mut alice = grant(None);
        for step in steps {
            match step {
                Step::Charge(units) => made.push(charge(&limits, &alice, units)),
                Step::Wait(ns) => hands.advance(Duration::from_nanos(ns)),
                Step::Quota(which) => limits.set_quotas([("default", quotas[which])]).unwrap(),
                Step::GrantQuota(which) => {
                    grant_quota = which.map(|which| quotas[which]);
                    alice = grant(grant_quota);
                }
                Step::Refund(which) if !made.is_empty() => {
                    let decision: Decision = made.swap_remove(which.index(made.len()));
                    decision.refund().now_or_never().expect("refunds in memory are immediate");
                }
                Step::Refund(_) => {}
                Step::Reset => limits.reset(&subject),
            }
        }
        let usage = limits.usage(&subject, grant_quota);
        prop_assert_eq!(usage.remaining(), usage.parts().map(Decision::remaining).min().unwrap());
        if waits_until_full {
            // A bucket refills by the quota of its last charge. This one makes the current quota count, and charges nothing.
            charge(&limits, &alice, 0);
            prop_assert_eq!(format!("{:?}", limits.usage(&subject, grant_quota)), format!("{usage:?}"));
            let bursts: Vec<u32> = usage.parts().map(|part| part.policy().unwrap().quota().burst()).collect();
            // The decision itself has the time of the limit with the fewest units left.
            let full_in = |usage: &Decision| usage.parts().map(Decision::full_in).max().unwrap();
            if let Some(before) = full_in(&usage).checked_sub(Duration::from_nanos(1)) {
                hands.advance(before);
                let almost = limits.usage(&subject, grant_quota);
                prop_assert!(remaining(&almost) != bursts);
                prop_assert_eq!(full_in(&almost), Duration::from_nanos(1));
                hands.advance(Duration::from_nanos(1));
            }
            prop_assert_eq!(remaining(&limits.usage(&subject, grant_quota)), bursts.clone());
            prop_assert!(charge(&limits, &alice, *bursts.iter().min().unwrap()).is_admitted());
        } else {
            let mut admitted = 0;
            let rejected = loop {
                let decision = charge(&limits, &alice, 1);
                if !decision.is_admitted() {
                    break decision;
                }
                admitted += 1;
            };
            prop_assert_eq!(usage.remaining(), admitted);
            prop_assert_eq!(limits.usage(&subject, grant_quota).remaining(), 0);
            hands.advance(rejected.retry_after().unwrap() - Duration::from_nanos(1));
            prop_assert_eq!(limits.usage(&subject, grant_quota).remaining(), 0);
            prop_assert!(!charge(&limits, &alice, 1).is_admitted());
            hands.advance(Duration::from_nanos(1));
            prop_assert!(limits.usage(&subject, grant_quota).remaining() >= 1);
            prop_assert!(charge(&limits, &alice, 1).is_admitted());
        }
    }
}
