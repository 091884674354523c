//! Tests of the scripts in a real Redis, compared with governor.

use std::num::NonZeroU32;

use proptest::prelude::*;

use super::connect::{Connection, Link};
use super::gcra::{self, Part, State};
use super::refund;
use super::server::RedisServer;
use crate::quota::Quota;
use crate::quota::cell::{Outcome, decide, read};
use crate::quota::policy::{Policy, PolicyName};
use crate::sync::InMemoryState;

/// Connects to `TOLLGATE_TEST_REDIS`, or to Redis on this machine.
pub(super) fn redis(test: &str) -> Option<(tokio::runtime::Runtime, Connection)> {
    let url = std::env::var("TOLLGATE_TEST_REDIS").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let link = Link::new(RedisServer::single(&url).unwrap());
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
    Ok(reply.states)
}

/// A time in whole microseconds, far after Redis' clock, so that no key expires during a test.
pub(super) const START_US: u64 = 4_102_444_800_000_000;

fn quotas() -> impl Strategy<Value = Quota> {
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

/// Checks that a refund returns the part of the charge that has not refilled, in the order of the charges, as in memory.
#[test]
fn a_refund_returns_what_has_not_refilled() {
    let Some((runtime, mut connection)) = redis("a_refund_returns_what_has_not_refilled") else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(600));
    let connection = std::cell::RefCell::new(&mut connection);
    let units = (1_u32..14, 1_u32..14);
    // The charge and its rest differ by less than a microsecond.
    let quick = (1_u64..5_000).prop_map(|ns| Quota::one_per(std::time::Duration::from_nanos(ns)));
    let time = || prop_oneof![3 => 0_u64..3, 1 => 0_u64..3_000_000];
    runner
        .run(
            &(prop_oneof![quick, quotas()], units, [time(), time(), time()]),
            |(quota, (first, second), [before, between, after])| {
                let mut connection = connection.borrow_mut();
                let (key, quota) = (key(), quota.with_burst(30));
                runtime.block_on(charge_at(&mut connection, &[part(&key, quota, 1)], START_US)).unwrap();
                let mut now = START_US + before;
                let made =
                    runtime.block_on(gcra::charge_at(&mut connection, &[part(&key, quota, first)], &[], now)).unwrap();
                let full_at = u128::from(now) * 1_000 + u128::from(made.states[0].owed_ns);
                now += between;
                let owed =
                    runtime.block_on(charge_at(&mut connection, &[part(&key, quota, second)], now)).unwrap()[0].owed_ns;
                now += after;
                let charged = refund::charged(vec![part(&key, quota, first)], &made);
                runtime.block_on(refund::refund_at(&mut connection, &charged, now)).unwrap();
                let cost = u128::from(quota.interval_ns()) * u128::from(first);
                let unrefilled = cost.min(full_at.saturating_sub(u128::from(now) * 1_000));
                let expected = u128::from(owed.saturating_sub(after * 1_000)).saturating_sub(unrefilled);
                let left =
                    runtime.block_on(charge_at(&mut connection, &[part(&key, quota, 0)], now)).unwrap()[0].owed_ns;
                prop_assert_eq!(u128::from(left), expected, "{:?}: {} then {} units", quota, first, second);
                remove(&runtime, &mut connection, &key);
                Ok(())
            },
        )
        .unwrap();
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
