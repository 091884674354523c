//! Completion scripts, manual pages, and colors of the command line.

use std::path::Path;
use std::process::{Command, Output};

use tollgate::TokenDigest;
use tollgate::store::sql::NewGrant;

use crate::cli::{code, json, stdout, tollgate};
use crate::cli_kit::{has, is_installed, on_terminal, with_input};
use crate::servers::{Home, on_each_database};

fn text(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns a completion script. No environment variable may be in it.
fn script(shell: &str) -> String {
    let mut command = tollgate(&["completions", shell]);
    command.env("TOLLGATE_DATABASE", "postgres://user:sesame@h/x").env("TOLLGATE_PREFIX", "sesame");
    let script = text(command.env("TOLLGATE_REDIS", "redis://:sesame@h").output().unwrap());
    assert!(script.contains("tollgate") && !script.contains("sesame"), "{script}");
    script
}

#[test]
fn completion_scripts_are_accepted_by_their_shells() {
    let test = "completion_scripts_are_accepted_by_their_shells";
    for (shell, program, check) in [
        ("bash", "bash", &["-n"][..]),
        ("zsh", "zsh", &["-n"]),
        ("fish", "fish", &["--no-execute"]),
        ("elvish", "elvish", &["-compileonly"]),
        ("powershell", "pwsh", &["-NoProfile", "-File"]),
    ] {
        let file = std::env::temp_dir().join(format!("tollgate-{}.{shell}", crate::machine::unique()));
        std::fs::write(&file, script(shell)).unwrap();
        // Only bash is required. The other scripts come from the same library.
        let can_check = if shell == "bash" { has(program, test) } else { is_installed(program) };
        let output = can_check.then(|| Command::new(program).args(check).arg(&file).output().unwrap());
        std::fs::remove_file(&file).unwrap();
        if let Some(output) = output {
            assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {output:?}");
        }
    }
    assert_eq!(code(&tollgate(&["completions", "tcsh"]).output().unwrap()), 2);
}

#[test]
fn bash_completes_commands_and_options() {
    if !has("bash", "bash_completes_commands_and_options") {
        return;
    }
    let complete = |words: &[&str]| {
        let call = format!(
            "COMP_WORDS=({}); COMP_CWORD={}; _tollgate tollgate {} {}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len() - 1,
            words[words.len() - 1],
            words[words.len() - 2],
        );
        let mut bash = Command::new("bash");
        bash.args(["--noprofile", "--norc", "-s"]);
        text(with_input(bash, format!("{}\n{call}\n", script("bash")).as_bytes()))
    };
    assert_eq!(complete(&["tollgate", "to"]), "token\n");
    assert_eq!(complete(&["tollgate", "token", "susp"]), "suspend\n");
    assert_eq!(complete(&["tollgate", "token", "list", "--sta"]), "--state\n");
    assert!(complete(&["tollgate", "token", "list", "--state", "exp"]).contains("expired"));
}

/// Renders a page. Returns its text without warnings of the formatter.
fn rendered(page: &str) -> Option<String> {
    if !has("groff", "manual_pages_are_rendered_without_warnings") {
        return None;
    }
    let mut groff = Command::new("groff");
    groff.args(["-man", "-Tascii", "-ww", "-P-cbou"]);
    let output = with_input(groff, page.as_bytes());
    let warnings = String::from_utf8_lossy(&output.stderr);
    // Long names of options cannot be broken.
    assert!(warnings.lines().all(|line| line.ends_with("cannot adjust line") || line.is_empty()), "{warnings}");
    Some(text(output))
}

#[test]
fn manual_pages_are_rendered_without_warnings() {
    let folder = std::env::temp_dir().join(format!("tollgate-{}", crate::machine::unique()));
    let write = || {
        let mut command = tollgate(&["man", "--out", folder.to_str().unwrap()]);
        command.env("TOLLGATE_DATABASE", "postgres://user:sesame@h/x").env("TOLLGATE_PREFIX", "sesame");
        command.output().unwrap()
    };
    let missing = write();
    assert_eq!((code(&missing), missing.stdout.len()), (1, 0), "the folder is missing");
    std::fs::create_dir(&folder).unwrap();
    assert_eq!(text(write()), "");
    let pages: Vec<(String, String)> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (name(&path), std::fs::read_to_string(&path).unwrap()))
        .collect();
    std::fs::remove_dir_all(&folder).unwrap();
    let has_page = |expected: &str| pages.iter().any(|(name, _)| name == expected);
    for expected in
        ["tollgate.1", "tollgate-token.1", "tollgate-token-issue.1", "tollgate-check.1", "tollgate-doctor.1"]
    {
        assert!(has_page(expected), "{expected}");
    }
    let main = text(tollgate(&["man"]).output().unwrap());
    for (name, page) in pages.iter().map(|(name, page)| (&**name, &**page)).chain([("standard output", &*main)]) {
        assert!(!page.contains("sesame"), "{name}");
        let Some(shown) = rendered(page) else { continue };
        assert!(shown.contains("NAME") && shown.contains("SYNOPSIS") && shown.contains("tollgate"), "{name}: {shown}");
    }
    if let Some(shown) = rendered(&main) {
        // Lines are justified.
        let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(shown.contains("Exit codes") && shown.contains("tollgate-token(1)"), "{shown}");
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

const ESCAPE: char = '\u{1b}';
const GREEN: &str = "\u{1b}[32mvalid\u{1b}[0m";

#[tokio::test]
async fn pipes_receive_no_colors() {
    on_each_database("pipes_receive_no_colors", |home| async move {
        let database = home.database().await;
        let grant = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
        for (args, exit) in [
            (&["token", "list"][..], 0),
            (&["token", "show", grant.id.as_str()], 0),
            (&["token", "show", "unknown"], 1),
            (&["doctor"], 0),
            (&["check"], 2),
            (&["--help"], 0),
            (&["token", "list", "--help"], 0),
            (&["token", "list", "--state", "unknown"], 2),
            (&[], 2),
        ] {
            // Neither standard output nor standard error is a terminal.
            let output = tollgate(args).env("TOLLGATE_DATABASE", home.url()).env("TERM", "xterm").output().unwrap();
            let shown = [output.stdout.clone(), output.stderr.clone()].concat();
            assert_eq!((code(&output), shown.contains(&0x1b)), (exit, false), "{args:?}: {output:?}");
        }
        let forced = |args: &[&str]| {
            text(tollgate(args).env("TOLLGATE_DATABASE", home.url()).env("CLICOLOR_FORCE", "1").output().unwrap())
        };
        assert!(forced(&["token", "list"]).contains(GREEN));
        assert!(!forced(&["token", "list", "--json"]).contains(ESCAPE));
        assert_eq!(json(&home, &["token", "list", "--json"])[0]["state"], "valid");
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn terminals_show_colors_unless_no_color_is_set() {
    let test = "terminals_show_colors_unless_no_color_is_set";
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    for (id, statement) in [
        ("one", ""),
        ("two", "suspended_ms = 1"),
        ("three", "expires_ms = 1"),
        ("four", "revoked_ms = 1"),
        // Another program wrote an escape sequence.
        ("five", "label = char(27) || '[31mred'"),
    ] {
        database.import(TokenDigest::of(id), &NewGrant::new("alice").with_id(id)).await.unwrap();
        if !statement.is_empty() {
            let update = format!("UPDATE tollgate_grants SET {statement} WHERE id = '{id}'");
            let mut connection = <sqlx::SqliteConnection as sqlx::Connection>::connect(home.url()).await.unwrap();
            sqlx::query(sqlx::AssertSqlSafe(update)).execute(&mut connection).await.unwrap();
        }
    }
    let shown = |args: &[&str], environment: &[(&str, &str)]| {
        let mut command = tollgate(args);
        command.env("TOLLGATE_DATABASE", home.url()).envs(environment.iter().copied());
        let output = on_terminal(test, "", &command)?.output().unwrap();
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let Some(table) = shown(&["token", "list"], &[]) else { return };
    for state in [GREEN, "\u{1b}[33msuspended\u{1b}[0m", "\u{1b}[2mexpired\u{1b}[0m", "\u{1b}[31mrevoked\u{1b}[0m"] {
        assert!(table.contains(state), "{table:?}");
    }
    assert!(table.contains("\u{fffd}[31mred"), "{table:?}");
    let plain = shown(&["token", "list"], &[("NO_COLOR", "1")]).unwrap();
    assert!(!plain.contains(ESCAPE) && plain.contains("suspended"), "{plain:?}");
    // The columns are aligned as without colors.
    assert_eq!(plain.replace("\r\n", "\n"), stdout(&home, &["token", "list"]));
    assert!(!shown(&["token", "list", "--json"], &[]).unwrap().contains(ESCAPE));
    assert!(shown(&["token", "show", "unknown"], &[]).unwrap().contains("\u{1b}[1m\u{1b}[31merror:\u{1b}[0m "));
    assert!(shown(&["doctor"], &[]).unwrap().contains("\u{1b}[32mok\u{1b}[0m "));
    assert!(shown(&["--help"], &[]).unwrap().contains(ESCAPE), "clap's own help");
    assert!(!shown(&["--help"], &[("NO_COLOR", "1")]).unwrap().contains(ESCAPE));
}
