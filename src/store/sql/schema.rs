//! Table names, SQL dialects and migrations.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor as _, SqlSafeStr as _, SqlStr};
use tokio::time::{Instant, sleep, timeout};

use super::database::{LOCK_TIMEOUT, administer, on_connection};
use super::{Database, SqlError};

const DEFAULT_PREFIX: &str = "tollgate_";
const MAX_PREFIX_LEN: usize = 32;
/// The pause before a statement is run again that failed because of a lock in SQLite.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// A version of the tables. Released migrations are never changed; a change is a new migration.
struct Migration {
    both: &'static str,
    #[cfg(feature = "sqlite")]
    sqlite: &'static str,
    #[cfg(feature = "postgres")]
    postgres: &'static str,
}

/// All versions, oldest first.
const MIGRATIONS: [Migration; 4] = [
    Migration {
        both: include_str!("migrations/1.sql"),
        #[cfg(feature = "sqlite")]
        sqlite: include_str!("migrations/1.sqlite.sql"),
        #[cfg(feature = "postgres")]
        postgres: include_str!("migrations/1.postgres.sql"),
    },
    Migration {
        both: include_str!("migrations/2.sql"),
        #[cfg(feature = "sqlite")]
        sqlite: include_str!("migrations/2.sqlite.sql"),
        #[cfg(feature = "postgres")]
        postgres: include_str!("migrations/2.postgres.sql"),
    },
    Migration {
        both: "",
        #[cfg(feature = "sqlite")]
        sqlite: include_str!("migrations/3.sqlite.sql"),
        #[cfg(feature = "postgres")]
        postgres: include_str!("migrations/3.postgres.sql"),
    },
    Migration {
        both: "",
        #[cfg(feature = "sqlite")]
        sqlite: include_str!("migrations/4.sqlite.sql"),
        #[cfg(feature = "postgres")]
        postgres: include_str!("migrations/4.postgres.sql"),
    },
];

/// The names of the tables and the SQL dialect of the database.
#[derive(Clone)]
pub(super) struct Schema {
    prefix: Box<str>,
    dialect: &'static Dialect,
    /// The statement of lookups, rendered once.
    pub(super) lookup: SqlStr,
}

struct Dialect {
    bytes: &'static str,
    json: &'static str,
    /// The suffix of a `SELECT` that locks a row for a change.
    for_update: &'static str,
    /// The function that returns the position of a text in another.
    position: &'static str,
    /// The type of a numbered primary key.
    serial: &'static str,
    /// The function that returns the elements of a JSON list, as rows with the column `value`.
    json_elements: &'static str,
    /// The expression of a digest, which is the first item of a JSON list, in hexadecimal.
    digest: &'static str,
    /// The suffix of a `CREATE TABLE`.
    keyed: &'static str,
    /// Runs before the first tables are created, outside of a transaction.
    prepare: Option<&'static str>,
    /// Locks out other migrations until the transaction ends, if `BEGIN` does not. Otherwise two migrations at the same time
    /// could fail, even with `IF NOT EXISTS`.
    lock: &'static str,
    /// Locks out other counts of the subject `$1`, and those of imports, until the transaction ends, if `BEGIN` does not.
    lock_subject: &'static str,
    /// Locks out all other counts, for an import.
    lock_subjects: &'static str,
    /// Counts how many of the three tables exist.
    count: &'static str,
    /// Runs before an upgrade of existing tables.
    upgrade: &'static str,
    migration: fn(&Migration) -> &'static str,
}

#[cfg(feature = "sqlite")]
const SQLITE: Dialect = Dialect {
    bytes: "BLOB",
    json: "TEXT",
    for_update: "",
    position: "instr",
    serial: "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT",
    json_elements: "json_each",
    digest: "unhex(item.value ->> 0)",
    // With row ids, a statement could replace a row by its row id, which fires no trigger.
    keyed: " WITHOUT ROWID",
    prepare: None,
    lock: "SELECT 1",
    lock_subject: "SELECT $1",
    lock_subjects: "SELECT 1",
    count: "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' \
        AND name IN ('{p}migrations', '{p}grants', '{p}tokens')",
    upgrade: "",
    migration: |migration| migration.sqlite,
};

impl Schema {
    /// Returns the schema for a pool of the service.
    #[cfg(feature = "sqlite")]
    pub(super) fn sqlite() -> Self {
        Self::of(DEFAULT_PREFIX.into(), &SQLITE)
    }

    /// Returns the schema for a file that this crate opens. The first migration sets WAL mode, which the file keeps. So
    /// connecting changes no file.
    #[cfg(feature = "sqlite")]
    pub(super) fn own_sqlite() -> Self {
        static DIALECT: Dialect = Dialect { prepare: Some("PRAGMA journal_mode = WAL"), ..SQLITE };
        Self::of(DEFAULT_PREFIX.into(), &DIALECT)
    }

    #[cfg(feature = "postgres")]
    pub(super) fn postgres() -> Self {
        static DIALECT: Dialect = Dialect {
            bytes: "BYTEA",
            json: "JSONB",
            for_update: "FOR UPDATE",
            position: "strpos",
            serial: "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
            json_elements: "jsonb_array_elements",
            digest: "decode(item.value ->> 0, 'hex')",
            keyed: "",
            prepare: None,
            // Another migration may take longer than `lock_timeout`.
            lock: "SELECT set_config('lock_timeout', '0', true), pg_advisory_xact_lock(hashtext('{p}migrations'))",
            lock_subject: "SELECT pg_advisory_xact_lock_shared(hashtext('{p}imports'), '{p}grants'::regclass::oid::int), \
                pg_advisory_xact_lock(hashtext('{p}grants'), hashtext($1))",
            // One lock, because a server has memory for a few thousand.
            lock_subjects: "SELECT pg_advisory_xact_lock(hashtext('{p}imports'), '{p}grants'::regclass::oid::int)",
            count: "SELECT CAST(num_nonnulls(to_regclass('{p}migrations'), to_regclass('{p}grants'), \
                to_regclass('{p}tokens')) AS BIGINT)",
            // In the order of lookups: several migrations in another order could end in a deadlock with them. Lookups wait behind
            // this lock, so the wait for it is short.
            upgrade: "SET LOCAL lock_timeout = '2s'; LOCK TABLE {p}tokens, {p}grants IN ACCESS EXCLUSIVE MODE",
            migration: |migration| migration.postgres,
        };
        Self::of(DEFAULT_PREFIX.into(), &DIALECT)
    }

    fn of(prefix: Box<str>, dialect: &'static Dialect) -> Self {
        let lookup = render(super::lookup::STATEMENT, &prefix, dialect);
        Self { prefix, dialect, lookup }
    }

    pub(super) fn with_prefix(&self, prefix: &str) -> Option<Self> {
        let fits = (1..=MAX_PREFIX_LEN).contains(&prefix.len())
            && prefix.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
            && !prefix.starts_with(|first: char| first.is_ascii_digit());
        fits.then(|| Self::of(prefix.into(), self.dialect))
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn lock_subject(&self) -> SqlStr {
        self.render(self.dialect.lock_subject)
    }

    pub(super) fn lock_subjects(&self) -> SqlStr {
        self.render(self.dialect.lock_subjects)
    }

    pub(super) fn render(&self, template: &'static str) -> SqlStr {
        render(template, &self.prefix, self.dialect)
    }
}

/// Renders a statement. All parts are static, but the prefix, whose characters were checked.
fn render(template: &'static str, prefix: &str, dialect: &Dialect) -> SqlStr {
    let statement = template
        .replace("{p}", prefix)
        .replace("{bytes}", dialect.bytes)
        .replace("{json}", dialect.json)
        .replace("{for_update}", dialect.for_update)
        .replace("{position}", dialect.position)
        .replace("{serial}", dialect.serial)
        .replace("{json_elements}", dialect.json_elements)
        .replace("{digest}", dialect.digest)
        .replace("{keyed}", dialect.keyed);
    AssertSqlSafe(Arc::<str>::from(statement)).into_sql_str()
}

/// The versions of the tables before and after [`Database::migrate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migrated {
    /// The version before. `None` if there were no tables.
    pub from: Option<i64>,
    /// The version after. Equal to `from` if the tables were up to date.
    pub to: i64,
}

impl Database {
    /// Creates the tables, or upgrades them to this version. Does nothing if they are up to date. Several processes may call
    /// this method at the same time.
    ///
    /// The version is stored in the table `migrations` with the same prefix, so that it does not conflict with migrations by
    /// sqlx or other tools. In a SQLite file that [`connect`](Self::connect) opened, the first migration sets WAL mode, so that
    /// readers do not wait for writers.
    ///
    /// # Errors
    ///
    /// If the database fails, or if the tables are of a newer version.
    pub async fn migrate(&self) -> Result<Migrated, SqlError> {
        let supported = supported();
        let schema = &self.0.schema;
        let last = self.sql(LAST);
        // Usually the tables are up to date, and a role that may only read succeeds. Without tables this query fails.
        let found = administer!(self, Reads, transaction => {
            Ok(sqlx::query_scalar::<_, i64>(last.clone()).fetch_one(&mut *transaction).await?)
        });
        match (found, schema.dialect.prepare) {
            (Ok(found), _) if found == supported => return Ok(Migrated { from: Some(found), to: supported }),
            (Ok(found), _) if found > supported => return Err(SqlError::Newer { found, expected: supported }),
            (Err(_), Some(prepare)) => self.prepare(prepare).await?,
            _ => {}
        }
        administer!(self, Writes, transaction => {
            sqlx::query(self.sql(schema.dialect.lock)).execute(&mut *transaction).await?;
            let table = self.sql("CREATE TABLE IF NOT EXISTS {p}migrations \
                 (version BIGINT NOT NULL PRIMARY KEY, applied_ms BIGINT NOT NULL)");
            sqlx::query(table).execute(&mut *transaction).await?;
            let found: i64 = sqlx::query_scalar(last).fetch_one(&mut *transaction).await?;
            if found > supported {
                return Err(SqlError::Newer { found, expected: supported });
            }
            if found > 0 {
                transaction.execute(self.sql(schema.dialect.upgrade)).await?;
            }
            for (version, migration) in (1_i64..).zip(&MIGRATIONS).filter(|(version, _)| *version > found) {
                for script in [migration.both, (schema.dialect.migration)(migration)] {
                    // A script has several statements, so it cannot be prepared. The future of `raw_sql` is not `Send`.
                    transaction.execute(self.sql(script)).await?;
                }
                let applied = self.sql("INSERT INTO {p}migrations (version, applied_ms) VALUES ($1, $2)");
                sqlx::query(applied).bind(version).bind(self.now_ms()).execute(&mut *transaction).await?;
            }
            Ok(Migrated { from: (found > 0).then_some(found), to: supported })
        })
    }

    /// Runs a statement outside of a transaction.
    ///
    /// SQLite does not change the journal mode while a writer is about to commit, without waiting for its `busy_timeout`.
    /// This method waits as long itself.
    async fn prepare(&self, statement: &'static str) -> Result<(), SqlError> {
        let once = || async {
            on_connection!(self, Writes, Transaction, connection => {
                sqlx::query(statement).execute(connection).await?;
                Ok(())
            })
        };
        let until = Instant::now() + LOCK_TIMEOUT;
        let work = async {
            loop {
                match once().await {
                    Err(SqlError::Locked) if Instant::now() < until => sleep(TRY_AGAIN).await,
                    done => return done,
                }
            }
        };
        timeout(self.0.admin_timeout, work).await.unwrap_or(Err(SqlError::Timeout))
    }

    /// Checks that the tables exist and have this version. Changes nothing.
    ///
    /// ```no_run
    /// use tollgate::store::sql::{Database, SqlError};
    ///
    /// # async fn example() -> Result<(), SqlError> {
    /// let database = Database::connect("postgres://127.0.0.1/acme").await?;
    /// // The deployment runs `tollgate migrate`; the role of the service may not change tables.
    /// database.check_tables().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`SqlError::NoTables`], [`SqlError::Older`], [`SqlError::Newer`], or if the database fails.
    pub async fn check_tables(&self) -> Result<(), SqlError> {
        let (count, last) = (self.sql(self.0.schema.dialect.count), self.sql(LAST));
        let found: i64 = administer!(self, Reads, transaction => {
            let tables: i64 = sqlx::query_scalar(count).fetch_one(&mut *transaction).await?;
            if tables < 3 {
                return Err(SqlError::NoTables);
            }
            Ok(sqlx::query_scalar(last).fetch_one(&mut *transaction).await?)
        })?;
        match found.cmp(&supported()) {
            Ordering::Less => Err(SqlError::Older { found, expected: supported() }),
            Ordering::Equal => Ok(()),
            Ordering::Greater => Err(SqlError::Newer { found, expected: supported() }),
        }
    }
}

const LAST: &str = "SELECT COALESCE(MAX(version), 0) FROM {p}migrations";

/// Returns the newest version that this crate supports.
pub(super) fn supported() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}
