//! Tests of leases with the script in a real Redis, at times that the test sets: the bound of rule 3, and losses.

use std::cell::Cell;
use std::time::Duration;

use proptest::prelude::*;

use super::connect::Connection;
use super::gcra::{Part, charge_at};
use super::lease::Leases;
use super::lease_table::LeaseTable;
use super::tests::{START_US, key, part, redis, remove};
use crate::grant::Subject;
use crate::quota::Quota;

/// A timeout that only a hanging test exceeds.
const NEVER: Duration = Duration::from_secs(30);

/// A server with its own clock, which started at another time and runs at another pace.
struct Node {
    leases: LeaseTable,
    /// The pace of its clock, in 64ths of the pace of Redis' clock.
    pace: u64,
    begun: u64,
}

impl Node {
    fn new(pace: u64) -> Self {
        Self { leases: LeaseTable::new(Leases::default()), pace, begun: pace * 7_000_000_000 }
    }

    /// Returns the time of its clock, in ns, after this many us of Redis' clock.
    fn clock(&self, us: u64) -> u64 {
        self.begun + (u128::from(us) * 1_000 * u128::from(self.pace) / 64) as u64
    }
}

fn subject() -> Subject {
    "s".into()
}

/// Makes one charge of one bucket. Returns the times, in us, and the numbers of units that were charged.
///
/// Redis decides `there` us later, and its reply arrives after `back` more us.
fn charge(
    runtime: &tokio::runtime::Runtime,
    connection: &mut Connection,
    node: &Node,
    parts: &[Part],
    us: u64,
    (there, back): (u64, u64),
) -> Vec<(u64, u32)> {
    let subject = subject();
    let subject = Some(&subject);
    let costs: Vec<_> = parts.iter().map(|part| (part.at, part.policy.quota(), part.cost)).collect();
    if node.leases.charge(subject, node.clock(us), &costs).is_some() {
        return vec![(us, parts[0].cost)];
    }
    if !node.leases.has_leases_for(parts) {
        return exact(runtime, connection, parts, us);
    }
    let access = runtime.block_on(node.leases.lock(subject, || node.clock(us), parts, NEVER));
    let (prepared, rest) = node.leases.prepare(subject, node.clock(us), access, parts);
    let reply = runtime.block_on(charge_at(connection, &rest, prepared.requests(), START_US + us + there)).unwrap();
    let times = (node.clock(us), node.clock(us + there + back));
    let charged = node.leases.complete(subject, times, &prepared, &rest, Some(&reply));
    match &charged[0] {
        None => Vec::new(),
        Some(decision) => {
            assert!(decision.is_admitted());
            vec![(us, parts[0].cost - rest[0].cost), (us + there, rest[0].cost)]
        }
    }
}

fn exact(runtime: &tokio::runtime::Runtime, connection: &mut Connection, parts: &[Part], us: u64) -> Vec<(u64, u32)> {
    let reply = runtime.block_on(charge_at(connection, parts, &[], START_US + us)).unwrap();
    if reply.state(0).unwrap().fits { vec![(us, parts[0].cost)] } else { Vec::new() }
}

/// Charges all units that are left at one moment, without leases.
fn drain(
    runtime: &tokio::runtime::Runtime,
    connection: &mut Connection,
    key: &[u8],
    quota: Quota,
    us: u64,
) -> Vec<(u64, u32)> {
    let halves = std::iter::successors(Some(quota.burst()), |cost| Some(cost / 2).filter(|half| *half > 0));
    // Each cost twice, since half of an odd number is rounded.
    halves
        .flat_map(|cost| [cost; 2])
        .flat_map(|cost| exact(runtime, connection, &[part(key, quota, cost)], us))
        .collect()
}

fn quotas() -> impl Strategy<Value = Quota> {
    (300_u64..30_000, 12_u32..600)
        .prop_map(|(us, burst)| Quota::one_per(Duration::from_nanos(us * 1_000 + 333)).with_burst(burst))
}

/// A step after a wait. Times are thousandths of the refill time of the burst.
#[derive(Clone, Debug)]
enum Step {
    /// `count` charges of `cost` on one server, spread over `thousandths`.
    Charges { server: usize, count: u32, thousandths: u64, cost: u32 },
    /// A server without leases charges all units that are left, at one moment.
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
    let Some((runtime, mut connection)) = redis("no_window_admits_more_than_burst_and_rate") else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(60));
    let connection = std::cell::RefCell::new(&mut connection);
    let (immediate, all) = (Cell::new(0_usize), Cell::new(0_usize));
    runner
        .run(&(quotas(), steps(), 0_u64..3_000), |(quota, steps, trip)| {
            let mut connection = connection.borrow_mut();
            // An exact clock, the slowest clock that is allowed, and a fast clock.
            let nodes = [64, 63, 70].map(Node::new);
            let (key, mut us, mut used) = (key(), 0_u64, Vec::new());
            let refill_us = quota.refill().as_micros() as u64;
            for (wait, step) in steps {
                us += refill_us * wait / 1_000;
                let Step::Charges { server, count, thousandths, cost } = step else {
                    used.extend(drain(&runtime, &mut connection, &key, quota, us));
                    continue;
                };
                for _ in 0..count {
                    let parts = [part(&key, quota, cost)];
                    let units = charge(&runtime, &mut connection, &nodes[server], &parts, us, (trip, trip));
                    immediate.set(immediate.get() + usize::from(units.len() == 1));
                    all.set(all.get() + 1);
                    // Then the command and its reply have taken two trips.
                    us += if units.len() == 2 { 2 * trip } else { 0 };
                    us += refill_us * thousandths / 1_000 / u64::from(count);
                    used.extend(units);
                }
            }
            for (i, &(from, _)) in used.iter().enumerate() {
                let mut units = 0_u64;
                for &(to, cost) in &used[i..] {
                    units += u64::from(cost);
                    let allowed = quota.span_ns() + (to - from) * 1_000;
                    prop_assert!(units * quota.interval_ns() <= allowed, "{units} from {from} to {to}: {quota:?}");
                }
            }
            remove(&runtime, &mut connection, &key);
            Ok(())
        })
        .unwrap();
    // Otherwise the property would test little.
    let (immediate, all) = (immediate.get(), all.get());
    assert!(immediate * 5 > all, "only {immediate} of {all} from leases");
}

/// Checks the worst case: a lease is kept until its last moment, and then used together with all refilled units.
#[test]
fn a_lease_that_is_kept_does_not_increase_the_burst() {
    let Some((runtime, mut connection)) = redis("a_lease_that_is_kept_does_not_increase_the_burst") else { return };
    for pace in [64, 63, 70] {
        let (node, key, quota) = (Node::new(pace), key(), Quota::per_second(1_000));
        let one = [part(&key, quota, 1)];
        let mut at = |us| charge(&runtime, &mut connection, &node, &one, us, (0, 0)).len();
        let granted_at = (1..).map(|charge| charge * 2_000).find(|us| at(*us) == 2 && *us > 200_000).unwrap();
        let left = node.leases.left(Some(&subject()))[0];
        assert!(left > 20, "{left}");
        let ends_at = node.clock(granted_at) + 125_000_000;
        let last = (granted_at..).find(|us| node.clock(*us + 1) >= ends_at).unwrap();
        let exact: u32 = drain(&runtime, &mut connection, &key, quota, last).iter().map(|(_, units)| units).sum();
        for _ in 0..left {
            assert_eq!(charge(&runtime, &mut connection, &node, &one, last, (0, 0)), [(last, 1)]);
        }
        assert!(exact + left <= 1_000, "{exact} and {left}");
        // The units held back are those that refill in the possible error of the clock.
        assert!(exact + left >= 980, "{exact} and {left}");
        remove(&runtime, &mut connection, &key);
    }
}

/// Makes 1,000 sequential charges at half of the rate.
#[test]
fn a_steady_caller_asks_rarely_and_loses_no_units() {
    let Some((runtime, mut connection)) = redis("a_steady_caller_asks_rarely_and_loses_no_units") else { return };
    let (node, key, quota) = (Node::new(64), key(), Quota::per_second(1_000));
    let (mut trips, mut used) = (0, 0);
    for at in 0..1_000 {
        let units = charge(&runtime, &mut connection, &node, &[part(&key, quota, 1)], at * 2_000, (0, 0));
        trips += u32::from(units.len() == 2);
        used += units.iter().map(|(_, units)| units).sum::<u32>();
    }
    assert_eq!(used, 1_000);
    // A lease is sized for half of an eighth of a second, 31 charges.
    assert!((32..=50).contains(&trips), "{trips} trips");
    remove(&runtime, &mut connection, &key);
}

#[test]
fn rare_charges_and_small_bursts_request_no_lease() {
    let Some((runtime, mut connection)) = redis("rare_charges_and_small_bursts_request_no_lease") else {
        return;
    };
    for (quota, pause_us) in [(Quota::per_second(1_000), 40_000), (Quota::per_second(1_000).with_burst(15), 1_000)] {
        let (node, key) = (Node::new(64), key());
        for at in 0..30 {
            let units = charge(&runtime, &mut connection, &node, &[part(&key, quota, 1)], at * pause_us, (0, 0));
            assert!(units == [(at * pause_us, 0), (at * pause_us, 1)] || units == [(at * pause_us, 1)]);
            let peek = [part(&key, quota, 0)];
            let reply = runtime.block_on(charge_at(&mut connection, &peek, &[], START_US + at * pause_us)).unwrap();
            assert!(reply.state(0).unwrap().owed_ns <= 1_000_000, "{reply:?}");
        }
        remove(&runtime, &mut connection, &key);
    }
}

/// Checks that unused units are lost, and then available to other servers.
#[test]
fn unused_units_are_lost_when_the_lease_ends() {
    let Some((runtime, mut connection)) = redis("unused_units_are_lost_when_the_lease_ends") else { return };
    let (node, key, quota) = (Node::new(64), key(), Quota::per_second(1_000));
    let mut at = |us: u64| charge(&runtime, &mut connection, &node, &[part(&key, quota, 1)], us, (0, 0)).len();
    // Until a lease is granted after another one that was used up.
    let granted_at = (20..).map(|ms| ms * 1_000).find(|us| at(*us) == 2 && *us > 40_000).unwrap();
    let left = node.leases.left(Some(&subject()))[0];
    assert!((4..=62).contains(&left), "{left}");
    assert_eq!([at(granted_at + 124_999), at(granted_at + 125_000)], [1, 2]);
    remove(&runtime, &mut connection, &key);
}

/// Checks that a charge of several buckets is atomic: after a rejection by one, leased units of the other are put back.
#[test]
fn a_rejected_charge_puts_leased_units_back() {
    let Some((runtime, mut connection)) = redis("a_rejected_charge_puts_leased_units_back") else { return };
    let (node, wide, narrow) = (Node::new(64), key(), key());
    let (plenty, little) = (Quota::per_second(1_000), Quota::per_second(100));
    let parts = |cost| [part(&wide, plenty, cost), part(&narrow, little, cost)];
    let mut us = 0;
    let mut admitted = 0;
    let (subject, left) = (subject(), || node.leases.left(Some(&subject())));
    loop {
        us += 100;
        let before = left();
        if charge(&runtime, &mut connection, &node, &parts(1), us, (0, 0)).is_empty() {
            assert_eq!(left(), before);
            break;
        }
        admitted += 1;
    }
    // The smaller burst, less the duration of its leases, plus the units refilled meanwhile.
    assert!((87..=100 + us / 10_000).contains(&admitted), "{admitted}");
    assert!(left()[0] > 0 && left()[1] == 0, "{:?} of {subject:?}", left());
    for key in [&wide, &narrow] {
        remove(&runtime, &mut connection, key);
    }
}

#[test]
fn memory_is_bounded_by_recent_subjects() {
    let (node, quota) = (Node::new(64), Quota::per_second(1_000));
    let one = [part(b"", quota, 1)];
    let add = |name: u64, us: u64| {
        let subject = Subject::from(name.to_string());
        let access = node.leases.lock(Some(&subject), || node.clock(us), &one, NEVER);
        let mut access = Box::pin(access);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(access.as_mut().poll(&mut context).is_ready());
    };
    for name in 0..100_000 {
        add(name, name * 1_000);
    }
    assert!(node.leases.len() <= 4_096, "{} are in the table", node.leases.len());
}
