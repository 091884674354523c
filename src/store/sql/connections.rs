use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::pool::{PoolConnection, PoolConnectionMetadata};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions};
use sqlx::{Connection as _, Executor as _, Postgres};
use tokio::runtime::{Builder, Handle};
use tokio::time::{Instant, timeout, timeout_at};

use super::SqlError;
use super::database::CONNECT_TIMEOUT;
use super::lookup::was_cut;
use super::url::rejected;

/// The size of the pool that [`Database::connect`](super::Database::connect) opens.
const MAX_CONNECTIONS: u32 = 10;
/// Connections that were idle for longer are pinged before they are used.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// Idle connections are closed after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// The server closes idle connections after this time. The pool looks every [`IDLE_TIMEOUT`], so that it is always first
/// while the network works.
const SERVER_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// A pool of PostgreSQL connections. The number of open sockets never exceeds the size of the pool.
///
/// A connection that misses a deadline is closed before its place in the pool is free again.
#[derive(Clone)]
pub(super) struct Connections {
    pool: PgPool,
    is_own: bool,
    deadline: Duration,
    distrust: Distrust,
}

/// Connections that have been idle since before this moment are closed instead of used: a statement that began then was not
/// answered, so the network may have lost them as well.
#[derive(Clone, Default)]
struct Distrust(Arc<Mutex<Option<Instant>>>);

impl Distrust {
    fn before(&self, moment: Instant) {
        let mut distrusted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *distrusted = (*distrusted).max(Some(moment));
    }

    fn covers(&self, idle_since: Option<Instant>) -> bool {
        let distrusted = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        distrusted.is_some_and(|moment| idle_since.is_none_or(|since| since <= moment))
    }

    async fn is_usable(&self, connection: &mut PgConnection, state: PoolConnectionMetadata, wait: Duration) -> bool {
        let now = Instant::now();
        if self.covers(now.checked_sub(state.idle_for)) {
            return false;
        }
        if state.idle_for <= TRUSTED_IDLE {
            return true;
        }
        let Ok(ping) = timeout(wait, connection.ping()).await else {
            self.before(now);
            return false;
        };
        ping.is_ok()
    }
}

impl Connections {
    pub(super) fn open(options: PgConnectOptions, deadline: Duration) -> Self {
        let distrust = Distrust::default();
        let suspect = distrust.clone();
        let pool = pool_with(session(deadline, Some(SERVER_IDLE_TIMEOUT)))
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(deadline.clamp(CONNECT_TIMEOUT, CONNECT_TIMEOUT * 100))
            .idle_timeout(IDLE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(move |connection, state| {
                let suspect = suspect.clone();
                // Half of the deadline is left to open another connection.
                Box::pin(async move { Ok(suspect.is_usable(connection, state, deadline / 2).await) })
            })
            .connect_lazy_with(options);
        Self { pool, is_own: true, deadline, distrust }
    }

    /// A pool of the service's own, whose sessions stay as they are.
    pub(super) fn shared(pool: PgPool, deadline: Duration) -> Self {
        Self { pool, is_own: false, deadline, distrust: Distrust::default() }
    }

    /// Connections with another deadline. The sessions of a pool depend on it, so an own pool is replaced.
    pub(super) fn with_deadline(&self, deadline: Duration) -> Self {
        match self.is_own {
            true => Self::open((*self.pool.connect_options()).clone(), deadline),
            false => Self::shared(self.pool.clone(), deadline),
        }
    }

    /// Connects outside of the pool, which would repeat failures for a while and then report a timeout.
    pub(super) async fn probe(&self) -> Result<(), SqlError> {
        use sqlx::ConnectOptions as _;
        let connect = async {
            let mut connection = self.pool.connect_options().connect().await.map_err(rejected)?;
            connection.execute(&*session(self.deadline, None)).await?;
            Ok(connection.close().await?)
        };
        timeout(CONNECT_TIMEOUT, connect).await.unwrap_or(Err(SqlError::Deadline))
    }

    /// A pool of one connection for `LISTEN`. Its connection is closed when it is dropped, without waiting for an answer.
    pub(super) fn for_listening(&self) -> PgPool {
        pool_with(session(self.deadline, None))
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(self.deadline.min(CONNECT_TIMEOUT * 100))
            .after_release(|_, _| Box::pin(async { Ok(false) }))
            .connect_lazy_with((*self.pool.connect_options()).clone())
    }

    /// Closes connections that have been idle since before this moment, when they are about to be used.
    pub(super) fn distrust_before(&self, moment: Instant) {
        self.distrust.before(moment);
    }

    /// A connection for this work, for which the caller has a timeout.
    pub(super) async fn acquire(&self, work: Work) -> Result<Held, sqlx::Error> {
        let connection = self.pool.acquire().await?;
        let (since, distrust) = (Instant::now(), self.distrust.clone());
        Ok(Held { connection, work, since, deadline: self.deadline, distrust })
    }
}

/// What a connection is used for, and how that ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// One statement that reads. If it is dropped, the connection goes back to the pool when the server has answered, because
    /// clients that hang up and a database that is only slow must not cost connections.
    Reading,
    /// Anything else. If it is dropped, the connection is closed: it may be inside of a transaction.
    Writing,
    /// The server has answered.
    Done,
    /// The connection failed.
    Broken,
}

/// A connection out of the pool.
pub(super) struct Held {
    connection: PoolConnection<Postgres>,
    work: Work,
    since: Instant,
    deadline: Duration,
    distrust: Distrust,
}

impl Held {
    /// Ends the work with this outcome.
    pub(super) fn end<T>(mut self, outcome: Result<T, SqlError>) -> Result<T, SqlError> {
        self.work = match &outcome {
            Err(SqlError::Database(error)) if was_cut(&**error) => Work::Broken,
            _ => Work::Done,
        };
        outcome
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let now = Instant::now();
        // Takes the connection. Dropped before it is polled, this future closes the socket and then frees the place. (The
        // destructor of `PoolConnection` waits for an answer without a timeout, and keeps the place until then.)
        let returning = self.connection.return_to_pool();
        let is_silent = self.work != Work::Done && now.duration_since(self.since) >= self.deadline / 2;
        if is_silent || self.work == Work::Broken {
            self.distrust.before(self.since);
        }
        let asked = match self.work {
            Work::Reading => self.since,
            Work::Done => now,
            Work::Writing | Work::Broken => return,
        };
        let (Ok(runtime), Some(end)) = (Handle::try_current(), asked.checked_add(self.deadline)) else { return };
        let distrust = self.distrust.clone();
        runtime.spawn(async move {
            if timeout_at(end, returning).await.is_err() {
                distrust.before(asked);
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
/// The destructor of `PgListener` starts a task that sends `UNLISTEN` and waits for the answer without a timeout. Here that task
/// is started on a runtime that ends before it runs, so that the connection goes back to its pool, which closes it.
pub(super) fn close(listener: PgListener) {
    let Ok(runtime) = Builder::new_current_thread().build() else { return };
    let context = runtime.enter();
    drop(listener);
    drop(context);
    runtime.shutdown_background();
}

fn pool_with(session: String) -> PgPoolOptions {
    let session: Arc<str> = session.into();
    PgPoolOptions::new().after_connect(move |connection, _| {
        let session = Arc::clone(&session);
        Box::pin(async move { connection.execute(&*session).await.map(drop) })
    })
}

/// The statement that bounds a session on the server's side, where the client's timeouts have no effect: how long a statement
/// runs, how long a transaction waits for its client, and how long a connection lives whose client is gone.
///
/// Settings that are stricter already stay, and settings that the server does not know are left out (`idle_session_timeout` is
/// of version 14).
fn session(deadline: Duration, idle: Option<Duration>) -> String {
    let statement = statement_timeout(deadline);
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
    format!(
        "SELECT set_config(wanted.name, wanted.value::text, false) \
         FROM pg_settings s JOIN (VALUES {}) AS wanted (name, value) \
         ON CASE WHEN s.name = wanted.name THEN s.setting::bigint NOT BETWEEN 1 AND wanted.value ELSE false END",
        values.join(", ")
    )
}

/// The server cancels a statement before its client gives up, so that a slow database does not cost connections.
pub(super) fn statement_timeout(deadline: Duration) -> i32 {
    millis(deadline - deadline / 10)
}

/// Whole milliseconds as PostgreSQL's settings take them, where 0 would mean no limit.
pub(super) fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_idle_since_before_an_unanswered_statement_are_distrusted() {
        let (distrust, now) = (Distrust::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert!(!distrust.covers(Some(now)) && !distrust.covers(None));
        distrust.before(now + second);
        // An older failure changes nothing.
        distrust.before(now);
        assert!(distrust.covers(Some(now)) && distrust.covers(Some(now + second)));
        assert!(!distrust.covers(Some(now + 2 * second)), "it has answered since");
        assert!(distrust.covers(None), "idle for longer than the clock can tell");
    }

    #[test]
    fn timeouts_of_the_server_are_never_unlimited() {
        assert_eq!(millis(Duration::ZERO), 1);
        assert_eq!(millis(Duration::MAX), i32::MAX);
        assert_eq!(statement_timeout(Duration::from_secs(2)), 1_800);
    }
}
