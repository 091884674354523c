//! Grants to issue.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::SqlError;
use super::database::unix_ms;
use crate::grant::scopes::{ScopeError, Scopes};
use crate::grant::{GrantId, Subject};
use crate::quota::Quota;

/// A grant to issue.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tollgate::Quota;
/// use tollgate::store::sql::NewGrant;
///
/// let grant = NewGrant::new("alice")
///     .with_label("trading bot")
///     .with_scopes(["trade"])?
///     .with_quota(Quota::per_minute(600).with_burst(50))
///     .with_expiry(SystemTime::now() + Duration::from_secs(90 * 86_400));
/// # let _ = grant;
/// # Ok::<_, tollgate::ScopeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewGrant {
    pub(super) id: Option<GrantId>,
    pub(super) subject: Subject,
    pub(super) label: String,
    pub(super) scopes: Scopes,
    pub(super) quota: Option<Quota>,
    pub(super) not_before: Option<SystemTime>,
    pub(super) expires_at: Option<SystemTime>,
    pub(super) sender_constrained: bool,
    pub(super) principal: Option<String>,
    pub(super) max_active: Option<u32>,
}

impl NewGrant {
    /// Creates a grant for this subject. By default the grant has a random id. All grants of a subject share its rate limits.
    #[must_use]
    pub fn new(subject: impl Into<Subject>) -> Self {
        Self {
            id: None,
            subject: subject.into(),
            label: String::new(),
            scopes: Scopes::default(),
            quota: None,
            not_before: None,
            expires_at: None,
            sender_constrained: false,
            principal: None,
            max_active: None,
        }
    }

    /// Sets the id. Ids appear in logs, so they must not contain secrets. Default: a random id.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<GrantId>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the label, a description for people. Default: empty.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Sets the scopes. Default: none.
    ///
    /// # Errors
    ///
    /// If a scope is empty or has a character that RFC 6749 does not allow.
    pub fn with_scopes<I>(mut self, scopes: I) -> Result<Self, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        self.scopes = Scopes::new(scopes)?;
        Ok(self)
    }

    /// Sets the quota of the grant. Default: the default of the rate limiter.
    #[must_use]
    pub fn with_quota(mut self, quota: Quota) -> Self {
        self.quota = Some(quota);
        self
    }

    /// Sets the start of validity. It is rounded up to whole milliseconds.
    #[must_use]
    pub fn with_not_before(mut self, not_before: SystemTime) -> Self {
        self.not_before = Some(not_before);
        self
    }

    /// Sets the expiry. The grant is valid before this time, which is rounded down to whole milliseconds.
    #[must_use]
    pub fn with_expiry(mut self, expires_at: SystemTime) -> Self {
        self.expires_at = Some(expires_at);
        self
    }

    /// Binds the grant to a key of which the sender must prove possession; see
    /// [`Grant::with_sender_constraint`](crate::Grant::with_sender_constraint).
    #[must_use]
    pub fn with_sender_constraint(mut self) -> Self {
        self.sender_constrained = true;
        self
    }

    /// Sets the principal that [`Database::store`](super::Database::store) reads. It is stored as JSON.
    ///
    /// # Errors
    ///
    /// [`SqlError::Principal`] if the principal cannot be serialized as JSON.
    pub fn with_principal<P: Serialize + ?Sized>(mut self, principal: &P) -> Result<Self, SqlError> {
        self.principal = Some(to_json(principal)?);
        Ok(self)
    }

    /// Sets the maximum number of active grants of the subject, including this one. If the subject has as many already, the grant
    /// is not issued and the error is [`SqlError::TooManyGrants`]. Default: no maximum.
    ///
    /// A grant is active until it is revoked or has expired. Suspended grants and grants whose validity has not begun are active.
    /// A rotated token and its successor belong to one grant. Concurrent issues in any number of processes do not exceed the
    /// maximum, if all of them set it. [`GrantChange::with_max_active`](super::GrantChange::with_max_active) checks changes of
    /// expiries.
    ///
    /// The rule "one token per subject" is a maximum of 1. A rotation is then still possible.
    ///
    /// ```no_run
    /// use tollgate::mint::TokenFormat;
    /// use tollgate::store::sql::{Database, NewGrant, SqlError};
    ///
    /// # async fn example(database: &Database, format: &TokenFormat) -> Result<(), SqlError> {
    /// match database.issue(format, &NewGrant::new("alice").with_max_active(5)).await {
    ///     Err(SqlError::TooManyGrants { max }) => println!("You have {max} tokens. Revoke one first."),
    ///     issued => println!("Your token, which is not shown again: {}", issued?.secret.expose()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_max_active(mut self, max: u32) -> Self {
        self.max_active = Some(max);
        self
    }

    /// Checks the names of the grant. The id and the subject must have 1 to 255 characters, the label at most 255. None of them
    /// may have control characters. [`Database::issue`](super::Database::issue) checks this before it connects.
    ///
    /// # Errors
    ///
    /// [`SqlError::Name`] if a name is invalid.
    pub fn check(&self) -> Result<(), SqlError> {
        let mut names = self.id.as_ref().map(GrantId::as_str).into_iter().chain([self.subject.as_str()]);
        names.try_for_each(|name| check_name(name, 1))?;
        check_name(&self.label, 0)
    }

    /// Rounds up, so that the grant is not valid too early.
    pub(super) fn not_before_ms(&self) -> Option<i64> {
        self.not_before.map(|time| unix_ms(time.checked_add(Duration::from_nanos(999_999)).unwrap_or(time)))
    }

    pub(super) fn expires_ms(&self) -> Option<i64> {
        self.expires_at.map(unix_ms)
    }
}

/// Checks the length and the characters of an id, a subject, a label or the name of an actor.
pub(super) fn check_name(name: &str, shortest: usize) -> Result<(), SqlError> {
    match (shortest..=255).contains(&name.chars().count()) && !name.contains(char::is_control) {
        true => Ok(()),
        false => Err(SqlError::Name),
    }
}

/// Serializes a principal.
pub(super) fn to_json<P: Serialize + ?Sized>(principal: &P) -> Result<String, SqlError> {
    serde_json::to_string(principal).map_err(|error| SqlError::Principal(error.into()))
}
