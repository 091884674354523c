//! Rate limits from a file, which is read again when it changes.
//!
//! `cargo run --example reload --features axum,mint -- limits.conf` serves on 127.0.0.1:3000. Create the file first, with a line for
//! each limit:
//!
//! ```text
//! default = 180/min burst 20
//! orders = 3/s
//! ```
//!
//! Replace the file by renaming another one, so that it is never read while it is written.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tollgate::mint::TokenFormat;
use tollgate::{AuthLayer, Authenticated, Grant, Limit, LimitError, MemoryStore, Quota, RateLimits, TokenDigest};

fn app(token: TokenDigest, limits: RateLimits) -> Router {
    let tokens = MemoryStore::from_iter([(token, Grant::new("alice", ()))]);
    let gate = AuthLayer::new(tokens).with_rate_limit(limits);
    Router::new()
        .route("/", get(|caller: Authenticated<()>| async move { format!("hello, {}\n", caller.grant().subject()) }))
        .route("/orders", post(|_: Authenticated<()>| async { "placed\n" }))
        .layer(gate)
}

/// Returns the limits with the quotas that are used until the file is read.
fn limits() -> Result<RateLimits, LimitError> {
    let orders = Limit::new("orders", Quota::per_second(3))?.with_cost(|head| u32::from(head.uri.path() == "/orders"));
    RateLimits::new(Quota::per_minute(180).with_burst(20)).and(orders)
}

/// Parses lines such as `orders = 3/s`. Empty lines and comments are ignored.
fn parse(text: &str) -> Result<Vec<(&str, Quota)>, String> {
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|(line, number)| {
            let (name, quota) = line.split_once('=').ok_or_else(|| format!("line {number}: no `=`"))?;
            let quota = quota.trim().parse().map_err(|error| format!("line {number}: {error}"))?;
            Ok((name.trim(), quota))
        })
        .collect()
}

/// Reads the file and changes the quotas. After an error, all quotas stay as they are.
fn reload(file: &Path, limits: &RateLimits) -> Result<(), Box<dyn Error>> {
    let text = std::fs::read_to_string(file)?;
    limits.set_quotas(parse(&text)?)?;
    println!("limits read from {}", file.display());
    Ok(())
}

/// Reads the file at the start, and whenever its time of modification changes. After an error, reads it until it is valid.
async fn watch(file: PathBuf, limits: RateLimits, every: Duration) {
    let (mut seen, mut logged) = (None, String::new());
    loop {
        let modified = std::fs::metadata(&file).and_then(|file| file.modified()).ok();
        if seen != Some(modified) {
            match reload(&file, &limits) {
                Ok(()) => (seen, logged) = (Some(modified), String::new()),
                // The same error is logged once.
                Err(error) if error.to_string() == logged => {}
                Err(error) => {
                    eprintln!("cannot read limits from {}, so they do not change: {error}", file.display());
                    logged = error.to_string();
                }
            }
        }
        tokio::time::sleep(every).await;
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args_os().nth(1).ok_or("usage: reload FILE")?;
    let (limits, token) = (limits()?, TokenFormat::new("tg")?.mint()?);
    tokio::spawn(watch(file.into(), limits.clone(), Duration::from_secs(1)));
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("curl -i -H 'Authorization: Bearer {}' http://127.0.0.1:3000/", token.expose());
    Ok(axum::serve(listener, app(token.digest(), limits)).await?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::*;

    async fn fields(app: &Router) -> String {
        let request = Request::get("/").header("authorization", "Bearer tg_secret").body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        response.headers()["ratelimit-policy"].to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn changed_file_changes_the_quotas_and_an_invalid_file_does_not() {
        let file = std::env::temp_dir().join(format!("tollgate-limits-{}.conf", std::process::id()));
        let limits = limits().unwrap();
        let app = app(TokenDigest::of("tg_secret"), limits.clone());
        let write = |text: &str| {
            std::fs::write(&file, text).unwrap();
            // The time of modification may have a resolution of a second.
            let time = std::time::SystemTime::now() + Duration::from_secs(text.len() as u64);
            std::fs::File::options().append(true).open(&file).unwrap().set_modified(time).unwrap();
        };
        write("# limits\n\ndefault = 60/min burst 30\norders = 2/s\n");
        tokio::spawn(watch(file.clone(), limits, Duration::from_millis(10)));
        let becomes = async |expected: &str| {
            while fields(&app).await != expected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), becomes(r#""default";q=30;w=30, "orders";q=2;w=1"#))
            .await
            .unwrap();
        for invalid in ["default = 1/min\norders = many\n", "default = 1/min\nothers = 1/s\n", "default\n"] {
            write(invalid);
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(fields(&app).await, r#""default";q=30;w=30, "orders";q=2;w=1"#);
        }
        write("default = 90/min burst 9\n");
        tokio::time::timeout(Duration::from_secs(30), becomes(r#""default";q=9;w=7, "orders";q=2;w=1"#)).await.unwrap();
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn error_names_the_line() {
        assert_eq!(parse("default = 3/s\n\norders 3/s").unwrap_err(), "line 3: no `=`");
        assert!(parse("default = 3/fortnight").unwrap_err().starts_with("line 1: "));
    }
}
