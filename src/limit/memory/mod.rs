mod charge;

use std::fmt;
#[cfg(feature = "redis")]
use std::num::NonZeroU32;
use std::sync::Arc;

use super::all_or_nothing::ChargeLocks;
use super::refund_totals::RefundTotals;
use super::rule::{GrantQuotas, PartitionKey, Rule, Scope};
use super::state::LimitState;
use super::{Clock, Time};
use crate::grant::Subject;
use crate::quota::Quota;
use crate::quota::policy::{PolicyName, PolicyNameError};
use crate::request_head::RequestHead;

/// Budgets in the memory of this process, one a subject and policy: GCRA by `governor`.
///
/// Clones share their budgets. Keep one beside the gate to charge the same budget from a handler, for each message of
/// a WebSocket, say, or for each step of a long job:
///
/// ```
/// use tollgate::limit::{Charge, RateLimits};
/// use tollgate::{Authenticated, AuthLayer, Grant, MemoryStore, Quota, TokenDigest};
///
/// let limits = RateLimits::new(Quota::per_minute(180).with_burst(20));
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
/// let gate = AuthLayer::new(tokens).with_rate_limit(limits.clone());
///
/// // `limits` is the handler's state, `who` its extractor.
/// fn on_message(limits: &RateLimits, who: &Authenticated<()>) -> &'static str {
///     match limits.charge(&who.current(), Charge::Units(1)).is_admitted() {
///         true => "done",
///         false => "slow down",
///     }
/// }
/// # assert_eq!(on_message(&limits, &Authenticated::new(Grant::new("alice", ()))), "done");
/// # let _ = gate;
/// ```
///
/// # Several policies
///
/// A limiter with several policies charges all of them or none. What follows [`and`](Self::and) is said of the policy that
/// was added last:
///
/// ```
/// use tollgate::limit::{Charge, RateLimits};
/// use tollgate::{CurrentGrant, Grant, Quota};
///
/// let limits = RateLimits::new(Quota::per_minute(180).with_burst(20))
///     .and("day", Quota::per_day(5_000))?
///     .and("orders", Quota::per_second(3))?
///     .with_cost(|head| u32::from(head.uri.path() == "/orders"))
///     .and("everybody", Quota::per_second(1_000))?
///     .shared_by_all();
///
/// let alice = CurrentGrant::new(Grant::new("alice", ()));
/// let refused = limits.charge(&alice, Charge::Units(4));
/// assert_eq!(refused.violated().map(|policy| policy.name()).collect::<Vec<_>>(), ["orders"]);
/// assert_eq!(limits.peek(&alice).parts().map(|part| part.remaining()).collect::<Vec<_>>(), [20, 5_000, 3, 1_000]);
/// # Ok::<_, tollgate::PolicyNameError>(())
/// ```
///
/// # Whose quota
///
/// The [quota of a grant](crate::Grant::with_quota), a customer's plan, replaces the quota of at most one policy of a limiter:
///
/// | policy | in a gate or called by a handler | on a route ([`AuthLayer::rate_limit`](crate::AuthLayer::rate_limit)) |
/// |---|---|---|
/// | of [`RateLimits::new`](Self::new) | quota of the grant | own quota |
/// | of [`RateLimits::named`](Self::named) or [`and`](Self::and) | own quota | own quota |
/// | the one with [`with_grant_quotas`](Self::with_grant_quotas) | quota of the grant | quota of the grant |
/// | any policy [shared by all](Self::shared_by_all), and the bucket of anonymous callers | own quota | own quota |
#[derive(Clone)]
pub struct RateLimits {
    first: LimitState,
    more: Option<Arc<Further>>,
    pub(super) time: Arc<Time>,
    /// For refunds, if they may be wanted.
    given: Option<Arc<RefundTotals>>,
}

/// What a limiter with several policies has beside the usual.
#[derive(Clone)]
struct Further {
    /// All of them, the first one too.
    lanes: Vec<LimitState>,
    turns: Arc<ChargeLocks>,
}

impl RateLimits {
    /// Limits under the policy name `default`.
    ///
    /// In a gate the [quota of a grant](crate::Grant::with_quota) replaces this one, which is for grants without a quota. On
    /// a [route](crate::AuthLayer::rate_limit) it does not; see [Whose quota](Self#whose-quota).
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        let mut rule = Rule::new(PolicyName::default_name(), quota);
        rule.grant_quotas = GrantQuotas::FollowedByDefault;
        Self::of(rule)
    }

    /// Limits under a policy name of your own, by which clients tell several policies apart. Quotas of grants do not
    /// change this one, unless you ask for it by [`with_grant_quotas`](Self::with_grant_quotas).
    ///
    /// ```
    /// use tollgate::Quota;
    /// use tollgate::limit::RateLimits;
    ///
    /// let orders = RateLimits::named("orders", Quota::per_second(3))?;
    /// # let _ = orders;
    /// # Ok::<_, tollgate::PolicyNameError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the name is not 1 to 64 characters of printable ASCII.
    pub fn named(policy: &str, quota: Quota) -> Result<Self, PolicyNameError> {
        Ok(Self::of(Rule::new(PolicyName::new(policy)?, quota)))
    }

    fn of(rule: Rule) -> Self {
        Self { first: LimitState::new(rule), more: None, time: Arc::new(Time::counter()), given: None }
    }

    /// One policy more. A charge that one of the policies refuses costs none of them anything, also where requests come at
    /// the same time.
    ///
    /// Quotas of grants do not change this one, unless you ask for it by [`with_grant_quotas`](Self::with_grant_quotas).
    ///
    /// # Errors
    ///
    /// If the name is not 1 to 64 characters of printable ASCII, or another policy of this limiter has it, or it is `anonymous`.
    pub fn and(self, policy: &str, quota: Quota) -> Result<Self, PolicyNameError> {
        let name = PolicyName::new(policy)?;
        let is_taken = name == PolicyName::anonymous() || self.lanes().iter().any(|lane| lane.rule().name == name);
        if is_taken {
            return Err(PolicyNameError::Taken);
        }
        let mut lanes = self.lanes().to_vec();
        lanes.push(LimitState::new(self.first.rule().further(name, quota)));
        let turns = self.more.as_ref().map_or_else(|| Arc::new(ChargeLocks::new()), |more| Arc::clone(&more.turns));
        Ok(Self { more: Some(Arc::new(Further { lanes, turns })), ..self })
    }

    /// What is decided by, in the order in which it was added.
    #[cfg(feature = "redis")]
    pub(crate) fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.lanes().iter().map(LimitState::rule)
    }

    /// Budgets of one of so many nodes, which share the quotas, those of grants too.
    #[cfg(feature = "redis")]
    pub(crate) fn divided_by(&self, nodes: NonZeroU32) -> Self {
        self.clone().map_all(|rule| rule.divided_by(nodes))
    }

    fn lanes(&self) -> &[LimitState] {
        match &self.more {
            None => std::slice::from_ref(&self.first),
            Some(more) => &more.lanes,
        }
    }

    /// Changes the policy that was added last.
    fn map_last(mut self, change: impl FnOnce(&mut Rule)) -> Self {
        match self.more.as_mut().map(Arc::make_mut) {
            None => self.first = self.first.changed(change),
            Some(more) => {
                let last = more.lanes.pop().map(|last| last.changed(change));
                more.lanes.extend(last);
            }
        }
        self
    }

    /// Changes all policies.
    fn change_all(mut self, change: impl Fn(&mut Rule)) -> Self {
        let changed = |lane: &LimitState| lane.clone().changed(&change);
        if let Some(more) = self.more.as_mut().map(Arc::make_mut) {
            more.lanes = more.lanes.iter().map(changed).collect();
        }
        self.first = changed(&self.first);
        self
    }

    /// The same with full budgets by changed rules.
    fn map_all(self, change: impl Fn(&Rule) -> Rule) -> Self {
        let new = |lane: &LimitState| LimitState::new(change(lane.rule()));
        let more = self.more.as_ref().map(|more| {
            Arc::new(Further { lanes: more.lanes.iter().map(new).collect(), turns: Arc::new(ChargeLocks::new()) })
        });
        Self { first: new(&self.first), more, ..self }
    }

    /// Reads the time from another clock. All budgets begin full, and clones made before are left behind.
    #[must_use]
    pub fn with_clock(self, clock: impl Clock) -> Self {
        Self { time: Arc::new(Time::Given(Arc::new(clock))), ..self.map_all(Rule::clone) }
    }

    /// What a request costs by the policy that was added last, by its head; 1 if this is never called. A cost of 0 is free.
    ///
    /// A request that costs more than the burst can never pass and is refused with status 400. Clones with different
    /// costs still share their budgets. An example is [above](Self#several-policies).
    #[must_use]
    pub fn with_cost(self, cost: impl Fn(&RequestHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        self.map_last(|rule| rule.cost = Some(Arc::new(cost)))
    }

    /// One budget for all subjects together, by the policy that was added last: what the service as a whole can bear.
    /// Anonymous callers and CORS preflights draw on it too. It begins full, and quotas of grants do not change it.
    #[must_use]
    pub fn shared_by_all(self) -> Self {
        self.map_last(|rule| rule.scope = Scope::All)
    }

    /// Limits anonymous callers and CORS preflights, which all share one bucket. Its policy has the name `anonymous` where
    /// the policy that was added last is `default`, and otherwise the name of that policy. Without such a limit they pass.
    ///
    /// Only a gate with optional authentication admits anonymous callers. Every gate admits CORS preflights, unless
    /// [`without_preflight_bypass`](crate::AuthLayer::without_preflight_bypass) says otherwise.
    ///
    /// # Browsers
    ///
    /// A browser does not show a 429 on a preflight to scripts: they see a network error, for a caller with a valid token too.
    /// So a peer that empties the shared bucket stops all scripts of other origins. Put a CORS layer outside of the gate
    /// that answers preflights itself; then they cost nothing here.
    #[must_use]
    pub fn with_anonymous(self, quota: Quota) -> Self {
        self.map_last(|rule| rule.anonymous = Some(quota))
    }

    /// Lets the [quotas of grants](crate::Grant::with_quota) replace the quota of the policy that was added last, in gates
    /// and on routes; see [Whose quota](Self#whose-quota).
    ///
    /// One policy of a limiter at most follows the grants. A second call moves this to another policy, and also away from the
    /// policy of [`RateLimits::new`](Self::new). It has no effect on a policy [shared by all](Self::shared_by_all).
    ///
    /// ```
    /// use tollgate::limit::{Charge, RateLimits};
    /// use tollgate::{CurrentGrant, Grant, Quota};
    ///
    /// let limits = RateLimits::named("second", Quota::per_second(3))?
    ///     .and("day", Quota::per_day(1_000))?
    ///     .with_grant_quotas();
    /// let alice = CurrentGrant::new(Grant::new("alice", ()).with_quota(Quota::per_day(50_000)));
    /// assert_eq!(limits.peek(&alice).parts().map(|part| part.remaining()).collect::<Vec<_>>(), [3, 50_000]);
    /// # Ok::<_, tollgate::PolicyNameError>(())
    /// ```
    #[must_use]
    pub fn with_grant_quotas(self) -> Self {
        self.change_all(|rule| rule.grant_quotas = GrantQuotas::Ignored)
            .map_last(|rule| rule.grant_quotas = GrantQuotas::Followed)
    }

    /// Puts the policy that was added last on trial: it decides and reports, and refuses nobody ("dry run").
    ///
    /// What it would refuse is not charged, as in earnest, and says so in its [`Decision`](crate::Decision), which handlers find in
    /// [`Authenticated::decisions`](crate::Authenticated::decisions). Clients are told nothing of it.
    ///
    /// ```
    /// use tollgate::limit::{Charge, RateLimits};
    /// use tollgate::{CurrentGrant, Grant, Quota};
    ///
    /// let limits = RateLimits::new(Quota::per_minute(1)).with_dry_run();
    /// let alice = CurrentGrant::new(Grant::new("alice", ()));
    /// assert!(!limits.charge(&alice, Charge::Units(1)).would_be_rejected());
    ///
    /// let second = limits.charge(&alice, Charge::Units(1));
    /// assert!(second.would_be_rejected());
    /// assert!(second.is_admitted());
    /// ```
    #[must_use]
    pub fn with_dry_run(self) -> Self {
        self.map_last(|rule| rule.is_dry_run = true)
    }

    /// Signals, by [`Decision::is_near_limit`](crate::Decision::is_near_limit), that of the burst of the policy that was added
    /// last this many percent or more are used. More than 100 is taken as 100.
    ///
    /// ```
    /// use tollgate::limit::{Charge, RateLimits};
    /// use tollgate::{CurrentGrant, Grant, Quota};
    ///
    /// let limits = RateLimits::new(Quota::per_minute(60).with_burst(10)).with_near_limit(80);
    /// let alice = CurrentGrant::new(Grant::new("alice", ()));
    /// assert!(!limits.charge(&alice, Charge::Units(7)).is_near_limit());
    /// assert!(limits.charge(&alice, Charge::Units(1)).is_near_limit());
    /// ```
    #[must_use]
    pub fn with_near_limit(self, percent: u8) -> Self {
        self.map_last(|rule| rule.set_near_percent(percent))
    }

    /// The same, and charges can be [given back](crate::Decision::refund), for one allocation more a request.
    ///
    /// What is given back is what of the charge has not been refilled yet, so that the subject never has more than without the
    /// charge. It is less where a later charge was given back before. After a change of plan it is nothing: nobody knows any more
    /// what the charge would be worth. Only where the plan has changed there and back may it be as much as the charge, although
    /// the other plan has paid it off.
    ///
    /// ```
    /// use tollgate::{Authenticated, RateLimits, Quota};
    ///
    /// let limits = RateLimits::new(Quota::per_minute(60)).with_refunds();
    ///
    /// // A handler behind a gate with these limits.
    /// async fn quote(who: Authenticated<()>) -> Result<String, &'static str> {
    ///     match ask_the_exchange().await {
    ///         Some(quote) => Ok(quote),
    ///         None => {
    ///             who.refund().await;
    ///             Err("the exchange does not answer")
    ///         }
    ///     }
    /// }
    /// # async fn ask_the_exchange() -> Option<String> { None }
    /// # let _ = (limits, quote);
    /// ```
    #[must_use]
    pub fn with_refunds(self) -> Self {
        Self { given: Some(Arc::new(RefundTotals::new())), ..self }
    }

    /// Names the budgets of subjects to the client, in the `pk` parameter of draft-10. Not done by default.
    ///
    /// The key goes to the client and to every log between: it must not hold anything sensitive. A keyed hash (HMAC)
    /// of the subject is right.
    #[must_use]
    pub fn with_partition_key(self, key: impl Fn(&Subject) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let key: Arc<PartitionKey> = Arc::new(key);
        self.change_all(|rule| rule.partition_key = Some(Arc::clone(&key)))
    }
}

impl fmt::Debug for RateLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policies = self.lanes().iter().map(|lane| (&lane.rule().name, lane.rule().quota));
        f.debug_struct("RateLimits")
            .field("policies", &policies.collect::<Vec<_>>())
            .field("time", &self.time)
            .finish_non_exhaustive()
    }
}
