//! [`RateLimits`]: rate limits with their buckets in the memory of this process.

mod charge;
mod quotas;
mod usage;

use std::fmt;
#[cfg(feature = "redis")]
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};

use super::all_or_nothing::ChargeLocks;
use super::limit::{GrantQuotas, Limit, PartitionKey};
use super::state::LimitState;
use super::{Clock, LimitError, Time};
use crate::grant::Subject;

/// One or more [`Limit`]s with their buckets in the memory of this process.
///
/// Clones share the buckets. To charge the same buckets from a handler, keep a clone in the handler's state. Examples are a
/// charge for each message of a WebSocket, or for each step of a long job:
///
/// ```
/// use tollgate::{AuthLayer, Authenticated, Charge, Grant, MemoryStore, Quota, RateLimits, TokenDigest};
///
/// let limits = RateLimits::new(Quota::per_minute(180).with_burst(20));
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
/// let gate = AuthLayer::new(tokens).with_rate_limit(limits.clone());
///
/// // `limits` is the handler's state, `caller` is its extractor.
/// fn on_message(limits: &RateLimits, caller: &Authenticated<()>) -> &'static str {
///     match limits.charge(&caller.current(), Charge::Units(1)).is_admitted() {
///         true => "done",
///         false => "slow down",
///     }
/// }
/// # assert_eq!(on_message(&limits, &Authenticated::new(Grant::new("alice", ()))), "done");
/// # let _ = gate;
/// ```
///
/// # Several limits
///
/// A limiter with several limits charges all of them or none:
///
/// ```
/// use tollgate::{Charge, CurrentGrant, Grant, Limit, Quota, RateLimits};
///
/// let limits = RateLimits::new(Quota::per_minute(180).with_burst(20))
///     .and(Limit::new("day", Quota::per_day(5_000))?)?
///     .and(Limit::new("orders", Quota::per_second(3))?.with_cost(|head| u32::from(head.uri.path() == "/orders")))?
///     .and(Limit::new("everybody", Quota::per_second(1_000))?.shared_by_all())?;
///
/// let alice = CurrentGrant::new(Grant::new("alice", ()));
/// let rejected = limits.charge(&alice, Charge::Units(4));
/// assert_eq!(rejected.violated().map(|policy| policy.name()).collect::<Vec<_>>(), ["orders"]);
/// assert_eq!(limits.peek(&alice).parts().map(|part| part.remaining()).collect::<Vec<_>>(), [20, 5_000, 3, 1_000]);
/// # Ok::<_, tollgate::LimitError>(())
/// ```
///
/// Which limit follows the quota of a grant is described at [`Limit`](Limit#grants-quotas).
#[derive(Clone)]
pub struct RateLimits {
    first: LimitState,
    /// All limits, including the first, if there are several.
    several: Option<Arc<Vec<LimitState>>>,
    /// Created with the second limit. Clones from before share them.
    locks: Arc<OnceLock<ChargeLocks>>,
    /// Every clone holds a reference, see [`with_clock`](Self::with_clock).
    pub(super) time: Arc<Time>,
    /// Whether charges can be refunded.
    has_refunds: bool,
}

impl RateLimits {
    /// Creates a limiter with one limit. A [`Quota`](crate::Quota) becomes a limit with the name `default`.
    ///
    /// In a gate, the [quota of a grant](crate::Grant::with_quota) replaces the quota of the limit `default`. On a
    /// [route](crate::AuthLayer::route_rate_limit) it does not, see [`Limit`](Limit#grants-quotas).
    ///
    /// ```
    /// use tollgate::{Limit, Quota, RateLimits};
    ///
    /// let plans = RateLimits::new(Quota::per_minute(180).with_burst(20));
    /// let orders = RateLimits::new(Limit::new("orders", Quota::per_second(3))?);
    /// # let _ = (plans, orders);
    /// # Ok::<_, tollgate::LimitError>(())
    /// ```
    #[must_use]
    pub fn new(limit: impl Into<Limit>) -> Self {
        let first = LimitState::new(limit.into());
        let has_refunds = first.limit().refund_if.is_some();
        Self { first, several: None, locks: Arc::default(), time: Arc::new(Time::counter()), has_refunds }
    }

    /// Adds a limit. A charge that one of the limits rejects costs nothing in the others, also under concurrent requests.
    ///
    /// # Errors
    ///
    /// Returns an error if another limit has the same name, or if both this limit and another one have
    /// [`with_grant_quotas`](Limit::with_grant_quotas).
    pub fn and(self, mut limit: Limit) -> Result<Self, LimitError> {
        let mut limits = self.states().to_vec();
        if limits.iter().any(|other| other.limit().name == limit.name) {
            return Err(LimitError::NameTaken);
        }
        let follows = |state: &LimitState| state.limit().grant_quotas;
        match limit.grant_quotas {
            GrantQuotas::Followed if limits.iter().any(|other| follows(other) == GrantQuotas::Followed) => {
                return Err(LimitError::GrantQuotas);
            }
            GrantQuotas::Followed => {
                limits = limits.into_iter().map(|state| state.changed(Limit::unfollow)).collect();
            }
            GrantQuotas::FollowedByDefault if limits.iter().any(|other| other.limit().follows_grants()) => {
                limit.grant_quotas = GrantQuotas::Ignored;
            }
            GrantQuotas::FollowedByDefault | GrantQuotas::Unfollowed | GrantQuotas::Ignored => {}
        }
        limit.partition_key.clone_from(&self.first.limit().partition_key);
        let has_refunds = self.has_refunds || limit.refund_if.is_some();
        limits.push(LimitState::new(limit));
        self.locks.get_or_init(ChargeLocks::new);
        Ok(Self { several: Some(Arc::new(limits)), has_refunds, ..self })
    }

    /// Returns the limiter of one of several nodes, which divide the quotas of grants. All buckets are full. Before each charge, call
    /// [`follow`](Self::follow), which divides the other quotas.
    #[cfg(feature = "redis")]
    pub(crate) fn with_nodes(&self, nodes: NonZeroU32) -> Self {
        self.clone().with_full_buckets(|limit| limit.with_nodes(nodes))
    }

    /// Returns the limits in the order in which they were added.
    pub(in crate::limit) fn states(&self) -> &[LimitState] {
        match &self.several {
            None => std::slice::from_ref(&self.first),
            Some(limits) => limits,
        }
    }

    /// Returns whether a request may cost more than one unit.
    #[cfg(feature = "utoipa")]
    pub(crate) fn has_costs(&self) -> bool {
        self.states().iter().any(|state| state.limit().cost.is_some())
    }

    /// Changes a setting of all limits. The buckets are kept.
    fn change_all(mut self, change: impl Fn(&mut Limit)) -> Self {
        let changed = |state: &LimitState| state.clone().changed(&change);
        self.several = self.several.map(|limits| Arc::new(limits.iter().map(changed).collect()));
        self.first = changed(&self.first);
        self
    }

    /// Changes all limits. All buckets are new and full.
    fn with_full_buckets(self, change: impl Fn(&Limit) -> Limit) -> Self {
        let new = |state: &LimitState| LimitState::new(change(&state.current()));
        let several = self.several.as_ref().map(|limits| Arc::new(limits.iter().map(new).collect()));
        Self { first: new(&self.first), several, ..self }
    }

    /// Sets the clock. Default: the monotonic clock of the system. All buckets are full afterwards.
    ///
    /// Call this method before the limiter is cloned.
    ///
    /// # Panics
    ///
    /// Panics if a clone exists, or a decision of this limiter that can still be refunded. Both would keep the old clock and
    /// the old buckets, so the limiter would admit each caller twice.
    #[must_use]
    #[track_caller]
    pub fn with_clock(self, clock: impl Clock) -> Self {
        assert!(
            Arc::strong_count(&self.time) == 1,
            "`RateLimits::with_clock` must be called before the limiter is cloned"
        );
        Self { time: Arc::new(Time::Given(Arc::new(clock))), ..self.with_full_buckets(Limit::clone) }
    }

    /// Sets the clock to that of another limiter.
    #[cfg(feature = "redis")]
    pub(in crate::limit) fn with_time(self, time: &Arc<Time>) -> Self {
        Self { time: Arc::clone(time), ..self }
    }

    /// Makes charges [refundable](crate::Decision::refund) by handlers. Each charge then makes a few allocations. Default: refunds do
    /// nothing. To refund by the status of the response, use [`Limit::with_refund_if`].
    ///
    /// A refund returns the part of the charge that the bucket has not regained yet. The subject never has more units than
    /// without the charge. A refund is smaller if a later charge was refunded before. After a change of plan, it is 0.
    /// One exception: after a change to another plan and back, it may be the whole charge, even if the bucket has regained it
    /// under the other plan.
    ///
    /// ```
    /// use tollgate::{Authenticated, Quota, RateLimits};
    ///
    /// let limits = RateLimits::new(Quota::per_minute(60)).with_refunds();
    ///
    /// // A handler behind a gate with these limits.
    /// async fn quote(caller: Authenticated<()>) -> Result<String, &'static str> {
    ///     match ask_the_exchange().await {
    ///         Some(quote) => Ok(quote),
    ///         None => {
    ///             caller.refund().await;
    ///             Err("the exchange does not answer")
    ///         }
    ///     }
    /// }
    /// # async fn ask_the_exchange() -> Option<String> { None }
    /// # let _ = (limits, quote);
    /// ```
    #[must_use]
    pub fn with_refunds(self) -> Self {
        Self { has_refunds: true, ..self }
    }

    /// Sets the partition key of each subject's buckets, which clients see in the `pk` parameter of draft-11. Default: none.
    ///
    /// The key must not contain sensitive data, because clients and every log on the way see it. Use a keyed hash (HMAC) of
    /// the subject.
    #[must_use]
    pub fn with_partition_key(self, key: impl Fn(&Subject) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let key: Arc<PartitionKey> = Arc::new(key);
        self.change_all(|limit| limit.partition_key = Some(Arc::clone(&key)))
    }
}

impl fmt::Debug for RateLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = self.states().iter().map(LimitState::current);
        f.debug_struct("RateLimits")
            .field("limits", &limits.collect::<Vec<_>>())
            .field("time", &self.time)
            .finish_non_exhaustive()
    }
}
