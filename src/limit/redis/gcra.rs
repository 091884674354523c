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
use crate::decision::{Decision, Policy, Verdict};
use crate::limit::described;

/// One of the budgets that a charge is paid from.
#[derive(Clone)]
pub(super) struct Part {
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

static GCRA: LazyLock<Script> =
    LazyLock::new(|| script("local t = redis.call('TIME') local now = t[1] * 1000000 + t[2]"));

/// All but the clock is the same in tests.
fn script(now: &str) -> Script {
    Script::new(format!("{now}\n{}", include_str!("gcra.lua")))
}

/// Charges all parts, or none.
pub(super) async fn charge(open: &mut Open, parts: &[Part]) -> RedisResult<Vec<State>> {
    let bought = run(&GCRA, open, parts, &[], None).await?;
    Ok(bought.into_iter().map(|bought| bought.state).collect())
}

/// Charges all parts, or none; if it did, it buys cells ahead, an order a part.
pub(super) async fn buy(open: &mut Open, parts: &[Part], orders: &[Order]) -> RedisResult<Vec<Bought>> {
    run(&GCRA, open, parts, orders, None).await
}

/// A state, with what was bought ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bought {
    pub(super) state: State,
    pub(super) cells: u32,
}

#[cfg(test)]
static AT: LazyLock<Script> = LazyLock::new(|| script("local now = tonumber(table.remove(ARGV))"));

/// The same at a time of one's own, in microseconds.
#[cfg(test)]
pub(super) async fn charge_at(open: &mut Open, parts: &[Part], now_us: u64) -> RedisResult<Vec<State>> {
    let bought = buy_at(open, parts, &[], now_us).await?;
    Ok(bought.into_iter().map(|bought| bought.state).collect())
}

/// The same at a time of one's own, in microseconds.
#[cfg(test)]
pub(super) async fn buy_at(open: &mut Open, parts: &[Part], orders: &[Order], now_us: u64) -> RedisResult<Vec<Bought>> {
    run(&AT, open, parts, orders, Some(now_us)).await
}

async fn run(
    script: &Script,
    open: &mut Open,
    parts: &[Part],
    orders: &[Order],
    now_us: Option<u64>,
) -> RedisResult<Vec<Bought>> {
    let keys: Vec<_> = parts.iter().map(|part| part.key.clone()).collect();
    let mut args: Vec<_> = parts.iter().flat_map(Part::args).collect();
    args.extend(parts.iter().zip(orders).flat_map(|(part, order)| order_args(part, *order)));
    args.extend(now_us.map(text));
    let numbers: Vec<u64> = script.run(open, &keys, &args).await?;
    if numbers.len() != 3 * parts.len() {
        return Err((redis::ErrorKind::UnexpectedReturnType, "the script answers for other budgets").into());
    }
    let bought = |of: &[u64]| Bought {
        state: State { fits: of[0] > 0, owed_ns: of[1].saturating_mul(1_000).saturating_add(of[2]) },
        cells: u32::try_from(of[0].saturating_sub(1)).unwrap_or(u32::MAX),
    };
    Ok(numbers.chunks_exact(3).map(bought).collect())
}

/// Four arguments of the script.
fn order_args(part: &Part, order: Order) -> [Vec<u8>; 4] {
    let interval_ns = part.policy.quota().interval_ns();
    [order.hold_ns.div_ceil(1_000), order.cells.into(), interval_ns / 1_000, interval_ns % 1_000].map(text)
}

fn text(number: u64) -> Vec<u8> {
    itoa::Buffer::new().format(number).into()
}

impl Part {
    /// Seven arguments of the script.
    fn args(&self) -> [Vec<u8>; 7] {
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
        .map(text)
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
        described(self.policy.clone(), verdict, state.owed_ns)
    }
}
