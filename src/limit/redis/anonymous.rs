//! [`RedisAnonymousLimits`]: limits of clients without a grant, shared by several servers.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::charge::{ChargeRequest, Shared};
use super::gcra::Part;
use super::limits::{RedisFuture, RedisLimits};
use crate::caller::CurrentGrant;
use crate::limit::{AnonymousLimits, Charge, Limiter, RateLimits, Unlimited};
use crate::pending::answer::Answer;
use crate::quota::Quota;
use crate::quota::decision::Decision;

/// [`AnonymousLimits`] with its buckets in Redis, shared by all servers with the same Redis, prefix and secret.
///
/// The connection, prefix, secret, timeouts, circuit breaker and outage policy are those of a [`RedisLimits`] at the time of
/// [`new`](Self::new).
///
/// ```
/// use tollgate::limit::redis::{RedisAnonymousLimits, RedisLimits, RedisServer};
/// use tollgate::limit::{AnonymousLimits, ClientIp, RateLimits};
/// use tollgate::{AuthLayer, Grant, MemoryStore, Quota, TokenDigest};
///
/// # let (secret, nodes) = ([7; 32], std::num::NonZeroU32::MIN);
/// let callers = RateLimits::new(Quota::per_minute(600));
/// let callers = RedisLimits::new(callers, RedisServer::single("redis://127.0.0.1:6379")?, secret, nodes)?;
/// let per_address = AnonymousLimits::by_client_ip(Quota::per_minute(60), ClientIp::peer())?;
/// let limits = RedisAnonymousLimits::new(&per_address.with_authenticated(callers.clone()), &callers);
///
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
/// let gate = AuthLayer::new(tokens).allow_anonymous().with_rate_limit(limits);
/// # let _ = gate;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// # Memory
///
/// Redis has at most an eighth as many keys as the [number of buckets](AnonymousLimits::with_capacity): 8,192 by default. Each
/// holds up to eight buckets, in less than 1 KiB. Keys expire when their buckets are full. The rules of [`AnonymousLimits`] about
/// floods of addresses hold for all servers together. All servers must have the same number of buckets.
///
/// Limits with the same name share their buckets in Redis. Create each of several limits by [`Limit::new`](crate::Limit::new) with a
/// name of its own.
///
/// The place of a client's bucket is a keyed hash of what its key gives to a [`Hasher`](std::hash::Hasher). Servers share a bucket
/// if they compute the same key.
#[derive(Clone)]
pub struct RedisAnonymousLimits<L = Unlimited> {
    shared: Arc<Shared>,
    limits: AnonymousLimits<L>,
}

impl<L: Clone> RedisAnonymousLimits<L> {
    /// Creates a limiter with the limit, key and number of buckets of `limits`, and with the Redis of `redis`.
    ///
    /// Buckets of `limits` in memory are not used. The outage policy is that of `redis`. Under
    /// [`OutagePolicy::Local`](super::OutagePolicy::Local), each server has local buckets while Redis is unavailable.
    #[must_use]
    pub fn new(limits: &AnonymousLimits<L>, redis: &RedisLimits) -> Self {
        let mut limit = limits.limit().clone();
        limit.name = limit.anonymous_name();
        limit.quota = limits.quota();
        let shared = redis.shared();
        let shared = Shared {
            caches: Arc::default(),
            fallback: shared.fallback.for_keys(&limits.with_new_table()),
            limits: RateLimits::new(limit).with_time(&shared.limits.time),
            ..Shared::clone(shared)
        };
        Self { shared: Arc::new(shared), limits: limits.clone() }
    }
}

impl<L> RedisAnonymousLimits<L> {
    /// Returns the current quota.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.shared.limits.states()[0].quota()
    }

    /// Changes the quota, for all clones of this limiter. Used units are carried over. Change the quota on all servers, see
    /// [`RedisLimits::set_quotas`].
    pub fn set_quota(&self, quota: Quota) {
        self.shared.limits.states()[0].set_quota(quota);
    }

    fn charge_key(&self, charge: Charge<'_>) -> Answer<RedisFuture> {
        let (limit, policy) = (self.limits.limit(), self.shared.limits.states()[0].policy(None));
        let tag = self.shared.keys.tag_of_client(self.limits.key_bytes(charge).as_deref());
        let [set, hash] =
            [0, 8].map(|at| tag[at..at + 8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte)));
        let key = self.shared.keys.of_set(set % (self.limits.capacity() as u64 / 8), policy.name());
        let cost = limit.cost(charge);
        let part = Part { at: 0, key, policy, cost, binds: !limit.is_dry_run };
        let is_look = matches!(charge, Charge::Units(0));
        self.shared.begin(ChargeRequest { tag, parts: vec![part], grant: None, is_look, hash: Some(hash) })
    }
}

impl<L: Limiter> Limiter for RedisAnonymousLimits<L> {
    type Future = RedisAnonymousFuture<L::Future>;

    fn charge(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future> {
        match self.limits.authenticated().charge(grant, charge) {
            Answer::Ready(decision) => Answer::Ready(decision),
            Answer::Pending(future) => Answer::Pending(RedisAnonymousFuture { state: State::Authenticated { future } }),
        }
    }

    fn charge_anonymous(&self, charge: Charge<'_>) -> Answer<Self::Future> {
        match self.charge_key(charge) {
            Answer::Ready(decision) => Answer::Ready(decision),
            Answer::Pending(future) => Answer::Pending(RedisAnonymousFuture { state: State::Anonymous { future } }),
        }
    }

    fn for_route(self) -> Self {
        Self { limits: self.limits.for_route(), ..self }
    }
}

impl<L: fmt::Debug> fmt::Debug for RedisAnonymousLimits<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisAnonymousLimits")
            .field("limits", &self.limits)
            .field("quota", &self.quota())
            .field("state", &self.shared.state())
            .finish_non_exhaustive()
    }
}

pin_project_lite::pin_project! {
    /// A pending decision of [`RedisAnonymousLimits`].
    ///
    /// If the future is dropped before it completes, the charge may or may not have been made.
    #[must_use = "futures do nothing unless they are polled"]
    pub struct RedisAnonymousFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project_lite::pin_project! {
    #[project = StateProj]
    enum State<F> {
        Anonymous { #[pin] future: RedisFuture },
        Authenticated { #[pin] future: F },
    }
}

impl<F: Future<Output = Decision>> Future for RedisAnonymousFuture<F> {
    type Output = Decision;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Decision> {
        match self.project().state.project() {
            StateProj::Anonymous { future } => future.poll(cx),
            StateProj::Authenticated { future } => future.poll(cx),
        }
    }
}

impl<F> fmt::Debug for RedisAnonymousFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisAnonymousFuture(..)")
    }
}
