//! Checks of a database for `tollgate doctor`. They change nothing.

use super::database::Pool;
use super::page::GrantQuery;
use super::schema::supported;
use super::{Database, SqlError};
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
            Pool::Sqlite(pool) => self.diagnose_sqlite(&pool.connect_options()).await,
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
            findings.push(self.diagnose_grants().await);
        }
        findings
    }

    /// Closes all connections, so that a SQLite file has no journal left when the process ends.
    #[doc(hidden)]
    pub async fn close(&self) {
        match &self.0.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(pool) => pool.close().await,
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

fn failed(check: &'static str, error: &SqlError) -> Finding {
    Finding::error(check, with_sources(error))
}
