//! The leases of all subjects on this server, by the rules of `lease.rs`.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::gcra::{Part, Reply};
use super::lease::{Lease, LeaseRequest, Leases, Taken};
use super::timeout::within;
use crate::grant::Subject;
use crate::quota::Quota;
use crate::quota::decision::Decision;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// All leases of a server.
pub(super) struct LeaseTable {
    settings: Leases,
    hasher: RandomState,
    /// Several shards, for less lock contention. The last shard is that of anonymous callers.
    shards: Vec<Mutex<Shard>>,
    anonymous: Subject,
}

#[derive(Default)]
struct Shard {
    by_subject: HashMap<Subject, SubjectLeases>,
    /// The number of subjects at which the next sweep is due.
    sweep_at: usize,
}

/// The leases of one subject: one a bucket, in the order of the limiter's policies.
struct SubjectLeases {
    lock: Arc<LeaseLock>,
    leases: Vec<Lease>,
}

/// A lock that allows one lease request of a subject at a time.
#[derive(Default)]
struct LeaseLock {
    mutex: Arc<tokio::sync::Mutex<()>>,
    waiting: AtomicU32,
}

/// Counts a waiting charge until it is dropped.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The permission of a charge to ask Redis, with or without a lease request.
pub(super) struct LeaseAccess {
    lock: Arc<LeaseLock>,
    /// Present if the charge may request a lease.
    guard: Option<OwnedMutexGuard<()>>,
    /// True if another lease request is still pending.
    has_timed_out: bool,
}

/// A charge that is sent to Redis, and the leased units that it uses.
pub(super) struct PreparedCharge {
    taken: Vec<Taken>,
    requests: Vec<LeaseRequest>,
    /// Held until the charge is complete: no other charge requests a lease, and the entry is not swept.
    access: LeaseAccess,
}

impl PreparedCharge {
    pub(super) fn requests(&self) -> &[LeaseRequest] {
        &self.requests
    }
}

impl LeaseTable {
    const SHARDS: usize = 16;
    /// A shard with fewer subjects is not swept.
    const MIN_SWEEP: usize = 64;

    pub(super) fn new(settings: Leases) -> Self {
        let shard = || Mutex::new(Shard { sweep_at: Self::MIN_SWEEP, ..Shard::default() });
        let shards = (0..=Self::SHARDS).map(|_| shard()).collect();
        Self { settings, hasher: RandomState::new(), shards, anonymous: "".into() }
    }

    pub(super) fn settings(&self) -> Leases {
        self.settings
    }

    /// Charges leased units, if there are enough for every cost. Without a cost, returns the last known states if they are fresh.
    pub(super) fn charge(
        &self,
        subject: Option<&Subject>,
        now: u64,
        costs: &[(usize, Quota, u32)],
    ) -> Option<Vec<Decision>> {
        let (subject, mut shard) = self.shard(subject);
        let entry = shard.by_subject.get_mut(subject).filter(|entry| entry.matches(costs.iter().map(|of| of.1)))?;
        let can_charge = |(lease, &(_, _, cost)): (&Lease, &(usize, Quota, u32))| match cost {
            0 => lease.is_fresh(now),
            cost => lease.left(now) >= cost,
        };
        if !entry.leases.iter().zip(costs).all(can_charge) {
            return None;
        }
        let charge = |(lease, &(_, _, cost)): (&mut Lease, &(usize, Quota, u32))| {
            _ = lease.take(now, cost);
            lease.admitted(now)
        };
        Some(entry.leases.iter_mut().zip(costs).map(charge).collect())
    }

    /// Returns whether all of these buckets can be leased.
    pub(super) fn has_leases_for(&self, parts: &[Part]) -> bool {
        parts.iter().all(|part| self.settings.plan(part.policy.quota()).is_some())
    }

    /// Returns the parts of a charge that leases do not cover, or `None` if they cover nothing.
    pub(super) fn missing(&self, subject: Option<&Subject>, now: u64, parts: &[Part]) -> Option<Vec<Part>> {
        let leased = |(lease, part): (&Lease, &Part)| lease.leased(now, part.cost);
        let leased =
            self.with(subject, parts, |entry| entry.leases.iter().zip(parts).map(leased).collect::<Vec<_>>())?;
        leased.iter().any(|units| *units > 0).then(|| without(parts, leased))
    }

    /// Waits until no other lease request of this subject is pending, for at most `timeout`. Does not wait if no lease can be had.
    ///
    /// After the timeout the charge asks Redis without a lease request: a slow lease request does not mean that Redis is
    /// unavailable.
    pub(super) async fn lock(
        &self,
        subject: Option<&Subject>,
        now: impl Fn() -> u64,
        parts: &[Part],
        timeout: Duration,
    ) -> LeaseAccess {
        let lock = self.lease_lock(subject, now(), parts);
        let can_lease = || self.with(subject, parts, |entry| entry.can_lease(now(), parts)).unwrap_or(false);
        let (mut guard, mut has_timed_out) = (None, false);
        if can_lease() {
            guard = Arc::clone(&lock.mutex).try_lock_owned().ok();
            if guard.is_none() {
                let _waiting = Waiting::begin(&lock.waiting);
                guard = within(timeout, pin!(Arc::clone(&lock.mutex).lock_owned())).await;
                has_timed_out = guard.is_none();
            }
        }
        // Drop the guard if other replies showed meanwhile that too little is left: waiting charges need not run in sequence.
        LeaseAccess { lock, guard: guard.filter(|_| can_lease()), has_timed_out }
    }

    /// Takes leased units for a charge. Returns the parts that are left for Redis.
    pub(super) fn prepare(
        &self,
        subject: Option<&Subject>,
        now: u64,
        access: LeaseAccess,
        parts: &[Part],
    ) -> (PreparedCharge, Vec<Part>) {
        let others = access.lock.waiting.load(Ordering::Relaxed);
        let prepared = self.with(subject, parts, |entry| {
            let take = |(lease, part): (&mut Lease, &Part)| {
                let taken = lease.take(now, part.cost);
                let request = match access.guard.is_some() && taken.units < part.cost {
                    true => lease.request(now, others.saturating_mul(part.cost)),
                    false => LeaseRequest::default(),
                };
                (taken, request)
            };
            entry.leases.iter_mut().zip(parts).map(take).unzip()
        });
        let (taken, requests): (Vec<Taken>, Vec<LeaseRequest>) = prepared.unwrap_or_default();
        let leased = taken.iter().map(|taken| taken.units).chain(std::iter::repeat(0));
        let rest = without(parts, leased);
        (PreparedCharge { taken, requests, access }, rest)
    }

    /// Completes a charge with the reply of Redis about `parts`; `None` if there was no reply. Puts back unused units.
    ///
    /// Returns a decision for each part that was charged.
    pub(super) fn complete(
        &self,
        subject: Option<&Subject>,
        (sent_at, now): (u64, u64),
        prepared: &PreparedCharge,
        parts: &[Part],
        reply: Option<&Reply>,
    ) -> Vec<Option<Decision>> {
        let is_admitted =
            reply.is_some_and(|reply| parts.iter().zip(reply.states()).all(|(part, state)| !part.binds || state.fits));
        let completed = self.with(subject, parts, |entry| {
            let complete = |at: usize, lease: &mut Lease| {
                let (taken, request) = (prepared.taken.get(at)?, prepared.requests.get(at)?);
                let state = reply.and_then(|reply| reply.state(at)).inspect(|state| lease.update(sent_at, now, *state));
                if !state.is_some_and(|state| is_admitted && state.fits) {
                    lease.put_back(*taken);
                    return None;
                }
                let leased = reply.map_or(0, |reply| reply.leased(at));
                let charged = parts.get(at).map_or(0, |part| part.cost);
                // A charge of 0 units, or one beside a pending lease request, does not measure the pace.
                if charged > 0 && !prepared.access.has_timed_out {
                    lease.renew(sent_at, now, charged, *request, leased);
                }
                Some(lease.admitted(now))
            };
            entry.leases.iter_mut().enumerate().map(|(at, lease)| complete(at, lease)).collect()
        });
        completed.unwrap_or_else(|| vec![None; parts.len()])
    }

    /// Returns the number of subjects in the table.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).by_subject.len()).sum()
    }

    /// Returns the leased units that are left, those of expired leases too.
    #[cfg(test)]
    pub(super) fn left(&self, subject: Option<&Subject>) -> Vec<u32> {
        let (subject, shard) = self.shard(subject);
        shard
            .by_subject
            .get(subject)
            .map_or(Vec::new(), |entry| entry.leases.iter().map(|lease| lease.left(0)).collect())
    }

    /// Returns the subject's lock. Creates an entry if there is none for these buckets.
    fn lease_lock(&self, subject: Option<&Subject>, now: u64, parts: &[Part]) -> Arc<LeaseLock> {
        let (subject, mut shard) = self.shard(subject);
        if let Some(entry) = shard.by_subject.get(subject) {
            if entry.matches(parts.iter().map(|part| part.policy.quota())) {
                return Arc::clone(&entry.lock);
            }
        }
        let lease = |part: &Part| Some(Lease::new(part.policy.clone(), self.settings.plan(part.policy.quota())?));
        let (lock, leases) = (Arc::<LeaseLock>::default(), parts.iter().filter_map(lease).collect());
        shard.insert(subject, SubjectLeases { lock: Arc::clone(&lock), leases }, now);
        lock
    }

    /// Calls `f` with the subject's entry, if it still matches these buckets.
    fn with<T>(&self, subject: Option<&Subject>, parts: &[Part], f: impl FnOnce(&mut SubjectLeases) -> T) -> Option<T> {
        let (subject, mut shard) = self.shard(subject);
        let entry = shard.by_subject.get_mut(subject)?;
        entry.matches(parts.iter().map(|part| part.policy.quota())).then(|| f(entry))
    }

    /// Removes the leases of a subject.
    pub(super) fn remove(&self, subject: &Subject) {
        self.shard(Some(subject)).1.by_subject.remove(subject);
    }

    fn shard<'a>(&'a self, subject: Option<&'a Subject>) -> (&'a Subject, MutexGuard<'a, Shard>) {
        let at = subject.map_or(Self::SHARDS, |subject| self.hasher.hash_one(subject) as usize % Self::SHARDS);
        // A poisoned lock is usable: no change under the lock can panic before it is complete.
        (subject.unwrap_or(&self.anonymous), self.shards[at].lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns the parts without the leased units.
fn without(parts: &[Part], leased: impl IntoIterator<Item = u32>) -> Vec<Part> {
    let missing = |(part, leased): (&Part, u32)| Part { cost: part.cost - leased, ..part.clone() };
    parts.iter().zip(leased).map(missing).collect()
}

impl Shard {
    fn insert(&mut self, subject: &Subject, entry: SubjectLeases, now: u64) {
        if self.by_subject.len() >= self.sweep_at {
            // Keep entries with a pending lease request.
            self.by_subject.retain(|_, entry| {
                Arc::strong_count(&entry.lock) > 1 || !entry.leases.iter().all(|lease| lease.is_expired(now))
            });
            self.by_subject.shrink_to(self.by_subject.len() * 2);
            // Twice the number that is left: the cost of a sweep is spread over as many inserts.
            self.sweep_at = (self.by_subject.len() * 2).max(LeaseTable::MIN_SWEEP);
        }
        self.by_subject.insert(subject.clone(), entry);
    }
}

impl SubjectLeases {
    /// Returns whether these are the leases of buckets with these quotas.
    fn matches(&self, quotas: impl ExactSizeIterator<Item = Quota>) -> bool {
        quotas.len() == self.leases.len() && self.leases.iter().zip(quotas).all(|(lease, quota)| lease.quota() == quota)
    }

    /// Returns whether units are missing and a lease of them may be granted.
    fn can_lease(&self, now: u64, parts: &[Part]) -> bool {
        let is_missing = |(lease, part): (&Lease, &Part)| lease.left(now) < part.cost && lease.can_lease(now);
        self.leases.iter().zip(parts).any(is_missing)
    }
}

// Not in the models of `lease_interleavings.rs`, which include this file.
#[cfg(all(test, feature = "redis"))]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
pub(super) mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::limit::redis::gcra::State;
    use crate::limit::redis::tests::part;

    pub(in crate::limit::redis) const MS: u64 = 1_000_000;
    /// One unit per millisecond.
    const QUOTA: Quota = Quota::per_second(1_000);
    const LONG: Duration = Duration::from_secs(30);

    pub(in crate::limit::redis) fn parts(cost: u32) -> [Part; 1] {
        [part(b"", QUOTA, cost)]
    }

    pub(in crate::limit::redis) fn access(table: &LeaseTable, now: u64, cost: u32) -> LeaseAccess {
        table.lock(None, || now, &parts(cost), LONG).now_or_never().unwrap()
    }

    /// Makes a charge that Redis admits, with a lease of this many units. Returns the cost that Redis charged and the request.
    pub(in crate::limit::redis) fn charge(
        table: &LeaseTable,
        access: LeaseAccess,
        now: u64,
        cost: u32,
        granted: u64,
    ) -> (u32, LeaseRequest) {
        let (prepared, rest) = table.prepare(None, now, access, &parts(cost));
        let reply = Reply::read(vec![1 + granted, 0, 0, 0], 1).unwrap();
        assert!(table.complete(None, (now, now), &prepared, &rest, Some(&reply))[0].is_some());
        (rest[0].cost, prepared.requests()[0])
    }

    #[test]
    fn redis_charges_what_is_not_leased() {
        let table = LeaseTable::new(Leases::default());
        assert_eq!(charge(&table, access(&table, MS, 1), MS, 1, 5).0, 1);
        assert_eq!(charge(&table, access(&table, MS, 7), MS, 7, 0).0, 2);
    }

    #[test]
    fn a_lease_is_requested_only_if_units_are_missing() {
        let table = LeaseTable::new(Leases::default());
        charge(&table, access(&table, MS, 1), MS, 1, 5);
        assert!(access(&table, MS, 5).guard.is_none());
        assert!(access(&table, MS, 6).guard.is_some());
    }

    #[test]
    fn the_pace_is_that_of_charges_without_a_pending_request() {
        let table = LeaseTable::new(Leases::default());
        charge(&table, access(&table, MS, 10), MS, 10, 0);
        // A look, and a charge beside a pending request.
        charge(&table, access(&table, 40 * MS, 0), 40 * MS, 0, 0);
        let beside = LeaseAccess { has_timed_out: true, ..access(&table, 45 * MS, 1) };
        charge(&table, beside, 45 * MS, 1, 0);
        // 10 units in 150 ms are 4 in half of the duration of a lease. A first lease has two.
        assert_eq!(charge(&table, access(&table, 151 * MS, 1), 151 * MS, 1, 0).1.units, 2);
    }

    #[test]
    fn a_waiting_charge_is_counted_until_it_is_dropped() {
        let table = LeaseTable::new(Leases::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let first = access(&table, MS, 1);
            let waiting = || first.lock.waiting.load(Ordering::Relaxed);
            let parts = parts(1);
            let mut second = Box::pin(table.lock(None, || MS, &parts, LONG));
            assert!(futures_util::poll!(&mut second).is_pending());
            assert_eq!(waiting(), 1);
            drop(second);
            assert_eq!(waiting(), 0);
        });
    }

    #[test]
    fn leases_match_buckets_with_the_same_quotas() {
        let table = LeaseTable::new(Leases::default());
        access(&table, MS, 1);
        let matches = |quotas: &[Quota]| {
            let parts: Vec<_> = quotas.iter().map(|quota| part(b"", *quota, 1)).collect();
            table.with(None, &parts, |_| ()).is_some()
        };
        assert!(matches(&[QUOTA]));
        assert!(!matches(&[QUOTA, QUOTA]) && !matches(&[Quota::per_second(999)]) && !matches(&[]));
    }

    #[test]
    fn a_sweep_keeps_pending_requests_and_leases_that_are_not_expired() {
        let entry = |replied_at: Option<u64>| {
            let mut lease = Lease::new(parts(1)[0].policy.clone(), Leases::default().plan(QUOTA).unwrap());
            if let Some(at) = replied_at {
                lease.update(at, at, State { fits: true, owed_ns: 0 });
            }
            SubjectLeases { lock: Arc::default(), leases: vec![lease] }
        };
        let mut shard = Shard { sweep_at: 3, ..Shard::default() };
        let pending = entry(None);
        let _lock = Arc::clone(&pending.lock);
        for (subject, entry) in [("expired", entry(None)), ("pending", pending), ("fresh", entry(Some(MS)))] {
            shard.insert(&subject.into(), entry, MS);
        }
        assert_eq!(shard.by_subject.len(), 3);
        shard.insert(&"new".into(), entry(None), MS);
        let mut left: Vec<_> = shard.by_subject.keys().map(Subject::as_str).collect();
        left.sort_unstable();
        assert_eq!((left, shard.sweep_at), (vec!["fresh", "new", "pending"], LeaseTable::MIN_SWEEP));

        // The next sweep is due at twice the number that is left.
        let mut shard = Shard { sweep_at: 40, ..Shard::default() };
        for number in 0..41 {
            shard.insert(&number.to_string().into(), entry(Some(MS)), MS);
        }
        assert_eq!((shard.by_subject.len(), shard.sweep_at), (41, 80));
    }
}
