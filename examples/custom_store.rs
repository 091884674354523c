//! A custom store: a text file with one token per line. The file is read at every request.
//!
//! ```text
//! # SHA-256 of the token, its subject, its scopes
//! ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad alice read trade
//! ```
//!
//! `printf %s "$token" | sha256sum` prints the digest. Change [`find`] to ask a database instead.
//!
//! If the file is missing or invalid, or the disk hangs, the response is 503 and never 401: clients discard tokens after a 401.
//! Replace the file by renaming another one: a file that is written in several steps lacks tokens meanwhile.
//!
//! `cargo run --example custom_store --features axum,mint,test-util,tokio` serves on 127.0.0.1:3000 and prints what to try.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::middleware::map_response;
use axum::{Router, response::Response, routing::get};
use tollgate::mint::TokenFormat;
use tollgate::store::from_fn_with;
use tollgate::{AuthLayer, Authenticated, Grant, Rejection, TokenDigest, TokenStore};

/// Longer than a healthy disk takes, and shorter than the timeouts of clients.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Returns a store of the tokens in a file. Grants have no data of the service, so the principal is `()`.
fn token_file(path: PathBuf) -> impl TokenStore<Principal = (), Error = io::Error> {
    from_fn_with(path, |path, digest| async move { find(&path, digest).await })
}

/// Returns the grant of a token. `Ok(None)` means that the whole file is valid and lacks the token.
async fn find(path: &Path, digest: TokenDigest) -> io::Result<Option<Grant<()>>> {
    let text = tokio::fs::read_to_string(path).await?;
    // All lines are read in any case, so that the time does not show whether the token is known.
    Ok(parse_file(&text)?.remove(&digest))
}

fn parse_file(text: &str) -> io::Result<HashMap<TokenDigest, Grant<()>>> {
    // The file may be cut off.
    if !text.ends_with('\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty or ends within a line"));
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    // The error has the number of the line only: logs must not contain a digest.
    let invalid = |at: usize| io::Error::new(io::ErrorKind::InvalidData, format!("line {} is invalid", at + 1));
    lines.map(|(at, line)| parse_line(line).ok_or_else(|| invalid(at))).collect()
}

fn parse_line(line: &str) -> Option<(TokenDigest, Grant<()>)> {
    let mut words = line.split_ascii_whitespace();
    let digest = TokenDigest::from_hex(words.next()?).ok()?;
    let grant = Grant::new(words.next()?, ()).with_scopes(words).ok()?;
    Some((digest, grant))
}

fn app(store: impl TokenStore<Principal = ()>) -> Router {
    let gate = AuthLayer::with_timeout(store, TIMEOUT);
    Router::new().route("/", get(hello)).layer(gate).layer(map_response(log_outage))
}

async fn hello(caller: Authenticated<()>) -> String {
    format!("hello, {}; you may: {}\n", caller.grant().subject(), caller.grant().scopes())
}

/// Logs the cause of a 503. The response does not contain it; the rejection in its extensions does.
async fn log_outage(response: Response) -> Response {
    if response.status() == 503 {
        let rejection = response.extensions().get::<Rejection>().map(|rejection| rejection as &dyn Error);
        let causes = std::iter::successors(rejection, |error| (*error).source());
        eprintln!("{}", causes.map(ToString::to_string).collect::<Vec<_>>().join(": "));
    }
    response
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    let token = TokenFormat::new("tg")?.mint()?;
    let path = std::env::temp_dir().join(format!("tollgate-{}.tokens", std::process::id()));
    std::fs::write(&path, format!("# digest, subject, scopes\n{} alice read trade\n", token.digest().to_hex()))?;
    println!(
        "Tokens are in {}. Remove the token's line, but not the comment, to get 401. Remove the file to get 503:
curl -i -H 'Authorization: Bearer {}' http://127.0.0.1:3000/",
        path.display(),
        token.expose()
    );
    Ok(axum::serve(listener, app(token_file(path))).await?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::{body::Body, http::Request};
    use tollgate::BoxStore;
    use tollgate::store::contract::Contract;
    use tower::ServiceExt;

    use super::*;

    async fn status(app: &Router, token: &str) -> u16 {
        let request = Request::get("/").header("authorization", format!("Bearer {token}"));
        app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn the_store_passes_the_contract_and_an_outage_is_503() {
        let path = std::env::temp_dir().join(format!("tollgate-test-{}.tokens", std::process::id()));
        let line = |token, rest| format!("{} {rest}\n", TokenDigest::of(token).to_hex());
        std::fs::write(&path, line("tg_alice_3f9a", "alice read") + &line("tg_bob_77c1", "bob")).unwrap();
        let contract = Contract::new(BoxStore::new(token_file(path.clone()))).knows("tg_alice_3f9a", "alice");
        contract.knows("tg_bob_77c1", "bob").has_revoked("tg_carol_5d02").check().await;

        let app = app(token_file(path.clone()));
        assert_eq!((status(&app, "tg_alice_3f9a").await, status(&app, "tg_guess").await), (200, 401));
        std::fs::write(&path, "# staff\n\ntg_alice_3f9a alice\n").unwrap();
        assert_eq!((status(&app, "tg_alice_3f9a").await, status(&app, "tg_guess").await), (503, 503));
        assert_eq!(find(&path, TokenDigest::of("")).await.unwrap_err().to_string(), "line 3 is invalid");
        std::fs::write(&path, "").unwrap();
        assert_eq!(status(&app, "tg_alice_3f9a").await, 503);
        std::fs::remove_file(&path).unwrap();
        Contract::new(BoxStore::new(token_file(path))).knows("tg_alice_3f9a", "alice").check_outage().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_times_out() {
        let hangs = tollgate::store::from_fn(|_| std::future::pending::<io::Result<Option<Grant<()>>>>());
        assert_eq!(status(&app(hangs), "tg_alice_3f9a").await, 503);
    }
}
