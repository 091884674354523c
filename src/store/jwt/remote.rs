//! [`RemoteKeys`]: the keys of a URL, fetched by one task at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{StatusCode, header};
use reqwest::{Client, Url};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::algorithm::JwtAlgorithm;
use super::error::Cause;
use super::keys::{Key, KeySet};
use crate::quota::clock::Time;
use crate::rejection::store_error::StoreError;
use crate::store::client;

/// The keys of a URL.
pub(super) struct RemoteKeys {
    pub(super) client: Client,
    pub(super) url: Url,
    pub(super) max_answer: usize,
    pub(super) algorithms: Vec<JwtAlgorithm>,
    /// The minimum time from the start of one fetch to the start of the next.
    pub(super) min_interval: Duration,
    /// The age after which keys are fetched again.
    pub(super) max_age: Duration,
    pub(super) time: Time,
    /// The last keys that were fetched. An outage keeps them.
    pub(super) keys: ArcSwapOption<Fetched>,
    pub(super) fetches: Mutex<Fetches>,
    /// The number of completed fetches, for the lookups that wait for one.
    pub(super) completed: watch::Sender<u64>,
}

pub(super) struct Fetched {
    keys: KeySet,
    at: Duration,
}

#[derive(Default)]
pub(super) struct Fetches {
    is_running: bool,
    last_start: Option<Duration>,
    /// The start and the error of the last fetch, if it has failed.
    failure: Option<(Duration, StoreError)>,
}

impl RemoteKeys {
    /// Returns the key of a token. Waits for a fetch if the key is unknown or very old, and a fetch is allowed.
    pub(super) async fn find(
        self: &Arc<Self>,
        algorithm: JwtAlgorithm,
        kid: Option<&str>,
    ) -> Result<Option<Arc<Key>>, StoreError> {
        if let Some(key) = self.known(algorithm, kid) {
            let age = self.keys.load().as_ref().map_or(Duration::ZERO, |keys| self.now().saturating_sub(keys.at));
            if age < self.max_age {
                return Ok(Some(key));
            }
            // After a time without requests, the issuer may have removed the key long ago. During an outage, requests do not wait.
            let is_very_old = age >= self.max_age.saturating_mul(2);
            if !is_very_old || self.has_failed_recently() {
                self.start();
                return Ok(Some(key));
            }
        }
        self.fetch_and_wait().await;
        match self.known(algorithm, kid) {
            Some(key) => Ok(Some(key)),
            None => self.last_result().map(|()| None),
        }
    }

    fn has_failed_recently(&self) -> bool {
        let now = self.now();
        self.fetches().failure.as_ref().is_some_and(|(start, _)| now.saturating_sub(*start) < self.max_age)
    }

    /// Returns the key that has replaced this one. Waits for a fetch if one is allowed.
    pub(super) async fn successor(
        self: &Arc<Self>,
        key: &Arc<Key>,
        algorithm: JwtAlgorithm,
        kid: Option<&str>,
    ) -> Option<Arc<Key>> {
        self.fetch_and_wait().await;
        self.known(algorithm, kid).filter(|found| !Arc::ptr_eq(found, key))
    }

    /// Waits for a fetch, unless none is running and none is allowed.
    async fn fetch_and_wait(self: &Arc<Self>) {
        // Subscribe first, so that no completion is missed.
        let mut completed = self.completed.subscribe();
        if self.start() {
            // The sender is in `self`, so it exists.
            _ = completed.changed().await;
        }
    }

    fn known(&self, algorithm: JwtAlgorithm, kid: Option<&str>) -> Option<Arc<Key>> {
        self.keys.load().as_ref()?.keys.find(algorithm, kid).cloned()
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.time.now_ns())
    }

    /// Starts a fetch, unless one is running or the last one started too recently. Returns whether one is running.
    ///
    /// A task of its own fetches the keys. Otherwise clients could prevent every fetch, by requests that they cancel.
    fn start(self: &Arc<Self>) -> bool {
        let now = self.now();
        let mut fetches = self.fetches();
        if fetches.is_running {
            return true;
        }
        if fetches.last_start.is_some_and(|start| now.saturating_sub(start) < self.min_interval) {
            return false;
        }
        let Ok(runtime) = Handle::try_current() else {
            fetches.failure = Some((now, Cause::Interrupted.into()));
            return false;
        };
        fetches.is_running = true;
        fetches.last_start = Some(now);
        drop(fetches);
        let running = Running { keys: Arc::clone(self), start: now, result: Err(Cause::Interrupted.into()) };
        runtime.spawn(running.run());
        true
    }

    async fn fetch(&self) -> Result<KeySet, Cause> {
        let request =
            self.client.get(self.url.clone()).header(header::ACCEPT, "application/jwk-set+json, application/json");
        let answer = request.send().await.map_err(client::BodyError::from)?;
        if answer.status() != StatusCode::OK {
            return Err(Cause::Status(answer.status()));
        }
        let json = client::body(answer, self.max_answer).await?;
        KeySet::from_json(&json, &self.algorithms).map_err(Cause::Keys)
    }

    /// Returns the error of the last fetch, with the time until the next one is allowed.
    fn last_result(&self) -> Result<(), StoreError> {
        let now = self.now();
        let fetches = self.fetches();
        let Some((_, error)) = fetches.failure.clone() else { return Ok(()) };
        // Clients choose the `kid`. Before the first fetch, no token can be checked.
        let error = if self.keys.load().is_some() { StoreError::for_token(error) } else { error };
        let since = fetches.last_start.map_or(self.min_interval, |start| now.saturating_sub(start));
        Err(error.with_retry_after(self.min_interval.saturating_sub(since).max(Duration::from_secs(1))))
    }

    fn fetches(&self) -> MutexGuard<'_, Fetches> {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running fetch. Dropping it, also in a panic or with its runtime, ends the fetch and wakes the lookups that wait.
struct Running {
    keys: Arc<RemoteKeys>,
    start: Duration,
    result: Result<(), StoreError>,
}

impl Running {
    async fn run(mut self) {
        self.result = match self.keys.fetch().await {
            Ok(keys) => {
                // The age counts from the start, because the time at which the server read the keys is not known.
                self.keys.keys.store(Some(Arc::new(Fetched { keys, at: self.start })));
                Ok(())
            }
            Err(cause) => Err(cause.into()),
        };
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut fetches = self.keys.fetches();
        fetches.is_running = false;
        let result = std::mem::replace(&mut self.result, Ok(()));
        fetches.failure = result.err().map(|error| (self.start, error));
        drop(fetches);
        self.keys.completed.send_modify(|completed| *completed = completed.wrapping_add(1));
    }
}
