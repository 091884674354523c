//! Metrics of gates, limiters, stores and caches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use futures_util::FutureExt as _;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tollgate::store::CircuitBreaker;
use tollgate::{Authenticated, TokenStore as _};

use super::*;

/// A recorder for this thread, with all series in the form of Prometheus.
pub struct SeriesRecorder {
    snapshotter: Snapshotter,
    _guard: metrics::LocalRecorderGuard<'static>,
}

impl SeriesRecorder {
    pub fn install() -> Self {
        // The guard needs a recorder that lives as long as the process.
        let recorder: &'static DebuggingRecorder = Box::leak(Box::default());
        Self { snapshotter: recorder.snapshotter(), _guard: metrics::set_default_local_recorder(recorder) }
    }

    /// Returns the changes since the last call; for histograms the number of values.
    pub fn read(&self) -> BTreeMap<String, f64> {
        let mut series = BTreeMap::new();
        for (key, _, _, value) in self.snapshotter.snapshot().into_vec() {
            let key = key.key();
            let labels: Vec<String> = key.labels().map(|l| format!("{}={}", l.key(), l.value())).collect();
            let value = match value {
                DebugValue::Counter(count) => count as f64,
                DebugValue::Gauge(value) => value.0,
                DebugValue::Histogram(values) => values.len() as f64,
            };
            series.insert(format!("{}{{{}}}", key.name(), labels.join(",")), value);
        }
        series
    }

    /// Returns the series of one metric that are not 0.
    fn of(&self, metric: &str) -> Vec<(String, f64)> {
        let prefix = format!("{metric}{{");
        let all = self.read().into_iter().filter(|(series, value)| series.starts_with(&prefix) && *value != 0.0);
        all.map(|(series, value)| (series[prefix.len()..series.len() - 1].to_owned(), value)).collect()
    }
}

/// Returns a recorder that keeps the values of gauges. [`SeriesRecorder::read`] resets them to 0.
fn scraper() -> (PrometheusHandle, metrics::LocalRecorderGuard<'static>) {
    let recorder = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
    (recorder.handle(), metrics::set_default_local_recorder(recorder))
}

#[track_caller]
fn assert_reported(scraper: &PrometheusHandle, expected: &[&str]) {
    let text = scraper.render();
    for line in expected {
        assert!(text.lines().any(|own| own == *line), "no `{line}` in\n{text}");
    }
}

fn series<const N: usize>(expected: [(&str, f64); N]) -> Vec<(String, f64)> {
    expected.map(|(labels, value)| (labels.to_owned(), value)).into()
}

const REQUESTS: &str = "tollgate_requests_total";
const CHARGES: &str = "tollgate_limit_decisions_total";

#[tokio::test]
async fn each_rejection_is_counted_once() {
    let recorder = SeriesRecorder::install();
    for case in cases() {
        case.answer.await;
        let rejected: Vec<_> =
            recorder.of(REQUESTS).into_iter().filter(|(labels, _)| !labels.starts_with("outcome=admitted")).collect();
        assert_eq!(rejected, series([(&*format!("outcome={},location=none", case.kind), 1.0)]));
    }
}

#[tokio::test]
async fn admitted_requests_are_counted_by_token_location() {
    let recorder = SeriesRecorder::install();
    let gate = gate(alice())
        .allow_anonymous()
        .with_discouraged_query_token("access_token")
        .unwrap()
        .with_api_key_header(http::HeaderName::from_static("x-api-key"))
        .unwrap()
        .with_websocket_token("token.")
        .unwrap()
        .with_token_from(|head| head.headers.get("x-mine").map(|value| value.as_bytes().to_vec()));
    let service = gate.layer(echo());
    let request = |target: &str, field: &str, value: &str| {
        let request = Request::get(target).header("connection", "upgrade").header("upgrade", "websocket");
        request.header(field, value).body(Body::default()).unwrap()
    };
    let protocol = format!("chat, token.{}", BASE64_URL_SAFE_NO_PAD.encode(TOKEN));
    for (request, outcome, location) in [
        (with_token(TOKEN), "admitted", "authorization_header"),
        (request("/", "x-api-key", TOKEN), "admitted", "api_key_header"),
        (request(&format!("/?access_token={TOKEN}"), "x-a", "b"), "admitted", "query"),
        (request("/", "sec-websocket-protocol", &protocol), "admitted", "websocket_protocol"),
        (request("/", "x-mine", TOKEN), "admitted", "other"),
        (get(), "anonymous", "none"),
        (preflight(), "preflight", "none"),
    ] {
        assert_eq!(send(&service, request).await.status(), 200);
        assert_eq!(recorder.of(REQUESTS), series([(&*format!("outcome={outcome},location={location}"), 1.0)]));
    }
    let body_tokens = BodyTokens::with_timeout(Duration::from_secs(1));
    let body_tokens = body_tokens.with_json("key").unwrap().with_text("key").unwrap().with_form("key").unwrap();
    let service = gate
        .with_body_tokens(body_tokens)
        .layer(tower::service_fn(|_| async { Ok::<_, Infallible>(Response::new(Body::default())) }));
    for (content_type, body, location) in [
        ("application/json", format!(r#"{{"key": "{TOKEN}"}}"#), "json_body"),
        ("text/plain", format!("key={TOKEN};"), "text_body"),
        ("application/x-www-form-urlencoded", format!("key={TOKEN}"), "form_body"),
    ] {
        let request = Request::post("/").header("content-type", content_type).body(Body::from(body)).unwrap();
        assert_eq!(send(&service, request).await.status(), 200);
        assert_eq!(recorder.of(REQUESTS), series([(&*format!("outcome=admitted,location={location}"), 1.0)]));
    }
}

/// A request that a gate admitted is not counted as admitted by the layers behind it.
#[tokio::test]
async fn layers_behind_a_gate_count_charges_and_rejections() {
    let recorder = SeriesRecorder::install();
    let limits = |name, cost| {
        let limit = tollgate::Limit::new(name, Quota::per_minute(1).with_burst(2)).unwrap().with_cost(move |_| cost);
        RateLimits::new(limit).with_clock(|| Duration::ZERO)
    };
    let gate = gate(alice()).with_rate_limit(limits("all", 1));
    let service = gate.layer(gate.route_rate_limit(limits("orders", 2)).layer(echo()));
    let statuses = [send(&service, with_token(TOKEN)).await, send(&service, with_token(TOKEN)).await];
    assert_eq!(statuses.map(|response| response.status().as_u16()), [200, 429]);
    let reported = recorder.read();
    assert_eq!(reported[&format!("{REQUESTS}{{outcome=admitted,location=authorization_header}}")], 2.0);
    assert_eq!(reported[&format!("{REQUESTS}{{outcome=over_limit,location=none}}")], 1.0);
    assert_eq!(reported[&format!("{CHARGES}{{policy=all,outcome=admitted}}")], 2.0);
    assert_eq!(reported[&format!("{CHARGES}{{policy=orders,outcome=admitted}}")], 1.0);
    assert_eq!(reported[&format!("{CHARGES}{{policy=orders,outcome=over_limit}}")], 1.0);
}

/// The gate writes the response of the handler again, but counts it once.
#[tokio::test]
async fn a_rejection_that_a_handler_returns_is_counted_once() {
    let recorder = SeriesRecorder::install();
    let handler = || async { Err::<(), _>(Rejection::missing()) };
    let app: axum::Router = axum::Router::new().route("/", axum::routing::get(handler)).layer(gate(alice()));
    let request = with_token(TOKEN).map(axum::body::Body::new);
    assert_eq!(tower::ServiceExt::oneshot(app, request).await.unwrap().status(), 401);
    let admitted_and_rejected =
        [("outcome=admitted,location=authorization_header", 1.0), ("outcome=missing,location=none", 1.0)];
    assert_eq!(recorder.of(REQUESTS), series(admitted_and_rejected));
}

#[tokio::test]
async fn charges_of_handlers_are_counted_but_peeks_are_not() {
    let recorder = SeriesRecorder::install();
    let limits = RateLimits::new(Quota::per_minute(60).with_burst(2)).with_clock(|| Duration::ZERO);
    let caller = Authenticated::new(alice()).current();
    for units in [1, 0, 1, 1, 3] {
        _ = limits.charge(&caller, Charge::Units(units));
    }
    _ = limits.peek(&caller);
    let counted = [
        ("policy=default,outcome=admitted", 2.0),
        ("policy=default,outcome=cost_above_burst", 1.0),
        ("policy=default,outcome=over_limit", 1.0),
    ];
    assert_eq!(recorder.of(CHARGES), series(counted));

    let limit = tollgate::Limit::from(Quota::per_minute(60).with_burst(2));
    let limit = limit.with_anonymous(Quota::per_minute(60).with_burst(1));
    let limits = RateLimits::new(limit).with_clock(|| Duration::ZERO);
    let service = gate(alice()).allow_anonymous().with_rate_limit(limits).layer(echo());
    for status in [200, 429] {
        assert_eq!(send(&service, get()).await.status(), status);
    }
    let counted = [("policy=anonymous,outcome=admitted", 1.0), ("policy=anonymous,outcome=over_limit", 1.0)];
    assert_eq!(recorder.of(CHARGES), series(counted));
}

/// Each of several policies is counted by its outcome. A policy that was not charged is not counted.
#[test]
fn each_policy_of_a_limiter_is_counted_by_name() {
    let recorder = SeriesRecorder::install();
    let (small, large) = (Quota::per_minute(60).with_burst(2), Quota::per_minute(60).with_burst(10));
    let limits = RateLimits::new(tollgate::Limit::new("large", large).unwrap().with_near_limit(20).unwrap())
        .and(tollgate::Limit::new("small", small).unwrap())
        .unwrap()
        .and(tollgate::Limit::new("observed", Quota::per_minute(60).with_burst(1)).unwrap().with_dry_run())
        .unwrap()
        .with_clock(|| Duration::ZERO);
    let caller = Authenticated::new(alice()).current();
    let admitted = [(); 4].map(|()| limits.charge(&caller, ONE).is_admitted());
    assert_eq!(admitted, [true, true, false, false]);
    _ = limits.peek(&caller);
    let reported: BTreeMap<String, f64> =
        recorder.read().into_iter().filter(|(series, _)| !series.contains("limit_subjects")).collect();
    let expected = [
        ("tollgate_limit_decisions_total{policy=large,outcome=admitted}", 2.0),
        ("tollgate_limit_decisions_total{policy=small,outcome=admitted}", 2.0),
        ("tollgate_limit_decisions_total{policy=small,outcome=over_limit}", 2.0),
        ("tollgate_limit_decisions_total{policy=observed,outcome=admitted}", 1.0),
        ("tollgate_limit_dry_run_total{policy=observed}", 3.0),
        ("tollgate_limit_near_total{policy=large}", 1.0),
    ];
    assert_eq!(reported, BTreeMap::from(expected.map(|(series, count)| (series.to_owned(), count))));
}

#[tokio::test]
async fn throttled_peers_are_counted_in_dry_run_too() {
    let recorder = SeriesRecorder::install();
    let throttle = || FailureThrottle::new(Quota::per_hour(1), |_| Some("a peer")).with_clock(|| Duration::ZERO);
    for (failures, outcome) in [(throttle(), "rejected"), (throttle().with_dry_run(), "dry_run")] {
        let gate = AuthLayer::new(MemoryStore::<()>::new()).with_failure_throttle(failures);
        for _ in 0..3 {
            send(&gate.clone().layer(echo()), with_token(TOKEN)).await;
        }
        let counted = recorder.of("tollgate_failures_throttled_total");
        assert_eq!(counted, series([(&*format!("outcome={outcome}"), 2.0)]));
    }
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn charges_in_redis_are_counted_but_looks_are_not() {
    use crate::redis_kit::{at, charge, to};

    let name = "charges_in_redis_are_counted_but_looks_are_not";
    let Some(home) = crate::redis_servers::RedisHome::new(name) else { return };
    let recorder = SeriesRecorder::install();
    let limits = at(&home, RateLimits::new(Quota::per_hour(1)));
    for units in [0, 1, 0, 1] {
        charge(&limits, units).await;
    }
    let counted = recorder.of(CHARGES);
    assert_eq!(counted, series([("policy=default,outcome=admitted", 1.0), ("policy=default,outcome=over_limit", 1.0)]));

    let unavailable = to("redis://127.0.0.1:9", RateLimits::new(Quota::per_hour(1)));
    for units in [0, 1, 1] {
        assert!(charge(&unavailable, units).await.is_local());
    }
    assert_eq!(recorder.of("tollgate_redis_local_decisions_total"), series([("policy=default", 2.0)]));
}

#[test]
fn gauge_of_subjects_follows_charges_and_sweeps() {
    let ((scraper, _guard), hands) = (scraper(), Hands::default());
    let limits = hands.limits(Quota::per_second(1).with_burst(5));
    for (subject, line) in ["a", "b", "c"].into_iter().zip(["1", "2", "3"]) {
        _ = limits.charge(&Authenticated::new(Grant::new(subject, ())).current(), ONE);
        assert_reported(&scraper, &[&*format!(r#"tollgate_limit_subjects{{policy="default"}} {line}"#)]);
    }
    hands.advance(Duration::from_secs(5));
    limits.sweep();
    assert_reported(&scraper, &[r#"tollgate_limit_subjects{policy="default"} 0"#]);
    assert_eq!(limits.subjects(), 0);
}

#[tokio::test(start_paused = true)]
async fn pending_lookups_are_measured_by_outcome() {
    const LOOKUP: &str = "tollgate_store_lookup_seconds";

    let recorder = SeriesRecorder::install();
    let service = AuthLayer::with_timeout(slow(), Duration::from_secs(1)).layer(echo());
    for (token, outcome) in [(TOKEN, "found"), ("unknown", "unknown")] {
        send(&service, with_token(token)).await;
        assert_eq!(recorder.of(LOOKUP), series([(&*format!("outcome={outcome}"), 1.0)]));
    }
    for (name, outcome) in [("store_unavailable", "failed")] {
        cases().into_iter().find(|case| case.kind == name).unwrap().answer.await;
        assert_eq!(recorder.of(LOOKUP), series([(&*format!("outcome={outcome}"), 1.0)]));
    }
    let unreadable = from_fn(|_| async { Err::<Option<Grant<()>>, _>(tollgate::StoreError::for_token("a bad row")) });
    let service = AuthLayer::with_timeout(unreadable, Duration::from_secs(1)).layer(echo());
    assert_eq!(send(&service, with_token(TOKEN)).await.status(), 503);
    assert_eq!(recorder.of(LOOKUP), series([("outcome=failed_for_token", 1.0)]));
    let silent = from_fn(|_| std::future::pending::<Result<Option<Grant<()>>, std::io::Error>>());
    let service = AuthLayer::with_timeout(silent, Duration::from_secs(1)).layer(echo());
    assert_eq!(send(&service, with_token(TOKEN)).await.status(), 503);
    assert_eq!(recorder.of(LOOKUP), series([("outcome=timeout", 1.0)]));
    // Immediate answers are not measured: reading the clock costs as much as the lookup.
    send(&gate(alice()).layer(echo()), with_token(TOKEN)).await;
    assert_eq!(recorder.of(LOOKUP), []);
}

#[tokio::test]
async fn breaker_state_is_a_gauge() {
    let ((scraper, _guard), hands) = (scraper(), Hands::default());
    let (is_failing, clock) = (Arc::new(AtomicU8::new(1)), hands.clone());
    let in_store = is_failing.clone();
    let store = from_fn(move |_| {
        let is_failing = in_store.load(Ordering::SeqCst) == 1;
        async move {
            tokio::task::yield_now().await;
            if is_failing { Err("down") } else { Ok(None::<Grant<()>>) }
        }
    });
    let second = Duration::from_secs(1);
    let breaker = CircuitBreaker::with_timeout(store, second)
        .with_name("database")
        .with_failure_threshold(std::num::NonZeroU32::MIN)
        .with_backoff(second, second)
        .unwrap()
        .with_clock(move || Duration::from_nanos(clock.ns()));
    let look_up = || breaker.lookup(&tollgate::BearerToken::new(TOKEN)).into_future();
    let state = |state: u8, to: &str, times: u8| {
        assert_reported(
            &scraper,
            &[
                &*format!(r#"tollgate_breaker_state{{breaker="database"}} {state}"#),
                &*format!(r#"tollgate_breaker_transitions_total{{breaker="database",to="{to}"}} {times}"#),
            ],
        );
    };

    assert!(look_up().await.is_err());
    state(2, "open", 1);
    hands.advance(second);
    let mut probe = Box::pin(look_up());
    assert!((&mut probe).now_or_never().is_none());
    state(1, "half_open", 1);
    // After a cancelled probe, the next lookup probes.
    drop(probe);
    state(2, "open", 2);
    is_failing.store(0, Ordering::SeqCst);
    assert!(look_up().await.is_ok());
    state(0, "half_open", 2);
    state(0, "closed", 1);
}

#[cfg(feature = "cache")]
#[tokio::test]
async fn cache_lookups_are_counted_by_outcome() {
    use tollgate::store::CachedStore;

    let (recorder, hands) = (SeriesRecorder::install(), Hands::default());
    let (clock, second) = (hands.clone(), Duration::from_secs(1));
    let cache = CachedStore::builder(slow(), 10 * second)
        .with_stale_while_revalidate(10 * second, |refresh| _ = tokio::spawn(refresh))
        .with_clock(move || Duration::from_nanos(clock.ns()))
        .build()
        .unwrap();
    let ask = |token: &'static str| {
        let cache = cache.clone();
        async move { _ = cache.lookup(&tollgate::BearerToken::new(token)).await }
    };
    for (token, outcome) in [(TOKEN, "miss"), (TOKEN, "hit"), ("no", "miss"), ("no", "unknown")] {
        ask(token).await;
        assert_eq!(recorder.of("tollgate_cache_lookups_total"), series([(&*format!("outcome={outcome}"), 1.0)]));
    }
    hands.advance(15 * second);
    ask(TOKEN).await;
    assert_eq!(recorder.of("tollgate_cache_lookups_total"), series([("outcome=stale", 1.0)]));
}

/// The number of series does not depend on the number of tokens, subjects, URIs and realms.
#[tokio::test]
async fn labels_contain_no_request_data() {
    let recorder = SeriesRecorder::install();
    let mut sizes = Vec::new();
    for many in [3, 300] {
        for i in 0..many {
            let (token, subject) = (format!("tg_token_number_{i}_of_{many}"), format!("customer {i} of {many}"));
            let store = MemoryStore::from_iter([(TokenDigest::of(&*token), Grant::new(&*subject, ()))]);
            let gate = AuthLayer::new(store).with_realm(&format!("realm {i}")).unwrap();
            let quota = Quota::per_minute(60 + i).with_burst(1);
            let service = gate.with_rate_limit(RateLimits::new(quota).with_clock(|| Duration::ZERO)).layer(echo());
            for token in [&*token, &*token, &format!("{token}x"), &format!("{token} {token}")] {
                let mut request = with_token(token);
                *request.uri_mut() = format!("/path/{i}?of={many}").parse().unwrap();
                send(&service, request).await;
            }
        }
        let reported = recorder.read();
        assert!(
            !format!("{reported:?}").contains("number") && !format!("{reported:?}").contains("customer"),
            "{reported:?}"
        );
        assert_eq!(reported[&format!("{CHARGES}{{policy=default,outcome=over_limit}}")], f64::from(many));
        sizes.push(reported.len());
    }
    assert_eq!(sizes[0], sizes[1]);
}

#[tokio::test]
async fn no_series_holds_a_token_or_a_digest() {
    let recorder = SeriesRecorder::install();
    for case in cases() {
        case.answer.await;
    }
    let reported = format!("{:?}", recorder.read());
    assert!(reported.len() > 1_000);
    assert_clean(&reported);
}
