//! `tollgate limit`: the buckets of a subject in Redis.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tollgate::finding::Severity;
use tollgate::limit::redis::{RedisLimits, RedisLimitsError, RedisServer};
use tollgate::store::sql::{Database, GrantRecord, GrantState};
use tollgate::{Decision, Limit, LimitError, Quota, RateLimits, Subject};

use crate::args::Options;
use crate::parse::{name, quota};
use crate::run::{Failure, open};
use crate::secret_file;
use crate::show;

const SETTINGS: &str = "\
The prefix, the secret and the limits must be those of the service. With others, `show` prints full buckets, and `reset` resets \
nothing, without an error.

Units are counted by the quotas of the subject's grants in the database. Limits that all subjects share are not known here. \
On a route, a limit with the name `default` has other buckets for grants with a quota, which are not shown.";

const RESET: &str = "\
The prefix, the secret and the limits must be those of the service. With others, nothing is reset, without an error.

Servers may reject the subject for ten more seconds.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the remaining units of a subject
    #[command(after_help = SETTINGS)]
    Show(Buckets),
    /// Make all buckets of a subject full
    #[command(after_help = RESET)]
    Reset(Buckets),
}

#[derive(Args, Debug)]
pub(crate) struct Buckets {
    #[command(flatten)]
    options: Options,
    /// Subject of the grants
    #[arg(value_parser = name)]
    subject: String,
    /// Redis of the service: redis://[USER][:PASSWORD@]HOST[:PORT][/DATABASE], or rediss:// for TLS
    // The value may contain a password, so it must never be printed.
    #[arg(long, value_name = "URL", env = "TOLLGATE_REDIS", hide_env_values = true)]
    redis: String,
    /// File with the secret of the keys in Redis, byte for byte
    #[arg(long, value_name = "FILE", env = "TOLLGATE_REDIS_SECRET_FILE", hide_env_values = true)]
    redis_secret_file: PathBuf,
    /// Prefix of the keys in Redis
    #[arg(long, value_name = "TEXT", default_value = "tollgate:")]
    redis_prefix: String,
    /// Limit of the service, such as "default=180/min burst 20"; can be repeated
    #[arg(long = "limit", value_name = "NAME=QUOTA", required = true, value_parser = limit)]
    limits: Vec<(String, Quota)>,
    /// Limit that follows the quotas of grants [default: the limit `default`]
    #[arg(long, value_name = "NAME")]
    grant_quotas: Option<String>,
}

/// Parses `NAME=QUOTA`. The error must not contain the text.
fn limit(text: &str) -> Result<(String, Quota), String> {
    let (name, text) = text.split_once('=').ok_or("must be NAME=QUOTA, such as \"default=180/min burst 20\"")?;
    Ok((name.to_owned(), quota(text).map_err(|error| error.to_string())?))
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Show(buckets) => show(&buckets).await,
        Command::Reset(buckets) => reset(&buckets).await,
    }
}

async fn show(buckets: &Buckets) -> Result<(), Failure> {
    let (limits, subject) = (redis(buckets)?, Subject::from(buckets.subject.as_str()));
    let quotas = quotas(&open(&buckets.options.tables).await?, &buckets.subject).await?;
    let mut parts: Vec<Decision> = Vec::new();
    for quota in quotas {
        let usage = match limits.usage(&subject, quota).await {
            Ok(usage) => usage,
            Err(error) => return Err(failed(buckets, &error).await),
        };
        // Limits with a quota of their own are the same for all grants.
        let is_new = |part: &&Decision| parts.iter().all(|other| other.policy() != part.policy());
        let new: Vec<_> = usage.parts().filter(is_new).cloned().collect();
        parts.extend(new);
    }
    Ok(show::print(&if buckets.options.json { json(&parts) } else { table(&parts) })?)
}

async fn reset(buckets: &Buckets) -> Result<(), Failure> {
    let (limits, subject) = (redis(buckets)?, Subject::from(buckets.subject.as_str()));
    quotas(&open(&buckets.options.tables).await?, &buckets.subject).await?;
    if let Err(error) = limits.reset(&subject).await {
        return Err(failed(buckets, &error).await);
    }
    let json = json!({ "subject": subject.as_str() }).to_string();
    Ok(show::print(&if buckets.options.json {
        json
    } else {
        format!("reset the limits of {}", show::plain(subject.as_str()))
    })?)
}

/// Returns the different quotas of the subject's grants, without those that have ended if there are others. A mistyped subject is
/// an error.
async fn quotas(database: &Database, subject: &str) -> Result<Vec<Option<Quota>>, Failure> {
    let mut grants = database.list(Some(&subject.into())).await?;
    let has_ended =
        |grant: &GrantRecord| matches!(grant.state(SystemTime::now()), GrantState::Revoked | GrantState::Expired);
    if !grants.iter().all(has_ended) {
        grants.retain(|grant| !has_ended(grant));
    }
    let mut quotas = Vec::new();
    for grant in grants {
        if !quotas.contains(&grant.quota) {
            quotas.push(grant.quota);
        }
    }
    match quotas.is_empty() {
        true => Err(Failure::Failed("the subject has no grants".to_owned())),
        false => Ok(quotas),
    }
}

fn redis(buckets: &Buckets) -> Result<RedisLimits, Failure> {
    let secret = secret_file::read(&buckets.redis_secret_file, "the secret of the keys")?;
    let mut limits: Option<RateLimits> = None;
    for (name, quota) in &buckets.limits {
        let limit = match name.as_str() {
            "default" => Limit::from(*quota),
            name => Limit::new(name, *quota)?,
        };
        let limit = if buckets.grant_quotas.as_ref() == Some(name) { limit.with_grant_quotas() } else { limit };
        limits = Some(match limits {
            Some(limits) => limits.and(limit)?,
            None => RateLimits::new(limit),
        });
    }
    let limits = limits.ok_or_else(|| Failure::Usage("no limit".to_owned()))?;
    if buckets.grant_quotas.as_ref().is_some_and(|name| limits.quota(name).is_none()) {
        return Err(Failure::Usage("--grant-quotas must be the name of a limit".to_owned()));
    }
    let redis = RedisLimits::new(limits, RedisServer::single(&buckets.redis)?, &*secret, NonZeroU32::MIN)?;
    Ok(redis.with_prefix(&buckets.redis_prefix)?.with_timeout(TIMEOUT))
}

/// The timeout for a reply of Redis. A person waits longer than a request.
const TIMEOUT: Duration = Duration::from_secs(3);

impl From<LimitError> for Failure {
    fn from(error: LimitError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<RedisLimitsError> for Failure {
    fn from(error: RedisLimitsError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Returns the error of Redis with its cause, as `tollgate doctor` finds it.
async fn failed(buckets: &Buckets, error: &impl std::fmt::Display) -> Failure {
    let findings = match RedisServer::single(&buckets.redis) {
        Ok(server) => server.diagnose().await,
        Err(_) => Vec::new(),
    };
    let cause = findings.into_iter().find(|finding| finding.severity == Severity::Error);
    Failure::Failed(match cause {
        Some(cause) => format!("{error}: {}", show::plain(&cause.detail)),
        None => error.to_string(),
    })
}

/// Returns the name and the quota of a limit.
fn name_and_quota(part: &Decision) -> (String, String) {
    part.policy().map(|policy| (policy.name().to_owned(), policy.quota().to_string())).unwrap_or_default()
}

fn table(parts: &[Decision]) -> String {
    let row = |part: &Decision| {
        let (name, quota) = name_and_quota(part);
        let full_in = Duration::from_secs(part.full_in().as_secs_f64().ceil() as u64);
        [show::plain(&name), quota, part.remaining().to_string(), humantime::format_duration(full_in).to_string()]
    };
    show::columns(["LIMIT", "QUOTA", "LEFT", "FULL IN"], parts.iter().map(row))
}

fn json(parts: &[Decision]) -> String {
    let value = |part: &Decision| {
        let (name, quota) = name_and_quota(part);
        json!({
            "limit": name,
            "quota": quota,
            "remaining": part.remaining(),
            "full_in_ms": u64::try_from(part.full_in().as_millis()).unwrap_or(u64::MAX),
        })
    };
    Value::from_iter(parts.iter().map(value)).to_string()
}
