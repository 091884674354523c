//! SQLite connections: a pool for reading, and one connection for changes.

use std::sync::Arc;

use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Sqlite};
use tokio::time::timeout;

use super::SqlError;
use super::database::{Access, CONNECT_TIMEOUT, LOCK_TIMEOUT};
use super::url;

/// The size of the pool for reading.
const MAX_READERS: u32 = 4;

/// The connections to a SQLite database.
///
/// A file has one writer at a time. A change that waits for SQLite's lock keeps its connection meanwhile. So changes have a
/// connection of their own, and wait for it: otherwise waiting changes could keep all connections, and lookups would time out.
#[derive(Clone)]
pub(super) struct SqlitePools {
    pool: SqlitePool,
    /// The pool of the connection for changes. `None` if they use the other pool.
    changes: Option<SqlitePool>,
}

impl SqlitePools {
    pub(super) fn open(url: url::Sqlite) -> Self {
        // Another process may be writing.
        let options = url.options.foreign_keys(true).busy_timeout(LOCK_TIMEOUT);
        if url.in_memory {
            // Each connection to memory has its own tables, which are lost when it is closed.
            let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(CONNECT_TIMEOUT);
            let pool = pool.min_connections(1).idle_timeout(None).max_lifetime(None);
            return Self::shared(pool.connect_lazy_with(options));
        }
        // After an error such as a full disk, SQLite ends the transaction itself. sqlx does not notice, and could begin no
        // other one on that connection.
        let pool = |max, wait| {
            let pool = SqlitePoolOptions::new().max_connections(max).acquire_timeout(wait);
            let pool = pool.before_acquire(|connection, _| Box::pin(async { Ok(!connection.is_in_transaction()) }));
            pool.connect_lazy_with(options.clone())
        };
        Self { pool: pool(MAX_READERS, CONNECT_TIMEOUT), changes: Some(pool(1, LOCK_TIMEOUT)) }
    }

    /// Uses one pool for reading and for changes.
    pub(super) fn shared(pool: SqlitePool) -> Self {
        Self { pool, changes: None }
    }

    /// Connects once, without the pools. A pool would retry for a while and then report a timeout instead of the cause.
    pub(super) async fn probe(&self) -> Result<(), SqlError> {
        let connection = timeout(CONNECT_TIMEOUT, self.options().connect()).await;
        _ = connection.map_err(|_| SqlError::Timeout)?.map_err(url::rejected)?.close().await;
        Ok(())
    }

    pub(super) fn options(&self) -> Arc<SqliteConnectOptions> {
        self.pool.connect_options()
    }

    /// Takes a connection. The caller applies the timeout.
    pub(super) async fn acquire(&self, access: Access) -> Result<PoolConnection<Sqlite>, SqlError> {
        let Some(changes) = self.changes.as_ref().filter(|_| matches!(access, Access::Writes)) else {
            return Ok(self.pool.acquire().await?);
        };
        match changes.acquire().await {
            // Another change has the connection.
            Err(sqlx::Error::PoolTimedOut) => Err(SqlError::Locked),
            connection => Ok(connection?),
        }
    }

    /// Closes all connections. The connection for changes is the last one: it writes the journal into the file.
    pub(super) async fn close(&self) {
        let changes = self.changes.as_ref().map(SqlitePool::close);
        self.pool.close().await;
        if let Some(closed) = changes {
            closed.await;
        }
    }
}
