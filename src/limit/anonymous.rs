//! [`AnonymousLimits`]: a limit for each client without a grant, by its address or another key.

use std::fmt;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::Arc;

use super::key_table::KeyTable;
use super::limit::Limit;
use super::refunds::{MadeCharge, RefundTotals};
use super::state::decision_of;
use super::{Charge, ClientIp, Clock, LimitError, Limiter, Time, Unlimited};
use crate::caller::CurrentGrant;
use crate::observe;
use crate::pending::answer::Answer;
use crate::quota::Quota;
use crate::quota::decision::Decision;
use crate::quota::policy::Policy;
use crate::quota::refund::Refund;
use crate::request_head::RequestHead;

/// A rate limit for each client without a grant, by its address or another key.
///
/// Use it for public routes, and for the anonymous callers of a gate. Authenticated callers are not limited, unless
/// [`with_authenticated`](Self::with_authenticated) adds their limits.
///
/// ```
/// use tollgate::limit::{AnonymousLimits, ClientIp, RateLimits};
/// use tollgate::{AuthLayer, Grant, MemoryStore, Quota, TokenDigest};
///
/// // A public route: no tokens, 60 requests in a minute for each address.
/// let per_address = AnonymousLimits::by_client_ip(Quota::per_minute(60), ClientIp::peer())?;
/// let public = AuthLayer::anonymous().with_rate_limit(per_address.clone());
///
/// // A gate: callers with a token have their own limit, all others that of their address.
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
/// let limits = per_address.with_authenticated(RateLimits::new(Quota::per_minute(600)));
/// let gate = AuthLayer::new(tokens).allow_anonymous().with_rate_limit(limits);
/// # let _ = (public, gate);
/// # Ok::<_, tollgate::LimitError>(())
/// ```
///
/// Serve an axum router with `into_make_service_with_connect_info::<SocketAddr>()`, so that requests have an address.
///
/// # Rules
///
/// 1. Each key has its own bucket. In any time `t`, a key is admitted at most `burst + rate x t` units.
/// 2. Requests without a key share one bucket. With [`by_client_ip`](Self::by_client_ip) these are requests without an address.
///    [`Charge::Units`] is charged to this bucket too, because it has no request.
/// 3. CORS preflights are charged like other anonymous requests.
/// 4. Clones share the buckets.
///
/// # Memory
///
/// The table has a fixed number of [buckets](Self::with_capacity) of 20 bytes: 65,536 by default, which take 1.25 MiB. It is
/// allocated at creation.
///
/// A client with many addresses cannot make the table grow, and cannot regain units by using other addresses. The buckets are in sets
/// of eight. While the set of a new address is full, the address inherits the used units of its least used bucket. So it is admitted
/// less, and never more. If half as many addresses as buckets are in use at the same time, about 2 % of the sets have more addresses
/// than buckets; if as many, about 41 %. An address that has used most of its units keeps its bucket.
///
/// In any time `t`, all addresses together are admitted at most `capacity x (burst + rate x t)` units. A flood from very many
/// addresses makes new addresses wait.
#[derive(Clone)]
pub struct AnonymousLimits<L = Unlimited> {
    limit: Limit,
    table: Arc<KeyTable>,
    key: Arc<KeyOf>,
    #[cfg(feature = "redis")]
    key_bytes: Arc<KeyBytes>,
    time: Arc<Time>,
    /// By the hash of the key. Set if charges can be refunded.
    refund_totals: Option<Arc<RefundTotals<u64>>>,
    authenticated: L,
}

/// Returns the hash of the key of a request, or `None` for requests without a key.
type KeyOf = dyn Fn(&RequestHead<'_>) -> Option<u64> + Send + Sync;

/// Returns the bytes of the key of a request that hashers get, or `None` for requests without a key.
#[cfg(feature = "redis")]
type KeyBytes = dyn Fn(&RequestHead<'_>) -> Option<Vec<u8>> + Send + Sync;

const CAPACITY: usize = 65_536;

impl AnonymousLimits {
    /// Creates a limit for each client address, reduced to the prefix of [`ClientIp::with_ipv6_prefix`].
    ///
    /// # Errors
    ///
    /// [`LimitError::NotForAnonymous`], as for [`new`](Self::new).
    pub fn by_client_ip(limit: impl Into<Limit>, address: ClientIp) -> Result<Self, LimitError> {
        Self::new(limit, move |head| address.bits_of(head))
    }

    /// Creates a limit for each key. `key` returns the key of a request, or `None` for requests that share one bucket.
    ///
    /// The client must not be able to choose its key freely. Otherwise it would have a new bucket for each request.
    ///
    /// # Errors
    ///
    /// [`LimitError::NotForAnonymous`] if the limit has [`shared_by_all`](Limit::shared_by_all),
    /// [`with_anonymous`](Limit::with_anonymous) or [`with_grant_quotas`](Limit::with_grant_quotas), which would have no effect.
    pub fn new<K: Hash>(
        limit: impl Into<Limit>,
        key: impl Fn(&RequestHead<'_>) -> Option<K> + Send + Sync + 'static,
    ) -> Result<Self, LimitError> {
        let limit = limit.into();
        if limit.is_for_grants() {
            return Err(LimitError::NotForAnonymous);
        }
        // SipHash with a random key. Clients see in `RateLimit` which of their own addresses share a set. With a weaker hash they could
        // compute from that which of their addresses share the set of another client.
        let (key, keys) = (Arc::new(key), RandomState::new());
        let policy = Policy::named(&limit.anonymous_name(), limit.quota());
        Ok(Self {
            refund_totals: limit.refund_if.is_some().then(Arc::default),
            limit,
            table: Arc::new(KeyTable::new(CAPACITY, &policy)),
            #[cfg(feature = "redis")]
            key_bytes: {
                let key = Arc::clone(&key);
                Arc::new(move |head| key(head).map(|key| Bytes::of(&key)))
            },
            key: Arc::new(move |head| key(head).map(|key| keys.hash_one(key))),
            time: Arc::new(Time::counter()),
            authenticated: Unlimited,
        })
    }

    /// Sets the limiter of callers with a grant. Default: they are not limited.
    #[must_use]
    pub fn with_authenticated<L: Limiter>(self, limiter: L) -> AnonymousLimits<L> {
        self.map_authenticated(|_| limiter)
    }
}

impl<L> AnonymousLimits<L> {
    /// Sets the number of buckets, from 64 to 2^24. The number is rounded up to a power of two. Default: 65,536.
    ///
    /// Call this method before the limiter is cloned.
    ///
    /// # Errors
    ///
    /// [`LimitError::Capacity`] if the number is out of range.
    ///
    /// # Panics
    ///
    /// Panics if a clone exists. It would keep the old buckets, so each key would get twice its quota.
    #[track_caller]
    pub fn with_capacity(self, buckets: usize) -> Result<Self, LimitError> {
        match (64..=1 << 24).contains(&buckets) {
            true => Ok(self.with_full_buckets(buckets)),
            false => Err(LimitError::Capacity),
        }
    }

    /// Sets the clock. Default: the monotonic clock of the system. All buckets are full afterwards.
    ///
    /// Call this method before the limiter is cloned.
    ///
    /// # Panics
    ///
    /// Panics if a clone exists. It would keep the old buckets, so each key would get twice its quota.
    #[must_use]
    #[track_caller]
    pub fn with_clock(self, clock: impl Clock) -> Self {
        let capacity = self.table.capacity();
        Self { time: Arc::new(Time::Given(Arc::new(clock))), ..self.with_full_buckets(capacity) }
    }

    #[track_caller]
    fn with_full_buckets(self, capacity: usize) -> Self {
        let is_unshared = Arc::strong_count(&self.table) == 1;
        assert!(is_unshared, "`AnonymousLimits` must be set up before it is cloned");
        let table = KeyTable::new(capacity, &self.table.policy());
        Self { table: Arc::new(table), ..self }
    }

    /// Returns the current quota.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.table.policy().quota()
    }

    /// Changes the quota, for all clones of this limiter. Used units are carried over, as by
    /// [`RateLimits::set_quotas`](super::RateLimits::set_quotas). The call takes time in proportion to the number of buckets.
    pub fn set_quota(&self, quota: Quota) {
        self.change_quota(|| quota);
    }

    /// Returns the size of the table in bytes, which does not depend on the number of keys.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.table.memory_bytes()
    }

    /// Returns whether a request may cost more than one unit.
    #[cfg(feature = "utoipa")]
    pub(crate) fn has_costs(&self, of_authenticated: impl FnOnce(&L) -> bool) -> bool {
        self.limit.cost.is_some() || of_authenticated(&self.authenticated)
    }

    fn change_quota(&self, quota: impl FnOnce() -> Quota) {
        self.table.set_policy(|| Policy::named(&self.limit.anonymous_name(), quota()), || self.time.now_ns());
    }

    #[inline]
    fn charge_key(&self, charge: Charge<'_>) -> Decision {
        let cost = self.limit.cost(charge);
        let hash = match charge {
            Charge::Request(head) => (self.key)(head).unwrap_or(0),
            Charge::Units(_) => 0,
        };
        let decision = self.decide_hash(hash, cost);
        observe::charged(&decision, None);
        decision
    }

    /// Charges the bucket of the key with this hash. Emits no metrics.
    #[inline]
    pub(in crate::limit) fn decide_hash(&self, hash: u64, cost: u32) -> Decision {
        let now = self.time.now_ns();
        let mut decision = match &self.refund_totals {
            None => self.charge_hash(hash, now, cost),
            Some(totals) => self.charge_with_refund(totals, hash, now, cost),
        };
        self.limit.mark(&mut decision, None);
        decision
    }
}

impl<L> AnonymousLimits<L> {
    /// Changes the limiter of callers with a grant.
    fn map_authenticated<M>(self, change: impl FnOnce(L) -> M) -> AnonymousLimits<M> {
        AnonymousLimits {
            authenticated: change(self.authenticated),
            limit: self.limit,
            table: self.table,
            key: self.key,
            #[cfg(feature = "redis")]
            key_bytes: self.key_bytes,
            time: self.time,
            refund_totals: self.refund_totals,
        }
    }

    #[inline]
    fn charge_hash(&self, hash: u64, now: u64, cost: u32) -> Decision {
        let charged = self.table.charge(hash, now, cost);
        decision_of(charged.policy, charged.outcome, charged.before, now)
    }

    #[cold]
    fn charge_with_refund(&self, totals: &Arc<RefundTotals<u64>>, hash: u64, now: u64, cost: u32) -> Decision {
        // The total is read before the charge, so that no later refund is missed.
        let total = totals.of(hash);
        let refunded = total.get();
        let decision = self.charge_hash(hash, now, cost);
        let Some(made) = MadeCharge::of(&decision, now, cost) else { return decision };
        let (table, time, made) = (Arc::clone(&self.table), Arc::clone(&self.time), made.after(refunded));
        let refund = Refund::new(move || {
            total.refund(made, time.now_ns(), |ns| table.refund(hash, made.quota(), ns));
            std::future::ready(())
        });
        self.limit.with_refund(decision, refund, made.charged_ns())
    }
}

/// For limits in Redis.
#[cfg(feature = "redis")]
impl<L> AnonymousLimits<L> {
    pub(in crate::limit) fn limit(&self) -> &Limit {
        &self.limit
    }

    pub(in crate::limit) fn authenticated(&self) -> &L {
        &self.authenticated
    }

    pub(in crate::limit) fn capacity(&self) -> usize {
        self.table.capacity()
    }

    /// Returns the bytes of the key of a charge, or `None` for charges without a key.
    pub(in crate::limit) fn key_bytes(&self, charge: Charge<'_>) -> Option<Vec<u8>> {
        match charge {
            Charge::Request(head) => (self.key_bytes)(head),
            Charge::Units(_) => None,
        }
    }

    /// Returns this limit with a table of its own, without the limiter of callers with a grant.
    pub(in crate::limit) fn with_new_table(&self) -> AnonymousLimits {
        let table = Arc::new(KeyTable::new(self.table.capacity(), &self.table.policy()));
        AnonymousLimits {
            authenticated: Unlimited,
            limit: self.limit.clone(),
            table,
            key: Arc::clone(&self.key),
            key_bytes: Arc::clone(&self.key_bytes),
            time: Arc::clone(&self.time),
            refund_totals: self.refund_totals.is_some().then(Arc::default),
        }
    }

    /// Copies the quota of the first limit, divided among several nodes.
    pub(in crate::limit) fn follow(&self, limits: &super::RateLimits, nodes: std::num::NonZeroU32) {
        let quota = || limits.states()[0].quota().divided_by(nodes);
        if self.quota() != quota() {
            // Read again under the lock, so that the last of several concurrent changes is copied.
            self.change_quota(quota);
        }
    }
}

/// Collects what a value gives to a hasher.
#[cfg(feature = "redis")]
struct Bytes(Vec<u8>);

#[cfg(feature = "redis")]
impl Bytes {
    fn of(value: &impl Hash) -> Vec<u8> {
        let mut bytes = Self(Vec::new());
        value.hash(&mut bytes);
        bytes.0
    }
}

#[cfg(feature = "redis")]
impl std::hash::Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

impl<L: Limiter> Limiter for AnonymousLimits<L> {
    type Future = L::Future;

    #[inline]
    fn charge(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future> {
        self.authenticated.charge(grant, charge)
    }

    #[inline]
    fn charge_anonymous(&self, charge: Charge<'_>) -> Answer<Self::Future> {
        Answer::Ready(self.charge_key(charge))
    }

    fn for_route(self) -> Self {
        self.map_authenticated(L::for_route)
    }
}

impl<L: fmt::Debug> fmt::Debug for AnonymousLimits<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnonymousLimits")
            .field("limit", &self.limit)
            .field("quota", &self.quota())
            .field("capacity", &self.table.capacity())
            .field("authenticated", &self.authenticated)
            .finish_non_exhaustive()
    }
}
