//! The script beside governor, on a real Redis.

use std::num::NonZeroU32;

use proptest::prelude::*;

use super::connect::{Link, Open};
use super::gcra::{self, Part, State};
use super::refund;
use super::server::RedisServer;
use crate::quota::Quota;
use crate::quota::cell::{Outcome, decide, read};
use crate::quota::policy::{Policy, PolicyName};
use crate::sync::InMemoryState;

/// `TOLLGATE_TEST_REDIS`, or what answers on this machine.
pub(super) fn redis(test: &str) -> Option<(tokio::runtime::Runtime, Open)> {
    let url = std::env::var("TOLLGATE_TEST_REDIS").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let link = Link::new(RedisServer::single(&url).unwrap());
    let open = runtime.block_on(async {
        let mut open = link.open(b"").await.ok()?;
        open.query::<String>(&redis::cmd("PING")).await.ok()?;
        Some(open)
    });
    if open.is_none() {
        skip("Redis", test);
    }
    Some((runtime, open?))
}

/// Says that a test cannot run without something that is missing.
pub(super) fn skip(what: &str, test: &str) {
    let required = std::env::var_os("TOLLGATE_REQUIRE_SERVERS");
    assert!(required.is_none(), "{test}: no {what}, and TOLLGATE_REQUIRE_SERVERS is set");
    use std::io::Write as _;
    _ = writeln!(std::io::stderr(), "skipped: no {what}: {test}");
}

/// A key of its own, which is removed at once when this is dropped.
pub(super) fn key() -> Vec<u8> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap();
    format!("tollgate-test:{:016x}", u64::from_le_bytes(random)).into_bytes()
}

pub(super) fn part(key: &[u8], quota: Quota, cost: u32) -> Part {
    let policy = Policy::named(&PolicyName::default_name(), quota);
    Part { at: 0, key: key.to_vec(), policy, cost, binds: true }
}

pub(super) fn remove(runtime: &tokio::runtime::Runtime, open: &mut Open, key: &[u8]) {
    runtime.block_on(open.query::<()>(redis::cmd("DEL").arg(key))).unwrap();
}

async fn charge_at(open: &mut Open, parts: &[Part], now_us: u64) -> redis::RedisResult<Vec<State>> {
    let reply = gcra::charge_at(open, parts, &[], now_us).await?;
    assert_eq!(reply.now_us, now_us);
    Ok(reply.states)
}

/// Whole microseconds far ahead of Redis' clock, so that no key ends while a test runs.
pub(super) const START_US: u64 = 4_102_444_800_000_000;

fn quotas() -> impl Strategy<Value = Quota> {
    // Intervals with and without whole microseconds, shorter and longer than steps, and the longest there are.
    let interval =
        prop_oneof![1..5_000_u64, 1_000_000..2_000_000_000_u64, Just(333_333_334_u64), (1_u64 << 50)..(1_u64 << 57)];
    (interval, 1_u32..30).prop_map(|(interval, burst)| {
        Quota::try_per(1, std::time::Duration::from_nanos(interval)).unwrap().with_burst(burst)
    })
}

/// Steps back too, which hand out nothing.
fn steps() -> impl Strategy<Value = Vec<(i64, u32)>> {
    let step = prop_oneof![Just(0_i64), 1..20_i64, 1_000..2_000_000_i64, -50..0_i64, Just(1_i64 << 45)];
    prop::collection::vec((step, 0_u32..35), 1..25)
}

#[test]
fn the_script_decides_as_governor_does() {
    let Some((runtime, mut open)) = redis("the_script_decides_as_governor_does") else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    let open = std::cell::RefCell::new(&mut open);
    runner
        .run(&(quotas(), steps()), |(quota, steps)| {
            let mut open = open.borrow_mut();
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
                let decided = runtime.block_on(charge_at(&mut open, &[part], START_US + passed)).unwrap();
                prop_assert_eq!(decided, vec![expected], "{:?} at {} us, {} cells", quota, passed, cost);
                prop_assert_eq!(part_fits(&key, quota, cost, expected), expected.fits, "what is remembered");
            }
            remove(&runtime, &mut open, &key);
            Ok(())
        })
        .unwrap();
}

/// What the charge would have been by what is owed after it.
fn part_fits(key: &[u8], quota: Quota, cost: u32, after: State) -> bool {
    let part = part(key, quota, cost);
    let paid = if after.fits { quota.interval_ns() * u64::from(cost) } else { 0 };
    part.fits(after.owed_ns.saturating_sub(paid))
}

/// Any order of quotas: in cells, never less is owed afterwards, and no more than a rounding more.
#[test]
fn another_quota_is_never_a_fresh_burst() {
    let Some((runtime, mut open)) = redis("another_quota_is_never_a_fresh_burst") else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let open = std::cell::RefCell::new(&mut open);
    runner
        .run(&(quotas(), quotas(), 1_u32..30, 0_u64..3_000_000), |(old, new, cost, passed)| {
            let mut open = open.borrow_mut();
            let key = key();
            let cost = cost.min(old.burst());
            runtime.block_on(charge_at(&mut open, &[part(&key, old, cost)], START_US)).unwrap();
            let owed = (old.interval_ns() * u64::from(cost)).saturating_sub(passed * 1_000);
            let exact = (u128::from(owed) * u128::from(new.interval_ns())).div_ceil(u128::from(old.interval_ns()));
            let peek = [part(&key, new, 0)];
            let carried = runtime.block_on(charge_at(&mut open, &peek, START_US + passed)).unwrap()[0].owed_ns;
            if exact < 4_300_000_000_000_000_000 && old.interval_ns() != new.interval_ns() {
                prop_assert!(u128::from(carried) >= exact, "{carried} < {exact}");
                prop_assert!(u128::from(carried) <= exact + exact / (1 << 49) + 2_000, "{carried} > {exact}");
            }
            // It is kept in the new quota's terms, though nothing was charged, and so runs down at its rate.
            let later = runtime.block_on(charge_at(&mut open, &peek, START_US + passed + 1_000)).unwrap()[0].owed_ns;
            prop_assert_eq!(later, carried.saturating_sub(1_000_000));
            remove(&runtime, &mut open, &key);
            Ok(())
        })
        .unwrap();
}

/// As in memory: the charge, or what of it is not paid off, by the order in which charges were made.
#[test]
fn what_is_unpaid_is_given_back() {
    let Some((runtime, mut open)) = redis("what_is_unpaid_is_given_back") else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(600));
    let open = std::cell::RefCell::new(&mut open);
    let cells = (1_u32..14, 1_u32..14);
    // What is left and what was charged differ by less than a microsecond.
    let quick = (1_u64..5_000).prop_map(|ns| Quota::one_per(std::time::Duration::from_nanos(ns)));
    let time = || prop_oneof![3 => 0_u64..3, 1 => 0_u64..3_000_000];
    runner
        .run(
            &(prop_oneof![quick, quotas()], cells, [time(), time(), time()]),
            |(quota, (first, second), [before, between, after])| {
                let mut open = open.borrow_mut();
                let (key, quota) = (key(), quota.with_burst(30));
                runtime.block_on(charge_at(&mut open, &[part(&key, quota, 1)], START_US)).unwrap();
                let mut now = START_US + before;
                let made = runtime.block_on(gcra::charge_at(&mut open, &[part(&key, quota, first)], &[], now)).unwrap();
                let full_at = u128::from(now) * 1_000 + u128::from(made.states[0].owed_ns);
                now += between;
                let owed =
                    runtime.block_on(charge_at(&mut open, &[part(&key, quota, second)], now)).unwrap()[0].owed_ns;
                now += after;
                let charged = refund::charged(vec![part(&key, quota, first)], &made);
                runtime.block_on(refund::give_back_at(&mut open, &charged, now)).unwrap();
                let cost = u128::from(quota.interval_ns()) * u128::from(first);
                let unpaid = cost.min(full_at.saturating_sub(u128::from(now) * 1_000));
                let expected = u128::from(owed.saturating_sub(after * 1_000)).saturating_sub(unpaid);
                let left = runtime.block_on(charge_at(&mut open, &[part(&key, quota, 0)], now)).unwrap()[0].owed_ns;
                prop_assert_eq!(u128::from(left), expected, "{:?}: {} then {} cells", quota, first, second);
                remove(&runtime, &mut open, &key);
                Ok(())
            },
        )
        .unwrap();
}

#[test]
fn what_binds_and_does_not_fit_leaves_all_as_it_was() {
    let Some((runtime, mut open)) = redis("what_binds_and_does_not_fit_leaves_all_as_it_was") else { return };
    let quota = Quota::per_minute(60).with_burst(5);
    let (wide, narrow) = (key(), key());
    let mut charge = |binds: bool, cost: [u32; 2]| {
        let parts = [part(&wide, quota, cost[0]), Part { binds, ..part(&narrow, quota.with_burst(2), cost[1]) }];
        let states = runtime.block_on(charge_at(&mut open, &parts, START_US)).unwrap();
        [0, 1].map(|at| (states[at].fits, states[at].owed_ns / 1_000_000_000))
    };
    assert_eq!(charge(true, [1, 1]), [(true, 1), (true, 1)]);
    assert_eq!(charge(true, [1, 2]), [(true, 1), (false, 1)], "nobody is charged");
    assert_eq!(charge(true, [1, 3]), [(true, 1), (false, 1)], "nor by what is above a burst");
    assert_eq!(charge(false, [1, 2]), [(true, 2), (false, 1)], "one that does not bind is a mere observer");
    assert_eq!(charge(true, [5, 0]), [(false, 2), (true, 1)]);
    assert_eq!(charge(true, [3, 1]), [(true, 5), (true, 2)]);
    for key in [&wide, &narrow] {
        remove(&runtime, &mut open, key);
    }
}
