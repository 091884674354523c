//! The connections to Redis.
//!
//! # Rules
//!
//! 1. Connections are made with the first charge. No server is needed to start.
//! 2. All charges share one connection (one per node of a cluster), and are pipelined.
//! 3. A connection that has failed, or did not reply in time, is not used again. The next charge makes a new one. Sentinels are
//!    then asked again for the master, and a cluster for its slots. The previous slots are used until the reply.
//! 4. A task makes the connection, within the connection timeout. A charge with a shorter timeout may fail or be dropped meanwhile.
//!    The next charge then uses that connection, or makes another.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::{Cmd, FromRedisValue, RedisError, RedisResult};
use tokio::sync::watch;

use super::cluster::{Cluster, Route};
use super::node::Node;
use super::server::{Kind, RedisServer};
use super::timeout::within;
use crate::pending::breaker::SharedState;

/// A connection for a charge, and the attempt to drop if the charge fails.
pub(super) struct Connection {
    pub(super) node: Node,
    pub(super) attempt: Arc<Attempt<Node>>,
    /// Present for a node of a cluster.
    pub(super) route: Option<Route>,
}

impl Connection {
    pub(super) async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        let done = self.node.query(command).await;
        match (done, self.route.is_some()) {
            (Err(error), true) => Box::pin(self.redirect(error, command)).await,
            (done, _) => done,
        }
    }
}

/// The connections of a limiter.
pub(super) struct Link {
    server: Arc<RedisServer>,
    one: Lazy<Node>,
    cluster: Option<Arc<Cluster>>,
}

impl Link {
    pub(super) fn new(server: RedisServer) -> Self {
        let cluster = match &server.kind {
            Kind::Cluster(seeds) => Some(Arc::new(Cluster::new(seeds.clone(), server.connection_timeout))),
            _ => None,
        };
        Self { server: Arc::new(server), one: Lazy::default(), cluster }
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// Returns the open connection to a single server. Returns `None` for a cluster, and if there is no open connection.
    pub(super) fn opened(&self) -> Option<Connection> {
        let attempt = self.one.current.load_full()?;
        let node = attempt.made.get()?.as_ref().ok()?.clone();
        Some(Connection { node, attempt, route: None })
    }

    /// Returns the connection to the server that has a key. Waits while the connection is being made.
    pub(super) async fn open(&self, key: &[u8]) -> RedisResult<Connection> {
        if let Some(cluster) = &self.cluster {
            return cluster.open(key).await;
        }
        let attempt = self.one.attempt(self.server.connection_timeout, || {
            let server = Arc::clone(&self.server);
            async move { server.connect().await }
        });
        Ok(Connection { node: attempt.done().await?, attempt, route: None })
    }

    /// Returns the state of the circuit breaker of the cluster node that has a key. Returns `None` for a single server, and while
    /// the slots are unknown.
    pub(super) fn breaker_of(&self, key: &[u8]) -> Option<Arc<SharedState>> {
        self.cluster.as_ref()?.breaker_of(key)
    }

    /// Returns the states of the circuit breakers of all nodes of a cluster that are in use.
    pub(super) fn breakers(&self) -> Vec<Arc<SharedState>> {
        self.cluster.as_ref().map_or_else(Vec::new, |cluster| cluster.breakers())
    }

    /// Requests the slots of a cluster again, since a node is unavailable and another one may have taken over its slots.
    pub(super) fn refresh_in_outage(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.refresh_in_outage();
        }
    }

    /// Handles a failed charge: its connection, if any, is not used again.
    pub(super) fn failed(&self, connection: Option<&Connection>) {
        match &self.cluster {
            Some(cluster) => cluster.failed(connection),
            None => connection.into_iter().for_each(|connection| self.one.clear_if(&connection.attempt)),
        }
    }
}

/// A shared value that is made on first use. Reading a value that is made takes no lock.
pub(super) struct Lazy<T> {
    current: ArcSwapOption<Attempt<T>>,
    /// Held while a task is started.
    start: Mutex<()>,
}

impl<T> Default for Lazy<T> {
    fn default() -> Self {
        Self { current: ArcSwapOption::empty(), start: Mutex::new(()) }
    }
}

/// A value that is made, or is being made by a task.
pub(super) struct Attempt<T> {
    made: OnceLock<RedisResult<T>>,
    /// The task holds the sender, so waiting charges wake up only when the task has ended.
    end: watch::Receiver<()>,
}

impl<T: Clone + Send + Sync + 'static> Lazy<T> {
    /// Returns the current value or attempt. If there is none, starts a task that makes the value within `limit`.
    pub(super) fn attempt<F>(&self, limit: Duration, make: impl FnOnce() -> F) -> Arc<Attempt<T>>
    where
        F: Future<Output = RedisResult<T>> + Send + 'static,
    {
        let current = || self.current.load_full().filter(|attempt| !attempt.has_failed());
        if let Some(attempt) = current() {
            return attempt;
        }
        // A poisoned lock is usable: it protects no data.
        let _start = self.start.lock().unwrap_or_else(PoisonError::into_inner);
        current().unwrap_or_else(|| {
            let (task, end) = watch::channel(());
            let attempt = Arc::new(Attempt { made: OnceLock::new(), end });
            let (made, make) = (Arc::clone(&attempt), make());
            tokio::spawn(async move {
                let done = within(limit, pin!(make)).await;
                let done = done.unwrap_or_else(|| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
                // Never an error: only this task sets the value.
                _ = made.made.set(done);
                drop(task);
            });
            self.current.store(Some(Arc::clone(&attempt)));
            attempt
        })
    }

    /// Drops this value, if it is still the current one. A pending attempt stays: a charge may have a shorter timeout.
    pub(super) fn clear_if(&self, failed: &Arc<Attempt<T>>) {
        if failed.is_over() {
            self.current.compare_and_swap(failed, None);
        }
    }

    /// Drops the current value. A pending attempt stays.
    pub(super) fn clear(&self) {
        if let Some(attempt) = self.current.load_full() {
            self.clear_if(&attempt);
        }
    }
}

impl<T: Clone> Attempt<T> {
    /// Waits until the value is made.
    pub(super) async fn done(&self) -> RedisResult<T> {
        if self.made.get().is_none() {
            // Nothing is sent, so this waits for the end of the task.
            _ = self.end.clone().changed().await;
        }
        self.made.get().cloned().unwrap_or_else(|| Err(gone()))
    }

    fn is_over(&self) -> bool {
        self.made.get().is_some() || self.has_failed()
    }

    fn has_failed(&self) -> bool {
        let has_failed = |made: &RedisResult<T>| made.is_err();
        self.made.get().map_or_else(
            // The task may have ended without a result: its runtime ended, or it panicked.
            || self.end.has_changed().is_err() && self.made.get().is_none_or(has_failed),
            has_failed,
        )
    }
}

fn gone() -> RedisError {
    io::Error::from(io::ErrorKind::ConnectionAborted).into()
}

impl RedisServer {
    /// Connects to the single server, or to the master that Sentinels name.
    pub(super) async fn connect(&self) -> RedisResult<Node> {
        match &self.kind {
            Kind::Single(endpoint) => Node::connect(endpoint).await,
            Kind::Sentinel(sentinels) => sentinels.connect().await,
            // A cluster has several connections, see `cluster.rs`.
            Kind::Cluster(_) => {
                Err((redis::ErrorKind::InvalidClientConfig, "a cluster has no single connection").into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::FutureExt as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
    }

    #[test]
    fn concurrent_first_uses_share_one_attempt() {
        let (lazy, made) = (Arc::new(Lazy::default()), Arc::new(AtomicU32::new(0)));
        runtime().block_on(async {
            let uses = (0..64).map(|_| {
                let (lazy, made) = (Arc::clone(&lazy), Arc::clone(&made));
                tokio::spawn(async move {
                    let make = || async move {
                        tokio::task::yield_now().await;
                        Ok(made.fetch_add(1, Ordering::Relaxed))
                    };
                    lazy.attempt(LONG, make).done().await.unwrap()
                })
            });
            for used in uses.collect::<Vec<_>>() {
                assert_eq!(used.await.unwrap(), 0);
            }
        });
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_value_that_is_made_is_read_without_a_lock() {
        let lazy = Lazy::default();
        let make = || async { Ok(1) };
        runtime().block_on(async {
            assert_eq!(lazy.attempt(LONG, make).done().await.unwrap(), 1);
            let _lock = lazy.start.lock().unwrap();
            assert_eq!(lazy.attempt(LONG, make).done().now_or_never().unwrap().unwrap(), 1);
        });
    }

    #[test]
    fn a_failed_attempt_is_replaced_once() {
        let slow = || async {
            tokio::time::sleep(LONG).await;
            Ok(0)
        };
        let failures: [fn() -> RedisResult<u32>; 2] = [|| Err(gone()), || panic!("intended")];
        runtime().block_on(async {
            for fail in failures {
                let lazy = Lazy::default();
                let first = lazy.attempt(LONG, || async move { fail() });
                assert!(first.done().await.is_err() && first.done().await.is_err());
                let second = lazy.attempt(LONG, || async { Ok(2) });
                assert_eq!(second.done().await.unwrap(), 2);
                // Charges that fail later, with the connection that was replaced, do not drop the new one.
                lazy.clear_if(&first);
                assert!(Arc::ptr_eq(&lazy.attempt(LONG, || async { Ok(3) }), &second));
                lazy.clear_if(&second);
                assert_eq!(lazy.attempt(LONG, || async { Ok(4) }).done().await.unwrap(), 4);
                lazy.clear();
                assert_eq!(lazy.attempt(LONG, || async { Ok(5) }).done().await.unwrap(), 5);
            }
            // An attempt that takes too long fails. Until then it stays.
            let lazy = Lazy::default();
            let pending = lazy.attempt(Duration::from_millis(40), slow);
            lazy.clear();
            lazy.clear_if(&pending);
            assert!(Arc::ptr_eq(&lazy.attempt(LONG, slow), &pending));
            assert!(pending.done().await.is_err());
            assert!(!Arc::ptr_eq(&lazy.attempt(LONG, slow), &pending));
        });
    }
}
