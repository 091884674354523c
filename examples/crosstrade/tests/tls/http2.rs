//! The limits of HTTP/2 connections, frame by frame where no client library would send such frames.

use std::convert::Infallible;

use axum::body::Body;
use futures_util::{FutureExt as _, stream};
use http_body_util::StreamBody;
use hyper::body::Frame as BodyFrame;
use tokio::sync::Notify;

use super::*;
use crate::protocol::{MAX_FIELDS, MAX_HEAD, MAX_STREAMS};
use crate::streams::{Expired, Streams};

/// Types of frames (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET /healthz` in HPACK, without the last fields.
fn health() -> Vec<u8> {
    [&[0x82, 0x87, 0x04, 8][..], b"/healthz", &[0x41, 1], b"a"].concat()
}

/// An HTTP/2 connection of which the test sends each frame.
struct Raw(TlsStream<TcpStream>);

impl Raw {
    /// Sends the preface, and these settings.
    async fn open(secure: &Secure, settings: &[u8]) -> Self {
        let mut raw = Self(secure.connect(&[HTTP2]).await);
        raw.send(PREFACE).await;
        raw.send(&frame(SETTINGS, 0, 0, settings)).await;
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// The next frame: type, flags, stream and payload. `None` after the end.
    async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let read = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
        };
        timeout(WATCHDOG, read).await.expect("the server closes")
    }

    /// The types of all frames until the end.
    async fn rest(&mut self) -> Vec<u8> {
        let mut kinds = Vec::new();
        while let Some((kind, ..)) = self.next().await {
            kinds.push(kind);
        }
        kinds
    }
}

fn request(fields: usize, value: usize) -> Request<Body> {
    let mut request = Request::get("https://a/healthz");
    for nth in 0..fields {
        request = request.header(format!("x-{nth}"), "a".repeat(value));
    }
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn heads_are_bounded_in_fields_and_size() {
    let secure = Secure::start().await;
    let (mut sender, _connection) = secure.http2().await;
    for (fields, value, status) in [
        (MAX_FIELDS, 1, StatusCode::OK),
        (MAX_FIELDS + 1, 1, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        (1, MAX_HEAD / 2, StatusCode::OK),
        (1, MAX_HEAD, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
    ] {
        let response = sender.send_request(request(fields, value)).await.unwrap();
        assert_eq!(response.status(), status, "{fields} fields");
    }
    // Far above the limit, the connection is closed.
    let error = sender.send_request(request(1, 4 * MAX_HEAD)).await.unwrap_err();
    assert!(format!("{error:?}").contains("GoAway"), "{error:?}");
}

/// Clients that never complete a head are closed: one in the preface, and one in its first head.
#[tokio::test]
async fn heads_are_bounded_in_time() {
    let drain = Duration::from_millis(200);
    let secure = Secure::start_limited(Limits { drain, ..limits() }).await;
    let mut silent = Raw(secure.connect(&[HTTP2]).await);
    silent.send(&PREFACE[..10]).await;
    let begin = Instant::now();
    silent.rest().await;
    assert!(begin.elapsed() >= HEAD_TIMEOUT / 2, "not before the timeout");

    let mut raw = Raw::open(&secure, &[]).await;
    raw.send(&frame(HEADERS, END_STREAM, 1, &health())).await;
    let begin = Instant::now();
    let drip = async {
        // A byte of a field now and then, without the end of the head.
        while raw.0.write_all(&frame(CONTINUATION, 0, 1, &[])).await.is_ok() {
            sleep(HEAD_TIMEOUT / 10).await;
        }
    };
    timeout(WATCHDOG, drip).await.expect("the server closes");
    assert!(begin.elapsed() >= HEAD_TIMEOUT / 2, "not before the timeout");
}

/// The client answers each ping and sends some itself.
#[tokio::test]
async fn idle_connections_are_closed_with_goaway() {
    let drain = Duration::from_millis(200);
    let secure = Secure::start_limited(Limits { drain, ..limits() }).await;
    let mut raw = Raw::open(&secure, &[]).await;
    raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &health())).await;
    let mut kinds = Vec::new();
    let pings = async {
        while let Some((kind, flags, _, payload)) = raw.next().await {
            if kind == PING && flags & ACK == 0 {
                _ = raw.0.write_all(&frame(PING, ACK, 0, &payload)).await;
            }
            _ = raw.0.write_all(&frame(PING, 0, 0, &[0; 8])).await;
            sleep(HEAD_TIMEOUT / 20).await;
            kinds.push(kind);
        }
    };
    timeout(WATCHDOG, pings).await.expect("the server closes");
    assert!(kinds.contains(&DATA) && kinds.contains(&GOAWAY), "{kinds:?}");

    // A client library sees an orderly end.
    let (mut sender, connection) = secure.http2().await;
    assert_eq!(get_http2(&mut sender, "/healthz", TRADER).await.status(), StatusCode::OK);
    timeout(WATCHDOG, connection).await.expect("the server closes").unwrap().unwrap();
    // One that does not answer the last ping.
    Raw::open(&secure, &[]).await.rest().await;
}

/// Requests that follow each other closely keep the connection open.
#[tokio::test]
async fn used_connections_stay_open() {
    let secure = Secure::start().await;
    let (mut sender, connection) = secure.http2().await;
    for _ in 0..10 {
        assert_eq!(get_http2(&mut sender, "/healthz", TRADER).await.status(), StatusCode::OK);
        sleep(HEAD_TIMEOUT / 4).await;
    }
    assert!(!connection.is_finished());
}

/// The client keeps the flow-control window of its stream closed, so that nothing waits in the kernel's buffer.
#[tokio::test]
async fn client_that_never_takes_a_response_is_disconnected() {
    let (hours, write) = (Duration::from_secs(7_200), Duration::from_millis(300));
    let secure = Secure::start_limited(Limits { head: hours, write, ..limits() }).await;
    // SETTINGS_INITIAL_WINDOW_SIZE is 0, or one byte.
    for window in [0, 1] {
        let mut raw = Raw::open(&secure, &[0, 4, 0, 0, 0, window]).await;
        raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &health())).await;
        let begin = Instant::now();
        let kinds = raw.rest().await;
        assert!(kinds.contains(&HEADERS) && kinds.contains(&DATA) == (window > 0), "{kinds:?}");
        assert!(begin.elapsed() >= write, "not before the timeout");
    }
}

/// The meter of the account page has nothing to send for a long time, and its client reads all.
#[tokio::test]
async fn responses_that_wait_for_the_service_stay_open() {
    let (events, received) = tokio::sync::mpsc::unbounded_channel::<Result<&str, Infallible>>();
    let body =
        Body::from_stream(stream::unfold(received, |mut received| async { Some((received.recv().await?, received)) }));
    let streams = Streams::default();
    let mut body = streams.open().respond(body);
    let (hours, write) = (Duration::from_secs(7_200), Duration::from_secs(10));
    let mut expired = std::pin::pin!(streams.expired(hours, write));
    tokio::time::pause();
    for event in ["first", "second"] {
        events.send(Ok(event)).unwrap();
        // The client takes the event, and hyper asks for the next one.
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), event);
        assert!(body.frame().now_or_never().is_none());
        assert!(timeout(hours / 2, &mut expired).await.is_err());
    }
    // The client does not take the last one: hyper does not ask again.
    events.send(Ok("last")).unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "last");
    let begin = Instant::now();
    assert_eq!(expired.await, Expired::Unread);
    assert!(begin.elapsed() >= write, "not before the timeout");
}

#[tokio::test]
async fn streams_are_limited_in_number() {
    let secure = Secure::start().await;
    // They stay open while their windows are closed.
    let mut raw = Raw::open(&secure, &[0, 4, 0, 0, 0, 0]).await;
    let settings = loop {
        if let (SETTINGS, 0, 0, payload) = raw.next().await.expect("settings") {
            break payload;
        }
    };
    let setting = |id: u16| {
        let found = settings.chunks(6).find(|own| own[..2] == id.to_be_bytes());
        found.map(|own| u32::from_be_bytes([own[2], own[3], own[4], own[5]]))
    };
    assert_eq!(setting(3), Some(MAX_STREAMS), "SETTINGS_MAX_CONCURRENT_STREAMS");
    assert_eq!(setting(6), Some(MAX_HEAD as u32), "SETTINGS_MAX_HEADER_LIST_SIZE");
    for nth in 0..=MAX_STREAMS {
        raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 2 * nth + 1, &health())).await;
    }
    let reset = loop {
        if let (RST_STREAM, _, stream, payload) = raw.next().await.expect("a reset") {
            break (stream, payload);
        }
    };
    // REFUSED_STREAM.
    assert_eq!(reset, (2 * MAX_STREAMS + 1, vec![0, 0, 0, 7]));
}

/// CVE-2023-44487: the client opens streams and resets each immediately.
#[tokio::test]
async fn client_that_resets_many_streams_is_disconnected() {
    let secure = Secure::start().await;
    let raw = Raw::open(&secure, &[]).await;
    let mut frames = Vec::new();
    for nth in 0..5_000 {
        frames.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * nth + 1, &health()));
        frames.extend(frame(RST_STREAM, 0, 2 * nth + 1, &[0, 0, 0, 8]));
    }
    let (mut read, mut write) = tokio::io::split(raw.0);
    let flood = tokio::spawn(async move { _ = write.write_all(&frames).await });
    let mut answer = Vec::new();
    _ = timeout(HEAD_TIMEOUT * 100, read.read_to_end(&mut answer)).await.expect("the server closes");
    // GOAWAY with ENHANCE_YOUR_CALM.
    assert!(answer.windows(4).any(|own| own == [0, 0, 0, 11]), "{}", answer.escape_ascii());
    flood.abort();
    secure.http2().await;
}

#[tokio::test]
async fn bodies_are_limited_in_time_and_size() {
    let secure = Secure::start().await;
    let (mut sender, _connection) = secure.http2().await;
    let post = |body| {
        Request::post("https://a/v1/api/accounts/sim101/orders/place")
            .header("authorization", format!("Bearer {TRADER}"))
            .header("content-type", "application/json")
            .body(body)
            .unwrap()
    };
    let endless = Body::new(StreamBody::new(stream::unfold((), |()| async {
        sleep(Duration::from_millis(10)).await;
        Some((Ok::<_, std::io::Error>(BodyFrame::data(axum::body::Bytes::from(" "))), ()))
    })));
    let response = text(sender.send_request(post(endless)).await.unwrap()).await;
    assert_problem(&response, StatusCode::REQUEST_TIMEOUT);
    let response = text(sender.send_request(post(Body::from(" ".repeat(1_000_000)))).await.unwrap()).await;
    assert_problem(&response, StatusCode::PAYLOAD_TOO_LARGE);
}

/// The service stops while a request is in progress: it is answered, and the connection ends in an orderly way.
#[tokio::test]
async fn stop_answers_requests_in_progress_and_sends_goaway() {
    let hours = Duration::from_secs(7_200);
    let secure = Secure::start_limited(Limits { head: hours, ..limits() }).await;
    let (mut sender, connection) = secure.http2().await;
    let (go_on, waiting) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (resumed, reached) = (Arc::clone(&go_on), Arc::clone(&waiting));
    let body = Body::new(StreamBody::new(stream::once(async move {
        reached.notify_one();
        resumed.notified().await;
        Ok::<_, std::io::Error>(BodyFrame::data(axum::body::Bytes::from("command=CANCELALLORDERS;")))
    })));
    let alert = Request::post("https://a/v1/webhook")
        .header("authorization", format!("Bearer {TRADER}"))
        .header("content-type", "text/plain")
        .body(body)
        .unwrap();
    let response = tokio::spawn(sender.send_request(alert));
    waiting.notified().await;
    sleep(HEAD_TIMEOUT / 10).await;
    let mut idle = Raw::open(&secure, &[]).await;
    secure.server.close.send(true).unwrap();
    sleep(HEAD_TIMEOUT / 10).await;
    assert!(TcpStream::connect(secure.server.addr).await.is_err(), "the listener is closed");
    go_on.notify_one();
    let response = text(timeout(WATCHDOG, response).await.expect("it is answered").unwrap().unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers().get("connection").is_none());
    timeout(WATCHDOG, connection).await.expect("the server closes").unwrap().unwrap();
    assert!(idle.rest().await.contains(&GOAWAY));
    timeout(WATCHDOG, secure.server.close.closed()).await.expect("nothing is left of the service");
}

/// Streams that never end are cut off after the grace period.
#[tokio::test]
async fn stop_does_not_wait_for_streams_that_never_end() {
    let (hours, grace) = (Duration::from_secs(7_200), Duration::from_millis(500));
    let secure = Secure::start_limited(Limits { head: hours, body: hours, write: hours, grace, ..limits() }).await;
    let mut raw = Raw::open(&secure, &[0, 4, 0, 0, 0, 0]).await;
    raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &health())).await;
    while raw.next().await.expect("an answer").0 != HEADERS {}
    secure.server.close.send(true).unwrap();
    assert!(raw.rest().await.contains(&GOAWAY));
    timeout(WATCHDOG, secure.server.close.closed()).await.expect("nothing is left of the service");
}
