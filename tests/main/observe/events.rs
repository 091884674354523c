//! Events of rejections, dry runs and circuit breakers.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use tollgate::store::CircuitBreaker;
use tollgate::{Answer, BearerToken, Scopes, TokenStore as _};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Metadata, Subscriber};

use super::subscribers::set_subscriber;
use super::*;

/// An event: its level and fields. The message is a field.
#[derive(Debug)]
struct Reported {
    level: String,
    fields: BTreeMap<&'static str, String>,
}

/// A subscriber that records the events of the crate, at all levels.
#[derive(Clone, Default)]
struct Subscribed(Arc<Mutex<Vec<Reported>>>);

impl Subscribed {
    /// Records the events of this thread while the guard lives.
    fn start() -> (Self, DefaultGuard) {
        let subscribed = Self::default();
        (subscribed.clone(), set_subscriber(subscribed))
    }

    fn take(&self) -> Vec<Reported> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

struct Fields<'a>(&'a mut BTreeMap<&'static str, String>);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

impl Subscriber for Subscribed {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tollgate")
    }

    fn event(&self, event: &Event<'_>) {
        assert_eq!(event.metadata().target(), "tollgate");
        let mut fields = BTreeMap::new();
        event.record(&mut Fields(&mut fields));
        self.0.lock().unwrap().push(Reported { level: event.metadata().level().to_string(), fields });
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        panic!("the gate creates no spans")
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Rejections at INFO contain a grant. A handler that does not call `of_grant` stays at DEBUG.
#[tokio::test]
async fn rejection_without_grant_is_debug() {
    let (subscribed, _guard) = Subscribed::start();
    let gate = AuthLayer::new(memory());
    let needs = || Rejection::insufficient_scope(Scopes::new(["trade"]).unwrap());
    let caller = CurrentGrant::new(Grant::new("alice", ()));
    for (rejection, level) in [(needs(), "DEBUG"), (needs().of_grant(caller.id()), "INFO")] {
        let _: Response<Body> = gate.reject(rejection);
        let [reported] = &subscribed.take()[..] else { panic!("one event") };
        assert_eq!((&*reported.level, reported.fields.contains_key("grant")), (level, level == "INFO"));
    }
}

/// Clients can send unknown tokens without HTTPS as often as they like. A known one is exposed.
#[tokio::test]
async fn a_request_without_https_is_debug_unless_its_token_is_known() {
    let (subscribed, _guard) = Subscribed::start();
    let service = AuthLayer::new(memory()).require_https(tollgate::gate::is_https).layer(echo());
    for (request, level, grant) in [
        (with_token(TOKEN), "WARN", Some("alice")),
        (with_token("tg_unknown"), "DEBUG", None),
        (with_token("mal formed!"), "DEBUG", None),
        (get(), "DEBUG", None),
    ] {
        assert_eq!(send(&service, request).await.status(), 403);
        let [reported] = &subscribed.take()[..] else { panic!("one event") };
        assert_eq!((&*reported.level, reported.fields.get("grant").map(String::as_str)), (level, grant));
        assert_eq!(reported.fields["kind"], "https_required");
    }
}

/// Clients can cause errors that concern only their token as often as they like.
#[tokio::test]
async fn store_error_that_concerns_the_token_is_debug() {
    let (subscribed, _guard) = Subscribed::start();
    for (error, level, concerns) in [
        (tollgate::StoreError::new("connection reset"), "WARN", "store"),
        (tollgate::StoreError::for_token("a bad row"), "DEBUG", "token"),
    ] {
        let cause = std::error::Error::source(&error).unwrap().to_string();
        let store = from_fn(move |_| std::future::ready(Err::<Option<Grant<()>>, _>(error.clone())));
        let gate = AuthLayer::with_timeout(store, Duration::from_secs(1));
        assert_eq!(send(&gate.layer(echo()), with_token(TOKEN)).await.status(), 503);
        let [reported] = &subscribed.take()[..] else { panic!("one event") };
        let field = |name: &str| reported.fields.get(name).map(String::as_str);
        assert_eq!((&*reported.level, field("kind")), (level, Some("store_unavailable")));
        assert_eq!((field("concerns"), field("error")), (Some(concerns), Some(&*cause)));
    }
}

#[tokio::test]
async fn each_rejection_is_one_event_with_its_reason() {
    let (subscribed, _guard) = Subscribed::start();
    for case in cases() {
        let rejection = case.answer.await.extensions().get::<Rejection>().cloned().unwrap();
        let [reported] = &subscribed.take()[..] else { panic!("{}: not one event", case.kind) };
        let field = |name: &str| reported.fields.get(name).map(String::as_str);
        assert_eq!(reported.level, kinds()[case.kind].0, "{}", case.kind);
        assert_eq!(field("kind"), Some(case.kind));
        assert_eq!(field("message"), Some(&*rejection.to_string()));
        assert_eq!(field("protocol"), Some(if case.grpc { "grpc" } else { "http" }));
        assert_eq!(field("grant"), case.grant, "{}", case.kind);
        assert_eq!(field("policy"), case.policy, "{}", case.kind);
        assert_eq!(field("retry_after_s"), case.retry_after_s.map(|s| s.to_string()).as_deref(), "{}", case.kind);
        assert_eq!(field("error"), case.error, "{}", case.kind);
        assert_eq!(field("hint").is_some(), case.kind == "misconfigured", "{}", case.kind);
        let known: Vec<String> = table("field").iter().flat_map(|row| quoted(&row[0])).collect();
        for name in reported.fields.keys().filter(|name| **name != "message") {
            assert!(known.iter().any(|known| known == name), "OBSERVE.md does not list `{name}`");
        }
    }
}

#[tokio::test]
async fn events_contain_the_protocol() {
    let (subscribed, _guard) = Subscribed::start();
    let service = AuthLayer::new(memory()).layer(echo());
    for (content_type, protocol) in [
        ("text/plain", "http"),
        ("application/grpc", "grpc"),
        ("application/grpc-web-text", "grpc-web"),
        ("application/connect+json", "connect"),
    ] {
        send(&service, Request::post("/").header("content-type", content_type).body(Body::default()).unwrap()).await;
        let [reported] = &subscribed.take()[..] else { panic!("one event") };
        assert_eq!(reported.fields["protocol"], protocol);
        assert!(table("field").iter().any(|row| quoted(&row[1]).contains(&protocol.to_owned())), "{protocol}");
    }
}

#[cfg(feature = "tonic")]
#[test]
fn status_of_a_rejection_is_an_event_of_grpc() {
    let (subscribed, _guard) = Subscribed::start();
    let rejection = tollgate::Authenticated::<()>::from_extensions(&http::Extensions::new()).unwrap_err();
    _ = tonic::Status::from(rejection);
    let [reported] = &subscribed.take()[..] else { panic!("one event") };
    assert_eq!((&*reported.fields["kind"], &*reported.fields["protocol"]), ("misconfigured", "grpc"));
}

/// Handlers reject with an extractor's rejection, or with the gate.
#[tokio::test]
async fn rejection_by_a_handler_is_an_event() {
    let (subscribed, _guard) = Subscribed::start();
    let handler = |_: tollgate::Authenticated<()>| async {};
    let app: axum::Router = axum::Router::new().route("/", axum::routing::get(handler));
    let request = Request::get("/").body(axum::body::Body::empty()).unwrap();
    assert_eq!(tower::ServiceExt::oneshot(app, request).await.unwrap().status(), 500);
    let reported = subscribed.take();
    assert_eq!(reported.len(), 1);
    assert_eq!((&*reported[0].level, &*reported[0].fields["kind"]), ("ERROR", "misconfigured"));
    assert!(reported[0].fields["hint"].contains("Perhaps you forgot to add `AuthLayer`"));
}

#[tokio::test]
async fn admitted_requests_emit_no_event() {
    let (subscribed, _guard) = Subscribed::start();
    let service = gate(alice()).allow_anonymous().layer(echo());
    for request in [with_token(TOKEN), get(), preflight()] {
        assert_eq!(send(&service, request).await.status(), 200);
    }
    assert!(subscribed.take().is_empty());
}

#[test]
fn dry_run_event_contains_the_grant() {
    let (subscribed, _guard) = Subscribed::start();
    let limits = RateLimits::new(tollgate::Limit::new("observed", Quota::per_minute(1)).unwrap().with_dry_run())
        .with_clock(|| Duration::ZERO);
    let caller = tollgate::Authenticated::new(alice()).current();
    for events in [0, 1] {
        assert!(limits.charge(&caller, ONE).is_admitted());
        let reported = subscribed.take();
        assert_eq!(reported.len(), events);
        for Reported { level, fields } in reported {
            assert_eq!((&*level, &*fields["policy"], &*fields["grant"]), ("INFO", "observed", "alice"));
        }
    }
}

#[tokio::test]
async fn breaker_state_changes_are_events() {
    let (subscribed, _guard) = Subscribed::start();
    let is_failing = Arc::new(Mutex::new(true));
    let in_store = is_failing.clone();
    let store = from_fn(move |_| {
        let is_failing = *in_store.lock().unwrap();
        async move { if is_failing { Err("down") } else { Ok(None::<Grant<()>>) } }
    });
    let hands = Hands::default();
    let clock = hands.clone();
    let breaker = CircuitBreaker::with_timeout(store, Duration::from_secs(1))
        .with_name("database")
        .with_failure_threshold(std::num::NonZeroU32::new(2).unwrap())
        .with_backoff(Duration::from_secs(1), Duration::from_secs(1))
        .unwrap()
        .with_clock(move || Duration::from_nanos(clock.ns()));
    let look_up = || async {
        match breaker.lookup(&BearerToken::new(TOKEN)) {
            Answer::Ready(found) => found.is_ok(),
            Answer::Pending(future) => future.await.is_ok(),
        }
    };
    for _ in 0..4 {
        look_up().await;
    }
    hands.advance(Duration::from_secs(2));
    *is_failing.lock().unwrap() = false;
    assert!(look_up().await);
    let reported: Vec<_> =
        subscribed.take().into_iter().map(|reported| (reported.level, reported.fields["state"].clone())).collect();
    assert_eq!(
        reported,
        [("WARN", "open"), ("DEBUG", "half_open"), ("INFO", "closed")].map(|(a, b)| (a.into(), b.into()))
    );
}

/// A subscriber may use the breaker: events are emitted without its lock.
#[test]
fn subscriber_may_read_the_breaker_state() {
    type Watched = CircuitBreaker<tollgate::BoxStore<()>>;

    struct ReadsState(Arc<Mutex<Option<Watched>>>, Arc<Mutex<String>>);

    impl Subscriber for ReadsState {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == "tollgate"
        }
        fn event(&self, _: &Event<'_>) {
            let breaker = self.0.lock().unwrap();
            write!(self.1.lock().unwrap(), "{:?}", breaker.as_ref().unwrap().state()).unwrap();
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    let store = tollgate::BoxStore::new(from_fn(|_| async { Err::<Option<Grant<()>>, _>("down") }));
    let breaker =
        CircuitBreaker::with_timeout(store, Duration::from_secs(1)).with_failure_threshold(std::num::NonZeroU32::MIN);
    let seen = Arc::<Mutex<String>>::default();
    let subscriber = ReadsState(Arc::new(Mutex::new(Some(breaker.clone()))), seen.clone());
    // In another thread, so that the test notices a deadlock.
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _guard = set_subscriber(subscriber);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let found = runtime.block_on(async { breaker.lookup(&BearerToken::new(TOKEN)).await });
        done.send(found.is_err()).unwrap();
    });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok(true), "deadlock");
    assert_eq!(*seen.lock().unwrap(), "Open");
}

#[tokio::test]
async fn no_event_holds_a_token_or_a_digest() {
    let (subscribed, _guard) = Subscribed::start();
    for case in cases() {
        case.answer.await;
    }
    // The other token locations.
    let gate = gate(alice().with_expiry(SystemTime::UNIX_EPOCH))
        .with_discouraged_query_token("access_token")
        .unwrap()
        .with_api_key_header(http::HeaderName::from_static("x-api-key"))
        .unwrap();
    let service = gate.layer(echo());
    for (target, field, value) in [
        (format!("/?access_token={TOKEN}"), "x-other", TOKEN),
        ("/".to_owned(), "x-api-key", TOKEN),
        (format!("/?access_token={TOKEN}"), "x-api-key", TOKEN),
        (format!("/{TOKEN}"), "cookie", TOKEN),
    ] {
        let request = Request::get(target).header(field, value).body(Body::default()).unwrap();
        assert!(send(&service, request).await.status().is_client_error());
    }
    let reported = subscribed.take();
    assert_eq!(reported.len(), cases().len() + 4);
    assert_clean(&format!("{reported:?}"));
}

/// Events that any client can cause are at DEBUG: buckets of anonymous callers, and cancelled probes.
#[tokio::test]
async fn events_that_any_client_can_cause_are_debug() {
    let (subscribed, _guard) = Subscribed::start();
    let one = Quota::per_hour(1);
    let observed = tollgate::Limit::new("observed", one).unwrap().with_anonymous(one).with_dry_run();
    let limits = RateLimits::new(tollgate::Limit::from(one).with_anonymous(one.with_burst(2))).and(observed).unwrap();
    let service = AuthLayer::new(memory()).allow_anonymous().with_rate_limit(limits).layer(echo());
    for status in [200, 200, 429] {
        assert_eq!(send(&service, get()).await.status(), status);
    }

    let down = from_fn(|_| async {
        tokio::task::yield_now().await;
        Err::<Option<Grant<User>>, _>(std::io::Error::other("down"))
    });
    let breaker = CircuitBreaker::with_timeout(down, Duration::from_secs(9));
    let breaker =
        breaker.with_failure_threshold(std::num::NonZeroU32::MIN).with_backoff(Duration::ZERO, Duration::ZERO).unwrap();
    let token = BearerToken::new(TOKEN);
    let reported = subscribed.take();
    assert!(reported.len() >= 3 && reported.iter().all(|reported| reported.level == "DEBUG"), "{reported:?}");
    assert!(breaker.lookup(&token).await.is_err());
    assert_eq!(subscribed.take().iter().map(|reported| &*reported.level).collect::<Vec<_>>(), ["WARN"]);
    for _ in 0..3 {
        assert!(breaker.lookup(&token).into_future().now_or_never().is_none(), "a probe, which is cancelled");
    }
    let reported = subscribed.take();
    assert!(reported.len() == 3 && reported.iter().all(|reported| reported.level == "DEBUG"), "{reported:?}");
}
