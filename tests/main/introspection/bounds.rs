//! Timeouts and the maximum length of responses.

use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use crate::kit::introspection::*;
use crate::kit::*;

/// Pauses the time after the request has arrived, so that the timeout passes immediately.
#[tokio::test]
async fn a_missing_response_causes_a_timeout() {
    for begin in ["", "HTTP/1.1 200 OK\r\n", &format!("{HEAD}content-length: 100\r\n\r\n{{\"active\":true")] {
        let (address, mut connections) = manual_server().await;
        let store = builder(address).with_timeout(Duration::from_secs(3)).build().unwrap();
        let asked = tokio::spawn(async move { ask(&store).await });
        let mut connection = connections.recv().await.unwrap();
        connection.write_all(begin.as_bytes()).await.unwrap();
        tokio::time::pause();
        let error = asked.await.unwrap().unwrap_err();
        assert!(error.is_timeout(), "{begin:?}: {error:?}");
        assert!(!printed_chain(&error).contains(TOKEN));
        tokio::time::resume();
    }
}

/// The timeout applies to the whole response, even if bytes keep arriving.
#[tokio::test]
async fn a_slow_response_causes_a_timeout() {
    let (address, mut connections) = manual_server().await;
    let store = builder(address).with_timeout(Duration::from_secs(3)).build().unwrap();
    let asked = tokio::spawn(async move { ask(&store).await });
    let mut connection = connections.recv().await.unwrap();
    connection.write_all(format!("{HEAD}content-length: 60000\r\n\r\n").as_bytes()).await.unwrap();
    tokio::time::pause();
    let sender = tokio::spawn(async move {
        let mut sent = 0;
        while connection.write_all(b" ").await.is_ok() && sent < 60_000 {
            sent += 1;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        sent
    });
    assert!(asked.await.unwrap().unwrap_err().is_timeout());
    sender.abort();
}

#[tokio::test]
async fn truncated_responses_are_outages() {
    let body = r#"{"active":true,"sub":"alice"}"#;
    for (head, end) in [("content-length: 1000", ""), ("transfer-encoding: chunked", "\r\n")] {
        let (address, mut connections) = manual_server().await;
        let store = store(address);
        let asked = tokio::spawn(async move { ask(&store).await });
        let mut connection = connections.recv().await.unwrap();
        let chunk = if end.is_empty() { String::new() } else { format!("{:x}\r\n", body.len()) };
        connection.write_all(format!("{HEAD}{head}\r\n\r\n{chunk}{body}{end}").as_bytes()).await.unwrap();
        drop(connection);
        let error = asked.await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the introspection request failed", "{head}");
    }
}

/// Responses with and without `Content-Length`. The last one never ends.
#[tokio::test]
async fn responses_above_the_maximum_length_are_errors() {
    let exactly = |len: usize| {
        let start = r#"{"active":true,"sub":"alice","x":""#;
        format!("{start}{}\"}}", "x".repeat(len - start.len() - 2))
    };
    for (max, len, fits) in [(65_536, 65_536, true), (65_536, 65_537, false), (100, 100, true), (100, 101, false)] {
        let (address, _) = server(move |_| answer(exactly(len))).await;
        let store = builder(address).with_max_answer(max).build().unwrap();
        if fits {
            assert!(ask(&store).await.unwrap().is_some(), "{len} of {max}");
        } else {
            assert!(fails(store, "too large").await.to_string().ends_with(&format!("larger than {max} bytes")));
        }
    }
    let (address, _) = server(move |_| answer(exactly(65_537))).await;
    assert!(fails(store(address), "the default").await.to_string().ends_with("larger than 65536 bytes"));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let endless = Router::new().fallback(|| async {
        let chunks = futures_util::stream::repeat(Bytes::from_static(&[b' '; 1_000])).map(Ok::<_, std::io::Error>);
        ([("content-type", "application/json")], axum::body::Body::from_stream(chunks))
    });
    tokio::spawn(async move { axum::serve(listener, endless).await });
    fails(store(address), "endless").await;
}
