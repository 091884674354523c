//! The commands of the audit trail, and their output.

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};
use tollgate::store::sql::{AuditEntry, AuditPage, AuditQuery, Cursor};

use crate::args::{Options, Tables};
use crate::export::PAGE;
use crate::output::{Line, Output};
use crate::parse::{age, cursor, name, number, past};
use crate::run::{Failure, before, open, print_next, print_purged};
use crate::show::{self, columns, or_dash, plain, time};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List changes of grants, newest first; JSON has the fields `entries` and `next`
    List {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        filter: Filter,
        /// Maximum number of entries
        #[arg(long, value_name = "NUMBER", default_value = "100", value_parser = number)]
        limit: NonZeroU32,
        /// Continue after the page that ended with this cursor
        #[arg(long, value_parser = cursor)]
        after: Option<Cursor>,
    },
    /// Export changes of grants, newest first
    Export {
        #[command(flatten)]
        tables: Tables,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        filter: Filter,
    },
    /// Delete old entries
    Purge {
        #[command(flatten)]
        options: Options,
        /// Delete entries that are at least this old, such as 730d
        #[arg(long, value_name = "TIME", value_parser = age)]
        older_than: Duration,
    },
}

/// Options that select entries.
#[derive(Args, Debug)]
pub(crate) struct Filter {
    /// Only changes of the grant with this id
    #[arg(long, value_name = "ID", value_parser = name)]
    grant: Option<String>,
    /// Only changes of grants of this subject
    #[arg(long, value_parser = name)]
    subject: Option<String>,
    /// Only changes by this actor
    #[arg(long)]
    actor: Option<String>,
    /// Only changes with this action, such as revoke
    #[arg(long)]
    action: Option<String>,
    /// Only changes since this time: a date such as 2030-01-31, or a duration before now such as 7d
    #[arg(long, value_name = "TIME", value_parser = past)]
    since: Option<SystemTime>,
    /// Only changes before this time
    #[arg(long, value_name = "TIME", value_parser = past)]
    until: Option<SystemTime>,
}

impl Filter {
    fn query(self) -> AuditQuery {
        let mut query = AuditQuery::new();
        if let Some(grant) = self.grant {
            query = query.with_grant(grant);
        }
        if let Some(subject) = self.subject {
            query = query.with_subject(subject);
        }
        if let Some(actor) = self.actor {
            query = query.with_actor(actor);
        }
        if let Some(action) = self.action {
            query = query.with_action(action);
        }
        if let Some(time) = self.since {
            query = query.since(time);
        }
        if let Some(time) = self.until {
            query = query.until(time);
        }
        query
    }
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::List { options, filter, limit, after } => {
            let mut query = filter.query().with_limit(limit);
            if let Some(cursor) = after {
                query = query.after(cursor);
            }
            let page = open(&options.tables).await?.audit(&query).await?;
            show::print(&if options.json { json(&page) } else { table(&page.entries) })?;
            print_next(page.next.as_ref(), options.json);
            Ok(())
        }
        Command::Export { tables, output, filter } => {
            let database = open(&tables).await?;
            let mut writer = output.begin(EntryLine::COLUMNS)?;
            let mut query = filter.query().with_limit(PAGE);
            loop {
                let page = database.audit(&query).await?;
                for entry in &page.entries {
                    writer.write(&EntryLine::of(entry))?;
                }
                let Some(cursor) = page.next else { return writer.finish() };
                query = query.after(cursor);
            }
        }
        Command::Purge { options, older_than } => {
            let database = open(&options.tables).await?;
            print_purged(database.purge_audit(before(older_than)).await?, options.json)
        }
    }
}

/// An entry as JSON lines, CSV and `list --json` show it.
#[derive(Serialize)]
struct EntryLine<'a> {
    at: String,
    actor: Option<&'a str>,
    action: &'a str,
    grant: &'a str,
    subject: &'a str,
    changes: Value,
}

impl<'a> EntryLine<'a> {
    fn of(entry: &'a AuditEntry) -> Self {
        Self {
            at: time(entry.at),
            actor: entry.actor.as_deref(),
            action: &entry.action,
            grant: entry.grant.as_str(),
            subject: entry.subject.as_str(),
            changes: changes(entry),
        }
    }
}

impl Line for EntryLine<'_> {
    const COLUMNS: &'static [&'static str] = &["at", "actor", "action", "grant", "subject", "changes"];

    fn cells(&self) -> Result<Vec<String>, serde_json::Error> {
        let changes = if self.changes.is_null() { String::new() } else { self.changes.to_string() };
        let texts = [&self.at, self.actor.unwrap_or_default(), self.action, self.grant, self.subject, &changes];
        Ok(texts.map(str::to_owned).into())
    }
}

fn json(page: &AuditPage) -> String {
    let entries: Vec<EntryLine<'_>> = page.entries.iter().map(EntryLine::of).collect();
    json!({ "entries": entries, "next": page.next.as_ref().map(ToString::to_string) }).to_string()
}

fn table(entries: &[AuditEntry]) -> String {
    columns(["TIME", "ACTOR", "ACTION", "GRANT", "SUBJECT", "CHANGES"], entries.iter().map(row))
}

fn row(entry: &AuditEntry) -> [String; 6] {
    let changes = changes(entry);
    let fields = changes.as_object().into_iter().flatten().map(|(name, change)| {
        let value = |end: &str| value(name, change.get(end).unwrap_or(&Value::Null));
        format!("{}: {} -> {}", name.trim_end_matches("_ms"), value("from"), value("to"))
    });
    [
        time(entry.at),
        or_dash(plain(entry.actor.as_deref().unwrap_or_default())),
        plain(&entry.action),
        plain(entry.grant.as_str()),
        plain(entry.subject.as_str()),
        or_dash(plain(&fields.collect::<Vec<_>>().join(", "))),
    ]
}

fn changes(entry: &AuditEntry) -> Value {
    entry.changes.as_deref().and_then(|json| json.parse().ok()).unwrap_or_default()
}

fn value(name: &str, value: &Value) -> String {
    match (value, value.as_u64()) {
        (Value::Null, _) => "-".to_owned(),
        (Value::String(text), _) => text.clone(),
        (_, Some(ms)) if name.ends_with("_ms") => {
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)).map_or_else(|| value.to_string(), time)
        }
        _ => value.to_string(),
    }
}
