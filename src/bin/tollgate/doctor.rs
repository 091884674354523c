//! `tollgate doctor`: checks of the database and of Redis.

use clap::Args;
use serde_json::{Value, json};
use tollgate::finding::{Finding, Severity};
#[cfg(feature = "redis")]
use tollgate::limit::redis::RedisServer;
use tollgate::store::sql::{Database, SqlError};

use crate::args::{Options, Tables};
use crate::run::{Failure, with_creation};
use crate::show::{self, GREEN, RED, YELLOW, paint};

const AFTER_HELP: &str = "\
Changes nothing: no table, row, file, key or script.

A difference of clocks is a warning from 1 s, and an error from 30 s. A round trip to Redis is a warning from 50 ms.

Exit codes: 0 if no check found an error, 1 if a check found an error (with `--strict`: or a warning), 2 for an invalid command
line.";

#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Doctor {
    #[command(flatten)]
    options: Options,
    /// Also check Redis at this URL: redis://[USER][:PASSWORD@]HOST[:PORT][/DATABASE], or rediss:// for TLS
    // The value may contain a password, so it must never be printed.
    #[cfg(feature = "redis")]
    #[arg(long, value_name = "URL", env = "TOLLGATE_REDIS", hide_env_values = true)]
    redis: Option<String>,
    /// Exit with 1 also for warnings
    #[arg(long)]
    strict: bool,
}

pub(crate) async fn run(doctor: Doctor) -> Result<(), Failure> {
    #[cfg_attr(not(feature = "redis"), allow(unused_mut, reason = "only Redis adds findings"))]
    let mut findings = database(&doctor.options.tables).await?;
    #[cfg(feature = "redis")]
    if let Some(url) = &doctor.redis {
        findings.extend(match RedisServer::single(url) {
            Ok(server) => server.diagnose().await,
            Err(error) => vec![Finding::error("redis", error.to_string())],
        });
    }
    let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok);
    show::print(&if doctor.options.json { json(&findings, worst) } else { text(&findings) })?;
    let accepted = if doctor.strict { Severity::Ok } else { Severity::Warning };
    if worst <= accepted { Ok(()) } else { Err(Failure::Printed(1)) }
}

async fn database(tables: &Tables) -> Result<Vec<Finding>, Failure> {
    let url = with_creation(&tables.database, false);
    match Database::connect_lazily(&url) {
        // Check the prefix before connecting.
        Ok(database) => _ = database.with_table_prefix(&tables.table_prefix)?,
        Err(error @ SqlError::Url(_)) => return Ok(vec![Finding::error("url", error.to_string())]),
        Err(error) => return Ok(vec![Finding::error("connection", Failure::from(error).to_string())]),
    }
    let mut findings = vec![Finding::ok("url", "the URL of the database is valid")];
    match Database::connect(&url).await {
        Ok(database) => {
            findings.push(Finding::ok("connection", "the database can be reached"));
            let database = database.with_table_prefix(&tables.table_prefix)?;
            findings.extend(database.diagnose().await);
            database.close().await;
        }
        Err(error) => findings.push(Finding::error("connection", Failure::from(error).to_string())),
    }
    Ok(findings)
}

fn text(findings: &[Finding]) -> String {
    let line = |finding: &Finding| {
        let style = match finding.severity {
            Severity::Ok => GREEN,
            Severity::Warning => YELLOW,
            Severity::Error => RED,
        };
        let severity = finding.severity.as_str();
        let pad = "warning".len() - severity.len();
        // Servers wrote parts of some details.
        format!("{}{:pad$}  {:13}  {}\n", paint(style, severity), "", finding.check, show::plain(&finding.detail))
    };
    findings.iter().map(line).collect()
}

fn json(findings: &[Finding], worst: Severity) -> String {
    let findings = findings.iter().map(
        |finding| json!({ "check": finding.check, "severity": finding.severity.as_str(), "detail": finding.detail }),
    );
    json!({ "severity": worst.as_str(), "findings": Value::from_iter(findings) }).to_string()
}
