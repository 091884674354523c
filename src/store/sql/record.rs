use std::error::Error;
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

/// A grant that is about to be issued.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tollgate::Quota;
/// use tollgate::store::sql::NewGrant;
///
/// let grant = NewGrant::new("alice")
///     .with_label("the robot in the cellar")
///     .with_scopes(["trade"])?
///     .with_quota(Quota::per_minute(600).with_burst(50))
///     .with_expiry(SystemTime::now() + Duration::from_secs(90 * 86_400));
/// # let _ = grant;
/// # Ok::<_, tollgate::ScopeError>(())
/// ```
#[derive(Clone, Debug)]
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
    /// A grant of a random id for this subject, whose budget it shares with all grants of the subject.
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

    /// The same under an id of the service's own. It is no secret: it stands in logs.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<GrantId>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The same with words for people, by which they know it again.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// The same with these scopes.
    ///
    /// # Errors
    ///
    /// If one of them is empty or has a character that RFC 6749 does not allow.
    pub fn with_scopes<I>(mut self, scopes: I) -> Result<Self, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        self.scopes = Scopes::new(scopes)?;
        Ok(self)
    }

    /// The same with a quota of its own, in place of the limiter's default.
    #[must_use]
    pub fn with_quota(mut self, quota: Quota) -> Self {
        self.quota = Some(quota);
        self
    }

    /// The same, valid from this moment on, in milliseconds.
    #[must_use]
    pub fn with_not_before(mut self, not_before: SystemTime) -> Self {
        self.not_before = Some(not_before);
        self
    }

    /// The same, valid until just before this moment, in milliseconds.
    #[must_use]
    pub fn with_expiry(mut self, expires_at: SystemTime) -> Self {
        self.expires_at = Some(expires_at);
        self
    }

    /// The same, bound to a key that its sender must prove, see [`Grant::with_sender_constraint`].
    #[must_use]
    pub fn with_sender_constraint(mut self) -> Self {
        self.sender_constrained = true;
        self
    }

    /// The same with what [`Database::store`](super::Database::store) hands to the service as the principal.
    ///
    /// # Errors
    ///
    /// If it cannot be written as JSON.
    pub fn with_principal<P: Serialize + ?Sized>(
        mut self,
        principal: &P,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        self.principal = Some(serde_json::to_string(principal)?);
        Ok(self)
    }

    /// Whether the tables take its names: an id and a subject of 1 to 255 characters, a label of at most 255, and none of them a
    /// control character. Issuing checks it before it asks the database.
    ///
    /// # Errors
    ///
    /// [`SqlError::Name`] if they do not.
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

    /// Up to the next millisecond: not valid before it says.
    pub(super) fn not_before_ms(&self) -> Option<i64> {
        self.not_before.map(|time| unix_ms(time.checked_add(Duration::from_nanos(999_999)).unwrap_or(time)))
    }

    pub(super) fn expires_ms(&self) -> Option<i64> {
        self.expires_at.map(unix_ms)
    }
}

/// A token that was just issued. The secret is nowhere else: show it to its owner, and drop it.
#[derive(Debug)]
pub struct Issued {
    /// The token.
    pub secret: Secret,
    /// The grant that it belongs to.
    pub grant: GrantRecord,
}

/// What the tables say of a grant.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GrantRecord {
    /// Names the grant in logs and in administration.
    pub id: GrantId,
    /// Whose budget it draws on.
    pub subject: Subject,
    /// Words for people.
    pub label: String,
    /// What it allows.
    pub scopes: Scopes,
    /// Its own quota; `None` is the limiter's default.
    pub quota: Option<Quota>,
    /// From when on it is valid.
    pub not_before: Option<SystemTime>,
    /// When it expires.
    pub expires_at: Option<SystemTime>,
    /// Whether its sender must prove a key.
    pub sender_constrained: bool,
    /// The principal, as JSON.
    pub principal: Option<String>,
    /// When it was issued.
    pub created_at: SystemTime,
    /// When it was revoked.
    pub revoked_at: Option<SystemTime>,
    /// When it was used last, if that is noted (see [`LastUsed`](super::LastUsed)), and as of the last time that it was
    /// written.
    pub last_used: Option<SystemTime>,
    /// What its newest token begins with, before the underscore: the [prefix](crate::token::mint::TokenFormat::prefix) of the format that
    /// it was minted in. `None` if it was [imported](super::Database::import). It is no secret.
    pub token_prefix: Option<String>,
}

impl GrantRecord {
    /// What a gate gets to see.
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

/// The columns that [`read`] reads, of a table called `g`.
macro_rules! columns {
    () => {
        "g.id, g.subject, g.label, g.scopes, g.quota_interval_ns, g.quota_burst, g.not_before_ms, g.expires_ms, \
         g.sender_constrained, CAST(g.principal AS TEXT) AS principal, g.created_ms, g.revoked_ms, g.last_used_ms, \
         g.token_prefix"
    };
}
pub(super) use columns;

/// A grant from its row.
pub(super) fn read<'r, R>(row: &'r R) -> Result<GrantRecord, SqlError>
where
    R: Row,
    for<'i> &'i str: ColumnIndex<R>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    bool: Decode<'r, R::Database> + Type<R::Database>,
{
    let text = |column: &str| row.try_get::<String, _>(column);
    let moment = |column: &'static str| -> Result<Option<SystemTime>, SqlError> {
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
        not_before: moment("not_before_ms")?,
        expires_at: moment("expires_ms")?,
        sender_constrained: row.try_get("sender_constrained")?,
        principal: row.try_get("principal")?,
        created_at: moment("created_ms")?.ok_or(SqlError::Corrupt("created_ms"))?,
        revoked_at: moment("revoked_ms")?,
        last_used: moment("last_used_ms")?,
        token_prefix: row.try_get("token_prefix")?,
    })
}

fn quota(interval_ns: i64, burst: i64) -> Option<Quota> {
    let interval = Duration::from_nanos(u64::try_from(interval_ns).ok()?);
    Quota::try_per(1, interval).ok()?.try_with_burst(u32::try_from(burst).ok()?).ok()
}

/// A quota as its two columns. Both fit: a quota's interval times its burst is below 2^62 nanoseconds.
pub(super) fn quota_columns(quota: Option<Quota>) -> (Option<i64>, Option<i64>) {
    match quota {
        None => (None, None),
        Some(quota) => (i64::try_from(quota.interval_ns()).ok(), Some(quota.burst().into())),
    }
}

/// The digest of a row, if it is one.
pub(super) fn digest_of(bytes: &[u8]) -> Result<TokenDigest, SqlError> {
    bytes.try_into().map(TokenDigest::from_bytes).map_err(|_| SqlError::Corrupt("digest"))
}
