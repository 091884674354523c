use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[cfg(feature = "postgres")]
use sqlx::postgres::PgPool;
#[cfg(feature = "sqlite")]
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions};
#[cfg(feature = "sqlite")]
use tokio::time::timeout;

use super::SqlError;
#[cfg(feature = "postgres")]
use super::connections::Connections;
use super::schema::Schema;

/// A database with grants. Clones share its connections.
///
/// See the [module](super) for what is kept, and for an example.
#[derive(Clone)]
pub struct Database(pub(super) Arc<Inner>);

#[derive(Clone)]
pub(super) struct Inner {
    pub(super) pool: Pool,
    pub(super) schema: Schema,
    pub(super) deadline: Duration,
    pub(super) admin_timeout: Duration,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

#[derive(Clone)]
pub(super) enum Pool {
    #[cfg(feature = "sqlite")]
    Sqlite(SqlitePool),
    #[cfg(feature = "postgres")]
    Postgres(Connections),
}

/// Runs the same code on a connection to either database. The caller has a timeout for it.
macro_rules! on_connection {
    ($database:expr, $work:ident, $connection:ident => $body:expr) => {
        match &$database.0.pool {
            #[cfg(feature = "sqlite")]
            $crate::store::sql::database::Pool::Sqlite(pool) => {
                let mut pooled = pool.acquire().await?;
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

/// Runs the same code in a transaction on either database, which is committed if the code returns `Ok`. The transaction `Reads`
/// or `Writes`.
macro_rules! administer {
    ($database:expr, $access:ident, $transaction:ident => $body:expr) => {{
        use sqlx::Connection as _;
        use $crate::store::sql::SqlError;
        use $crate::store::sql::database::{Access, on_connection};

        let begin = $database.begin(Access::$access);
        let work = async {
            on_connection!($database, Writing, connection => {
                let mut $transaction = connection.begin_with(begin).await?;
                let outcome: Result<_, SqlError> = async { $body }.await;
                let outcome = outcome?;
                $transaction.commit().await?;
                Ok(outcome)
            })
        };
        tokio::time::timeout($database.0.admin_timeout, work).await.unwrap_or(Err(SqlError::Deadline))
    }};
}
pub(super) use administer;

/// What a transaction does.
pub(super) enum Access {
    Reads,
    Writes,
}

const DEFAULT_DEADLINE: Duration = Duration::from_secs(2);
const DEFAULT_ADMIN_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest time that administration waits for a lock.
#[cfg(feature = "postgres")]
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Database {
    /// Connects to a database.
    ///
    /// | URL | database |
    /// |---|---|
    /// | `sqlite://path` | a file that exists |
    /// | `sqlite://path?mode=rwc` | a file, which is created if it is missing, with the mode 0600 on Unix |
    /// | `sqlite::memory:` | memory |
    /// | `postgres://user:password@host:port/database` | PostgreSQL, with parameters of libpq, such as `sslmode=verify-full` and `sslrootcert` |
    ///
    /// A missing file is an error unless the URL says `mode=rwc`: an empty database knows no token. Special characters in a
    /// user, password or database name are percent-encoded. Unknown parameters are errors.
    ///
    /// Opens up to 10 connections as they are needed; 4 for a SQLite file, which has one writer at a time, and 1 in memory.
    ///
    /// Sessions on PostgreSQL get timeouts (`statement_timeout`, `idle_in_transaction_session_timeout`,
    /// `idle_session_timeout`, `tcp_keepalives_*`, `tcp_user_timeout`), unless they have stricter ones. A pooler in transaction
    /// mode would hand them on to other clients: use [`from_postgres`](Self::from_postgres) behind one.
    ///
    /// # Errors
    ///
    /// [`SqlError::Url`], [`SqlError::NoFile`], [`SqlError::NotCreated`], or if the database cannot be reached. No error
    /// repeats any part of the URL.
    pub async fn connect(url: &str) -> Result<Self, SqlError> {
        let database = Self::connect_lazily(url)?;
        #[cfg(feature = "sqlite")]
        if super::url::sqlite(url)?.is_some_and(|sqlite| sqlite.is_missing()) {
            return Err(SqlError::NoFile);
        }
        match &database.0.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(pool) => {
                use sqlx::{ConnectOptions as _, Connection as _};
                // Not by the pool, which would repeat failures for a while and then report a timeout.
                let connection = timeout(CONNECT_TIMEOUT, pool.connect_options().connect()).await;
                _ = connection.map_err(|_| SqlError::Deadline)?.map_err(super::url::rejected)?.close().await;
            }
            #[cfg(feature = "postgres")]
            Pool::Postgres(connections) => connections.probe().await?,
        }
        Ok(database)
    }

    /// The same without connecting, for a service that starts while its database is down. Call it in a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`SqlError::Url`], or [`SqlError::NotCreated`] for `mode=rwc`, which creates the file immediately.
    pub fn connect_lazily(url: &str) -> Result<Self, SqlError> {
        #[cfg(feature = "sqlite")]
        if let Some(sqlite) = super::url::sqlite(url)? {
            sqlite.create_if_asked()?;
            // Another process may write: wait for it.
            let options = sqlite.options.foreign_keys(true).busy_timeout(Duration::from_secs(5));
            let pool = SqlitePoolOptions::new().acquire_timeout(CONNECT_TIMEOUT);
            let pool = match sqlite.in_memory {
                // Each connection to memory would have tables of its own, which end with it.
                true => pool.max_connections(1).min_connections(1).idle_timeout(None).max_lifetime(None),
                false => pool.max_connections(4),
            };
            return Ok(Self::of(Pool::Sqlite(pool.connect_lazy_with(options)), Schema::own_sqlite()));
        }
        #[cfg(feature = "postgres")]
        if let Some(options) = super::url::postgres(url)? {
            let connections = Connections::open(options, DEFAULT_DEADLINE);
            return Ok(Self::of(Pool::Postgres(connections), Schema::postgres()));
        }
        Err(SqlError::Url(super::url::SCHEMES))
    }

    /// On a pool of the service's own.
    #[cfg(feature = "sqlite")]
    #[must_use]
    pub fn from_sqlite(pool: SqlitePool) -> Self {
        Self::of(Pool::Sqlite(pool), Schema::sqlite())
    }

    /// Uses a pool of the service's own.
    ///
    /// A connection that misses a deadline is closed, as with [`connect`](Self::connect). Everything else is as the pool is
    /// configured. Its sessions get no `statement_timeout` and no TCP keepalive, so that the server may keep a connection as
    /// long as a statement runs, or for hours after its client was lost: set them for the role or in the URL. Each idle
    /// connection that was lost costs one lookup its deadline.
    #[cfg(feature = "postgres")]
    #[must_use]
    pub fn from_postgres(pool: PgPool) -> Self {
        Self::of(Pool::Postgres(Connections::shared(pool, DEFAULT_DEADLINE)), Schema::postgres())
    }

    fn of(pool: Pool, schema: Schema) -> Self {
        let clock = Arc::new(SystemTime::now);
        Self(Arc::new(Inner { pool, schema, deadline: DEFAULT_DEADLINE, admin_timeout: DEFAULT_ADMIN_TIMEOUT, clock }))
    }

    /// The same with other names of tables: `acme_` gives `acme_grants` and `acme_tokens`.
    ///
    /// # Errors
    ///
    /// If it is longer than 32 characters, has any but lower-case letters, digits and underscores, or begins with a digit.
    pub fn with_table_prefix(self, prefix: &str) -> Result<Self, SqlError> {
        let schema = self.0.schema.with_prefix(prefix).ok_or(SqlError::Prefix)?;
        Ok(self.map(|inner| inner.schema = schema))
    }

    /// Sets the timeout of a lookup. Default: 2 seconds. Give the gate a little more, so that lookups that fail by this timeout
    /// close their connections.
    ///
    /// A PostgreSQL server cancels the statement after nine tenths of this time (`statement_timeout`), so that a database that is
    /// only slow keeps its connections. The sessions of a pool depend on it: with [`connect`](Self::connect), the returned
    /// database has connections of its own, and shares none with clones that were made before.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        self.map(|inner| {
            inner.deadline = deadline;
            match &mut inner.pool {
                #[cfg(feature = "sqlite")]
                Pool::Sqlite(_) => {}
                #[cfg(feature = "postgres")]
                Pool::Postgres(connections) => *connections = connections.with_deadline(deadline),
            }
        })
    }

    /// Sets the timeout of each administrative operation, such as [`issue`](Self::issue) or [`revoke`](Self::revoke). Default: 30
    /// seconds. An operation fails with [`SqlError::Deadline`] when the time is over.
    ///
    /// On PostgreSQL an operation waits for at most 5 seconds, and at most half of this time, for a lock of another transaction,
    /// and then fails with [`SqlError::Locked`]. SQLite has a `busy_timeout` of 5 seconds.
    #[must_use]
    pub fn with_admin_timeout(self, timeout: Duration) -> Self {
        self.map(|inner| inner.admin_timeout = timeout)
    }

    /// The same with another clock for what is written: when something was created, revoked, or has to end.
    #[must_use]
    pub fn with_wall_clock(self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.map(|inner| inner.clock = Arc::new(now))
    }

    fn map(self, change: impl FnOnce(&mut Inner)) -> Self {
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

    /// The statement that begins an administrative transaction. On PostgreSQL it also bounds how long the transaction waits for
    /// locks, how long each of its statements runs, and how long it waits for a client that has fallen silent.
    pub(super) fn begin(&self, access: Access) -> String {
        match &self.0.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => match access {
                Access::Reads => "BEGIN".to_owned(),
                // Two transactions that read first and write then could not both go on.
                Access::Writes => "BEGIN IMMEDIATE".to_owned(),
            },
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => {
                use super::connections::millis;
                let begin = match access {
                    Access::Reads => "BEGIN READ ONLY",
                    Access::Writes => "BEGIN",
                };
                let timeout = self.0.admin_timeout;
                let (lock, statement) = (millis(LOCK_TIMEOUT.min(timeout / 2)), millis(timeout));
                format!(
                    "{begin}; SET LOCAL lock_timeout = {lock}; SET LOCAL statement_timeout = {statement}; \
                     SET LOCAL idle_in_transaction_session_timeout = {lock}"
                )
            }
        }
    }

    /// The text of a statement, with this database's names and types in it.
    pub(super) fn sql(&self, template: &str) -> String {
        self.0.schema.render(template)
    }
}

/// Milliseconds since 1970, rounded down; what no database holds is cut off.
pub(super) fn unix_ms(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// `None` for what [`SystemTime`] cannot tell, and for moments before 1970.
pub(super) fn from_unix_ms(ms: i64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(ms).ok()?))
}

impl fmt::Debug for Database {
    /// Leaves out the URL, which may have a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => "sqlite",
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => "postgres",
        };
        f.debug_struct("Database")
            .field("kind", &kind)
            .field("table_prefix", &self.0.schema.prefix())
            .field("deadline", &self.0.deadline)
            .finish_non_exhaustive()
    }
}
