//! The generic cell rate algorithm in Redis, by Redis' clock: the arguments and the reply of `gcra.lua`.
//!
//! # Rules
//!
//! 1. A charge of several buckets is made as a whole or not at all.
//! 2. At times of whole microseconds, the resolution of Redis' clock, decisions equal governor's to the nanosecond.
//! 3. When the quota of a bucket changes, the charged units are carried over. The time is rounded up to microseconds.
//! 4. Every key expires when its bucket is full.

use std::sync::LazyLock;

use redis::RedisResult;

use super::connect::Connection;
use super::lease::LeaseRequest;
#[cfg(test)]
use super::script::GIVEN_CLOCK;
use super::script::{CLOCK, Script};
use crate::quota::decision::{Decision, Verdict};
use crate::quota::policy::Policy;

/// The charge of one bucket.
#[derive(Clone)]
pub(super) struct Part {
    /// The index of the policy in the limiter.
    pub(super) at: usize,
    pub(super) key: Vec<u8>,
    pub(super) policy: Policy,
    pub(super) cost: u32,
    /// True if a rejection by this bucket rejects the whole charge. False for dry runs.
    pub(super) binds: bool,
}

/// The state of a bucket after a charge, as reported by Redis or from the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) fits: bool,
    /// The time until the bucket is full.
    pub(super) owed_ns: u64,
}

/// The history of a bucket before a charge: the time of its creation by Redis' clock, and the total of its refunds, in microseconds
/// and nanoseconds. A refund needs it.
pub(super) type History = [u64; 3];

/// The reply to a charge.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// The numbers of all buckets, kept as they came: most charges read three of them.
    numbers: Vec<u64>,
    /// The numbers of a bucket: three, or six if charges can be refunded.
    width: usize,
    /// The time of the charge by Redis' clock, in microseconds since 1970.
    pub(super) now_us: u64,
}

fn script(clock: &str, has_refunds: bool) -> Script {
    Script::new(clock, has_refunds, include_str!("gcra.lua"))
}

/// Charges all parts, or none. If the charge is admitted, leases units, by one request a part. `requests` may be empty.
pub(super) async fn charge(
    connection: &mut Connection,
    parts: &[Part],
    requests: &[LeaseRequest],
) -> RedisResult<Reply> {
    static GCRA: LazyLock<Script> = LazyLock::new(|| script(CLOCK, false));
    run(&GCRA, connection, parts, requests, None).await
}

/// Charges all parts, or none, and returns what refunds need.
pub(super) async fn charge_with_refunds(connection: &mut Connection, parts: &[Part]) -> RedisResult<Reply> {
    static GCRA: LazyLock<Script> = LazyLock::new(|| script(CLOCK, true));
    run(&GCRA, connection, parts, &[], None).await
}

/// Charges like [`charge`], at the given time in microseconds.
#[cfg(test)]
pub(super) async fn charge_at(
    connection: &mut Connection,
    parts: &[Part],
    requests: &[LeaseRequest],
    now_us: u64,
) -> RedisResult<Reply> {
    static AT: LazyLock<Script> = LazyLock::new(|| script(GIVEN_CLOCK, false));
    run(&AT, connection, parts, requests, Some(now_us)).await
}

/// Charges like [`charge_with_refunds`], at the given time in microseconds.
#[cfg(test)]
pub(super) async fn charge_with_refunds_at(
    connection: &mut Connection,
    parts: &[Part],
    now_us: u64,
) -> RedisResult<Reply> {
    static AT: LazyLock<Script> = LazyLock::new(|| script(GIVEN_CLOCK, true));
    run(&AT, connection, parts, &[], Some(now_us)).await
}

async fn run(
    script: &Script,
    connection: &mut Connection,
    parts: &[Part],
    requests: &[LeaseRequest],
    now_us: Option<u64>,
) -> RedisResult<Reply> {
    let keys: Vec<_> = parts.iter().map(|part| &*part.key).collect();
    let mut args: Vec<_> = parts.iter().flat_map(Part::args).collect();
    args.extend(parts.iter().zip(requests).flat_map(|(part, request)| part.lease_args(*request)));
    args.extend(now_us);
    Reply::read(script.run(connection, &keys, &args).await?, parts.len())
}

impl Reply {
    /// Reads the numbers of a reply for several buckets.
    pub(super) fn read(mut numbers: Vec<u64>, buckets: usize) -> RedisResult<Self> {
        let now_us = numbers.pop().unwrap_or_default();
        let width = numbers.len() / buckets.max(1);
        if numbers.len() != width * buckets || !matches!(width, 3 | 6) {
            return Err((
                redis::ErrorKind::UnexpectedReturnType,
                "the script replied for a different number of buckets",
            )
                .into());
        }
        Ok(Self { numbers, width, now_us })
    }

    /// Returns the states of all buckets.
    pub(super) fn states(&self) -> impl Iterator<Item = State> + Clone {
        self.numbers.chunks_exact(self.width).map(State::of)
    }

    /// Returns the state of a bucket.
    pub(super) fn state(&self, bucket: usize) -> Option<State> {
        self.states().nth(bucket)
    }

    /// Returns the history of a bucket, if charges can be refunded.
    pub(super) fn history(&self, bucket: usize) -> Option<History> {
        self.numbers.chunks_exact(self.width).nth(bucket)?.get(3..)?.try_into().ok()
    }

    /// Returns the units of a bucket that were leased.
    pub(super) fn leased(&self, bucket: usize) -> u32 {
        let first = self.numbers.get(bucket * self.width).copied().unwrap_or_default();
        u32::try_from(first.saturating_sub(1)).unwrap_or(u32::MAX)
    }
}

impl State {
    /// Reads the first three numbers of a bucket in the reply.
    fn of(numbers: &[u64]) -> Self {
        Self { fits: numbers[0] > 0, owed_ns: numbers[1].saturating_mul(1_000).saturating_add(numbers[2]) }
    }
}

impl Part {
    /// Returns the seven arguments of one bucket: whether its rejection binds, and [`charge_args`](Self::charge_args).
    fn args(&self) -> impl Iterator<Item = u64> {
        std::iter::once(u64::from(self.binds)).chain(self.charge_args())
    }

    /// Returns the six arguments of `charge` in `bucket.lua`.
    pub(super) fn charge_args(&self) -> [u64; 6] {
        let quota = self.policy.quota();
        let is_above = self.cost > quota.burst();
        // A cost above the burst never fits, so its time is not needed. Other times are below 2^62 ns.
        let cost_ns = if is_above { 0 } else { self.charged_ns() };
        [
            quota.interval_ns(),
            quota.span_ns() / 1_000,
            quota.span_ns() % 1_000,
            cost_ns / 1_000,
            cost_ns % 1_000,
            u64::from(is_above),
        ]
    }

    /// Returns the time in which the charge is regained. The cost is at most the burst.
    pub(super) fn charged_ns(&self) -> u64 {
        self.policy.quota().interval_ns() * u64::from(self.cost)
    }

    /// Returns four arguments of the script.
    fn lease_args(&self, request: LeaseRequest) -> [u64; 4] {
        let interval_ns = self.policy.quota().interval_ns();
        [request.units.into(), request.hold_ns.div_ceil(1_000), interval_ns / 1_000, interval_ns % 1_000]
    }

    /// Returns whether the charge fits into a bucket that is full after at least this time.
    pub(super) fn fits(&self, owed_ns: u64) -> bool {
        let quota = self.policy.quota();
        self.cost == 0
            || (self.cost <= quota.burst()
                && owed_ns.saturating_add(quota.interval_ns() * u64::from(self.cost)) <= quota.span_ns())
    }

    /// Returns the decision for a state.
    pub(super) fn decision(&self, state: State) -> Decision {
        let quota = self.policy.quota();
        let verdict = match state.fits {
            true => Verdict::Admitted,
            false if self.cost > quota.burst() => Verdict::CostAboveBurst,
            false => {
                let wait_ns = state.owed_ns.saturating_add(quota.interval_ns() * u64::from(self.cost));
                let wait_ns = wait_ns.saturating_sub(quota.span_ns());
                return Decision::from_ns(self.policy.clone(), Verdict::OverLimit, 0, wait_ns, state.owed_ns);
            }
        };
        Decision::without_wait(self.policy.clone(), verdict, state.owed_ns)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limit::redis::tests::part;
    use crate::quota::Quota;

    #[test]
    fn a_reply_has_three_or_six_numbers_for_each_bucket_and_the_time() {
        let reply = Reply::read(vec![1, 2, 3, 0, 4, 5, 9], 2).unwrap();
        let states = [State { fits: true, owed_ns: 2_003 }, State { fits: false, owed_ns: 4_005 }];
        assert_eq!(reply.states().collect::<Vec<_>>(), states);
        assert_eq!([0, 1, 2].map(|bucket| reply.state(bucket)), [Some(states[0]), Some(states[1]), None]);
        assert_eq!((reply.history(0), reply.now_us), (None, 9));

        let reply = Reply::read(vec![1, 0, 0, 4, 5, 6, 1, 0, 0, 7, 8, 9, 10], 2).unwrap();
        assert_eq!([0, 1, 2].map(|bucket| reply.history(bucket)), [Some([4, 5, 6]), Some([7, 8, 9]), None]);

        let reply = Reply::read(vec![1, 0, 0, 8, 0, 0, 0, 0, 0, u64::MAX, 0, 0, 9], 4).unwrap();
        assert_eq!([0, 1, 2, 3, 4].map(|bucket| reply.leased(bucket)), [0, 7, 0, u32::MAX, 0]);

        for (numbers, buckets) in [(0, 1), (1, 1), (3, 1), (5, 1), (8, 1), (10, 1), (4, 2), (8, 2), (9, 2)] {
            assert!(Reply::read(vec![1; numbers], buckets).is_err(), "{numbers} for {buckets}");
        }
    }

    #[test]
    fn times_are_whole_microseconds_and_the_rest_in_nanoseconds() {
        let part = |cost| part(b"", Quota::one_per(Duration::from_nanos(1_234_567)).with_burst(5), cost);
        assert_eq!(part(3).charge_args(), [1_234_567, 6_172, 835, 3_703, 701, 0]);
        assert_eq!(part(5).charge_args(), [1_234_567, 6_172, 835, 6_172, 835, 0]);
        assert_eq!(part(6).charge_args(), [1_234_567, 6_172, 835, 0, 0, 1], "above the burst");
        assert_eq!(part(1).lease_args(LeaseRequest { units: 7, hold_ns: 2_500_001 }), [7, 2_501, 1_234, 567]);
    }

    #[test]
    fn a_rejected_charge_waits_until_it_fits() {
        let decision = |cost| {
            let state = State { fits: false, owed_ns: 900_000_000 };
            part(b"", Quota::per_second(10), cost).decision(state)
        };
        let decided = [4, 10, 11].map(|cost| (decision(cost).verdict(), decision(cost).retry_after()));
        let over = |ms| (Verdict::OverLimit, Some(Duration::from_millis(ms)));
        assert_eq!(decided, [over(300), over(900), (Verdict::CostAboveBurst, None)]);
    }

    #[test]
    fn a_charge_fits_up_to_the_burst() {
        let part = |cost| part(b"", Quota::per_second(10), cost);
        assert!(part(0).fits(u64::MAX) && part(10).fits(0) && !part(11).fits(0));
        assert!(part(4).fits(600_000_000) && !part(4).fits(600_000_001));
    }
}
