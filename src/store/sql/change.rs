//! Changes of the fields of grants.

use std::time::SystemTime;

use serde::Serialize;

use super::admin::{DESCRIBE, check_active, count_active};
use super::audit::{about, changes, record};
use super::database::{administer, from_unix_ms, unix_ms};
use super::new_grant::{check_name, to_json};
use super::record::{columns, quota_columns, read};
use super::{Database, GrantRecord, SqlError};
use crate::grant::scopes::{ScopeError, Scopes};
use crate::grant::{GrantId, Subject};
use crate::quota::Quota;

/// New values for fields of a grant. Other fields keep their values.
///
/// ```no_run
/// use tollgate::Quota;
/// use tollgate::store::sql::{Database, GrantChange};
///
/// # async fn example(database: &Database) -> Result<(), Box<dyn std::error::Error>> {
/// let change = GrantChange::new()
///     .with_label("trading bot")
///     .with_scopes(["trade", "read"])?
///     .with_quota(Quota::per_minute(600).with_burst(50));
/// database.change(&"key-17".into(), &change).await?;
///
/// // A plan belongs to a customer: change all grants of the subject.
/// database.change_subject(&"alice".into(), &GrantChange::new().with_quota(Quota::per_second(20))).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a change does nothing until it is passed to `Database::change`"]
pub struct GrantChange {
    fields: Vec<Field>,
    max_active: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    Label(String),
    Scopes(Scopes),
    AddedScopes(Scopes),
    RemovedScopes(Scopes),
    Quota(Option<Quota>),
    Expiry(Option<SystemTime>),
    Principal(Option<String>),
}

impl GrantChange {
    /// Creates a change of no field.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the label.
    pub fn with_label(self, label: impl Into<String>) -> Self {
        self.with(Field::Label(label.into()))
    }

    /// Replaces the scopes.
    ///
    /// # Errors
    ///
    /// If a scope is empty or has a character that RFC 6749 does not allow.
    pub fn with_scopes<I>(self, scopes: I) -> Result<Self, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        Ok(self.with(Field::Scopes(Scopes::new(scopes)?)))
    }

    /// Adds scopes. Scopes that a grant has are not added again.
    ///
    /// ```
    /// use tollgate::store::sql::GrantChange;
    ///
    /// let change = GrantChange::new().with_added_scopes(["stream"])?.with_removed_scopes(["trade"])?;
    /// # let _ = change;
    /// # Ok::<_, tollgate::ScopeError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If a scope is empty or has a character that RFC 6749 does not allow.
    pub fn with_added_scopes<I>(self, scopes: I) -> Result<Self, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        Ok(self.with(Field::AddedScopes(Scopes::new(scopes)?)))
    }

    /// Removes scopes. Ignores scopes that a grant does not have.
    ///
    /// # Errors
    ///
    /// If a scope is empty or has a character that RFC 6749 does not allow.
    pub fn with_removed_scopes<I>(self, scopes: I) -> Result<Self, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        Ok(self.with(Field::RemovedScopes(Scopes::new(scopes)?)))
    }

    /// Replaces the quota. `None` selects the default of the rate limiter.
    pub fn with_quota(self, quota: impl Into<Option<Quota>>) -> Self {
        self.with(Field::Quota(quota.into()))
    }

    /// Replaces the expiry, rounded down to whole milliseconds. `None` means no expiry.
    pub fn with_expiry(self, expires_at: impl Into<Option<SystemTime>>) -> Self {
        self.with(Field::Expiry(expires_at.into()))
    }

    /// Replaces the principal.
    ///
    /// # Errors
    ///
    /// [`SqlError::Principal`] if the principal cannot be serialized as JSON.
    pub fn with_principal<P: Serialize + ?Sized>(self, principal: &P) -> Result<Self, SqlError> {
        Ok(self.with(Field::Principal(Some(to_json(principal)?))))
    }

    /// Removes the principal.
    pub fn without_principal(self) -> Self {
        self.with(Field::Principal(None))
    }

    /// Sets the maximum number of active grants of the subject, including the changed grant. If a later expiry makes an expired
    /// grant active again and the subject has as many other active grants already, nothing is changed and the error is
    /// [`SqlError::TooManyGrants`]. Default: no maximum.
    ///
    /// Other changes never increase the number of active grants: neither a later expiry of an active grant nor
    /// [`Database::resume`], because suspended grants are active. [`Database::change_subject`] excludes expired grants. So only
    /// [`Database::change`] uses the maximum. [`NewGrant::with_max_active`](super::NewGrant::with_max_active) defines which grants
    /// are active. Concurrent issues and changes do not exceed the maximum, if all of them set it.
    pub fn with_max_active(mut self, max: u32) -> Self {
        self.max_active = Some(max);
        self
    }

    fn with(mut self, field: Field) -> Self {
        self.fields.push(field);
        self
    }

    /// Checks the label: at most 255 characters, and no control characters. [`Database::change`] checks this before it connects.
    ///
    /// # Errors
    ///
    /// [`SqlError::Name`] if the label is invalid.
    pub fn check(&self) -> Result<(), SqlError> {
        self.fields.iter().try_for_each(|field| match field {
            Field::Label(label) => check_name(label, 0),
            _ => Ok(()),
        })
    }

    fn apply(&self, grant: &mut GrantRecord) {
        for field in self.fields.iter().cloned() {
            match field {
                Field::Label(label) => grant.label = label,
                Field::Scopes(scopes) => grant.scopes = scopes,
                Field::AddedScopes(scopes) => grant.scopes = grant.scopes.union(&scopes),
                Field::RemovedScopes(scopes) => grant.scopes = grant.scopes.difference(&scopes),
                Field::Quota(quota) => grant.quota = quota,
                Field::Expiry(expires_at) => grant.expires_at = expires_at.map(unix_ms).and_then(from_unix_ms),
                Field::Principal(principal) => grant.principal = principal,
            }
        }
    }
}

/// Changes of fields. Each method is one transaction. All caches that [watch](Self::watch) the database are invalidated.
impl Database {
    /// Changes fields of a grant. Returns the changed grant.
    ///
    /// A later expiry makes an expired grant valid again. A revoked grant stays revoked.
    ///
    /// # Errors
    ///
    /// If the grant does not exist, the label is invalid, the subject has [too many grants](GrantChange::with_max_active), or the
    /// database fails.
    pub async fn change(&self, id: &GrantId, change: &GrantChange) -> Result<GrantRecord, SqlError> {
        self.change_all(Some(id), None, change).await?.pop().ok_or(SqlError::NotFound)
    }

    /// Changes fields of all grants of a subject. Returns the changed grants, ordered by id.
    ///
    /// Revoked and expired grants are not changed, so that a new expiry does not make an old token valid again.
    ///
    /// # Errors
    ///
    /// If the label is invalid, or the database fails.
    pub async fn change_subject(&self, subject: &Subject, change: &GrantChange) -> Result<Vec<GrantRecord>, SqlError> {
        self.change_all(None, Some(subject), change).await
    }

    async fn change_all(
        &self,
        id: Option<&GrantId>,
        subject: Option<&Subject>,
        change: &GrantChange,
    ) -> Result<Vec<GrantRecord>, SqlError> {
        // Rows are locked in one order, so that two changes do not wait for each other.
        const LOCK: &str = concat!(
            "SELECT ",
            columns!(),
            " FROM {p}grants g WHERE g.id = $1 OR (g.subject = $2 AND g.revoked_ms IS NULL \
             AND (g.expires_ms IS NULL OR g.expires_ms > $3)) ORDER BY g.id {for_update}"
        );
        const UPDATE: &str = "UPDATE {p}grants SET label = $2, scopes = $3, quota_interval_ns = $4, quota_burst = $5, \
             expires_ms = $6, principal = CAST($7 AS {json}) WHERE id = $1";
        change.check()?;
        let now = self.now();
        let mut reports = self.reports();
        administer!(self, Writes, transaction => {
            let rows = sqlx::query(self.sql(LOCK))
                .bind(id.map(GrantId::as_str))
                .bind(subject.map(Subject::as_str))
                .bind(unix_ms(now))
                .fetch_all(&mut *transaction)
                .await?;
            let mut changed = Vec::with_capacity(rows.len());
            for row in &rows {
                let before = read(row)?;
                let mut grant = before.clone();
                change.apply(&mut grant);
                if grant == before {
                    // An equal quota may have another text, such as `60/min burst 1` for `1/s`.
                    changed.push((before.clone(), before));
                    continue;
                }
                if let Some(max) = change.max_active {
                    let becomes_active = check_active(&before, now).is_err() && check_active(&grant, now).is_ok();
                    if becomes_active
                        && count_active!(self, transaction, &grant.subject, unix_ms(now)) >= i64::from(max)
                    {
                        return Err(SqlError::TooManyGrants { max });
                    }
                }
                reports.grant(grant.id.as_str());
                let (interval, burst) = quota_columns(grant.quota);
                sqlx::query(self.sql(UPDATE))
                    .bind(grant.id.as_str())
                    .bind(&grant.label)
                    .bind(grant.scopes.to_string())
                    .bind(interval)
                    .bind(burst)
                    .bind(grant.expires_at.map(unix_ms))
                    .bind(grant.principal.as_deref())
                    .execute(&mut *transaction)
                    .await?;
                // The database may write JSON differently.
                let row = sqlx::query(self.sql(DESCRIBE)).bind(grant.id.as_str()).fetch_one(&mut *transaction).await?;
                changed.push((before, read(&row)?));
            }
            let differ = changed.iter().map(|(before, grant)| (grant, changes(Some(before), grant)));
            let entries = differ.filter(|(_, changes)| !changes.is_empty());
            record!(self, transaction, "change", entries.map(|(grant, changes)| about(grant, changes)));
            Ok(changed.into_iter().map(|(_, grant)| grant).collect())
        })
    }

    /// Replaces the label of a grant.
    ///
    /// # Errors
    ///
    /// If the grant does not exist, the label is invalid, or the database fails.
    pub async fn relabel(&self, id: &GrantId, label: &str) -> Result<(), SqlError> {
        self.change(id, &GrantChange::new().with_label(label)).await.map(drop)
    }

    /// Replaces the scopes of a grant.
    ///
    /// # Errors
    ///
    /// If the grant does not exist, or the database fails.
    pub async fn set_scopes(&self, id: &GrantId, scopes: &Scopes) -> Result<(), SqlError> {
        self.change(id, &GrantChange::new().with(Field::Scopes(scopes.clone()))).await.map(drop)
    }

    /// Replaces the quota of a grant. `None` selects the default of the rate limiter. Grants of one subject should have the same
    /// quota; see [`set_subject_quota`](Self::set_subject_quota).
    ///
    /// # Errors
    ///
    /// If the grant does not exist, or the database fails.
    pub async fn set_quota(&self, id: &GrantId, quota: Option<Quota>) -> Result<(), SqlError> {
        self.change(id, &GrantChange::new().with_quota(quota)).await.map(drop)
    }

    /// Replaces the quota of all grants of a subject that are not revoked or expired, such as a customer's plan. Returns the
    /// number of these grants.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn set_subject_quota(&self, subject: &Subject, quota: Option<Quota>) -> Result<usize, SqlError> {
        Ok(self.change_subject(subject, &GrantChange::new().with_quota(quota)).await?.len())
    }

    /// Replaces the expiry of a grant. `None` means no expiry. A later expiry makes an expired grant valid again.
    ///
    /// # Errors
    ///
    /// If the grant does not exist, or the database fails.
    pub async fn set_expiry(&self, id: &GrantId, expires_at: Option<SystemTime>) -> Result<(), SqlError> {
        self.change(id, &GrantChange::new().with_expiry(expires_at)).await.map(drop)
    }

    /// Replaces the principal of a grant.
    ///
    /// # Errors
    ///
    /// If the grant does not exist, the principal cannot be serialized as JSON, or the database fails.
    pub async fn set_principal<P>(&self, id: &GrantId, principal: &P) -> Result<(), SqlError>
    where
        P: Serialize + Sync + ?Sized,
    {
        let change = GrantChange::new().with_principal(principal)?;
        self.change(id, &change).await.map(drop)
    }

    /// Removes the principal of a grant.
    ///
    /// # Errors
    ///
    /// If the grant does not exist, or the database fails.
    pub async fn remove_principal(&self, id: &GrantId) -> Result<(), SqlError> {
        self.change(id, &GrantChange::new().without_principal()).await.map(drop)
    }
}
