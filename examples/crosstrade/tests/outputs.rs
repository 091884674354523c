//! What the program writes when it cannot start: never an argument, since a mistyped URL may contain a password.

use std::process::Command;

use crate::args::{SECRET, USAGE};

const ARGS: &str = "CROSSTRADE_TEST_RUN";

/// Not a test, but the program with its exit code, in a process of its own.
#[tokio::test]
#[ignore = "run by other tests"]
async fn the_program() {
    let Ok(args) = std::env::var(ARGS) else { return };
    let args: Vec<String> = args.lines().map(str::to_owned).collect();
    std::process::exit(crate::run(&args).await.into());
}

/// Exit code and standard error. Standard output is checked here: the program writes nothing to it.
fn run(args: &[&str]) -> (i32, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "tests::outputs::the_program", "--ignored", "--nocapture", "--test-threads", "1"]);
    command.env(ARGS, args.join("\n")).env(SECRET, "0123456789abcdef0123456789abcdef");
    let output = command.output().unwrap();
    // By the test harness.
    let lines = ["", "running 1 test", "test tests::outputs::the_program ... "];
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(out.lines().all(|line| lines.contains(&line)), "{args:?}: {out}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn errors_repeat_no_url() {
    let invalid = "error: invalid database URL: ";
    for (url, expected) in [
        ("postgres:/user:sesame@h/x", invalid),
        ("postgres:user:sesame@h/x", invalid),
        ("postgres//user:sesame@h/x", invalid),
        ("user:sesame@h/x", invalid),
        ("sesame", invalid),
        ("postgres:///user:sesame@h/x", invalid),
        ("postgres://user:12/sesame@h/x", invalid),
        ("postgres://user:12#sesame@h/x", invalid),
        ("postgres://user:12?sesame@h/x", invalid),
        ("postgres://user:sesame@127.0.0.1:port/x", invalid),
        // sqlx would write it to the log.
        ("postgres://127.0.0.1:9/x?pasword=sesame", invalid),
        ("postgres://127.0.0.1:9/x?sslmode=sesame", invalid),
        ("sqlite://x?mode=sesame", invalid),
        ("sqlite://user:sesame@h/x", "error: no such database file\n"),
        ("sqlite:user:sesame@h/x", "error: no such database file\n"),
        ("sqlite:/user:sesame@h/x", "error: no such database file\n"),
        (
            "sqlite:///sesame/x?mode=rwc",
            "error: the database file could not be created: No such file or directory (os error 2)\n",
        ),
        #[cfg(feature = "postgres")]
        (
            "postgres://user:sesame@127.0.0.1:9/x",
            "error: the database failed: error communicating with database: Connection refused (os error 111)\n",
        ),
    ] {
        let (code, err) = run(&["--listen", "127.0.0.1:0", "--database", url]);
        assert!(code == 1 && err.starts_with(expected) && err.lines().count() == 1, "{url}: {err}");
        assert!(!err.contains("sesame"), "{url}: {err}");
    }
    let folder = std::env::temp_dir().join(format!("crosstrade-outputs-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = format!("sqlite://{}?mode=rwc", folder.join("tokens.db").display());
    for url in ["redis:/user:sesame@h", "redis//:sesame@h", "sesame", "redis://:sesame@h:port", "redis://:sesame@h/x"] {
        let database = ["--listen", "127.0.0.1:0", "--database", &file, "--replicas", "2", "--redis", url];
        let expected = "error: invalid Redis URL, or URLs that differ in user, password or TLS\n".to_owned();
        assert_eq!(run(&database), (1, expected), "{url}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn databases_in_memory_are_rejected() {
    for url in ["sqlite::memory:", "sqlite://:memory:", "sqlite://x?mode=memory&cache=shared"] {
        let expected = "error: the database must be a file: the website has connections of its own\n".to_owned();
        assert_eq!(run(&["--listen", "127.0.0.1:0", "--database", url]), (1, expected), "{url}");
    }
}

#[test]
fn usage_errors_repeat_no_argument() {
    let url = "postgres://user:sesame@h/x";
    for (args, expected) in [
        (&[url][..], "argument 1 is unknown"),
        (&["--database=postgres://user:sesame@h/x"], "argument 1 is unknown"),
        (&["--leases", "--databse", url], "argument 2 is unknown"),
        (&["--database", "sqlite://x", url], "argument 3 is unknown"),
        (&["--listen", url], "`--listen` needs an address and a port, such as 127.0.0.1:8080"),
        (&["--metrics", url], "`--metrics` needs an address and a port, such as 127.0.0.1:8080"),
        (&["--replicas", url], "`--replicas` needs a number from 1 on"),
        (&["--redis", url], "`--redis` and `--replicas` go together"),
    ] {
        assert_eq!(run(args), (2, format!("error: {expected}\n\n{USAGE}\n")), "{args:?}");
    }
}

#[test]
fn errors_of_certificates_repeat_no_path() {
    let missing = ["--tls-cert", "/sesame/cert.pem", "--tls-key", "/sesame/key.pem"];
    let args = [&["--listen", "127.0.0.1:0", "--database", "sqlite::memory:"], &missing[..]].concat();
    let expected = "error: cannot read the file of --tls-cert: No such file or directory (os error 2)\n";
    assert_eq!(run(&args), (1, expected.to_owned()));
    let (code, err) = run(&["--listen", "0.0.0.0:0"]);
    assert!(code == 2 && err.starts_with("error: `--listen` needs a loopback address"), "{err}");
    let (code, err) = run(&["--behind-proxy", "::ffff:10.0.0.0/104"]);
    assert!(code == 1 && err.starts_with("error: invalid trusted network"), "{err}");
}
