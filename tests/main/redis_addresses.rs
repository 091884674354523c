//! Addresses of Redis: clusters, Sentinels, access rights, and invalid settings.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tollgate::Limit;
use tollgate::limit::redis::{RedisLimits, RedisLimitsError, RedisServer};
use tollgate::limit::{Limiter, RateLimits};
use tollgate::{CurrentGrant, Grant};

use crate::kit::*;
use crate::redis_kit::*;
use crate::redis_servers::{PrivateRedis, RedisCluster, RedisSentinel};

#[tokio::test]
async fn a_cluster_keeps_each_subject_on_one_node() {
    let Some(cluster) = RedisCluster::start("a_cluster_keeps_each_subject_on_one_node") else { return };
    let urls = cluster.urls();
    let server = RedisServer::cluster(urls.iter().map(|url| &**url)).unwrap().with_connection_timeout(TIMEOUT);
    let limits = RedisLimits::new(RateLimits::new(FIVE), server, SECRET, ONE_NODE).unwrap().with_timeout(TIMEOUT);
    for subject in ["alice", "bob", "carol", "dave", "eve", "frank", "grace", "heidi"] {
        let grant = CurrentGrant::new(Grant::new(subject, ()));
        for left in (0..5).rev() {
            let decision = limits.charge(&grant, ONE).await;
            assert_eq!((decision.is_local(), decision.remaining()), (false, left), "{subject}: {decision:?}");
        }
        assert!(!limits.charge(&grant, ONE).await.is_admitted());
    }
    // All buckets of a subject are on one node. Shared buckets are elsewhere.
    let cluster_of = || RedisServer::cluster(urls.iter().map(|url| &**url)).unwrap();
    let several = RateLimits::new(FIVE).and(Limit::new("day", FIVE.with_burst(4)).unwrap()).unwrap();
    let limits =
        RedisLimits::new(several.clone(), cluster_of(), SECRET, ONE_NODE).unwrap().with_prefix("several:").unwrap();
    let decision = charge(&limits.with_timeout(TIMEOUT), 2).await;
    assert_eq!((decision.is_local(), decision.remaining()), (false, 2));
    let all = several.and(Limit::new("all", FIVE).unwrap().shared_by_all()).unwrap();
    assert_eq!(RedisLimits::new(all, cluster_of(), SECRET, ONE_NODE).unwrap_err(), RedisLimitsError::SharedOnCluster);
    let only =
        RedisLimits::new(RateLimits::new(Limit::from(FIVE).shared_by_all()), cluster_of(), SECRET, ONE_NODE).unwrap();
    assert!(!charge(&only.with_timeout(TIMEOUT), 2).await.is_local());
    let nodes = cluster.0.iter().filter(|node| node.trips() > 0).count();
    assert!(nodes > 1, "all subjects are on one node");
}

#[tokio::test]
async fn charges_follow_the_master_that_a_sentinel_names() {
    let test = "charges_follow_the_master_that_a_sentinel_names";
    let (Some(servers), Some(next)) = (RedisSentinel::start(test), PrivateRedis::start(test)) else { return };
    let (url, hands) = (servers.sentinel.url(), Hands::default());
    let server = RedisServer::sentinel("redis://tollgate", [&*url]).unwrap().with_connection_timeout(TIMEOUT);
    let limits = RedisLimits::new(hands.limits(FIVE), server, SECRET, ONE_NODE).unwrap();
    let limits = limits.with_timeout(TIMEOUT).with_failure_threshold(NonZeroU32::MIN).with_backoff(HOUR, HOUR).unwrap();
    let decision = charge(&limits, 5).await;
    assert!(decision.is_admitted() && !decision.is_local(), "{decision:?}");
    assert!(servers.master.trips() > 0);

    // A failover as the Sentinel reports it: the old master becomes a replica.
    let (host, port) = ("127.0.0.1", next.port().to_string());
    servers.master.ask(&["REPLICAOF", host, &port]).unwrap();
    servers.sentinel.ask(&["SENTINEL", "REMOVE", "tollgate"]).unwrap();
    servers.sentinel.ask(&["SENTINEL", "MONITOR", "tollgate", host, &port, "1"]).unwrap();
    assert!(
        limits.charge(&CurrentGrant::new(Grant::new("bob", ())), ONE).await.is_local(),
        "the old master is read-only"
    );
    hands.advance(HOUR);
    assert_eq!(recovered(&limits, &hands).await.remaining(), 5);
    assert!(next.trips() > 0);
}

/// Checks the case after a power failure of the machine with the master and a Sentinel.
#[tokio::test]
async fn a_silent_sentinel_does_not_block_the_others() {
    let Some(servers) = RedisSentinel::start("a_silent_sentinel_does_not_block_the_others") else { return };
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("redis://{}", silent.local_addr().unwrap());
    let (url, hands) = (servers.sentinel.url(), Hands::default());
    let server = RedisServer::sentinel("redis://tollgate", [&*silent, &*url]).unwrap();
    // Less than the client library's own timeout for one Sentinel.
    let server = server.with_connection_timeout(Duration::from_millis(900));
    let limits = RedisLimits::new(hands.limits(FIVE), server, SECRET, ONE_NODE).unwrap().with_timeout(TIMEOUT);
    assert_eq!(recovered(&limits, &hands).await.remaining(), 5);
}

/// A Sentinel that has not heard of a failover names a replica.
#[tokio::test]
async fn a_replica_that_a_sentinel_names_is_not_used() {
    let test = "a_replica_that_a_sentinel_names_is_not_used";
    let (Some(late), Some(current)) = (RedisSentinel::start(test), RedisSentinel::start(test)) else { return };
    late.master.ask(&["REPLICAOF", "127.0.0.1", &current.master.port().to_string()]).unwrap();
    let sentinels = [&late, &current].map(|set| set.sentinel.url());
    for _ in 0..20 {
        let server = RedisServer::sentinel("redis://tollgate", sentinels.iter().map(|url| &**url)).unwrap();
        let limits = RedisLimits::new(RateLimits::new(FIVE.with_burst(20)), server, SECRET, ONE_NODE).unwrap();
        let decision = charge(&limits.with_timeout(TIMEOUT), 1).await;
        assert!(decision.is_admitted() && !decision.is_local(), "{decision:?}");
    }
}

/// Checks that the access rights listed in the threat model suffice.
#[tokio::test]
async fn documented_rights_suffice_and_a_wrong_password_is_an_outage() {
    let test = "documented_rights_suffice_and_a_wrong_password_is_an_outage";
    let (Some(single), Some(sentinel)) = (PrivateRedis::start(test), RedisSentinel::start(test)) else { return };
    let Some(cluster) = RedisCluster::start(test) else { return };
    let allow = |server: &PrivateRedis, more: &[&str]| {
        let rights = ["~tollgate:*", "+evalsha", "+eval", "+time", "+get", "+set", "+pexpireat"];
        server.ask(&[&["ACL", "SETUSER", "gate", "on", ">hunter2"], &rights[..], more].concat()).unwrap();
    };
    allow(&single, &[]);
    allow(&sentinel.master, &["+role"]);
    cluster.0.iter().for_each(|node| allow(node, &["+cluster|slots"]));
    for (password, is_local) in [("hunter2", false), ("hunter3", true)] {
        let of = |address: String| format!("redis://gate:{password}@{address}/");
        let nodes: Vec<_> = cluster.0.iter().map(|node| of(node.address())).collect();
        let servers = [
            RedisServer::single(&of(single.address())),
            RedisServer::sentinel(&of("tollgate".to_owned()), [&*sentinel.sentinel.url()]),
            RedisServer::cluster(nodes.iter().map(|url| &**url)),
        ];
        for server in servers {
            let limits = RateLimits::new(FIVE).with_refunds();
            let server = server.unwrap().with_connection_timeout(TIMEOUT);
            let limits = RedisLimits::new(limits, server, SECRET, ONE_NODE).unwrap().with_timeout(TIMEOUT);
            // The connections are new.
            let before = charge(&limits, 0).await.remaining();
            let decision = charge(&limits, 2).await;
            assert!(decision.is_admitted() && decision.is_local() == is_local, "{limits:?}: {decision:?}");
            decision.refund().await;
            assert_eq!(charge(&limits, 0).await.remaining(), before, "{limits:?}");
        }
    }
}

/// Only `NOSCRIPT` means that nothing was executed.
#[tokio::test]
async fn script_is_not_sent_after_another_error() {
    let Some(redis) = PrivateRedis::start("script_is_not_sent_after_another_error") else { return };
    redis.ask(&["ACL", "SETUSER", "gate", "on", ">hunter2", "~*", "+@all", "-evalsha"]).unwrap();
    let limits = to(&format!("redis://gate:hunter2@{}/", redis.address()), RateLimits::new(FIVE));
    assert!(charge(&limits, 1).await.is_local());
    assert_eq!(redis.trips(), 0);
}

#[test]
fn invalid_settings_are_errors_that_contain_no_password() {
    let bad = ["", "127.0.0.1", "http://:hunter2@host", "redis://:hunter2@host:port", "redis://:hunter2@host/x"];
    for url in bad {
        let error = RedisServer::single(url).unwrap_err();
        assert_eq!(error, RedisLimitsError::Url);
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        assert!(RedisServer::cluster([url]).is_err());
        assert!(RedisServer::sentinel("redis://name", [url]).is_err());
        assert!(RedisServer::sentinel(url, ["redis://host"]).is_err());
    }
    assert!(RedisServer::cluster([]).is_err() && RedisServer::sentinel("redis://name", []).is_err());
    assert!(
        RedisServer::sentinel("rediss://name", ["redis://host"]).is_ok(),
        "servers may use TLS while Sentinels do not"
    );
    let server = RedisServer::single("rediss://user:hunter2@host:6380/1").unwrap();
    let shown = format!("{server:?}");
    let limits = RedisLimits::new(RateLimits::new(FIVE), server, SECRET, ONE_NODE).unwrap();
    assert!(!format!("{shown} {limits:?}").contains("hunter2"));
    let server = RedisServer::single("redis://host").unwrap();
    let short = RedisLimits::new(RateLimits::new(FIVE), server, [7; 31], ONE_NODE);
    assert_eq!(short.unwrap_err(), RedisLimitsError::ShortSecret);
    assert_eq!(limits.with_prefix("{x}").unwrap_err(), RedisLimitsError::Prefix);
    let _: Arc<dyn Limiter<Future = tollgate::limit::redis::RedisFuture>> = Arc::new(
        RedisLimits::new(RateLimits::new(FIVE), RedisServer::single("redis://host").unwrap(), SECRET, ONE_NODE)
            .unwrap(),
    );
}
