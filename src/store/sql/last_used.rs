//! The time of the last use of each grant and the location of its token, written in batches.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

#[cfg(feature = "postgres")]
use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use tokio::time::timeout;

#[cfg(feature = "sqlite")]
use super::database::Access;
use super::database::{Pool, unix_ms};
use super::{Database, SqlError};
use crate::grant::GrantId;
use crate::pending::answer::Answer;
use crate::store::{Lookup, TokenStore};
use crate::token::{BearerToken, TokenDigest, TokenLocation};

/// A recorder of the last use of each grant. Cheap to clone.
///
/// Records uses in memory with a resolution of one minute, and writes them to the rows of the grants in batches, outside of
/// requests. A use is a time and the [location](TokenLocation) of the token in that request. Uses since the last
/// [`flush`](Self::flush) are lost when the process is killed. Times in rows never decrease, even if several processes write them.
///
/// ```no_run
/// use std::time::Duration;
/// use tollgate::AuthLayer;
/// use tollgate::store::sql::{Database, LastUsed};
///
/// # fn example(database: &Database) {
/// let last_used = LastUsed::new(database);
/// // With a cache, wrap the cache, so that lookups that the cache answers are recorded.
/// let store = last_used.wrap(database.store::<()>());
/// let gate = AuthLayer::with_timeout(store, Duration::from_secs(2));
/// tokio::spawn(async move { last_used.run(Duration::from_secs(30)).await });
/// # let _ = gate;
/// # }
/// ```
#[derive(Clone)]
pub struct LastUsed(Arc<State>);

struct State {
    database: Database,
    /// Tokens that were recorded in this minute, so that most uses need no lock. A token whose entry was overwritten is
    /// recorded again, which is harmless.
    filter: Box<[AtomicU64]>,
    pending: Mutex<HashMap<GrantId, Use>>,
}

/// A use: the time in milliseconds, and the location of the token.
type Use = (i64, Option<TokenLocation>);

const FILTER: usize = 4_096;
const RESOLUTION_MS: i64 = 60_000;
/// The maximum number of rows of a statement. It bounds how long a statement holds its locks.
const BATCH: usize = 500;

#[cfg(feature = "sqlite")]
const SQLITE: &str = "UPDATE {p}grants SET last_used_ms = uses.used, last_used_location = uses.location \
    FROM (SELECT value ->> 0 AS id, value ->> 1 AS used, value ->> 2 AS location FROM json_each($1)) AS uses \
    WHERE {p}grants.id = uses.id AND (last_used_ms IS NULL OR last_used_ms < uses.used)";

/// One message of the simple protocol. The server runs and commits the message when it is complete. In the extended protocol,
/// the server would hold the locks until the message `Sync`, which the network may lose. The simple protocol has no
/// parameters, so the uses are sent as hexadecimal JSON.
///
/// Locked rows are skipped and returned. So the statement never waits for a lock while it holds others.
#[cfg(feature = "postgres")]
const POSTGRES: &str = "WITH uses AS (\
        SELECT item ->> 0 AS id, (item ->> 1)::bigint AS used, item ->> 2 AS location \
        FROM json_array_elements(convert_from(decode('{uses}', 'hex'), 'UTF8')::json) AS item\
    ), free AS (\
        SELECT g.id, uses.used, uses.location FROM {p}grants g JOIN uses ON uses.id = g.id \
        WHERE g.last_used_ms IS NULL OR g.last_used_ms < uses.used ORDER BY g.id \
        FOR NO KEY UPDATE OF g SKIP LOCKED\
    ), written AS (\
        UPDATE {p}grants g SET last_used_ms = free.used, last_used_location = free.location FROM free WHERE g.id = free.id RETURNING g.id\
    ) \
    SELECT uses.id FROM uses JOIN {p}grants g ON g.id = uses.id \
    WHERE (g.last_used_ms IS NULL OR g.last_used_ms < uses.used) AND uses.id NOT IN (SELECT id FROM written)";

impl LastUsed {
    /// Creates a recorder that writes to this database.
    #[must_use]
    pub fn new(database: &Database) -> Self {
        let filter = std::iter::repeat_with(AtomicU64::default).take(FILTER).collect();
        Self(Arc::new(State { database: database.clone(), filter, pending: Mutex::default() }))
    }

    /// Wraps a store. The returned store records a use of each valid grant that it finds.
    #[must_use]
    pub fn wrap<T: TokenStore>(&self, store: T) -> LastUsedStore<T> {
        LastUsedStore { store, last_used: self.clone() }
    }

    /// Writes the recorded uses, in statements of 500 rows. Returns the number of grants whose uses were processed.
    ///
    /// Each statement is its own transaction and never waits for a lock on a row. So neither a flush nor its loss on the network
    /// delays a revocation. Each statement has the timeout of a [lookup](Database::with_timeout).
    ///
    /// # Errors
    ///
    /// If the database fails. Unwritten uses are kept for the next flush. Uses of grants that another transaction locks are kept
    /// as well.
    pub async fn flush(&self) -> Result<usize, SqlError> {
        let uses = std::mem::take(&mut *self.pending()).into_iter().collect();
        let mut unwritten = Unwritten { uses, to: self };
        let mut written = 0;
        while !unwritten.uses.is_empty() {
            let rest = unwritten.uses.len().saturating_sub(BATCH);
            let locked = self.write(&unwritten.uses[rest..]).await?;
            for (id, used) in unwritten.uses.drain(rest..) {
                match locked.iter().any(|locked| *locked == id.as_str()) {
                    true => keep(&mut self.pending(), &id, used),
                    false => written += 1,
                }
            }
        }
        Ok(written)
    }

    /// Flushes at each interval. Never returns; run it in its own task. After a failure, the next flush writes the uses.
    pub async fn run(&self, interval: Duration) -> Infallible {
        loop {
            tokio::time::sleep(interval).await;
            _ = self.flush().await;
        }
    }

    /// Writes uses with one statement. Returns the ids of locked grants, whose uses were not written.
    async fn write(&self, uses: &[(GrantId, Use)]) -> Result<Vec<String>, SqlError> {
        let database = &self.0.database;
        let uses = uses.iter().map(|(id, (at, location))| (id.as_str(), *at, location.map(TokenLocation::as_str)));
        let uses: Vec<(&str, i64, Option<&str>)> = uses.collect();
        let uses = serde_json::to_string(&uses).map_err(|error| SqlError::Database(error.into()))?;
        let work = async {
            match &database.0.pool {
                #[cfg(feature = "sqlite")]
                Pool::Sqlite(pools) => {
                    let mut connection = pools.acquire(Access::Writes).await?;
                    sqlx::query(database.sql(SQLITE)).bind(uses).execute(&mut *connection).await?;
                    Ok(Vec::new())
                }
                #[cfg(feature = "postgres")]
                Pool::Postgres(connections) => {
                    use super::connections::{Work, statement_timeout};
                    let limit = statement_timeout(database.0.lookup_timeout);
                    let uses: String = uses.bytes().map(|byte| format!("{byte:02x}")).collect();
                    let script = database.sql(POSTGRES).as_str().replace("{uses}", &uses);
                    // The uses are hexadecimal digits.
                    let script = AssertSqlSafe(format!("SET LOCAL statement_timeout = {limit}; {script}"));
                    let mut held = connections.acquire(Work::Transaction).await?;
                    let locked = held.fetch_all(script).await.map_err(SqlError::from);
                    let locked =
                        locked.and_then(|rows| Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?));
                    held.end(locked)
                }
            }
        };
        timeout(database.0.lookup_timeout, work).await.unwrap_or(Err(SqlError::Timeout))
    }

    fn record(&self, id: &GrantId, token: Token, now_ms: i64) {
        let minute = u64::try_from(now_ms.div_euclid(RESOLUTION_MS)).unwrap_or(0);
        let bits = token.digest.shard_bits();
        let seen = (minute << 32) | (bits as u64 >> 12 & 0xffff_ffff);
        let entry = &self.0.filter[bits % FILTER];
        // No id in a database has a null character. PostgreSQL would reject the whole batch because of one.
        if entry.load(Ordering::Relaxed) != seen && !id.as_str().contains('\0') {
            entry.store(seen, Ordering::Relaxed);
            keep(&mut self.pending(), id, (now_ms, token.location));
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<GrantId, Use>> {
        // A panic leaves the map consistent: only whole entries are changed under this lock.
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a token that a pending lookup keeps.
#[derive(Clone, Copy)]
struct Token {
    digest: TokenDigest,
    location: Option<TokenLocation>,
}

impl Token {
    fn of(token: &BearerToken<'_>) -> Self {
        Self { digest: *token.digest(), location: token.location() }
    }
}

fn keep(pending: &mut HashMap<GrantId, Use>, id: &GrantId, used: Use) {
    match pending.get_mut(id) {
        Some(known) if known.0 >= used.0 => {}
        Some(known) => *known = used,
        None => _ = pending.insert(id.clone(), used),
    }
}

/// Uses that are being written. Unwritten ones are put back on drop, for example when the flush is cancelled.
struct Unwritten<'a> {
    uses: Vec<(GrantId, Use)>,
    to: &'a LastUsed,
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        if !self.uses.is_empty() {
            let mut pending = self.to.pending();
            for (id, used) in &self.uses {
                keep(&mut pending, id, *used);
            }
        }
    }
}

/// A store that records the last use of each grant. Created by [`LastUsed::wrap`].
#[derive(Clone, Debug)]
pub struct LastUsedStore<T> {
    store: T,
    last_used: LastUsed,
}

impl<T: TokenStore> TokenStore for LastUsedStore<T> {
    type Principal = T::Principal;
    type Error = T::Error;
    type Future = LastUsedStoreFuture<T::Future>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        match self.store.lookup(token) {
            Answer::Ready(found) => {
                self.last_used.found(&found, Token::of(token));
                Answer::Ready(found)
            }
            Answer::Pending(future) => {
                let last_used = self.last_used.clone();
                Answer::Pending(LastUsedStoreFuture { future, last_used, token: Token::of(token) })
            }
        }
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        self.store.is_cached(token)
    }
}

impl LastUsed {
    fn found<P, E>(&self, found: &Lookup<P, E>, token: Token) {
        if let Ok(Some(grant)) = found {
            let now = self.0.database.now();
            if grant.is_valid_at(now) {
                self.record(grant.id(), token, unix_ms(now));
            }
        }
    }
}

pin_project_lite::pin_project! {
    /// The future of [`LastUsedStore`].
    pub struct LastUsedStoreFuture<F> {
        #[pin]
        future: F,
        last_used: LastUsed,
        token: Token,
    }
}

impl<F, P, E> Future for LastUsedStoreFuture<F>
where
    F: Future<Output = Lookup<P, E>>,
{
    type Output = Lookup<P, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let found = ready!(this.future.poll(cx));
        this.last_used.found(&found, *this.token);
        Poll::Ready(found)
    }
}

impl fmt::Debug for LastUsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastUsed").field("pending", &self.pending().len()).finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for LastUsedStoreFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastUsedStoreFuture(..)")
    }
}
