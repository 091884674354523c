//! A client in Python that is generated from the document, by `openapi-python-client`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Command;

use super::*;

const TEST: &str = "a_generated_client_authenticates";
const VARIABLE: &str = "TOLLGATE_REQUIRE_CLIENTS";

/// A folder that is removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let mut random = [0; 8];
        getrandom::fill(&mut random).unwrap();
        let folder = std::env::temp_dir().join(format!("tollgate-openapi-{:016x}", u64::from_ne_bytes(random)));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes that the test is skipped, past the capture of the test harness. Fails if the programs are required.
fn skip(missing: &str) {
    assert!(std::env::var_os(VARIABLE).is_none(), "{TEST}: {missing} is missing, and {VARIABLE} is set");
    _ = writeln!(std::io::stderr(), "skipped: {missing} is missing: {TEST}");
}

/// Runs Python in this folder. Returns `None`, with a message, if it or the generator is missing.
async fn python(folder: &Folder, args: &[&str]) -> Option<String> {
    let mut command = Command::new("python3");
    let output = command.args(args).current_dir(&folder.0).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(120), output).await.expect("Python ends");
    let Ok(output) = output else {
        skip("python3");
        return None;
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let errors = text(&output.stderr);
    if errors.contains("No module named openapi_python_client") {
        skip("openapi-python-client");
        return None;
    }
    assert!(output.status.success(), "{}{errors}", text(&output.stdout));
    Some(text(&output.stdout))
}

#[tokio::test]
async fn a_generated_client_authenticates() {
    let addr = start().await;
    let folder = Folder::new();
    std::fs::write(folder.0.join("openapi.json"), document(addr).await).unwrap();
    // The generator formats its code by default. The tests need no formatter.
    std::fs::write(folder.0.join("config.yml"), "post_hooks: []\n").unwrap();
    let generate = ["--path", "openapi.json", "--output-path", "paper", "--meta", "none", "--config", "config.yml"];
    let args = [&["-m", "openapi_python_client", "generate", "--fail-on-warning"], &generate[..]].concat();
    if python(&folder, &args).await.is_none() {
        return;
    }
    let url = format!("http://{addr}");
    let output = python(&folder, &["-c", include_str!("client.py"), &url, TRADER, READER]).await.unwrap();
    assert_eq!(output.lines().last(), Some("done"));
}
