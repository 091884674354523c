//! The log, and its limits.

use std::io::{self, Write};
use std::sync::Mutex;

use tracing::subscriber::{DefaultGuard, with_default};

use super::subscribers::set_subscriber;
use super::*;
use crate::excerpt::{Excerpt, MAX_EXCERPT};
use crate::log::{LogLimit, MAX_LINES, MAX_SOURCES, subscriber};

/// A log in memory.
#[derive(Clone, Default)]
pub(super) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// The log of this thread, on which the whole service runs, while the guard lives.
    pub(super) fn start() -> (Self, LogLimit, DefaultGuard) {
        let (captured, limit) = (Self::default(), LogLimit::default());
        let guard = set_subscriber(captured.subscriber(&limit));
        (captured, limit, guard)
    }

    fn subscriber(&self, limit: &LogLimit) -> impl tracing::Subscriber + Send + Sync + use<> {
        let writer = self.clone();
        subscriber(limit.clone(), move || writer.clone())
    }

    /// The lines since the last call, without their time.
    pub(super) fn take(&self) -> Vec<String> {
        let text = String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap();
        text.lines().map(|line| line.split_once("Z ").unwrap().1.trim_start().to_owned()).collect()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn alerts_are_logged_without_their_keys() {
    let server = Server::start().await;
    let (log, _, _guard) = Captured::start();
    server.alert("text/plain", "command=CANCELALLORDERS;\n key = ct_trader ;").await;
    server.alert("application/json", r#"{"\u006bey":"ct\u005ftrader","command":"CANCELALLORDERS"}"#).await;
    server.alert("text/plain", r#"{"key":"ct_trader","command":"CANCELALLORDERS"}"#).await;
    // The gate did not look for a key in this body, nor does the log show it.
    server.post(TRADER, "/v1/webhook", r#"{"inner":{"key":"ct_trader"},"command":"CANCELALLORDERS"}"#).await;
    assert_eq!(
        log.take(),
        [
            r#"INFO crosstrade::webhook: alert grant="demo-1" user="demo" body="command=CANCELALLORDERS;\n key = ********* ;""#,
            r#"INFO crosstrade::webhook: alert grant="demo-1" user="demo" body="{\"\\u006bey\":\"**************\",\"command\":\"CANCELALLORDERS\"}""#,
            r#"INFO crosstrade::webhook: alert grant="demo-1" user="demo" body="{\"key\":\"*********\",\"command\":\"CANCELALLORDERS\"}""#,
            r#"INFO crosstrade::webhook: alert grant="demo-1" user="demo" bytes=57"#,
        ]
    );
}

#[tokio::test]
async fn only_charged_alerts_are_logged_with_their_body() {
    let server = Server::start().await;
    let (log, limit, _guard) = Captured::start();
    assert_eq!(server.harmless_alert("rate_limit=1;id=a;").await.status(), StatusCode::OK);
    for _ in 0..10 {
        assert_eq!(server.harmless_alert("rate_limit=1;id=a;nth=two;").await.status(), StatusCode::TOO_MANY_REQUESTS);
    }
    server.charge(19).await;
    for nth in 0..10 {
        assert_eq!(server.harmless_alert(&format!("nth={nth};")).await.status(), StatusCode::TOO_MANY_REQUESTS);
    }
    limit.summarize();
    let log = log.take().join("\n");
    assert_eq!(log.matches("CANCELALLORDERS").count(), 1, "{log}");
    assert_eq!(log.matches("alert rejected grant=\"demo-1\" status=429").count(), 1, "{log}");
    assert_eq!(log.matches("kind=\"over_limit\"").count(), 1, "{log}");
    assert_eq!(log.matches("message repeated 9 times").count(), 2, "{log}");
    assert_eq!(log.lines().count(), 5, "{log}");
}

#[tokio::test]
async fn equal_alerts_are_logged_once_and_counted() {
    let server = Server::start().await;
    let (log, limit, _guard) = Captured::start();
    for _ in 0..9 {
        server.harmless_alert("").await;
    }
    assert_eq!(log.take().len(), 1);
    limit.summarize();
    assert_eq!(log.take(), [r#"INFO crosstrade::log: message repeated 8 times: alert grant="demo-1""#]);
    // The next window.
    server.harmless_alert("").await;
    assert_eq!(log.take().len(), 1);
    limit.summarize();
    assert_eq!(log.take().len(), 0);
}

#[test]
fn each_token_may_write_some_lines_of_each_kind() {
    let (log, limit) = (Captured::default(), LogLimit::default());
    with_default(log.subscriber(&limit), || {
        for nth in 0..1_000 {
            tracing::info!(grant = "a", nth, "flood");
        }
        assert_eq!(log.take().len(), MAX_LINES);
        tracing::info!(grant = "b", "flood");
        tracing::info!(grant = "a", "another kind");
        assert_eq!(log.take().len(), 2);
        limit.summarize();
        let summary = format!(r#"INFO crosstrade::log: message dropped {} times: flood grant="a""#, 1_000 - MAX_LINES);
        assert_eq!(log.take(), [summary]);
    });
}

/// Equal lines may differ in the time to wait.
#[test]
fn lines_with_different_wait_times_are_equal() {
    let (log, limit) = (Captured::default(), LogLimit::default());
    with_default(log.subscriber(&limit), || {
        for retry_after_s in 0..5 {
            tracing::info!(grant = "a", retry_after_s, "rejected");
        }
        assert_eq!(log.take().len(), 1);
    });
}

#[test]
fn many_tokens_do_not_fill_the_memory() {
    let (log, limit) = (Captured::default(), LogLimit::default());
    with_default(log.subscriber(&limit), || {
        for nth in 0..3 * MAX_SOURCES {
            tracing::info!(grant = format!("grant-{nth}"), "flood");
        }
        assert_eq!(log.take().len(), MAX_SOURCES + MAX_LINES);
    });
}

#[test]
fn long_bodies_are_cut_between_characters() {
    let excerpt = |body: &str| Excerpt(body.as_bytes()).to_string();
    assert_eq!(excerpt("a\n\u{202e}\"b"), r#""a\n\u{202e}\"b""#);
    assert_eq!(Excerpt(b"\xffa\xe2\x82").to_string(), r#""\xffa\xe2\x82""#);
    assert_eq!(excerpt(&"a".repeat(MAX_EXCERPT)), format!("\"{}\"", "a".repeat(MAX_EXCERPT)));
    for before in 0..4 {
        let (start, rest) = ("a".repeat(MAX_EXCERPT - before), "€€€");
        let whole = before / 3;
        let expected = format!("\"{start}{}\" and {} bytes more", "€".repeat(whole), 9 - 3 * whole);
        assert_eq!(excerpt(&format!("{start}{rest}")), expected);
    }
    assert!(excerpt(&"\u{1}".repeat(60_000)).len() < 6 * MAX_EXCERPT);
}
