//! Refunds: the arguments of `refund.lua`.

use std::sync::LazyLock;

use redis::RedisResult;

use super::connect::Connection;
use super::gcra::{CLOCK, Part, Reply, State};
use super::script::Script;

/// A charge that can be refunded.
pub(super) struct Charged {
    key: Vec<u8>,
    interval_ns: u64,
    cost_ns: u64,
    /// When the bucket is full if no other charge is made, by Redis' clock.
    full_at_us: u64,
    full_at_ns: u64,
}

impl Charged {
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }
}

/// Returns the refundable charge of each bucket of an admitted charge.
pub(super) fn charged(parts: Vec<Part>, reply: &Reply) -> Vec<Charged> {
    let charged = |(part, state): (Part, &State)| {
        let interval_ns = part.policy.quota().interval_ns();
        // A dry run that does not fit was not charged.
        (state.fits && part.cost > 0).then(|| Charged {
            key: part.key,
            interval_ns,
            cost_ns: interval_ns * u64::from(part.cost),
            full_at_us: reply.now_us + state.owed_ns / 1_000,
            full_at_ns: state.owed_ns % 1_000,
        })
    };
    parts.into_iter().zip(&reply.states).filter_map(charged).collect()
}

/// Creates the script with this first line.
fn script(clock: &str) -> Script {
    Script::new(format!("{clock}\n{}", include_str!("refund.lua")))
}

/// Refunds the part of a charge that has not refilled yet.
pub(super) async fn refund(connection: &mut Connection, charged: &[Charged]) -> RedisResult<()> {
    static REFUND: LazyLock<Script> = LazyLock::new(|| script(CLOCK));
    run(&REFUND, connection, charged, Vec::new()).await
}

/// Refunds like [`refund`], at the given time in microseconds.
#[cfg(test)]
pub(super) async fn refund_at(connection: &mut Connection, charged: &[Charged], now_us: u64) -> RedisResult<()> {
    static AT: LazyLock<Script> = LazyLock::new(|| script(super::gcra::GIVEN_CLOCK));
    run(&AT, connection, charged, vec![now_us]).await
}

async fn run(script: &Script, connection: &mut Connection, charged: &[Charged], more: Vec<u64>) -> RedisResult<()> {
    let keys: Vec<_> = charged.iter().map(|of| &*of.key).collect();
    let args = |of: &Charged| [of.interval_ns, of.cost_ns / 1_000, of.cost_ns % 1_000, of.full_at_us, of.full_at_ns];
    let args: Vec<_> = charged.iter().flat_map(args).chain(more).collect();
    script.run(connection, &keys, &args).await
}
