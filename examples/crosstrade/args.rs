//! The command line.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;

use crate::errors::Errors;
use crate::replicas::Replicas;

/// The environment variable with the secret that hides subjects from readers of Redis.
pub(crate) const SECRET: &str = "CROSSTRADE_SECRET";

pub(crate) const USAGE: &str = "usage: crosstrade [--listen ADDRESS:PORT] [--database URL] [--redis URL --replicas N [--leases]] [--metrics ADDRESS:PORT] [--crosstrade-errors] [--self-service]

  --listen ADDRESS:PORT  the address to serve on; default: 127.0.0.1:8080; port 0 selects a free port
  --database URL         database of the tokens, sqlite://PATH or postgres://USER@HOST/NAME; sqlite://PATH?mode=rwc creates a
                         missing file; default: a file beside the program
  --redis URL            the Redis of the rate limits, redis://HOST:PORT, for several services that share a database; default: in
                         memory. CROSSTRADE_SECRET, the same for all services, hides users from readers of Redis
  --replicas N           the number of services; during an outage of Redis each admits its share
  --leases               reserve units in Redis ahead, so that most requests need no round trip
  --metrics ADDRESS:PORT serve metrics for Prometheus at /metrics; default: no metrics. Without authentication: use an address that
                         only the scraper can reach
  --crosstrade-errors    use CrossTrade's {\"error\": \"Rate limit exceeded\"} for 429 instead of a problem document
  --self-service         users may replace their token on the account page; default: only support may
  -h, --help             print this text

environment:
  CROSSTRADE_SECRET        hides users from readers of Redis; the same for all replicas
  CROSSTRADE_SEALING_KEYS  the keys of the tokens that can be revealed, ID:KEY separated by commas; default: a file beside a SQLite
                           database; `tollgate token sealing-key` makes a key
  CROSSTRADE_PASSWORD      the password of the users demo, guest and support; default: a new one at each start

limits:
  connections            three quarters of the open files that the process may have (ulimit -n), a quarter of these for one
                         address; 503 beyond
  request                10 s for the head (16 KiB, 64 fields), 5 s for the body (64 KiB; 2 s for alerts), 10 s to read the response
  log                    64 lines of each token and kind in 10 s, 512 bytes of an alert
  SIGTERM, ctrl-c        10 s for requests and WebSockets to end, 2 s for idle connections";

#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    Serve(Options),
    Help,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) listen: SocketAddr,
    /// `None` selects a file beside the program.
    pub(crate) database: Option<String>,
    /// `None` selects limits in memory.
    pub(crate) replicas: Option<Replicas>,
    /// `None` serves no metrics.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) errors: Errors,
    /// Whether users may replace their token themselves.
    pub(crate) self_service: bool,
}

pub(crate) fn parse(args: &[String]) -> Result<Command, String> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let errors = Errors::ProblemDetails;
    let mut options = Options { listen, database: None, replicas: None, metrics: None, errors, self_service: false };
    let (mut redis, mut count, mut leases) = (None, None, false);
    // No error repeats an argument: a mistyped URL may contain a password.
    let total = args.len();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-h" | "--help" => return Ok(Command::Help),
            "--crosstrade-errors" => options.errors = Errors::CrossTrade,
            "--self-service" => options.self_service = true,
            "--database" => options.database = Some(args.next().ok_or("`--database` needs a URL")?.clone()),
            "--redis" => redis = Some(args.next().ok_or("`--redis` needs a URL")?.clone()),
            "--leases" => leases = true,
            "--replicas" => count = Some(number(args.next())?),
            "--listen" => options.listen = address(arg, args.next())?,
            "--metrics" => options.metrics = Some(address(arg, args.next())?),
            _ => return Err(format!("argument {} is unknown", total - args.len())),
        }
    }
    options.replicas = match (redis, count) {
        (None, None) if !leases => None,
        (Some(redis), Some(count)) => Some(Replicas { redis, count, leases }),
        (None, None) => return Err("`--leases` needs `--redis`".to_owned()),
        _ => return Err("`--redis` and `--replicas` go together".to_owned()),
    };
    Ok(Command::Serve(options))
}

fn number(given: Option<&String>) -> Result<NonZeroU32, String> {
    let number = given.and_then(|given| given.parse().ok());
    number.ok_or_else(|| "`--replicas` needs a number from 1 on".to_owned())
}

fn address(arg: &str, given: Option<&String>) -> Result<SocketAddr, String> {
    let address = given.and_then(|given| given.parse().ok());
    address.ok_or_else(|| format!("`{arg}` needs an address and a port, such as 127.0.0.1:8080"))
}
