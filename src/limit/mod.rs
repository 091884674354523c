//! The third station: charge the caller's budget.
//!
//! [`RateLimits`] is the limiter in memory: one GCRA cell a subject, decided by `governor`. Whoever keeps budgets
//! elsewhere implements [`Limiter`].
//!
//! # Rules
//!
//! 1. A budget belongs to a [`Subject`] that a store has vouched for. There is no way to key it by a
//!    header, a token or an address, so that strangers can neither reset a budget nor grow the memory.
//! 2. Over any time `t` no more than `burst + rate x t` is admitted, with the largest burst and rate of all quotas that
//!    the subject had meanwhile: a change of plan carries what is owed, counted in cells. (What would take more than 438
//!    years to pay off is cut to that.)
//! 3. A refused charge costs nothing. Who waits [`Decision::retry_after`] and comes alone is admitted; who comes a
//!    nanosecond earlier is not.
//! 4. Memory is bounded by the subjects whose grants are alive or in debt. No task runs. A grant that its store has dropped
//!    may be kept, with its principal, until the next [sweep](RateLimits::sweep), which happens while new subjects come.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

pub(crate) mod accounts;
pub(crate) mod clock;
mod decide;
#[cfg(all(test, tollgate_shuttle))]
mod interleavings;
#[cfg(feature = "redis")]
pub mod redis;

use accounts::{Account, Accounts, Memo, Payer};
use decide::Outcome;

pub use crate::decision::{Decision, InvalidPolicyName, Policy, Verdict};
pub(crate) use clock::Time;
pub use clock::{Clock, MonotonicClock};

use crate::answer::{Answer, Immediate};
use crate::caller::CurrentGrant;
use crate::decision::PolicyName;
use crate::grant::Subject;
use crate::head::Head;
use crate::quota::Quota;

/// What is to be paid for.
#[derive(Clone, Copy, Debug)]
pub enum Charge<'a> {
    /// A number of units, for what is no request: messages on a socket, rows of an export. 0 charges nothing and
    /// reads the state of the budget.
    Units(u32),
    /// A request; the limiter knows what it costs.
    Request(&'a Head<'a>),
}

/// Decides whether a caller may go on, and charges them if so.
///
/// # Contract
///
/// - The budget is found by [`CurrentGrant::subject`] and nothing else.
/// - [`Answer::Pending`] is lazy: nothing is charged before the first poll, and a dropped future may or may not have
///   charged.
/// - A limiter that waits bounds its own wait, because only it knows what to do when its server is gone.
///
/// # Security
///
/// A false "admitted" costs capacity, a false "refused" locks a paying caller out: decide, and document, which one
/// your limiter prefers when it cannot tell.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a limiter",
    note = "use `RateLimits::new(Quota::per_minute(180).with_burst(20))` or implement `Limiter`"
)]
pub trait Limiter: Send + Sync + 'static {
    /// The future of a decision that has to be waited for; [`Immediate`] if there is none.
    type Future: Future<Output = Decision> + Send + 'static;

    /// Charges the budget of the grant's subject.
    fn check(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future>;

    /// Charges what all anonymous callers share. They pass without limit unless a limiter says otherwise.
    fn check_anonymous(&self, charge: Charge<'_>) -> Answer<Self::Future> {
        let _ = charge;
        Answer::Ready(Decision::unlimited())
    }
}

/// Budgets in the memory of this process, one a subject: GCRA by `governor`.
///
/// Clones share their budgets. Keep one beside the gate to charge the same budget from a handler, for each message of
/// a WebSocket, say, or for each step of a long job:
///
/// ```
/// use tollgate::limit::{Charge, RateLimits};
/// use tollgate::{Authenticated, AuthLayer, Grant, MemoryStore, Quota};
///
/// let limits = RateLimits::new(Quota::per_minute(180).with_burst(20));
/// let tokens = MemoryStore::from_iter([("a-token", Grant::new("alice", ()))]);
/// let gate = AuthLayer::new(tokens).with_rate_limit(limits.clone());
///
/// // `limits` is the handler's state, `who` its extractor.
/// fn on_message(limits: &RateLimits, who: &Authenticated<()>) -> &'static str {
///     match limits.check_now(&who.current(), Charge::Units(1)).is_admitted() {
///         true => "done",
///         false => "slow down",
///     }
/// }
/// # assert_eq!(on_message(&limits, &Authenticated::new(Grant::new("alice", ()))), "done");
/// # let _ = gate;
/// ```
#[derive(Clone)]
pub struct RateLimits {
    accounts: Arc<Accounts>,
    time: Arc<Time>,
    cost: Option<Arc<Cost>>,
    anonymous: Option<Arc<Anonymous>>,
    partition_key: Option<Arc<PartitionKey>>,
}

/// The one budget of all anonymous callers.
struct Anonymous {
    accounts: Accounts,
    subject: Subject,
    memo: Memo,
}

impl Anonymous {
    fn new(quota: Quota) -> Arc<Self> {
        let accounts = Accounts::new(PolicyName::anonymous(), quota);
        Arc::new(Self { accounts, subject: "anonymous".into(), memo: Memo::default() })
    }
}

type Cost = dyn Fn(&Head<'_>) -> u32 + Send + Sync;
type PartitionKey = dyn Fn(&Subject) -> Vec<u8> + Send + Sync;

impl RateLimits {
    /// Budgets under the policy name `default`. The quota is for grants that bring none of their own.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self::with_name(PolicyName::default_name(), quota)
    }

    /// Budgets under a policy name of your own, by which clients tell several policies apart.
    ///
    /// ```
    /// use tollgate::Quota;
    /// use tollgate::limit::RateLimits;
    ///
    /// let orders = RateLimits::named("orders", Quota::per_second(3))?;
    /// # let _ = orders;
    /// # Ok::<_, tollgate::InvalidPolicyName>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the name is not 1 to 64 characters of printable ASCII.
    pub fn named(policy: &str, quota: Quota) -> Result<Self, InvalidPolicyName> {
        Ok(Self::with_name(PolicyName::new(policy)?, quota))
    }

    fn with_name(name: PolicyName, quota: Quota) -> Self {
        Self {
            accounts: Arc::new(Accounts::new(name, quota)),
            time: Arc::new(Time::counter()),
            cost: None,
            anonymous: None,
            partition_key: None,
        }
    }

    /// Reads the time from another clock. All budgets begin full, and clones made before are left behind.
    #[must_use]
    pub fn with_clock(self, clock: impl Clock) -> Self {
        let accounts = Arc::new(Accounts::new(self.accounts.name().clone(), self.accounts.default_quota()));
        let anonymous = self.anonymous.map(|old| Anonymous::new(old.accounts.default_quota()));
        Self { accounts, time: Arc::new(Time::Given(Arc::new(clock))), anonymous, ..self }
    }

    /// What a request costs, by its head; 1 if this is never called. A cost of 0 is free.
    ///
    /// A request that costs more than the burst can never pass and is refused with status 400. Clones with different
    /// costs still share their budgets.
    ///
    /// ```
    /// use tollgate::Quota;
    /// use tollgate::limit::RateLimits;
    ///
    /// let limits = RateLimits::new(Quota::per_minute(180).with_burst(20))
    ///     .with_cost(|head| if head.uri.path() == "/export" { 10 } else { 1 });
    /// # let _ = limits;
    /// ```
    #[must_use]
    pub fn with_cost(self, cost: impl Fn(&Head<'_>) -> u32 + Send + Sync + 'static) -> Self {
        Self { cost: Some(Arc::new(cost)), ..self }
    }

    /// Limits anonymous callers, who all share one budget, under the policy name `anonymous`. Without it they pass.
    ///
    /// Only a gate with optional authentication lets anonymous callers in at all.
    #[must_use]
    pub fn with_anonymous(self, quota: Quota) -> Self {
        Self { anonymous: Some(Anonymous::new(quota)), ..self }
    }

    /// Names the budget to the client, in the `pk` parameter of draft-10. Not done by default.
    ///
    /// The key goes to the client and to every log between: it must not hold anything sensitive. A keyed hash (HMAC)
    /// of the subject is right.
    #[must_use]
    pub fn with_partition_key(self, key: impl Fn(&Subject) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self { partition_key: Some(Arc::new(key)), ..self }
    }

    /// [`check`](Limiter::check) without the wrapping: budgets in memory never wait.
    #[must_use = "a decision that nobody looks at limits nobody"]
    pub fn check_now(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Decision {
        let now = self.time.now_ns();
        let cost = self.cost(charge);
        let head = grant.erased().head();
        let payer =
            Payer { subject: head.subject(), memo: head.memo(), quota: head.quota(), grant: Some(grant.erased()) };
        let decision = self.accounts.with(payer, now, |account| decision(account, now, cost));
        match &self.partition_key {
            None => decision,
            Some(key) => decision.with_partition_key(key(grant.subject())),
        }
    }

    /// The state of a budget, without a charge.
    #[must_use]
    pub fn peek(&self, grant: &CurrentGrant) -> Decision {
        self.check_now(grant, Charge::Units(0))
    }

    /// Forgets subjects who owe nothing and whose grants are gone. Happens by itself while new subjects come.
    pub fn sweep(&self) {
        self.accounts.sweep(self.time.now_ns());
    }

    /// How many subjects are remembered.
    #[must_use]
    pub fn subjects(&self) -> usize {
        self.accounts.len()
    }

    fn cost(&self, charge: Charge<'_>) -> u32 {
        match (charge, &self.cost) {
            (Charge::Units(units), _) => units,
            (Charge::Request(_), None) => 1,
            (Charge::Request(head), Some(cost)) => cost(head),
        }
    }
}

impl Limiter for RateLimits {
    type Future = Immediate<Decision>;

    #[inline]
    fn check(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future> {
        Answer::Ready(self.check_now(grant, charge))
    }

    fn check_anonymous(&self, charge: Charge<'_>) -> Answer<Self::Future> {
        let Some(all) = &self.anonymous else { return Answer::Ready(Decision::unlimited()) };
        let (now, cost) = (self.time.now_ns(), self.cost(charge));
        let payer = Payer { subject: &all.subject, memo: &all.memo, quota: None, grant: None };
        Answer::Ready(all.accounts.with(payer, now, |account| decision(account, now, cost)))
    }
}

impl fmt::Debug for RateLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimits")
            .field("policy", self.accounts.name())
            .field("quota", &self.accounts.default_quota())
            .field("time", &self.time)
            .finish_non_exhaustive()
    }
}

/// Charges an account and puts the outcome into words; `None` if the account is frozen.
#[inline]
fn decision(account: &Account, now: u64, cost: u32) -> Option<Decision> {
    let outcome = match NonZeroU32::new(cost) {
        Some(cost) => account.charge(now, cost),
        None => Outcome::Admitted { tat: account.debt()?.max(now) },
    };
    let policy = account.policy().clone();
    let (verdict, tat) = match outcome {
        Outcome::Frozen => return None,
        Outcome::Refused { tat, wait } => {
            return Some(Decision::from_ns(policy, Verdict::OverLimit, 0, wait, tat.saturating_sub(now)));
        }
        Outcome::Admitted { tat } => (Verdict::Admitted, tat),
        Outcome::AboveBurst => (Verdict::CostAboveBurst, account.debt()?.max(now)),
    };
    Some(described(policy, verdict, tat.saturating_sub(now)))
}

/// The decision about a charge that need not wait, where the budget is full again after this time.
#[inline]
fn described(policy: Policy, verdict: Verdict, full: u64) -> Decision {
    let quota = policy.quota();
    // Cells that are used, a started one included; the next comes back when the started one is over. After a change of plan
    // more can be owed than the bucket holds.
    let used = full.div_ceil(quota.interval_ns()).min(quota.burst().into());
    let remaining = quota.burst() - used as u32;
    let more_in = full.saturating_sub(used.saturating_sub(1) * quota.interval_ns());
    Decision::from_ns(policy, verdict, remaining, more_in, full)
}
