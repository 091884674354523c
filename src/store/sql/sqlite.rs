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
    reads: SqlitePool,
    writes: SqlitePool,
}

impl SqlitePools {
    pub(super) fn open(url: url::Sqlite) -> Self {
        // Another process may be writing.
        let options = url.options.foreign_keys(true).busy_timeout(LOCK_TIMEOUT);
        let pool = |max| SqlitePoolOptions::new().max_connections(max);
        if url.in_memory {
            // Each connection to memory has its own tables, which are lost when it is closed.
            let pool = pool(1).min_connections(1).idle_timeout(None).max_lifetime(None);
            return Self::shared(pool.acquire_timeout(CONNECT_TIMEOUT).connect_lazy_with(options));
        }
        Self {
            reads: pool(MAX_READERS).acquire_timeout(CONNECT_TIMEOUT).connect_lazy_with(options.clone()),
            writes: pool(1).acquire_timeout(LOCK_TIMEOUT).connect_lazy_with(options),
        }
    }

    /// Uses one pool for reading and for changes.
    pub(super) fn shared(pool: SqlitePool) -> Self {
        Self { reads: pool.clone(), writes: pool }
    }

    /// Connects once, without the pools. A pool would retry for a while and then report a timeout instead of the cause.
    pub(super) async fn probe(&self) -> Result<(), SqlError> {
        let connection = timeout(CONNECT_TIMEOUT, self.options().connect()).await;
        _ = connection.map_err(|_| SqlError::Timeout)?.map_err(url::rejected)?.close().await;
        Ok(())
    }

    pub(super) fn options(&self) -> Arc<SqliteConnectOptions> {
        self.reads.connect_options()
    }

    /// Takes a connection. The caller applies the timeout.
    pub(super) async fn acquire(&self, access: Access) -> Result<PoolConnection<Sqlite>, SqlError> {
        match access {
            Access::Reads => Ok(self.reads.acquire().await?),
            Access::Writes => match self.writes.acquire().await {
                // Another change has the connection.
                Err(sqlx::Error::PoolTimedOut) => Err(SqlError::Locked),
                connection => Ok(connection?),
            },
        }
    }

    pub(super) async fn close(&self) {
        self.reads.close().await;
        self.writes.close().await;
    }
}
