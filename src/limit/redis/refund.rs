//! Charges that are given back: what goes to `refund.lua`.

use std::sync::LazyLock;

use redis::RedisResult;

use super::connect::Open;
use super::gcra::{CLOCK, Part, Reply, State};
use super::script::Script;

/// A charge that was made, by which it can be given back.
pub(super) struct Charged {
    key: Vec<u8>,
    interval_ns: u64,
    cost_ns: u64,
    /// When the budget would be full again if nobody charged it meanwhile, by Redis' clock.
    full_at_us: u64,
    full_at_ns: u64,
}

impl Charged {
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }
}

/// What an admitted charge has cost.
pub(super) fn charged(parts: Vec<Part>, reply: &Reply) -> Vec<Charged> {
    let charged = |(part, state): (Part, &State)| {
        let interval_ns = part.policy.quota().interval_ns();
        // What does not fit and does not bind was not charged.
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

/// All but the clock is the same in tests.
fn script(clock: &str) -> Script {
    Script::new(format!("{clock}\n{}", include_str!("refund.lua")))
}

/// Gives back what is not yet paid off.
pub(super) async fn give_back(open: &mut Open, charged: &[Charged]) -> RedisResult<()> {
    static REFUND: LazyLock<Script> = LazyLock::new(|| script(CLOCK));
    run(&REFUND, open, charged, Vec::new()).await
}

/// The same at a time of one's own, in microseconds.
#[cfg(test)]
pub(super) async fn give_back_at(open: &mut Open, charged: &[Charged], now_us: u64) -> RedisResult<()> {
    static AT: LazyLock<Script> = LazyLock::new(|| script(super::gcra::GIVEN_CLOCK));
    run(&AT, open, charged, vec![now_us]).await
}

async fn run(script: &Script, open: &mut Open, charged: &[Charged], more: Vec<u64>) -> RedisResult<()> {
    let keys: Vec<_> = charged.iter().map(|of| &*of.key).collect();
    let args = |of: &Charged| [of.interval_ns, of.cost_ns / 1_000, of.cost_ns % 1_000, of.full_at_us, of.full_at_ns];
    let args: Vec<_> = charged.iter().flat_map(args).chain(more).collect();
    script.run(open, &keys, &args).await
}
