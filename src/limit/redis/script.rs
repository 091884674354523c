//! Lua scripts in Redis: sent once, then called by hash.

use redis::{Cmd, ErrorKind, FromRedisValue, RedisResult, ServerErrorKind};

use super::connect::Connection;

/// A Lua script. Redis runs a script atomically.
pub(super) struct Script(redis::Script, String);

impl Script {
    pub(super) fn new(code: String) -> Self {
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
            let mut call = Cmd::new();
            call.arg(name).arg(script).arg(keys.len()).arg(keys).arg(args);
            call
        };
        match connection.query(&call("EVALSHA", self.0.get_hash())).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                connection.query(&call("EVAL", &self.1)).await
            }
            done => done,
        }
    }
}
