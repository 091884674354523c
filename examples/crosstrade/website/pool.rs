//! The website's tables, in the database of the tokens.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::any::AnyPoolOptions;
use sqlx::{AnyPool, Executor as _};

/// The timeout of a connection and of a statement.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The time for which rejections are shown.
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
const PURGE_INTERVAL: Duration = Duration::from_secs(600);

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS crosstrade_users (
    name TEXT NOT NULL PRIMARY KEY,
    password TEXT NOT NULL,
    is_support BIGINT NOT NULL
);
-- The id is a digest of the cookie's id: who reads the table cannot take over a session.
CREATE TABLE IF NOT EXISTS crosstrade_sessions (
    id TEXT NOT NULL PRIMARY KEY,
    user_name TEXT NOT NULL,
    data TEXT NOT NULL,
    expires_ms BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS crosstrade_sessions_by_user ON crosstrade_sessions (user_name);
CREATE TABLE IF NOT EXISTS crosstrade_rejections (
    grant_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    hour_ms BIGINT NOT NULL,
    last_ms BIGINT NOT NULL,
    count BIGINT NOT NULL,
    PRIMARY KEY (grant_id, kind, hour_ms)
);
";

/// Connections to the database, in addition to those of the tokens.
#[derive(Clone)]
pub(crate) struct Pool(AnyPool);

impl Pool {
    /// Opens the database, and creates the tables if they are missing.
    pub(crate) async fn open(url: &str) -> Result<Self, sqlx::Error> {
        sqlx::any::install_default_drivers();
        let pool = AnyPoolOptions::new().max_connections(4).acquire_timeout(TIMEOUT).connect(url).await?;
        // Two replicas that start at the same time may both create a table: the second attempt finds it.
        if pool.execute(TABLES).await.is_err() {
            pool.execute(TABLES).await?;
        }
        Ok(Self(pool))
    }

    /// Runs a query, for at most [`TIMEOUT`] in addition to the wait for a connection.
    pub(crate) async fn run<T, F>(&self, query: impl FnOnce(AnyPool) -> F) -> Result<T, sqlx::Error>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        tokio::time::timeout(2 * TIMEOUT, query(self.0.clone())).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }
}

/// Deletes sessions that have ended and rejections that are no longer shown, from time to time.
pub(crate) async fn purge(pool: Pool, wall: impl Fn() -> SystemTime) {
    loop {
        let now = wall();
        let sessions = sqlx::query("DELETE FROM crosstrade_sessions WHERE expires_ms <= $1").bind(unix_ms(now));
        let rejections = sqlx::query("DELETE FROM crosstrade_rejections WHERE last_ms <= $1").bind(unix_ms(now - DAY));
        for purge in [sessions, rejections] {
            if let Err(error) = pool.run(async |pool| purge.execute(&pool).await).await {
                tracing::warn!(%error, "cannot delete old rows");
            }
        }
        tokio::time::sleep(PURGE_INTERVAL).await;
    }
}

/// Returns milliseconds since 1970.
pub(crate) fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Returns the time of these milliseconds since 1970.
pub(crate) fn from_unix_ms(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms.try_into().unwrap_or_default())
}
