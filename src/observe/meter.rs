use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Key, KeyName, Label, Level, Metadata, SharedString, Unit, with_recorder};

use super::Cached;
use crate::caller::Unauthenticated;
use crate::rejection::RejectionKind;
use crate::token::TokenLocation;

/// What a recorder is told of a metric.
pub(super) struct Metric {
    name: &'static str,
    shape: Shape,
    about: &'static str,
}

enum Shape {
    Counter,
    Gauge,
    /// In seconds.
    Histogram,
}

macro_rules! metrics {
    ($($metric:ident: $shape:ident $name:literal, $about:literal;)+) => {
        $(pub(super) static $metric: Metric = Metric { name: $name, shape: Shape::$shape, about: $about };)+

        pub(super) static ALL: &[&Metric] = &[$(&$metric),+];
    };
}

metrics! {
    REQUESTS: Counter "tollgate_requests_total", "Requests by what became of them, and where the token of those was that a gate let pass.";
    CHARGES: Counter "tollgate_limit_decisions_total", "Charges by policy and by what became of them.";
    NEAR_LIMIT: Counter "tollgate_limit_near_total", "Charges that left little of a budget, by policy.";
    DRY_RUN: Counter "tollgate_limit_dry_run_total", "Charges that a policy would have refused if it did more than watch.";
    BUCKETS: Gauge "tollgate_limit_accounts", "Subjects whose budgets a limiter in memory remembers, by policy.";
    LOOKUP: Histogram "tollgate_store_lookup_seconds", "How long look-ups took that had to be waited for.";
    CACHE: Counter "tollgate_cache_lookups_total", "Look-ups in caches of grants by what the cache knew.";
    STORE_CHANGES: Counter "tollgate_store_changes_total", "Changes in databases that caches follow, reported or merged.";
    BREAKER: Gauge "tollgate_breaker_state", "What a breaker does: 0 closed, 1 half_open, 2 open.";
    BREAKER_TRANSITIONS: Counter "tollgate_breaker_transitions_total", "How often a breaker went into a state.";
    THROTTLED: Counter "tollgate_failures_throttled_total", "Requests of peers that have failed too often, refused or on trial.";
    REDIS_CALL: Histogram "tollgate_redis_call_seconds", "How long calls of Redis took: charges, purchases and refunds.";
    REDIS_LOCAL: Counter "tollgate_redis_local_decisions_total", "Charges that were decided without the Redis server, by policy.";
    QUEUE_TIMEOUTS: Counter "tollgate_redis_queue_timeouts_total", "Charges and refunds that were not sent to Redis within the queue timeout.";
}

static METADATA: Metadata<'static> = Metadata::new("tollgate", Level::INFO, Some("tollgate"));

impl Metric {
    pub(super) fn describe(&self) {
        let name = KeyName::from_const_str(self.name);
        let about = SharedString::const_str(self.about);
        with_recorder(|recorder| match self.shape {
            Shape::Counter => recorder.describe_counter(name, Some(Unit::Count), about),
            Shape::Gauge => recorder.describe_gauge(name, Some(Unit::Count), about),
            Shape::Histogram => recorder.describe_histogram(name, Some(Unit::Seconds), about),
        });
    }

    /// A key for ever, which a recorder clones without an allocation: for what is kept.
    fn kept_key<const N: usize>(&self, labels: [(&'static str, &'static str); N]) -> Key {
        let labels = labels.map(|(label, value)| Label::from_static_parts(label, value));
        Key::from_static_labels(self.name, Box::leak(Box::new(labels)))
    }

    fn key(&self, labels: &[(&'static str, &str)]) -> Key {
        let labels: Vec<Label> = labels.iter().map(|(label, value)| Label::new(*label, (*value).to_owned())).collect();
        Key::from_parts(self.name, labels)
    }

    pub(super) fn count(&self, labels: &[(&'static str, &str)]) {
        count(&self.key(labels));
    }

    pub(super) fn set(&self, labels: &[(&'static str, &str)], value: f64) {
        let key = self.key(labels);
        with_recorder(|recorder| recorder.register_gauge(&key, &METADATA).set(value));
    }

    pub(super) fn record(&self, labels: &[(&'static str, &str)], value: Duration) {
        let key = self.key(labels);
        with_recorder(|recorder| recorder.register_histogram(&key, &METADATA).record(value));
    }
}

/// What is counted at every request is one look-up in the recorder, by a key that is kept. The counter itself cannot be kept: a
/// recorder may come at any time, and that of a test is for one thread only.
#[inline]
fn count(key: &Key) {
    with_recorder(|recorder| recorder.register_counter(key, &METADATA).increment(1));
}

/// The keys of a metric whose label values are known here, by their number.
struct Keys<const N: usize>([OnceLock<Key>; N]);

impl<const N: usize> Keys<N> {
    const fn new() -> Self {
        Self([const { OnceLock::new() }; N])
    }

    #[inline]
    fn count(&self, number: usize, key: impl Fn() -> Key) {
        match self.0.get(number) {
            Some(kept) => count(kept.get_or_init(key)),
            None => count(&key()),
        }
    }
}

static REJECTED: Keys<32> = Keys::new();
static ADMITTED: Keys<16> = Keys::new();
static PASSED: Keys<4> = Keys::new();
static CACHED: Keys<4> = Keys::new();
static THROTTLED_KEYS: Keys<2> = Keys::new();

fn request(outcome: &'static str, location: &'static str) -> Key {
    REQUESTS.kept_key([("outcome", outcome), ("location", location)])
}

pub(super) fn rejected(kind: RejectionKind) {
    REJECTED.count(kind as usize, || request(kind.as_str(), "none"));
}

pub(super) fn admitted(location: TokenLocation) {
    ADMITTED.count(location as usize, || request("admitted", location.as_str()));
}

pub(super) fn passed(why: Unauthenticated) {
    PASSED.count(why as usize, || match why {
        Unauthenticated::Preflight => request("preflight", "none"),
        Unauthenticated::Anonymous => request("anonymous", "none"),
    });
}

pub(super) fn cached(what: Cached) {
    CACHED.count(what as usize, || CACHE.kept_key([("outcome", what.name())]));
}

pub(super) fn throttled(is_dry_run: bool) {
    let outcome = if is_dry_run { "dry_run" } else { "rejected" };
    THROTTLED_KEYS.count(usize::from(is_dry_run), || THROTTLED.kept_key([("outcome", outcome)]));
}

/// What a policy's counters count.
#[derive(Clone, Copy)]
pub(super) enum Charged {
    Admitted,
    OverLimit,
    CostAboveBurst,
    NearLimit,
    DryRun,
    RedisLocal,
}

impl Charged {
    const ALL: [Self; 6] =
        [Self::Admitted, Self::OverLimit, Self::CostAboveBurst, Self::NearLimit, Self::DryRun, Self::RedisLocal];

    /// The metric, and the label beside the policy, if it has one.
    fn parts(self) -> (&'static Metric, Option<&'static str>) {
        match self {
            Self::Admitted => (&CHARGES, Some("admitted")),
            Self::OverLimit => (&CHARGES, Some("over_limit")),
            Self::CostAboveBurst => (&CHARGES, Some("cost_above_burst")),
            Self::NearLimit => (&NEAR_LIMIT, None),
            Self::DryRun => (&DRY_RUN, None),
            Self::RedisLocal => (&REDIS_LOCAL, None),
        }
    }

    fn kept_key(self, policy: &'static str) -> Key {
        match self.parts() {
            (metric, Some(outcome)) => metric.kept_key([("policy", policy), ("outcome", outcome)]),
            (metric, None) => metric.kept_key([("policy", policy)]),
        }
    }

    fn key(self, policy: &str) -> Key {
        match self.parts() {
            (metric, Some(outcome)) => metric.key(&[("policy", policy), ("outcome", outcome)]),
            (metric, None) => metric.key(&[("policy", policy)]),
        }
    }
}

/// A policy's keys, in the order of [`Charged::ALL`].
struct PolicyKeys {
    policy: &'static str,
    keys: [Key; Charged::ALL.len()],
}

impl PolicyKeys {
    fn new(policy: &str) -> Self {
        let policy: &'static str = String::leak(policy.to_owned());
        Self { policy, keys: Charged::ALL.map(|what| what.kept_key(policy)) }
    }
}

/// The first policies that were charged, for ever: more than a service has. Those beyond are counted by keys that are made anew.
static POLICIES: [OnceLock<PolicyKeys>; 64] = [const { OnceLock::new() }; 64];

pub(super) fn by_policy(policy: &str, what: Charged) {
    let mut kept = POLICIES.iter().map(|place| place.get_or_init(|| PolicyKeys::new(policy)));
    match kept.find(|kept| kept.policy == policy) {
        Some(kept) => count(&kept.keys[what as usize]),
        None => count(&what.key(policy)),
    }
}
