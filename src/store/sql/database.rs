use std::fmt;
use std::sync::Arc;
#[cfg(feature = "postgres")]
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[cfg(feature = "postgres")]
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
#[cfg(feature = "sqlite")]
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions};

use tokio::time::timeout;

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
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

#[derive(Clone)]
pub(super) enum Pool {
    #[cfg(feature = "sqlite")]
    Sqlite(SqlitePool),
    #[cfg(feature = "postgres")]
    Postgres(Renewable),
}

/// A pool, when it was opened, and how another one is.
#[cfg(feature = "postgres")]
#[derive(Clone)]
pub(super) struct Renewable {
    current: Arc<Mutex<(PgPool, Instant)>>,
    renewal: Option<Arc<(PgPoolOptions, PgConnectOptions)>>,
}

/// The same code for each kind of pool.
macro_rules! on_pool {
    ($database:expr, $pool:ident => $body:expr) => {
        match &$database.0.pool {
            #[cfg(feature = "sqlite")]
            $crate::store::sql::database::Pool::Sqlite($pool) => $body,
            #[cfg(feature = "postgres")]
            $crate::store::sql::database::Pool::Postgres(renewable) => {
                let $pool = &renewable.current();
                $body
            }
        }
    };
}
pub(super) use on_pool;

const DEFAULT_DEADLINE: Duration = Duration::from_secs(2);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Connections are asked whether they live if they were idle for longer.
#[cfg(feature = "postgres")]
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

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
    /// # Errors
    ///
    /// [`SqlError::Url`], [`SqlError::NoFile`], [`SqlError::NotCreated`], or if the database cannot be reached. No error
    /// repeats any part of the URL.
    pub async fn connect(url: &str) -> Result<Self, SqlError> {
        use sqlx::{ConnectOptions as _, Connection as _};
        let database = Self::connect_lazily(url)?;
        #[cfg(feature = "sqlite")]
        if super::url::sqlite(url)?.is_some_and(|sqlite| sqlite.is_missing()) {
            return Err(SqlError::NoFile);
        }
        on_pool!(database, pool => {
            // Not by the pool, which would try again for a while, and then say nothing of why it failed.
            let connection = timeout(CONNECT_DEADLINE, pool.connect_options().connect()).await;
            _ = connection.map_err(|_| SqlError::Deadline)?.map_err(super::url::rejected)?.close().await;
        });
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
            let pool = SqlitePoolOptions::new().acquire_timeout(CONNECT_DEADLINE);
            let pool = match sqlite.in_memory {
                // Each connection to memory would have tables of its own, which end with it.
                true => pool.max_connections(1).min_connections(1).idle_timeout(None).max_lifetime(None),
                false => pool.max_connections(4),
            };
            return Ok(Self::of(Pool::Sqlite(pool.connect_lazy_with(options)), Schema::own_sqlite()));
        }
        #[cfg(feature = "postgres")]
        if let Some(options) = super::url::postgres(url)? {
            let pool = PgPoolOptions::new()
                .max_connections(10)
                .acquire_timeout(CONNECT_DEADLINE)
                .test_before_acquire(false)
                .before_acquire(|connection, state| {
                    Box::pin(async move {
                        if state.idle_for > TRUSTED_IDLE {
                            sqlx::Connection::ping(connection).await?;
                        }
                        Ok(true)
                    })
                });
            let current = (pool.clone().connect_lazy_with(options.clone()), Instant::now());
            let renewable =
                Renewable { current: Arc::new(Mutex::new(current)), renewal: Some(Arc::new((pool, options))) };
            return Ok(Self::of(Pool::Postgres(renewable), Schema::postgres()));
        }
        Err(SqlError::Url(super::url::SCHEMES))
    }

    /// On a pool of the service's own.
    #[cfg(feature = "sqlite")]
    #[must_use]
    pub fn from_sqlite(pool: SqlitePool) -> Self {
        Self::of(Pool::Sqlite(pool), Schema::sqlite())
    }

    /// On a pool of the service's own. That its connections are dead is found out by its own means, which may take minutes:
    /// [`connect`](Self::connect) leaves them after the first deadline.
    #[cfg(feature = "postgres")]
    #[must_use]
    pub fn from_postgres(pool: PgPool) -> Self {
        let current = Arc::new(Mutex::new((pool, Instant::now())));
        Self::of(Pool::Postgres(Renewable { current, renewal: None }), Schema::postgres())
    }

    fn of(pool: Pool, schema: Schema) -> Self {
        let clock = Arc::new(SystemTime::now);
        Self(Arc::new(Inner { pool, schema, deadline: DEFAULT_DEADLINE, clock }))
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

#[cfg(feature = "postgres")]
impl Renewable {
    pub(super) fn current(&self) -> PgPool {
        self.lock().0.clone()
    }

    fn lock(&self) -> MutexGuard<'_, (PgPool, Instant)> {
        // Under this lock only whole values are moved.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// A connection that was there at this moment did not answer, or was cut: so may be all of that time, and after a
    /// partition of the network nothing but silence says so. They are left to themselves, and others are opened. (A pool waits
    /// without a deadline for what comes back to it, and for what it closes, and gives nobody the place meanwhile.)
    pub(super) fn renew(&self, since: Instant) {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => _ = since,
            #[cfg(feature = "postgres")]
            Self::Postgres(Renewable { renewal: None, .. }) => {}
            #[cfg(feature = "postgres")]
            Self::Postgres(renewable @ Renewable { renewal: Some(renewal), .. }) => {
                let (options, to) = &**renewal;
                let mut current = renewable.lock();
                if current.1 <= since {
                    *current = (options.clone().connect_lazy_with(to.clone()), Instant::now());
                }
            }
        }
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
