//! A real OpenID provider, `oidc-provider` on Node.js, with rotation of its keys.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tollgate::store::{Claims, JwtAlgorithm, JwtKeys, JwtStore};

use crate::kit::jwt::*;
use crate::kit::{Hands, skip};

/// Serves a provider that signs with the keys named on a line of standard input, the first of which is used. Prints its address
/// after each line.
const SCRIPT: &str = "
import { createServer } from 'node:http'
import { createInterface } from 'node:readline'
import { generateKeyPairSync } from 'node:crypto'
const { default: Provider } = await import(process.env.TOLLGATE_OIDC_PROVIDER)
const keys = {}
const key = (name) => keys[name] ??= (() => {
  const [alg] = name.split('-')
  const { privateKey } = alg === 'RS256' || alg === 'PS256'
    ? generateKeyPairSync('rsa', { modulusLength: 2048 })
    : alg === 'ES256' ? generateKeyPairSync('ec', { namedCurve: 'P-256' }) : generateKeyPairSync('ed25519')
  return { ...privateKey.export({ format: 'jwk' }), kid: name, use: 'sig', alg }
})()
let handle = (request, response) => response.end()
const server = createServer((request, response) => handle(request, response))
server.listen(0, '127.0.0.1', async () => {
  const issuer = `http://127.0.0.1:${server.address().port}`
  for await (const line of createInterface({ input: process.stdin })) {
    const names = line.split(' ')
    const [alg] = names[0].split('-')
    const provider = new Provider(issuer, {
      jwks: { keys: names.map(key) },
      clients: [{ client_id: 'app', client_secret: 's3cret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [],
        id_token_signed_response_alg: alg }],
      scopes: ['trade', 'orders:read'],
      enabledJWA: { idTokenSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA'] },
      features: {
        devInteractions: { enabled: false },
        clientCredentials: { enabled: true },
        resourceIndicators: { enabled: true, getResourceServerInfo: (_, audience) => ({
          scope: 'trade orders:read', audience, accessTokenFormat: 'jwt', jwt: { sign: { alg, kid: names[0] } } }) },
      },
    })
    handle = provider.callback()
    console.log(issuer)
  }
})";

struct Provider {
    issuer: String,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// Ends the process when the test ends.
    _process: tokio::process::Child,
}

impl Provider {
    /// Starts the provider, or says that the test is skipped.
    async fn start(keys: &str, test: &str) -> Option<Self> {
        let modules = std::env::var_os("TOLLGATE_NODE_MODULES").unwrap_or("target/node/node_modules".into());
        let module = Path::new(env!("CARGO_MANIFEST_DIR")).join(modules).join("oidc-provider/lib/index.js");
        let is_installed = Command::new("node").arg("--version").output().await.is_ok_and(|run| run.status.success());
        if !is_installed || !module.exists() {
            skip("oidc-provider for Node.js", test);
            return None;
        }
        let mut process = Command::new("node")
            .args(["--input-type=module", "--eval", SCRIPT])
            .env("TOLLGATE_OIDC_PROVIDER", format!("file://{}", module.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let output = BufReader::new(output).lines();
        let mut provider = Self { issuer: String::new(), input, output, _process: process };
        provider.rotate(keys).await;
        Some(provider)
    }

    /// Replaces the keys. The first one signs.
    async fn rotate(&mut self, keys: &str) {
        self.input.write_all(format!("{keys}\n").as_bytes()).await.unwrap();
        let line = tokio::time::timeout(Duration::from_secs(60), self.next_line()).await;
        self.issuer = line.expect("the provider responds");
    }

    /// Returns the next address. The provider may print warnings.
    async fn next_line(&mut self) -> String {
        loop {
            let line = self.output.next_line().await.unwrap().expect("the provider runs");
            if line.starts_with("http://127.0.0.1:") {
                return line;
            }
        }
    }

    /// Gets an access token by the grant of client credentials.
    async fn token(&self, resource: &str) -> String {
        let form = format!(
            "grant_type=client_credentials&client_id=app&client_secret=s3cret&scope=trade&resource={}",
            percent_encoding::utf8_percent_encode(resource, percent_encoding::NON_ALPHANUMERIC)
        );
        let request = http::Request::post(format!("{}/token", self.issuer))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Full::from(form))
            .unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
        let response = client.request(request).await.unwrap();
        let json: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
        json["access_token"].as_str().unwrap_or_else(|| panic!("{json}")).to_owned()
    }

    fn store(&self, hands: &Hands) -> JwtStore<Claims> {
        let algorithms = [JwtAlgorithm::Rs256, JwtAlgorithm::Ps256, JwtAlgorithm::Es256, JwtAlgorithm::EdDsa];
        JwtStore::builder(&self.issuer, AUDIENCE, algorithms, JwtKeys::url(&format!("{}/jwks", self.issuer)))
            .with_timeout(Duration::from_secs(60))
            .with_min_interval(FLOOR)
            .with_clock(hands.clock())
            .build()
            .unwrap()
    }
}

#[tokio::test]
async fn access_tokens_of_a_real_provider_are_accepted_while_it_rotates_its_keys() {
    let test = "access_tokens_of_a_real_provider_are_accepted_while_it_rotates_its_keys";
    let Some(mut provider) = Provider::start("RS256-1", test).await else { return };
    let hands = Hands::default();
    let store = provider.store(&hands);
    let first = provider.token(AUDIENCE).await;
    let grant = ask(&store, &first).await.unwrap().expect("a token of the provider");
    assert_eq!((grant.subject().as_str(), grant.scopes().to_string().as_str()), ("app", "trade"));
    assert!(grant.is_valid_at(std::time::SystemTime::now()));
    assert!(!accepts(&store, &provider.token("https://other.example").await).await, "another audience");

    let mut earlier = vec![first];
    for keys in ["PS256-2 RS256-1", "ES256-3 PS256-2 RS256-1", "EdDSA-4 ES256-3 PS256-2 RS256-1"] {
        provider.rotate(keys).await;
        hands.advance(FLOOR);
        earlier.push(provider.token(AUDIENCE).await);
        for token in &earlier {
            assert!(accepts(&store, token).await, "{keys}");
        }
    }
    // The provider withdraws the first key.
    provider.rotate("EdDSA-5 EdDSA-4 ES256-3 PS256-2").await;
    hands.advance(FLOOR);
    assert!(accepts(&store, &provider.token(AUDIENCE).await).await);
    assert!(!accepts(&store, &earlier[0]).await);
}
