//! Limits on the number of open connections, per peer and in total.
//!
//! A connection of a proxy counts in total only. Each request that it carries counts as a connection of the client behind the
//! proxy, and a WebSocket until it is closed.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::io::LINGER;
use crate::peers;
use crate::proxies::Proxies;
use crate::server::Limits;

/// The wait that is advertised when too much is open.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(5);
const BUSY: &str =
    r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"Too many connections are open."}"#;

#[derive(Clone)]
pub(crate) struct Connections {
    open: Arc<Mutex<Open>>,
    max: usize,
    max_per_peer: usize,
    rejections: Arc<Semaphore>,
    proxies: Option<Proxies>,
    stopping: watch::Receiver<bool>,
}

#[derive(Default)]
struct Open {
    total: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// Counts one connection as open until it is dropped.
pub(crate) struct Permit {
    _place: Place,
    /// The place of the client behind a proxy whose WebSocket this connection has become.
    client: OnceLock<Place>,
    stopping: watch::Receiver<bool>,
}

/// Counts one connection of a peer, and in total, until it is dropped.
pub(crate) struct Place {
    open: Arc<Mutex<Open>>,
    peer: Option<IpAddr>,
    is_in_total: bool,
}

impl Connections {
    /// Creates the counters. Each connection holds a clone of `stopping` while it is open.
    pub(crate) fn new(limits: &Limits, stopping: watch::Receiver<bool>) -> Self {
        Self {
            open: Arc::default(),
            max: limits.connections,
            max_per_peer: limits.connections_per_peer,
            rejections: Arc::new(Semaphore::new(limits.rejections)),
            proxies: limits.proxies.clone(),
            stopping,
        }
    }

    /// Returns `None` if the peer, or all peers together, have too many connections open.
    pub(crate) fn admit(&self, peer: IpAddr) -> Option<Permit> {
        let is_proxy = self.proxies.as_ref().is_some_and(|proxies| proxies.contain(peer));
        let peer = if is_proxy { None } else { peers::key(peer) };
        let place = self.count(peer, true)?;
        Some(Permit { _place: place, client: OnceLock::new(), stopping: self.stopping.clone() })
    }

    /// Counts a request of a client behind a proxy. Returns `None` if the client has too many in progress.
    pub(crate) fn enter(&self, client: IpAddr) -> Option<Place> {
        self.count(peers::key(client), false)
    }

    fn count(&self, peer: Option<IpAddr>, is_in_total: bool) -> Option<Place> {
        let mut open = lock(&self.open);
        let of_peer = peer.and_then(|peer| open.by_peer.get(&peer)).copied().unwrap_or_default();
        if (is_in_total && open.total >= self.max) || of_peer >= self.max_per_peer {
            return None;
        }
        open.total += usize::from(is_in_total);
        if let Some(peer) = peer {
            open.by_peer.insert(peer, of_peer + 1);
        }
        Some(Place { open: Arc::clone(&self.open), peer, is_in_total })
    }

    /// Answers 503 within [`LINGER`]. Only a few connections are answered at the same time; others are closed.
    pub(crate) fn reject(&self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let Ok(permit) = Arc::clone(&self.rejections).try_acquire_owned() else { return };
        tokio::spawn(async move {
            let answer = async {
                match tls {
                    None => answer_busy(stream).await,
                    Some(tls) => answer_busy(tls.accept(stream).await?).await,
                }
            };
            _ = timeout(LINGER, answer).await;
            drop(permit);
        });
    }
}

async fn answer_busy(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut ignored = [0; 2048];
    // Most clients read no response before they have sent a request.
    _ = stream.read(&mut ignored).await?;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\ncache-control: no-store\r\n\
         content-type: application/problem+json\r\ncontent-length: {}\r\n\r\n{BUSY}",
        BUSY.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // The kernel resets a connection that is closed with unread bytes, and the reset can overtake the response.
    while stream.read(&mut ignored).await? > 0 {}
    Ok(())
}

impl Permit {
    /// Becomes true when the service stops.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }

    /// Holds the place of a client until the connection is closed. A connection becomes a WebSocket at most once.
    pub(crate) fn hold(&self, client: Place) {
        _ = self.client.set(client);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        open.total -= usize::from(self.is_in_total);
        let Some(peer) = self.peer else { return };
        if let Some(of_peer) = open.by_peer.get_mut(&peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                open.by_peer.remove(&peer);
            }
        }
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}
