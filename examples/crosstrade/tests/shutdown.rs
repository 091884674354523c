//! Stopping the service: no accepted request is lost, and everything ends in time.

use std::sync::atomic::AtomicUsize;

use axum::{Router, routing::get};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::*;

/// Fails a test that waits in vain. No test waits for this time to pass.
const WATCHDOG: Duration = Duration::from_secs(60);
const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n";

/// A client that keeps one connection. It never sends on a connection that it has seen closed.
struct KeepAlive(TcpStream);

impl KeepAlive {
    /// Whether the server has closed the connection.
    fn is_closed(&self) -> bool {
        matches!(self.0.try_read(&mut [0]), Ok(0))
    }

    /// The head of the answer to `GET /healthz`; an error if the connection ends before.
    async fn ask(&mut self) -> std::io::Result<String> {
        self.0.write_all(HEALTH).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(br#"{"status":"ok"}"#) {
            if timeout(WATCHDOG, self.0.read_buf(&mut answer)).await.expect("the server answers")? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(String::from_utf8(answer).unwrap())
    }
}

/// Clients send requests, with pauses of different lengths, while the service stops at some moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_loses_no_request_of_keep_alive_clients() {
    let (lost, last) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for round in 0..40 {
        let server = Server::start().await;
        let clients: Vec<_> = (0..16_u64)
            .map(|client| {
                let (lost, last) = (Arc::clone(&lost), Arc::clone(&last));
                let addr = server.addr;
                tokio::spawn(async move {
                    let mut connection = KeepAlive(TcpStream::connect(addr).await.unwrap());
                    connection.ask().await.unwrap();
                    loop {
                        sleep(Duration::from_micros(client * 37 * (1 + client % 3))).await;
                        if connection.is_closed() {
                            break 0;
                        }
                        match connection.ask().await {
                            Err(_) => break lost.fetch_add(1, Ordering::SeqCst),
                            Ok(answer) if answer.contains("\r\nconnection: close\r\n") => {
                                break last.fetch_add(1, Ordering::SeqCst);
                            }
                            Ok(_) => {}
                        }
                    }
                })
            })
            .collect();
        let mut random = [0; 2];
        getrandom::fill(&mut random).unwrap();
        sleep(Duration::from_millis(20) + Duration::from_micros(u16::from_ne_bytes(random).into())).await;
        server.close.send(true).unwrap();
        for client in clients {
            timeout(WATCHDOG, client).await.unwrap_or_else(|_| panic!("round {round}: it ends")).unwrap();
        }
    }
    assert_eq!(lost.load(Ordering::SeqCst), 0, "requests without an answer");
    assert!(last.load(Ordering::SeqCst) > 0, "some clients were told that the connection ends");
}

/// Clients have connected and sent a request, and the service stops before it accepts their connections.
#[tokio::test]
async fn stop_answers_connections_in_the_queue() {
    for _ in 0..20 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            client.write_all(HEALTH).await.unwrap();
            clients.push(client);
        }
        let app = Router::new().route("/healthz", get(|| async { "well" }));
        let served = tokio::spawn(serve(listener, app, limits(), std::future::ready(())));
        for mut client in clients {
            let mut answer = String::new();
            timeout(WATCHDOG, client.read_to_string(&mut answer)).await.expect("the server closes").unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("well"), "{answer}");
            assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        }
        timeout(WATCHDOG, served).await.expect("it ends").unwrap();
    }
}

#[tokio::test]
async fn stop_closes_idle_connections() {
    let (drain, hours) = (Duration::from_millis(200), Duration::from_secs(7_200));
    let server = Server::start_limited(Limits { drain, grace: hours, head: hours, ..limits() }).await;
    let mut used = KeepAlive(TcpStream::connect(server.addr).await.unwrap());
    used.ask().await.unwrap();
    let unused = KeepAlive(TcpStream::connect(server.addr).await.unwrap());
    let mut late = KeepAlive(TcpStream::connect(server.addr).await.unwrap());
    late.ask().await.unwrap();
    server.close.send(true).unwrap();
    // It may still send a request.
    assert!(late.ask().await.unwrap().contains("\r\nconnection: close\r\n"));
    for mut connection in [used, unused, late] {
        let end = timeout(WATCHDOG, connection.0.read(&mut [0])).await;
        assert_eq!(end.expect("the server closes").unwrap(), 0);
    }
    timeout(WATCHDOG, server.close.closed()).await.expect("nothing is left of the service");
}

/// Requests that do not end are cut off after the grace period.
#[tokio::test]
async fn stop_does_not_wait_for_bodies_that_never_end() {
    let hours = Duration::from_secs(7_200);
    let server = Server::start_limited(Limits { grace: Duration::from_millis(500), body: hours, ..limits() }).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let head = format!(
        "POST /v1/api/accounts/sim101/orders/place HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TRADER}\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let endless = tokio::spawn(async move {
        while stream.write_all(b"1\r\n \r\n").await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    sleep(Duration::from_millis(100)).await;
    server.close.send(true).unwrap();
    timeout(WATCHDOG, server.close.closed()).await.expect("nothing is left of the service");
    timeout(WATCHDOG, endless).await.expect("the connection is closed").unwrap();
}

/// A client sends its request and shuts down its side before the answer is ready.
#[tokio::test]
async fn request_followed_by_a_half_close_is_answered() {
    let closed = Arc::new(Notify::new());
    let waiting = Arc::clone(&closed);
    let store = tollgate::store::from_fn(move |_| {
        let waiting = Arc::clone(&waiting);
        async move {
            waiting.notified().await;
            // The server sees the close now, and the answer is not ready.
            sleep(Duration::from_millis(50)).await;
            let grant = Grant::new("demo-1", User { name: "demo".to_owned() }).with_scopes(["trade"]).unwrap();
            Ok::<_, std::io::Error>(Some(grant))
        }
    });
    let tokens = Tokens::new(tollgate::BoxStore::new(store), |_| std::future::ready(Ok(None)));
    let server = Server::start_on(tokens, Errors::ProblemDetails).await;
    let alert = format!("key={TRADER};command=CANCELALLORDERS;");
    let alert = format!("content-type: text/plain\r\ncontent-length: {}\r\n\r\n{alert}", alert.len());
    for (path, rest) in
        [("GET /v1/api/accounts", format!("authorization: Bearer {TRADER}\r\n\r\n")), ("POST /v1/webhook", alert)]
    {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(format!("{path} HTTP/1.1\r\nhost: a\r\n{rest}").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        closed.notify_one();
        let mut answer = Vec::new();
        timeout(WATCHDOG, stream.read_to_end(&mut answer)).await.expect("the server closes").unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{path}: {}", answer.escape_ascii());
    }
}
