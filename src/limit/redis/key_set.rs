//! Buckets of keys that clients can choose, in sets of fixed size in Redis: the arguments of `key_set.lua`.

use std::sync::LazyLock;

use redis::RedisResult;

use super::connect::Connection;
use super::gcra::{Part, Reply};
#[cfg(test)]
use super::script::GIVEN_CLOCK;
use super::script::{CLOCK, Script};

fn script(clock: &str, has_refunds: bool) -> Script {
    Script::new(clock, has_refunds, include_str!("key_set.lua"))
}

/// Charges the key with this hash. `part` has the key of its set.
pub(super) async fn charge(
    connection: &mut Connection,
    part: &Part,
    hash: u64,
    has_refunds: bool,
) -> RedisResult<Reply> {
    static SCRIPTS: LazyLock<[Script; 2]> = LazyLock::new(|| [false, true].map(|refunds| script(CLOCK, refunds)));
    run(&SCRIPTS[usize::from(has_refunds)], connection, part, hash, None).await
}

/// Charges like [`charge`], with refunds and at the given time in microseconds.
#[cfg(test)]
pub(super) async fn charge_at(connection: &mut Connection, part: &Part, hash: u64, now_us: u64) -> RedisResult<Reply> {
    static AT: LazyLock<Script> = LazyLock::new(|| script(GIVEN_CLOCK, true));
    run(&AT, connection, part, hash, Some(now_us)).await
}

async fn run(
    script: &Script,
    connection: &mut Connection,
    part: &Part,
    hash: u64,
    now_us: Option<u64>,
) -> RedisResult<Reply> {
    let mut args = vec![0, hash];
    args.extend(part.charge_args());
    args.extend(now_us);
    Reply::read(script.run(connection, &[&part.key], &args).await?, 1)
}

/// Runs a refund with the arguments of `refund` in `history.lua`, and before them the interval.
pub(super) async fn refund(connection: &mut Connection, key: &[u8], hash: u64, refund: &[u64]) -> RedisResult<()> {
    static REFUND: LazyLock<Script> = LazyLock::new(|| script(CLOCK, true));
    REFUND.run(connection, &[key], &[&[1, hash], refund].concat()).await
}

/// Refunds like [`refund`], at the given time in microseconds.
#[cfg(test)]
pub(super) async fn refund_at(
    connection: &mut Connection,
    key: &[u8],
    hash: u64,
    refund: &[u64],
    now_us: u64,
) -> RedisResult<()> {
    static AT: LazyLock<Script> = LazyLock::new(|| script(GIVEN_CLOCK, true));
    AT.run(connection, &[key], &[&[1, hash], refund, &[now_us]].concat()).await
}
