//! Grants as the tables store them.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use sqlx::{ColumnIndex, Decode, Row, Type};

use super::SqlError;
use super::database::{from_unix_ms, unix_ms};
use crate::grant::scopes::{ScopeError, Scopes};
use crate::grant::{Grant, GrantId, Subject};
use crate::quota::Quota;
use crate::token::TokenDigest;
use crate::token::mint::Secret;

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

    /// Binds the grant to a key of which the sender must prove possession; see [`Grant::with_sender_constraint`].
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
        let json = serde_json::to_string(principal).map_err(|error| SqlError::Principal(error.into()))?;
        self.principal = Some(json);
        Ok(self)
    }

    /// Checks the names of the grant. The id and the subject must have 1 to 255 characters, the label at most 255. None of them
    /// may have control characters. [`Database::issue`](super::Database::issue) checks this before it connects.
    ///
    /// # Errors
    ///
    /// [`SqlError::Name`] if a name is invalid.
    pub fn check(&self) -> Result<(), SqlError> {
        let fits = |text: &str, shortest: usize| {
            (shortest..=255).contains(&text.chars().count()) && !text.contains(char::is_control)
        };
        let id = self.id.as_ref().is_none_or(|id| fits(id.as_str(), 1));
        match id && fits(self.subject.as_str(), 1) && fits(&self.label, 0) {
            true => Ok(()),
            false => Err(SqlError::Name),
        }
    }

    /// Rounds up, so that the grant is not valid too early.
    pub(super) fn not_before_ms(&self) -> Option<i64> {
        self.not_before.map(|time| unix_ms(time.checked_add(Duration::from_nanos(999_999)).unwrap_or(time)))
    }

    pub(super) fn expires_ms(&self) -> Option<i64> {
        self.expires_at.map(unix_ms)
    }
}

/// A new token with its grant. The secret is stored nowhere else: show it to its owner, and then drop it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Issued {
    /// The token.
    pub secret: Secret,
    /// The grant of the token.
    pub grant: GrantRecord,
}

/// A grant as the tables store it.
///
/// With the feature `serde`, records can be serialized. Times are then milliseconds since 1970, scopes are a list, and the
/// quota is text such as `180/min burst 20`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(Serialize, serde::Deserialize),
    serde(into = "with_serde::Fields", try_from = "with_serde::Fields")
)]
#[non_exhaustive]
pub struct GrantRecord {
    /// The id, which identifies the grant in logs and administration.
    pub id: GrantId,
    /// The subject, whose rate limits apply to the grant.
    pub subject: Subject,
    /// The description for people.
    pub label: String,
    /// The scopes.
    pub scopes: Scopes,
    /// The quota of the grant. `None` selects the default of the rate limiter.
    pub quota: Option<Quota>,
    /// The start of validity.
    pub not_before: Option<SystemTime>,
    /// The expiry.
    pub expires_at: Option<SystemTime>,
    /// Whether the sender must prove possession of a key.
    pub sender_constrained: bool,
    /// The principal, as JSON.
    pub principal: Option<String>,
    /// The time of issue.
    pub created_at: SystemTime,
    /// The time of revocation.
    pub revoked_at: Option<SystemTime>,
    /// The last recorded use that was written to the row; see [`LastUsed`](super::LastUsed).
    pub last_used: Option<SystemTime>,
    /// The [prefix](crate::token::mint::TokenFormat::prefix) of the newest token, without the underscore. `None` if the token was
    /// [imported](super::Database::import). Prefixes are not secret.
    pub token_prefix: Option<String>,
}

impl GrantRecord {
    /// Converts the record to the grant that a gate uses.
    pub(super) fn grant<P>(&self, principal: P) -> Grant<P> {
        let mut grant = Grant::new(self.id.clone(), principal)
            .with_subject(self.subject.clone())
            .with_valid_scopes(self.scopes.clone());
        if let Some(quota) = self.quota {
            grant = grant.with_quota(quota);
        }
        if let Some(not_before) = self.not_before {
            grant = grant.with_not_before(not_before);
        }
        if let Some(expires_at) = self.expires_at {
            grant = grant.with_expiry(expires_at);
        }
        if self.sender_constrained { grant.with_sender_constraint() } else { grant }
    }
}

/// The columns that [`read`] reads, of a table with the alias `g`.
macro_rules! columns {
    () => {
        "g.id, g.subject, g.label, g.scopes, g.quota_interval_ns, g.quota_burst, g.not_before_ms, g.expires_ms, \
         g.sender_constrained, CAST(g.principal AS TEXT) AS principal, g.created_ms, g.revoked_ms, g.last_used_ms, \
         g.token_prefix"
    };
}
pub(super) use columns;

/// Reads a grant from its row.
pub(super) fn read<'r, R>(row: &'r R) -> Result<GrantRecord, SqlError>
where
    R: Row,
    for<'i> &'i str: ColumnIndex<R>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    bool: Decode<'r, R::Database> + Type<R::Database>,
{
    let text = |column: &str| row.try_get::<String, _>(column);
    let time = |column: &'static str| -> Result<Option<SystemTime>, SqlError> {
        let ms: Option<i64> = row.try_get(column)?;
        ms.map(|ms| from_unix_ms(ms).ok_or(SqlError::Corrupt(column))).transpose()
    };
    let scopes = text("scopes")?;
    let scopes = Scopes::new(scopes.split(' ').filter(|scope| !scope.is_empty()));
    let interval: Option<i64> = row.try_get("quota_interval_ns")?;
    let burst: Option<i64> = row.try_get("quota_burst")?;
    let quota = match (interval, burst) {
        (None, None) => None,
        (Some(interval), Some(burst)) => Some(quota(interval, burst).ok_or(SqlError::Corrupt("quota_interval_ns"))?),
        _ => return Err(SqlError::Corrupt("quota_burst")),
    };
    Ok(GrantRecord {
        id: text("id")?.into(),
        subject: text("subject")?.into(),
        label: text("label")?,
        scopes: scopes.map_err(|_| SqlError::Corrupt("scopes"))?,
        quota,
        not_before: time("not_before_ms")?,
        expires_at: time("expires_ms")?,
        sender_constrained: row.try_get("sender_constrained")?,
        principal: row.try_get("principal")?,
        created_at: time("created_ms")?.ok_or(SqlError::Corrupt("created_ms"))?,
        revoked_at: time("revoked_ms")?,
        last_used: time("last_used_ms")?,
        token_prefix: row.try_get("token_prefix")?,
    })
}

fn quota(interval_ns: i64, burst: i64) -> Option<Quota> {
    let interval = Duration::from_nanos(u64::try_from(interval_ns).ok()?);
    Quota::try_per(1, interval).ok()?.try_with_burst(u32::try_from(burst).ok()?).ok()
}

/// Converts a quota to its two columns. Both fit, because the interval times the burst is below 2^62 nanoseconds.
pub(super) fn quota_columns(quota: Option<Quota>) -> (Option<i64>, Option<i64>) {
    match quota {
        None => (None, None),
        Some(quota) => (i64::try_from(quota.interval_ns()).ok(), Some(quota.burst().into())),
    }
}

/// Converts the bytes of a row to a digest.
pub(super) fn digest_of(bytes: &[u8]) -> Result<TokenDigest, SqlError> {
    bytes.try_into().map(TokenDigest::from_bytes).map_err(|_| SqlError::Corrupt("digest"))
}

#[cfg(feature = "serde")]
mod with_serde {
    use std::time::SystemTime;

    use serde::{Deserialize, Serialize};

    use super::{GrantRecord, from_unix_ms, unix_ms};
    use crate::grant::scopes::Scopes;
    use crate::quota::Quota;

    /// The serialized form of a [`GrantRecord`].
    #[derive(Deserialize, Serialize)]
    pub(super) struct Fields {
        id: String,
        subject: String,
        #[serde(default)]
        label: String,
        #[serde(default)]
        scopes: Vec<String>,
        quota: Option<Quota>,
        not_before_ms: Option<i64>,
        expires_at_ms: Option<i64>,
        #[serde(default)]
        sender_constrained: bool,
        principal: Option<String>,
        created_at_ms: i64,
        revoked_at_ms: Option<i64>,
        last_used_ms: Option<i64>,
        token_prefix: Option<String>,
    }

    impl From<GrantRecord> for Fields {
        fn from(grant: GrantRecord) -> Self {
            Self {
                id: grant.id.as_str().to_owned(),
                subject: grant.subject.as_str().to_owned(),
                label: grant.label,
                scopes: grant.scopes.iter().map(str::to_owned).collect(),
                quota: grant.quota,
                not_before_ms: grant.not_before.map(unix_ms),
                expires_at_ms: grant.expires_at.map(unix_ms),
                sender_constrained: grant.sender_constrained,
                principal: grant.principal,
                created_at_ms: unix_ms(grant.created_at),
                revoked_at_ms: grant.revoked_at.map(unix_ms),
                last_used_ms: grant.last_used.map(unix_ms),
                token_prefix: grant.token_prefix,
            }
        }
    }

    impl TryFrom<Fields> for GrantRecord {
        type Error = &'static str;

        fn try_from(fields: Fields) -> Result<Self, Self::Error> {
            let time = |ms: i64| from_unix_ms(ms).ok_or("invalid time");
            let optional = |ms: Option<i64>| -> Result<Option<SystemTime>, Self::Error> { ms.map(time).transpose() };
            Ok(Self {
                id: fields.id.into(),
                subject: fields.subject.into(),
                label: fields.label,
                scopes: Scopes::new(fields.scopes).map_err(|_| "invalid scope")?,
                quota: fields.quota,
                not_before: optional(fields.not_before_ms)?,
                expires_at: optional(fields.expires_at_ms)?,
                sender_constrained: fields.sender_constrained,
                principal: fields.principal,
                created_at: time(fields.created_at_ms)?,
                revoked_at: optional(fields.revoked_at_ms)?,
                last_used: optional(fields.last_used_ms)?,
                token_prefix: fields.token_prefix,
            })
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn serialized_records_round_trip() {
            let text = r#"{"id":"one","subject":"alice","label":"bot","scopes":["trade","read"],"quota":"180/min burst 20","not_before_ms":null,"expires_at_ms":4000000000000,"sender_constrained":true,"principal":"{\"n\":1}","created_at_ms":5,"revoked_at_ms":null,"last_used_ms":6,"token_prefix":"acme"}"#;
            let record: GrantRecord = serde_json::from_str(text).unwrap();
            assert_eq!((record.id.as_str(), record.scopes.to_string().as_str()), ("one", "trade read"));
            assert_eq!(serde_json::to_string(&record).unwrap(), text);
        }

        #[test]
        fn invalid_records_are_rejected() {
            for text in [
                r#"{"id":"one","subject":"alice","created_at_ms":-1}"#,
                r#"{"id":"one","subject":"alice","created_at_ms":1,"scopes":["a b"]}"#,
                r#"{"id":"one","subject":"alice","created_at_ms":1,"quota":"180"}"#,
            ] {
                assert!(serde_json::from_str::<GrantRecord>(text).is_err(), "{text}");
            }
        }
    }
}
