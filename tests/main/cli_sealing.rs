//! The command line and tokens that can be revealed again.

use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;
use tollgate::store::sql::{AuditQuery, SealingKey};

use crate::cli::{code, tollgate};
use crate::cli_kit::{answered, with_input};
use crate::servers::{Home, on_each_database};

/// A file that is removed on drop.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        let file = Self(std::env::temp_dir().join(format!("tollgate-keys-{}", crate::machine::unique())));
        std::fs::write(&file.0, text).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&file.0, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        file
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.0);
    }
}

fn key(id: &str) -> String {
    SealingKey::generate(id).unwrap().expose()
}

/// Runs a command with these keys in the environment.
fn run(home: &Home, keys: Option<&str>, args: &[&str]) -> Output {
    let mut command = tollgate(args);
    command.env("TOLLGATE_DATABASE", home.url()).env("USER", "maria");
    if let Some(keys) = keys {
        command.env("TOLLGATE_SEALING_KEYS", keys);
    }
    command.output().unwrap()
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", err(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Issues a token. Returns its grant and the token.
fn issue(home: &Home, keys: Option<&str>, more: &[&str]) -> (String, String) {
    let issued = run(home, keys, &[&["token", "issue", "--subject", "alice", "--json"], more].concat());
    let issued: Value = serde_json::from_str(&out(&issued)).unwrap();
    (issued["id"].as_str().unwrap().to_owned(), issued["token"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn tokens_are_sealed_revealed_and_resealed() {
    on_each_database("tokens_are_sealed_revealed_and_resealed", |home| async move {
        let (old, new) = (key("old"), key("new"));
        let file = File::new(&format!("{new}\n{old}\n"));
        let by_file = ["--sealing-keys", file.path()];
        let (id, token) = issue(&home, Some(&old), &[]);
        let revealed = run(&home, Some(&old), &["token", "reveal", &id, "--yes"]);
        assert_eq!(out(&revealed), format!("{token}\n"));
        let details = err(&revealed);
        assert!(details.starts_with(&format!("id         {id}\nsubject    alice\n")), "{details}");
        assert!(!details.contains(&token));
        let revealed = run(&home, Some(&old), &["token", "reveal", &id, "--yes", "--json"]);
        let document: Value = serde_json::from_str(&out(&revealed)).unwrap();
        assert_eq!((&document["id"], &document["token"]), (&Value::from(&*id), &Value::from(&*token)));
        assert_eq!(err(&revealed), "");

        // The first key of the file seals. The option overrides the environment.
        let rotate = [&["token", "rotate", &id, "--json"], &by_file[..]].concat();
        let rotated: Value = serde_json::from_str(&out(&run(&home, Some("ignored"), &rotate))).unwrap();
        let reveal = ["token", "reveal", &id, "--yes"];
        assert_eq!(out(&run(&home, Some(&new), &reveal)), format!("{}\n", rotated["token"].as_str().unwrap()));
        let unknown = run(&home, Some(&old), &reveal);
        let text = "error: the token is sealed with the unknown key new; add it to the sealing keys\n";
        assert_eq!((code(&unknown), err(&unknown), unknown.stdout.len()), (1, text.to_owned(), 0));

        let (second, token) = issue(&home, Some(&old), &[]);
        let doctor = out(&run(&home, None, &["doctor"]));
        assert!(doctor.contains("\nok       sealed tokens  1 with the key new, 1 with the key old\n"), "{doctor}");
        let reseal = [&["token", "reseal"], &by_file[..]].concat();
        assert_eq!(out(&run(&home, None, &reseal)), "resealed 1\n");
        assert_eq!(out(&run(&home, None, &[&reseal[..], &["--json"]].concat())), "{\"resealed\":0}\n");
        assert_eq!(out(&run(&home, Some(&new), &["token", "reveal", &second, "--yes"])), format!("{token}\n"));

        let database = home.database().await;
        let entries = database.audit(&AuditQuery::new().with_action("reveal")).await.unwrap().entries;
        assert_eq!(entries.len(), 4);
        assert!(entries.iter().all(|entry| entry.actor.as_deref() == Some("maria")));
    })
    .await;
}

#[tokio::test]
async fn a_reveal_needs_keys_and_a_confirmation() {
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    let keys = key("a");
    let (id, token) = issue(&home, Some(&keys), &[]);
    let (unsealed, _) = issue(&home, None, &[]);
    let reveal = ["token", "reveal", &id, "--yes"];
    let no_keys = "error: no sealing keys: give `--sealing-keys FILE` or set TOLLGATE_SEALING_KEYS\n";
    let no_terminal = "error: standard input is not a terminal: give `--yes` to reveal the token\n";
    let not_sealed = "error: the token is not sealed: a rotation with a sealing key seals the next one\n";
    for (keys, args, expected, text) in [
        (None, &reveal[..], 2, no_keys),
        (None, &["token", "reseal"], 2, no_keys),
        (Some(&*keys), &["token", "reveal", &id], 2, no_terminal),
        (Some(&*keys), &["token", "reveal", &unsealed, "--yes"], 1, not_sealed),
        (Some(&*keys), &["token", "reveal", "unknown", "--yes"], 1, "error: grant not found\n"),
        (Some(""), &reveal, 2, "error: no sealing key\n"),
        (Some("a:AAAA"), &reveal, 2, "error: invalid sealing key: must be ID:KEY, with 32 bytes in base64\n"),
        (
            Some("a:AAAA"),
            &["token", "issue", "--subject", "alice"],
            2,
            "error: invalid sealing key: must be ID:KEY, with 32 bytes in base64\n",
        ),
        (
            Some(&*keys),
            &["token", "issue", "--subject", "alice", "--sealing-keys", "/nowhere/keys"],
            2,
            "error: cannot read the sealing keys: ",
        ),
    ] {
        let output = run(&home, keys, args);
        assert_eq!((code(&output), output.stdout.len()), (expected, 0), "{args:?}: {}", err(&output));
        assert!(err(&output).starts_with(text), "{args:?}: {}", err(&output));
        let shown = keys.and_then(|keys| keys.get(2..)).is_some_and(|key| err(&output).contains(key));
        assert!(!shown, "{}", err(&output));
        assert!(!err(&output).contains("/nowhere"), "{}", err(&output));
    }
    let wrong = format!("a:{}", &key("b")[2..]);
    let output = run(&home, Some(&wrong), &reveal);
    assert_eq!(code(&output), 1);
    assert!(err(&output).starts_with("error: the sealed token cannot be opened"), "{}", err(&output));
    // An answer on a pipe is no confirmation.
    let mut command = tollgate(&["token", "reveal", &id]);
    command.env("TOLLGATE_DATABASE", home.url()).env("TOLLGATE_SEALING_KEYS", &keys);
    assert_eq!(code(&with_input(command, b"y\n")), 2);
    let database = home.database().await;
    assert!(database.audit(&AuditQuery::new().with_action("reveal")).await.unwrap().entries.is_empty());
    assert_eq!(out(&run(&home, Some(&keys), &reveal)), format!("{token}\n"));
}

#[cfg(unix)]
#[tokio::test]
async fn a_terminal_asks_before_a_token_is_revealed() {
    let test = "a_terminal_asks_before_a_token_is_revealed";
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    let keys = key("a");
    let (id, token) = issue(&home, Some(&keys), &[]);
    for (answer, is_revealed) in [("y", true), ("YES", true), ("n", false), ("", false), ("maybe", false)] {
        let mut command = tollgate(&["token", "reveal", &id]);
        command.env("TOLLGATE_DATABASE", home.url()).env("TOLLGATE_SEALING_KEYS", &keys);
        let Some(mut command) = answered(test, answer, &command) else { return };
        let output = command.output().unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(shown.contains("Reveal the token of this grant? [y/N]"), "{shown}");
        assert_eq!(shown.contains(&token), is_revealed, "{answer}: {shown}");
        assert_eq!(output.status.success(), is_revealed, "{answer}: {shown}");
        assert_eq!(shown.contains("not confirmed; nothing was revealed"), !is_revealed, "{shown}");
    }
    assert_eq!(home.database().await.audit(&AuditQuery::new().with_action("reveal")).await.unwrap().entries.len(), 2);
}

#[test]
fn a_generated_key_has_an_id_of_its_own_or_the_given_one() {
    let generated = |args: &[&str]| out(&tollgate(&[&["sealing-key"], args].concat()).output().unwrap());
    let [one, other] = [(); 2].map(|()| generated(&[]).trim_end().parse::<SealingKey>().unwrap());
    assert!(one.id().starts_with("20") && one.id().len() == "2026-01-31-01234567".len(), "{one:?}");
    assert_ne!(one.id(), other.id(), "two keys of one day");
    assert_ne!(generated(&["--id", "prod-1"]), generated(&["--id", "prod-1"]));
    let bad = tollgate(&["sealing-key", "--id", "Prod 1"]).output().unwrap();
    assert_eq!((code(&bad), bad.stdout.len()), (2, 0));
}
