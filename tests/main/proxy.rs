//! A TCP proxy that does to a connection what networks do: cut it, hold it, stay silent, hand on garbage.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to everything that passes, on connections that are open and on new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing happens.
    None,
    /// Connections are reset, and new ones closed at once.
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
}

impl Proxy {
    pub async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (fault, faults) = watch::channel(Fault::None);
        let taken = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&taken);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (server, faults) = (server.clone(), faults.clone());
                tokio::spawn(async move { serve(client, &server, faults).await });
            }
        });
        Self { address, fault: fault.into(), taken }
    }

    /// How many connections were made so far.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

async fn serve(client: TcpStream, server: &str, faults: watch::Receiver<Fault>) {
    let fault = *faults.borrow();
    match fault {
        Fault::Cut => return,
        // Also when the silence has ended: this connection was made in it.
        Fault::Silence => return std::future::pending().await,
        _ => {}
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let mut cut = faults.clone();
    tokio::select! {
        () = copy(client_reads, server_writes, faults.clone(), false) => {}
        () = copy(server_reads, client_writes, faults, true) => {}
        _ = cut.wait_for(|fault| *fault == Fault::Cut) => {}
    }
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    faults: watch::Receiver<Fault>,
    answers: bool,
) {
    let mut buffer = [0; 4_096];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        let fault = *faults.borrow();
        match fault {
            // A packet that was lost breaks the connection for good.
            Fault::Silence => std::future::pending().await,
            Fault::Delay(time) => tokio::time::sleep(time).await,
            Fault::Garbage if answers => buffer[..len].fill(b'?'),
            _ => {}
        }
        if to.write_all(&buffer[..len]).await.is_err() {
            break;
        }
    }
}
