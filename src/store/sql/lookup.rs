use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use sqlx::Row;
use tokio::time::timeout;

use super::database::{from_unix_ms, on_connection};
use super::record::{columns, digest_of, read};
use super::{Database, GrantRecord, SqlError};
use crate::grant::Grant;
use crate::pending::answer::Answer;
use crate::rejection::store_error::StoreError;
use crate::store::{Lookup, TokenStore};
use crate::token::{BearerToken, TokenDigest};

/// The one statement of a look-up: the digest is a primary key.
pub(super) const STATEMENT: &str = concat!(
    "SELECT t.digest, t.outgoing_until_ms, ",
    columns!(),
    " FROM {p}tokens t JOIN {p}grants g ON g.id = t.grant_id WHERE t.digest = $1 AND g.revoked_ms IS NULL"
);

/// The future of a [`SqlStore`]. The source of its error is an [`SqlError`].
pub type SqlFuture<P> = Pin<Box<dyn Future<Output = Lookup<P, StoreError>> + Send>>;

type Principals<P> = dyn Fn(GrantRecord) -> PrincipalFuture<P> + Send + Sync;
type PrincipalFuture<P> = Pin<Box<dyn Future<Output = Result<Grant<P>, SqlError>> + Send>>;

/// Looks tokens up in a [`Database`]. Cheap to clone.
///
/// A token costs one statement, which finds it by a unique index; that its digest is the one which was asked for is then
/// confirmed in constant time. Tokens of revoked grants are unknown.
///
/// A row that cannot be read, or whose principal cannot, is an error [about one token](StoreError::concerns_token); see
/// [`SqlError::concerns_token`]. The database works, and a [`CircuitBreaker`](crate::store::CircuitBreaker) stays closed.
pub struct SqlStore<P> {
    database: Database,
    principals: Arc<Principals<P>>,
}

impl Database {
    /// The store whose principals stand in the column `principal`, as JSON; a missing one is read as `null`, which `()` and
    /// `Option` can be read from. A principal that cannot be read is an error about that token, and answered by 503.
    #[must_use]
    pub fn store<P: DeserializeOwned + Send + Sync + 'static>(&self) -> SqlStore<P> {
        SqlStore::new(self, |record| {
            let principal = serde_json::from_str(record.principal.as_deref().unwrap_or("null"));
            let grant =
                principal.map(|principal| record.grant(principal)).map_err(|error| SqlError::Principal(error.into()));
            Box::pin(std::future::ready(grant))
        })
    }

    /// The store whose principals the service finds by itself, by a query on tables of its own. It has the deadline of the
    /// look-up, together with it. An error is answered by 503.
    ///
    /// An error is taken to concern the store, such as one of the database, unless it says that it is about the row: an error
    /// made by [`StoreError::for_token`], one of `serde_json`, or one of `sqlx` for a row that was not found or cannot be
    /// decoded.
    ///
    /// ```no_run
    /// use tollgate::store::sql::{Database, GrantRecord};
    ///
    /// struct User { plan: String }
    ///
    /// async fn user_of(grant: GrantRecord) -> Result<User, std::io::Error> {
    ///     // SELECT plan FROM users WHERE name = ..
    ///     Ok(User { plan: format!("that of {}", grant.subject) })
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

    /// The row of a token, and the end of its grace.
    async fn find(&self, digest: TokenDigest) -> Result<Option<(GrantRecord, Option<i64>)>, SqlError> {
        on_connection!(self, Reading, connection => {
            let statement = sqlx::query(&self.0.schema.lookup).bind(digest.to_bytes().to_vec());
            let Some(row) = statement.fetch_optional(connection).await? else { return Ok(None) };
            // The comparison takes the same time wherever the digests differ.
            match digest_of(row.try_get("digest")?)? == digest {
                true => Ok(Some((read(&row)?, row.try_get("outgoing_until_ms")?))),
                // The database did not do what it was asked to, so its answer says nothing about this token.
                false => Err(SqlError::Corrupt("digest")),
            }
        })
    }

    /// Repeats [`find`](Self::find) if the connection turned out to have been cut, as all are when a server restarts.
    async fn find_again(&self, digest: TokenDigest) -> Result<Option<(GrantRecord, Option<i64>)>, SqlError> {
        match self.find(digest).await {
            Err(SqlError::Database(error)) if was_cut(&*error) => self.find(digest).await,
            found => found,
        }
    }
}

/// Whether the connection is lost, so that the statement may succeed on another one.
pub(super) fn was_cut(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    match error.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => true,
        // PostgreSQL says good-bye when it is shut down (57P01) or falls over (57P02).
        Some(sqlx::Error::Database(said)) => said.code().is_some_and(|code| code.starts_with("57P0")),
        _ => false,
    }
}

impl SqlError {
    /// Returns true if the database works and only one row could not be read, so that the error concerns one token and not the
    /// store.
    #[must_use]
    pub fn concerns_token(&self) -> bool {
        match self {
            Self::Corrupt(_) => true,
            Self::Principal(error) | Self::Database(error) => is_about_a_row(&**error),
            _ => false,
        }
    }
}

fn is_about_a_row(error: &(dyn Error + Send + Sync + 'static)) -> bool {
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
        Some(sqlx::Error::Database(said)) => is_data_exception(&**said),
        _ => false,
    }
}

/// Class 22 of SQLSTATE: a value that a query could not convert.
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
    /// The grant of a token, for what outlives a request, such as a WebSocket, and has to ask again. It looks whether the grant
    /// [is valid](Grant::is_valid_at) by itself, as a gate does.
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
                let Some((record, outgoing)) = database.find_again(digest).await? else { return Ok(None) };
                let grant = (store.principals)(record).await?;
                Ok(Some(Arc::new(match outgoing {
                    None => grant,
                    // Not what time cannot tell: a grace that ended long ago must not become one that has no end.
                    Some(..0) => return Err(SqlError::Corrupt("outgoing_until_ms")),
                    Some(until) => grant.into_rotated(from_unix_ms(until)),
                })))
            };
            let found = timeout(database.0.deadline, find).await.unwrap_or(Err(SqlError::Deadline));
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
