//! The command line, as it is written.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};
use tollgate::mint::Format;

use crate::show;

/// Tokens in a database: issue, list, show, rotate, revoke, purge.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Tokens and the grants they stand for
    #[command(subcommand)]
    Token(Verb),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Issue a grant with a new token, whose secret is written to standard output
    Issue(Issue),
    /// List grants, the oldest first
    List {
        #[command(flatten)]
        place: Place,
        /// Only those of this subject
        #[arg(long)]
        subject: Option<String>,
    },
    /// Show a grant
    Show {
        #[command(flatten)]
        place: Place,
        /// The grant's id
        id: String,
    },
    /// Give a grant a new token, whose secret is written to standard output
    Rotate {
        #[command(flatten)]
        place: Place,
        /// The grant's id
        id: String,
        /// For how long the old token works on, such as 1h, 30m or 0s; never longer than the grant
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        grace: Duration,
        /// What the new token begins with
        #[arg(long, default_value = "tg", value_parser = format)]
        prefix: Format,
    },
    /// Revoke a grant, or all grants of a subject, for ever
    #[command(group = ArgGroup::new("whom").required(true).args(["id", "subject"]))]
    Revoke {
        #[command(flatten)]
        place: Place,
        /// The grant's id
        id: Option<String>,
        /// All grants of this subject
        #[arg(long)]
        subject: Option<String>,
    },
    /// Delete grants that were revoked or have expired, and tokens whose grace is over
    Purge {
        #[command(flatten)]
        place: Place,
        /// Only what ended so long ago, such as 30d
        #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
        ended_before: Duration,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Issue {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Whose budget it draws on
    #[arg(long)]
    pub(crate) subject: String,
    /// Words for people
    #[arg(long, default_value = "")]
    pub(crate) label: String,
    /// What it allows; may be given several times
    #[arg(long = "scope", value_name = "SCOPE")]
    pub(crate) scopes: Vec<String>,
    /// A rate of its own: a number a second, minute, hour or day, such as 3/s, 180/min, 5000/h or 10000/day
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(crate) quota: Option<Rate>,
    /// How much may come at once; by default the number of the rate
    #[arg(long, requires = "quota")]
    pub(crate) burst: Option<u32>,
    /// After what time it expires, such as 90d or 12h
    #[arg(long, value_name = "TIME", value_parser = some_time)]
    pub(crate) expires: Option<Duration>,
    /// What the token begins with
    #[arg(long, default_value = "tg", value_parser = format)]
    pub(crate) prefix: Format,
}

/// Where the tables are, and how to say what is in them.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// sqlite://PATH or postgres://USER@HOST/DATABASE
    // Its value may have a password, and is shown nowhere.
    #[arg(long, value_name = "URL", env = "TOLLGATE_DATABASE", hide_env_values = true)]
    pub(crate) database: String,
    /// What the names of the tables begin with
    #[arg(long, value_name = "NAME", default_value = "tollgate_")]
    pub(crate) table_prefix: String,
    /// JSON in place of tables
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is said instead of running a command: what is wrong with the command line, or the help that was asked for.
#[derive(Debug)]
pub(crate) struct Usage {
    text: String,
    is_error: bool,
}

impl Usage {
    pub(crate) fn tell(self) -> ExitCode {
        if self.is_error {
            show::say(&self.text);
            return ExitCode::from(2);
        }
        match show::print(&self.text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        }
    }
}

/// Reads the command line.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Usage> {
    let args: Vec<OsString> = args.into_iter().collect();
    Cli::try_parse_from(&args).map_err(|error| {
        let mut text = error.render().to_string();
        // What is not understood is repeated in the message: it may be a URL with a password, or a token.
        for arg in args.iter().map(|arg| arg.to_string_lossy()) {
            let value = arg.split_once('=').map_or(&*arg, |(_, value)| value);
            for part in [&*arg, value] {
                if may_be_secret(part) {
                    text = text.replace(part, "(not shown)");
                }
            }
        }
        Usage { text, is_error: error.use_stderr() }
    })
}

/// A URL, or something as long as a token.
fn may_be_secret(arg: &str) -> bool {
    arg.contains("://") || (arg.len() >= SHORTEST_TOKEN && !arg.starts_with("--"))
}

/// What a format of 128 random bits with a prefix of one letter gives.
const SHORTEST_TOKEN: usize = 30;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) number: u32,
    pub(crate) period: Duration,
}

fn rate(text: &str) -> Result<Rate, String> {
    let wanted = || "a rate is written as a number a second, minute, hour or day, such as 180/min".to_owned();
    let (number, period) = text.split_once('/').ok_or_else(wanted)?;
    let seconds = match period.trim() {
        "s" | "sec" | "second" => 1,
        "m" | "min" | "minute" => 60,
        "h" | "hour" => 3_600,
        "d" | "day" => 86_400,
        _ => return Err(wanted()),
    };
    let number = number.trim().parse().map_err(|_| wanted())?;
    Ok(Rate { number, period: Duration::from_secs(seconds) })
}

fn some_time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it would have expired already".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(error.to_string()),
    }
}

fn format(prefix: &str) -> Result<Format, tollgate::mint::FormatError> {
    Format::new(prefix)
}
