use std::fmt;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::select_ok;
use redis::{Cmd, RedisResult, Value};

use super::RedisLimitsError;
use super::node::{Endpoint, Node, unexpected};

/// Where Redis (6 or later) or Valkey is: one server, those that Sentinels watch, or a cluster.
///
/// Addresses are URLs: `redis://[user][:password@]host[:port][/database]`, and `rediss://` for TLS, with the certificates
/// that Mozilla trusts. Nothing is connected before it is used, and `Debug` shows no address.
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
/// Each connection has a task on tokio's runtime, that of the charge which made it. It ends with the connection. Making a
/// connection is a task too, which ends within [`with_connection_timeout`](Self::with_connection_timeout).
///
/// # TLS
///
/// `rediss://` uses the provider of cryptography that the application has installed for rustls, and `ring` if it has installed
/// none. It installs none itself.
pub struct RedisServer {
    pub(super) kind: Kind,
    pub(super) connection_timeout: Duration,
}

#[derive(Debug)]
pub(super) enum Kind {
    Single(Endpoint),
    Sentinel(Sentinels),
    /// Some nodes. There is one at least.
    Cluster(Vec<Endpoint>),
}

/// The servers that know which server is the master.
#[derive(Debug)]
pub(super) struct Sentinels {
    sentinels: Vec<Endpoint>,
    /// The name of the set.
    name: String,
    /// Its host and port are unknown.
    master: Endpoint,
}

const CONNECTION_TIMEOUT: Duration = Duration::from_secs(1);

impl RedisServer {
    /// One server, or a proxy or name behind which there is always the right one.
    ///
    /// # Errors
    ///
    /// [`RedisLimitsError::Url`] if this is no such URL.
    pub fn single(url: &str) -> Result<Self, RedisLimitsError> {
        Ok(Self::of(Kind::Single(Endpoint::parse(url)?)))
    }

    /// The master of a set of servers that Sentinels watch.
    ///
    /// `master` is a URL with the set's name in the place of the host, and user, password, database and TLS as the
    /// *servers* want them; what the Sentinels want is in their own URLs.
    ///
    /// # Errors
    ///
    /// [`RedisLimitsError::Url`] if one of these is no such URL, or there is no Sentinel.
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

    /// A cluster, found through any of these nodes.
    ///
    /// # Errors
    ///
    /// [`RedisLimitsError::Url`] if one of these is no such URL, they differ in user, password or TLS, or there is none.
    pub fn cluster<'a>(nodes: impl IntoIterator<Item = &'a str>) -> Result<Self, RedisLimitsError> {
        let nodes = nodes.into_iter().map(|url| Ok(Endpoint::parse(url)?.without_database()));
        let nodes = nodes.collect::<Result<Vec<_>, RedisLimitsError>>()?;
        let is_node = |node: &Endpoint| node.address().is_some() && node.agrees_with(&nodes[0]);
        match !nodes.is_empty() && nodes.iter().all(is_node) {
            true => Ok(Self::of(Kind::Cluster(nodes))),
            false => Err(RedisLimitsError::Url),
        }
    }

    /// Sets the time in which a connection has to be made, to a server or to a node of a cluster. Default: 1 second.
    #[must_use]
    pub fn with_connection_timeout(self, connection_timeout: Duration) -> Self {
        Self { connection_timeout, ..self }
    }

    fn of(kind: Kind) -> Self {
        Self { kind, connection_timeout: CONNECTION_TIMEOUT }
    }
}

impl Sentinels {
    /// Connects to the master that the first Sentinel names of those that reply. All are asked at the same time: one that is
    /// silent, maybe since the master of before is, would take the time of the others.
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
            return Err(unexpected("the Sentinel does not know this name"));
        };
        let mut master = Node::connect(&self.master.at(host, port)).await?;
        // A Sentinel may not have heard yet of another master.
        let role: Vec<Value> = master.query(&command(&["ROLE"])).await?;
        match role.first() {
            Some(Value::BulkString(role)) if role == b"master" => Ok(master),
            _ => Err(unexpected("the server is no master")),
        }
    }
}

impl fmt::Debug for RedisServer {
    /// Names the kind only: an address may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Single(_) => "single",
            Kind::Sentinel(_) => "sentinel",
            Kind::Cluster(_) => "cluster",
        };
        f.debug_struct("RedisServer").field("kind", &kind).finish_non_exhaustive()
    }
}
