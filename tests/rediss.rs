//! TLS to Redis installs no crypto provider. This test has its own process, so that no other code has installed one.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::Read as _;
use std::net::TcpListener;
use std::num::NonZeroU32;
use std::sync::mpsc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use tollgate::limit::redis::{RedisLimits, RedisServer};
use tollgate::limit::{Charge, RateLimits};
use tollgate::{CurrentGrant, Grant, Limiter as _, Quota};

const NEVER: Duration = Duration::from_secs(30);

/// Accepts connections, and sends the first byte of each: 22 begins a TLS handshake (RFC 8446, section 5.1).
fn listen() -> (u16, mpsc::Receiver<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (send, first_bytes) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut byte = [0];
            if stream.unwrap().read_exact(&mut byte).is_ok() {
                _ = send.send(byte[0]);
            }
        }
    });
    (port, first_bytes)
}

#[tokio::test]
async fn a_rediss_connection_installs_no_crypto_provider() {
    let (port, first_bytes) = listen();
    let url = format!("rediss://localhost:{port}");
    let servers = [
        RedisServer::single(&url).unwrap(),
        RedisServer::sentinel("rediss://name", [&*url]).unwrap(),
        RedisServer::cluster([&*url]).unwrap(),
    ];
    for server in servers {
        assert!(CryptoProvider::get_default().is_none(), "installed by {server:?}");
        let limits = RedisLimits::new(RateLimits::new(Quota::per_second(1)), server, [7; 32], NonZeroU32::MIN).unwrap();
        let decision = limits.charge(&CurrentGrant::new(Grant::new("alice", ())), Charge::Units(1)).await;
        assert!(decision.is_local(), "the server does not speak TLS");
        assert_eq!(first_bytes.recv_timeout(NEVER), Ok(22));
        assert!(CryptoProvider::get_default().is_none());
    }
}
