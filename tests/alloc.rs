//! The exact number of allocations that the gate adds to a request. A separate binary, because it needs its own
//! allocator.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tollgate::TokenDigest;

use allocation_counter::measure;
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use tollgate::limit::FailureThrottle;
use tollgate::{AuthLayer, Grant, MemoryStore, Quota, RateLimits};
use tower::{Layer, Service};

type Body = Bytes;

/// An inner service whose response already has a header: the header map is not counted for the gate.
#[derive(Clone)]
struct Inner;

impl Service<Request<Body>> for Inner {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let mut response = Response::new(Bytes::new());
        response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
        std::future::ready(Ok(response))
    }
}

/// Returns a request that already has an extension, as requests from a router do.
fn request(authorization: Option<&'static str>) -> Request<Body> {
    let mut request = Request::new(Bytes::new());
    request.extensions_mut().insert("some extension");
    request.extensions_mut().reserve_for_test();
    if let Some(value) = authorization {
        request.headers_mut().insert("authorization", HeaderValue::from_static(value));
    }
    request
}

trait ReserveForTest {
    fn reserve_for_test(&mut self);
}

impl ReserveForTest for http::Extensions {
    /// Grows the map of extensions now, so that growth during the measurement cannot change the count.
    fn reserve_for_test(&mut self) {
        self.insert(0_u8);
        self.insert(0_u16);
        self.remove::<u8>();
        self.remove::<u16>();
    }
}

fn allocations<S>(service: &mut S, request: Request<Body>, status: u16) -> u64
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let mut request = Some(request);
    let info = measure(|| {
        let mut cx = Context::from_waker(Waker::noop());
        let future = service.call(request.take().expect("measured once"));
        let mut future = std::pin::pin!(future);
        let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx) else { panic!("the response is immediate") };
        assert_eq!(response.status(), status);
    });
    info.count_total
}

/// Returns the allocations of a second request. The first request of a thread creates the thread's copy of the gate.
fn repeated<S>(service: &mut S, request: impl Fn() -> Request<Body>) -> u64
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    allocations(service, request(), 200);
    allocations(service, request(), 200)
}

#[test]
fn every_allocation_of_a_request_is_accounted_for() {
    let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    let layer = AuthLayer::new(tokens);
    // The first request of a subject creates its bucket, and the first of each kind creates its counters (feature
    // `metrics`).
    // Neither is counted.
    let small = RateLimits::new(Quota::per_second(1_000_000).with_burst(20));
    let large = RateLimits::new(Quota::per_second(1_000_000));
    let single = RateLimits::new(Quota::one_per(Duration::from_secs(3_600)));

    let bare = allocations(&mut Inner, request(Some("Bearer a-token")), 200);

    let mut authenticated = layer.clone().layer(Inner);
    let mut limited = layer.clone().with_rate_limit(small).layer(Inner);
    let mut largely = layer.clone().with_rate_limit(large).layer(Inner);
    let mut over = layer.clone().with_rate_limit(single).layer(Inner);
    let soon = RateLimits::new(Quota::per_second(1)).with_clock(|| Duration::ZERO);
    let mut over_soon = layer.with_rate_limit(soon).layer(Inner);
    for (value, status) in
        [(Some("Bearer a-token"), 200), (None, 401), (Some("Bearer unknown"), 401), (Some("Bearer a b"), 401)]
    {
        allocations(&mut authenticated, request(value), status);
    }
    allocations(&mut limited, request(Some("Bearer a-token")), 200);
    allocations(&mut largely, request(Some("Bearer a-token")), 200);
    for over in [&mut over, &mut over_soon] {
        allocations(over, request(Some("Bearer a-token")), 200);
        allocations(over, request(Some("Bearer a-token")), 429);
    }

    // `http` boxes the extension that holds the grant.
    assert_eq!(allocations(&mut authenticated, request(Some("Bearer a-token")), 200) - bare, 1, "admitted");
    // No further allocation: the values of `RateLimit` were rendered with the policy.
    assert_eq!(allocations(&mut limited, request(Some("Bearer a-token")), 200) - bare, 1, "admitted within the limit");
    // A large bucket has too many values to render in advance: one allocation for the value.
    assert_eq!(
        allocations(&mut largely, request(Some("Bearer a-token")), 200) - bare,
        2,
        "admitted within a large limit"
    );

    // The header map (2: entries and index), the extensions (2: map and table), and the boxed `Rejection`.
    // Challenges and bodies were rendered when the gate was built.
    for (value, what) in [(None, "missing"), (Some("Bearer unknown"), "unknown"), (Some("Bearer a b"), "malformed")] {
        assert_eq!(allocations(&mut authenticated, request(value), 401), 5, "{what}");
    }
    // The same 5. A wait of a second is the usual one, for which everything is rendered once.
    assert_eq!(allocations(&mut over_soon, request(Some("Bearer a-token")), 429), 5, "over limit for a second");
    // The same 5, the body, and the values of `RateLimit` and `Retry-After`.
    assert_eq!(allocations(&mut over, request(Some("Bearer a-token")), 429), 8, "over limit");
}

/// Checks that a million failing peers leave nothing in memory.
#[test]
fn a_million_failing_peers_use_no_memory() {
    let throttle = FailureThrottle::by_socket_addr(Quota::per_minute(1).with_burst(2));
    let table = throttle.memory_bytes();
    let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    let mut service = AuthLayer::new(tokens).with_failure_throttle(throttle.clone()).layer(Inner);
    let mut cx = Context::from_waker(Waker::noop());
    // The first failure and the first throttled request create their counters (feature `metrics`).
    for status in [401, 401, 429] {
        let mut request = request(Some("Bearer not a token"));
        request.extensions_mut().insert(SocketAddr::from((Ipv6Addr::LOCALHOST, 80)));
        allocations(&mut service, request, status);
    }
    let mut answers = [0_u32; 2];
    let all = measure(|| {
        for peer in 0..1_000_000_u128 {
            // One /64 for each peer.
            let address = Ipv6Addr::from_bits((0x2001_0db8 << 96) + (peer << 64) + 1);
            let mut request = request(Some("Bearer not a token"));
            request.extensions_mut().insert(SocketAddr::from((address, 80)));
            let mut future = std::pin::pin!(service.call(request));
            let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx) else { panic!("the response is immediate") };
            answers[usize::from(response.status() == 429)] += 1;
        }
    });
    assert_eq!((all.bytes_current, throttle.memory_bytes()), (0, table), "nothing was kept");
    assert!(all.bytes_max < 8_192, "{} bytes for one request", all.bytes_max);
    // This many peers fill the table within seconds. From then on unknown tokens are rejected; valid tokens still pass.
    assert!(answers.iter().all(|&answers| answers > 16_384), "{answers:?}");
    let mut holder = request(Some("Bearer a-token"));
    holder.extensions_mut().insert(SocketAddr::from(([192, 0, 2, 1], 80)));
    allocations(&mut service, holder, 200);
}

/// Checks that a failure throttle adds no allocation to an admitted request.
#[test]
fn a_throttle_adds_no_allocation_to_admitted_requests() {
    let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    // Panics if the throttle looks at the peer.
    let throttle =
        FailureThrottle::new(Quota::per_minute(1), |_| -> Option<()> { panic!("the throttle looked at the peer") });
    let mut without = AuthLayer::new(tokens.clone()).layer(Inner);
    let mut with = AuthLayer::new(tokens).with_failure_throttle(throttle).layer(Inner);
    let authorized = || request(Some("Bearer a-token"));
    assert_eq!(repeated(&mut with, authorized), repeated(&mut without, authorized));
}

/// Checks that stores made of other stores add no allocation to an admitted request, if the grant is unchanged.
#[test]
fn store_combinators_do_not_allocate() {
    use tollgate::store::{by_head, by_prefix, first_of, map};

    let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    let empty = MemoryStore::new();
    let by_prefix = by_prefix([("b-", empty.clone()), ("a-", tokens.clone())]).expect("different prefixes");
    let (tenant, mapped) = (tokens.clone(), tokens.clone());
    let mut plain = AuthLayer::new(tokens.clone()).layer(Inner);
    let authorized = || request(Some("Bearer a-token"));
    let expected = repeated(&mut plain, authorized);

    let mut service = AuthLayer::new(map(mapped, |grant| grant)).layer(Inner);
    assert_eq!(repeated(&mut service, authorized), expected, "map");
    let mut service = AuthLayer::new(first_of(empty, tokens.clone())).layer(Inner);
    assert_eq!(repeated(&mut service, authorized), expected, "first_of");
    let mut service = AuthLayer::new(by_prefix).layer(Inner);
    assert_eq!(repeated(&mut service, authorized), expected, "by_prefix");
    let mut service = AuthLayer::new(by_head(move |_| Some(tenant.clone()))).layer(Inner);
    assert_eq!(repeated(&mut service, authorized), expected, "by_head");
    // A new grant is two allocations: its own, and one for its quota, which it shares with no other.
    let changed = map(tokens, |grant| Grant::clone(&grant).with_quota(Quota::per_second(1)).into());
    let mut service = AuthLayer::new(changed).layer(Inner);
    assert_eq!(repeated(&mut service, authorized), expected + 2, "a new grant");
}

/// Checks that a store is loaded without growing its tables, and that a token with short names is one allocation.
#[test]
fn loading_a_store_reserves_its_tables() {
    const TOKENS: u32 = 10_000;
    let ids: Vec<String> = (0..TOKENS).map(|i| format!("key-{i:019}")).collect();
    let digests: Vec<TokenDigest> = ids.iter().map(TokenDigest::of).collect();
    let mut store = None;
    let tokens = || digests.iter().zip(&ids);
    let info = measure(|| {
        let grants = tokens().map(|(digest, id)| (*digest, Grant::new(id, 0_u32).with_subject(id)));
        store = Some(MemoryStore::from_iter(grants));
    });
    assert_eq!(store.map(|store| store.len()), Some(ids.len()));
    // 64 tables, the store, and the list of their locks.
    assert!(info.count_total <= u64::from(TOKENS) + 64 + 2, "{} allocations", info.count_total);
    assert!(info.bytes_max <= u64::from(TOKENS) * 180, "{} bytes at the peak", info.bytes_max);
}

/// Checks that a function of `try_map` behind a cache adds no allocation to an admitted request.
#[cfg(all(feature = "cache", feature = "tokio"))]
#[test]
fn a_cached_function_does_not_allocate() {
    use std::sync::Arc;
    use tollgate::store::{CachedStore, try_map};
    use tollgate::{BearerToken, TokenStore};

    let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    let with_user =
        try_map(
            tokens.clone(),
            |grant| async move { Ok::<_, Infallible>(Some(Arc::new(grant.with_principal("Alice")))) },
        );
    let cached = CachedStore::new(with_user, Duration::from_secs(60)).expect("a valid time");
    let lookup = cached.lookup(&BearerToken::new("a-token")).into_future();
    let mut lookup = std::pin::pin!(lookup);
    assert!(lookup.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());

    let mut plain = AuthLayer::new(tokens).layer(Inner);
    let mut mapped = AuthLayer::with_timeout(cached.clone(), Duration::from_secs(2)).layer(Inner);
    let authorized = || request(Some("Bearer a-token"));
    // Allocations made once in a process.
    allocations(&mut plain, authorized(), 200);
    allocations(&mut mapped, authorized(), 200);
    assert_eq!(allocations(&mut mapped, authorized(), 200), allocations(&mut plain, authorized(), 200));
}

/// Checks that extraction from a body allocates nothing, whatever the number of fields, unless JSON has escapes.
#[cfg(feature = "body")]
#[test]
fn extraction_from_bodies_does_not_allocate() {
    use http::{Method, Uri};
    use tollgate::extract::{Extracted, TokenSyntax, form, json, query, text};

    let count = |extract: &dyn Fn() -> bool| measure(|| assert!(extract())).count_total;
    for fields in [1, 10, 1_000] {
        let members = (0..fields).map(|i| format!(r#""field{i}": {{"\u0061": [{i}, "b\\n"]}}, "#)).collect::<String>();
        let in_json = format!(r#"{{{members}"key": "a-token"}}"#);
        let in_text = format!("{}key=a-token;", "field=value; ".repeat(fields));
        // With and without escapes.
        let in_form = format!("{}access_token=a-token", "field=value&f%69el+d=v%61lue&".repeat(fields));
        let target: Uri = format!("/?{}", in_form.replace('+', "%20")).parse().unwrap();
        let is_token = |extracted| matches!(extracted, Extracted::Token(_));
        assert_eq!(count(&|| is_token(text(in_text.as_bytes(), "key", TokenSyntax::default()))), 0);
        assert_eq!(count(&|| is_token(form(in_form.as_bytes(), "access_token", TokenSyntax::default()))), 0);
        assert_eq!(count(&|| is_token(query(&Method::GET, &target, "access_token", TokenSyntax::default()))), 0);
        // The JSON parser's buffer for names and strings with escapes, which this body has.
        assert!(count(&|| is_token(json(in_json.as_bytes(), "key", TokenSyntax::default()))) <= 1, "{fields} fields");
    }
}
