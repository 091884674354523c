//! The listeners, with [`Limits`] on connections and on the time of each step.
//!
//! `axum::serve` has no such limits. `protocol.rs` has those of each connection.
//!
//! # Stopping
//!
//! 1. The listeners are closed. Connections that the kernel has accepted already are served.
//! 2. Requests in progress are answered. All answers of HTTP/1 carry `Connection: close`, and HTTP/2 sends GOAWAY.
//! 3. Idle connections stay open for [`Limits::drain`]. A client may have sent a request before it can see the close;
//!    that request is answered too.
//! 4. [`serve`] returns when no connection is open, and after [`Limits::grace`] in any case.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::future::join_all;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::connections::Connections;
use crate::protocol::Connection;
use crate::proxies::Proxies;
use crate::tls::Tls;

/// The pause after `accept` has failed, mostly for lack of descriptors: the failure lasts, and trying again costs time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The number of connections that wait in a listener's queue, at most.
const MAX_QUEUE: usize = 4_096;

/// The limits for clients.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Open connections in total. Further connections are answered 503.
    pub(crate) connections: usize,
    /// Open connections of one peer. Further connections are answered 503.
    pub(crate) connections_per_peer: usize,
    /// Connections that are answered 503 at the same time. Further connections are closed without a response.
    pub(crate) rejections: usize,
    /// The time for a TLS handshake. The connection counts as open meanwhile.
    pub(crate) handshake: Duration,
    /// The time for a request's head. Idle connections are closed after it too.
    pub(crate) head: Duration,
    /// The time for a request's body, counted from its head.
    pub(crate) body: Duration,
    /// The time for a client to take what was sent, counted from when the kernel's buffer was full. On HTTP/2 also the time to
    /// take a response.
    pub(crate) write: Duration,
    /// How long idle connections stay open after the stop.
    pub(crate) drain: Duration,
    /// How long requests and WebSockets may take to end after the stop.
    pub(crate) grace: Duration,
    /// The proxies in front of the service. Their connections are limited in total, and the requests that they carry per client.
    pub(crate) proxies: Option<Proxies>,
}

impl Limits {
    /// Limits for a process that may open this number of files and sockets.
    ///
    /// Three quarters are for connections, and a quarter of these for one peer. One of sixteen is for 503 answers. The
    /// others are for the listeners, the database, Redis and the log.
    pub(crate) fn for_descriptors(descriptors: usize) -> Self {
        let connections = (descriptors / 4 * 3).max(1);
        Self {
            connections,
            connections_per_peer: (connections / 4).max(1),
            rejections: descriptors / 16,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(10),
            body: Duration::from_secs(5),
            write: Duration::from_secs(10),
            drain: Duration::from_secs(2),
            grace: Duration::from_secs(10),
            proxies: None,
        }
    }

    /// Limits for this process: for its soft limit of open files (`ulimit -n`).
    pub(crate) fn for_this_process() -> Self {
        #[cfg(unix)]
        let descriptors = rlimit::Resource::NOFILE.get().map_or(256, |(soft, _)| soft);
        #[cfg(not(unix))]
        let descriptors = 4_096;
        // More than a million would be "unlimited".
        Self::for_descriptors(descriptors.min(1 << 20) as usize)
    }
}

/// A listener, the routes that it serves, and the certificate for TLS.
pub(crate) struct Listener {
    pub(crate) tcp: TcpListener,
    pub(crate) app: Router,
    /// `None` serves plaintext.
    pub(crate) tls: Option<Arc<Tls>>,
}

impl Listener {
    pub(crate) fn plaintext(tcp: TcpListener, app: Router) -> Self {
        Self { tcp, app, tls: None }
    }
}

/// Serves until `stop`, then ends as described above. Dropping the future ends all connections, but not WebSockets.
pub(crate) async fn serve(listeners: Vec<Listener>, limits: Limits, stop: impl Future<Output = ()>) {
    let (stopping, stopped) = watch::channel(false);
    let server = Server { connections: Connections::new(&limits, stopped), limits };
    tokio::select! {
        _ = join_all(listeners.iter().map(|listener| server.accept(listener))) => {}
        () = stop => {}
    }
    for listener in listeners {
        server.serve_queue(listener);
    }
    stopping.send_replace(true);
    let grace = server.limits.grace;
    // Each connection holds a receiver.
    drop(server);
    _ = timeout(grace, stopping.closed()).await;
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // The client has closed the connection already.
            Err(error) if is_of_client(error.kind()) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_client(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionAborted | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
}

struct Server {
    connections: Connections,
    limits: Limits,
}

impl Server {
    async fn accept(&self, listener: &Listener) -> Infallible {
        loop {
            let (stream, peer) = accept(&listener.tcp).await;
            self.connection(stream, peer, &listener.app, listener.tls.as_deref());
        }
    }

    fn connection(&self, stream: TcpStream, peer: SocketAddr, app: &Router, tls: Option<&Tls>) {
        // Responses are small, and delaying them to send more gains nothing.
        _ = stream.set_nodelay(true);
        let Some(permit) = self.connections.admit(peer.ip()) else {
            tracing::warn!(peer = %peer.ip(), "connection rejected: too many are open");
            // The answer is HTTP/1.
            return self.connections.reject(stream, tls.map(Tls::http1_acceptor));
        };
        let (limits, connections) = (self.limits.clone(), self.connections.clone());
        // A slow client of an HTTP/2 connection ends it, and a proxy's connection has requests of several clients.
        let is_proxy = limits.proxies.as_ref().is_some_and(|proxies| proxies.contain(peer.ip()));
        let tls = tls.map(if is_proxy { Tls::http1_acceptor } else { Tls::acceptor });
        let connection = Connection { stream, peer, permit, tls, app: app.clone(), limits, connections };
        drop(tokio::spawn(connection.serve()));
    }

    /// Serves the connections in the listener's queue, whose clients may have sent requests. Then closes the listener.
    fn serve_queue(&self, Listener { tcp, app, tls }: Listener) {
        // By the standard library: tokio's listener sees a connection only after it was woken for it.
        let Ok(tcp) = tcp.into_std() else { return };
        // Not more than the queue can have: clients that go on to connect must not delay the stop.
        for _ in 0..MAX_QUEUE {
            let (stream, peer) = match tcp.accept() {
                Ok(accepted) => accepted,
                Err(error) if is_of_client(error.kind()) => continue,
                Err(_) => break,
            };
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                self.connection(stream, peer, &app, tls.as_deref());
            }
        }
    }
}
