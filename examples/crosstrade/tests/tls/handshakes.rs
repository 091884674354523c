//! Handshakes: versions, protocols, deadlines, and clients that do not speak TLS.

use std::net::Ipv4Addr;

use super::*;

#[tokio::test]
async fn clients_choose_the_protocol_by_alpn_on_each_version_of_tls() {
    let secure = Secure::start().await;
    for version in [&TLS12, &TLS13] {
        for (offered, negotiated) in [
            (&[HTTP2, HTTP1][..], Some(HTTP2)),
            (&[HTTP1, HTTP2], Some(HTTP2)),
            (&[HTTP1], Some(HTTP1)),
            (&[HTTP2], Some(HTTP2)),
            (&[], None),
        ] {
            let config = config_of(secure.folder.roots(), offered, &[version]);
            let mut stream = connect(secure.server.addr, config).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), negotiated, "{version:?}");
            assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
            if negotiated == Some(HTTP2) {
                let io = TokioIo::new(stream);
                let (mut sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(connection);
                let response = get_http2(&mut sender, "/v1/api/accounts", TRADER).await;
                assert_eq!(response.status(), StatusCode::OK);
                assert_eq!(response.headers()["strict-transport-security"], "max-age=31536000");
            } else {
                let request = format!(
                    "GET /v1/api/accounts HTTP/1.1\r\nhost: broker.example\r\nauthorization: Bearer {TRADER}\r\n\
                     connection: close\r\n\r\n"
                );
                stream.write_all(request.as_bytes()).await.unwrap();
                let answer = rest(&mut stream).await;
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                assert!(answer.contains("\r\nstrict-transport-security: max-age=31536000\r\n"), "{answer}");
            }
        }
    }
    let unknown = connect(secure.server.addr, config(secure.folder.roots(), &[b"spdy/3"])).await;
    assert!(unknown.unwrap_err().to_string().contains("NoApplicationProtocol"));
}

/// It would force HTTPS on all other services of a developer's machine.
#[tokio::test]
async fn localhost_gets_no_hsts() {
    let secure = Secure::start().await;
    for (host, has_hsts) in [("localhost:8443", false), ("LOCALHOST", false), ("broker.example", true), ("a b", true)] {
        let mut stream = secure.connect(&[]).await;
        let request = format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert_eq!(answer.contains("\r\nstrict-transport-security: "), has_hsts, "{host}: {answer}");
    }
}

#[tokio::test]
async fn rejections_at_the_gates_have_the_same_form_over_http2() {
    let secure = Secure::start().await;
    let (mut sender, _connection) = secure.http2().await;
    assert_problem(&get_http2(&mut sender, "/v1/api/accounts", "ct_guess").await, StatusCode::UNAUTHORIZED);
    assert_problem(&get_http2(&mut sender, "/nowhere", TRADER).await, StatusCode::NOT_FOUND);
    secure.server.set_clocks(1);
    for _ in 0..QUOTA.burst() {
        assert_eq!(get_http2(&mut sender, "/v1/api/accounts", TRADER).await.status(), StatusCode::OK);
    }
    assert_problem(&get_http2(&mut sender, "/v1/api/accounts", TRADER).await, StatusCode::TOO_MANY_REQUESTS);
}

async fn connect_from(addr: SocketAddr, last: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(Ipv4Addr::new(127, 0, 0, last).into(), 0)).unwrap();
    socket.connect(addr).await.unwrap()
}

/// One client sends nothing, one a byte, and one a byte now and then.
#[tokio::test]
async fn slow_handshakes_are_closed_after_the_deadline() {
    let hours = Duration::from_secs(7_200);
    let handshake = Duration::from_millis(500);
    let secure = Secure::start_limited(Limits { handshake, head: hours, write: hours, ..limits() }).await;
    let begin = Instant::now();
    let clients = [(&b""[..], false), (b"\x16", false), (b"\x16\x03\x01\x02\x00", true)].map(|(sent, drips)| {
        let addr = secure.server.addr;
        async move {
            let (mut read, mut write) = TcpStream::connect(addr).await.unwrap().into_split();
            write.write_all(sent).await.unwrap();
            let drip = async {
                while drips && write.write_all(b"\x01").await.is_ok() {
                    sleep(handshake / 20).await;
                }
                std::future::pending::<()>().await;
            };
            let mut answer = Vec::new();
            tokio::select! {
                // Whether by a reset or not.
                closed = timeout(WATCHDOG, read.read_to_end(&mut answer)) => drop(closed.expect("the server closes")),
                () = drip => {}
            }
        }
    });
    futures_util::future::join_all(clients).await;
    assert!(begin.elapsed() >= handshake, "not before the deadline");
}

/// Handshakes in progress count as open connections of their peer, and other peers are not blocked.
#[tokio::test]
async fn slow_handshakes_count_and_block_no_other_peer() {
    let handshake = Duration::from_secs(7_200);
    let limits = Limits { handshake, connections: 8, connections_per_peer: 6, rejections: 2, ..limits() };
    let secure = Secure::start_limited(limits).await;
    let mut slow = Vec::new();
    for _ in 0..6 {
        let mut stream = connect_from(secure.server.addr, 2).await;
        stream.write_all(b"\x16").await.unwrap();
        slow.push(stream);
    }
    let ask = async |last| {
        let stream = connect_from(secure.server.addr, last).await;
        let config = Arc::new(config(secure.folder.roots(), &[HTTP2, HTTP1]));
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = timeout(WATCHDOG, TlsConnector::from(config).connect(name, stream)).await.unwrap().unwrap();
        let protocol = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        if protocol.as_deref() == Some(HTTP2) {
            return "h2".to_owned();
        }
        stream.write_all(HEALTH).await.unwrap();
        rest(&mut stream).await
    };
    // Over TLS too, the answer beyond the limit is 503. It is HTTP/1.
    let busy = ask(2).await;
    assert!(busy.starts_with("HTTP/1.1 503 ") && busy.contains("\r\nretry-after: "), "{busy}");
    assert_eq!(ask(3).await, "h2");
    // A client that says nothing takes no place of the rejections for longer than a second.
    let silent = [connect_from(secure.server.addr, 2).await, connect_from(secure.server.addr, 2).await];
    for mut stream in silent {
        _ = timeout(WATCHDOG, stream.read(&mut [0])).await.expect("the server closes");
    }
    drop(slow);
    let admitted = async { while ask(2).await != "h2" {} };
    timeout(WATCHDOG, admitted).await.expect("there is room again");
}

#[tokio::test]
async fn plaintext_request_to_the_tls_port_gets_an_alert() {
    let secure = Secure::start().await;
    let mut stream = TcpStream::connect(secure.server.addr).await.unwrap();
    let head = format!("POST /v1/webhook HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TRADER}\r\n");
    // More than the server reads before it fails.
    let request = format!("{head}content-length: 200000\r\n\r\n{}", " ".repeat(200_000));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(WATCHDOG, stream.read_to_end(&mut answer)).await.expect("the server closes").expect("without a reset");
    // A fatal alert (RFC 8446, section 6).
    assert_eq!((answer[0], answer[5]), (21, 2), "{}", answer.escape_ascii());
    secure.connect(&[]).await;
}

#[tokio::test]
async fn stop_waits_for_a_handshake_and_answers_its_request() {
    let secure = Secure::start().await;
    let stream = TcpStream::connect(secure.server.addr).await.unwrap();
    sleep(HEAD_TIMEOUT / 10).await;
    secure.server.close.send(true).unwrap();
    sleep(HEAD_TIMEOUT / 10).await;
    let config = Arc::new(config(secure.folder.roots(), &[HTTP1]));
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    timeout(WATCHDOG, secure.server.close.closed()).await.expect("nothing is left of the service");
}

#[tokio::test]
async fn stop_ends_slow_handshakes_after_the_grace_period() {
    let (grace, handshake) = (Duration::from_millis(300), Duration::from_secs(7_200));
    let secure = Secure::start_limited(Limits { grace, handshake, ..limits() }).await;
    let mut stream = TcpStream::connect(secure.server.addr).await.unwrap();
    stream.write_all(b"\x16").await.unwrap();
    sleep(HEAD_TIMEOUT / 10).await;
    secure.server.close.send(true).unwrap();
    _ = timeout(WATCHDOG, stream.read(&mut [0])).await.expect("the server closes");
    timeout(WATCHDOG, secure.server.close.closed()).await.expect("nothing is left of the service");
}

#[tokio::test]
async fn client_that_never_reads_over_tls_is_disconnected() {
    let secure = Secure::start_limited(Limits { write: Duration::from_millis(300), ..limits() }).await;
    let mut stream = secure.connect(&[HTTP1]).await;
    let request = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n";
    let flood = async { while stream.write_all(request).await.is_ok() {} };
    timeout(WATCHDOG, flood).await.expect("the server closes the connection");
}

#[tokio::test]
async fn websocket_over_tls_works() {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

    let secure = Secure::start().await;
    let open = async |token: &str| {
        let stream = secure.connect(&[HTTP1]).await;
        let mut request = "wss://localhost/ws/stream".into_client_request().unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        tokio_tungstenite::client_async(request, stream).await
    };
    assert!(open("ct_guess").await.is_err());
    let (mut socket, _) = open(TRADER).await.unwrap();
    // For longer than an idle connection stays open.
    sleep(2 * HEAD_TIMEOUT).await;
    socket.send(Message::text(r#"{"op":"ping"}"#)).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(r#"{"op":"pong"}"#));
    secure.server.close.send(true).unwrap();
    let close = timeout(WATCHDOG, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(close.is_close(), "{close:?}");
    _ = timeout(WATCHDOG, socket.next()).await.unwrap();
    timeout(WATCHDOG, secure.server.close.closed()).await.expect("nothing is left of the service");
}
