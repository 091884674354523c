//! A store of one's own: tokens in a text file, a line each, which is read anew at every request.
//!
//! ```text
//! # SHA-256 of the token, its subject, what it may do
//! ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad alice read trade
//! ```
//!
//! `printf %s "$token" | sha256sum` makes the first word. A line that is added or removed counts from the next request
//! on; replace the file by renaming a new one, so that nobody reads half of it. This will do for some hundreds of tokens.
//! For more, [`find`] asks a database, and the rest stays as it is.
//!
//! What there is to see:
//!
//! 1. The two ways to write a store that may have to wait: [`TokenStore`] for a type of one's own ([`TokenFile`]), or a
//!    closure ([`short_form`]).
//! 2. What callers are told when nobody knows whether their token is good, because the file is gone or bad, or its disk
//!    hangs: 503, and never 401, on which clients throw their tokens away. Operators are told why ([`log_outage`]).
//! 3. `store::contract`, by which a store checks itself.
//!
//! `cargo run --example custom_store --features axum` serves on 127.0.0.1:3000 and prints what to try; append
//! `-- --listen ADDRESS:PORT` for another address.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
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

/// Longer than a healthy disk ever takes, and shorter than a caller's patience.
const DEADLINE: Duration = Duration::from_millis(500);

/// A store with a type that can be named, printed and kept in a struct.
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
    /// The file knows no more of callers than a grant has fields for.
    type Principal = ();
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Lookup<(), io::Error>> + Send>>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        // The future outlives both borrows, and so takes along what it needs. The token is not among it.
        let (path, digest) = (Arc::clone(&self.path), *token.digest());
        Answer::Pending(Box::pin(async move { Ok(find(&path, digest).await?.map(Arc::new)) }))
    }
}

/// The same in a line, for whoever needs no name. The program takes the other one, the tests drive both.
#[cfg_attr(not(test), allow(dead_code))]
fn short_form(path: &Path) -> impl TokenStore<Principal = (), Error = io::Error> + use<> {
    store::from_fn_with(PathBuf::from(path), |path, digest| async move { find(&path, digest).await })
}

/// Reads the file and picks a grant: `Ok(None)` only if the whole of it was understood and the token is not there.
async fn find(path: &Path, digest: TokenDigest) -> io::Result<Option<Grant<()>>> {
    let text = tokio::fs::read_to_string(path).await?;
    // All lines are read whether the token is known or not, so that neither takes longer than the other.
    Ok(parse_file(&text)?.remove(&digest))
}

fn parse_file(text: &str) -> io::Result<HashMap<TokenDigest, Grant<()>>> {
    // Somebody may be writing it in place just now.
    if !text.ends_with('\n') {
        return Err(invalid("the token file is empty or ends within a line"));
    }
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        // Told by its number: errors go to logs, where not even a digest belongs.
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

/// Takes any store, so that a test can hand it one that hangs.
fn app(store: impl TokenStore<Principal = ()>) -> Router {
    let gate = AuthLayer::with_timeout(store, DEADLINE);
    Router::new().route("/", get(hello)).layer(gate).layer(map_response(log_outage))
}

async fn hello(who: Authenticated<()>) -> String {
    let grant = who.grant();
    format!("hello, {}; you may: {}\n", grant.subject(), grant.scopes())
}

/// The caller only learns that it is not their token's fault. The reason comes with the refusal, in its extensions.
async fn log_outage(response: Response) -> Response {
    let rejection = response.extensions().get::<Rejection>();
    if let Some(rejection) = rejection.filter(|rejection| rejection.kind() == RejectionKind::StoreUnavailable) {
        let reasons = std::iter::successors(Some(rejection as &dyn Error), |error| (*error).source());
        eprintln!("{}", reasons.map(ToString::to_string).collect::<Vec<_>>().join(": "));
    }
    response
}

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let Some(listen) = parse_args(&args) else {
        eprintln!("usage: custom_store [--listen ADDRESS:PORT]");
        return ExitCode::from(2);
    };
    match run(listen).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(listen: SocketAddr) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let token = random_token()?;
    let file = TempFile::new("demo", &line_of(&token, "alice read trade"))?;
    println!("{}", instructions(listener.local_addr()?, &token, &file.path));
    axum::serve(listener, app(TokenFile::new(&file.path))).with_graceful_shutdown(ctrl_c()).await?;
    Ok(())
}

fn instructions(addr: SocketAddr, token: &str, file: &Path) -> String {
    let file = file.display();
    format!(
        "listening on http://{addr}/ until ctrl-c; tokens are in {file}

# alice's token is there: 200
curl -i -H 'Authorization: Bearer {token}' 'http://{addr}/'

# the same after her line is gone: 401
echo '# nobody' > '{file}'

# the same after the file is gone: 503, which says nothing about the token
rm '{file}'
"
    )
}

fn line_of(token: &str, rest: &str) -> String {
    format!("{} {rest}\n", TokenDigest::of(token).to_hex())
}

/// A file that is removed when this is dropped.
struct TempFile {
    path: PathBuf,
}

impl TempFile {
    fn new(name: &str, text: &str) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("tollgate-{name}-{}.tokens", std::process::id()));
        // Only if it is new: never through a link that somebody else has put there.
        let mut file = File::create_new(&path)?;
        let this = Self { path };
        file.write_all(text.as_bytes())?;
        Ok(this)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // It may be gone already: that is one of the things to try.
        let _ = fs::remove_file(&self.path);
    }
}

/// 256 bits of the operating system's randomness.
fn random_token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("tg_{hex}"))
}

fn parse_args(args: &[String]) -> Option<SocketAddr> {
    match args {
        [] => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 3000))),
        [flag, listen] if flag == "--listen" => listen.parse().ok(),
        _ => None,
    }
}

/// Waits for ctrl-c; for ever where nobody can listen for it.
async fn ctrl_c() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
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

    /// What an outage has to look like: it says nothing about the token.
    fn assert_unavailable(response: &Response) {
        assert_eq!(response.status(), 503);
        assert!(!response.headers().contains_key("www-authenticate"));
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }

    #[tokio::test]
    async fn a_change_of_the_file_counts_from_the_next_request_on() {
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
    async fn a_file_that_cannot_be_understood_is_an_outage() {
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
    async fn a_store_that_hangs_is_given_up_at_the_deadline() {
        let hangs = store::from_fn(|_| std::future::pending::<io::Result<Option<Grant<()>>>>());
        let begin = Instant::now();
        assert_unavailable(&request(&app(hangs), ALICE).await);
        assert_eq!(begin.elapsed(), DEADLINE);
    }

    #[test]
    fn errors_name_the_line_and_show_nothing_of_it() {
        let text = format!("# staff\n\n{}{ALICE} alice\n", line_of(BOB, "bob"));
        assert_eq!(parse_file(&text).unwrap_err().to_string(), "line 4 of the token file is bad");
    }

    #[test]
    fn prints_a_line_to_paste() {
        let text = instructions(SocketAddr::from(([127, 0, 0, 1], 8080)), ALICE, Path::new("demo.tokens"));
        assert!(text.contains("\ncurl -i -H 'Authorization: Bearer tg_alice_3f9a' 'http://127.0.0.1:8080/'\n"));
    }

    #[cfg(feature = "test-util")]
    #[tokio::test]
    async fn both_stores_keep_the_contract() {
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
