//! Several servers that share rate limits in Redis: properties of the total they admit, by the clock of Redis.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tollgate::limit::redis::{Leases, RedisLimits, RedisServer};
use tollgate::limit::{Charge, Limiter as _, RateLimits};
use tollgate::{Answer, CurrentGrant, Decision, Grant, Quota};

use crate::proxy::{Fault, Proxy};
use crate::redis_servers::{PrivateRedis, RedisHome, time_of};

const NODES: u32 = 4;
const SECRET: [u8; 32] = [7; 32];
/// The burst is two seconds of traffic: a busy machine that pauses callers loses no refill. The rate is low enough that
/// callers exceed it on any machine.
const QUOTA: Quota = Quota::per_second(200).with_burst(400);
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Exact,
    Leased,
}

fn nodes() -> NonZeroU32 {
    NODES.try_into().unwrap()
}

/// Returns one server of the fleet, with its own connections, memory and leases.
fn node(url: &str, prefix: &str, quota: Quota, mode: Mode) -> RedisLimits {
    let server = RedisServer::single(url).unwrap();
    let limits =
        RedisLimits::new(RateLimits::new(quota), server, SECRET, nodes()).unwrap().with_prefix(prefix).unwrap();
    match mode {
        Mode::Exact => limits,
        Mode::Leased => limits.with_leases(Leases::default()).unwrap(),
    }
}

fn fleet(url: &str, prefix: &str, mode: Mode) -> Vec<RedisLimits> {
    (0..NODES).map(|_| node(url, prefix, QUOTA, mode)).collect()
}

fn alice() -> CurrentGrant {
    CurrentGrant::new(Grant::new("alice", ()))
}

/// Counts the decisions of all servers of a fleet.
#[derive(Default)]
struct Counts {
    admitted: AtomicU64,
    admitted_locally: AtomicU64,
    rejected: AtomicU64,
    immediate: AtomicU64,
    pending: AtomicU64,
}

impl Counts {
    fn of(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    async fn charge(&self, node: &RedisLimits, units: u32) -> Decision {
        let answer = node.charge(&alice(), Charge::Units(units));
        let is_ready = matches!(answer, Answer::Ready(_));
        let decision = answer.await;
        let counter = match decision.is_admitted() {
            true if decision.is_local() => &self.admitted_locally,
            true => &self.admitted,
            false => &self.rejected,
        };
        counter.fetch_add(if decision.is_admitted() { units.into() } else { 1 }, Ordering::Relaxed);
        if decision.is_admitted() {
            let counter = if is_ready { &self.immediate } else { &self.pending };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        decision
    }

    /// Sends random traffic to all servers for this time, from several callers each, above the quota.
    async fn traffic(self: &Arc<Self>, nodes: &[RedisLimits], time: Duration) {
        let callers = nodes.iter().flat_map(|node| (0..4).map(|_| node.clone())).map(|node| {
            let counts = Arc::clone(self);
            tokio::spawn(async move {
                let end = Instant::now() + time;
                while Instant::now() < end {
                    let mut random = [0; 2];
                    getrandom::fill(&mut random).unwrap();
                    let [cost, pause] = random.map(u32::from);
                    counts.charge(&node, 1 + cost % 3).await;
                    // A pause, so that callers are sometimes sequential.
                    if pause > 100 {
                        tokio::time::sleep(Duration::from_micros((pause * 40).into())).await;
                    }
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
    }

    /// Uses up the rest on all servers, including leased units.
    async fn drain(&self, nodes: &[RedisLimits]) {
        for node in nodes {
            for units in [100, 10, 1] {
                while self.charge(node, units).await.is_admitted() {}
            }
        }
    }
}

/// `burst + rate x t`, rounded down.
fn bound(quota: Quota, time: Duration) -> u64 {
    u64::from(quota.burst()) + u64::try_from(time.as_nanos() / quota.interval().as_nanos()).unwrap()
}

async fn check_exact_fleet(mode: Mode, test: &str) {
    let Some(home) = RedisHome::new(test) else { return };
    let nodes: Vec<_> =
        fleet(home.url(), home.prefix(), mode).into_iter().map(|node| node.with_timeout(TIMEOUT)).collect();
    let counts = Arc::new(Counts::default());
    let begin = time_of(home.url());
    for node in &nodes {
        counts.charge(node, 1).await;
    }
    let connected = time_of(home.url());
    counts.traffic(&nodes, Duration::from_secs(5)).await;
    counts.drain(&nodes).await;
    let end = time_of(home.url());
    let (least, most) = (bound(QUOTA, end - connected), bound(QUOTA, end - begin));
    let admitted = Counts::of(&counts.admitted);
    assert_eq!(Counts::of(&counts.admitted_locally), 0);
    assert!(Counts::of(&counts.rejected) > 0, "the quota was never exhausted");
    assert!(admitted <= most, "{admitted} of {most}");
    assert!(admitted * 100 >= least * 95, "only {admitted} of {least}");
    let immediate = Counts::of(&counts.immediate);
    assert!(immediate > 0 || mode == Mode::Exact, "no lease was used");
    assert!(immediate == 0 || mode == Mode::Leased);
}

#[tokio::test]
async fn a_fleet_admits_exactly_the_quota() {
    check_exact_fleet(Mode::Exact, "a_fleet_admits_exactly_the_quota").await;
}

#[tokio::test]
async fn a_fleet_with_leases_admits_exactly_the_quota() {
    check_exact_fleet(Mode::Leased, "a_fleet_with_leases_admits_exactly_the_quota").await;
}

/// Checks a fleet whose connections are cut for a while. Redis keeps its buckets.
async fn check_disconnected_fleet(mode: Mode, test: &str) {
    let Some(home) = RedisHome::new(test) else { return };
    let proxy = Proxy::to(home.address()).await;
    let pauses = (Duration::from_millis(50), Duration::from_millis(200));
    let nodes: Vec<_> = fleet(&home.url_through(proxy.address), home.prefix(), mode)
        .into_iter()
        .map(|node| node.with_backoff(pauses.0, pauses.1).unwrap().with_timeout(TIMEOUT))
        .collect();
    let counts = Arc::new(Counts::default());
    let begin = time_of(home.url());
    counts.traffic(&nodes, Duration::from_secs(1)).await;
    assert_eq!(Counts::of(&counts.admitted_locally), 0);

    let cut = Instant::now();
    proxy.set(Fault::Cut);
    counts.traffic(&nodes, Duration::from_secs(1)).await;
    proxy.set(Fault::None);
    // Each server detects the recovery separately.
    for node in &nodes {
        while counts.charge(node, 1).await.is_local() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let locally = Counts::of(&counts.admitted_locally);
    let allowed = bound(QUOTA, cut.elapsed());
    assert!(locally > 0, "no server detected the outage");
    assert!(locally <= allowed, "{locally} of {allowed} in the outage");

    counts.traffic(&nodes, Duration::from_secs(1)).await;
    counts.drain(&nodes).await;
    let bound = bound(QUOTA, time_of(home.url()) - begin);
    let admitted = Counts::of(&counts.admitted);
    assert_eq!(Counts::of(&counts.admitted_locally), locally, "Redis is available again");
    assert!(admitted <= bound, "{admitted} of {bound}");
}

#[tokio::test]
async fn a_disconnected_fleet_divides_the_quota() {
    check_disconnected_fleet(Mode::Exact, "a_disconnected_fleet_divides_the_quota").await;
}

#[tokio::test]
async fn a_disconnected_fleet_with_leases_divides_the_quota() {
    check_disconnected_fleet(Mode::Leased, "a_disconnected_fleet_with_leases_divides_the_quota").await;
}

/// Checks a fleet whose Redis is killed and loses all buckets.
#[tokio::test]
async fn a_fleet_starts_with_full_buckets_after_redis_lost_them() {
    for mode in [Mode::Exact, Mode::Leased] {
        let Some(mut server) = PrivateRedis::start("a_fleet_starts_with_full_buckets_after_redis_lost_them") else {
            return;
        };
        let pauses = (Duration::from_millis(50), Duration::from_millis(200));
        let nodes: Vec<_> = fleet(&server.url(), "", mode)
            .into_iter()
            .map(|node| node.with_backoff(pauses.0, pauses.1).unwrap().with_timeout(TIMEOUT))
            .collect();
        let counts = Arc::new(Counts::default());
        let begin = time_of(&server.url());
        counts.traffic(&nodes, Duration::from_millis(500)).await;
        let killed_at = Instant::now();
        let before = bound(QUOTA, time_of(&server.url()) - begin);
        server.kill();
        counts.traffic(&nodes, Duration::from_millis(500)).await;
        let admitted = Counts::of(&counts.admitted);
        assert!(admitted <= before, "{mode:?}: {admitted} of {before} before");

        let begin = Instant::now();
        server.start_again();
        for node in &nodes {
            while counts.charge(node, 1).await.is_local() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let (locally, allowed) = (Counts::of(&counts.admitted_locally), bound(QUOTA, killed_at.elapsed()));
        assert!(locally > 0 && locally <= allowed, "{mode:?}: {locally} of {allowed} in the outage");
        counts.traffic(&nodes, Duration::from_millis(500)).await;
        counts.drain(&nodes).await;
        let (anew, allowed) = (Counts::of(&counts.admitted) - admitted, bound(QUOTA, begin.elapsed()));
        assert!(anew <= allowed, "{mode:?}: {anew} of {allowed} after");
    }
}

/// Checks that servers with and without leases charge the same bucket.
#[tokio::test]
async fn leases_and_exact_charges_share_a_bucket() {
    let Some(home) = RedisHome::new("leases_and_exact_charges_share_a_bucket") else { return };
    let hour = Duration::from_secs(3_600);
    let quota = Quota::one_per(hour).with_burst(400);
    let [exact, leased] =
        [Mode::Exact, Mode::Leased].map(|mode| node(home.url(), home.prefix(), quota, mode).with_timeout(TIMEOUT));
    let counts = Counts::default();
    for _ in 0..40 {
        counts.charge(&exact, 2).await;
        counts.charge(&leased, 3).await;
    }
    assert_eq!(Counts::of(&counts.admitted), 200);
    assert!(Counts::of(&counts.immediate) > 10, "{}", Counts::of(&counts.immediate));
    counts.drain(std::slice::from_ref(&exact)).await;
    counts.drain(&[leased, exact]).await;
    // One cell is held back for the duration of a lease, which is a second.
    assert!((399..=400).contains(&Counts::of(&counts.admitted)), "{}", Counts::of(&counts.admitted));
}
