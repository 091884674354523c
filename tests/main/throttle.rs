//! Who fails too often is stopped, and nobody else.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tollgate::TokenDigest;

use futures_util::FutureExt as _;
use http::{Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tollgate::gate::BodyTokens;
use tollgate::limit::{FailureThrottle, RateLimits, WouldBeThrottled};
use tollgate::store::{Lookup, from_fn_with};
use tollgate::{
    Answer, AuthLayer, BearerToken, BoxStore, Grant, MemoryStore, Quota, Rejection, RejectionKind, StoreError,
    TokenStore,
};
use tower::{Layer, Service, ServiceExt};

use crate::kit::*;

const STRANGER: &str = "198.51.100.7";
const ELSEWHERE: &str = "198.51.100.8";

/// A failure every 20 seconds, three at once.
const QUOTA: Quota = Quota::per_minute(3).with_burst(3);

fn throttle(hands: &Hands) -> FailureThrottle {
    let hands = hands.clone();
    FailureThrottle::by_socket_addr(QUOTA).with_clock(move || Duration::from_nanos(hands.ns()))
}

fn from<B>(peer: &str, mut request: Request<B>) -> Request<B> {
    request.extensions_mut().insert(SocketAddr::new(peer.parse::<IpAddr>().unwrap(), 4711));
    request
}

fn guess(peer: &str) -> Request<Body> {
    from(peer, with_token("tg_a_guess"))
}

fn kind<B>(response: &Response<B>) -> Option<RejectionKind> {
    response.extensions().get::<Rejection>().map(Rejection::kind)
}

/// Sends a request, and says how it was answered.
async fn status<S>(service: &S, request: Request<Body>) -> u16
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    send(service, request).await.status().as_u16()
}

/// A store behind a network, which counts how often it was really asked.
#[derive(Clone)]
struct Remote {
    tokens: MemoryStore<User>,
    polled: Arc<AtomicUsize>,
    down: Arc<AtomicBool>,
    answers: Arc<Semaphore>,
}

impl Remote {
    fn new() -> Self {
        let answers = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { tokens: memory(), polled: Arc::default(), down: Arc::default(), answers }
    }

    fn store(&self) -> BoxStore<User> {
        BoxStore::new(from_fn_with(self.clone(), |remote, digest| async move {
            remote.polled.fetch_add(1, Ordering::SeqCst);
            _ = remote.answers.acquire().await.unwrap();
            match remote.down.load(Ordering::SeqCst) {
                true => Err("down"),
                false => Ok(remote.tokens.get(digest).map(|grant| Grant::clone(&grant))),
            }
        }))
    }

    fn gate(&self, throttle: FailureThrottle) -> AuthLayer<BoxStore<User>> {
        AuthLayer::with_timeout(self.store(), Duration::from_secs(2)).with_failure_throttle(throttle)
    }

    fn polled(&self) -> usize {
        self.polled.swap(0, Ordering::SeqCst)
    }
}

#[tokio::test]
async fn brute_force_stops_and_the_holder_behind_the_same_peer_does_not() {
    let hands = Hands::default();
    let limits = hands.limits(Quota::per_minute(60).with_burst(50));
    let gate = AuthLayer::new(memory()).with_failure_throttle(throttle(&hands)).with_rate_limit(limits.clone());
    let service = gate.layer(echo());
    for _ in 0..3 {
        assert_eq!(status(&service, guess(STRANGER)).await, 401);
    }
    for _ in 0..20 {
        let response = send(&service, guess(STRANGER)).await;
        assert_eq!(kind(&response), Some(RejectionKind::TooManyFailures));
        assert_eq!(response.status(), 429);
        assert_eq!(status(&service, from(STRANGER, with_token(TOKEN))).await, 200);
    }
    assert_eq!(status(&service, guess(ELSEWHERE)).await, 401);
    // Only what was admitted was charged.
    assert_eq!(limits.peek(&crate::limits::grant_of("alice", None)).remaining(), 30);
}

#[tokio::test]
async fn the_refusal_says_when_and_nothing_else() {
    let hands = Hands::default();
    let limits = hands.limits(Quota::per_minute(60));
    let gate = AuthLayer::new(memory()).with_failure_throttle(throttle(&hands)).with_rate_limit(limits);
    let service = gate.layer(echo());
    for _ in 0..3 {
        status(&service, guess(STRANGER)).await;
    }
    hands.advance(Duration::from_millis(1_500));
    let response: Response<Body> = send(&service, guess(STRANGER)).await;
    let rejection = response.extensions().get::<Rejection>().unwrap().clone();
    assert_eq!(rejection.to_string(), "Too many attempts to authenticate have failed.");
    assert_eq!((rejection.retry_after_secs(), rejection.would_be_throttled()), (Some(19), false));
    assert!(rejection.grant().is_none() && rejection.decision().is_none());
    let names: Vec<&str> = response.headers().keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["cache-control", "retry-after", "content-type"]);
    assert_eq!(field(response.headers(), "retry-after"), Some("19"));
    let expected = serde_json::json!({
        "type": "https://iana.org/assignments/http-problem-types#abnormal-usage-detected",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "Too many attempts to authenticate have failed.",
        "violated-policies": ["failures"],
    });
    assert_eq!(json(response).await, expected);

    let mut request = guess(STRANGER);
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let response: Response<Body> = send(&service, request).await;
    assert_eq!(response.status(), 200);
    assert_eq!(field(response.headers(), "grpc-status"), Some("8"));
    assert_eq!(field(response.headers(), "grpc-message"), Some("Too many attempts to authenticate have failed."));
    assert_eq!(field(response.headers(), "retry-after"), Some("19"));
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn who_waits_may_try_once_more() {
    let hands = Hands::default();
    let service = AuthLayer::new(memory()).with_failure_throttle(throttle(&hands)).layer(echo());
    let remote = Remote::new();
    let waiting = remote.gate(throttle(&hands)).layer(echo());
    for _ in 0..3 {
        assert_eq!(status(&service, guess(STRANGER)).await, 401);
        assert_eq!(status(&waiting, guess(STRANGER)).await, 401);
    }
    for round in 1..=5 {
        hands.set_ns(round * 20_000_000_000 - 1);
        assert_eq!(status(&service, guess(STRANGER)).await, 429);
        assert_eq!(status(&waiting, guess(STRANGER)).await, 429);
        hands.advance(Duration::from_nanos(1));
        assert_eq!(status(&service, guess(STRANGER)).await, 401);
        assert_eq!(status(&service, guess(STRANGER)).await, 429);
        assert_eq!(status(&waiting, guess(STRANGER)).await, 401);
        assert_eq!(status(&waiting, guess(STRANGER)).await, 429);
    }
    assert_eq!(remote.polled(), 8);
}

/// One store that answers at once, with whatever a token is about.
struct Verdicts;

impl TokenStore for Verdicts {
    type Principal = ();
    type Error = StoreError;
    type Future = Ready<Lookup<(), StoreError>>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        let grant = Grant::new("g", ());
        let found = match token.expose() {
            b"future" => Ok(Some(grant.with_not_before(SystemTime::now() + Duration::from_secs(60)))),
            b"expired" => Ok(Some(grant.with_expiry(SystemTime::UNIX_EPOCH))),
            b"bound" => Ok(Some(grant.with_sender_constraint())),
            b"down" => Err(StoreError::new("down")),
            b"unreadable" => Err(StoreError::for_token("a bad row")),
            b"unreadable-later" => return Answer::Pending(ready(Err(StoreError::for_token("a bad row")))),
            b"later" => return Answer::Pending(ready(Ok(None))),
            _ => Ok(None),
        };
        Answer::Ready(found.map(|grant| grant.map(Arc::new)))
    }
}

#[tokio::test]
async fn each_failure_counts_and_nothing_else_does() {
    let gate = || {
        let failures = FailureThrottle::by_socket_addr(Quota::per_hour(1)).with_clock(|| Duration::ZERO);
        AuthLayer::with_timeout(Verdicts, Duration::from_secs(1)).with_failure_throttle(failures)
    };
    for (authorization, kind_of, status_of) in [
        ("Bearer a b", RejectionKind::MalformedToken, 401),
        ("Bearer unknown", RejectionKind::UnknownToken, 401),
        ("Bearer later", RejectionKind::UnknownToken, 401),
        ("Bearer future", RejectionKind::NotYetValid, 401),
        ("Bearer expired", RejectionKind::ExpiredToken, 401),
        ("Bearer bound", RejectionKind::SenderConstrained, 401),
        ("Bearer a, Bearer b", RejectionKind::InvalidRequest, 400),
        ("Bearer unreadable", RejectionKind::StoreUnavailable, 503),
        ("Bearer unreadable-later", RejectionKind::StoreUnavailable, 503),
    ] {
        let service = gate().layer(echo());
        let ask = || {
            let mut request = from(STRANGER, get());
            request.headers_mut().insert("authorization", authorization.parse().unwrap());
            request
        };
        let first: Response<Body> = send(&service, ask()).await;
        assert_eq!((kind(&first), first.status().as_u16()), (Some(kind_of), status_of));
        let second: Response<Body> = send(&service, ask()).await;
        assert_eq!(kind(&second), Some(RejectionKind::TooManyFailures), "{authorization}");
    }

    let service = gate().layer(echo());
    for _ in 0..3 {
        assert_eq!(status(&service, from(STRANGER, with_token("down"))).await, 503);
        assert_eq!(status(&service, from(STRANGER, get())).await, 401);
        let mut basic = from(STRANGER, get());
        basic.headers_mut().insert("authorization", "Basic YTpi".parse().unwrap());
        assert_eq!(status(&service, basic).await, 401);
        assert_eq!(status(&service, from(STRANGER, preflight())).await, 200);
    }
    assert_eq!(status(&service, guess(STRANGER)).await, 401);
    // Nor is any of that refused.
    assert_eq!(status(&service, guess(STRANGER)).await, 429);
    assert_eq!(status(&service, from(STRANGER, with_token("down"))).await, 503);
    let response: Response<Body> = send(&service, from(STRANGER, get())).await;
    assert_eq!(kind(&response), Some(RejectionKind::Missing));
    let anonymous = gate().allow_anonymous().layer(echo());
    for _ in 0..3 {
        assert_eq!(status(&anonymous, from(STRANGER, get())).await, 200);
    }
}

#[tokio::test]
async fn no_store_is_asked_for_who_fails_too_often() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let service = remote.gate(throttle(&hands)).layer(echo());
    for _ in 0..3 {
        assert_eq!(status(&service, guess(STRANGER)).await, 401);
    }
    assert_eq!(remote.polled(), 3);
    for _ in 0..20 {
        assert_eq!(status(&service, guess(STRANGER)).await, 429);
        // Nobody can tell this one from a guess without asking.
        let response: Response<Body> = send(&service, from(STRANGER, with_token(TOKEN))).await;
        assert_eq!(kind(&response), Some(RejectionKind::TooManyFailures));
        assert_eq!(field(response.headers(), "retry-after"), Some("20"));
    }
    assert_eq!(remote.polled(), 0);
    assert_eq!(status(&service, from(ELSEWHERE, with_token(TOKEN))).await, 200);
}

#[cfg(feature = "cache")]
#[tokio::test]
async fn a_holder_that_a_cache_knows_is_never_refused() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = tollgate::store::CachedStore::new(remote.store(), Duration::from_secs(60)).unwrap();
    let gate = AuthLayer::with_timeout(cache.with_clock(|| Duration::ZERO), Duration::from_secs(2));
    let service = gate.with_failure_throttle(throttle(&hands)).layer(echo());
    assert_eq!(status(&service, from(STRANGER, with_token(TOKEN))).await, 200);
    for nth in 0..20 {
        let refused = if nth < 3 { 401 } else { 429 };
        assert_eq!(status(&service, from(STRANGER, with_token(&format!("tg_guess_{nth}")))).await, refused);
        assert_eq!(status(&service, from(STRANGER, with_token(TOKEN))).await, 200);
    }
    // What the cache knows to be unknown is a failure all the same.
    assert_eq!(status(&service, from(STRANGER, with_token("tg_guess_0"))).await, 429);
    assert_eq!(remote.polled(), 1 + 3);
}

/// After an outage a cache asks for all its entries again. They are no guesses.
#[cfg(feature = "cache")]
#[tokio::test]
async fn cached_holders_are_not_throttled_when_everything_may_have_changed() {
    use tollgate::store::{CachedStore, Invalidation};

    let (remote, hands) = (Remote::new(), Hands::default());
    let names: Vec<String> = (0..40).map(|number| format!("tg_holder_{number}")).collect();
    for name in &names {
        remote.tokens.insert(TokenDigest::of(name), Grant::new(name, User("a holder"))).unwrap();
    }
    let cache = CachedStore::new(remote.store(), Duration::from_secs(60)).unwrap().with_clock(|| Duration::ZERO);
    // As the reference service wraps it.
    let gate = AuthLayer::with_timeout(BoxStore::new(cache.clone()), Duration::from_secs(2));
    let service = gate.with_failure_throttle(throttle(&hands)).layer(echo());
    for name in &names {
        assert_eq!(status(&service, from(STRANGER, with_token(name))).await, 200);
    }
    for nth in 0..5 {
        let refused = if nth < 3 { 401 } else { 429 };
        assert_eq!(status(&service, from(STRANGER, with_token(&format!("tg_guess_{nth}")))).await, refused);
    }
    cache.invalidate(&Invalidation::Everything);
    remote.polled();
    remote.answers.forget_permits(Semaphore::MAX_PERMITS);
    let waiting: Vec<_> = names[..39]
        .iter()
        .map(|name| {
            let (service, request) = (service.clone(), from(STRANGER, with_token(name)));
            tokio::spawn(async move { status(&service, request).await })
        })
        .collect();
    tokio::task::yield_now().await;
    remote.answers.add_permits(Semaphore::MAX_PERMITS);
    for answer in waiting {
        assert_eq!(answer.await.unwrap(), 200);
    }
    assert_eq!(remote.polled(), 39);
    // One that was revoked is a failure, and is asked for once.
    remote.tokens.revoke(TokenDigest::of(&*names[39]));
    for _ in 0..3 {
        assert_eq!(status(&service, from(STRANGER, with_token(&names[39]))).await, 429);
    }
    assert_eq!(remote.polled(), 1);
    hands.advance(Duration::from_secs(20));
    assert_eq!(status(&service, guess(STRANGER)).await, 401);
}

#[tokio::test]
async fn by_another_clock_and_in_another_table_nothing_is_owed() {
    async fn guesses(failures: FailureThrottle) -> u16 {
        let gate = AuthLayer::new(memory()).with_failure_throttle(failures);
        status(&gate.layer(echo()), guess(STRANGER)).await
    }
    let failures = FailureThrottle::by_socket_addr(Quota::per_hour(1)).with_clock(|| Duration::ZERO);
    assert_eq!(guesses(failures.clone()).await, 401);
    assert_eq!(guesses(failures.clone()).await, 429);
    let failures = failures.with_clock(|| Duration::ZERO);
    assert_eq!(guesses(failures.clone()).await, 401);
    assert_eq!(guesses(failures.clone()).await, 429);
    assert_eq!(guesses(failures.with_width(64).unwrap()).await, 401);
}

#[test]
#[should_panic(expected = "must be set before the throttle is cloned")]
fn a_new_clock_panics_while_a_clone_exists() {
    let failures = FailureThrottle::by_socket_addr(Quota::per_hour(1));
    let _clone = failures.clone();
    _ = failures.with_clock(|| Duration::ZERO);
}

#[test]
#[should_panic(expected = "must be set before the throttle is cloned")]
fn a_new_width_panics_while_a_clone_exists() {
    let failures = FailureThrottle::by_socket_addr(Quota::per_hour(1));
    let _clone = failures.clone();
    _ = failures.with_width(64);
}

#[tokio::test]
async fn who_names_a_peer_sees_no_credentials_that_are_removed() {
    let seen = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&seen);
    let failures = FailureThrottle::new(QUOTA, move |head| {
        assert!(!head.headers.contains_key("authorization"));
        told.fetch_add(1, Ordering::SeqCst);
        Some(())
    });
    let service = AuthLayer::new(memory()).with_credentials_removed().with_failure_throttle(failures).layer(echo());
    for (nth, presented) in ["Bearer unknown", "Bearer mal formed", "Bearer one, Bearer two"].into_iter().enumerate() {
        let mut request = get();
        request.headers_mut().insert("authorization", presented.parse().unwrap());
        assert!(send::<_, Body>(&service, request).await.status().is_client_error());
        assert_eq!(seen.load(Ordering::SeqCst), nth + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_no_failure_is_given_back() {
    let remote = Remote::new();
    let failures = FailureThrottle::by_socket_addr(Quota::per_hour(1)).with_clock(|| Duration::ZERO);
    // Over its budget is authenticated.
    let limits = RateLimits::new(Quota::per_hour(5)).with_clock(|| Duration::ZERO);
    let service = remote.gate(failures).with_rate_limit(limits).layer(echo());
    for nth in 0..10 {
        assert_eq!(status(&service, from(STRANGER, with_token(TOKEN))).await, if nth < 5 { 200 } else { 429 });
        remote.down.store(true, Ordering::SeqCst);
        assert_eq!(status(&service, guess(STRANGER)).await, 503);
        remote.down.store(false, Ordering::SeqCst);
        // The deadline.
        remote.answers.forget_permits(Semaphore::MAX_PERMITS);
        assert_eq!(status(&service, guess(STRANGER)).await, 503);
        remote.answers.add_permits(Semaphore::MAX_PERMITS);
    }
    assert_eq!(status(&service, guess(STRANGER)).await, 401);
    assert_eq!(status(&service, guess(STRANGER)).await, 429);
}

#[tokio::test]
async fn a_look_up_that_is_dropped_counts() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let service = remote.gate(throttle(&hands)).layer(echo());
    remote.answers.forget_permits(Semaphore::MAX_PERMITS);
    for _ in 0..3 {
        let mut dropped = std::pin::pin!(send::<_, Body>(&service, guess(STRANGER)));
        assert!(dropped.as_mut().now_or_never().is_none());
    }
    assert_eq!(remote.polled(), 3);
    remote.answers.add_permits(Semaphore::MAX_PERMITS);
    assert_eq!(status(&service, guess(STRANGER)).await, 429);
    hands.advance(Duration::from_secs(20));
    assert_eq!(status(&service, guess(STRANGER)).await, 401);
}

/// A client that gives up after half of the gate's deadline did nothing wrong.
#[tokio::test]
async fn a_lookup_that_is_dropped_late_does_not_count() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let service = remote.gate(throttle(&hands)).layer(echo());
    remote.answers.forget_permits(Semaphore::MAX_PERMITS);
    let half = Duration::from_secs(1);
    let drop_after = async |waited: Duration| {
        let mut dropped = std::pin::pin!(send::<_, Body>(&service, guess(STRANGER)));
        assert!(dropped.as_mut().now_or_never().is_none());
        hands.advance(waited);
    };
    for _ in 0..20 {
        drop_after(half).await;
    }
    assert_eq!(remote.polled(), 20);
    // An answer that is late counts as what it is.
    let mut late = std::pin::pin!(send::<_, Body>(&service, guess(STRANGER)));
    assert!(late.as_mut().now_or_never().is_none());
    hands.advance(half);
    remote.answers.add_permits(Semaphore::MAX_PERMITS);
    assert_eq!(late.await.status(), 401);
    remote.answers.forget_permits(Semaphore::MAX_PERMITS);
    for _ in 0..2 {
        drop_after(Duration::ZERO).await;
    }
    remote.answers.add_permits(Semaphore::MAX_PERMITS);
    assert_eq!(status(&service, guess(STRANGER)).await, 429);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn look_ups_under_way_are_no_more_than_the_failures_left() {
    for burst in [1, 7, 40] {
        let remote = Remote::new();
        let failures = FailureThrottle::by_socket_addr(Quota::per_hour(burst)).with_clock(|| Duration::ZERO);
        let service = remote.gate(failures).layer(echo());
        remote.answers.forget_permits(Semaphore::MAX_PERMITS);
        let requests = (0..100).map(|_| {
            let service = service.clone();
            tokio::spawn(async move { status(&service, guess(STRANGER)).await })
        });
        let requests: Vec<_> = requests.collect();
        // All that are refused are refused at once; the others wait.
        while requests.iter().filter(|request| request.is_finished()).count() < 100 - burst as usize {
            tokio::task::yield_now().await;
        }
        remote.answers.add_permits(Semaphore::MAX_PERMITS);
        let mut refused = 0;
        for request in requests {
            refused += usize::from(request.await.unwrap() == 429);
        }
        assert_eq!((refused, remote.polled()), (100 - burst as usize, burst as usize));
        assert_eq!(status(&service, guess(STRANGER)).await, 429);
    }
}

#[tokio::test]
async fn valid_look_ups_come_back_all_at_once() {
    let remote = Remote::new();
    let failures = FailureThrottle::by_socket_addr(QUOTA).with_clock(|| Duration::ZERO);
    let service = remote.gate(failures).layer(echo());
    for _ in 0..5 {
        remote.answers.forget_permits(Semaphore::MAX_PERMITS);
        let mut under_way: Vec<_> =
            (0..3).map(|_| Box::pin(send::<_, Body>(&service, from(STRANGER, with_token(TOKEN))))).collect();
        for request in &mut under_way {
            assert!(request.as_mut().now_or_never().is_none());
        }
        assert_eq!(status(&service, guess(STRANGER)).await, 429);
        remote.answers.add_permits(Semaphore::MAX_PERMITS);
        for request in under_way {
            assert_eq!(request.await.status(), 200);
        }
    }
    for expected in [401, 401, 401, 429] {
        assert_eq!(status(&service, guess(STRANGER)).await, expected);
    }
}

#[tokio::test]
async fn peers_are_who_the_closure_says() {
    let failures = |quota| {
        FailureThrottle::new(quota, |head| head.headers.get("x-peer").map(|name| name.as_bytes().to_vec()))
            .with_clock(|| Duration::ZERO)
    };
    let ask = |peer: &str| {
        let mut request = with_token("tg_a_guess");
        request.headers_mut().insert("x-peer", peer.parse().unwrap());
        request
    };
    let service = AuthLayer::new(memory()).with_failure_throttle(failures(QUOTA)).layer(echo());
    for expected in [401, 401, 401, 429] {
        assert_eq!(status(&service, ask("a")).await, expected);
        assert_eq!(status(&service, ask("b")).await, expected);
    }
    for _ in 0..10 {
        assert_eq!(status(&service, with_token("tg_a_guess")).await, 401, "`None` is not throttled");
    }

    // One customer has a /64, and two customers have not the same.
    let hands = Hands::default();
    let service = AuthLayer::new(memory()).with_failure_throttle(throttle(&hands)).layer(echo());
    for (host, expected) in
        ["0:0:0:1", "0:0:0:2", "ffff:ffff:ffff:ffff", "0:0:0:4"].into_iter().zip([401, 401, 401, 429])
    {
        assert_eq!(status(&service, guess(&format!("2001:db8:0:1:{host}"))).await, expected);
    }
    assert_eq!(status(&service, guess("2001:db8:0:2::1")).await, 401);
    for (peer, expected) in
        [("192.0.2.1", 401), ("::ffff:192.0.2.1", 401), ("192.0.2.1", 401), ("::ffff:192.0.2.1", 429)]
    {
        assert_eq!(status(&service, guess(peer)).await, expected);
    }
}

#[tokio::test]
async fn doors_that_share_a_throttle_count_together() {
    let hands = Hands::default();
    let failures = throttle(&hands);
    let (rest, stream) = (
        AuthLayer::new(memory()).with_failure_throttle(failures.clone()).layer(echo()),
        AuthLayer::new(memory()).with_failure_throttle(failures).layer(echo()),
    );
    assert_eq!(status(&rest, guess(STRANGER)).await, 401);
    assert_eq!(status(&stream, guess(STRANGER)).await, 401);
    assert_eq!(status(&rest, guess(STRANGER)).await, 401);
    assert_eq!(status(&stream, guess(STRANGER)).await, 429);
    // A gate without one counts nothing.
    let open = AuthLayer::new(memory()).layer(echo());
    assert_eq!(status(&open, guess(STRANGER)).await, 401);
}

#[tokio::test]
async fn a_forgotten_address_is_said() {
    let remote = Remote::new();
    let hands = Hands::default();
    let at_once = AuthLayer::new(memory()).with_failure_throttle(throttle(&hands)).layer(echo());
    let waiting = remote.gate(throttle(&hands)).layer(echo());
    for response in [
        send::<_, Body>(&at_once, with_token("tg_a_guess")).await,
        send(&waiting, with_token("tg_a_guess")).await,
        send(&waiting, with_token(TOKEN)).await,
    ] {
        assert_eq!(response.status(), 500);
        assert!(json(response).await["detail"].as_str().unwrap().contains("`SocketAddr`"));
    }
    assert_eq!(remote.polled(), 0);
    assert_eq!(status(&at_once, with_token(TOKEN)).await, 200);
    assert_eq!(status(&at_once, get()).await, 401);
}

#[tokio::test]
async fn a_dry_run_refuses_nobody_and_tells() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let at_once = AuthLayer::new(memory()).with_failure_throttle(throttle(&hands).with_dry_run()).layer(echo());
    let waiting = remote.gate(throttle(&hands).with_dry_run()).layer(echo());
    let told = |response: &Response<Body>| response.extensions().get::<Rejection>().unwrap().would_be_throttled();
    for nth in 0..10 {
        for response in [send(&at_once, guess(STRANGER)).await, send(&waiting, guess(STRANGER)).await] {
            assert_eq!((response.status().as_u16(), told(&response)), (401, nth >= 3));
            assert!(response.headers().contains_key("www-authenticate"));
            assert!(!response.headers().contains_key("retry-after"));
        }
        // In earnest the first would be let in, and the other one would not be looked up.
        let passed: [Response<Body>; 2] = [
            send(&at_once, from(STRANGER, with_token(TOKEN))).await,
            send(&waiting, from(STRANGER, with_token(TOKEN))).await,
        ];
        assert!(passed.iter().all(|response| response.status() == 200));
        let told = passed.each_ref().map(|response| response.extensions().get::<WouldBeThrottled>().is_some());
        assert_eq!(told, [false, nth >= 2]);
    }
    // What would be refused is not counted, so that the run says what would happen.
    hands.advance(Duration::from_secs(20));
    for (expected, request) in [(false, guess(STRANGER)), (true, guess(STRANGER))] {
        assert_eq!(told(&send(&at_once, request).await), expected);
    }
    // A forgotten address refuses nobody either.
    let response: Response<Body> = send(&at_once, with_token("tg_a_guess")).await;
    assert_eq!((response.status().as_u16(), told(&response)), (401, true));
}

#[tokio::test]
async fn doors_in_the_body_are_throttled_as_well() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let doors = || BodyTokens::with_timeout(Duration::from_secs(1)).with_json("key").unwrap().with_text("key").unwrap();
    let inner = tower::service_fn(|_| async { Ok::<_, Infallible>(Response::new(Body::default())) });
    let at_once =
        AuthLayer::new(memory()).with_failure_throttle(throttle(&hands)).with_body_tokens(doors()).layer(inner);
    let waiting = remote.gate(throttle(&hands)).with_body_tokens(doors()).layer(inner);
    let alert = |content_type: &str, body: String| {
        from(STRANGER, Request::post("/").header("content-type", content_type).body(Body::from(body)).unwrap())
    };
    let json = |key: &str| alert("application/json", format!(r#"{{"key": "{key}"}}"#));
    assert_eq!(status(&at_once, json("tg_a_guess")).await, 401);
    assert_eq!(status(&at_once, alert("text/plain", "key=tg_a_guess;".to_owned())).await, 401);
    // Two keys, and nothing that is a failure to authenticate: no key, too long a body.
    assert_eq!(status(&at_once, alert("text/plain", "key=a;key=b;".to_owned())).await, 400);
    assert_eq!(status(&at_once, alert("text/plain", "key=tg_a_guess;".to_owned())).await, 429);
    assert_eq!(status(&at_once, alert("text/plain", "command=FLATTEN;".to_owned())).await, 401);
    assert_eq!(status(&at_once, alert("text/plain", "x".repeat(70_000))).await, 413);
    assert_eq!(status(&at_once, json(TOKEN)).await, 200);
    // A head that leaves open which door is meant.
    let mut ambiguous = json(TOKEN);
    ambiguous.headers_mut().append("content-type", "text/plain".parse().unwrap());
    assert_eq!(status(&at_once, ambiguous).await, 429);

    assert_eq!(status(&waiting, json(TOKEN)).await, 200);
    for expected in [401, 401, 401, 429] {
        assert_eq!(status(&waiting, json("tg_a_guess")).await, expected);
    }
    assert_eq!(status(&waiting, json(TOKEN)).await, 429);
    assert_eq!(remote.polled(), 4);
}

mod on_axum {
    use axum::Router;
    use axum::extract::connect_info::MockConnectInfo;
    use axum::routing::get;
    use http_body_util::BodyExt as _;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;
    use tokio::net::TcpListener;

    use super::*;

    fn app() -> Router {
        let failures = FailureThrottle::by_connect_info(QUOTA).with_clock(|| Duration::ZERO);
        let gate = AuthLayer::new(memory()).with_failure_throttle(failures);
        Router::new().route("/", get(|| async { "in" })).layer(gate)
    }

    async fn ask(addr: SocketAddr, token: &str) -> (StatusCode, String) {
        let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
        let mut request = with_token(token);
        *request.uri_mut() = format!("http://{addr}/").parse().unwrap();
        let (head, body) = client.request(request).await.unwrap().into_parts();
        (head.status, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_address_of_the_connection_is_the_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let served = app().into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, served).await });
        // Each over a connection, and so from a port, of its own.
        for expected in [401, 401, 401, 429, 429] {
            assert_eq!(ask(addr, "tg_a_guess").await.0, expected);
        }
        assert_eq!(ask(addr, TOKEN).await, (StatusCode::OK, "in".to_owned()));
    }

    #[tokio::test]
    async fn a_router_that_is_served_without_it_says_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app()).await });
        let (status, problem) = ask(addr, "tg_a_guess").await;
        assert_eq!(status, 500);
        assert!(problem.contains("`into_make_service_with_connect_info::<SocketAddr>()`"), "{problem}");
        assert_eq!(ask(addr, TOKEN).await.0, 200);
    }

    #[tokio::test]
    async fn tests_may_say_who_is_connected() {
        let app = app().layer(MockConnectInfo(SocketAddr::from(([192, 0, 2, 1], 80))));
        for expected in [401, 401, 401, 429] {
            let request = with_token("tg_a_guess").map(axum::body::Body::new);
            assert_eq!(app.clone().oneshot(request).await.unwrap().status(), expected);
        }
    }
}
