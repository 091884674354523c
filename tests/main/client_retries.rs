//! Retries of clients, and the token on their requests.

use std::convert::Infallible;
use std::future::ready;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use proptest::prelude::*;
use tokio::time::Instant;
use tollgate::client::{BearerError, BearerLayer, RetryPolicy, retry_after};
use tollgate::extract::TokenSyntaxError;
use tollgate::limit::RateLimits;
use tollgate::{AuthLayer, Grant, MemoryStore, Quota, TokenDigest};
use tower::retry::{Policy, RetryLayer};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

use crate::kit::{Body, TOKEN, memory, serve};

const SECOND: Duration = Duration::from_secs(1);

fn response(status: u16, fields: &[(&'static str, &str)]) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in fields {
        response.headers_mut().append(*name, value.parse().unwrap());
    }
    response
}

fn request(method: Method) -> Request<()> {
    Request::builder().method(method).uri("https://api.example/orders").body(()).unwrap()
}

/// Returns the pauses of a request that always gets this response.
fn pauses(policy: RetryPolicy, method: Method, answer: &Response<()>) -> Vec<Duration> {
    let pauses = Arc::<Mutex<Vec<Duration>>>::default();
    let recorded = Arc::clone(&pauses);
    let mut policy = policy.with_timer(move |pause| {
        recorded.lock().unwrap().push(pause);
        ready(())
    });
    let mut request = request(method);
    while let Some(again) = Policy::<_, Response<()>, Infallible>::clone_request(&mut policy, &request) {
        let mut result = Ok::<_, Infallible>(answer.clone());
        if policy.retry(&mut request, &mut result).is_none() {
            break;
        }
        request = again;
    }
    pauses.lock().unwrap().clone()
}

/// Returns a policy whose random time is always the shortest.
fn exact() -> RetryPolicy {
    RetryPolicy::new().with_random(|| 0)
}

#[test]
fn only_rejections_that_name_a_time_are_retried() {
    let wait = &[("retry-after", "2")][..];
    let limit = &[("ratelimit", "\"p\";r=0;t=2")][..];
    for (status, fields, is_retried) in [
        (429, wait, true),
        (429, limit, true),
        (429, &[][..], false),
        (429, &[("ratelimit", "\"p\";r=1;t=2")][..], false),
        (503, wait, true),
        (503, &[], false),
        (200, wait, false),
        (200, limit, false),
        (301, wait, false),
        (400, wait, false),
        (401, wait, false),
        (403, wait, false),
        (500, wait, false),
        (502, wait, false),
    ] {
        let expected = if is_retried { vec![2 * SECOND; 3] } else { Vec::new() };
        assert_eq!(pauses(exact(), Method::GET, &response(status, fields)), expected, "{status} {fields:?}");
    }
    let mut failed = Err::<Response<()>, _>("connection reset");
    assert!(exact().retry(&mut request(Method::GET), &mut failed).is_none());
}

#[test]
fn methods_that_are_not_idempotent_are_retried_on_request_and_on_429_only() {
    let [limited, down] = [429, 503].map(|status| response(status, &[("retry-after", "1")]));
    for (method, default, on_request) in [
        (Method::GET, [3, 3], [3, 3]),
        (Method::HEAD, [3, 3], [3, 3]),
        (Method::PUT, [3, 3], [3, 3]),
        (Method::DELETE, [3, 3], [3, 3]),
        (Method::POST, [0, 0], [3, 0]),
        (Method::PATCH, [0, 0], [3, 0]),
    ] {
        let retries =
            |policy: RetryPolicy| [&limited, &down].map(|answer| pauses(policy.clone(), method.clone(), answer).len());
        assert_eq!(retries(exact()), default, "{method}");
        assert_eq!(retries(exact().with_all_methods_on_429()), on_request, "{method}");
    }
}

#[tokio::test(start_paused = true)]
async fn long_waits_are_not_begun() {
    let after = |seconds: &str| response(429, &[("retry-after", seconds)]);
    let retries = |policy: RetryPolicy, seconds| pauses(policy, Method::GET, &after(seconds)).len();
    assert_eq!([retries(exact(), "60"), retries(exact(), "61")], [3, 0]);
    assert_eq!(retries(exact().with_max_wait(5 * SECOND), "6"), 0);
    assert_eq!(retries(exact(), "99999999999999999999"), 0);
    assert_eq!([0, 1, 9].map(|most| retries(exact().with_max_retries(most), "1")), [0, 1, 9]);
    // The random time counts.
    let longest = RetryPolicy::new().with_random(|| u64::MAX);
    assert_eq!(retries(longest.clone().with_total_timeout(2 * SECOND), "1"), 1);
    assert_eq!(retries(longest.with_total_timeout(SECOND), "1"), 0);
    let error = RetryPolicy::new().with_jitter(Duration::from_millis(99)).unwrap_err();
    assert!(error.to_string().starts_with("invalid jitter 99ms: must be at least 100 ms"), "{error}");
}

/// Names the same time in each of the ways that the policy reads.
fn waits() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    prop_oneof![
        (0..60_u64).prop_map(|seconds| vec![("retry-after", seconds.to_string())]),
        (0..60_u64, 0..4_000_000_000_u64).prop_map(|(seconds, at)| {
            let date = |seconds| httpdate(SystemTime::UNIX_EPOCH + Duration::from_secs(at + seconds));
            vec![("retry-after", date(seconds)), ("date", date(0))]
        }),
        prop::collection::vec((0..3_u8, 0..60_u64), 1..4).prop_map(|items| {
            let items: Vec<_> = items.iter().map(|(left, wait)| format!("\"p\";r={left};t={wait}")).collect();
            vec![("ratelimit", items.join(", "))]
        }),
        (1..60_000_u64).prop_map(|millis| vec![("grpc-retry-pushback-ms", millis.to_string())]),
    ]
}

/// Formats a date by the days since 1970, without the crate that reads it.
fn httpdate(time: SystemTime) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let days = seconds / 86_400;
    let is_leap = |year: u64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let (mut year, mut rest) = (1970, days);
    while rest >= 365 + u64::from(is_leap(year)) {
        rest -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while rest >= lengths[month] {
        rest -= lengths[month];
        month += 1;
    }
    let [hour, minute, second] = [seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60];
    let (weekday, day) = (DAYS[(days % 7) as usize], rest + 1);
    format!("{weekday}, {day:02} {} {year} {hour:02}:{minute:02}:{second:02} GMT", MONTHS[month])
}

proptest! {
    #[test]
    fn no_retry_is_early_and_none_is_later_than_the_jitter(
        fields in waits(),
        jitter in 100..5_000_u64,
        numbers in prop::collection::vec(any::<u64>(), 4),
    ) {
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, &**value)).collect();
        let answer = response(429, &fields);
        let jitter = Duration::from_millis(jitter);
        let next = AtomicUsize::new(0);
        let policy = RetryPolicy::new()
            .with_total_timeout(1_000 * SECOND)
            .with_jitter(jitter)
            .unwrap()
            .with_random(move || numbers[next.fetch_add(1, Ordering::SeqCst)]);
        let pauses = pauses(policy, Method::GET, &answer);
        match retry_after(answer.headers(), SystemTime::now()) {
            None => prop_assert!(pauses.is_empty()),
            Some(wait) => {
                prop_assert_eq!(pauses.len(), 3);
                for (pause, factor) in pauses.into_iter().zip([1, 2, 4]) {
                    prop_assert!(wait <= pause && pause <= wait + jitter * factor, "{:?} {:?}", wait, pause);
                }
            }
        }
    }
}

/// Random numbers that are the same in each run (xorshift).
fn seeded() -> impl Fn() -> u64 + Send + Sync + 'static {
    let state = AtomicU64::new(0x9e37_79b9_7f4a_7c15);
    move || {
        let mut next = state.load(Ordering::SeqCst);
        next ^= next << 13;
        next ^= next >> 7;
        next ^= next << 17;
        state.store(next, Ordering::SeqCst);
        next
    }
}

/// A thousand clients of one customer are rejected at the same time. Their times of return are spread, and all are admitted.
#[tokio::test(start_paused = true)]
async fn clients_that_are_limited_at_the_same_time_do_not_come_back_at_the_same_time() {
    const CLIENTS: u64 = 1_000;
    let start = Instant::now();
    let limits = RateLimits::new(Quota::per_second(200).with_burst(1)).with_clock(move || start.elapsed());
    let gate = AuthLayer::new(memory()).with_rate_limit(limits);
    let arrivals = Arc::<Mutex<Vec<Duration>>>::default();
    let recorded = Arc::clone(&arrivals);
    let service = ServiceBuilder::new()
        .map_request(move |request: Request<Body>| {
            recorded.lock().unwrap().push(start.elapsed());
            request
        })
        .layer(gate)
        .service(crate::kit::echo());
    let policy = RetryPolicy::new().with_max_retries(20).with_total_timeout(600 * SECOND).with_random(seeded());
    let client = RetryLayer::new(policy).layer(service);
    let calls: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.oneshot(crate::kit::with_token(TOKEN)).await.unwrap().status() })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), 200);
    }
    let arrivals = arrivals.lock().unwrap();
    let (first, again): (Vec<Duration>, Vec<Duration>) = arrivals.iter().partition(|at| at.is_zero());
    assert_eq!(first.len() as u64, CLIENTS);
    assert!(again.iter().all(|at| *at >= SECOND), "a client came back before `Retry-After`");
    let mut most = std::collections::BTreeMap::new();
    for at in &again {
        *most.entry(at.as_millis() / 10).or_insert(0) += 1;
    }
    // A thousand clients in one second are ten in 10 ms.
    let most = most.into_values().max().unwrap();
    assert!((5..=30).contains(&most), "{most} clients came back within 10 ms");
}

/// Waits with the default source of random numbers.
#[test]
fn two_clients_wait_for_different_times() {
    let answer = response(429, &[("retry-after", "1")]);
    let pauses: std::collections::BTreeSet<_> =
        (0..100).flat_map(|_| pauses(RetryPolicy::new().with_max_retries(1), Method::GET, &answer)).collect();
    assert!(pauses.len() > 95, "{pauses:?}");
}

#[derive(Clone, Debug, PartialEq)]
struct Trace(u8);

/// The second attempt has the same method, body, fields and extensions as the first one.
#[tokio::test(start_paused = true)]
async fn retry_repeats_the_whole_request() {
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let recorded = Arc::clone(&seen);
    let service = tower::service_fn(move |request: Request<&'static str>| {
        let (head, body) = request.into_parts();
        let text =
            format!("{} {} {:?} {:?} {body}", head.method, head.uri, head.headers, head.extensions.get::<Trace>());
        let mut recorded = recorded.lock().unwrap();
        recorded.push(text);
        let status = if recorded.len() < 3 { 429 } else { 200 };
        ready(Ok::<_, Infallible>(response(status, &[("retry-after", "1")])))
    });
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(RetryPolicy::new()))
        .layer(BearerLayer::new("https://api.example", "a-secret-token").unwrap())
        .service(service);
    let mut request = Request::put("https://api.example/orders").header("x-own", "1").body("content").unwrap();
    request.extensions_mut().insert(Trace(7));
    assert_eq!(client.oneshot(request).await.unwrap().status(), 200);
    let seen = seen.lock().unwrap();
    let expected =
        r#"PUT https://api.example/orders {"x-own": "1", "authorization": Sensitive} Some(Trace(7)) content"#;
    assert_eq!(*seen, [expected; 3]);
}

/// The time of attempts counts, and each request has a time of its own.
#[tokio::test(start_paused = true)]
async fn total_timeout_includes_the_time_of_attempts() {
    let attempts = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&attempts);
    let service = tower::service_fn(move |_: Request<()>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async {
            tokio::time::sleep(3 * SECOND).await;
            Ok::<_, Infallible>(response(429, &[("retry-after", "1")]))
        }
    });
    let policy = exact().with_max_retries(100).with_total_timeout(9 * SECOND);
    let mut client = RetryLayer::new(policy).layer(service);
    for calls in 1..4 {
        let answer = client.ready().await.unwrap().call(request(Method::GET)).await.unwrap();
        assert_eq!(answer.status(), 429);
        assert_eq!(attempts.load(Ordering::SeqCst), calls * 3, "attempts start after 0, 4 and 8 seconds");
    }
}

fn sent(layer: &BearerLayer, uri: &str, own: Option<&'static str>) -> HeaderMap {
    let mut request = Request::get(uri).body(()).unwrap();
    if let Some(own) = own {
        request.headers_mut().insert("authorization", HeaderValue::from_static(own));
    }
    through(layer, request)
}

/// Returns the header fields of a request after the layer.
fn through(layer: &BearerLayer, request: Request<()>) -> HeaderMap {
    let echo = tower::service_fn(|request: Request<()>| ready(Ok::<_, Infallible>(request.into_parts().0.headers)));
    let mut service = layer.layer(echo);
    futures_util::FutureExt::now_or_never(service.call(request)).unwrap().unwrap()
}

#[test]
fn token_is_sent_to_its_origin_only() {
    let layer = BearerLayer::new("https://API.example", "a-secret-token").unwrap();
    for (uri, is_own) in [
        ("https://api.example/orders?x=y", true),
        ("https://Api.Example:443/", true),
        ("http://api.example/", false),
        ("https://api.example:8443/", false),
        ("https://api.example.evil.example/", false),
        ("https://evil.example/api.example", false),
        ("https://api.example@evil.example/", false),
        ("https://user@api.example:443/", true),
        ("https://api.example:84430/", false),
        ("/orders", false),
    ] {
        let headers = sent(&layer, uri, None);
        assert_eq!(headers.contains_key("authorization"), is_own, "{uri}");
        assert!(
            !is_own || headers["authorization"].is_sensitive() && headers["authorization"] == "Bearer a-secret-token"
        );
        let own = &sent(&layer, uri, Some("Bearer other"))["authorization"];
        assert!(own == "Bearer other" && own.is_sensitive(), "{uri}");
    }
    let service = layer.layer(());
    assert!(!format!("{layer:?} {service:?}").contains("secret"));
}

#[test]
fn all_authorization_fields_of_a_request_become_sensitive() {
    let layer = BearerLayer::new("https://api.example", "a-secret-token").unwrap();
    for uri in ["https://api.example/", "https://other.example/"] {
        let mut request = Request::get(uri).body(()).unwrap();
        for value in ["Bearer first", "Bearer second"] {
            request.headers_mut().append("authorization", HeaderValue::from_static(value));
        }
        let headers = through(&layer, request);
        let values: Vec<_> =
            headers.get_all("authorization").iter().map(|value| (value, value.is_sensitive())).collect();
        let expected = ["Bearer first", "Bearer second"].map(HeaderValue::from_static);
        assert_eq!(values, expected.iter().map(|value| (value, true)).collect::<Vec<_>>(), "{uri}");
    }
}

#[test]
fn invalid_origins_and_tokens_are_errors() {
    let error = |origin: &str, token: &str| BearerLayer::new(origin, token).err();
    for origin in [
        "https://api.example",
        "https://api.example:8443/",
        "https://api.example:65535",
        "http://127.9.9.9",
        "http://[::1]:80",
    ] {
        assert_eq!(error(origin, "a-secret-token"), None, "{origin}");
    }
    for origin in [
        "",
        "/",
        "api.example",
        "ftp://api.example",
        "https://",
        "https://a.example/path",
        "https://u:p@a.example",
        "https://a.example?q",
        // An invalid port is not the default port.
        "https://api.example:84430",
        "https://api.example:",
        "https://[::1]:65536",
    ] {
        assert_eq!(error(origin, "a-secret-token"), Some(BearerError::Origin), "{origin}");
    }
    for origin in [
        "http://api.example",
        "http://10.0.0.1",
        // A resolver may return any address for this name.
        "http://localhost:80",
        "http://localhost.example",
        "http://127.0.0.1.example",
        "http://[::2]",
    ] {
        assert_eq!(error(origin, "a-secret-token"), Some(BearerError::Plaintext), "{origin}");
    }
    for (token, reason) in
        [("", TokenSyntaxError::Empty), ("a b", TokenSyntaxError::Charset), ("a\r\nb", TokenSyntaxError::Charset)]
    {
        assert_eq!(error("https://api.example", token), Some(BearerError::Token(reason)), "{token:?}");
    }
}

/// A real client waits for a real server.
#[tokio::test(flavor = "multi_thread")]
async fn http_client_is_admitted_after_its_retries() {
    let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    let gate = AuthLayer::new(tokens).with_rate_limit(RateLimits::new(Quota::per_second(1)));
    let rejected = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&rejected);
    let app = axum::Router::new().fallback(|| async { "admitted" }).layer(gate).layer(
        tower::util::MapResponseLayer::new(move |response: axum::response::Response| {
            counted.fetch_add(usize::from(response.status() == 429), Ordering::SeqCst);
            response
        }),
    );
    let addr = serve(app).await;
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(RetryPolicy::new().with_all_methods_on_429()))
        .layer(BearerLayer::new(&format!("http://{addr}"), "a-token").unwrap())
        .service(Client::builder(TokioExecutor::new()).build_http::<Body>());
    for method in [Method::GET, Method::POST] {
        let request =
            Request::builder().method(method).uri(format!("http://{addr}/")).body(Body::from("order")).unwrap();
        assert_eq!(client.clone().oneshot(request).await.unwrap().status(), 200);
    }
    // A slow machine may find a full bucket.
    assert!(rejected.load(Ordering::SeqCst) <= 3);
    let without = ServiceBuilder::new().service(Client::builder(TokioExecutor::new()).build_http::<Body>());
    let request = Request::get(format!("http://{addr}/")).body(Body::default()).unwrap();
    assert_eq!(without.oneshot(request).await.unwrap().status(), 401);
}
