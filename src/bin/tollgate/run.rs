//! What the commands do.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io::{self, Write as _};
use std::time::SystemTime;

use tollgate::mint::{Secret, TokenFormat};
use tollgate::store::sql::{Database, GrantRecord, Issued, NewGrant, SqlError};
use tollgate::{GrantId, Quota, QuotaError, ScopeError, Subject};

use crate::args::{Cli, Issue, Noun, Place, Rate, Tables, Verb, default_format};
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
                let mut text = error.to_string();
                let mut source = error.source();
                while let Some(error) = source {
                    let cause = error.to_string();
                    // Some errors contain the text of their source.
                    if !text.contains(&cause) {
                        text = text + ": " + &cause;
                    }
                    source = error.source();
                }
                f.write_str(&text)?;
                f.write_str(match error {
                    SqlError::NoFile => "; check `--database`, or create the file with `tollgate migrate`",
                    SqlError::NoTables => {
                        "; check `--database` and `--table-prefix`, or create the tables with `tollgate migrate`"
                    }
                    SqlError::Older { .. } => "; upgrade the tables with `tollgate migrate`",
                    _ => "",
                })
            }
        }
    }
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        Self::Database(error)
    }
}

impl From<ScopeError> for Failure {
    /// The error itself repeats the scope.
    fn from(_: ScopeError) -> Self {
        Self::Usage("a scope is made of printable ASCII characters, without spaces, quotes and backslashes".to_owned())
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

pub(crate) async fn run(Cli { noun }: Cli) -> Result<(), Failure> {
    match noun {
        Noun::Migrate(tables) => migrate(&tables).await,
        Noun::Token(verb) => token(verb).await,
    }
}

async fn migrate(tables: &Tables) -> Result<(), Failure> {
    // A wrong prefix is an error before anything is created.
    Database::connect_lazily(&with_creation(&tables.database, false))?.with_table_prefix(&tables.table_prefix)?;
    let database = Database::connect(&with_creation(&tables.database, true)).await?;
    database.with_table_prefix(&tables.table_prefix)?.migrate().await?;
    Ok(show::print("the tables are up to date")?)
}

async fn token(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Issue(issue) => {
            let grant = new_grant(&issue)?;
            let database = open(&issue.place).await?;
            let issued = database.issue(&issue.prefix, &grant).await?;
            hand_over(&issued, issue.place.json)
        }
        Verb::List { place, subject } => {
            let database = open(&place).await?;
            let grants = database.list(subject.map(Into::into).as_ref()).await?;
            let text = if place.json { show::json_list(&grants) } else { show::table(&grants) };
            Ok(show::print(&text)?)
        }
        Verb::Show { place, id } => {
            let grant = find(&open(&place).await?, &id).await?;
            Ok(show::print(&if place.json { show::json(&grant) } else { show::details(&grant) })?)
        }
        Verb::Rotate { place, id, grace, prefix } => {
            let database = open(&place).await?;
            let format = match prefix {
                Some(format) => format,
                None => same_format(&find(&database, &id).await?, place.json)?,
            };
            let issued = database.rotate(&id.into(), &format, grace).await?;
            hand_over(&issued, place.json)
        }
        Verb::Revoke { place, id: Some(id), .. } => {
            let database = open(&place).await?;
            let id = GrantId::from(id);
            if !database.revoke(&id).await? {
                find(&database, id.as_str()).await?;
                return Err(Failure::Refused("the grant is already revoked".to_owned()));
            }
            let grant = find(&database, id.as_str()).await?;
            Ok(show::print(&if place.json { show::json(&grant) } else { format!("revoked {id}") })?)
        }
        Verb::Revoke { place, subject, .. } => {
            let subject = Subject::from(subject.unwrap_or_default());
            let database = open(&place).await?;
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
            let database = open(&place).await?;
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

/// Connects. Neither a file nor tables are created: for a mistyped URL or prefix they would be empty.
async fn open(Place { tables, .. }: &Place) -> Result<Database, Failure> {
    let url = with_creation(&tables.database, false);
    // A wrong prefix is an error before a server is asked.
    Database::connect_lazily(&url)?.with_table_prefix(&tables.table_prefix)?;
    let database = Database::connect(&url).await?.with_table_prefix(&tables.table_prefix)?;
    database.check_tables().await?;
    Ok(database)
}

/// The URL with or without the order to create a SQLite file. A `mode` that says otherwise (`rw`, `ro`) is kept.
fn with_creation(url: &str, create: bool) -> Cow<'_, str> {
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

/// The format of a grant's newest token, if it is known.
fn same_format(grant: &GrantRecord, json: bool) -> Result<TokenFormat, Failure> {
    if let Some(format) = grant.token_prefix.as_deref().and_then(|prefix| TokenFormat::new(prefix).ok()) {
        return Ok(format);
    }
    let format = default_format().map_err(|error| Failure::Usage(error.to_string()))?;
    // In JSON the prefix is a member of the grant.
    if !json {
        show::say(&format!(
            "the prefix of the old token is not known; the new token has the prefix {}",
            format.prefix()
        ));
    }
    Ok(format)
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
