//! Where Redis is, and the one connection to it.
//!
//! # Rules
//!
//! 1. Nothing is connected before the first charge, and no server is needed to start.
//! 2. All charges go over one connection (one a node of a cluster), one behind the other without waiting for answers.
//! 3. A connection that has failed, or did not answer in time, is not used again. The next charge makes a new one; on
//!    the way Sentinels are asked again who is master, and a cluster who has which slot.
//! 4. Making one is a task, which ends within the connection timeout: charges may have less time than that takes, or be
//!    dropped, and the next finds the connection made, or begins another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use redis::aio::MultiplexedConnection;
use redis::cluster_async::ClusterConnection;
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, RedisError, RedisResult};

use super::server::{Kind, RedisServer};
use super::timeout::within;

/// How many commands may wait to be written.
const QUEUE: usize = 1_024;

/// A connection. Clones are the same one.
#[derive(Clone)]
pub(super) enum Open {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Open {
    pub(super) async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        match self {
            Self::One(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => command.query_async(connection).await,
        }
    }
}

/// The way to Redis.
pub(super) struct Link {
    server: Arc<RedisServer>,
    current: Mutex<Option<Attempt>>,
}

/// A connection that is made, or is being made.
#[derive(Clone)]
pub(super) struct Attempt(Shared<BoxFuture<'static, RedisResult<Open>>>);

impl Attempt {
    pub(super) async fn open(self) -> Result<Open, RedisError> {
        self.0.await
    }

    fn has_failed(&self) -> bool {
        matches!(self.0.peek(), Some(Err(_)))
    }
}

impl Link {
    pub(super) fn new(server: RedisServer) -> Self {
        Self { server: Arc::new(server), current: Mutex::new(None) }
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.server.kind, Kind::Cluster(_))
    }

    /// The connection that charges share now.
    pub(super) fn attempt(&self, response_timeout: Duration) -> Attempt {
        let mut current = self.lock();
        if let Some(attempt) = current.as_ref().filter(|attempt| !attempt.has_failed()) {
            return attempt.clone();
        }
        let server = Arc::clone(&self.server);
        let connection = async move {
            let made = within(server.connection_timeout, server.connect(response_timeout)).await;
            made.unwrap_or_else(|| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
        };
        let attempt = Attempt(connection.boxed().shared());
        tokio::spawn(attempt.0.clone().map(drop));
        current.insert(attempt).clone()
    }

    /// Lets go of a connection that has failed, unless somebody has done so already. One that is still being made stays,
    /// since a charge may have less time than that takes.
    pub(super) fn forget(&self, failed: &Attempt) {
        let mut current = self.lock();
        if current.as_ref().is_some_and(|attempt| attempt.0.ptr_eq(&failed.0) && attempt.0.peek().is_some()) {
            *current = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Attempt>> {
        // Under the lock only whole values are moved.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RedisServer {
    async fn connect(&self, response_timeout: Duration) -> RedisResult<Open> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connection_timeout))
            // Each charge has its deadline already: no second timer.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        Ok(match &self.kind {
            Kind::Single(client) => Open::One(client.get_multiplexed_async_connection_with_config(&config).await?),
            Kind::Sentinel(sentinels) => {
                let master = sentinels.find_master().await?;
                Open::One(master.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Kind::Cluster(client) => {
                let config = redis::cluster::ClusterConfig::new()
                    .set_connection_timeout(self.connection_timeout)
                    .set_response_timeout(response_timeout);
                Open::Cluster(client.get_async_connection_with_config(config).await?)
            }
        })
    }
}
