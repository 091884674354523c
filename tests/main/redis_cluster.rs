//! Clusters whose nodes are silent, or hand on their slots.

use std::num::NonZeroU32;
use std::process::Command;
use std::time::{Duration, Instant};

use tollgate::limit::RateLimits;
use tollgate::limit::redis::{RedisLimits, RedisServer};
use tollgate::{CurrentGrant, Decision, Grant, Limiter as _, Quota};

use crate::kit::*;
use crate::redis_servers::{PrivateRedis, RedisCluster, Reply};

const HOUR: Duration = Duration::from_secs(3_600);
const MANY: Quota = Quota::one_per(HOUR).with_burst(1_000);
/// Nothing takes so long, on any machine, unless it hangs.
const NEVER: Duration = Duration::from_secs(30);
const PATIENT: Duration = Duration::from_secs(10);

/// Never opens its breaker, so that each charge shows what the connection does.
fn limits<'a>(seeds: impl IntoIterator<Item = &'a str>, policies: RateLimits) -> RedisLimits {
    let server = RedisServer::cluster(seeds).unwrap();
    let limits = RedisLimits::new(policies, server, [7; 32], NonZeroU32::MIN).unwrap();
    limits.with_failure_threshold(1_000).with_timeout(PATIENT)
}

async fn charge(limits: &RedisLimits, subject: &str) -> Decision {
    let grant = CurrentGrant::new(Grant::new(subject, ()));
    tokio::time::timeout(NEVER, limits.charge(&grant, ONE)).await.expect("a charge hangs")
}

/// A subject whose bucket is on this node.
async fn subject_on(limits: &RedisLimits, node: &PrivateRedis) -> String {
    for at in 0..1_000 {
        let (subject, before) = (format!("subject-{at}"), node.trips());
        assert!(!charge(limits, &subject).await.is_local());
        if node.trips() > before {
            return subject;
        }
    }
    panic!("no subject is on this node")
}

/// A process that takes connections and says nothing, until it is let go on.
struct Stopped(String);

impl Stopped {
    fn stop(node: &PrivateRedis) -> Self {
        let info = node.ask(&["INFO", "server"]).unwrap().text();
        let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap().trim().to_owned();
        signal("-STOP", &pid);
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal("-CONT", &self.0);
    }
}

fn signal(name: &str, pid: &str) {
    assert!(Command::new("kill").args([name, pid]).status().unwrap().success());
}

#[tokio::test]
async fn a_silent_seed_keeps_no_charge_from_the_cluster() {
    let Some(cluster) = RedisCluster::start("a_silent_seed_keeps_no_charge_from_the_cluster") else { return };
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("redis://{}", silent.local_addr().unwrap());
    let urls = cluster.urls();
    for seeds in [vec![&*silent, &*urls[0]], vec![&*urls[1], &*silent], vec![&*silent, &*silent, &*urls[2]]] {
        let limits = limits(seeds, RateLimits::new(MANY));
        for round in 0..3 {
            for subject in ["alice", "bob", "carol", "dave"] {
                let decision = charge(&limits, subject).await;
                assert!(round > 0 || !decision.is_local(), "{subject}: {decision:?}");
            }
            // All connections are lost, and made again by the next charges.
            for node in &cluster.0 {
                node.ask(&["CLIENT", "KILL", "TYPE", "normal"]).unwrap();
            }
            let begin = Instant::now();
            while charge(&limits, "alice").await.is_local() || charge(&limits, "dave").await.is_local() {
                assert!(begin.elapsed() < NEVER, "it never connects again");
            }
        }
    }
}

#[tokio::test]
async fn a_silent_node_takes_only_its_own_subjects() {
    let Some(cluster) = RedisCluster::start("a_silent_node_takes_only_its_own_subjects") else { return };
    let urls = cluster.urls();
    let all = || limits(urls.iter().map(|url| &**url), RateLimits::new(MANY));
    let before = all();
    let [first, second, third] = [0, 1, 2].map(|at: usize| subject_on(&before, &cluster.0[at]));
    let (first, second, third) = (first.await, second.await, third.await);
    let stopped = Stopped::stop(&cluster.0[0]);
    for limits in [before.clone(), all()] {
        let hurried = limits.clone().with_timeout(Duration::from_millis(300));
        for _ in 0..5 {
            assert!(charge(&hurried, &first).await.is_local());
            for subject in [&second, &third] {
                let decision = charge(&limits, subject).await;
                assert!(!decision.is_local(), "{subject}: {decision:?}");
            }
        }
    }
    // Many that wait for that node, and few places for commands.
    let few = before.clone().with_max_in_flight(2.try_into().unwrap()).with_queue_timeout(Duration::from_millis(1));
    assert!(charge(&few.clone().with_timeout(Duration::from_millis(300)), &first).await.is_local());
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let (few, first) = (few.clone(), first.clone());
            tokio::spawn(async move { charge(&few, &first).await })
        })
        .collect();
    for _ in 0..50 {
        tokio::task::yield_now().await;
        let decision = charge(&few, &second).await;
        assert!(decision.is_admitted() && !decision.is_local(), "{decision:?}");
    }
    for waiting in waiting {
        assert!(waiting.await.unwrap().is_local());
    }
    drop(stopped);
    let begin = Instant::now();
    while charge(&before, &first).await.is_local() {
        assert!(begin.elapsed() < NEVER, "it never comes back");
    }
}

#[tokio::test]
async fn a_slot_that_moves_is_followed() {
    let Some(cluster) = RedisCluster::start("a_slot_that_moves_is_followed") else { return };
    let urls = cluster.urls();
    let limits = limits(urls.iter().map(|url| &**url), RateLimits::new(MANY));
    let subject = subject_on(&limits, &cluster.0[0]).await;
    let (from, to) = (&cluster.0[0], &cluster.0[1]);
    let key = {
        // The one that was made last, and all others belong to other slots.
        let before: Vec<_> = from.ask(&["KEYS", "*"]).unwrap().list();
        assert_eq!(before.len(), 1);
        before[0].clone().text()
    };
    let Reply::Int(slot) = from.ask(&["CLUSTER", "KEYSLOT", &key]).unwrap() else { panic!("no number") };
    let slot = slot.to_string();
    let id = |node: &PrivateRedis| node.ask(&["CLUSTER", "MYID"]).unwrap().text();
    let (from_id, to_id) = (id(from), id(to));
    // On its way: what is not there any more is asked for at the next node.
    to.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).unwrap();
    from.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).unwrap();
    let decision = charge(&limits, &subject).await;
    assert_eq!((decision.is_local(), decision.remaining()), (false, 998), "the key is still at the first node");
    from.ask(&["DEL", &key]).unwrap();
    for left in [999, 998] {
        let decision = charge(&limits, &subject).await;
        assert_eq!((decision.is_local(), decision.remaining()), (false, left), "{decision:?}");
    }
    assert_eq!(from.ask(&["EXISTS", &key]).map_err(|_| ()), Err(()), "it says where to ask");
    // Arrived.
    for node in [to, from, &cluster.0[2]] {
        node.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).unwrap();
    }
    for left in [997, 996] {
        let decision = charge(&limits, &subject).await;
        assert_eq!((decision.is_local(), decision.remaining()), (false, left), "{decision:?}");
    }
}

#[test]
fn seeds_that_do_not_belong_together_are_refused() {
    let one = "redis://user:secret@10.0.0.1:7000";
    for other in ["redis://10.0.0.2", "redis://user:other@10.0.0.2", "rediss://user:secret@10.0.0.2", "unix:///tmp/x"] {
        assert!(RedisServer::cluster([one, other]).is_err(), "{other}");
    }
    assert!(RedisServer::cluster([one, "redis://user:secret@10.0.0.2:7001/0"]).is_ok());
    assert!(RedisServer::single("rediss://10.0.0.1/#insecure").is_err(), "TLS without a check of certificates");
}
