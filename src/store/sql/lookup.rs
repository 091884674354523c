//! The store of a database: looks up tokens.

use std::any::TypeId;
use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use sqlx::Row;
use tokio::time::timeout;

use super::database::{administer, from_unix_ms, on_connection};
use super::record::{columns, digest_of, read};
use super::{Database, GrantRecord, SqlError, TokenRecord};
use crate::grant::Grant;
use crate::pending::answer::Answer;
use crate::rejection::store_error::StoreError;
use crate::store::{Lookup, TokenStore};
use crate::token::{BearerToken, TokenDigest};

/// The statement of a lookup, by the primary key. The inner query makes the names of columns unique.
pub(super) const STATEMENT: &str = concat!(
    "SELECT t.digest, t.rotated_until_ms, ",
    columns!(),
    " FROM (SELECT digest, grant_id, rotated_until_ms FROM {p}tokens) t JOIN {p}grants g ON g.id = t.grant_id \
     WHERE t.digest = $1 AND g.revoked_ms IS NULL \
     AND g.suspended_ms IS NULL"
);

/// The statement of [`Database::describe_token`]: a lookup that also finds revoked and suspended grants.
const DESCRIBE: &str = concat!(
    "SELECT t.digest, t.token_created_ms, t.rotated_until_ms, ",
    columns!(),
    " FROM (SELECT grant_id, digest, created_ms AS token_created_ms, rotated_until_ms FROM {p}tokens WHERE digest = $1) t \
      JOIN {p}grants ON id = t.grant_id"
);

/// The future of a [`SqlStore`]. The source of its error is an [`SqlError`].
pub type SqlFuture<P> = Pin<Box<dyn Future<Output = Lookup<P, StoreError>> + Send>>;

type Principals<P> = dyn Fn(GrantRecord) -> PrincipalFuture<P> + Send + Sync;
type PrincipalFuture<P> = Pin<Box<dyn Future<Output = Result<Grant<P>, SqlError>> + Send>>;

/// A token store on a [`Database`]. Cheap to clone.
///
/// Each lookup runs one statement, which uses a unique index. Then the digest of the row is compared with that of the token in
/// constant time. Tokens of revoked and suspended grants are unknown.
///
/// If a row or its principal cannot be read, the lookup fails with an error
/// [about one token](StoreError::concerns_token); see [`SqlError::concerns_token`]. Such errors do not open a
/// [`CircuitBreaker`](crate::store::CircuitBreaker).
pub struct SqlStore<P> {
    database: Database,
    principals: Arc<Principals<P>>,
}

impl Database {
    /// Returns a store that reads principals from the column `principal`, as JSON. A missing principal is read as `null`, which
    /// deserializes to `Option`. With `()`, principals are ignored. A principal that cannot be read is an error about that token,
    /// and the gate answers 503.
    #[must_use]
    pub fn store<P: DeserializeOwned + Send + Sync + 'static>(&self) -> SqlStore<P> {
        // `()` deserializes from `null` only.
        let is_ignored = TypeId::of::<P>() == TypeId::of::<()>();
        SqlStore::new(self, move |record| {
            let json = record.principal.as_deref().filter(|_| !is_ignored);
            let principal = serde_json::from_str(json.unwrap_or("null"));
            let grant =
                principal.map(|principal| record.grant(principal)).map_err(|error| SqlError::Principal(error.into()));
            Box::pin(std::future::ready(grant))
        })
    }

    /// Returns a store that calls `principal` to find the principal of a grant, for example in tables of the service. The
    /// [timeout](Self::with_timeout) of the lookup includes this call. After an error, the gate answers 503.
    ///
    /// These errors concern one token: an error made by [`StoreError::for_token`], an error of `serde_json`, and an error of
    /// `sqlx` for a row that was not found or cannot be decoded. All other errors concern the store.
    ///
    /// ```no_run
    /// use tollgate::store::sql::{Database, GrantRecord};
    ///
    /// struct User { plan: String }
    ///
    /// async fn user_of(grant: GrantRecord) -> Result<User, std::io::Error> {
    ///     // SELECT plan FROM users WHERE name = ..
    ///     Ok(User { plan: format!("plan of {}", grant.subject) })
    /// }
    ///
    /// # fn example(database: &Database) {
    /// let store = database.store_with(user_of);
    /// # let _ = store;
    /// # }
    /// ```
    #[must_use]
    pub fn store_with<P, F, Fut, E>(&self, principal: F) -> SqlStore<P>
    where
        P: Send + Sync + 'static,
        F: Fn(GrantRecord) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<P, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        SqlStore::new(self, move |record| {
            let found = principal(record.clone());
            Box::pin(async move {
                let principal = found.await.map_err(|error| SqlError::Principal(error.into()))?;
                Ok(record.grant(principal))
            })
        })
    }

    /// Reads a token and its grant in any state, for example to find the owner of a leaked token, or to explain why a token is
    /// rejected. Returns `None` if the token is unknown. This is not a use of the token.
    ///
    /// ```no_run
    /// use tollgate::TokenDigest;
    /// use tollgate::store::sql::{Database, SqlError};
    ///
    /// # async fn example(database: &Database, leaked: &str) -> Result<(), SqlError> {
    /// if let Some(token) = database.describe_token(TokenDigest::of(leaked)).await? {
    ///     println!("The token belongs to {}.", token.grant.subject);
    ///     database.revoke(&token.grant.id).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If a row is invalid, or if the database fails.
    pub async fn describe_token(&self, token: impl Into<TokenDigest>) -> Result<Option<TokenRecord>, SqlError> {
        let digest = token.into();
        administer!(self, Reads, transaction => {
            let statement = sqlx::query(self.sql(DESCRIBE)).bind(digest.to_bytes().to_vec());
            let Some(row) = statement.fetch_optional(&mut *transaction).await? else { return Ok(None) };
            // Compares in constant time.
            if digest_of(row.try_get("digest")?)? != digest {
                return Err(SqlError::Corrupt("digest"));
            }
            let grant = read(&row)?;
            let time = |ms: i64, column| {
                from_unix_ms(ms).ok_or_else(|| grant.invalid(column))
            };
            let grace_ends: Option<i64> = row.try_get("rotated_until_ms")?;
            let created_at = time(row.try_get("token_created_ms")?, "created_ms")?;
            let grace_ends_at = grace_ends.map(|ms| time(ms, "rotated_until_ms")).transpose()?;
            Ok(Some(TokenRecord { grant, created_at, grace_ends_at }))
        })
    }

    /// Reads the row of a token and the end of its grace period.
    async fn find(&self, digest: TokenDigest) -> Result<Option<(GrantRecord, Option<i64>)>, SqlError> {
        on_connection!(self, Reads, Statement, connection => {
            let statement = sqlx::query(self.0.schema.lookup.clone()).bind(digest.to_bytes().to_vec());
            let Some(row) = statement.fetch_optional(connection).await? else { return Ok(None) };
            // Compares in constant time.
            match digest_of(row.try_get("digest")?)? == digest {
                true => Ok(Some((read(&row)?, row.try_get("rotated_until_ms")?))),
                // The database returned another row, so nothing is known about this token.
                false => Err(SqlError::Corrupt("digest")),
            }
        })
    }

    /// Calls [`find`](Self::find), and repeats it once if the connection was lost. A restart of the server closes all connections.
    async fn find_with_retry(&self, digest: TokenDigest) -> Result<Option<(GrantRecord, Option<i64>)>, SqlError> {
        match self.find(digest).await {
            Err(SqlError::Database(error)) if is_disconnect(&*error) => self.find(digest).await,
            found => found,
        }
    }
}

/// Returns whether the connection was lost, so that the statement may succeed on another connection.
pub(super) fn is_disconnect(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    match error.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => true,
        // PostgreSQL sends these codes when it shuts down (57P01) or crashes (57P02).
        Some(sqlx::Error::Database(reply)) => reply.code().is_some_and(|code| code.starts_with("57P0")),
        _ => false,
    }
}

impl SqlError {
    /// Returns true if the error concerns one token and not the store: the database works, but one row could not be read.
    #[must_use]
    pub fn concerns_token(&self) -> bool {
        match self {
            Self::Corrupt(_) => true,
            Self::InvalidRow { source, .. } => source.concerns_token(),
            Self::Principal(error) | Self::Database(error) => concerns_row(&**error),
            _ => false,
        }
    }
}

fn concerns_row(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<StoreError>() {
        return error.concerns_token();
    }
    if let Some(error) = error.downcast_ref::<SqlError>() {
        return error.concerns_token();
    }
    if let Some(error) = error.downcast_ref::<serde_json::Error>() {
        return !error.is_io();
    }
    match error.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::RowNotFound | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)) => true,
        Some(sqlx::Error::Database(reply)) => is_data_exception(&**reply),
        _ => false,
    }
}

/// Returns whether the error has SQLSTATE class 22: a query could not convert a value.
#[cfg_attr(not(feature = "postgres"), allow(unused_variables, reason = "SQLite has no such codes"))]
fn is_data_exception(error: &(dyn sqlx::error::DatabaseError + 'static)) -> bool {
    #[cfg(feature = "postgres")]
    if let Some(error) = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
        return error.code().starts_with("22");
    }
    false
}

impl From<SqlError> for StoreError {
    fn from(error: SqlError) -> Self {
        match error.concerns_token() {
            true => Self::for_token(error),
            false => Self::new(error),
        }
    }
}

impl<P: Send + Sync + 'static> SqlStore<P> {
    fn new(
        database: &Database,
        principals: impl Fn(GrantRecord) -> PrincipalFuture<P> + Send + Sync + 'static,
    ) -> Self {
        Self { database: database.clone(), principals: Arc::new(principals) }
    }
}

impl<P: Send + Sync + 'static> TokenStore for SqlStore<P> {
    type Principal = P;
    type Error = StoreError;
    type Future = SqlFuture<P>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        Answer::Pending(self.get(*token.digest()))
    }
}

impl<P: Send + Sync + 'static> SqlStore<P> {
    /// Looks up the grant of a token outside of a gate, for example to check the token of an open WebSocket again. The caller
    /// has to check that the grant [is valid](Grant::is_valid_at), as a gate does.
    ///
    /// ```no_run
    /// use tollgate::store::sql::SqlStore;
    /// use tollgate::TokenDigest;
    ///
    /// async fn is_alive(store: &SqlStore<()>, token: TokenDigest) -> Result<bool, tollgate::StoreError> {
    ///     Ok(store.get(token).await?.is_some_and(|grant| grant.is_valid_at(std::time::SystemTime::now())))
    /// }
    /// ```
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub fn get(&self, token: impl Into<TokenDigest>) -> SqlFuture<P> {
        let (digest, store) = (token.into(), self.clone());
        Box::pin(async move {
            let database = &store.database;
            let find = async {
                let Some((record, grace_end)) = database.find_with_retry(digest).await? else { return Ok(None) };
                // `from_unix_ms` returns `None` before 1970, which would mean a grace period without an end.
                if let Some(..0) = grace_end {
                    return Err(record.invalid("rotated_until_ms"));
                }
                let grant = (store.principals)(record).await?;
                Ok(Some(Arc::new(match grace_end {
                    None => grant,
                    Some(until) => grant.into_rotated(from_unix_ms(until)),
                })))
            };
            let found = timeout(database.0.lookup_timeout, find).await.unwrap_or(Err(SqlError::Timeout));
            Ok(found?)
        })
    }
}

impl<P> Clone for SqlStore<P> {
    fn clone(&self) -> Self {
        Self { database: self.database.clone(), principals: Arc::clone(&self.principals) }
    }
}

impl<P> fmt::Debug for SqlStore<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStore").field("database", &self.database).finish_non_exhaustive()
    }
}
