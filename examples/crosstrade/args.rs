//! The command line.

use std::net::{Ipv4Addr, SocketAddr};

use crate::errors::Errors;

pub(crate) const USAGE: &str = "usage: crosstrade [--listen ADDRESS:PORT] [--database URL] [--metrics ADDRESS:PORT] [--crosstrade-errors]

  --listen ADDRESS:PORT  where to listen, 127.0.0.1:8080 if not given; port 0 takes a free one
  --database URL         where the tokens are, sqlite://PATH or postgres://USER@HOST/NAME; a file beside the program if not given
  --metrics ADDRESS:PORT where to tell a Prometheus scraper what is counted, at /metrics; nowhere if not given. It asks nobody
                         who he is: an address that only the scraper reaches
  --crosstrade-errors    answer 429 by CrossTrade's {\"error\": \"Rate limit exceeded\"} instead of a problem document
  -h, --help             this text";

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
    /// `None` is nowhere.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) errors: Errors,
}

pub(crate) fn parse(args: &[String]) -> Result<Command, String> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let mut options = Options { listen, database: None, metrics: None, errors: Errors::Problem };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-h" | "--help" => return Ok(Command::Help),
            "--crosstrade-errors" => options.errors = Errors::CrossTrade,
            "--database" => options.database = Some(args.next().ok_or("`--database` needs a URL")?.clone()),
            "--listen" => options.listen = address(arg, args.next())?,
            "--metrics" => options.metrics = Some(address(arg, args.next())?),
            unknown => return Err(format!("unknown argument `{unknown}`")),
        }
    }
    Ok(Command::Serve(options))
}

fn address(arg: &str, given: Option<&String>) -> Result<SocketAddr, String> {
    let given = given.ok_or_else(|| format!("`{arg}` needs an address and a port"))?;
    given.parse().map_err(|_| format!("`{given}` is no address and port, such as 127.0.0.1:8080"))
}
