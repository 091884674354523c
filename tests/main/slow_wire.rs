//! A TCP proxy with a round trip time. It has its own thread, so it runs while the process under test is paused.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::redis_servers::Wire;

/// A proxy. Each packet arrives half a round trip after it was sent, independent of other packets.
pub struct SlowWire {
    address: SocketAddr,
    state: Arc<State>,
    end: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    round_trip_us: AtomicU64,
    is_silent: AtomicBool,
    connections: AtomicUsize,
}

impl SlowWire {
    pub fn to(server: String, round_trip: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::<State>::default());
        let (end, mut ended) = watch::channel(());
        let wire = Self { address, state: Arc::clone(&state), end };
        wire.set_round_trip(round_trip);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let accept = async {
                    while let Ok((client, _)) = listener.accept().await {
                        state.connections.fetch_add(1, Ordering::SeqCst);
                        tokio::spawn(serve(client, server.clone(), Arc::clone(&state)));
                    }
                };
                tokio::select! { () = accept => {}, _ = ended.changed() => {} }
            });
        });
        wire
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set_round_trip(&self, time: Duration) {
        self.state.round_trip_us.store(time.as_micros() as u64, Ordering::SeqCst);
    }

    /// Starts or ends a silence. Packets sent in a silence are lost, and so are all later packets of their connections.
    pub fn set_silent(&self, is_silent: bool) {
        self.state.is_silent.store(is_silent, Ordering::SeqCst);
    }

    /// Returns the number of connections made so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Measures the longest round trip on a separate connection, until it is stopped.
    pub fn watch(&self) -> Heartbeat {
        let (address, is_over) = (self.address, Arc::<AtomicBool>::default());
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let mut wire = Wire::open(&format!("redis://{address}/")).unwrap();
            let mut longest = Duration::ZERO;
            while !over.load(Ordering::SeqCst) {
                let begin = Instant::now();
                wire.ask(&["PING"]).unwrap();
                longest = longest.max(begin.elapsed());
            }
            longest
        });
        Heartbeat { is_over, thread }
    }
}

impl Drop for SlowWire {
    fn drop(&mut self) {
        self.end.send_replace(());
    }
}

/// A running measurement of the longest round trip.
pub struct Heartbeat {
    is_over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Duration>,
}

impl Heartbeat {
    pub fn longest(self) -> Duration {
        self.is_over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

async fn serve(client: TcpStream, server: String, state: Arc<State>) {
    if state.is_silent.load(Ordering::SeqCst) {
        // Stay silent after the silence ends: this connection was made during it.
        return std::future::pending().await;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    tokio::select! {
        () = copy(client_reads, server_writes, &state) => {}
        () = copy(server_reads, client_writes, &state) => {}
    }
}

async fn copy(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, state: &Arc<State>) {
    let (packets, mut in_flight) = mpsc::unbounded_channel::<(tokio::time::Instant, Vec<u8>)>();
    let read = async move {
        loop {
            let mut buffer = vec![0; 16_384];
            let Ok(len @ 1..) = from.read(&mut buffer).await else { return };
            if state.is_silent.load(Ordering::SeqCst) {
                return std::future::pending().await;
            }
            buffer.truncate(len);
            let half = Duration::from_micros(state.round_trip_us.load(Ordering::SeqCst) / 2);
            _ = packets.send((tokio::time::Instant::now() + half, buffer));
        }
    };
    let write = async move {
        while let Some((at, packet)) = in_flight.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&packet).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
