//! Tests of the limits on connections, and on the time of bodies and responses.

use std::net::{IpAddr, Ipv4Addr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::connections::Connections;
use crate::io::{LINGER, TimedIo};

/// Fails a test that waits in vain. No test waits for this time to pass.
const WATCHDOG: Duration = Duration::from_secs(60);
const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n";

/// A server with these limits, and with a small buffer for each connection.
async fn start(limits: Limits) -> Server {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(8_192).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let trader = Grant::new("demo-1", User { name: "demo".to_owned() }).with_scopes(["trade"]).unwrap();
    let tokens = MemoryStore::from_iter([(TokenDigest::of(TRADER), trader)]);
    Server::start_at(socket.listen(1_024).unwrap(), limits, tokens.into(), Errors::ProblemDetails)
}

async fn connect_from(server: &Server, last: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.bind(SocketAddr::new(Ipv4Addr::new(127, 0, 0, last).into(), 0)).unwrap();
    socket.connect(server.addr).await.unwrap()
}

/// The answer until the server closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    timeout(WATCHDOG, stream.read_to_end(&mut answer)).await.expect("the server closes").unwrap();
    String::from_utf8(answer).unwrap()
}

/// The answer to a request on a connection that stays open.
async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(HEALTH).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        assert!(timeout(WATCHDOG, stream.read_buf(&mut answer)).await.expect("the server answers").unwrap() > 0);
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn client_that_never_reads_is_disconnected() {
    let server = start(Limits { write: Duration::from_millis(300), ..limits() }).await;
    let mut stream = connect_from(&server, 1).await;
    // While the client reads no responses, the server reads no more requests.
    let flood = async { while stream.write_all(HEALTH).await.is_ok() {} };
    timeout(WATCHDOG, flood).await.expect("the server closes the connection");
}

/// Time is the runtime's own, which jumps to the next timer when there is nothing else to do.
#[tokio::test(start_paused = true)]
async fn client_that_reads_too_slowly_is_disconnected() {
    let max_wait = Duration::from_secs(10);
    let (ours, mut theirs) = tokio::io::duplex(64);
    let mut io = TimedIo::new(ours, max_wait, None);
    let reader = tokio::spawn(async move {
        // Everything, just in time; then a byte a second.
        sleep(max_wait - Duration::from_secs(1)).await;
        theirs.read_exact(&mut [0; 1_000]).await.unwrap();
        loop {
            sleep(Duration::from_secs(1)).await;
            theirs.read_u8().await.unwrap();
        }
    });
    io.write_all(&[0; 1_000]).await.unwrap();
    let begin = Instant::now();
    assert_eq!(io.write_all(&[0; 1_000]).await.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert!((max_wait..max_wait + Duration::from_secs(1)).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    reader.abort();
}

#[tokio::test]
async fn connections_are_limited_per_peer_and_in_total() {
    let head = Duration::from_secs(600);
    let server = start(Limits { connections: 5, connections_per_peer: 3, head, ..limits() }).await;
    let mut open = Vec::new();
    for last in [2, 2, 2, 3, 3] {
        let mut stream = connect_from(&server, last).await;
        assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200 "));
        open.push(stream);
    }
    let rejected = async |last| {
        let mut stream = connect_from(&server, last).await;
        stream.write_all(HEALTH).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n") && answer.contains("\r\nretry-after: "), "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(answer.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{answer}");
        assert_eq!(serde_json::from_str::<Value>(body).unwrap()["status"], 503);
    };
    rejected(4).await;
    let is_admitted_after = async |dropped: TcpStream, last| {
        drop(dropped);
        let admitted = async {
            loop {
                let mut stream = connect_from(&server, last).await;
                stream.write_all(HEALTH).await.unwrap();
                let mut status = [0; 12];
                stream.read_exact(&mut status).await.unwrap();
                if &status == b"HTTP/1.1 200" {
                    return stream;
                }
            }
        };
        timeout(WATCHDOG, admitted).await.expect("there is room again")
    };
    // A place in total, which is not for the peer that has three already.
    drop(open.pop());
    rejected(2).await;
    let fifth = is_admitted_after(open.pop().unwrap(), 4).await;
    _ = is_admitted_after(open.swap_remove(0), 2).await;
    drop(fifth);
}

#[tokio::test]
async fn websockets_are_counted_until_they_are_closed() {
    let server = start(Limits { connections: 1, ..limits() }).await;
    let mut socket = connect_from(&server, 2).await;
    let upgrade = format!(
        "GET /ws/stream HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TRADER}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(upgrade.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    socket.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 101");
    // For longer than an idle connection stays open.
    sleep(2 * HEAD_TIMEOUT).await;
    let status = async || {
        let mut stream = connect_from(&server, 2).await;
        stream.write_all(HEALTH).await.unwrap();
        stream.shutdown().await.unwrap();
        rest(&mut stream).await[9..12].to_owned()
    };
    assert_eq!(status().await, "503");
    drop(socket);
    let admitted = async { while status().await != "200" {} };
    timeout(WATCHDOG, admitted).await.expect("there is room again");
}

/// Clients that connect and say nothing take no place for longer than a second.
#[tokio::test]
async fn rejections_are_bounded_in_number_and_time() {
    let server = start(Limits { connections: 1, rejections: 2, head: Duration::from_secs(600), ..limits() }).await;
    let mut first = connect_from(&server, 2).await;
    ask(&mut first).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(connect_from(&server, 3).await);
    }
    for stream in &mut silent {
        let mut answer = Vec::new();
        // Whether by a reset or not, without an answer.
        _ = timeout(WATCHDOG, stream.read_to_end(&mut answer)).await.expect("the server closes");
        assert!(answer.is_empty());
    }
    let mut stream = connect_from(&server, 4).await;
    stream.write_all(HEALTH).await.unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 503 "));
    assert!(ask(&mut first).await.starts_with("HTTP/1.1 200 "));
}

#[test]
fn peers_with_many_users_are_limited_in_total_only() {
    let (_stopping, stopped) = watch::channel(false);
    let connections = Connections::new(&Limits { connections: 9, connections_per_peer: 2, ..limits() }, stopped);
    let admit = |peer: &str| connections.admit(peer.parse::<IpAddr>().unwrap());
    let mut open: Vec<_> = ["10.0.0.1", "::ffff:10.0.0.1"].map(admit).into();
    assert!(admit("10.0.0.1").is_none());
    open.extend(["2001:db8::1", "2001:db8::2"].map(admit));
    assert!(open.iter().all(Option::is_some));
    assert!(admit("2001:db8::3").is_none(), "one network of IPv6 is one peer");
    // TradingView sends the alerts of all users.
    open.extend((0..5).map(|_| admit("52.89.214.238")));
    assert!(open.iter().all(Option::is_some));
    assert!(admit("52.89.214.238").is_none());
    open.clear();
    assert!(admit("10.0.0.1").is_some());
}

#[test]
fn limits_follow_the_number_of_descriptors() {
    for descriptors in [1, 16, 256, 1_024, 1 << 20] {
        let limits = Limits::for_descriptors(descriptors);
        assert!(limits.connections >= 1 && limits.connections_per_peer >= 1);
        assert!(limits.connections + limits.rejections <= descriptors);
    }
    let limits = Limits::for_descriptors(256);
    assert_eq!((limits.connections, limits.connections_per_peer, limits.rejections), (192, 48, 16));
}

fn post(path: &str, token: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n"
    )
}

/// A body comes byte by byte, without end.
#[tokio::test]
async fn bodies_are_limited_in_time() {
    let server = start(limits()).await;
    let cases = [
        ("/v1/api/accounts/sim101/orders/place", 408),
        ("/v1/webhook", 408),
        // The handler does not read the body.
        ("/v1/api/accounts/sim101/positions/flatten", 200),
        ("/nowhere", 404),
    ];
    let answers = cases.map(|(path, status)| {
        let connection = TcpStream::connect(server.addr);
        async move {
            let (mut read, mut write) = connection.await.unwrap().into_split();
            write.write_all(post(path, TRADER).as_bytes()).await.unwrap();
            let drip = tokio::spawn(async move {
                while write.write_all(b"1\r\n \r\n").await.is_ok() {
                    sleep(Duration::from_millis(10)).await;
                }
            });
            let mut answer = Vec::new();
            timeout(WATCHDOG, read.read_to_end(&mut answer)).await.expect("the server closes").unwrap();
            let answer = String::from_utf8(answer).unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
            timeout(WATCHDOG, drip).await.expect("the server closes").unwrap();
            answer
        }
    });
    let answers = futures_util::future::join_all(answers).await;
    assert!(answers[0].contains("\r\nconnection: close\r\n"), "{}", answers[0]);
}

/// The client sends all of a large body before it reads. It gets the whole answer, and no reset before.
#[tokio::test]
async fn bodies_are_limited_in_size() {
    let server = Server::start().await;
    for (path, token, status) in [
        ("/v1/api/accounts/sim101/orders/place", TRADER, 413),
        ("/v1/webhook", TRADER, 413),
        ("/v1/api/accounts/sim101/positions/flatten", TRADER, 200),
        ("/v1/api/accounts/sim101/positions/flatten", READER, 403),
        ("/nowhere", TRADER, 404),
    ] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(post(path, token).as_bytes()).await.unwrap();
        let chunk = format!("{:x}\r\n{}\r\n", 50_000, " ".repeat(50_000));
        let begin = Instant::now();
        for _ in 0..20 {
            let written = stream.write_all(chunk.as_bytes()).await;
            assert!(written.is_ok() || begin.elapsed() > LINGER / 2, "{path}: {written:?}");
            // The server reads, answers and closes in between.
            sleep(Duration::from_millis(2)).await;
        }
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        assert!(answer.ends_with('}'), "{path}: {answer}");
    }
}
