use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use thiserror::Error;

use crate::quota::Quota;
use crate::rejection::Rejection;
use crate::respond::ratelimit;

/// A quota with the name under which it is advertised in `RateLimit` headers. Cheap to clone.
///
/// ```
/// use tollgate::{Policy, Quota};
///
/// let policy = Policy::new("orders", Quota::per_second(3))?;
/// assert_eq!(policy.name(), "orders");
/// assert!(Policy::new("", Quota::per_second(3)).is_err());
/// # Ok::<_, tollgate::InvalidPolicyName>(())
/// ```
#[derive(Clone)]
pub struct Policy(Repr);

/// Every decision carries its policy, and every answer the policy's header value. A counted reference to them would be
/// the one thing that all threads of a server write to at every request, so that the usual policies are kept for ever.
#[derive(Clone)]
enum Repr {
    Kept(&'static Inner),
    /// For processes with more plans than [`Policy::MOST_KEPT`].
    Counted(Arc<Inner>),
}

struct Inner {
    quota: Quota,
    name: Box<str>,
    /// `"name";q=20;w=7`, the draft-10 `RateLimit-Policy` item, rendered once.
    advert: HeaderValue,
    /// `"name";r=`, with which every draft-10 `RateLimit` item of this policy begins.
    prefix: Box<[u8]>,
    /// The whole item by what remains, `"name";r=19;t=1`, for a small bucket that gains a cell within a second.
    items: Box<[HeaderValue]>,
}

/// A policy name that is empty, longer than 64 characters or not printable ASCII.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a policy name is 1 to 64 characters of printable ASCII")]
pub struct InvalidPolicyName;

impl Policy {
    /// Names a quota.
    ///
    /// # Errors
    ///
    /// If the name is empty, longer than 64 characters, or has a character outside of printable ASCII (%x20-7E), which
    /// a structured field string (RFC 9651, section 3.3.3) cannot hold.
    pub fn new(name: &str, quota: Quota) -> Result<Self, InvalidPolicyName> {
        let name = PolicyName::new(name)?;
        Ok(Self::named(&name, quota))
    }

    /// How many different policies a process keeps for ever, some 200 bytes each, and 60 an item.
    const MOST_KEPT: usize = 1_024;
    /// The largest burst whose items are rendered beforehand.
    const MOST_ITEMS: u32 = 64;

    pub(crate) fn named(name: &PolicyName, quota: Quota) -> Self {
        static KEPT: Mutex<Vec<&'static Inner>> = Mutex::new(Vec::new());

        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inner) = kept.iter().find(|inner| inner.quota == quota && *inner.name == *name.0) {
            return Self(Repr::Kept(inner));
        }
        let (advert, prefix) = ratelimit::render_policy(&name.0, quota);
        let name = (*name.0).into();
        if kept.len() < Self::MOST_KEPT {
            let advert = HeaderValue::from_static(String::leak(advert));
            let items = match quota.burst() <= Self::MOST_ITEMS && quota.interval() <= Duration::from_secs(1) {
                true => ratelimit::render_items(&prefix, quota.burst()),
                false => Box::default(),
            };
            let inner = Box::leak(Box::new(Inner { quota, name, advert, prefix, items }));
            kept.push(inner);
            Self(Repr::Kept(inner))
        } else {
            // The name was checked: printable ASCII.
            let advert = HeaderValue::try_from(advert).unwrap_or(HeaderValue::from_static(""));
            Self(Repr::Counted(Arc::new(Inner { quota, name, advert, prefix, items: Box::default() })))
        }
    }

    fn inner(&self) -> &Inner {
        match &self.0 {
            Repr::Kept(inner) => inner,
            Repr::Counted(inner) => inner,
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner().name
    }

    /// The quota.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.inner().quota
    }

    pub(crate) fn advert(&self) -> &HeaderValue {
        &self.inner().advert
    }

    pub(crate) fn prefix(&self) -> &[u8] {
        &self.inner().prefix
    }

    /// The `RateLimit` item of a decision, if it was rendered beforehand.
    pub(crate) fn item(&self, decision: &Decision) -> Option<&HeaderValue> {
        let (left, burst) = (decision.remaining(), self.quota().burst());
        let as_usual = decision.partition_key().is_none() && decision.more_in_s() == u64::from(left < burst);
        self.inner().items.get(left as usize).filter(|_| as_usual)
    }

    /// Whether an item of `RateLimit` or `RateLimit-Policy` has this policy's name.
    pub(crate) fn is_told_by(&self, item: &[u8]) -> bool {
        let name = self.prefix().strip_suffix(b"r=").unwrap_or_default();
        item.starts_with(name)
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.quota() == other.quota() && self.name() == other.name()
    }
}

impl Eq for Policy {}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("name", &self.name()).field("quota", &self.quota()).finish()
    }
}

/// A name that was checked, for the quotas that grants bring.
#[derive(Clone, Debug)]
pub(crate) struct PolicyName(Arc<str>);

impl PolicyName {
    pub(crate) fn new(name: &str) -> Result<Self, InvalidPolicyName> {
        match (1..=64).contains(&name.len()) && name.bytes().all(|b| (0x20..=0x7e).contains(&b)) {
            true => Ok(Self(name.into())),
            false => Err(InvalidPolicyName),
        }
    }

    /// The name of a limiter that got none.
    pub(crate) fn default_name() -> Self {
        Self("default".into())
    }

    /// The name under which anonymous callers are limited.
    pub(crate) fn anonymous() -> Self {
        Self("anonymous".into())
    }
}

/// What a [`Limiter`](crate::Limiter) decided about one charge.
///
/// ```
/// use tollgate::limit::{Charge, RateLimits};
/// use tollgate::{CurrentGrant, Grant, Quota};
///
/// let limits = RateLimits::new(Quota::per_minute(180).with_burst(2));
/// let alice = CurrentGrant::new(Grant::new("alice", ()));
///
/// let first = limits.check_now(&alice, Charge::Units(1));
/// assert!(first.is_admitted());
/// assert_eq!(first.remaining(), 1);
///
/// let too_much = limits.check_now(&alice, Charge::Units(2));
/// assert!(!too_much.is_admitted());
/// assert!(too_much.retry_after().is_some());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    policy: Option<Policy>,
    verdict: Verdict,
    is_local: bool,
    remaining: u32,
    more_in_ns: u64,
    full_in_ns: u64,
    /// Boxed twice: a key is rare, and this is moved with every decision.
    partition_key: Option<Box<Box<[u8]>>>,
}

/// The ways in which a charge can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The charge was made.
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
        Self { policy: Some(policy), verdict, is_local: false, remaining, more_in_ns, full_in_ns, partition_key: None }
    }

    /// Admitted without any limit; such a decision writes no headers.
    #[must_use]
    pub fn unlimited() -> Self {
        Self {
            policy: None,
            verdict: Verdict::Admitted,
            is_local: false,
            remaining: u32::MAX,
            more_in_ns: 0,
            full_in_ns: 0,
            partition_key: None,
        }
    }

    /// Not admitted, because the limiter could not tell: 503. `retry_after` is when it may know again. Such a decision writes
    /// no `RateLimit` headers.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::{Decision, RejectionKind};
    ///
    /// let rejection = Decision::unavailable(Duration::from_millis(1_500)).or_refuse().unwrap_err();
    /// assert_eq!(rejection.kind(), RejectionKind::LimiterUnavailable);
    /// assert_eq!(rejection.retry_after_secs(), Some(2));
    /// ```
    #[must_use]
    pub fn unavailable(retry_after: Duration) -> Self {
        let more_in_ns = u64::try_from(retry_after.as_nanos()).unwrap_or(u64::MAX);
        Self { verdict: Verdict::Unavailable, remaining: 0, more_in_ns, ..Self::unlimited() }
    }

    /// The same, made by one server for itself because what all share could not be asked: [`is_local`](Self::is_local).
    #[must_use]
    pub fn made_locally(self) -> Self {
        Self { is_local: true, ..self }
    }

    /// The same with a partition key, which names the budget to the client in the `pk` parameter of draft-10.
    ///
    /// Never make it of a token or the plain hash of one: a keyed hash of the subject is right.
    #[must_use]
    pub fn with_partition_key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.partition_key = Some(Box::new(key.into().into()));
        self
    }

    /// Whether the charge was made.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.verdict == Verdict::Admitted
    }

    /// The decision itself if the charge was made, and otherwise the refusal that says so: 429, 400 if the charge can never
    /// fit, or 503 if the limiter could not tell. For handlers that charge by themselves.
    ///
    /// ```
    /// use http::Response;
    /// use tollgate::limit::{Charge, RateLimits};
    /// use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota};
    ///
    /// let tokens = MemoryStore::from_iter([("a-token", Grant::new("alice", ()))]);
    /// let (gate, limits) = (AuthLayer::new(tokens), RateLimits::new(Quota::per_minute(1)));
    /// let who = Authenticated::new(Grant::new("alice", ())).current();
    ///
    /// assert!(limits.check_now(&who, Charge::Units(1)).or_refuse().is_ok());
    /// let rejection = limits.check_now(&who, Charge::Units(1)).or_refuse().unwrap_err();
    /// let response: Response<bytes::Bytes> = gate.refuse(rejection);
    /// assert_eq!(response.status(), 429);
    /// assert_eq!(response.headers()["ratelimit"], r#""default";r=0;t=60"#);
    /// ```
    ///
    /// # Errors
    ///
    /// If nothing was charged.
    pub fn or_refuse(self) -> Result<Self, Rejection> {
        match self.verdict {
            Verdict::Admitted => Ok(self),
            Verdict::OverLimit | Verdict::CostAboveBurst | Verdict::Unavailable => Err(Rejection::over_limit(self)),
        }
    }

    /// How the charge ended.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether one server decided for itself, because what all share could not be asked. Only limiters that share budgets make
    /// such decisions.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.is_local
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
        self.partition_key.as_deref().map(|key| &**key)
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

    pub(crate) fn full_in_s(&self) -> u64 {
        secs_up(self.full_in_ns)
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
}
