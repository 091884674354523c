//! Usage and reset of a subject's buckets, without its token.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

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
