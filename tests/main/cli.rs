//! The command line as a process, on SQLite and PostgreSQL.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tollgate::mint::TokenFormat;
use tollgate::store::sql::Database;
use tollgate::{BearerToken, TokenStore};

use crate::servers::{Home, on_each_database};

pub fn tollgate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(args).stdin(Stdio::null());
    for name in [
        "TOLLGATE_DATABASE",
        "TOLLGATE_PREFIX",
        "TOLLGATE_REDIS",
        "TOLLGATE_SEALING_KEYS",
        "NO_COLOR",
        "CLICOLOR",
        "CLICOLOR_FORCE",
    ] {
        command.env_remove(name);
    }
    command
}

pub fn run(home: &Home, args: &[&str]) -> Output {
    tollgate(args).env("TOLLGATE_DATABASE", home.url()).output().unwrap()
}

/// Creates a SQLite file with empty tables.
async fn sqlite() -> Home {
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    home
}

/// Returns the standard output of a command that must succeed.
pub fn stdout(home: &Home, args: &[&str]) -> String {
    let output = run(home, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn json(home: &Home, args: &[&str]) -> Value {
    serde_json::from_str(&stdout(home, args)).unwrap()
}

/// Issues or rotates. Returns the secret and the printed grant.
pub fn secret(home: &Home, args: &[&str]) -> (String, Value) {
    let output = run(home, &[args, &["--json"]].concat());
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{args:?}: {err}");
    assert_eq!(err, "", "standard output has the whole document");
    let mut grant: Value = serde_json::from_str(&out).unwrap();
    let secret = grant.as_object_mut().unwrap().remove("token").unwrap().as_str().unwrap().to_owned();
    assert_eq!(out.matches(&secret[4..30]).count(), 1, "the secret is printed once");
    (secret, grant)
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub async fn works(database: &Database, token: &str) -> bool {
    let found = database.store::<()>().lookup(&BearerToken::new(token)).await.unwrap();
    found.is_some_and(|grant| grant.is_valid_at(std::time::SystemTime::now()))
}

#[tokio::test]
async fn tokens_are_issued_rotated_revoked_and_purged() {
    on_each_database("tokens_are_issued_rotated_revoked_and_purged", |home| async move {
        let database = home.database().await;
        let (first, grant) = secret(
            &home,
            &[
                "token",
                "issue",
                "--subject",
                "alice",
                "--label",
                "bot",
                "--scope",
                "trade",
                "--scope",
                "read",
                "--quota",
                "180/min burst 20",
                "--expires",
                "90d",
            ],
        );
        TokenFormat::new("tg").unwrap().check(&first).unwrap();
        let id = grant["id"].as_str().unwrap();
        assert!(works(&database, &first).await);
        assert_eq!((grant["subject"].as_str(), grant["label"].as_str()), (Some("alice"), Some("bot")));
        assert_eq!(grant["scopes"], serde_json::json!(["trade", "read"]));
        assert_eq!(
            grant["quota"],
            serde_json::json!({ "interval_ns": 333_333_334, "burst": 20, "text": "3/s burst 20" })
        );

        let shown = json(&home, &["token", "show", id, "--json"]);
        assert_eq!(shown["id"], grant["id"]);
        assert!(humantime::parse_rfc3339(shown["expires_at"].as_str().unwrap()).is_ok());
        let (other, bob) =
            secret(&home, &["token", "issue", "--subject", "bob", "--quota", "180/min", "--prefix", "acme_test"]);
        assert_eq!(
            bob["quota"],
            serde_json::json!({ "interval_ns": 333_333_334, "burst": 180, "text": "3/s burst 180" })
        );
        TokenFormat::new("acme_test").unwrap().check(&other).unwrap();
        let listed = json(&home, &["token", "list", "--json"]);
        assert_eq!(listed.as_array().unwrap().len(), 2);
        let of_bob = json(&home, &["token", "list", "--subject", "bob", "--json"]);
        assert_eq!((of_bob.as_array().unwrap().len(), &of_bob[0]["id"]), (1, &bob["id"]));

        let table = stdout(&home, &["token", "list"]);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("ID ") && lines[0].ends_with("LAST USED"));
        let row = lines.iter().find(|line| line.starts_with(id)).unwrap();
        assert!(row.contains("alice") && row.contains("trade read") && row.contains("valid"));
        assert!(!table.contains(&first) && !table.contains(&other));
        assert!(stdout(&home, &["token", "show", id]).contains("bot"));

        let (second, _) = secret(&home, &["token", "rotate", id, "--grace", "1h"]);
        assert!(works(&database, &first).await && works(&database, &second).await);
        let (third, _) = secret(&home, &["token", "rotate", id, "--grace", "0s"]);
        assert!(!works(&database, &second).await && works(&database, &third).await);

        let revoked = json(&home, &["token", "revoke", id, "--json"]);
        assert!(revoked["revoked_at"].is_string());
        assert!(!works(&database, &first).await && !works(&database, &third).await && works(&database, &other).await);
        let revoked = json(&home, &["token", "revoke", "--subject", "bob", "--json"]);
        assert_eq!((revoked.as_array().unwrap().len(), &revoked[0]["id"]), (1, &bob["id"]));
        assert!(revoked[0]["revoked_at"].is_string());
        assert!(!works(&database, &other).await);

        assert_eq!(stdout(&home, &["token", "purge", "--ended-before", "30d"]), "purged 0\n");
        // Purging excludes grants that ended in the current millisecond.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        assert_eq!(stdout(&home, &["token", "purge"]), "purged 2\n");
        assert_eq!(json(&home, &["token", "list", "--json"]), serde_json::json!([]));
    })
    .await;
}

#[tokio::test]
async fn the_principal_of_a_grant_reaches_its_service() {
    on_each_database("the_principal_of_a_grant_reaches_its_service", |home| async move {
        let database = home.database().await;
        let (token, _) = secret(&home, &["token", "issue", "--subject", "alice", "--principal", r#"{"plan": "pro"}"#]);
        let store = database.store::<std::collections::BTreeMap<String, String>>();
        let grant = store.lookup(&BearerToken::new(&token)).await.unwrap().unwrap();
        assert_eq!(grant.principal()["plan"], "pro");
    })
    .await;
}

#[tokio::test]
async fn failed_commands_exit_with_1() {
    on_each_database("failed_commands_exit_with_1", |home| async move {
        let (_, grant) = secret(&home, &["token", "issue", "--subject", "alice"]);
        let id = grant["id"].as_str().unwrap();
        stdout(&home, &["token", "revoke", id]);
        for args in [
            &["token", "show", "unknown"][..],
            &["token", "rotate", "unknown"],
            &["token", "revoke", "unknown"],
            &["token", "revoke", "--subject", "unknown"],
            &["token", "revoke", id],
            &["token", "revoke", "--subject", "alice"],
            &["token", "rotate", id],
            &["token", "suspend", "unknown"],
            &["token", "suspend", "--subject", "alice"],
            &["token", "resume", "--subject", "alice"],
            &["token", "suspend", id],
            &["token", "resume", id],
            &["token", "change", "unknown", "--label", "bot"],
            &["token", "change", "--subject", "alice", "--label", "bot"],
        ] {
            let output = run(&home, args);
            assert_eq!((code(&output), output.stdout.len()), (1, 0), "{args:?}");
            assert!(output.stderr.starts_with(b"error: "), "{args:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn invalid_command_lines_exit_with_2() {
    let home = Home::sqlite();
    let issue = ["token", "issue", "--subject", "alice"];
    for args in [
        &[][..],
        &["token"],
        &["token", "issue"],
        &["token", "mint"],
        &["token", "show"],
        &["token", "list", "--state", "sesame"],
        &["token", "list", "--limit", "0"],
        &["token", "list", "--after", "MTpvbmU"],
        &["token", "list", "--limit", "1", "--after", "sesame!"],
        &["token", "revoke"],
        &["token", "revoke", "id", "--subject", "alice"],
        &["token", "rotate", "id", "--grace", "soon"],
        &[&issue[..], &["--max-active", "0"]].concat(),
        &["token", "change", "id"],
        &["token", "change", "--label", "bot"],
        &["token", "change", "id", "--subject", "alice", "--label", "bot"],
        &["token", "change", "id", "--quota", "3/s", "--default-quota"],
        &["token", "change", "id", "--expires", "1h", "--never-expires"],
        &["token", "change", "id", "--principal", "1", "--no-principal"],
        &["token", "change", "id", "--scope", "trade", "--no-scopes"],
        &["token", "change", "id", "--scope", "two words"],
        &["token", "change", "id", "--label", "a\nb"],
        &[&issue[..], &["--principal", "{plan}"]].concat(),
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
    let output = tollgate(&["token", "list"]).output().unwrap();
    assert_eq!(code(&output), 2, "no database");
}

#[tokio::test]
async fn the_database_argument_overrides_the_environment_and_passwords_are_never_printed() {
    let (home, other) = (Home::sqlite(), sqlite().await);
    secret(&home, &["token", "issue", "--subject", "alice", "--database", other.url()]);
    // No file was created for the URL of the environment.
    let output = run(&home, &["token", "list"]);
    assert_eq!(code(&output), 1);
    let file = home.url().strip_prefix("sqlite://").unwrap();
    assert!(!std::path::Path::new(file).exists());

    for args in [&["token", "list"][..], &["token", "issue", "--help"], &["--help"]] {
        let output = tollgate(args).env("TOLLGATE_DATABASE", "postgres://alice:sesame@127.0.0.1:9/x").output().unwrap();
        let shown = format!("{output:?}");
        assert!(!shown.contains("sesame"), "{shown}");
    }
    let output = tollgate(&["token", "list", "--database", "postgres://alice:sesame@127.0.0.1:9/x"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    // The error text of the operating system.
    assert!(error.contains("Connection refused") && !error.contains("sesame"), "{error}");
    let version = tollgate(&["--version"]).output().unwrap();
    assert_eq!(String::from_utf8(version.stdout).unwrap(), format!("tollgate {}\n", env!("CARGO_PKG_VERSION")));
}

/// Opens a file on which all writes fail.
#[cfg(target_os = "linux")]
fn full() -> std::fs::File {
    std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_secret_that_cannot_be_printed_is_an_error() {
    let home = sqlite().await;
    for json in [&[][..], &["--json"]] {
        let mut command = tollgate(&["token", "issue", "--subject", "alice", "--database", home.url()]);
        command.args(json).stdout(full()).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(code(&output), 1);
        assert!(String::from_utf8(output.stderr).unwrap().contains("revoke or rotate it"));
    }
}

/// A script must not read "rejected".
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_check_that_cannot_be_printed_is_no_rejection() {
    let home = sqlite().await;
    let (token, _) = secret(&home, &["token", "issue", "--subject", "alice"]);
    let mut command = tollgate(&["check", "--database", home.url()]);
    command.stdin(Stdio::piped()).stdout(full()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
    assert_eq!(code(&child.wait_with_output().unwrap()), 3);
}

/// A service may have tokens with another number of random bits, and reject others by their length.
#[tokio::test]
async fn tokens_have_the_length_of_the_services_format() {
    let home = sqlite().await;
    let format = TokenFormat::new("acme").unwrap().with_random_bits(128).unwrap();
    let short = ["--random-bits", "128"];
    let issue = ["token", "issue", "--subject", "alice", "--prefix", "acme"];
    let (token, grant) = secret(&home, &[&issue[..], &short].concat());
    assert_eq!(format.check(&token), Ok(()));
    let rotate = ["token", "rotate", grant["id"].as_str().unwrap()];
    let (token, _) = secret(&home, &[&rotate[..], &short].concat());
    assert_eq!(format.check(&token), Ok(()));
    for bits in ["127", "513", "-1", "many"] {
        assert_eq!(code(&run(&home, &[&issue[..], &["--random-bits", bits]].concat())), 2, "{bits}");
    }
    // An unknown token of this length is distinguished from a mistyped one.
    let other = format.mint().unwrap();
    let unknown = crate::cli_kit::with_input(tollgate(&["check", "--database", home.url()]), other.expose().as_bytes());
    assert!(String::from_utf8(unknown.stdout).unwrap().contains("its checksum is correct"));
}

#[tokio::test]
async fn a_principal_keeps_all_digits_of_its_numbers() {
    let home = sqlite().await;
    let principal = r#"{"account":12345678901234567890123}"#;
    let (_, grant) = secret(&home, &["token", "issue", "--subject", "alice", "--principal", principal]);
    let id = grant["id"].as_str().unwrap();
    let stored = async || home.database().await.describe(&id.into()).await.unwrap().unwrap().principal.unwrap();
    assert_eq!(stored().await, principal);
    run(&home, &["token", "change", id, "--principal", "[0.1000,\n\r1]"]);
    assert_eq!(stored().await, "[0.1000,\n\r1]");
    // An export has one line for each grant.
    let export = stdout(&home, &["token", "export"]);
    assert!(export.lines().count() == 1 && export.contains("[0.1000,  1]"), "{export}");
    for invalid in [r#""\ud800""#, "1e999", "{"] {
        assert_eq!(code(&run(&home, &["token", "change", id, "--principal", invalid])), 2, "{invalid}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_secret_is_printed_if_standard_error_fails() {
    let home = sqlite().await;
    let (_, grant) = secret(&home, &["token", "issue", "--subject", "alice"]);
    let id = grant["id"].as_str().unwrap();
    let database = home.database().await;
    for args in [&["token", "issue", "--subject", "alice"][..], &["token", "rotate", id, "--grace", "0s"]] {
        let output = tollgate(args).env("TOLLGATE_DATABASE", home.url()).stderr(full()).output().unwrap();
        assert_eq!(code(&output), 0, "{args:?}");
        assert!(works(&database, String::from_utf8(output.stdout).unwrap().trim_end()).await, "{args:?}");
    }
    // A failed command does not panic either.
    let failed = tollgate(&["token", "show", "unknown", "--database", home.url()]).stderr(full()).output().unwrap();
    assert_eq!(code(&failed), 1);
    assert_eq!(code(&tollgate(&["token"]).stderr(full()).output().unwrap()), 2);
}

#[tokio::test]
async fn invalid_arguments_are_not_printed() {
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
        &["token", "issue", "--subject", "alice", "--principal", token],
    ] {
        let output = tollgate(args).env("TOLLGATE_DATABASE", "sqlite::memory:").output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(error.contains("not shown") && !error.contains("sesame") && !error.contains(token), "{error}");
    }
}

#[tokio::test]
async fn failed_commands_create_no_file() {
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
async fn a_read_only_database_can_be_listed() {
    let home = sqlite().await;
    secret(&home, &["token", "issue", "--subject", "alice", "--quota", "180/min", "--burst", "20"]);
    let url = format!("{}?mode=ro", home.url());
    let output = tollgate(&["token", "list", "--database", &url]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && table.contains("3/s burst 20"), "{table}");
    let output = tollgate(&["token", "revoke", "--subject", "alice", "--database", &url]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), error.matches("readonly").count()), (Some(1), 1), "printed once: {error}");
}

#[tokio::test]
async fn tokens_printed_before_a_kill_are_valid() {
    on_each_database("tokens_printed_before_a_kill_are_valid", |home| async move {
        let database = home.database().await;
        let mut printed = Vec::new();
        for delay_ms in 0..40 {
            let mut command = tollgate(&["token", "issue", "--subject", "alice", "--database", home.url()]);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(delay_ms)).await;
            _ = child.kill();
            let written = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
            if let Some(secret) = written.strip_suffix('\n') {
                assert!(works(&database, secret).await);
                printed.push(delay_ms);
            } else {
                assert_eq!(written, "", "a secret is printed in whole");
            }
        }
        // Grants whose secret was not printed can be rotated as well.
        let issued = database.list(None).await.unwrap();
        assert!(issued.len() >= printed.len());
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

#[tokio::test]
async fn burst_overrides_the_burst_of_the_quota() {
    let home = sqlite().await;
    for (quota, burst, expected) in [
        ("180/min", None, (333_333_334_u64, 180)),
        ("180/min burst 20", None, (333_333_334, 20)),
        ("180/min burst 20", Some("7"), (333_333_334, 7)),
        ("1/90s", Some("2"), (90_000_000_000, 2)),
    ] {
        let args = ["token", "issue", "--subject", "alice", "--quota", quota];
        let burst = burst.map(|burst| ["--burst", burst]);
        let (_, grant) = secret(&home, &[&args[..], burst.as_ref().map_or(&[], |burst| &burst[..])].concat());
        let (interval, burst) = expected;
        assert_eq!(
            (&grant["quota"]["interval_ns"], &grant["quota"]["burst"]),
            (&interval.into(), &burst.into()),
            "{quota}"
        );
    }
}
