//! Tests of rate limits under many thread interleavings, by the model checker `shuttle`. Run by `just shuttle`.
//!
//! The tests check the protocol of buckets: creating, freezing, carrying over used units, caching and sweeping. The model is
//! sequentially consistent, so it does not check memory orderings. It replaces the cell of governor by a cell with the same
//! steps. Operations on `Arc` counts and `OnceLock`s are not separate steps; each happens between two steps.

use std::sync::Arc;
use std::time::Duration;

use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

use super::sketch::{Peer, Sketch};
use super::{Charge, Limit, RateLimits};
use crate::caller::CurrentGrant;
use crate::grant::Grant;
use crate::quota::Quota;
use crate::request_head::RequestHead;
use crate::sync::explore;

const ONE: Charge<'static> = Charge::Units(1);

/// Two plans of the same rate, so that carrying over used units does not round.
const PLANS: [Quota; 2] = [Quota::per_minute(60).with_burst(2), Quota::per_minute(60).with_burst(3)];

fn grant(plan: Quota) -> CurrentGrant {
    CurrentGrant::new(Grant::new("s", ()).with_quota(plan))
}

/// Returns a grant that the test keeps, as a store does. The grant can contain its bucket.
fn stored_grant(plan: Quota) -> Arc<Grant<()>> {
    Arc::new(Grant::new("s", ()).with_quota(plan))
}

/// Starts a thread that charges its own grant, and then drops the grant.
fn charger(limits: &RateLimits, plan: Quota, charges: usize) -> thread::JoinHandle<u32> {
    let limits = limits.clone();
    thread::spawn(move || {
        let grant = grant(plan);
        (0..charges).map(|_| u32::from(limits.charge(&grant, ONE).is_admitted())).sum()
    })
}

/// Starts a thread that gets the grant from a store for each charge, and then drops the store.
fn charger_with_store(limits: &RateLimits, store: Arc<Grant<()>>, charges: usize) -> thread::JoinHandle<u32> {
    let limits = limits.clone();
    thread::spawn(move || {
        let charge = |_| limits.charge(&CurrentGrant::new(Arc::clone(&store)), ONE).is_admitted();
        (0..charges).map(charge).map(u32::from).sum()
    })
}

fn sweeper(limits: &RateLimits, times: usize) -> thread::JoinHandle<()> {
    let limits = limits.clone();
    thread::spawn(move || (0..times).for_each(|_| limits.sweep()))
}

/// Runs chargers with two plans and a sweeper, while the clock stands still.
fn charges_at_one_time(charges: &[(Quota, usize)], sweeps: usize) {
    let limits = RateLimits::new(PLANS[0]).with_clock(|| Duration::ZERO);
    let chargers: Vec<_> = charges.iter().map(|&(plan, charges)| charger(&limits, plan, charges)).collect();
    let sweeper = sweeper(&limits, sweeps);
    let admitted: u32 = chargers.into_iter().map(|charger| charger.join().unwrap()).sum();
    sweeper.join().unwrap();

    let (smaller, larger) = (PLANS[0].burst(), PLANS[1].burst());
    let charged: usize = charges.iter().map(|(_, charges)| charges).sum();
    assert!(admitted <= larger, "{admitted} units were admitted at the same time");
    assert!(admitted >= smaller.min(charged as u32), "only {admitted} units were admitted");
    assert_used(&limits, admitted);
}

/// Asserts that this number of units is used under both plans, also after a sweep.
fn assert_used(limits: &RateLimits, admitted: u32) {
    limits.sweep();
    assert_eq!(limits.subjects(), 1);
    for plan in PLANS {
        assert_eq!(limits.peek(&grant(plan)).full_in(), plan.interval() * admitted);
    }
}

/// Charges a grant with a cached bucket and a new grant, while the clock advances and the bucket regains units.
fn charges_while_the_clock_advances() {
    let plan = PLANS[0];
    let seconds = Arc::new(AtomicU64::new(0));
    let read = Arc::clone(&seconds);
    let limits = RateLimits::new(plan).with_clock(move || Duration::from_secs(read.load(Ordering::SeqCst)));
    let holder = grant(plan);
    assert!(limits.charge(&holder, ONE).is_admitted());

    let sweeper = sweeper(&limits, 2);
    let clock = thread::spawn(move || seconds.store(1, Ordering::SeqCst));
    let newcomer = charger(&limits, plan, 3);
    let held: u32 = (0..2).map(|_| u32::from(limits.charge(&holder, ONE).is_admitted())).sum();
    let admitted = 1 + held + newcomer.join().unwrap();
    clock.join().unwrap();
    sweeper.join().unwrap();

    // The burst, and the unit that was regained in a second.
    assert!(admitted <= plan.burst() + 1, "{admitted} units were admitted");
    assert!(admitted >= plan.burst(), "only {admitted} units were admitted");
    limits.sweep();
    assert_eq!(limits.subjects(), 1, "the holder's grant caches its bucket");
    let (seen, others) = (limits.peek(&holder), limits.peek(&grant(plan)));
    assert_eq!(seen, others, "all grants of a subject share one bucket");
}

/// Sweeps a bucket before and after it is full, while no grant caches it.
fn sweep_before_and_after_the_refill() {
    let plan = PLANS[0];
    let seconds = Arc::new(AtomicU64::new(0));
    let read = Arc::clone(&seconds);
    let limits = RateLimits::new(plan).with_clock(move || Duration::from_secs(read.load(Ordering::SeqCst)));
    let (charger, sweeper) = (charger(&limits, plan, 1), sweeper(&limits, 1));
    assert_eq!(charger.join().unwrap(), 1);
    sweeper.join().unwrap();
    assert_eq!(limits.subjects(), 1, "the bucket is not full");
    seconds.store(1, Ordering::SeqCst);
    limits.sweep();
    assert_eq!(limits.subjects(), 0);
}

/// Charges two stored grants of one plan and one of another plan, with a sweeper. Two threads share the first grant. The
/// bucket is stored in a grant at first, and has to move out of it.
fn bucket_moves_out_of_a_grant() {
    let limits = RateLimits::new(PLANS[0]).with_clock(|| Duration::ZERO);
    let (first, second) = (stored_grant(PLANS[0]), stored_grant(PLANS[0]));
    let chargers = [
        charger_with_store(&limits, Arc::clone(&first), 1),
        charger_with_store(&limits, first, 2),
        charger_with_store(&limits, second, 1),
        charger_with_store(&limits, stored_grant(PLANS[1]), 1),
    ];
    let sweeper = sweeper(&limits, 2);
    let admitted: u32 = chargers.into_iter().map(|charger| charger.join().unwrap()).sum();
    sweeper.join().unwrap();
    assert!((2..=3).contains(&admitted), "{admitted} units were admitted at the same time");
    assert_used(&limits, admitted);
}

#[test]
fn bucket_that_moves_out_of_a_grant_loses_no_units() {
    explore(bucket_moves_out_of_a_grant);
}

/// Charges the old and the new grant of a store that is reloaded. The bucket moves from one grant to the other.
fn bucket_moves_between_grants() {
    let plan = PLANS[0];
    let limits = RateLimits::new(plan).with_clock(|| Duration::ZERO);
    let old = stored_grant(plan);
    assert!(limits.charge(&CurrentGrant::new(Arc::clone(&old)), ONE).is_admitted());
    let late = charger_with_store(&limits, old, 1);
    let early = charger_with_store(&limits, stored_grant(plan), 1);
    let sweeper = sweeper(&limits, 1);
    let admitted = 1 + late.join().unwrap() + early.join().unwrap();
    sweeper.join().unwrap();
    assert_eq!(admitted, plan.burst());
    assert_used(&limits, admitted);
}

#[test]
fn store_that_is_reloaded_keeps_the_used_units() {
    explore(bucket_moves_between_grants);
}

#[test]
fn two_plans_and_a_sweeper_admit_at_most_a_burst() {
    explore(|| charges_at_one_time(&[(PLANS[0], 2), (PLANS[1], 2)], 2));
}

#[test]
fn three_chargers_and_a_sweeper_admit_at_most_a_burst() {
    explore(|| charges_at_one_time(&[(PLANS[0], 2), (PLANS[1], 2), (PLANS[0], 1)], 1));
}

#[test]
fn bucket_that_is_refilled_admits_at_most_the_burst_and_the_refill() {
    explore(charges_while_the_clock_advances);
}

#[test]
fn sweep_drops_full_buckets_only() {
    explore(sweep_before_and_after_the_refill);
}

/// Charges a cached bucket while a request of another plan freezes this bucket.
fn charge_during_a_change_of_plan() {
    let limits = RateLimits::new(PLANS[0]).with_clock(|| Duration::ZERO);
    let holder = grant(PLANS[0]);
    assert!(limits.charge(&holder, ONE).is_admitted());
    let other = charger(&limits, PLANS[1], 1);
    let held = u32::from(limits.charge(&holder, ONE).is_admitted());
    let admitted = 1 + held + other.join().unwrap();
    assert!((2..=3).contains(&admitted));
    assert_used(&limits, admitted);
}

#[test]
fn charge_during_a_change_of_plan_is_counted() {
    explore(charge_during_a_change_of_plan);
}

/// Begins three attempts of one peer, where two fit and one succeeds. Another peer shares half of the cells.
fn attempts_of_one_peer() {
    let sketch = Arc::new(Sketch::new(PLANS[0], 2));
    let (one, other) = (Peer([0; 4]), Peer([0, 0, 1, 1]));
    // The number of failed and pending attempts. The clock stands still, so no failure expires.
    let counted = Arc::new(AtomicU64::new(0));
    let attempt = |peer, succeeds: bool| {
        let (sketch, counted) = (Arc::clone(&sketch), Arc::clone(&counted));
        thread::spawn(move || {
            if sketch.begin(peer, 0).is_err() {
                return;
            }
            if peer.0 == one.0 {
                assert!(counted.fetch_add(1, Ordering::SeqCst) < 2, "three attempts began");
            }
            match succeeds {
                true => {
                    counted.fetch_sub(1, Ordering::SeqCst);
                    sketch.succeed(peer);
                }
                false => sketch.fail(peer, 0),
            }
        })
    };
    for thread in [attempt(one, false), attempt(one, true), attempt(one, false), attempt(other, false)] {
        thread.join().unwrap();
    }
    // Exactly the failed attempts are counted.
    let left = (0..2).take_while(|_| sketch.begin(one, 0).is_ok()).count() as u64;
    assert_eq!(left, 2 - counted.load(Ordering::SeqCst));
}

#[test]
fn concurrent_attempts_of_a_peer_never_exceed_the_quota() {
    explore(attempts_of_one_peer);
}

/// Charges several limits. Units that a rejected request refunds never cause the rejection of another request.
fn several_limits(subjects: [&'static str; 3], share: fn(Limit) -> Limit) {
    let second = Limit::new("second", PLANS[0]).unwrap().with_cost(|head| head.uri.path().len() as u32 - 1);
    let limits = RateLimits::new(share(PLANS[0].into())).with_clock(|| Duration::ZERO);
    let limits = limits.and(share(second)).unwrap();
    let charge = |subject, path| {
        let limits = limits.clone();
        thread::spawn(move || {
            let request = http::Request::get(path).body(()).unwrap();
            let grant = CurrentGrant::new(Grant::new(subject, ()));
            limits.charge(&grant, Charge::Request(&RequestHead::of(&request))).is_admitted()
        })
    };
    // The first limit admits two units. The second limit never admits the request with three units.
    let [first, second, third] = subjects;
    let requests = [(first, "/", true), (second, "/123", false), (third, "/", true)];
    let answers = requests.map(|(subject, path, fits)| (charge(subject, path), fits));
    for (answer, fits) in answers {
        assert_eq!(answer.join().unwrap(), fits);
    }
}

#[test]
fn several_limits_charge_one_subject_atomically() {
    explore(|| several_limits(["s"; 3], |limit| limit));
}

#[test]
fn several_shared_limits_charge_all_subjects_atomically() {
    explore(|| several_limits(["s", "t", "u"], Limit::shared_by_all));
}

/// Charges a stored grant and a new one while the default quota changes.
fn charges_during_a_change_of_quota() {
    let limits = RateLimits::new(PLANS[0]).with_clock(|| Duration::ZERO);
    let chargers = [0, 1].map(|at| {
        let (limits, store) = (limits.clone(), Arc::new(Grant::new("s", ())));
        thread::spawn(move || {
            let charge = |_| limits.charge(&CurrentGrant::new(Arc::clone(&store)), ONE).is_admitted();
            (0..2 + at).map(charge).map(u32::from).sum::<u32>()
        })
    });
    limits.set_quotas([("default", PLANS[1])]).unwrap();
    limits.set_quotas([("default", PLANS[0])]).unwrap();
    let admitted: u32 = chargers.into_iter().map(|charger| charger.join().unwrap()).sum();
    assert!((2..=3).contains(&admitted), "{admitted} units were admitted at the same time");
    assert_used(&limits, admitted);
}

#[test]
fn charge_during_a_change_of_quota_is_counted() {
    explore(charges_during_a_change_of_quota);
}
