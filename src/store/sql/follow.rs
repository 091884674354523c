use std::convert::Infallible;
use std::time::Duration;

use super::Database;
#[cfg(feature = "sqlite")]
use super::SqlError;
use super::database::Pool;
use crate::store::Change;

impl Database {
    /// Tells what is changed in the tables, by whichever process, for ever: for a task of its own, in front of a cache.
    ///
    /// ```no_run
    /// # #[cfg(feature = "cache")]
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use tollgate::store::CachedStore;
    /// use tollgate::store::sql::Database;
    ///
    /// let database = Database::connect("postgres://127.0.0.1/acme").await?;
    /// let cache = CachedStore::new(database.store::<()>(), Duration::from_secs(60))?;
    /// let told = cache.clone();
    /// tokio::spawn(async move { database.follow(Duration::from_secs(5), move |change| told.invalidate(&change)).await });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # How late
    ///
    /// | | a change is told after |
    /// |---|---|
    /// | SQLite | at most `interval`, and the time of one small query: a counter is read so often |
    /// | PostgreSQL, connected | the time that the server's `NOTIFY` takes |
    /// | PostgreSQL, connection lost | at most `interval` and one [deadline](Database::with_deadline) until that is noticed, then as soon as it is connected again |
    ///
    /// PostgreSQL forgets what was told while nobody listened, so that [`Change::Everything`] is told whenever listening
    /// begins, first of all at the first time. Until then a cache answers what it remembers, for as long as it was told to:
    /// while the database cannot be reached, the worst delay of a revocation is the cache's own.
    pub async fn follow(&self, interval: Duration, mut on_change: impl FnMut(Change) + Send) -> Infallible {
        match &self.0.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => {
                let mut last = None;
                loop {
                    // A failure shows itself in look-ups, and the counters wait.
                    if let Ok(now) = self.counters().await {
                        match last {
                            Some((_, changed)) if changed != now.1 => on_change(Change::Everything),
                            Some((added, _)) if added != now.0 => on_change(Change::Added),
                            Some(_) => {}
                            None => on_change(Change::Everything),
                        }
                        last = Some(now);
                    }
                    tokio::time::sleep(interval).await;
                }
            }
            #[cfg(feature = "postgres")]
            Pool::Postgres(pool) => {
                let channel =
                    self.sql("SELECT '{p}changes_' || relnamespace FROM pg_class WHERE oid = '{p}grants'::regclass");
                loop {
                    // Ends when the connection does.
                    _ = listen(&pool.current(), &channel, interval, self.0.deadline, &mut on_change).await;
                    tokio::time::sleep(interval.min(RECONNECT)).await;
                }
            }
        }
    }

    /// How many tokens were added, and how many changes there were.
    #[cfg(feature = "sqlite")]
    async fn counters(&self) -> Result<(i64, i64), SqlError> {
        let statement = self.sql("SELECT added, changed FROM {p}changes");
        super::database::on_pool!(self, pool => Ok(sqlx::query_as(&statement).fetch_one(pool).await?))
    }
}

/// How long to wait before one connects again.
#[cfg(feature = "postgres")]
const RECONNECT: Duration = Duration::from_millis(500);

#[cfg(feature = "postgres")]
async fn listen(
    pool: &sqlx::PgPool,
    channel: &str,
    interval: Duration,
    deadline: Duration,
    on_change: &mut (impl FnMut(Change) + Send),
) -> Result<Infallible, Box<dyn std::error::Error + Send + Sync>> {
    use sqlx::postgres::{PgListener, PgPoolOptions};
    use tokio::time::timeout;

    // A connection of its own: it must not wait for one of those that look-ups use.
    let own = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None).acquire_timeout(deadline);
    let own = own.connect_lazy_with((*pool.connect_options()).clone());
    let begin = async {
        let mut listener = PgListener::connect_with(&own).await?;
        // What was told in between would be lost: the caller begins anew.
        listener.eager_reconnect(false);
        let name: String = sqlx::query_scalar(channel).fetch_one(&mut listener).await?;
        listener.listen(&name).await?;
        Ok::<_, sqlx::Error>(listener)
    };
    let mut listener = timeout(deadline, begin).await??;
    on_change(Change::Everything);
    loop {
        // A wait that is cut short loses nothing: what has come of a message stays with the connection.
        match timeout(interval, listener.try_recv()).await {
            Ok(Ok(Some(told))) => on_change(read(told.payload())),
            Ok(Ok(None)) => return Err("the connection was closed".into()),
            Ok(Err(error)) => return Err(error.into()),
            // Nothing was told for a while: does the server live? A connection that is dead says nothing either.
            Err(_) => _ = timeout(deadline, sqlx::query("SELECT 1").execute(&mut listener)).await??,
        }
    }
}

#[cfg(feature = "postgres")]
fn read(payload: &str) -> Change {
    match payload.strip_prefix("grant ") {
        Some(id) => Change::Grant(id.into()),
        None if payload == "added" => Change::Added,
        // Of a newer version, perhaps.
        None => Change::Everything,
    }
}
