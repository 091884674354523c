//! Watching a database: reports changes of the tables by any process.

use std::convert::Infallible;
use std::time::Duration;

#[cfg(feature = "postgres")]
use sqlx::SqlStr;
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
#[cfg(feature = "sqlite")]
use super::database::Access;
use super::database::Pool;
use super::report::Reporter;
#[cfg(feature = "sqlite")]
use super::sqlite::SqlitePools;
use super::watchers;
use crate::store::Invalidation;

impl Database {
    /// Reports changes of the tables by any process to `on_change`, such as the invalidation of a cache. Never returns; run it
    /// in its own task. `on_change` must not block.
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
    /// let watched = cache.clone();
    /// let on_change = move |change: Invalidation| {
    ///     watched.invalidate(&change);
    ///     if change == Invalidation::Everything {
    ///         // The database may be available again.
    ///         breaker.probe_now();
    ///     }
    /// };
    /// tokio::spawn(async move { database.watch(Duration::from_secs(5), on_change).await });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Delay
    ///
    /// | database | delay of a report |
    /// |---|---|
    /// | any, changed by this handle or a clone of it | none: `on_change` returns before the method that makes the change |
    /// | SQLite | at most `interval` plus the time of one small query, because a table of changes is polled |
    /// | PostgreSQL, connected | the time of the server's `NOTIFY` |
    /// | PostgreSQL, connection lost | at most `interval` plus one [timeout](Database::with_timeout) to notice the loss, plus the time to reconnect |
    ///
    /// So no lookup of a watching cache that begins after [`revoke`](Self::revoke) returns is answered with the old grant, even if
    /// the connection for notifications is lost. The database reports the same change again, which costs one more lookup.
    ///
    /// PostgreSQL does not keep notifications for clients that are not connected. So [`Invalidation::Everything`] is reported
    /// whenever listening begins, including the first time. A cache then asks the database before it uses an entry again; see
    /// `CachedStore`.
    ///
    /// # Revocations during an outage
    ///
    /// While the database cannot be reached, a cache serves its entries as long as its own settings allow. When the database is
    /// available again, this method connects within `interval`, two timeouts and 500 ms. Until then, the loss of the old
    /// connection may be unnoticed, or an attempt to connect may still be waiting. After that, a token that was revoked during
    /// the outage is rejected as soon as the database answers its lookup. No revoked token is accepted for longer than the `ttl`
    /// and `stale_on_error` of the cache.
    ///
    /// # Floods of notifications
    ///
    /// Every role of a PostgreSQL database may send notifications on any channel. So notifications are merged, and none is lost.
    /// `Everything` and `Added` are reported immediately, and then at most once in each `interval`, at its end. At most 100 named
    /// grants are reported in each `interval`; further ones are reported as `Everything`. So a flood makes a cache ask the
    /// database at most once in each `interval` for each entry in use. The metric `tollgate_store_changes_total` counts
    /// reported and merged changes.
    pub async fn watch<F>(&self, interval: Duration, on_change: F) -> Infallible
    where
        F: FnMut(Invalidation) + Send + 'static,
    {
        let watcher = self.0.watchers.add(on_change);
        let mut reporter = Reporter::new(interval, |change| watchers::call(&watcher, change));
        match &self.0.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(pools) => {
                let mut last = None;
                loop {
                    // After a failure, the next poll reports the same changes. Lookups report the failure.
                    if let Ok(newest) = self.changes_since(pools, last, &mut reporter).await {
                        last = Some(newest);
                    }
                    tokio::time::sleep(interval).await;
                }
            }
            #[cfg(feature = "postgres")]
            Pool::Postgres(connections) => {
                let channel =
                    self.sql("SELECT '{p}changes_' || relnamespace FROM pg_class WHERE oid = '{p}grants'::regclass");
                // Use a separate pool: listening must not wait for connections that lookups use.
                let listening = connections.for_listening();
                let mut lost = None;
                loop {
                    let on_connection = || {
                        if let Some(lost) = lost {
                            // The connections of lookups may have been lost at the same time.
                            connections.discard_idle_since(lost);
                        }
                    };
                    // Returns when the connection is lost.
                    _ = listen(&listening, &channel, self.0.lookup_timeout, on_connection, &mut reporter).await;
                    reporter.report_waiting();
                    lost = Some(Instant::now());
                    tokio::time::sleep(interval.min(RECONNECT)).await;
                }
            }
        }
    }

    /// Reports the changes after the change with the number `last`. Returns the number of the newest change.
    #[cfg(feature = "sqlite")]
    async fn changes_since<F: FnMut(Invalidation) + Send>(
        &self,
        pools: &SqlitePools,
        last: Option<i64>,
        reporter: &mut Reporter<F>,
    ) -> Result<i64, SqlError> {
        let statement = self.sql(match last {
            // Includes the last change. If it is missing, later ones may be missing as well.
            Some(_) => "SELECT id, grant_id FROM {p}changes WHERE id >= $1 ORDER BY id",
            None => "SELECT id, grant_id FROM {p}changes WHERE $1 IS NULL ORDER BY id DESC LIMIT 1",
        });
        let select = async {
            let mut connection = pools.acquire(Access::Reads).await?;
            Ok(sqlx::query_as(statement).bind(last).fetch_all(&mut *connection).await?)
        };
        let changes = timeout(self.0.lookup_timeout, select).await.unwrap_or(Err(SqlError::Timeout));
        let mut changes: Vec<(i64, Option<String>)> = changes?;
        let newest = changes.last().map_or(0, |(id, _)| *id);
        match (changes.first(), last) {
            (Some((first, _)), Some(last)) if *first == last => {
                // Deleting a grant also deletes its tokens. Each of these is a change of the same grant.
                changes.dedup_by(|(_, this), (id, previous)| *id != last && this == previous);
                for (_, grant) in changes.drain(1..) {
                    reporter.report_now(grant.map_or(Invalidation::Added, |id| Invalidation::Grant(id.into())));
                }
            }
            // The table is still empty. Only another program empties it.
            (None, Some(0)) => {}
            _ => reporter.report_now(Invalidation::Everything),
        }
        Ok(newest)
    }
}

/// The wait before the next attempt to connect.
#[cfg(feature = "postgres")]
const RECONNECT: Duration = Duration::from_millis(500);

#[cfg(feature = "postgres")]
async fn listen<F: FnMut(Invalidation) + Send>(
    pool: &sqlx::PgPool,
    channel: &SqlStr,
    lookup_timeout: Duration,
    on_connection: impl FnOnce() + Send,
    reporter: &mut Reporter<F>,
) -> Result<Infallible, Box<dyn std::error::Error + Send + Sync>> {
    let began = Instant::now();
    let mut listener = timeout(lookup_timeout, PgListener::connect_with(pool)).await??;
    let left = lookup_timeout.saturating_sub(began.elapsed());
    let outcome = receive(&mut listener, channel, (left, lookup_timeout), on_connection, reporter).await;
    connections::close(listener);
    outcome
}

/// Listens until the connection is lost. The timeouts are those of the first query and of later ones.
#[cfg(feature = "postgres")]
async fn receive<F: FnMut(Invalidation) + Send>(
    listener: &mut PgListener,
    channel: &SqlStr,
    (left, lookup_timeout): (Duration, Duration),
    on_connection: impl FnOnce() + Send,
    reporter: &mut Reporter<F>,
) -> Result<Infallible, Box<dyn std::error::Error + Send + Sync>> {
    // Notifications during a reconnection would be lost. The caller starts again instead, and reports `Everything`.
    listener.eager_reconnect(false);
    let begin = async {
        let name: String = sqlx::query_scalar(channel.clone()).fetch_one(&mut *listener).await?;
        listener.listen(&name).await
    };
    timeout(left, begin).await??;
    on_connection();
    reporter.report_now(Invalidation::Everything);
    let interval = reporter.interval();
    let mut received = Instant::now();
    loop {
        let due = reporter.report_due().unwrap_or(interval);
        // A cancelled wait loses nothing: the connection keeps the received part of a message.
        match timeout(due.min(interval.saturating_sub(received.elapsed())), listener.try_recv()).await {
            Ok(Ok(Some(notification))) => {
                received = Instant::now();
                reporter.report(parse(notification.payload()));
            }
            Ok(Ok(None)) => return Err("the connection was closed".into()),
            Ok(Err(error)) => return Err(error.into()),
            // A merged change is due.
            Err(_) if received.elapsed() < interval => {}
            // No notification for a while: check that the connection works.
            Err(_) => {
                timeout(lookup_timeout, sqlx::query("SELECT 1").execute(&mut *listener)).await??;
                received = Instant::now();
            }
        }
    }
}

#[cfg(feature = "postgres")]
fn parse(payload: &str) -> Invalidation {
    match payload.strip_prefix("grant ") {
        Some(id) => Invalidation::Grant(id.into()),
        None if payload == "added" => Invalidation::Added,
        // May be from a newer version of this crate.
        None => Invalidation::Everything,
    }
}
