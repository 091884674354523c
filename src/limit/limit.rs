//! [`Limit`]: the settings of one rate limit.

use std::fmt;
use std::mem;
use std::num::NonZeroU32;
use std::sync::Arc;

use http::StatusCode;

use super::{Charge, LimitError};
use crate::caller::CurrentGrant;
use crate::grant::Subject;
use crate::quota::Quota;
use crate::quota::decision::Decision;
use crate::quota::policy::PolicyName;
use crate::quota::refund::{Refund, RefundIf};
use crate::request_head::RequestHead;

pub(super) type PartitionKey = dyn Fn(&Subject) -> Vec<u8> + Send + Sync;
type Cost = dyn Fn(&RequestHead<'_>) -> u32 + Send + Sync;

/// One rate limit of a [`RateLimits`](super::RateLimits): a name, a quota, and the settings of this limit.
///
/// A [`Quota`] converts into a limit with the name `default`.
///
/// ```
/// use tollgate::{Limit, Quota, RateLimits};
///
/// let limits = RateLimits::new(Quota::per_minute(180).with_burst(20)).and(
///     Limit::new("orders", Quota::per_second(3))?
///         .with_cost(|head| u32::from(head.uri.path() == "/orders"))
///         .with_near_limit(80)?,
/// )?;
/// # let _ = limits;
/// # Ok::<_, tollgate::LimitError>(())
/// ```
///
/// # Grants' quotas
///
/// The [quota of a grant](crate::Grant::with_quota), such as a customer's plan, replaces the quota of at most one limit:
///
/// | limit | in a gate or called by a handler | on a route ([`route_rate_limit`](crate::AuthLayer::route_rate_limit)) |
/// |---|---|---|
/// | converted from a [`Quota`] | quota of the grant, unless another limit has `with_grant_quotas` | own quota |
/// | created by [`new`](Self::new) | own quota | own quota |
/// | with [`with_grant_quotas`](Self::with_grant_quotas) | quota of the grant | quota of the grant |
/// | [shared by all](Self::shared_by_all), and the bucket of anonymous callers | own quota | own quota |
///
/// Clones of a limiter share the buckets, on routes too. One case is different: under a limit converted from a `Quota`, a grant with
/// its own quota has one bucket on routes and another one elsewhere.
#[derive(Clone)]
pub struct Limit {
    pub(crate) name: PolicyName,
    pub(crate) quota: Quota,
    pub(crate) scope: Scope,
    pub(super) cost: Option<Arc<Cost>>,
    /// The quota that all anonymous callers share, if they are limited.
    pub(crate) anonymous: Option<Quota>,
    pub(crate) is_dry_run: bool,
    near_percent: Option<u8>,
    pub(super) refund_if: Option<RefundIf>,
    /// Set by [`RateLimits::with_partition_key`](super::RateLimits::with_partition_key) for all limits.
    pub(super) partition_key: Option<Arc<PartitionKey>>,
    pub(super) grant_quotas: GrantQuotas,
    /// The number of nodes among which each quota is divided.
    nodes: NonZeroU32,
}

/// The callers that share a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Subject,
    All,
}

/// Whether the quota of a grant replaces that of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrantQuotas {
    Ignored,
    /// The default on a route, or beside a limit that follows the grants. Clones elsewhere may follow them, so a grant with its
    /// own quota has one bucket here and one there. In one bucket, a larger quota would refill what the smaller one has used.
    Unfollowed,
    /// The default, in a gate or a handler.
    FollowedByDefault,
    /// Everywhere, set by [`Limit::with_grant_quotas`].
    Followed,
}

impl Limit {
    /// Creates a limit with a name, which clients see in the `RateLimit` headers.
    ///
    /// Each subject has its own bucket. Grants' quotas do not replace this quota unless
    /// [`with_grant_quotas`](Self::with_grant_quotas) is set.
    ///
    /// ```
    /// use tollgate::{Limit, LimitError, Quota, RateLimits};
    ///
    /// let orders = RateLimits::new(Limit::new("orders", Quota::per_second(3))?);
    /// assert_eq!(Limit::new("anonymous", Quota::per_second(3)).unwrap_err(), LimitError::NameTaken);
    /// # let _ = orders;
    /// # Ok::<_, LimitError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if the name is not 1 to 64 characters of printable ASCII, or if the name is `anonymous`.
    pub fn new(name: &str, quota: Quota) -> Result<Self, LimitError> {
        let name = PolicyName::new(name)?;
        match name == PolicyName::anonymous() {
            true => Err(LimitError::NameTaken),
            false => Ok(Self::named(name, quota)),
        }
    }

    fn named(name: PolicyName, quota: Quota) -> Self {
        Self {
            name,
            quota,
            scope: Scope::Subject,
            cost: None,
            anonymous: None,
            is_dry_run: false,
            near_percent: None,
            refund_if: None,
            partition_key: None,
            grant_quotas: GrantQuotas::Ignored,
            nodes: NonZeroU32::MIN,
        }
    }

    /// Sets the cost of a request in units, from the request head. Default: 1. A cost of 0 charges nothing.
    ///
    /// A request whose cost is above the burst can never pass. The response has status 400.
    #[must_use]
    pub fn with_cost(self, cost: impl Fn(&RequestHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        Self { cost: Some(Arc::new(cost)), ..self }
    }

    /// Makes all callers share one bucket, which limits the load on the service as a whole.
    ///
    /// Anonymous callers and CORS preflights are charged to this bucket too. Grants' quotas do not replace its quota.
    #[must_use]
    pub fn shared_by_all(self) -> Self {
        Self { scope: Scope::All, ..self }
    }

    /// Limits anonymous callers and CORS preflights, which all share one bucket. Default: they are not limited. For a bucket for each
    /// address, use [`AnonymousLimits`](super::AnonymousLimits).
    ///
    /// The policy of this bucket has the name of the limit. For the limit `default`, its name is `anonymous`. This setting
    /// has no effect on a limit that is [shared by all](Self::shared_by_all).
    ///
    /// Only a gate with [`allow_anonymous`](crate::AuthLayer::allow_anonymous) admits anonymous callers. Every gate admits
    /// CORS preflights, except with [`without_preflight_bypass`](crate::AuthLayer::without_preflight_bypass).
    ///
    /// # Browsers
    ///
    /// A browser hides the 429 response to a preflight from scripts. Scripts see a network error, even with a valid token.
    /// A peer that empties the shared bucket therefore stops all scripts of other origins. To prevent this, put a CORS layer
    /// that answers preflights outside of the gate.
    #[must_use]
    pub fn with_anonymous(self, quota: Quota) -> Self {
        Self { anonymous: Some(quota), ..self }
    }

    /// Lets [quotas of grants](crate::Grant::with_quota) replace the quota of this limit, in gates and on routes.
    ///
    /// Only one limit of a limiter can have this setting. Then a limit that was converted from a quota keeps its own quota.
    /// This setting has no effect on a limit that is [shared by all](Self::shared_by_all).
    ///
    /// ```
    /// use tollgate::{CurrentGrant, Grant, Limit, Quota, RateLimits};
    ///
    /// let limits = RateLimits::new(Limit::new("second", Quota::per_second(3))?)
    ///     .and(Limit::new("day", Quota::per_day(1_000))?.with_grant_quotas())?;
    /// let alice = CurrentGrant::new(Grant::new("alice", ()).with_quota(Quota::per_day(50_000)));
    /// assert_eq!(limits.peek(&alice).parts().map(|part| part.remaining()).collect::<Vec<_>>(), [3, 50_000]);
    /// # Ok::<_, tollgate::LimitError>(())
    /// ```
    #[must_use]
    pub fn with_grant_quotas(self) -> Self {
        Self { grant_quotas: GrantQuotas::Followed, ..self }
    }

    /// Makes this limit a dry run: it decides and reports, but rejects nothing.
    ///
    /// A charge that the limit would reject is not made. Its [`Decision`] says so, and handlers find the decision in
    /// [`Authenticated::decisions`](crate::Authenticated::decisions). Headers do not advertise the limit.
    ///
    /// ```
    /// use tollgate::{Charge, CurrentGrant, Grant, Limit, Quota, RateLimits};
    ///
    /// let limits = RateLimits::new(Limit::from(Quota::per_minute(1)).with_dry_run());
    /// let alice = CurrentGrant::new(Grant::new("alice", ()));
    /// assert!(!limits.charge(&alice, Charge::Units(1)).would_be_rejected());
    ///
    /// let second = limits.charge(&alice, Charge::Units(1));
    /// assert!(second.would_be_rejected());
    /// assert!(second.is_admitted());
    /// ```
    #[must_use]
    pub fn with_dry_run(self) -> Self {
        Self { is_dry_run: true, ..self }
    }

    /// Refunds the charge of a request if its response has one of these statuses. Default: all requests count.
    ///
    /// The gate refunds the charge before the response is returned. The `RateLimit` header fields of the response do not contain the
    /// charge. Dropped requests and errors of the inner service have no status, so they count. Units that a handler charges count
    /// too. gRPC errors usually have the status 200.
    ///
    /// In Redis, a response waits for its refund as long as for a charge. A refund may be lost there. Then the header fields do not
    /// show the charge, but it counts.
    ///
    /// A limiter with such a limit has [refunds](super::RateLimits::with_refunds).
    ///
    /// ```
    /// use tollgate::limit::{AnonymousLimits, ClientIp};
    /// use tollgate::{Limit, Quota, RateLimits};
    ///
    /// // Errors of the server do not count.
    /// let limits = RateLimits::new(Limit::from(Quota::per_minute(60)).with_refund_if(|status| status.is_server_error()));
    ///
    /// // Only failed requests count: for each address ten wrong passwords, and then one every six minutes.
    /// let failures = Limit::new("failures", Quota::per_hour(10))?.with_refund_if(|status| status.is_success());
    /// let sign_in = AnonymousLimits::by_client_ip(failures, ClientIp::peer())?;
    /// # let _ = (limits, sign_in);
    /// # Ok::<_, tollgate::LimitError>(())
    /// ```
    ///
    /// Until its response, each request counts. So concurrent requests never exceed the quota, even if all of them fail.
    #[must_use]
    pub fn with_refund_if(self, status: impl Fn(StatusCode) -> bool + Send + Sync + 'static) -> Self {
        Self { refund_if: Some(RefundIf::new(status)), ..self }
    }

    /// Sets the used percentage of the burst from which [`Decision::is_near_limit`] returns true. Default: never.
    ///
    /// ```
    /// use tollgate::{Charge, CurrentGrant, Grant, Limit, Quota, RateLimits};
    ///
    /// let limits = RateLimits::new(Limit::from(Quota::per_minute(60).with_burst(10)).with_near_limit(80)?);
    /// let alice = CurrentGrant::new(Grant::new("alice", ()));
    /// assert!(!limits.charge(&alice, Charge::Units(7)).is_near_limit());
    /// assert!(limits.charge(&alice, Charge::Units(1)).is_near_limit());
    /// # Ok::<_, tollgate::LimitError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if the percentage is above 100.
    pub fn with_near_limit(self, percent: u8) -> Result<Self, LimitError> {
        match percent <= 100 {
            true => Ok(Self { near_percent: Some(percent), ..self }),
            false => Err(LimitError::NearLimitPercent),
        }
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Returns the quota of grants without their own quota. [`RateLimits::quota`](super::RateLimits::quota) returns the quota
    /// after changes.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.quota
    }

    #[inline]
    pub(crate) fn cost(&self, charge: Charge<'_>) -> u32 {
        match (charge, &self.cost) {
            (Charge::Units(units), _) => units,
            (Charge::Request(_), None) => 1,
            (Charge::Request(head), Some(cost)) => cost(head),
        }
    }

    /// Returns the quota of a grant, if that quota replaces the one of this limit.
    #[inline]
    pub(super) fn own_quota(&self, of_grant: Option<Quota>) -> Option<Quota> {
        let quota = of_grant.filter(|_| self.follows_grants() && self.scope == Scope::Subject);
        quota.map(|quota| quota.divided_by(self.nodes))
    }

    /// Keeps the limit's own quota, unless grants' quotas were chosen explicitly.
    pub(super) fn unfollow(&mut self) {
        if self.grant_quotas == GrantQuotas::FollowedByDefault {
            self.grant_quotas = GrantQuotas::Unfollowed;
        }
    }

    pub(super) fn follows_grants(&self) -> bool {
        matches!(self.grant_quotas, GrantQuotas::FollowedByDefault | GrantQuotas::Followed)
    }

    /// Returns whether a grant with this quota has a bucket apart from that of clones which follow its quota.
    #[inline]
    pub(super) fn is_apart(&self, of_grant: Option<Quota>) -> bool {
        self.grant_quotas == GrantQuotas::Unfollowed && of_grant.is_some()
    }

    /// Returns whether the limit has a setting that has no effect on the bucket of one anonymous caller.
    pub(super) fn is_for_grants(&self) -> bool {
        self.scope == Scope::All || self.anonymous.is_some() || self.grant_quotas == GrantQuotas::Followed
    }

    /// Returns whether this limit applies to anonymous callers and CORS preflights.
    pub(super) fn limits_anonymous(&self) -> bool {
        self.scope == Scope::All || self.anonymous.is_some()
    }

    /// Returns the policy name of anonymous callers.
    ///
    /// A named limit keeps its name. Otherwise the limiter of a gate and that of a route, which share a Redis, would share
    /// the bucket of anonymous callers too.
    pub(crate) fn anonymous_name(&self) -> PolicyName {
        match self.name.is_default() {
            true => PolicyName::anonymous(),
            false => self.name.clone(),
        }
    }

    /// Returns the limit of one of several nodes, which divide the quotas of grants. `RateLimits::follow` divides the others.
    #[cfg(feature = "redis")]
    pub(super) fn with_nodes(&self, nodes: NonZeroU32) -> Self {
        Self { nodes, ..self.clone() }
    }

    /// Adds the dry run, the near-limit flag and the partition key of this limit to a decision.
    #[inline]
    pub(crate) fn mark(&self, decision: &mut Decision, grant: Option<&CurrentGrant>) {
        // By reference, because moving a decision that was just written stalls the processor.
        if self.is_dry_run || self.near_percent.is_some() || self.partition_key.is_some() {
            *decision = self.mark_rare(mem::replace(decision, Decision::unlimited()), grant);
        }
    }

    /// Adds the refund of a charge to its decision.
    pub(crate) fn with_refund(&self, decision: Decision, refund: Refund, charged_ns: u64) -> Decision {
        let decision = decision.with_refund(refund);
        match &self.refund_if {
            Some(refund_if) => decision.with_refund_if(refund_if.clone(), charged_ns),
            None => decision,
        }
    }

    #[cold]
    fn mark_rare(&self, decision: Decision, grant: Option<&CurrentGrant>) -> Decision {
        let decision = match (&self.partition_key, grant) {
            (Some(key), Some(grant)) if self.scope == Scope::Subject => {
                decision.with_partition_key(key(grant.subject()))
            }
            _ => decision,
        };
        let decision = if self.is_dry_run { decision.with_dry_run() } else { decision };
        let (Some(percent), Some(policy)) = (self.near_percent, decision.policy()) else { return decision };
        let burst = policy.quota().burst();
        let used = u64::from(burst - decision.remaining().min(burst));
        match used * 100 >= u64::from(burst) * u64::from(percent) {
            true => decision.with_near_limit(),
            false => decision,
        }
    }
}

/// Creates a limit with the name `default`. In a gate, grants' quotas replace its quota; see [`Limit`].
impl From<Quota> for Limit {
    fn from(quota: Quota) -> Self {
        Self { grant_quotas: GrantQuotas::FollowedByDefault, ..Self::named(PolicyName::default_name(), quota) }
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limit")
            .field("name", &self.name())
            .field("quota", &self.quota)
            .field("scope", &self.scope)
            .field("anonymous", &self.anonymous)
            .field("is_dry_run", &self.is_dry_run)
            .field("near_percent", &self.near_percent)
            .field("refund_if", &self.refund_if)
            .field("grant_quotas", &self.grant_quotas)
            .finish_non_exhaustive()
    }
}
