//! Refunds: the arguments of `refund.lua`.

use std::sync::LazyLock;

use redis::RedisResult;

use super::connect::Connection;
use super::gcra::{History, Part, State};
use super::key_set;
#[cfg(test)]
use super::script::GIVEN_CLOCK;
use super::script::{CLOCK, Script};

/// A charge that can be refunded.
pub(super) struct Charged {
    key: Vec<u8>,
    /// The hash of the key of one bucket in a set of buckets.
    hash: Option<u64>,
    interval_ns: u64,
    charged_ns: u64,
    /// The time at which the bucket is full if no other charge is made, by Redis' clock.
    full_at_us: u64,
    full_at_ns: u64,
    history: History,
}

impl Charged {
    /// Returns the charge of a bucket, or `None` if nothing was charged. `now_us` is the time of the charge by Redis' clock.
    pub(super) fn of(part: &Part, state: State, history: History, now_us: u64) -> Option<Self> {
        // A dry run that does not fit was not charged.
        (state.fits && part.cost > 0).then(|| Self {
            key: part.key.clone(),
            hash: None,
            interval_ns: part.policy.quota().interval_ns(),
            charged_ns: part.charged_ns(),
            full_at_us: now_us + state.owed_ns / 1_000,
            full_at_ns: state.owed_ns % 1_000,
            history,
        })
    }

    /// Sets the hash of the key of a bucket in a set.
    pub(super) fn in_set(self, hash: Option<u64>) -> Self {
        Self { hash, ..self }
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    /// Returns the interval, and the arguments of `refund` in `history.lua`.
    fn args(&self) -> [u64; 8] {
        let [created, refunded_us, refunded_ns] = self.history;
        let (charged_us, charged_ns) = (self.charged_ns / 1_000, self.charged_ns % 1_000);
        let full_at = (self.full_at_us, self.full_at_ns);
        [self.interval_ns, charged_us, charged_ns, full_at.0, full_at.1, created, refunded_us, refunded_ns]
    }
}

fn script(clock: &str) -> Script {
    Script::new(clock, true, include_str!("refund.lua"))
}

/// Refunds the part of a charge that the bucket has not regained yet.
pub(super) async fn refund(connection: &mut Connection, charged: &Charged) -> RedisResult<()> {
    static REFUND: LazyLock<Script> = LazyLock::new(|| script(CLOCK));
    match charged.hash {
        Some(hash) => key_set::refund(connection, &charged.key, hash, &charged.args()).await,
        None => REFUND.run(connection, &[&charged.key], &charged.args()).await,
    }
}

/// Refunds like [`refund`], at the given time in microseconds.
#[cfg(test)]
pub(super) async fn refund_at(connection: &mut Connection, charged: &Charged, now_us: u64) -> RedisResult<()> {
    static AT: LazyLock<Script> = LazyLock::new(|| script(GIVEN_CLOCK));
    match charged.hash {
        Some(hash) => key_set::refund_at(connection, &charged.key, hash, &charged.args(), now_us).await,
        None => AT.run(connection, &[&charged.key], &[&charged.args()[..], &[now_us]].concat()).await,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::limit::redis::tests::part;
    use crate::quota::Quota;

    #[test]
    fn only_charged_units_can_be_refunded() {
        let of = |cost, fits| {
            let part = part(b"a key", Quota::per_second(10), cost);
            Charged::of(&part, State { fits, owed_ns: 0 }, [1, 2, 3], 4)
        };
        assert_eq!(of(1, true).unwrap().key(), b"a key");
        assert!(of(0, true).is_none() && of(1, false).is_none());
    }
}
