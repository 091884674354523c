//! Lua scripts in Redis: sent once, then called by hash.

use redis::{Cmd, ErrorKind, FromRedisValue, RedisResult, ServerErrorKind};

use super::connect::Connection;

/// The first line of a script, which reads Redis' clock.
pub(super) const CLOCK: &str = "local t = redis.call('TIME') local now = t[1] * 1000000 + t[2]";

/// The first line of a script in tests, which takes the time from the last argument.
#[cfg(test)]
pub(super) const GIVEN_CLOCK: &str = "local now = tonumber(table.remove(ARGV))";

/// A Lua script. Redis runs a script atomically.
pub(super) struct Script(redis::Script, String);

impl Script {
    /// Creates a script with the functions of `bucket.lua`, and those of `history.lua` if charges can be refunded. Redis creates all
    /// functions of a script at each call.
    pub(super) fn new(clock: &str, has_refunds: bool, code: &str) -> Self {
        let functions = include_str!("bucket.lua");
        let for_refunds = if has_refunds { include_str!("history.lua") } else { "" };
        let code = format!("{clock}\nlocal has_refunds = {has_refunds}\n{functions}\n{for_refunds}\n{code}");
        Self(redis::Script::new(&code), code)
    }

    /// Runs the script on the server that has the keys. All keys must be in one slot.
    ///
    /// After `NOSCRIPT` the script is sent: this error means that nothing was executed.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        connection: &mut Connection,
        keys: &[&[u8]],
        args: &[u64],
    ) -> RedisResult<T> {
        let call = |name: &str, script: &str| {
            // One allocation for the arguments and one for their text, where a number usually has fewer than 16 digits.
            let size = script.len() + keys.iter().map(|key| key.len()).sum::<usize>() + 16 * (args.len() + 1);
            let mut call = Cmd::with_capacity(3 + keys.len() + args.len(), size);
            call.arg(name).arg(script).arg(keys.len()).arg(keys).arg(args);
            call
        };
        match connection.query(&call("EVALSHA", self.0.get_hash())).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                // Boxed like all rare steps, so that the future of a charge is smaller.
                Box::pin(connection.query(&call("EVAL", &self.1))).await
            }
            done => done,
        }
    }
}
