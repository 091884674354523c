//! The arguments of the command line and their parsers.

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use serde_json::value::RawValue;
use tollgate::Quota;
use tollgate::mint::TokenFormat;
use tollgate::store::sql::{Cursor, GrantQuery, GrantState};

use crate::audit;
use crate::check;
use crate::doctor;
use crate::export::Export;
use crate::failure::Failure;
use crate::generate;
use crate::import::Import;
use crate::parse::{
    DEFAULT_PREFIX, PREFIX, age, cursor, expiry, format, moment, name, number, principal, quota, random_bits, time,
};

const AFTER_HELP: &str = "\
Only `migrate` creates a database file or tables.

With `--json`, a command writes one JSON document to standard output; `export`, `completions` and `man` have their own formats. Errors are text on standard error, also with `--json`.

Durations have a unit: 90d, 12h, 30m, 0s, 2w, 6M (months of 30.44 days) or 1y. Dates are in UTC.

Colors are for terminals only. NO_COLOR turns them off, CLICOLOR_FORCE turns them on.

Exit codes: 0 for success, 1 if the command failed, 2 for an invalid command line, 3 if `check` could not check the token, 141 if \
the reader of standard output has ended.";

/// Printed after the help of the commands that mint tokens.
const PRINTED: &str = "\
Standard output has the token and nothing else. Standard error has the grant.
With `--json`, standard output has one document: the fields of the grant, and the token as `token`.";

/// Manages API tokens in a database.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, arg_required_else_help = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create or upgrade the tables; creates a missing SQLite file
    Migrate(Options),
    /// Manage grants and tokens: issue, list, change, rotate, revoke and more
    #[command(subcommand)]
    Token(TokenCommand),
    /// List, export and purge the audit trail
    #[command(subcommand)]
    Audit(audit::Command),
    /// Show and reset the limits of a subject in Redis
    #[cfg(feature = "redis")]
    #[command(subcommand)]
    Limit(crate::limit::Command),
    /// Check a token from standard input, as a gate does
    Check(check::Check),
    /// Print a new key that seals tokens, for `--sealing-keys`
    #[cfg(feature = "reveal")]
    SealingKey(crate::sealing::Generate),
    /// Check the database and its settings; changes nothing
    Doctor(doctor::Doctor),
    /// Print a completion script for a shell
    Completions(generate::Completions),
    /// Print the manual page, or write the pages of all commands
    Man(generate::Man),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Issue a grant; prints the new token to standard output
    #[command(after_help = PRINTED)]
    Issue(Issue),
    /// Import grants with the digests of their tokens, or with tokens; all of them or none
    Import(Import),
    /// Export grants, oldest first, in a format that `import` reads
    Export(Export),
    /// List grants, oldest first
    List {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        filter: Filter,
        /// List one page of at most this many grants; JSON then has the fields `grants` and `next`
        #[arg(long, value_name = "NUMBER", value_parser = number)]
        limit: Option<NonZeroU32>,
        /// Continue after the page that ended with this cursor
        #[arg(long, requires = "limit", value_parser = cursor)]
        after: Option<Cursor>,
    },
    /// Count grants by state
    Count {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        filter: Filter,
    },
    /// Show a grant
    Show {
        #[command(flatten)]
        options: Options,
        /// Id of the grant
        #[arg(value_parser = name)]
        id: String,
    },
    /// Change fields of a grant, or of all grants of a subject that are not revoked or expired, in one transaction
    Change(Change),
    /// Suspend a grant, or all grants of a subject: their tokens are rejected until they are resumed
    Suspend(Selected),
    /// Resume a suspended grant, or all of a subject
    Resume(Selected),
    /// Replace the token of a grant; prints the new token to standard output
    #[command(after_help = PRINTED)]
    Rotate {
        #[command(flatten)]
        options: Options,
        /// Id of the grant
        #[arg(value_parser = name)]
        id: String,
        /// Grace period of all older tokens, such as 1h, 30m or 0s; ends no later than the grant, and extends no earlier grace period
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time)]
        grace: Duration,
        /// Prefix of the new token [default: prefix of the old token]
        #[arg(long, value_parser = format)]
        prefix: Option<TokenFormat>,
        #[command(flatten)]
        length: Length,
        #[cfg(feature = "reveal")]
        #[command(flatten)]
        keys: crate::sealing::Keys,
    },
    /// Print the token of a grant, if it was sealed when it was issued; asks first
    #[cfg(feature = "reveal")]
    #[command(after_help = crate::sealing::REVEAL)]
    Reveal(crate::sealing::Reveal),
    /// Seal all sealed tokens with the first sealing key, so that the others can be removed
    #[cfg(feature = "reveal")]
    Reseal(crate::sealing::Reseal),
    /// Revoke a grant, or all grants of a subject, permanently
    Revoke(Selected),
    /// Delete revoked and expired grants, and tokens whose grace period has ended
    Purge {
        #[command(flatten)]
        options: Options,
        /// Delete only what ended at least this long ago, such as 30d; by default everything that has ended
        #[arg(long, value_name = "TIME", default_value = "0s", value_parser = age)]
        ended_before: Duration,
    },
}

/// A grant, or all grants of a subject.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("grants").required(true).args(["id", "subject"]))]
pub(crate) struct Selected {
    #[command(flatten)]
    pub(crate) options: Options,
    /// Id of the grant
    #[arg(value_parser = name)]
    pub(crate) id: Option<String>,
    /// All grants of this subject
    #[arg(long, value_parser = name)]
    pub(crate) subject: Option<String>,
}

/// Options that select grants.
#[derive(Args, Debug)]
pub(crate) struct Filter {
    /// Only grants of this subject, which is compared in full; case-sensitive
    #[arg(long, value_parser = name)]
    pub(crate) subject: Option<String>,
    /// Only grants whose label contains this text; case-sensitive
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
    /// Only grants whose newest token has this whole prefix, without the last underscore; case-sensitive
    #[arg(long)]
    pub(crate) prefix: Option<String>,
    /// Only grants in this state
    #[arg(long)]
    pub(crate) state: Option<State>,
}

/// The values of `--state`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum State {
    Valid,
    NotYetValid,
    Suspended,
    Expired,
    Revoked,
}

impl From<State> for GrantState {
    fn from(state: State) -> Self {
        match state {
            State::Valid => Self::Valid,
            State::NotYetValid => Self::NotYetValid,
            State::Suspended => Self::Suspended,
            State::Expired => Self::Expired,
            State::Revoked => Self::Revoked,
        }
    }
}

impl Filter {
    pub(crate) fn query(self) -> GrantQuery {
        let mut query = GrantQuery::new();
        if let Some(subject) = self.subject {
            query = query.with_subject(subject);
        }
        if let Some(label) = self.label {
            query = query.with_label(label);
        }
        if let Some(prefix) = self.prefix {
            query = query.with_token_prefix(prefix);
        }
        match self.state {
            None => query,
            Some(state) => query.with_state(state.into()),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Issue {
    #[command(flatten)]
    pub(crate) options: Options,
    /// Subject of the grant; grants of one subject share rate limits
    #[arg(long, value_parser = name)]
    pub(crate) subject: String,
    /// Description for people
    #[arg(long, default_value = "")]
    pub(crate) label: String,
    /// Scope of the grant; repeat the option for each scope
    #[arg(long = "scope", value_name = "SCOPE")]
    pub(crate) scopes: Vec<String>,
    /// Rate limit of the grant, such as 3/s, 180/min or "5000/h burst 20" [default burst: the number]
    #[arg(long, value_parser = quota)]
    pub(crate) quota: Option<Quota>,
    /// Burst of the rate limit; overrides the burst in --quota
    #[arg(long, requires = "quota", value_parser = number)]
    pub(crate) burst: Option<NonZeroU32>,
    /// Expiry of the grant: a lifetime such as 90d or 12h, or a date such as 2030-01-31
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    pub(crate) expires: Option<SystemTime>,
    /// Start of validity: a duration from now, or a date such as 2030-01-31
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) not_before: Option<SystemTime>,
    /// Principal of the grant as JSON, such as '{"plan": "pro"}', for services that keep it in this database
    #[arg(long, value_name = "JSON", value_parser = principal)]
    pub(crate) principal: Option<Box<RawValue>>,
    /// Issue no token if the subject has this many grants that are not revoked or expired; not stored: give it each time
    #[arg(long, value_name = "NUMBER", value_parser = number)]
    pub(crate) max_active: Option<NonZeroU32>,
    /// Prefix of the token
    #[arg(long, env = PREFIX, hide_env_values = true, default_value = DEFAULT_PREFIX, value_parser = format)]
    pub(crate) prefix: TokenFormat,
    #[command(flatten)]
    pub(crate) length: Length,
    #[cfg(feature = "reveal")]
    #[command(flatten)]
    pub(crate) keys: crate::sealing::Keys,
}

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("changes").required(true).multiple(true)
    .args(["label", "scopes", "add_scopes", "remove_scopes", "no_scopes", "quota", "default_quota", "expires", "never_expires", "principal", "no_principal"]))]
pub(crate) struct Change {
    #[command(flatten)]
    pub(crate) selected: Selected,
    /// New description for people
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// New scope, which replaces all old scopes; repeat the option for each scope
    #[arg(long = "scope", value_name = "SCOPE")]
    pub(crate) scopes: Vec<String>,
    /// Scope to add; can be repeated
    #[arg(long = "add-scope", value_name = "SCOPE", conflicts_with = "scopes")]
    pub(crate) add_scopes: Vec<String>,
    /// Scope to remove; can be repeated
    #[arg(long = "remove-scope", value_name = "SCOPE", conflicts_with = "scopes")]
    pub(crate) remove_scopes: Vec<String>,
    /// Remove all scopes
    #[arg(long, conflicts_with_all = ["scopes", "add_scopes", "remove_scopes"])]
    pub(crate) no_scopes: bool,
    /// New rate limit, such as 3/s, 180/min or "5000/h burst 20"
    #[arg(long, value_parser = quota)]
    pub(crate) quota: Option<Quota>,
    /// Use the default rate limit of the service
    #[arg(long, conflicts_with = "quota")]
    pub(crate) default_quota: bool,
    /// New expiry: a lifetime from now such as 90d or 12h, or a date such as 2030-01-31
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    pub(crate) expires: Option<SystemTime>,
    /// Remove the expiry
    #[arg(long, conflicts_with = "expires")]
    pub(crate) never_expires: bool,
    /// Do not extend an expired grant if the subject has this many other grants that are not revoked or expired; not stored: give
    /// it each time
    #[arg(long, value_name = "NUMBER", conflicts_with = "subject", value_parser = number)]
    pub(crate) max_active: Option<NonZeroU32>,
    /// New principal as JSON
    #[arg(long, value_name = "JSON", value_parser = principal)]
    pub(crate) principal: Option<Box<RawValue>>,
    /// Remove the principal
    #[arg(long, conflicts_with = "principal")]
    pub(crate) no_principal: bool,
}

/// The length of new tokens.
#[derive(Args, Debug)]
pub(crate) struct Length {
    /// Minimum number of random bits of the token, as in the token format of the service
    #[arg(long, value_name = "BITS", default_value = "256", value_parser = random_bits)]
    random_bits: u32,
}

impl Length {
    pub(crate) fn apply(&self, format: TokenFormat) -> Result<TokenFormat, Failure> {
        format.with_random_bits(self.random_bits).map_err(|error| Failure::Usage(error.to_string()))
    }
}

/// Options that select the tables.
#[derive(Args, Debug)]
pub(crate) struct Tables {
    /// URL of the database: sqlite://PATH or postgres://USER@HOST/DATABASE
    // The value may contain a password, so it must never be printed.
    #[arg(long, value_name = "URL", env = "TOLLGATE_DATABASE", hide_env_values = true)]
    pub(crate) database: String,
    /// Prefix of the table names
    #[arg(long, value_name = "NAME", default_value = "tollgate_")]
    pub(crate) table_prefix: String,
}

/// Options of all commands that use the tables.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) tables: Tables,
    /// Print one JSON document instead of text
    #[arg(long)]
    pub(crate) json: bool,
}
