//! Checks of a SQLite file: permissions, journal, integrity, and whether it is writable.

use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use tokio::time::timeout;

use super::{failed, row};
use crate::finding::{Finding, with_sources};
use crate::store::sql::database::{Access, administer, on_connection};
use crate::store::sql::{Database, SqlError};

impl Database {
    pub(super) async fn diagnose_sqlite(&self, options: &SqliteConnectOptions) -> Vec<Finding> {
        let server: Result<(String,), _> =
            row!(self, "SELECT sqlite_version() FROM (SELECT COUNT(*) FROM sqlite_master)");
        let server = match server {
            Ok((version,)) => Finding::ok("server", format!("SQLite {version}")),
            Err(error) => return vec![failed("server", &error)],
        };
        vec![
            server,
            diagnose_file(options.get_filename()),
            self.diagnose_journal().await,
            self.diagnose_integrity().await,
        ]
    }

    async fn diagnose_journal(&self) -> Finding {
        const CHECK: &str = "journal";
        let mode: Result<(String,), _> = row!(self, "PRAGMA journal_mode");
        match mode {
            Ok((mode,)) if mode == "wal" => Finding::ok(CHECK, "the journal mode is WAL"),
            Ok((mode,)) => Finding::warning(
                CHECK,
                format!("the journal mode is {mode}, so lookups wait for changes: run `PRAGMA journal_mode = WAL`"),
            ),
            Err(error) => failed(CHECK, &error),
        }
    }

    async fn diagnose_integrity(&self) -> Finding {
        const CHECK: &str = "integrity";
        let first: Result<(String,), _> = row!(self, "PRAGMA quick_check(1)");
        match first {
            Ok((first,)) if first == "ok" => Finding::ok(CHECK, "`PRAGMA quick_check` found no error"),
            Ok((first,)) => Finding::error(CHECK, format!("the file is damaged, so restore a backup: {first}")),
            Err(error) => failed(CHECK, &error),
        }
    }

    pub(super) async fn diagnose_sqlite_rights(&self) -> Finding {
        const CHECK: &str = "writable";
        match self.write_nothing().await {
            Ok(()) => Finding::ok(CHECK, "tokens can be changed"),
            Err(error @ SqlError::Locked) => {
                Finding::warning(CHECK, format!("{error}: another process has been writing for 5 s"))
            }
            Err(error) => {
                Finding::warning(CHECK, format!("tokens can be looked up, but not changed: {}", with_sources(&error)))
            }
        }
    }

    /// Runs an `UPDATE` of no row in a transaction that is rolled back. SQLite rejects it if the file is read-only.
    async fn write_nothing(&self) -> Result<(), SqlError> {
        use sqlx::Connection as _;

        let begin = self.begin(Access::Writes);
        let work = async {
            on_connection!(self, Writes, Transaction, connection => {
                let mut transaction = connection.begin_with(begin).await?;
                let update = self.sql("UPDATE {p}migrations SET version = version WHERE 0 = 1");
                sqlx::query(update).execute(&mut *transaction).await?;
                transaction.rollback().await?;
                Ok(())
            })
        };
        timeout(self.0.admin_timeout, work).await.unwrap_or(Err(SqlError::Timeout))
    }
}

fn diagnose_file(file: &Path) -> Finding {
    const CHECK: &str = "file";
    match std::fs::metadata(file) {
        #[cfg(unix)]
        Ok(metadata) => {
            use std::os::unix::fs::PermissionsExt as _;
            match metadata.permissions().mode() & 0o777 {
                mode if mode & 0o006 != 0 => Finding::warning(
                    CHECK,
                    format!(
                        "other users of this machine can read or change the file (mode {mode:o}): run `chmod 600` on it"
                    ),
                ),
                mode => Finding::ok(CHECK, format!("other users of this machine cannot read the file (mode {mode:o})")),
            }
        }
        #[cfg(not(unix))]
        Ok(_) => Finding::ok(CHECK, "the file exists"),
        Err(_) => Finding::warning(CHECK, "the database is in memory: its tokens are lost when the process ends"),
    }
}
