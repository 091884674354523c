//! The guard for services whose callers issue tokens for themselves.

use thiserror::Error;

use super::NewGrant;
use crate::caller::CurrentGrant;
use crate::grant::scopes::Scopes;
use crate::quota::Quota;

/// The error of a new grant that allows more than the grant of the caller who asks for it.
///
/// The text is safe for clients.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExceedsCallerError {
    /// The new grant has another subject, and so other rate limits.
    #[error("the new grant has another subject than the caller")]
    Subject,
    /// The caller lacks these scopes.
    #[error("the caller lacks these scopes: {0}")]
    Scopes(Scopes),
    /// The quota is larger than that of the caller, or the caller has the default quota of the rate limiter.
    #[error("the quota of the new grant exceeds that of the caller")]
    Quota,
}

impl NewGrant {
    /// Checks that the grant allows no more than the grant of the caller who asks for it: the same subject, no other scopes, and
    /// neither a higher rate nor a larger burst. A grant without a quota gets the quota of the caller.
    ///
    /// The expiry and the principal are not compared.
    ///
    /// ```
    /// use tollgate::store::sql::{ExceedsCallerError, NewGrant};
    /// use tollgate::{CurrentGrant, Grant, Quota, Scopes};
    ///
    /// // In a handler: `caller.current()`.
    /// let plan = Quota::per_minute(600);
    /// let caller = CurrentGrant::new(
    ///     Grant::new("key-17", ()).with_subject("alice").with_scopes(["trade", "read"])?.with_quota(plan),
    /// );
    /// let read = NewGrant::new(caller.subject()).with_scopes(["read"])?.within(&caller)?;
    /// assert_eq!(read, NewGrant::new("alice").with_scopes(["read"])?.with_quota(plan));
    ///
    /// let admin = NewGrant::new(caller.subject()).with_scopes(["read", "admin"])?;
    /// assert_eq!(admin.within(&caller), Err(ExceedsCallerError::Scopes(Scopes::new(["admin"])?)));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ExceedsCallerError`], by the part that exceeds.
    pub fn within(mut self, caller: &CurrentGrant) -> Result<Self, ExceedsCallerError> {
        if self.subject != *caller.subject() {
            return Err(ExceedsCallerError::Subject);
        }
        if !self.scopes.is_subset(caller.scopes()) {
            let excess = self.scopes.iter().filter(|scope| !caller.scopes().contains(scope));
            // The scopes are valid already.
            return Err(ExceedsCallerError::Scopes(Scopes::new(excess).unwrap_or_default()));
        }
        let fits = |quota: Quota, limit: Quota| quota.interval() >= limit.interval() && quota.burst() <= limit.burst();
        match (self.quota, caller.quota()) {
            (Some(quota), Some(limit)) if fits(quota, limit) => {}
            (None, limit) => self.quota = limit,
            // The numbers of the default quota are not known here.
            (Some(_), _) => return Err(ExceedsCallerError::Quota),
        }
        Ok(self)
    }
}
