#![doc = include_str!("../../OBSERVE.md")]
#![allow(dead_code, reason = "what is told depends on features: a service without a cache never tells of one")]
#![cfg_attr(
    not(all(feature = "metrics", feature = "tracing")),
    allow(unused_variables, reason = "what is told when a feature is off is told to nobody")
)]

// Rules.
//
// 1. This is the only place that names `tracing` (in `events.rs`) and `metrics` (in `meter.rs`). The rest of the crate calls
//    the functions below, which are empty without these features.
// 2. Nothing here takes a token, a digest or a header value, so that none can be told.
// 3. A label's value is a word of this file, a policy's name or a `&'static str`: configuration, never input.
// 4. What is told at every request makes no allocation (`tests/alloc.rs`).

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

/// Tells the recorder what each metric means and counts, so that an exporter can say it: as `# HELP` lines, for Prometheus.
///
/// Call it once, after the recorder was installed. Recorders that come later know nothing of it.
///
/// ```
/// tollgate::observe::describe_metrics();
/// ```
#[cfg(feature = "metrics")]
pub fn describe_metrics() {
    meter::ALL.iter().for_each(|metric| metric.describe());
}

/// A request was refused, by whichever layer or handler.
#[inline]
pub(crate) fn rejected(rejection: &Rejection) {
    #[cfg(feature = "metrics")]
    meter::rejected(rejection.kind());
    #[cfg(feature = "tracing")]
    events::rejected(rejection);
}

/// A gate lets a request with a grant pass.
#[inline]
pub(crate) fn admitted(location: TokenLocation) {
    #[cfg(feature = "metrics")]
    meter::admitted(location);
}

/// A gate lets a request without a grant pass.
#[inline]
pub(crate) fn passed(why: Unauthenticated) {
    #[cfg(feature = "metrics")]
    meter::passed(why);
}

/// A limiter has charged a caller, or has not: a part a policy. Parts that would fit beside one that refuses are not charged.
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

/// One policy has decided.
#[inline]
pub(crate) fn decided(policy: &str, verdict: Verdict) {
    #[cfg(feature = "metrics")]
    meter::by_policy(
        policy,
        match verdict {
            Verdict::Admitted => meter::Charged::Admitted,
            Verdict::OverLimit => meter::Charged::OverLimit,
            Verdict::CostAboveBurst => meter::Charged::CostAboveBurst,
            // Nobody has decided.
            Verdict::Unavailable => return,
        },
    );
}

/// A charge was made that left little of a budget.
#[inline]
pub(crate) fn near_limit(policy: &str) {
    #[cfg(feature = "metrics")]
    meter::by_policy(policy, meter::Charged::NearLimit);
}

/// A policy that only watches would have refused.
#[inline]
pub(crate) fn would_reject(policy: &str, grant: Option<&GrantId>) {
    #[cfg(feature = "metrics")]
    meter::by_policy(policy, meter::Charged::DryRun);
    #[cfg(feature = "tracing")]
    events::would_reject(policy, grant);
}

/// So many subjects are remembered by a limiter of this name.
#[inline]
pub(crate) fn buckets(policy: &str, subjects: usize) {
    #[cfg(feature = "metrics")]
    meter::BUCKETS.set(&[("policy", policy)], subjects as f64);
}

/// Measures how long something was waited for. Nothing at all without the feature `metrics`.
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

    /// A look-up that was waited for has ended.
    #[inline]
    pub(crate) fn record_lookup(self, end: LookupOutcome) {
        #[cfg(feature = "metrics")]
        meter::LOOKUP.record(&[("outcome", end.name())], self.since.elapsed());
    }

    /// A call of a script in Redis has ended.
    #[inline]
    pub(crate) fn record_redis_call(self, end: RedisOutcome) {
        #[cfg(feature = "metrics")]
        meter::REDIS_CALL.record(&[("outcome", end.name())], self.since.elapsed());
    }
}

macro_rules! words {
    ($(#[$about:meta])* $words:ident { $($(#[$of:meta])* $word:ident = $name:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum $words { $($(#[$of])* $word,)+ }

        impl $words {
            #[inline]
            fn name(self) -> &'static str {
                match self { $(Self::$word => $name,)+ }
            }
        }
    };
}

words! {
    /// How a look-up ended.
    LookupOutcome {
        Found = "found",
        Unknown = "unknown",
        /// The store failed.
        Failed = "failed",
        /// The store works, and could not check this token.
        FailedForToken = "failed_for_token",
        Deadline = "deadline",
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

words! {
    /// How a call of a script in Redis ended: with an answer, or without.
    RedisOutcome {
        Answered = "answered",
        Failed = "failed",
        Deadline = "deadline",
    }
}

words! {
    /// What a cache knew.
    Cached {
        Hit = "hit",
        /// It remembers that the store does not know the token.
        Unknown = "unknown",
        /// Answered, and asked for anew.
        Stale = "stale",
        Miss = "miss",
    }
}

words! {
    /// What a breaker does.
    Breaker {
        Closed = "closed",
        HalfOpen = "half_open",
        Open = "open",
    }
}

words! {
    /// What became of a change in a database that is followed.
    StoreChange {
        Named = "named",
        Added = "added",
        Everything = "everything",
        /// It waits, or a later one stands for it.
        Merged = "merged",
    }
}

/// A change was reported, or merged.
#[inline]
pub(crate) fn store_changed(what: StoreChange) {
    #[cfg(feature = "metrics")]
    meter::STORE_CHANGES.count(&[("change", what.name())]);
}

/// A cache was asked.
#[inline]
pub(crate) fn cached(what: Cached) {
    #[cfg(feature = "metrics")]
    meter::cached(what);
}

/// A breaker is in another state now. Told under its lock, so that the last one told is the last one: a number, no event.
#[inline]
pub(crate) fn breaker_state(name: &'static str, state: Breaker) {
    #[cfg(feature = "metrics")]
    {
        meter::BREAKER.set(&[("breaker", name)], f64::from(state as u8));
        meter::BREAKER_TRANSITIONS.count(&[("breaker", name), ("to", state.name())]);
    }
}

/// The same for who reads: told when nothing is locked, because whoever hears it may look at the breaker.
#[inline]
pub(crate) fn breaker_changed(name: &'static str, state: Breaker) {
    #[cfg(feature = "tracing")]
    events::breaker_changed(name, state);
}

/// A peer has failed too often, and was refused, or would have been.
#[inline]
pub(crate) fn throttled(is_dry_run: bool) {
    #[cfg(feature = "metrics")]
    meter::throttled(is_dry_run);
}

/// A policy's charge was decided without the Redis server that should have.
#[inline]
pub(crate) fn decided_without_redis(policy: &str) {
    #[cfg(feature = "metrics")]
    meter::by_policy(policy, meter::Charged::RedisLocal);
}

/// A charge or a refund could not be sent to Redis within the queue timeout.
#[inline]
pub(crate) fn queue_timed_out() {
    #[cfg(feature = "metrics")]
    meter::QUEUE_TIMEOUTS.count(&[]);
}
