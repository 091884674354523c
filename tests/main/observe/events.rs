use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};

use tollgate::store::CircuitBreaker;
use tollgate::{Answer, BearerToken, Limit, Scopes, TokenStore as _};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::*;

/// What was told: level, fields, and the message among them.
#[derive(Debug)]
struct Told {
    level: String,
    fields: BTreeMap<&'static str, String>,
}

/// A subscriber that keeps the events of the crate, and that sees all levels.
#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Vec<Told>>>);

impl Ear {
    fn take(&self) -> Vec<Told> {
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

impl Subscriber for Ear {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tollgate")
    }

    fn event(&self, event: &Event<'_>) {
        assert_eq!(event.metadata().target(), "tollgate");
        let mut fields = BTreeMap::new();
        event.record(&mut Fields(&mut fields));
        self.0.lock().unwrap().push(Told { level: event.metadata().level().to_string(), fields });
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        panic!("the gate makes no spans")
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// A log that is kept names callers, and is not filled by those whom a handler does not name.
#[tokio::test]
async fn what_names_nobody_is_debug() {
    let ear = Ear::default();
    let _listening = tracing::subscriber::set_default(ear.clone());
    let gate = AuthLayer::new(memory());
    let needs = || Rejection::insufficient_scope(Scopes::new(["trade"]).unwrap());
    let who = CurrentGrant::new(Grant::new("alice", ()));
    for (rejection, level) in [(needs(), "DEBUG"), (needs().of_grant(who.id()), "INFO")] {
        let _: Response<Body> = gate.reject(rejection);
        let [told] = &ear.take()[..] else { panic!("told once") };
        assert_eq!((&*told.level, told.fields.contains_key("grant")), (level, level == "INFO"));
    }
}

/// A client may cause an error about its token as often as it likes.
#[tokio::test]
async fn store_errors_say_what_they_concern() {
    let ear = Ear::default();
    let _listening = tracing::subscriber::set_default(ear.clone());
    for (error, level, concerns) in [
        (tollgate::StoreError::new("connection refused"), "WARN", "store"),
        (tollgate::StoreError::for_token("a bad row"), "DEBUG", "token"),
    ] {
        let cause = std::error::Error::source(&error).unwrap().to_string();
        let store = from_fn(move |_| std::future::ready(Err::<Option<Grant<()>>, _>(error.clone())));
        let gate = AuthLayer::with_timeout(store, Duration::from_secs(1));
        assert_eq!(send(&gate.layer(echo()), with_token(TOKEN)).await.status(), 503);
        let [told] = &ear.take()[..] else { panic!("told once") };
        let field = |name: &str| told.fields.get(name).map(String::as_str);
        assert_eq!((&*told.level, field("kind")), (level, Some("store_unavailable")));
        assert_eq!((field("concerns"), field("error")), (Some(concerns), Some(&*cause)));
    }
}

#[tokio::test]
async fn each_refusal_is_one_event_that_says_why() {
    let ear = Ear::default();
    let _listening = tracing::subscriber::set_default(ear.clone());
    for case in cases() {
        let rejection = case.answer.await.extensions().get::<Rejection>().cloned().unwrap();
        let [told] = &ear.take()[..] else { panic!("{} is not told once", case.kind) };
        let field = |name: &str| told.fields.get(name).map(String::as_str);
        assert_eq!(told.level, kinds()[case.kind].0, "{}", case.kind);
        assert_eq!(field("kind"), Some(case.kind));
        assert_eq!(field("message"), Some(&*rejection.to_string()));
        assert_eq!(field("protocol"), Some(if case.grpc { "grpc" } else { "http" }));
        assert_eq!(field("grant"), case.grant, "{}", case.kind);
        assert_eq!(field("policy"), case.policy, "{}", case.kind);
        assert_eq!(field("retry_after_s"), case.retry_after_s.map(|s| s.to_string()).as_deref(), "{}", case.kind);
        assert_eq!(field("error"), case.error, "{}", case.kind);
        assert_eq!(field("hint").is_some(), case.kind == "misconfigured", "{}", case.kind);
        let known: Vec<String> = table("field").iter().flat_map(|row| quoted(&row[0])).collect();
        for name in told.fields.keys().filter(|name| **name != "message") {
            assert!(known.iter().any(|known| known == name), "OBSERVE.md does not know `{name}`");
        }
    }
}

#[tokio::test]
async fn events_name_the_protocol() {
    let ear = Ear::default();
    let _listening = tracing::subscriber::set_default(ear.clone());
    let service = AuthLayer::new(memory()).layer(echo());
    for (content_type, protocol) in [
        ("text/plain", "http"),
        ("application/grpc", "grpc"),
        ("application/grpc-web-text", "grpc-web"),
        ("application/connect+json", "connect"),
    ] {
        send(&service, Request::post("/").header("content-type", content_type).body(Body::default()).unwrap()).await;
        let [told] = &ear.take()[..] else { panic!("told once") };
        assert_eq!(told.fields["protocol"], protocol);
        assert!(table("field").iter().any(|row| quoted(&row[1]).contains(&protocol.to_owned())), "{protocol}");
    }
}

/// Handlers refuse by an extractor's rejection, or by the gate.
#[tokio::test]
async fn handlers_refusals_are_told_too() {
    let ear = Ear::default();
    let _listening = tracing::subscriber::set_default(ear.clone());
    let handler = |_: tollgate::Authenticated<()>| async {};
    let app: axum::Router = axum::Router::new().route("/", axum::routing::get(handler));
    let request = Request::get("/").body(axum::body::Body::empty()).unwrap();
    assert_eq!(tower::ServiceExt::oneshot(app, request).await.unwrap().status(), 500);
    let told = ear.take();
    assert_eq!(told.len(), 1);
    assert_eq!((&*told[0].level, &*told[0].fields["kind"]), ("ERROR", "misconfigured"));
    assert!(told[0].fields["hint"].contains("Perhaps you forgot to add `AuthLayer`"));
}

#[tokio::test]
async fn what_is_admitted_is_no_event() {
    let ear = Ear::default();
    let _listening = tracing::subscriber::set_default(ear.clone());
    let service = gate(alice()).allow_anonymous().layer(echo());
    for request in [with_token(TOKEN), get(), preflight()] {
        assert_eq!(send(&service, request).await.status(), 200);
    }
    assert!(ear.take().is_empty());
}

#[test]
fn policies_on_trial_say_whom_they_would_refuse() {
    let ear = Ear::default();
    let _listening = tracing::subscriber::set_default(ear.clone());
    let limits = Limit::new("trial", Quota::per_minute(1)).unwrap().with_dry_run();
    let limits = RateLimits::new(limits).with_clock(|| Duration::ZERO);
    let who = tollgate::Authenticated::new(alice()).current();
    for events in [0, 1] {
        assert!(limits.charge(&who, ONE).is_admitted());
        let told = ear.take();
        assert_eq!(told.len(), events);
        for Told { level, fields } in told {
            assert_eq!((&*level, &*fields["policy"], &*fields["grant"]), ("INFO", "trial", "alice"));
        }
    }
}

#[tokio::test]
async fn breakers_are_told_of_when_they_turn() {
    let ear = Ear::default();
    let _listening = tracing::subscriber::set_default(ear.clone());
    let ill = Arc::new(Mutex::new(true));
    let asked = ill.clone();
    let store = from_fn(move |_| {
        let ill = *asked.lock().unwrap();
        async move { if ill { Err("ill") } else { Ok(None::<Grant<()>>) } }
    });
    let hands = Hands::default();
    let clock = hands.clone();
    let breaker = CircuitBreaker::with_timeout(store, Duration::from_secs(1))
        .with_name("database")
        .with_failure_threshold(2)
        .with_backoff(Duration::from_secs(1), Duration::from_secs(1))
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
    *ill.lock().unwrap() = false;
    assert!(look_up().await);
    let told: Vec<_> = ear.take().into_iter().map(|told| (told.level, told.fields["state"].clone())).collect();
    assert_eq!(told, [("WARN", "open"), ("DEBUG", "half_open"), ("INFO", "closed")].map(|(a, b)| (a.into(), b.into())));
}

/// A subscriber may look at what it is told of: nothing is locked then.
#[test]
fn who_is_told_of_a_breaker_may_look_at_it() {
    type Watched = CircuitBreaker<tollgate::BoxStore<()>>;

    struct Looks(Arc<Mutex<Option<Watched>>>, Arc<Mutex<String>>);

    impl Subscriber for Looks {
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

    let store = tollgate::BoxStore::new(from_fn(|_| async { Err::<Option<Grant<()>>, _>("ill") }));
    let breaker = CircuitBreaker::with_timeout(store, Duration::from_secs(1)).with_failure_threshold(1);
    let seen = Arc::<Mutex<String>>::default();
    let looks = Looks(Arc::new(Mutex::new(Some(breaker.clone()))), seen.clone());
    // Apart, so that a thread that waits for itself is noticed.
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _listening = tracing::subscriber::set_default(looks);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let found = runtime.block_on(async { breaker.lookup(&BearerToken::new(TOKEN)).await });
        done.send(found.is_err()).unwrap();
    });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok(true), "it waits for itself");
    assert_eq!(*seen.lock().unwrap(), "Open");
}

#[tokio::test]
async fn no_event_holds_a_token_or_a_digest() {
    let ear = Ear::default();
    let _listening = tracing::subscriber::set_default(ear.clone());
    for case in cases() {
        case.answer.await;
    }
    // And what goes through every other door.
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
    let told = ear.take();
    assert_eq!(told.len(), cases().len() + 4);
    assert_clean(&format!("{told:?}"));
}

/// What anybody can cause is told at a level that no log keeps: budgets of strangers, and probes that are given up.
#[tokio::test]
async fn strangers_fill_no_log_that_is_kept() {
    let ear = Ear::default();
    let _listening = tracing::subscriber::set_default(ear.clone());
    let one = Quota::per_hour(1);
    let dry_run = Limit::new("trial", one).unwrap().with_anonymous(one).with_dry_run();
    let limits = RateLimits::new(Limit::from(one).with_anonymous(one.with_burst(2))).and(dry_run).unwrap();
    let service = AuthLayer::new(memory()).allow_anonymous().with_rate_limit(limits).layer(echo());
    for status in [200, 200, 429] {
        assert_eq!(send(&service, get()).await.status(), status);
    }

    let down = from_fn(|_| async { Err::<Option<Grant<User>>, _>(std::io::Error::other("down")) });
    let breaker = CircuitBreaker::with_timeout(down, Duration::from_secs(9));
    let breaker = breaker.with_failure_threshold(1).with_backoff(Duration::ZERO, Duration::ZERO);
    let token = BearerToken::new(TOKEN);
    let told = ear.take();
    assert!(told.len() >= 3 && told.iter().all(|told| told.level == "DEBUG"), "{told:?}");
    assert!(breaker.lookup(&token).await.is_err());
    assert_eq!(ear.take().iter().map(|told| &*told.level).collect::<Vec<_>>(), ["WARN"]);
    for _ in 0..3 {
        assert!(matches!(breaker.lookup(&token), Answer::Pending(_)), "a probe, which is dropped");
    }
    let told = ear.take();
    assert!(told.len() == 3 && told.iter().all(|told| told.level == "DEBUG"), "{told:?}");
}
