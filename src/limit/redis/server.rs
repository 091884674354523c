//! The addresses of Redis: a single server, Sentinels, or a cluster.

use std::fmt;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::select_ok;
use redis::{Cmd, RedisResult, Value};

use super::RedisLimitsError;
use super::node::{Endpoint, Node, unexpected};

/// The address of Redis (6 or later) or Valkey: one server, a set of servers with Sentinels, or a cluster.
///
/// Addresses are URLs: `redis://[user][:password@]host[:port][/database]`, or `rediss://` for TLS with Mozilla's root
/// certificates. Creating this connects to nothing. `Debug` shows no address.
///
/// ```
/// use tollgate::limit::redis::RedisServer;
///
/// let one = RedisServer::single("redis://127.0.0.1:6379")?;
/// let watched = RedisServer::sentinel("redis://:secret@mymaster", ["redis://10.0.0.1:26379", "redis://10.0.0.2:26379"])?;
/// let cluster = RedisServer::cluster(["redis://10.0.0.1:6379", "redis://10.0.0.2:6379"])?;
/// # let _ = (one, watched, cluster);
/// # Ok::<_, tollgate::limit::redis::RedisLimitsError>(())
/// ```
///
/// # Tasks
///
/// Each connection has a task on the tokio runtime of the charge that made it. The task ends with the connection. Making a
/// connection is also a task, which ends within [`with_connection_timeout`](Self::with_connection_timeout).
///
/// # TLS
///
/// `rediss://` uses the crypto provider that the application has installed for rustls, or `ring` if there is none. This crate
/// installs no provider.
pub struct RedisServer {
    pub(super) kind: Kind,
    pub(super) connection_timeout: Duration,
}

#[derive(Debug)]
pub(super) enum Kind {
    Single(Endpoint),
    Sentinel(Sentinels),
    /// Some nodes of the cluster, at least one.
    Cluster(Vec<Endpoint>),
}

/// The Sentinels of a set, and its name.
#[derive(Debug)]
pub(super) struct Sentinels {
    sentinels: Vec<Endpoint>,
    /// The name of the set.
    name: String,
    /// The credentials and TLS setting of the master, without its address.
    master: Endpoint,
}

const CONNECTION_TIMEOUT: Duration = Duration::from_secs(1);

impl RedisServer {
    /// Creates the address of one server, or of a proxy or host name for the current master.
    ///
    /// # Errors
    ///
    /// Returns [`RedisLimitsError::Url`] if the URL is invalid.
    pub fn single(url: &str) -> Result<Self, RedisLimitsError> {
        Ok(Self::of(Kind::Single(Endpoint::parse(url)?)))
    }

    /// Creates the address of the master of a set of servers with Sentinels.
    ///
    /// `master` is a URL with the set's name as its host. Its user, password, database and TLS are those of the *servers*. The
    /// Sentinels' own URLs have the credentials and TLS of the Sentinels.
    ///
    /// # Errors
    ///
    /// Returns [`RedisLimitsError::Url`] if a URL is invalid, or there is no Sentinel.
    pub fn sentinel<'a>(master: &str, sentinels: impl IntoIterator<Item = &'a str>) -> Result<Self, RedisLimitsError> {
        let sentinels = sentinels.into_iter().map(Endpoint::parse).collect::<Result<Vec<_>, _>>()?;
        let master = Endpoint::parse(master)?;
        match master.address() {
            Some((name, _)) if !sentinels.is_empty() => {
                let name = name.to_owned();
                Ok(Self::of(Kind::Sentinel(Sentinels { sentinels, name, master })))
            }
            _ => Err(RedisLimitsError::Url),
        }
    }

    /// Creates the address of a cluster from some of its nodes.
    ///
    /// # Errors
    ///
    /// Returns [`RedisLimitsError::Url`] if a URL is invalid, the URLs differ in user, password or TLS, or there is none.
    pub fn cluster<'a>(nodes: impl IntoIterator<Item = &'a str>) -> Result<Self, RedisLimitsError> {
        let nodes = nodes.into_iter().map(|url| Ok(Endpoint::parse(url)?.without_database()));
        let nodes = nodes.collect::<Result<Vec<_>, RedisLimitsError>>()?;
        let is_node = |node: &Endpoint| node.address().is_some() && node.agrees_with(&nodes[0]);
        match !nodes.is_empty() && nodes.iter().all(is_node) {
            true => Ok(Self::of(Kind::Cluster(nodes))),
            false => Err(RedisLimitsError::Url),
        }
    }

    /// Sets the timeout for making a connection, to a server or to a node of a cluster. Default: 1 second.
    #[must_use]
    pub fn with_connection_timeout(self, connection_timeout: Duration) -> Self {
        Self { connection_timeout, ..self }
    }

    fn of(kind: Kind) -> Self {
        Self { kind, connection_timeout: CONNECTION_TIMEOUT }
    }
}

impl Sentinels {
    /// Connects to the master that the first replying Sentinel names.
    ///
    /// All Sentinels are asked at the same time, since a silent one (perhaps on the machine of the failed master) would delay the others.
    pub(super) async fn connect(&self) -> RedisResult<Node> {
        let (master, _) = select_ok(self.sentinels.iter().map(|sentinel| self.ask(sentinel).boxed())).await?;
        Ok(master)
    }

    async fn ask(&self, sentinel: &Endpoint) -> RedisResult<Node> {
        let command = |words: &[&str]| {
            let mut command = Cmd::new();
            command.arg(words);
            command
        };
        let mut sentinel = Node::connect(sentinel).await?;
        let found = sentinel.query(&command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", &self.name])).await?;
        let Some((host, port)): Option<(String, u16)> = found else {
            return Err(unexpected("the Sentinel has no set of this name"));
        };
        let mut master = Node::connect(&self.master.at(host, port)).await?;
        // A Sentinel may not have heard of a failover yet.
        let role: Vec<Value> = master.query(&command(&["ROLE"])).await?;
        match role.first() {
            Some(Value::BulkString(role)) if role == b"master" => Ok(master),
            _ => Err(unexpected("the server is not a master")),
        }
    }
}

impl fmt::Debug for RedisServer {
    /// Shows only the kind: an address may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Single(_) => "single",
            Kind::Sentinel(_) => "sentinel",
            Kind::Cluster(_) => "cluster",
        };
        f.debug_struct("RedisServer").field("kind", &kind).finish_non_exhaustive()
    }
}
