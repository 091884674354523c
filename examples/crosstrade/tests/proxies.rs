//! The service behind proxies in the network 127.0.1.0/24, and clients behind them.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::peers::FAILURES;
use crate::proxies::Proxies;

/// Fails a test that waits in vain. No test waits for this time to pass.
const WATCHDOG: Duration = Duration::from_secs(60);
const PROXY: [u8; 4] = [127, 0, 1, 1];
const DIRECT: [u8; 4] = [127, 0, 0, 1];
const HTTPS: &str = "x-forwarded-proto: https\r\n";

async fn start(limits: Limits) -> Server {
    let proxies = Proxies::new(&["127.0.1.0/24".parse().unwrap()]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (limits, access) = (Limits { proxies: Some(proxies.clone()), ..limits }, Access::behind(proxies));
    let listeners = |app| vec![Listener::plaintext(listener, app)];
    Server::start_on_all(addr, limits, demo_tokens().into(), Errors::ProblemDetails, access, listeners)
}

async fn connect(server: &Server, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(Ipv4Addr::from(from).into(), 0)).unwrap();
    socket.connect(server.addr).await.unwrap()
}

/// The status of a request with these fields from this address.
async fn status(server: &Server, from: [u8; 4], path: &str, token: &str, fields: &str) -> u16 {
    let mut stream = connect(server, from).await;
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\nconnection: close\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(WATCHDOG, stream.read_to_string(&mut answer)).await.expect("the server closes").unwrap();
    answer[9..12].parse().unwrap()
}

#[tokio::test]
async fn tokens_are_rejected_unless_the_proxy_reports_https() {
    let server = start(limits()).await;
    for (from, fields, expected) in [
        (PROXY, "x-forwarded-for: 192.0.2.1\r\nx-forwarded-proto: https\r\n", 200),
        (PROXY, HTTPS, 200),
        (PROXY, "x-forwarded-for: 192.0.2.1\r\nx-forwarded-proto: http\r\n", 403),
        (PROXY, "x-forwarded-for: 192.0.2.1\r\n", 403),
        (PROXY, "x-forwarded-proto: https\r\nx-forwarded-proto: http\r\n", 403),
        // Not a proxy, whatever it says.
        (DIRECT, HTTPS, 403),
        (DIRECT, "", 403),
    ] {
        assert_eq!(status(&server, from, "/v1/api/accounts", TRADER, fields).await, expected, "{fields}");
        assert_eq!(status(&server, from, "/healthz", TRADER, fields).await, 200, "{fields}");
    }
}

#[tokio::test]
async fn failed_authentications_count_for_the_client_and_not_for_the_proxy() {
    let server = start(limits()).await;
    let guess = async |client: &str| {
        let fields = format!("x-forwarded-for: 203.0.113.7, {client}\r\n{HTTPS}");
        status(&server, PROXY, "/v1/api/accounts", "ct_guess", &fields).await
    };
    for _ in 0..FAILURES.burst() {
        assert_eq!(guess("192.0.2.1").await, 401);
    }
    assert_eq!(guess("192.0.2.1").await, 429);
    assert_eq!(guess("192.0.2.2").await, 401, "another client");
    assert_eq!(guess("203.0.113.7, 192.0.2.1, 127.0.1.9").await, 429, "through two proxies");
    assert_eq!(guess("52.89.214.238").await, 401, "TradingView");
}

/// A WebSocket of a client, with the proxy as its peer.
async fn upgrade(server: &Server, client: &str) -> (TcpStream, String) {
    let mut stream = connect(server, PROXY).await;
    let request = format!(
        "GET /ws/stream HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TRADER}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         x-forwarded-for: {client}\r\n{HTTPS}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    timeout(WATCHDOG, stream.read_exact(&mut status)).await.expect("an answer").unwrap();
    (stream, String::from_utf8(status[9..].into()).unwrap())
}

/// A client may have so many requests and WebSockets open at the same time as connections without a proxy.
#[tokio::test]
async fn open_requests_are_limited_per_client_and_connections_of_proxies_in_total_only() {
    let server = start(Limits { connections: 12, connections_per_peer: 2, ..limits() }).await;
    let mut open = Vec::new();
    for expected in ["101", "101", "503"] {
        let (stream, status) = upgrade(&server, "192.0.2.1").await;
        assert_eq!(status, expected);
        open.push(stream);
    }
    let ask = async |client: &str| {
        let fields = format!("x-forwarded-for: {client}\r\n{HTTPS}");
        status(&server, PROXY, "/healthz", TRADER, &fields).await
    };
    assert_eq!(ask("192.0.2.1").await, 503);
    // Completed requests do not count. The proxy keeps more connections than a client may have.
    for _ in 0..6 {
        assert_eq!(ask("192.0.2.2").await, 200);
    }
    for _ in 0..6 {
        open.push(connect(&server, PROXY).await);
    }
    assert_eq!(ask("192.0.2.2").await, 200);
    // A client without the proxy is limited by its connections.
    let direct = [connect(&server, DIRECT).await, connect(&server, DIRECT).await];
    assert_eq!(status(&server, DIRECT, "/healthz", TRADER, "").await, 503);
    drop(direct);
    drop(open);
    let admitted = async { while ask("192.0.2.1").await != 200 {} };
    timeout(WATCHDOG, admitted).await.expect("there is room again");
}

/// A connection of the proxy carries requests of several clients, one after the other.
#[tokio::test]
async fn requests_on_one_connection_count_for_their_clients() {
    let server = start(Limits { connections_per_peer: 1, ..limits() }).await;
    let mut stream = connect(&server, PROXY).await;
    for client in ["192.0.2.1", "192.0.2.2", "192.0.2.1", "127.0.1.1"] {
        let request = format!("GET /healthz HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {client}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert!(timeout(WATCHDOG, stream.read_buf(&mut answer)).await.expect("the server answers").unwrap() > 0);
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{client}: {answer}");
        assert!(answer.contains("\r\ncontent-length: "), "{answer}");
    }
}
