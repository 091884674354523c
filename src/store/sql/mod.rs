//! Grants in a database: SQLite (feature `sqlite`, compiled in) or PostgreSQL (feature `postgres`).
//!
//! [`Database`] administers grants: it issues, imports, lists, exports, changes, suspends, rotates, revokes and purges them. [`SqlStore`] looks up
//! tokens for a gate. Both are cheap to clone.
//!
//! ```no_run
//! use std::time::Duration;
//! use tollgate::AuthLayer;
//! use tollgate::mint::TokenFormat;
//! use tollgate::store::sql::{Database, NewGrant};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let database = Database::connect("sqlite://tokens.db?mode=rwc").await?;
//! database.migrate().await?;
//!
//! let issued = database.issue(&TokenFormat::new("acme")?, &NewGrant::new("alice").with_scopes(["trade"])?).await?;
//! println!("Your token, which is not shown again: {}", issued.secret.expose());
//!
//! let gate = AuthLayer::with_timeout(database.store::<()>(), Duration::from_secs(2));
//! # let _ = gate;
//! # Ok(())
//! # }
//! ```
//!
//! # Tables
//!
//! The tables are `grants` and `tokens`. Their names begin with `tollgate_` or with
//! [another prefix](Database::with_table_prefix). After a rotation, a grant has more than one token. The tables contain
//! digests of tokens, never tokens, unless a `Sealer` (feature `reveal`) seals them. [`Database::migrate`] also keeps the table `migrations`, and on SQLite `changes`. Times are
//! whole milliseconds since 1970. Other programs may change all columns except `digest`; lookups use the changed values.
//!
//! The table `audit` contains each change of a grant with its actor and its time. See [`Database::acting_as`] and [`Database::audit`].
//!
//! # Revocation
//!
//! Each lookup reads the tables, so all changes that were committed before the lookup take effect. In front of a database
//! with a cache, [`Database::watch`] reports changes by any process. Its documentation states the maximum delay. Changes by
//! the same handle or its clones take effect before their methods return.
//!
//! # Outages
//!
//! Each lookup has a [timeout](Database::with_timeout). The gate answers 503 when the timeout expires. The PostgreSQL
//! connection of such a lookup is closed, and so are all connections that have been idle since the lookup began. Put the
//! store behind [`CircuitBreaker`](super::CircuitBreaker) to fail immediately while the database is down.
//!
//! # Number of connections
//!
//! [`Database::connect`] opens up to 10 connections to PostgreSQL, and [`Database::watch`] opens one more. The number of open
//! sockets never exceeds this bound, even during an outage. A server may keep a lost connection longer than its client
//! does: for about a minute (TCP keepalive), or for 5 minutes behind a proxy (`idle_session_timeout`, PostgreSQL 14 or
//! later). So plan for twice as many connections in `max_connections`.

use std::error::Error;

use thiserror::Error;

mod admin;
mod audit;
mod change;
#[cfg(feature = "postgres")]
mod connections;
mod cursor;
mod database;
mod diagnose;
mod export;
mod follow;
mod grant_import;
mod import;
mod last_used;
mod lookup;
mod new_grant;
mod page;
mod record;
mod report;
#[cfg(feature = "reveal")]
mod reveal;
mod schema;
#[cfg(feature = "reveal")]
mod sealer;
#[cfg(feature = "sqlite")]
mod sqlite;
mod state;
mod url;
mod watchers;
mod within;

pub use audit::{AuditEntry, AuditPage, AuditQuery};
pub use change::GrantChange;
pub use cursor::Cursor;
pub use database::Database;
pub use export::{ExportPage, StoredGrant, StoredToken};
pub use grant_import::{GrantImport, ImportCounts, ImportOptions};
pub use last_used::{LastUsed, LastUsedStore, LastUsedStoreFuture};
pub use lookup::{SqlFuture, SqlStore};
pub use new_grant::NewGrant;
pub use page::{GrantCounts, GrantPage, GrantQuery};
pub use record::{GrantRecord, GrantState, Issued, TokenRecord};
pub use schema::Migrated;
#[cfg(feature = "reveal")]
pub use sealer::{Sealer, SealingKey, SealingKeyError};
pub use within::ExceedsCallerError;

use crate::grant::{GrantId, Subject};
use crate::token::mint::RandomnessError;

/// An error of a [`Database`].
///
/// Errors never contain tokens or digests.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SqlError {
    /// The URL is malformed, or its database needs a feature that is not enabled. The text contains no part of the URL.
    #[error("invalid database URL: {0}")]
    Url(&'static str),
    /// The SQLite file does not exist.
    #[error("no such database file")]
    NoFile,
    /// The SQLite file could not be created.
    #[error("the database file could not be created")]
    NotCreated(#[source] std::io::Error),
    /// The table prefix is invalid.
    #[error(
        "invalid table prefix: must be 1 to 32 lower-case letters, digits or underscores, and not begin with a digit"
    )]
    Prefix,
    /// No tables with this prefix exist.
    #[error("the database has no tables with this prefix")]
    NoTables,
    /// The tables were created by an older version of this crate.
    #[error("the tables have version {found}, but version {expected} is required")]
    Older {
        /// The version of the tables.
        found: i64,
        /// The version that this crate requires.
        expected: i64,
    },
    /// The tables were created by a newer version of this crate.
    #[error("the tables have version {found}, but only versions up to {expected} are supported")]
    Newer {
        /// The version of the tables.
        found: i64,
        /// The newest version that this crate supports.
        expected: i64,
    },
    /// The grant does not exist.
    #[error("grant not found")]
    NotFound,
    /// The grant is revoked. A revocation is permanent.
    #[error("the grant is revoked")]
    Revoked,
    /// The grant has expired.
    #[error("the grant has expired")]
    Expired,
    /// The database has no [`Sealer`].
    #[cfg(feature = "reveal")]
    #[error("no sealing keys are set")]
    NoSealer,
    /// The current token of the grant is not sealed: it was issued without a [`Sealer`], or imported.
    #[cfg(feature = "reveal")]
    #[error("the token is not sealed: a rotation with a sealing key seals the next one")]
    NotSealed,
    /// The token is sealed with a key that the [`Sealer`] does not have.
    #[cfg(feature = "reveal")]
    #[error("the token is sealed with the unknown key {id}")]
    UnknownSealingKey {
        /// The id of the key.
        id: String,
    },
    /// The sealed token was changed, belongs to another row, or was sealed with another key of the same id.
    #[cfg(feature = "reveal")]
    #[error("the sealed token cannot be opened: it or its key was changed, or it belongs to another row")]
    NotOpened,
    /// The subject has as many active grants as [`NewGrant::with_max_active`] or [`GrantChange::with_max_active`] allows.
    #[error("the subject already has {max} active grants or more")]
    TooManyGrants {
        /// The maximum.
        max: u32,
    },
    /// A grant with this id or this token exists.
    #[error("the grant id or the token already exists")]
    AlreadyExists,
    /// A grant of an import is invalid, or conflicts with an existing grant. Nothing was imported.
    #[error("record {record}: {source}")]
    Import {
        /// The position of the grant in the import, beginning with 1.
        record: u64,
        /// The error of the record.
        source: Box<SqlError>,
    },
    /// The source of an import failed.
    #[error("cannot read the grants to import")]
    Input(#[source] Box<dyn Error + Send + Sync>),
    /// An id, subject or label is too long, empty or has a control character; see [`NewGrant::check`].
    #[error(
        "invalid id, subject or label: ids and subjects have 1 to 255 characters, labels at most 255, and control characters \
         are not allowed"
    )]
    Name,
    /// The text of a cursor is invalid, or the cursor is from another list.
    #[error("invalid cursor")]
    Cursor,
    /// A row has an invalid value. The text names the column.
    #[error("invalid value in column {0}")]
    Corrupt(&'static str),
    /// The row of a grant, or of one of its tokens, cannot be read.
    #[error("grant {id}: {source}")]
    InvalidRow {
        /// The id of the grant.
        id: GrantId,
        /// The subject of the grant.
        subject: Subject,
        /// The error of the row.
        source: Box<SqlError>,
    },
    /// The principal of a grant could not be read from its row or by the query of the service, or not be serialized.
    #[error("cannot read or write the principal of the grant")]
    Principal(#[source] Box<dyn Error + Send + Sync>),
    /// The operating system provides no random bytes for a token.
    #[error(transparent)]
    Randomness(#[from] RandomnessError),
    /// The database did not answer within the timeout.
    #[error("database timeout")]
    Timeout,
    /// Another transaction locks the rows or tables, and did not end in time. Nothing was changed.
    #[error("the grants are locked by another transaction")]
    Locked,
    /// The database failed, or could not be reached.
    #[error("the database failed")]
    Database(#[source] Box<dyn Error + Send + Sync>),
}

impl SqlError {
    /// Returns the error of a grant in an import.
    fn at(record: u64, error: Self) -> Self {
        Self::Import { record, source: Box::new(error) }
    }

    /// Returns the error of a row of this grant.
    fn of_row(id: impl Into<GrantId>, subject: impl Into<Subject>, error: Self) -> Self {
        Self::InvalidRow { id: id.into(), subject: subject.into(), source: Box::new(error) }
    }
}

impl From<sqlx::Error> for SqlError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            // The message of the database would contain the digest.
            sqlx::Error::Database(reply) if reply.is_unique_violation() => Self::AlreadyExists,
            sqlx::Error::PoolTimedOut => Self::Timeout,
            // The server repeats the user and the database of the URL. In a mistyped URL they may be the password.
            sqlx::Error::Database(reply) => match reply.code().as_deref() {
                Some(code) if code.starts_with("28") => {
                    Self::Database(format!("the server rejected the user, the password or this host ({code})").into())
                }
                Some(code @ "3D000") => Self::Database(format!("the server has no such database ({code})").into()),
                // PostgreSQL: `query_canceled`, which reports a `statement_timeout`.
                Some("57014") => Self::Timeout,
                // PostgreSQL: `lock_not_available` and `deadlock_detected`. SQLite: `SQLITE_BUSY` with its extended codes, and
                // `SQLITE_LOCKED`.
                Some("55P03" | "40P01" | "5" | "261" | "517" | "773" | "6" | "262") => Self::Locked,
                _ => Self::Database(Box::new(error)),
            },
            _ => Self::Database(Box::new(error)),
        }
    }
}
