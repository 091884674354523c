//! The database handle: connections, settings and transactions.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::SqlStr;
#[cfg(feature = "postgres")]
use sqlx::postgres::PgPool;
#[cfg(feature = "sqlite")]
use sqlx::sqlite::SqlitePool;

use super::SqlError;
#[cfg(feature = "postgres")]
use super::connections::Connections;
use super::schema::Schema;
#[cfg(feature = "reveal")]
use super::sealer::Sealer;
#[cfg(feature = "sqlite")]
use super::sqlite::SqlitePools;
use super::watchers::Watchers;

/// A database with grants. Clones share its connections and its [watchers](Self::watch).
///
/// The [module documentation](super) describes the tables and has an example.
#[derive(Clone)]
pub struct Database(pub(super) Arc<Inner>);

#[derive(Clone)]
pub(super) struct Inner {
    pub(super) pool: Pool,
    pub(super) schema: Schema,
    pub(super) lookup_timeout: Duration,
    pub(super) admin_timeout: Duration,
    /// The actor of changes in the audit trail.
    pub(super) actor: Option<Box<str>>,
    pub(super) watchers: Arc<Watchers>,
    #[cfg(feature = "reveal")]
    pub(super) sealer: Option<Sealer>,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

#[derive(Clone)]
pub(super) enum Pool {
    #[cfg(feature = "sqlite")]
    Sqlite(SqlitePools),
    #[cfg(feature = "postgres")]
    Postgres(Connections),
}

/// Runs the same code on a connection to either database: a `Statement` that `Reads`, or a `Transaction` that `Reads` or `Writes`.
/// The caller applies the timeout.
macro_rules! on_connection {
    ($database:expr, $access:ident, $work:ident, $connection:ident => $body:expr) => {
        match &$database.0.pool {
            #[cfg(feature = "sqlite")]
            $crate::store::sql::database::Pool::Sqlite(pools) => {
                let mut pooled = pools.acquire($crate::store::sql::database::Access::$access).await?;
                let $connection = &mut *pooled;
                $body
            }
            #[cfg(feature = "postgres")]
            $crate::store::sql::database::Pool::Postgres(connections) => {
                let work = $crate::store::sql::connections::Work::$work;
                let mut held = connections.acquire(work).await?;
                let outcome: Result<_, $crate::store::sql::SqlError> = async {
                    let $connection = &mut *held;
                    $body
                }
                .await;
                held.end(outcome)
            }
        }
    };
}
pub(super) use on_connection;

/// Runs the same code in a transaction on either database. The transaction `Reads` or `Writes`. Commits it if the code returns
/// `Ok`.
macro_rules! administer {
    ($database:expr, $access:ident, $transaction:ident => $body:expr) => {{
        use sqlx::Connection as _;
        use $crate::store::sql::SqlError;
        use $crate::store::sql::database::{Access, on_connection};

        let begin = $database.begin(Access::$access);
        let work = async {
            on_connection!($database, $access, Transaction, connection => {
                let mut $transaction = connection.begin_with(begin).await?;
                let outcome: Result<_, SqlError> = async { $body }.await;
                let outcome = outcome?;
                $transaction.commit().await?;
                Ok(outcome)
            })
        };
        tokio::time::timeout($database.0.admin_timeout, work).await.unwrap_or(Err(SqlError::Timeout))
    }};
}
pub(super) use administer;

/// The access of a transaction.
pub(super) enum Access {
    Reads,
    Writes,
}

const DEFAULT_LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
const DEFAULT_ADMIN_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum time that administration waits for a lock.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Database {
    /// Connects to a database.
    ///
    /// | URL | database |
    /// |---|---|
    /// | `sqlite://path` | an existing file |
    /// | `sqlite://path?mode=rwc` | a file; created with mode 0600 (on Unix) if it does not exist |
    /// | `sqlite::memory:` | memory |
    /// | `postgres://user:password@host:port/database` | PostgreSQL, with parameters of libpq, such as `sslmode=verify-full` and `sslrootcert` |
    ///
    /// A missing file is an error unless the URL contains `mode=rwc`, because an empty database rejects all tokens. Special
    /// characters in the user, password and database name are percent-encoded. Unknown parameters are errors.
    ///
    /// Opens connections as needed: up to 10 to PostgreSQL, up to 4 for reading and 1 for changes to a SQLite file, and 1 to
    /// memory.
    ///
    /// Sets timeouts for sessions on PostgreSQL, unless stricter ones are set: `statement_timeout`,
    /// `idle_in_transaction_session_timeout`, `idle_session_timeout`, `tcp_keepalives_*` and `tcp_user_timeout`. A pooler in
    /// transaction mode would apply them to other clients too. Use `from_postgres` with such a pooler.
    ///
    /// # Errors
    ///
    /// [`SqlError::Url`], [`SqlError::NoFile`], [`SqlError::NotCreated`], or if the database cannot be reached. Errors contain
    /// no part of the URL.
    pub async fn connect(url: &str) -> Result<Self, SqlError> {
        let database = Self::connect_lazily(url)?;
        #[cfg(feature = "sqlite")]
        if super::url::sqlite(url)?.is_some_and(|sqlite| sqlite.is_missing()) {
            return Err(SqlError::NoFile);
        }
        match &database.0.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(pools) => pools.probe().await?,
            #[cfg(feature = "postgres")]
            Pool::Postgres(connections) => connections.probe().await?,
        }
        Ok(database)
    }

    /// Creates a database without connecting, so that a service can start while its database is down. See
    /// [`connect`](Self::connect) for URLs. Call this function in a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`SqlError::Url`], or [`SqlError::NotCreated`] for `mode=rwc`, which creates the file immediately.
    pub fn connect_lazily(url: &str) -> Result<Self, SqlError> {
        #[cfg(feature = "sqlite")]
        if let Some(sqlite) = super::url::sqlite(url)? {
            sqlite.create_if_requested()?;
            return Ok(Self::of(Pool::Sqlite(SqlitePools::open(sqlite)), Schema::own_sqlite()));
        }
        #[cfg(feature = "postgres")]
        if let Some(options) = super::url::postgres(url)? {
            let connections = Connections::open(options, DEFAULT_LOOKUP_TIMEOUT);
            return Ok(Self::of(Pool::Postgres(connections), Schema::postgres()));
        }
        Err(SqlError::Url(super::url::SCHEMES))
    }

    /// Creates a database on an existing pool.
    ///
    /// A file has one writer at a time. A change that waits for another one keeps its connection. If such changes keep all
    /// connections, lookups wait, and may time out. [`connect`](Self::connect) avoids this.
    #[cfg(feature = "sqlite")]
    #[must_use]
    pub fn from_sqlite(pool: SqlitePool) -> Self {
        Self::of(Pool::Sqlite(SqlitePools::shared(pool)), Schema::sqlite())
    }

    /// Creates a database on an existing pool.
    ///
    /// A connection whose timeout expires is closed, as with [`connect`](Self::connect). The pool's own settings are not
    /// changed. Its sessions get no `statement_timeout` and no TCP keepalive. So the server may keep a connection as long as
    /// a statement runs, or for hours after the client was lost. Set these timeouts for the role or in the URL. For each idle
    /// connection that was lost, one lookup times out.
    #[cfg(feature = "postgres")]
    #[must_use]
    pub fn from_postgres(pool: PgPool) -> Self {
        Self::of(Pool::Postgres(Connections::shared(pool, DEFAULT_LOOKUP_TIMEOUT)), Schema::postgres())
    }

    fn of(pool: Pool, schema: Schema) -> Self {
        let clock = Arc::new(SystemTime::now);
        let (lookup_timeout, admin_timeout) = (DEFAULT_LOOKUP_TIMEOUT, DEFAULT_ADMIN_TIMEOUT);
        let watchers = Arc::default();
        Self(Arc::new(Inner {
            pool,
            schema,
            lookup_timeout,
            admin_timeout,
            actor: None,
            watchers,
            #[cfg(feature = "reveal")]
            sealer: None,
            clock,
        }))
    }

    /// Sets the prefix of the table names. With `acme_` the tables are `acme_grants` and `acme_tokens`. Default: `tollgate_`.
    ///
    /// # Errors
    ///
    /// [`SqlError::Prefix`] if the prefix is empty, is longer than 32 characters, has characters other than lower-case letters,
    /// digits and underscores, or begins with a digit.
    pub fn with_table_prefix(self, prefix: &str) -> Result<Self, SqlError> {
        let schema = self.0.schema.with_prefix(prefix).ok_or(SqlError::Prefix)?;
        // Watchers of other tables do not know these grants.
        Ok(self.map(|inner| (inner.schema, inner.watchers) = (schema, Arc::default())))
    }

    /// Sets the timeout of a lookup. Default: 2 seconds. Set a slightly longer timeout on the gate, so that lookups that reach
    /// this timeout close their connections.
    ///
    /// A PostgreSQL server cancels the statement after nine tenths of this time (`statement_timeout`), so that a slow database
    /// keeps its connections. Sessions depend on this timeout. So a database from [`connect`](Self::connect) gets a new pool
    /// here, and shares no connections with earlier clones.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        self.map(|inner| {
            inner.lookup_timeout = timeout;
            match &mut inner.pool {
                #[cfg(feature = "sqlite")]
                Pool::Sqlite(_) => {}
                #[cfg(feature = "postgres")]
                Pool::Postgres(connections) => *connections = connections.with_timeout(timeout),
            }
        })
    }

    /// Sets the timeout of each administrative operation, such as [`issue`](Self::issue) or [`revoke`](Self::revoke). Default: 30
    /// seconds. An operation that reaches the timeout fails with [`SqlError::Timeout`].
    ///
    /// On PostgreSQL, an operation waits at most 5 seconds, and at most half of this timeout, for a lock of another transaction.
    /// Then it fails with [`SqlError::Locked`]. On a SQLite file that [`connect`](Self::connect) opened, a change waits at most 5
    /// seconds for other changes of this database and its clones. Then it waits at most 5 seconds for other processes
    /// (`busy_timeout`).
    #[must_use]
    pub fn with_admin_timeout(self, timeout: Duration) -> Self {
        self.map(|inner| inner.admin_timeout = timeout)
    }

    /// Sets the clock for times that are written, such as the times of creation and revocation. Default: the system clock.
    #[must_use]
    pub fn with_wall_clock(self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.map(|inner| inner.clock = Arc::new(now))
    }

    pub(super) fn map(self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = Arc::unwrap_or_clone(self.0);
        change(&mut inner);
        Self(Arc::new(inner))
    }

    pub(super) fn now_ms(&self) -> i64 {
        unix_ms((self.0.clock)())
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.0.clock)()
    }

    /// Returns the statement that begins an administrative transaction. On PostgreSQL it also sets timeouts: for locks, for each
    /// statement, and for a client that sends nothing.
    pub(super) fn begin(&self, access: Access) -> SqlStr {
        match &self.0.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => match access {
                Access::Reads => SqlStr::from_static("BEGIN"),
                // Two transactions that first read and then write would conflict, and one of them would fail.
                Access::Writes => SqlStr::from_static("BEGIN IMMEDIATE"),
            },
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => {
                use sqlx::{AssertSqlSafe, SqlSafeStr as _};

                use super::connections::millis;
                let begin = match access {
                    Access::Reads => "BEGIN READ ONLY",
                    // With another default, statements after a wait for a lock would not see what others have committed.
                    Access::Writes => "BEGIN ISOLATION LEVEL READ COMMITTED",
                };
                let timeout = self.0.admin_timeout;
                let (lock, statement) = (millis(LOCK_TIMEOUT.min(timeout / 2)), millis(timeout));
                let begin = format!(
                    "{begin}; SET LOCAL lock_timeout = {lock}; SET LOCAL statement_timeout = {statement}; \
                     SET LOCAL idle_in_transaction_session_timeout = {lock}"
                );
                AssertSqlSafe(begin).into_sql_str()
            }
        }
    }

    /// Renders a statement with the table names and types of this database.
    pub(super) fn sql(&self, template: &'static str) -> SqlStr {
        self.0.schema.render(template)
    }
}

/// Converts to milliseconds since 1970, rounded down and limited to the range of the columns.
pub(super) fn unix_ms(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Converts from milliseconds since 1970. Returns `None` for times before 1970 or beyond the range of [`SystemTime`].
pub(super) fn from_unix_ms(ms: i64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(ms).ok()?))
}

impl fmt::Debug for Database {
    /// Omits the URL, which may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => "sqlite",
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => "postgres",
        };
        let mut debug = f.debug_struct("Database");
        debug.field("kind", &kind).field("table_prefix", &self.0.schema.prefix());
        debug.field("timeout", &self.0.lookup_timeout);
        #[cfg(feature = "reveal")]
        debug.field("has_sealer", &self.0.sealer.is_some());
        debug.finish_non_exhaustive()
    }
}
