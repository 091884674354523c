//! The website's tables, in the database of the tokens.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::any::{AnyArguments, AnyPoolOptions, AnyRow};
use sqlx::pool::PoolConnection;
use sqlx::query::{Query, QueryAs};
use sqlx::{Any, AnyConnection, AnyPool, AssertSqlSafe, Connection as _, Executor as _, FromRow};
use tokio::time::timeout;

/// The timeout of a connection and of a statement.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The timeout of the ping before a connection is used again. If no connection of the pool replies, half of [`TIMEOUT`] is left to
/// open another.
const PING_TIMEOUT: Duration = Duration::from_millis(250);
const MAX_CONNECTIONS: u32 = 4;
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

/// Each method takes at most twice [`TIMEOUT`]: once for a connection, and once for the statement.
impl Pool {
    /// Opens the database, and creates the tables if they are missing.
    pub(crate) async fn open(url: &str) -> Result<Self, sqlx::Error> {
        sqlx::any::install_default_drivers();
        let pool = AnyPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, _| Box::pin(async move { Ok(is_alive(connection).await) }))
            .after_connect(|connection, _| Box::pin(limit_statements(connection)))
            .connect(url)
            .await?;
        // Two replicas that start at the same time may both create a table: the second attempt finds it.
        if pool.execute(TABLES).await.is_err() {
            pool.execute(TABLES).await?;
        }
        Ok(Self(pool))
    }

    pub(crate) async fn execute(&self, statement: Query<'_, Any, AnyArguments>) -> Result<(), sqlx::Error> {
        within(async {
            let mut connection = self.acquire().await?;
            statement.execute(&mut *connection).await?;
            release(connection);
            Ok(())
        })
        .await
    }

    pub(crate) async fn fetch_all<T>(&self, select: QueryAs<'_, Any, T, AnyArguments>) -> Result<Vec<T>, sqlx::Error>
    where
        T: for<'r> FromRow<'r, AnyRow> + Send + Unpin,
    {
        within(async {
            let mut connection = self.acquire().await?;
            let rows = select.fetch_all(&mut *connection).await?;
            release(connection);
            Ok(rows)
        })
        .await
    }

    /// Returns the first row.
    pub(crate) async fn fetch_optional<T>(
        &self,
        select: QueryAs<'_, Any, T, AnyArguments>,
    ) -> Result<Option<T>, sqlx::Error>
    where
        T: for<'r> FromRow<'r, AnyRow> + Send + Unpin,
    {
        Ok(self.fetch_all(select).await?.into_iter().next())
    }

    /// Returns a connection that is closed when it is dropped, unless it is [released](release).
    ///
    /// The destructor of sqlx would wait for a reply without a timeout, and keep the place in the pool meanwhile.
    async fn acquire(&self) -> Result<PoolConnection<Any>, sqlx::Error> {
        let mut connection = self.0.acquire().await?;
        connection.close_on_drop();
        Ok(connection)
    }
}

async fn within<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(2 * TIMEOUT, work).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// Returns a connection to its pool after the reply of the database. sqlx pings it before.
fn release(mut connection: PoolConnection<Any>) {
    tokio::spawn(timeout(TIMEOUT, connection.return_to_pool()));
}

async fn is_alive(connection: &mut AnyConnection) -> bool {
    timeout(PING_TIMEOUT, connection.ping()).await.is_ok_and(|ping| ping.is_ok())
}

/// Lets the database itself end statements, also if their client has gone.
async fn limit_statements(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    let (set, ms) = match connection.backend_name() {
        "PostgreSQL" => ("SET statement_timeout", TIMEOUT.as_millis()),
        _ => ("PRAGMA busy_timeout", TIMEOUT.as_millis()),
    };
    connection.execute(AssertSqlSafe(format!("{set} = {ms}"))).await.map(drop)
}

/// Deletes sessions that have ended and rejections that are no longer shown, from time to time.
pub(crate) async fn purge(pool: Pool, wall: impl Fn() -> SystemTime) {
    loop {
        let now = wall();
        let sessions = sqlx::query("DELETE FROM crosstrade_sessions WHERE expires_ms <= $1").bind(unix_ms(now));
        let rejections = sqlx::query("DELETE FROM crosstrade_rejections WHERE last_ms <= $1").bind(unix_ms(now - DAY));
        for purge in [sessions, rejections] {
            if let Err(error) = pool.execute(purge).await {
                tracing::warn!(%error, "cannot delete old rows");
            }
        }
        tokio::time::sleep(PURGE_INTERVAL).await;
    }
}

/// Returns whether the tables can contain a text: PostgreSQL stores no NUL.
pub(crate) fn is_storable(text: &str) -> bool {
    !text.contains('\0')
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
