//! Several limits in one limiter: a charge is applied to all limits or to none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use tollgate::TokenDigest;

use http::{HeaderValue, Request, Response};
use proptest::prelude::*;
use tollgate::limit::{Charge, Limiter as _, RateLimits};
use tollgate::{
    AuthLayer, CurrentGrant, Decision, Grant, Limit, LimitError, MemoryStore, Policy, PolicyNameError, Quota,
    RateLimitHeaders, RequestHead, Verdict,
};
use tower::{Layer, ServiceExt};

use crate::kit::*;
use crate::limits::grant_of;

const SECOND: Duration = Duration::from_secs(1);

/// Reads the cost for each policy from the path: `/` and one digit for each policy.
fn digit(head: &RequestHead<'_>, at: usize) -> u32 {
    head.uri.path().as_bytes().get(1 + at).map_or(1, |digit| u32::from(digit - b'0'))
}

/// Returns a limiter with three policies: 5 units by plan and 3 orders for each subject, and 8 units shared by all
/// subjects.
/// The costs are the digits of the path.
fn limits(hands: &Hands) -> RateLimits {
    limits_with(hands, everything())
}

/// Returns the limits of [`limits`] with another last limit.
fn limits_with(hands: &Hands, last: Limit) -> RateLimits {
    let default = Limit::from(Quota::one_per(SECOND).with_burst(5)).with_cost(|head| digit(head, 0));
    let orders = limit("orders", Quota::one_per(10 * SECOND).with_burst(3)).with_cost(|head| digit(head, 1));
    hands.limits(default).and(orders).unwrap().and(last).unwrap()
}

/// Returns the last limit of [`limits`].
fn everything() -> Limit {
    limit("everything", Quota::one_per(SECOND).with_burst(8)).with_cost(|head| digit(head, 2)).shared_by_all()
}

fn limit(name: &str, quota: Quota) -> Limit {
    Limit::new(name, quota).unwrap()
}

fn charge(limits: &RateLimits, grant: &CurrentGrant, costs: &str) -> Decision {
    let request = Request::get(costs).body(()).unwrap();
    limits.charge(grant, Charge::Request(&RequestHead::of(&request)))
}

fn remaining(decision: &Decision) -> Vec<u32> {
    decision.parts().map(Decision::remaining).collect()
}

fn violated(decision: &Decision) -> Vec<&str> {
    decision.violated().map(Policy::name).collect()
}

#[test]
fn a_rejection_by_one_policy_charges_none() {
    let limits = limits(&Hands::default());
    let (alice, bob) = (grant_of("alice", None), grant_of("bob", None));
    assert_eq!(remaining(&charge(&limits, &alice, "/121")), [4, 1, 7]);

    // The second policy rejects. The first is checked before it and the third after it.
    let rejected = charge(&limits, &alice, "/121");
    assert_eq!((rejected.verdict(), violated(&rejected)), (Verdict::OverLimit, vec!["orders"]));
    assert_eq!(rejected.retry_after(), Some(10 * SECOND));
    assert_eq!(remaining(&rejected), [4, 0, 7]);
    assert_eq!(remaining(&limits.peek(&alice)), [4, 1, 7]);

    // The last policy rejects. Bob has used up part of it.
    assert_eq!(remaining(&charge(&limits, &bob, "/106")), [4, 3, 1]);
    let rejected = charge(&limits, &alice, "/112");
    assert_eq!(violated(&rejected), ["everything"]);
    assert_eq!(remaining(&limits.peek(&alice)), [4, 1, 1]);

    // All rejecting policies are named. The longest wait is reported.
    let rejected = charge(&limits, &alice, "/533");
    assert_eq!(violated(&rejected), ["default", "orders", "everything"]);
    assert_eq!(rejected.retry_after(), Some(20 * SECOND));

    // A cost above the burst has its own verdict and no retry time.
    let rejected = charge(&limits, &alice, "/191");
    assert_eq!((rejected.verdict(), violated(&rejected)), (Verdict::CostAboveBurst, vec!["orders"]));
    assert_eq!(rejected.retry_after(), None);
    assert_eq!(remaining(&limits.peek(&alice)), [4, 1, 1]);
}

/// A simple model of GCRA.
#[derive(Clone)]
struct Slow {
    interval: u64,
    burst: u64,
    tat: u64,
}

impl Slow {
    fn fits(&self, now: u64, cost: u64) -> bool {
        cost == 0 || self.tat.max(now) + cost * self.interval <= now + self.burst * self.interval
    }

    fn charge(&mut self, now: u64, cost: u64) {
        self.tat = self.tat.max(now) + cost * self.interval;
    }
}

proptest! {
    #[test]
    fn decisions_match_a_simple_model(
        quotas in prop::collection::vec((1..50_u64, 1..9_u32, any::<bool>()), 1..5),
        steps in prop::collection::vec((0..100_u64, 0..2_usize, prop::array::uniform4(0..6_u32)), 1..80),
    ) {
        let hands = Hands::default();
        hands.set_ns(1_000);
        let mut limits: Option<RateLimits> = None;
        for (at, &(interval, burst, shared)) in quotas.iter().enumerate() {
            let quota = Quota::one_per(Duration::from_nanos(interval)).with_burst(burst);
            let one = if at == 0 { quota.into() } else { limit(&at.to_string(), quota) };
            let one = one.with_cost(move |head| digit(head, at));
            let one = if shared { one.shared_by_all() } else { one };
            limits = Some(match limits {
                None => hands.limits(one),
                Some(limits) => limits.and(one).unwrap(),
            });
        }
        let limits = limits.unwrap();
        let grants = ["a", "b"].map(|subject| grant_of(subject, None));
        let slow = |&(interval, burst, _): &(u64, u32, bool)| Slow { interval, burst: burst.into(), tat: 0 };
        // One model for each subject. Shared policies use the first.
        let mut models = [(); 2].map(|()| quotas.iter().map(slow).collect::<Vec<_>>());

        for (pause, who, costs) in steps {
            hands.set_ns(hands.ns() + pause);
            let now = hands.ns();
            let path: String = costs.iter().map(ToString::to_string).collect();
            let decision = charge(&limits, &grants[who], &format!("/{path}"));

            let place = |at: usize| if quotas[at].2 { 0 } else { who };
            let fits: Vec<bool> =
                (0..quotas.len()).map(|at| models[place(at)][at].fits(now, costs[at].into())).collect();
            let all_fit = fits.iter().all(|fits| *fits);
            prop_assert_eq!(decision.is_admitted(), all_fit);
            for at in (0..quotas.len()).filter(|_| all_fit) {
                models[place(at)][at].charge(now, costs[at].into());
            }
            // Shared policies come last.
            let order = (0..quotas.len()).filter(|at| !quotas[*at].2).chain((0..quotas.len()).filter(|at| quotas[*at].2));
            for (at, part) in order.zip(decision.parts()) {
                prop_assert_eq!(part.is_admitted(), fits[at]);
                let owed = models[place(at)][at].tat.saturating_sub(now);
                prop_assert_eq!(part.full_in(), Duration::from_nanos(owed));
            }
        }
    }

    /// Checks charges and refunds in any order: the refunded state never exceeds the state without the refunded
    /// charges.
    #[test]
    fn refunds_return_at_most_the_charge(
        steps in prop::collection::vec((0..3_000_u64, 1..5_u32, prop::option::of(0..30_usize)), 2..40),
    ) {
        let hands = Hands::default();
        let limits = hands.limits(Quota::per_second(1).with_burst(5)).with_refunds();
        let alice = grant_of("alice", None);
        let owed = || limits.peek(&alice).full_in();
        // Time, units, and the decision that can be refunded.
        let mut charges: Vec<(u64, u32, Option<Decision>)> = Vec::new();
        for (pause, units, gives_back) in steps {
            hands.advance(Duration::from_millis(pause));
            match gives_back {
                None => {
                    let decision = limits.charge(&alice, Charge::Units(units));
                    if decision.is_admitted() {
                        charges.push((hands.ns(), units, Some(decision)));
                    }
                }
                Some(which) => {
                    let before = owed();
                    let count = charges.len();
                    let Some((_, units, charge)) = charges.get_mut(which % count.max(1)) else { continue };
                    let Some(charge) = charge.take() else { continue };
                    now(charge.refund());
                    prop_assert!(owed() + *units * SECOND >= before, "refunded more than the charge");
                    let after = owed();
                    now(charge.refund());
                    prop_assert_eq!(owed(), after, "refunded twice");
                }
            }
            let kept = charges.iter().filter(|(_, _, charge)| charge.is_some());
            let tat = kept.fold(0, |tat: u64, (at, units, _)| tat.max(*at) + u64::from(*units) * 1_000_000_000);
            let without = Duration::from_nanos(tat.saturating_sub(hands.ns()));
            prop_assert!(owed() >= without, "{:?} is owed; without the refunded charges {without:?} would be", owed());
        }
    }
}

/// Completes a refund. Refunds in memory are immediate.
fn now(refund: impl Future<Output = ()>) {
    use futures_util::FutureExt as _;
    refund.now_or_never().unwrap();
}

#[test]
fn a_charge_still_in_debt_is_refunded_completely() {
    let hands = Hands::default();
    let limits = limits(&hands).with_refunds();
    let alice = grant_of("alice", None);
    let first = charge(&limits, &alice, "/213");
    let second = charge(&limits, &alice, "/111");
    assert_eq!(remaining(&limits.peek(&alice)), [2, 1, 4]);
    hands.advance(SECOND);
    // The second has refilled one unit of the first charge.
    assert_eq!(remaining(&limits.peek(&alice)), [3, 1, 5]);
    now(first.refund());
    assert_eq!(remaining(&limits.peek(&alice)), [4, 2, 7]);
    now(first.refund());
    now(second.refund());
    assert_eq!(remaining(&limits.peek(&alice)), [5, 3, 8]);

    let rejected = charge(&limits, &alice, "/141");
    now(rejected.refund());
    assert_eq!(remaining(&limits.peek(&alice)), [5, 3, 8]);

    // Earlier refunds do not count for a later charge.
    let third = charge(&limits, &alice, "/213");
    now(third.refund());
    assert_eq!(remaining(&limits.peek(&alice)), [5, 3, 8]);
}

/// Checks that refunds of other subjects affect a shared bucket only.
#[test]
fn a_refund_affects_its_own_bucket_only() {
    let hands = Hands::default();
    let limit = Limit::from(Quota::one_per(SECOND).with_burst(9));
    let limits = |limit| hands.limits(limit).with_refunds();
    let [alice, bob] = ["alice", "bob"].map(|subject| grant_of(subject, None));
    let own = limits(limit.clone());
    let [of_alice, of_bob] = [(&alice, 3), (&bob, 2)].map(|(who, units)| own.charge(who, Charge::Units(units)));
    now(of_bob.refund());
    now(of_alice.refund());
    assert_eq!(own.peek(&alice).remaining(), 9);

    let shared = limits(limit.shared_by_all());
    let [of_alice, of_bob] = [(&alice, 3), (&bob, 2)].map(|(who, units)| shared.charge(who, Charge::Units(units)));
    now(of_alice.refund());
    hands.advance(SECOND);
    // One of the two units is refilled, so one unit is left when the next two are charged.
    assert_eq!(shared.charge(&alice, Charge::Units(2)).remaining(), 6);
    now(of_bob.refund());
    assert_eq!(shared.peek(&alice).remaining(), 7);
}

#[test]
fn a_bucket_refilled_in_the_meantime_gets_no_refund() {
    let hands = Hands::default();
    let limits = hands.limits(Quota::per_second(1).with_burst(5)).with_refunds();
    let alice = grant_of("alice", None);
    let early = limits.charge(&alice, ONE);
    hands.advance(SECOND);
    let late = limits.charge(&alice, Charge::Units(5));
    now(early.refund());
    assert_eq!(limits.peek(&alice).remaining(), 0);
    now(late.refund());
    assert_eq!(limits.peek(&alice).remaining(), 5);
}

#[test]
fn a_plan_change_cancels_refunds() {
    let limits = Hands::default().limits(Quota::per_second(1).with_burst(5)).with_refunds();
    let old = limits.charge(&grant_of("alice", None), Charge::Units(2));
    let alice = grant_of("alice", Some(Quota::per_second(1).with_burst(9)));
    assert_eq!(limits.peek(&alice).remaining(), 7);
    now(old.refund());
    assert_eq!(limits.peek(&alice).remaining(), 7);
    assert_eq!(limits.peek(&grant_of("alice", None)).remaining(), 3);
}

/// Checks the refund counter: the sum of all refunds here exceeds `u64` nanoseconds.
#[test]
fn refunds_above_64_bits_of_nanoseconds_are_exact() {
    let century = Duration::from_secs(100 * 365 * 86_400);
    let limits = Hands::default().limits(Quota::one_per(century)).with_refunds();
    let alice = grant_of("alice", None);
    for _ in 0..20 {
        let charged = limits.charge(&alice, ONE);
        assert!(charged.is_admitted());
        now(charged.refund());
    }
    assert_eq!(limits.peek(&alice).remaining(), 1);
}

/// Checks that a principal's `Drop` may charge the limiter, even when it runs within a charge of several policies.
#[test]
fn principals_are_dropped_without_a_lock_held() {
    struct Last(RateLimits, std::sync::mpsc::Sender<u32>);
    impl Drop for Last {
        fn drop(&mut self) {
            let left = self.0.charge(&grant_of("alice", None), ONE).remaining();
            _ = self.1.send(left);
        }
    }
    let limits = Hands::default().limits(Quota::one_per(SECOND).with_burst(9));
    let limits = limits.and(limit("few", Quota::one_per(SECOND).with_burst(7))).unwrap();
    let (sender, left) = std::sync::mpsc::channel();
    let replaced = Arc::new(Grant::new("alice", Last(limits.clone(), sender)));
    assert!(limits.charge(&CurrentGrant::new(Arc::clone(&replaced)), ONE).is_admitted());
    drop(replaced);
    thread::spawn(move || limits.charge(&grant_of("alice", None), ONE));
    assert_eq!(
        left.recv_timeout(Duration::from_secs(30)),
        Ok(4),
        "the first charge, the replacing charge and the charge in `drop`"
    );
}

/// Checks both tokens of a rotation. The bucket moves out of its grant, and a charge that one policy rejects still
/// costs nothing in the others.
#[test]
fn a_refund_finds_a_bucket_that_has_moved() {
    let hands = Hands::default();
    let default = Limit::from(Quota::one_per(SECOND).with_burst(9)).with_cost(|head| digit(head, 0));
    let few = limit("few", Quota::one_per(SECOND).with_burst(2)).with_cost(|head| digit(head, 1));
    let limits = hands.limits(default).and(few).unwrap().with_refunds();
    let kept = [(); 2].map(|()| Arc::new(Grant::new("alice", ())));
    let [old, new] = kept.each_ref().map(|grant| CurrentGrant::new(Arc::clone(grant)));
    let first = charge(&limits, &old, "/11");
    assert!(charge(&limits, &new, "/11").is_admitted());
    for grant in [&old, &new, &old] {
        let rejected = charge(&limits, grant, "/31");
        assert_eq!((violated(&rejected), remaining(&rejected)), (vec!["few"], vec![7, 0]));
    }
    now(first.refund());
    assert_eq!(remaining(&limits.peek(&new)), [8, 1]);
}

#[test]
fn refunds_do_nothing_unless_enabled() {
    let limits = Hands::default().limits(Quota::per_second(1).with_burst(5));
    let alice = grant_of("alice", None);
    now(limits.charge(&alice, ONE).refund());
    assert_eq!(limits.peek(&alice).remaining(), 4);
}

/// Checks two threads whose charges are rejected by different policies.
#[test]
fn concurrent_charges_apply_to_all_policies_or_none() {
    for round in 0..20 {
        let quota = |burst| Quota::one_per(SECOND).with_burst(burst);
        let limits = Hands::default()
            .limits(Limit::from(quota(400)).with_cost(|head| digit(head, 0)))
            .and(limit("second", quota(300)).with_cost(|head| digit(head, 1)))
            .unwrap()
            .and(limit("all", quota(500)).with_cost(|head| digit(head, 2)).shared_by_all())
            .unwrap()
            .and(limit("all too", quota(450)).with_cost(|head| digit(head, 3)).shared_by_all())
            .unwrap();
        let charged: [AtomicU32; 4] = Default::default();
        let subjects = if round % 2 == 0 { ["alice"; 2] } else { ["alice", "bob"] };
        thread::scope(|scope| {
            for (subject, costs) in subjects.into_iter().zip([["/1211", "/2112"], ["/1121", "/2101"]]) {
                let (limits, charged) = (&limits, &charged);
                scope.spawn(move || {
                    let grant = grant_of(subject, None);
                    for at in 0..600 {
                        let costs = costs[at % 2];
                        if charge(limits, &grant, costs).is_admitted() {
                            for (units, digit) in charged.iter().zip(costs[1..].bytes()) {
                                units.fetch_add(u32::from(digit - b'0'), Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        let grants = subjects.map(|subject| grant_of(subject, None));
        let states = grants.each_ref().map(|grant| remaining(&limits.peek(grant)));
        let [first, second, all, all_too] = charged.map(AtomicU32::into_inner);
        match subjects[0] == subjects[1] {
            true => assert_eq!(states[0], [400 - first, 300 - second, 500 - all, 450 - all_too]),
            false => {
                let owed = |at: usize, burst: u32| states.iter().map(|state| burst - state[at]).sum::<u32>();
                assert_eq!((owed(0, 400), owed(1, 300)), (first, second));
                assert_eq!(states[0][2..], [500 - all, 450 - all_too]);
            }
        }
        // All buckets are empty: no rejection was caused by a charge that was rolled back.
        for (grant, costs) in grants.iter().zip(["/1111", "/1111"]) {
            assert!(!charge(&limits, grant, costs).is_admitted());
        }
    }
}

#[tokio::test]
async fn responses_advertise_all_policies_and_name_the_violated_ones() {
    let tokens = MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]);
    let gate = AuthLayer::new(tokens).with_rate_limit(limits(&Hands::default()));
    let service = gate.layer(echo());
    let request = |path: &str| {
        let mut request = with_token(TOKEN);
        *request.uri_mut() = path.parse().unwrap();
        request
    };
    let policies = r#""default";q=5;w=5, "orders";q=3;w=30, "everything";q=8;w=8"#;

    let response = send(&service, request("/121")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(field(response.headers(), "ratelimit-policy"), Some(policies));
    let states = r#""default";r=4;t=1, "orders";r=1;t=10, "everything";r=7;t=1"#;
    assert_eq!(field(response.headers(), "ratelimit"), Some(states));
    assert_eq!(response.headers().get_all("ratelimit").iter().count(), 1);

    let response = send(&service, request("/521")).await;
    assert_eq!(response.status(), 429);
    assert_eq!(field(response.headers(), "retry-after"), Some("10"));
    assert_eq!(field(response.headers(), "ratelimit-policy"), Some(policies));
    let states = r#""default";r=0;t=1, "orders";r=0;t=10, "everything";r=7;t=1"#;
    assert_eq!(field(response.headers(), "ratelimit"), Some(states));
    let problem = json(response).await;
    assert_eq!(problem["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(problem["violated-policies"], serde_json::json!(["default", "orders"]));

    // Older header formats report one policy: the one with the least remaining.
    let service = gate.with_rate_limit_headers(RateLimitHeaders::XDelta).layer(echo());
    let response = send(&service, request("/101")).await;
    assert_eq!(field(response.headers(), "x-ratelimit-limit"), Some("3"));
    assert_eq!(field(response.headers(), "x-ratelimit-remaining"), Some("1"));
}

#[tokio::test]
async fn policies_of_an_inner_layer_are_appended() {
    let tokens = MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]);
    let hands = Hands::default();
    let gate = AuthLayer::new(tokens).with_rate_limit(limits(&hands));
    let inner = RateLimits::new(limit("a", Quota::per_minute(1))).and(limit("b", Quota::per_minute(2))).unwrap();
    let service = gate.layer(gate.route_rate_limit(inner).layer(echo()));
    let response = send(&service, with_token(TOKEN)).await;
    let names = |name| -> Vec<String> {
        let list = field(response.headers(), name).unwrap();
        list.split(", ").map(|item| item.split(';').next().unwrap().to_owned()).collect()
    };
    for name in ["ratelimit", "ratelimit-policy"] {
        assert_eq!(names(name), [r#""default""#, r#""orders""#, r#""everything""#, r#""a""#, r#""b""#]);
    }
}

#[tokio::test]
async fn rate_limit_fields_of_the_handler_are_appended() {
    let gate = AuthLayer::new(memory()).with_rate_limit(limits(&Hands::default()));
    for own in ["ratelimit", "ratelimit-policy"] {
        let handler = echo().map_response(move |mut response: Response<Body>| {
            response.headers_mut().insert(own, HeaderValue::from_static("\"own\";x=1"));
            response
        });
        let response = send(&gate.layer(handler), with_token(TOKEN)).await;
        for name in ["ratelimit", "ratelimit-policy"] {
            let list = field(response.headers(), name).unwrap();
            assert!(list.starts_with(r#""default";"#), "{list}");
            assert_eq!(list.ends_with(r#", "own";x=1"#), name == own, "{list}");
        }
    }
}

#[test]
fn the_quota_of_a_grant_replaces_the_first_policy_only() {
    let limits = limits(&Hands::default());
    let rich = grant_of("rich", Some(Quota::per_minute(600).with_burst(50)));
    assert_eq!(remaining(&limits.peek(&rich)), [50, 3, 8]);
    let shared = RateLimits::new(Limit::from(Quota::per_minute(5)).shared_by_all());
    assert_eq!(shared.peek(&rich).remaining(), 5);
}

#[test]
fn shared_policies_include_anonymous_requests() {
    use tollgate::Limiter as _;
    let limits = limits(&Hands::default());
    let anonymous = || limits.charge_anonymous(Charge::Units(3)).ready().unwrap();
    assert_eq!(remaining(&anonymous()), [5]);
    assert_eq!(remaining(&limits.peek(&grant_of("alice", None))), [5, 3, 5]);
    assert!(anonymous().is_admitted());
    assert_eq!(violated(&anonymous()), ["everything"]);

    let limits = limits_with(&Hands::default(), everything().with_anonymous(Quota::per_minute(1)));
    assert_eq!(anonymous_names(&limits), ["everything"], "the shared policy applies already");
    let limits = RateLimits::new(Limit::from(Quota::per_minute(1)).with_anonymous(Quota::per_minute(2)));
    let limits = limits.and(limit("day", Quota::per_day(5)).with_anonymous(Quota::per_day(3))).unwrap();
    assert_eq!(anonymous_names(&limits), ["anonymous", "day"]);
}

fn anonymous_names(limits: &RateLimits) -> Vec<String> {
    use tollgate::Limiter as _;
    let decision = limits.charge_anonymous(Charge::Units(0)).ready().unwrap();
    decision.parts().map(|part| part.policy().unwrap().name().to_owned()).collect()
}

#[test]
fn clones_share_the_policies_they_were_cloned_with() {
    let first = Hands::default().limits(Quota::per_minute(10));
    let both = first.clone().and(limit("day", Quota::per_day(20))).unwrap();
    let alice = grant_of("alice", None);
    assert!(first.charge(&alice, Charge::Units(3)).is_admitted());
    assert_eq!(remaining(&both.clone().charge(&alice, ONE)), [6, 19]);
    assert_eq!(first.peek(&alice).remaining(), 6);
    assert_eq!((first.subjects(), both.subjects()), (1, 1));
    assert_eq!(first.with_refunds().peek(&alice).remaining(), 6);
    assert_eq!(remaining(&both.with_clock(|| Duration::ZERO).peek(&alice)), [10, 20]);
}

#[test]
fn invalid_and_duplicate_names_return_errors() {
    let limits = || RateLimits::new(Quota::per_minute(1));
    for name in ["", &"a".repeat(65), "caf\u{e9}"] {
        let invalid = Limit::new(name, Quota::per_day(1)).unwrap_err();
        assert_eq!(invalid, LimitError::InvalidName(PolicyNameError::Form));
    }
    assert_eq!(Limit::new("anonymous", Quota::per_day(1)).unwrap_err(), LimitError::NameTaken);
    assert_eq!(limits().and(limit("default", Quota::per_day(1))).unwrap_err(), LimitError::NameTaken);
    assert_eq!(limits().and(Quota::per_day(1).into()).unwrap_err(), LimitError::NameTaken);
    let two = limits().and(limit("day", Quota::per_day(1))).unwrap();
    assert_eq!(two.and(limit("day", Quota::per_day(2))).unwrap_err(), LimitError::NameTaken);
}

#[tokio::test]
async fn a_dry_run_decides_and_rejects_nothing() {
    let dry_run = limit("dry run", Quota::per_minute(2)).with_dry_run();
    let limits = Hands::default().limits(Quota::per_minute(5)).and(dry_run).unwrap();
    let alice = grant_of("alice", None);
    for (left, dry_run) in [(4, 1), (3, 0), (2, 0), (1, 0)] {
        let decision = limits.charge(&alice, ONE);
        assert!(decision.is_admitted());
        assert_eq!(remaining(&decision), [left, dry_run]);
        assert_eq!(decision.would_be_rejected(), left < 3);
        assert!(!decision.is_dry_run(), "the other policy is enforced");
    }
    // An enforced rejection hides the dry run and charges nothing there.
    let rejected = limits.charge(&alice, Charge::Units(2));
    assert_eq!(violated(&rejected), ["default"]);
    assert!(!rejected.would_be_rejected());

    let tokens = MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]);
    let service = AuthLayer::new(tokens).with_rate_limit(limits).layer(echo());
    let response = send(&service, with_token(TOKEN)).await;
    assert_eq!(field(response.headers(), "ratelimit"), Some(r#""default";r=0;t=12"#));

    let alone = RateLimits::new(Limit::from(Quota::per_minute(1)).with_dry_run());
    let tokens = MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]);
    let service = AuthLayer::new(tokens).with_rate_limit(alone.clone()).layer(echo());
    for _ in 0..3 {
        let response = send(&service, with_token(TOKEN)).await;
        assert_eq!((response.status(), field(response.headers(), "ratelimit")), (http::StatusCode::OK, None));
    }
    assert!(
        alone.charge(&alice, Charge::Units(2)).into_result().is_ok(),
        "a dry run admits even a cost above the burst"
    );
}

#[test]
fn near_limit_starts_at_the_configured_percentage() {
    for (percent, burst, near_from) in [(80, 10, 8), (100, 10, 10), (0, 10, 0), (75, 3, 3), (50, 3, 2)] {
        let limits = Hands::default().limits(Limit::from(Quota::per_minute(burst)).with_near_limit(percent).unwrap());
        let alice = grant_of("alice", None);
        for used in 0..=burst {
            assert_eq!(limits.peek(&alice).is_near_limit(), used >= near_from, "{used} of {burst}, {percent} %");
            assert_eq!(limits.charge(&alice, ONE).is_admitted(), used < burst);
        }
    }
    let limits = limits_with(&Hands::default(), everything().with_near_limit(50).unwrap());
    let alice = grant_of("alice", None);
    assert!(!charge(&limits, &alice, "/113").is_near_limit());
    let near = charge(&limits, &alice, "/111");
    assert!(near.is_near_limit());
    assert_eq!(near.parts().map(Decision::is_near_limit).collect::<Vec<_>>(), [false, false, true]);
}

#[test]
fn near_limit_above_100_percent_returns_an_error() {
    for percent in [101, u8::MAX] {
        let invalid = Limit::from(Quota::per_minute(1)).with_near_limit(percent);
        assert_eq!(invalid.unwrap_err(), LimitError::NearLimitPercent);
    }
}

#[test]
fn only_policies_by_subject_have_a_partition_key() {
    let limits = limits(&Hands::default()).with_partition_key(|subject| subject.as_str().into());
    let limits = limits.and(limit("late", Quota::per_minute(1))).unwrap();
    let headers = RateLimitHeaders::default();
    let tokens = MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]);
    let gate = AuthLayer::new(tokens).with_rate_limit_headers(headers);
    let mut headers_out = http::HeaderMap::new();
    gate.advertise(&limits.charge(&grant_of("alice", None), ONE), &mut headers_out);
    let keys: Vec<_> =
        field(&headers_out, "ratelimit").unwrap().split(", ").map(|item| item.contains(";pk=:YWxpY2U=:")).collect();
    assert_eq!(keys, [true, true, true, false]);
}

/// Checks that the partition-key closure may call the limiter: no lock is held meanwhile.
#[test]
fn a_partition_key_closure_may_call_the_limiter() {
    let limits = Hands::default().limits(Quota::per_minute(5)).and(limit("day", Quota::per_day(9))).unwrap();
    let inner = limits.clone();
    let limits = limits.with_partition_key(move |subject| {
        let left = inner.peek(&grant_of(subject.as_str(), None)).remaining();
        left.to_string().into()
    });
    let (done, ended) = std::sync::mpsc::channel();
    thread::spawn(move || done.send(limits.charge(&grant_of("alice", None), ONE).is_admitted()));
    assert_eq!(ended.recv_timeout(Duration::from_secs(20)), Ok(true), "deadlock");
}

#[test]
fn combined_decisions_are_flat_and_report_the_strictest_part() {
    let policy = |name: &str| Policy::new(name, Quota::per_minute(9)).unwrap();
    let part = |name, verdict, left, wait| Decision::new(policy(name), verdict, left, wait, wait);
    let easy = part("easy", Verdict::Admitted, 5, SECOND);
    let tight = part("tight", Verdict::Admitted, 1, SECOND);
    let over = part("over", Verdict::OverLimit, 0, 2 * SECOND);
    let longer = part("longer", Verdict::OverLimit, 0, 3 * SECOND);
    let never = part("never", Verdict::CostAboveBurst, 9, SECOND);
    let dry_run = part("dry run", Verdict::OverLimit, 0, 9 * SECOND).with_dry_run();
    let reported = |parts: &[&Decision]| {
        let all = Decision::all_of(parts.iter().map(|&part| part.clone()));
        all.policy().unwrap().name().to_owned()
    };
    assert_eq!(reported(&[&easy, &tight]), "tight");
    assert_eq!(reported(&[&easy, &over, &tight, &longer]), "longer");
    assert_eq!(reported(&[&never, &longer]), "never");
    assert_eq!(reported(&[&dry_run, &easy]), "easy");
    assert_eq!(reported(&[&easy, &part("as easy", Verdict::Admitted, 5, SECOND)]), "easy");

    let inner = Decision::all_of([easy.clone(), tight.clone()]);
    let outer = Decision::all_of([inner, Decision::unlimited(), over.clone()]);
    assert_eq!(outer.parts().collect::<Vec<_>>(), [&easy, &tight, &over]);
    assert_eq!(Decision::all_of([over.clone(), Decision::unlimited()]), over);
    assert_eq!(Decision::all_of([]), Decision::unlimited());
}

/// Checks clones that were made refundable separately: their refunds of one bucket are added up.
#[test]
fn refunds_of_separate_clones_are_counted_together() {
    let hands = Hands::default();
    let base = hands.limits(Quota::per_second(1).with_burst(3));
    let (first, second) = (base.clone().with_refunds(), base.clone().with_refunds());
    let alice = grant_of("alice", None);
    let [one, two] = [(&first, 1), (&second, 2)].map(|(limits, units)| limits.charge(&alice, Charge::Units(units)));
    now(one.refund());
    hands.advance(2 * SECOND);
    assert!(base.charge(&alice, Charge::Units(3)).is_admitted(), "the bucket is full");
    now(two.refund());
    assert_eq!(base.peek(&alice).remaining(), 0);
}

#[test]
fn refunds_of_a_gate_and_a_route_do_not_reduce_each_other() {
    let limits = Hands::default().limits(Quota::per_second(1).with_burst(5)).with_refunds();
    let route = limits.clone().for_route();
    let alice = grant_of("alice", Some(Quota::per_second(1).with_burst(50)));
    let [of_gate, of_route] = [&limits, &route].map(|limits| limits.charge(&alice, Charge::Units(1)));
    now(of_gate.refund());
    now(of_route.refund());
    assert_eq!((limits.peek(&alice).remaining(), route.peek(&alice).remaining()), (50, 5));
}
