//! Open sockets end when another process changes the database, in SQLite and in PostgreSQL.

use std::path::PathBuf;

use sqlx::{Connection as _, SqliteConnection};
use tollgate::mint::{Secret, TokenFormat};
use tollgate::store::sql::{Database, NewGrant, Sealer, SealingKey};

use super::frames::{Frame, Raw};
use super::*;
use crate::database;

/// A database of one test.
enum Home {
    Sqlite(PathBuf),
    #[cfg(feature = "postgres")]
    Postgres {
        server: String,
        name: String,
    },
}

fn unique() -> String {
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap();
    format!("crosstrade_{:016x}", u64::from_ne_bytes(random))
}

impl Home {
    fn sqlite() -> Self {
        let folder = std::env::temp_dir().join(unique());
        std::fs::create_dir(&folder).unwrap();
        Self::Sqlite(folder)
    }

    /// On `TOLLGATE_TEST_POSTGRES`, or what answers on this machine.
    #[cfg(feature = "postgres")]
    async fn postgres(test: &str) -> Option<Self> {
        let named = std::env::var("TOLLGATE_TEST_POSTGRES").ok();
        let server = named.unwrap_or_else(|| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
        let connected = tokio::time::timeout(Duration::from_secs(5), sqlx::PgConnection::connect(&server)).await;
        let Ok(Ok(mut connection)) = connected else { return replicas::skipped("no PostgreSQL", test) };
        let name = unique();
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await.unwrap();
        Some(Self::Postgres { server, name })
    }

    fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => format!("sqlite://{}?mode=rwc", folder.join("tokens.db").display()),
            #[cfg(feature = "postgres")]
            Self::Postgres { server, name } => {
                let (scheme, rest) = server.split_once("://").unwrap();
                format!("{scheme}://{}/{name}", rest.split('/').next().unwrap())
            }
        }
    }

    /// Runs statements as another process would: by a connection of its own, which knows nothing of the crate.
    async fn run(&self, statements: &'static str) {
        match self {
            Self::Sqlite(_) => {
                let mut connection = SqliteConnection::connect(&self.url()).await.unwrap();
                sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
            }
            #[cfg(feature = "postgres")]
            Self::Postgres { .. } => {
                let mut connection = sqlx::PgConnection::connect(&self.url()).await.unwrap();
                sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
            }
        }
    }

    async fn remove(self) {
        match self {
            // The service may be writing there still.
            Self::Sqlite(folder) => _ = std::fs::remove_dir_all(folder),
            #[cfg(feature = "postgres")]
            Self::Postgres { server, name } => {
                let mut connection = sqlx::PgConnection::connect(&server).await.unwrap();
                let drop = format!("DROP DATABASE {name} WITH (FORCE)");
                sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&mut connection).await.unwrap();
            }
        }
    }
}

/// A service on this database, and a token for each of these subjects.
async fn start<const N: usize>(home: &Home, subjects: [&str; N]) -> (Server, [Secret; N]) {
    let sealer = Sealer::new(SealingKey::generate("first").unwrap());
    let database = database::open_with(Database::connect(&home.url()).await.unwrap(), sealer).await.unwrap();
    let format = TokenFormat::new("ct").unwrap();
    let mut secrets = Vec::new();
    for subject in subjects {
        secrets.push(database.issue(&format, &NewGrant::new(subject)).await.unwrap().secret);
    }
    let server = Server::start_on(database::tokens(&database).unwrap(), Errors::ProblemDetails).await;
    (server, secrets.try_into().ok().unwrap())
}

/// Waits for the Close frame. Pings are answered on the way.
async fn closed(socket: &mut Raw) -> Option<u16> {
    let closed = async {
        loop {
            match socket.reader.next().await {
                Some(Frame::Ping) => socket.pong().await,
                Some(Frame::Close(code)) => return code,
                other => panic!("{other:?}"),
            }
        }
    };
    // A watchdog: it takes a second at the most.
    tokio::time::timeout(Duration::from_secs(60), closed).await.expect("the socket is closed")
}

async fn changes_by_another_process_close_sockets(home: Home) {
    let (server, [revoked, deleted, kept]) = start(&home, ["revoked", "deleted", "kept"]).await;
    let mut sockets = Vec::new();
    for secret in [&revoked, &revoked, &deleted, &kept] {
        let mut socket = Raw::open(&server, secret.expose()).await;
        socket.ask_ping().await;
        sockets.push(socket);
    }
    home.run("UPDATE tollgate_grants SET revoked_ms = 1 WHERE subject = 'revoked'").await;
    for socket in &mut sockets[..2] {
        assert_eq!(closed(socket).await, Some(1008));
    }
    let delete =
        "DELETE FROM tollgate_tokens WHERE grant_id IN (SELECT id FROM tollgate_grants WHERE subject = 'deleted')";
    home.run(delete).await;
    assert_eq!(closed(&mut sockets[2]).await, Some(1008));
    sockets[3].ask_ping().await;
    drop(server);
    home.remove().await;
}

#[tokio::test]
async fn changes_in_sqlite_close_sockets() {
    changes_by_another_process_close_sockets(Home::sqlite()).await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn changes_in_postgresql_close_sockets() {
    let Some(home) = Home::postgres("changes_in_postgresql_close_sockets").await else { return };
    changes_by_another_process_close_sockets(home).await;
}

/// Notifications during a lost connection are lost, so everything is looked up after the reconnect.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_revocation_while_the_connection_is_lost_closes_sockets() {
    let Some(home) = Home::postgres("a_revocation_while_the_connection_is_lost_closes_sockets").await else { return };
    let (server, [revoked, kept]) = start(&home, ["revoked", "kept"]).await;
    let mut sockets = [Raw::open(&server, revoked.expose()).await, Raw::open(&server, kept.expose()).await];
    for socket in &mut sockets {
        socket.ask_ping().await;
    }
    home.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid();
         UPDATE tollgate_grants SET revoked_ms = 1 WHERE subject = 'revoked'",
    )
    .await;
    assert_eq!(closed(&mut sockets[0]).await, Some(1008));
    sockets[1].ask_ping().await;
    drop(server);
    home.remove().await;
}
