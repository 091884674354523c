//! A custom store: tokens in a text file, one per line, which is read at every request.
//!
//! ```text
//! # SHA-256 of the token, its subject, its scopes
//! ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad alice read trade
//! ```
//!
//! `printf %s "$token" | sha256sum` prints the first word. A change takes effect at the next request. Replace the file by
//! renaming a new one, so that it is never read half-written. A file is enough for some hundreds of tokens. For more, change
//! [`find`] to ask a database.
//!
//! The example shows:
//!
//! 1. Two ways to write a store that waits: [`TokenStore`] for a type ([`TokenFile`]), or a closure ([`short_form`]).
//! 2. The response when the file is missing or invalid, or the disk hangs: 503 and never 401, because clients discard
//!    tokens after a 401. [`log_outage`] logs the cause.
//! 3. `store::contract`, which checks a store.
//!
//! `cargo run --example custom_store --features axum,tokio` serves on 127.0.0.1:3000 and prints what to try.
//! `-- --listen ADDRESS:PORT` selects another address.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::get;
use tokio::net::TcpListener;
use tollgate::store::{self, Lookup};
use tollgate::{
    Answer, AuthLayer, Authenticated, BearerToken, Grant, Rejection, RejectionKind, TokenDigest, TokenStore,
};

/// Longer than a healthy disk takes, and shorter than the timeouts of clients.
const TIMEOUT: Duration = Duration::from_millis(500);

/// A store of tokens in a file.
#[derive(Clone, Debug)]
struct TokenFile {
    path: Arc<Path>,
}

impl TokenFile {
    fn new(path: &Path) -> Self {
        Self { path: path.into() }
    }
}

impl TokenStore for TokenFile {
    /// The file has no data beyond the fields of a grant.
    type Principal = ();
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Lookup<(), io::Error>> + Send>>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        // The future outlives both borrows, so it owns the path and the digest. It does not get the token.
        let (path, digest) = (Arc::clone(&self.path), *token.digest());
        Answer::Pending(Box::pin(async move { Ok(find(&path, digest).await?.map(Arc::new)) }))
    }
}

/// Returns the same store as a closure, without a type of its own. Only the tests use it.
#[cfg_attr(not(test), allow(dead_code))]
fn short_form(path: &Path) -> impl TokenStore<Principal = (), Error = io::Error> + use<> {
    store::from_fn_with(PathBuf::from(path), |path, digest| async move { find(&path, digest).await })
}

/// Reads the file and returns the grant of a token. `Ok(None)` means that the whole file is valid and lacks the token.
async fn find(path: &Path, digest: TokenDigest) -> io::Result<Option<Grant<()>>> {
    let text = tokio::fs::read_to_string(path).await?;
    // All lines are read in any case, so that the time does not show whether the token is known.
    Ok(parse_file(&text)?.remove(&digest))
}

fn parse_file(text: &str) -> io::Result<HashMap<TokenDigest, Grant<()>>> {
    // The file may be half-written.
    if !text.ends_with('\n') {
        return Err(invalid("the token file is empty or ends within a line"));
    }
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        // The error has the number of the line only: logs must not contain a digest.
        .map(|(i, line)| parse_line(line).ok_or_else(|| invalid(&format!("line {} of the token file is bad", i + 1))))
        .collect()
}

fn parse_line(line: &str) -> Option<(TokenDigest, Grant<()>)> {
    let mut words = line.split_ascii_whitespace();
    let digest = TokenDigest::from_hex(words.next()?).ok()?;
    let grant = Grant::new(words.next()?, ()).with_scopes(words).ok()?;
    Some((digest, grant))
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Builds the service. Tests pass a store that hangs.
fn app(store: impl TokenStore<Principal = ()>) -> Router {
    let gate = AuthLayer::with_timeout(store, TIMEOUT);
    Router::new().route("/", get(hello)).layer(gate).layer(map_response(log_outage))
}

async fn hello(caller: Authenticated<()>) -> String {
    let grant = caller.grant();
    format!("hello, {}; you may: {}\n", grant.subject(), grant.scopes())
}

/// Logs the cause of a 503. The response does not contain it; the rejection in its extensions does.
async fn log_outage(response: Response) -> Response {
    let rejection = response.extensions().get::<Rejection>();
    if let Some(rejection) = rejection.filter(|rejection| rejection.kind() == RejectionKind::StoreUnavailable) {
        let reasons = std::iter::successors(Some(rejection as &dyn Error), |error| (*error).source());
        eprintln!("{}", reasons.map(ToString::to_string).collect::<Vec<_>>().join(": "));
    }
    response
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(listen) = parse_args(&args) else {
        eprintln!("usage: custom_store [--listen ADDRESS:PORT]");
        std::process::exit(2);
    };
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let token = random_token()?;
    let file = TempFile::new("demo", &line_of(&token, "alice read trade"))?;
    println!("{}", instructions(listener.local_addr()?, &token, &file.path));
    let app = app(TokenFile::new(&file.path));
    Ok(axum::serve(listener, app).with_graceful_shutdown(async { _ = tokio::signal::ctrl_c().await }).await?)
}

fn instructions(addr: SocketAddr, token: &str, file: &Path) -> String {
    let file = file.display();
    format!(
        "listening on http://{addr}/ until ctrl-c; tokens are in {file}

# alice's token is in the file: 200
curl -i -H 'Authorization: Bearer {token}' 'http://{addr}/'

# the same request after her line is gone: 401
echo '# no tokens' > '{file}'

# the same request after the file is gone: 503, because the token may be valid
rm '{file}'
"
    )
}

fn line_of(token: &str, rest: &str) -> String {
    format!("{} {rest}\n", TokenDigest::of(token).to_hex())
}

/// A file that is removed on drop.
struct TempFile {
    path: PathBuf,
}

impl TempFile {
    fn new(name: &str, text: &str) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("tollgate-{name}-{}.tokens", std::process::id()));
        // Only a new file: this does not follow a link that another user has put there.
        let mut file = File::create_new(&path)?;
        let this = Self { path };
        file.write_all(text.as_bytes())?;
        Ok(this)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // The user may have removed it: the instructions say so.
        let _ = fs::remove_file(&self.path);
    }
}

/// Returns a token of 256 random bits.
fn random_token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().fold("tg_".to_owned(), |token, byte| format!("{token}{byte:02x}")))
}

fn parse_args(args: &[String]) -> Option<SocketAddr> {
    match args {
        [] => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 3000))),
        [flag, listen] if flag == "--listen" => listen.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tokio::time::Instant;
    use tower::ServiceExt;

    use super::*;

    const ALICE: &str = "tg_alice_3f9a";
    const BOB: &str = "tg_bob_77c1";

    async fn request(app: &Router, token: &str) -> Response {
        let request = Request::get("/").header("authorization", format!("Bearer {token}"));
        app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    /// Checks that the response is a 503 without a statement about the token.
    fn assert_unavailable(response: &Response) {
        assert_eq!(response.status(), 503);
        assert!(!response.headers().contains_key("www-authenticate"));
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }

    #[tokio::test]
    async fn a_change_of_the_file_takes_effect_at_the_next_request() {
        let (alice, bob) = (line_of(ALICE, "alice read trade"), line_of(BOB, "bob"));
        let file = TempFile::new("change", &alice).unwrap();
        for app in [app(TokenFile::new(&file.path)), app(short_form(&file.path))] {
            fs::write(&file.path, &alice).unwrap();
            let response = request(&app, ALICE).await;
            assert_eq!(response.status(), 200);
            let body = to_bytes(response.into_body(), 1_024).await.unwrap();
            assert_eq!(body, "hello, alice; you may: read trade\n");
            assert_eq!(request(&app, BOB).await.status(), 401);

            fs::write(&file.path, &bob).unwrap();
            assert_eq!(request(&app, BOB).await.status(), 200);
            let response = request(&app, ALICE).await;
            assert_eq!(response.status(), 401);
            assert_eq!(response.headers()["www-authenticate"], r#"Bearer realm="api", error="invalid_token""#);
        }
    }

    #[tokio::test]
    async fn an_invalid_file_gives_503() {
        let good = line_of(ALICE, "alice read trade");
        let file = TempFile::new("outage", &good).unwrap();
        let app = app(TokenFile::new(&file.path));
        let bad =
            [String::new(), good.trim_end().to_owned(), good.clone() + "what is this?\n", good.replace(' ', "\"")];
        for text in bad {
            fs::write(&file.path, text).unwrap();
            assert_unavailable(&request(&app, ALICE).await);
            assert_unavailable(&request(&app, BOB).await);
        }

        fs::remove_file(&file.path).unwrap();
        assert_unavailable(&request(&app, ALICE).await);

        fs::write(&file.path, &good).unwrap();
        assert_eq!(request(&app, ALICE).await.status(), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_times_out() {
        let hangs = store::from_fn(|_| std::future::pending::<io::Result<Option<Grant<()>>>>());
        let begin = Instant::now();
        assert_unavailable(&request(&app(hangs), ALICE).await);
        assert_eq!(begin.elapsed(), TIMEOUT);
    }

    #[test]
    fn errors_contain_the_number_of_the_line_only() {
        let text = format!("# staff\n\n{}{ALICE} alice\n", line_of(BOB, "bob"));
        assert_eq!(parse_file(&text).unwrap_err().to_string(), "line 4 of the token file is bad");
    }

    #[test]
    fn prints_a_curl_line() {
        let text = instructions(SocketAddr::from(([127, 0, 0, 1], 8080)), ALICE, Path::new("demo.tokens"));
        assert!(text.contains("\ncurl -i -H 'Authorization: Bearer tg_alice_3f9a' 'http://127.0.0.1:8080/'\n"));
    }

    #[cfg(feature = "test-util")]
    #[tokio::test]
    async fn both_stores_pass_the_contract() {
        use tollgate::BoxStore;
        use tollgate::store::contract::Contract;

        let file = TempFile::new("contract", &(line_of(ALICE, "alice read") + &line_of(BOB, "bob"))).unwrap();
        for store in [BoxStore::new(TokenFile::new(&file.path)), BoxStore::new(short_form(&file.path))] {
            let contract = Contract::new(store).knows(ALICE, "alice").knows(BOB, "bob");
            contract.has_revoked("tg_carol_5d02").check().await;
        }

        let (long, short) = (TokenFile::new(&file.path), BoxStore::new(short_form(&file.path)));
        drop(file);
        Contract::new(long).knows(ALICE, "alice").check_outage().await;
        Contract::new(short).knows(ALICE, "alice").check_outage().await;
    }
}
