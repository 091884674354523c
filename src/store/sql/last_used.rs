use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

#[cfg(feature = "postgres")]
use sqlx::{Executor as _, Row as _};
use tokio::time::timeout;

use super::database::{Pool, unix_ms};
use super::{Database, SqlError};
use crate::grant::GrantId;
use crate::pending::answer::Answer;
use crate::store::{Lookup, TokenStore};
use crate::token::{BearerToken, TokenDigest};

/// Notes when grants are used, and writes it to their rows in batches, off the road of requests. Cheap to clone.
///
/// A use is noted to the minute, in memory. What was noted since the last [`flush`](Self::flush) is lost when the process is
/// killed. Rows only ever move forward, whichever process writes them.
///
/// ```no_run
/// use std::time::Duration;
/// use tollgate::AuthLayer;
/// use tollgate::store::sql::{Database, LastUsed};
///
/// # fn example(database: &Database) {
/// let last_used = LastUsed::new(database);
/// // Outside of a cache, so that what the cache answers is noted too.
/// let store = last_used.note(database.store::<()>());
/// let gate = AuthLayer::with_timeout(store, Duration::from_secs(2));
/// tokio::spawn(async move { last_used.run(Duration::from_secs(30)).await });
/// # let _ = gate;
/// # }
/// ```
#[derive(Clone)]
pub struct LastUsed(Arc<Notes>);

struct Notes {
    database: Database,
    /// Which tokens were noted in this minute, so that most uses end here, without a lock. Whatever is pushed out of its
    /// place is noted once more, which is harmless.
    filter: Box<[AtomicU64]>,
    pending: Mutex<HashMap<GrantId, i64>>,
}

const FILTER: usize = 4_096;
const RESOLUTION_MS: i64 = 60_000;
/// Rows of a statement, so that none holds its locks for long.
const BATCH: usize = 500;

#[cfg(feature = "sqlite")]
const SQLITE: &str = "UPDATE {p}grants SET last_used_ms = notes.used \
    FROM (SELECT value ->> 0 AS id, value ->> 1 AS used FROM json_each($1)) AS notes \
    WHERE {p}grants.id = notes.id AND (last_used_ms IS NULL OR last_used_ms < notes.used)";

/// One message of the simple protocol, which the server runs and commits when it has come whole. In the extended protocol the
/// locks are held until another message comes, `Sync`, which the network may lose. The simple protocol has no parameters: the
/// notes come as the hexadecimal digits of their JSON.
///
/// Rows that are locked are skipped instead of waited for, so that no locks are held meanwhile, and returned.
#[cfg(feature = "postgres")]
const POSTGRES: &str = "WITH notes AS (\
        SELECT note ->> 0 AS id, (note ->> 1)::bigint AS used \
        FROM json_array_elements(convert_from(decode('{notes}', 'hex'), 'UTF8')::json) AS note\
    ), free AS (\
        SELECT g.id, notes.used FROM {p}grants g JOIN notes ON notes.id = g.id \
        WHERE g.last_used_ms IS NULL OR g.last_used_ms < notes.used ORDER BY g.id \
        FOR NO KEY UPDATE OF g SKIP LOCKED\
    ), written AS (\
        UPDATE {p}grants g SET last_used_ms = free.used FROM free WHERE g.id = free.id RETURNING g.id\
    ) \
    SELECT notes.id FROM notes JOIN {p}grants g ON g.id = notes.id \
    WHERE (g.last_used_ms IS NULL OR g.last_used_ms < notes.used) AND notes.id NOT IN (SELECT id FROM written)";

impl LastUsed {
    /// Nothing is noted yet.
    #[must_use]
    pub fn new(database: &Database) -> Self {
        let filter = std::iter::repeat_with(AtomicU64::default).take(FILTER).collect();
        Self(Arc::new(Notes { database: database.clone(), filter, pending: Mutex::default() }))
    }

    /// The same store, of which every grant that is found and valid is noted.
    #[must_use]
    pub fn note<T: TokenStore>(&self, store: T) -> LastUsedStore<T> {
        LastUsedStore { store, notes: self.clone() }
    }

    /// Writes the notes, in statements of 500 rows. Returns the number of grants whose notes were processed.
    ///
    /// Each statement commits by itself and never waits for a lock on a row, so that neither a flush nor its loss on the network
    /// holds up a revocation. Each has the timeout of a [lookup](Database::with_deadline).
    ///
    /// # Errors
    ///
    /// If the database fails. What was not written is kept for the next time, as are notes of grants that another transaction
    /// holds a lock on.
    pub async fn flush(&self) -> Result<usize, SqlError> {
        let notes = std::mem::take(&mut *self.pending()).into_iter().collect();
        let mut unwritten = Unwritten { notes, to: self };
        let mut written = 0;
        while !unwritten.notes.is_empty() {
            let rest = unwritten.notes.len().saturating_sub(BATCH);
            let locked = self.write(&unwritten.notes[rest..]).await?;
            for (id, used) in unwritten.notes.drain(rest..) {
                match locked.iter().any(|locked| *locked == id.as_str()) {
                    true => keep(&mut self.pending(), &id, used),
                    false => written += 1,
                }
            }
        }
        Ok(written)
    }

    /// Writes the notes at each interval, forever: for a task of its own. After a failure the next flush writes them.
    pub async fn run(&self, interval: Duration) -> Infallible {
        loop {
            tokio::time::sleep(interval).await;
            _ = self.flush().await;
        }
    }

    /// Writes notes by one statement. Returns the ids of grants that are locked, whose notes were not written.
    async fn write(&self, notes: &[(GrantId, i64)]) -> Result<Vec<String>, SqlError> {
        let database = &self.0.database;
        let notes: Vec<(&str, i64)> = notes.iter().map(|(id, used)| (id.as_str(), *used)).collect();
        let notes = serde_json::to_string(&notes).map_err(|error| SqlError::Database(error.into()))?;
        let work = async {
            match &database.0.pool {
                #[cfg(feature = "sqlite")]
                Pool::Sqlite(pool) => {
                    sqlx::query(&database.sql(SQLITE)).bind(notes).execute(pool).await?;
                    Ok(Vec::new())
                }
                #[cfg(feature = "postgres")]
                Pool::Postgres(connections) => {
                    use super::connections::{Work, statement_timeout};
                    let limit = statement_timeout(database.0.deadline);
                    let notes: String = notes.bytes().map(|byte| format!("{byte:02x}")).collect();
                    let script = format!("SET LOCAL statement_timeout = {limit}; ") + &database.sql(POSTGRES);
                    let mut held = connections.acquire(Work::Writing).await?;
                    let locked = held.fetch_all(&*script.replace("{notes}", &notes)).await.map_err(SqlError::from);
                    let locked =
                        locked.and_then(|rows| Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?));
                    held.end(locked)
                }
            }
        };
        timeout(database.0.deadline, work).await.unwrap_or(Err(SqlError::Deadline))
    }

    fn used(&self, id: &GrantId, digest: &TokenDigest, now_ms: i64) {
        let minute = u64::try_from(now_ms.div_euclid(RESOLUTION_MS)).unwrap_or(0);
        let bits = digest.shard_bits();
        let seen = (minute << 32) | (bits as u64 >> 12 & 0xffff_ffff);
        let place = &self.0.filter[bits % FILTER];
        // No database has an id with a null character, and PostgreSQL would refuse all notes because of one.
        if place.load(Ordering::Relaxed) != seen && !id.as_str().contains('\0') {
            place.store(seen, Ordering::Relaxed);
            keep(&mut self.pending(), id, now_ms);
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<GrantId, i64>> {
        // Under this lock only whole entries are changed.
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keep(pending: &mut HashMap<GrantId, i64>, id: &GrantId, used: i64) {
    match pending.get_mut(id) {
        Some(known) => *known = used.max(*known),
        None => _ = pending.insert(id.clone(), used),
    }
}

/// What was taken to be written goes back if it is not, also when the writing is dropped.
struct Unwritten<'a> {
    notes: Vec<(GrantId, i64)>,
    to: &'a LastUsed,
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        if !self.notes.is_empty() {
            let mut pending = self.to.pending();
            for (id, used) in &self.notes {
                keep(&mut pending, id, *used);
            }
        }
    }
}

/// A store whose grants are noted when they are used, by [`LastUsed::note`].
#[derive(Clone, Debug)]
pub struct LastUsedStore<T> {
    store: T,
    notes: LastUsed,
}

impl<T: TokenStore> TokenStore for LastUsedStore<T> {
    type Principal = T::Principal;
    type Error = T::Error;
    type Future = LastUsedStoreFuture<T::Future>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        match self.store.lookup(token) {
            Answer::Ready(found) => {
                self.notes.found(&found, token.digest());
                Answer::Ready(found)
            }
            Answer::Pending(future) => {
                Answer::Pending(LastUsedStoreFuture { future, notes: self.notes.clone(), digest: *token.digest() })
            }
        }
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        self.store.is_cached(token)
    }
}

impl LastUsed {
    fn found<P, E>(&self, found: &Lookup<P, E>, digest: &TokenDigest) {
        if let Ok(Some(grant)) = found {
            let now = self.0.database.now();
            if grant.is_valid_at(now) {
                self.used(grant.id(), digest, unix_ms(now));
            }
        }
    }
}

pin_project_lite::pin_project! {
    /// The future of [`LastUsedStore`].
    pub struct LastUsedStoreFuture<F> {
        #[pin]
        future: F,
        notes: LastUsed,
        digest: TokenDigest,
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
        this.notes.found(&found, this.digest);
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
