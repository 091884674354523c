//! [`Grant`]: the data that stores keep for a token: the caller, its scopes, its quota and its validity.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::bucket_cache::BucketCache;
use super::names::{GrantId, Subject};
use super::scopes::{ScopeError, Scopes};
use super::terms::{SharedTerms, Terms, Validity, unix_ns};
use crate::quota::Quota;
use crate::token::TokenDigest;

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
    identity: Identity<P>,
}

/// The fields of a grant that copies for other tokens read from the first grant.
#[derive(Clone)]
enum Identity<P> {
    Own(GrantId, P),
    /// The grant that has the identifier and the principal, because principals need not be `Clone`. It is never a copy.
    Of(Arc<Grant<P>>),
}

impl<P: Clone> Clone for Grant<P> {
    /// Returns a grant with a clone of the principal. To share the principal, use [`copy_of`](Self::copy_of).
    fn clone(&self) -> Self {
        Self { head: self.head.clone(), identity: self.identity.clone() }
    }
}

/// The fields of a grant that do not depend on the type of its principal.
///
/// The first fields are those that each request reads. With many tokens, loading the cache lines of a grant dominates the
/// time of a request.
#[derive(Clone)]
#[repr(C)]
pub(crate) struct GrantHead {
    /// Set by stores whose tables contain only the grants. Other stores do not use it.
    digest: TokenDigest,
    /// The expiry in nanoseconds since 1970. `u64::MAX` means no expiry. [`IN_TERMS`](Self::IN_TERMS) means that the terms
    /// contain the validity, so that a request reads only this field of most grants.
    valid_until_ns: u64,
    bucket_cache: BucketCache,
    /// `None` for [`Terms::none`].
    terms: Option<Arc<Terms>>,
    subject: Subject,
}

impl<P> Grant<P> {
    /// Creates a grant whose subject is its identifier. The grant has no scopes, no quota of its own, and no limits of validity.
    pub fn new(id: impl Into<GrantId>, principal: P) -> Self {
        let id = id.into();
        let head = GrantHead {
            digest: TokenDigest::from_bytes([0; 32]),
            valid_until_ns: u64::MAX,
            bucket_cache: BucketCache::default(),
            terms: None,
            subject: Subject(id.0.clone()),
        };
        Self { head, identity: Identity::Own(id, principal) }
    }

    /// Returns a copy that shares the principal, which need not be `Clone`. The copy keeps the other grant, or the grant
    /// that it copies, in memory.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use tollgate::{Grant, Quota};
    ///
    /// struct NotClone;
    ///
    /// let grant = Arc::new(Grant::new("key-17", NotClone));
    /// let copy = Grant::copy_of(&grant).with_quota(Quota::per_minute(600));
    /// assert_eq!(copy.id(), grant.id());
    /// assert!(std::ptr::eq(copy.principal(), grant.principal()));
    /// ```
    #[must_use]
    pub fn copy_of(grant: &Arc<Self>) -> Self {
        let owner = match &grant.identity {
            Identity::Own(..) => grant,
            Identity::Of(owner) => owner,
        };
        Self { head: grant.head.clone(), identity: Identity::Of(Arc::clone(owner)) }
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
    /// In a [`MemoryStore`](crate::MemoryStore), grants with the same scopes and quota share the memory for them.
    ///
    /// # Errors
    ///
    /// Returns an error if a scope is empty or contains a character that RFC 6749 does not allow.
    pub fn with_scopes<I>(mut self, scopes: I) -> Result<Self, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        self.head.terms_mut().scopes = Scopes::new(scopes)?;
        Ok(self)
    }

    /// Sets scopes that have already been validated.
    #[cfg(any(feature = "jwt", feature = "sqlite", feature = "postgres"))]
    pub(crate) fn with_valid_scopes(mut self, scopes: Scopes) -> Self {
        self.head.terms_mut().scopes = scopes;
        self
    }

    /// Sets the quota of this grant, such as a customer's plan. It replaces the quota of at most one limit; see
    /// [`Limit`](crate::Limit#grants-quotas).
    ///
    /// Use the same quota for all tokens of one subject. Where quotas differ, each change between the tokens creates a new
    /// bucket under the lock of the limiter.
    #[must_use]
    pub fn with_quota(mut self, quota: Quota) -> Self {
        self.head.terms_mut().quota = Some(quota);
        // The cached buckets belong to the previous quota.
        self.head.bucket_cache = BucketCache::default();
        self
    }

    /// Sets the first moment at which the grant is valid. Default: no such limit.
    #[must_use]
    pub fn with_not_before(mut self, not_before: SystemTime) -> Self {
        self.head.change_validity(|validity| validity.not_before_ns = unix_ns(not_before));
        self
    }

    /// Sets the expiry: the grant is valid before this moment. Default: no expiry.
    #[must_use]
    pub fn with_expiry(mut self, expires_at: SystemTime) -> Self {
        self.head.set_expiry(unix_ns(expires_at));
        self
    }

    /// Binds the grant to a key that the sender must prove (DPoP, mutual TLS). Gates reject its token when it is sent as a
    /// plain Bearer token (RFC 9449, section 7.2).
    #[must_use]
    pub fn with_sender_constraint(mut self) -> Self {
        self.head.change_validity(|validity| validity.sender_constrained = true);
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
        Grant { head: self.head.clone(), identity: Identity::Own(self.id().clone(), principal) }
    }

    /// Returns the identifier of the grant.
    #[must_use]
    pub fn id(&self) -> &GrantId {
        match &self.identity {
            Identity::Own(id, _) => id,
            Identity::Of(owner) => owner.id(),
        }
    }

    /// Returns the subject, which owns the rate limit.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.head.subject
    }

    /// Returns the scopes.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        self.head.scopes()
    }

    /// Returns the quota of the grant, or `None` for the default quota of the limiter.
    #[must_use]
    pub fn quota(&self) -> Option<Quota> {
        self.head.quota()
    }

    /// Returns the first moment at which the grant is valid, if there is such a limit.
    #[must_use]
    pub fn not_before(&self) -> Option<SystemTime> {
        let not_before_ns = self.head.validity().not_before_ns;
        (not_before_ns != 0).then(|| UNIX_EPOCH + Duration::from_nanos(not_before_ns))
    }

    /// Returns the expiry, if there is one.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        let expires_ns = self.head.validity().expires_ns;
        (expires_ns != u64::MAX).then(|| UNIX_EPOCH + Duration::from_nanos(expires_ns))
    }

    /// Returns whether the sender must prove a key.
    #[must_use]
    pub fn is_sender_constrained(&self) -> bool {
        self.head.is_sender_constrained()
    }

    /// Returns whether the token was rotated. Rotated tokens are valid for their grace period only.
    #[must_use]
    pub fn is_rotated(&self) -> bool {
        self.head.terms().rotated
    }

    /// Marks the grant as rotated, and limits its expiry to the end of the grace period, if there is one. The expiry is
    /// never extended.
    pub(crate) fn into_rotated(mut self, grace_ends: Option<SystemTime>) -> Self {
        self.head.terms_mut().rotated = true;
        self.head.set_expiry(self.head.validity().expires_ns.min(grace_ends.map_or(u64::MAX, unix_ns)));
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
        match &self.identity {
            Identity::Own(_, principal) => principal,
            Identity::Of(owner) => owner.principal(),
        }
    }

    pub(crate) fn head(&self) -> &GrantHead {
        &self.head
    }

    /// Returns whether the grant shares the principal of the grant with this head.
    pub(crate) fn is_copy_of(&self, other: &GrantHead) -> bool {
        matches!(&self.identity, Identity::Of(owner) if std::ptr::eq(owner.head(), other))
    }

    /// Returns the digest under which a store in memory keeps the grant.
    pub(crate) fn digest(&self) -> &TokenDigest {
        &self.head.digest
    }

    /// Shares the terms with grants that have equal ones.
    pub(crate) fn share_terms(&mut self, all: &mut SharedTerms) {
        if let Some(terms) = &mut self.head.terms {
            all.share(terms);
        }
    }

    pub(crate) fn with_digest(mut self, digest: TokenDigest) -> Self {
        self.head.digest = digest;
        self
    }
}

impl GrantHead {
    pub(crate) fn subject(&self) -> &Subject {
        &self.subject
    }

    pub(crate) fn scopes(&self) -> &Scopes {
        &self.terms().scopes
    }

    #[inline]
    pub(crate) fn quota(&self) -> Option<Quota> {
        self.terms.as_ref()?.quota
    }

    pub(crate) fn bucket_cache(&self) -> &BucketCache {
        &self.bucket_cache
    }

    /// Returns whether the validity of the grant depends on the time.
    #[inline]
    pub(crate) fn is_bounded_in_time(&self) -> bool {
        match self.valid_until_ns {
            u64::MAX => false,
            Self::IN_TERMS => {
                let validity = self.validity();
                validity.not_before_ns != 0 || validity.expires_ns != u64::MAX
            }
            _ => true,
        }
    }

    pub(crate) fn is_expired(&self, now: SystemTime) -> bool {
        let expires_ns = self.validity().expires_ns;
        unix_ns(now) >= expires_ns && expires_ns != u64::MAX
    }

    pub(crate) fn is_not_yet_valid(&self, now: SystemTime) -> bool {
        unix_ns(now) < self.validity().not_before_ns
    }

    #[inline]
    pub(crate) fn is_sender_constrained(&self) -> bool {
        self.validity().sender_constrained
    }

    /// The value of `valid_until_ns` if the terms contain the validity.
    const IN_TERMS: u64 = 0;

    fn terms(&self) -> &Terms {
        self.terms.as_deref().unwrap_or_else(|| Terms::none())
    }

    fn terms_mut(&mut self) -> &mut Terms {
        Arc::make_mut(self.terms.get_or_insert_default())
    }

    #[inline]
    fn validity(&self) -> Validity {
        let in_head = Validity { not_before_ns: 0, expires_ns: self.valid_until_ns, sender_constrained: false };
        match self.valid_until_ns {
            Self::IN_TERMS => self.terms().validity.unwrap_or(in_head),
            _ => in_head,
        }
    }

    fn set_expiry(&mut self, expires_ns: u64) {
        match self.valid_until_ns != Self::IN_TERMS && expires_ns != Self::IN_TERMS {
            // The terms do not change, so that they remain shared.
            true => self.valid_until_ns = expires_ns,
            false => self.change_validity(|validity| validity.expires_ns = expires_ns),
        }
    }

    /// Changes the validity, which is kept in the terms from then on.
    fn change_validity(&mut self, change: impl FnOnce(&mut Validity)) {
        let mut validity = self.validity();
        change(&mut validity);
        self.terms_mut().validity = Some(validity);
        self.valid_until_ns = Self::IN_TERMS;
    }
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

#[cfg(all(test, not(tollgate_shuttle), target_pointer_width = "64"))]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    /// A grant takes the most of what a store in memory keeps for a token. Memory is allocated in blocks of a multiple of
    /// 16 bytes, 8 of them for glibc. So 152 bytes with both counts of the `Arc` fit into 160, and one more field would take 16.
    #[test]
    fn grant_fits_into_160_bytes_of_memory() {
        assert_eq!(16 + size_of::<Grant<u64>>(), 152);
        // The identifier leaves room for the variant.
        assert_eq!((size_of::<Identity<u64>>(), size_of::<Subject>()), (32, 24));
    }

    /// What an admitted request reads: the counts, the digest, the validity, and the own bucket of 24 bytes. 80 bytes that
    /// begin at a multiple of 16 are in two cache lines, wherever they begin.
    #[test]
    fn admitted_request_reads_the_first_80_bytes_of_a_grant() {
        assert_eq!(16 + offset_of!(Grant<u64>, head) + offset_of!(GrantHead, bucket_cache) + 24, 80);
        assert_eq!(size_of::<BucketCache>(), 24 + 8);
    }

    /// The tables of stores and limiters contain these, and a byte of the hash for each.
    #[test]
    fn entry_of_a_table_is_a_thin_pointer() {
        assert_eq!(size_of::<Arc<Grant<u64>>>(), 8);
        assert_eq!(size_of::<Arc<crate::grant::bucket_cache::SharedBucket>>(), 8);
    }

    #[test]
    fn validity_is_the_same_in_any_order_of_the_setters() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let new = || Grant::new("g", ());
        let grants = [
            new().with_not_before(at(10)).with_expiry(at(20)).with_sender_constraint(),
            new().with_sender_constraint().with_expiry(at(20)).with_not_before(at(10)),
            new().with_expiry(at(20)).with_not_before(at(10)).with_sender_constraint(),
            new().with_expiry(at(0)).with_expiry(at(20)).with_sender_constraint().with_not_before(at(10)),
        ];
        for grant in grants {
            assert_eq!((grant.not_before(), grant.expires_at()), (Some(at(10)), Some(at(20))));
            assert!(grant.is_sender_constrained());
            assert_eq!([9, 10, 19, 20].map(|seconds| grant.is_valid_at(at(seconds))), [false, true, true, false]);
            let rotated = grant.into_rotated(Some(at(15)));
            assert_eq!((rotated.expires_at(), rotated.not_before()), (Some(at(15)), Some(at(10))));
        }
        let expired = new().with_expiry(at(0));
        assert_eq!(expired.expires_at(), Some(at(0)));
        assert!(!expired.is_valid_at(at(0)) && !expired.is_sender_constrained());
    }
}
