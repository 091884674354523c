//! The rate limit headers of all formats, parsed by `sfv` and by small parsers of the grammars of old drafts.
//!
//! The decisions are all that a custom limiter can make.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, Response};
use proptest::prelude::*;
use sfv::{BareItem, FieldType as _, List, ListEntry, Parser};
use tollgate::limit::Charge;
use tollgate::{
    Answer, AuthLayer, CurrentGrant, Decision, Immediate, Limiter, Policy, Quota, RateLimitHeaders, Verdict,
};
use tower::Layer;

use crate::kit::*;

/// A limiter with a fixed decision.
struct Decided(Decision);

impl Limiter for Decided {
    type Future = Immediate<Decision>;

    fn charge(&self, _: &CurrentGrant, _: Charge<'_>) -> Answer<Self::Future> {
        Answer::Ready(self.0.clone())
    }
}

/// The input of a decision.
#[derive(Clone, Debug)]
struct Made {
    name: String,
    quota: Quota,
    verdict: Verdict,
    remaining: u32,
    more_in: Duration,
    full_in: Duration,
    partition_key: Option<Vec<u8>>,
    now: Duration,
}

impl Made {
    fn decision(&self) -> Decision {
        let policy = Policy::new(&self.name, self.quota).unwrap();
        let decision = Decision::new(policy, self.verdict, self.remaining, self.more_in, self.full_in);
        match &self.partition_key {
            None => decision,
            Some(key) => decision.with_partition_key(key.clone()),
        }
    }

    fn answer(&self, format: RateLimitHeaders) -> Response<Body> {
        let now = UNIX_EPOCH + self.now;
        let gate = AuthLayer::new(memory())
            .with_rate_limit(Decided(self.decision()))
            .with_rate_limit_headers(format)
            .with_wall_clock(move || now);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(send(&gate.layer(echo()), with_token(TOKEN)))
    }

    fn remaining(&self) -> u64 {
        self.remaining.min(self.quota.burst()).into()
    }
}

fn times() -> impl Strategy<Value = Duration> {
    prop_oneof![
        prop::sample::select(vec![0, 1, 999_999_999, 1_000_000_000, 1_000_000_001, u64::MAX])
            .prop_map(Duration::from_nanos),
        (0..100_000_000_000_u64).prop_map(Duration::from_nanos),
        any::<u64>().prop_map(Duration::from_nanos),
        Just(Duration::MAX),
    ]
}

fn made() -> impl Strategy<Value = Made> {
    let quota = (1..1_u64 << 62, any::<u32>(), any::<bool>()).prop_map(|(interval, burst, short)| {
        let interval = if short { interval % 5_000_000_000 + 1 } else { interval };
        let most = u32::try_from(((1_u64 << 62) - 1) / interval).unwrap_or(u32::MAX);
        Quota::one_per(Duration::from_nanos(interval)).with_burst(burst.clamp(1, most))
    });
    let verdicts = vec![Verdict::Admitted, Verdict::OverLimit, Verdict::CostAboveBurst, Verdict::Unavailable];
    let numbers = prop_oneof![0..40_u32, Just(u32::MAX), any::<u32>()];
    let key = prop::option::of(prop::collection::vec(any::<u8>(), 0..40));
    (("[ -~]{1,64}", quota, prop::sample::select(verdicts), numbers), (times(), times(), key, any::<u64>())).prop_map(
        |((name, quota, verdict, remaining), (more_in, full_in, partition_key, now))| {
            let now = Duration::from_nanos(now);
            Made { name, quota, verdict, remaining, more_in, full_in, partition_key, now }
        },
    )
}

/// Parses a number in the form of all formats: no sign, no leading zero, no spaces.
fn number(text: &str) -> u64 {
    let number: u64 = text.parse().unwrap_or_else(|_| panic!("{text:?} is not a number"));
    assert_eq!(number.to_string(), text);
    number
}

/// Parses `20;w=7`.
fn quota_item(text: &str) -> [u64; 2] {
    let (limit, window) = text.split_once(";w=").unwrap_or_else(|| panic!("{text:?} has no window"));
    [number(limit), number(window)]
}

/// Parses `limit=20, remaining=19, reset=1`.
fn dictionary(text: &str) -> [u64; 3] {
    let mut members = text.split(", ");
    let read = ["limit=", "remaining=", "reset="].map(|key| {
        let member = members.next().unwrap_or_else(|| panic!("{text:?} is too short"));
        number(member.strip_prefix(key).unwrap_or_else(|| panic!("{member:?} is not {key}")))
    });
    assert_eq!(members.next(), None, "{text:?} is too long");
    read
}

/// Limit, remaining and reset, and the policy's limit and window if the format has them.
struct Read {
    triple: [u64; 3],
    policy: Option<[u64; 2]>,
}

fn read(headers: &HeaderMap, format: RateLimitHeaders) -> Read {
    let text = |name: &str| {
        assert_eq!(headers.get_all(name).iter().count(), 1, "{name} in one line");
        field(headers, name).unwrap()
    };
    let triple = |prefix: &str| ["limit", "remaining", "reset"].map(|name| number(text(&format!("{prefix}-{name}"))));
    match format {
        RateLimitHeaders::Draft07 => {
            Read { triple: dictionary(text("ratelimit")), policy: Some(quota_item(text("ratelimit-policy"))) }
        }
        RateLimitHeaders::Draft06 => {
            Read { triple: triple("ratelimit"), policy: Some(quota_item(text("ratelimit-policy"))) }
        }
        RateLimitHeaders::Draft03 => {
            let (limit, policy) = text("ratelimit-limit").split_once(", ").unwrap();
            let [remaining, reset] = ["remaining", "reset"].map(|name| number(text(&format!("ratelimit-{name}"))));
            Read { triple: [number(limit), remaining, reset], policy: Some(quota_item(policy)) }
        }
        RateLimitHeaders::XEpoch | RateLimitHeaders::XDelta => Read { triple: triple("x-ratelimit"), policy: None },
        other => panic!("{other:?} does not have three numbers"),
    }
}

/// Returns the sorted names of the rate limit headers.
fn names(headers: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<_> =
        headers.keys().map(|name| name.as_str()).filter(|name| name.contains("ratelimit")).collect();
    names.sort_unstable();
    names
}

const SECOND: u128 = 1_000_000_000;

/// Returns whether the seconds are these nanoseconds, rounded up.
fn is_rounded_up(seconds: u64, ns: u128) -> bool {
    let rounded = u128::from(seconds) * SECOND;
    ns <= rounded && rounded < ns + SECOND
}

/// Returns the time that a decision stores: at most 584 years.
fn kept(time: Duration) -> u128 {
    time.as_nanos().min(u64::MAX.into())
}

/// Checks the status and `Retry-After`, which are the same in all formats. Returns the seconds to wait.
fn assert_verdict(made: &Made, response: &Response<Body>) -> Option<u64> {
    let status = match made.verdict {
        Verdict::Admitted => 200,
        Verdict::OverLimit => 429,
        Verdict::CostAboveBurst => 400,
        Verdict::Unavailable => 503,
        verdict => panic!("no status for {verdict:?}"),
    };
    assert_eq!(response.status(), status);
    let wait = field(response.headers(), "retry-after").map(number);
    assert_eq!(
        wait.is_some(),
        matches!(made.verdict, Verdict::OverLimit | Verdict::Unavailable),
        "`Retry-After` is for 429 and 503 only"
    );
    if let Some(wait) = wait {
        assert!(wait > 0 && (is_rounded_up(wait, kept(made.more_in)) || made.more_in.is_zero() && wait == 1));
    }
    wait
}

proptest! {
    #[test]
    fn draft_11_headers_match_the_decision(made in made()) {
        let response = made.answer(RateLimitHeaders::Draft11);
        assert_verdict(&made, &response);
        prop_assert_eq!(names(response.headers()), ["ratelimit", "ratelimit-policy"]);
        let item = |name: &str| {
            let text = field(response.headers(), name).unwrap();
            let list: List = Parser::new(text).parse().unwrap();
            assert_eq!(list.serialize().as_deref(), Some(text), "canonical");
            assert_eq!(list.len(), 1);
            let ListEntry::Item(item) = list[0].clone() else { panic!("a list in a list") };
            assert_eq!(item.bare_item.as_string().map(|name| name.as_str()), Some(&*made.name));
            item.params
        };
        let integer = |value: &BareItem| u64::try_from(i64::from(value.as_integer().unwrap())).unwrap();
        let policy = item("ratelimit-policy");
        prop_assert_eq!(policy.keys().map(|key| key.as_str()).collect::<Vec<_>>(), ["q", "w"]);
        prop_assert_eq!(integer(&policy["q"]), u64::from(made.quota.burst()));
        prop_assert!(integer(&policy["w"]) > 0 && is_rounded_up(integer(&policy["w"]), made.quota.refill().as_nanos()));
        let state = item("ratelimit");
        prop_assert_eq!(integer(&state["r"]), made.remaining());
        prop_assert!(is_rounded_up(integer(&state["t"]), kept(made.more_in)));
        let key = made.partition_key.clone().map(BareItem::ByteSequence);
        prop_assert_eq!(state.get("pk"), key.as_ref());
        prop_assert_eq!(state.len(), 2 + usize::from(key.is_some()));
    }

    #[test]
    fn headers_of_older_formats_match_the_decision(made in made()) {
        let triple = ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"];
        let with_policy = ["ratelimit-limit", "ratelimit-policy", "ratelimit-remaining", "ratelimit-reset"];
        let x_triple = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];
        for (format, fields) in [
            (RateLimitHeaders::Draft07, &["ratelimit", "ratelimit-policy"][..]),
            (RateLimitHeaders::Draft06, &with_policy),
            (RateLimitHeaders::Draft03, &triple),
            (RateLimitHeaders::XEpoch, &x_triple),
            (RateLimitHeaders::XDelta, &x_triple),
        ] {
            let response = made.answer(format);
            let wait = assert_verdict(&made, &response);
            prop_assert_eq!(names(response.headers()), fields, "{:?}", format);
            let Read { triple: [limit, remaining, reset], policy } = read(response.headers(), format);
            prop_assert_eq!((limit, remaining), (u64::from(made.quota.burst()), made.remaining()));
            if let Some([limit, window]) = policy {
                prop_assert_eq!(limit, u64::from(made.quota.burst()));
                prop_assert!(window > 0 && is_rounded_up(window, made.quota.refill().as_nanos()));
            }
            let (more, full) = (kept(made.more_in), kept(made.full_in));
            let wanted = match (wait, remaining) {
                // `Retry-After` is never 0.
                (Some(_), _) => more.max(1),
                (None, 0) => more,
                (None, _) => full,
            };
            match format {
                RateLimitHeaders::XEpoch => prop_assert!(is_rounded_up(reset, made.now.as_nanos() + wanted)),
                _ => prop_assert!(is_rounded_up(reset, wanted) && wait.is_none_or(|wait| wait == reset)),
            }
        }
    }

    #[test]
    fn off_sends_no_ratelimit_headers(made in made()) {
        let response = made.answer(RateLimitHeaders::Off);
        assert_verdict(&made, &response);
        prop_assert!(names(response.headers()).is_empty());
    }
}

#[test]
fn clock_before_1970_is_read_as_1970() {
    let policy = Policy::new("p", Quota::per_minute(1)).unwrap();
    let decision = Decision::new(policy, Verdict::Admitted, 1, Duration::ZERO, Duration::from_secs(7));
    let before: SystemTime = UNIX_EPOCH - Duration::from_secs(1_000);
    let gate = AuthLayer::new(memory())
        .with_rate_limit(Decided(decision))
        .with_rate_limit_headers(RateLimitHeaders::XEpoch)
        .with_wall_clock(move || before);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let response = runtime.block_on(send(&gate.layer(echo()), with_token(TOKEN)));
    assert_eq!(response.headers()["x-ratelimit-reset"], "7");
}

#[test]
fn draft_10_is_the_same_format_as_draft_11_the_default() {
    assert_eq!(RateLimitHeaders::default(), RateLimitHeaders::Draft11);
    assert_eq!(RateLimitHeaders::Draft10, RateLimitHeaders::Draft11);
}

/// Headers that every browser exposes, or that concern no script.
const OTHER_HEADERS: [&str; 4] = ["cache-control", "content-length", "content-type", "connection"];

#[test]
fn exposed_headers_include_all_headers_of_all_formats() {
    use tollgate::respond::EXPOSED_HEADERS;

    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for format in [
        RateLimitHeaders::Draft11,
        RateLimitHeaders::Draft07,
        RateLimitHeaders::Draft06,
        RateLimitHeaders::Draft03,
        RateLimitHeaders::XEpoch,
        RateLimitHeaders::XDelta,
    ] {
        let policy = Policy::new("p", Quota::per_minute(1)).unwrap();
        let decision = Decision::new(policy, Verdict::OverLimit, 0, Duration::from_secs(60), Duration::from_secs(60));
        let gate = AuthLayer::new(memory()).with_rate_limit(Decided(decision)).with_rate_limit_headers(format);
        let mut grpc_web = with_token(TOKEN);
        grpc_web.headers_mut().insert("content-type", "application/grpc-web+proto".parse().unwrap());
        for request in [with_token(TOKEN), get(), grpc_web] {
            let response = runtime.block_on(send(&gate.layer(echo()), request));
            assert!(response.status().is_client_error() || response.headers().contains_key("grpc-status"));
            seen.extend(response.headers().keys().map(|name| name.as_str().to_owned()));
        }
    }
    seen.retain(|name| !OTHER_HEADERS.contains(&&**name));
    assert_eq!(seen, EXPOSED_HEADERS.iter().map(|name| name.as_str().to_owned()).collect());
}
