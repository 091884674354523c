//! The plaintext listener beside TLS.

use super::super::log::Captured;
use super::*;
use crate::metrics;

/// The answer of the plaintext listener to these bytes.
async fn ask(secure: &Secure, request: &str) -> String {
    let mut stream = TcpStream::connect(secure.http).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(&mut stream).await
}

fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\n{fields}connection: close\r\n\r\n")
}

#[track_caller]
fn assert_rejected(answer: &str, status: u16) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(head.contains("\r\ncontent-type: application/problem+json"), "{answer}");
    for absent in ["\r\nlocation:", "\r\nstrict-transport-security:", "\r\nwww-authenticate:"] {
        assert!(!head.contains(absent), "{answer}");
    }
    assert_eq!(serde_json::from_str::<Value>(body).unwrap()["status"], status);
}

/// They are rejected, counted, and reported with the id of the grant.
#[tokio::test]
async fn tokens_in_plaintext_are_rejected() {
    let recorder = Box::leak(Box::new(metrics::recorder().unwrap()));
    let handle = recorder.handle();
    let _writing = ::metrics::set_default_local_recorder(recorder);
    let (log, _, _guard) = Captured::start();
    let secure = Secure::start().await;
    let bearer = format!("host: localhost\r\nauthorization: Bearer {TRADER}\r\n");
    assert_rejected(&ask(&secure, &get("/v1/api/accounts", &bearer)).await, 403);
    let lines = log.take();
    assert!(lines.len() == 1 && lines[0].starts_with("WARN") && lines[0].contains("demo-1"), "{lines:?}");

    // A field that only proxies may send changes nothing.
    let forged = format!("{bearer}x-forwarded-proto: https\r\nforwarded: proto=https\r\n");
    assert_rejected(&ask(&secure, &get("/v1/api/accounts", &forged)).await, 403);
    assert_rejected(&ask(&secure, &get("https://localhost/v1/api/accounts", &bearer)).await, 403);
    let unknown = "host: localhost\r\nauthorization: Bearer ct_guess\r\n";
    assert_rejected(&ask(&secure, &get("/v1/api/accounts", unknown)).await, 403);
    assert_rejected(&ask(&secure, &get("/v1/api/accounts", "host: localhost\r\n")).await, 403);
    let upgrade = format!(
        "{bearer}connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    );
    assert_rejected(&ask(&secure, &get("/ws/stream", &upgrade)).await, 403);
    let key = format!("key={TRADER};command=CANCELALLORDERS;");
    let alert = format!(
        "POST /v1/webhook HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{key}",
        key.len()
    );
    assert_rejected(&ask(&secure, &alert).await, 403);
    // No gate judges requests that match no route.
    assert_rejected(&ask(&secure, &get("/v1/webhook", &bearer)).await, 403);
    assert_rejected(&ask(&secure, &get("/v1/nowhere", &bearer)).await, 403);

    let metrics = handle.render();
    let counted = |line: &&str| line.starts_with(r#"tollgate_requests_total{outcome="https_required""#);
    let counted: u32 =
        metrics.lines().filter(counted).map(|line| line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()).sum();
    assert_eq!(counted, 7, "{metrics}");
    // Over TLS the same token is admitted, and nothing was charged before.
    let mut stream = secure.connect(&[]).await;
    stream.write_all(get("/v1/api/accounts", &bearer).as_bytes()).await.unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn pages_are_redirected_to_https_of_the_same_host() {
    let secure = Secure::start().await;
    let port = secure.server.addr.port();
    for (target, host, location) in [
        ("/account", "localhost", "localhost:PORT/account"),
        ("/", "localhost:80", "localhost:PORT/"),
        ("/account/tokens?page=2&q=%2F", "LOCALHOST:8080", "LOCALHOST:PORT/account/tokens?page=2&q=%2F"),
        ("/sign-in", "127.0.0.1", "127.0.0.1:PORT/sign-in"),
        ("/sign-in", "[::1]:80", "[::1]:PORT/sign-in"),
        ("/v1", "broker.example", "broker.example:PORT/v1"),
        ("//evil.example/", "broker.example", "broker.example:PORT//evil.example/"),
        ("http://broker.example/account", "ignored.example", "broker.example:PORT/account"),
    ] {
        for method in ["GET", "HEAD"] {
            let request = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            let answer = ask(&secure, &request).await;
            assert!(answer.starts_with("HTTP/1.1 308 "), "{target} {host}: {answer}");
            let location = format!("\r\nlocation: https://{}\r\n", location.replace("PORT", &port.to_string()));
            assert!(answer.contains(&location), "{target} {host}: {answer}");
            assert!(!answer.contains("strict-transport-security"), "{answer}");
        }
    }
}

#[tokio::test]
async fn redirects_lead_to_no_other_host() {
    let secure = Secure::start().await;
    for (target, fields, status) in [
        ("/account", "host: evil.example\r\n", 421),
        ("/account", "host: localhost.evil.example\r\n", 421),
        ("/account", "host: 127.0.0.2\r\n", 421),
        ("http://evil.example/account", "host: localhost\r\n", 421),
        ("/account", "", 400),
        ("/account", "host: \r\n", 400),
        ("/account", "host: localhost\r\nhost: evil.example\r\n", 400),
        ("/account", "host: localhost/@evil.example\r\n", 400),
        ("/account", "host: evil.example@localhost\r\n", 400),
        ("/account", "host: localhost@evil.example\r\n", 400),
        ("/account", "host: evil.example#localhost\r\n", 400),
        ("/account", "host: localhost evil.example\r\n", 400),
        ("/account", "host: localhost, evil.example\r\n", 400),
        ("/account", "host: [::1\r\n", 400),
        // The challenge of a name that is no name.
        ("/account", "host: *\r\n", 421),
        ("/account", "x-forwarded-host: localhost\r\n", 400),
    ] {
        let answer = ask(&secure, &get(target, fields)).await;
        assert_rejected(&answer, status);
    }
    // A body could hold a password, which a redirect would send again.
    let sign_in = "POST /sign-in HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert_rejected(&ask(&secure, sign_in).await, 403);
}

/// Connections to both listeners share the limits.
#[tokio::test]
async fn plaintext_connections_count_towards_the_same_limits() {
    let secure = Secure::start_limited(Limits { connections: 1, head: WATCHDOG, ..limits() }).await;
    let open = secure.connect(&[HTTP1]).await;
    assert!(ask(&secure, &get("/", "host: localhost\r\n")).await.starts_with("HTTP/1.1 503 "));
    drop(open);
}
