//! Grants in a database: SQLite (feature `sqlite`, compiled in) or PostgreSQL (feature `postgres`).
//!
//! [`Database`] administers them: issue, list, describe, change, rotate, revoke, purge. [`SqlStore`] looks them up for a
//! gate. Both are cheap to clone.
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
//! # What is kept
//!
//! Two tables, whose names begin with a prefix (`tollgate_` unless [another](Database::with_table_prefix) is chosen):
//! `grants`, and `tokens`, of which a rotation gives a grant two. Digests of tokens are kept, never tokens. Moments are
//! whole milliseconds since 1970. What others write into the tables counts as well: all columns but `digest` may be
//! changed by hand.
//!
//! # Revocation
//!
//! A look-up reads the tables, so that whatever was committed before it counts. Where a cache stands in front,
//! [`Database::watch`] tells it what was changed, by whichever process, and says how late it may be.
//!
//! # When the database is down
//!
//! Each lookup has a [deadline](Database::with_deadline); the gate answers 503 to one that misses it. A PostgreSQL connection
//! that misses a deadline is closed, and so are all connections that have been idle since. Put the store behind
//! [`CircuitBreaker`](super::CircuitBreaker) to fail immediately while the database is down.
//!
//! # How many connections
//!
//! [`Database::connect`] opens up to 10 connections to PostgreSQL, and [`Database::watch`] one more. No more sockets are open at
//! any time, also in an outage. The server may keep a connection for longer than its client, because it does not notice that
//! the network lost it: for about a minute (TCP keepalive), or for 5 minutes behind a proxy (`idle_session_timeout`, PostgreSQL
//! 14 or later). So plan for twice as many in `max_connections`.

use std::error::Error;

use thiserror::Error;

mod admin;
#[cfg(feature = "postgres")]
mod connections;
mod database;
mod follow;
mod last_used;
mod lookup;
mod record;
mod report;
mod schema;
mod url;

pub use database::Database;
pub use last_used::{LastUsed, LastUsedStore, LastUsedStoreFuture};
pub use lookup::{SqlFuture, SqlStore};
pub use record::{GrantRecord, Issued, NewGrant};

use crate::token::mint::RandomnessError;

/// Why a database did not do what it was asked to.
///
/// Holds neither tokens nor digests.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SqlError {
    /// The URL is malformed, or names a database that this program was not compiled for. The text repeats nothing of it.
    #[error("invalid database URL: {0}")]
    Url(&'static str),
    /// There is no such SQLite file.
    #[error("no such database file")]
    NoFile,
    /// The SQLite file could not be created.
    #[error("the database file could not be created")]
    NotCreated(#[source] std::io::Error),
    /// A table prefix has up to 32 lower-case letters, digits and underscores, and begins with no digit.
    #[error("a table prefix has up to 32 lower-case letters, digits and underscores, and begins with no digit")]
    Prefix,
    /// There are no tables with this prefix.
    #[error("the database has no tables with this prefix")]
    NoTables,
    /// The tables are those of an older version of this crate.
    #[error("the tables are of an older version ({found}) than this program needs ({known})")]
    Older {
        /// The version of the tables.
        found: i64,
        /// The version that is needed.
        known: i64,
    },
    /// The tables are those of a newer version of this crate.
    #[error("the tables are of a newer version ({found}) than this program knows ({known})")]
    Newer {
        /// The version of the tables.
        found: i64,
        /// The last version that is known here.
        known: i64,
    },
    /// There is no such grant.
    #[error("there is no such grant")]
    NotFound,
    /// The grant was revoked, which is for ever.
    #[error("the grant is revoked")]
    Revoked,
    /// The grant has expired.
    #[error("the grant has expired")]
    Expired,
    /// There is such a grant or such a token already.
    #[error("there is such a grant or such a token already")]
    Occupied,
    /// An id, a subject or a label that the tables do not take.
    #[error(
        "an id has 1 to 255 characters, a subject 1 to 255, a label at most 255, and none of them a control character"
    )]
    Name,
    /// A row holds what no grant can have; the text names the column.
    #[error("a row holds what no grant can have, in column {0}")]
    Corrupt(&'static str),
    /// The principal of a grant could not be read from its row, or from the service's own query.
    #[error("the principal of a grant could not be read")]
    Principal(#[source] Box<dyn Error + Send + Sync>),
    /// There is no randomness for a token.
    #[error(transparent)]
    Randomness(#[from] RandomnessError),
    /// The database did not answer within the deadline.
    #[error("the database did not answer in time")]
    Deadline,
    /// Another transaction holds a lock on the rows or tables, and did not end in time. Nothing was changed.
    #[error("the grants are locked by another transaction")]
    Locked,
    /// The database failed, or could not be reached.
    #[error("the database failed")]
    Database(#[source] Box<dyn Error + Send + Sync>),
}

impl From<sqlx::Error> for SqlError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            // What the database says of it would show the digest.
            sqlx::Error::Database(said) if said.is_unique_violation() => Self::Occupied,
            sqlx::Error::PoolTimedOut => Self::Deadline,
            // The server repeats the user and the database of the URL: of a mistyped one they may be the password.
            sqlx::Error::Database(said) => match said.code().as_deref() {
                Some(code) if code.starts_with("28") => {
                    Self::Database(format!("the server rejected the user, the password or this host ({code})").into())
                }
                Some(code @ "3D000") => Self::Database(format!("the server has no such database ({code})").into()),
                // PostgreSQL: `query_canceled`, which is how it reports its `statement_timeout`.
                Some("57014") => Self::Deadline,
                // PostgreSQL: `lock_not_available`. SQLite: `SQLITE_BUSY` with its extended codes, and `SQLITE_LOCKED`.
                Some("55P03" | "5" | "261" | "517" | "773" | "6" | "262") => Self::Locked,
                _ => Self::Database(Box::new(error)),
            },
            _ => Self::Database(Box::new(error)),
        }
    }
}
