//! Metrics by `metrics`.
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Key, KeyName, Label, SharedString, Unit, with_recorder};

use super::Cached;
use super::counter::{KeptCounter, METADATA, count};
use crate::caller::Unauthenticated;
use crate::rejection::RejectionKind;
use crate::token::TokenLocation;

/// The description of a metric.
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
    REQUESTS: Counter "tollgate_requests_total", "Requests by outcome, and the token location of admitted requests.";
    CHARGES: Counter "tollgate_limit_decisions_total", "Charges by policy and outcome.";
    NEAR_LIMIT: Counter "tollgate_limit_near_total", "Charges after which a bucket is nearly empty, by policy.";
    DRY_RUN: Counter "tollgate_limit_dry_run_total", "Charges that a policy in dry run would have rejected.";
    BUCKETS: Gauge "tollgate_limit_subjects", "Subjects with a bucket in an in-memory limiter, by policy.";
    LOOKUP: Histogram "tollgate_store_lookup_seconds", "Duration of pending store lookups.";
    CACHE: Counter "tollgate_cache_lookups_total", "Cache lookups by outcome.";
    STORE_CHANGES: Counter "tollgate_store_changes_total", "Changes in watched databases, reported or merged.";
    BREAKER: Gauge "tollgate_breaker_state", "State of a circuit breaker: 0 closed, 1 half_open, 2 open.";
    BREAKER_TRANSITIONS: Counter "tollgate_breaker_transitions_total", "State changes of circuit breakers, by new state.";
    THROTTLED: Counter "tollgate_failures_throttled_total", "Requests of peers with too many failures, rejected or in dry run.";
    REDIS_CALL: Histogram "tollgate_redis_call_seconds", "Duration of Redis calls: charges, leases and refunds.";
    REDIS_LOCAL: Counter "tollgate_redis_local_decisions_total", "Charges decided without the Redis server, by policy.";
    QUEUE_TIMEOUTS: Counter "tollgate_redis_queue_timeouts_total", "Charges and refunds not sent to Redis within the queue timeout.";
}

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

    /// Returns a counter whose key lives forever, so that a recorder clones it without an allocation.
    fn kept<const N: usize>(&self, labels: [(&'static str, &'static str); N]) -> KeptCounter {
        let labels = labels.map(|(label, value)| Label::from_static_parts(label, value));
        KeptCounter::new(Key::from_static_labels(self.name, Box::leak(Box::new(labels))))
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

/// The counters of a metric whose label values are fixed, by their index.
struct Counters<const N: usize>([OnceLock<KeptCounter>; N]);

impl<const N: usize> Counters<N> {
    const fn new() -> Self {
        Self([const { OnceLock::new() }; N])
    }

    #[inline]
    fn count(&self, number: usize, counter: impl Fn() -> KeptCounter) {
        match self.0.get(number) {
            Some(kept) => kept.get_or_init(counter).count(),
            None => counter().count(),
        }
    }
}

static REJECTED: Counters<32> = Counters::new();
static ADMITTED: Counters<16> = Counters::new();
static PASSED: Counters<4> = Counters::new();
static CACHED: Counters<4> = Counters::new();
static THROTTLED_BY_OUTCOME: Counters<2> = Counters::new();

fn request(outcome: &'static str, location: &'static str) -> KeptCounter {
    REQUESTS.kept([("outcome", outcome), ("location", location)])
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
    CACHED.count(what as usize, || CACHE.kept([("outcome", what.name())]));
}

pub(super) fn throttled(is_dry_run: bool) {
    let outcome = if is_dry_run { "dry_run" } else { "rejected" };
    THROTTLED_BY_OUTCOME.count(usize::from(is_dry_run), || THROTTLED.kept([("outcome", outcome)]));
}

/// The counters of a policy.
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

    /// Returns the metric, and the value of its label `outcome` if it has one.
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

    fn kept(self, policy: &'static str) -> KeptCounter {
        match self.parts() {
            (metric, Some(outcome)) => metric.kept([("policy", policy), ("outcome", outcome)]),
            (metric, None) => metric.kept([("policy", policy)]),
        }
    }

    fn count(self, policy: &str) {
        match self.parts() {
            (metric, Some(outcome)) => metric.count(&[("policy", policy), ("outcome", outcome)]),
            (metric, None) => metric.count(&[("policy", policy)]),
        }
    }
}

/// The counters of a policy, in the order of [`Charged::ALL`].
struct PolicyCounters {
    policy: &'static str,
    counters: [KeptCounter; Charged::ALL.len()],
}

impl PolicyCounters {
    fn new(policy: &str) -> Self {
        let policy: &'static str = String::leak(policy.to_owned());
        Self { policy, counters: Charged::ALL.map(|what| what.kept(policy)) }
    }
}

/// The counters of the first policies, kept forever. Most services have fewer policies. Others get a new key for each count.
static POLICIES: [OnceLock<PolicyCounters>; 64] = [const { OnceLock::new() }; 64];

pub(super) fn by_policy(policy: &str, what: Charged) {
    let mut kept = POLICIES.iter().map(|place| place.get_or_init(|| PolicyCounters::new(policy)));
    match kept.find(|kept| kept.policy == policy) {
        Some(kept) => kept.counters[what as usize].count(),
        None => what.count(policy),
    }
}
