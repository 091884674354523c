//! The commands that import and export, on SQLite and PostgreSQL.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Connection as _;
use tollgate::TokenDigest;
use tollgate::store::sql::{AuditQuery, NewGrant};

use crate::cli::{code, json, run, secret, stdout, tollgate, works};
use crate::machine::unique;
use crate::servers::{Home, on_each_database};

/// A folder that is removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tollgate-import-{}", unique()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        std::fs::write(self.0.join(name), text).unwrap();
        self.path(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a command with this standard input.
fn piped(home: &Home, args: &[&str], input: &str) -> Output {
    let mut command = tollgate(args);
    command.env("TOLLGATE_DATABASE", home.url()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn grants_are_imported_from_csv_and_json_lines() {
    on_each_database("grants_are_imported_from_csv_and_json_lines", |home| async move {
        let (database, folder) = (home.database().await, Folder::new());
        let digest = TokenDigest::of("second-token").to_hex();
        let csv = format!(
            "subject,id,label,scopes,quota,expires_at,sender_constrained,principal,token,digest,revoked_at\r\n\
             alice,one,\"a, \"\"b\"\"\",trade read,180/min burst 20,2100-01-01T00:00:00Z,true,\"{{\"\"n\"\":1}}\",first-token,,\r\n\
             bob,two,,,,,,,,{digest},\n\
             bob,three,,,,,false,,third-token,,2020-01-01T00:00:00Z\n"
        );
        let file = folder.file("grants.csv", format!("\u{feff}{csv}"));
        assert_eq!(stdout(&home, &["token", "import", &file, "--format", "csv"]), "imported 3, skipped 0\n");
        let one = json(&home, &["token", "show", "one", "--json"]);
        assert_eq!((&one["subject"], &one["label"]), (&json!("alice"), &json!("a, \"b\"")));
        assert_eq!((&one["scopes"], &one["quota"]["burst"]), (&json!(["trade", "read"]), &json!(20)));
        assert_eq!((&one["expires_at"], &one["sender_constrained"]), (&json!("2100-01-01T00:00:00.000Z"), &json!(true)));
        assert_eq!(database.describe(&"one".into()).await.unwrap().unwrap().principal.unwrap().replace(' ', ""), r#"{"n":1}"#);
        assert_eq!(json(&home, &["token", "show", "three", "--json"])["state"], "revoked");
        for (token, is_known) in [("first-token", true), ("second-token", true), ("third-token", false)] {
            assert_eq!(database.store::<Value>().get(TokenDigest::of(token)).await.unwrap().is_some(), is_known, "{token}");
        }

        // An empty line, and fields without values.
        let lines = "{\"subject\":\"carol\",\"id\":\"four\",\"token\":\"fourth-token\",\"scopes\":[\"a\",\"b\"],\"label\":null}\n\n\
             {\"subject\":\"carol\",\"id\":\"five\",\"digest\":\"" .to_owned()
            + &TokenDigest::of("fifth-token").to_hex()
            + "\",\"scopes\":\"a b\",\"principal\":{\"n\":123456789012345678901234567890}}";
        let import = ["token", "import", "-", "--format", "jsonl", "--json"];
        let output = piped(&home, &[&import[..], &["--dry-run"]].concat(), &lines);
        let expected = "{\"dry_run\":true,\"imported\":2,\"skipped\":0}\n";
        assert_eq!((code(&output), text(&output.stdout)), (0, expected.to_owned()));
        assert!(!works(&database, "fourth-token").await);
        assert_eq!(text(&piped(&home, &import, &lines).stdout), "{\"imported\":2,\"skipped\":0}\n");
        assert!(database.store::<Option<Value>>().get(TokenDigest::of("fifth-token")).await.unwrap().is_some());
        assert!(works(&database, "fourth-token").await);
        let five = database.describe(&"five".into()).await.unwrap().unwrap();
        assert_eq!(five.scopes.to_string(), "a b");
        assert!(five.principal.unwrap().contains("123456789012345678901234567890"), "no digit is lost");
        // Standard input is the default. The import is repeated.
        let output = piped(&home, &["token", "import", "--format", "jsonl", "--skip-existing"], &lines);
        assert_eq!(text(&output.stdout), "imported 0, skipped 2\n");
        let trail = database.audit(&AuditQuery::new()).await.unwrap().entries;
        assert_eq!(trail.iter().filter(|entry| entry.action == "import").count(), 5);
    })
    .await;
}

#[tokio::test]
async fn each_invalid_line_is_an_error_without_its_values() {
    on_each_database("each_invalid_line_is_an_error_without_its_values", |home| async move {
        let folder = Folder::new();
        let digest = TokenDigest::of("sesame").to_hex();
        let good = r#"{"subject":"alice","token":"a-sesame"}"#;
        let bad = [
            ("sesame", "must be a JSON object"),
            (r#"["sesame"]"#, "must be a JSON object"),
            (r#"{"subject":"alice","token":"sesame","sesame":1}"#, "unknown field"),
            (r#"{"token":"sesame"}"#, "subject: missing"),
            (r#"{"subject":"","token":"sesame"}"#, "invalid id, subject or label"),
            (r#"{"subject":["sesame"],"token":"sesame"}"#, "subject: must be a text"),
            (r#"{"subject":"alice","id":"a\nsesame","token":"sesame"}"#, "invalid id, subject or label"),
            (r#"{"subject":"alice"}"#, "must have one of the fields token, digest and tokens"),
            (r#"{"subject":"alice","token":"sesame","digest":"sesame"}"#, "must have one of the fields"),
            (r#"{"subject":"alice","token":"open sesame"}"#, "token: must be printable ASCII without spaces"),
            (r#"{"subject":"alice","token":""}"#, "token: must be printable ASCII without spaces"),
            (r#"{"subject":"alice","token":7}"#, "token: must be a text"),
            (r#"{"subject":"alice","digest":"sesame"}"#, "digest: must be 64 hexadecimal digits"),
            (r#"{"subject":"alice","tokens":"sesame"}"#, "tokens: must be a list of digests with their times"),
            (r#"{"subject":"alice","tokens":[{"digest":"sesame"}]}"#, "tokens: must be 64 hexadecimal digits"),
            (r#"{"subject":"alice","token":"sesame","scopes":["open sesame"]}"#, "scopes: must be printable ASCII"),
            (r#"{"subject":"alice","token":"sesame","scopes":"ses\"ame"}"#, "scopes: must be printable ASCII"),
            (r#"{"subject":"alice","token":"sesame","scopes":[1]}"#, "scopes: must be a list of texts"),
            (r#"{"subject":"alice","token":"sesame","quota":"sesame"}"#, "quota: invalid quota"),
            (r#"{"subject":"alice","token":"sesame","expires_at":"sesame"}"#, "expires_at: must be a time such as"),
            (r#"{"subject":"alice","token":"sesame","not_before":1700000000}"#, "not_before: must be a text"),
            (
                r#"{"subject":"alice","token":"sesame","created_at":"1969-01-01T00:00:00Z"}"#,
                "created_at: must be a time",
            ),
            (
                r#"{"subject":"alice","token":"sesame","sender_constrained":"sesame"}"#,
                "sender_constrained: must be true",
            ),
            (
                r#"{"subject":"alice","token":"sesame","token_prefix":"ses-ame"}"#,
                "invalid value in column token_prefix",
            ),
        ];
        let two =
            format!(r#"{{"subject":"alice","tokens":[{{"digest":"{digest}"}},{{"digest":"{}"}}]}}"#, "0".repeat(64));
        let bad: Vec<_> = bad.into_iter().chain([(&*two, "invalid value in column rotated_until_ms")]).collect();
        for bad in bad.chunks(10) {
            let mut lines = vec![good.to_owned(), String::new()];
            lines.extend(bad.iter().map(|(line, _)| (*line).to_owned()));
            lines.push(good.replace("a-sesame", "b-sesame"));
            let file = folder.file("bad.jsonl", lines.join("\n"));
            let output = run(&home, &["token", "import", &file, "--format", "jsonl"]);
            let errors = text(&output.stderr);
            assert_eq!((code(&output), output.stdout.len()), (1, 0), "{errors}");
            assert!(!errors.contains("sesame") && !errors.contains(&digest), "{errors}");
            let errors: Vec<&str> = errors.lines().collect();
            for (number, ((line, expected), error)) in bad.iter().zip(&errors).enumerate() {
                assert!(error.starts_with(&format!("error: line {}: {expected}", number + 3)), "{line}: {error}");
            }
            let count = bad.len();
            assert_eq!(errors[count], format!("error: {count} lines are invalid; nothing was imported"));
            assert_eq!((errors.len(), json(&home, &["token", "list", "--json"])), (count + 1, json!([])));
        }
        // A file in another format.
        let csv = folder.file("grants.csv", "subject,token\n".repeat(25));
        let output = run(&home, &["token", "import", &csv, "--format", "jsonl"]);
        let errors = text(&output.stderr);
        assert_eq!(errors.lines().count(), 12, "{errors}");
        assert!(errors.ends_with("\nand 15 more\nerror: 25 lines are invalid; nothing was imported\n"), "{errors}");
    })
    .await;
}

#[tokio::test]
async fn invalid_csv_is_an_error_without_its_values() {
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    for (input, expected) in [
        (
            "sesame,alice\nx,y\n",
            "line 1: unknown column 1; the first line must be a header with some of id, subject, label, scopes",
        ),
        ("subject,token,sesame\n", "line 1: unknown column 3; the first line must be a header"),
        ("subject,token,subject\n", "line 1: subject: duplicate column"),
        ("subject,token\nalice,sesame,x\n", "line 2: must have as many fields as the first line"),
        ("subject,token\nalice,\"se\nsame\"\nbob,one\n", "line 2: token: must be printable ASCII without spaces"),
        ("subject,token\nalice,one\n\"a\nb\",two\n", "line 3: invalid id, subject or label"),
        ("subject,token\nalice,one\nbob,one\n", "line 3: the grant id or the token already exists"),
        ("subject,token,principal\nalice,one,{sesame\n", "line 2: principal: must be JSON"),
        ("subject,token,sender_constrained\nalice,one,yes\n", "line 2: sender_constrained: must be true or false"),
        ("subject,digest\nalice,sesame\n", "line 2: digest: must be 64 hexadecimal digits"),
    ] {
        let output = piped(&home, &["token", "import", "--format", "csv"], input);
        let error = text(&output.stderr);
        assert_eq!((code(&output), output.stdout.len()), (1, 0), "{input}: {error}");
        assert!(error.starts_with(&format!("error: {expected}")) && !error.contains("sesame"), "{input}: {error}");
    }
    assert_eq!(json(&home, &["token", "list", "--json"]), json!([]));
    let missing = run(&home, &["token", "import", "/no/sesame.csv", "--format", "csv"]);
    assert_eq!(code(&missing), 1);
    assert_eq!(text(&missing.stderr), "error: cannot read the input: No such file or directory (os error 2)\n");
    for args in [&["token", "import"][..], &["token", "import", "--format", "xml"]] {
        assert_eq!(code(&run(&home, args)), 2, "{args:?}");
    }
}

#[tokio::test]
async fn line_numbers_are_those_of_the_file() {
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    let header = "subject,token,scopes";
    for (rows, expected) in [
        (&["alice,one,", ",two,"][..], "line 3: subject: missing"),
        (&["", "", ",two,"], "line 4: subject: missing"),
        (&["alice,one,", "", "", "bob,two"], "line 5: must have as many fields as the first line"),
        (&["alice,one,", "", "bob,one,"], "line 4: the grant id or the token already exists"),
        (&["\"a\"\"lice\",one,", "\"bo", "b\",two,", "carol,three,", ",four,"], "line 3: invalid id, subject or label"),
        (&["alice,one,\"a", "b\"", ",two,"], "line 2: scopes: must be printable"),
        (&["alice,one,\"a,b\""], "line 2: scopes: must be separated by spaces"),
        (&["alice,one,a;b"], "line 2: scopes: must be separated by spaces"),
    ] {
        for end in ["\n", "\r\n", "\r"] {
            for last in ["", end] {
                let input = format!("{header}{end}{}{last}", rows.join(end));
                let output = piped(&home, &["token", "import", "--format", "csv"], &input);
                let error = text(&output.stderr);
                assert_eq!(code(&output), 1, "{input:?}: {error}");
                assert!(error.starts_with(&format!("error: {expected}")), "{input:?}: {error}");
            }
        }
    }
    let unknown = piped(&home, &["token", "import", "--format", "csv"], "\r\nsubject,token,x\r\n");
    assert!(text(&unknown.stderr).starts_with("error: line 2: unknown column 3"), "{unknown:?}");
    // More than a buffer.
    let many: String = (0..2_000).map(|number| format!("alice,token-{number},\r\n\r\n")).collect();
    let output = piped(&home, &["token", "import", "--format", "csv"], &format!("{header}\r\n{many},sesame,\r\n"));
    assert!(text(&output.stderr).starts_with("error: line 4002: subject: missing"), "{output:?}");
}

#[tokio::test]
async fn an_export_to_a_file_named_like_standard_output_is_an_error() {
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    let folder = Folder::new();
    for args in [&["token", "export", "--with-digests"][..], &["token", "export"], &["audit", "export"]] {
        let mut command = tollgate(args);
        command.args(["--output", "-", "--database", home.url()]).current_dir(folder.path("."));
        let output = command.output().unwrap();
        assert_eq!((code(&output), Path::new(&folder.path("-")).exists()), (2, false), "{output:?}");
        assert!(text(&output.stderr).contains("must be the name of a new file"), "{output:?}");
    }
}

/// A conflict with an existing grant is reported with the other invalid lines.
#[tokio::test]
async fn a_conflict_names_its_line() {
    on_each_database("a_conflict_names_its_line", |home| async move {
        let (database, folder) = (home.database().await, Folder::new());
        database.import(TokenDigest::of("known-token"), &NewGrant::new("alice").with_id("known")).await.unwrap();
        let file = folder
            .file("grants.csv", "subject,id,token\nbob,\"one\",\"first\"\nalice,two,known-token\nbob,three,a b\n");
        let output = run(&home, &["token", "import", &file, "--format", "csv"]);
        let errors = text(&output.stderr);
        // The conflict is found when the statement is sent, and the last line is read before that.
        assert!(errors.contains("error: line 4: token: must be printable ASCII"), "{errors}");
        assert!(errors.ends_with("nothing was imported\n") && code(&output) == 1, "{errors}");
        let file = folder.file("grants.csv", "subject,id,token\nbob,\"one\",\"first\"\nalice,two,known-token\n");
        let output = run(&home, &["token", "import", &file, "--format", "csv"]);
        let expected = "error: line 3: the grant id or the token already exists\n\
             error: at least 1 line is invalid; nothing was imported\n";
        assert_eq!(text(&output.stderr), expected);
        assert_eq!(database.list(None).await.unwrap().len(), 1);
    })
    .await;
}

#[cfg(unix)]
fn mode(path: &str) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn exports_with_digests_are_imported_into_another_database() {
    on_each_database("exports_with_digests_are_imported_into_another_database", |home| async move {
        let (database, folder) = (home.database().await, Folder::new());
        let issue = ["token", "issue", "--subject", "alice", "--prefix", "acme", "--quota", "180/min burst 20"];
        let (first, grant) =
            secret(&home, &[&issue[..], &["--label", "a, \"b\"", "--principal", r#""text""#]].concat());
        let (second, _) = secret(&home, &["token", "rotate", grant["id"].as_str().unwrap(), "--grace", "1h"]);
        let (third, suspended) = secret(&home, &issue);
        stdout(&home, &["token", "suspend", suspended["id"].as_str().unwrap()]);
        for format in ["csv", "jsonl"] {
            let file = folder.path(format);
            let export = ["token", "export", "--format", format, "--with-digests", "--output", &file];
            let output = run(&home, &export);
            assert_eq!((code(&output), output.stdout.len(), output.stderr.len()), (0, 0, 0), "{output:?}");
            #[cfg(unix)]
            assert_eq!(mode(&file), 0o600);
            assert!(std::fs::read_to_string(&file).unwrap().contains(&TokenDigest::of(&*first).to_hex()));
            // An existing file is not overwritten.
            let again = run(&home, &export);
            assert_eq!((code(&again), text(&again.stderr).contains("could not be created")), (1, true), "{again:?}");
            assert!(Path::new(&file).exists());

            let mut targets = vec![Home::sqlite()];
            targets.extend(Home::postgres("exports_with_digests_are_imported_into_another_database").await);
            for target in targets {
                let other = target.database().await;
                other.migrate().await.unwrap();
                assert_eq!(stdout(&target, &["token", "import", &file, "--format", format]), "imported 2, skipped 0\n");
                let (before, after) = (database.list(None).await.unwrap(), other.list(None).await.unwrap());
                assert_eq!(before, after);
                let principals = other.store::<Option<String>>();
                let old = principals.get(TokenDigest::of(&*first)).await.unwrap().unwrap();
                assert!(old.is_rotated() && old.principal().as_deref() == Some("text"));
                let old_expiry =
                    database.store::<Option<String>>().get(TokenDigest::of(&*first)).await.unwrap().unwrap();
                assert_eq!(old.expires_at(), old_expiry.expires_at());
                assert!(!principals.get(TokenDigest::of(&*second)).await.unwrap().unwrap().is_rotated());
                assert!(!works(&other, &third).await);
                stdout(&target, &["token", "resume", suspended["id"].as_str().unwrap()]);
                assert!(works(&other, &third).await);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn exports_without_digests_are_filtered_lists() {
    on_each_database("exports_without_digests_are_filtered_lists", |home| async move {
        let (token, grant) = secret(&home, &["token", "issue", "--subject", "alice", "--scope", "a", "--scope", "b"]);
        secret(&home, &["token", "issue", "--subject", "bob"]);
        let lines = stdout(&home, &["token", "export"]);
        assert_eq!(lines.lines().count(), 2);
        let alice = stdout(&home, &["token", "export", "--subject", "alice", "--state", "valid"]);
        let line: Value = serde_json::from_str(alice.strip_suffix('\n').unwrap()).unwrap();
        assert_eq!((&line["id"], &line["scopes"]), (&grant["id"], &json!(["a", "b"])));
        assert_eq!((&line["token_prefix"], line.get("tokens")), (&json!("tg"), None));
        let csv = stdout(&home, &["token", "export", "--format", "csv", "--subject", "alice"]);
        let mut csv = csv.lines();
        let header = "id,subject,label,scopes,quota,not_before,expires_at,sender_constrained,principal,created_at,revoked_at,\
             suspended_at,last_used,last_used_location,token_prefix";
        assert_eq!(csv.next(), Some(header));
        assert!(csv.next().unwrap().contains(",alice,,a b,,,,false,,"));
        assert!(!lines.contains(&TokenDigest::of(&*token).to_hex()));

        // Digests are never written to standard output.
        let rejected = run(&home, &["token", "export", "--with-digests"]);
        assert_eq!((code(&rejected), rejected.stdout.len()), (2, 0));
        for output in ["/dev/stdout", "/dev/stderr"] {
            let output = run(&home, &["token", "export", "--with-digests", "--output", output]);
            assert_eq!((code(&output), output.stdout.len()), (1, 0), "{output:?}");
        }
        // Without tokens, an export cannot be imported.
        let output = piped(&home, &["token", "import", "--format", "jsonl", "--skip-existing"], &lines);
        assert!(text(&output.stderr).starts_with("error: line 1: must have one of the fields"), "{output:?}");
    })
    .await;
}

/// Lists of more than one page.
#[tokio::test]
async fn exports_contain_each_grant_and_entry_once() {
    on_each_database("exports_contain_each_grant_and_entry_once", |home| async move {
        let lines: String = (0..2_500)
            .map(|number| format!("{{\"id\":\"id-{number}\",\"subject\":\"alice\",\"token\":\"t-{number}\"}}\n"))
            .collect();
        let output = piped(&home, &["token", "import", "--format", "jsonl"], &lines);
        assert_eq!(text(&output.stdout), "imported 2500, skipped 0\n");
        let ids = |text: &str, field: &str| {
            let values = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()[field].clone());
            let mut ids: Vec<String> = values.map(|id| id.as_str().unwrap().to_owned()).collect();
            ids.sort_unstable();
            ids.dedup();
            ids.len()
        };
        let grants = stdout(&home, &["token", "export"]);
        assert_eq!((grants.lines().count(), ids(&grants, "id")), (2_500, 2_500));
        stdout(&home, &["token", "suspend", "id-7"]);
        let entries = stdout(&home, &["audit", "export"]);
        assert_eq!((entries.lines().count(), ids(&entries, "grant")), (2_501, 2_500));
        let first: Value = serde_json::from_str(entries.lines().next().unwrap()).unwrap();
        assert_eq!(
            (&first["action"], &first["grant"], &first["changes"]),
            (&json!("suspend"), &json!("id-7"), &Value::Null)
        );
        let csv = stdout(&home, &["audit", "export", "--format", "csv", "--grant", "id-7"]);
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!((lines[0], lines.len()), ("at,actor,action,grant,subject,changes", 3));
        assert!(lines[1].ends_with(",suspend,id-7,alice,") && lines[2].ends_with(",import,id-7,alice,{}"), "{csv}");
    })
    .await;
}

/// A program that writes slowly must not keep a transaction open, whatever name its pipe has.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_pipe_keeps_no_transaction_open() {
    on_each_database("a_slow_pipe_keeps_no_transaction_open", |home| async move {
        let database = home.database().await.with_admin_timeout(Duration::from_secs(2));
        for name in ["-", "/dev/stdin"] {
            let mut command = tollgate(&["token", "import", name, "--format", "jsonl"]);
            command.env("TOLLGATE_DATABASE", home.url()).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut input = child.stdin.take().unwrap();
            let id = name.replace(['/', '-'], "p");
            writeln!(input, r#"{{"subject":"alice","id":"{id}","token":"token-{id}"}}"#).unwrap();
            // Long enough that the command usually waits for the rest. If it begins later, the change succeeds as well.
            tokio::time::sleep(Duration::from_millis(500)).await;
            database.import(TokenDigest::of(format!("other-{id}").as_str()), &NewGrant::new("bob")).await.unwrap();
            drop(input);
            assert_eq!(text(&child.wait_with_output().unwrap().stdout), "imported 1, skipped 0\n");
        }
    })
    .await;
}

/// Other commands could not name such a grant.
#[tokio::test]
async fn names_that_begin_or_end_with_a_space_are_not_imported() {
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    let csv = "subject,id,token\n alice,one,token-1\nalice,two ,token-2\n";
    let output = piped(&home, &["token", "import", "--format", "csv"], csv);
    let errors = "error: line 2: subject: must not begin or end with a space\n\
         error: line 3: id: must not begin or end with a space\n";
    assert_eq!(code(&output), 1);
    assert!(text(&output.stderr).starts_with(errors), "{output:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_export_that_cannot_be_written_is_an_error() {
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    secret(&home, &["token", "issue", "--subject", "alice"]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = tollgate(&["token", "export", "--database", home.url()]);
    let output = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(code(&output), 1);
    assert!(text(&output.stderr).starts_with("error: cannot write the export: "), "{output:?}");
    // A row that cannot be exported leaves no file with digests.
    let folder = Folder::new();
    crate::sql::execute(&home, "UPDATE tollgate_grants SET principal = '{'".to_owned()).await;
    let output = run(&home, &["token", "export", "--with-digests", "--output", &folder.path("grants")]);
    assert_eq!((code(&output), Path::new(&folder.path("grants")).exists()), (1, false), "{output:?}");
}

/// A lock on the table stops the export before it reads a grant.
#[tokio::test]
async fn an_export_that_is_killed_leaves_no_file_of_that_name() {
    let Some(home) = Home::postgres("an_export_that_is_killed_leaves_no_file_of_that_name").await else { return };
    home.database().await.migrate().await.unwrap();
    let issued = json(&home, &["token", "issue", "--subject", "alice", "--json"]);
    let mut other = sqlx::PgConnection::connect(home.url()).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    sqlx::query("LOCK TABLE tollgate_grants IN ACCESS EXCLUSIVE MODE").execute(&mut *transaction).await.unwrap();

    let folder = Folder::new();
    let file = folder.path("grants");
    let export = ["token", "export", "--with-digests", "--output", &file, "--database", home.url()];
    let mut child = tollgate(&export).stderr(Stdio::piped()).spawn().unwrap();
    let names = || -> Vec<String> {
        std::fs::read_dir(folder.path("."))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    tokio::time::timeout(Duration::from_secs(20), async {
        while names().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("a temporary file");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(names().iter().all(|name| name.starts_with(".tollgate-export-")), "{:?}", names());

    transaction.rollback().await.unwrap();
    stdout(&home, &export);
    assert!(std::fs::read_to_string(&file).unwrap().contains(issued["id"].as_str().unwrap()));
    let again = run(&home, &export);
    assert_eq!(code(&again), 1, "the file exists");
    assert!(text(&again.stderr).starts_with("error: the output file could not be created: "), "{again:?}");
}

#[tokio::test]
async fn all_grants_of_a_subject_are_suspended_resumed_and_revoked_by_commands() {
    on_each_database("all_grants_of_a_subject_are_suspended_resumed_and_revoked_by_commands", |home| async move {
        let issue = ["token", "issue", "--subject", "alice"];
        let (first, _) = secret(&home, &issue);
        let (_, second) = secret(&home, &issue);
        let database = home.database().await;
        stdout(&home, &["token", "suspend", second["id"].as_str().unwrap()]);
        assert_eq!(stdout(&home, &["token", "suspend", "--subject", "alice"]), "suspended 1 of alice\n");
        assert!(!works(&database, &first).await);
        let again = run(&home, &["token", "suspend", "--subject", "alice"]);
        assert_eq!(text(&again.stderr), "error: the subject has no grants to suspend\n");
        let resumed = json(&home, &["token", "resume", "--subject", "alice", "--json"]);
        assert_eq!((resumed.as_array().unwrap().len(), &resumed[0]["state"]), (2, &json!("valid")));
        assert!(works(&database, &first).await);
        assert_eq!(stdout(&home, &["token", "revoke", "--subject", "alice"]), "revoked 2 of alice\n");
        for args in [&["token", "suspend"][..], &["token", "resume", "id", "--subject", "alice"]] {
            assert_eq!(code(&run(&home, args)), 2, "{args:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_expired_grant_is_not_extended_beyond_the_maximum() {
    on_each_database("an_expired_grant_is_not_extended_beyond_the_maximum", |home| async move {
        let (_, expired) = secret(&home, &["token", "issue", "--subject", "alice", "--expires", "1ms"]);
        secret(&home, &["token", "issue", "--subject", "alice"]);
        tokio::time::sleep(Duration::from_millis(2)).await;
        let extend = ["token", "change", expired["id"].as_str().unwrap(), "--expires", "90d", "--max-active"];
        let output = run(&home, &[&extend[..], &["1"]].concat());
        assert_eq!(text(&output.stderr), "error: the subject already has 1 active grants or more\n");
        assert_eq!(code(&run(&home, &[&extend[..], &["2"]].concat())), 0);
        let both = ["token", "change", "--subject", "alice", "--expires", "1h", "--max-active", "1"];
        assert_eq!(code(&run(&home, &both)), 2);
    })
    .await;
}
