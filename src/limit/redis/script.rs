//! A script on Redis: sent once, called by its hash from then on.

use redis::{Cmd, ErrorKind, FromRedisValue, RedisResult, ServerErrorKind};

use super::connect::Open;

/// A Lua script, which runs as one step: nothing else is done meanwhile.
pub(super) struct Script(redis::Script, String);

impl Script {
    pub(super) fn new(code: String) -> Self {
        Self(redis::Script::new(&code), code)
    }

    /// Runs it on the server that has the keys, which must be in one slot. `NOSCRIPT` means that nothing was done, so
    /// that the same may be sent again, this time with the script.
    pub(super) async fn run<T: FromRedisValue>(&self, open: &mut Open, keys: &[&[u8]], args: &[u64]) -> RedisResult<T> {
        let call = |name: &str, script: &str| {
            let mut call = Cmd::new();
            call.arg(name).arg(script).arg(keys.len()).arg(keys).arg(args);
            call
        };
        match open.query(&call("EVALSHA", self.0.get_hash())).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                open.query(&call("EVAL", &self.1)).await
            }
            done => done,
        }
    }
}
