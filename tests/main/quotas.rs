//! Quotas and decisions at the bounds of their numbers, compared with arithmetic that cannot overflow.

use std::panic::catch_unwind;
use std::time::Duration;

use proptest::prelude::*;
use tollgate::limit::{Charge, RateLimits};
use tollgate::{CurrentGrant, Grant, Quota, QuotaError, Verdict};

use crate::kit::*;
use crate::limits::{assert_bounded, grant_of};

/// 146 years: the exclusive upper bound of refill times and of the clock.
const MAX_SPAN_NS: u128 = 1 << 62;

const YEAR_NS: u64 = 31_556_952_000_000_000;

fn numbers() -> impl Strategy<Value = u32> {
    prop_oneof![0..4_u32, Just(u32::MAX - 1), Just(u32::MAX), any::<u32>(), 1..1_000_u32]
}

fn durations() -> impl Strategy<Value = Duration> {
    let ns = |ns: u128| Duration::new((ns / 1_000_000_000) as u64, (ns % 1_000_000_000) as u32);
    let span = (-3..=3_i128).prop_map(move |by| ns(MAX_SPAN_NS.checked_add_signed(by).unwrap()));
    // `u32::MAX` cells of this length take about 146 years.
    let cell = (-3..=3_i64).prop_map(|by| Duration::from_nanos((1_u64 << 30).checked_add_signed(by).unwrap()));
    prop_oneof![
        (0..4_u64).prop_map(Duration::from_nanos),
        span,
        cell,
        Just(Duration::MAX),
        (1..300_u64).prop_map(|years| Duration::from_nanos(YEAR_NS.saturating_mul(years))),
        any::<u64>().prop_map(Duration::from_nanos),
        any::<Duration>(),
        (1..100_000_u64).prop_map(Duration::from_secs),
    ]
}

/// Returns any quota, with emphasis on the extremes: one nanosecond, 146 years, `u32::MAX` cells.
fn extreme_quotas() -> impl Strategy<Value = Quota> {
    let intervals =
        prop_oneof![1..4_u64, Just((1 << 62) - 1), YEAR_NS..100 * YEAR_NS, 1..1_u64 << 62, 1..2_000_000_000_u64];
    (intervals, numbers()).prop_map(|(interval, burst)| {
        let most = u32::try_from((MAX_SPAN_NS - 1) / u128::from(interval)).unwrap_or(u32::MAX);
        Quota::one_per(Duration::from_nanos(interval)).with_burst(burst.clamp(1, most))
    })
}

/// Returns the error expected for a burst of cells of this length.
fn wrong(interval_ns: u128, burst: u32) -> Option<QuotaError> {
    match () {
        () if burst == 0 => Some(QuotaError::Zero),
        () if interval_ns == 0 => Some(QuotaError::NoTime),
        () if interval_ns * u128::from(burst) >= MAX_SPAN_NS => Some(QuotaError::TooLong),
        () => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_048))]

    #[test]
    fn a_rate_is_never_exceeded_by_rounding(n in numbers(), period in durations()) {
        let quota = Quota::try_per(n, period);
        let n_ns = u128::from(n.max(1));
        prop_assert_eq!(quota.err(), wrong(period.as_nanos().div_ceil(n_ns), n));
        if let Ok(quota) = quota {
            let interval = quota.interval().as_nanos();
            prop_assert_eq!(quota.burst(), n);
            prop_assert!(interval * n_ns >= period.as_nanos(), "more than {n} in {period:?}");
            prop_assert!((interval - 1) * n_ns < period.as_nanos(), "slower than necessary");
            prop_assert_eq!(quota.refill().as_nanos(), interval * n_ns);
        }
    }

    #[test]
    fn no_window_exceeds_at_most(n in numbers(), window in durations(), burst in numbers()) {
        let quota = Quota::try_at_most(n, window, burst);
        let expected = match () {
            () if n == 0 || burst == 0 => Some(QuotaError::Zero),
            () if burst > n => Some(QuotaError::BurstAboveWindow),
            () => wrong(window.as_nanos().div_ceil(u128::from(n - burst) + 1), burst),
        };
        prop_assert_eq!(quota.err(), expected);
        if let Ok(quota) = quota {
            prop_assert_eq!(quota.burst(), burst);
            // The burst at the start of the window, and one at each later interval within the window.
            let inside = |interval: u128| u128::from(burst) + window.as_nanos().div_ceil(interval) - 1;
            let interval = quota.interval().as_nanos();
            prop_assert!(inside(interval) <= u128::from(n), "{} of {n}", inside(interval));
            if interval > 1 {
                prop_assert!(inside(interval - 1) > u128::from(n), "slower than necessary");
            }
        }
    }

    #[test]
    fn another_burst_keeps_the_rate(quota in extreme_quotas(), burst in numbers()) {
        let other = quota.try_with_burst(burst);
        prop_assert_eq!(other.err(), wrong(quota.interval().as_nanos(), burst));
        if let Ok(other) = other {
            prop_assert_eq!((other.interval(), other.burst()), (quota.interval(), burst));
        }
    }

    #[test]
    #[cfg(feature = "serde")]
    fn serde_round_trips_are_lossless(quota in extreme_quotas(), n in numbers(), ns in any::<u64>(), burst in numbers()) {
        let text = serde_json::to_string(&quota).unwrap();
        prop_assert_eq!(serde_json::from_str::<Quota>(&text).unwrap(), quota);
        let read = |text: String| serde_json::from_str::<Quota>(&text).ok();
        for (unit, seconds) in [("s", 1), ("min", 60), ("h", 3_600), ("day", 86_400)] {
            let quota = Quota::try_per(n, Duration::from_secs(seconds));
            prop_assert_eq!(read(format!(r#""{n}/{unit}""#)), quota.ok());
            let quota = quota.and_then(|quota| quota.try_with_burst(burst));
            prop_assert_eq!(read(format!(r#""{n}/{unit} burst {burst}""#)), quota.ok());
        }
        let exact = Quota::try_per(1, Duration::from_nanos(ns)).and_then(|quota| quota.try_with_burst(burst));
        prop_assert_eq!(read(format!(r#""1/{ns}ns burst {burst}""#)), exact.ok());
    }
}

#[test]
fn constructors_panic_exactly_where_try_variants_return_errors() {
    let second = Duration::from_secs(1);
    for n in [0, 1, 2, 3_600, u32::MAX - 1, u32::MAX] {
        for (quota, fallible) in [
            (catch_unwind(|| Quota::per_second(n)), Quota::try_per(n, second)),
            (catch_unwind(|| Quota::per_minute(n)), Quota::try_per(n, 60 * second)),
            (catch_unwind(|| Quota::per_hour(n)), Quota::try_per(n, 3_600 * second)),
            (catch_unwind(|| Quota::per_day(n)), Quota::try_per(n, 86_400 * second)),
            (catch_unwind(|| Quota::per_day(2).with_burst(n)), Quota::per_day(2).try_with_burst(n)),
        ] {
            assert_eq!(quota.ok(), fallible.ok(), "{n}");
        }
        for period in [Duration::ZERO, Duration::from_nanos(1), second, Duration::from_nanos(1 << 62), Duration::MAX] {
            assert_eq!(catch_unwind(|| Quota::one_per(period)).ok(), Quota::try_per(1, period).ok());
            for burst in [0, 1, n] {
                let fallible = Quota::try_at_most(n, period, burst);
                assert_eq!(catch_unwind(|| Quota::at_most(n, period, burst)).ok(), fallible.ok());
            }
        }
    }
}

/// A complete GCRA in `u128`, where no value overflows.
struct ExactBucket {
    interval: u128,
    burst: u128,
    tat: u128,
}

#[derive(Debug, PartialEq)]
struct Reported {
    verdict: Verdict,
    remaining: u32,
    more_in: u128,
    full_in: u128,
}

impl ExactBucket {
    fn of(quota: Quota) -> Self {
        Self { interval: quota.interval().as_nanos(), burst: quota.burst().into(), tat: 0 }
    }

    fn check(&mut self, now: u128, cost: u32) -> Reported {
        let now = now.min(MAX_SPAN_NS - 1);
        let span = self.interval * self.burst;
        let owed = self.tat.saturating_sub(now);
        let price = self.interval * u128::from(cost);
        if price > span {
            // Nothing is charged. The current state is reported.
            return Reported { verdict: Verdict::CostAboveBurst, ..self.check(now, 0) };
        }
        if cost > 0 && owed + price > span {
            let more_in = owed + price - span;
            return Reported { verdict: Verdict::OverLimit, remaining: 0, more_in, full_in: owed };
        }
        if cost > 0 {
            self.tat = self.tat.max(now) + price;
        }
        let owed = owed + price;
        let remaining = span.saturating_sub(owed) / self.interval;
        // One more unit is available as soon as the debt leaves room for it.
        let more_in = owed.saturating_sub(span - self.interval * (remaining + 1).min(self.burst));
        Reported { verdict: Verdict::Admitted, remaining: u32::try_from(remaining).unwrap(), more_in, full_in: owed }
    }
}

fn report(limits: &RateLimits, grant: &CurrentGrant, cost: u32) -> Reported {
    let decision = limits.charge(grant, Charge::Units(cost));
    let waits = decision.verdict() == Verdict::OverLimit;
    assert_eq!(decision.retry_after(), waits.then_some(decision.more_in()));
    let (more_in, full_in) = (decision.more_in().as_nanos(), decision.full_in().as_nanos());
    Reported { verdict: decision.verdict(), remaining: decision.remaining(), more_in, full_in }
}

/// How the clock moves before a charge.
#[derive(Clone, Copy, Debug)]
enum Turn {
    To(u64),
    By(u64),
    Back(u64),
    /// Forward by thousandths of an interval.
    Cells(u64),
}

fn turns() -> impl Strategy<Value = Turn> {
    let end = 1_u64 << 62;
    prop_oneof![
        2 => prop::sample::select(vec![0, 1, end - 2, end - 1, end, end + 1, u64::MAX]).prop_map(Turn::To),
        1 => any::<u64>().prop_map(Turn::To),
        4 => (0..4_u64).prop_map(Turn::By),
        1 => prop_oneof![0..4_u64, any::<u64>()].prop_map(Turn::Back),
        8 => (0..3_000_u64).prop_map(Turn::Cells),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_024))]

    #[test]
    fn every_decision_matches_exact_arithmetic(
        quota in extreme_quotas(),
        steps in prop::collection::vec((turns(), 0..8_u32, any::<u32>()), 1..60),
    ) {
        let hands = Hands::default();
        let limits = hands.limits(quota);
        let grant = grant_of("s", None);
        let mut bucket = ExactBucket::of(quota);
        let interval = u64::try_from(quota.interval().as_nanos()).unwrap();
        for (turn, which, any) in steps {
            hands.set_ns(match turn {
                Turn::To(ns) => ns,
                Turn::By(ns) => hands.ns().saturating_add(ns),
                Turn::Back(ns) => hands.ns().saturating_sub(ns),
                Turn::Cells(thousandths) => {
                    let ns = u128::from(interval) * u128::from(thousandths) / 1_000;
                    hands.ns().saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))
                }
            });
            let burst = quota.burst();
            let costs = [0, 1, 2, burst - 1, burst, burst.saturating_add(1), u32::MAX, any];
            let cost = costs[which as usize];
            let expected = bucket.check(hands.ns().into(), cost);
            prop_assert_eq!(report(&limits, &grant, cost), expected, "{} at {}", cost, hands.ns());
        }
    }

    #[test]
    fn changes_between_extreme_plans_grant_no_fresh_burst(
        most in numbers(),
        parts in prop::collection::vec((numbers(), any::<u64>(), any::<bool>()), 2..4),
        steps in prop::collection::vec((0..3_usize, 0..3_000_u64, numbers()), 1..60),
    ) {
        // Any debt of any plan takes less than 146 years under any other plan. Longer debts would be cut.
        let most = most.max(1);
        let longest = u64::try_from((MAX_SPAN_NS - 1) / u128::from(most)).unwrap();
        let plans: Vec<_> = parts
            .iter()
            .map(|&(burst, ns, extreme)| {
                let interval = if extreme { [1, longest][(ns % 2) as usize] } else { ns % longest + 1 };
                Quota::one_per(Duration::from_nanos(interval)).with_burst(burst.clamp(1, most))
            })
            .collect();
        let interval = plans.iter().map(|plan| plan.interval().as_nanos() as u64).min().unwrap();
        let burst = plans.iter().map(|plan| plan.burst()).max().unwrap();
        let hands = Hands::default();
        let limits = hands.limits(plans[0]);
        let tokens: Vec<_> = plans.iter().map(|plan| grant_of("s", Some(*plan))).collect();
        let mut admitted = Vec::new();
        for (which, thousandths, units) in steps {
            let ns = u128::from(interval) * u128::from(thousandths) / 1_000;
            hands.set_ns((u128::from(hands.ns()) + ns).min(MAX_SPAN_NS - 1) as u64);
            let plan = which % plans.len();
            let units = units.clamp(1, plans[plan].burst());
            if limits.charge(&tokens[plan], Charge::Units(units)).is_admitted() {
                admitted.push((hands.ns(), units));
            }
        }
        assert_bounded(&admitted, burst, interval)?;
    }
}

#[test]
fn large_costs_do_not_overflow() {
    // 2^33 ns times 2^31 units is 2^64 ns, which wraps to 0.
    let limits = Hands::default().limits(Quota::one_per(Duration::from_nanos(1 << 33)));
    let grant = grant_of("s", None);
    for cost in [(1 << 31) + 1, u32::MAX] {
        let decision = limits.charge(&grant, Charge::Units(cost));
        assert_eq!(decision.verdict(), Verdict::CostAboveBurst, "{cost}");
    }
}

#[test]
fn buckets_do_not_refill_after_the_maximum_time() {
    let limits = RateLimits::new(Quota::per_second(2)).with_clock(|| Duration::MAX);
    let grant = CurrentGrant::new(Grant::new("s", ()));
    let admitted = (0..10).filter(|_| limits.charge(&grant, ONE).is_admitted()).count();
    assert_eq!(admitted, 2);
}

#[test]
fn a_debt_above_the_burst_reports_when_one_unit_is_available() {
    let (large, small) = (Quota::per_minute(60).with_burst(100), Quota::per_minute(60).with_burst(10));
    let limits = Hands::default().limits(large);
    assert!(limits.charge(&grant_of("s", Some(large)), Charge::Units(100)).is_admitted());
    let downgraded = limits.peek(&grant_of("s", Some(small)));
    assert_eq!((downgraded.remaining(), downgraded.full_in()), (0, Duration::from_secs(100)));
    assert_eq!(downgraded.more_in(), Duration::from_secs(91));
}
