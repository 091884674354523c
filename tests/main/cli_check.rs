//! `tollgate check`, on SQLite and PostgreSQL.

use std::process::Output;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use sqlx::{Connection as _, Executor as _, PgConnection, SqliteConnection};
use tollgate::TokenDigest;
use tollgate::mint::TokenFormat;
use tollgate::store::sql::NewGrant;

use crate::cli::{code, run, secret, stdout, tollgate};
use crate::cli_kit::{on_terminal, with_input};
use crate::servers::{Home, on_each_database};

const HOUR: Duration = Duration::from_secs(3_600);
const GUIDE: &str = include_str!("../../src/guide/administration.md");

fn check(home: &Home, input: &str, args: &[&str]) -> Output {
    let mut command = tollgate(&[&["check"], args].concat());
    command.env("TOLLGATE_DATABASE", home.url());
    with_input(command, input.as_bytes())
}

/// Returns the exit code and the document of a check.
fn answer(home: &Home, token: &str, args: &[&str]) -> (i32, Value) {
    let output = check(home, token, &[&["--json"], args].concat());
    let (out, err) = (String::from_utf8(output.stdout.clone()).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(!out.contains(token) && err.is_empty(), "{token}: {out} {err}");
    (code(&output), serde_json::from_str(&out).unwrap())
}

async fn execute(home: &Home, statement: &'static str) {
    match home.is_postgres() {
        true => _ = PgConnection::connect(home.url()).await.unwrap().execute(statement).await.unwrap(),
        false => _ = SqliteConnection::connect(home.url()).await.unwrap().execute(statement).await.unwrap(),
    }
}

#[tokio::test]
async fn every_rejection_is_explained() {
    on_each_database("every_rejection_is_explained", |home| async move {
        let database = home.database().await;
        let import = async |token: &'static str, grant: NewGrant| {
            database.import(TokenDigest::of(token), &grant.with_id(token.replace('-', "."))).await.unwrap().id
        };
        let (past, future) = (SystemTime::now() - HOUR, SystemTime::now() + HOUR);
        let id = import("a-revoked-token", NewGrant::new("alice")).await;
        database.revoke(&id).await.unwrap();
        let id = import("a-suspended-token", NewGrant::new("alice")).await;
        database.suspend(&id).await.unwrap();
        import("an-expired-token", NewGrant::new("alice").with_expiry(past)).await;
        import("a-later-token", NewGrant::new("alice").with_not_before(future)).await;
        import("a-bound-token", NewGrant::new("alice").with_sender_constraint()).await;
        import("a-valid-token", NewGrant::new("alice").with_scopes(["read"]).unwrap()).await;
        let (replaced, grant) = secret(&home, &["token", "issue", "--subject", "alice"]);
        let id = grant["id"].as_str().unwrap();
        secret(&home, &["token", "rotate", id, "--grace", "1ms"]);
        tokio::time::sleep(Duration::from_millis(2)).await;

        let never_issued = TokenFormat::new("acme").unwrap().mint().unwrap();
        let other = if replaced.ends_with('0') { "1" } else { "0" };
        let mistyped = format!("{}{other}", &replaced[..replaced.len() - 1]);
        for (token, reason, status, error, text) in [
            ("a-revoked-token", "revoked", 401, "invalid_token", "was revoked at 2"),
            ("a-suspended-token", "suspended", 401, "invalid_token", "was suspended at 2"),
            ("an-expired-token", "expired_token", 401, "invalid_token", "expired at 2"),
            ("a-later-token", "not_yet_valid", 401, "invalid_token", "not valid before 2"),
            ("a-bound-token", "sender_constrained", 401, "invalid_token", "bound to a key"),
            ("a-valid-token", "insufficient_scope", 403, "insufficient_scope", "lacks the scopes trade admin"),
            (&*replaced, "grace_period_ended", 401, "invalid_token", "its grace period has ended"),
            (never_issued.expose(), "unknown_token", 401, "invalid_token", "its checksum is correct"),
            (&mistyped, "unknown_token", 401, "invalid_token", "no correct checksum"),
            ("a token", "malformed_token", 401, "invalid_token", "a character that tokens cannot have"),
            ("one\ntwo", "malformed_token", 401, "invalid_token", "it contains a line break"),
            ("a\u{1}token", "malformed_token", 401, "invalid_token", "a character that tokens cannot have"),
            (&"a".repeat(9_000), "malformed_token", 401, "invalid_token", "too long"),
            (&"a".repeat(90_000), "malformed_token", 401, "invalid_token", "too long"),
            ("one,two", "invalid_request", 400, "invalid_request", "a character that tokens cannot have"),
        ] {
            let (exit, answer) = answer(&home, token, &["--scope", "read", "--scope", "trade", "--scope", "admin"]);
            assert_eq!((exit, &answer["accepted"]), (1, &false.into()), "{answer}");
            assert_eq!((&answer["reason"], &answer["answer"]["status"]), (&reason.into(), &status.into()), "{answer}");
            assert_eq!(answer["answer"]["error"].as_str().unwrap_or_default(), error, "{answer}");
            assert_eq!(answer["answer"]["type"], "about:blank", "{answer}");
            assert!(answer["explanation"].as_str().unwrap().contains(text), "{answer}");
            let is_known = !matches!(reason, "unknown_token" | "malformed_token" | "invalid_request");
            assert_eq!(answer["grant"]["subject"] == "alice", is_known, "{answer}");
            assert!(GUIDE.contains(&format!("| `{reason}` |")), "the guide lacks {reason}");

            let output = check(&home, token, &["--scope", "trade", "--scope", "admin"]);
            let shown = String::from_utf8(output.stdout).unwrap();
            assert!(shown.starts_with("rejected: ") && shown.contains(&format!("\nanswer     {status}")), "{shown}");
            assert!(shown.contains(text) && !shown.contains(token), "{shown}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_row_that_cannot_be_read_exits_with_3_and_names_the_grant() {
    on_each_database("a_row_that_cannot_be_read_exits_with_3_and_names_the_grant", |home| async move {
        let grant = NewGrant::new("alice").with_id("broken").with_principal("sesame").unwrap();
        home.database().await.import(TokenDigest::of("a-corrupt-token"), &grant).await.unwrap();
        execute(&home, "UPDATE tollgate_grants SET scopes = '\"'").await;
        let (exit, answer) = answer(&home, "a-corrupt-token", &[]);
        assert_eq!((exit, &answer["accepted"], &answer["reason"]), (3, &false.into(), &"store_unavailable".into()));
        assert_eq!(answer["answer"]["status"], 503);
        assert_eq!(answer["grant"], serde_json::json!({ "id": "broken", "subject": "alice" }));
        assert!(answer["explanation"].as_str().unwrap().contains("invalid value in column scopes"), "{answer}");
        assert!(GUIDE.contains("| `store_unavailable` |"));

        let output = check(&home, "a-corrupt-token", &[]);
        let shown = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(shown.starts_with("not checked: ") && shown.contains("\nanswer     503: "), "{shown}");
        assert!(shown.ends_with("\nid         broken\nsubject    alice\n"), "{shown}");
        assert_eq!((code(&output), format!("{answer}{output:?}").contains("sesame")), (3, false));
    })
    .await;
}

#[tokio::test]
async fn principals_are_ignored_by_a_check() {
    on_each_database("principals_are_ignored_by_a_check", |home| async move {
        for principal in [r#"{"plan": "pro"}"#, r#""sesame""#] {
            let (token, _) = secret(&home, &["token", "issue", "--subject", "alice", "--principal", principal]);
            let (exit, answer) = answer(&home, &token, &[]);
            assert_eq!((exit, &answer["accepted"]), (0, &true.into()), "{answer}");
        }
    })
    .await;
}

#[tokio::test]
async fn tokens_that_a_rotation_ended_are_explained() {
    on_each_database("tokens_that_a_rotation_ended_are_explained", |home| async move {
        let (first, grant) = secret(&home, &["token", "issue", "--subject", "alice"]);
        let id = grant["id"].as_str().unwrap();
        let (second, _) = secret(&home, &["token", "rotate", id, "--grace", "1h"]);
        let (third, _) = secret(&home, &["token", "rotate", id, "--grace", "0s"]);
        for token in [&first, &second] {
            let (exit, answer) = answer(&home, token, &[]);
            assert_eq!((exit, &answer["reason"]), (1, &"grace_period_ended".into()), "{answer}");
            assert_eq!(answer["grant"]["id"], id);
            let shown = String::from_utf8(check(&home, token, &[]).stdout).unwrap();
            assert!(shown.contains("its grace period has ended") && !shown.contains("rotated  "), "{shown}");
        }
        assert_eq!(answer(&home, &third, &[]).0, 0);
    })
    .await;
}

#[tokio::test]
async fn an_accepted_token_is_shown_with_its_grant_and_not_used() {
    on_each_database("an_accepted_token_is_shown_with_its_grant_and_not_used", |home| async move {
        let issue = ["token", "issue", "--subject", "alice", "--scope", "trade", "--quota", "3/s", "--expires", "90d"];
        let (old, grant) = secret(&home, &issue);
        let id = grant["id"].as_str().unwrap();
        let before = stdout(&home, &["token", "show", id, "--json"]);
        for end in ["", "\n", "\r\n"] {
            let (exit, answer) = answer(&home, &format!("{old}{end}"), &["--scope", "trade"]);
            assert_eq!((exit, &answer["accepted"]), (0, &true.into()), "{answer}");
            assert_eq!((&answer["grant"], &answer["answer"]), (&grant, &Value::Null));
            assert!(answer["reason"].is_null() && answer["grace_ends_at"].is_null());
        }
        assert_eq!(
            answer(&home, &format!("{old}\n\n"), &[]).1["reason"],
            "malformed_token",
            "only one newline is removed"
        );
        assert_eq!(stdout(&home, &["token", "show", id, "--json"]), before);
        let (new, _) = secret(&home, &["token", "rotate", id, "--grace", "1h"]);
        let end = answer(&home, &old, &[]).1["grace_ends_at"].as_str().unwrap().to_owned();
        let shown = String::from_utf8(check(&home, &old, &[]).stdout).unwrap();
        assert!(shown.starts_with("accepted\n") && shown.contains(&format!("ends at {end}\n")), "{shown}");
        assert!(shown.contains(&format!("id         {id}\n")) && shown.contains("state      valid"), "{shown}");
        assert!(answer(&home, &new, &[]).1["grace_ends_at"].is_null());
        let entries = home.database().await.audit(&tollgate::store::sql::AuditQuery::new()).await.unwrap().entries;
        assert_eq!(entries.len(), 2, "an issue and a rotation");
    })
    .await;
}

#[tokio::test]
async fn input_without_a_token_alone_exits_with_2() {
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    for (input, text) in [
        ("", "no token on standard input"),
        ("\n", "no token on standard input"),
        ("Bearer sesame\n", "the token only"),
        ("bearer sesame", "the token only"),
        ("Authorization: Bearer sesame", "the token only"),
    ] {
        let output = check(&home, input, &[]);
        let error = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!((code(&output), output.stdout.len()), (2, 0), "{input}: {error}");
        assert!(error.contains(text) && !error.contains("sesame"), "{error}");
    }
    // A token is never an argument, and arguments are not printed.
    let output = check(&home, "", &["sesame"]);
    assert_eq!((code(&output), String::from_utf8_lossy(&output.stderr).contains("sesame")), (2, false));
    let output = check(&home, "a-token", &["--scope", "open sesame"]);
    assert_eq!((code(&output), String::from_utf8_lossy(&output.stderr).contains("sesame")), (2, false));
}

#[tokio::test]
async fn a_token_that_cannot_be_checked_exits_with_3() {
    let home = Home::sqlite();
    for url in [home.url(), "postgres://alice:sesame@127.0.0.1:9/x"] {
        let output = with_input(tollgate(&["check", "--json", "--database", url]), b"a-token\n");
        let error = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!((code(&output), output.stdout.len()), (3, 0), "{error}");
        assert!(error.starts_with("error: ") && !error.contains("sesame") && !error.contains("a-token"), "{error}");
    }
    assert_eq!(code(&with_input(tollgate(&["check", "--database", "mysql://x"]), b"a-token")), 2);
    assert_eq!(code(&run(&home, &["token", "list"])), 1, "other commands fail with 1");
}

#[cfg(unix)]
#[tokio::test]
async fn a_terminal_does_not_show_the_token() {
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    let (token, grant) = secret(&home, &["token", "issue", "--subject", "alice"]);
    let command = tollgate(&["check", "--database", home.url()]);
    let Some(mut command) = on_terminal("a_terminal_does_not_show_the_token", &token, &command) else { return };
    let output = command.output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{shown} {}", String::from_utf8_lossy(&output.stderr));
    assert!(shown.starts_with("Token (not shown):") && !shown.contains(&token), "{shown}");
    assert!(shown.contains("accepted") && shown.contains(grant["id"].as_str().unwrap()), "{shown}");
}
