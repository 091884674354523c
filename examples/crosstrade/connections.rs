//! Limits on the number of open connections, per peer and in total.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::io::LINGER;
use crate::peers;
use crate::server::Limits;

const BUSY: &str =
    r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"Too many connections are open."}"#;

pub(crate) struct Connections {
    open: Arc<Mutex<Open>>,
    max: usize,
    max_per_peer: usize,
    rejections: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

#[derive(Default)]
struct Open {
    total: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// Counts one connection as open until it is dropped.
pub(crate) struct Permit {
    open: Arc<Mutex<Open>>,
    peer: Option<IpAddr>,
    stopping: watch::Receiver<bool>,
}

impl Connections {
    /// Creates the counters. Each connection holds a clone of `stopping` while it is open.
    pub(crate) fn new(limits: &Limits, stopping: watch::Receiver<bool>) -> Self {
        Self {
            open: Arc::default(),
            max: limits.connections,
            max_per_peer: limits.connections_per_peer,
            rejections: Arc::new(Semaphore::new(limits.rejections)),
            stopping,
        }
    }

    /// Returns `None` if the peer, or all peers together, have too many connections open.
    pub(crate) fn admit(&self, peer: IpAddr) -> Option<Permit> {
        let peer = peers::key(peer);
        let mut open = lock(&self.open);
        let of_peer = peer.and_then(|peer| open.by_peer.get(&peer)).copied().unwrap_or_default();
        if open.total >= self.max || of_peer >= self.max_per_peer {
            return None;
        }
        open.total += 1;
        if let Some(peer) = peer {
            open.by_peer.insert(peer, of_peer + 1);
        }
        Some(Permit { open: Arc::clone(&self.open), peer, stopping: self.stopping.clone() })
    }

    /// Answers 503 within [`LINGER`]. Only a few connections are answered at the same time; others are closed.
    pub(crate) fn reject(&self, stream: TcpStream) {
        let Ok(permit) = Arc::clone(&self.rejections).try_acquire_owned() else { return };
        tokio::spawn(async move {
            _ = timeout(LINGER, answer_busy(stream)).await;
            drop(permit);
        });
    }
}

async fn answer_busy(mut stream: TcpStream) -> io::Result<()> {
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
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        open.total -= 1;
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
