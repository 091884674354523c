//! The connections to Redis.
//!
//! # Rules
//!
//! 1. Nothing is connected before the first charge, and no server is needed to start.
//! 2. All charges go over one connection (one a node of a cluster), one behind the other without waiting for replies.
//! 3. A connection that has failed, or did not reply in time, is not used again. The next charge makes a new one. Sentinels are
//!    then asked again for the master, and a cluster for its slots.
//! 4. Making one is a task, which ends within the connection timeout: charges may have less time than that takes, or be
//!    dropped, and the next finds the connection made, or begins another.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{Cmd, FromRedisValue, RedisError, RedisResult};
use tokio::sync::watch;

use super::cluster::{Cluster, Route};
use super::node::Node;
use super::server::{Kind, RedisServer};
use super::timeout::within;

/// A connection for a charge, and what to forget if it fails.
pub(super) struct Open {
    pub(super) node: Node,
    pub(super) attempt: Attempt<Node>,
    /// Of a node of a cluster.
    pub(super) route: Option<Route>,
}

impl Open {
    pub(super) async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        let done = self.node.query(command).await;
        match (done, self.route.is_some()) {
            (Err(error), true) => self.watch(error, command).await,
            (done, _) => done,
        }
    }
}

/// The way to Redis.
pub(super) struct Link {
    server: Arc<RedisServer>,
    one: Made<Node>,
    cluster: Option<Arc<Cluster>>,
}

impl Link {
    pub(super) fn new(server: RedisServer) -> Self {
        let cluster = match &server.kind {
            Kind::Cluster(seeds) => Some(Arc::new(Cluster::new(seeds.clone(), server.connection_timeout))),
            _ => None,
        };
        Self { server: Arc::new(server), one: Made::default(), cluster }
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// The connection to the server that has a key. Waits while it is being made.
    pub(super) async fn open(&self, key: &[u8]) -> RedisResult<Open> {
        if let Some(cluster) = &self.cluster {
            return cluster.open(key).await;
        }
        let server = Arc::clone(&self.server);
        let mut attempt = self.one.attempt(server.connection_timeout, async move { server.connect().await });
        Ok(Open { node: attempt.done().await?, attempt, route: None })
    }

    /// A charge has failed, on this connection if there was one. It is not used again.
    pub(super) fn failed(&self, open: Option<&Open>) {
        match &self.cluster {
            Some(cluster) => cluster.failed(open),
            None => open.into_iter().for_each(|open| self.one.forget(&open.attempt)),
        }
    }
}

/// A value that charges share, and that is made when one needs it.
pub(super) struct Made<T>(Mutex<Option<Attempt<T>>>);

impl<T> Default for Made<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

/// A value that is made, or is being made. The task that makes it has the sender: charges that wait do not run when it does, only
/// when it has ended.
#[derive(Clone)]
pub(super) struct Attempt<T>(watch::Receiver<Option<RedisResult<T>>>);

impl<T: Clone + Send + Sync + 'static> Made<T> {
    /// The value that is there or is being made. If there is none, a task makes it, within `limit`.
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

    /// Forgets a value, unless somebody has done so already. One that is still being made stays, since a charge may have less
    /// time than that takes.
    pub(super) fn forget(&self, failed: &Attempt<T>) {
        self.lock().take_if(|attempt| attempt.0.same_channel(&failed.0) && attempt.is_over());
    }

    /// Forgets whatever value there is, but not one that is still being made.
    pub(super) fn forget_any(&self) {
        self.lock().take_if(|attempt| attempt.is_over());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Attempt<T>>> {
        // Under the lock only whole values are moved.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Attempt<T> {
    /// Waits until it is made.
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
            // Its task has gone without a word: with its runtime, or by a panic.
            None => self.0.has_changed().is_err(),
        }
    }
}

fn gone() -> RedisError {
    io::Error::from(io::ErrorKind::ConnectionAborted).into()
}

impl RedisServer {
    /// Connects to the server that is there, or to the master.
    async fn connect(&self) -> RedisResult<Node> {
        match &self.kind {
            Kind::Single(endpoint) => Node::connect(endpoint).await,
            Kind::Sentinel(sentinels) => sentinels.connect().await,
            // Of a cluster there are several connections.
            Kind::Cluster(_) => {
                Err((redis::ErrorKind::InvalidClientConfig, "a cluster has no single connection").into())
            }
        }
    }
}
