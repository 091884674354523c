//! Leases by the script on a real Redis, at times of the test's own: the bound of rule 3, and what is lost.

use std::cell::Cell;
use std::time::Duration;

use proptest::prelude::*;

use super::connect::Open;
use super::gcra::{Part, charge_at};
use super::lease::Leases;
use super::stocks::Stocks;
use super::tests::{START_US, key, part, redis, remove};
use crate::grant::Subject;
use crate::quota::Quota;

/// Nothing takes so long, unless it hangs.
const NEVER: Duration = Duration::from_secs(30);

/// A server with a clock of its own, which began at another time and runs at another pace.
struct Node {
    stocks: Stocks,
    /// 64ths of the pace of Redis' clock.
    pace: u64,
    begun: u64,
}

impl Node {
    fn new(pace: u64) -> Self {
        Self { stocks: Stocks::new(Leases::default()), pace, begun: pace * 7_000_000_000 }
    }

    /// Its clock, in ns, where Redis' clock has advanced by so many us.
    fn clock(&self, us: u64) -> u64 {
        self.begun + (u128::from(us) * 1_000 * u128::from(self.pace) / 64) as u64
    }
}

fn subject() -> Subject {
    "s".into()
}

/// One charge of one budget. Returns when how many cells were spent, in us. Redis is asked after `there` us, and has
/// answered `back` us later.
fn charge(
    runtime: &tokio::runtime::Runtime,
    open: &mut Open,
    node: &Node,
    parts: &[Part],
    us: u64,
    (there, back): (u64, u64),
) -> Vec<(u64, u32)> {
    let subject = subject();
    let who = Some(&subject);
    let costs: Vec<_> = parts.iter().map(|part| (part.at, part.policy.quota(), part.cost)).collect();
    if node.stocks.pay(who, node.clock(us), &costs).is_some() {
        return vec![(us, parts[0].cost)];
    }
    if !node.stocks.have_leases_of(parts) {
        return exact(runtime, open, parts, us);
    }
    let entered = runtime.block_on(node.stocks.enter(who, || node.clock(us), parts, NEVER));
    let (purchase, rest) = node.stocks.begin(who, node.clock(us), entered, parts);
    let reply = runtime.block_on(charge_at(open, &rest, purchase.orders(), START_US + us + there)).unwrap();
    let times = (node.clock(us), node.clock(us + there + back));
    let paid = node.stocks.end(who, times, &purchase, &rest, Some(&reply));
    match &paid[0] {
        None => Vec::new(),
        Some(decision) => {
            assert!(decision.is_admitted());
            vec![(us, parts[0].cost - rest[0].cost), (us + there, rest[0].cost)]
        }
    }
}

fn exact(runtime: &tokio::runtime::Runtime, open: &mut Open, parts: &[Part], us: u64) -> Vec<(u64, u32)> {
    let reply = runtime.block_on(charge_at(open, parts, &[], START_US + us)).unwrap();
    if reply.states[0].fits { vec![(us, parts[0].cost)] } else { Vec::new() }
}

/// Spends all there is at one moment, without leases.
fn drain(runtime: &tokio::runtime::Runtime, open: &mut Open, key: &[u8], quota: Quota, us: u64) -> Vec<(u64, u32)> {
    let halves = std::iter::successors(Some(quota.burst()), |cost| Some(cost / 2).filter(|half| *half > 0));
    // Each twice, since half of an odd number is rounded.
    halves.flat_map(|cost| [cost; 2]).flat_map(|cost| exact(runtime, open, &[part(key, quota, cost)], us)).collect()
}

fn quotas() -> impl Strategy<Value = Quota> {
    (300_u64..30_000, 12_u32..600)
        .prop_map(|(us, burst)| Quota::one_per(Duration::from_nanos(us * 1_000 + 333)).with_burst(burst))
}

/// What comes after a wait, in thousandths of the time that a burst takes to come back.
#[derive(Clone, Debug)]
enum Step {
    /// So many charges on one of the servers, in so many thousandths, which cost so much each.
    Charges { server: usize, count: u32, thousandths: u64, cost: u32 },
    /// All that is left is spent at once, by a server without leases.
    Drain,
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let thousandths = || prop_oneof![Just(0_u64), 1..130_u64, 1..300_u64];
    let charges = (0_usize..3, 1_u32..40, thousandths(), 1_u32..4)
        .prop_map(|(server, count, thousandths, cost)| Step::Charges { server, count, thousandths, cost });
    let wait = prop_oneof![3 => Just(0_u64), 2 => 1..130_u64, 1 => 100..1_500_u64];
    prop::collection::vec((wait, prop_oneof![3 => charges, 1 => Just(Step::Drain)]), 1..25)
}

#[test]
fn no_window_admits_more_than_burst_and_rate() {
    let Some((runtime, mut open)) = redis("no_window_admits_more_than_burst_and_rate") else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(60));
    let open = std::cell::RefCell::new(&mut open);
    let (at_once, all) = (Cell::new(0_usize), Cell::new(0_usize));
    runner
        .run(&(quotas(), steps(), 0_u64..3_000), |(quota, steps, trip)| {
            let mut open = open.borrow_mut();
            // One whose clock is right, one that is as slow as may be, and one that is fast.
            let nodes = [64, 63, 70].map(Node::new);
            let (key, mut us, mut spent) = (key(), 0_u64, Vec::new());
            let refill_us = quota.refill().as_micros() as u64;
            for (wait, step) in steps {
                us += refill_us * wait / 1_000;
                let Step::Charges { server, count, thousandths, cost } = step else {
                    spent.extend(drain(&runtime, &mut open, &key, quota, us));
                    continue;
                };
                for _ in 0..count {
                    let parts = [part(&key, quota, cost)];
                    let cells = charge(&runtime, &mut open, &nodes[server], &parts, us, (trip, trip));
                    at_once.set(at_once.get() + usize::from(cells.len() == 1));
                    all.set(all.get() + 1);
                    // Then two trips have passed as well.
                    us += if cells.len() == 2 { 2 * trip } else { 0 };
                    us += refill_us * thousandths / 1_000 / u64::from(count);
                    spent.extend(cells);
                }
            }
            for (i, &(from, _)) in spent.iter().enumerate() {
                let mut cells = 0_u64;
                for &(to, cost) in &spent[i..] {
                    cells += u64::from(cost);
                    let allowed = quota.span_ns() + (to - from) * 1_000;
                    prop_assert!(cells * quota.interval_ns() <= allowed, "{cells} from {from} to {to}: {quota:?}");
                }
            }
            remove(&runtime, &mut open, &key);
            Ok(())
        })
        .unwrap();
    // Otherwise the property would say little.
    let (at_once, all) = (at_once.get(), all.get());
    assert!(at_once * 5 > all, "only {at_once} of {all} from stock");
}

/// The worst that can come: a lease is kept until its last moment, and then spent together with all that has come back.
#[test]
fn a_lease_that_is_kept_widens_no_burst() {
    let Some((runtime, mut open)) = redis("a_lease_that_is_kept_widens_no_burst") else { return };
    for pace in [64, 63, 70] {
        let (node, key, quota) = (Node::new(pace), key(), Quota::per_second(1_000));
        let one = [part(&key, quota, 1)];
        let mut at = |us| charge(&runtime, &mut open, &node, &one, us, (0, 0)).len();
        let bought_at = (1..).map(|charge| charge * 2_000).find(|us| at(*us) == 2 && *us > 200_000).unwrap();
        let left = node.stocks.left(Some(&subject()))[0];
        assert!(left > 20, "{left}");
        let ends_at = node.clock(bought_at) + 125_000_000;
        let last = (bought_at..).find(|us| node.clock(*us + 1) >= ends_at).unwrap();
        let exact: u32 = drain(&runtime, &mut open, &key, quota, last).iter().map(|(_, cells)| cells).sum();
        for _ in 0..left {
            assert_eq!(charge(&runtime, &mut open, &node, &one, last, (0, 0)), [(last, 1)]);
        }
        assert!(exact + left <= 1_000, "{exact} and {left}");
        // What is kept back is what comes back in the time by which the clock might be wrong.
        assert!(exact + left >= 980, "{exact} and {left}");
        remove(&runtime, &mut open, &key);
    }
}

/// 1,000 charges at half of the rate, one behind the other.
#[test]
fn a_steady_caller_asks_seldom_and_loses_nothing() {
    let Some((runtime, mut open)) = redis("a_steady_caller_asks_seldom_and_loses_nothing") else { return };
    let (node, key, quota) = (Node::new(64), key(), Quota::per_second(1_000));
    let (mut trips, mut spent) = (0, 0);
    for at in 0..1_000 {
        let cells = charge(&runtime, &mut open, &node, &[part(&key, quota, 1)], at * 2_000, (0, 0));
        trips += u32::from(cells.len() == 2);
        spent += cells.iter().map(|(_, cells)| cells).sum::<u32>();
    }
    assert_eq!(spent, 1_000);
    // A lease is meant for half an eighth of a second, 31 charges.
    assert!((32..=50).contains(&trips), "{trips} trips");
    remove(&runtime, &mut open, &key);
}

#[test]
fn who_comes_seldom_and_who_has_little_buys_nothing_ahead() {
    let Some((runtime, mut open)) = redis("who_comes_seldom_and_who_has_little_buys_nothing_ahead") else { return };
    for (quota, pause_us) in [(Quota::per_second(1_000), 40_000), (Quota::per_second(1_000).with_burst(15), 1_000)] {
        let (node, key) = (Node::new(64), key());
        for at in 0..30 {
            let cells = charge(&runtime, &mut open, &node, &[part(&key, quota, 1)], at * pause_us, (0, 0));
            assert!(cells == [(at * pause_us, 0), (at * pause_us, 1)] || cells == [(at * pause_us, 1)]);
            let peek = [part(&key, quota, 0)];
            let reply = runtime.block_on(charge_at(&mut open, &peek, &[], START_US + at * pause_us)).unwrap();
            assert!(reply.states[0].owed_ns <= 1_000_000, "{reply:?}");
        }
        remove(&runtime, &mut open, &key);
    }
}

/// A lease that is not spent is lost, and then somebody else has its cells again.
#[test]
fn what_is_left_is_lost_when_the_lease_ends() {
    let Some((runtime, mut open)) = redis("what_is_left_is_lost_when_the_lease_ends") else { return };
    let (node, key, quota) = (Node::new(64), key(), Quota::per_second(1_000));
    let mut at = |us: u64| charge(&runtime, &mut open, &node, &[part(&key, quota, 1)], us, (0, 0)).len();
    // Until one is bought after some that were all spent.
    let bought_at = (20..).map(|ms| ms * 1_000).find(|us| at(*us) == 2 && *us > 40_000).unwrap();
    let left = node.stocks.left(Some(&subject()))[0];
    assert!((4..=62).contains(&left), "{left}");
    assert_eq!([at(bought_at + 124_999), at(bought_at + 125_000)], [1, 2]);
    remove(&runtime, &mut open, &key);
}

/// All or nothing, over several budgets: what one refuses is put back into the stock of the other.
#[test]
fn a_refused_charge_leaves_every_stock_as_it_was() {
    let Some((runtime, mut open)) = redis("a_refused_charge_leaves_every_stock_as_it_was") else { return };
    let (node, wide, narrow) = (Node::new(64), key(), key());
    let (plenty, little) = (Quota::per_second(1_000), Quota::per_second(100));
    let parts = |cost| [part(&wide, plenty, cost), part(&narrow, little, cost)];
    let mut us = 0;
    let mut admitted = 0;
    let (subject, left) = (subject(), || node.stocks.left(Some(&subject())));
    loop {
        us += 100;
        let before = left();
        if charge(&runtime, &mut open, &node, &parts(1), us, (0, 0)).is_empty() {
            assert_eq!(left(), before);
            break;
        }
        admitted += 1;
    }
    // The shorter burst, less than the time of its leases, and what has come back meanwhile.
    assert!((87..=100 + us / 10_000).contains(&admitted), "{admitted}");
    assert!(left()[0] > 0 && left()[1] == 0, "{:?} of {subject:?}", left());
    for key in [&wide, &narrow] {
        remove(&runtime, &mut open, key);
    }
}

#[test]
fn memory_is_bounded_by_those_who_came_of_late() {
    let (node, quota) = (Node::new(64), Quota::per_second(1_000));
    let one = [part(b"", quota, 1)];
    let come = |name: u64, us: u64| {
        let subject = Subject::from(name.to_string());
        let entered = node.stocks.enter(Some(&subject), || node.clock(us), &one, NEVER);
        let mut entered = Box::pin(entered);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(entered.as_mut().poll(&mut context).is_ready());
    };
    for name in 0..100_000 {
        come(name, name * 1_000);
    }
    assert!(node.stocks.len() <= 4_096, "{} are remembered", node.stocks.len());
}
