//! One server: its address, and a connection to it.

use std::fmt;
use std::sync::Arc;

use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo as _,
};
use redis::{RedisError, RedisResult};
use tokio::task::AbortHandle;

use super::{RedisLimitsError, tls};
use crate::loopback::is_local_host;

/// The number of commands that may wait to be written.
const QUEUE: usize = 1_024;

/// The address, credentials and TLS setting of a server.
#[derive(Clone)]
pub(super) struct Endpoint {
    info: ConnectionInfo,
    is_tls: bool,
}

impl Endpoint {
    pub(super) fn parse(url: &str) -> Result<Self, RedisLimitsError> {
        // The client library is built without TLS and rejects these schemes. See `tls.rs`.
        let tls = |scheme: &str| ["rediss", "valkeys"].iter().any(|tls| scheme.eq_ignore_ascii_case(tls));
        let tls_rest = url.split_once("://").filter(|(scheme, _)| tls(scheme)).map(|(_, rest)| rest);
        // A fragment would disable the check of certificates.
        if tls_rest.is_some_and(|rest| rest.contains('#')) {
            return Err(RedisLimitsError::Url);
        }
        let plain = tls_rest.map(|rest| format!("redis://{rest}"));
        // The library's own error may contain the URL with its password.
        let info = plain.as_deref().unwrap_or(url).into_connection_info().map_err(|_| RedisLimitsError::Url)?;
        // No delay (Nagle): commands are small and frequent.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Self { info, is_tls: tls_rest.is_some() })
    }

    /// Returns host and port, or `None` for a Unix socket.
    pub(super) fn address(&self) -> Option<(&str, u16)> {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, port) => Some((host, *port)),
            _ => None,
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Returns whether the server is on this machine.
    pub(super) fn is_local(&self) -> bool {
        self.address().is_none_or(|(host, _)| is_local_host(host))
    }

    /// Returns the endpoint of another server with the same credentials and TLS setting.
    pub(super) fn at(&self, host: impl Into<String>, port: u16) -> Self {
        let info = self.info.clone().set_addr(ConnectionAddr::Tcp(host.into(), port));
        Self { info, is_tls: self.is_tls }
    }

    /// Returns the endpoint with database 0, the only one of a cluster.
    pub(super) fn without_database(self) -> Self {
        let redis = self.info.redis_settings().clone().set_db(0);
        Self { info: self.info.set_redis_settings(redis), ..self }
    }

    /// Returns whether both endpoints have the same credentials, protocol and TLS setting.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        let of = |endpoint: &Self| {
            let redis = endpoint.info.redis_settings();
            let text = |text: Option<&str>| text.map(str::to_owned);
            (endpoint.is_tls, text(redis.username()), text(redis.password()), redis.protocol())
        };
        of(self) == of(other)
    }
}

impl fmt::Debug for Endpoint {
    /// Shows no address, which may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").finish_non_exhaustive()
    }
}

/// A connection to a server. Clones share the connection. Its task ends with the last clone.
#[derive(Clone)]
pub(super) struct Node {
    connection: MultiplexedConnection,
    /// Present if this module started the task. The client library ends its own tasks.
    _task: Option<Arc<Task>>,
}

struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Node {
    /// Connects without a timeout. The caller sets a timeout.
    pub(super) async fn connect(endpoint: &Endpoint) -> RedisResult<Self> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let Some((host, port)) = endpoint.address().filter(|_| endpoint.is_tls) else {
            let client = Client::open(endpoint.info.clone())?;
            let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            return Ok(Self { connection, _task: None });
        };
        let stream = tls::connect(host, port).await?;
        Self::over(endpoint, stream, config).await
    }

    /// Opens a connection over a stream.
    pub(super) async fn over<S>(endpoint: &Endpoint, stream: S, config: AsyncConnectionConfig) -> RedisResult<Self>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let redis = endpoint.info.redis_settings();
        let (connection, task) = MultiplexedConnection::new_with_config(redis, stream, config).await?;
        let task = Task(tokio::spawn(task).abort_handle());
        Ok(Self { connection, _task: Some(Arc::new(task)) })
    }

    pub(super) async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        // Not `query_async`, which boxes this future.
        let reply = self.connection.send_packed_command(command).await?.extract_error()?;
        Ok(T::from_redis_value(reply)?)
    }

    /// Sends a command to a node of a cluster that is importing the slot.
    pub(super) async fn query_asking<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        let mut both = redis::pipe();
        both.cmd("ASKING").add_command(command.clone());
        let reply = self.connection.req_packed_commands(&both, 1, 1).await?.pop();
        let reply = reply.ok_or_else(|| unexpected("no reply after ASKING"))?.extract_error()?;
        Ok(T::from_redis_value(reply)?)
    }
}

/// Returns an error for a reply that does not match the command.
pub(super) fn unexpected(what: &'static str) -> RedisError {
    (redis::ErrorKind::UnexpectedReturnType, what).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpStream;

    use super::*;
    use crate::limit::redis::tests::{redis, url};

    #[test]
    fn endpoints_have_credentials_tls_and_a_host() {
        let endpoint = |url: &str| Endpoint::parse(url).unwrap();
        let one = endpoint("redis://user:secret@10.0.0.1/3");
        assert!(!one.is_tls() && endpoint("rediss://10.0.0.1").is_tls());
        assert!(one.agrees_with(&endpoint("redis://user:secret@10.0.0.2:7000")));
        for other in ["redis://user:other@10.0.0.1", "redis://secret@10.0.0.1", "rediss://user:secret@10.0.0.1"] {
            assert!(!one.agrees_with(&endpoint(other)), "{other}");
        }
        assert_eq!(one.without_database().info.redis_settings().db(), 0);
        let is_local =
            ["redis://127.0.0.1", "redis+unix:///run/redis", "redis://10.0.0.1"].map(|url| endpoint(url).is_local());
        assert_eq!(is_local, [true, true, false]);
    }

    /// Without the abort, the task would wait until the silent server reads.
    #[test]
    fn the_task_of_a_stream_ends_with_the_last_clone() {
        let Some((runtime, _)) = redis("the_task_of_a_stream_ends_with_the_last_clone") else { return };
        runtime.block_on(async {
            let endpoint = Endpoint::parse(&url()).unwrap();
            let mut server = TcpStream::connect(endpoint.address().unwrap()).await.unwrap();
            let (stream, mut silent) = tokio::io::duplex(64);
            let node = tokio::select! {
                node = Node::over(&endpoint, stream, AsyncConnectionConfig::new()) => node.unwrap(),
                _ = tokio::io::copy_bidirectional(&mut silent, &mut server) => unreachable!("the connection is open"),
            };
            let task = node._task.as_ref().unwrap().0.clone();
            let (mut clone, mut long) = (node.clone(), Cmd::new());
            long.arg("PING").arg("a".repeat(1_000));
            let sent = tokio::time::timeout(Duration::from_millis(20), clone.query::<()>(&long)).await;
            assert!(sent.is_err());
            drop(node);
            tokio::task::yield_now().await;
            assert!(!task.is_finished());
            drop(clone);
            for _ in 0..200 {
                if task.is_finished() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("the task has not ended");
        });
    }
}
