//! Servers that share budgets in Redis, as properties of what all of them admit together, by Redis' clock.

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
/// Two seconds of traffic, so that no refill is lost where a busy machine lets callers pause; and then so few that callers
/// are faster on any machine.
const QUOTA: Quota = Quota::per_second(200).with_burst(400);
const PATIENT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Exact,
    Leased,
}

fn nodes() -> NonZeroU32 {
    NODES.try_into().unwrap()
}

/// A server of a fleet: connections, memory and leases of its own.
fn node(url: &str, prefix: &str, quota: Quota, mode: Mode) -> RedisLimits {
    let server = RedisServer::single(url).unwrap();
    let limits =
        RedisLimits::new(RateLimits::new(quota), server, SECRET, nodes()).unwrap().with_prefix(prefix).unwrap();
    match mode {
        Mode::Exact => limits,
        Mode::Leased => limits.with_leases(Leases::default()),
    }
}

fn fleet(url: &str, prefix: &str, mode: Mode) -> Vec<RedisLimits> {
    (0..NODES).map(|_| node(url, prefix, QUOTA, mode)).collect()
}

fn alice() -> CurrentGrant {
    CurrentGrant::new(Grant::new("alice", ()))
}

/// What callers were told, by all servers of a fleet.
#[derive(Default)]
struct Told {
    admitted: AtomicU64,
    admitted_locally: AtomicU64,
    refused: AtomicU64,
    at_once: AtomicU64,
    later: AtomicU64,
}

impl Told {
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
            false => &self.refused,
        };
        counter.fetch_add(if decision.is_admitted() { units.into() } else { 1 }, Ordering::Relaxed);
        if decision.is_admitted() {
            let counter = if is_ready { &self.at_once } else { &self.later };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        decision
    }

    /// Random traffic on all servers, from several callers each, for so long; more than the quota bears.
    async fn traffic(self: &Arc<Self>, nodes: &[RedisLimits], time: Duration) {
        let callers = nodes.iter().flat_map(|node| (0..4).map(|_| node.clone())).map(|node| {
            let told = Arc::clone(self);
            tokio::spawn(async move {
                let end = Instant::now() + time;
                while Instant::now() < end {
                    let mut random = [0; 2];
                    getrandom::fill(&mut random).unwrap();
                    let [cost, pause] = random.map(u32::from);
                    told.charge(&node, 1 + cost % 3).await;
                    // Now and then callers come one behind the other.
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

    /// Spends what is left on all servers, in leases too.
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

async fn a_fleet_is_exact(mode: Mode, test: &str) {
    let Some(home) = RedisHome::new(test) else { return };
    let nodes: Vec<_> =
        fleet(home.url(), home.prefix(), mode).into_iter().map(|node| node.with_deadline(PATIENT)).collect();
    let told = Arc::new(Told::default());
    let begin = time_of(home.url());
    for node in &nodes {
        told.charge(node, 1).await;
    }
    let connected = time_of(home.url());
    told.traffic(&nodes, Duration::from_secs(5)).await;
    told.drain(&nodes).await;
    let end = time_of(home.url());
    let (least, most) = (bound(QUOTA, end - connected), bound(QUOTA, end - begin));
    let admitted = Told::of(&told.admitted);
    assert_eq!(Told::of(&told.admitted_locally), 0);
    assert!(Told::of(&told.refused) > 0, "the quota was never exhausted");
    assert!(admitted <= most, "{admitted} of {most}");
    assert!(admitted * 100 >= least * 95, "only {admitted} of {least}");
    let at_once = Told::of(&told.at_once);
    assert!(at_once > 0 || mode == Mode::Exact, "nothing was bought ahead");
    assert!(at_once == 0 || mode == Mode::Leased);
}

#[tokio::test]
async fn a_fleet_admits_what_the_quota_says() {
    a_fleet_is_exact(Mode::Exact, "a_fleet_admits_what_the_quota_says").await;
}

#[tokio::test]
async fn a_fleet_with_leases_admits_what_the_quota_says() {
    a_fleet_is_exact(Mode::Leased, "a_fleet_with_leases_admits_what_the_quota_says").await;
}

/// The connections of all servers are cut in the middle, and Redis keeps its budgets.
async fn a_fleet_is_cut_off(mode: Mode, test: &str) {
    let Some(home) = RedisHome::new(test) else { return };
    let proxy = Proxy::to(home.address()).await;
    let pauses = (Duration::from_millis(50), Duration::from_millis(200));
    let nodes: Vec<_> = fleet(&home.url_through(proxy.address), home.prefix(), mode)
        .into_iter()
        .map(|node| node.with_backoff(pauses.0, pauses.1).with_deadline(PATIENT))
        .collect();
    let told = Arc::new(Told::default());
    let begin = time_of(home.url());
    told.traffic(&nodes, Duration::from_secs(1)).await;
    assert_eq!(Told::of(&told.admitted_locally), 0);

    let cut = Instant::now();
    proxy.set(Fault::Cut);
    told.traffic(&nodes, Duration::from_secs(1)).await;
    proxy.set(Fault::None);
    // Each server notices by itself.
    for node in &nodes {
        while told.charge(node, 1).await.is_local() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let locally = Told::of(&told.admitted_locally);
    let allowed = bound(QUOTA, cut.elapsed());
    assert!(locally > 0, "nobody noticed the outage");
    assert!(locally <= allowed, "{locally} of {allowed} in the outage");

    told.traffic(&nodes, Duration::from_secs(1)).await;
    told.drain(&nodes).await;
    let bound = bound(QUOTA, time_of(home.url()) - begin);
    let admitted = Told::of(&told.admitted);
    assert_eq!(Told::of(&told.admitted_locally), locally, "Redis is there again");
    assert!(admitted <= bound, "{admitted} of {bound}");
}

#[tokio::test]
async fn a_fleet_that_is_cut_off_divides_the_quota() {
    a_fleet_is_cut_off(Mode::Exact, "a_fleet_that_is_cut_off_divides_the_quota").await;
}

#[tokio::test]
async fn a_fleet_with_leases_that_is_cut_off_divides_the_quota() {
    a_fleet_is_cut_off(Mode::Leased, "a_fleet_with_leases_that_is_cut_off_divides_the_quota").await;
}

/// Redis is killed in the middle and has lost all budgets when it comes again.
#[tokio::test]
async fn a_fleet_whose_redis_was_killed_begins_anew() {
    for mode in [Mode::Exact, Mode::Leased] {
        let Some(mut server) = PrivateRedis::start("a_fleet_whose_redis_was_killed_begins_anew") else { return };
        let pauses = (Duration::from_millis(50), Duration::from_millis(200));
        let nodes: Vec<_> = fleet(&server.url(), "", mode)
            .into_iter()
            .map(|node| node.with_backoff(pauses.0, pauses.1).with_deadline(PATIENT))
            .collect();
        let told = Arc::new(Told::default());
        let begin = time_of(&server.url());
        told.traffic(&nodes, Duration::from_millis(500)).await;
        let killed_at = Instant::now();
        let before = bound(QUOTA, time_of(&server.url()) - begin);
        server.kill();
        told.traffic(&nodes, Duration::from_millis(500)).await;
        let admitted = Told::of(&told.admitted);
        assert!(admitted <= before, "{mode:?}: {admitted} of {before} before");

        let begin = Instant::now();
        server.start_again();
        for node in &nodes {
            while told.charge(node, 1).await.is_local() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let (locally, allowed) = (Told::of(&told.admitted_locally), bound(QUOTA, killed_at.elapsed()));
        assert!(locally > 0 && locally <= allowed, "{mode:?}: {locally} of {allowed} in the outage");
        told.traffic(&nodes, Duration::from_millis(500)).await;
        told.drain(&nodes).await;
        let (anew, allowed) = (Told::of(&told.admitted) - admitted, bound(QUOTA, begin.elapsed()));
        assert!(anew <= allowed, "{mode:?}: {anew} of {allowed} after");
    }
}

/// Servers with leases and without draw on one budget.
#[tokio::test]
async fn leases_and_exact_charges_share_a_budget() {
    let Some(home) = RedisHome::new("leases_and_exact_charges_share_a_budget") else { return };
    let hour = Duration::from_secs(3_600);
    let quota = Quota::one_per(hour).with_burst(400);
    let [exact, leased] =
        [Mode::Exact, Mode::Leased].map(|mode| node(home.url(), home.prefix(), quota, mode).with_deadline(PATIENT));
    let told = Told::default();
    for _ in 0..40 {
        told.charge(&exact, 2).await;
        told.charge(&leased, 3).await;
    }
    assert_eq!(Told::of(&told.admitted), 200);
    assert!(Told::of(&told.at_once) > 10, "{}", Told::of(&told.at_once));
    told.drain(std::slice::from_ref(&exact)).await;
    told.drain(&[leased, exact]).await;
    // The time of the longest lease is kept back: a second here, and so a cell of one an hour.
    assert!((399..=400).contains(&Told::of(&told.admitted)), "{}", Told::of(&told.admitted));
}
