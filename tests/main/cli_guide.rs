//! The command lines of the guide about administration, as written.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::cli_kit::has;
use crate::machine::unique;

const GUIDE: &str = include_str!("../../src/guide/administration.md");

/// Returns the lines of all blocks of this language.
fn lines(language: &str) -> Vec<&'static str> {
    let mut block = None;
    let mut found = Vec::new();
    for line in GUIDE.lines() {
        match (line.strip_prefix("```"), block) {
            (Some(name), None) => block = Some(name),
            (Some(_), Some(_)) => block = None,
            (None, Some(name)) if name == language => found.push(line),
            (None, _) => {}
        }
    }
    found
}

#[test]
fn command_lines_of_the_guide_succeed() {
    let test = "command_lines_of_the_guide_succeed";
    if !has("bash", test) || !has("jq", test) {
        return;
    }
    let (install, commands): (Vec<&str>, Vec<&str>) =
        lines("sh").into_iter().partition(|line| line.starts_with("cargo install"));
    assert_eq!(install, ["cargo install tollgate --features cli,sqlite,postgres"]);
    assert!(commands.iter().filter(|line| line.contains("tollgate ")).count() > 20, "{commands:?}");
    let folder = std::env::temp_dir().join(format!("tollgate-{}", unique()));
    std::fs::create_dir(&folder).unwrap();
    let binaries = Path::new(env!("CARGO_BIN_EXE_tollgate")).parent().unwrap().to_owned();
    let path =
        std::env::join_paths([binaries].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())));
    let mut bash = Command::new("bash");
    // Stops at the first command that fails, and prints each command.
    bash.args(["-euxo", "pipefail", "-c", &commands.join("\n")]).current_dir(&folder).env("PATH", path.unwrap());
    bash.env_remove("TOLLGATE_DATABASE")
        .env_remove("TOLLGATE_PREFIX")
        .env_remove("TOLLGATE_REDIS")
        .env_remove("TOLLGATE_SEALING_KEYS");
    let output = bash.stdin(Stdio::null()).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    let written = ["completions/tollgate", "completions/_tollgate", "man/tollgate-token-issue.1"];
    let is_written = written.map(|file| std::fs::metadata(folder.join(file)).is_ok_and(|file| file.len() > 0));
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(output.status.success(), "{err}");
    assert_eq!(is_written, [true; 3]);
    let out = String::from_utf8(output.stdout).unwrap();
    for expected in
        ["created the tables", "accepted\n", "revoked 1 of alice\n", "purged 0\n", "the token is rejected\n"]
    {
        assert!(out.contains(expected), "{expected}: {out}\n{err}");
    }
}
