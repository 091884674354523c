//! Charges that are given back: what goes to `refund.lua`.

use std::sync::LazyLock;

use redis::RedisResult;

use super::connect::Open;
use super::gcra::{CLOCK, Part, Reply};
use super::script::{Script, number};

/// A charge that was made, by which it can be given back.
pub(super) struct Charged {
    key: Vec<u8>,
    interval_ns: u64,
    cost_ns: u64,
    /// When the budget would be full again if nobody charged it meanwhile, by Redis' clock.
    full_at_us: u64,
    full_at_ns: u64,
}

/// What an admitted charge has cost.
pub(super) fn charged(parts: Vec<Part>, reply: &Reply) -> Vec<Charged> {
    let charged = |(part, state): (Part, &super::gcra::State)| {
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

/// Gives back what is still owed.
pub(super) async fn give_back(open: &mut Open, charged: &[Charged]) -> RedisResult<()> {
    static REFUND: LazyLock<Script> = LazyLock::new(|| Script::new(format!("{CLOCK}\n{}", include_str!("refund.lua"))));

    let keys: Vec<_> = charged.iter().map(|of| of.key.clone()).collect();
    let args = |of: &Charged| {
        [of.interval_ns, of.cost_ns / 1_000, of.cost_ns % 1_000, of.full_at_us, of.full_at_ns].map(number)
    };
    REFUND.run(open, &keys, &charged.iter().flat_map(args).collect::<Vec<_>>()).await
}
