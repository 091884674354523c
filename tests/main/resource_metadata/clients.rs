//! The discovery of an independent OAuth client, `oauth4webapi` on Node.js.

use std::path::Path;
use std::process::Stdio;

use axum::Router;
use axum::routing::get;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tollgate::gate::ProtectedResource;
use tollgate::{AuthLayer, Scopes};

use super::gate;
use super::values::resources;
use crate::kit::{TOKEN, memory, skip};

/// Runs a module of Node.js with these lines as input. Returns its output, or says that the test is skipped.
async fn node(script: &str, input: &str, test: &str) -> Option<String> {
    let modules = std::env::var_os("TOLLGATE_NODE_MODULES").unwrap_or("target/node/node_modules".into());
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join(modules).join("oauth4webapi/build/index.js");
    let is_installed = Command::new("node").arg("--version").output().await.is_ok_and(|run| run.status.success());
    if !is_installed || !module.exists() {
        skip("oauth4webapi for Node.js", test);
        return None;
    }
    let mut process = Command::new("node")
        .args(["--input-type=module", "--eval", script])
        .env("TOLLGATE_OAUTH4WEBAPI", format!("file://{}", module.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = process.stdin.take().unwrap();
    let input = input.to_owned();
    // At the same time as the output is read: a full pipe would block both processes.
    let writing = tokio::spawn(async move { stdin.write_all(input.as_bytes()).await });
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), process.wait_with_output());
    let output = output.await.expect("a client that ends").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    writing.await.unwrap().expect("a client that reads its input");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn a_client_derives_the_same_urls() {
    const SCRIPT: &str = "
import { createInterface } from 'node:readline'
const oauth = await import(process.env.TOLLGATE_OAUTH4WEBAPI)
for await (const resource of createInterface({ input: process.stdin })) {
  await oauth.resourceDiscoveryRequest(new URL(resource), {
    [oauth.allowInsecureRequests]: true,
    [oauth.customFetch]: (url) => { console.log(url); return new Response('{}') },
  })
}";
    let mut runner = TestRunner::deterministic();
    let resources: Vec<String> = (0..500).map(|_| resources().new_tree(&mut runner).unwrap().current()).collect();
    let Some(urls) = node(SCRIPT, &resources.join("\n"), "a_client_derives_the_same_urls").await else { return };
    let own: Vec<String> =
        resources.iter().map(|resource| gate(resource).resource_metadata().url().to_owned()).collect();
    assert_eq!(urls.lines().collect::<Vec<_>>(), own);
}

/// A client compares identifiers after its URL parser has read them.
#[tokio::test]
async fn a_url_parser_changes_no_accepted_resource() {
    const SCRIPT: &str = "
import { createInterface } from 'node:readline'
for await (const resource of createInterface({ input: process.stdin })) {
  console.log(URL.canParse(resource) ? new URL(resource).href : 'invalid')
}";
    let origin = "(https|http|HTTPS)://(localhost|127\\.0\\.0\\.1|\\[::1\\]|\\[::ffff:1\\.2\\.3\\.4\\]|\\[::1\\.2\\.3\\.4\\]|a\\.b|[aA.0-9x:@_~-]{1,6})(:[0-9]{0,5})?";
    let text = format!("{origin}[/?]?[/.%2eE?#'a&:@\\[\\]{{}}|^\\\\]{{0,6}}");
    let text = proptest::string::string_regex(&text).unwrap();
    let mut runner = TestRunner::deterministic();
    let texts = (0..20_000).map(|_| text.new_tree(&mut runner).unwrap().current());
    let accepted: Vec<String> = texts.filter(|text| ProtectedResource::new(text).is_ok()).collect();
    assert!(accepted.len() > 1_000, "only {} resources", accepted.len());
    let Some(urls) = node(SCRIPT, &accepted.join("\n"), "a_url_parser_changes_no_accepted_resource").await else {
        return;
    };
    assert_eq!(urls.lines().count(), accepted.len());
    for (url, resource) in urls.lines().zip(&accepted) {
        // The parser adds a slash after the host.
        let after_host = resource.find("//").unwrap() + 2;
        let end = resource[after_host..].find(['/', '?']).map_or(resource.len(), |end| after_host + end);
        let slash = if resource[end..].starts_with('/') { "" } else { "/" };
        assert_eq!(url, format!("{}{slash}{}", &resource[..end], &resource[end..]));
    }
}

#[tokio::test]
async fn a_client_finds_the_authorization_server_from_a_401() {
    const SCRIPT: &str = "
import { createInterface } from 'node:readline'
const oauth = await import(process.env.TOLLGATE_OAUTH4WEBAPI)
for await (const line of createInterface({ input: process.stdin })) {
  const [resource, token] = line.split(' ')
  const url = new URL(resource), options = { [oauth.allowInsecureRequests]: true }
  let challenges
  try {
    await oauth.protectedResourceRequest('wrong', 'GET', url, undefined, undefined, options)
  } catch (error) {
    challenges = error.cause
  }
  const { scheme, parameters } = challenges[0]
  const response = await oauth.resourceDiscoveryRequest(url, options)
  if (response.url !== parameters.resource_metadata) throw new Error(`${response.url} ${JSON.stringify(parameters)}`)
  const metadata = await oauth.processResourceDiscoveryResponse(url, response)
  const admitted = await oauth.protectedResourceRequest(token, 'GET', url, undefined, undefined, options)
  console.log([scheme, parameters.scope, metadata.authorization_servers, metadata.scopes_supported, admitted.status].join(' '))
}";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let resource = format!("http://{}/orders", listener.local_addr().unwrap());
    let metadata = ProtectedResource::new(&resource)
        .unwrap()
        .with_authorization_server("https://id.example")
        .unwrap()
        .with_scopes(&Scopes::new(["read", "trade"]).unwrap());
    let gate = AuthLayer::new(memory()).with_protected_resource(metadata).with_challenge_scope(["read"]).unwrap();
    let app = Router::new().route("/orders", get(|| async { "none" })).layer(gate);
    tokio::spawn(async move { axum::serve(listener, app).await });
    let input = format!("{resource} {TOKEN}");
    let Some(found) = node(SCRIPT, &input, "a_client_finds_the_authorization_server_from_a_401").await else { return };
    assert_eq!(found.trim(), "bearer read https://id.example read,trade 200");
}
