use std::fmt;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::RedisLimitsError;
use super::charge::Shared;
use super::connect::Link;
use super::denied::Denied;
use super::key::Keys;
use super::lease::Leases;
use super::outage::{Outage, OutagePolicy};
use super::server::RedisServer;
use super::stocks::Stocks;
use crate::caller::CurrentGrant;
use crate::limit::limit::Scope;
use crate::limit::{Charge, Limiter, RateLimits};
use crate::pending::answer::Answer;
use crate::pending::breaker::{BreakerState, Switch};
use crate::quota::clock::Clock;
use crate::quota::decision::Decision;

/// Budgets in Redis, which all servers that name the same Redis, prefix and secret share.
///
/// With [refunds](RateLimits::with_refunds), no refusal is remembered, since another server may give something back, and
/// each asks Redis. A refund that Redis does not take in time, or that cannot be sent within the queue timeout, is lost. And refunds do not know of each other there: where several
/// charges of one subject are given back while they are being paid off, each may give back what another has already, by its own
/// charge at most.
///
/// Clones share the connection and all that is remembered. Its policies, costs and clock are those of the [`RateLimits`] that
/// it is made of; budgets in memory are used only while Redis is away.
///
/// ```
/// use tollgate::limit::redis::{RedisLimits, RedisServer};
/// use tollgate::{AuthLayer, Grant, MemoryStore, Quota, RateLimits, TokenDigest};
///
/// # let (secret, nodes) = ([7; 32], std::num::NonZeroU32::MIN);
/// let policies = RateLimits::new(Quota::per_minute(180).with_burst(20));
/// let limits = RedisLimits::new(policies, RedisServer::single("redis://127.0.0.1:6379")?, secret, nodes)?;
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
/// let gate = AuthLayer::new(tokens).with_rate_limit(limits);
/// # let _ = gate;
/// # Ok::<_, tollgate::limit::redis::RedisLimitsError>(())
/// ```
///
/// # Timeouts
///
/// A charge waits for at most the [deadline](Self::with_deadline) for the reply, before that the
/// [queue timeout](Self::with_queue_timeout) for its turn, and the deadline once or twice more where a connection has to be made:
/// 1.25 seconds by default. With [leases](Self::with_leases) it may wait for another purchase before, for half of the deadline.
/// The rules of [this module](crate::limit::redis) say what follows each.
///
/// It waits by tokio's clock, and so must be polled on tokio.
#[derive(Clone)]
pub struct RedisLimits {
    shared: Arc<Shared>,
}

const DEADLINE: Duration = Duration::from_millis(250);
const IN_FLIGHT: usize = 256;

impl RedisLimits {
    /// These policies in that Redis, with their costs, dry runs and refunds. The secret is 32 random bytes or more, the same on
    /// all servers; it keeps subjects out of Redis, and another one begins with full budgets.
    ///
    /// `nodes` is the number of servers that share the budgets, or more: while Redis is away each of them admits that part.
    /// With too small a number they admit too much together then.
    ///
    /// Nothing is connected yet, and Redis need not be there.
    ///
    /// # Errors
    ///
    /// If the secret is too short, or Redis is a cluster and there are policies of each subject beside some that
    /// [all share](crate::Limit::shared_by_all): these are in different slots, and cannot be charged in one step.
    pub fn new(
        limits: RateLimits,
        redis: RedisServer,
        secret: impl AsRef<[u8]>,
        nodes: NonZeroU32,
    ) -> Result<Self, RedisLimitsError> {
        let keys = Keys::new(secret.as_ref())?;
        let link = Link::new(redis);
        let has = |scope| limits.iter().any(|rule| rule.scope == scope);
        if link.is_cluster() && has(Scope::Subject) && has(Scope::All) {
            return Err(RedisLimitsError::SharedOnCluster);
        }
        let mut switch = Switch::new(DEADLINE);
        switch.set_name("redis");
        switch.set_clock(Arc::clone(&limits.time) as Arc<dyn Clock>);
        let shared = Shared {
            keys: Arc::new(keys),
            link: Arc::new(link),
            deadline: DEADLINE,
            switch,
            denied: Arc::new(Denied::default()),
            outage: Outage::new(&limits, OutagePolicy::default(), nodes),
            nodes,
            limits,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            queue_timeout: None,
            stocks: None,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The same under another prefix than `tollgate:`, by which budgets of several services are told apart.
    ///
    /// # Errors
    ///
    /// If the prefix has a brace, which would say to a cluster where the key belongs.
    pub fn with_prefix(mut self, prefix: &str) -> Result<Self, RedisLimitsError> {
        let keys = Keys::clone(&self.shared.keys).with_prefix(prefix)?;
        let shared = self.shared_mut();
        shared.keys = Arc::new(keys);
        // These are other budgets.
        shared.denied = Arc::default();
        shared.stocks = shared.stocks.as_deref().map(|stocks| Arc::new(stocks.emptied()));
        Ok(self)
    }

    /// Sets the time in which Redis has to reply to a command. Default: 250 milliseconds.
    ///
    /// The time begins when the command is handed to the connection. Making a connection has as much time for itself. Time in
    /// which the whole process stands still is not counted as silence of Redis.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        let shared = self.shared_mut();
        shared.deadline = deadline;
        shared.switch.set_deadline(deadline);
        self
    }

    /// Sets how many commands may wait for their replies at the same time. Default: 256. Further charges wait in a queue.
    ///
    /// A server makes no more charges in a second than this number divided by the round trip time: at 256 commands and 2
    /// milliseconds, 128,000. A larger number helps only where Redis is far away, and makes each reply wait for more others. Clones that
    /// are made after this count together.
    #[must_use]
    pub fn with_max_in_flight(mut self, commands: NonZeroU32) -> Self {
        let commands = usize::try_from(commands.get()).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        self.shared_mut().in_flight = Arc::new(Semaphore::new(commands));
        self
    }

    /// Sets how long a charge may wait until there are fewer commands in flight than
    /// [`with_max_in_flight`](Self::with_max_in_flight) allows. Default: twice the deadline.
    ///
    /// A charge that has waited so long is rejected with 503 ([`Verdict::Unavailable`](crate::Verdict::Unavailable)), whatever
    /// [`OutagePolicy`] says: Redis is there, so that a local decision would add to what Redis admits. Policies that are dry runs
    /// reject nothing. The circuit breaker does not count it. A time below the deadline makes the first charges of an outage
    /// end so.
    #[must_use]
    pub fn with_queue_timeout(mut self, queue_timeout: Duration) -> Self {
        self.shared_mut().queue_timeout = Some(queue_timeout);
        self
    }

    /// The same with another answer while Redis is away.
    #[must_use]
    pub fn with_outage_policy(mut self, when_down: OutagePolicy) -> Self {
        let shared = self.shared_mut();
        shared.outage = Outage::new(&shared.limits, when_down, shared.nodes);
        self
    }

    /// The same, not asking Redis any more after so many failures in a row, rather than 5; 0 is taken as 1.
    #[must_use]
    pub fn with_failure_threshold(mut self, failures: u32) -> Self {
        self.shared_mut().switch.set_failures(failures);
        self
    }

    /// The same with other pauses before a charge may ask Redis again: the first one, and the longest, to which it grows by
    /// doubling. 1 second and 30 if this is never called.
    #[must_use]
    pub fn with_backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.shared_mut().switch.set_pauses(first, longest);
        self
    }

    /// The same, buying cells ahead by the rules of [`Leases`], so that most charges are answered at once. Without it Redis is
    /// asked at each charge.
    ///
    /// A limiter [with refunds](RateLimits::with_refunds) asks Redis all the same: what is given back belongs to no lease. All
    /// servers of one prefix have leases or refunds, not some of them these and some those.
    ///
    /// ```
    /// use tollgate::limit::redis::{Leases, RedisLimits, RedisServer};
    /// use tollgate::{Quota, RateLimits};
    ///
    /// # let (secret, nodes) = ([7; 32], std::num::NonZeroU32::MIN);
    /// let policies = RateLimits::new(Quota::per_second(1_000));
    /// let limits = RedisLimits::new(policies, RedisServer::single("redis://127.0.0.1:6379")?, secret, nodes)?
    ///     .with_leases(Leases::default());
    /// # let _ = limits;
    /// # Ok::<_, tollgate::limit::redis::RedisLimitsError>(())
    /// ```
    #[must_use]
    pub fn with_leases(mut self, leases: Leases) -> Self {
        let shared = self.shared_mut();
        shared.stocks = (!shared.limits.has_refunds()).then(|| Arc::new(Stocks::new(leases)));
        self
    }

    /// Whether Redis is asked, for those who watch it.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.shared.switch.state()
    }

    fn shared_mut(&mut self) -> &mut Shared {
        Arc::make_mut(&mut self.shared)
    }
}

impl Limiter for RedisLimits {
    type Future = RedisFuture;

    fn charge(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future> {
        self.shared.check(Some(grant), charge)
    }

    fn charge_anonymous(&self, charge: Charge<'_>) -> Answer<Self::Future> {
        match self.shared.limits.limits_anonymous() {
            true => self.shared.check(None, charge),
            false => Answer::Ready(Decision::unlimited()),
        }
    }

    fn for_route(mut self) -> Self {
        if self.shared.limits.follows_grants_by_default() {
            let shared = self.shared_mut();
            shared.limits = shared.limits.clone().for_route();
            shared.outage = shared.outage.clone().for_route();
            // What was remembered or bought is of other quotas.
            shared.denied = Arc::default();
            shared.stocks = shared.stocks.as_deref().map(|stocks| Arc::new(stocks.emptied()));
        }
        self
    }
}

impl fmt::Debug for RedisLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLimits")
            .field("limits", &self.shared.limits)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// A decision that Redis is asked for. Dropped before it is over, it may or may not have charged.
#[must_use = "futures do nothing unless they are polled"]
pub struct RedisFuture(Pin<Box<dyn Future<Output = Decision> + Send>>);

impl RedisFuture {
    pub(super) fn new(decision: impl Future<Output = Decision> + Send + 'static) -> Self {
        Self(Box::pin(decision))
    }
}

impl Future for RedisFuture {
    type Output = Decision;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Decision> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for RedisFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisFuture(..)")
    }
}
