//! `tollgate doctor`, on SQLite, PostgreSQL and Redis.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use sqlx::{Connection as _, Executor as _, PgConnection, SqliteConnection};
use tollgate::TokenDigest;
use tollgate::finding::Severity;
use tollgate::store::sql::NewGrant;

use crate::cli::{code, run, tollgate};
use crate::servers::{Home, Role, on_each_database};

const GUIDE: &str = include_str!("../../src/guide/administration.md");

/// Returns the exit code, the worst severity, and the findings of a check by name.
fn doctor(url: &str, args: &[&str]) -> (i32, Value) {
    let output = tollgate(&[&["doctor", "--json"], args].concat()).env("TOLLGATE_DATABASE", url).output().unwrap();
    let shown = format!("{output:?}");
    assert!(output.stderr.is_empty() && !shown.contains("sesame"), "{shown}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    for finding in document["findings"].as_array().unwrap() {
        let check = finding["check"].as_str().unwrap();
        assert!(GUIDE.contains(&format!("`{check}`")), "the guide lacks {check}");
    }
    (code(&output), document)
}

/// Returns the severity and the detail of a check.
fn finding<'a>(document: &'a Value, check: &str) -> (&'a str, &'a str) {
    let mut findings = document["findings"].as_array().unwrap().iter();
    let found = findings.find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("{check}: {document}"));
    (found["severity"].as_str().unwrap(), found["detail"].as_str().unwrap())
}

fn checks(document: &Value) -> Vec<&str> {
    document["findings"].as_array().unwrap().iter().map(|finding| finding["check"].as_str().unwrap()).collect()
}

/// Returns the definitions and the numbers of rows of all tables, and the names of the files.
async fn state(home: &Home) -> Vec<String> {
    const TABLES: [&str; 4] = ["tollgate_migrations", "tollgate_grants", "tollgate_tokens", "tollgate_audit"];
    let rows = TABLES.map(|table| format!("SELECT '{table} ' || COUNT(*) FROM {table}")).join(" UNION ALL ");
    match home.is_postgres() {
        true => {
            let statement = format!(
                "{rows} UNION ALL SELECT relname || ' ' || oid || ' ' || relfilenode FROM pg_class \
                 WHERE relnamespace = current_schema()::regnamespace ORDER BY 1"
            );
            let mut connection = PgConnection::connect(home.url()).await.unwrap();
            sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_all(&mut connection).await.unwrap()
        }
        false => {
            let folder = std::path::Path::new(home.url().strip_prefix("sqlite://").unwrap()).parent().unwrap();
            let files = std::fs::read_dir(folder).unwrap().map(|entry| format!("{:?}", entry.unwrap().file_name()));
            let mut state: Vec<String> = files.collect();
            state.sort();
            let statement = format!("{rows} UNION ALL SELECT COALESCE(sql, name) FROM sqlite_master");
            let mut connection = SqliteConnection::connect(home.url()).await.unwrap();
            let rows: Vec<String> =
                sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_all(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            state.extend(rows);
            state
        }
    }
}

#[tokio::test]
async fn a_healthy_database_is_ok_and_not_changed() {
    on_each_database("a_healthy_database_is_ok_and_not_changed", |home| async move {
        let database = home.database().await;
        let past = SystemTime::now() - Duration::from_secs(60);
        for (token, grant) in [
            ("one", NewGrant::new("alice")),
            ("two", NewGrant::new("alice").with_expiry(past)),
            ("three", NewGrant::new("alice").with_id("three")),
        ] {
            database.import(TokenDigest::of(token), &grant).await.unwrap();
        }
        database.revoke(&"three".into()).await.unwrap();
        database.close().await;
        let before = state(&home).await;
        let (exit, document) = doctor(home.url(), &[]);
        assert_eq!(state(&home).await, before);
        assert_eq!(exit, 0, "{document}");
        let expected = match home.is_postgres() {
            true => &[
                "url",
                "connection",
                "server",
                "tls",
                "writable",
                "clock",
                "notifications",
                "tables",
                "rights",
                "audit trail",
                "owner",
                "grants",
                "rows",
            ][..],
            false => {
                &["url", "connection", "server", "file", "journal", "integrity", "tables", "writable", "grants", "rows"]
            }
        };
        assert_eq!(checks(&document), expected);
        let grants = "1 valid, 0 not yet valid, 0 suspended, 1 expired, 1 revoked; `tollgate token purge` deletes 2";
        assert_eq!(finding(&document, "grants"), ("ok", grants));
        assert_eq!(finding(&document, "tables"), ("ok", "the tables have version 4, as required"));
        if home.is_postgres() {
            // The owner of the tables has more rights than a service needs.
            assert_eq!(document["severity"], "warning");
            assert_eq!([finding(&document, "audit trail").0, finding(&document, "owner").0], ["warning"; 2]);
            assert_eq!(doctor(home.url(), &["--strict"]).0, 1);
        } else {
            assert_eq!(document["severity"], "ok", "{document}");
            assert_eq!(doctor(home.url(), &["--strict"]).0, 0);
        }
        let text = String::from_utf8(run(&home, &["doctor"]).stdout).unwrap();
        assert_eq!(text.lines().count(), expected.len());
        assert!(text.contains("\nok       tables         the tables have version 4, as required\n"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn rows_that_cannot_be_read_are_reported_with_their_ids() {
    on_each_database("rows_that_cannot_be_read_are_reported_with_their_ids", |home| async move {
        let database = home.database().await;
        for id in ["one", "two", "three", "four", "five"] {
            database.import(TokenDigest::of(id), &NewGrant::new("alice").with_id(id)).await.unwrap();
        }
        assert_eq!(finding(&doctor(home.url(), &[]).1, "rows"), ("ok", "the rows of all grants can be read"));
        crate::sql::execute(&home, "UPDATE tollgate_grants SET scopes = '\"' WHERE id <> 'two'".to_owned()).await;
        let (exit, document) = doctor(home.url(), &[]);
        let ids = "grant five: invalid value in column scopes; grant four: invalid value in column scopes; \
             grant one: invalid value in column scopes; and 1 more";
        let expected = format!("restore the values of these rows: {ids}");
        assert_eq!((exit, finding(&document, "rows")), (1, ("error", &*expected)), "{document}");
    })
    .await;
}

#[tokio::test]
async fn missing_tables_and_other_versions_are_errors() {
    let mut homes = vec![Home::sqlite()];
    homes.extend(Home::postgres("missing_tables_and_other_versions_are_errors").await);
    for home in homes {
        home.database().await.close().await;
        let error = |expected: &str| {
            let (exit, document) = doctor(home.url(), &[]);
            let (severity, detail) = finding(&document, "tables");
            assert_eq!((exit, severity), (1, "error"), "{document}");
            assert!(detail.contains(expected), "{detail}");
            assert_eq!(checks(&document).last(), Some(&"tables"), "{document}");
        };
        error("create the tables with `tollgate migrate`");
        home.database().await.migrate().await.unwrap();
        for (statement, expected) in [
            ("DELETE FROM tollgate_migrations WHERE version > 1", "upgrade the tables with `tollgate migrate`"),
            ("INSERT INTO tollgate_migrations VALUES (1000, 0)", "upgrade this program"),
        ] {
            match home.is_postgres() {
                true => _ = PgConnection::connect(home.url()).await.unwrap().execute(statement).await.unwrap(),
                false => _ = SqliteConnection::connect(home.url()).await.unwrap().execute(statement).await.unwrap(),
            }
            error(expected);
        }
        let (exit, document) = doctor(home.url(), &["--table-prefix", "acme_"]);
        assert_eq!((exit, finding(&document, "tables").0), (1, "error"));
    }
}

#[tokio::test]
async fn databases_that_cannot_be_reached_are_errors_without_their_passwords() {
    let home = Home::sqlite();
    for (url, check, expected) in [
        ("postgres://alice:sesame@127.0.0.1:9/x", "connection", "Connection refused"),
        ("postgres://alice:sesame@127.0.0.1:port/x", "url", "invalid database URL"),
        ("mysql://alice:sesame@h/x", "url", "must begin with sqlite:"),
        (home.url(), "connection", "create the file with `tollgate migrate`"),
        (&format!("{}?mode=rwc", home.url()), "connection", "create the file with `tollgate migrate`"),
    ] {
        let (exit, document) = doctor(url, &[]);
        assert_eq!((exit, finding(&document, check).0), (1, "error"), "{document}");
        assert!(finding(&document, check).1.contains(expected), "{document}");
    }
    let file = std::path::Path::new(home.url().strip_prefix("sqlite://").unwrap());
    assert!(!file.exists(), "no file was created");
    let output = tollgate(&["doctor", "--database", home.url(), "--table-prefix", "a-b"]).output().unwrap();
    assert_eq!(code(&output), 2);
}

/// The rights that the guide about databases names.
const SERVICE: &str = "GRANT SELECT ON tollgate_migrations TO {role}; \
     GRANT SELECT, INSERT, UPDATE, DELETE ON tollgate_grants, tollgate_tokens TO {role}; \
     GRANT SELECT, INSERT ON tollgate_audit TO {role}";

#[tokio::test]
async fn rights_of_the_role_are_judged() {
    let Some(home) = Home::postgres("rights_of_the_role_are_judged").await else { return };
    home.database().await.migrate().await.unwrap();
    const READS: &str =
        "GRANT SELECT ON tollgate_migrations, tollgate_grants, tollgate_tokens, tollgate_audit TO {role}";
    for (rights, exit, expected) in [
        (SERVICE.to_owned(), 0, ["ok", "ok", "ok"]),
        (READS.to_owned(), 0, ["warning", "ok", "ok"]),
        ("GRANT SELECT ON tollgate_migrations TO {role}".to_owned(), 1, ["error", "ok", "ok"]),
        (format!("{SERVICE}; GRANT UPDATE (actor) ON tollgate_audit TO {{role}}"), 0, ["ok", "warning", "ok"]),
        (format!("{SERVICE}; GRANT TRUNCATE ON tollgate_audit TO {{role}}"), 0, ["ok", "warning", "ok"]),
        (format!("{SERVICE}; ALTER TABLE tollgate_grants OWNER TO {{role}}"), 0, ["ok", "ok", "warning"]),
    ] {
        let role = Role::create(&home, &rights).await;
        let (code, document) = doctor(role.url(), &[]);
        let mut owner = PgConnection::connect(home.url()).await.unwrap();
        owner.execute("ALTER TABLE tollgate_grants OWNER TO CURRENT_USER").await.unwrap();
        role.remove().await;
        let found = ["rights", "audit trail", "owner"].map(|check| finding(&document, check).0);
        assert_eq!((code, found), (exit, expected), "{rights}: {document}");
        if rights == READS {
            let detail = finding(&document, "rights").1;
            assert!(detail.contains("INSERT ON tollgate_audit") && !detail.contains("SELECT"), "{detail}");
        }
    }
    let (code, document) = doctor(&format!("{}&options[default_transaction_read_only]=on", home.url()), &[]);
    assert_eq!((code, finding(&document, "writable").0), (1, "error"), "{document}");
}

#[tokio::test]
async fn a_clock_that_differs_is_reported() {
    let Some(home) = Home::postgres("a_clock_that_differs_is_reported").await else { return };
    for (seconds, expected) in [(0, Severity::Ok), (20, Severity::Warning), (3_600, Severity::Error)] {
        let later = move || SystemTime::now() + Duration::from_secs(seconds);
        let findings = home.database().await.with_wall_clock(later).diagnose().await;
        let clock = findings.iter().find(|finding| finding.check == "clock").unwrap();
        assert_eq!(clock.severity, expected, "{clock:?}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn problems_of_a_sqlite_file_are_reported() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = Home::sqlite();
    let file = home.url().strip_prefix("sqlite://").unwrap();
    let database = home.database().await;
    database.migrate().await.unwrap();
    for number in 0..200 {
        let label = format!("{number} {}", "x".repeat(200));
        database.import(TokenDigest::of(&label), &NewGrant::new("alice").with_label(label.as_str())).await.unwrap();
    }
    database.close().await;
    let set_mode = |mode| std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
    for (mode, expected) in [(0o600, "ok"), (0o640, "ok"), (0o644, "warning"), (0o602, "warning")] {
        set_mode(mode);
        let (exit, document) = doctor(home.url(), &[]);
        assert_eq!((exit, finding(&document, "file").0), (0, expected), "{document}");
    }
    set_mode(0o600);

    let (exit, document) = doctor(&format!("{}?mode=ro", home.url()), &["--strict"]);
    assert_eq!((exit, finding(&document, "writable").0), (1, "warning"), "{document}");

    let mut connection = SqliteConnection::connect(home.url()).await.unwrap();
    connection.execute("PRAGMA journal_mode = DELETE").await.unwrap();
    connection.close().await.unwrap();
    let (_, document) = doctor(home.url(), &[]);
    assert_eq!(finding(&document, "journal").0, "warning", "{document}");

    // Damage the last pages: the first ones have the schema.
    let mut bytes = std::fs::read(file).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].fill(0x5a);
    std::fs::write(file, bytes).unwrap();
    let (exit, document) = doctor(home.url(), &[]);
    assert_eq!((exit, finding(&document, "integrity").0), (1, "error"), "{document}");

    std::fs::write(file, "This text is not a database and has more than a hundred bytes. ".repeat(9)).unwrap();
    let (exit, document) = doctor(home.url(), &[]);
    assert_eq!((exit, document["severity"].as_str()), (1, Some("error")), "{document}");
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;
    use crate::redis_servers::PrivateRedis;

    /// A SQLite database without a problem.
    async fn home() -> Home {
        let home = Home::sqlite();
        let database = home.database().await;
        database.migrate().await.unwrap();
        database.close().await;
        home
    }

    fn keys_and_scripts(server: &PrivateRedis) -> (String, bool) {
        let info = server.ask(&["INFO", "memory"]).unwrap().text();
        let scripts = info.lines().find(|line| line.starts_with("number_of_cached_scripts")).unwrap().to_owned();
        (scripts, server.ask(&["KEYS", "*"]).unwrap().list().is_empty())
    }

    #[tokio::test]
    async fn a_healthy_server_is_ok_and_not_changed() {
        let Some(server) = PrivateRedis::start("a_healthy_server_is_ok_and_not_changed") else { return };
        let home = home().await;
        let before = keys_and_scripts(&server);
        let (exit, document) = doctor(home.url(), &["--redis", &server.url()]);
        assert_eq!(keys_and_scripts(&server), before);
        let expected =
            ["redis", "redis role", "redis memory", "redis tls", "redis latency", "redis clock", "redis scripts"];
        assert_eq!(checks(&document)[10..], expected);
        for check in expected.iter().filter(|check| **check != "redis latency") {
            assert_eq!(finding(&document, check).0, "ok", "{document}");
        }
        assert_eq!(exit, 0);
    }

    #[tokio::test]
    async fn problems_of_a_server_are_reported() {
        let test = "problems_of_a_server_are_reported";
        let Some(server) = PrivateRedis::start_with(test, &["--maxmemory-policy", "allkeys-lru"]) else { return };
        let home = home().await;
        let (exit, document) = doctor(home.url(), &["--redis", &server.url()]);
        assert_eq!((exit, finding(&document, "redis memory").0), (0, "warning"), "{document}");
        assert_eq!(doctor(home.url(), &["--strict", "--redis", &server.url()]).0, 1);

        for (user, rights, check, severity, exit) in [
            ("no-scripts", "+@all -eval", "redis scripts", "error", 1),
            ("no-calls", "+@all -evalsha", "redis scripts", "error", 1),
            ("no-info", "+@all -info", "redis", "warning", 0),
        ] {
            let set = ["ACL", "SETUSER", user, "on", ">sesame", "~*"];
            let set: Vec<&str> = set.into_iter().chain(rights.split(' ')).collect();
            server.ask(&set).unwrap();
            let url = server.url().replace("redis://", &format!("redis://{user}:sesame@"));
            let (code, document) = doctor(home.url(), &["--redis", &url]);
            assert_eq!((code, finding(&document, check).0), (exit, severity), "{user}: {document}");
        }

        let master = server.port().to_string();
        let Some(replica) = PrivateRedis::start_with(test, &["--replicaof", "127.0.0.1", &master]) else { return };
        let (exit, document) = doctor(home.url(), &["--redis", &replica.url()]);
        assert_eq!((exit, finding(&document, "redis role").0), (1, "error"), "{document}");
    }

    #[tokio::test]
    async fn servers_that_cannot_be_reached_are_errors_without_their_passwords() {
        let home = home().await;
        for url in ["redis://:sesame@127.0.0.1:9", "redis://:sesame@127.0.0.1:port", "http://:sesame@h", "sesame"] {
            let (exit, document) = doctor(home.url(), &["--redis", url]);
            assert_eq!((exit, finding(&document, "redis").0), (1, "error"), "{document}");
        }
        let test = "servers_that_cannot_be_reached_are_errors_without_their_passwords";
        let Some(server) = PrivateRedis::start(test) else { return };
        server.ask(&["ACL", "SETUSER", "alice", "on", ">other", "~*", "+@all"]).unwrap();
        let url = server.url().replace("redis://", "redis://alice:sesame@");
        let (exit, document) = doctor(home.url(), &["--redis", &url]);
        assert_eq!((exit, finding(&document, "redis").0), (1, "error"), "{document}");
        // The variable works as well, and its value is not in the help.
        let help = tollgate(&["doctor", "--help"]).env("TOLLGATE_REDIS", &url).output().unwrap();
        assert!(!format!("{help:?}").contains("sesame"));
        let mut command = tollgate(&["doctor", "--json", "--database", home.url()]);
        let output = command.env("TOLLGATE_REDIS", &url).output().unwrap();
        assert_eq!(code(&output), 1, "{output:?}");
    }
}
