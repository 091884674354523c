//! Tests of request heads from unauthenticated clients, byte by byte.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::protocol::MAX_HEAD;

/// Far more than any time limit of the server.
const WATCHDOG: Duration = Duration::from_secs(20);

/// Sends bytes and returns the response until the server closes.
async fn raw(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    // The server may close before it has read all.
    _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    _ = timeout(WATCHDOG, stream.read_to_end(&mut answer)).await.expect("the server closes");
    String::from_utf8(answer).unwrap()
}

fn head_with(fields: &str) -> String {
    format!("GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{fields}\r\n")
}

#[tokio::test]
async fn heads_are_bounded_in_size() {
    let server = Server::start().await;
    let padding = |bytes| format!("x-padding: {}\r\n", "a".repeat(bytes));
    assert!(raw(&server, &head_with(&padding(MAX_HEAD / 2))).await.starts_with("HTTP/1.1 200 "));
    assert!(raw(&server, &head_with(&padding(2 * MAX_HEAD))).await.starts_with("HTTP/1.1 431 "));
    assert!(raw(&server, &head_with(&"x-a: 1\r\n".repeat(40))).await.starts_with("HTTP/1.1 200 "));
    assert!(raw(&server, &head_with(&"x-a: 1\r\n".repeat(80))).await.starts_with("HTTP/1.1 431 "));
}

/// A client that sends single bytes cannot hold a connection without end.
#[tokio::test]
async fn heads_are_bounded_in_time() {
    let server = Server::start().await;
    for sent in ["", "GET /healthz HTTP/1.1\r\nhost: a\r\n"] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let drip = async {
            loop {
                sleep(HEAD_TIMEOUT / 5).await;
                if !sent.is_empty() && write.write_all(b"x: y\r\n").await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let begin = Instant::now();
        let mut answer = Vec::new();
        tokio::select! {
            closed = timeout(WATCHDOG, read.read_to_end(&mut answer)) => drop(closed.expect("the server closes")),
            () = drip => unreachable!("it never ends"),
        }
        assert!(begin.elapsed() >= HEAD_TIMEOUT, "not before the timeout");
        assert_eq!(String::from_utf8_lossy(&answer), "", "no response is sent");
    }
}

#[tokio::test]
async fn requests_in_progress_are_answered_after_stop() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let body = format!("key={TRADER};command=CANCELALLORDERS;");
    let head = format!(
        "POST /v1/webhook HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    sleep(HEAD_TIMEOUT / 10).await;
    server.close.send(true).unwrap();
    sleep(HEAD_TIMEOUT / 10).await;
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(WATCHDOG, stream.read_to_end(&mut answer)).await.expect("the server closes").unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(TcpStream::connect(server.addr).await.is_err(), "the listener is closed");
}
