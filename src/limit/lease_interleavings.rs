//! Tests of the leases of limits in Redis under many thread interleavings, by the model checker `shuttle`. Run by `just shuttle`.
//!
//! The tests include the leases and their table without the feature `redis`. This file has what these files import: a timeout that
//! may expire whenever a charge waits, and the types of charges. The buckets have the rules of `gcra.lua`, in nanoseconds.

use std::sync::Arc;
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use shuttle::thread;

use crate::quota::Quota;
use crate::quota::policy::Policy;
use crate::sync::{Mutex, explore};

#[path = "redis/lease.rs"]
#[allow(dead_code, unreachable_pub, reason = "parts of the feature `redis`")]
mod lease;
#[path = "redis/lease_table.rs"]
#[allow(dead_code, reason = "parts of the feature `redis`")]
mod lease_table;

use gcra::{Part, Reply, State};
use lease::{LeaseRequest, Leases};
use lease_table::LeaseTable;

mod gcra {
    use crate::quota::policy::Policy;

    #[derive(Clone)]
    pub(super) struct Part {
        pub(super) policy: Policy,
        pub(super) cost: u32,
        pub(super) binds: bool,
    }

    #[derive(Clone, Copy)]
    pub(super) struct State {
        pub(super) fits: bool,
        pub(super) owed_ns: u64,
    }

    /// The states and the leased units of all parts.
    pub(super) struct Reply(pub(super) Vec<(State, u32)>);

    impl Reply {
        pub(super) fn states(&self) -> impl Iterator<Item = State> {
            self.0.iter().map(|(state, _)| *state)
        }

        pub(super) fn state(&self, at: usize) -> Option<State> {
            self.states().nth(at)
        }

        pub(super) fn leased(&self, at: usize) -> u32 {
            self.0.get(at).map_or(0, |(_, leased)| *leased)
        }
    }
}

mod timeout {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;
    use std::time::Duration;

    use shuttle::rand::{Rng as _, thread_rng};

    pub(super) async fn within<T>(_: Duration, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if thread_rng().gen_bool(0.5) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }
}

/// A bucket in Redis.
#[derive(Clone, Copy)]
struct Bucket {
    quota: Quota,
    tat: u64,
    /// All units that were charged and leased.
    sold: u32,
}

impl Bucket {
    /// Returns the time until the bucket is full after a charge, or `None` if the charge does not fit.
    fn after(&self, now: u64, cost: u32) -> Option<u64> {
        let owed_ns = self.tat.saturating_sub(now) + u64::from(cost) * self.quota.interval_ns();
        (owed_ns <= self.quota.span_ns()).then_some(owed_ns)
    }

    fn charge(&mut self, now: u64, owed_ns: u64, cost: u32, request: LeaseRequest) -> u32 {
        let from = owed_ns.max(request.hold_ns);
        let rest = self.quota.span_ns().saturating_sub(from) / self.quota.interval_ns() / 4;
        let leased = request.units.min(rest as u32);
        let leased = if leased < 2 { 0 } else { leased };
        let owed_ns = if leased > 0 { from + u64::from(leased) * self.quota.interval_ns() } else { owed_ns };
        self.tat = now + owed_ns;
        self.sold += cost + leased;
        leased
    }
}

/// What can happen to a command to Redis.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outages {
    Never,
    /// Commands may not arrive.
    Commands,
    /// Replies may not arrive either, and clients may leave.
    All,
}

/// Units of a bucket that were used at a time.
#[derive(Clone, Copy)]
struct Used {
    bucket: usize,
    at: u64,
    units: u32,
}

/// Some servers with leases, and their Redis.
#[derive(Clone)]
struct Servers {
    tables: Arc<[LeaseTable]>,
    policies: Arc<[Policy]>,
    buckets: Arc<Mutex<Vec<Bucket>>>,
    clock: Arc<AtomicU64>,
    outages: Outages,
    used: Arc<std::sync::Mutex<Vec<Used>>>,
    /// An upper bound of the units that were lost in outages.
    lost: Arc<AtomicU32>,
}

impl Servers {
    fn new(servers: usize, quotas: &[Quota], outages: Outages) -> Self {
        let bucket = |quota: &Quota| Bucket { quota: *quota, tat: 0, sold: 0 };
        Self {
            tables: (0..servers).map(|_| LeaseTable::new(Leases::default())).collect(),
            policies: quotas.iter().map(|quota| Policy::new("p", *quota).unwrap()).collect(),
            buckets: Arc::new(Mutex::new(quotas.iter().map(bucket).collect())),
            clock: Arc::new(AtomicU64::new(1)),
            outages,
            used: Arc::default(),
            lost: Arc::default(),
        }
    }

    fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    fn use_units(&self, bucket: usize, at: u64, units: u32) {
        self.used.lock().unwrap().push(Used { bucket, at, units });
    }

    /// Makes one charge with the steps of `Shared::ask_with_lease`. Returns whether it was admitted.
    fn charge(&self, server: usize, cost: u32) -> bool {
        let (table, subject) = (&self.tables[server], "s".into());
        let subject = Some(&subject);
        let part = |policy: &Policy| Part { policy: policy.clone(), cost, binds: true };
        let parts: Vec<_> = self.policies.iter().map(part).collect();
        let costs: Vec<_> = parts.iter().enumerate().map(|(at, part)| (at, part.policy.quota(), cost)).collect();
        let charge_lease = || {
            let now = self.now();
            let charged = table.charge(subject, now, &costs).is_some();
            (0..parts.len()).filter(|_| charged).for_each(|bucket| self.use_units(bucket, now, cost));
            charged
        };
        if charge_lease() {
            return true;
        }
        let access = block_on(table.lock(subject, || self.now(), &parts, Duration::ZERO));
        if charge_lease() {
            return true;
        }
        let sent_at = self.now();
        let (prepared, rest) = table.prepare(subject, sent_at, access, &parts);
        let (reply, decided_at) = self.ask(&rest, prepared.requests());
        if reply.is_none() && self.outages == Outages::All && thread_rng().r#gen() {
            // The client has left.
            self.lost.fetch_add(cost, Ordering::SeqCst);
            return false;
        }
        let times = (sent_at, self.now());
        let charged = table.complete(subject, times, &prepared, &rest, reply.as_ref());
        if charged.iter().all(Option::is_some) {
            for (bucket, part) in rest.iter().enumerate() {
                self.use_units(bucket, sent_at, cost - part.cost);
                self.use_units(bucket, decided_at, part.cost);
            }
            return true;
        }
        reply.is_some() && charge_lease()
    }

    /// Charges all parts in Redis, or none. Returns the reply, if it arrives, and the time of the charge.
    fn ask(&self, parts: &[Part], requests: &[LeaseRequest]) -> (Option<Reply>, u64) {
        let fails = || thread_rng().gen_bool(0.3);
        if self.outages != Outages::Never && fails() {
            return (None, 0);
        }
        let now = self.now();
        let mut buckets = self.buckets.lock().unwrap();
        let after: Vec<_> = buckets.iter().zip(parts).map(|(bucket, part)| bucket.after(now, part.cost)).collect();
        let is_admitted = after.iter().all(Option::is_some);
        let mut reply = Reply(Vec::new());
        for ((bucket, after), (at, part)) in buckets.iter_mut().zip(after).zip(parts.iter().enumerate()) {
            let request = requests.get(at).copied().unwrap_or_default();
            let charged = after.filter(|_| is_admitted).map(|owed_ns| bucket.charge(now, owed_ns, part.cost, request));
            let state = State { fits: after.is_some(), owed_ns: bucket.tat.saturating_sub(now) };
            reply.0.push((state, charged.unwrap_or(0)));
        }
        drop(buckets);
        if self.outages == Outages::All && fails() {
            let most = |of: &mut dyn Iterator<Item = u32>| of.max().unwrap_or(0);
            let lost =
                most(&mut reply.0.iter().map(|(_, leased)| *leased)) + most(&mut parts.iter().map(|part| part.cost));
            self.lost.fetch_add(lost, Ordering::SeqCst);
            return (None, now);
        }
        (Some(reply), now)
    }

    /// Charges until the first server has a lease.
    fn warm_up(&self) {
        let without_outages = Self { outages: Outages::Never, ..self.clone() };
        while self.left(0) == 0 {
            assert!(without_outages.charge(0, 1));
        }
    }

    /// Charges all units that are left in Redis, at one moment, on a server without leases.
    fn drain(&self) {
        let now = self.now();
        let mut buckets = self.buckets.lock().unwrap();
        while let Some(owed_ns) = buckets[0].after(now, 1) {
            buckets[0].charge(now, owed_ns, 1, LeaseRequest::default());
            self.use_units(0, now, 1);
        }
    }

    /// Starts a thread that charges these costs.
    fn charger(&self, server: usize, costs: &'static [u32]) -> thread::JoinHandle<()> {
        let servers = self.clone();
        thread::spawn(move || costs.iter().for_each(|cost| _ = servers.charge(server, *cost)))
    }

    /// Returns the units of a bucket that are left in all leases.
    fn left(&self, bucket: usize) -> u32 {
        let left = |table: &LeaseTable| table.left(Some(&"s".into())).get(bucket).copied().unwrap_or(0);
        self.tables.iter().map(left).sum()
    }

    /// Asserts that no unit was used that Redis has not charged, that no window has more than the burst and the rate, and that at most
    /// this number of units is lost without an outage.
    fn check(&self, may_lose: u32) {
        let may_lose = may_lose + self.lost.load(Ordering::SeqCst);
        let all_used = self.used.lock().unwrap();
        for (at, bucket) in self.buckets.lock().unwrap().iter().enumerate() {
            let used: Vec<_> = all_used.iter().filter(|used| used.bucket == at).collect();
            let (admitted, left) = (used.iter().map(|used| used.units).sum::<u32>(), self.left(at));
            let (sold, found) = (bucket.sold, admitted + left);
            assert!(found <= sold, "{admitted} units were used and {left} are left of {sold}");
            assert!(sold - found <= may_lose, "only {admitted} units were used and {left} are left of {sold}");
            for from in &used {
                for to in used.iter().filter(|to| to.at >= from.at) {
                    let window = used.iter().filter(|used| (from.at..=to.at).contains(&used.at));
                    let units = window.map(|used| u64::from(used.units)).sum::<u64>();
                    let allowed = bucket.quota.span_ns() + to.at - from.at;
                    assert!(units * bucket.quota.interval_ns() <= allowed, "{units} from {} to {}", from.at, to.at);
                }
            }
        }
    }
}

/// A quota whose leases have at most 4 units and last for an eighth of a second.
const QUOTA: Quota = Quota::per_second(32);
const LEASE: u32 = 4;
const LEASE_NS: u64 = 125_000_000;

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Charges on one server while the clock stands still. Units that are put back during a lease request are lost when it is granted.
fn one_server(quotas: &[Quota], outages: Outages, may_lose: u32) {
    let servers = Servers::new(1, quotas, outages);
    servers.warm_up();
    join([servers.charger(0, &[1, 2, 1, 3]), servers.charger(0, &[1, 1, 3]), servers.charger(0, &[2, 1, 1])]);
    servers.check(may_lose);
}

#[test]
fn concurrent_charges_use_each_leased_unit_once() {
    explore(|| one_server(&[QUOTA], Outages::Never, 0));
}

/// Charges two buckets, the second of which is nearly exhausted.
#[test]
fn rejections_by_another_bucket_put_leased_units_back() {
    explore(|| {
        let servers = Servers::new(1, &[QUOTA, QUOTA.with_burst(16)], Outages::Never);
        servers.warm_up();
        servers.buckets.lock().unwrap()[1].tat += 10 * QUOTA.interval_ns();
        join([servers.charger(0, &[1, 2, 3, 3]), servers.charger(0, &[1, 3, 3]), servers.charger(0, &[2, 1, 3])]);
        servers.check(LEASE);
    });
}

#[test]
fn commands_that_do_not_arrive_put_leased_units_back() {
    explore(|| one_server(&[QUOTA], Outages::Commands, LEASE));
}

#[test]
fn replies_that_do_not_arrive_lose_their_units_only() {
    explore(|| one_server(&[QUOTA], Outages::All, LEASE));
}

/// Charges more than the burst on two servers.
#[test]
fn servers_share_a_bucket_up_to_its_burst() {
    explore(|| {
        let servers = Servers::new(2, &[QUOTA.with_burst(16)], Outages::Never);
        let chargers = |server| [servers.charger(server, &[1, 1, 1, 1, 2]), servers.charger(server, &[2, 1, 1, 1, 1])];
        join([0, 1].into_iter().flat_map(chargers));
        servers.check(0);
    });
}

/// Charges on two servers while leases end, once. Then charges all units that are left.
fn leases_end(after_ns: u64, outages: Outages) {
    let servers = Servers::new(2, &[QUOTA], outages);
    servers.warm_up();
    let chargers =
        [servers.charger(0, &[1, 2, 1, 2]), servers.charger(0, &[1, 1, 2, 3]), servers.charger(1, &[1, 1, 1])];
    servers.clock.fetch_add(after_ns, Ordering::SeqCst);
    servers.drain();
    join(chargers);
    servers.check(2 * LEASE);
}

#[test]
fn leases_that_are_kept_do_not_increase_the_burst() {
    explore(|| leases_end(LEASE_NS - 1, Outages::Never));
}

#[test]
fn leases_that_end_are_not_used() {
    explore(|| leases_end(4 * LEASE_NS, Outages::Never));
}

#[test]
fn leases_that_end_in_an_outage_are_not_used() {
    explore(|| leases_end(4 * LEASE_NS, Outages::All));
}

/// Removes the leases of a subject, as a reset of the subject does, during charges.
#[test]
fn removed_leases_are_not_used() {
    explore(|| {
        let servers = Servers::new(1, &[QUOTA], Outages::Never);
        servers.warm_up();
        let chargers = [servers.charger(0, &[1, 2, 1]), servers.charger(0, &[1, 1, 2])];
        servers.tables[0].remove(&"s".into());
        join(chargers);
        servers.check(u32::MAX);
    });
}
