//! The command line.

use std::net::{Ipv4Addr, SocketAddr};

use crate::errors::Errors;

pub(crate) const USAGE: &str = "usage: crosstrade [--listen ADDRESS:PORT] [--database URL] [--crosstrade-errors]

  --listen ADDRESS:PORT  where to listen, 127.0.0.1:8080 if not given; port 0 takes a free one
  --database URL         where the tokens are, sqlite://PATH or postgres://USER@HOST/NAME; a file beside the program if not given
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
    pub(crate) errors: Errors,
}

pub(crate) fn parse(args: &[String]) -> Result<Command, String> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let mut options = Options { listen, database: None, errors: Errors::Problem };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-h" | "--help" => return Ok(Command::Help),
            "--crosstrade-errors" => options.errors = Errors::CrossTrade,
            "--database" => options.database = Some(args.next().ok_or("`--database` needs a URL")?.clone()),
            "--listen" => {
                let listen = args.next().ok_or("`--listen` needs an address and a port")?;
                options.listen =
                    listen.parse().map_err(|_| format!("`{listen}` is no address and port, such as 127.0.0.1:8080"))?;
            }
            unknown => return Err(format!("unknown argument `{unknown}`")),
        }
    }
    Ok(Command::Serve(options))
}
