//! A TCP proxy that does to a connection what networks do: cut it, hold it, stay silent, hand on garbage.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to everything that passes, on connections that are open and on new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing happens.
    None,
    /// Connections are reset, and new ones closed immediately.
    Cut,
    /// Every packet waits for so long.
    Delay(Duration),
    /// Connections stay open, new ones are taken, and nothing ever passes: what is sent is lost.
    Silence,
    /// What the server says is replaced.
    Garbage,
}

pub struct Proxy {
    pub address: SocketAddr,
    fault: Arc<watch::Sender<Fault>>,
    taken: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    left: Arc<AtomicUsize>,
}

/// No limit of [`Proxy::silence_after`].
const UNLIMITED: usize = usize::MAX;

impl Proxy {
    pub async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (fault, faults) = watch::channel(Fault::None);
        let fault = Arc::new(fault);
        let (taken, open) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let left = Arc::new(AtomicUsize::new(UNLIMITED));
        let count = Arc::clone(&taken);
        let network = Network { fault: fault.clone(), faults, open: open.clone(), left: left.clone() };
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (server, network) = (server.clone(), network.clone());
                network.open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move { serve(client, &server, network).await });
            }
        });
        Self { address, fault, taken, open, left }
    }

    /// The number of connections that their clients have not closed.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Sets [`Fault::Silence`] after this number of bytes from clients.
    pub fn silence_after(&self, bytes: usize) {
        self.left.store(bytes, Ordering::SeqCst);
    }

    /// Waits until there is a fault.
    pub async fn fails(&self) {
        _ = self.fault.subscribe().wait_for(|fault| *fault != Fault::None).await;
    }

    /// How many connections were made so far.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    pub fn set(&self, fault: Fault) {
        self.left.store(UNLIMITED, Ordering::SeqCst);
        self.fault.send_replace(fault);
    }
}

#[derive(Clone)]
struct Network {
    fault: Arc<watch::Sender<Fault>>,
    faults: watch::Receiver<Fault>,
    open: Arc<AtomicUsize>,
    left: Arc<AtomicUsize>,
}

/// Counts a connection as open until it is dropped.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(client: TcpStream, server: &str, network: Network) {
    let (mut cut, open) = (network.faults.clone(), Open(network.open.clone()));
    let fault = *network.faults.borrow();
    let (mut client_reads, client_writes) = client.into_split();
    match fault {
        Fault::Cut => return,
        // Also when the silence has ended: this connection was made in it.
        Fault::Silence => return drain(&mut client_reads).await,
        _ => {}
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (server_reads, server_writes) = server.into_split();
    tokio::select! {
        () = copy(client_reads, server_writes, network.clone(), Some(open)) => {}
        () = copy(server_reads, client_writes, network, None) => {}
        _ = cut.wait_for(|fault| *fault == Fault::Cut) => {}
    }
}

/// Loses everything until the connection is closed.
async fn drain(from: &mut OwnedReadHalf) {
    while let Ok(1..) = from.read(&mut [0; 4_096]).await {}
}

/// Copies what the client sends, whose connection is `open`, or what the server answers.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut network: Network, open: Option<Open>) {
    let is_client = open.is_some();
    let mut buffer = [0; 4_096];
    while let Ok(mut len @ 1..) = from.read(&mut buffer).await {
        if is_client {
            let left = network.left.load(Ordering::SeqCst);
            if left <= len {
                network.left.store(UNLIMITED, Ordering::SeqCst);
                network.fault.send_replace(Fault::Silence);
                _ = to.write_all(&buffer[..left]).await;
            } else if left < UNLIMITED {
                network.left.fetch_sub(len, Ordering::SeqCst);
            }
        }
        let fault = *network.faults.borrow();
        match fault {
            // A packet that was lost breaks the connection for good.
            Fault::Silence => {
                drain(&mut from).await;
                len = 0;
            }
            Fault::Delay(time) => tokio::time::sleep(time).await,
            Fault::Garbage if !is_client => buffer[..len].fill(b'?'),
            _ => {}
        }
        if len == 0 || to.write_all(&buffer[..len]).await.is_err() {
            break;
        }
    }
    drop(open);
    // The other side learns of it when the network works again.
    _ = network.faults.wait_for(|fault| *fault != Fault::Silence).await;
}
