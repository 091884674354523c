//! `tollgate limit`: the buckets of a subject in Redis, as a service has them.

use std::process::{Command, Output};

use tollgate::limit::{Charge, Limiter as _, RateLimits};
use tollgate::store::sql::NewGrant;
use tollgate::{CurrentGrant, Grant, Limit, TokenDigest};

use crate::cli::{code, tollgate};
use crate::redis_kit::{FIVE, SECRET, at};
use crate::redis_servers::RedisHome;
use crate::servers::Home;

const LIMITS: [&str; 4] = ["--limit", "default=1/h burst 5", "--limit", "orders=1/h burst 2"];

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_str(&stdout(output)).unwrap()
}

/// Returns a command about `alice` with the settings of the service.
fn command(home: &Home, redis: &RedisHome, secret: &str, verb: &str, more: &[&str]) -> Command {
    let mut command =
        tollgate(&[&["limit", verb, "alice", "--redis-prefix", redis.prefix()], &LIMITS[..], more].concat());
    command.env("TOLLGATE_DATABASE", home.url()).env("TOLLGATE_REDIS", redis.url());
    command.env("TOLLGATE_REDIS_SECRET_FILE", secret);
    command
}

#[tokio::test]
async fn limits_of_a_subject_are_shown_by_its_quotas_and_reset() {
    let Some(redis) = RedisHome::new("limits_of_a_subject_are_shown_by_its_quotas_and_reset") else { return };
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    let plan = FIVE.with_burst(50);
    database.import(TokenDigest::of("one"), &NewGrant::new("alice").with_quota(plan)).await.unwrap();
    let ended =
        database.import(TokenDigest::of("two"), &NewGrant::new("alice").with_quota(FIVE.with_burst(7))).await.unwrap();
    database.revoke(&ended.id).await.unwrap();
    database.import(TokenDigest::of("three"), &NewGrant::new("alice").with_quota(plan)).await.unwrap();
    let secret = std::env::temp_dir().join(format!("tollgate-secret-{}", crate::machine::unique()));
    std::fs::write(&secret, SECRET).unwrap();
    set_mode(&secret, 0o600);
    let run =
        |verb: &str, more: &[&str]| command(&home, &redis, secret.to_str().unwrap(), verb, more).output().unwrap();

    let orders = Limit::new("orders", FIVE.with_burst(2)).unwrap();
    let service = at(&redis, RateLimits::new(FIVE).and(orders).unwrap());
    let alice = CurrentGrant::new(Grant::new("alice", ()).with_quota(plan));
    assert!(service.charge(&alice, Charge::Units(2)).await.is_admitted());
    let shown = json(&run("show", &["--json"]));
    let left = |shown: &serde_json::Value| {
        let limits = shown.as_array().unwrap().iter();
        limits
            .map(|of| (of["limit"].as_str().unwrap().to_owned(), of["remaining"].as_u64().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(left(&shown), [("default".to_owned(), 48), ("orders".to_owned(), 0)]);
    assert_eq!(shown[0]["quota"], plan.to_string());
    assert!(shown[0]["full_in_ms"].as_u64().unwrap() > 7_000_000);
    let text = stdout(&run("show", &[]));
    assert!(text.starts_with("LIMIT    QUOTA") && text.contains("\norders   1/h burst 2   0     "), "{text}");

    let named = json(&run("show", &["--json", "--grant-quotas", "orders"]));
    // Then `default` keeps its own quota. Grants with a quota have another bucket under it.
    assert_eq!(left(&named), [("default".to_owned(), 5), ("orders".to_owned(), 48)]);

    // Another quota of the subject has a line of its own. Limits with their own quota have one line.
    let other = NewGrant::new("alice").with_quota(FIVE.with_burst(20));
    let other = database.import(TokenDigest::of("four"), &other).await.unwrap();
    let both = [("default".to_owned(), 48), ("orders".to_owned(), 0), ("default".to_owned(), 18)];
    assert_eq!(left(&json(&run("show", &["--json"]))), both);
    database.revoke(&other.id).await.unwrap();

    assert_eq!(stdout(&run("reset", &[])), "reset the limits of alice\n");
    assert_eq!(left(&json(&run("show", &["--json"]))), [("default".to_owned(), 50), ("orders".to_owned(), 2)]);

    let mut unknown = tollgate(&["limit", "reset", "bob", "--limit", "default=5/h"]);
    unknown.env("TOLLGATE_DATABASE", home.url()).env("TOLLGATE_REDIS", redis.url());
    let unknown = unknown.env("TOLLGATE_REDIS_SECRET_FILE", &secret).output().unwrap();
    assert_eq!(
        (code(&unknown), String::from_utf8_lossy(&unknown.stderr).trim()),
        (1, "error: the subject has no grants")
    );
    std::fs::remove_file(&secret).unwrap();
}

fn set_mode(file: &std::path::Path, mode: u32) {
    #[cfg(unix)]
    std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    #[cfg(not(unix))]
    let _ = (file, mode);
}

#[tokio::test]
async fn errors_contain_no_password_and_no_secret() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    database.import(TokenDigest::of("one"), &NewGrant::new("alice")).await.unwrap();
    let folder = std::env::temp_dir();
    let file = |name: &str, bytes: &[u8]| {
        let file = folder.join(format!("tollgate-secret-{name}-{}", crate::machine::unique()));
        std::fs::write(&file, bytes).unwrap();
        set_mode(&file, 0o600);
        file
    };
    let (secret, short) = (file("long", &SECRET), file("short", b"sesame"));
    let run = |redis: &str, secret: &std::path::Path, limit: &str| {
        let mut command = tollgate(&["limit", "show", "alice", "--limit", limit]);
        command.env("TOLLGATE_DATABASE", home.url()).env("TOLLGATE_REDIS", redis);
        let output = command.env("TOLLGATE_REDIS_SECRET_FILE", secret).output().unwrap();
        let error = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(output.stdout.is_empty() && !error.contains("sesame"), "{error}");
        (code(&output), error)
    };
    let closed = "redis://:sesame@127.0.0.1:9";
    let (code, error) = run(closed, &secret, "default=5/h");
    assert!(
        code == 1
            && error.starts_with("error: Redis is unavailable, or too many commands are in flight: ")
            && error.len() > 40,
        "{error}"
    );
    #[cfg(unix)]
    {
        set_mode(&secret, 0o644);
        let (_, error) = run(closed, &secret, "default=5/h");
        assert!(error.starts_with("warning: other users of this machine can read the file of the secret"), "{error}");
        set_mode(&secret, 0o600);
    }
    assert_eq!(run("sesame", &secret, "default=5/h").0, 2);
    assert_eq!(run(closed, &short, "default=5/h").1, "error: invalid secret: must have at least 32 bytes\n");
    assert_eq!(run(closed, &folder.join("sesame-none"), "default=5/h").0, 2);
    for invalid in ["default", "default=sesame", "=5/h", "anonymous=5/h"] {
        assert_eq!(run(closed, &secret, invalid).0, 2, "{invalid}");
    }
    std::fs::remove_file(&secret).unwrap();
    std::fs::remove_file(&short).unwrap();
}
