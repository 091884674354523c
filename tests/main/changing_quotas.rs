//! Quotas that change while the limiter is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tollgate::limit::{AnonymousLimits, Charge, Limiter, RateLimits};
use tollgate::{Answer, CurrentGrant, Decision, Grant, Limit, LimitError, Quota, RequestHead, Verdict};

use crate::kit::*;

const SECOND: Duration = Duration::from_secs(1);
const FIVE: Quota = Quota::one_per(SECOND).with_burst(5);
const NINE: Quota = Quota::one_per(SECOND).with_burst(9);

fn limit(name: &str, quota: Quota) -> Limit {
    Limit::new(name, quota).unwrap()
}

fn stored(subject: &str) -> Arc<Grant<()>> {
    Arc::new(Grant::new(subject, ()))
}

fn charge(limits: &RateLimits, grant: &Arc<Grant<()>>, units: u32) -> Decision {
    limits.charge(&CurrentGrant::new(Arc::clone(grant)), Charge::Units(units))
}

fn anonymous(limits: &impl Limiter<Future: Unpin>, units: u32) -> Decision {
    match limits.charge_anonymous(Charge::Units(units)) {
        Answer::Ready(decision) => decision,
        Answer::Pending(_) => panic!("limits in memory never wait"),
    }
}

#[test]
fn change_applies_to_all_clones_and_carries_used_units_over() {
    let hands = Hands::default();
    let limits = hands.limits(FIVE);
    let (clone, route) = (limits.clone(), limits.clone().for_route());
    let (alice, bob) = (stored("alice"), stored("bob"));
    assert_eq!(charge(&limits, &alice, 3).remaining(), 2);
    assert_eq!(limits.quota("default"), Some(FIVE));

    clone.set_quotas([("default", NINE)]).unwrap();
    for limits in [&limits, &clone, &route] {
        assert_eq!(limits.quota("default"), Some(NINE));
        assert_eq!(charge(limits, &alice, 0).remaining(), 6);
        assert_eq!(charge(limits, &bob, 0).remaining(), 9);
    }
    assert!(format!("{limits:?}").contains("burst 9"), "{limits:?}");
    // Half the rate: the same units, which take twice as long.
    limits.set_quotas([("default", Quota::one_per(2 * SECOND).with_burst(9))]).unwrap();
    assert_eq!(charge(&limits, &alice, 0).full_in(), 6 * SECOND);
    // A smaller burst than the used units.
    limits.set_quotas([("default", Quota::one_per(SECOND).with_burst(2))]).unwrap();
    let rejected = charge(&limits, &alice, 1);
    assert_eq!((rejected.is_admitted(), rejected.retry_after()), (false, Some(2 * SECOND)));
    hands.advance(2 * SECOND);
    assert!(charge(&limits, &alice, 1).is_admitted());
}

#[test]
fn change_keeps_quotas_of_grants() {
    let limits = Hands::default().limits(FIVE);
    let plan = Arc::new(Grant::new("customer", ()).with_quota(Quota::one_per(SECOND).with_burst(50)));
    let route = limits.clone().for_route();
    assert_eq!(charge(&limits, &plan, 10).remaining(), 40);
    assert_eq!(charge(&route, &plan, 2).remaining(), 3);
    limits.set_quotas([("default", NINE)]).unwrap();
    assert_eq!(charge(&limits, &plan, 0).remaining(), 40);
    // A route does not follow the quota of the grant, so its bucket follows the change.
    assert_eq!(charge(&route, &plan, 0).remaining(), 7);
}

#[test]
fn change_applies_to_shared_and_anonymous_buckets() {
    let shared = Hands::default().limits(limit("all", FIVE).shared_by_all());
    assert_eq!(charge(&shared, &stored("alice"), 3).remaining(), 2);
    shared.set_quotas([("all", NINE)]).unwrap();
    assert_eq!(charge(&shared, &stored("bob"), 1).remaining(), 5);

    let limits = Hands::default().limits(Limit::from(FIVE).with_anonymous(FIVE));
    assert_eq!(anonymous(&limits, 3).remaining(), 2);
    limits.set_anonymous_quotas([("default", NINE)]).unwrap();
    assert_eq!(anonymous(&limits, 1).remaining(), 5);
    assert_eq!(limits.quota("default"), Some(FIVE));
}

#[test]
fn unknown_name_is_an_error_and_changes_nothing() {
    let limits = RateLimits::new(FIVE).and(limit("orders", FIVE)).unwrap();
    let unknown = limits.set_quotas([("default", NINE), ("order", NINE)]);
    assert_eq!(unknown, Err(LimitError::Unknown));
    assert_eq!((limits.quota("default"), limits.quota("order")), (Some(FIVE), None));
    assert_eq!(limits.set_anonymous_quotas([("default", NINE)]), Err(LimitError::Unknown));
}

#[test]
fn grant_that_outlives_many_changes_keeps_its_units() {
    let limits = Hands::default().limits(FIVE);
    let (alice, other) = (stored("alice"), stored("alice"));
    for round in 1..=40 {
        // A unit every second round, from a burst that grows as much.
        limits.set_quotas([("default", Quota::one_per(SECOND).with_burst(5 + round))]).unwrap();
        let decision = charge(&limits, if round % 4 == 0 { &other } else { &alice }, round % 2);
        assert_eq!(decision.remaining(), 5 + round - round.div_ceil(2));
    }
    assert_eq!(limits.subjects(), 1);
}

#[test]
fn grant_with_its_own_quota_keeps_its_bucket_over_many_changes() {
    let limits = Hands::default().limits(FIVE);
    let plan = Arc::new(Grant::new("customer", ()).with_quota(Quota::one_per(SECOND).with_burst(1_000)));
    let other = Arc::new(Grant::new("customer", ()).with_quota(Quota::one_per(SECOND).with_burst(1_000)));
    for round in 1..=400 {
        limits.set_quotas([("default", Quota::one_per(SECOND).with_burst(5 + round))]).unwrap();
        let grant = if round % 3 == 0 { &other } else { &plan };
        assert_eq!(charge(&limits, grant, 1).remaining(), 1_000 - round);
    }
}

#[test]
fn concurrent_charges_never_exceed_the_largest_burst() {
    for _ in 0..20 {
        let limits = Hands::default().limits(FIVE);
        let stop = Arc::new(AtomicBool::new(false));
        let grants = [stored("s"), stored("s")];
        let admitted: u32 = thread::scope(|scope| {
            let chargers: Vec<_> = (0..4)
                .map(|n: usize| {
                    let (limits, grant) = (limits.clone(), &grants[n % 2]);
                    scope.spawn(move || {
                        (0..500).map(|_| u32::from(charge(&limits, grant, 1).is_admitted())).sum::<u32>()
                    })
                })
                .collect();
            let changer = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    limits.set_quotas([("default", NINE)]).unwrap();
                    limits.set_quotas([("default", FIVE)]).unwrap();
                }
            });
            let admitted = chargers.into_iter().map(|charger| charger.join().unwrap()).sum();
            stop.store(true, Ordering::Relaxed);
            changer.join().unwrap();
            admitted
        });
        assert!((5..=9).contains(&admitted), "{admitted}");
        limits.set_quotas([("default", NINE)]).unwrap();
        assert_eq!(charge(&limits, &grants[0], 0).remaining(), 9 - admitted);
    }
}

#[test]
fn concurrent_charge_of_several_limits_sees_all_old_or_all_new_quotas() {
    let limits = Hands::default().limits(FIVE).and(limit("second", FIVE)).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let changer = scope.spawn(|| {
            for quota in [NINE, FIVE].into_iter().cycle().take(4_000) {
                limits.set_quotas([("default", quota), ("second", quota)]).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        let alice = stored("alice");
        while !stop.load(Ordering::Relaxed) {
            let decision = charge(&limits, &alice, 0);
            let quotas: Vec<_> = decision.parts().map(|part| part.policy().unwrap().quota()).collect();
            assert_eq!(quotas[0], quotas[1]);
        }
        changer.join().unwrap();
    });
}

#[test]
fn client_that_has_used_much_stays_limited_after_a_change_to_a_tiny_quota() {
    let key = |head: &RequestHead<'_>| Some(head.uri.path().to_owned());
    let fast = Quota::try_per(1, Duration::from_nanos(1_000)).unwrap().with_burst(1_000_000);
    let cost = |head: &RequestHead<'_>| head.uri.query().map_or(1, |units| units.parse().unwrap());
    let limits = AnonymousLimits::new(Limit::from(fast).with_cost(cost), key).unwrap().with_clock(|| SECOND);
    let charge = |uri: &str| {
        let request = http::Request::get(uri).body(()).unwrap();
        match limits.charge_anonymous(Charge::Request(&RequestHead::of(&request))) {
            Answer::Ready(decision) => decision,
            Answer::Pending(_) => panic!("limits in memory never wait"),
        }
    };
    assert!(charge("/a?200000").is_admitted());
    limits.set_quota("1/day".parse().unwrap());
    assert_eq!(charge("/a").verdict(), Verdict::OverLimit);
}

#[test]
fn concurrent_changes_of_limits_by_address_leave_one_quota() {
    let key = |head: &RequestHead<'_>| Some(head.uri.path().to_owned());
    for _ in 0..200 {
        let limits = AnonymousLimits::new(FIVE, key).unwrap().with_clock(|| Duration::ZERO);
        thread::scope(|scope| {
            scope.spawn(|| limits.set_quota(NINE));
            scope.spawn(|| limits.set_quota(Quota::one_per(SECOND).with_burst(7)));
        });
        let quotas: std::collections::HashSet<_> = (0..300)
            .map(|number| {
                let request = http::Request::get(format!("/{number}")).body(()).unwrap();
                match limits.charge_anonymous(Charge::Request(&RequestHead::of(&request))) {
                    Answer::Ready(decision) => decision.policy().unwrap().quota().burst(),
                    Answer::Pending(_) => panic!("limits in memory never wait"),
                }
            })
            .collect();
        assert_eq!(quotas.len(), 1, "{quotas:?}");
    }
}

#[test]
fn anonymous_quota_of_a_shared_limit_is_unknown() {
    let shared = RateLimits::new(limit("all", FIVE).shared_by_all().with_anonymous(FIVE));
    assert_eq!(shared.set_anonymous_quotas([("all", NINE)]), Err(LimitError::Unknown));
}

#[test]
fn change_of_limits_by_address_carries_used_units_over() {
    let hands = Hands::default();
    let key = |head: &RequestHead<'_>| Some(head.uri.path().to_owned());
    let limits = AnonymousLimits::new(FIVE, key).unwrap().with_clock(hands.clock());
    let clone = limits.clone();
    let charge = |limits: &AnonymousLimits, path: &str| {
        let request = http::Request::get(path).body(()).unwrap();
        match limits.charge_anonymous(Charge::Request(&RequestHead::of(&request))) {
            Answer::Ready(decision) => decision,
            Answer::Pending(_) => panic!("limits in memory never wait"),
        }
    };
    for left in [4, 3, 2] {
        assert_eq!(charge(&limits, "/a").remaining(), left);
    }
    clone.set_quota(NINE);
    assert_eq!(limits.quota(), NINE);
    assert_eq!(charge(&limits, "/a").remaining(), 5);
    assert_eq!(charge(&clone, "/b").remaining(), 8);
    limits.set_quota(Quota::one_per(2 * SECOND).with_burst(9));
    assert_eq!(charge(&limits, "/a").full_in(), 10 * SECOND);
}
