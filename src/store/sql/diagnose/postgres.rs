//! Checks of PostgreSQL: version, TLS, rights, clock and notifications.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgListener, PgSslMode};
use sqlx::{AssertSqlSafe, SqlSafeStr as _};
use tokio::time::timeout;

use super::{failed, row};
use crate::finding::Finding;
use crate::loopback::is_local_host;
use crate::store::sql::connections::{self, Connections};
use crate::store::sql::database::{administer, from_unix_ms};
use crate::store::sql::{Database, SqlError};
use crate::token::mint::RandomnessError;

/// The first version with `CREATE TRIGGER ... EXECUTE FUNCTION`.
const MIN_VERSION: i64 = 11;
/// The time within which a notification has to arrive.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);

impl Database {
    pub(super) async fn diagnose_postgres(&self, connections: &Connections) -> Vec<Finding> {
        let version: Result<(String, i64), _> =
            row!(self, "SELECT current_setting('server_version'), current_setting('server_version_num')::bigint");
        let (version, number) = match version {
            Ok(version) => version,
            Err(error) => return vec![failed("server", &error)],
        };
        let server = match number / 10_000 {
            major if major < MIN_VERSION => {
                Finding::error("server", format!("PostgreSQL {version}: version {MIN_VERSION} or later is required"))
            }
            _ => Finding::ok("server", format!("PostgreSQL {version}")),
        };
        let (standby, is_standby) = self.diagnose_standby().await;
        let mut findings =
            vec![server, self.diagnose_tls(&connections.options()).await, standby, self.diagnose_clock().await];
        // A standby supports no notifications.
        if !is_standby {
            findings.push(self.diagnose_notifications(connections).await);
        }
        findings
    }

    async fn diagnose_tls(&self, options: &PgConnectOptions) -> Finding {
        const CHECK: &str = "tls";
        let in_use: Result<(bool,), _> =
            row!(self, "SELECT COALESCE((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), FALSE)");
        let is_local = options.get_socket().is_some() || is_local_host(options.get_host());
        let is_verified = matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull);
        match in_use {
            Ok((true,)) if is_verified || is_local => Finding::ok(CHECK, "the connection is encrypted"),
            Ok((true,)) => Finding::warning(
                CHECK,
                "the connection is encrypted, but the certificate of the server is not verified: add `sslmode=verify-full`",
            ),
            Ok((false,)) if is_local => {
                Finding::ok(CHECK, "the connection is not encrypted, and stays on this machine")
            }
            Ok((false,)) => Finding::warning(
                CHECK,
                "the connection to another host is not encrypted: turn on TLS on the server, and add `sslmode=verify-full`",
            ),
            Err(error) => failed(CHECK, &error),
        }
    }

    /// Also returns whether the server is a standby.
    async fn diagnose_standby(&self) -> (Finding, bool) {
        const CHECK: &str = "writable";
        let state: Result<(bool, bool), _> =
            row!(self, "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean");
        match state {
            Ok((true, _)) => {
                let detail =
                    "the server is a standby: tokens can be looked up, but not changed; connect to the primary";
                (Finding::error(CHECK, detail), true)
            }
            Ok((false, true)) => {
                (Finding::error(CHECK, "`default_transaction_read_only` is on: tokens cannot be changed"), false)
            }
            Ok((false, false)) => (Finding::ok(CHECK, "the server is a primary"), false),
            Err(error) => (failed(CHECK, &error), false),
        }
    }

    async fn diagnose_clock(&self) -> Finding {
        const CHECK: &str = "clock";
        let before = self.now();
        let server: Result<(i64,), _> = row!(self, "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint");
        match server.map(|(ms,)| from_unix_ms(ms)) {
            Ok(Some(server)) => Finding::clock(CHECK, server, [before, self.now()]),
            Ok(None) => Finding::error(CHECK, "the clock of the server is before 1970"),
            Err(error) => failed(CHECK, &error),
        }
    }

    async fn diagnose_notifications(&self, connections: &Connections) -> Finding {
        const CHECK: &str = "notifications";
        let began = Instant::now();
        match timeout(NOTIFY_TIMEOUT, self.notify_itself(connections)).await {
            Ok(Ok(())) => {
                Finding::ok(CHECK, format!("a notification arrived after {} ms", began.elapsed().as_millis()))
            }
            Ok(Err(error)) => failed(CHECK, &error),
            Err(_) => Finding::error(
                CHECK,
                "no notification arrived within 5 s, so caches learn of changes too late: connect to the server directly, \
                 or to a pooler in session mode",
            ),
        }
    }

    /// Listens on a channel of its own, and sends a notification to it.
    async fn notify_itself(&self, connections: &Connections) -> Result<(), SqlError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(RandomnessError::new)?;
        let channel = format!("tollgate_doctor_{:016x}", u64::from_ne_bytes(random));
        let mut listener = PgListener::connect_with(&connections.for_listening()).await?;
        let done = async {
            listener.listen(&channel).await?;
            let notify = AssertSqlSafe(format!("SELECT pg_notify('{channel}', '')")).into_sql_str();
            administer!(self, Reads, transaction => {
                sqlx::query(notify).execute(&mut *transaction).await?;
                Ok(())
            })?;
            listener.recv().await?;
            Ok(())
        };
        let done = done.await;
        connections::close(listener);
        done
    }

    pub(super) async fn diagnose_postgres_rights(&self) -> Vec<Finding> {
        vec![self.diagnose_rights().await, self.diagnose_append_only().await, self.diagnose_owner().await]
    }

    async fn diagnose_rights(&self) -> Finding {
        const CHECK: &str = "rights";
        let missing: Result<(String, String), _> = row!(
            self,
            "SELECT COALESCE(string_agg(missing, ', ') FILTER (WHERE missing LIKE 'SELECT %'), ''), \
             COALESCE(string_agg(missing, ', ') FILTER (WHERE missing NOT LIKE 'SELECT %'), '') \
             FROM (SELECT privilege || ' ON ' || name AS missing FROM (VALUES ('{p}migrations', 'SELECT'), \
             ('{p}grants', 'SELECT'), ('{p}grants', 'INSERT'), ('{p}grants', 'UPDATE'), ('{p}grants', 'DELETE'), \
             ('{p}tokens', 'SELECT'), ('{p}tokens', 'INSERT'), ('{p}tokens', 'UPDATE'), ('{p}tokens', 'DELETE'), \
             ('{p}audit', 'SELECT'), ('{p}audit', 'INSERT')) AS needed (name, privilege) \
             WHERE NOT has_table_privilege(to_regclass(name), privilege)) AS missing"
        );
        match missing {
            Ok((reads, writes)) if !reads.is_empty() => {
                let all = [reads, writes].into_iter().filter(|missing| !missing.is_empty()).collect::<Vec<_>>();
                Finding::error(CHECK, format!("the role cannot read the tables: GRANT {}", all.join(", ")))
            }
            Ok((_, writes)) if !writes.is_empty() => Finding::warning(
                CHECK,
                format!("the role can look up tokens, but not change all of them: GRANT {writes}"),
            ),
            Ok(_) => Finding::ok(CHECK, "the role can look up and change tokens"),
            Err(error) => failed(CHECK, &error),
        }
    }

    async fn diagnose_append_only(&self) -> Finding {
        const CHECK: &str = "audit trail";
        let rights: Result<(bool,), _> = row!(
            self,
            "SELECT COALESCE(bool_or(has_any_column_privilege(oid, 'UPDATE') OR has_table_privilege(oid, 'DELETE, TRUNCATE')), \
             FALSE) FROM pg_class WHERE oid = to_regclass('{p}audit')"
        );
        match rights {
            Ok((true,)) => {
                Finding::warning(CHECK, "the role can change or delete entries: a service needs SELECT and INSERT only")
            }
            Ok((false,)) => Finding::ok(CHECK, "the role can append entries, but not change or delete them"),
            Err(error) => failed(CHECK, &error),
        }
    }

    async fn diagnose_owner(&self) -> Finding {
        const CHECK: &str = "owner";
        let rights: Result<(bool, bool), _> = row!(
            self,
            "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = current_user AND rolsuper), \
             EXISTS (SELECT FROM pg_class WHERE oid IN (to_regclass('{p}migrations'), to_regclass('{p}grants'), \
             to_regclass('{p}tokens'), to_regclass('{p}audit')) AND pg_has_role(relowner, 'USAGE'))"
        );
        match rights {
            Ok((true, _)) => {
                Finding::warning(CHECK, "the role is a superuser: let a service connect with a role of its own")
            }
            Ok((false, true)) => Finding::warning(
                CHECK,
                "the role can alter and drop the tables: let a service connect with a role that does not own them",
            ),
            Ok((false, false)) => Finding::ok(CHECK, "the role cannot alter or drop the tables"),
            Err(error) => failed(CHECK, &error),
        }
    }
}
