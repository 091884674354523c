//! The command line.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;

use crate::errors::Errors;
use crate::replicas::Replicas;

/// The environment variable of what keeps users out of Redis.
pub(crate) const SECRET: &str = "CROSSTRADE_SECRET";

pub(crate) const USAGE: &str = "usage: crosstrade [--listen ADDRESS:PORT] [--database URL] [--redis URL --replicas N [--leases]] [--metrics ADDRESS:PORT] [--crosstrade-errors]

  --listen ADDRESS:PORT  where to listen, 127.0.0.1:8080 if not given; port 0 takes a free one
  --database URL         database of the tokens, sqlite://PATH or postgres://USER@HOST/NAME; sqlite://PATH?mode=rwc creates a
                         missing file; default: a file beside the program
  --redis URL            where budgets are counted, redis://HOST:PORT, by several services that share a database; in memory if not
                         given. The environment variable CROSSTRADE_SECRET, the same for all, keeps users out of it
  --replicas N           how many services there are: what each may admit while Redis is away
  --leases               buy from Redis ahead, so that most requests need not ask it
  --metrics ADDRESS:PORT where to tell a Prometheus scraper what is counted, at /metrics; nowhere if not given. It asks nobody
                         who he is: an address that only the scraper reaches
  --crosstrade-errors    answer 429 by CrossTrade's {\"error\": \"Rate limit exceeded\"} instead of a problem document
  -h, --help             this text

limits:
  connections            three quarters of the open files that the process may have (ulimit -n), a quarter of these for one
                         address; 503 beyond
  request                10 s for the head (16 KiB, 64 fields), 5 s for the body (64 KiB; 2 s for alerts), 10 s to read the answer
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
    /// `None` is a file beside the program.
    pub(crate) database: Option<String>,
    /// `None` is this service alone.
    pub(crate) replicas: Option<Replicas>,
    /// `None` is nowhere.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) errors: Errors,
}

pub(crate) fn parse(args: &[String]) -> Result<Command, String> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let mut options = Options { listen, database: None, replicas: None, metrics: None, errors: Errors::ProblemDetails };
    let (mut redis, mut count, mut leases) = (None, None, false);
    // No error repeats an argument: a mistyped URL may contain a password.
    let total = args.len();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-h" | "--help" => return Ok(Command::Help),
            "--crosstrade-errors" => options.errors = Errors::CrossTrade,
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
