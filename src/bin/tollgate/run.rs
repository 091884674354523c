//! The implementation of the commands.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use tollgate::mint::TokenFormat;
use tollgate::store::sql::{Cursor, Database, GrantChange, GrantRecord, Issued, NewGrant, SqlError};
use zeroize::Zeroizing;

use crate::args::{Change, Cli, Command, Filter, Issue, Options, Tables, TokenCommand};
use crate::audit;
use crate::check;
use crate::doctor;
use crate::export::{self, PAGE};
pub(crate) use crate::failure::Failure;
use crate::generate;
use crate::import;
use crate::parse::{default_format, scopes};
use crate::show;
use crate::state::{self, State};

pub(crate) async fn run(Cli { command }: Cli) -> Result<(), Failure> {
    match command {
        Command::Migrate(options) => migrate(&options).await,
        Command::Token(command) => token(command).await,
        Command::Audit(command) => audit::run(command).await,
        #[cfg(feature = "redis")]
        Command::Limit(command) => crate::limit::run(command).await,
        Command::Check(check) => check::run(check).await,
        #[cfg(feature = "reveal")]
        Command::SealingKey(key) => crate::sealing::generate(key),
        Command::Doctor(doctor) => doctor::run(doctor).await,
        Command::Completions(completions) => generate::completions(&completions),
        Command::Man(man) => generate::man(&man),
    }
}

async fn migrate(Options { tables, json }: &Options) -> Result<(), Failure> {
    // Check the prefix before anything is created.
    Database::connect_lazily(&with_creation(&tables.database, false))?.with_table_prefix(&tables.table_prefix)?;
    let database = Database::connect(&with_creation(&tables.database, true)).await?;
    let migrated = database.with_table_prefix(&tables.table_prefix)?.migrate().await?;
    Ok(show::print(&if *json { show::json_migrated(migrated) } else { show::migrated(migrated) })?)
}

async fn token(command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Issue(issue) => {
            let grant = new_grant(&issue)?;
            check_output()?;
            let database = open(&issue.options.tables).await?;
            #[cfg(feature = "reveal")]
            let database = issue.keys.apply(database)?;
            let format = issue.length.apply(issue.prefix)?;
            let issued = database.issue(&format, &grant).await?;
            print_issued(&issued, issue.options.json)
        }
        TokenCommand::Import(import) => import::run(import).await,
        TokenCommand::Export(export) => export::run(export).await,
        TokenCommand::List { options, filter, limit, after } => list(&options, filter, limit, after).await,
        TokenCommand::Count { options, filter } => {
            let state = filter.state.map(Into::into);
            let counts = open(&options.tables).await?.count(&filter.query()).await?;
            let text = if options.json { show::json_counts(&counts, state) } else { show::counts(&counts, state) };
            Ok(show::print(&text)?)
        }
        TokenCommand::Show { options, id } => {
            let grant = find(&open(&options.tables).await?, &id).await?;
            let text = if options.json { show::json_whole(&grant) } else { show::details_whole(&grant) };
            Ok(show::print(&text)?)
        }
        TokenCommand::Change(change) => {
            let fields = grant_change(&change)?;
            let (new_expiry, selected) = (change.never_expires || change.expires.is_some(), change.selected);
            let (json, database) = (selected.options.json, open(&selected.options.tables).await?);
            let text = match (selected.id, selected.subject) {
                (Some(id), _) => {
                    // A revocation is permanent, so an expiry would have no effect.
                    if new_expiry && find(&database, &id).await?.revoked_at.is_some() {
                        return Err(Failure::Database(SqlError::Revoked));
                    }
                    let grant = database.change(&id.into(), &fields).await?;
                    if json { show::json(&grant) } else { show::details(&grant) }
                }
                (None, subject) => {
                    let grants = database.change_subject(&subject.unwrap_or_default().into(), &fields).await?;
                    if grants.is_empty() {
                        let text = "the subject has no grants to change; an expired grant is changed by its id";
                        return Err(Failure::Failed(text.to_owned()));
                    }
                    if json { show::json_list(&grants) } else { show::table(&grants) }
                }
            };
            Ok(show::print(&text)?)
        }
        TokenCommand::Suspend(selected) => state::set(State::Suspended, selected).await,
        TokenCommand::Resume(selected) => state::set(State::Resumed, selected).await,
        TokenCommand::Rotate {
            options,
            id,
            grace,
            prefix,
            length,
            #[cfg(feature = "reveal")]
            keys,
        } => {
            check_output()?;
            let database = open(&options.tables).await?;
            #[cfg(feature = "reveal")]
            let database = keys.apply(database)?;
            let format = match prefix {
                Some(format) => format,
                None => same_format(&find(&database, &id).await?, options.json)?,
            };
            let issued = database.rotate(&id.into(), &length.apply(format)?, grace).await?;
            print_issued(&issued, options.json)
        }
        #[cfg(feature = "reveal")]
        TokenCommand::Reveal(reveal) => crate::sealing::reveal(reveal).await,
        #[cfg(feature = "reveal")]
        TokenCommand::Reseal(reseal) => crate::sealing::reseal(reseal).await,
        TokenCommand::Revoke(selected) => state::set(State::Revoked, selected).await,
        TokenCommand::Purge { options, ended_before } => {
            let database = open(&options.tables).await?;
            print_purged(database.purge(before(ended_before)).await?, options.json)
        }
    }
}

async fn list(
    options: &Options,
    filter: Filter,
    limit: Option<NonZeroU32>,
    after: Option<Cursor>,
) -> Result<(), Failure> {
    let mut query = filter.query().with_limit(limit.unwrap_or(PAGE));
    if let Some(cursor) = after {
        query = query.after(cursor);
    }
    let database = open(&options.tables).await?;
    let mut page = database.page(&query).await?;
    if limit.is_none() {
        while let Some(cursor) = page.next {
            query = query.after(cursor);
            let next = database.page(&query).await?;
            page.grants.extend(next.grants);
            page.next = next.next;
        }
    }
    show::print(&match (options.json, limit) {
        (false, _) => show::table(&page.grants),
        (true, None) => show::json_list(&page.grants),
        (true, Some(_)) => show::json_page(&page),
    })?;
    print_next(page.next.as_ref(), options.json);
    Ok(())
}

fn new_grant(issue: &Issue) -> Result<NewGrant, Failure> {
    let mut grant = NewGrant::new(issue.subject.as_str()).with_label(&issue.label);
    grant = grant.with_scopes(scopes(&issue.scopes)?.iter())?;
    if let Some(quota) = issue.quota {
        grant = grant.with_quota(match issue.burst {
            None => quota,
            Some(burst) => quota.try_with_burst(burst.get())?,
        });
    }
    if let Some(principal) = &issue.principal {
        grant = grant.with_principal(principal)?;
    }
    if let Some(end) = issue.expires {
        grant = grant.with_expiry(end);
    }
    if let Some(begin) = issue.not_before {
        grant = grant.with_not_before(begin);
    }
    if let Some(max) = issue.max_active {
        grant = grant.with_max_active(max.get());
    }
    grant.check()?;
    Ok(grant)
}

fn grant_change(change: &Change) -> Result<GrantChange, Failure> {
    let mut fields = GrantChange::new();
    if let Some(label) = &change.label {
        fields = fields.with_label(label);
    }
    if change.no_scopes || !change.scopes.is_empty() {
        fields = fields.with_scopes(scopes(&change.scopes)?.iter())?;
    }
    if !change.add_scopes.is_empty() {
        fields = fields.with_added_scopes(scopes(&change.add_scopes)?.iter())?;
    }
    if !change.remove_scopes.is_empty() {
        fields = fields.with_removed_scopes(scopes(&change.remove_scopes)?.iter())?;
    }
    if change.default_quota || change.quota.is_some() {
        fields = fields.with_quota(change.quota);
    }
    if change.never_expires || change.expires.is_some() {
        fields = fields.with_expiry(change.expires);
    }
    if let Some(principal) = &change.principal {
        fields = fields.with_principal(principal)?;
    }
    if change.no_principal {
        fields = fields.without_principal();
    }
    if let Some(max) = change.max_active {
        fields = fields.with_max_active(max.get());
    }
    fields.check()?;
    Ok(fields)
}

/// Returns the time that is this long ago.
pub(crate) fn before(age: Duration) -> SystemTime {
    SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(crate) fn print_purged(count: u64, json: bool) -> Result<(), Failure> {
    Ok(show::print(&if json { format!(r#"{{"purged":{count}}}"#) } else { format!("purged {count}") })?)
}

/// Prints the cursor of the next page to standard error. The JSON output contains it.
pub(crate) fn print_next(next: Option<&Cursor>, json: bool) {
    if let Some(cursor) = next.filter(|_| !json) {
        show::eprint(&format!("next page: --after {cursor}"));
    }
}

/// Connects to the database. Creates no file and no tables, because the URL or the prefix may be mistyped.
pub(crate) async fn open(tables: &Tables) -> Result<Database, Failure> {
    let url = with_creation(&tables.database, false);
    // Check the prefix before connecting.
    Database::connect_lazily(&url)?.with_table_prefix(&tables.table_prefix)?;
    let database = Database::connect(&url).await?.with_table_prefix(&tables.table_prefix)?;
    database.check_tables().await?;
    // Names that the audit trail cannot store are omitted.
    Ok(user().and_then(|user| database.acting_as(&user).ok()).unwrap_or(database))
}

/// Returns the name of the system's user, for the audit trail.
fn user() -> Option<String> {
    ["USER", "LOGNAME", "USERNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
}

/// Allows or forbids a SQLite URL to create its file. Adds `mode=rwc` if `create` is set and the URL has no mode. Replaces
/// `mode=rwc` with `mode=rw` if `create` is not set. Other modes (`rw`, `ro`) are kept.
pub(crate) fn with_creation(url: &str, create: bool) -> Cow<'_, str> {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let is_sqlite = url.starts_with("sqlite:");
    let has_mode = query.split('&').any(|pair| pair.starts_with("mode="));
    match create {
        true if is_sqlite && query.is_empty() => format!("{path}?mode=rwc").into(),
        true if is_sqlite && !has_mode => format!("{path}?{query}&mode=rwc").into(),
        false if is_sqlite && has_mode => format!("{path}?{}", query.replace("mode=rwc", "mode=rw")).into(),
        _ => url.into(),
    }
}

/// Returns the format of the grant's newest token, or the default format if its prefix is unknown.
fn same_format(grant: &GrantRecord, json: bool) -> Result<TokenFormat, Failure> {
    if let Some(format) = grant.token_prefix.as_deref().and_then(|prefix| TokenFormat::new(prefix).ok()) {
        return Ok(format);
    }
    let format = default_format().map_err(|error| Failure::Usage(error.to_string()))?;
    // The JSON output contains the prefix.
    if !json {
        show::eprint(&format!(
            "the prefix of the old token is unknown; the new token has the prefix {}",
            format.prefix()
        ));
    }
    Ok(format)
}

pub(crate) async fn find(database: &Database, id: &str) -> Result<GrantRecord, Failure> {
    database.describe(&id.into()).await?.ok_or(Failure::Database(SqlError::NotFound))
}

/// Checks that standard output is open before a token is minted, which would be lost.
pub(crate) fn check_output() -> Result<(), Failure> {
    match show::output_is_closed() {
        true => Err(Failure::Failed("standard output is closed; the token would be lost".to_owned())),
        false => Ok(()),
    }
}

/// Prints the token: as JSON together with the grant, or alone, and then the grant to standard error.
fn print_issued(Issued { secret, grant, .. }: &Issued, json: bool) -> Result<(), Failure> {
    let output = match json {
        true => show::json_issued(secret, grant),
        false => {
            // A failure to print the grant must not prevent printing the secret.
            show::eprint(&show::details(grant));
            Zeroizing::new(secret.expose().to_owned())
        }
    };
    show::print(&output).map_err(|error| {
        Failure::Failed(format!(
            "cannot write the token to standard output: {error}\nthe token of grant {} was not delivered: revoke or rotate it",
            grant.id
        ))
    })
}
