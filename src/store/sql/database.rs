use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[cfg(feature = "postgres")]
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
#[cfg(feature = "sqlite")]
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};

use super::SqlError;
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
    pub(super) distrust: Arc<Distrust>,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

#[derive(Clone)]
pub(super) enum Pool {
    #[cfg(feature = "sqlite")]
    Sqlite(SqlitePool),
    #[cfg(feature = "postgres")]
    Postgres(PgPool),
}

/// The same code for each kind of pool.
macro_rules! on_pool {
    ($database:expr, $pool:ident => $body:expr) => {
        match &$database.0.pool {
            #[cfg(feature = "sqlite")]
            $crate::store::sql::database::Pool::Sqlite($pool) => $body,
            #[cfg(feature = "postgres")]
            $crate::store::sql::database::Pool::Postgres($pool) => $body,
        }
    };
}
pub(super) use on_pool;

const DEFAULT_DEADLINE: Duration = Duration::from_secs(2);
/// Connections are asked whether they live if they were idle for longer.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

#[cfg(all(feature = "sqlite", feature = "postgres"))]
const URLS: &str = "sqlite:, postgres:, postgresql:";
#[cfg(all(feature = "sqlite", not(feature = "postgres")))]
const URLS: &str = "sqlite: (for postgres: the feature `postgres` is needed)";
#[cfg(all(feature = "postgres", not(feature = "sqlite")))]
const URLS: &str = "postgres:, postgresql: (for sqlite: the feature `sqlite` is needed)";

impl Database {
    /// Connects to `sqlite://path`, which is created if there is no such file, or to
    /// `postgres://user:password@host:port/database`, with the parameters of libpq, such as `sslmode=verify-full` and
    /// `sslrootcert`. Opens up to 10 connections as they are needed; 4 for SQLite, which has one writer at a time, and
    /// 1 in memory.
    ///
    /// # Errors
    ///
    /// If the URL is none of these, or if the database cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, SqlError> {
        let database = Self::connect_lazily(url)?;
        on_pool!(database, pool => drop(pool.acquire().await?));
        Ok(database)
    }

    /// The same without connecting, for a service that starts while its database is down. Call it in a tokio runtime.
    ///
    /// # Errors
    ///
    /// If the URL is none of these.
    pub fn connect_lazily(url: &str) -> Result<Self, SqlError> {
        #[cfg(feature = "sqlite")]
        if url.starts_with("sqlite:") {
            let options: SqliteConnectOptions = url.parse()?;
            let in_memory = url.starts_with("sqlite::memory:") || url.contains("mode=memory");
            // Another process may write: wait for it, and let those who read go on meanwhile.
            let options = options
                .create_if_missing(true)
                .foreign_keys(true)
                .busy_timeout(Duration::from_secs(5))
                .journal_mode(if in_memory { SqliteJournalMode::Memory } else { SqliteJournalMode::Wal });
            let pool = SqlitePoolOptions::new().acquire_timeout(Duration::from_secs(5));
            let pool = match in_memory {
                // Each connection to memory would have tables of its own, which end with it.
                true => pool.max_connections(1).min_connections(1).idle_timeout(None).max_lifetime(None),
                false => pool.max_connections(4),
            };
            return Ok(Self::from_sqlite(pool.connect_lazy_with(options)));
        }
        #[cfg(feature = "postgres")]
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            let options: PgConnectOptions = url.parse()?;
            let distrust = Arc::new(Distrust::default());
            let doubts = Arc::clone(&distrust);
            let pool = PgPoolOptions::new()
                .max_connections(10)
                .acquire_timeout(Duration::from_secs(5))
                .test_before_acquire(false)
                .before_acquire(move |connection, state| {
                    let trusted = doubts.trusts(state.age);
                    Box::pin(async move {
                        if trusted && state.idle_for > TRUSTED_IDLE {
                            sqlx::Connection::ping(connection).await?;
                        }
                        Ok(trusted)
                    })
                });
            let pool = Pool::Postgres(pool.connect_lazy_with(options));
            return Ok(Self::of(pool, Schema::postgres(), distrust));
        }
        Err(SqlError::Url(URLS))
    }

    /// On a pool of the service's own.
    #[cfg(feature = "sqlite")]
    #[must_use]
    pub fn from_sqlite(pool: SqlitePool) -> Self {
        Self::of(Pool::Sqlite(pool), Schema::sqlite(), Arc::default())
    }

    /// On a pool of the service's own. That a connection is dead is found out by the pool's own means.
    #[cfg(feature = "postgres")]
    #[must_use]
    pub fn from_postgres(pool: PgPool) -> Self {
        Self::of(Pool::Postgres(pool), Schema::postgres(), Arc::default())
    }

    fn of(pool: Pool, schema: Schema, distrust: Arc<Distrust>) -> Self {
        let clock = Arc::new(SystemTime::now);
        Self(Arc::new(Inner { pool, schema, deadline: DEFAULT_DEADLINE, distrust, clock }))
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

    /// The same with another time that a look-up may take, in place of 2 seconds. Give the gate a little more: who is
    /// dropped before its deadline cannot tell that a connection is dead.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        self.map(|inner| inner.deadline = deadline)
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

    /// The text of a statement, with this database's names and types in it.
    pub(super) fn sql(&self, template: &str) -> String {
        self.0.schema.render(template)
    }
}

/// Connections that are older than the last one that did not answer are not used again: after a partition of the network
/// all of them are dead, and nothing but silence says so.
pub(super) struct Distrust {
    start: Instant,
    /// Milliseconds after the start; 0 if there was none.
    last_ms: AtomicU64,
}

impl Default for Distrust {
    fn default() -> Self {
        Self { start: Instant::now(), last_ms: AtomicU64::new(0) }
    }
}

impl Distrust {
    pub(super) fn begin(&self) {
        self.last_ms.fetch_max(self.now_ms(), Ordering::Relaxed);
    }

    #[cfg(feature = "postgres")]
    fn trusts(&self, age: Duration) -> bool {
        match self.last_ms.load(Ordering::Relaxed) {
            0 => true,
            last => self.now_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)) > last,
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
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
