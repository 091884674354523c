//! The limiter [`RedisLimits`] and its settings.

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
use super::key::Keys;
use super::lease::Leases;
use super::local_cache::LocalCaches;
use super::outage::{Fallback, OutagePolicy};
use super::server::RedisServer;
use crate::caller::CurrentGrant;
use crate::limit::limit::Scope;
use crate::limit::{Charge, LimitError, Limiter, RateLimits};
use crate::pending::answer::Answer;
use crate::pending::breaker::{Backoff, BackoffError, Breaker, BreakerState};
use crate::quota::Quota;
use crate::quota::clock::Clock;
use crate::quota::decision::Decision;

/// A [`Limiter`] with buckets in Redis, shared by all servers with the same Redis, prefix and secret.
///
/// The policies, costs and clock are those of the [`RateLimits`] given to [`new`](Self::new). Clones share connections, cached
/// rejections and leases. Local buckets are used only while Redis is unavailable.
///
/// # Refunds
///
/// [Refunds](RateLimits::with_refunds) follow the same rules as in memory, over all servers. With refunds no rejection is cached, since
/// another server may refund units. A refund is lost if Redis does not reply in time, or if the refund cannot be sent within the
/// queue timeout.
///
/// # Example
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
/// A charge waits in the queue for at most the [queue timeout](Self::with_queue_timeout), then for the reply for at most the
/// [timeout](Self::with_timeout). If there is no connection, it waits for one for at most the timeout. That is 1 second in total by
/// default. With [leases](Self::with_leases) a charge may first wait for a concurrent lease request, for half of the timeout. The rules of
/// [this module](crate::limit::redis) list what follows each timeout.
///
/// Charges use tokio's timers and must be polled on a tokio runtime.
#[derive(Clone)]
pub struct RedisLimits {
    shared: Arc<Shared>,
}

const TIMEOUT: Duration = Duration::from_millis(250);
const IN_FLIGHT: usize = 256;

/// Creates a circuit breaker with the name in metrics and events.
pub(super) fn breaker(timeout: Duration) -> Breaker {
    let mut breaker = Breaker::new(timeout);
    breaker.set_name("redis");
    breaker
}

impl RedisLimits {
    /// Creates a limiter with the policies, costs, dry runs and refunds of `limits`.
    ///
    /// `secret` has at least 32 random bytes and is the same on all servers. It hides subjects from Redis. A new secret starts with
    /// full buckets.
    ///
    /// `nodes` is the number of servers that share the buckets, or more. While Redis is unavailable, each server admits its part of the
    /// quota. If the number is too small, all servers together admit too much in an outage.
    ///
    /// Connects to Redis with the first charge, not before.
    ///
    /// # Errors
    ///
    /// Returns an error if the secret is too short. Returns an error if Redis is a cluster and some policies are
    /// [shared by all](crate::Limit::shared_by_all) while others are per subject: these are in different slots, and cannot be charged in
    /// one step.
    pub fn new(
        limits: RateLimits,
        redis: RedisServer,
        secret: impl AsRef<[u8]>,
        nodes: NonZeroU32,
    ) -> Result<Self, RedisLimitsError> {
        let keys = Keys::new(secret.as_ref())?;
        let link = Link::new(redis);
        let has = |scope| limits.states().iter().any(|state| state.limit().scope == scope);
        if link.is_cluster() && has(Scope::Subject) && has(Scope::All) {
            return Err(RedisLimitsError::SharedOnCluster);
        }
        let mut breaker = breaker(TIMEOUT);
        breaker.set_clock(Arc::clone(&limits.time) as Arc<dyn Clock>);
        let shared = Shared {
            keys: Arc::new(keys),
            link: Arc::new(link),
            timeout: TIMEOUT,
            breaker,
            caches: Arc::default(),
            fallback: Fallback::new(&limits, OutagePolicy::default(), nodes),
            nodes,
            limits,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            queue_timeout: None,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Sets the prefix of all keys. Default: `tollgate:`. Services with different prefixes have separate buckets.
    ///
    /// # Errors
    ///
    /// Returns an error if the prefix contains a brace, which would change the slot of the key in a cluster.
    pub fn with_prefix(mut self, prefix: &str) -> Result<Self, RedisLimitsError> {
        let keys = Keys::clone(&self.shared.keys).with_prefix(prefix)?;
        let shared = self.shared_mut();
        shared.keys = Arc::new(keys);
        // Another prefix has other buckets.
        shared.caches = Arc::new(shared.caches.cleared());
        shared.fallback = shared.fallback.with_full_buckets(&shared.limits, shared.nodes);
        Ok(self)
    }

    /// Sets the timeout for a reply of Redis. Default: 250 milliseconds.
    ///
    /// The time begins when the command is handed to the connection. A charge waits for a connection for at most the same time,
    /// separately. Time in which the whole process does not run is not counted.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        let shared = self.shared_mut();
        shared.timeout = timeout;
        shared.breaker.set_timeout(timeout);
        self
    }

    /// Sets how many commands may be in flight. Default: 256. Further charges wait in a queue.
    ///
    /// A server makes at most this number of charges per round trip: with 256 commands and 2 milliseconds, 128,000 charges per second. A
    /// larger number helps only if Redis is far away, and increases the latency of each reply. Clones made after this call share the
    /// limit.
    #[must_use]
    pub fn with_max_in_flight(mut self, commands: NonZeroU32) -> Self {
        let commands = usize::try_from(commands.get()).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        self.shared_mut().in_flight = Arc::new(Semaphore::new(commands));
        self
    }

    /// Sets how long a charge may wait in the queue of [`with_max_in_flight`](Self::with_max_in_flight). Default: twice the timeout.
    ///
    /// After the queue timeout the charge is rejected with 503 ([`Verdict::Unavailable`](crate::Verdict::Unavailable)) under any
    /// [`OutagePolicy`]: Redis is available, so a local decision would exceed what Redis admits. Dry runs reject nothing. The circuit
    /// breaker does not count queue timeouts. With a queue timeout below the timeout, the first charges of an outage are rejected with
    /// 503.
    #[must_use]
    pub fn with_queue_timeout(mut self, queue_timeout: Duration) -> Self {
        self.shared_mut().queue_timeout = Some(queue_timeout);
        self
    }

    /// Sets the policy for charges while Redis is unavailable. Default: [`OutagePolicy::Local`].
    #[must_use]
    pub fn with_outage_policy(mut self, policy: OutagePolicy) -> Self {
        let shared = self.shared_mut();
        // Clones with this policy share their local buckets.
        if !matches!((&shared.fallback, policy), (Fallback::Local(_), OutagePolicy::Local)) {
            shared.fallback = Fallback::new(&shared.limits, policy, shared.nodes);
        }
        self
    }

    /// Sets the number of consecutive failures that open the circuit breaker. Default: 5. While it is open, Redis is not asked.
    ///
    /// Each node of a cluster has its own circuit breaker. A failure is an error, a timeout, or a charge that is dropped after half of
    /// the [timeout](Self::with_timeout) or later.
    #[must_use]
    pub fn with_failure_threshold(mut self, failures: NonZeroU32) -> Self {
        self.shared_mut().breaker.set_failure_threshold(failures);
        self
    }

    /// Sets the pauses of the circuit breaker before it probes Redis. Default: 1 second, up to 30 seconds.
    ///
    /// The pause is `first` after the breaker opens, and doubles with each failed probe up to `longest`.
    ///
    /// # Errors
    ///
    /// Returns an error if `longest` is shorter than `first`.
    pub fn with_backoff(mut self, first: Duration, longest: Duration) -> Result<Self, BackoffError> {
        self.shared_mut().breaker.set_backoff(Backoff::new(first, longest)?);
        Ok(self)
    }

    /// Charges units in advance by the rules of [`Leases`], so that most charges are decided immediately. Default: no leases, each
    /// charge asks Redis.
    ///
    /// All servers of one prefix must have leases or refunds, not some leases and others refunds.
    ///
    /// # Errors
    ///
    /// Returns an error if the limits have [refunds](RateLimits::with_refunds): a refund of leased units would return too much.
    ///
    /// # Example
    ///
    /// ```
    /// use tollgate::limit::redis::{Leases, RedisLimits, RedisServer};
    /// use tollgate::{Quota, RateLimits};
    ///
    /// # let (secret, nodes) = ([7; 32], std::num::NonZeroU32::MIN);
    /// let policies = RateLimits::new(Quota::per_second(1_000));
    /// let limits = RedisLimits::new(policies, RedisServer::single("redis://127.0.0.1:6379")?, secret, nodes)?
    ///     .with_leases(Leases::default())?;
    /// # let _ = limits;
    /// # Ok::<_, tollgate::limit::redis::RedisLimitsError>(())
    /// ```
    pub fn with_leases(mut self, leases: Leases) -> Result<Self, RedisLimitsError> {
        let shared = self.shared_mut();
        if shared.limits.has_refunds() {
            return Err(RedisLimitsError::LeasesWithRefunds);
        }
        shared.caches = Arc::new(LocalCaches::with_leases(leases));
        Ok(self)
    }

    /// Changes the quotas of the limits with these names, for all clones of this limiter. See [`RateLimits::set_quotas`].
    ///
    /// Change the quotas on all servers. Meanwhile each server decides by its own quotas. The units in a bucket are carried over
    /// at each charge by a server with another quota, rounded up to microseconds. The bound of [leases](Leases) has an exception for
    /// a change of quota.
    ///
    /// A concurrent charge of several limits may use the new quotas of some and the old quotas of others.
    ///
    /// # Errors
    ///
    /// [`LimitError::Unknown`] if a name is not that of a limit. No quota changes then.
    pub fn set_quotas<'a>(&self, quotas: impl IntoIterator<Item = (&'a str, Quota)>) -> Result<(), LimitError> {
        self.shared.limits.set_quotas(quotas)
    }

    /// Changes the quotas of anonymous callers, see [`RateLimits::set_anonymous_quotas`] and [`set_quotas`](Self::set_quotas).
    ///
    /// # Errors
    ///
    /// [`LimitError::Unknown`] if a name is not that of a limit, or if the limit has no quota for anonymous callers. No quota
    /// changes then.
    pub fn set_anonymous_quotas<'a>(
        &self,
        quotas: impl IntoIterator<Item = (&'a str, Quota)>,
    ) -> Result<(), LimitError> {
        self.shared.limits.set_anonymous_quotas(quotas)
    }

    /// Returns the state of the circuit breaker. Each node of a cluster has its own: open if one of them is open, otherwise half-open
    /// if one is half-open.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.shared.state()
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    fn shared_mut(&mut self) -> &mut Shared {
        Arc::make_mut(&mut self.shared)
    }
}

impl Limiter for RedisLimits {
    type Future = RedisFuture;

    fn charge(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future> {
        self.shared.charge(Some(grant), charge)
    }

    fn charge_anonymous(&self, charge: Charge<'_>) -> Answer<Self::Future> {
        match self.shared.limits.limits_anonymous() {
            true => self.shared.charge(None, charge),
            false => Answer::Ready(Decision::unlimited()),
        }
    }

    fn for_route(mut self) -> Self {
        if self.shared.limits.follows_grants_by_default() {
            let shared = self.shared_mut();
            shared.limits = shared.limits.clone().for_route();
            shared.fallback = shared.fallback.clone().for_route();
            // Cached rejections and leases belong to other quotas.
            shared.caches = Arc::new(shared.caches.cleared());
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

/// A pending decision of [`RedisLimits`].
///
/// If the future is dropped before it completes, the charge may or may not have been made.
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
