//! Checks of a database for `tollgate doctor`. They change nothing.

use sqlx::Row as _;

use super::database::{Pool, administer};
use super::page::GrantQuery;
use super::record::{columns, read};
use super::schema::supported;
use super::{Database, GrantRecord, SqlError};
use crate::finding::{Finding, Severity, with_sources};

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

/// Reads one row as a tuple.
macro_rules! row {
    ($database:expr, $statement:expr) => {
        administer!($database, Reads, transaction => {
            Ok(sqlx::query_as($database.sql($statement)).fetch_one(&mut *transaction).await?)
        })
    };
}
use row;

impl Database {
    /// Checks the connection, the tables, the rights and the clock. Changes nothing.
    ///
    /// Each check is a finding. An error of the database is a finding as well.
    #[doc(hidden)]
    pub async fn diagnose(&self) -> Vec<Finding> {
        let mut findings = match &self.0.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(pools) => self.diagnose_sqlite(&pools.options()).await,
            #[cfg(feature = "postgres")]
            Pool::Postgres(connections) => self.diagnose_postgres(connections).await,
        };
        // The other checks would wait for the same timeout.
        if findings.iter().any(|finding| finding.check == "server" && finding.severity > Severity::Ok) {
            return findings;
        }
        let tables = self.diagnose_tables().await;
        let has_tables = tables.severity == Severity::Ok;
        findings.push(tables);
        if has_tables {
            match &self.0.pool {
                #[cfg(feature = "sqlite")]
                Pool::Sqlite(_) => findings.push(self.diagnose_sqlite_rights().await),
                #[cfg(feature = "postgres")]
                Pool::Postgres(_) => findings.extend(self.diagnose_postgres_rights().await),
            }
            let grants = self.diagnose_grants().await;
            let has_counts = grants.severity == Severity::Ok;
            findings.push(grants);
            if has_counts {
                findings.push(self.diagnose_rows().await);
                findings.extend(self.diagnose_sealed().await);
            }
        }
        findings
    }

    /// Closes all connections, so that a SQLite file has no journal left when the process ends.
    #[doc(hidden)]
    pub async fn close(&self) {
        match &self.0.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(pools) => pools.close().await,
            #[cfg(feature = "postgres")]
            Pool::Postgres(connections) => connections.close().await,
        }
    }

    async fn diagnose_tables(&self) -> Finding {
        const CHECK: &str = "tables";
        match self.check_tables().await {
            Ok(()) => Finding::ok(CHECK, format!("the tables have version {}, as required", supported())),
            Err(error @ SqlError::NoTables) => Finding::error(
                CHECK,
                format!("{error}: check `--table-prefix`, or create the tables with `tollgate migrate`"),
            ),
            Err(error @ SqlError::Older { .. }) => {
                Finding::error(CHECK, format!("{error}: upgrade the tables with `tollgate migrate`"))
            }
            Err(error @ SqlError::Newer { .. }) => Finding::error(CHECK, format!("{error}: upgrade this program")),
            Err(error) => failed(CHECK, &error),
        }
    }

    /// Reads the rows of all grants. Tokens of a grant whose row cannot be read get 503.
    async fn diagnose_rows(&self) -> Finding {
        const CHECK: &str = "rows";
        match self.invalid_rows().await {
            Ok(errors) if errors.is_empty() => Finding::ok(CHECK, "the rows of all grants can be read"),
            Ok(errors) => {
                let shown: Vec<String> = errors.iter().take(SHOWN).map(|error| with_sources(error)).collect();
                let more = errors.len().saturating_sub(SHOWN);
                let more = if more > 0 { format!("; and {more} more") } else { String::new() };
                Finding::error(CHECK, format!("restore the values of these rows: {}{more}", shown.join("; ")))
            }
            Err(error) => failed(CHECK, &error),
        }
    }

    /// Returns the errors of rows that cannot be read. Reads pages by the primary key.
    async fn invalid_rows(&self) -> Result<Vec<SqlError>, SqlError> {
        const ROWS: i64 = 1_000;
        const PAGE: &str = concat!("SELECT ", columns!(), " FROM {p}grants g WHERE g.id > $1 ORDER BY g.id LIMIT $2");
        let (mut errors, mut after) = (Vec::new(), String::new());
        loop {
            let last: Option<String> = administer!(self, Reads, transaction => {
                let page = sqlx::query(self.sql(PAGE)).bind(&after).bind(ROWS);
                let rows = page.fetch_all(&mut *transaction).await?;
                errors.extend(rows.iter().filter_map(|row| read(row).and_then(check_principal).err()));
                Ok(rows.last().map(|row| row.try_get("id")).transpose()?)
            })?;
            let Some(last) = last else { return Ok(errors) };
            after = last;
        }
    }

    async fn diagnose_grants(&self) -> Finding {
        const CHECK: &str = "grants";
        match self.count(&GrantQuery::new()).await {
            Ok(counts) => {
                let mut detail = format!(
                    "{} valid, {} not yet valid, {} suspended, {} expired, {} revoked",
                    counts.valid, counts.not_yet_valid, counts.suspended, counts.expired, counts.revoked
                );
                let ended = counts.expired + counts.revoked;
                if ended > 0 {
                    detail += &format!("; `tollgate token purge` deletes {ended}");
                }
                Finding::ok(CHECK, detail)
            }
            Err(error) => failed(CHECK, &error),
        }
    }
}

impl Database {
    /// Counts the sealed tokens by the ids of their keys. Returns nothing if no token is sealed.
    async fn diagnose_sealed(&self) -> Option<Finding> {
        const CHECK: &str = "sealed tokens";
        // Texts are `v1.KEY.TOKEN`.
        const COUNTS: &str = "SELECT CASE WHEN sealed LIKE 'v1.%.%' \
             THEN substr(sealed, 4, {position}(substr(sealed, 4), '.') - 1) ELSE '?' END, COUNT(*) FROM {p}tokens \
             WHERE sealed IS NOT NULL GROUP BY 1 ORDER BY 1";
        let counts: Result<Vec<(String, i64)>, SqlError> = administer!(self, Reads, transaction => {
            Ok(sqlx::query_as(self.sql(COUNTS)).fetch_all(&mut *transaction).await?)
        });
        match counts {
            Ok(counts) if counts.is_empty() => None,
            Ok(counts) => {
                let counts: Vec<_> = counts.iter().map(|(key, count)| format!("{count} with the key {key}")).collect();
                Some(Finding::ok(CHECK, counts.join(", ")))
            }
            Err(error) => Some(failed(CHECK, &error)),
        }
    }
}

/// Checks the principal, which a lookup parses and [`read`] does not.
fn check_principal(grant: GrantRecord) -> Result<(), SqlError> {
    let is_json = |json: &str| serde_json::from_str::<serde::de::IgnoredAny>(json).is_ok();
    match grant.principal.as_deref().is_none_or(is_json) {
        true => Ok(()),
        false => Err(grant.invalid("principal")),
    }
}

/// The maximum number of rows that a finding names.
const SHOWN: usize = 3;

fn failed(check: &'static str, error: &SqlError) -> Finding {
    Finding::error(check, with_sources(error))
}
