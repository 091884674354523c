//! Properties of rate limits in memory, under a clock that the test controls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use tollgate::limit::{Charge, Clock as _, MonotonicClock, RateLimits};
use tollgate::{Answer, AuthLayer, CurrentGrant, Grant, Limit, Limiter as _, Quota, RequestHead, Verdict};
use tower::Layer;

use crate::kit::*;

pub fn grant_of(subject: &str, quota: Option<Quota>) -> CurrentGrant {
    let grant = Grant::new(subject, ());
    CurrentGrant::new(match quota {
        Some(quota) => grant.with_quota(quota),
        None => grant,
    })
}

/// Charges single units until the bucket is empty and returns their number.
fn drain(limits: &RateLimits, grant: &CurrentGrant) -> u32 {
    (0..).take_while(|_| limits.charge(grant, ONE).is_admitted()).count().try_into().unwrap()
}

fn quotas() -> impl Strategy<Value = Quota> {
    let intervals = prop_oneof![1..20_u64, 1_000..2_000_000_000_u64, Just(333_333_334)];
    (intervals, 1..40_u32).prop_map(|(ns, burst)| Quota::one_per(Duration::from_nanos(ns)).with_burst(burst))
}

/// Checks that the charges admitted between any two moments fit into `burst + rate x t`. Takes (time, units).
pub fn assert_bounded(admitted: &[(u64, u32)], burst: u32, interval_ns: u64) -> Result<(), TestCaseError> {
    for (i, &(from, _)) in admitted.iter().enumerate() {
        let mut units = 0;
        for &(to, cost) in &admitted[i..] {
            units += u128::from(cost);
            // `units <= burst + t / interval`, without rounding.
            let allowed = u128::from(burst) * u128::from(interval_ns) + u128::from(to - from);
            prop_assert!(units * u128::from(interval_ns) <= allowed, "{units} units from {from} to {to}");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn admitted_charges_never_exceed_burst_plus_rate(
        quota in quotas(),
        steps in prop::collection::vec((0..5_000_u64, 0..6_u32), 1..150),
    ) {
        let hands = Hands::default();
        let limits = hands.limits(quota);
        let grant = grant_of("s", None);
        let interval = u64::try_from(quota.interval().as_nanos()).unwrap();
        let mut admitted = Vec::new();
        for (thousandths, units) in steps {
            hands.advance(Duration::from_nanos(interval.saturating_mul(thousandths) / 1_000));
            let decision = limits.charge(&grant, Charge::Units(units));
            match decision.verdict() {
                Verdict::Admitted => admitted.push((hands.ns(), units)),
                Verdict::OverLimit => prop_assert!(units <= quota.burst()),
                Verdict::CostAboveBurst => prop_assert!(units > quota.burst()),
                verdict => prop_assert!(false, "{verdict:?}: memory is always available"),
            }
        }
        assert_bounded(&admitted, quota.burst(), interval)?;
    }

    #[test]
    fn retry_after_is_exact_to_the_nanosecond(
        quota in quotas(),
        used in 0..60_u32,
        units in 1..40_u32,
        later in 0..3_000_000_000_u64,
    ) {
        let hands = Hands::default();
        let limits = hands.limits(quota);
        let grant = grant_of("s", None);
        for _ in 0..used {
            let _ = limits.charge(&grant, ONE);
        }
        hands.advance(Duration::from_nanos(later));
        let units = units.min(quota.burst());
        let decision = limits.charge(&grant, Charge::Units(units));
        if let Some(wait) = decision.retry_after() {
            prop_assert!(wait > Duration::ZERO);
            prop_assert_eq!(decision.remaining(), 0);
            hands.advance(wait - Duration::from_nanos(1));
            let early = limits.charge(&grant, Charge::Units(units));
            prop_assert_eq!(early.retry_after(), Some(Duration::from_nanos(1)));
            hands.advance(Duration::from_nanos(1));
            prop_assert!(limits.charge(&grant, Charge::Units(units)).is_admitted());
        }
    }

    #[test]
    fn the_reported_remaining_can_be_charged_immediately_and_no_more(quota in quotas(), used in 1..50_u32, ns in 0..90_u64) {
        let hands = Hands::default();
        let limits = hands.limits(quota);
        let grant = grant_of("s", None);
        for _ in 0..used {
            hands.advance(Duration::from_nanos(ns));
            let _ = limits.charge(&grant, ONE);
        }
        let state = limits.peek(&grant);
        prop_assert_eq!(limits.peek(&grant), state.clone());
        prop_assert!(state.remaining() <= quota.burst());
        // One more unit is available after exactly `more_in`, and all units after `full_in`.
        if state.remaining() < quota.burst() {
            hands.advance(state.more_in() - Duration::from_nanos(1));
            prop_assert_eq!(limits.peek(&grant).remaining(), state.remaining());
            hands.advance(Duration::from_nanos(1));
            prop_assert_eq!(limits.peek(&grant).remaining(), state.remaining() + 1);
            hands.advance(state.full_in() - state.more_in());
            prop_assert_eq!(limits.peek(&grant).remaining(), quota.burst());
            prop_assert_eq!(drain(&limits, &grant), quota.burst());
        } else {
            prop_assert_eq!(drain(&limits, &grant), state.remaining());
        }
    }

    #[test]
    fn a_plan_change_grants_no_fresh_burst(
        plans in prop::collection::vec(quotas(), 2..4),
        steps in prop::collection::vec((0..4_usize, 0..4_000_u64, 1..4_u32, any::<bool>()), 1..120),
    ) {
        let hands = Hands::default();
        let limits = hands.limits(plans[0]);
        // One token for each plan, all of one subject. Some steps use a new token.
        let tokens: Vec<_> = plans.iter().map(|plan| grant_of("s", Some(*plan))).collect();
        let burst = plans.iter().map(|plan| plan.burst()).max().unwrap();
        let interval = plans.iter().map(|plan| plan.interval().as_nanos() as u64).min().unwrap();
        let mut admitted = Vec::new();
        for (which, thousandths, units, fresh) in steps {
            hands.advance(Duration::from_nanos(interval.saturating_mul(thousandths) / 1_000));
            let which = which % plans.len();
            let token = if fresh { &grant_of("s", Some(plans[which])) } else { &tokens[which] };
            if fresh {
                limits.sweep();
            }
            if limits.charge(token, Charge::Units(units)).is_admitted() {
                admitted.push((hands.ns(), units));
            }
        }
        assert_bounded(&admitted, burst, interval)?;
        prop_assert!(limits.subjects() <= 1);
    }

    #[test]
    fn at_most_holds_in_every_window(n in 1..30_u32, burst in 1..30_u32, window in 1..5_000_u64, gaps in prop::collection::vec(0..400_u64, 1..200)) {
        let burst = burst.min(n);
        let window = Duration::from_micros(window);
        let hands = Hands::default();
        let limits = hands.limits(Quota::at_most(n, window, burst));
        let grant = grant_of("s", None);
        let mut admitted = Vec::new();
        for gap in gaps {
            hands.advance(Duration::from_micros(gap));
            if limits.charge(&grant, ONE).is_admitted() {
                admitted.push(hands.ns());
            }
        }
        let window = window.as_nanos() as u64;
        for (i, &from) in admitted.iter().enumerate() {
            // The window is half-open: a request exactly one window later belongs to the next window.
            let inside = admitted[i..].iter().take_while(|&&at| at - from < window).count();
            prop_assert!(inside <= n as usize, "{inside} of {n}");
        }
    }

    #[test]
    fn a_clock_that_steps_back_refills_nothing(quota in quotas(), times in prop::collection::vec(0..10_000_000_000_u64, 1..100)) {
        let hands = Hands::default();
        let limits = hands.limits(quota);
        let grant = grant_of("s", None);
        let mut admitted = 0_u128;
        for &time in &times {
            hands.set_ns(time);
            let decision = limits.charge(&grant, ONE);
            prop_assert!(decision.remaining() <= quota.burst());
            admitted += u128::from(decision.is_admitted());
        }
        // Admits at most what a clock admits that moves once from the earliest to the latest reading.
        let span = u128::from(times.iter().max().unwrap() - times.iter().min().unwrap());
        let interval = quota.interval().as_nanos();
        prop_assert!(admitted * interval <= u128::from(quota.burst()) * interval + span);
    }
}

#[test]
fn tokens_of_one_subject_share_a_bucket() {
    let limits = Hands::default().limits(Quota::per_minute(60).with_burst(20));
    let old = CurrentGrant::new(Grant::new("key-1", ()).with_subject("alice"));
    let new = CurrentGrant::new(Grant::new("key-2", ()).with_subject("alice"));
    let other = CurrentGrant::new(Grant::new("key-3", ()));
    assert!(limits.charge(&old, ONE).is_admitted());
    assert_eq!(drain(&limits, &new), 19);
    assert_eq!(drain(&limits, &old), 0);
    assert_eq!(drain(&limits, &other), 20);
}

#[test]
fn a_plan_change_converts_the_debt_in_cells() {
    let (small, large) = (Quota::per_minute(60).with_burst(10), Quota::per_minute(600).with_burst(100));
    let hands = Hands::default();
    let limits = hands.limits(small);
    let (before, after) = (grant_of("s", Some(small)), grant_of("s", Some(large)));
    assert_eq!(drain(&limits, &before), 10);
    assert_eq!(drain(&limits, &after), 90, "10 of 100 are owed");
    assert_eq!(drain(&limits, &before), 0, "100 are owed");
    hands.advance(Duration::from_secs(90));
    assert_eq!(drain(&limits, &before), 0, "90 of them are refilled");
    hands.advance(Duration::from_secs(1));
    assert_eq!(drain(&limits, &before), 1);
}

#[test]
fn a_debt_of_146_years_survives_a_plan_change() {
    // A debt of 146 years moves to a quota whose cell takes a nanosecond, and back.
    let long = Quota::one_per(Duration::from_nanos((1 << 62) - 1));
    let short = Quota::one_per(Duration::from_nanos(1)).with_burst(u32::MAX);
    let limits = Hands::default().limits(long);
    let (long, short) = (grant_of("s", Some(long)), grant_of("s", Some(short)));
    assert_eq!(drain(&limits, &long), 1);
    assert_eq!(limits.peek(&short).remaining(), u32::MAX - 1);
    assert!(limits.charge(&short, Charge::Units(u32::MAX - 1)).is_admitted());
    for _ in 0..3 {
        assert!(!limits.charge(&long, ONE).is_admitted());
        assert!(!limits.charge(&short, Charge::Units(u32::MAX)).is_admitted());
    }
}

#[test]
fn one_grant_works_with_many_limiters() {
    let grant = grant_of("s", None);
    let all: Vec<_> = (1..=20).map(|burst| Hands::default().limits(Quota::per_minute(60).with_burst(burst))).collect();
    for _ in 0..2 {
        for (limits, burst) in all.iter().zip(1..) {
            let left = limits.peek(&grant).remaining();
            assert!(left == burst || left == 0);
            assert_eq!(drain(limits, &grant), left);
        }
    }
}

#[test]
fn a_sweep_never_duplicates_a_bucket() {
    let hands = Hands::default();
    let limits = hands.limits(Quota::per_minute(60).with_burst(5));
    let grant = grant_of("s", None);
    assert!(limits.charge(&grant, ONE).is_admitted());
    hands.advance(Duration::from_secs(60));
    limits.sweep();
    assert_eq!(limits.subjects(), 1, "the grant refers to the bucket");
    let another = grant_of("s", None);
    assert_eq!(drain(&limits, &another), 5);
    assert_eq!(drain(&limits, &grant), 0);
    drop((grant, another));
    limits.sweep();
    assert_eq!(limits.subjects(), 1, "no grant refers to the bucket, but it is in debt");
    assert_eq!(drain(&limits, &grant_of("s", None)), 0);
    hands.advance(Duration::from_secs(60));
    limits.sweep();
    assert_eq!(limits.subjects(), 0);
}

/// Checks buckets that are stored in the grant. Grants that a store keeps hold their own buckets.
#[test]
fn a_bucket_outlives_the_grant_that_stores_it() {
    let hands = Hands::default();
    let limits = hands.limits(Quota::per_minute(60).with_burst(5));
    let kept = |subject: &str| Arc::new(Grant::new(subject, ()));
    let charge = |grant: &Arc<Grant<()>>, units| {
        let decision = limits.charge(&CurrentGrant::new(Arc::clone(grant)), Charge::Units(units));
        (decision.is_admitted(), decision.remaining())
    };
    let (first, second) = (kept("two tokens"), kept("two tokens"));
    assert_eq!(charge(&first, 1), (true, 4));
    assert_eq!(limits.subjects(), 1);
    // With a second token of the subject, the bucket moves out of the grant. Both tokens use it.
    assert_eq!(charge(&second, 1), (true, 3));
    assert_eq!(charge(&first, 1), (true, 2));
    assert_eq!(charge(&second, 1), (true, 1));

    // After a reload, the bucket moves from a dropped grant to a new one.
    let (old, new) = (kept("reloaded"), kept("reloaded"));
    assert_eq!(charge(&old, 4), (true, 1));
    drop(old);
    assert_eq!(charge(&new, 1), (true, 0));
    let gone = Arc::downgrade(&new);
    drop(new);
    limits.sweep();
    assert!(gone.upgrade().is_some(), "the bucket is in debt");
    assert_eq!(charge(&kept("reloaded"), 1), (false, 0));
    hands.advance(Duration::from_secs(60));
    drop((first, second));
    limits.sweep();
    assert_eq!((limits.subjects(), gone.upgrade().is_some()), (0, false));
}

/// Checks that a cached bucket is not used with the former quota.
#[test]
fn a_changed_quota_applies_to_the_next_charge() {
    let limits = Hands::default().limits(Quota::per_minute(60).with_burst(5));
    let [mut grant, other] = [(); 2].map(|()| Arc::new(Grant::new("s", ())));
    for grant in [&grant, &other, &grant] {
        assert!(limits.charge(&CurrentGrant::new(Arc::clone(grant)), ONE).is_admitted());
    }
    let changed = Arc::try_unwrap(grant).expect("the bucket is stored outside the grant");
    grant = Arc::new(changed.with_quota(Quota::per_minute(60).with_burst(9)));
    assert_eq!(limits.peek(&CurrentGrant::new(grant)).remaining(), 6);
}

/// Checks that a principal's `Drop` may take the limiter's lock.
#[test]
fn principals_are_dropped_without_the_lock_held() {
    struct Last(RateLimits, Arc<AtomicUsize>);
    impl Drop for Last {
        fn drop(&mut self) {
            self.1.fetch_add(self.0.subjects() + 1, Ordering::SeqCst);
        }
    }
    let hands = Hands::default();
    let limits = hands.limits(Quota::per_minute(60).with_burst(5));
    let dropped = Arc::default();
    let kept = |subject: &str| Arc::new(Grant::new(subject, Last(limits.clone(), Arc::clone(&dropped))));
    for subject in ["swept", "replaced"] {
        let grant = kept(subject);
        assert!(limits.charge(&CurrentGrant::new(Arc::clone(&grant)), ONE).is_admitted());
    }
    let grant = kept("replaced");
    assert!(limits.charge(&CurrentGrant::new(Arc::clone(&grant)), ONE).is_admitted());
    assert_eq!(dropped.load(Ordering::SeqCst), 3, "two subjects are known");
    hands.advance(Duration::from_secs(60));
    limits.sweep();
    assert_eq!(dropped.load(Ordering::SeqCst), 3 + 2, "one is left");
}

#[test]
fn buckets_of_idle_subjects_are_swept_automatically() {
    let hands = Hands::default();
    let limits = hands.limits(Quota::per_minute(60).with_burst(5));
    for i in 0..50_000 {
        assert!(limits.charge(&grant_of(&i.to_string(), None), ONE).is_admitted());
        hands.advance(Duration::from_millis(100));
    }
    // Ten subjects are in debt at any moment.
    assert!(limits.subjects() < 128, "{}", limits.subjects());
}

#[test]
fn two_threads_charge_exactly_the_burst() {
    let limits = Hands::default().limits(Quota::per_minute(60).with_burst(50_000));
    let grant = grant_of("s", None);
    let admitted: u32 = thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(|| drain(&limits, &grant))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert_eq!(admitted, 50_000);
}

#[test]
fn two_plans_with_concurrent_sweeps_charge_no_more_than_the_larger_burst() {
    // Equal rates, so that conversion between the plans does not round.
    let plans = [Quota::per_minute(60).with_burst(5_000), Quota::per_minute(60).with_burst(5_001)];
    for _ in 0..10 {
        let limits = Hands::default().limits(plans[0]);
        let admitted: usize = thread::scope(|scope| {
            let workers: Vec<_> = plans
                .map(|plan| {
                    let limits = &limits;
                    scope.spawn(move || {
                        let grant = grant_of("s", Some(plan));
                        (0..8_000).filter(|_| limits.charge(&grant, ONE).is_admitted()).count()
                    })
                })
                .into_iter()
                .collect();
            scope.spawn(|| (0..1_000).for_each(|_| limits.sweep()));
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert!((5_000..=5_001).contains(&admitted), "{admitted}");
    }
}

#[tokio::test]
async fn rejected_tokens_charge_no_bucket() {
    let limits = Hands::default().limits(Quota::per_minute(60).with_burst(2));
    let service = AuthLayer::new(memory()).with_rate_limit(limits.clone()).layer(echo());
    for _ in 0..100 {
        assert_eq!(send(&service, with_token("unknown")).await.status(), 401);
        assert_eq!(send(&service, get()).await.status(), 401);
        assert_eq!(send(&service, with_token("mal formed")).await.status(), 401);
    }
    assert_eq!(limits.subjects(), 0, "unauthenticated requests create no buckets");
    assert_eq!(send(&service, with_token(TOKEN)).await.headers()["ratelimit"], "\"default\";r=1;t=1");
}

#[tokio::test]
async fn a_request_after_retry_after_is_admitted() {
    let hands = Hands::default();
    for ns in [1, 999_999_999, 1_000_000_000, 1_000_000_001, 59_000_000_001] {
        let limits = hands.limits(Quota::one_per(Duration::from_nanos(ns)));
        let service = AuthLayer::new(memory()).with_rate_limit(limits).layer(echo());
        assert_eq!(send(&service, with_token(TOKEN)).await.status(), 200);
        let rejected = send(&service, with_token(TOKEN)).await;
        assert_eq!(rejected.status(), 429);
        let seconds: u64 = field(rejected.headers(), "retry-after").unwrap().parse().unwrap();
        assert_eq!(seconds, ns.div_ceil(1_000_000_000), "rounded up, and never 0");
        hands.advance(Duration::from_secs(seconds));
        assert_eq!(send(&service, with_token(TOKEN)).await.status(), 200);
    }
}

#[test]
fn real_clocks_advance() {
    for limits in
        [RateLimits::new(Quota::per_day(1)), RateLimits::new(Quota::per_day(1)).with_clock(MonotonicClock::new())]
    {
        let grant = grant_of("s", None);
        assert!(limits.charge(&grant, ONE).is_admitted());
        let rejected = limits.charge(&grant, ONE);
        assert!(rejected.retry_after().unwrap() > Duration::from_secs(86_000));
    }
    let clock = MonotonicClock::new();
    let begin = clock.now();
    assert!((0..1_000_000).any(|_| clock.now() > begin));
    let fast = RateLimits::new(Quota::one_per(Duration::from_nanos(1)));
    let grant = grant_of("s", None);
    assert!((0..1_000).all(|_| fast.charge(&grant, ONE).is_admitted() || fast.peek(&grant).is_admitted()));
}

#[test]
fn governors_fake_clock_can_be_used() {
    let fake = governor::clock::FakeRelativeClock::default();
    let start = governor::clock::Clock::now(&fake);
    let hands = fake.clone();
    let limits = RateLimits::new(Quota::per_minute(1)).with_clock(move || {
        use governor::clock::{Clock as _, Reference as _};
        hands.now().duration_since(start).into()
    });
    let grant = grant_of("s", None);
    assert_eq!(drain(&limits, &grant), 1);
    fake.advance(Duration::from_secs(60));
    assert_eq!(drain(&limits, &grant), 1);
}

#[test]
fn a_new_clock_starts_with_full_buckets() {
    let one = Quota::per_minute(1);
    let limits = Hands::default().limits(Limit::from(one).with_anonymous(one));
    let grant = grant_of("s", None);
    let admits = |limits: &RateLimits| {
        let Answer::Ready(anonymous) = limits.charge_anonymous(ONE) else { panic!("limits in memory are immediate") };
        (limits.charge(&grant, ONE).is_admitted(), anonymous.is_admitted())
    };
    assert_eq!((admits(&limits), admits(&limits)), ((true, true), (false, false)));
    let limits = limits.with_clock(|| Duration::ZERO);
    assert_eq!((admits(&limits), admits(&limits)), ((true, true), (false, false)));
}

#[test]
#[should_panic(expected = "must be called before the limiter is cloned")]
fn a_new_clock_panics_while_a_clone_exists() {
    let limits = RateLimits::new(Quota::per_minute(1));
    let _clone = limits.clone();
    _ = limits.with_clock(|| Duration::ZERO);
}

#[test]
#[should_panic(expected = "must be called before the limiter is cloned")]
fn a_new_clock_panics_while_a_charge_can_be_refunded() {
    let limits = RateLimits::new(Quota::per_minute(1)).with_refunds();
    let _refundable = limits.charge(&grant_of("s", None), ONE);
    _ = limits.with_clock(|| Duration::ZERO);
}

#[test]
fn clones_and_forms_for_routes_charge_the_same_bucket() {
    let limits = Hands::default().limits(Limit::from(Quota::per_minute(60).with_burst(5)).with_cost(|_| 3));
    let route = limits.clone().for_route();
    let grant = Arc::new(Grant::new("alice", ()));
    let current = CurrentGrant::new(Arc::clone(&grant));
    assert!(limits.charge(&current, Charge::Units(2)).is_admitted());
    let request = http::Request::new(());
    let decision = route.charge(&current, Charge::Request(&RequestHead::of(&request)));
    assert!(decision.is_admitted());
    assert_eq!(limits.peek(&current).remaining(), 0);
    assert_eq!(decision.full_in(), Duration::from_secs(5));
}
