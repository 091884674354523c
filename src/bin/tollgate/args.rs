//! The command line, as it is written.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgGroup, Args, Parser, Subcommand};
use tollgate::mint::{FormatError, TokenFormat};

use crate::show;

const AFTER_HELP: &str = "\
No command but `migrate` creates a file or tables. Exit codes: 0 for success, 1 if the command failed, 2 for a wrong command line.";

/// Manages API tokens in a database.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, arg_required_else_help = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Create the tables, or upgrade them to this version; a missing SQLite file is created
    Migrate(Tables),
    /// Issue, list, show, rotate, revoke and purge tokens
    #[command(subcommand)]
    Token(Verb),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Issue a grant with a new token, which is written to standard output
    Issue(Issue),
    /// List grants, oldest first
    List {
        #[command(flatten)]
        place: Place,
        /// List only the grants of this subject
        #[arg(long)]
        subject: Option<String>,
    },
    /// Show a grant
    Show {
        #[command(flatten)]
        place: Place,
        /// Id of the grant
        id: String,
    },
    /// Give a grant a new token, which is written to standard output
    Rotate {
        #[command(flatten)]
        place: Place,
        /// Id of the grant
        id: String,
        /// How long the old token remains valid, such as 1h, 30m or 0s; never longer than the grant
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time)]
        grace: Duration,
        /// Prefix of the new token; default: the prefix of the old token
        #[arg(long, value_parser = format)]
        prefix: Option<TokenFormat>,
    },
    /// Revoke a grant, or all grants of a subject, permanently
    #[command(group = ArgGroup::new("whom").required(true).args(["id", "subject"]))]
    Revoke {
        #[command(flatten)]
        place: Place,
        /// Id of the grant
        id: Option<String>,
        /// Revoke all grants of this subject
        #[arg(long)]
        subject: Option<String>,
    },
    /// Delete grants that were revoked or have expired, and tokens whose grace period is over
    Purge {
        #[command(flatten)]
        place: Place,
        /// Delete only what ended at least this long ago, such as 30d
        #[arg(long, value_name = "TIME", default_value = "0s", value_parser = age)]
        ended_before: Duration,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Issue {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Subject of the grant; all grants of a subject share one rate limit
    #[arg(long)]
    pub(crate) subject: String,
    /// Description for people
    #[arg(long, default_value = "")]
    pub(crate) label: String,
    /// Scope of the grant; may be given several times
    #[arg(long = "scope", value_name = "SCOPE")]
    pub(crate) scopes: Vec<String>,
    /// Rate limit in place of the default: a number per second, minute, hour or day, such as 3/s, 180/min, 5000/h or 10000/day
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(crate) quota: Option<Rate>,
    /// Number of requests that are admitted at the same time; default: the number of the rate
    #[arg(long, requires = "quota", value_parser = burst)]
    pub(crate) burst: Option<u32>,
    /// Time after which the grant expires, such as 90d or 12h
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    pub(crate) expires: Option<Duration>,
    /// Prefix of the token
    #[arg(long, env = PREFIX, hide_env_values = true, default_value = DEFAULT_PREFIX, value_parser = format)]
    pub(crate) prefix: TokenFormat,
}

/// The environment variable of the default prefix.
const PREFIX: &str = "TOLLGATE_PREFIX";
const DEFAULT_PREFIX: &str = "tg";

/// Where the tables are.
#[derive(Args, Debug)]
pub(crate) struct Tables {
    /// sqlite://PATH or postgres://USER@HOST/DATABASE
    // The value may contain a password, and is never shown.
    #[arg(long, value_name = "URL", env = "TOLLGATE_DATABASE", hide_env_values = true)]
    pub(crate) database: String,
    /// Prefix of the names of the tables
    #[arg(long, value_name = "NAME", default_value = "tollgate_")]
    pub(crate) table_prefix: String,
}

/// Where the tables are, and how results are written.
#[derive(Args, Debug)]
pub(crate) struct Place {
    #[command(flatten)]
    pub(crate) tables: Tables,
    /// Write JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// The text that is written instead of running a command: what is wrong with the command line, or help.
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
    Cli::try_parse_from(args).map_err(|mut error| {
        hide_arguments(&mut error);
        Usage { text: error.render().to_string(), is_error: error.use_stderr() }
    })
}

/// Removes from an error what was typed: it may be a URL with a password, or a token. What remains are names from this file.
fn hide_arguments(error: &mut clap::Error) {
    let typed: &[ContextKind] = match error.kind() {
        ErrorKind::UnknownArgument => &[ContextKind::InvalidArg],
        ErrorKind::InvalidSubcommand => &[ContextKind::InvalidSubcommand],
        _ => &[ContextKind::InvalidValue],
    };
    for kind in typed {
        // An empty value stands for a missing one.
        if matches!(error.get(*kind), Some(ContextValue::String(typed)) if !typed.is_empty()) {
            error.insert(*kind, ContextValue::String("(not shown)".to_owned()));
        }
    }
    // Such as "to pass 'X' as a value, use '-- X'".
    error.remove(ContextKind::Suggested);
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) number: u32,
    pub(crate) period: Duration,
}

// The errors of the following parsers do not repeat the text that is parsed.

fn rate(text: &str) -> Result<Rate, &'static str> {
    const FORM: &str = "a rate is a number per second, minute, hour or day, such as 180/min";
    let (number, period) = text.split_once('/').ok_or(FORM)?;
    let seconds = match period.trim() {
        "s" | "sec" | "second" => 1,
        "m" | "min" | "minute" => 60,
        "h" | "hour" => 3_600,
        "d" | "day" => 86_400,
        _ => return Err(FORM),
    };
    let number = number.trim();
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(FORM);
    }
    // A quota counts whole nanoseconds from one request to the next.
    match number.parse() {
        Ok(number @ 1..) if u64::from(number) <= seconds * 1_000_000_000 => {
            Ok(Rate { number, period: Duration::from_secs(seconds) })
        }
        _ => Err("the number of a rate is at least 1 and at most 4294967295, and 1000000000 per second"),
    }
}

fn burst(text: &str) -> Result<u32, &'static str> {
    match text.parse() {
        Ok(burst @ 1..) => Ok(burst),
        _ => Err("a burst is a number from 1 to 4294967295"),
    }
}

/// A time from now on. Dates end with the year 9999: the format of RFC 3339 has no later ones.
fn time(text: &str) -> Result<Duration, &'static str> {
    const TOO_LONG: &str = "the time is too long: dates end with the year 9999";
    let time = match humantime::parse_duration(text) {
        Ok(time) => time,
        Err(humantime::DurationError::NumberOverflow) => return Err(TOO_LONG),
        Err(_) => return Err("a time is a number with a unit, such as 90d, 12h, 30m or 0s"),
    };
    match SystemTime::now().checked_add(time) {
        Some(end) if end <= show::last_date() => Ok(time),
        _ => Err(TOO_LONG),
    }
}

/// A time after which a grant expires, which the tables keep in milliseconds.
fn lifetime(text: &str) -> Result<Duration, &'static str> {
    match time(text)? {
        time if time < Duration::from_millis(1) => Err("the grant would have expired already"),
        time => Ok(time),
    }
}

/// A time until now.
fn age(text: &str) -> Result<Duration, &'static str> {
    let age = time(text)?;
    match SystemTime::now().checked_sub(age) {
        Some(begin) if begin >= SystemTime::UNIX_EPOCH => Ok(age),
        _ => Err("the time is too long: dates begin with the year 1970"),
    }
}

fn format(prefix: &str) -> Result<TokenFormat, FormatError> {
    TokenFormat::new(prefix)
}

/// The format of tokens without a known prefix.
pub(crate) fn default_format() -> Result<TokenFormat, FormatError> {
    format(&std::env::var(PREFIX).unwrap_or_else(|_| DEFAULT_PREFIX.to_owned()))
}
