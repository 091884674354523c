//! [`Grant`]: the data that stores keep for a token: the caller, its scopes, its quota and its validity.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::names::{GrantId, Subject};
use super::scopes::{ScopeError, Scopes};
use crate::quota::Quota;
use crate::quota::bucket::BucketCache;

/// The data that a store keeps for a token: the caller, its scopes, its quota and its validity.
///
/// By default, the subject of a grant is its identifier, so each token has its own rate limit. Tokens with the same subject
/// share one limit. Give all tokens of one customer the same subject, especially the old and the new token of a rotation.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tollgate::{Grant, Quota};
///
/// struct User { name: &'static str }
///
/// let grant = Grant::new("key-17", User { name: "Alice" })
///     .with_subject("alice")
///     .with_scopes(["trade"])?
///     .with_quota(Quota::per_minute(600).with_burst(50))
///     .with_expiry(SystemTime::now() + Duration::from_secs(3_600));
/// assert_eq!(grant.subject().as_str(), "alice");
/// # Ok::<_, tollgate::ScopeError>(())
/// ```
#[repr(C)]
pub struct Grant<P> {
    head: GrantHead,
    /// Shared, because a rotation copies a grant, and principals need not be `Clone`.
    principal: Arc<P>,
}

impl<P> Clone for Grant<P> {
    /// Returns a grant that shares the principal.
    fn clone(&self) -> Self {
        Self { head: self.head.clone(), principal: Arc::clone(&self.principal) }
    }
}

/// The fields of a grant that do not depend on the type of its principal.
///
/// The first fields are those that each request reads. With many tokens, loading the cache lines of a grant dominates the
/// time of a request.
#[derive(Clone)]
#[repr(C)]
pub(crate) struct GrantHead {
    quota: Option<Quota>,
    /// Nanoseconds since 1970. 0 means no start.
    not_before_ns: u64,
    /// Nanoseconds since 1970. `u64::MAX` means no expiry.
    expires_ns: u64,
    bucket_cache: BucketCache,
    sender_constrained: bool,
    /// Whether the token has a successor.
    rotated: bool,
    subject: Subject,
    id: GrantId,
    scopes: Scopes,
}

impl<P> Grant<P> {
    /// Creates a grant whose subject is its identifier. The grant has no scopes, no quota of its own, and no limits of validity.
    pub fn new(id: impl Into<GrantId>, principal: P) -> Self {
        let id = id.into();
        let head = GrantHead {
            bucket_cache: BucketCache::default(),
            quota: None,
            not_before_ns: 0,
            expires_ns: u64::MAX,
            sender_constrained: false,
            rotated: false,
            subject: id.0.clone().into(),
            id,
            scopes: Scopes::default(),
        };
        Self { head, principal: Arc::new(principal) }
    }

    /// Sets the subject, whose rate limit the grant shares. Default: the identifier of the grant.
    #[must_use]
    pub fn with_subject(mut self, subject: impl Into<Subject>) -> Self {
        self.head.subject = subject.into();
        // The cached buckets belong to the previous subject.
        self.head.bucket_cache = BucketCache::default();
        self
    }

    /// Sets the scopes. Default: none.
    ///
    /// # Errors
    ///
    /// Returns an error if a scope is empty or contains a character that RFC 6749 does not allow.
    pub fn with_scopes<I>(mut self, scopes: I) -> Result<Self, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        self.head.scopes = Scopes::new(scopes)?;
        Ok(self)
    }

    /// Sets scopes that have already been validated.
    #[cfg(any(feature = "jwt", feature = "sqlite", feature = "postgres"))]
    pub(crate) fn with_valid_scopes(mut self, scopes: Scopes) -> Self {
        self.head.scopes = scopes;
        self
    }

    /// Sets the quota of this grant, such as a customer's plan. It replaces the quota of at most one limit; see
    /// [`Limit`](crate::Limit#grants-quotas).
    ///
    /// Use the same quota for all tokens of one subject. Where quotas differ, each change between the tokens creates a new
    /// bucket under the lock of the limiter.
    #[must_use]
    pub fn with_quota(mut self, quota: Quota) -> Self {
        self.head.quota = Some(quota);
        // The cached buckets belong to the previous quota.
        self.head.bucket_cache = BucketCache::default();
        self
    }

    /// Sets the first moment at which the grant is valid. Default: no such limit.
    #[must_use]
    pub fn with_not_before(mut self, not_before: SystemTime) -> Self {
        self.head.not_before_ns = unix_ns(not_before);
        self
    }

    /// Sets the expiry: the grant is valid before this moment. Default: no expiry.
    #[must_use]
    pub fn with_expiry(mut self, expires_at: SystemTime) -> Self {
        self.head.expires_ns = unix_ns(expires_at);
        self
    }

    /// Binds the grant to a key that the sender must prove (DPoP, mutual TLS). Gates reject its token when it is sent as a
    /// plain Bearer token (RFC 9449, section 7.2).
    #[must_use]
    pub fn with_sender_constraint(mut self) -> Self {
        self.head.sender_constrained = true;
        self
    }

    /// Returns a grant with another principal, for [`store::try_map`](crate::store::try_map). All other data, such as the expiry,
    /// is copied.
    ///
    /// ```
    /// use tollgate::Grant;
    ///
    /// let grant = Grant::new("key-17", 17_u64).with_subject("alice").with_principal("Alice");
    /// assert_eq!((grant.subject().as_str(), *grant.principal()), ("alice", "Alice"));
    /// ```
    #[must_use]
    pub fn with_principal<Q>(&self, principal: Q) -> Grant<Q> {
        Grant { head: self.head.clone(), principal: Arc::new(principal) }
    }

    /// Returns the identifier of the grant.
    #[must_use]
    pub fn id(&self) -> &GrantId {
        &self.head.id
    }

    /// Returns the subject, which owns the rate limit.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.head.subject
    }

    /// Returns the scopes.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        &self.head.scopes
    }

    /// Returns the quota of the grant, or `None` for the default quota of the limiter.
    #[must_use]
    pub fn quota(&self) -> Option<Quota> {
        self.head.quota
    }

    /// Returns the first moment at which the grant is valid, if there is such a limit.
    #[must_use]
    pub fn not_before(&self) -> Option<SystemTime> {
        (self.head.not_before_ns != 0).then(|| UNIX_EPOCH + Duration::from_nanos(self.head.not_before_ns))
    }

    /// Returns the expiry, if there is one.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        (self.head.expires_ns != u64::MAX).then(|| UNIX_EPOCH + Duration::from_nanos(self.head.expires_ns))
    }

    /// Returns whether the sender must prove a key.
    #[must_use]
    pub fn is_sender_constrained(&self) -> bool {
        self.head.sender_constrained
    }

    /// Returns whether the token was rotated. Rotated tokens are valid for their grace period only.
    #[must_use]
    pub fn is_rotated(&self) -> bool {
        self.head.rotated
    }

    /// Marks the grant as rotated, and limits its expiry to the end of the grace period, if there is one. The expiry is
    /// never extended.
    pub(crate) fn into_rotated(mut self, grace_ends: Option<SystemTime>) -> Self {
        self.head.rotated = true;
        self.head.expires_ns = self.head.expires_ns.min(grace_ends.map_or(u64::MAX, unix_ns));
        self
    }

    /// Returns whether the dates of the grant allow its use at this moment.
    ///
    /// Gates check this at every request. A handler that outlives the request, such as a WebSocket handler, has to check
    /// again.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use tollgate::Grant;
    ///
    /// let end = SystemTime::now() + Duration::from_secs(60);
    /// let grant = Grant::new("alice", ()).with_expiry(end);
    /// assert!(grant.is_valid_at(SystemTime::now()));
    /// assert!(!grant.is_valid_at(end));
    /// ```
    #[must_use]
    pub fn is_valid_at(&self, time: SystemTime) -> bool {
        !self.head.is_not_yet_valid(time) && !self.head.is_expired(time)
    }

    /// Returns the principal: the caller as a type of the service.
    pub fn principal(&self) -> &P {
        &self.principal
    }

    pub(crate) fn head(&self) -> &GrantHead {
        &self.head
    }
}

impl GrantHead {
    pub(crate) fn id(&self) -> &GrantId {
        &self.id
    }

    pub(crate) fn subject(&self) -> &Subject {
        &self.subject
    }

    pub(crate) fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    pub(crate) fn quota(&self) -> Option<Quota> {
        self.quota
    }

    pub(crate) fn bucket_cache(&self) -> &BucketCache {
        &self.bucket_cache
    }

    /// Returns whether the validity of the grant depends on the time.
    pub(crate) fn is_bounded_in_time(&self) -> bool {
        self.not_before_ns != 0 || self.expires_ns != u64::MAX
    }

    pub(crate) fn is_expired(&self, now: SystemTime) -> bool {
        unix_ns(now) >= self.expires_ns && self.expires_ns != u64::MAX
    }

    pub(crate) fn is_not_yet_valid(&self, now: SystemTime) -> bool {
        unix_ns(now) < self.not_before_ns
    }

    pub(crate) fn is_sender_constrained(&self) -> bool {
        self.sender_constrained
    }
}

/// Returns the nanoseconds since 1970. Earlier times are 0; times after the year 2554 are `u64::MAX`.
fn unix_ns(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

impl<P> fmt::Debug for Grant<P> {
    /// Omits the principal, which may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("id", self.id())
            .field("subject", self.subject())
            .field("scopes", self.scopes())
            .field("quota", &self.quota())
            .field("not_before", &self.not_before())
            .field("expires_at", &self.expires_at())
            .finish_non_exhaustive()
    }
}
