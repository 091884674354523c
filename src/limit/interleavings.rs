//! Budgets under all orders in which threads can come, as far as time allows. Run by `just shuttle`.
//!
//! What is checked is the protocol of accounts: opening, freezing, carrying debts over, remembering and sweeping. The
//! model is sequentially consistent, so that it says nothing about memory orderings; and it has a cell of its own in
//! place of governor's, with the same steps. Counts of `Arc`s and `OnceLock`s are not steps of their own: they are used
//! between two steps that are.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

use super::sketch::{Peer, Sketch};
use super::{Charge, RateLimits};
use crate::caller::CurrentGrant;
use crate::grant::Grant;
use crate::quota::Quota;
use crate::request_head::RequestHead;

const ONE: Charge<'static> = Charge::Units(1);

/// Two plans of one rate, so that nothing is rounded when a debt is carried over.
const PLANS: [Quota; 2] = [Quota::per_minute(60).with_burst(2), Quota::per_minute(60).with_burst(3)];

fn grant(plan: Quota) -> CurrentGrant {
    CurrentGrant::new(Grant::new("s", ()).with_quota(plan))
}

/// A grant that somebody keeps, as a store does: its account may stand in it.
fn kept(plan: Quota) -> Arc<Grant<()>> {
    Arc::new(Grant::new("s", ()).with_quota(plan))
}

/// A thread with a grant of its own, which is dropped when all is spent.
fn charger(limits: &RateLimits, plan: Quota, charges: usize) -> thread::JoinHandle<u32> {
    let limits = limits.clone();
    thread::spawn(move || {
        let grant = grant(plan);
        (0..charges).map(|_| u32::from(limits.charge(&grant, ONE).is_admitted())).sum()
    })
}

/// A thread that gets the grant from a store for each charge, and drops the store at last.
fn charger_of_kept(limits: &RateLimits, store: Arc<Grant<()>>, charges: usize) -> thread::JoinHandle<u32> {
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

/// Chargers with two plans and a sweeper, at one instant.
fn at_one_instant(charges: &[(Quota, usize)], sweeps: usize) {
    let limits = RateLimits::new(PLANS[0]).with_clock(|| Duration::ZERO);
    let chargers: Vec<_> = charges.iter().map(|&(plan, charges)| charger(&limits, plan, charges)).collect();
    let sweeper = sweeper(&limits, sweeps);
    let admitted: u32 = chargers.into_iter().map(|charger| charger.join().unwrap()).sum();
    sweeper.join().unwrap();

    let (smaller, larger) = (PLANS[0].burst(), PLANS[1].burst());
    let asked: usize = charges.iter().map(|(_, charges)| charges).sum();
    assert!(admitted <= larger, "{admitted} were admitted at once");
    assert!(admitted >= smaller.min(asked as u32), "only {admitted} were admitted");
    assert_owed(&limits, admitted);
}

/// What was admitted is owed, by whatever plan one asks, and no sweep forgets it.
fn assert_owed(limits: &RateLimits, admitted: u32) {
    limits.sweep();
    assert_eq!(limits.subjects(), 1);
    for plan in PLANS {
        assert_eq!(limits.peek(&grant(plan)).full_in(), plan.interval() * admitted);
    }
}

/// A charger whose debt is paid in the course of things, and another who comes with a grant that remembers nothing.
fn while_time_goes_by() {
    let plan = PLANS[0];
    let hands = Arc::new(AtomicU64::new(0));
    let read = Arc::clone(&hands);
    let limits = RateLimits::new(plan).with_clock(move || Duration::from_secs(read.load(Ordering::SeqCst)));
    let holder = grant(plan);
    assert!(limits.charge(&holder, ONE).is_admitted());

    let sweeper = sweeper(&limits, 2);
    let clock = thread::spawn(move || hands.store(1, Ordering::SeqCst));
    let newcomer = charger(&limits, plan, 3);
    let held: u32 = (0..2).map(|_| u32::from(limits.charge(&holder, ONE).is_admitted())).sum();
    let admitted = 1 + held + newcomer.join().unwrap();
    clock.join().unwrap();
    sweeper.join().unwrap();

    // The burst at the beginning, and what came back in a second.
    assert!(admitted <= plan.burst() + 1, "{admitted} were admitted");
    assert!(admitted >= plan.burst(), "only {admitted} were admitted");
    limits.sweep();
    assert_eq!(limits.subjects(), 1, "the holder's grant remembers its account");
    let (seen, others) = (limits.peek(&holder), limits.peek(&grant(plan)));
    assert_eq!(seen, others, "all grants of a subject see one budget");
}

/// An account that nobody remembers and nobody owes is dropped, and only then.
fn when_all_is_paid() {
    let plan = PLANS[0];
    let hands = Arc::new(AtomicU64::new(0));
    let read = Arc::clone(&hands);
    let limits = RateLimits::new(plan).with_clock(move || Duration::from_secs(read.load(Ordering::SeqCst)));
    let (charger, sweeper) = (charger(&limits, plan, 1), sweeper(&limits, 1));
    assert_eq!(charger.join().unwrap(), 1);
    sweeper.join().unwrap();
    assert_eq!(limits.subjects(), 1, "it owes");
    hands.store(1, Ordering::SeqCst);
    limits.sweep();
    assert_eq!(limits.subjects(), 0);
}

/// How often a model is run: all together for less than a minute. `TOLLGATE_SHUTTLE_RUNS` is for longer searches.
fn runs() -> usize {
    let asked = std::env::var("TOLLGATE_SHUTTLE_RUNS").ok().and_then(|runs| runs.parse::<NonZeroUsize>().ok());
    asked.map_or(5_000, NonZeroUsize::get)
}

/// By two ways: any order, and orders with few changes of the thread in which the rare ones are soon found.
fn explore(model: impl Fn() + Copy + Send + Sync + 'static) {
    shuttle::check_random(model, runs());
    shuttle::check_pct(model, runs(), 4);
}

/// Two grants of one plan that a store keeps, one of them behind two requests at a time, one of another plan, and a
/// sweeper: the account stands in a grant at first, and has to leave it.
fn in_grants_and_out_of_them() {
    let limits = RateLimits::new(PLANS[0]).with_clock(|| Duration::ZERO);
    let (first, second) = (kept(PLANS[0]), kept(PLANS[0]));
    let chargers = [
        charger_of_kept(&limits, Arc::clone(&first), 1),
        charger_of_kept(&limits, first, 2),
        charger_of_kept(&limits, second, 1),
        charger_of_kept(&limits, kept(PLANS[1]), 1),
    ];
    let sweeper = sweeper(&limits, 2);
    let admitted: u32 = chargers.into_iter().map(|charger| charger.join().unwrap()).sum();
    sweeper.join().unwrap();
    assert!((2..=3).contains(&admitted), "{admitted} were admitted at once");
    assert_owed(&limits, admitted);
}

#[test]
fn accounts_that_leave_their_grants() {
    explore(in_grants_and_out_of_them);
}

/// A store that is loaded anew while requests run: the account goes from one grant to the other.
fn from_grant_to_grant() {
    let plan = PLANS[0];
    let limits = RateLimits::new(plan).with_clock(|| Duration::ZERO);
    let old = kept(plan);
    assert!(limits.charge(&CurrentGrant::new(Arc::clone(&old)), ONE).is_admitted());
    let late = charger_of_kept(&limits, old, 1);
    let early = charger_of_kept(&limits, kept(plan), 1);
    let sweeper = sweeper(&limits, 1);
    let admitted = 1 + late.join().unwrap() + early.join().unwrap();
    sweeper.join().unwrap();
    assert_eq!(admitted, plan.burst());
    assert_owed(&limits, admitted);
}

#[test]
fn a_store_that_is_loaded_anew() {
    explore(from_grant_to_grant);
}

#[test]
fn two_plans_and_a_sweeper() {
    explore(|| at_one_instant(&[(PLANS[0], 2), (PLANS[1], 2)], 2));
}

#[test]
fn three_chargers_and_a_sweeper() {
    explore(|| at_one_instant(&[(PLANS[0], 2), (PLANS[1], 2), (PLANS[0], 1)], 1));
}

#[test]
fn a_budget_that_refills() {
    explore(while_time_goes_by);
}

#[test]
fn an_account_that_is_dropped() {
    explore(when_all_is_paid);
}

/// A charge by a grant that remembers its account, while another plan closes that account.
fn a_late_charge() {
    let limits = RateLimits::new(PLANS[0]).with_clock(|| Duration::ZERO);
    let holder = grant(PLANS[0]);
    assert!(limits.charge(&holder, ONE).is_admitted());
    let other = charger(&limits, PLANS[1], 1);
    let held = u32::from(limits.charge(&holder, ONE).is_admitted());
    let admitted = 1 + held + other.join().unwrap();
    assert!((2..=3).contains(&admitted));
    assert_owed(&limits, admitted);
}

#[test]
fn a_late_charge_and_a_change_of_plan() {
    explore(a_late_charge);
}

/// Two attempts fit. Three of one peer come, of which one ends well, and one of a peer that shares half of its cells.
fn attempts_of_one_peer() {
    let sketch = Arc::new(Sketch::new(PLANS[0], 2));
    let (one, other) = (Peer([0; 4]), Peer([0, 0, 1, 1]));
    // What has failed or is under way: nothing is paid off at one instant.
    let counted = Arc::new(AtomicU64::new(0));
    let attempt = |peer, ends_well: bool| {
        let (sketch, counted) = (Arc::clone(&sketch), Arc::clone(&counted));
        thread::spawn(move || {
            if sketch.begin(peer, 0).is_err() {
                return;
            }
            if peer.0 == one.0 {
                assert!(counted.fetch_add(1, Ordering::SeqCst) < 2, "three were let in");
            }
            match ends_well {
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
    // Whoever was let in and failed is owed for, and nothing else.
    let left = (0..2).take_while(|_| sketch.begin(one, 0).is_ok()).count() as u64;
    assert_eq!(left, 2 - counted.load(Ordering::SeqCst));
}

#[test]
fn attempts_that_are_under_way() {
    explore(attempts_of_one_peer);
}

/// What one request gives back is never what refuses another: of one subject, or of several at budgets that all share.
fn turns(subjects: [&'static str; 3], share: fn(RateLimits) -> RateLimits) {
    let limits = share(RateLimits::new(PLANS[0]).with_clock(|| Duration::ZERO)).and("second", PLANS[0]).unwrap();
    let limits = share(limits.with_cost(|head| head.uri.path().len() as u32 - 1));
    let charge = |subject, path| {
        let limits = limits.clone();
        thread::spawn(move || {
            let request = http::Request::get(path).body(()).unwrap();
            let grant = CurrentGrant::new(Grant::new(subject, ()));
            limits.charge(&grant, Charge::Request(&RequestHead::of(&request))).is_admitted()
        })
    };
    // The first policy has room for two; the second would refuse the third of them for ever.
    let [first, second, third] = subjects;
    let requests = [(first, "/", true), (second, "/123", false), (third, "/", true)];
    let answers = requests.map(|(subject, path, fits)| (charge(subject, path), fits));
    for (answer, fits) in answers {
        assert_eq!(answer.join().unwrap(), fits);
    }
}

#[test]
fn several_policies_and_one_subject() {
    explore(|| turns(["s"; 3], |limits| limits));
}

#[test]
fn several_policies_that_all_share() {
    explore(|| turns(["s", "t", "u"], RateLimits::shared_by_all));
}
