//! Limits of callers without a token, by their address: on public routes and in gates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::body::Body;
use axum::routing::get;
use axum::{Router, serve};
use http::{HeaderName, Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tollgate::limit::{AnonymousLimits, ClientIp, RateLimits};
use tollgate::{
    Answer, AuthLayer, Authenticated, Charge, Decision, Limit, LimitError, Limiter, ProblemDetails, Quota, RequestHead,
};
use tower::{Layer, ServiceExt};

use crate::kit::{Hands, TOKEN, field, memory};

const FIVE: Quota = Quota::per_minute(60).with_burst(5);

fn by_address(limit: impl Into<Limit>) -> AnonymousLimits {
    AnonymousLimits::by_client_ip(limit, ClientIp::peer()).unwrap()
}

/// Charges one request of this address.
fn charge(limits: &impl Limiter<Future: Future<Output = Decision>>, address: IpAddr) -> Decision {
    let mut request = Request::new(());
    request.extensions_mut().insert(SocketAddr::new(address, 40_000));
    match limits.charge_anonymous(Charge::Request(&RequestHead::of(&request))) {
        Answer::Ready(decision) => decision,
        Answer::Pending(_) => panic!("limits in memory are immediate"),
    }
}

fn v4(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(number))
}

/// A real server and clients at several loopback addresses.
#[tokio::test]
async fn each_address_has_its_own_limit_and_callers_with_a_token_have_theirs() {
    let frozen = || Duration::ZERO;
    let limits = by_address(FIVE).with_clock(frozen);
    let limits = limits.with_authenticated(RateLimits::new(Quota::per_hour(7)).with_clock(frozen));
    let gate = AuthLayer::new(memory()).allow_anonymous().with_rate_limit(limits);
    let app = Router::new()
        .route("/public", get(|| async { "prices" }))
        .route("/private", get(|_: Authenticated<crate::kit::User>| async { "orders" }))
        .layer(gate)
        .into_make_service_with_connect_info::<SocketAddr>();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move { serve(listener, app).await });

    let ask = async |from: [u8; 4], path: &str, token: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        let mut stream = socket.connect(server).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{token}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    };
    for remaining in (0..5).rev() {
        let response = ask([127, 0, 0, 2], "/public", "").await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert!(response.contains(&format!("ratelimit: \"anonymous\";r={remaining};t=1\r\n")), "{response}");
    }
    let over = ask([127, 0, 0, 2], "/public", "").await;
    assert!(over.starts_with("HTTP/1.1 429") && over.contains("retry-after: 1\r\n"), "{over}");
    assert!(ask([127, 0, 0, 3], "/public", "").await.starts_with("HTTP/1.1 200"));
    let token = format!("authorization: Bearer {TOKEN}\r\n");
    let response = ask([127, 0, 0, 2], "/private", &token).await;
    assert!(response.starts_with("HTTP/1.1 200") && response.contains("ratelimit: \"default\";r=6;"), "{response}");
    assert!(ask([127, 0, 0, 3], "/private", "").await.starts_with("HTTP/1.1 401"), "the handler needs a caller");
}

async fn send(app: &Router, peer: Option<&str>, method: &str) -> Response<Body> {
    let mut request = Request::builder().method(method).uri("/").header("origin", "https://app.example");
    if method == "OPTIONS" {
        request = request.header("access-control-request-method", "GET");
    }
    let mut request = request.body(Body::empty()).unwrap();
    if let Some(peer) = peer {
        request.extensions_mut().insert(SocketAddr::new(peer.parse().unwrap(), 40_000));
    }
    app.clone().oneshot(request).await.unwrap()
}

#[tokio::test]
async fn a_public_route_needs_no_store() {
    let limits = by_address(Limit::new("address", FIVE).unwrap()).with_clock(|| Duration::ZERO);
    let public = AuthLayer::anonymous().with_rate_limit(limits);
    let app = Router::new().route("/", axum::routing::any(|| async { "prices" })).layer(public);
    for (method, remaining) in [("GET", 4), ("OPTIONS", 3), ("POST", 2)] {
        let response = send(&app, Some("192.0.2.1"), method).await;
        assert_eq!(response.status(), 200, "{method}");
        let expected = format!(r#""address";r={remaining};t=1"#);
        assert_eq!(field(response.headers(), "ratelimit"), Some(&*expected), "{method}");
    }
    // One customer's IPv6 addresses share a bucket. Requests without an address share another one.
    for (peer, remaining) in [(Some("2001:db8::1"), 4), (Some("2001:db8::2"), 3), (None, 4), (None, 3)] {
        let response = send(&app, peer, "GET").await;
        let expected = format!(r#""address";r={remaining};t=1"#);
        assert_eq!(field(response.headers(), "ratelimit"), Some(&*expected), "{peer:?}");
    }
}

#[tokio::test]
async fn a_route_behind_a_gate_limits_by_address() {
    let gate = AuthLayer::new(memory()).allow_anonymous();
    let route = gate.route_rate_limit(by_address(Quota::per_hour(1)).with_clock(|| Duration::ZERO));
    let app: Router = Router::new().route("/", get(|| async {}).route_layer(route)).layer(gate);
    for (peer, status) in [("192.0.2.1", 200), ("192.0.2.1", 429), ("192.0.2.2", 200)] {
        assert_eq!(send(&app, Some(peer), "GET").await.status(), status, "{peer}");
    }
}

#[test]
fn costs_and_dry_runs_apply() {
    let limit = Limit::from(FIVE).with_cost(|head| head.headers.len() as u32 + 3).with_dry_run();
    let limits = by_address(limit).with_clock(|| Duration::ZERO);
    let first = charge(&limits, v4(1));
    assert!(first.is_admitted() && !first.would_be_rejected());
    let second = charge(&limits, v4(1));
    assert!(second.is_admitted() && second.would_be_rejected());
}

#[test]
fn another_key_can_replace_the_address() {
    let tenant = HeaderName::from_static("x-tenant");
    let limits = AnonymousLimits::new(Quota::per_hour(1), move |head| head.headers.get(&tenant).cloned()).unwrap();
    let admitted = |tenant: &str| {
        let request = Request::get("/").header("x-tenant", tenant).body(()).unwrap();
        let Answer::Ready(decision) = limits.charge_anonymous(Charge::Request(&RequestHead::of(&request))) else {
            panic!("limits in memory are immediate")
        };
        decision.is_admitted()
    };
    assert_eq!(["a", "a", "b", "b"].map(admitted), [true, false, true, false]);
}

/// The documented bounds: fixed memory, no address above its quota, and a share for addresses that come during a flood.
#[test]
fn a_million_addresses_take_no_memory_and_stop_no_other_address() {
    let hands = Hands::default();
    let clock = hands.clone();
    let limits = by_address(Quota::per_minute(60).with_burst(30)).with_clock(move || Duration::from_nanos(clock.ns()));
    let memory = limits.memory_bytes();
    let used: Vec<IpAddr> = (0..100).map(|number| v4(0x0a00_0000 + number)).collect();
    (0..29).for_each(|_| used.iter().for_each(|&address| assert!(charge(&limits, address).is_admitted())));
    let admitted = (0..1_000_000).filter(|&number| charge(&limits, v4(0x4000_0000 + number)).is_admitted()).count();
    assert_eq!((admitted, limits.memory_bytes()), (1_000_000, memory));
    assert_eq!(memory >> 10, 1_280, "1.25 MiB");
    // A new address has about half of its units, since 15 addresses share a bucket.
    let new = (0..1_000).map(|number| charge(&limits, v4(0xc000_0000 + number)).remaining());
    let least = new.min().unwrap();
    assert!((3..=14).contains(&least), "{least}");
    // Addresses that had used most of their units kept their buckets.
    assert!(used.iter().all(|&address| charge(&limits, address).is_admitted()));
    assert!(used.iter().all(|&address| !charge(&limits, address).is_admitted()));
    hands.advance(Duration::from_secs(1));
    assert!(used.iter().all(|&address| charge(&limits, address).is_admitted()));
}

#[test]
fn an_ipv6_prefix_that_is_too_long_gives_a_customer_many_buckets() {
    let address = |number: u128| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) | number << 64));
    for (bits, admitted) in [(64, 256), (56, 1), (48, 1)] {
        let source = ClientIp::peer().with_ipv6_prefix(bits).unwrap();
        let limits = AnonymousLimits::by_client_ip(Quota::per_hour(1), source).unwrap();
        let count = (0..256).filter(|&number| charge(&limits, address(number)).is_admitted()).count();
        assert_eq!(count, admitted, "/{bits}");
    }
}

#[test]
fn settings_without_effect_are_errors() {
    let limit = || Limit::new("address", FIVE).unwrap();
    for limit in [limit().shared_by_all(), limit().with_anonymous(FIVE), limit().with_grant_quotas()] {
        let error = AnonymousLimits::by_client_ip(limit, ClientIp::peer()).unwrap_err();
        assert_eq!(error, LimitError::NotForAnonymous);
    }
    for buckets in [0, 63, (1 << 24) + 1] {
        assert_eq!(by_address(FIVE).with_capacity(buckets).unwrap_err(), LimitError::Capacity);
    }
    assert_eq!(by_address(FIVE).with_capacity(100).unwrap().memory_bytes(), 128 * 20);
}

#[test]
#[should_panic(expected = "must be set up before it is cloned")]
fn a_new_clock_panics_while_a_clone_exists() {
    let limits = by_address(FIVE);
    let _clone = limits.clone();
    _ = limits.with_clock(|| Duration::ZERO);
}

/// A gate in plain tower, whose requests have the address as hyper services insert it.
#[tokio::test]
async fn clones_share_the_buckets() {
    let limits = by_address(Quota::per_hour(1));
    let inner = || {
        tower::service_fn(|_: Request<Body>| async { Ok::<_, std::convert::Infallible>(Response::new(Body::empty())) })
    };
    let mut statuses = Vec::new();
    for limits in [limits.clone(), limits] {
        let service = AuthLayer::anonymous().with_rate_limit(limits).with_responder(ProblemDetails).layer(inner());
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(SocketAddr::from(([192, 0, 2, 1], 1)));
        statuses.push(service.oneshot(request).await.unwrap().status().as_u16());
    }
    assert_eq!(statuses, [200, 429]);
}
