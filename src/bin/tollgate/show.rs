//! The output of the commands: text for people, JSON for programs.

use std::fmt::Write as _;
use std::io;
use std::time::{Duration, SystemTime};

use anstream::adapter::strip_str;
use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};
use tollgate::TokenLocation;
use tollgate::mint::Secret;
use tollgate::store::sql::{GrantCounts, GrantPage, GrantRecord, GrantState, Migrated};
use zeroize::Zeroizing;

/// Writes a result to standard output.
///
/// Colors are removed unless standard output is a terminal. Other text, such as JSON and tokens, is written as it is: it never has
/// an escape character.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let text = text.trim_end_matches('\n');
    match text.contains(ESCAPE) {
        true => write_line(anstream::stdout().lock(), text),
        false => write_line(io::stdout().lock(), text),
    }
}

fn write_line(mut out: impl io::Write, text: &str) -> io::Result<()> {
    writeln!(out, "{text}")?;
    out.flush()
}

/// Returns whether standard output was closed when the program began.
///
/// The standard library opens `/dev/null` in its place, for reading and writing. A shell's `> /dev/null` is for writing only.
#[cfg(unix)]
pub(crate) fn output_is_closed() -> bool {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::MetadataExt as _;

    let Ok(output) = io::stdout().as_fd().try_clone_to_owned() else { return false };
    let mut output = std::fs::File::from(output);
    let devices = [output.metadata(), std::fs::metadata("/dev/null")].map(|file| file.map(|file| file.rdev()));
    // Reading nothing fails if the file is for writing only.
    matches!(&devices, [Ok(output), Ok(null)] if output == null) && output.read(&mut []).is_ok()
}

/// Returns whether standard output was closed. Only known on Unix.
#[cfg(not(unix))]
pub(crate) fn output_is_closed() -> bool {
    false
}

/// Writes to standard error, with colors if it is a terminal. Ignores failures, because standard error may be closed.
pub(crate) fn eprint(text: &str) {
    _ = write_line(anstream::stderr().lock(), text.trim_end_matches('\n'));
}

/// Writes an error to standard error.
pub(crate) fn print_error(text: &str) {
    eprint(&format!("{} {text}", paint(RED.bold(), "error:")));
}

const ESCAPE: char = '\u{1b}';
pub(crate) const GREEN: Style = AnsiColor::Green.on_default();
pub(crate) const YELLOW: Style = AnsiColor::Yellow.on_default();
pub(crate) const RED: Style = AnsiColor::Red.on_default();

/// Adds a color to text. The printing functions remove it where there is no terminal.
pub(crate) fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Returns the name of a state, with its color.
fn painted_state(state: GrantState) -> String {
    let style = match state {
        GrantState::Valid => GREEN,
        GrantState::NotYetValid | GrantState::Suspended => YELLOW,
        GrantState::Expired => Style::new().dimmed(),
        _ => RED,
    };
    paint(style, state.as_str())
}

pub(crate) fn table(grants: &[GrantRecord]) -> String {
    let head = ["ID", "SUBJECT", "LABEL", "SCOPES", "QUOTA", "STATE", "EXPIRES", "LAST USED"];
    columns(head, grants.iter().map(row))
}

/// Aligns the columns of a table.
pub(crate) fn columns<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(String::from)).chain(rows).collect();
    // Colors have no width.
    let width = |cell: &str| strip_str(cell).map(|part| part.chars().count()).sum::<usize>();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| width(&row[column])).max().unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, max) in row.iter().zip(widths) {
            _ = write!(line, "{cell}{:1$}", "", max - width(cell) + 2);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(grant: &GrantRecord) -> [String; 8] {
    [
        plain(grant.id.as_str()),
        plain(grant.subject.as_str()),
        or_dash(plain(&grant.label)),
        or_dash(grant.scopes.to_string()),
        or_dash(grant.quota.map(|quota| quota.to_string()).unwrap_or_default()),
        painted_state(grant.state(SystemTime::now())),
        or_dash(grant.expires_at.map(time).unwrap_or_default()),
        or_dash(grant.last_used.map(time).unwrap_or_default()),
    ]
}

/// Returns a dash for an empty cell of a table.
pub(crate) fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

pub(crate) fn details(grant: &GrantRecord) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            _ = writeln!(text, "{name:10} {value}");
        }
    };
    line("id", plain(grant.id.as_str()));
    line("subject", plain(grant.subject.as_str()));
    line("label", plain(&grant.label));
    line("scopes", grant.scopes.to_string());
    line("quota", grant.quota.map(|quota| quota.to_string()).unwrap_or_default());
    line("state", painted_state(grant.state(SystemTime::now())));
    line("bound", if grant.sender_constrained { "to a key of the sender".to_owned() } else { String::new() });
    line("created", time(grant.created_at));
    line("not before", grant.not_before.map(time).unwrap_or_default());
    line("expires", grant.expires_at.map(time).unwrap_or_default());
    line("revoked", grant.revoked_at.map(time).unwrap_or_default());
    line("suspended", grant.suspended_at.map(time).unwrap_or_default());
    line("last used", last_used(grant));
    line("prefix", plain(grant.token_prefix.as_deref().unwrap_or_default()));
    text.trim_end().to_owned()
}

fn last_used(grant: &GrantRecord) -> String {
    match (grant.last_used, grant.last_used_location) {
        (None, _) => String::new(),
        (Some(at), None) => time(at),
        (Some(at), Some(location)) => format!("{}, {location}", time(at)),
    }
}

/// Returns the details of a grant with its principal, which other commands do not print.
pub(crate) fn details_whole(grant: &GrantRecord) -> String {
    match &grant.principal {
        None => details(grant),
        Some(principal) => format!("{}\nprincipal  {}", details(grant), plain(principal)),
    }
}

/// Returns the fields of a grant with its principal.
pub(crate) fn json_whole(grant: &GrantRecord) -> String {
    let mut value = value(grant);
    let principal = |json: &str| serde_json::from_str(json).unwrap_or_else(|_| Value::from(json));
    value["principal"] = grant.principal.as_deref().map(principal).into();
    value.to_string()
}

pub(crate) fn json(grant: &GrantRecord) -> String {
    value(grant).to_string()
}

/// Returns the fields of a grant and its new token.
pub(crate) fn json_issued(secret: &Secret, grant: &GrantRecord) -> Zeroizing<String> {
    let mut value = value(grant);
    value["token"] = secret.expose().into();
    Zeroizing::new(value.to_string())
}

pub(crate) fn migrated(migrated: Migrated) -> String {
    match migrated {
        Migrated { from: None, to, .. } => format!("created the tables with version {to}"),
        Migrated { from: Some(from), to, .. } if from == to => format!("the tables are up to date with version {to}"),
        Migrated { from: Some(from), to, .. } => format!("upgraded the tables from version {from} to {to}"),
    }
}

pub(crate) fn json_migrated(Migrated { from, to, .. }: Migrated) -> String {
    let result = match from {
        None => "created",
        Some(from) if from == to => "up to date",
        Some(_) => "upgraded",
    };
    json!({ "result": result, "from": from, "version": to }).to_string()
}

pub(crate) fn json_list(grants: &[GrantRecord]) -> String {
    Value::from_iter(grants.iter().map(value)).to_string()
}

pub(crate) fn json_page(page: &GrantPage) -> String {
    let grants = Value::from_iter(page.grants.iter().map(value));
    json!({ "grants": grants, "next": page.next.as_ref().map(ToString::to_string) }).to_string()
}

/// Returns the states with the numbers of grants, or one of them.
fn states(counts: &GrantCounts, only: Option<GrantState>) -> impl Iterator<Item = (GrantState, u64)> {
    let all = [
        (GrantState::Valid, counts.valid),
        (GrantState::NotYetValid, counts.not_yet_valid),
        (GrantState::Suspended, counts.suspended),
        (GrantState::Expired, counts.expired),
        (GrantState::Revoked, counts.revoked),
    ];
    all.into_iter().filter(move |(state, _)| only.is_none_or(|only| only == *state))
}

/// Returns the name of a state in JSON, such as `not_yet_valid`.
fn json_state(state: GrantState) -> String {
    state.as_str().replace(' ', "_")
}

pub(crate) fn counts(counts: &GrantCounts, only: Option<GrantState>) -> String {
    states(counts, only).map(|(state, number)| format!("{:14} {number}\n", state.as_str())).collect()
}

pub(crate) fn json_counts(counts: &GrantCounts, only: Option<GrantState>) -> String {
    Value::from_iter(states(counts, only).map(|(state, number)| (json_state(state), number))).to_string()
}

/// Returns the fields of a grant as JSON.
pub(crate) fn value(grant: &GrantRecord) -> Value {
    let quota = grant.quota.map(|quota| {
        let interval = u64::try_from(quota.interval().as_nanos()).unwrap_or(u64::MAX);
        json!({ "interval_ns": interval, "burst": quota.burst(), "text": quota.to_string() })
    });
    json!({
        "id": grant.id.as_str(),
        "subject": grant.subject.as_str(),
        "label": grant.label,
        "scopes": grant.scopes.iter().collect::<Vec<_>>(),
        "quota": quota,
        "sender_constrained": grant.sender_constrained,
        "state": json_state(grant.state(SystemTime::now())),
        "created_at": time(grant.created_at),
        "not_before": grant.not_before.map(time),
        "expires_at": grant.expires_at.map(time),
        "revoked_at": grant.revoked_at.map(time),
        "suspended_at": grant.suspended_at.map(time),
        "last_used": grant.last_used.map(time),
        "last_used_location": grant.last_used_location.map(TokenLocation::as_str),
        "token_prefix": grant.token_prefix,
    })
}

/// Formats a time as RFC 3339 in UTC. Later times are replaced by the last date.
pub(crate) fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time.min(last_date())).to_string()
}

/// Returns 9999-12-31T23:59:59Z, the last date with a four-digit year.
pub(crate) fn last_date() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799)
}

/// Replaces control characters. Other programs may have written terminal escape sequences into the tables.
pub(crate) fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}
