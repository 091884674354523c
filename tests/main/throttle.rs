//! The failure throttle rejects peers with too many failures, and no other peers.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use http::{Request, Response, StatusCode};
use tokio::sync::Semaphore;
#[cfg(feature = "cache")]
use tollgate::TokenDigest;
use tollgate::gate::BodyTokens;
use tollgate::limit::{FailureThrottle, RateLimits, WouldBeThrottled};
use tollgate::store::{Lookup, from_fn_with};
use tollgate::{
    Answer, AuthLayer, BearerToken, BoxStore, Grant, MemoryStore, Quota, Rejection, RejectionKind, StoreError,
    TokenStore,
};
use tower::{Layer, Service, ServiceExt};

use crate::kit::*;

const PEER: &str = "198.51.100.7";
const OTHER_PEER: &str = "198.51.100.8";

/// One failure every 20 seconds, with a burst of three.
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

/// Sends a request and returns the status of the response.
async fn status<S>(service: &S, request: Request<Body>) -> u16
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    send(service, request).await.status().as_u16()
}

/// A store behind a network, which counts its lookups.
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
async fn brute_force_is_throttled_and_a_valid_token_of_the_same_peer_is_not() {
    let hands = Hands::default();
    let limits = hands.limits(Quota::per_minute(60).with_burst(50));
    let gate = AuthLayer::new(memory()).with_failure_throttle(throttle(&hands)).with_rate_limit(limits.clone());
    let service = gate.layer(echo());
    for _ in 0..3 {
        assert_eq!(status(&service, guess(PEER)).await, 401);
    }
    for _ in 0..20 {
        let response = send(&service, guess(PEER)).await;
        assert_eq!(kind(&response), Some(RejectionKind::TooManyFailures));
        assert_eq!(response.status(), 429);
        assert_eq!(status(&service, from(PEER, with_token(TOKEN))).await, 200);
    }
    assert_eq!(status(&service, guess(OTHER_PEER)).await, 401);
    // Only admitted requests were charged.
    assert_eq!(limits.peek(&crate::limits::grant_of("alice", None)).remaining(), 30);
}

#[tokio::test]
async fn a_rejection_reveals_the_retry_time_and_nothing_else() {
    let hands = Hands::default();
    let limits = hands.limits(Quota::per_minute(60));
    let gate = AuthLayer::new(memory()).with_failure_throttle(throttle(&hands)).with_rate_limit(limits);
    let service = gate.layer(echo());
    for _ in 0..3 {
        status(&service, guess(PEER)).await;
    }
    hands.advance(Duration::from_millis(1_500));
    let response: Response<Body> = send(&service, guess(PEER)).await;
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

    let mut request = guess(PEER);
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let response: Response<Body> = send(&service, request).await;
    assert_eq!(response.status(), 200);
    assert_eq!(field(response.headers(), "grpc-status"), Some("8"));
    assert_eq!(field(response.headers(), "grpc-message"), Some("Too many attempts to authenticate have failed."));
    assert_eq!(field(response.headers(), "retry-after"), Some("19"));
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn one_more_attempt_is_allowed_after_the_retry_time() {
    let hands = Hands::default();
    let service = AuthLayer::new(memory()).with_failure_throttle(throttle(&hands)).layer(echo());
    let remote = Remote::new();
    let waiting = remote.gate(throttle(&hands)).layer(echo());
    for _ in 0..3 {
        assert_eq!(status(&service, guess(PEER)).await, 401);
        assert_eq!(status(&waiting, guess(PEER)).await, 401);
    }
    for round in 1..=5 {
        hands.set_ns(round * 20_000_000_000 - 1);
        assert_eq!(status(&service, guess(PEER)).await, 429);
        assert_eq!(status(&waiting, guess(PEER)).await, 429);
        hands.advance(Duration::from_nanos(1));
        assert_eq!(status(&service, guess(PEER)).await, 401);
        assert_eq!(status(&service, guess(PEER)).await, 429);
        assert_eq!(status(&waiting, guess(PEER)).await, 401);
        assert_eq!(status(&waiting, guess(PEER)).await, 429);
    }
    assert_eq!(remote.polled(), 8);
}

/// A store whose answer depends on the token, mostly immediate.
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
async fn all_kinds_of_failures_are_counted_and_nothing_else() {
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
            let mut request = from(PEER, get());
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
        assert_eq!(status(&service, from(PEER, with_token("down"))).await, 503);
        assert_eq!(status(&service, from(PEER, get())).await, 401);
        let mut basic = from(PEER, get());
        basic.headers_mut().insert("authorization", "Basic YTpi".parse().unwrap());
        assert_eq!(status(&service, basic).await, 401);
        assert_eq!(status(&service, from(PEER, preflight())).await, 200);
    }
    assert_eq!(status(&service, guess(PEER)).await, 401);
    // The uncounted requests are not rejected either.
    assert_eq!(status(&service, guess(PEER)).await, 429);
    assert_eq!(status(&service, from(PEER, with_token("down"))).await, 503);
    let response: Response<Body> = send(&service, from(PEER, get())).await;
    assert_eq!(kind(&response), Some(RejectionKind::Missing));
    let anonymous = gate().allow_anonymous().layer(echo());
    for _ in 0..3 {
        assert_eq!(status(&anonymous, from(PEER, get())).await, 200);
    }
}

#[tokio::test]
async fn no_lookup_is_made_for_a_peer_over_its_limit() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let service = remote.gate(throttle(&hands)).layer(echo());
    for _ in 0..3 {
        assert_eq!(status(&service, guess(PEER)).await, 401);
    }
    assert_eq!(remote.polled(), 3);
    for _ in 0..20 {
        assert_eq!(status(&service, guess(PEER)).await, 429);
        // Without a lookup, a valid token looks like a guess.
        let response: Response<Body> = send(&service, from(PEER, with_token(TOKEN))).await;
        assert_eq!(kind(&response), Some(RejectionKind::TooManyFailures));
        assert_eq!(field(response.headers(), "retry-after"), Some("20"));
    }
    assert_eq!(remote.polled(), 0);
    assert_eq!(status(&service, from(OTHER_PEER, with_token(TOKEN))).await, 200);
}

#[cfg(feature = "cache")]
#[tokio::test]
async fn a_cached_token_is_never_throttled() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache =
        tollgate::store::CachedStore::builder(remote.store(), Duration::from_secs(60)).with_clock(|| Duration::ZERO);
    let gate = AuthLayer::with_timeout(cache.build().unwrap(), Duration::from_secs(2));
    let service = gate.with_failure_throttle(throttle(&hands)).layer(echo());
    assert_eq!(status(&service, from(PEER, with_token(TOKEN))).await, 200);
    for nth in 0..20 {
        let rejected = if nth < 3 { 401 } else { 429 };
        assert_eq!(status(&service, from(PEER, with_token(&format!("tg_guess_{nth}")))).await, rejected);
        assert_eq!(status(&service, from(PEER, with_token(TOKEN))).await, 200);
    }
    // A token that is cached as unknown is a failure too.
    assert_eq!(status(&service, from(PEER, with_token("tg_guess_0"))).await, 429);
    assert_eq!(remote.polled(), 1 + 3);
}

/// After an outage, a cache looks up all its entries again. These lookups are no guesses.
#[cfg(feature = "cache")]
#[tokio::test]
async fn cached_tokens_are_not_throttled_after_the_cache_is_invalidated() {
    use tollgate::store::{CachedStore, Invalidation};

    let (remote, hands) = (Remote::new(), Hands::default());
    let names: Vec<String> = (0..40).map(|number| format!("tg_holder_{number}")).collect();
    for name in &names {
        remote.tokens.insert(TokenDigest::of(name), Grant::new(name, User("a holder"))).unwrap();
    }
    let cache =
        CachedStore::builder(remote.store(), Duration::from_secs(60)).with_clock(|| Duration::ZERO).build().unwrap();
    // The reference service has the same layers.
    let gate = AuthLayer::with_timeout(BoxStore::new(cache.clone()), Duration::from_secs(2));
    let service = gate.with_failure_throttle(throttle(&hands)).layer(echo());
    for name in &names {
        assert_eq!(status(&service, from(PEER, with_token(name))).await, 200);
    }
    for nth in 0..5 {
        let rejected = if nth < 3 { 401 } else { 429 };
        assert_eq!(status(&service, from(PEER, with_token(&format!("tg_guess_{nth}")))).await, rejected);
    }
    cache.invalidate(&Invalidation::Everything);
    remote.polled();
    remote.answers.forget_permits(Semaphore::MAX_PERMITS);
    let waiting: Vec<_> = names[..39]
        .iter()
        .map(|name| {
            let (service, request) = (service.clone(), from(PEER, with_token(name)));
            tokio::spawn(async move { status(&service, request).await })
        })
        .collect();
    tokio::task::yield_now().await;
    remote.answers.add_permits(Semaphore::MAX_PERMITS);
    for answer in waiting {
        assert_eq!(answer.await.unwrap(), 200);
    }
    assert_eq!(remote.polled(), 39);
    // A revoked token is a failure, and is looked up once.
    remote.tokens.revoke(TokenDigest::of(&*names[39]));
    for _ in 0..3 {
        assert_eq!(status(&service, from(PEER, with_token(&names[39]))).await, 429);
    }
    assert_eq!(remote.polled(), 1);
    hands.advance(Duration::from_secs(20));
    assert_eq!(status(&service, guess(PEER)).await, 401);
}

#[tokio::test]
async fn a_new_clock_or_width_resets_all_counts() {
    async fn guesses(failures: FailureThrottle) -> u16 {
        let gate = AuthLayer::new(memory()).with_failure_throttle(failures);
        status(&gate.layer(echo()), guess(PEER)).await
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
async fn the_peer_closure_sees_no_removed_credentials() {
    let seen = Arc::new(AtomicUsize::new(0));
    let calls = Arc::clone(&seen);
    let failures = FailureThrottle::new(QUOTA, move |head| {
        assert!(!head.headers.contains_key("authorization"));
        calls.fetch_add(1, Ordering::SeqCst);
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
async fn a_reservation_without_a_failure_is_returned() {
    let remote = Remote::new();
    let failures = FailureThrottle::by_socket_addr(Quota::per_hour(1)).with_clock(|| Duration::ZERO);
    // A caller over its rate limit is authenticated.
    let limits = RateLimits::new(Quota::per_hour(5)).with_clock(|| Duration::ZERO);
    let service = remote.gate(failures).with_rate_limit(limits).layer(echo());
    for nth in 0..10 {
        assert_eq!(status(&service, from(PEER, with_token(TOKEN))).await, if nth < 5 { 200 } else { 429 });
        remote.down.store(true, Ordering::SeqCst);
        assert_eq!(status(&service, guess(PEER)).await, 503);
        remote.down.store(false, Ordering::SeqCst);
        // The timeout.
        remote.answers.forget_permits(Semaphore::MAX_PERMITS);
        assert_eq!(status(&service, guess(PEER)).await, 503);
        remote.answers.add_permits(Semaphore::MAX_PERMITS);
    }
    assert_eq!(status(&service, guess(PEER)).await, 401);
    assert_eq!(status(&service, guess(PEER)).await, 429);
}

#[tokio::test]
async fn a_lookup_that_is_dropped_early_counts() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let service = remote.gate(throttle(&hands)).layer(echo());
    remote.answers.forget_permits(Semaphore::MAX_PERMITS);
    for _ in 0..3 {
        let mut dropped = std::pin::pin!(send::<_, Body>(&service, guess(PEER)));
        assert!(dropped.as_mut().now_or_never().is_none());
    }
    assert_eq!(remote.polled(), 3);
    remote.answers.add_permits(Semaphore::MAX_PERMITS);
    assert_eq!(status(&service, guess(PEER)).await, 429);
    hands.advance(Duration::from_secs(20));
    assert_eq!(status(&service, guess(PEER)).await, 401);
}

/// Checks clients that disconnect after half of the gate's timeout.
#[tokio::test]
async fn a_lookup_that_is_dropped_late_does_not_count() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let service = remote.gate(throttle(&hands)).layer(echo());
    remote.answers.forget_permits(Semaphore::MAX_PERMITS);
    let half = Duration::from_secs(1);
    let drop_after = async |waited: Duration| {
        let mut dropped = std::pin::pin!(send::<_, Body>(&service, guess(PEER)));
        assert!(dropped.as_mut().now_or_never().is_none());
        hands.advance(waited);
    };
    for _ in 0..20 {
        drop_after(half).await;
    }
    assert_eq!(remote.polled(), 20);
    // A late answer counts like any other.
    let mut late = std::pin::pin!(send::<_, Body>(&service, guess(PEER)));
    assert!(late.as_mut().now_or_never().is_none());
    hands.advance(half);
    remote.answers.add_permits(Semaphore::MAX_PERMITS);
    assert_eq!(late.await.status(), 401);
    remote.answers.forget_permits(Semaphore::MAX_PERMITS);
    for _ in 0..2 {
        drop_after(Duration::ZERO).await;
    }
    remote.answers.add_permits(Semaphore::MAX_PERMITS);
    assert_eq!(status(&service, guess(PEER)).await, 429);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pending_lookups_never_exceed_the_failures_left() {
    for burst in [1, 7, 40] {
        let remote = Remote::new();
        let failures = FailureThrottle::by_socket_addr(Quota::per_hour(burst)).with_clock(|| Duration::ZERO);
        let service = remote.gate(failures).layer(echo());
        remote.answers.forget_permits(Semaphore::MAX_PERMITS);
        let requests = (0..100).map(|_| {
            let service = service.clone();
            tokio::spawn(async move { status(&service, guess(PEER)).await })
        });
        let requests: Vec<_> = requests.collect();
        // Rejections are immediate. The other requests are pending.
        while requests.iter().filter(|request| request.is_finished()).count() < 100 - burst as usize {
            tokio::task::yield_now().await;
        }
        remote.answers.add_permits(Semaphore::MAX_PERMITS);
        let mut rejected = 0;
        for request in requests {
            rejected += usize::from(request.await.unwrap() == 429);
        }
        assert_eq!((rejected, remote.polled()), (100 - burst as usize, burst as usize));
        assert_eq!(status(&service, guess(PEER)).await, 429);
    }
}

#[tokio::test]
async fn reservations_of_valid_lookups_are_returned() {
    let remote = Remote::new();
    let failures = FailureThrottle::by_socket_addr(QUOTA).with_clock(|| Duration::ZERO);
    let service = remote.gate(failures).layer(echo());
    for _ in 0..5 {
        remote.answers.forget_permits(Semaphore::MAX_PERMITS);
        let mut pending: Vec<_> =
            (0..3).map(|_| Box::pin(send::<_, Body>(&service, from(PEER, with_token(TOKEN))))).collect();
        for request in &mut pending {
            assert!(request.as_mut().now_or_never().is_none());
        }
        assert_eq!(status(&service, guess(PEER)).await, 429);
        remote.answers.add_permits(Semaphore::MAX_PERMITS);
        for request in pending {
            assert_eq!(request.await.status(), 200);
        }
    }
    for expected in [401, 401, 401, 429] {
        assert_eq!(status(&service, guess(PEER)).await, expected);
    }
}

#[tokio::test]
async fn the_closure_determines_the_peer() {
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

    // All addresses of a /64 are one peer.
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
async fn gates_with_clones_of_one_throttle_count_together() {
    let hands = Hands::default();
    let failures = throttle(&hands);
    let (rest, stream) = (
        AuthLayer::new(memory()).with_failure_throttle(failures.clone()).layer(echo()),
        AuthLayer::new(memory()).with_failure_throttle(failures).layer(echo()),
    );
    assert_eq!(status(&rest, guess(PEER)).await, 401);
    assert_eq!(status(&stream, guess(PEER)).await, 401);
    assert_eq!(status(&rest, guess(PEER)).await, 401);
    assert_eq!(status(&stream, guess(PEER)).await, 429);
    // A gate without a throttle counts nothing.
    let open = AuthLayer::new(memory()).layer(echo());
    assert_eq!(status(&open, guess(PEER)).await, 401);
}

#[tokio::test]
async fn a_missing_address_is_named_in_the_response() {
    let remote = Remote::new();
    let hands = Hands::default();
    let immediate = AuthLayer::new(memory()).with_failure_throttle(throttle(&hands)).layer(echo());
    let waiting = remote.gate(throttle(&hands)).layer(echo());
    for response in [
        send::<_, Body>(&immediate, with_token("tg_a_guess")).await,
        send(&waiting, with_token("tg_a_guess")).await,
        send(&waiting, with_token(TOKEN)).await,
    ] {
        assert_eq!(response.status(), 500);
        assert!(json(response).await["detail"].as_str().unwrap().contains("`SocketAddr`"));
    }
    assert_eq!(remote.polled(), 0);
    assert_eq!(status(&immediate, with_token(TOKEN)).await, 200);
    assert_eq!(status(&immediate, get()).await, 401);
}

#[tokio::test]
async fn a_dry_run_rejects_nothing_and_reports() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let immediate = AuthLayer::new(memory()).with_failure_throttle(throttle(&hands).with_dry_run()).layer(echo());
    let waiting = remote.gate(throttle(&hands).with_dry_run()).layer(echo());
    let reported = |response: &Response<Body>| response.extensions().get::<Rejection>().unwrap().would_be_throttled();
    for nth in 0..10 {
        for response in [send(&immediate, guess(PEER)).await, send(&waiting, guess(PEER)).await] {
            assert_eq!((response.status().as_u16(), reported(&response)), (401, nth >= 3));
            assert!(response.headers().contains_key("www-authenticate"));
            assert!(!response.headers().contains_key("retry-after"));
        }
        // An enforced throttle would admit the first and prevent the lookup of the second.
        let passed: [Response<Body>; 2] = [
            send(&immediate, from(PEER, with_token(TOKEN))).await,
            send(&waiting, from(PEER, with_token(TOKEN))).await,
        ];
        assert!(passed.iter().all(|response| response.status() == 200));
        let marked = passed.each_ref().map(|response| response.extensions().get::<WouldBeThrottled>().is_some());
        assert_eq!(marked, [false, nth >= 2]);
    }
    // Requests that would be rejected are not counted, so the dry run reports like an enforced throttle.
    hands.advance(Duration::from_secs(20));
    for (expected, request) in [(false, guess(PEER)), (true, guess(PEER))] {
        assert_eq!(reported(&send(&immediate, request).await), expected);
    }
    // A missing address rejects nothing either.
    let response: Response<Body> = send(&immediate, with_token("tg_a_guess")).await;
    assert_eq!((response.status().as_u16(), reported(&response)), (401, true));
}

#[tokio::test]
async fn tokens_in_the_body_are_throttled() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let body_tokens =
        || BodyTokens::with_timeout(Duration::from_secs(1)).with_json("key").unwrap().with_text("key").unwrap();
    let inner = tower::service_fn(|_| async { Ok::<_, Infallible>(Response::new(Body::default())) });
    let immediate =
        AuthLayer::new(memory()).with_failure_throttle(throttle(&hands)).with_body_tokens(body_tokens()).layer(inner);
    let waiting = remote.gate(throttle(&hands)).with_body_tokens(body_tokens()).layer(inner);
    let alert = |content_type: &str, body: String| {
        from(PEER, Request::post("/").header("content-type", content_type).body(Body::from(body)).unwrap())
    };
    let json = |key: &str| alert("application/json", format!(r#"{{"key": "{key}"}}"#));
    assert_eq!(status(&immediate, json("tg_a_guess")).await, 401);
    assert_eq!(status(&immediate, alert("text/plain", "key=tg_a_guess;".to_owned())).await, 401);
    // Two keys are a failure. A missing key and a body that is too large are not.
    assert_eq!(status(&immediate, alert("text/plain", "key=a;key=b;".to_owned())).await, 400);
    assert_eq!(status(&immediate, alert("text/plain", "key=tg_a_guess;".to_owned())).await, 429);
    assert_eq!(status(&immediate, alert("text/plain", "command=FLATTEN;".to_owned())).await, 401);
    assert_eq!(status(&immediate, alert("text/plain", "x".repeat(70_000))).await, 413);
    assert_eq!(status(&immediate, json(TOKEN)).await, 200);
    // The request head is ambiguous about the location of the token.
    let mut ambiguous = json(TOKEN);
    ambiguous.headers_mut().append("content-type", "text/plain".parse().unwrap());
    assert_eq!(status(&immediate, ambiguous).await, 429);

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
    async fn the_peer_is_the_address_of_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let served = app().into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, served).await });
        // Each request has its own connection, and thus its own port.
        for expected in [401, 401, 401, 429, 429] {
            assert_eq!(ask(addr, "tg_a_guess").await.0, expected);
        }
        assert_eq!(ask(addr, TOKEN).await, (StatusCode::OK, "in".to_owned()));
    }

    #[tokio::test]
    async fn without_connect_info_the_response_names_the_missing_call() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app()).await });
        let (status, problem) = ask(addr, "tg_a_guess").await;
        assert_eq!(status, 500);
        assert!(problem.contains("`into_make_service_with_connect_info::<SocketAddr>()`"), "{problem}");
        assert_eq!(ask(addr, TOKEN).await.0, 200);
    }

    #[tokio::test]
    async fn mock_connect_info_is_the_peer() {
        let app = app().layer(MockConnectInfo(SocketAddr::from(([192, 0, 2, 1], 80))));
        for expected in [401, 401, 401, 429] {
            let request = with_token("tg_a_guess").map(axum::body::Body::new);
            assert_eq!(app.clone().oneshot(request).await.unwrap().status(), expected);
        }
    }
}
