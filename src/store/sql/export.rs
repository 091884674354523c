//! Export of grants with the digests of their tokens, to move them to another database.

use std::collections::HashMap;
use std::time::SystemTime;

use serde_json::Value;

use super::cursor::Cursor;
use super::database::{administer, from_unix_ms};
use super::record::digest_of;
use super::{Database, GrantQuery, GrantRecord, SqlError};
use crate::token::TokenDigest;

/// A token of a grant, as the tables store it. Digests are as secret as a password hash: do not print them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredToken {
    /// The digest of the token.
    pub digest: TokenDigest,
    /// The time of issue. `None` in an import means the time of the grant.
    pub created_at: Option<SystemTime>,
    /// The end of the grace period. `None` if the token was not rotated.
    pub rotated_until: Option<SystemTime>,
}

impl StoredToken {
    /// Creates a token that was not rotated.
    #[must_use]
    pub fn new(token: impl Into<TokenDigest>) -> Self {
        Self { digest: token.into(), created_at: None, rotated_until: None }
    }

    /// Sets the time of issue.
    #[must_use]
    pub fn with_created_at(mut self, at: SystemTime) -> Self {
        self.created_at = Some(at);
        self
    }

    /// Marks the token as rotated, with the end of its grace period.
    #[must_use]
    pub fn with_rotation(mut self, until: SystemTime) -> Self {
        self.rotated_until = Some(until);
        self
    }
}

impl<T: Into<TokenDigest>> From<T> for StoredToken {
    fn from(token: T) -> Self {
        Self::new(token)
    }
}

/// A grant with its tokens. Convert it to a [`GrantImport`](super::GrantImport) to import it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredGrant {
    /// The grant.
    pub grant: GrantRecord,
    /// Its tokens: the newest one, and rotated ones until they are [purged](Database::purge).
    pub tokens: Vec<StoredToken>,
}

/// A page of grants with their tokens, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportPage {
    /// The grants.
    pub grants: Vec<StoredGrant>,
    /// The end of this page. `None` if it is the last page.
    pub next: Option<Cursor>,
}

/// A row of a token as the database returns it: the grant, the digest, and two times.
type Row = (String, Vec<u8>, i64, Option<i64>);

impl Database {
    /// Reads a page of grants with the digests of their tokens. [`page`](Self::page) reads the grants alone.
    ///
    /// ```no_run
    /// use tollgate::store::sql::{Database, GrantQuery, ImportOptions, SqlError};
    ///
    /// async fn copy(from: &Database, to: &Database) -> Result<(), SqlError> {
    ///     let mut query = GrantQuery::new();
    ///     loop {
    ///         let page = from.export(&query).await?;
    ///         let grants = page.grants.into_iter().map(|grant| Ok(grant.into()));
    ///         to.import_all(grants, ImportOptions::new().with_skip_existing()).await?;
    ///         let Some(next) = page.next else { return Ok(()) };
    ///         query = query.after(next);
    ///     }
    /// }
    /// ```
    ///
    /// Grants that change meanwhile are exported before or after their change. Stop changes for an exact copy.
    ///
    /// # Errors
    ///
    /// [`SqlError::Cursor`] if the cursor is not from a page of grants, or if the database fails.
    pub async fn export(&self, query: &GrantQuery) -> Result<ExportPage, SqlError> {
        const TOKENS: &str = "SELECT t.grant_id, t.digest, t.created_ms, t.rotated_until_ms \
             FROM {json_elements}(CAST($1 AS {json})) AS item JOIN {p}tokens t ON t.grant_id = item.value ->> 0 \
             ORDER BY t.grant_id, t.created_ms, t.digest";
        let page = self.page(query).await?;
        let ids = Value::from_iter(page.grants.iter().map(|grant| vec![grant.id.as_str()])).to_string();
        let rows: Vec<Row> = administer!(self, Reads, transaction => {
            Ok(sqlx::query_as(self.sql(TOKENS)).bind(ids).fetch_all(&mut *transaction).await?)
        })?;
        let mut tokens: HashMap<String, Vec<Result<StoredToken, SqlError>>> = HashMap::new();
        for (id, digest, created, rotated_until) in rows {
            tokens.entry(id).or_default().push(stored(&digest, created, rotated_until));
        }
        let grants = page.grants.into_iter().map(|grant| {
            let tokens = tokens.remove(grant.id.as_str()).unwrap_or_default();
            let tokens: Result<_, _> = tokens.into_iter().collect();
            let tokens = tokens.map_err(|error| SqlError::of_row(grant.id.clone(), grant.subject.clone(), error))?;
            Ok(StoredGrant { grant, tokens })
        });
        Ok(ExportPage { grants: grants.collect::<Result<_, SqlError>>()?, next: page.next })
    }
}

/// Converts the values of a token's row.
fn stored(digest: &[u8], created: i64, rotated_until: Option<i64>) -> Result<StoredToken, SqlError> {
    let time = |ms: i64, column| from_unix_ms(ms).ok_or(SqlError::Corrupt(column));
    Ok(StoredToken {
        digest: digest_of(digest)?,
        created_at: Some(time(created, "created_ms")?),
        rotated_until: rotated_until.map(|ms| time(ms, "rotated_until_ms")).transpose()?,
    })
}
