//! Import of many grants with their tokens, in one transaction.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::admin::COUNT_EACH;
use super::audit::{about, changes, record};
use super::database::{administer, unix_ms};
use super::grant_import::Rows;
use super::record::{digest_of, quota_columns};
use super::{Database, GrantImport, GrantRecord, ImportCounts, ImportOptions, SqlError};
use crate::grant::GrantId;
use crate::token::{TokenDigest, TokenLocation};

/// The number of grants of one statement. It bounds the memory of an import. Smaller statements would be slow: sqlx does not set
/// `TCP_NODELAY`, so that each one may wait 40 ms for an acknowledgement.
const BATCH: usize = 5_000;

// Not a join, for which PostgreSQL could read the whole table: it plans for the size before the import. It plans each execution:
// a kept plan of a small table could read the whole table for each token.
const TOKEN_OWNERS: &str = "SELECT {digest}, (SELECT grant_id FROM {p}tokens WHERE digest = {digest}) \
     FROM {json_elements}(CAST($1 AS {json})) AS item";
// `WHERE TRUE` tells SQLite that `ON CONFLICT` is not the condition of a join.
const INSERT_GRANTS: &str = "INSERT INTO {p}grants (id, subject, label, scopes, quota_interval_ns, quota_burst, not_before_ms, \
     expires_ms, sender_constrained, principal, created_ms, revoked_ms, suspended_ms, last_used_ms, last_used_location, token_prefix) \
     SELECT item.value ->> 0, item.value ->> 1, item.value ->> 2, item.value ->> 3, CAST(item.value ->> 4 AS BIGINT), \
     CAST(item.value ->> 5 AS BIGINT), CAST(item.value ->> 6 AS BIGINT), CAST(item.value ->> 7 AS BIGINT), \
     CAST(item.value ->> 8 AS BOOLEAN), CAST(item.value ->> 9 AS {json}), CAST(item.value ->> 10 AS BIGINT), \
     CAST(item.value ->> 11 AS BIGINT), CAST(item.value ->> 12 AS BIGINT), CAST(item.value ->> 13 AS BIGINT), \
     item.value ->> 14, item.value ->> 15 \
     FROM {json_elements}(CAST($1 AS {json})) AS item WHERE TRUE ON CONFLICT DO NOTHING RETURNING id";
const INSERT_TOKENS: &str = "INSERT INTO {p}tokens (digest, grant_id, created_ms, rotated_until_ms) \
     SELECT {digest}, item.value ->> 1, CAST(item.value ->> 2 AS BIGINT), CAST(item.value ->> 3 AS BIGINT) \
     FROM {json_elements}(CAST($1 AS {json})) AS item WHERE TRUE ON CONFLICT DO NOTHING RETURNING digest";

impl Database {
    /// Imports grants with their tokens, such as those of another system or of an [export](Self::export). Either all grants are
    /// imported or none: an error of the iterator, an invalid grant or a conflict ends the import. Memory is bounded: grants are
    /// written in statements of 5,000.
    ///
    /// ```no_run
    /// use tollgate::TokenDigest;
    /// use tollgate::store::sql::{Database, GrantImport, ImportOptions, NewGrant, SqlError};
    ///
    /// # async fn example(database: &Database, rows: Vec<(String, [u8; 32])>) -> Result<(), SqlError> {
    /// let grants = rows.into_iter().map(|(customer, digest)| {
    ///     Ok(GrantImport::new(NewGrant::new(customer)).with_token(TokenDigest::from_bytes(digest)))
    /// });
    /// let counts = database.import_all(grants, ImportOptions::new().with_skip_existing()).await?;
    /// println!("imported {}, skipped {}", counts.imported, counts.skipped);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The [audit trail](Self::audit) gets an entry for each imported grant. The whole import is one transaction, so the
    /// [timeout](Self::with_admin_timeout) must allow for it. On SQLite, all other changes wait. On PostgreSQL, issues, changes and
    /// imports with a [maximum](super::NewGrant::with_max_active) wait if the import has one. Changes that wait for 5 seconds fail
    /// with [`SqlError::Locked`]. On PostgreSQL, an iterator that waits for more than 5 seconds ends the transaction.
    ///
    /// # Errors
    ///
    /// [`SqlError::Import`] names the record, and contains the errors of [`GrantImport::check`], [`SqlError::AlreadyExists`],
    /// [`SqlError::TooManyGrants`] or the error of the iterator. Other errors are those of the database.
    pub async fn import_all<I>(&self, grants: I, options: ImportOptions) -> Result<ImportCounts, SqlError>
    where
        I: IntoIterator<Item = Result<GrantImport, SqlError>>,
        I::IntoIter: Send,
    {
        let mut numbered = (1_u64..).zip(grants);
        let now = self.now();
        let mut reports = self.reports();
        administer!(self, Writes, transaction => {
            let mut counts = ImportCounts::default();
            // A savepoint, which a dry run rolls back.
            let mut import = transaction.begin().await?;
            loop {
                let batch = next_batch(&mut numbered, now)?;
                if batch.is_empty() {
                    break;
                }
                let is_limited = batch.iter().any(|(_, rows)| rows.max_active.is_some());
                if is_limited {
                    // Before the inserts: an issue that holds the lock may wait for a row of this import.
                    sqlx::query(self.0.schema.lock_subjects()).execute(&mut *import).await?;
                }
                counts.skipped += u64::try_from(batch.len()).unwrap_or(u64::MAX);
                let tokens = batch.iter().flat_map(|(_, rows)| &rows.tokens);
                let digests = Value::from_iter(tokens.map(|token| [token.digest.to_hex()].to_vec())).to_string();
                let owners = sqlx::query_as(self.sql(TOKEN_OWNERS)).persistent(false).bind(digests);
                let owners = owners.fetch_all(&mut *import).await?;
                let mut batch = without_known_tokens(batch, owners, options)?;

                let list = Value::from_iter(batch.iter().map(|(_, rows)| grant_row(&rows.grant))).to_string();
                let mut insert = import.begin().await?;
                let ids = sqlx::query_scalar(self.sql(INSERT_GRANTS)).bind(list).fetch_all(&mut *insert).await;
                let ids: Vec<String> = match ids.map_err(SqlError::from) {
                    Ok(ids) => {
                        insert.commit().await?;
                        ids
                    }
                    Err(error) => {
                        insert.rollback().await?;
                        // PostgreSQL stores no null character and no huge number in JSON, and does not name the row.
                        for (number, rows) in batch.iter().filter(|_| error.concerns_token()) {
                            let mut check = import.begin().await?;
                            let principal = sqlx::query(self.sql("SELECT CAST($1 AS {json})")).bind(&rows.grant.principal);
                            if let Err(error) = principal.execute(&mut *check).await {
                                return Err(SqlError::at(*number, SqlError::Principal(error.into())));
                            }
                            check.rollback().await?;
                        }
                        return Err(error);
                    }
                };
                let mut inserted: HashSet<String> = ids.into_iter().collect();
                for (number, rows) in &mut batch {
                    // An id that is in the batch twice was inserted once.
                    rows.is_inserted = inserted.remove(rows.grant.id.as_str());
                    if !rows.is_inserted && !options.skip_existing {
                        return Err(SqlError::at(*number, SqlError::AlreadyExists));
                    }
                }
                batch.retain(|(_, rows)| rows.is_inserted);
                let imported = u64::try_from(batch.len()).unwrap_or(u64::MAX);
                (counts.imported, counts.skipped) = (counts.imported + imported, counts.skipped - imported);

                let list = Value::from_iter(batch.iter().flat_map(|(_, rows)| token_rows(rows))).to_string();
                let digests: Vec<Vec<u8>> =
                    sqlx::query_scalar(self.sql(INSERT_TOKENS)).bind(list).fetch_all(&mut *import).await?;
                let digests: HashSet<TokenDigest> =
                    digests.iter().map(|digest| digest_of(digest)).collect::<Result<_, _>>()?;
                let mut active: HashMap<String, i64> = HashMap::new();
                if is_limited {
                    let limited = batch.iter().filter(|(_, rows)| rows.max_active.is_some());
                    let subjects: BTreeSet<&str> = limited.map(|(_, rows)| rows.grant.subject.as_str()).collect();
                    let list = Value::from_iter(subjects.iter().map(|subject| vec![*subject])).to_string();
                    let count = sqlx::query_as(self.sql(COUNT_EACH)).persistent(false).bind(list).bind(unix_ms(now));
                    active.extend(count.fetch_all(&mut *import).await?);
                }
                for (number, rows) in &batch {
                    // Another process has inserted the token meanwhile.
                    if rows.tokens.iter().any(|token| !digests.contains(&token.digest)) {
                        return Err(SqlError::at(*number, SqlError::AlreadyExists));
                    }
                    if let Some(max) = rows.max_active {
                        if active.get(rows.grant.subject.as_str()).is_none_or(|active| *active > i64::from(max)) {
                            return Err(SqlError::at(*number, SqlError::TooManyGrants { max }));
                        }
                    }
                }
                let entries = batch.iter().map(|(_, rows)| about(&rows.grant, changes(None, &rows.grant)));
                record!(self, import, "import", entries);
            }
            match options.dry_run {
                true => import.rollback().await?,
                false => {
                    reports.added();
                    import.commit().await?;
                }
            }
            Ok(counts)
        })
    }
}

fn next_batch(
    numbered: &mut impl Iterator<Item = (u64, Result<GrantImport, SqlError>)>,
    now: SystemTime,
) -> Result<Vec<(u64, Rows)>, SqlError> {
    let batch = numbered.take(BATCH).map(|(number, grant)| {
        let rows = grant.and_then(|grant| grant.rows(now));
        rows.map(|rows| (number, rows)).map_err(|error| SqlError::at(number, error))
    });
    batch.collect()
}

/// Removes the grants that are skipped because of their tokens. Existing tokens have the id of a grant.
fn without_known_tokens(
    batch: Vec<(u64, Rows)>,
    owners: Vec<(Vec<u8>, Option<String>)>,
    options: ImportOptions,
) -> Result<Vec<(u64, Rows)>, SqlError> {
    let owners = owners.into_iter().filter_map(|(digest, id)| Some((digest, id?)));
    let owners = owners.map(|(digest, id)| Ok((digest_of(&digest)?, GrantId::from(id))));
    let mut owners: HashMap<TokenDigest, GrantId> = owners.collect::<Result<_, SqlError>>()?;
    let mut unknown = Vec::with_capacity(batch.len());
    for (number, rows) in batch {
        let mut is_known = false;
        for token in &rows.tokens {
            let Some(owner) = owners.get(&token.digest) else { continue };
            is_known = true;
            if !options.skip_existing || (rows.has_id && *owner != rows.grant.id) {
                return Err(SqlError::at(number, SqlError::AlreadyExists));
            }
        }
        if !is_known {
            // A later grant of the batch may have the same token.
            owners.extend(rows.tokens.iter().map(|token| (token.digest, rows.grant.id.clone())));
            unknown.push((number, rows));
        }
    }
    Ok(unknown)
}

fn grant_row(grant: &GrantRecord) -> Value {
    let (interval, burst) = quota_columns(grant.quota);
    json!([
        grant.id.as_str(),
        grant.subject.as_str(),
        grant.label,
        grant.scopes.to_string(),
        interval,
        burst,
        grant.not_before.map(unix_ms),
        grant.expires_at.map(unix_ms),
        grant.sender_constrained,
        grant.principal,
        unix_ms(grant.created_at),
        grant.revoked_at.map(unix_ms),
        grant.suspended_at.map(unix_ms),
        grant.last_used.map(unix_ms),
        grant.last_used_location.map(TokenLocation::as_str),
        grant.token_prefix,
    ])
}

fn token_rows(rows: &Rows) -> impl Iterator<Item = Value> {
    rows.tokens.iter().map(|token| {
        json!([
            token.digest.to_hex(),
            rows.grant.id.as_str(),
            unix_ms(token.created_at.unwrap_or(rows.grant.created_at)),
            token.rotated_until.map(unix_ms),
        ])
    })
}
