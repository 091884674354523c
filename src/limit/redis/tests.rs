//! Tests of the scripts in a real Redis, compared with governor.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::connect::{Connection, Link};
use super::gcra::{self, Part, State};
use super::key_set;
use super::refund::{self, Charged};
use super::server::RedisServer;
use crate::caller::CurrentGrant;
use crate::grant::Grant;
use crate::limit::key_table::KeyTable;
use crate::limit::refunds::{MadeCharge, RefundTotal, RefundTotals};
use crate::limit::state::decision_of;
use crate::limit::{Charge, RateLimits};
use crate::quota::Quota;
use crate::quota::cell::{Outcome, decide, read};
use crate::quota::policy::{Policy, PolicyName};
use crate::sync::InMemoryState;

/// Returns the URL of `TOLLGATE_TEST_REDIS`, or of Redis on this machine.
pub(super) fn url() -> String {
    std::env::var("TOLLGATE_TEST_REDIS").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned())
}

/// Connects to Redis at that URL.
pub(super) fn redis(test: &str) -> Option<(tokio::runtime::Runtime, Connection)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let link = Link::new(RedisServer::single(&url()).unwrap());
    let connection = runtime.block_on(async {
        let mut connection = link.open(b"").await.ok()?;
        connection.query::<String>(&redis::cmd("PING")).await.ok()?;
        Some(connection)
    });
    if connection.is_none() {
        skip("Redis", test);
    }
    Some((runtime, connection?))
}

/// Reports a test that is skipped because something is missing.
pub(super) fn skip(what: &str, test: &str) {
    let required = std::env::var_os("TOLLGATE_REQUIRE_SERVERS");
    assert!(required.is_none(), "{test}: no {what}, and TOLLGATE_REQUIRE_SERVERS is set");
    use std::io::Write as _;
    _ = writeln!(std::io::stderr(), "skipped: no {what}: {test}");
}

/// Returns a random key.
pub(super) fn key() -> Vec<u8> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap();
    format!("tollgate-test:{:016x}", u64::from_le_bytes(random)).into_bytes()
}

pub(super) fn part(key: &[u8], quota: Quota, cost: u32) -> Part {
    let policy = Policy::named(&PolicyName::default_name(), quota);
    Part { at: 0, key: key.to_vec(), policy, cost, binds: true }
}

pub(super) fn remove(runtime: &tokio::runtime::Runtime, connection: &mut Connection, key: &[u8]) {
    runtime.block_on(connection.query::<()>(redis::cmd("DEL").arg(key))).unwrap();
}

async fn charge_at(connection: &mut Connection, parts: &[Part], now_us: u64) -> redis::RedisResult<Vec<State>> {
    let reply = gcra::charge_at(connection, parts, &[], now_us).await?;
    assert_eq!(reply.now_us, now_us);
    Ok(reply.states().collect())
}

/// A time in whole microseconds, far after Redis' clock, so that no key expires during a test.
pub(super) const START_US: u64 = 4_102_444_800_000_000;

pub(super) fn quotas() -> impl Strategy<Value = Quota> {
    // Intervals with and without whole microseconds, shorter and longer than steps, and the longest intervals.
    let interval =
        prop_oneof![1..5_000_u64, 1_000_000..2_000_000_000_u64, Just(333_333_334_u64), (1_u64 << 50)..(1_u64 << 57)];
    (interval, 1_u32..30).prop_map(|(interval, burst)| {
        Quota::try_per(1, std::time::Duration::from_nanos(interval)).unwrap().with_burst(burst)
    })
}

/// Returns steps of time and costs. Some steps go back in time, which refills nothing.
fn steps() -> impl Strategy<Value = Vec<(i64, u32)>> {
    let step = prop_oneof![Just(0_i64), 1..20_i64, 1_000..2_000_000_i64, -50..0_i64, Just(1_i64 << 45)];
    prop::collection::vec((step, 0_u32..35), 1..25)
}

#[test]
fn the_script_decides_like_governor() {
    let Some((runtime, mut connection)) = redis("the_script_decides_like_governor") else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    let connection = std::cell::RefCell::new(&mut connection);
    runner
        .run(&(quotas(), steps()), |(quota, steps)| {
            let mut connection = connection.borrow_mut();
            let (key, cell) = (key(), InMemoryState::default());
            let mut passed = 1_000_u64;
            for (step, cost) in steps {
                passed = passed.saturating_add_signed(step);
                let (now, part) = (passed * 1_000, part(&key, quota, cost));
                let expected = match NonZeroU32::new(cost) {
                    None => State { fits: true, owed_ns: read(&cell).saturating_sub(now) },
                    Some(cost) => match decide(&cell, quota, now, cost) {
                        Outcome::Admitted { tat } => State { fits: true, owed_ns: tat - now },
                        Outcome::Rejected { tat, wait } => {
                            let state = State { fits: false, owed_ns: tat.saturating_sub(now) };
                            prop_assert_eq!(part.decision(state).retry_after().unwrap().as_nanos(), u128::from(wait));
                            state
                        }
                        Outcome::AboveBurst => State { fits: false, owed_ns: read(&cell).saturating_sub(now) },
                        Outcome::Frozen => unreachable!(),
                    },
                };
                let decided = runtime.block_on(charge_at(&mut connection, &[part], START_US + passed)).unwrap();
                prop_assert_eq!(decided, vec![expected], "{:?} at {} us, {} units", quota, passed, cost);
                prop_assert_eq!(part_fits(&key, quota, cost, expected), expected.fits, "as recomputed from the state");
            }
            remove(&runtime, &mut connection, &key);
            Ok(())
        })
        .unwrap();
}

/// Returns whether the charge fits, computed from the state after it.
fn part_fits(key: &[u8], quota: Quota, cost: u32, after: State) -> bool {
    let part = part(key, quota, cost);
    let charged = if after.fits { quota.interval_ns() * u64::from(cost) } else { 0 };
    part.fits(after.owed_ns.saturating_sub(charged))
}

/// Checks any two quotas: after a change, the bucket is never fuller in units, and emptier by at most a rounding.
#[test]
fn a_change_of_quota_never_refills_the_bucket() {
    let Some((runtime, mut connection)) = redis("a_change_of_quota_never_refills_the_bucket") else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let connection = std::cell::RefCell::new(&mut connection);
    runner
        .run(&(quotas(), quotas(), 1_u32..30, 0_u64..3_000_000), |(old, new, cost, passed)| {
            let mut connection = connection.borrow_mut();
            let key = key();
            let cost = cost.min(old.burst());
            runtime.block_on(charge_at(&mut connection, &[part(&key, old, cost)], START_US)).unwrap();
            let owed = (old.interval_ns() * u64::from(cost)).saturating_sub(passed * 1_000);
            let exact = (u128::from(owed) * u128::from(new.interval_ns())).div_ceil(u128::from(old.interval_ns()));
            let peek = [part(&key, new, 0)];
            let carried = runtime.block_on(charge_at(&mut connection, &peek, START_US + passed)).unwrap()[0].owed_ns;
            if exact < 4_300_000_000_000_000_000 && old.interval_ns() != new.interval_ns() {
                prop_assert!(u128::from(carried) >= exact, "{carried} < {exact}");
                prop_assert!(u128::from(carried) <= exact + exact / (1 << 49) + 2_000, "{carried} > {exact}");
            }
            // The state is stored under the new quota, although nothing was charged, and refills at its rate.
            let later =
                runtime.block_on(charge_at(&mut connection, &peek, START_US + passed + 1_000)).unwrap()[0].owed_ns;
            prop_assert_eq!(later, carried.saturating_sub(1_000_000));
            remove(&runtime, &mut connection, &key);
            Ok(())
        })
        .unwrap();
}

/// A step of time, and then a charge, or a refund of one of the charges.
#[derive(Clone, Debug)]
enum RefundStep {
    Charge(u64, u32),
    Refund(u64, prop::sample::Index),
}

fn refund_steps() -> impl Strategy<Value = Vec<RefundStep>> {
    let time = || prop_oneof![4 => 0_u64..3, 2 => 0_u64..3_000, 1 => 0_u64..3_000_000];
    let charge = (time(), 0_u32..20).prop_map(|(time, cost)| RefundStep::Charge(time, cost));
    let refund = (time(), any::<prop::sample::Index>()).prop_map(|(time, which)| RefundStep::Refund(time, which));
    prop::collection::vec(prop_oneof![charge, refund], 1..20)
}

#[test]
fn refunds_are_those_of_limits_in_memory() {
    let Some((runtime, mut connection)) = redis("refunds_are_those_of_limits_in_memory") else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(600));
    let connection = std::cell::RefCell::new(&mut connection);
    // Charges and their rests that differ by less than a microsecond.
    let quick = (1_u64..5_000).prop_map(|ns| Quota::one_per(std::time::Duration::from_nanos(ns)));
    runner
        .run(&(prop_oneof![quick, quotas()], refund_steps()), |(quota, steps)| {
            let mut connection = connection.borrow_mut();
            let (key, quota) = (key(), quota.with_burst(30));
            let time = Arc::new(AtomicU64::new(0));
            let clock = Arc::clone(&time);
            let memory = RateLimits::new(quota).with_refunds();
            let memory = memory.with_clock(move || std::time::Duration::from_micros(clock.load(Ordering::Relaxed)));
            // A charge that keeps the bucket of the grant.
            let alice = CurrentGrant::new(Grant::new("alice", ()));
            let (mut passed, mut made) = (1_000, Vec::new());
            for step in steps {
                let (RefundStep::Charge(step_us, _) | RefundStep::Refund(step_us, _)) = &step;
                passed += step_us;
                time.store(passed, Ordering::Relaxed);
                let now_us = START_US + passed;
                match step {
                    RefundStep::Charge(_, cost) => {
                        let part = part(&key, quota, cost);
                        let parts = std::slice::from_ref(&part);
                        let reply =
                            runtime.block_on(gcra::charge_with_refunds_at(&mut connection, parts, now_us)).unwrap();
                        let expected = memory.charge(&alice, Charge::Units(cost));
                        prop_assert_eq!(reply.state(0).unwrap().fits, expected.is_admitted());
                        prop_assert_eq!(reply.state(0).unwrap().owed_ns, expected.full_in_ns());
                        let charged = Charged::of(&part, reply.state(0).unwrap(), reply.history(0).unwrap(), now_us);
                        made.extend(charged.map(|charged| (charged, expected)));
                    }
                    RefundStep::Refund(_, which) if !made.is_empty() => {
                        let (charged, expected) = made.swap_remove(which.index(made.len()));
                        runtime.block_on(refund::refund_at(&mut connection, &charged, now_us)).unwrap();
                        runtime.block_on(expected.refund());
                        let look = [part(&key, quota, 0)];
                        let left = runtime.block_on(charge_at(&mut connection, &look, now_us)).unwrap()[0].owed_ns;
                        prop_assert_eq!(left, memory.peek(&alice).full_in_ns());
                    }
                    RefundStep::Refund(..) => {}
                }
            }
            remove(&runtime, &mut connection, &key);
            Ok(())
        })
        .unwrap();
}

#[test]
fn refund_after_a_change_of_quota_returns_nothing() {
    let Some((runtime, mut connection)) = redis("refund_after_a_change_of_quota_returns_nothing") else { return };
    let (key, quota) = (key(), Quota::per_second(1).with_burst(30));
    let [old, other] = [quota, Quota::per_second(2).with_burst(30)].map(|quota| part(&key, quota, 3));
    let mut charge = |part: &Part, now_us: u64| {
        let parts = std::slice::from_ref(part);
        let reply = runtime.block_on(gcra::charge_with_refunds_at(&mut connection, parts, now_us)).unwrap();
        let owed = reply.state(0).unwrap().owed_ns;
        (Charged::of(part, reply.state(0).unwrap(), reply.history(0).unwrap(), now_us).unwrap(), owed)
    };
    let made = charge(&old, START_US).0;
    charge(&other, START_US + 1);
    let (_, owed) = charge(&old, START_US + 2);
    // The quota is the same again, but the bucket may have regained units by another one.
    runtime.block_on(refund::refund_at(&mut connection, &made, START_US + 2)).unwrap();
    let look = [part(&key, quota, 0)];
    assert_eq!(runtime.block_on(charge_at(&mut connection, &look, START_US + 2)).unwrap()[0].owed_ns, owed);
    remove(&runtime, &mut connection, &key);
}

/// A step of a set of buckets: a time, a key, and its cost, or a refund.
fn set_steps() -> impl Strategy<Value = Vec<(u64, u64, Option<u32>)>> {
    let time = prop_oneof![3 => Just(0_u64), 3 => 1..20_u64, 1 => 0_u64..2_000];
    prop::collection::vec((time, 1..40_u64, prop::option::weighted(0.8, 0..4_u32)), 1..60)
}

/// Up to eight keys have exact buckets, as in memory. More keys are never admitted more than their quota.
#[test]
fn set_of_buckets_decides_like_the_table_in_memory() {
    let Some((runtime, mut connection)) = redis("set_of_buckets_decides_like_the_table_in_memory") else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let connection = std::cell::RefCell::new(&mut connection);
    let quota = Quota::one_per(std::time::Duration::from_nanos(10_500)).with_burst(3);
    runner
        .run(&(set_steps(), 1..24_u64), |(steps, keys)| {
            let mut connection = connection.borrow_mut();
            let key = key();
            let table = KeyTable::new(8, &Policy::named(&PolicyName::default_name(), quota));
            let (totals, mut made) = (Arc::default(), Vec::new());
            let (mut passed, mut exact) = (1_000, HashMap::<u64, u64>::new());
            for (time, hash, cost) in steps {
                passed += time;
                let (hash, now, now_us) = (hash % keys + 1, passed * 1_000, START_US + passed);
                let Some(cost) = cost else {
                    // With more keys, refunds would make the exact buckets incomparable.
                    let Some((of, charged, in_memory, total)) = made.pop().filter(|_| keys <= 8) else { continue };
                    let (charged, in_memory, total): (Charged, MadeCharge, Arc<RefundTotal<u64>>) =
                        (charged, in_memory, total);
                    runtime.block_on(refund::refund_at(&mut connection, &charged, now_us)).unwrap();
                    total.refund(in_memory, now, |ns| table.refund(of, quota, ns));
                    continue;
                };
                let part = part(&key, quota, cost);
                let reply = runtime.block_on(key_set::charge_at(&mut connection, &part, hash, now_us)).unwrap();
                let state = reply.state(0).unwrap();
                let tat = exact.entry(hash).or_default();
                let after = (*tat).max(now) + u64::from(cost) * quota.interval_ns();
                if state.fits && cost > 0 {
                    prop_assert!(keys <= 8 || after <= now + quota.span_ns());
                    *tat = after;
                }
                if keys <= 8 {
                    let total = RefundTotals::of(&totals, hash);
                    let refunded = total.get();
                    let charged = table.charge(hash, now, cost);
                    let expected = decision_of(charged.policy, charged.outcome, charged.before, now);
                    prop_assert_eq!((state.fits, state.owed_ns), (expected.is_admitted(), expected.full_in_ns()));
                    let redis = Charged::of(&part, state, reply.history(0).unwrap(), now_us);
                    let memory = MadeCharge::of(&expected, now, cost).map(|made| made.after(refunded));
                    made.extend(
                        redis.zip(memory).map(|(redis, memory)| (hash, redis.in_set(Some(hash)), memory, total)),
                    );
                }
            }
            remove(&runtime, &mut connection, &key);
            Ok(())
        })
        .unwrap();
}

/// Compares with exact buckets that count only requests without a refund, for more keys than the set has buckets.
#[test]
fn set_of_buckets_admits_no_more_than_the_quota_with_refunds() {
    let Some((runtime, mut connection)) = redis("set_of_buckets_admits_no_more_than_the_quota_with_refunds") else {
        return;
    };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let connection = std::cell::RefCell::new(&mut connection);
    let quota = Quota::one_per(std::time::Duration::from_nanos(10_500)).with_burst(3);
    runner
        .run(&(set_steps(), 9..24_u64), |(steps, keys)| {
            let mut connection = connection.borrow_mut();
            let (key, mut made) = (key(), Vec::new());
            let (mut passed, mut counted) = (1_000, HashMap::<u64, u64>::new());
            for (time, hash, cost) in steps {
                passed += time;
                let (hash, now, now_us) = (hash % keys + 1, passed * 1_000, START_US + passed);
                let Some(cost) = cost.filter(|cost| *cost > 0) else {
                    if let Some(charged) = made.pop() {
                        runtime.block_on(refund::refund_at(&mut connection, &charged, now_us)).unwrap();
                    }
                    continue;
                };
                let part = part(&key, quota, cost);
                let reply = runtime.block_on(key_set::charge_at(&mut connection, &part, hash, now_us)).unwrap();
                let Some(charged) = Charged::of(&part, reply.state(0).unwrap(), reply.history(0).unwrap(), now_us)
                else {
                    continue;
                };
                // Every second charge counts, whatever happens later.
                match (u64::from(cost) + hash) % 2 {
                    0 => made.push(charged.in_set(Some(hash))),
                    _ => {
                        let tat = counted.entry(hash).or_default();
                        *tat = (*tat).max(now) + part.charged_ns();
                        prop_assert!(*tat <= now + quota.span_ns());
                    }
                }
            }
            remove(&runtime, &mut connection, &key);
            Ok(())
        })
        .unwrap();
}

#[test]
fn set_of_buckets_keeps_units_after_a_change_of_quota_and_for_replaced_keys() {
    let name = "set_of_buckets_keeps_units_after_a_change_of_quota_and_for_replaced_keys";
    let Some((runtime, mut connection)) = redis(name) else { return };
    let (key, quota) = (key(), Quota::per_second(1).with_burst(3));
    let charge = |connection: &mut Connection, hash: u64, cost: u32, quota: Quota| {
        let part = part(&key, quota, cost);
        let reply = runtime.block_on(key_set::charge_at(connection, &part, hash, START_US)).unwrap();
        let (state, history) = (reply.state(0).unwrap(), reply.history(0).unwrap());
        (state, Charged::of(&part, state, history, START_US).map(|charged| charged.in_set(Some(hash))))
    };
    let refunds: Vec<_> = (1..=8).map(|hash| charge(&mut connection, hash, 2, quota).1.unwrap()).collect();
    assert!(charge(&mut connection, 9, 1, quota).0.fits, "replaces key 1");
    runtime.block_on(refund::refund_at(&mut connection, &refunds[1], START_US)).unwrap();
    assert!(charge(&mut connection, 1, 1, quota).0.fits);
    assert!(!charge(&mut connection, 1, 1, quota).0.fits, "a refund to another key returned the units of key 1");

    let faster = Quota::per_second(2).with_burst(3);
    assert_eq!(charge(&mut connection, 5, 0, faster).0.owed_ns, 1_000_001_000, "two units, rounded up to us");
    // The charge was made under another quota.
    runtime.block_on(refund::refund_at(&mut connection, &refunds[4], START_US)).unwrap();
    assert_eq!(charge(&mut connection, 5, 0, faster).0.owed_ns, 1_000_001_000);
    remove(&runtime, &mut connection, &key);
}

#[test]
fn a_rejection_by_one_bucket_charges_none() {
    let Some((runtime, mut connection)) = redis("a_rejection_by_one_bucket_charges_none") else { return };
    let quota = Quota::per_minute(60).with_burst(5);
    let (wide, narrow) = (key(), key());
    let mut charge = |binds: bool, cost: [u32; 2]| {
        let parts = [part(&wide, quota, cost[0]), Part { binds, ..part(&narrow, quota.with_burst(2), cost[1]) }];
        let states = runtime.block_on(charge_at(&mut connection, &parts, START_US)).unwrap();
        [0, 1].map(|at| (states[at].fits, states[at].owed_ns / 1_000_000_000))
    };
    assert_eq!(charge(true, [1, 1]), [(true, 1), (true, 1)]);
    assert_eq!(charge(true, [1, 2]), [(true, 1), (false, 1)], "neither bucket is charged");
    assert_eq!(charge(true, [1, 3]), [(true, 1), (false, 1)], "also with a cost above the burst");
    assert_eq!(charge(false, [1, 2]), [(true, 2), (false, 1)], "a dry run rejects nothing");
    assert_eq!(charge(true, [5, 0]), [(false, 2), (true, 1)]);
    assert_eq!(charge(true, [3, 1]), [(true, 5), (true, 2)]);
    for key in [&wide, &narrow] {
        remove(&runtime, &mut connection, key);
    }
}
