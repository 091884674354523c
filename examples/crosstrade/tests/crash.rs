//! The program is killed without warning while it issues tokens. Every token that it had printed works afterwards.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use tollgate::mint::TokenFormat;
use tollgate::{BearerToken, TokenStore as _};

use super::*;
use crate::args;
use crate::database;
use crate::demo::Demo;
use crate::website::pool::Pool;
use crate::website::users::Users;

const ARGS: &str = "CROSSTRADE_TEST_ARGS";

/// Runs the program in a process that a test can kill. This is not a test of its own.
#[tokio::test]
#[ignore = "run by other tests"]
async fn the_program() {
    let Ok(args) = std::env::var(ARGS) else { return };
    let args: Vec<String> = args.lines().map(str::to_owned).collect();
    let Ok(args::Command::Serve(options)) = args::parse(&args) else { panic!("no arguments: {args:?}") };
    let _guard = crate::log::start();
    crate::serve(options).await.unwrap();
}

/// Starts it with these arguments, on a port of its own.
pub(super) fn program(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "tests::crash::the_program", "--ignored", "--nocapture", "--test-threads", "1"])
        .env(ARGS, [&["--listen", "127.0.0.1:0"], args].concat().join("\n"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

#[tokio::test]
async fn every_printed_token_works_after_a_crash() {
    let folder = std::env::temp_dir().join(format!("crosstrade-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let url = format!("sqlite://{}?mode=rwc", folder.join("tokens.db").display());
    let pattern = regex::Regex::new(&TokenFormat::new("ct").unwrap().pattern()).unwrap();
    let mut shown = Vec::new();
    let mut died_early = 0;
    for round in 0..24 {
        let mut child = program(&["--database", &url]).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        if round % 4 == 0 {
            // As soon as both are shown.
            let mut lines = out.lines().map_while(Result::ok);
            let mut seen = 0;
            while let Some(line) = lines.next().filter(|_| seen < 2) {
                if let Some(token) = pattern.find(&line) {
                    shown.push(token.as_str().to_owned());
                    seen += 1;
                }
            }
            child.kill().unwrap();
        } else {
            // Kill it at a random moment.
            tokio::time::sleep(Duration::from_millis(round * 5)).await;
            child.kill().unwrap();
            let tokens: Vec<String> = out
                .lines()
                .map_while(Result::ok)
                .filter_map(|line| pattern.find(&line).map(|token| token.as_str().to_owned()))
                .collect();
            died_early += usize::from(tokens.is_empty());
            shown.extend(tokens);
        }
        child.wait().unwrap();
    }
    assert!(shown.len() >= 12, "six times it was let live until both were shown");
    assert!(died_early > 0, "some were killed before");

    let database = database::open(&url).await.unwrap();
    let store = database.store::<()>();
    for token in &shown {
        assert!(store.lookup(&BearerToken::new(token)).await.unwrap().is_some(), "it was shown and does not work");
    }
    // The database is consistent: every grant has a token, and every token a grant.
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    let halves: i64 = sqlx::query_scalar(
        "SELECT (SELECT COUNT(*) FROM tollgate_grants WHERE id NOT IN (SELECT grant_id FROM tollgate_tokens)) + \
         (SELECT COUNT(*) FROM tollgate_tokens WHERE grant_id NOT IN (SELECT id FROM tollgate_grants))",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(halves, 0);
    pool.close().await;
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Uses the parts of the program: database, cache, and a gate on a socket.
#[tokio::test]
async fn tokens_survive_a_restart_and_are_revoked_in_a_running_service() {
    let folder = std::env::temp_dir().join(format!("crosstrade-restart-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let url = format!("sqlite://{}?mode=rwc", folder.join("tokens.db").display());
    let database = database::open(&url).await.unwrap();
    let users = Users::new(Pool::open(&url).await.unwrap()).await.unwrap();
    let Demo { trader, .. } = Demo::set_up(&database, &users).await.unwrap();
    for restart in 0..2 {
        let database = database::open(&url).await.unwrap();
        let tokens = database::tokens(&database).unwrap();
        let server = Server::start_on(tokens, Errors::ProblemDetails).await;
        for _ in 0..3 {
            assert_eq!(server.get(trader.expose(), "/v1/api/accounts").await.status(), StatusCode::OK, "{restart}");
        }
        assert_eq!(server.get("ct_unknown", "/v1/api/accounts").await.status(), StatusCode::UNAUTHORIZED);
    }
    let tokens = database::tokens(&database).unwrap();
    let server = Server::start_on(tokens, Errors::ProblemDetails).await;
    assert_eq!(server.get(trader.expose(), "/v1/api/accounts").await.status(), StatusCode::OK);
    // Another program revokes the token.
    let there = database::open(&url).await.unwrap();
    assert_eq!(there.revoke_subject(&"demo".into()).await.unwrap().len(), 1);
    // The bucket does not refill and has 20 units, so the loop must not use all of them.
    let mut status = StatusCode::OK;
    for _ in 0..15 {
        if status == StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(200)).await;
            status = server.get(trader.expose(), "/v1/api/accounts").await.status();
        }
    }
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    std::fs::remove_dir_all(&folder).unwrap();
}
