use std::fmt;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::select_ok;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisResult, TlsMode};

use super::RedisLimitsError;

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
/// The client library (the crate `redis`) runs one task a connection on tokio's runtime, that of the charge which made it,
/// and one more for a cluster. They end with their connections. Making a connection is a task too, which ends within
/// [`with_connection_timeout`](Self::with_connection_timeout).
pub struct RedisServer {
    pub(super) kind: Kind,
    pub(super) connection_timeout: Duration,
}

pub(super) enum Kind {
    Single(Client),
    Sentinel(Sentinels),
    Cluster(Box<ClusterClient>),
}

/// Those who know which server is the master.
pub(super) struct Sentinels {
    addresses: Vec<ConnectionInfo>,
    /// What the master is called.
    name: String,
    master: SentinelNodeConnectionInfo,
}

const CONNECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a cluster may say that a slot has moved before a charge fails.
const REDIRECTS: u32 = 3;

impl RedisServer {
    /// One server, or a proxy or name behind which there is always the right one.
    ///
    /// # Errors
    ///
    /// [`RedisLimitsError::Url`] if this is no such URL.
    pub fn single(url: &str) -> Result<Self, RedisLimitsError> {
        let client = Client::open(info(url)?).map_err(|_| RedisLimitsError::Url)?;
        Ok(Self::of(Kind::Single(client)))
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
        let addresses = sentinels.into_iter().map(info).collect::<Result<Vec<_>, _>>()?;
        let master = info(master)?;
        let node = SentinelNodeConnectionInfo::default().set_redis_connection_info(master.redis_settings().clone());
        let (name, master) = match master.addr() {
            ConnectionAddr::Tcp(name, _) => (name.clone(), node),
            ConnectionAddr::TcpTls { host, insecure: false, .. } => (host.clone(), node.set_tls_mode(TlsMode::Secure)),
            _ => return Err(RedisLimitsError::Url),
        };
        let sentinels = Sentinels { addresses, name, master };
        // Checks the addresses; nothing is connected.
        if sentinels.clients().map_err(|_| RedisLimitsError::Url)?.is_empty() {
            return Err(RedisLimitsError::Url);
        }
        Ok(Self::of(Kind::Sentinel(sentinels)))
    }

    /// A cluster, found through any of these nodes.
    ///
    /// # Errors
    ///
    /// [`RedisLimitsError::Url`] if one of these is no such URL, they differ in user, password or TLS, or there is none.
    pub fn cluster<'a>(nodes: impl IntoIterator<Item = &'a str>) -> Result<Self, RedisLimitsError> {
        let nodes = nodes.into_iter().map(info).collect::<Result<Vec<_>, _>>()?;
        let client = ClusterClientBuilder::new(nodes).retries(REDIRECTS).build().map_err(|_| RedisLimitsError::Url)?;
        Ok(Self::of(Kind::Cluster(Box::new(client))))
    }

    /// The same with another time in which a connection has to be made; 1 second if this is never called.
    #[must_use]
    pub fn with_connection_timeout(self, connection_timeout: Duration) -> Self {
        Self { connection_timeout, ..self }
    }

    fn of(kind: Kind) -> Self {
        Self { kind, connection_timeout: CONNECTION_TIMEOUT }
    }
}

impl Sentinels {
    /// The master that the first Sentinel knows of those that answer. All are asked at once: one that is silent, maybe
    /// since the master of before is, would take the time of the others.
    pub(super) async fn find_master(&self) -> RedisResult<Client> {
        let asked =
            self.clients()?.into_iter().map(|mut sentinel| async move { sentinel.async_get_client().await }.boxed());
        let (master, _) = select_ok(asked).await?;
        Ok(master)
    }

    /// One for each Sentinel.
    fn clients(&self) -> RedisResult<Vec<SentinelClient>> {
        let client = |address: &ConnectionInfo| {
            let master = Some(self.master.clone());
            SentinelClient::build(vec![address.clone()], &self.name, master, SentinelServerType::Master)
        };
        self.addresses.iter().map(client).collect()
    }
}

/// The library's own error may quote the URL, password and all.
fn info(url: &str) -> Result<ConnectionInfo, RedisLimitsError> {
    let info = url.into_connection_info().map_err(|_| RedisLimitsError::Url)?;
    if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        // Where the build has several, rustls does not choose one by itself, and panics.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Somebody else may have been faster: then there is one.
            _ = rustls::crypto::ring::default_provider().install_default();
        }
    }
    Ok(info)
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
