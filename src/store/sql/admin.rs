//! Administration of grants: issue, list, rotate, purge.

use std::time::{Duration, SystemTime};

use sqlx::SqlStr;

use super::audit::{about, change, changes, record};
use super::database::{administer, unix_ms};
use super::record::{columns, quota_columns, read};
use super::{Database, GrantRecord, Issued, NewGrant, SqlError};
use crate::grant::{GrantId, Subject};
use crate::token::TokenDigest;
use crate::token::mint::{RandomnessError, Secret, TokenFormat};

/// How late the clock of another server may be that rejects a token without a grace period immediately.
const LATE_CLOCK: Duration = Duration::from_secs(60);

/// The token of a new grant.
enum NewToken<'a> {
    Imported(TokenDigest),
    /// The token and its prefix.
    Minted(&'a Secret, &'a str),
}

/// Administration. Each operation is one transaction with a [timeout](Self::with_admin_timeout), unless stated otherwise. After
/// [`SqlError::Timeout`] or [`SqlError::Database`], or after its future is dropped, an operation may have been committed. Changes
/// are written to the [audit trail](Self::audit).
impl Database {
    /// Issues a grant with a new token. The token is valid when this method returns. The secret is stored nowhere, unless a
    /// `Sealer` seals it.
    ///
    /// # Errors
    ///
    /// If the grant's id exists, a name is invalid, the subject has [too many grants](NewGrant::with_max_active), the system
    /// provides no random bytes, or the database fails.
    pub async fn issue(&self, format: &TokenFormat, grant: &NewGrant) -> Result<Issued, SqlError> {
        let secret = format.mint()?;
        let grant = self.insert(NewToken::Minted(&secret, format.prefix()), grant).await?;
        Ok(Issued { secret, grant })
    }

    /// Issues a grant for an existing token, by its digest. [`import_all`](Self::import_all) imports many grants.
    ///
    /// ```no_run
    /// use tollgate::TokenDigest;
    /// use tollgate::store::sql::{Database, NewGrant};
    ///
    /// # async fn example(database: &Database) -> Result<(), Box<dyn std::error::Error>> {
    /// let digest = TokenDigest::from_hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    /// database.import(digest?, &NewGrant::new("alice")).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If the token or the grant's id exists, a name is invalid, the subject has [too many grants](NewGrant::with_max_active), or
    /// the database fails.
    pub async fn import(&self, token: impl Into<TokenDigest>, grant: &NewGrant) -> Result<GrantRecord, SqlError> {
        self.insert(NewToken::Imported(token.into()), grant).await
    }

    async fn insert(&self, token: NewToken<'_>, grant: &NewGrant) -> Result<GrantRecord, SqlError> {
        grant.check()?;
        let id = match &grant.id {
            Some(id) => id.clone(),
            None => random_id()?,
        };
        let (digest, prefix, sealed) = match token {
            NewToken::Imported(digest) => (digest, None, None),
            NewToken::Minted(secret, prefix) => (secret.digest(), Some(prefix), self.seal_new(&id, secret)?),
        };
        let now = self.now_ms();
        let (interval, burst) = quota_columns(grant.quota);
        let insert = self.sql(
            "INSERT INTO {p}grants (id, subject, label, scopes, quota_interval_ns, quota_burst, not_before_ms, expires_ms, \
             sender_constrained, principal, created_ms, token_prefix) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, CAST($10 AS {json}), $11, $12)",
        );
        let mut reports = self.reports();
        administer!(self, Writes, transaction => {
            if let Some(max) = grant.max_active {
                if count_active!(self, transaction, &grant.subject, now) >= i64::from(max) {
                    return Err(SqlError::TooManyGrants { max });
                }
            }
            sqlx::query(insert)
                .bind(id.as_str())
                .bind(grant.subject.as_str())
                .bind(&grant.label)
                .bind(grant.scopes.to_string())
                .bind(interval)
                .bind(burst)
                .bind(grant.not_before_ms())
                .bind(grant.expires_ms())
                .bind(grant.sender_constrained)
                .bind(grant.principal.as_deref())
                .bind(now)
                .bind(prefix)
                .execute(&mut *transaction)
                .await?;
            sqlx::query(self.sql(INSERT_TOKEN))
                .bind(digest.to_bytes().to_vec())
                .bind(id.as_str())
                .bind(now)
                .bind(sealed)
                .execute(&mut *transaction)
                .await?;
            let row = sqlx::query(self.sql(DESCRIBE)).bind(id.as_str()).fetch_one(&mut *transaction).await?;
            let grant = read(&row)?;
            reports.added();
            let action = if prefix.is_some() { "issue" } else { "import" };
            record!(self, transaction, action, [about(&grant, changes(None, &grant))]);
            Ok(grant)
        })
    }

    /// Seals a new token if there is a sealer.
    fn seal_new(&self, id: &GrantId, secret: &Secret) -> Result<Option<String>, SqlError> {
        #[cfg(feature = "reveal")]
        return self.0.sealer.as_ref().map(|sealer| sealer.seal(id, secret.expose())).transpose();
        #[cfg(not(feature = "reveal"))]
        {
            let _ = (id, secret);
            Ok(None)
        }
    }

    /// Lists all grants, or those of a subject, oldest first. The list includes revoked and expired grants until they are
    /// [purged](Self::purge). [`page`](Self::page) lists many grants in parts.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn list(&self, subject: Option<&Subject>) -> Result<Vec<GrantRecord>, SqlError> {
        let statement = self.sql(concat!(
            "SELECT ",
            columns!(),
            " FROM {p}grants g WHERE g.subject = $1 OR $1 IS NULL ORDER BY g.created_ms, g.id"
        ));
        administer!(self, Reads, transaction => {
            let subject = subject.map(Subject::as_str);
            let rows = sqlx::query(statement).bind(subject).fetch_all(&mut *transaction).await?;
            rows.iter().map(read).collect()
        })
    }

    /// Reads a grant. Returns `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn describe(&self, id: &GrantId) -> Result<Option<GrantRecord>, SqlError> {
        administer!(self, Reads, transaction => {
            let row = sqlx::query(self.sql(DESCRIBE)).bind(id.as_str()).fetch_optional(&mut *transaction).await?;
            row.as_ref().map(read).transpose()
        })
    }

    /// Issues a new token for a grant. The old token stays valid for the grace period `grace`, but no longer than the grant. If
    /// `grace` is zero, the old token is invalid when this method returns. Its recorded end is one minute earlier, so that servers
    /// whose clock is late by less reject it too. Tokens of earlier rotations end no later than the old token: a rotation shortens
    /// their grace periods, and never extends them.
    ///
    /// Tokens whose grace period has ended stay in the tables until they are [purged](Self::purge), so that
    /// [`describe_token`](Self::describe_token) finds their grant.
    ///
    /// Both tokens belong to the same grant, and so have the same id, subject and rate limits. At any time at least one of them
    /// is valid, unless the grant is suspended. For the same prefix, use a format with [`GrantRecord::token_prefix`].
    ///
    /// # Errors
    ///
    /// If the grant does not exist, is revoked or has expired, the system provides no random bytes, or the database fails.
    pub async fn rotate(&self, id: &GrantId, format: &TokenFormat, grace: Duration) -> Result<Issued, SqlError> {
        let secret = format.mint()?;
        let sealed = self.seal_new(id, &secret)?;
        let now = self.now();
        let grace_ends = match grace.is_zero() {
            true => unix_ms(now - LATE_CLOCK),
            false => now.checked_add(grace).map_or(i64::MAX, unix_ms),
        };
        let retire = self.sql(
            "UPDATE {p}tokens SET rotated_until_ms = $2 \
             WHERE grant_id = $1 AND (rotated_until_ms IS NULL OR rotated_until_ms > $2)",
        );
        let mut reports = self.reports();
        administer!(self, Writes, transaction => {
            // Lock the row: two rotations, or a rotation and a revocation, must not run at the same time.
            let row = sqlx::query(self.sql(LOCK)).bind(id.as_str()).fetch_optional(&mut *transaction).await?;
            let mut grant = read(&row.ok_or(SqlError::NotFound)?)?;
            check_active(&grant, now)?;
            let until = grant.expires_at.map_or(grace_ends, |end| grace_ends.min(unix_ms(end)));
            sqlx::query(retire).bind(id.as_str()).bind(until).execute(&mut *transaction).await?;
            sqlx::query(self.sql(INSERT_TOKEN))
                .bind(secret.digest().to_bytes().to_vec())
                .bind(id.as_str())
                .bind(unix_ms(now))
                .bind(sealed)
                .execute(&mut *transaction)
                .await?;
            let prefix = self.sql("UPDATE {p}grants SET token_prefix = $2 WHERE id = $1");
            sqlx::query(prefix).bind(id.as_str()).bind(format.prefix()).execute(&mut *transaction).await?;
            reports.grant(id.as_str());
            reports.added();
            let before = grant.clone();
            grant.token_prefix = Some(format.prefix().to_owned());
            let mut changes = changes(Some(&before), &grant);
            changes.insert("grace_ends_ms".to_owned(), change((), until.max(unix_ms(now))));
            record!(self, transaction, "rotate", [about(&grant, changes)]);
            Ok(grant)
        })
        .map(|grant| Issued { secret, grant })
    }

    /// Deletes grants that were revoked or expired before this time, with their tokens. Also deletes tokens whose grace period
    /// ended before this time. Returns the number of deleted grants.
    ///
    /// Each transaction deletes up to 10,000 rows and has its own [timeout](Self::with_admin_timeout). After an error, some rows
    /// may be deleted.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn purge(&self, before: SystemTime) -> Result<u64, SqlError> {
        let before = unix_ms(before);
        let tokens = self.sql(
            "DELETE FROM {p}tokens WHERE digest IN (SELECT digest FROM {p}tokens WHERE rotated_until_ms < $1 LIMIT $2) \
             RETURNING grant_id, ''",
        );
        let grants = self.sql(
            "DELETE FROM {p}grants WHERE id IN \
             (SELECT id FROM {p}grants WHERE revoked_ms < $1 OR expires_ms < $1 ORDER BY id LIMIT $2 {for_update}) \
             RETURNING id, subject",
        );
        // The trail has entries of grants, not of tokens.
        self.purge_by(&tokens, before, None).await?;
        self.purge_by(&grants, before, Some("purge")).await
    }

    /// Deletes rows in parts. The statement returns the id and the subject of each row's grant. Writes entries with this action.
    async fn purge_by(&self, statement: &SqlStr, before: i64, action: Option<&'static str>) -> Result<u64, SqlError> {
        let mut purged = 0;
        loop {
            let mut reports = self.reports();
            let deleted = administer!(self, Writes, transaction => {
                let delete = sqlx::query_as(statement.clone()).bind(before).bind(PURGE);
                let rows: Vec<(String, String)> = delete.fetch_all(&mut *transaction).await?;
                let deleted = rows.len();
                for (id, _) in &rows {
                    reports.grant(id);
                }
                if let Some(action) = action {
                    record!(self, transaction, action, rows.into_iter().map(|(id, subject)| vec![id, subject]));
                }
                Ok(u64::try_from(deleted).unwrap_or(u64::MAX))
            })?;
            purged += deleted;
            if deleted < PURGE.unsigned_abs() {
                return Ok(purged);
            }
        }
    }
}

macro_rules! count_of {
    ($subject:literal) => {
        concat!(
            "SELECT COUNT(*) FROM {p}grants g WHERE g.subject = ",
            $subject,
            " AND g.revoked_ms IS NULL AND (g.expires_ms IS NULL OR g.expires_ms > $2)"
        )
    };
}

/// The maximum number of rows that a transaction deletes.
pub(super) const PURGE: i64 = 10_000;
pub(super) const DESCRIBE: &str = concat!("SELECT ", columns!(), " FROM {p}grants g WHERE g.id = $1");
/// Reads a grant and locks its row.
pub(super) const LOCK: &str = concat!("SELECT ", columns!(), " FROM {p}grants g WHERE g.id = $1 {for_update}");
pub(super) const COUNT_ACTIVE: &str = count_of!("$1");
/// Counts the active grants of each subject of a list.
pub(super) const COUNT_EACH: &str = concat!(
    "SELECT item.value ->> 0, (",
    count_of!("item.value ->> 0"),
    ") FROM {json_elements}(CAST($1 AS {json})) AS item"
);
const INSERT_TOKEN: &str = "INSERT INTO {p}tokens (digest, grant_id, created_ms, sealed) VALUES ($1, $2, $3, $4)";

/// Counts the active grants of a subject, and locks out other counts until the transaction ends.
macro_rules! count_active {
    ($database:expr, $transaction:ident, $subject:expr, $now:expr) => {{
        let subject = $subject.as_str();
        // The lock is a statement of its own: the statement that counts must begin after other issues are committed.
        sqlx::query($database.0.schema.lock_subject()).bind(subject).execute(&mut *$transaction).await?;
        let count = sqlx::query_scalar($database.sql($crate::store::sql::admin::COUNT_ACTIVE)).bind(subject).bind($now);
        let active: i64 = count.fetch_one(&mut *$transaction).await?;
        active
    }};
}
pub(super) use count_active;

pub(super) fn check_active(grant: &GrantRecord, now: SystemTime) -> Result<(), SqlError> {
    if grant.revoked_at.is_some() {
        return Err(SqlError::Revoked);
    }
    match grant.expires_at {
        Some(end) if end <= now => Err(SqlError::Expired),
        _ => Ok(()),
    }
}

/// Returns an id of 80 random bits. Ids are not secret; the bits only make collisions improbable.
pub(super) fn random_id() -> Result<GrantId, SqlError> {
    let mut bytes = [0; 10];
    getrandom::fill(&mut bytes).map_err(RandomnessError::new)?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(GrantId::from(digits))
}
