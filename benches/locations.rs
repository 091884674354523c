//! Measures the extraction of a token from a body, compared with the minimum for a full check of the same bytes:
//! `serde_json` skipping the document and a UTF-8 check. `cargo bench --bench locations --features body`.
#![allow(missing_docs, clippy::expect_used, reason = "a benchmark that panics")]

use std::hint::black_box;
use std::time::Duration;
use tollgate::TokenDigest;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde::de::IgnoredAny;
use tollgate::extract::{Extracted, TokenSyntax, form, json, text};
use tollgate::gate::{BodyTokens, ReplayBody};
use tollgate::{AuthLayer, Grant, MemoryStore};
use tower::{Layer, ServiceExt};

/// 43 characters, as 256 random bits have in base64.
const TOKEN: &str = "tg_W7xHq0fN3kLr9sVb2mZd8pTyW7xHq0fN3kLr9sVb";

fn alert() -> String {
    format!(
        r#"{{"key": "{TOKEN}", "command": "PLACE", "account": "sim101", "instrument": "ES 12-26", "action": "BUY", "qty": 2, "order_type": "MARKET", "tif": "DAY", "strategy": {{"order": {{"id": "Long \"A\"", "comment": "breakout", "price": 6812.25}}}}, "time": "2026-11-24T03:00:00Z"}}"#
    )
}

fn long_alert() -> String {
    let bar =
        r#"{"time":"2026-11-24T03:00:00Z","open":6812.25,"high":6814.5,"low":6810.0,"close":6813.75,"volume":1234},"#;
    let bars = bar.repeat(16_000 / bar.len());
    format!(r#"{{"bars":[{}],"key":"{TOKEN}"}}"#, bars.trim_end_matches(','))
}

fn locations(criterion: &mut Criterion) {
    let token = |extracted: Extracted<'_>| assert!(matches!(extracted, Extracted::Token(_)));
    for (name, body) in [("300 bytes", alert()), ("16 KiB, key last", long_alert())] {
        let mut group = criterion.benchmark_group(format!("JSON, {name}"));
        group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function("skip and UTF-8 check", |bencher| {
            bencher.iter(|| {
                let body = black_box(body.as_bytes());
                black_box(serde_json::from_slice::<IgnoredAny>(body)).expect("JSON");
                black_box(std::str::from_utf8(body)).expect("UTF-8");
            });
        });
        group.bench_function("extraction", |bencher| {
            bencher.iter(|| token(json(black_box(body.as_bytes()), "key", TokenSyntax::default())));
        });
        group.finish();
    }
    let body = format!("key={TOKEN}; command=PLACE; account=sim101; instrument=ES 12-26; action=BUY; qty=2;");
    let mut group = criterion.benchmark_group("120 bytes");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("text", |bencher| {
        bencher.iter(|| token(text(black_box(body.as_bytes()), "key", TokenSyntax::default())));
    });
    let body = format!("command=PLACE&account=sim101&instrument=ES+12-26&action=BUY&qty=2&access_token={TOKEN}");
    group.bench_function("form", |bencher| {
        bencher.iter(|| token(form(black_box(body.as_bytes()), "access_token", TokenSyntax::default())));
    });
    group.finish();
}

/// Measures the whole layer with a body in one piece. In one row the token is in the body. In the other it is in the
/// header, and the body is not searched. The difference is the cost of the location: waiting for the body, parsing and
/// replaying it.
fn layer(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let tokens = MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]);
    let sleep = tokio::time::sleep;
    let body_tokens = BodyTokens::with_timer(Duration::from_secs(2), sleep)
        .with_json("key")
        .and_then(|tokens| tokens.with_text("key"));
    let gate = AuthLayer::new(tokens).with_body_tokens(body_tokens.expect("names"));
    let service = gate.layer(tower::service_fn(|request: Request<ReplayBody<Full<Bytes>>>| async {
        let body = request.into_body().collect().await?.to_bytes();
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(body)))
    }));
    let mut group = criterion.benchmark_group("layer");
    for (name, body) in [("300 bytes", alert()), ("16 KiB, key last", long_alert())] {
        let body = Bytes::from(body);
        let skip = |body: &[u8]| {
            black_box(serde_json::from_slice::<IgnoredAny>(body)).expect("JSON");
            black_box(std::str::from_utf8(body)).expect("UTF-8");
        };
        group
            .bench_function(format!("skip and UTF-8 check, {name}"), |bencher| bencher.iter(|| skip(black_box(&body))));
        for (row, content_type, authorization) in [
            ("header", "application/octet-stream", Some(format!("Bearer {TOKEN}"))),
            ("body", "application/json", None),
        ] {
            group.bench_function(format!("{row}, {name}"), |bencher| {
                bencher.to_async(&runtime).iter(|| {
                    let mut request = Request::post("/").header("content-type", content_type);
                    if let Some(value) = &authorization {
                        request = request.header("authorization", value);
                    }
                    let request = request.body(Full::new(body.clone())).expect("a request");
                    let service = service.clone();
                    async move {
                        let response = service.oneshot(request).await.expect("infallible");
                        assert!(response.status().is_success());
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, locations, layer);
criterion_main!(benches);
