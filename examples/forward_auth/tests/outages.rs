//! A gate that is down, too slow or broken closes the service.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::setup::PATIENT;
use super::*;
use crate::proxy::Proxy;

with_each_proxy! {
    gate_that_ends_closes_the_service
    gate_that_fails_closes_the_service
}

async fn gate_that_ends_closes_the_service(proxy: Proxy) {
    let mut setup = Setup::start(proxy);
    assert_eq!(setup.send(request("GET", "/v1/a", EVE)).await.status, 200);
    setup.gate = None;
    // Connections that the proxy has kept may end some time after the runtime.
    for _ in 0..20 {
        let response = setup.send(request("GET", "/v1/a", EVE)).await;
        assert_eq!(response.status, if proxy == Proxy::Nginx { 503 } else { 502 }, "{response:?}");
    }
}

async fn gate_that_fails_closes_the_service(proxy: Proxy) {
    for answer in [
        // Silence, until the timeout of the proxy.
        None,
        Some(""),
        Some("garbage\r\n\r\n"),
        Some("\u{16}\u{3}\u{1}"),
        Some("HTTP/1.1 200 OK\r\n"),
        Some("HTTP/1.1 yes OK\r\n\r\n"),
        Some("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"),
        Some("HTTP/1.1 302 Found\r\nlocation: /v1/a\r\ncontent-length: 0\r\n\r\n"),
    ] {
        let timeout = if answer.is_none() { "300ms" } else { PATIENT };
        let setup = Setup::with_gate_at(proxy, serve(answer).await, timeout);
        let response = setup.send(request("GET", "/v1/a", EVE)).await;
        let status = response.status.as_u16();
        match (proxy, answer) {
            (Proxy::Nginx, _) => assert_eq!(status, 503, "{answer:?}"),
            (_, None) => assert_eq!(status, 504),
            // Caddy passes on each answer that is no decision.
            (_, Some(text)) if text.starts_with("HTTP/1.1 500") => assert_eq!(status, 500),
            (_, Some(text)) if text.starts_with("HTTP/1.1 302") => assert_eq!(status, 302),
            (_, Some(_)) => assert_eq!(status, 502, "{answer:?}"),
        }
        assert!(!response.body.contains("target"), "{answer:?}: {response:?}");
    }
}

/// Serves the same bytes on each connection, or nothing at all.
async fn serve(answer: Option<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            _ = stream.read(&mut [0; 4_096]).await;
            match answer {
                Some(answer) => _ = stream.write_all(answer.as_bytes()).await,
                None => open.push(stream),
            }
        }
    });
    addr
}
