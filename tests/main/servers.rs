//! The databases of tests.
//!
//! Without a database the tests report `skipped: no PostgreSQL` with their names. They fail if `TOLLGATE_REQUIRE_SERVERS` is set.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::{Connection as _, Executor as _, PgConnection};
use tollgate::store::sql::Database;

use crate::machine::{skip, unique};

/// Runs a test on SQLite and on PostgreSQL, each with empty tables.
pub async fn on_each_database<F: Future<Output = ()>>(test: &str, run: impl Fn(Home) -> F) {
    let sqlite = Home::sqlite();
    sqlite.database().await.migrate().await.unwrap();
    run(sqlite).await;
    if let Some(postgres) = Home::postgres(test).await {
        postgres.database().await.migrate().await.unwrap();
        run(postgres).await;
    }
}

/// The tables of one test, which are removed on drop.
#[derive(Clone)]
pub struct Home {
    url: String,
    /// Removes the tables when the last clone is dropped.
    _cleanup: std::sync::Arc<Cleanup>,
}

enum Cleanup {
    Folder(PathBuf),
    Schema { server: String, schema: String },
}

impl Home {
    pub fn sqlite() -> Self {
        let folder = std::env::temp_dir().join(format!("tollgate-{}", unique()));
        std::fs::create_dir(&folder).unwrap();
        let url = format!("sqlite://{}", folder.join("tokens.db").display());
        Self { url, _cleanup: Cleanup::Folder(folder).into() }
    }

    pub async fn postgres(test: &str) -> Option<Self> {
        let server = postgres_server(test).await?;
        let schema = format!("tollgate_{}", unique());
        let mut connection = PgConnection::connect(&server).await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).execute(&mut connection).await.unwrap();
        let and = if server.contains('?') { '&' } else { '?' };
        let url = format!("{server}{and}options[search_path]={schema}");
        Some(Self { url, _cleanup: Cleanup::Schema { server, schema }.into() })
    }

    // The URL is not a public field: moving it out would drop the rest, and so remove the tables.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn is_postgres(&self) -> bool {
        matches!(*self._cleanup, Cleanup::Schema { .. })
    }

    /// Connects like another process. Creates the file on SQLite.
    pub async fn database(&self) -> Database {
        let create = if self.is_postgres() { "" } else { "?mode=rwc" };
        Database::connect(&format!("{}{create}", self.url)).await.unwrap()
    }

    /// Returns the URL with another address, such as that of a proxy.
    pub fn url_through(&self, address: std::net::SocketAddr) -> String {
        let (scheme, rest) = self.url.split_once("://").unwrap();
        let (authority, path) = rest.split_once('/').unwrap();
        let user = authority.rsplit_once('@').map_or(String::new(), |(user, _)| format!("{user}@"));
        format!("{scheme}://{user}{address}/{path}")
    }

    /// Returns `host:port` of the server.
    pub fn address(&self) -> String {
        let authority = self.url.split_once("://").unwrap().1.split('/').next().unwrap();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if host.contains(':') { host.to_owned() } else { format!("{host}:5432") }
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        match self {
            Self::Folder(folder) => _ = std::fs::remove_dir_all(folder),
            Self::Schema { server, schema } => {
                let (server, schema) = (server.clone(), schema.clone());
                // On another thread: the test's runtime may be shutting down.
                let removal = std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let Ok(mut connection) = PgConnection::connect(&server).await else { return };
                        _ = sqlx::query(sqlx::AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE")))
                            .execute(&mut connection)
                            .await;
                    });
                });
                _ = removal.join();
            }
        }
    }
}

/// A role of PostgreSQL with some rights on the tables of a test.
pub struct Role {
    owner: PgConnection,
    name: String,
    url: String,
}

impl Role {
    /// Creates a role with these rights, which are `GRANT` statements with `{role}` and `{schema}`.
    pub async fn create(home: &Home, rights: &str) -> Self {
        let mut owner = PgConnection::connect(home.url()).await.unwrap();
        let schema: String = sqlx::query_scalar("SELECT current_schema()::text").fetch_one(&mut owner).await.unwrap();
        let name = format!("{schema}_role");
        let statements = format!("CREATE ROLE {{role}}; GRANT USAGE ON SCHEMA {{schema}} TO {{role}}; {rights}");
        let statements = statements.replace("{role}", &name).replace("{schema}", &schema);
        owner.execute(sqlx::AssertSqlSafe(statements)).await.unwrap();
        let url = format!("{}&options[role]={name}", home.url());
        Self { owner, name, url }
    }

    /// Returns the URL with which this role connects.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn remove(mut self) {
        let statements = format!("DROP OWNED BY {0}; DROP ROLE {0}", self.name);
        self.owner.execute(sqlx::AssertSqlSafe(statements)).await.unwrap();
    }
}

/// Returns `TOLLGATE_TEST_POSTGRES`, or PostgreSQL on this machine, if it is available.
async fn postgres_server(test: &str) -> Option<String> {
    let named = std::env::var("TOLLGATE_TEST_POSTGRES").ok();
    let server = named.unwrap_or_else(|| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
    let reached = tokio::time::timeout(Duration::from_secs(5), PgConnection::connect(&server)).await;
    if let Ok(Ok(connection)) = reached {
        _ = connection.close().await;
        return Some(server);
    }
    skip("PostgreSQL", test);
    None
}
