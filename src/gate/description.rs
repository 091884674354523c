//! [`Description`]: the token locations, rejections and header fields of a gate, for documents (feature `utoipa`).

use std::any::{Any, TypeId};
use std::convert::Infallible;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Response};

use super::copies::Copies;
use super::layer::AuthLayer;
use super::marker::sealed::Sealed;
use super::rate_limit::RateLimitLayer;
use super::settings::{Gate, WallClock};
use super::unlimited::{NoStore, is_unlimited};
use crate::extract::HeadLocations;
use crate::limit::{AnonymousLimits, Limiter, RateLimits, Unlimited};
use crate::quota::Quota;
use crate::quota::decision::{Decision, Verdict};
use crate::quota::policy::{Policy, PolicyName};
use crate::rejection::{Rejection, RejectionKind};
use crate::respond::EmptyBody;
use crate::store::GateStore;

/// The token locations, rejections and header fields of a gate, without type parameters.
#[derive(Clone)]
pub(crate) struct Description {
    /// The token locations in the head of a request, or `None` for a gate without tokens.
    pub(crate) locations: Option<HeadLocations>,
    /// The reasons for rejections of any request. Kinds with the same response are listed once.
    pub(crate) kinds: Vec<RejectionKind>,
    /// Further reasons for rejections of requests whose body may be read.
    pub(crate) body_kinds: Vec<RejectionKind>,
    /// Whether responses to admitted requests have rate limit headers.
    pub(crate) is_limited: bool,
    /// A gate with the settings of responses, and with a fixed clock.
    gate: Gate<NoStore, Unlimited, EmptyBody>,
}

/// The time of all examples, since 1970: 2026-01-01 00:00 UTC.
const EXAMPLE_TIME: Duration = Duration::from_secs(1_767_225_600);

/// The reasons for rejections by the token of a request.
pub(super) const TOKEN_KINDS: &[RejectionKind] =
    &[RejectionKind::InvalidRequest, RejectionKind::Missing, RejectionKind::UnknownToken, RejectionKind::ExpiredToken];

/// The reasons for rejections by the body of a request.
#[cfg(feature = "body")]
pub(super) const BODY_KINDS: &[RejectionKind] =
    &[RejectionKind::BodyUnreadable, RejectionKind::BodyTimeout, RejectionKind::BodyTooLarge];

impl<T: GateStore, L: Limiter, R, B: Sealed> AuthLayer<T, L, R, B> {
    pub(crate) fn description(&self) -> Description {
        let settings = &self.gate.settings;
        let [by_head, by_body] = self.body.credential_kinds();
        let reads_tokens = by_head == TOKEN_KINDS;
        let is_possible = |kind: &&RejectionKind| !(settings.allow_anonymous && **kind == RejectionKind::Missing);
        let mut kinds: Vec<RejectionKind> = by_head.iter().filter(is_possible).copied().collect();
        let mut add_if = |is_possible: bool, kind| kinds.extend(is_possible.then_some(kind));
        add_if(settings.is_secure.is_some(), RejectionKind::HttpsRequired);
        add_if(settings.throttle.is_some(), RejectionKind::TooManyFailures);
        // A lookup without an error never fails, and one without a timeout never waits.
        let never_fails = TypeId::of::<T::Error>() == TypeId::of::<Infallible>() && settings.timeout.is_none();
        add_if(reads_tokens && !never_fails, RejectionKind::StoreUnavailable);
        kinds.extend(limiter_kinds(&*self.gate.limiter));
        let mut gate = self.behind(Unlimited).with_responder(EmptyBody);
        // A document must not depend on the time at which it is made.
        gate.settings.wall_clock = WallClock::Custom(Arc::new(|| SystemTime::UNIX_EPOCH + EXAMPLE_TIME));
        Description {
            locations: reads_tokens.then(|| settings.locations.clone()),
            kinds,
            body_kinds: by_body.to_vec(),
            is_limited: !is_unlimited::<L>(),
            gate,
        }
    }
}

/// Returns the reasons for rejections by a limiter. A limiter of an unknown type may have all of them.
fn limiter_kinds<L: Limiter>(limiter: &L) -> &'static [RejectionKind] {
    const ALL: &[RejectionKind] =
        &[RejectionKind::CostAboveBurst, RejectionKind::OverLimit, RejectionKind::LimiterUnavailable];
    const IN_MEMORY: &[RejectionKind] = &[RejectionKind::CostAboveBurst, RejectionKind::OverLimit];
    const ONE_UNIT: &[RejectionKind] = &[RejectionKind::OverLimit];

    if is_unlimited::<L>() {
        return &[];
    }
    let limiter: &dyn Any = limiter;
    let has_costs = limiter
        .downcast_ref()
        .map(RateLimits::has_costs)
        .or_else(|| limiter.downcast_ref::<AnonymousLimits>().map(|limits| limits.has_costs(|_| false)))
        .or_else(|| {
            let limits = limiter.downcast_ref::<AnonymousLimits<RateLimits>>();
            limits.map(|limits| limits.has_costs(RateLimits::has_costs))
        });
    match has_costs {
        None => ALL,
        Some(true) => IN_MEMORY,
        // Every burst is at least 1.
        Some(false) => ONE_UNIT,
    }
}

impl Description {
    /// Returns whether requests without a credential are admitted.
    pub(crate) fn admits_anonymous(&self) -> bool {
        !self.kinds.contains(&RejectionKind::Missing)
    }

    /// Returns an example of a rejection.
    pub(crate) fn example(kind: RejectionKind) -> Rejection {
        match kind {
            RejectionKind::OverLimit => Rejection::over_limit(example_decision(Verdict::OverLimit)),
            RejectionKind::CostAboveBurst => Rejection::over_limit(example_decision(Verdict::CostAboveBurst)),
            RejectionKind::TooManyFailures => Rejection::too_many_failures(NonZeroU64::MIN),
            other => Rejection::new(other),
        }
    }

    /// Returns the head of the response of this gate to a rejection, by the default responder.
    pub(crate) fn head(&self, rejection: Rejection) -> Response<()> {
        let status = rejection.status();
        // A provisional response is not reported to metrics and events.
        self.gate.reject(rejection.with_provisional(Some(status)))
    }

    /// Returns an example of the header fields that this gate adds to responses to admitted requests.
    pub(crate) fn limit_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(advert) = self.gate.advert(&example_decision(Verdict::Admitted)) {
            advert.write(&mut headers);
        }
        headers
    }
}

/// Returns an example of a decision, with numbers from the documentation.
fn example_decision(verdict: Verdict) -> Decision {
    let policy = Policy::named(&PolicyName::default_name(), Quota::per_minute(180).with_burst(20));
    let remaining = if verdict == Verdict::OverLimit { 0 } else { 19 };
    Decision::new(policy, verdict, remaining, Duration::from_secs(1), Duration::from_secs(1))
}

impl<R> Gate<NoStore, Unlimited, R> {
    fn with_responder<R2>(self, responder: R2) -> Gate<NoStore, Unlimited, R2> {
        let Self { store, limiter, terms, settings, .. } = self;
        Gate { store, limiter, responder: responder.into(), terms, settings, copies: Copies::new() }
    }
}

impl<L: Limiter, R> RateLimitLayer<L, R> {
    /// Returns the reasons for rejections by this layer.
    pub(crate) fn kinds(&self) -> &'static [RejectionKind] {
        limiter_kinds(self.limiter())
    }
}
