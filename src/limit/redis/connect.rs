//! The connections to Redis.
//!
//! # Rules
//!
//! 1. Connections are made with the first charge. No server is needed to start.
//! 2. All charges share one connection (one per node of a cluster), and are pipelined.
//! 3. A connection that has failed, or did not reply in time, is not used again. The next charge makes a new one. Sentinels are
//!    then asked again for the master, and a cluster for its slots.
//! 4. A task makes the connection, within the connection timeout. A charge with a shorter timeout may fail or be dropped meanwhile.
//!    The next charge then uses that connection, or makes another.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{Cmd, FromRedisValue, RedisError, RedisResult};
use tokio::sync::watch;

use super::cluster::{Cluster, Route};
use super::node::Node;
use super::server::{Kind, RedisServer};
use super::timeout::within;

/// A connection for a charge, and the attempt to drop if the charge fails.
pub(super) struct Connection {
    pub(super) node: Node,
    pub(super) attempt: Attempt<Node>,
    /// Present for a node of a cluster.
    pub(super) route: Option<Route>,
}

impl Connection {
    pub(super) async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        let done = self.node.query(command).await;
        match (done, self.route.is_some()) {
            (Err(error), true) => self.redirect(error, command).await,
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

    /// Returns the connection to the server that has a key. Waits while the connection is being made.
    pub(super) async fn open(&self, key: &[u8]) -> RedisResult<Connection> {
        if let Some(cluster) = &self.cluster {
            return cluster.open(key).await;
        }
        let server = Arc::clone(&self.server);
        let mut attempt = self.one.attempt(server.connection_timeout, async move { server.connect().await });
        Ok(Connection { node: attempt.done().await?, attempt, route: None })
    }

    /// Handles a failed charge: its connection, if any, is not used again.
    pub(super) fn failed(&self, connection: Option<&Connection>) {
        match &self.cluster {
            Some(cluster) => cluster.failed(connection),
            None => connection.into_iter().for_each(|connection| self.one.clear_if(&connection.attempt)),
        }
    }
}

/// A shared value that is made on first use.
pub(super) struct Lazy<T>(Mutex<Option<Attempt<T>>>);

impl<T> Default for Lazy<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

/// A value that is made, or is being made by a task.
///
/// The task holds the sender, so waiting charges wake up only when the task has ended.
#[derive(Clone)]
pub(super) struct Attempt<T>(watch::Receiver<Option<RedisResult<T>>>);

impl<T: Clone + Send + Sync + 'static> Lazy<T> {
    /// Returns the current value or attempt. If there is none, starts a task that makes the value within `limit`.
    pub(super) fn attempt(
        &self,
        limit: Duration,
        make: impl Future<Output = RedisResult<T>> + Send + 'static,
    ) -> Attempt<T> {
        let mut current = self.lock();
        if let Some(attempt) = current.as_ref().filter(|attempt| !attempt.has_failed()) {
            return attempt.clone();
        }
        let (made, attempt) = watch::channel(None);
        tokio::spawn(async move {
            let done = within(limit, make).await;
            made.send_replace(Some(done.unwrap_or_else(|| Err(io::Error::from(io::ErrorKind::TimedOut).into()))));
        });
        current.insert(Attempt(attempt)).clone()
    }

    /// Drops this value, if it is still the current one. A pending attempt stays: a charge may have a shorter timeout.
    pub(super) fn clear_if(&self, failed: &Attempt<T>) {
        self.lock().take_if(|attempt| attempt.0.same_channel(&failed.0) && attempt.is_over());
    }

    /// Drops the current value. A pending attempt stays.
    pub(super) fn clear(&self) {
        self.lock().take_if(|attempt| attempt.is_over());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Attempt<T>>> {
        // A poisoned lock is usable: only whole values are moved under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Attempt<T> {
    /// Waits until the value is made.
    pub(super) async fn done(&mut self) -> RedisResult<T> {
        match self.0.wait_for(Option::is_some).await {
            Ok(made) => made.clone().unwrap_or_else(|| Err(gone())),
            Err(_) => Err(gone()),
        }
    }

    fn is_over(&self) -> bool {
        self.0.borrow().is_some() || self.has_failed()
    }

    fn has_failed(&self) -> bool {
        match &*self.0.borrow() {
            Some(made) => made.is_err(),
            // The task ended without a result: its runtime ended, or it panicked.
            None => self.0.has_changed().is_err(),
        }
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
