//! The generic cell rate algorithm on Redis, by Redis' clock: what goes to `gcra.lua`, and what comes back.
//!
//! # Rules
//!
//! 1. A charge of several budgets is made as a whole or not at all.
//! 2. At times of whole microseconds, which Redis' clock tells, decisions are governor's, to the nanosecond.
//! 3. When the quota of a budget changes, what is owed is carried, counted in cells and rounded up to microseconds.
//! 4. Every key ends when its budget is full again.

use std::sync::LazyLock;

use redis::RedisResult;

use super::connect::Open;
use super::lease::Order;
use super::script::Script;
use crate::limit::state::decision_without_wait;
use crate::quota::decision::{Decision, Verdict};
use crate::quota::policy::Policy;

/// One of the budgets that a charge is paid from.
#[derive(Clone)]
pub(super) struct Part {
    /// Which of the limiter's policies it is.
    pub(super) at: usize,
    pub(super) key: Vec<u8>,
    pub(super) policy: Policy,
    pub(super) cost: u32,
    /// Whether the others are not charged if this one refuses.
    pub(super) binds: bool,
}

/// What Redis says of a budget, or what is remembered of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) fits: bool,
    /// The time until the budget is full.
    pub(super) owed_ns: u64,
}

/// What Redis says of a charge.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) states: Vec<State>,
    /// The cells that were bought ahead, if there were orders.
    pub(super) ahead: Vec<u32>,
    /// When, by its clock, in microseconds since 1970.
    pub(super) now_us: u64,
}

/// The first line of a script.
pub(super) const CLOCK: &str = "local t = redis.call('TIME') local now = t[1] * 1000000 + t[2]";

/// The same in tests, by the last argument.
#[cfg(test)]
pub(super) const GIVEN_CLOCK: &str = "local now = tonumber(table.remove(ARGV))";

/// All but the clock is the same in tests.
fn script(clock: &str) -> Script {
    Script::new(format!("{clock}\n{}", include_str!("gcra.lua")))
}

/// Charges all parts, or none. If it did, it buys cells ahead, by an order a part; none if there are no orders.
pub(super) async fn charge(open: &mut Open, parts: &[Part], orders: &[Order]) -> RedisResult<Reply> {
    static GCRA: LazyLock<Script> = LazyLock::new(|| script(CLOCK));
    run(&GCRA, open, parts, orders, None).await
}

/// The same at a time of one's own, in microseconds.
#[cfg(test)]
pub(super) async fn charge_at(open: &mut Open, parts: &[Part], orders: &[Order], now_us: u64) -> RedisResult<Reply> {
    static AT: LazyLock<Script> = LazyLock::new(|| script(GIVEN_CLOCK));
    run(&AT, open, parts, orders, Some(now_us)).await
}

async fn run(
    script: &Script,
    open: &mut Open,
    parts: &[Part],
    orders: &[Order],
    now_us: Option<u64>,
) -> RedisResult<Reply> {
    let keys: Vec<_> = parts.iter().map(|part| &*part.key).collect();
    let mut args: Vec<_> = parts.iter().flat_map(Part::args).collect();
    args.extend(parts.iter().zip(orders).flat_map(|(part, order)| part.order_args(*order)));
    args.extend(now_us);
    let mut numbers: Vec<u64> = script.run(open, &keys, &args).await?;
    let now_us = numbers.pop().unwrap_or_default();
    if numbers.len() != 3 * parts.len() {
        return Err((redis::ErrorKind::UnexpectedReturnType, "the script answers for other budgets").into());
    }
    let state = |of: &[u64]| State { fits: of[0] > 0, owed_ns: of[1].saturating_mul(1_000).saturating_add(of[2]) };
    let ahead = |of: &[u64]| u32::try_from(of[0].saturating_sub(1)).unwrap_or(u32::MAX);
    let budgets = numbers.chunks_exact(3);
    let states = budgets.clone().map(state).collect();
    let ahead = if orders.is_empty() { Vec::new() } else { budgets.map(ahead).collect() };
    Ok(Reply { states, ahead, now_us })
}

impl Part {
    /// Seven arguments of the script.
    fn args(&self) -> [u64; 7] {
        let quota = self.policy.quota();
        let is_above = self.cost > quota.burst();
        // What is above the burst fits never, whatever it costs; what is not is below 2^62.
        let cost_ns = if is_above { 0 } else { quota.interval_ns() * u64::from(self.cost) };
        [
            u64::from(self.binds),
            quota.interval_ns(),
            quota.span_ns() / 1_000,
            quota.span_ns() % 1_000,
            cost_ns / 1_000,
            cost_ns % 1_000,
            u64::from(is_above),
        ]
    }

    /// Four arguments of the script.
    fn order_args(&self, order: Order) -> [u64; 4] {
        let interval_ns = self.policy.quota().interval_ns();
        [order.cells.into(), order.hold_ns.div_ceil(1_000), interval_ns / 1_000, interval_ns % 1_000]
    }

    /// Whether the charge fits where at least so much is owed.
    pub(super) fn fits(&self, owed_ns: u64) -> bool {
        let quota = self.policy.quota();
        self.cost == 0
            || (self.cost <= quota.burst()
                && owed_ns.saturating_add(quota.interval_ns() * u64::from(self.cost)) <= quota.span_ns())
    }

    /// A state in words.
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
        decision_without_wait(self.policy.clone(), verdict, state.owed_ns)
    }
}
