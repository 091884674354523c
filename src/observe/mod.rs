//! Metrics (feature `metrics`) and events (feature `tracing`).
//!
#![doc = include_str!("../../OBSERVE.md")]
#![allow(dead_code, reason = "depends on features: a service without a cache reports no cache lookups")]
#![cfg_attr(
    not(all(feature = "metrics", feature = "tracing")),
    allow(unused_variables, reason = "not reported without the feature")
)]

// Rules.
//
// 1. Only this module uses `tracing` (in `events.rs`) and `metrics` (in `counter.rs` and `meter.rs`). The rest of the crate
//    calls the functions below, which are empty without these features.
// 2. No function takes a token, a digest or a header value, so that none can be reported.
// 3. A label value is defined in this folder, the name of a policy, or a `&'static str`: configuration, never request data.
// 4. Reports of every request do not allocate (`tests/alloc.rs`).

#[cfg(feature = "metrics")]
mod counter;
#[cfg(feature = "tracing")]
mod events;
#[cfg(feature = "metrics")]
mod meter;
#[cfg(all(test, feature = "metrics"))]
mod tests;

use crate::caller::{CurrentGrant, Unauthenticated};
use crate::grant::GrantId;
use crate::quota::decision::{Decision, Verdict};
use crate::rejection::Rejection;
use crate::rejection::store_error::StoreError;
use crate::token::TokenLocation;

/// Describes all metrics and their units to the recorder. Exporters show the descriptions, for example as `# HELP` lines for
/// Prometheus.
///
/// Call this function once, after the recorder was installed. A recorder that is installed later gets no descriptions.
///
/// A recorder must not use a circuit breaker while it records the state of that breaker, which is locked then.
///
/// ```
/// tollgate::observe::describe_metrics();
/// ```
#[cfg(feature = "metrics")]
pub fn describe_metrics() {
    meter::ALL.iter().for_each(|metric| metric.describe());
}

/// Keeps the counters of the process's recorder, which makes counts cheaper. A kept counter is looked up in the recorder once a
/// second, and not at each count.
///
/// Call this function once, after the recorder was installed for the process. Without a recorder it does nothing. Recorders for
/// single threads, such as those of tests, are not affected: their counters are looked up at each count.
///
/// Do not call this function in these cases:
///
/// - The recorder adds labels that depend on where a count is made, such as those of the current span that
///   `metrics-tracing-context` adds. A kept counter would count under the labels of another request.
/// - The exporter removes counters that have not changed for less than a second. Counts could be lost.
///
/// ```
/// tollgate::observe::keep_counters();
/// ```
#[cfg(feature = "metrics")]
pub fn keep_counters() {
    counter::keep();
}

/// Reports a rejection by a gate, another layer or a handler.
#[inline]
pub(crate) fn rejected(rejection: &Rejection) {
    #[cfg(feature = "metrics")]
    meter::rejected(rejection.kind());
    #[cfg(feature = "tracing")]
    events::rejected(rejection);
}

/// Reports that a gate admitted a request with a grant.
#[inline]
pub(crate) fn admitted(location: TokenLocation) {
    #[cfg(feature = "metrics")]
    meter::admitted(location);
}

/// Reports that a gate admitted a request without a grant.
#[inline]
pub(crate) fn passed(why: Unauthenticated) {
    #[cfg(feature = "metrics")]
    meter::passed(why);
}

/// Reports a decision, one part for each policy. If one policy rejects the charge, the policies that admit it are not reported,
/// because nothing was charged.
#[inline]
pub(crate) fn charged(decision: &Decision, caller: Option<&CurrentGrant>) {
    #[cfg(any(feature = "metrics", feature = "tracing"))]
    for part in decision.parts() {
        let Some(policy) = part.policy().map(|policy| policy.name()) else { continue };
        match (part.verdict(), part.is_admitted(), decision.is_admitted()) {
            (Verdict::Admitted, _, true) => {
                decided(policy, Verdict::Admitted);
                if part.is_near_limit() {
                    near_limit(policy);
                }
            }
            (Verdict::Admitted, _, false) => {}
            (_, true, _) => would_reject(policy, caller.map(CurrentGrant::id)),
            (verdict, false, _) => decided(policy, verdict),
        }
    }
}

/// Reports the decision of one policy.
#[inline]
pub(crate) fn decided(policy: &str, verdict: Verdict) {
    #[cfg(feature = "metrics")]
    meter::by_policy(
        policy,
        match verdict {
            Verdict::Admitted => meter::Charged::Admitted,
            Verdict::OverLimit => meter::Charged::OverLimit,
            Verdict::CostAboveBurst => meter::Charged::CostAboveBurst,
            // No policy has decided.
            Verdict::Unavailable => return,
        },
    );
}

/// Reports a charge after which a bucket is nearly empty.
#[inline]
pub(crate) fn near_limit(policy: &str) {
    #[cfg(feature = "metrics")]
    meter::by_policy(policy, meter::Charged::NearLimit);
}

/// Reports that a policy in dry run would have rejected a charge.
#[inline]
pub(crate) fn would_reject(policy: &str, grant: Option<&GrantId>) {
    #[cfg(feature = "metrics")]
    meter::by_policy(policy, meter::Charged::DryRun);
    #[cfg(feature = "tracing")]
    events::would_reject(policy, grant);
}

/// Reports how many subjects have a bucket in a limiter with this name.
#[inline]
pub(crate) fn buckets(policy: &str, subjects: usize) {
    #[cfg(feature = "metrics")]
    meter::BUCKETS.set(&[("policy", policy)], subjects as f64);
}

/// Measures a waiting time. It is empty without the feature `metrics`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timer {
    #[cfg(feature = "metrics")]
    since: std::time::Instant,
}

impl Timer {
    #[inline]
    pub(crate) fn start() -> Self {
        Self {
            #[cfg(feature = "metrics")]
            since: std::time::Instant::now(),
        }
    }

    /// Records the duration of a lookup that was pending.
    #[inline]
    pub(crate) fn record_lookup(self, end: LookupOutcome) {
        #[cfg(feature = "metrics")]
        meter::LOOKUP.record(&[("outcome", end.name())], self.since.elapsed());
    }

    /// Records the duration of a Redis call.
    #[inline]
    pub(crate) fn record_redis_call(self, end: RedisOutcome) {
        #[cfg(feature = "metrics")]
        meter::REDIS_CALL.record(&[("outcome", end.name())], self.since.elapsed());
    }
}

macro_rules! label_values {
    ($(#[$about:meta])* $values:ident { $($(#[$of:meta])* $value:ident = $name:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum $values { $($(#[$of])* $value,)+ }

        impl $values {
            #[inline]
            fn name(self) -> &'static str {
                match self { $(Self::$value => $name,)+ }
            }
        }
    };
}

label_values! {
    /// The result of a store lookup.
    LookupOutcome {
        Found = "found",
        Unknown = "unknown",
        /// The store failed.
        Failed = "failed",
        /// The store works, but could not check this token.
        FailedForToken = "failed_for_token",
        Timeout = "timeout",
    }
}

impl LookupOutcome {
    #[inline]
    pub(crate) fn by<G>(found: &Result<Option<G>, StoreError>) -> Self {
        match found {
            Ok(Some(_)) => Self::Found,
            Ok(None) => Self::Unknown,
            Err(error) if error.concerns_token() => Self::FailedForToken,
            Err(_) => Self::Failed,
        }
    }
}

label_values! {
    /// The result of a Redis call.
    RedisOutcome {
        Answered = "answered",
        Failed = "failed",
        Timeout = "timeout",
    }
}

label_values! {
    /// The result of a cache lookup.
    Cached {
        Hit = "hit",
        /// A cached negative answer: the store does not know the token.
        Unknown = "unknown",
        /// An expired grant was returned, and is being refreshed.
        Stale = "stale",
        Miss = "miss",
    }
}

label_values! {
    /// The state of a circuit breaker.
    Breaker {
        Closed = "closed",
        HalfOpen = "half_open",
        Open = "open",
    }
}

label_values! {
    /// A change in a watched database.
    StoreChange {
        Named = "named",
        Added = "added",
        Everything = "everything",
        /// Not reported: a later report includes it.
        Merged = "merged",
    }
}

/// Reports a change in a watched database.
#[inline]
pub(crate) fn store_changed(what: StoreChange) {
    #[cfg(feature = "metrics")]
    meter::STORE_CHANGES.count(&[("change", what.name())]);
}

/// Reports a cache lookup.
#[inline]
pub(crate) fn cached(what: Cached) {
    #[cfg(feature = "metrics")]
    meter::cached(what);
}

/// Sets the state of a circuit breaker in the metrics. It is called under the breaker's lock, so that the last value is right.
#[inline]
pub(crate) fn breaker_state(name: &'static str, state: Breaker) {
    #[cfg(feature = "metrics")]
    {
        meter::BREAKER.set(&[("breaker", name)], f64::from(state as u8));
        meter::BREAKER_TRANSITIONS.count(&[("breaker", name), ("to", state.name())]);
    }
}

/// Emits an event for the state of a circuit breaker. It is called without the lock, because a subscriber may use the breaker.
#[inline]
pub(crate) fn breaker_changed(name: &'static str, state: Breaker) {
    #[cfg(feature = "tracing")]
    events::breaker_changed(name, state);
}

/// Reports a request of a peer with too many failures, which was rejected, or would have been without the dry run.
#[inline]
pub(crate) fn throttled(is_dry_run: bool) {
    #[cfg(feature = "metrics")]
    meter::throttled(is_dry_run);
}

/// Reports a charge that was decided without the Redis server.
#[inline]
pub(crate) fn decided_without_redis(policy: &str) {
    #[cfg(feature = "metrics")]
    meter::by_policy(policy, meter::Charged::RedisLocal);
}

/// Reports a charge or refund that was not sent to Redis within the queue timeout.
#[inline]
pub(crate) fn queue_timed_out() {
    #[cfg(feature = "metrics")]
    meter::QUEUE_TIMEOUTS.count(&[]);
}
