//! Leases: units that a server charges in Redis in advance. The rules are those of [`Leases`].
//!
//! # Proof of rule 3
//!
//! Units that are leased at a time `a` are used from `a` to `a + d`. `d` is 0 for a charge that is made immediately, and the
//! duration of a lease otherwise. (Here the lease begins before the command is sent, and ends by a clock that may run slow by 1
//! part in 64.) A lease of `n` units sets the bucket's theoretical arrival time to `max(TAT, a + d) + n x interval`. Redis
//! grants the lease only if that is at most `a + burst x interval`.
//!
//! Take the `N` units that are used from `s` to `e`, and the leases that they come from. The first lease has `a + d >= s`, so
//! `TAT` is at least `s` plus the time of its own units. Each further lease adds the time of its units. So `TAT` is finally at
//! least `s + N x interval`. The last lease was granted at an `a <= e`, so `TAT` was at most `e + burst x interval`. Hence
//! `N <= burst + (e - s) / interval`.

use std::time::Duration;

use super::gcra::State;
use crate::quota::Quota;
use crate::quota::decision::{Decision, Verdict};
use crate::quota::policy::Policy;

/// Settings of leases, see [`RedisLimits::with_leases`](super::RedisLimits::with_leases).
///
/// A lease is a number of units of one bucket. One call of the script charges them in Redis in advance, for one server.
///
/// # Rules
///
/// 1. A server uses a lease until it ends, or until the next lease is granted. Unused units are then lost: at most one lease per
///    server and bucket. (For a bucket that all subjects share: per server and subject.) Unused units include those that a charge
///    returns while the next lease is requested, because another limit or Redis rejected the charge.
/// 2. Redis charges a lease as units that are used at its end, and grants it only if they fit now. Other servers charge the same
///    bucket as usual, with leases and without. But no server of the same prefix may have
///    [refunds](crate::RateLimits::with_refunds): a refund would also return the time until a lease's end.
/// 3. In any time `t` of Redis' clock, all servers together admit at most `burst + rate x t`.
/// 4. A lease has at most an eighth of the burst, and at most a quarter of the units left in the bucket. It lasts for the time in
///    which an eighth of the burst refills, or [`with_longest`](Self::with_longest). A lease has at least two units and lasts at
///    least 5 milliseconds. With a burst below 16, and near the limit, each charge asks Redis.
/// 5. The size of a lease is chosen to last for half of its duration at the pace of the previous charges. It is at most twice the
///    previous size, or as many units as concurrent charges wait for. So the first charge alone requests no lease, and neither does a
///    subject with fewer than four charges per lease.
/// 6. A subject has one pending lease request per server. A concurrent charge that finds too few units waits for that request, for
///    half of the timeout. After that it asks Redis itself without a lease request. The bound of rule 3 holds.
/// 7. A charge of several buckets takes units from all of them or from none. If one of them has no leases, or is an exhausted dry
///    run, the charge asks Redis.
/// 8. Decisions report the state of a bucket that this server received last, at most the duration of a lease ago.
/// 9. A lease begins when it is requested. If Redis took longer than half of a lease's duration to reply to the previous charge of
///    a subject, the next one requests no lease. So with a distant Redis and short leases, each charge asks Redis.
/// 10. Leases need no task. Entries of subjects whose leases have ended are removed when new subjects are added.
///
/// Three events admit more than this bound, each by at most the leases that a server has. If Redis loses a bucket, the bucket starts
/// full. After a change of quota, other servers may use their leases of the previous quota until these end. If the clock of a server
/// stands still, as in a suspended virtual machine, or that of Redis steps forward, the server uses its leases too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leases {
    longest_ns: u64,
}

impl Default for Leases {
    /// Returns settings with leases of at most one second.
    fn default() -> Self {
        Self { longest_ns: 1_000_000_000 }
    }
}

impl Leases {
    /// Sets the longest duration of a lease. Default: 1 second. Below 5 milliseconds there are no leases.
    ///
    /// A shorter duration loses fewer unused units, and asks Redis more often.
    #[must_use]
    pub fn with_longest(self, longest: Duration) -> Self {
        Self { longest_ns: u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// Returns the bounds of leases of a quota, or `None` if the quota is too small for leases.
    pub(super) fn plan(self, quota: Quota) -> Option<Plan> {
        let most = quota.burst() / PART_OF_BURST;
        let time_ns = self.longest_ns.min(quota.interval_ns() * u64::from(most));
        (most >= FEWEST && time_ns >= SHORTEST_NS).then_some(Plan { most, time_ns })
    }
}

const PART_OF_BURST: u32 = 8;
const PART_OF_REST: u64 = 4;
const FEWEST: u32 = 2;
const SHORTEST_NS: u64 = 5_000_000;

/// The bounds of the leases of one quota.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    most: u32,
    time_ns: u64,
}

/// A request for a lease, sent with a charge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeaseRequest {
    /// The number of units. 0 requests no lease.
    pub(super) units: u32,
    /// The time for which Redis reserves the units.
    pub(super) hold_ns: u64,
}

/// A server's lease of one bucket, and the last known state of the bucket. Times are nanoseconds of the server's clock.
#[derive(Debug)]
pub(super) struct Lease {
    policy: Policy,
    plan: Plan,
    /// Unused units, valid until `ends_at`.
    left: u32,
    ends_at: u64,
    /// When the last lease was requested.
    sent_at: u64,
    /// The units charged and leased by that request.
    received: u32,
    /// The number of units of the last request.
    requested: u32,
    /// The time until the bucket is full, as Redis reported it, and the time of that reply.
    owed_ns: u64,
    replied_at: u64,
    /// The time that this reply took.
    trip_ns: u64,
}

/// Units that were taken from a lease for a pending charge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) units: u32,
    ends_at: u64,
}

impl Lease {
    pub(super) fn new(policy: Policy, plan: Plan) -> Self {
        Self {
            policy,
            plan,
            left: 0,
            ends_at: 0,
            sent_at: 0,
            received: 0,
            requested: 1,
            owed_ns: 0,
            replied_at: 0,
            trip_ns: 0,
        }
    }

    pub(super) fn quota(&self) -> Quota {
        self.policy.quota()
    }

    /// Returns the number of units that can be charged immediately.
    pub(super) fn left(&self, now: u64) -> u32 {
        if now < self.ends_at { self.left } else { 0 }
    }

    /// Returns how many of these units are leased. Returns 0 if the number exceeds the burst, which is always rejected.
    pub(super) fn leased(&self, now: u64, units: u32) -> u32 {
        if units > self.quota().burst() { 0 } else { units.min(self.left(now)) }
    }

    /// Takes the [leased](Self::leased) ones of these units.
    pub(super) fn take(&mut self, now: u64, units: u32) -> Taken {
        let units = self.leased(now, units);
        self.left -= units;
        Taken { units, ends_at: self.ends_at }
    }

    /// Puts back unused units, if their lease is still the current one.
    pub(super) fn put_back(&mut self, taken: Taken) {
        if taken.ends_at == self.ends_at {
            self.left += taken.units;
        }
    }

    /// Returns whether the last known state of the bucket is recent.
    pub(super) fn is_fresh(&self, now: u64) -> bool {
        self.replied_at > 0 && now.saturating_sub(self.replied_at) < self.plan.time_ns
    }

    /// Returns whether Redis may grant a lease, by the last known state, and whether most of it would be left after the reply.
    pub(super) fn can_lease(&self, now: u64) -> bool {
        if self.trip_ns > self.plan.time_ns / 2 {
            return false;
        }
        let owed_ns = self.owed_at(now).max(self.plan.time_ns);
        let rest = self.quota().span_ns().saturating_sub(owed_ns) / self.quota().interval_ns();
        rest / PART_OF_REST >= u64::from(FEWEST)
    }

    /// Returns the lease request for a charge. `waiting` is the number of units that other charges wait for.
    pub(super) fn request(&self, now: u64, waiting: u32) -> LeaseRequest {
        let used = u128::from(self.received - self.left.min(self.received));
        let passed = u128::from(now.saturating_sub(self.sent_at).max(1));
        let by_pace = used * u128::from(self.plan.time_ns) / (2 * passed);
        let by_pace = by_pace.min((2 * self.requested).into()) as u32;
        let units = by_pace.max(waiting).min(self.plan.most);
        let units = if units < FEWEST { 0 } else { units };
        // By Redis' clock, a server whose clock runs slow ends a lease late.
        LeaseRequest { units, hold_ns: self.plan.time_ns + self.plan.time_ns.div_ceil(63) }
    }

    /// Starts a lease of the granted units after a charge in Redis.
    pub(super) fn renew(&mut self, sent_at: u64, now: u64, charged: u32, request: LeaseRequest, granted: u32) {
        if granted > 0 || self.left(now) == 0 {
            self.left = granted;
            self.ends_at = sent_at.saturating_add(self.plan.time_ns);
            self.sent_at = sent_at;
            self.received = charged.saturating_add(granted);
            self.requested = request.units.max(1);
        }
    }

    /// Stores the bucket's state as reported by Redis.
    pub(super) fn update(&mut self, sent_at: u64, now: u64, state: State) {
        (self.owed_ns, self.replied_at, self.trip_ns) = (state.owed_ns, now, now.saturating_sub(sent_at));
    }

    /// Returns whether the lease has ended and the known state is not recent.
    pub(super) fn is_expired(&self, now: u64) -> bool {
        now >= self.ends_at && !self.is_fresh(now)
    }

    fn owed_at(&self, now: u64) -> u64 {
        self.owed_ns.saturating_sub(now.saturating_sub(self.replied_at))
    }

    /// Returns the decision about an admitted charge. The remaining units include those of the lease.
    pub(super) fn admitted(&self, now: u64) -> Decision {
        let leased_ns = u64::from(self.left(now)) * self.quota().interval_ns();
        Decision::without_wait(self.policy.clone(), Verdict::Admitted, self.owed_at(now).saturating_sub(leased_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::policy::PolicyName;

    const MS: u64 = 1_000_000;
    /// One unit per millisecond.
    const QUOTA: Quota = Quota::per_second(1_000);
    const PLAN: Plan = Plan { most: 125, time_ns: 125 * MS };

    fn lease() -> Lease {
        Lease::new(Policy::named(&PolicyName::default_name(), QUOTA), PLAN)
    }

    /// Returns a lease that was granted at 1 ms, with the reply at 3 ms.
    fn granted(charged: u32, requested: u32, granted: u32, owed_ns: u64) -> Lease {
        let mut lease = lease();
        lease.renew(MS, 3 * MS, charged, LeaseRequest { units: requested, hold_ns: 0 }, granted);
        lease.update(MS, 3 * MS, State { fits: true, owed_ns });
        lease
    }

    #[test]
    fn a_lease_has_at_least_two_units_and_five_milliseconds() {
        let plan = |quota: Quota, longest: u64| {
            let plan = Leases::default().with_longest(Duration::from_nanos(longest)).plan(quota)?;
            Some((plan.most, plan.time_ns))
        };
        assert_eq!(plan(QUOTA, 1_000 * MS), Some((125, 125 * MS)));
        assert_eq!(plan(QUOTA, 60 * MS), Some((125, 60 * MS)));
        assert_eq!(plan(QUOTA, 5 * MS), Some((125, 5 * MS)));
        assert_eq!(plan(QUOTA, 5 * MS - 1), None);
        let slow = Quota::per_second(100);
        assert_eq!(plan(slow.with_burst(16), 1_000 * MS), Some((2, 20 * MS)));
        assert_eq!(plan(slow.with_burst(15), 1_000 * MS), None);
        assert_eq!(Leases::default().plan(Quota::per_hour(80)).unwrap().time_ns, 1_000 * MS);
    }

    #[test]
    fn units_are_valid_until_the_lease_ends() {
        let mut lease = granted(1, 20, 20, 0);
        let ends_at = MS + PLAN.time_ns;
        assert_eq!([lease.left(0), lease.left(ends_at - 1), lease.left(ends_at)], [20, 20, 0]);
        assert_eq!(lease.take(MS, 1_001).units, 0, "above the burst");
        let taken = lease.take(MS, 15);
        assert_eq!((taken.units, lease.left(MS)), (15, 5));
        assert_eq!(lease.take(MS, 1_000).units, 5, "as many as are left");
        lease.put_back(taken);
        assert_eq!(lease.left(MS), 15);
        // Units of an earlier lease are lost.
        lease.renew(2 * MS, 4 * MS, 1, LeaseRequest::default(), 7);
        lease.put_back(taken);
        assert_eq!((lease.left(ends_at), lease.left(MS + ends_at)), (7, 0));
    }

    #[test]
    fn a_lease_that_is_not_used_up_is_replaced_only_by_another_one() {
        let mut lease = granted(1, 20, 20, 0);
        lease.renew(5 * MS, 6 * MS, 9, LeaseRequest::default(), 0);
        assert_eq!((lease.left(6 * MS), lease.sent_at, lease.received, lease.requested), (20, MS, 21, 20));
        _ = lease.take(6 * MS, 20);
        lease.renew(5 * MS, 6 * MS, 9, LeaseRequest::default(), 0);
        assert_eq!((lease.left(6 * MS), lease.sent_at, lease.received, lease.requested), (0, 5 * MS, 9, 1));
        lease.renew(7 * MS, 8 * MS, 2, LeaseRequest { units: 9, hold_ns: 0 }, 6);
        assert_eq!((lease.left(8 * MS), lease.sent_at, lease.received, lease.requested), (6, 7 * MS, 8, 9));
    }

    #[test]
    fn a_request_follows_the_pace() {
        let request = |used: u32, now: u64, waiting: u32| {
            let mut lease = granted(1, 20, 60, 0);
            _ = lease.take(now.min(MS + PLAN.time_ns - 1), used);
            lease.request(now, waiting).units
        };
        // 1 + 9 units in 50 ms are 12.5 in half of the duration, and in 100 ms half as many.
        assert_eq!([request(9, 51 * MS, 0), request(9, 101 * MS, 0)], [12, 6]);
        // At most twice the previous request, at least what others wait for, and at most the plan.
        assert_eq!([request(59, 51 * MS, 0), request(9, 51 * MS, 30), request(9, 51 * MS, 200)], [40, 30, 125]);
        // Too few for a lease.
        assert_eq!([request(1, 101 * MS, 0), request(1, 61 * MS, 0), request(1, 101 * MS, 2)], [0, 2, 2]);
        assert_eq!(granted(1, 1, 0, 0).request(MS, 0).units, 2, "no time has passed: twice the previous request");
        assert_eq!(lease().request(0, 0).units, 0);
        // A 63rd more, rounded up.
        assert_eq!(lease().request(0, 0).hold_ns, 125 * MS + 1_984_127);
    }

    #[test]
    fn a_lease_needs_eight_units_beside_its_duration() {
        // The known debt is counted as at least the duration of a lease, 125 units.
        let can_lease = |owed: u64, at: u64| granted(1, 20, 20, owed * MS).can_lease(at);
        assert!([can_lease(0, 3 * MS), can_lease(992, 3 * MS)].into_iter().all(|can| can));
        assert!(!can_lease(993, 3 * MS) && !can_lease(993, 4 * MS - 1));
        assert!(can_lease(993, 4 * MS));
        let full = Lease::new(Policy::named(&PolicyName::default_name(), QUOTA.with_burst(132)), PLAN);
        assert!(!full.can_lease(0), "125 of 132 units are held");
    }

    #[test]
    fn a_lease_is_requested_only_if_half_of_it_is_left_after_the_reply() {
        let mut lease = granted(1, 20, 20, 0);
        for (trip_ns, can_lease) in [(PLAN.time_ns / 2, true), (PLAN.time_ns / 2 + 1, false), (MS, true)] {
            lease.update(MS, MS + trip_ns, State { fits: true, owed_ns: 0 });
            assert_eq!(lease.can_lease(MS + trip_ns), can_lease, "{trip_ns}");
        }
    }

    #[test]
    fn a_state_is_fresh_for_the_duration_of_a_lease() {
        let (lease, fresh_until) = (granted(1, 20, 20, 0), 3 * MS + PLAN.time_ns);
        assert!(lease.is_fresh(3 * MS) && lease.is_fresh(fresh_until - 1) && !lease.is_fresh(fresh_until));
        assert!(!self::lease().is_fresh(0), "no state is known");
        assert!(!lease.is_expired(fresh_until - 1) && lease.is_expired(fresh_until));
        let mut late = granted(1, 20, 20, 0);
        late.renew(9 * MS, 9 * MS, 1, LeaseRequest::default(), 5);
        assert!(!late.is_expired(fresh_until) && late.is_expired(9 * MS + PLAN.time_ns));
    }

    #[test]
    fn the_reported_units_are_those_of_the_lease_and_of_the_bucket() {
        let mut lease = granted(1, 20, 20, 151 * MS);
        assert_eq!(lease.admitted(3 * MS).remaining(), 1_000 - 151 + 20);
        _ = lease.take(3 * MS, 15);
        assert_eq!(lease.admitted(13 * MS).remaining(), 1_000 - 141 + 5);
    }
}
