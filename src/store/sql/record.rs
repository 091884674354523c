//! Grants as the tables store them.

use std::fmt;
use std::time::{Duration, SystemTime};

use sqlx::{ColumnIndex, Decode, Row, Type};

use super::SqlError;
use super::database::from_unix_ms;
use crate::grant::scopes::Scopes;
use crate::grant::{Grant, GrantId, Subject};
use crate::quota::Quota;
use crate::token::mint::Secret;
use crate::token::{TokenDigest, TokenLocation};

/// A new token with its grant. The secret is stored nowhere else, unless a `Sealer` seals it: show it to its owner, and then drop
/// it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Issued {
    /// The token.
    pub secret: Secret,
    /// The grant of the token.
    pub grant: GrantRecord,
}

/// A token as the tables store it, with its grant. The record contains no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenRecord {
    /// The grant of the token, in any [state](GrantRecord::state).
    pub grant: GrantRecord,
    /// The time of issue or rotation, when the token was created.
    pub created_at: SystemTime,
    /// The end of the grace period. `None` if the token was not rotated.
    pub grace_ends_at: Option<SystemTime>,
}

/// A grant as the tables store it.
///
/// With the feature `serde`, records can be serialized. Times are then milliseconds since 1970, scopes are a list, and the
/// quota is text such as `180/min burst 20`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
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
    /// The time of suspension. `None` if the grant is not suspended.
    pub suspended_at: Option<SystemTime>,
    /// The last recorded use that was written to the row; see [`LastUsed`](super::LastUsed).
    pub last_used: Option<SystemTime>,
    /// The location of the token in this use. `None` if it is unknown.
    pub last_used_location: Option<TokenLocation>,
    /// The [prefix](crate::token::mint::TokenFormat::prefix) of the newest token, without the underscore. `None` if the token was
    /// [imported](super::Database::import). Prefixes are not secret.
    pub token_prefix: Option<String>,
}

/// The state of a grant at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GrantState {
    /// Its tokens are accepted.
    Valid,
    /// Its validity has not begun.
    NotYetValid,
    /// It is [suspended](super::Database::suspend).
    Suspended,
    /// It has expired.
    Expired,
    /// It is [revoked](super::Database::revoke).
    Revoked,
}

impl GrantState {
    /// Returns a name for people, such as `not yet valid`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::NotYetValid => "not yet valid",
            Self::Suspended => "suspended",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

impl fmt::Display for GrantState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl GrantRecord {
    /// Returns the state of the grant at this time. A state that is more permanent has precedence: a suspended grant that
    /// expires is expired.
    #[must_use]
    pub fn state(&self, now: SystemTime) -> GrantState {
        match self {
            Self { revoked_at: Some(_), .. } => GrantState::Revoked,
            Self { expires_at: Some(end), .. } if *end <= now => GrantState::Expired,
            Self { suspended_at: Some(_), .. } => GrantState::Suspended,
            Self { not_before: Some(begin), .. } if *begin > now => GrantState::NotYetValid,
            _ => GrantState::Valid,
        }
    }

    /// Returns the error of an invalid value in the rows of this grant.
    pub(super) fn invalid(&self, column: &'static str) -> SqlError {
        SqlError::of_row(self.id.clone(), self.subject.clone(), SqlError::Corrupt(column))
    }

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

/// The columns that [`read`] reads, of the table of grants. SQLite allows no alias of the table in `RETURNING`.
macro_rules! columns {
    () => {
        "id, subject, label, scopes, quota_interval_ns, quota_burst, not_before_ms, expires_ms, sender_constrained, \
         CAST(principal AS TEXT) AS principal, created_ms, revoked_ms, suspended_ms, last_used_ms, last_used_location, \
         token_prefix"
    };
}
pub(super) use columns;

/// Reads a grant from its row. The error names the grant.
pub(super) fn read<'r, R>(row: &'r R) -> Result<GrantRecord, SqlError>
where
    R: Row,
    for<'i> &'i str: ColumnIndex<R>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    bool: Decode<'r, R::Database> + Type<R::Database>,
{
    read_fields(row).map_err(|error| {
        let text = |column: &str| row.try_get::<String, _>(column);
        match (text("id"), text("subject")) {
            (Ok(id), Ok(subject)) => SqlError::of_row(id, subject, error),
            _ => error,
        }
    })
}

fn read_fields<'r, R>(row: &'r R) -> Result<GrantRecord, SqlError>
where
    R: Row,
    for<'i> &'i str: ColumnIndex<R>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
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
    let location: Option<&str> = row.try_get("last_used_location")?;
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
        suspended_at: time("suspended_ms")?,
        last_used: time("last_used_ms")?,
        // May be the name of a newer version. It must not make the token invalid.
        last_used_location: location.and_then(TokenLocation::from_name),
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

    use super::{GrantRecord, TokenLocation, from_unix_ms};
    use crate::grant::scopes::Scopes;
    use crate::quota::Quota;
    use crate::store::sql::database::unix_ms;

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
        suspended_at_ms: Option<i64>,
        last_used_ms: Option<i64>,
        last_used_location: Option<String>,
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
                suspended_at_ms: grant.suspended_at.map(unix_ms),
                last_used_ms: grant.last_used.map(unix_ms),
                last_used_location: grant.last_used_location.map(|location| location.as_str().to_owned()),
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
                suspended_at: optional(fields.suspended_at_ms)?,
                last_used: optional(fields.last_used_ms)?,
                last_used_location: fields.last_used_location.as_deref().and_then(TokenLocation::from_name),
                token_prefix: fields.token_prefix,
            })
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn serialized_records_round_trip() {
            let text = r#"{"id":"one","subject":"alice","label":"bot","scopes":["trade","read"],"quota":"180/min burst 20","not_before_ms":null,"expires_at_ms":4000000000000,"sender_constrained":true,"principal":"{\"n\":1}","created_at_ms":5,"revoked_at_ms":null,"suspended_at_ms":7,"last_used_ms":6,"last_used_location":"query","token_prefix":"acme"}"#;
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
