//! Limits of callers without a grant in Redis, shared by several servers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tollgate::limit::redis::{OutagePolicy, RedisAnonymousLimits, RedisLimits};
use tollgate::limit::{AnonymousLimits, Charge, ClientIp, Limiter as _, RateLimits};
use tollgate::{AuthLayer, CurrentGrant, Decision, Grant, Limit, Quota, RequestHead, Verdict};

use crate::kit::Hands;
use crate::redis_kit::*;
use crate::redis_servers::{PrivateRedis, RedisHome, Reply};

fn by_address(limit: impl Into<Limit>) -> AnonymousLimits {
    AnonymousLimits::by_client_ip(limit, ClientIp::peer()).unwrap()
}

/// Returns one of several servers, with its own connections and cache.
fn server(redis: &RedisLimits, limit: impl Into<Limit>) -> RedisAnonymousLimits<RedisLimits> {
    RedisAnonymousLimits::new(&by_address(limit).with_authenticated(redis.clone()), redis)
}

fn v4(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(number))
}

/// Charges one request of this address.
async fn ask(limits: &RedisAnonymousLimits<RedisLimits>, address: IpAddr) -> Decision {
    let mut request = Request::new(());
    request.extensions_mut().insert(SocketAddr::new(address, 40_000));
    let answer = limits.charge_anonymous(Charge::Request(&RequestHead::of(&request)));
    tokio::time::timeout(NEVER, answer).await.expect("the charge hangs")
}

#[tokio::test]
async fn servers_share_the_bucket_of_an_address() {
    let Some(home) = RedisHome::new("servers_share_the_bucket_of_an_address") else { return };
    let servers = [(); 2].map(|()| server(&at(&home, RateLimits::new(FIVE.with_burst(9))), FIVE));
    for (round, server) in servers.iter().cycle().take(5).enumerate() {
        let decision = ask(server, v4(1)).await;
        assert!(decision.is_admitted() && !decision.is_local(), "{decision:?}");
        assert_eq!((decision.remaining(), decision.policy().unwrap().name()), (4 - round as u32, "anonymous"));
    }
    for server in &servers {
        let decision = ask(server, v4(1)).await;
        assert_eq!(decision.verdict(), Verdict::OverLimit);
        assert!(decision.retry_after().unwrap() > HOUR - NEVER);
        assert_eq!(ask(server, v4(2)).await.verdict(), Verdict::Admitted, "another address");
        // Requests without an address share a bucket. Callers with a grant have their own.
        assert!(server.charge_anonymous(Charge::Units(1)).await.is_admitted());
        assert!(server.charge(&alice(), Charge::Units(1)).await.is_admitted());
    }
    assert_eq!(servers[0].charge(&alice(), Charge::Units(0)).await.remaining(), 7);
    assert_eq!(ask(&servers[0], v4(2)).await.remaining(), 2);
}

#[tokio::test]
async fn repeated_rejection_is_cached() {
    let Some(redis) = PrivateRedis::start("redis_anonymous::repeated_rejection_is_cached") else { return };
    let hands = Hands::default();
    let limits = server(&to(&redis.url(), hands.limits(FIVE)), FIVE);
    for _ in 0..6 {
        ask(&limits, v4(1)).await;
    }
    let before = redis.trips();
    for trips in [before, before + 1] {
        for _ in 0..10 {
            assert_eq!(ask(&limits, v4(1)).await.verdict(), Verdict::OverLimit);
        }
        assert_eq!(redis.trips(), trips);
        // The cache has the clock of the limiter.
        hands.advance(Duration::from_secs(11));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_addresses_takes_a_fixed_number_of_keys_and_stops_no_used_address() {
    let name = "flood_of_addresses_takes_a_fixed_number_of_keys_and_stops_no_used_address";
    let Some(redis) = PrivateRedis::start(name) else { return };
    let all = to(&redis.url(), RateLimits::new(FIVE));
    let quota = Quota::one_per(HOUR).with_burst(1_000);
    let limits = by_address(quota).with_capacity(512).unwrap().with_authenticated(all.clone());
    let limits = RedisAnonymousLimits::new(&limits, &all);
    for left in (400..1_000).rev() {
        assert_eq!(ask(&limits, v4(7)).await.remaining(), left);
    }
    let flood: Vec<_> = (0..50_u32)
        .map(|task| {
            let limits = limits.clone();
            tokio::spawn(async move {
                for number in 0..1_000 {
                    let decision = ask(&limits, v4(0x4000_0000 + task * 1_000 + number)).await;
                    assert!(decision.is_admitted() && !decision.is_local(), "{decision:?}");
                }
            })
        })
        .collect();
    for task in flood {
        task.await.unwrap();
    }
    let Reply::Int(keys) = redis.ask(&["DBSIZE"]).unwrap() else { panic!("not a number") };
    assert_eq!(keys, 64);
    let longest =
        (0..64).map(|set| match redis.ask(&["STRLEN", &format!("tollgate:{{anonymous/{set}}}:anonymous")]).unwrap() {
            Reply::Int(length) => length,
            reply => panic!("{reply:?}"),
        });
    assert!(longest.max().unwrap() < 1_000);
    assert_eq!(ask(&limits, v4(7)).await.remaining(), 399, "a used address keeps its bucket");
    // 50,000 requests in 512 buckets: a new address inherits about 98 used units.
    let new = ask(&limits, v4(0xc000_0000)).await.remaining();
    assert!((800..990).contains(&new), "{new}");
}

#[tokio::test]
async fn failed_requests_are_refunded_in_redis() {
    let Some(home) = RedisHome::new("failed_requests_are_refunded_in_redis") else { return };
    let all = at(&home, RateLimits::new(FIVE));
    let limit = || Limit::new("sign-in", FIVE).unwrap().with_refund_if(|status| status.is_success());
    let servers = [(); 2].map(|()| server(&all, limit()));
    let first = ask(&servers[0], v4(1)).await;
    assert_eq!(ask(&servers[1], v4(1)).await.remaining(), 3);
    first.refund().await;
    assert_eq!(ask(&servers[1], v4(1)).await.remaining(), 3);
}

#[tokio::test]
async fn quota_changes_for_all_clones() {
    let Some(home) = RedisHome::new("redis_anonymous::quota_changes_for_all_clones") else { return };
    let limits = server(&at(&home, RateLimits::new(FIVE)), FIVE);
    assert_eq!(ask(&limits, v4(1)).await.remaining(), 4);
    limits.clone().set_quota(FIVE.with_burst(9));
    assert_eq!(limits.quota(), FIVE.with_burst(9));
    assert_eq!(ask(&limits, v4(1)).await.remaining(), 7);
}

#[tokio::test]
async fn route_has_its_own_quota_for_callers_with_a_grant() {
    let Some(home) = RedisHome::new("route_has_its_own_quota_for_callers_with_a_grant") else { return };
    let caller = CurrentGrant::new(Grant::new("customer", ()).with_quota(FIVE.with_burst(100)));
    let server = server(&at(&home, RateLimits::new(FIVE)), FIVE);
    assert_eq!(server.charge(&caller, Charge::Units(0)).await.remaining(), 100);
    assert_eq!(server.for_route().charge(&caller, Charge::Units(0)).await.remaining(), 5);
}

#[tokio::test]
async fn outage_policy_is_that_of_the_given_limiter() {
    let Some(mut redis) = PrivateRedis::start("outage_policy_is_that_of_the_given_limiter") else { return };
    redis.kill();
    let two = std::num::NonZeroU32::new(2).unwrap();
    let to = |policy| {
        let server = tollgate::limit::redis::RedisServer::single(&redis.url()).unwrap();
        let limits = RedisLimits::new(RateLimits::new(FIVE), server, SECRET, two).unwrap();
        limits.with_timeout(TIMEOUT).with_outage_policy(policy)
    };
    let divided = Quota::one_per(2 * HOUR).with_burst(2);
    let local = server(&to(OutagePolicy::Local), FIVE);
    for (address, admitted) in [(1, true), (1, true), (1, false), (2, true)] {
        let decision = ask(&local, v4(address)).await;
        assert_eq!((decision.is_local(), decision.is_admitted()), (true, admitted), "{decision:?}");
        assert_eq!(decision.policy().unwrap().quota(), divided);
    }
    local.set_quota(FIVE.with_burst(9));
    assert_eq!(ask(&local, v4(2)).await.remaining(), 2, "four units for each of two servers");
    let rejecting = server(&to(OutagePolicy::Reject), FIVE);
    assert_eq!(ask(&rejecting, v4(1)).await.verdict(), Verdict::Unavailable);
    let admitting = server(&to(OutagePolicy::Admit), FIVE);
    for _ in 0..10 {
        assert!(ask(&admitting, v4(1)).await.is_admitted());
    }
}

/// Two servers with one Redis, and clients at several loopback addresses.
#[tokio::test]
async fn servers_answer_an_address_by_one_bucket() {
    let Some(home) = RedisHome::new("servers_answer_an_address_by_one_bucket") else { return };
    let mut servers = Vec::new();
    for _ in 0..2 {
        let limits = server(&at(&home, RateLimits::new(FIVE)), FIVE);
        let app = Router::new().route("/", get(|| async { "prices" }));
        let app = app.layer(AuthLayer::anonymous().with_rate_limit(limits));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        servers.push(listener.local_addr().unwrap());
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, app).await });
    }
    let ask = async |from: [u8; 4], server: SocketAddr| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        let mut stream = socket.connect(server).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    };
    for (server, left) in servers.iter().cycle().zip((0..5).rev()) {
        let response = ask([127, 0, 0, 2], *server).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert!(response.contains(&format!("ratelimit: \"anonymous\";r={left};t=")), "{response}");
    }
    for server in servers {
        let over = ask([127, 0, 0, 2], server).await;
        assert!(over.starts_with("HTTP/1.1 429") && over.contains("retry-after: "), "{over}");
        assert!(ask([127, 0, 0, 3], server).await.starts_with("HTTP/1.1 200"));
    }
}
