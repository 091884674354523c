//! PostgreSQL connections: a pool with a bounded number of sockets, and the timeouts of its sessions.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::pool::{PoolConnection, PoolConnectionMetadata};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Postgres, SqlSafeStr as _, SqlStr};
use tokio::runtime::{Builder, Handle};
use tokio::time::{Instant, timeout, timeout_at};

use super::SqlError;
use super::database::CONNECT_TIMEOUT;
use super::lookup::is_disconnect;
use super::url::rejected;

/// The size of the pool that [`Database::connect`](super::Database::connect) opens.
const MAX_CONNECTIONS: u32 = 10;
/// Connections that were idle for longer than this are pinged before use.
const PING_AFTER: Duration = Duration::from_secs(1);
/// The pool closes connections that were idle for this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// The server closes connections that were idle for this time. While the network works, the pool closes them first, because it
/// checks every [`IDLE_TIMEOUT`].
const SERVER_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// A pool of PostgreSQL connections. The number of open sockets never exceeds the size of the pool.
///
/// A connection whose timeout expires is closed before its slot in the pool is free again.
#[derive(Clone)]
pub(super) struct Connections {
    pool: PgPool,
    is_own: bool,
    lookup_timeout: Duration,
    idle_cutoff: IdleCutoff,
}

/// The time before which idle connections are not trusted. A statement that was sent at this time got no reply, so the network
/// may have lost the connections that were idle then. They are closed instead of used.
#[derive(Clone, Default)]
struct IdleCutoff(Arc<Mutex<Option<Instant>>>);

impl IdleCutoff {
    fn raise(&self, time: Instant) {
        let mut cutoff = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *cutoff = (*cutoff).max(Some(time));
    }

    fn covers(&self, idle_since: Option<Instant>) -> bool {
        let cutoff = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cutoff.is_some_and(|time| idle_since.is_none_or(|since| since <= time))
    }

    async fn is_usable(&self, connection: &mut PgConnection, state: PoolConnectionMetadata, wait: Duration) -> bool {
        let now = Instant::now();
        if self.covers(now.checked_sub(state.idle_for)) {
            return false;
        }
        if state.idle_for <= PING_AFTER {
            return true;
        }
        let Ok(ping) = timeout(wait, connection.ping()).await else {
            self.raise(now);
            return false;
        };
        ping.is_ok()
    }
}

impl Connections {
    pub(super) fn open(options: PgConnectOptions, lookup_timeout: Duration) -> Self {
        let idle_cutoff = IdleCutoff::default();
        let acquire_cutoff = idle_cutoff.clone();
        let pool = pool_with(session(lookup_timeout, Some(SERVER_IDLE_TIMEOUT)))
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(lookup_timeout.clamp(CONNECT_TIMEOUT, CONNECT_TIMEOUT * 100))
            .idle_timeout(IDLE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(move |connection, state| {
                let acquire_cutoff = acquire_cutoff.clone();
                // Half of the timeout is left to open another connection.
                Box::pin(async move { Ok(acquire_cutoff.is_usable(connection, state, lookup_timeout / 2).await) })
            })
            .connect_lazy_with(options);
        Self { pool, is_own: true, lookup_timeout, idle_cutoff }
    }

    /// Uses a pool of the service. The settings of its sessions are not changed.
    pub(super) fn shared(pool: PgPool, lookup_timeout: Duration) -> Self {
        Self { pool, is_own: false, lookup_timeout, idle_cutoff: IdleCutoff::default() }
    }

    /// Returns connections with another timeout. Sessions depend on the timeout, so a pool of this crate is replaced.
    pub(super) fn with_timeout(&self, lookup_timeout: Duration) -> Self {
        match self.is_own {
            true => Self::open((*self.pool.connect_options()).clone(), lookup_timeout),
            false => Self::shared(self.pool.clone(), lookup_timeout),
        }
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    pub(super) fn options(&self) -> Arc<PgConnectOptions> {
        self.pool.connect_options()
    }

    /// Connects once, without the pool. The pool would retry for a while and then report a timeout instead of the cause.
    pub(super) async fn probe(&self) -> Result<(), SqlError> {
        use sqlx::ConnectOptions as _;
        let connect = async {
            let mut connection = self.pool.connect_options().connect().await.map_err(rejected)?;
            connection.execute(session(self.lookup_timeout, None)).await?;
            Ok(connection.close().await?)
        };
        timeout(CONNECT_TIMEOUT, connect).await.unwrap_or(Err(SqlError::Timeout))
    }

    /// Creates a pool of one connection for `LISTEN`. The connection is closed when it is dropped, without waiting for a reply.
    pub(super) fn for_listening(&self) -> PgPool {
        pool_with(session(self.lookup_timeout, None))
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(self.lookup_timeout.min(CONNECT_TIMEOUT * 100))
            .after_release(|_, _| Box::pin(async { Ok(false) }))
            .connect_lazy_with((*self.pool.connect_options()).clone())
    }

    /// Closes connections that have been idle since before this time, instead of using them again.
    pub(super) fn discard_idle_since(&self, time: Instant) {
        self.idle_cutoff.raise(time);
    }

    /// Takes a connection for this work. The caller applies the timeout.
    pub(super) async fn acquire(&self, work: Work) -> Result<Held, sqlx::Error> {
        let connection = self.pool.acquire().await?;
        let (since, idle_cutoff) = (Instant::now(), self.idle_cutoff.clone());
        Ok(Held { connection, work, since, lookup_timeout: self.lookup_timeout, idle_cutoff })
    }
}

/// The use of a connection, and its outcome.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// One statement that reads. If it is dropped, the connection returns to the pool after the server's reply. So clients that
    /// disconnect and a slow database do not cause new connections.
    Statement,
    /// Any other work. If it is dropped, the connection is closed, because it may be inside a transaction.
    Transaction,
    /// The server has replied.
    Done,
    /// The connection failed.
    Broken,
}

/// A connection taken from the pool.
pub(super) struct Held {
    connection: PoolConnection<Postgres>,
    work: Work,
    since: Instant,
    lookup_timeout: Duration,
    idle_cutoff: IdleCutoff,
}

impl Held {
    /// Records the outcome of the work and returns it.
    pub(super) fn end<T>(mut self, outcome: Result<T, SqlError>) -> Result<T, SqlError> {
        self.work = match &outcome {
            Err(SqlError::Database(error)) if is_disconnect(&**error) => Work::Broken,
            _ => Work::Done,
        };
        outcome
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let now = Instant::now();
        // If this future is dropped before it is polled, it closes the socket and then frees the slot. The destructor of
        // `PoolConnection` would wait for a reply without a timeout, and keep the slot until then.
        let returning = self.connection.return_to_pool();
        let is_silent = self.work != Work::Done && now.duration_since(self.since) >= self.lookup_timeout / 2;
        if is_silent || self.work == Work::Broken {
            self.idle_cutoff.raise(self.since);
        }
        let sent = match self.work {
            Work::Statement => self.since,
            Work::Done => now,
            Work::Transaction | Work::Broken => return,
        };
        let (Ok(runtime), Some(end)) = (Handle::try_current(), sent.checked_add(self.lookup_timeout)) else { return };
        let idle_cutoff = self.idle_cutoff.clone();
        runtime.spawn(async move {
            if timeout_at(end, returning).await.is_err() {
                idle_cutoff.raise(sent);
            }
        });
    }
}

impl Deref for Held {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// Closes a listener immediately.
///
/// The destructor of `PgListener` starts a task that sends `UNLISTEN` and waits for the reply without a timeout. Here the task
/// starts on a runtime that ends before the task runs. So the connection returns to its pool, which closes it.
pub(super) fn close(listener: PgListener) {
    let Ok(runtime) = Builder::new_current_thread().build() else { return };
    let context = runtime.enter();
    drop(listener);
    drop(context);
    runtime.shutdown_background();
}

fn pool_with(session: SqlStr) -> PgPoolOptions {
    PgPoolOptions::new().after_connect(move |connection, _| {
        let session = session.clone();
        Box::pin(async move { connection.execute(session).await.map(drop) })
    })
}

/// Returns the statement that sets the server's timeouts of a session. They bound how long a statement runs, how long a
/// transaction waits for its client, and how long the connection of a lost client stays open.
///
/// Stricter settings are kept. Settings that the server does not support are omitted (`idle_session_timeout` needs version 14).
fn session(lookup_timeout: Duration, idle: Option<Duration>) -> SqlStr {
    let statement = statement_timeout(lookup_timeout);
    let mut settings = vec![
        ("statement_timeout", statement),
        ("idle_in_transaction_session_timeout", statement),
        ("tcp_keepalives_idle", 30),
        ("tcp_keepalives_interval", 10),
        ("tcp_keepalives_count", 3),
        ("tcp_user_timeout", 60_000),
    ];
    settings.extend(idle.map(|idle| ("idle_session_timeout", millis(idle))));
    let values: Vec<String> = settings.iter().map(|(name, value)| format!("('{name}', {value})")).collect();
    let statement = format!(
        "SELECT set_config(wanted.name, wanted.value::text, false) \
         FROM pg_settings s JOIN (VALUES {}) AS wanted (name, value) \
         ON CASE WHEN s.name = wanted.name THEN s.setting::bigint NOT BETWEEN 1 AND wanted.value ELSE false END",
        values.join(", ")
    );
    AssertSqlSafe(statement).into_sql_str()
}

/// Returns the server's timeout of a statement. It is shorter than the client's, so that a slow database closes no connections.
pub(super) fn statement_timeout(lookup_timeout: Duration) -> i32 {
    millis(lookup_timeout - lookup_timeout / 10)
}

/// Converts to whole milliseconds for PostgreSQL settings. Returns at least 1, because 0 means no limit.
pub(super) fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_idle_since_before_an_unanswered_statement_are_discarded() {
        let (idle_cutoff, now) = (IdleCutoff::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert!(!idle_cutoff.covers(Some(now)) && !idle_cutoff.covers(None));
        idle_cutoff.raise(now + second);
        // An older failure has no effect.
        idle_cutoff.raise(now);
        assert!(idle_cutoff.covers(Some(now)) && idle_cutoff.covers(Some(now + second)));
        assert!(!idle_cutoff.covers(Some(now + 2 * second)), "the connection has replied since");
        assert!(idle_cutoff.covers(None), "idle since before the clock's range");
    }

    #[test]
    fn server_timeouts_are_never_unlimited() {
        assert_eq!(millis(Duration::ZERO), 1);
        assert_eq!(millis(Duration::MAX), i32::MAX);
        assert_eq!(statement_timeout(Duration::from_secs(2)), 1_800);
    }
}
