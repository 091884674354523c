use std::convert::Infallible;
use std::time::Duration;

#[cfg(feature = "postgres")]
use sqlx::postgres::PgListener;
#[cfg(feature = "postgres")]
use tokio::time::Instant;
use tokio::time::timeout;

use super::Database;
#[cfg(feature = "sqlite")]
use super::SqlError;
#[cfg(feature = "postgres")]
use super::connections;
use super::database::Pool;
use super::report::Reporter;
use crate::store::Invalidation;

impl Database {
    /// Reports what is changed in the tables, by whichever process, for ever: for a task of its own, in front of a cache.
    ///
    /// ```no_run
    /// # #[cfg(feature = "cache")]
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use tollgate::store::sql::Database;
    /// use tollgate::store::{CircuitBreaker, CachedStore, Invalidation};
    ///
    /// let database = Database::connect("postgres://127.0.0.1/acme").await?;
    /// let breaker = CircuitBreaker::with_timeout(database.store::<()>(), Duration::from_secs(2));
    /// let cache = CachedStore::new(breaker.clone(), Duration::from_secs(60))?;
    /// let followed = cache.clone();
    /// let on_change = move |change: Change| {
    ///     followed.invalidate(&change);
    ///     if change == Invalidation::Everything {
    ///         // Perhaps the database is back.
    ///         breaker.probe_now();
    ///     }
    /// };
    /// tokio::spawn(async move { database.watch(Duration::from_secs(5), on_change).await });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # How late
    ///
    /// | | a change is reported after |
    /// |---|---|
    /// | SQLite | at most `interval`, and the time of one small query: a table of changes is read so often |
    /// | PostgreSQL, connected | the time that the server's `NOTIFY` takes |
    /// | PostgreSQL, connection lost | at most `interval` and one [deadline](Database::with_deadline) until that is noticed, then as soon as it is connected again |
    ///
    /// PostgreSQL does not keep notifications for a client that is not connected. So [`Invalidation::Everything`] is reported whenever
    /// listening begins, the first time as well. A cache then asks the database before it uses an entry again; see
    /// `CachedStore`.
    ///
    /// # Revocations during an outage
    ///
    /// While the database cannot be reached, a cache serves what it has, for as long as its own settings allow. When the
    /// database is back, a connection is made within `interval`, two deadlines and 500 ms: the loss of the old connection may
    /// not be noticed yet, or an attempt to connect may still be waiting. From then on, a token that was revoked during the
    /// outage is rejected as soon as its look-up is answered by the database. No revoked token is accepted for longer than the
    /// cache's own `ttl` and `stale_on_error`.
    ///
    /// # Floods of notifications
    ///
    /// Every role of a PostgreSQL database may send notifications on any channel. So they are merged, and none is lost:
    /// `Everything` and `Added` are reported immediately, and then at most once in each `interval`, at its end. Of named grants,
    /// at most 100 are reported in each `interval`; more of them are reported as `Everything`. A flood can make a cache
    /// ask the database once in each `interval` for each entry in use, and no more. The metric `tollgate_store_changes_total`
    /// counts what is reported and what is merged.
    pub async fn watch(&self, interval: Duration, on_change: impl FnMut(Invalidation) + Send) -> Infallible {
        let mut reporter = Reporter::new(interval, on_change);
        match &self.0.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(pool) => {
                let mut last = None;
                loop {
                    // A failure shows itself in lookups, and the changes wait.
                    if let Ok(newest) = self.changes_since(pool, last, &mut reporter).await {
                        last = Some(newest);
                    }
                    tokio::time::sleep(interval).await;
                }
            }
            #[cfg(feature = "postgres")]
            Pool::Postgres(connections) => {
                let channel =
                    self.sql("SELECT '{p}changes_' || relnamespace FROM pg_class WHERE oid = '{p}grants'::regclass");
                // A connection of its own: it must not wait for one of those that lookups use.
                let own = connections.for_listening();
                let mut lost = None;
                loop {
                    let on_connection = || {
                        if let Some(lost) = lost {
                            // The connections of look-ups were lost at the same time, and may not know it yet.
                            connections.distrust_before(lost);
                        }
                    };
                    // Ends when the connection does.
                    _ = listen(&own, &channel, self.0.deadline, on_connection, &mut reporter).await;
                    reporter.report_waiting();
                    lost = Some(Instant::now());
                    tokio::time::sleep(interval.min(RECONNECT)).await;
                }
            }
        }
    }

    /// Reports the changes after the one with this number, and returns the number of the newest.
    #[cfg(feature = "sqlite")]
    async fn changes_since<F: FnMut(Invalidation) + Send>(
        &self,
        pool: &sqlx::SqlitePool,
        last: Option<i64>,
        reporter: &mut Reporter<F>,
    ) -> Result<i64, SqlError> {
        let statement = self.sql(match last {
            // The last one too: if it is gone, so may be others.
            Some(_) => "SELECT id, grant_id FROM {p}changes WHERE id >= $1 ORDER BY id",
            None => "SELECT id, grant_id FROM {p}changes WHERE $1 IS NULL ORDER BY id DESC LIMIT 1",
        });
        let select = sqlx::query_as(&statement).bind(last).fetch_all(pool);
        let changes = timeout(self.0.deadline, select).await.map_err(|_| SqlError::Deadline)?;
        let mut changes: Vec<(i64, Option<String>)> = changes?;
        let newest = changes.last().map_or(0, |(id, _)| *id);
        match (changes.first(), last) {
            (Some((first, _)), Some(last)) if *first == last => {
                // Deleting a grant deletes its tokens, each of which is a change of the same grant.
                changes.dedup_by(|(_, this), (id, previous)| *id != last && this == previous);
                for (_, grant) in changes.drain(1..) {
                    reporter.report_now(grant.map_or(Invalidation::Added, |id| Invalidation::Grant(id.into())));
                }
            }
            // The table is still empty, which it is if somebody has emptied it.
            (None, Some(0)) => {}
            _ => reporter.report_now(Invalidation::Everything),
        }
        Ok(newest)
    }
}

/// How long to wait before one connects again.
#[cfg(feature = "postgres")]
const RECONNECT: Duration = Duration::from_millis(500);

#[cfg(feature = "postgres")]
async fn listen<F: FnMut(Invalidation) + Send>(
    own: &sqlx::PgPool,
    channel: &str,
    deadline: Duration,
    on_connection: impl FnOnce() + Send,
    reporter: &mut Reporter<F>,
) -> Result<Infallible, Box<dyn std::error::Error + Send + Sync>> {
    let began = Instant::now();
    let mut listener = timeout(deadline, PgListener::connect_with(own)).await??;
    let left = deadline.saturating_sub(began.elapsed());
    let ended = hear(&mut listener, channel, (left, deadline), on_connection, reporter).await;
    connections::close(listener);
    ended
}

/// Listens until the connection is lost. The timeouts are those of the first question and of later ones.
#[cfg(feature = "postgres")]
async fn hear<F: FnMut(Invalidation) + Send>(
    listener: &mut PgListener,
    channel: &str,
    (left, deadline): (Duration, Duration),
    on_connection: impl FnOnce() + Send,
    reporter: &mut Reporter<F>,
) -> Result<Infallible, Box<dyn std::error::Error + Send + Sync>> {
    // What was told in between would be lost: the caller begins anew.
    listener.eager_reconnect(false);
    let begin = async {
        let name: String = sqlx::query_scalar(channel).fetch_one(&mut *listener).await?;
        listener.listen(&name).await
    };
    timeout(left, begin).await??;
    on_connection();
    reporter.report_now(Invalidation::Everything);
    let interval = reporter.interval();
    let mut heard = Instant::now();
    loop {
        let due = reporter.report_due().unwrap_or(interval);
        // A wait that is cut short loses nothing: what has come of a message stays with the connection.
        match timeout(due.min(interval.saturating_sub(heard.elapsed())), listener.try_recv()).await {
            Ok(Ok(Some(told))) => {
                heard = Instant::now();
                reporter.report(read(told.payload()));
            }
            Ok(Ok(None)) => return Err("the connection was closed".into()),
            Ok(Err(error)) => return Err(error.into()),
            // A merged change is due.
            Err(_) if heard.elapsed() < interval => {}
            // Nothing was told for a while: does the server live? A connection that is dead says nothing either.
            Err(_) => {
                timeout(deadline, sqlx::query("SELECT 1").execute(&mut *listener)).await??;
                heard = Instant::now();
            }
        }
    }
}

#[cfg(feature = "postgres")]
fn read(payload: &str) -> Invalidation {
    match payload.strip_prefix("grant ") {
        Some(id) => Invalidation::Grant(id.into()),
        None if payload == "added" => Invalidation::Added,
        // Of a newer version, perhaps.
        None => Invalidation::Everything,
    }
}
