//! Checks of a Redis server for `tollgate doctor`. They change nothing.

use std::pin::pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redis::{Cmd, FromRedisValue, RedisError, RedisResult};

use super::node::{Endpoint, Node};
use super::server::{Kind, RedisServer};
use super::timeout::within;
use crate::finding::{Finding, with_sources};

/// The timeout of each command.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The round trip from which latency is a warning: a fifth of the default timeout of a charge.
const SLOW: Duration = Duration::from_millis(50);
const PINGS: usize = 5;
const MIN_VERSION: u32 = 6;

impl RedisServer {
    /// Checks the connection, the version, the role, the memory, the clock, the latency and the rights. Changes nothing.
    ///
    /// Each check is a finding. An error of the server is a finding as well. Of a cluster, only the first node is checked.
    #[doc(hidden)]
    pub async fn diagnose(&self) -> Vec<Finding> {
        const CHECK: &str = "redis";
        let connect = async {
            match &self.kind {
                Kind::Cluster(nodes) => Node::connect(&nodes[0]).await,
                Kind::Single(_) | Kind::Sentinel(_) => self.connect().await,
            }
        };
        let node = match within(self.connection_timeout, pin!(connect)).await {
            Some(Ok(node)) => node,
            Some(Err(error)) => return vec![failed(CHECK, &error)],
            None => return vec![Finding::error(CHECK, "connection timeout")],
        };
        let mut server = Server(node);
        let mut findings = server.info().await;
        if let Kind::Single(endpoint) = &self.kind {
            findings.push(tls(endpoint));
        }
        findings.extend([server.latency().await, server.clock().await, server.scripts().await]);
        findings
    }
}

fn tls(endpoint: &Endpoint) -> Finding {
    const CHECK: &str = "redis tls";
    match (endpoint.is_tls(), endpoint.is_local()) {
        (true, _) => Finding::ok(CHECK, "the connection is encrypted"),
        (false, true) => Finding::ok(CHECK, "the connection is not encrypted, and stays on this machine"),
        (false, false) => Finding::warning(
            CHECK,
            "the connection to another host is not encrypted: use `rediss://` instead of `redis://`",
        ),
    }
}

struct Server(Node);

impl Server {
    async fn query<T: FromRedisValue>(&mut self, words: &[&str]) -> RedisResult<T> {
        let mut command = Cmd::new();
        command.arg(words);
        let timed_out = || std::io::Error::from(std::io::ErrorKind::TimedOut).into();
        within(TIMEOUT, pin!(self.0.query(&command))).await.unwrap_or_else(|| Err(timed_out()))
    }

    async fn info(&mut self) -> Vec<Finding> {
        let info: String = match self.query(&["INFO"]).await {
            Ok(info) => info,
            Err(error) if is_not_permitted(&error) => {
                return vec![Finding::warning("redis", "the user may not run INFO, so the server was not checked")];
            }
            Err(error) => return vec![failed("redis", &error)],
        };
        vec![version(&info), role(&info), memory(&info)]
    }

    async fn latency(&mut self) -> Finding {
        const CHECK: &str = "redis latency";
        let mut times = Vec::with_capacity(PINGS);
        for _ in 0..PINGS {
            let began = Instant::now();
            if let Err(error) = self.query::<String>(&["PING"]).await {
                return failed(CHECK, &error);
            }
            times.push(began.elapsed());
        }
        times.sort_unstable();
        let median = times[PINGS / 2];
        let detail = format!("the median round trip takes {:.1} ms", median.as_secs_f64() * 1_000.0);
        match median {
            median if median >= SLOW => Finding::warning(
                CHECK,
                format!(
                    "{detail}, but a charge has a timeout of 250 ms by default: use a closer server, or leases that last more \
                     than twice as long"
                ),
            ),
            _ => Finding::ok(CHECK, detail),
        }
    }

    async fn clock(&mut self) -> Finding {
        const CHECK: &str = "redis clock";
        let before = SystemTime::now();
        match self.query::<(u64, u32)>(&["TIME"]).await {
            Ok((seconds, micros)) => {
                let server = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros.into());
                Finding::clock(CHECK, server, [before, SystemTime::now()])
            }
            Err(error) => failed(CHECK, &error),
        }
    }

    /// Checks whether scripts may be sent and called. Neither command runs or stores a script: no script has this hash, and the
    /// number of keys is invalid. Redis checks the rights of the user before.
    async fn scripts(&mut self) -> Finding {
        const CHECK: &str = "redis scripts";
        const NO_SCRIPT: &str = "0000000000000000000000000000000000000000";
        for command in [["EVALSHA", NO_SCRIPT, "0"], ["EVAL", "return 1", "-1"]] {
            match self.query::<redis::Value>(&command).await {
                Err(error) if is_not_permitted(&error) => {
                    return Finding::error(CHECK, format!("the user may not run {}: limits need it", command[0]));
                }
                Err(error) if error.is_io_error() => return failed(CHECK, &error),
                _ => {}
            }
        }
        Finding::ok(CHECK, "the user may run scripts")
    }
}

fn is_not_permitted(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

/// Returns the value of a field of `INFO`.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn version(info: &str) -> Finding {
    const CHECK: &str = "redis";
    // Valkey states the version of Redis with which it is compatible, and its own one.
    let (name, version) = match field(info, "valkey_version") {
        Some(version) => ("Valkey", version),
        None => ("Redis", field(info, "redis_version").unwrap_or_default()),
    };
    let version: String = version.chars().filter(|c| c.is_ascii_graphic()).collect();
    match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
        Some(major) if major >= MIN_VERSION => Finding::ok(CHECK, format!("{name} {version}")),
        Some(_) => Finding::error(CHECK, format!("{name} {version}: version {MIN_VERSION} or later is required")),
        None => Finding::warning(CHECK, "the server does not state its version"),
    }
}

fn role(info: &str) -> Finding {
    const CHECK: &str = "redis role";
    if field(info, "redis_mode") == Some("sentinel") {
        return Finding::error(CHECK, "the server is a Sentinel, which has no buckets: check a server of its set");
    }
    match field(info, "role") {
        Some("slave") => {
            Finding::error(CHECK, "the server is a replica, which cannot be charged: connect to the master")
        }
        _ => Finding::ok(CHECK, "the server is a master"),
    }
}

fn memory(info: &str) -> Finding {
    const CHECK: &str = "redis memory";
    match field(info, "maxmemory_policy") {
        Some("noeviction") => Finding::ok(CHECK, "the server evicts no buckets"),
        Some(policy) => {
            let policy: String = policy.chars().filter(|c| c.is_ascii_graphic()).collect();
            Finding::warning(
                CHECK,
                format!(
                    "the server may evict buckets (maxmemory-policy {policy}), which resets limits: set it to noeviction"
                ),
            )
        }
        None => Finding::warning(CHECK, "the server does not state its maxmemory-policy, which should be noeviction"),
    }
}

fn failed(check: &'static str, error: &RedisError) -> Finding {
    Finding::error(check, with_sources(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    #[test]
    fn fields_of_the_server_are_judged() {
        let valkey =
            "# Server\r\nredis_version:7.2.4\r\nvalkey_version:8.1.1\r\nrole:master\r\nmaxmemory_policy:noeviction\r\n";
        assert_eq!(version(valkey), Finding::ok("redis", "Valkey 8.1.1"));
        assert_eq!([role(valkey).severity, memory(valkey).severity], [Severity::Ok; 2]);
        let old = "redis_version:5.0.14\r\nrole:slave\r\nmaxmemory_policy:allkeys-lru\r\n";
        assert_eq!(version(old).detail, "Redis 5.0.14: version 6 or later is required");
        assert_eq!([version(old).severity, role(old).severity], [Severity::Error; 2]);
        assert_eq!(memory(old).severity, Severity::Warning);
        assert!(memory(old).detail.contains("allkeys-lru"));
        assert_eq!(role("redis_mode:sentinel\r\n").severity, Severity::Error);
        assert_eq!([version("").severity, memory("").severity], [Severity::Warning; 2]);
    }
}
