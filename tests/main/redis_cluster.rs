//! Clusters with silent nodes and moving slots.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tollgate::limit::RateLimits;
use tollgate::limit::redis::{BreakerState, RedisLimits, RedisServer};
use tollgate::{CurrentGrant, Decision, Grant, Limit, Limiter as _, Quota};

use crate::kit::*;
use crate::redis_servers::{PrivateRedis, RedisCluster, Reply};

const HOUR: Duration = Duration::from_secs(3_600);
const MANY: Quota = Quota::one_per(HOUR).with_burst(1_000);
/// A timeout that only a hanging test exceeds.
const NEVER: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Returns a limiter whose breaker never opens, so that each charge tests the connection.
fn limits<'a>(seeds: impl IntoIterator<Item = &'a str>, policies: RateLimits) -> RedisLimits {
    let server = RedisServer::cluster(seeds).unwrap();
    let limits = RedisLimits::new(policies, server, [7; 32], NonZeroU32::MIN).unwrap();
    limits.with_failure_threshold(1_000.try_into().unwrap()).with_timeout(TIMEOUT)
}

/// Returns a limiter whose breakers open after this number of failures, for an hour.
fn opening(cluster: &RedisCluster, hands: &Hands, failures: u32) -> RedisLimits {
    let urls = cluster.urls();
    let limits = limits(urls.iter().map(|url| &**url), hands.limits(MANY)).with_backoff(HOUR, HOUR).unwrap();
    limits.with_failure_threshold(failures.try_into().unwrap())
}

async fn charge(limits: &RedisLimits, subject: &str) -> Decision {
    let grant = CurrentGrant::new(Grant::new(subject, ()));
    tokio::time::timeout(NEVER, limits.charge(&grant, ONE)).await.expect("the charge hangs")
}

/// Returns a subject whose bucket is on this node.
async fn subject_on(limits: &RedisLimits, node: &PrivateRedis) -> String {
    subject_with(limits, node, "subject").await
}

/// Returns a subject with this prefix whose bucket is on this node.
async fn subject_with(limits: &RedisLimits, node: &PrivateRedis, prefix: &str) -> String {
    for at in 0..1_000 {
        let (subject, before) = (format!("{prefix}-{at}"), node.trips());
        assert!(!charge(limits, &subject).await.is_local());
        if node.trips() > before {
            return subject;
        }
    }
    panic!("no subject is on this node")
}

/// A slot that moves from one node to another.
struct MovingSlot<'a> {
    slot: String,
    from: &'a PrivateRedis,
    to: &'a PrivateRedis,
}

impl<'a> MovingSlot<'a> {
    /// Returns the slot and the keys of the only subject on a node.
    fn new(from: &'a PrivateRedis, to: &'a PrivateRedis) -> (Self, Vec<String>) {
        let keys: Vec<_> = from.ask(&["KEYS", "*"]).unwrap().list().into_iter().map(Reply::text).collect();
        let slots = keys.iter().map(|key| match from.ask(&["CLUSTER", "KEYSLOT", key]).unwrap() {
            Reply::Int(slot) => slot,
            other => panic!("{other:?} is not a number"),
        });
        let slots: BTreeSet<_> = slots.collect();
        assert_eq!(slots.len(), 1);
        (Self { slot: slots.first().unwrap().to_string(), from, to }, keys)
    }

    fn set(&self, node: &PrivateRedis, state: &str, other: &PrivateRedis) {
        let id = other.ask(&["CLUSTER", "MYID"]).unwrap().text();
        node.ask(&["CLUSTER", "SETSLOT", &self.slot, state, &id]).unwrap();
    }

    /// Starts the migration. A key that is not on the old node is asked for on the new one.
    fn begin(&self) {
        self.set(self.to, "IMPORTING", self.from);
        self.set(self.from, "MIGRATING", self.to);
    }

    /// Completes the migration.
    fn end(&self) {
        self.set(self.to, "NODE", self.to);
        self.set(self.from, "NODE", self.to);
    }
}

/// A process that accepts connections but does not run until this is dropped.
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
async fn a_silent_seed_blocks_no_charge() {
    let Some(cluster) = RedisCluster::start("a_silent_seed_blocks_no_charge") else { return };
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
            // Cut all connections. The next charges make new ones.
            for node in &cluster.0 {
                node.ask(&["CLIENT", "KILL", "TYPE", "normal"]).unwrap();
            }
            let begin = Instant::now();
            while charge(&limits, "alice").await.is_local() || charge(&limits, "dave").await.is_local() {
                assert!(begin.elapsed() < NEVER, "no new connection is made");
            }
        }
    }
}

#[tokio::test]
async fn a_silent_node_affects_only_its_own_subjects() {
    let Some(cluster) = RedisCluster::start("a_silent_node_affects_only_its_own_subjects") else { return };
    let urls = cluster.urls();
    let all = || limits(urls.iter().map(|url| &**url), RateLimits::new(MANY));
    let before = all();
    let [first, second, third] = [0, 1, 2].map(|at: usize| subject_on(&before, &cluster.0[at]));
    let (first, second, third) = (first.await, second.await, third.await);
    let stopped = Stopped::stop(&cluster.0[0]);
    for limits in [before.clone(), all()] {
        let short = limits.clone().with_timeout(Duration::from_millis(300));
        for _ in 0..5 {
            assert!(charge(&short, &first).await.is_local());
            for subject in [&second, &third] {
                let decision = charge(&limits, subject).await;
                assert!(!decision.is_local(), "{subject}: {decision:?}");
            }
        }
    }
    // Many charges wait for that node, with few permits for commands.
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
        assert!(begin.elapsed() < NEVER, "the node is never used again");
    }
}

#[tokio::test]
async fn a_silent_node_opens_only_its_own_breaker() {
    let Some(cluster) = RedisCluster::start("a_silent_node_opens_only_its_own_breaker") else { return };
    let hands = Hands::default();
    let limits = opening(&cluster, &hands, 5);
    let [first, second, third] = [0, 1, 2].map(|at: usize| subject_on(&limits, &cluster.0[at]));
    let (first, second, third) = (first.await, second.await, third.await);
    assert_eq!(limits.state(), BreakerState::Closed);
    let stopped = Stopped::stop(&cluster.0[0]);
    // More failures one after the other than open a breaker.
    let short = limits.clone().with_timeout(Duration::from_millis(300));
    let failed = futures_util::future::join_all((0..20).map(|_| charge(&short, &first))).await;
    assert!(failed.iter().all(Decision::is_local));
    assert_eq!(limits.state(), BreakerState::Open);
    let of_first = CurrentGrant::new(Grant::new(&*first, ()));
    for _ in 0..5 {
        assert!(limits.charge(&of_first, ONE).ready().expect("its breaker is open").is_local());
        for subject in [&second, &third] {
            let decision = charge(&limits, subject).await;
            assert!(!decision.is_local(), "{subject}: {decision:?}");
        }
    }
    drop(stopped);
    let begin = Instant::now();
    while charge(&limits, &first).await.is_local() {
        assert!(begin.elapsed() < NEVER, "the node is never used again");
        hands.advance(HOUR);
    }
    assert_eq!(limits.state(), BreakerState::Closed);
}

#[tokio::test]
async fn a_failover_ends_the_outage_of_a_node() {
    let Some(cluster) = RedisCluster::start("a_failover_ends_the_outage_of_a_node") else { return };
    let (urls, hands) = (cluster.urls(), Hands::default());
    let server = RedisServer::cluster(urls.iter().map(|url| &**url)).unwrap().with_connection_timeout(NEVER);
    let limits = RedisLimits::new(hands.limits(MANY), server, [7; 32], NonZeroU32::MIN).unwrap().with_timeout(TIMEOUT);
    let limits = limits.with_failure_threshold(1.try_into().unwrap()).with_backoff(HOUR, HOUR).unwrap();
    let subject = subject_on(&limits, &cluster.0[0]).await;
    let _stopped = Stopped::stop(&cluster.0[0]);
    assert!(charge(&limits.clone().with_timeout(Duration::from_millis(300)), &subject).await.is_local());
    assert_eq!(limits.state(), BreakerState::Open);
    hands.advance(HOUR);
    let probe = tokio::spawn({
        let (limits, subject) = (limits.clone().with_timeout(Duration::from_secs(5)), subject.clone());
        async move { charge(&limits, &subject).await }
    });
    // The slots that the failure requested arrive before the failover.
    tokio::time::sleep(Duration::from_millis(500)).await;
    // The second node takes over the slots of the first one, which the probe still waits for.
    for node in &cluster.0[1..] {
        node.ask_about_slots("DELSLOTS", 0);
    }
    cluster.0[1].ask_about_slots("ADDSLOTS", 0);
    let begin = Instant::now();
    // The clock stands, so the pause of the breaker does not end.
    while charge(&limits, &subject).await.is_local() {
        assert!(begin.elapsed() < NEVER, "the new node is never used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!probe.is_finished(), "the slots are requested while the breaker is not closed");
    assert_eq!(limits.state(), BreakerState::Closed);
    assert!(probe.await.unwrap().is_local());
    assert_eq!(limits.state(), BreakerState::Closed, "the probe was no failure of the second node");
}

#[tokio::test]
async fn charges_that_wait_for_a_silent_node_hold_no_permits() {
    let Some(cluster) = RedisCluster::start("charges_that_wait_for_a_silent_node_hold_no_permits") else { return };
    let urls = cluster.urls();
    let limits = limits(urls.iter().map(|url| &**url), RateLimits::new(MANY)).with_max_in_flight(2.try_into().unwrap());
    let (first, second) = (subject_on(&limits, &cluster.0[0]).await, subject_on(&limits, &cluster.0[1]).await);
    let _stopped = Stopped::stop(&cluster.0[0]);
    let of_first = limits.clone().with_timeout(Duration::from_secs(2)).with_queue_timeout(NEVER);
    let mut charges: FuturesUnordered<_> = (0..6).map(|_| charge(&of_first, &first)).collect();
    // The first two are sent and time out. The next two then get the permits, and have no connection.
    for _ in 0..2 {
        assert!(charges.next().await.unwrap().is_local());
    }
    let of_second = limits.clone().with_queue_timeout(Duration::from_secs(1));
    let (decision, others) = futures_util::future::join(charge(&of_second, &second), charges.collect::<Vec<_>>()).await;
    assert!(decision.is_admitted() && !decision.is_local(), "{decision:?}");
    assert!(others.iter().all(Decision::is_local));
}

#[tokio::test]
async fn a_moving_slot_is_followed() {
    let Some(cluster) = RedisCluster::start("a_moving_slot_is_followed") else { return };
    let urls = cluster.urls();
    let limits = limits(urls.iter().map(|url| &**url), RateLimits::new(MANY));
    let subject = subject_on(&limits, &cluster.0[0]).await;
    let from = &cluster.0[0];
    let (slot, keys) = MovingSlot::new(from, &cluster.0[1]);
    slot.begin();
    let decision = charge(&limits, &subject).await;
    assert_eq!((decision.is_local(), decision.remaining()), (false, 998), "the key is still at the first node");
    from.ask(&["DEL", &keys[0]]).unwrap();
    for left in [999, 998] {
        let decision = charge(&limits, &subject).await;
        assert_eq!((decision.is_local(), decision.remaining()), (false, left), "{decision:?}");
    }
    assert_eq!(from.ask(&["EXISTS", &keys[0]]).map_err(|_| ()), Err(()), "the old node redirects");
    slot.end();
    for left in [997, 996] {
        let decision = charge(&limits, &subject).await;
        assert_eq!((decision.is_local(), decision.remaining()), (false, left), "{decision:?}");
    }
}

#[tokio::test]
async fn a_silent_target_of_a_redirection_affects_no_other_node() {
    let Some(cluster) = RedisCluster::start("a_silent_target_of_a_redirection_affects_no_other_node") else { return };
    let limits = opening(&cluster, &Hands::default(), 1);
    let from = &cluster.0[0];
    let moving = subject_on(&limits, from).await;
    let (slot, keys) = MovingSlot::new(from, &cluster.0[1]);
    let staying = subject_with(&limits, from, "staying").await;
    let connections = || {
        let stats = from.ask(&["INFO", "stats"]).unwrap().text();
        let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:")).unwrap();
        line.parse::<u64>().unwrap()
    };
    slot.begin();
    from.ask(&["DEL", &keys[0]]).unwrap();
    let _stopped = Stopped::stop(slot.to);
    let before = connections();
    let short = limits.clone().with_timeout(Duration::from_millis(300));
    for _ in 0..3 {
        assert!(charge(&short, &moving).await.is_local());
        assert!(!charge(&limits, &staying).await.is_local());
    }
    assert_eq!(limits.state(), BreakerState::Open, "that of the silent node");
    assert_eq!(connections() - before, 1, "that of the second request for this number");
}

#[tokio::test]
async fn a_charge_that_waited_in_the_queue_belongs_to_the_new_node() {
    let Some(cluster) = RedisCluster::start("a_charge_that_waited_in_the_queue_belongs_to_the_new_node") else {
        return;
    };
    let limits = opening(&cluster, &Hands::default(), 1);
    let from = &cluster.0[0];
    let moving = subject_on(&limits, from).await;
    let (slot, _) = MovingSlot::new(from, &cluster.0[1]);
    let staying = subject_with(&limits, from, "staying").await;
    let of_third = subject_on(&limits, &cluster.0[2]).await;
    let one = limits.clone().with_max_in_flight(NonZeroU32::MIN).with_queue_timeout(NEVER);
    // The third node holds the only permit.
    let stopped = Stopped::stop(&cluster.0[2]);
    let spawn = |subject: &str| {
        let (one, subject) = (one.clone(), subject.to_owned());
        tokio::spawn(async move { charge(&one, &subject).await })
    };
    let (holder, queued) = (spawn(&of_third), spawn(&moving));
    slot.begin();
    slot.end();
    // The breaker of the previous node opens.
    let _stopped = Stopped::stop(from);
    assert!(charge(&limits.clone().with_timeout(Duration::from_millis(300)), &staying).await.is_local());
    let begin = Instant::now();
    while charge(&limits, &moving).await.is_local() {
        assert!(begin.elapsed() < NEVER, "the new node is never used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!queued.is_finished());
    drop(stopped);
    let decision = queued.await.unwrap();
    assert!(!decision.is_local(), "{decision:?}");
    assert!(!holder.await.unwrap().is_local());
}

#[tokio::test]
async fn a_dropped_wait_for_a_connection_requests_the_slots() {
    let Some(cluster) = RedisCluster::start("a_dropped_wait_for_a_connection_requests_the_slots") else { return };
    let urls = cluster.urls();
    let server = RedisServer::cluster(urls.iter().map(|url| &**url)).unwrap().with_connection_timeout(NEVER);
    let limits = RedisLimits::new(RateLimits::new(MANY), server, [7; 32], NonZeroU32::MIN).unwrap();
    let limits = limits.with_failure_threshold(1_000.try_into().unwrap()).with_timeout(Duration::from_secs(1));
    let subject = subject_on(&limits, &cluster.0[0]).await;
    cluster.0[0].ask(&["CLIENT", "KILL", "TYPE", "normal"]).unwrap();
    let _stopped = Stopped::stop(&cluster.0[0]);
    assert!(charge(&limits, &subject).await.is_local());
    // The slots that the failure requested arrive before the failover.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for node in &cluster.0[1..] {
        node.ask_about_slots("DELSLOTS", 0);
    }
    cluster.0[1].ask_about_slots("ADDSLOTS", 0);
    let begin = Instant::now();
    // The caller waits for less than the timeout.
    while tokio::time::timeout(Duration::from_millis(900), charge(&limits, &subject)).await.is_err() {
        assert!(begin.elapsed() < NEVER, "the new node is never used");
    }
    assert!(!charge(&limits, &subject).await.is_local());
}

/// While a slot moves, a node replies with `TRYAGAIN` to a charge if one of its keys is missing there.
#[tokio::test]
async fn a_charge_is_sent_again_while_its_keys_move() {
    let Some(cluster) = RedisCluster::start("a_charge_is_sent_again_while_its_keys_move") else { return };
    let urls = cluster.urls();
    let policies = RateLimits::new(MANY).and(Limit::new("day", MANY).unwrap()).unwrap();
    let limits = limits(urls.iter().map(|url| &**url), policies).with_failure_threshold(NonZeroU32::MIN);
    let subject = subject_on(&limits, &cluster.0[0]).await;
    let (from, to) = (&cluster.0[0], &cluster.0[1]);
    let (slot, keys) = MovingSlot::new(from, to);
    slot.begin();
    // With one key missing, the old node replies with `TRYAGAIN`. Without any key it redirects, and the new one replies with it.
    // There are at most four repetitions.
    for (key, rejected) in keys.iter().zip([[5, 0], [1, 4]]) {
        from.ask(&["DEL", key]).unwrap();
        for node in [from, to] {
            node.ask(&["CONFIG", "RESETSTAT"]).unwrap();
        }
        assert!(charge(&limits, &subject).await.is_local());
        for (node, rejected) in [from, to].into_iter().zip(rejected) {
            let stats = node.ask(&["INFO", "commandstats"]).unwrap().text();
            let calls = stats.lines().find(|line| line.starts_with("cmdstat_evalsha")).unwrap_or("rejected_calls=0");
            assert!(calls.contains(&format!("rejected_calls={rejected}")), "{calls}");
        }
        assert_eq!(limits.state(), BreakerState::Closed, "both nodes are available");
    }
}

#[test]
fn seeds_with_different_credentials_are_rejected() {
    let one = "redis://user:secret@10.0.0.1:7000";
    for other in ["redis://10.0.0.2", "redis://user:other@10.0.0.2", "rediss://user:secret@10.0.0.2", "unix:///run/x"] {
        assert!(RedisServer::cluster([one, other]).is_err(), "{other}");
    }
    assert!(RedisServer::cluster([one, "redis://user:secret@10.0.0.2:7001/0"]).is_ok());
    assert!(RedisServer::single("rediss://10.0.0.1/#insecure").is_err(), "this disables the check of certificates");
}
