//! HTTP/1 on a listener, with [`Limits`] on connections and on the time of each step.
//!
//! `axum::serve` has no such limits. HTTP/2 is left to a proxy: `hyper-util` waits without a time limit for the first
//! bytes, by which it distinguishes the two versions.
//!
//! # Stopping
//!
//! 1. The listener is closed. Connections that the kernel has accepted already are served.
//! 2. Requests in progress are answered. All answers carry `Connection: close`.
//! 3. Idle connections stay open for [`Limits::drain`]. A client may have sent a request before it can see the close;
//!    that request is answered too.
//! 4. [`serve`] returns when no connection is open, and after [`Limits::grace`] in any case.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::body::TimedBody;
use crate::connections::{Connections, Permit};
use crate::io::TimedIo;

/// The maximum size of a request's head in bytes, and the maximum number of its fields. hyper answers 431 beyond.
pub(crate) const MAX_HEAD: usize = 16_384;
pub(crate) const MAX_FIELDS: usize = 64;
/// The pause after `accept` has failed, mostly for lack of descriptors: the failure lasts, and trying again costs time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The limits for clients.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Open connections in total. Further connections are answered 503.
    pub(crate) connections: usize,
    /// Open connections of one peer. Further connections are answered 503.
    pub(crate) connections_per_peer: usize,
    /// Connections that are answered 503 at the same time. Further connections are closed without a response.
    pub(crate) rejections: usize,
    /// The time for a request's head. Idle connections are closed after it too.
    pub(crate) head: Duration,
    /// The time for a request's body, counted from its head.
    pub(crate) body: Duration,
    /// The time for a client to take what was sent, counted from when the kernel's buffer was full.
    pub(crate) write: Duration,
    /// How long idle connections stay open after the stop.
    pub(crate) drain: Duration,
    /// How long requests and WebSockets may take to end after the stop.
    pub(crate) grace: Duration,
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
            head: Duration::from_secs(10),
            body: Duration::from_secs(5),
            write: Duration::from_secs(10),
            drain: Duration::from_secs(2),
            grace: Duration::from_secs(10),
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

/// Serves until `stop`, then ends as described above. Dropping the future ends all connections, but not WebSockets.
pub(crate) async fn serve(listener: TcpListener, app: Router, limits: Limits, stop: impl Future<Output = ()>) {
    let (stopping, stopped) = watch::channel(false);
    let server = Server { connections: Connections::new(&limits, stopped), app, limits };
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            (stream, peer) = accept(&listener) => server.connection(stream, peer),
            () = &mut stop => break,
        }
    }
    server.serve_queue(listener);
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
    app: Router,
    limits: Limits,
}

impl Server {
    fn connection(&self, stream: TcpStream, peer: SocketAddr) {
        // Responses are small, and delaying them to send more gains nothing.
        _ = stream.set_nodelay(true);
        match self.connections.admit(peer.ip()) {
            Some(permit) => drop(tokio::spawn(connection(stream, peer, permit, self.app.clone(), self.limits.clone()))),
            None => {
                tracing::warn!(peer = %peer.ip(), "connection rejected: too many are open");
                self.connections.reject(stream);
            }
        }
    }

    /// Serves the connections in the listener's queue, whose clients may have sent requests. Then closes the listener.
    fn serve_queue(&self, listener: TcpListener) {
        // By the standard library: tokio's listener sees a connection only after it was woken for it.
        let Ok(listener) = listener.into_std() else { return };
        while let Ok((stream, peer)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                self.connection(stream, peer);
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, permit: Permit, app: Router, limits: Limits) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        // A client that shuts down its side after the request waits for the answer.
        .half_close(true);
    let mut stopping = permit.stopping();
    let is_stopping = stopping.clone();
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(|body| TimedBody::new(body, limits.body));
        // The gates limit failures by the peer's address.
        request.extensions_mut().insert(peer);
        let response = app.call(request);
        let is_stopping = is_stopping.clone();
        async move {
            let mut response = response.await?;
            if *is_stopping.borrow() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(TimedIo::new(stream, limits.write, permit));
    let mut served = pin!(http.serve_connection(io, service).with_upgrades());
    // Errors are the client's: it closed the connection, or was too slow.
    tokio::select! {
        biased;
        _ = &mut served => return,
        stopped = stopping.wait_for(|stopping| *stopping) => if stopped.is_err() { return },
    }
    tokio::select! {
        biased;
        _ = &mut served => return,
        () = sleep(limits.drain) => served.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ = served => {}
        // The time is over, and `serve` has returned.
        _ = stopping.changed() => {}
    }
}
