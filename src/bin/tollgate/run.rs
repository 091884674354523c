//! What the commands do.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::SystemTime;

use percent_encoding::percent_decode_str;
use tollgate::mint::Secret;
use tollgate::store::sql::{Database, GrantRecord, Issued, NewGrant, SqlError};
use tollgate::{GrantId, InvalidScope, Quota, QuotaError, Subject};

use crate::args::{Cli, Issue, Noun, Place, Rate, Verb};
use crate::show;

/// Why a command was not done, and what it exits with.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is wrong in a way that its parser does not see.
    Usage(String),
    Refused(String),
    Database(SqlError),
}

impl Failure {
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Database(SqlError::Url(_) | SqlError::Prefix | SqlError::Name) => 2,
            Self::Refused(_) | Self::Database(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Refused(text) => f.write_str(text),
            Self::Database(error) => {
                write!(f, "{error}")?;
                let mut text = error.to_string();
                let mut source = error.source();
                while let Some(error) = source {
                    let cause = error.to_string();
                    // Some errors end with what their source says.
                    if !text.ends_with(&cause) {
                        text = text + ": " + &cause;
                    }
                    source = error.source();
                }
                f.write_str(&text)
            }
        }
    }
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        Self::Database(error)
    }
}

impl From<InvalidScope> for Failure {
    fn from(error: InvalidScope) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<QuotaError> for Failure {
    fn from(error: QuotaError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Refused(format!("standard output: {error}"))
    }
}

pub(crate) async fn run(Cli { noun: Noun::Token(verb) }: Cli) -> Result<(), Failure> {
    match verb {
        Verb::Issue(issue) => {
            let grant = new_grant(&issue)?;
            let database = open(&issue.place, true).await?;
            let issued = database.issue(&issue.prefix, &grant).await?;
            hand_over(&issued, issue.place.json)
        }
        Verb::List { place, subject } => {
            let database = open(&place, false).await?;
            let grants = database.list(subject.map(Into::into).as_ref()).await?;
            let text = if place.json { show::json_list(&grants) } else { show::table(&grants) };
            Ok(show::print(&text)?)
        }
        Verb::Show { place, id } => {
            let grant = find(&open(&place, false).await?, &id).await?;
            Ok(show::print(&if place.json { show::json(&grant) } else { show::details(&grant) })?)
        }
        Verb::Rotate { place, id, grace, prefix } => {
            let database = open(&place, false).await?;
            let issued = database.rotate(&id.into(), &prefix, grace).await?;
            hand_over(&issued, place.json)
        }
        Verb::Revoke { place, id: Some(id), .. } => {
            let database = open(&place, false).await?;
            let id = GrantId::from(id);
            if !database.revoke(&id).await? {
                let grant = find(&database, id.as_str()).await?;
                return Err(Failure::Refused(format!("the grant {} is revoked already", grant.id)));
            }
            let grant = find(&database, id.as_str()).await?;
            Ok(show::print(&if place.json { show::json(&grant) } else { format!("revoked {id}") })?)
        }
        Verb::Revoke { place, subject, .. } => {
            let subject = Subject::from(subject.unwrap_or_default());
            let database = open(&place, false).await?;
            let revoked = |grants: Vec<GrantRecord>| grants.into_iter().filter(|grant| grant.revoked_at.is_some());
            let before: Vec<GrantId> = revoked(database.list(Some(&subject)).await?).map(|grant| grant.id).collect();
            if database.revoke_subject(&subject).await? == 0 {
                return Err(Failure::Refused("there is no grant of this subject to revoke".to_owned()));
            }
            let now = revoked(database.list(Some(&subject)).await?).map(|grant| grant.id);
            let ids: Vec<GrantId> = now.filter(|id| !before.contains(id)).collect();
            let text = if place.json { show::json_ids(&ids) } else { format!("revoked {} of {subject}", ids.len()) };
            Ok(show::print(&text)?)
        }
        Verb::Purge { place, ended_before } => {
            let database = open(&place, false).await?;
            let before = SystemTime::now().checked_sub(ended_before).unwrap_or(SystemTime::UNIX_EPOCH);
            let count = database.purge(before).await?;
            Ok(show::print(&if place.json { format!(r#"{{"purged":{count}}}"#) } else { format!("purged {count}") })?)
        }
    }
}

fn new_grant(issue: &Issue) -> Result<NewGrant, Failure> {
    let mut grant = NewGrant::new(issue.subject.as_str()).with_label(&issue.label).with_scopes(&issue.scopes)?;
    if let Some(Rate { number, period }) = issue.quota {
        let quota = Quota::try_per(number, period)?;
        grant = grant.with_quota(match issue.burst {
            None => quota,
            Some(burst) => quota.try_with_burst(burst)?,
        });
    }
    if let Some(time) = issue.expires {
        let end = SystemTime::now().checked_add(time);
        grant = grant.with_expiry(end.ok_or_else(|| Failure::Usage("there is no date so far away".to_owned()))?);
    }
    grant.check()?;
    Ok(grant)
}

/// Connects, and brings the tables to this version.
async fn open(place: &Place, create: bool) -> Result<Database, Failure> {
    // A file that is mistyped is not made: it would have no tokens in it.
    if let (false, Some(path)) = (create, sqlite_file(&place.database)) {
        if !Path::new(&*path).exists() {
            return Err(Failure::Refused(format!("there is no database {path}")));
        }
    }
    // Nor is one made for a command line that is wrong.
    Database::connect_lazily(&place.database)?.with_table_prefix(&place.table_prefix)?;
    let database = Database::connect(&place.database).await?.with_table_prefix(&place.table_prefix)?;
    database.migrate().await?;
    Ok(database)
}

fn sqlite_file(url: &str) -> Option<Cow<'_, str>> {
    let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:"))?;
    let path = path.split('?').next().unwrap_or(path);
    (path != ":memory:").then(|| percent_decode_str(path).decode_utf8_lossy())
}

async fn find(database: &Database, id: &str) -> Result<GrantRecord, Failure> {
    database.describe(&id.into()).await?.ok_or(Failure::Database(SqlError::NotFound))
}

/// The secret to standard output, and nothing else; what it belongs to, to standard error.
fn hand_over(Issued { secret, grant }: &Issued, json: bool) -> Result<(), Failure> {
    // Whatever becomes of this, the secret is handed over.
    show::say(&if json { show::json(grant) } else { show::details(grant) });
    print_secret(secret).map_err(|error| {
        Failure::Refused(format!("standard output: {error}\nnobody has the token of {}: revoke or rotate it", grant.id))
    })
}

fn print_secret(secret: &Secret) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(secret.expose().as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}
