//! The command line, as a process, against both databases.

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tollgate::mint::TokenFormat;
use tollgate::store::sql::Database;
use tollgate::{BearerToken, TokenStore};

use crate::servers::{Home, on_each_database};

fn tollgate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(args).env_remove("TOLLGATE_DATABASE").env_remove("TOLLGATE_PREFIX").stdin(Stdio::null());
    command
}

fn run(home: &Home, args: &[&str]) -> Output {
    tollgate(args).env("TOLLGATE_DATABASE", home.url()).output().unwrap()
}

/// An empty database with tables, in a file.
async fn sqlite() -> Home {
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    home
}

/// Standard output of a command that has to succeed.
fn said(home: &Home, args: &[&str]) -> String {
    let output = run(home, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(home: &Home, args: &[&str]) -> Value {
    serde_json::from_str(&said(home, args)).unwrap()
}

/// Issues or rotates; returns the secret, and what was said of the grant.
fn secret(home: &Home, args: &[&str]) -> (String, Value) {
    let output = run(home, &[args, &["--json"]].concat());
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{args:?}: {err}");
    let secret = out.strip_suffix('\n').unwrap().to_owned();
    assert!(!err.contains(&secret) && !err.contains(&secret[4..30]), "the secret is written once");
    (secret, serde_json::from_str(&err).unwrap())
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

async fn works(database: &Database, token: &str) -> bool {
    let found = database.store::<()>().lookup(&BearerToken::new(token)).await.unwrap();
    found.is_some_and(|grant| grant.is_valid_at(std::time::SystemTime::now()))
}

#[tokio::test]
async fn a_token_from_its_issue_to_its_end() {
    on_each_database("a_token_from_its_issue_to_its_end", |home| async move {
        let database = home.database().await;
        let (first, grant) = secret(
            &home,
            &[
                "token",
                "issue",
                "--subject",
                "alice",
                "--label",
                "the robot",
                "--scope",
                "trade",
                "--scope",
                "read",
                "--quota",
                "180/min",
                "--burst",
                "20",
                "--expires",
                "90d",
            ],
        );
        TokenFormat::new("tg").unwrap().check(&first).unwrap();
        let id = grant["id"].as_str().unwrap();
        assert!(works(&database, &first).await);
        assert_eq!((grant["subject"].as_str(), grant["label"].as_str()), (Some("alice"), Some("the robot")));
        assert_eq!(grant["scopes"], serde_json::json!(["trade", "read"]));
        assert_eq!(grant["quota"], serde_json::json!({ "interval_ns": 333_333_334, "burst": 20 }));

        let shown = json(&home, &["token", "show", id, "--json"]);
        assert_eq!(shown["id"], grant["id"]);
        assert!(humantime::parse_rfc3339(shown["expires_at"].as_str().unwrap()).is_ok());
        let (other, bob) = secret(&home, &["token", "issue", "--subject", "bob", "--prefix", "acme_test"]);
        TokenFormat::new("acme_test").unwrap().check(&other).unwrap();
        let listed = json(&home, &["token", "list", "--json"]);
        assert_eq!(listed.as_array().unwrap().len(), 2);
        let of_bob = json(&home, &["token", "list", "--subject", "bob", "--json"]);
        assert_eq!((of_bob.as_array().unwrap().len(), &of_bob[0]["id"]), (1, &bob["id"]));

        let table = said(&home, &["token", "list"]);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("ID ") && lines[0].ends_with("LAST USED"));
        let row = lines.iter().find(|line| line.starts_with(id)).unwrap();
        assert!(row.contains("alice") && row.contains("trade read") && row.contains("valid"));
        assert!(!table.contains(&first) && !table.contains(&other));
        assert!(said(&home, &["token", "show", id]).contains("the robot"));

        let (second, _) = secret(&home, &["token", "rotate", id, "--grace", "1h"]);
        assert!(works(&database, &first).await && works(&database, &second).await);
        let (third, _) = secret(&home, &["token", "rotate", id, "--grace", "0s"]);
        assert!(!works(&database, &second).await && works(&database, &third).await);

        let revoked = json(&home, &["token", "revoke", id, "--json"]);
        assert!(revoked["revoked_at"].is_string());
        assert!(!works(&database, &first).await && !works(&database, &third).await && works(&database, &other).await);
        let ids = json(&home, &["token", "revoke", "--subject", "bob", "--json"]);
        assert_eq!(ids, serde_json::json!([{ "id": bob["id"] }]));
        assert!(!works(&database, &other).await);

        assert_eq!(said(&home, &["token", "purge", "--ended-before", "30d"]), "purged 0\n");
        // What ended in this very millisecond has not ended before it.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        assert_eq!(said(&home, &["token", "purge"]), "purged 2\n");
        assert_eq!(json(&home, &["token", "list", "--json"]), serde_json::json!([]));
    })
    .await;
}

#[tokio::test]
async fn what_is_refused_exits_with_1() {
    on_each_database("what_is_refused_exits_with_1", |home| async move {
        let (_, grant) = secret(&home, &["token", "issue", "--subject", "alice"]);
        let id = grant["id"].as_str().unwrap();
        said(&home, &["token", "revoke", id]);
        for args in [
            &["token", "show", "nobody"][..],
            &["token", "rotate", "nobody"],
            &["token", "revoke", "nobody"],
            &["token", "revoke", "--subject", "nobody"],
            &["token", "revoke", id],
            &["token", "revoke", "--subject", "alice"],
            &["token", "rotate", id],
        ] {
            let output = run(&home, args);
            assert_eq!((code(&output), output.stdout.len()), (1, 0), "{args:?}");
            assert!(output.stderr.starts_with(b"error: "), "{args:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_wrong_command_line_exits_with_2_and_does_nothing() {
    let home = Home::sqlite();
    let issue = ["token", "issue", "--subject", "alice"];
    for args in [
        &[][..],
        &["token"],
        &["token", "issue"],
        &["token", "mint"],
        &["token", "show"],
        &["token", "revoke"],
        &["token", "revoke", "id", "--subject", "alice"],
        &["token", "rotate", "id", "--grace", "soon"],
        &[&issue[..], &["--quota", "180"]].concat(),
        &[&issue[..], &["--quota", "180/year"]].concat(),
        &[&issue[..], &["--quota", "-1/min"]].concat(),
        &[&issue[..], &["--quota", "0/min"]].concat(),
        &[&issue[..], &["--quota", "1/d", "--burst", "4294967295"]].concat(),
        &[&issue[..], &["--burst", "20"]].concat(),
        &[&issue[..], &["--scope", "two words"]].concat(),
        &[&issue[..], &["--expires", "90"]].concat(),
        &[&issue[..], &["--expires", "400000000000years"]].concat(),
        &[&issue[..], &["--prefix", "a-b"]].concat(),
        &[&issue[..], &["--table-prefix", "a-b"]].concat(),
        &["token", "issue", "--subject", ""],
        &[&issue[..], &["--database", "mysql://root:sesame@localhost/x"]].concat(),
    ] {
        let output = run(&home, args);
        assert_eq!((code(&output), output.stdout.len()), (2, 0), "{args:?}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("sesame"), "{args:?}");
    }
    let nowhere = tollgate(&["token", "list"]).output().unwrap();
    assert_eq!(code(&nowhere), 2, "no database is named");
}

#[tokio::test]
async fn a_database_is_named_by_the_argument_first_and_its_password_is_shown_nowhere() {
    let (home, other) = (Home::sqlite(), sqlite().await);
    secret(&home, &["token", "issue", "--subject", "alice", "--database", other.url()]);
    // Nothing was made in the other place, and nothing is by looking.
    let output = run(&home, &["token", "list"]);
    assert_eq!(code(&output), 1);
    let file = home.url().strip_prefix("sqlite://").unwrap();
    assert!(!std::path::Path::new(file).exists());

    for args in [&["token", "list"][..], &["token", "issue", "--help"], &["--help"]] {
        let output = tollgate(args).env("TOLLGATE_DATABASE", "postgres://alice:sesame@127.0.0.1:9/x").output().unwrap();
        let shown = format!("{output:?}");
        assert!(!shown.contains("sesame"), "{shown}");
    }
    let refused = tollgate(&["token", "list", "--database", "postgres://alice:sesame@127.0.0.1:9/x"]).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("refused") && !said.contains("sesame"), "{said}");
    let version = tollgate(&["--version"]).output().unwrap();
    assert_eq!(String::from_utf8(version.stdout).unwrap(), format!("tollgate {}\n", env!("CARGO_PKG_VERSION")));
}

/// A file that takes nothing.
#[cfg(target_os = "linux")]
fn full() -> std::fs::File {
    std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_secret_that_nobody_got_is_told() {
    let home = sqlite().await;
    let mut command = tollgate(&["token", "issue", "--subject", "alice", "--database", home.url()]);
    let output = command.stdout(full()).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(code(&output), 1);
    assert!(String::from_utf8(output.stderr).unwrap().contains("revoke or rotate it"));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_secret_is_handed_over_though_nobody_reads_what_it_belongs_to() {
    let home = sqlite().await;
    let (_, grant) = secret(&home, &["token", "issue", "--subject", "alice"]);
    let id = grant["id"].as_str().unwrap();
    let database = home.database().await;
    for args in [&["token", "issue", "--subject", "alice"][..], &["token", "rotate", id, "--grace", "0s"]] {
        let output = tollgate(args).env("TOLLGATE_DATABASE", home.url()).stderr(full()).output().unwrap();
        assert_eq!(code(&output), 0, "{args:?}");
        assert!(works(&database, String::from_utf8(output.stdout).unwrap().trim_end()).await, "{args:?}");
    }
    // Nor is a failure something to fall over.
    let refused = tollgate(&["token", "show", "nobody", "--database", home.url()]).stderr(full()).output().unwrap();
    assert_eq!(code(&refused), 1);
    assert_eq!(code(&tollgate(&["token"]).stderr(full()).output().unwrap()), 2);
}

#[tokio::test]
async fn what_is_not_understood_is_not_repeated_if_it_may_be_secret() {
    let url = "postgres://alice:sesame@127.0.0.1:9/x";
    let token = TokenFormat::new("tg").unwrap().mint().unwrap();
    let token = token.expose();
    let inline = format!("--grace={url}");
    for args in [
        &["token", "list", url][..],
        &[url],
        &["token", url],
        &["token", "rotate", "id", "--grace", url],
        &["token", "rotate", "id", &inline],
        &["token", "list", token],
        &["token", "issue", "--subject", "alice", "--prefix", token],
        &["token", "issue", "--subject", "alice", "--quota", token],
    ] {
        let output = tollgate(args).env("TOLLGATE_DATABASE", "sqlite::memory:").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(said.contains("not shown") && !said.contains("sesame") && !said.contains(token), "{said}");
    }
}

#[tokio::test]
async fn a_command_that_is_refused_makes_no_file() {
    let home = Home::sqlite();
    let file = std::path::Path::new(home.url().strip_prefix("sqlite://").unwrap());
    let folder = file.parent().unwrap();
    let issue = ["token", "issue", "--subject"];
    for (args, expected) in [
        (&[&issue[..], &["alice", "--table-prefix", "a-b"]].concat()[..], 2),
        (&[&issue[..], &[""]].concat(), 2),
        (&[&issue[..], &["alice", "--label", "a\tb"]].concat(), 2),
        (&[&issue[..], &["alice", "--expires", "0s"]].concat(), 2),
        (&["token", "list"], 1),
        (&["token", "list", "--database", &format!("sqlite://{}/no%20such.db", folder.display())], 1),
    ] {
        assert_eq!(code(&run(&home, args)), expected, "{args:?}");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0, "{args:?}");
    }
}

#[tokio::test]
async fn who_may_only_read_can_look() {
    let home = sqlite().await;
    secret(&home, &["token", "issue", "--subject", "alice", "--quota", "180/min", "--burst", "20"]);
    let url = format!("{}?mode=ro", home.url());
    let output = tollgate(&["token", "list", "--database", &url]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && table.contains("3/s, burst 20"), "{table}");
    let output = tollgate(&["token", "revoke", "--subject", "alice", "--database", &url]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.matches("readonly").count()), (Some(1), 1), "said once: {said}");
}

#[tokio::test]
async fn what_was_written_before_a_kill_works_after_it() {
    on_each_database("what_was_written_before_a_kill_works_after_it", |home| async move {
        let database = home.database().await;
        let mut works_by = Vec::new();
        for delay_ms in 0..40 {
            let mut command = tollgate(&["token", "issue", "--subject", "alice", "--database", home.url()]);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(delay_ms)).await;
            _ = child.kill();
            let written = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
            if let Some(secret) = written.strip_suffix('\n') {
                assert!(works(&database, secret).await);
                works_by.push(delay_ms);
            } else {
                assert_eq!(written, "", "a secret is written whole");
            }
        }
        // Those that nobody has seen are whole as well, and can be revoked by the subject.
        let issued = database.list(None).await.unwrap();
        assert!(issued.len() >= works_by.len());
        for grant in &issued {
            let next =
                database.rotate(&grant.id, &TokenFormat::new("tg").unwrap(), std::time::Duration::ZERO).await.unwrap();
            assert!(works(&database, next.secret.expose()).await);
        }
    })
    .await;
}

#[tokio::test]
async fn processes_that_migrate_at_the_same_time_create_the_tables_once() {
    let mut homes = vec![Home::sqlite()];
    homes.extend(Home::postgres("processes_that_migrate_at_the_same_time_create_the_tables_once").await);
    for home in homes {
        let processes: Vec<_> = (0..6)
            .map(|_| {
                let mut command = tollgate(&["migrate", "--database", home.url()]);
                command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for process in processes {
            let output = process.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let (token, _) = secret(&home, &["token", "issue", "--subject", "alice"]);
        assert!(works(&home.database().await, &token).await);
    }
}
