//! [`Decision`]: what a limiter decided about one charge.

use std::slice;
use std::time::Duration;

use super::policy::Policy;
use super::refund::Refund;

/// What a [`Limiter`](crate::Limiter) decided about one charge.
///
/// ```
/// use tollgate::limit::{Charge, RateLimits};
/// use tollgate::{CurrentGrant, Grant, Quota};
///
/// let limits = RateLimits::new(Quota::per_minute(180).with_burst(2));
/// let alice = CurrentGrant::new(Grant::new("alice", ()));
///
/// let first = limits.charge(&alice, Charge::Units(1));
/// assert!(first.is_admitted());
/// assert_eq!(first.remaining(), 1);
///
/// let too_much = limits.charge(&alice, Charge::Units(2));
/// assert!(!too_much.is_admitted());
/// assert!(too_much.retry_after().is_some());
/// ```
///
/// A decision of several policies says what the one says that is hardest to meet: what was refused for the longest time, or
/// else what leaves least, and of several that leave as much the one whose next unit comes last. [`parts`](Self::parts) has them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    policy: Option<Policy>,
    verdict: Verdict,
    is_dry_run: bool,
    is_near_limit: bool,
    is_local: bool,
    remaining: u32,
    more_in_ns: u64,
    full_in_ns: u64,
    /// Boxed: little of it is usual, and this is moved with every decision.
    rest: Option<Box<Rest>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rest {
    partition_key: Option<Box<[u8]>>,
    parts: Vec<Decision>,
    refund: Option<Refund>,
}

/// The ways in which a charge can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The charge was made. (Of one policy of several: it would fit. It is made if all fit.)
    Admitted,
    /// Nothing was charged; the same charge fits later.
    OverLimit,
    /// Nothing was charged; the charge is larger than the burst and can never fit.
    CostAboveBurst,
    /// Nothing was charged; the limiter could not tell whether the charge fits.
    Unavailable,
}

impl Decision {
    /// A decision by a limiter of your own.
    ///
    /// `remaining` is what may still be spent at once; `more_in` the time until one unit more is there, or, after a
    /// refusal, until the same charge fits; `full_in` the time until the bucket is full.
    #[must_use]
    pub fn new(policy: Policy, verdict: Verdict, remaining: u32, more_in: Duration, full_in: Duration) -> Self {
        let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        // A client must not be told more than the policy can give (draft-ietf-httpapi-ratelimit-headers-10).
        let remaining = remaining.min(policy.quota().burst());
        Self::from_ns(policy, verdict, remaining, ns(more_in), ns(full_in))
    }

    pub(crate) fn from_ns(policy: Policy, verdict: Verdict, remaining: u32, more_in_ns: u64, full_in_ns: u64) -> Self {
        Self { policy: Some(policy), verdict, remaining, more_in_ns, full_in_ns, ..Self::unlimited() }
    }

    /// Admitted without any limit; such a decision writes no headers.
    #[must_use]
    pub fn unlimited() -> Self {
        Self {
            policy: None,
            verdict: Verdict::Admitted,
            is_dry_run: false,
            is_near_limit: false,
            is_local: false,
            remaining: u32::MAX,
            more_in_ns: 0,
            full_in_ns: 0,
            rest: None,
        }
    }

    /// Not admitted, because the limiter could not tell: 503. `retry_after` is when it may know again. Such a decision writes
    /// no `RateLimit` headers.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::{Decision, RejectionKind};
    ///
    /// let rejection = Decision::unavailable(Duration::from_millis(1_500)).into_result().unwrap_err();
    /// assert_eq!(rejection.kind(), RejectionKind::LimiterUnavailable);
    /// assert_eq!(rejection.retry_after_secs(), Some(2));
    /// ```
    #[must_use]
    pub fn unavailable(retry_after: Duration) -> Self {
        let more_in_ns = u64::try_from(retry_after.as_nanos()).unwrap_or(u64::MAX);
        Self { verdict: Verdict::Unavailable, remaining: 0, more_in_ns, ..Self::unlimited() }
    }

    /// [`unavailable`](Self::unavailable) for one policy of a limiter.
    #[cfg(feature = "redis")]
    pub(crate) fn unavailable_for(policy: Policy, retry_after: Duration) -> Self {
        Self { policy: Some(policy), ..Self::unavailable(retry_after) }
    }

    /// One decision of several policies, which charged all of them or none.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::{Decision, Policy, Quota, Verdict};
    ///
    /// let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
    /// let plan = Policy::new("plan", Quota::per_minute(1))?;
    /// let orders = Policy::new("orders", Quota::per_second(3))?;
    /// let decision = Decision::all_of([
    ///     Decision::new(plan, Verdict::OverLimit, 0, minute, minute),
    ///     Decision::new(orders, Verdict::Admitted, 3, Duration::ZERO, Duration::ZERO),
    /// ]);
    /// assert!(!decision.is_admitted());
    /// assert_eq!(decision.retry_after(), Some(minute));
    /// assert_eq!(decision.parts().count(), 2);
    /// assert_eq!(decision.violated().map(Policy::name).collect::<Vec<_>>(), ["plan"]);
    /// # Ok::<_, tollgate::PolicyNameError>(())
    /// ```
    #[must_use]
    pub fn all_of(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut parts: Vec<_> = parts.into_iter().flat_map(Self::into_parts).collect();
        // What has no policy and no limit says nothing.
        parts.retain(|part| part.policy.is_some() || part.verdict == Verdict::Unavailable);
        if parts.len() < 2 {
            return parts.pop().unwrap_or_else(Self::unlimited);
        }
        let hardest = parts.iter().rev().max_by_key(|part| part.hardness()).cloned();
        let is_near_limit = parts.iter().any(|part| part.is_near_limit);
        let is_local = parts.iter().any(|part| part.is_local);
        let rest = Some(Box::new(Rest { parts, ..Rest::default() }));
        Self { is_near_limit, is_local, rest, ..hardest.unwrap_or_else(Self::unlimited) }
    }

    /// What has to be met last comes last: of several with nothing left the slowest. Reverse them for the first one of equals.
    fn hardness(&self) -> (u8, u32, u64) {
        match self.verdict {
            _ if self.is_dry_run => (0, 0, 0),
            Verdict::Admitted => (1, u32::MAX - self.remaining, self.more_in_ns),
            Verdict::OverLimit => (2, 0, self.more_in_ns),
            Verdict::Unavailable => (3, 0, self.more_in_ns),
            Verdict::CostAboveBurst => (4, 0, 0),
        }
    }

    fn into_parts(mut self) -> Vec<Self> {
        match self.rest.as_deref_mut() {
            Some(rest) if !rest.parts.is_empty() => {
                let mut parts = std::mem::take(&mut rest.parts);
                if let (Some(first), Some(refund)) = (parts.first_mut(), rest.refund.take()) {
                    first.rest_mut().refund.get_or_insert(refund);
                }
                parts
            }
            _ => vec![self],
        }
    }

    fn rest_mut(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }

    /// The same with a partition key, which names the budget to the client in the `pk` parameter of draft-10.
    ///
    /// Never make it of a token or the plain hash of one: a keyed hash of the subject is right.
    #[must_use]
    pub fn with_partition_key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.rest_mut().partition_key = Some(key.into().into());
        self
    }

    /// The same, and the charge can be given back.
    #[must_use]
    pub fn with_refund(mut self, refund: Refund) -> Self {
        self.rest_mut().refund = Some(refund);
        self
    }

    /// The same by a policy on trial: the caller may go on whatever the verdict, and is told nothing.
    #[must_use]
    pub fn with_dry_run(self) -> Self {
        Self { is_dry_run: true, ..self }
    }

    /// The same, and not much is left, see [`RateLimits::with_near_limit`](crate::RateLimits::with_near_limit).
    #[must_use]
    pub fn with_near_limit(self) -> Self {
        Self { is_near_limit: true, ..self }
    }

    /// The same, made by one server for itself because what all share could not be asked: [`is_local`](Self::is_local).
    #[must_use]
    pub fn with_local(self) -> Self {
        Self { is_local: true, ..self }
    }

    /// Whether the caller may go on: the charge was made, or the policy is on trial.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.verdict == Verdict::Admitted || self.is_dry_run
    }

    /// Whether all policies that decided are on trial ("dry run").
    #[must_use]
    pub fn is_dry_run(&self) -> bool {
        self.is_dry_run
    }

    /// Whether the caller goes on only because a policy is on trial.
    #[must_use]
    pub fn would_be_refused(&self) -> bool {
        self.is_admitted() && self.parts().any(|part| part.is_dry_run && part.verdict != Verdict::Admitted)
    }

    /// Whether of a policy's burst so much is used as [`RateLimits::with_near_limit`](crate::RateLimits::with_near_limit) names, or
    /// more.
    #[must_use]
    pub fn is_near_limit(&self) -> bool {
        self.is_near_limit
    }

    /// Whether one server decided for itself, because what all share could not be asked. Only limiters that share budgets make
    /// such decisions.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.is_local
    }

    /// The decisions of all policies that were asked; the decision itself if that is one.
    pub fn parts(&self) -> impl Iterator<Item = &Self> {
        match self.rest.as_deref() {
            Some(rest) if self.is_of_several() => rest.parts.iter(),
            _ => slice::from_ref(self).iter(),
        }
    }

    pub(crate) fn is_of_several(&self) -> bool {
        self.rest.as_deref().is_some_and(|rest| !rest.parts.is_empty())
    }

    /// The policies that refused, those on trial left out.
    pub fn violated(&self) -> impl Iterator<Item = &Policy> {
        self.parts().filter(|part| !part.is_admitted()).filter_map(|part| part.policy())
    }

    /// Gives the charge back, once, if the limiter [was told](crate::RateLimits::with_refunds) that this may be wanted.
    /// Budgets in memory do so at the first poll.
    pub async fn refund(&self) {
        let own = self.rest.iter().filter_map(|rest| rest.refund.as_ref());
        let of_parts =
            self.rest.iter().flat_map(|rest| &rest.parts).filter_map(|part| part.rest.as_ref()?.refund.as_ref());
        let all: Vec<Refund> = own.chain(of_parts).cloned().collect();
        for refund in all {
            refund.give_back().await;
        }
    }

    /// How the charge ended.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The policy that decided; `None` if there is no limit, or nobody could tell.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    /// How much may still be spent at once; 0 after [`Verdict::OverLimit`].
    #[must_use]
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// After [`Verdict::OverLimit`], the exact time after which the same charge fits, if nobody else spends meanwhile; after
    /// [`Verdict::Unavailable`], a time after which the limiter may know.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.has_to_wait().then_some(Duration::from_nanos(self.more_in_ns))
    }

    fn has_to_wait(&self) -> bool {
        matches!(self.verdict, Verdict::OverLimit | Verdict::Unavailable)
    }

    /// The time until one unit more may be spent; after [`Verdict::OverLimit`], until the same charge fits.
    #[must_use]
    pub fn more_in(&self) -> Duration {
        Duration::from_nanos(self.more_in_ns)
    }

    /// The time until the whole burst may be spent again.
    #[must_use]
    pub fn full_in(&self) -> Duration {
        Duration::from_nanos(self.full_in_ns)
    }

    pub(crate) fn partition_key(&self) -> Option<&[u8]> {
        self.rest.as_ref()?.partition_key.as_deref()
    }

    /// [`retry_after`](Self::retry_after) in whole seconds, as the header field of that name has it: rounded up and never
    /// 0, so that who waits it out alone is admitted.
    #[must_use]
    pub fn retry_after_secs(&self) -> Option<u64> {
        self.has_to_wait().then(|| secs_up(self.more_in_ns).max(1))
    }

    pub(crate) fn more_in_s(&self) -> u64 {
        secs_up(self.more_in_ns)
    }

    /// The nanoseconds of `reset`, see [`RateLimitHeaders`](crate::RateLimitHeaders#reset). After a rejection never 0.
    pub(crate) fn reset_in_ns(&self) -> u64 {
        match self.remaining {
            _ if self.has_to_wait() => self.more_in_ns.max(1),
            0 => self.more_in_ns,
            _ => self.full_in_ns,
        }
    }

    pub(crate) fn full_in_ns(&self) -> u64 {
        self.full_in_ns
    }
}

/// Nanoseconds as whole seconds, rounded up.
pub(crate) const fn secs_up(ns: u64) -> u64 {
    ns.div_ceil(1_000_000_000)
}

/// The decisions that one request met on its way, outermost first. The usual one needs no allocation, and what is not
/// usual little room: every admitted request moves this some times.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decisions {
    first: Option<Decision>,
    #[expect(clippy::box_collection, reason = "8 bytes instead of 24 where it is empty")]
    more: Option<Box<Vec<Decision>>>,
}

impl Decisions {
    pub(crate) fn push(&mut self, decision: Decision) {
        match self.first {
            None => self.first = Some(decision),
            Some(_) => self.more.get_or_insert_default().push(decision),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Decision> {
        self.first.iter().chain(self.more.iter().flat_map(|more| more.iter()))
    }

    pub(crate) async fn refund(&self) {
        for decision in self.iter() {
            decision.refund().await;
        }
    }
}
