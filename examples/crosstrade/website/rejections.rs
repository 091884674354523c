//! The recent rejections of each grant, by reason. Replicas add to the same rows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tollgate::{GrantId, Rejection};

use super::error::PageError;
use super::pool::{DAY, Pool, from_unix_ms, unix_ms};

/// The interval at which counts are written.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);
const HOUR_MS: i64 = 3_600_000;
/// The maximum number of counts that wait to be written. Further rejections are not counted.
const MAX_WAITING: usize = 10_000;

/// The grant, the reason and the hour of rejections.
pub(crate) type Key = (GrantId, &'static str, i64);

/// Counts rejections in memory and writes them to the database.
#[derive(Clone)]
pub(crate) struct Rejections {
    pool: Pool,
    wall: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    waiting: Arc<Mutex<HashMap<Key, Count>>>,
}

#[derive(Clone, Copy)]
pub(crate) struct Count {
    pub(crate) count: i64,
    last_ms: i64,
}

/// The rejections of a grant for one reason, in the last day.
pub(crate) struct Recent {
    pub(crate) kind: String,
    pub(crate) count: i64,
    pub(crate) last: SystemTime,
}

impl Rejections {
    pub(crate) fn new(pool: Pool, wall: Arc<dyn Fn() -> SystemTime + Send + Sync>) -> Self {
        Self { pool, wall, waiting: Arc::default() }
    }

    /// Counts a rejection whose grant is known. Rejections of unknown tokens belong to no user.
    pub(crate) fn count(&self, rejection: &Rejection) {
        let Some(grant) = rejection.grant() else { return };
        let now = unix_ms((self.wall)());
        self.add((grant.clone(), rejection.kind().as_str(), now - now % HOUR_MS), Count { count: 1, last_ms: now });
    }

    fn add(&self, key: Key, more: Count) {
        let mut waiting = self.waiting();
        if waiting.len() >= MAX_WAITING && !waiting.contains_key(&key) {
            return;
        }
        let count = waiting.entry(key).or_insert(Count { count: 0, last_ms: 0 });
        *count = Count { count: count.count + more.count, last_ms: count.last_ms.max(more.last_ms) };
    }

    /// Writes the counts at an interval. Counts that cannot be written wait for the next time. A count is written twice if the
    /// database confirms it too late.
    pub(crate) async fn run(self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            if let Err(error) = self.flush().await {
                tracing::warn!(%error, "cannot write the counts of rejections");
            }
        }
    }

    pub(crate) async fn flush(&self) -> Result<(), PageError> {
        let mut waiting = std::mem::take(&mut *self.waiting()).into_iter();
        while let Some((key, count)) = waiting.next() {
            if let Err(error) = self.write(&key, count).await {
                std::iter::once((key, count)).chain(waiting).for_each(|(key, count)| self.add(key, count));
                return Err(error);
            }
        }
        Ok(())
    }

    async fn write(&self, (grant, kind, hour_ms): &Key, Count { count, last_ms }: Count) -> Result<(), PageError> {
        let add =
            "INSERT INTO crosstrade_rejections (grant_id, kind, hour_ms, last_ms, count) VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT (grant_id, kind, hour_ms) DO UPDATE SET count = crosstrade_rejections.count + $5,
            last_ms = CASE WHEN crosstrade_rejections.last_ms > $4 THEN crosstrade_rejections.last_ms ELSE $4 END";
        let add = sqlx::query(add).bind(grant.as_str()).bind(*kind).bind(*hour_ms).bind(last_ms).bind(count);
        self.pool.execute(add).await?;
        Ok(())
    }

    pub(crate) fn waiting(&self) -> MutexGuard<'_, HashMap<Key, Count>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the rejections of a grant in the last day, most frequent first.
    pub(crate) async fn of(&self, grant: &GrantId) -> Result<Vec<Recent>, PageError> {
        let since = unix_ms((self.wall)() - DAY);
        let list = "SELECT kind, CAST(SUM(count) AS BIGINT), MAX(last_ms) FROM crosstrade_rejections
            WHERE grant_id = $1 AND last_ms > $2 GROUP BY kind ORDER BY 2 DESC, 1";
        let list = sqlx::query_as(list).bind(grant.as_str()).bind(since);
        let rows: Vec<(String, i64, i64)> = self.pool.fetch_all(list).await?;
        Ok(rows.into_iter().map(|(kind, count, last)| Recent { kind, count, last: from_unix_ms(last) }).collect())
    }
}

/// Counts the rejections of all gates and handlers behind this middleware.
pub(crate) async fn count(State(rejections): State<Rejections>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if let Some(rejection) = response.extensions().get::<Rejection>() {
        rejections.count(rejection);
    }
    response
}
