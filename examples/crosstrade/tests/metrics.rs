//! Tests of the metrics that a scraper reads.

use super::*;
use crate::metrics;

/// Starts a service with its own metrics, which last as long as the guard. Returns the address of the metrics.
async fn start(
    tokens: impl FnOnce() -> Option<Tokens>,
) -> (Server, SocketAddr, ::metrics::LocalRecorderGuard<'static>) {
    let recorder = Box::leak(Box::new(metrics::recorder().unwrap()));
    let handle = recorder.handle();
    // The recorder is that of this thread, on which the whole service runs, and not that of other tests.
    let guard = ::metrics::set_default_local_recorder(recorder);
    tollgate::observe::describe_metrics();
    let server = match tokens() {
        None => Server::start().await,
        Some(tokens) => Server::start_on(tokens, Errors::ProblemDetails).await,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, metrics::app(handle), limits(), std::future::pending()));
    (server, addr, guard)
}

async fn get(uri: String) -> Response<String> {
    send(Request::get(uri).body(String::new()).unwrap()).await
}

async fn scrape(addr: SocketAddr) -> Vec<String> {
    let response = get(format!("http://{addr}/metrics")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    response.body().lines().map(str::to_owned).collect()
}

#[track_caller]
fn assert_has(scraped: &[String], line: &str) {
    assert!(scraped.iter().any(|own| own == line), "no `{line}` in\n{}", scraped.join("\n"));
}

#[tokio::test]
async fn requests_and_charges_are_counted() {
    let (server, addr, _writing) = start(|| None).await;
    server.charge(20).await;
    for (token, status) in [(TRADER, 429), (TRADER, 429), ("unknown", 401), ("a b", 401)] {
        assert_eq!(server.get(token, "/v1/api/accounts").await.status(), status);
    }
    let order = r#"{"instrument":"ES 12-26","action":"BUY","qty":1,"order_type":"MARKET","tif":"DAY"}"#;
    assert_eq!(server.post("ct_other", "/v1/api/accounts/sim101/orders/place", order).await.status(), 404);
    assert_eq!(get(server.uri("/v1/api/accounts")).await.status(), 401);
    assert_eq!(server.harmless_alert("").await.status(), 429, "charged by the handler");

    let scraped = scrape(addr).await;
    for line in [
        r#"tollgate_requests_total{outcome="admitted",location="authorization_header"} 21"#,
        r#"tollgate_requests_total{outcome="admitted",location="text_body"} 1"#,
        r#"tollgate_requests_total{outcome="over_limit",location="none"} 3"#,
        r#"tollgate_requests_total{outcome="unknown_token",location="none"} 1"#,
        r#"tollgate_requests_total{outcome="malformed_token",location="none"} 1"#,
        r#"tollgate_requests_total{outcome="missing",location="none"} 1"#,
        r#"tollgate_limit_decisions_total{policy="default",outcome="admitted"} 21"#,
        r#"tollgate_limit_decisions_total{policy="default",outcome="over_limit"} 3"#,
        r#"tollgate_limit_subjects{policy="default"} 2"#,
        "# TYPE tollgate_requests_total counter",
        "# TYPE tollgate_limit_subjects gauge",
        "# HELP tollgate_limit_decisions_total Charges by policy and outcome.",
    ] {
        assert_has(&scraped, line);
    }
    for secret in [TRADER, "ct_other", "demo"] {
        assert!(!scraped.join("\n").contains(secret), "{secret} is in the metrics");
    }
}

#[tokio::test]
async fn lookups_are_in_a_histogram() {
    let waiting = tollgate::store::from_fn(|_| async {
        tokio::task::yield_now().await;
        Ok::<Option<Grant<User>>, std::io::Error>(None)
    });
    let tokens = || Some(Tokens::new(tollgate::BoxStore::new(waiting), |_| std::future::ready(Ok(None))));
    let (server, addr, _writing) = start(tokens).await;
    for _ in 0..3 {
        assert_eq!(server.get("unknown", "/v1/api/accounts").await.status(), 401);
    }
    let scraped = scrape(addr).await;
    assert_has(&scraped, "# TYPE tollgate_store_lookup_seconds histogram");
    assert_has(&scraped, r#"tollgate_store_lookup_seconds_bucket{outcome="unknown",le="+Inf"} 3"#);
    assert_has(&scraped, r#"tollgate_store_lookup_seconds_count{outcome="unknown"} 3"#);
}

/// The service's listener serves no metrics, and the metrics' listener serves nothing else.
#[tokio::test]
async fn metrics_have_a_separate_listener() {
    let (server, addr, _writing) = start(|| None).await;
    assert_eq!(get(server.uri("/metrics")).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(get(format!("http://{addr}/v1/api/accounts")).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(get(format!("http://{addr}/")).await.status(), StatusCode::NOT_FOUND);
}
