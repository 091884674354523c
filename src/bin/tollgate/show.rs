//! What the commands say: tables for people, JSON for programs.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tollgate::Quota;
use tollgate::store::sql::GrantRecord;

pub(crate) fn table(grants: &[GrantRecord]) -> String {
    let head = ["ID", "SUBJECT", "LABEL", "SCOPES", "QUOTA", "STATE", "EXPIRES", "LAST USED"].map(String::from);
    let rows: Vec<[String; 8]> = [head].into_iter().chain(grants.iter().map(row)).collect();
    let widths: [usize; 8] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(grant: &GrantRecord) -> [String; 8] {
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    [
        grant.id.to_string(),
        grant.subject.to_string(),
        or_dash(grant.label.clone()),
        or_dash(grant.scopes.to_string()),
        or_dash(grant.quota.map(quota).unwrap_or_default()),
        state(grant, SystemTime::now()).to_owned(),
        or_dash(grant.expires_at.map(time).unwrap_or_default()),
        or_dash(grant.last_used.map(time).unwrap_or_default()),
    ]
}

pub(crate) fn details(grant: &GrantRecord) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            _ = writeln!(text, "{name:10} {value}");
        }
    };
    line("id", grant.id.to_string());
    line("subject", grant.subject.to_string());
    line("label", grant.label.clone());
    line("scopes", grant.scopes.to_string());
    line("quota", grant.quota.map(quota).unwrap_or_default());
    line("state", state(grant, SystemTime::now()).to_owned());
    line("created", time(grant.created_at));
    line("not before", grant.not_before.map(time).unwrap_or_default());
    line("expires", grant.expires_at.map(time).unwrap_or_default());
    line("revoked", grant.revoked_at.map(time).unwrap_or_default());
    line("last used", grant.last_used.map(time).unwrap_or_default());
    text.trim_end().to_owned()
}

pub(crate) fn json(grant: &GrantRecord) -> String {
    value(grant).to_string()
}

pub(crate) fn json_list(grants: &[GrantRecord]) -> String {
    Value::from_iter(grants.iter().map(value)).to_string()
}

pub(crate) fn json_ids(grants: &[&GrantRecord]) -> String {
    Value::from_iter(grants.iter().map(|grant| json!({ "id": grant.id.as_str() }))).to_string()
}

fn value(grant: &GrantRecord) -> Value {
    let quota = grant.quota.map(|quota| {
        json!({ "interval_ns": u64::try_from(quota.interval().as_nanos()).unwrap_or(u64::MAX), "burst": quota.burst() })
    });
    json!({
        "id": grant.id.as_str(),
        "subject": grant.subject.as_str(),
        "label": grant.label,
        "scopes": grant.scopes.iter().collect::<Vec<_>>(),
        "quota": quota,
        "state": state(grant, SystemTime::now()),
        "created_at": time(grant.created_at),
        "not_before": grant.not_before.map(time),
        "expires_at": grant.expires_at.map(time),
        "revoked_at": grant.revoked_at.map(time),
        "last_used": grant.last_used.map(time),
    })
}

fn state(grant: &GrantRecord, now: SystemTime) -> &'static str {
    match grant {
        GrantRecord { revoked_at: Some(_), .. } => "revoked",
        GrantRecord { expires_at: Some(end), .. } if *end <= now => "expired",
        GrantRecord { not_before: Some(begin), .. } if *begin > now => "not yet valid",
        _ => "valid",
    }
}

/// RFC 3339, in UTC. What has no such date is cut to the last one.
fn time(time: SystemTime) -> String {
    // 9999-12-31T23:59:59Z, after which dates have five digits.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(time.min(last)).to_string()
}

fn quota(quota: Quota) -> String {
    format!("one per {}, burst {}", humantime::format_duration(quota.interval()), quota.burst())
}
