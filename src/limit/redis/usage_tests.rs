//! Tests of usage in a real Redis: usage equals the units that the next charges get.

use proptest::prelude::*;
use proptest::sample::Index;

use super::connect::Connection;
use super::gcra::{self, Part, State};
use super::refund::{self, Charged};
use super::tests::{START_US, key, part, quotas, redis, remove};
use super::usage::full_in_at;
use crate::quota::Quota;
use crate::quota::decision::Decision;

#[derive(Clone, Debug)]
enum Step {
    Charge(u32),
    Wait(u64),
    Quota(usize),
    Refund(Index),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u32..32).prop_map(Step::Charge),
        4 => prop_oneof![0_u64..3, 0_u64..3_000, 0_u64..3_000_000].prop_map(Step::Wait),
        2 => (0_usize..2).prop_map(Step::Quota),
        2 => any::<Index>().prop_map(Step::Refund),
        1 => Just(Step::Reset),
    ]
}

struct Bucket<'a> {
    runtime: &'a tokio::runtime::Runtime,
    connection: &'a mut Connection,
    key: Vec<u8>,
    quota: Quota,
    now_us: u64,
}

impl Bucket<'_> {
    fn charge(&mut self, units: u32) -> (Decision, Option<Charged>) {
        let part: Part = part(&self.key, self.quota, units);
        let parts = std::slice::from_ref(&part);
        let reply = self.runtime.block_on(gcra::charge_with_refunds_at(self.connection, parts, self.now_us)).unwrap();
        let charged = Charged::of(&part, reply.state(0).unwrap(), reply.history(0).unwrap(), self.now_us);
        (part.decision(reply.state(0).unwrap()), charged)
    }

    fn usage(&mut self) -> Decision {
        let full_in = full_in_at(self.connection, &self.key, self.quota, self.now_us);
        let owed_ns = self.runtime.block_on(full_in);
        part(&self.key, self.quota, 0).decision(State { fits: true, owed_ns })
    }
}

/// After any charges, waits, changes of the quota, refunds and resets.
#[test]
fn usage_in_redis_is_what_is_admitted_next() {
    let Some((runtime, mut connection)) = redis("usage_in_redis_is_what_is_admitted_next") else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let connection = std::cell::RefCell::new(&mut connection);
    let changes = (quotas(), quotas(), prop::collection::vec(step(), 1..25), any::<bool>());
    runner
        .run(&changes, |(quota, other, steps, waits_until_full)| {
            let mut connection = connection.borrow_mut();
            let mut bucket =
                Bucket { runtime: &runtime, connection: &mut connection, key: key(), quota, now_us: START_US };
            let mut made = Vec::new();
            for step in steps {
                match step {
                    Step::Charge(units) => made.extend(bucket.charge(units).1),
                    Step::Wait(us) => bucket.now_us += us,
                    Step::Quota(which) => bucket.quota = [quota, other][which],
                    Step::Refund(which) if !made.is_empty() => {
                        let charged: Charged = made.swap_remove(which.index(made.len()));
                        runtime.block_on(refund::refund_at(bucket.connection, &charged, bucket.now_us)).unwrap();
                    }
                    Step::Refund(_) => {}
                    Step::Reset => {
                        remove(&runtime, bucket.connection, &bucket.key);
                        made.clear();
                    }
                }
            }
            let before = bucket.usage().full_in();
            prop_assert_eq!(bucket.usage().full_in(), before, "a look changes nothing");
            // A bucket is counted by the quota of its last charge. This one makes the current quota count, and charges nothing. The
            // script rounds the used units up: by microseconds, and by the precision of its numbers.
            bucket.charge(0);
            let (usage, burst) = (bucket.usage(), bucket.quota.burst());
            let rounding = std::time::Duration::from_micros(2) + before / (1 << 30);
            prop_assert!((before..=before + rounding).contains(&usage.full_in()), "{:?} {:?}", before, usage.full_in());
            let us = |time: std::time::Duration| u64::try_from(time.as_nanos().div_ceil(1_000)).unwrap();
            if waits_until_full {
                let full_in = us(usage.full_in());
                if full_in > 0 {
                    bucket.now_us += full_in - 1;
                    prop_assert!(bucket.usage().remaining() < burst);
                    bucket.now_us += 1;
                }
                prop_assert_eq!(bucket.usage().remaining(), burst);
                prop_assert!(bucket.charge(burst).0.is_admitted());
            } else {
                let mut admitted = 0;
                let rejected = loop {
                    let decision = bucket.charge(1).0;
                    if !decision.is_admitted() {
                        break decision;
                    }
                    admitted += 1;
                };
                prop_assert_eq!(usage.remaining(), admitted, "{:?}", bucket.quota);
                prop_assert_eq!(bucket.usage().remaining(), 0);
                let retry = us(rejected.retry_after().unwrap());
                bucket.now_us += retry - 1;
                prop_assert_eq!(bucket.usage().remaining(), 0);
                prop_assert!(!bucket.charge(1).0.is_admitted());
                bucket.now_us += 1;
                prop_assert!(bucket.usage().remaining() >= 1);
                prop_assert!(bucket.charge(1).0.is_admitted());
            }
            remove(&runtime, bucket.connection, &bucket.key);
            Ok(())
        })
        .unwrap();
}
