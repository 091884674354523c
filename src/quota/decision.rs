//! [`Decision`]: the result of one charge.

use std::slice;
use std::time::Duration;

use http::StatusCode;

use super::clock::secs_up;
use super::policy::Policy;
use super::refund::{Refund, RefundIf};
pub use super::verdict::Verdict;

/// The result of one charge by a [`Limiter`](crate::Limiter).
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
/// With several policies, the methods return the values of the most restrictive policy. That is the one with the longest time
/// to wait, or else the fewest remaining units, or else the one whose next unit comes last. [`parts`](Self::parts) returns the
/// decisions of all policies.
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
    /// Boxed, because these fields are rare and every request moves its decision.
    rest: Option<Box<Rest>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rest {
    partition_key: Option<Box<[u8]>>,
    parts: Vec<Decision>,
    refund: Option<Refund>,
    /// The statuses for which the charge is refunded, and the charged nanoseconds.
    refund_if: Option<(RefundIf, u64)>,
}

impl Decision {
    /// Creates a decision of a custom limiter.
    ///
    /// - `remaining` is the number of units that are available immediately.
    /// - `more_in` is the time until one more unit is available. After a rejection, it is the time until the same charge
    ///   fits.
    /// - `full_in` is the time until the bucket is full.
    #[must_use]
    pub fn new(policy: Policy, verdict: Verdict, remaining: u32, more_in: Duration, full_in: Duration) -> Self {
        let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        // Headers must not advertise more units than the quota (draft-ietf-httpapi-ratelimit-headers-11).
        let remaining = remaining.min(policy.quota().burst());
        Self::from_ns(policy, verdict, remaining, ns(more_in), ns(full_in))
    }

    #[inline]
    pub(crate) fn from_ns(policy: Policy, verdict: Verdict, remaining: u32, more_in_ns: u64, full_in_ns: u64) -> Self {
        Self { policy: Some(policy), verdict, remaining, more_in_ns, full_in_ns, ..Self::unlimited() }
    }

    /// Creates the decision of a charge that fits or never fits. The bucket is full after `full_in_ns`.
    #[inline]
    pub(crate) fn without_wait(policy: Policy, verdict: Verdict, full_in_ns: u64) -> Self {
        let quota = policy.quota();
        // A partially regained unit counts as used. After a change of plan, more units than the burst can be used.
        let used = full_in_ns.div_ceil(quota.interval_ns()).min(quota.burst().into());
        let remaining = quota.burst() - used as u32;
        let more_in_ns = full_in_ns.saturating_sub(used.saturating_sub(1) * quota.interval_ns());
        Self::from_ns(policy, verdict, remaining, more_in_ns, full_in_ns)
    }

    /// Creates a decision that admits without a limit. Such a decision adds no headers.
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

    /// Creates a decision of a limiter that is unavailable. The response has status 503.
    ///
    /// `retry_after` is the time after which the limiter may be available again. Such a decision adds no `RateLimit` headers.
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

    /// Returns [`unavailable`](Self::unavailable) for one policy of a limiter.
    #[cfg(feature = "redis")]
    pub(crate) fn unavailable_for(policy: Policy, retry_after: Duration) -> Self {
        Self { policy: Some(policy), ..Self::unavailable(retry_after) }
    }

    /// Combines the decisions of several policies. The limiter must have charged all of them or none.
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
        // Unlimited decisions do not affect the result.
        parts.retain(|part| part.policy.is_some() || part.verdict == Verdict::Unavailable);
        if parts.len() < 2 {
            return parts.pop().unwrap_or_else(Self::unlimited);
        }
        // The first of several parts that are equally restrictive.
        let most_restrictive = parts.iter().rev().max_by_key(|part| part.restrictiveness()).cloned();
        let is_near_limit = parts.iter().any(|part| part.is_near_limit);
        let is_local = parts.iter().any(|part| part.is_local);
        let rest = Some(Box::new(Rest { parts, ..Rest::default() }));
        Self { is_near_limit, is_local, rest, ..most_restrictive.unwrap_or_else(Self::unlimited) }
    }

    /// Returns a key that orders decisions, the most restrictive last: of several with nothing left the slowest.
    fn restrictiveness(&self) -> (u8, u32, u64) {
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

    /// Sets the partition key, which identifies the bucket in the `pk` parameter of draft-11.
    ///
    /// Never derive the key from a token or an unkeyed hash of a token. Use a keyed hash of the subject.
    #[must_use]
    pub fn with_partition_key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.rest_mut().partition_key = Some(key.into().into());
        self
    }

    /// Adds a refund of the charge.
    #[must_use]
    pub fn with_refund(mut self, refund: Refund) -> Self {
        self.rest_mut().refund = Some(refund);
        self
    }

    /// Adds the statuses for which the gate refunds the charge. `charged_ns` is the time in which the charge is regained.
    pub(crate) fn with_refund_if(mut self, refund_if: RefundIf, charged_ns: u64) -> Self {
        self.rest_mut().refund_if = Some((refund_if, charged_ns));
        self
    }

    /// Marks the decision as a dry run. The request is admitted whatever the verdict, and headers do not advertise the policy.
    #[must_use]
    pub fn with_dry_run(self) -> Self {
        Self { is_dry_run: true, ..self }
    }

    /// Marks the decision as near the limit, see [`Limit::with_near_limit`](crate::Limit::with_near_limit).
    #[must_use]
    pub fn with_near_limit(self) -> Self {
        Self { is_near_limit: true, ..self }
    }

    /// Marks the decision as local, see [`is_local`](Self::is_local).
    #[must_use]
    pub fn with_local(self) -> Self {
        Self { is_local: true, ..self }
    }

    /// Returns whether the request is admitted: the units were charged, or the policy is a dry run.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.verdict == Verdict::Admitted || self.is_dry_run
    }

    /// Returns whether all policies of this decision are dry runs.
    #[must_use]
    pub fn is_dry_run(&self) -> bool {
        self.is_dry_run
    }

    /// Returns whether the request is admitted only because a policy is a dry run.
    #[must_use]
    pub fn would_be_rejected(&self) -> bool {
        self.is_admitted() && self.parts().any(|part| part.is_dry_run && part.verdict != Verdict::Admitted)
    }

    /// Returns whether the used part of a burst has reached the percentage of
    /// [`Limit::with_near_limit`](crate::Limit::with_near_limit).
    #[must_use]
    pub fn is_near_limit(&self) -> bool {
        self.is_near_limit
    }

    /// Returns whether this server decided alone because the shared state was unavailable. Only limiters with shared state,
    /// such as Redis, make local decisions.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.is_local
    }

    /// Returns the decisions of all policies. With a single policy, this is the decision itself.
    pub fn parts(&self) -> impl Iterator<Item = &Self> {
        match self.rest.as_deref() {
            Some(rest) if self.is_of_several() => rest.parts.iter(),
            _ => slice::from_ref(self).iter(),
        }
    }

    #[inline]
    pub(crate) fn is_of_several(&self) -> bool {
        self.rest.as_deref().is_some_and(|rest| !rest.parts.is_empty())
    }

    /// Returns the policies that rejected the charge, without dry runs.
    pub fn violated(&self) -> impl Iterator<Item = &Policy> {
        self.parts().filter(|part| !part.is_admitted()).filter_map(|part| part.policy())
    }

    /// Refunds the charge, at most once. The limiter must [support refunds](crate::RateLimits::with_refunds).
    ///
    /// Refunds of limits in memory complete at the first poll.
    pub async fn refund(&self) {
        let own = self.rest.iter().filter_map(|rest| rest.refund.as_ref());
        let of_parts =
            self.rest.iter().flat_map(|rest| &rest.parts).filter_map(|part| part.rest.as_ref()?.refund.as_ref());
        Refund::give_back_all(own.chain(of_parts).cloned()).await;
    }

    /// Returns whether the status of the response may decide whether the request counts.
    #[inline]
    pub(crate) fn may_be_refundable(&self) -> bool {
        self.rest.is_some()
    }

    /// Returns a copy if the status of the response decides whether the request counts.
    #[cold]
    pub(crate) fn refundable(&self) -> Option<Self> {
        self.parts().any(|part| part.refund_if().is_some()).then(|| self.clone())
    }

    fn refund_if(&self) -> Option<&(RefundIf, u64)> {
        self.rest.as_ref()?.refund_if.as_ref()
    }

    /// Returns the refunds for a response with this status, and the decision as it would be without the refunded charges. Returns
    /// `None` if nothing is refunded.
    #[cold]
    pub(crate) fn refunded(&self, status: StatusCode) -> Option<(Vec<Refund>, Self)> {
        let mut refunds = Vec::new();
        let refunded = |part: &Self| match (part.refund_if(), &part.rest, &part.policy) {
            (Some((refund_if, charged_ns)), Some(rest), Some(policy)) if refund_if.includes(status) => {
                refunds.extend(rest.refund.clone());
                let full_in_ns = part.full_in_ns.saturating_sub(*charged_ns);
                let Self { remaining, more_in_ns, .. } = Self::without_wait(policy.clone(), part.verdict, full_in_ns);
                Self { remaining, more_in_ns, full_in_ns, ..part.clone() }
            }
            _ => part.clone(),
        };
        let parts: Vec<_> = self.parts().map(refunded).collect();
        (!refunds.is_empty()).then(|| (refunds, Self::all_of(parts)))
    }

    /// Returns the outcome of the charge.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Returns the policy of this decision, or `None` if there is no limit or the limiter was unavailable.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    /// Returns the number of units that are available immediately. After [`Verdict::OverLimit`], this is 0.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// Returns the time to wait before a retry, or `None` after [`Verdict::Admitted`] and [`Verdict::CostAboveBurst`].
    ///
    /// - After [`Verdict::OverLimit`], this is the exact time until the same charge fits, if no other request charges the
    ///   bucket meanwhile.
    /// - After [`Verdict::Unavailable`], the limiter may be available again after this time.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.has_to_wait().then_some(Duration::from_nanos(self.more_in_ns))
    }

    fn has_to_wait(&self) -> bool {
        matches!(self.verdict, Verdict::OverLimit | Verdict::Unavailable)
    }

    /// Returns the time until one more unit is available. After [`Verdict::OverLimit`], this is the time until the same charge
    /// fits.
    #[must_use]
    pub fn more_in(&self) -> Duration {
        Duration::from_nanos(self.more_in_ns)
    }

    /// Returns the time until the bucket is full.
    #[must_use]
    pub fn full_in(&self) -> Duration {
        Duration::from_nanos(self.full_in_ns)
    }

    pub(crate) fn partition_key(&self) -> Option<&[u8]> {
        self.rest.as_ref()?.partition_key.as_deref()
    }

    /// Returns [`retry_after`](Self::retry_after) in whole seconds, for the header field `Retry-After`.
    ///
    /// The value is rounded up and never 0. A retry after this time fits, if no other request charges the bucket meanwhile.
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
