//! Complete outputs of the command line, on SQLite and PostgreSQL.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};
use tollgate::{QuotaError, TokenDigest};

use sqlx::{Connection as _, Executor as _, PgConnection};
use tollgate::mint::TokenFormat;
use tollgate::store::sql::{GrantRecord, NewGrant};

use crate::servers::{Home, on_each_database};

/// Exit code, standard output and standard error.
type Outcome = (i32, String, String);

fn tollgate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(args).stdin(Stdio::null());
    for name in ["TOLLGATE_DATABASE", "TOLLGATE_PREFIX", "PGHOST", "PGUSER", "PGPASSWORD", "PGDATABASE"] {
        command.env_remove(name);
    }
    command
}

fn outcome(command: &mut Command) -> Outcome {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn run(url: &str, args: &[&str]) -> Outcome {
    outcome(tollgate(args).env("TOLLGATE_DATABASE", url))
}

fn failure(code: i32, text: &str) -> Outcome {
    (code, String::new(), format!("error: {text}\n"))
}

fn file(home: &Home) -> PathBuf {
    home.url().strip_prefix("sqlite://").unwrap().into()
}

fn names(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

async fn homes(test: &str) -> Vec<Home> {
    [Home::sqlite()].into_iter().chain(Home::postgres(test).await).collect()
}

/// One of each command that needs tables, but `check`, which reads standard input, and `doctor`, which prints errors as findings.
const COMMANDS: [&[&str]; 18] = [
    &["audit", "list"],
    &["audit", "export"],
    &["audit", "purge", "--older-than", "1d"],
    &["token", "count"],
    &["token", "list"],
    &["token", "show", "an-id"],
    &["token", "issue", "--subject", "alice"],
    &["token", "change", "an-id", "--label", "bot"],
    &["token", "change", "--subject", "alice", "--default-quota"],
    &["token", "import", "--format", "csv"],
    &["token", "export"],
    &["token", "suspend", "an-id"],
    &["token", "suspend", "--subject", "alice"],
    &["token", "resume", "an-id"],
    &["token", "rotate", "an-id"],
    &["token", "revoke", "an-id"],
    &["token", "revoke", "--subject", "alice"],
    &["token", "purge"],
];

const NO_FILE: &str = "no such database file; check `--database`, or create the file with `tollgate migrate`";
const NO_TABLES: &str = "the database has no tables with this prefix; check `--database` and `--table-prefix`, or create the \
     tables with `tollgate migrate`";

#[tokio::test]
async fn database_errors_are_printed_once() {
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    home.database().await.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    let read_only = format!("{}?mode=ro", home.url());
    let expected = "the database failed: error returned from database: (code: 8) attempt to write a readonly database";
    assert_eq!(run(&read_only, &["token", "revoke", "--subject", "alice"]), failure(1, expected));

    let other = Home::sqlite();
    std::fs::write(file(&other), "This text is not a database and has more than a hundred bytes. ".repeat(9)).unwrap();
    let expected = "the database failed: error returned from database: (code: 26) file is not a database";
    for args in COMMANDS {
        assert_eq!(run(other.url(), args), failure(1, expected), "{args:?}");
    }
    let expected = "the database failed: error communicating with database: Connection refused (os error 111)";
    if cfg!(target_os = "linux") {
        for args in COMMANDS {
            assert_eq!(run("postgres://127.0.0.1:9/x", args), failure(1, expected), "{args:?}");
        }
        let expected = "the database file could not be created: No such file or directory (os error 2)";
        assert_eq!(run("sqlite:///no/such/folder/tokens.db", &["migrate"]), failure(1, expected));
    }

    let Some(home) = Home::postgres("database_errors_are_printed_once").await else { return };
    home.database().await.migrate().await.unwrap();
    let read_only = format!("{}&options[default_transaction_read_only]=on", home.url());
    let (code, out, err) = run(&read_only, &["token", "revoke", "--subject", "alice"]);
    // Without the line of the server's source, which sqlx adds.
    let cause = "error returned from database: cannot execute UPDATE in a read-only transaction";
    assert_eq!((code, &*out, err), (1, "", format!("error: the database failed: {cause}\n")));
}

#[tokio::test]
async fn a_role_that_may_only_read_learns_that_the_tables_are_newer() {
    let Some(home) = Home::postgres("a_role_that_may_only_read_learns_that_the_tables_are_newer").await else { return };
    home.database().await.migrate().await.unwrap();
    let role = crate::servers::Role::create(&home, "GRANT SELECT ON tollgate_migrations TO {role}").await;
    let newer = "INSERT INTO tollgate_migrations VALUES (1000, 0)";
    PgConnection::connect(home.url()).await.unwrap().execute(newer).await.unwrap();
    let outcome = run(role.url(), &["migrate"]);
    role.remove().await;
    assert_eq!(outcome, failure(1, "the tables have version 1000, but only versions up to 4 are supported"));
}

#[cfg(unix)]
#[tokio::test]
async fn a_reader_that_ends_is_no_error() {
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    home.database().await.import(TokenDigest::of("a-token"), &NewGrant::new("bob").with_id("bob")).await.unwrap();
    // More than a buffer of an export.
    for number in 0..200 {
        let grant = NewGrant::new("carol").with_label("a label of some length, so that the table is long");
        home.database().await.import(TokenDigest::of(number.to_string()), &grant).await.unwrap();
    }
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    let url = ["--database", home.url()];
    for args in [
        &["token", "list"][..],
        &["token", "export"],
        &["token", "export", "--format", "csv"],
        &["audit", "export", "--format", "csv"],
        &["doctor"],
    ] {
        let output = tollgate(&[args, &url].concat()).stdout(closed()).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(141), 0), "{args:?}: {output:?}");
    }
    let output = tollgate(&["--help"]).stdout(closed()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(141), 0));
    // The loss of a token is an error.
    let issue = ["token", "issue", "--subject", "alice"];
    let output = tollgate(&[&issue[..], &url].concat()).stdout(closed()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("was not delivered: revoke or rotate it"), "{error}");
    // Nothing is issued if standard output is closed.
    for args in [&issue[..], &["token", "rotate", "bob"]] {
        let line = format!("exec '{}' {} >&-", env!("CARGO_BIN_EXE_tollgate"), args.join(" "));
        let mut shell = Command::new("sh");
        let output = shell.args(["-c", &line]).env("TOLLGATE_DATABASE", home.url()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error, "error: standard output is closed; the token would be lost\n");
        assert_eq!(output.status.code(), Some(1));
    }
    let database = home.database().await;
    for (subject, action) in [("alice", "issue"), ("bob", "import")] {
        let query = tollgate::store::sql::AuditQuery::new().with_subject(subject);
        let entries = database.audit(&query).await.unwrap().entries;
        assert_eq!(entries.iter().map(|entry| &*entry.action).collect::<Vec<_>>(), [action]);
    }
    // Discarded on purpose.
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    assert!(tollgate(&[&issue[..], &url].concat()).stdout(null).output().unwrap().status.success());
}

#[tokio::test]
async fn only_migrate_creates_files_and_tables() {
    for home in homes("only_migrate_creates_files_and_tables").await {
        let with = |parameter: &str| match home.is_postgres() {
            true => home.url().to_owned(),
            false => format!("{}{parameter}", home.url()),
        };
        let missing = if home.is_postgres() { NO_TABLES } else { NO_FILE };
        for args in COMMANDS {
            for url in [with(""), with("?mode=rw"), with("?mode=rwc"), with("?cache=private&mode=rwc")] {
                assert_eq!(run(&url, args), failure(1, missing), "{args:?} {url}");
            }
        }
        if home.is_postgres() {
            assert_eq!(tables(&home).await, 0);
        } else {
            assert_eq!(names(file(&home).parent().unwrap()), [""; 0]);
            // SQLite reads an empty file as an empty database.
            std::fs::write(file(&home), "").unwrap();
            for args in COMMANDS {
                assert_eq!(run(home.url(), args), failure(1, NO_TABLES), "{args:?}");
            }
            assert_eq!(std::fs::metadata(file(&home)).unwrap().len(), 0);
            assert_eq!(names(file(&home).parent().unwrap()).len(), 1);
            std::fs::remove_file(file(&home)).unwrap();
            let only_existing = run(&with("?mode=rw"), &["migrate"]);
            assert_eq!(only_existing, failure(1, NO_FILE));
        }

        for text in ["created the tables with version 4\n", "the tables are up to date with version 4\n"] {
            assert_eq!(run(home.url(), &["migrate"]), (0, text.to_owned(), String::new()));
        }
        assert_eq!(run(home.url(), &["token", "purge"]), (0, "purged 0\n".to_owned(), String::new()));
        for args in COMMANDS {
            let args = [args, &["--table-prefix", "tolgate_"]].concat();
            assert_eq!(run(home.url(), &args), failure(1, NO_TABLES), "{args:?}");
        }
        assert_eq!(run(home.url(), &["token", "list", "--json"]), (0, "[]\n".to_owned(), String::new()));
    }
}

/// Counts the tables and indexes of the schema.
async fn tables(home: &Home) -> i64 {
    let mut connection = PgConnection::connect(home.url()).await.unwrap();
    let count = "SELECT COUNT(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace";
    sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap()
}

#[tokio::test]
async fn tables_of_another_version_are_errors() {
    for home in homes("tables_of_another_version_are_errors").await {
        home.database().await.migrate().await.unwrap();
        let change = async |statement: &'static str| match home.is_postgres() {
            true => _ = PgConnection::connect(home.url()).await.unwrap().execute(statement).await.unwrap(),
            false => {
                _ = sqlx::SqliteConnection::connect(home.url()).await.unwrap().execute(statement).await.unwrap();
            }
        };
        change("DELETE FROM tollgate_migrations").await;
        let older = "the tables have version 0, but version 4 is required; upgrade the tables with `tollgate migrate`";
        for args in COMMANDS {
            assert_eq!(run(home.url(), args), failure(1, older), "{args:?}");
        }
        change("INSERT INTO tollgate_migrations VALUES (1000, 0)").await;
        let newer = "the tables have version 1000, but only versions up to 4 are supported";
        for args in COMMANDS.into_iter().chain([&["migrate"][..]]) {
            assert_eq!(run(home.url(), args), failure(1, newer), "{args:?}");
        }
    }
}

#[tokio::test]
async fn migrate_says_what_it_did() {
    for home in homes("migrate_says_what_it_did").await {
        let document = |home: &Home, args: &[&str]| {
            let (code, out, err) = run(home.url(), &[&["migrate", "--json"], args].concat());
            assert_eq!((code, err.as_str()), (0, ""));
            serde_json::from_str::<serde_json::Value>(&out).unwrap()
        };
        let other = ["--table-prefix", "other_"];
        for (result, from) in [("created", None), ("up to date", Some(4))] {
            let expected = serde_json::json!({ "result": result, "from": from, "version": 4 });
            assert_eq!(document(&home, &other), expected);
        }
        crate::sql::execute(&home, crate::sql_changes::tables_of(1, home.is_postgres())).await;
        let upgraded = "upgraded the tables from version 1 to 4\n".to_owned();
        assert_eq!(run(home.url(), &["migrate"]), (0, upgraded, String::new()));
    }
}

/// Returns the text that `issue` and `rotate` print about a grant of `alice`.
fn details(grant: &GrantRecord) -> String {
    format!(
        "id         {}\nsubject    alice\nstate      valid\ncreated    {}\nprefix     {}\n",
        grant.id,
        humantime::format_rfc3339_millis(grant.created_at),
        grant.token_prefix.as_deref().unwrap_or_default(),
    )
}

#[tokio::test]
async fn a_rotated_token_has_the_prefix_of_the_old_one() {
    on_each_database("a_rotated_token_has_the_prefix_of_the_old_one", |home| async move {
        let database = home.database().await;
        let has_prefix = |prefix: &str, outcome: &Outcome| {
            assert_eq!(outcome.0, 0, "{}", outcome.2);
            TokenFormat::new(prefix).unwrap().check(outcome.1.strip_suffix('\n').unwrap()).unwrap();
        };
        let issued = run(home.url(), &["token", "issue", "--subject", "alice", "--prefix", "acme_live"]);
        has_prefix("acme_live", &issued);
        let grant = database.list(None).await.unwrap().remove(0);
        let id = grant.id.as_str();
        assert_eq!((grant.token_prefix.as_deref(), &issued.2), (Some("acme_live"), &details(&grant)));
        for (args, prefix) in [
            (&["token", "rotate", id][..], "acme_live"),
            (&["token", "rotate", id, "--prefix", "acme_test"], "acme_test"),
            (&["token", "rotate", id, "--grace", "0s"], "acme_test"),
        ] {
            // The environment sets the default for `issue` only.
            let rotated = outcome(tollgate(args).env("TOLLGATE_DATABASE", home.url()).env("TOLLGATE_PREFIX", "other"));
            has_prefix(prefix, &rotated);
            let grant = database.describe(&id.into()).await.unwrap().unwrap();
            assert_eq!((grant.token_prefix.as_deref(), &rotated.2), (Some(prefix), &details(&grant)));
        }
        let shown = run(home.url(), &["token", "show", id, "--json"]).1;
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap()["token_prefix"], "acme_test");

        for (name, more, prefix) in [
            ("TOLLGATE_PREFIX", &[][..], "acme"),
            ("TOLLGATE_PREFIX", &["--prefix", "own"], "own"),
            ("UNRELATED", &[], "tg"),
        ] {
            let args = [&["token", "issue", "--subject", "bob"], more].concat();
            has_prefix(prefix, &outcome(tollgate(&args).env("TOLLGATE_DATABASE", home.url()).env(name, "acme")));
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_without_a_known_prefix_is_rotated_with_the_default_one() {
    on_each_database("a_token_without_a_known_prefix_is_rotated_with_the_default_one", |home| async move {
        let database = home.database().await;
        for (n, (name, prefix)) in [("UNRELATED", "tg"), ("TOLLGATE_PREFIX", "acme")].into_iter().enumerate() {
            let id = format!("imported-{n}");
            let grant = NewGrant::new("alice").with_id(id.as_str());
            assert_eq!(
                database.import(TokenDigest::of(format!("token-{n}").as_str()), &grant).await.unwrap().token_prefix,
                None
            );
            let args = ["token", "rotate", &id];
            let rotated = outcome(tollgate(&args).env("TOLLGATE_DATABASE", home.url()).env(name, "acme"));
            let grant = database.describe(&id.as_str().into()).await.unwrap().unwrap();
            let note = format!("the prefix of the old token is unknown; the new token has the prefix {prefix}\n");
            assert_eq!((rotated.0, rotated.2), (0, note + &details(&grant)));
            TokenFormat::new(prefix).unwrap().check(rotated.1.trim_end()).unwrap();
            // After the rotation the prefix is known.
            assert_eq!(grant.token_prefix.as_deref(), Some(prefix));
        }
    })
    .await;
}

const SCHEMES: &str = "invalid database URL: must begin with sqlite:, postgres:// or postgresql://";
const SQLITE: &str =
    "invalid database URL: must have the form sqlite://PATH; supported parameters are mode, cache, immutable and vfs";
const POSTGRES: &str = "invalid database URL: must have the form postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special \
     characters percent-encoded";
const PARAMETER: &str = "invalid database URL: unsupported parameter; supported parameters are application_name, dbname, host, \
     hostaddr, options, options[NAME], password, port, sslcert, sslkey, sslmode, sslrootcert, statement-cache-capacity and user";

/// URLs that contain a password, with the exit code and the error of `token list`.
const MISTYPED: [(&str, i32, &str); 31] = [
    ("postgres:/user:sesame@h/x", 2, SCHEMES),
    ("postgres:user:sesame@h/x", 2, SCHEMES),
    ("postgres:sesame", 2, SCHEMES),
    ("postgresql:/user:sesame@h/x", 2, SCHEMES),
    ("postgres//user:sesame@h/x", 2, SCHEMES),
    ("postgress://user:sesame@h/x", 2, SCHEMES),
    (" postgres://user:sesame@h/x", 2, SCHEMES),
    ("POSTGRES://user:sesame@h/x", 2, SCHEMES),
    ("mysql://user:sesame@h/x", 2, SCHEMES),
    ("user:sesame@h/x", 2, SCHEMES),
    ("sesame", 2, SCHEMES),
    ("sqlite//sesame", 2, SCHEMES),
    ("sqlite://user:sesame@h/x", 1, NO_FILE),
    ("sqlite:user:sesame@h/x", 1, NO_FILE),
    ("sqlite:/user:sesame@h/x", 1, NO_FILE),
    ("sqlite:///user:sesame@h/x", 1, NO_FILE),
    ("sqlite:sqlite:sesame", 1, NO_FILE),
    ("sqlite://x?mode=sesame", 2, SQLITE),
    ("sqlite://x?sesame", 2, SQLITE),
    ("sqlite://x?mode=rwc&password=sesame", 2, SQLITE),
    ("sqlite://%ff?mode=sesame", 2, SQLITE),
    ("postgres://user:12/sesame@h/x", 2, POSTGRES),
    ("postgres://user:12#sesame@h/x", 2, POSTGRES),
    ("postgres:///user:sesame@h/x", 2, POSTGRES),
    ("postgres://127.0.0.1:9/user:sesame@x", 2, POSTGRES),
    ("postgres://user:sesame@127.0.0.1:port/x", 2, POSTGRES),
    ("postgres://user:sesame@[::1/x", 2, POSTGRES),
    ("postgres://127.0.0.1:9/x?sslmode=sesame", 2, POSTGRES),
    ("postgres://127.0.0.1:9/x?port=sesame", 2, POSTGRES),
    ("postgres://user:12?sesame@h/x", 2, PARAMETER),
    ("postgres://127.0.0.1:9/x?pasword=sesame", 2, PARAMETER),
];

#[tokio::test]
async fn errors_contain_no_part_of_a_database_url() {
    let home = Home::sqlite();
    let folder = file(&home).parent().unwrap().to_owned();
    for (url, code, error) in MISTYPED {
        let by_argument = outcome(tollgate(&["token", "list", "--database", url]).current_dir(&folder));
        assert_eq!(by_argument, failure(code, error), "{url}");
        let inline = format!("--database={url}");
        for args in COMMANDS.into_iter().chain([&["migrate"][..]]) {
            for outcome in [
                outcome(tollgate(args).env("TOLLGATE_DATABASE", url).current_dir(&folder)),
                outcome(tollgate(args).args(["--database", url]).current_dir(&folder)),
                outcome(tollgate(args).arg(&inline).current_dir(&folder)),
            ] {
                assert!(!format!("{outcome:?}").contains("sesame"), "{url} {args:?}: {outcome:?}");
                assert_eq!(outcome.0 == 2, code == 2, "{url} {args:?}: {outcome:?}");
            }
        }
    }
    let Some(home) = Home::postgres("errors_contain_no_part_of_a_database_url").await else { return };
    let server = home.address();
    for (url, error) in [
        (format!("postgres://postgres@{server}/sesame"), "the server has no such database (3D000)"),
        (
            format!("postgres://sesame@{server}/postgres"),
            "the server rejected the user, the password or this host (28000)",
        ),
        (format!("{}&options[role]=sesame", home.url()), "the server rejected a parameter of the URL (22023)"),
        (format!("{}&options[sesame]=on", home.url()), "the server rejected a parameter of the URL (42704)"),
    ] {
        let expected = failure(1, &format!("the database failed: {error}"));
        for args in COMMANDS.into_iter().chain([&["migrate"][..]]) {
            assert_eq!(run(&url, args), expected, "{url} {args:?}");
        }
    }
}

#[test]
fn usage_errors_contain_no_argument() {
    let issue = ["token", "issue", "--subject", "alice"];
    for secret in ["postgres://user:sesame@h/x", "sesame", "--tg_sesame", "--tg_sesame=x", "--x=sesame", "-sesame"] {
        for args in [
            &[][..],
            &["token"],
            &["token", "list"],
            &["token", "list", "--state"],
            &["token", "list", "--limit", "1", "--after"],
            &["token", "show"],
            &["token", "show", "an-id"],
            &["token", "revoke", "an-id"],
            &["token", "suspend", "an-id"],
            &["token", "change", "an-id"],
            &["token", "change", "an-id", "--quota"],
            &["token", "change", "an-id", "--principal"],
            &["migrate"],
            &["audit"],
            &["audit", "list"],
            &["audit", "list", "--after"],
            &["audit", "purge", "--older-than"],
            &["token", "rotate", "an-id", "--grace"],
            &["token", "rotate", "an-id", "--prefix"],
            &["token", "purge", "--ended-before"],
            &[&issue[..], &["--quota"]].concat(),
            &[&issue[..], &["--expires"]].concat(),
            &[&issue[..], &["--quota", "1/s", "--burst"]].concat(),
            &[&issue[..], &["--prefix"]].concat(),
            &[&issue[..], &["--table-prefix"]].concat(),
            &[&issue[..], &["--scope", "a scope of", "--label"]].concat(),
            &[&issue[..], &["--json", "--json"]].concat(),
        ] {
            let last = args.last().unwrap_or(&"");
            let inline = format!("{last}={secret}");
            let others = &args[..args.len().saturating_sub(1)];
            for args in [[args, &[secret]].concat(), [others, &[&inline]].concat()] {
                let outcome = run("sqlite::memory:", &args);
                // Some secrets are valid ids, which do not exist.
                assert!(matches!((outcome.0, outcome.1.as_str()), (1 | 2, "")), "{args:?}: {outcome:?}");
                assert!(!outcome.2.contains("sesame") && outcome.2.starts_with("error: "), "{args:?}: {outcome:?}");
            }
        }
        let by_environment = outcome(tollgate(&issue).env("TOLLGATE_PREFIX", format!("{secret}!")));
        assert_eq!((by_environment.0, by_environment.2.contains("sesame")), (2, false), "{by_environment:?}");
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt as _;
        let url = std::ffi::OsStr::from_bytes(b"postgres://user:sesame\xff@h/x");
        for mut command in [tollgate(&["token", "list", "--database"]), tollgate(&["token", "list"]), tollgate(&[])] {
            let outcome = outcome(command.arg(url).env("TOLLGATE_DATABASE", url));
            assert!(outcome.0 == 2 && !format!("{outcome:?}").contains("sesame"), "{outcome:?}");
        }
    }
    let usage = "\n\nUsage: tollgate token list [OPTIONS] --database <URL>\n\nFor more information, try '--help'.";
    let unknown = failure(2, &format!("unexpected argument '(not shown)' found{usage}"));
    assert_eq!(run("sqlite::memory:", &["token", "list", "postgres://user:sesame@h/x"]), unknown);
    // The names of options are not secret.
    for typed in ["--user", "--user=sesame"] {
        let unknown = failure(2, &format!("unexpected argument '--user' found{usage}"));
        assert_eq!(run("sqlite::memory:", &["token", "list", typed]), unknown);
    }
    let scope = "invalid scope: must be printable ASCII without quotes and backslashes";
    let args = [&issue[..], &["--scope", "open\"sesame"]].concat();
    assert_eq!(run("sqlite::memory:", &args), failure(2, scope));
}

#[tokio::test]
async fn values_out_of_range_are_errors() {
    const TIME: &str = "must be a number with a unit, such as 90d, 12h, 30m or 0s";
    const TOO_LONG: &str = "must end before the year 10000";
    const EXPIRED: &str = "must be at least 1ms";
    const BURST: &str = "must be a number from 1 to 4294967295";
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    let issue = ["token", "issue", "--subject", "alice"];
    let rotate = ["token", "rotate", "an-id"];
    let fast = [&issue[..], &["--quota", "1/s"]].concat();
    let [zero, syntax, too_long] =
        [QuotaError::Zero, QuotaError::Syntax, QuotaError::TooLong].map(|error| error.to_string());
    for (args, name, value, error) in [
        (&issue[..], "--expires <TIME>", "99999999y", TOO_LONG),
        (&issue, "--expires <TIME>", "8000y", TOO_LONG),
        (&issue, "--expires <TIME>", "99999999999999999999y", TOO_LONG),
        (&issue, "--expires <TIME>", "18446744073709551615s", TOO_LONG),
        (&issue, "--expires <TIME>", "0s", EXPIRED),
        (&issue, "--expires <TIME>", "999us", EXPIRED),
        (&issue, "--expires <TIME>", "-5d", TIME),
        (&issue, "--expires <TIME>", "90", TIME),
        (&issue, "--expires <TIME>", "5d!", TIME),
        (&issue, "--quota <QUOTA>", "0/min", &zero),
        (&issue, "--quota <QUOTA>", "4294967296/min", &syntax),
        (&issue, "--quota <QUOTA>", "-1/min", &syntax),
        (&issue, "--quota <QUOTA>", "+1/min", &syntax),
        (&issue, "--quota <QUOTA>", "1.5/min", &syntax),
        (&issue, "--quota <QUOTA>", "180/year", &syntax),
        (&issue, "--quota <QUOTA>", "180", &syntax),
        (&issue, "--quota <QUOTA>", "/min", &syntax),
        (&issue, "--quota <QUOTA>", "180/min burst", &syntax),
        (&issue, "--quota <QUOTA>", "180/min burst 0", &zero),
        (&issue, "--quota <QUOTA>", "1/day burst 4294967295", &too_long),
        (&fast, "--burst <BURST>", "0", BURST),
        (&fast, "--burst <BURST>", "-1", BURST),
        (&fast, "--burst <BURST>", "4294967296", BURST),
        (&fast, "--burst <BURST>", "1e3", BURST),
        (&rotate, "--grace <TIME>", "99999999y", TOO_LONG),
        (&rotate, "--grace <TIME>", "-1h", TIME),
        (&rotate, "--grace <TIME>", "1", TIME),
        (&["token", "purge"], "--ended-before <TIME>", "99999999y", TOO_LONG),
        (&["token", "purge"], "--ended-before <TIME>", "1000y", "must begin after the year 1969"),
        (&["token", "purge"], "--ended-before <TIME>", "-1d", TIME),
        (&["audit", "purge"], "--older-than <TIME>", "1", TIME),
    ] {
        let argument = format!("{}={value}", name.split(' ').next().unwrap());
        let text = format!("invalid value '(not shown)' for '{name}': {error}\n\nFor more information, try '--help'.");
        assert_eq!(run(home.url(), &[args, &[&argument]].concat()), failure(2, &text), "{args:?} {argument}");
    }
    // A valid quota and a burst that is too large for it.
    let slow = [&issue[..], &["--quota", "1/day", "--burst", "4294967295"]].concat();
    assert_eq!(run(home.url(), &slow), failure(2, &too_long));
    assert!(home.database().await.list(None).await.unwrap().is_empty());

    let last = [&issue[..], &["--expires", "7900y", "--quota", "1000000000/s", "--burst", "4294967295"]].concat();
    assert_eq!(run(home.url(), &last).0, 0);
    let grant = home.database().await.list(None).await.unwrap().remove(0);
    let years = grant.expires_at.unwrap().duration_since(SystemTime::now()).unwrap().as_secs() / 31_557_600;
    assert_eq!((years, grant.quota.unwrap().interval()), (7899, Duration::from_nanos(1)));
}

#[test]
fn help_states_which_command_creates_tables() {
    let (code, out, err) = outcome(&mut tollgate(&["--help"]));
    assert_eq!((code, err.as_str()), (0, ""));
    let expected = "\
Manages API tokens in a database

Usage: tollgate <COMMAND>

Commands:
  migrate      Create or upgrade the tables; creates a missing SQLite file
  token        Manage grants and tokens: issue, list, change, rotate, revoke and more
  audit        List, export and purge the audit trail
  check        Check a token from standard input, as a gate does
  doctor       Check the database and its settings; changes nothing
  completions  Print a completion script for a shell
  man          Print the manual page, or write the pages of all commands
  help         Print this message or the help of the given subcommand(s)

Options:
  -h, --help     Print help
  -V, --version  Print version

Only `migrate` creates a database file or tables.

With `--json`, a command writes one JSON document to standard output; `export`, `completions` and `man` have their own formats. \
Errors are text on standard error, also with `--json`.

Durations have a unit: 90d, 12h, 30m, 0s, 2w, 6M (months of 30.44 days) or 1y. Dates are in UTC.

Colors are for terminals only. NO_COLOR turns them off, CLICOLOR_FORCE turns them on.

Exit codes: 0 for success, 1 if the command failed, 2 for an invalid command line, 3 if `check` could not check the token, 141 if the reader of standard output has ended.
";
    let limit = "  limit        Show and reset the limits of a subject in Redis\n";
    assert_eq!(cfg!(feature = "redis"), out.contains(limit));
    let sealing_key = "  sealing-key  Print a new key that seals tokens, for `--sealing-keys`\n";
    assert_eq!(cfg!(feature = "reveal"), out.contains(sealing_key));
    assert_eq!(out.replace(limit, "").replace(sealing_key, ""), expected);
    // Help must not show the values of environment variables.
    for args in COMMANDS.into_iter().chain([&["migrate"][..], &["check"], &["doctor"], &["man"]]) {
        let mut command = tollgate(args);
        command.arg("--help").env("TOLLGATE_DATABASE", "postgres://user:sesame@h/x").env("TOLLGATE_PREFIX", "sesame");
        let (code, out, err) = outcome(&mut command);
        assert_eq!((code, err.as_str(), out.contains("sesame")), (0, "", false), "{out}");
    }
}
