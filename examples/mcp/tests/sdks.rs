//! The official SDKs for JavaScript and Python, with a small authorization server.
//!
//! The tests are skipped where Node.js, Python or a package is missing, and fail then if `TOLLGATE_REQUIRE_CLIENTS` is set.
//! `TOLLGATE_NODE_MODULES` is the folder of the packages for Node.js; default: `target/node/node_modules`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::*;

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/mcp/tests");

/// Runs a program to its end. Returns its output, or `None` if it is missing or fails.
async fn output(command: &mut Command) -> Option<String> {
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(60), output).await.expect("a program that ends").ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Some(text),
        false => {
            _ = writeln!(std::io::stderr(), "{text}{}", String::from_utf8_lossy(&output.stderr));
            None
        }
    }
}

/// Says that a test is skipped for lack of a program. Fails if `TOLLGATE_REQUIRE_CLIENTS` is set.
fn skip(missing: &str, test: &str) {
    let is_required = std::env::var_os("TOLLGATE_REQUIRE_CLIENTS").is_some();
    assert!(!is_required, "{test}: no {missing}, and TOLLGATE_REQUIRE_CLIENTS is set");
    _ = writeln!(std::io::stderr(), "skipped: no {missing}: {test}");
}

fn modules() -> PathBuf {
    let modules = std::env::var_os("TOLLGATE_NODE_MODULES").unwrap_or("target/node/node_modules".into());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(modules)
}

/// Returns whether Node.js and these packages are installed, or says that the test is skipped.
async fn has_packages(names: &[&str], test: &str) -> bool {
    let node = output(Command::new("node").arg("--version")).await;
    let missing = match node {
        None => Some("Node.js"),
        Some(_) => names.iter().copied().find(|name| !modules().join(name).exists()),
    };
    if let Some(missing) = missing {
        skip(missing, test);
    }
    missing.is_none()
}

/// Starts the authorization server. The process ends with the returned value.
async fn authorization_server() -> (AuthorizationServer, Child) {
    let module = modules().join("oidc-provider/lib/index.js");
    let mut process = Command::new("node")
        .arg(format!("{FILES}/authorization_server.mjs"))
        .env("TOLLGATE_OIDC_PROVIDER", format!("file://{}", module.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await;
    let issuer = first.expect("the authorization server responds").unwrap().expect("the authorization server runs");
    let jwks = format!("{issuer}/jwks");
    (AuthorizationServer { issuer, jwks }, process)
}

/// Gets a JWT for a resource, by the grant of client credentials.
async fn token(server: &AuthorizationServer, resource: &str) -> String {
    let request = Request::post(format!("{}/token", server.issuer))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from(format!(
            "grant_type=client_credentials&client_id=app&client_secret=s3cret&scope=read&resource={resource}"
        )))
        .unwrap();
    let json = open(request).await.into_body().collect().await.unwrap().to_bytes();
    let json: Value = serde_json::from_slice(&json).unwrap();
    json["access_token"].as_str().unwrap_or_else(|| panic!("{json}")).to_owned()
}

#[tokio::test]
async fn jwts_are_accepted_for_this_resource_only() {
    if !has_packages(&["oidc-provider"], "jwts_are_accepted_for_this_resource_only").await {
        return;
    }
    let (server, _process) = authorization_server().await;
    let url = start(Some(&server)).await;
    assert_eq!(call(&url, &token(&server, &url).await, "quote").await.status(), 200);
    for other in [url.replace("/mcp", ""), url.replace("/mcp", "/mcp/"), "https://mcp.example/mcp".to_owned()] {
        let response = call(&url, &token(&server, &other).await, "quote").await;
        assert_eq!(response.status(), 401, "{other}");
        assert!(
            field(&response, "www-authenticate").contains(r#"error="invalid_token", scope="read""#),
            "{response:?}"
        );
    }
}

/// Runs a client against a server of its own, and returns what the client prints.
async fn run(server: &AuthorizationServer, client: impl FnOnce(&str) -> Command) -> String {
    let url = start(Some(server)).await;
    let text = output(&mut client(&url)).await.expect("the client succeeds");
    text.replace(&url, "URL").replace(url.strip_suffix("/mcp").unwrap(), "ORIGIN")
}

/// Returns what a client prints. `scope` is what it asks for besides the scopes of the challenges.
fn expected(version: &str, scope: &str) -> String {
    let metadata = r#"resource_metadata="ORIGIN/.well-known/oauth-protected-resource/mcp""#;
    let connect = format!(
        r#"401 www-authenticate: Bearer realm="api", scope="read", {metadata}
authorize scope=read{scope} resource=URL
connected {version}
"#
    );
    let order = format!(
        r#"403 www-authenticate: Bearer realm="api", error="insufficient_scope", scope="read trade", {metadata}
authorize scope=read{scope} trade resource=URL
bought 3 ACME for alice
"#
    );
    // Two quotes and two orders have cost 22 of 30 units, over two connections. The next order costs 10.
    let limited = "429 retry-after: 2\nerror: The rate limit is exhausted. Retry after 2 seconds.\n";
    format!("{connect}ACME costs 17.42\n{order}ACME costs 17.42\n{connect}{order}{limited}{limited}")
}

async fn javascript(package: &str, version: &str, test: &str) {
    if !has_packages(&["oidc-provider", &format!("@modelcontextprotocol/{package}")], test).await {
        return;
    }
    let (server, _process) = authorization_server().await;
    let client = |url: &str| {
        let mut command = Command::new("node");
        command.args([&format!("{FILES}/client.mjs"), url]).arg(modules()).arg(package);
        command
    };
    assert_eq!(run(&server, client).await, expected(version, ""));
}

#[tokio::test]
async fn the_first_javascript_sdk_authorizes_steps_up_and_is_limited() {
    javascript("sdk", "2025-11-25", "the_first_javascript_sdk_authorizes_steps_up_and_is_limited").await;
}

#[tokio::test]
async fn the_second_javascript_sdk_authorizes_steps_up_and_is_limited() {
    javascript("client", "2026-07-28", "the_second_javascript_sdk_authorizes_steps_up_and_is_limited").await;
}

#[tokio::test]
async fn the_python_sdk_authorizes_steps_up_and_is_limited() {
    let test = "the_python_sdk_authorizes_steps_up_and_is_limited";
    if !has_packages(&["oidc-provider"], test).await {
        return;
    }
    if output(Command::new("python3").args(["-c", "from mcp import Client"])).await.is_none() {
        return skip("package mcp 2 for Python", test);
    }
    let (server, _process) = authorization_server().await;
    for (mode, version) in [("legacy", "2025-11-25"), ("auto", "2026-07-28")] {
        let client = |url: &str| {
            let mut command = Command::new("python3");
            command.args([&format!("{FILES}/client.py"), url, mode]);
            command
        };
        assert_eq!(run(&server, client).await, expected(version, " offline_access"), "{mode}");
    }
}
