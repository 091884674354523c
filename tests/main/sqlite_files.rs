//! SQLite files: creation, file modes, and reports of changes that fire no DELETE trigger.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, SqliteConnection};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tollgate::store::Invalidation;
use tollgate::store::sql::{Database, ImportOptions, LastUsed, NewGrant, SqlError};
use tollgate::{BearerToken, TokenDigest, TokenStore};

use crate::servers::Home;

fn path(home: &Home) -> PathBuf {
    home.url().strip_prefix("sqlite://").unwrap().into()
}

/// Connects as the program `sqlite3` does: without pragmas, so foreign keys and recursive triggers are off.
async fn raw(file: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(file).foreign_keys(false).connect().await.unwrap()
}

async fn next(changes: &mut UnboundedReceiver<Invalidation>) -> Option<Invalidation> {
    // The timeout fails the test if the change is never reported.
    tokio::time::timeout(Duration::from_secs(5), changes.recv()).await.ok().flatten()
}

#[tokio::test]
async fn replaced_rows_are_reported() {
    // Each statement deletes or overwrites a row to resolve a conflict.
    let replacements = [
        "REPLACE INTO tollgate_grants (id, subject, created_ms, revoked_ms) VALUES ('one', 'alice', 0, 1)",
        "INSERT OR REPLACE INTO tollgate_grants (id, subject, created_ms, revoked_ms) VALUES ('one', 'alice', 0, 1)",
        "INSERT OR REPLACE INTO tollgate_grants (id, subject, scopes, created_ms) SELECT id, subject, 'none', created_ms \
         FROM tollgate_grants WHERE id = 'one'",
        "UPDATE OR REPLACE tollgate_grants SET id = 'one' WHERE id = 'two'",
        "REPLACE INTO tollgate_tokens (digest, grant_id, created_ms) SELECT digest, 'new', 0 FROM tollgate_tokens WHERE \
         grant_id = 'one'",
        "REPLACE INTO tollgate_tokens (digest, grant_id, created_ms, rotated_until_ms) SELECT digest, grant_id, 0, 1 FROM \
         tollgate_tokens WHERE grant_id = 'one'",
        // Replaces the current token of the grant.
        "REPLACE INTO tollgate_tokens (digest, grant_id, created_ms) VALUES (zeroblob(32), 'one', 0)",
        "UPDATE OR REPLACE tollgate_tokens SET grant_id = 'one' WHERE grant_id = 'two'",
        "INSERT INTO tollgate_tokens (digest, grant_id, created_ms) SELECT digest, 'two', 0 FROM tollgate_tokens WHERE \
         grant_id = 'one' ON CONFLICT (digest) DO UPDATE SET rotated_until_ms = 1",
    ];
    for replacement in replacements {
        let home = Home::sqlite();
        let database = home.database().await;
        database.migrate().await.unwrap();
        for id in ["one", "two"] {
            database.import(TokenDigest::of(id), &NewGrant::new("alice").with_id(id)).await.unwrap();
        }
        let (report, mut changes) = unbounded_channel();
        let watched = home.database().await;
        let watching = tokio::spawn(async move {
            watched.watch(Duration::from_millis(1), move |change| _ = report.send(change)).await;
        });
        assert_eq!(next(&mut changes).await, Some(Invalidation::Everything), "the first report");
        let mut connection = raw(&path(&home)).await;
        connection.execute(replacement).await.unwrap();
        let mut change = next(&mut changes).await;
        while change != Some(Invalidation::Grant("one".into())) {
            assert!(change.is_some(), "{replacement}");
            change = next(&mut changes).await;
        }
        watching.abort();
    }
}

#[tokio::test]
async fn a_new_token_is_reported_as_added_only() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    database.import(TokenDigest::of("one"), &NewGrant::new("alice").with_id("one")).await.unwrap();
    let (report, mut changes) = unbounded_channel();
    let watched = home.database().await;
    let watching = tokio::spawn(async move {
        watched.watch(Duration::from_millis(1), move |change| _ = report.send(change)).await;
    });
    assert_eq!(next(&mut changes).await, Some(Invalidation::Everything), "the first report");
    database.import(TokenDigest::of("two"), &NewGrant::new("alice").with_id("two")).await.unwrap();
    assert_eq!(next(&mut changes).await, Some(Invalidation::Added));
    let mut connection = raw(&path(&home)).await;
    let statements = "BEGIN; \
         INSERT INTO tollgate_grants (id, subject, created_ms) VALUES ('three', 'bob', 0); \
         INSERT INTO tollgate_tokens (digest, grant_id, created_ms) VALUES (zeroblob(32), 'three', 0); \
         COMMIT";
    connection.execute(statements).await.unwrap();
    assert_eq!(next(&mut changes).await, Some(Invalidation::Added), "by another process");
    watching.abort();
}

#[cfg(unix)]
fn mode(path: impl AsRef<Path>) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[cfg(unix)]
#[tokio::test]
async fn created_files_are_readable_by_their_owner_only() {
    let home = Home::sqlite();
    let file = path(&home);
    let database = Database::connect(&format!("{}?mode=rwc", home.url())).await.unwrap();
    assert_eq!(mode(&file), 0o600);
    database.migrate().await.unwrap();
    database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let file = format!("{}{suffix}", file.display());
        assert_eq!(mode(&file), 0o600, "{file}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn an_existing_file_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = Home::sqlite();
    let file = path(&home);
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let database = Database::connect(&format!("{}?mode=rwc", home.url())).await.unwrap();
    database.migrate().await.unwrap();
    assert_eq!((mode(&file), mode(format!("{}-wal", file.display()))), (0o640, 0o640));
}

#[tokio::test]
async fn connecting_creates_no_file() {
    let home = Home::sqlite();
    for url in [home.url().to_owned(), format!("{}?mode=rw", home.url()), format!("{}?mode=ro", home.url())] {
        let error = Database::connect(&url).await.unwrap_err();
        assert_eq!(error.to_string(), "no such database file", "{url}");
        let lazy = Database::connect_lazily(&url).unwrap();
        assert!(lazy.list(None).await.is_err() && lazy.migrate().await.is_err(), "{url}");
        assert_eq!(std::fs::read_dir(path(&home).parent().unwrap()).unwrap().count(), 0, "{url}");
    }
}

#[tokio::test]
async fn connecting_changes_no_existing_file() {
    let home = Home::sqlite();
    let file = path(&home);
    for statements in ["", "CREATE TABLE others (id INTEGER); INSERT INTO others VALUES (1)"] {
        std::fs::write(&file, "").unwrap();
        let mut connection = raw(&file).await;
        connection.execute(statements).await.unwrap();
        connection.close().await.unwrap();
        let before = std::fs::read(&file).unwrap();
        let database = Database::connect(home.url()).await.unwrap();
        assert!(database.list(None).await.is_err());
        drop(database);
        assert_eq!(std::fs::read(&file).unwrap(), before, "{statements}");
        std::fs::remove_file(&file).unwrap();
    }
}

#[tokio::test]
async fn a_migration_waits_for_readers_of_the_file() {
    let home = Home::sqlite();
    let database = home.database().await;
    let mut reader = raw(&path(&home)).await;
    reader.execute("BEGIN; SELECT COUNT(*) FROM sqlite_master").await.unwrap();
    let migration = tokio::spawn(async move { database.migrate().await });
    // Long enough that the migration usually waits for the reader. If it begins later, it succeeds as well.
    tokio::time::sleep(Duration::from_millis(200)).await;
    reader.execute("COMMIT").await.unwrap();
    migration.await.unwrap().unwrap();
    home.database().await.check_tables().await.unwrap();
}

/// Changes that wait for the lock of another process leave connections to lookups.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_do_not_wait_for_waiting_changes() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    let last_used = LastUsed::new(&database);
    let store = last_used.wrap(database.store::<()>());
    let is_known = async || store.lookup(&BearerToken::new("a-token")).await.map(|grant| grant.is_some());
    assert!(is_known().await.unwrap());

    let mut other = raw(&path(&home)).await;
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let issues: Vec<_> = (0..10)
        .map(|number| {
            let database = database.clone();
            let grant = NewGrant::new(format!("subject-{number}"));
            tokio::spawn(async move { database.import(TokenDigest::of(number.to_string()), &grant).await })
        })
        .collect();
    let flush = tokio::spawn(async move { last_used.flush().await });
    // Long enough that the changes usually wait. If they begin later, the lookups succeed as well.
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..10 {
        assert!(is_known().await.unwrap());
    }
    assert_eq!(database.list(None).await.unwrap().len(), 1, "administration that reads does not wait either");
    other.execute("ROLLBACK").await.unwrap();
    for issue in issues {
        issue.await.unwrap().unwrap();
    }
    assert_eq!(flush.await.unwrap().unwrap(), 1);
    assert_eq!(database.list(None).await.unwrap().len(), 11);
}

/// SQLite ends the transaction itself after some errors, such as a full disk. The next change must succeed.
#[tokio::test]
async fn changes_succeed_after_sqlite_has_ended_a_transaction() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON tollgate_grants WHEN NEW.subject = 'one too many' \
         BEGIN SELECT RAISE(ROLLBACK, 'the disk is full'); END";
    raw(&path(&home)).await.execute(full).await.unwrap();
    for number in 0..3 {
        let failed = database.import(TokenDigest::of("lost"), &NewGrant::new("one too many")).await;
        assert!(matches!(failed, Err(SqlError::Database(_))), "{failed:?}");
        database.import(TokenDigest::of(number.to_string()), &NewGrant::new("alice")).await.unwrap();
    }
    assert_eq!(database.list(None).await.unwrap().len(), 3);
}

#[tokio::test]
async fn databases_in_memory_have_one_connection() {
    for url in ["sqlite::memory:", "sqlite://:memory:", "sqlite:file::memory:", "sqlite://other?mode=memory"] {
        let database = Database::connect(url).await.unwrap();
        database.migrate().await.unwrap();
        database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
        assert_eq!(database.list(None).await.unwrap().len(), 1, "{url}");
        database.check_tables().await.unwrap();
    }
}

/// A service may have one connection for everything.
#[tokio::test]
async fn a_shared_pool_is_used_for_reading_and_changes() {
    let home = Home::sqlite();
    home.database().await.migrate().await.unwrap();
    let options = SqliteConnectOptions::new().filename(path(&home));
    let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(Duration::from_millis(100));
    let pool = pool.connect_with(options).await.unwrap();
    let database = Database::from_sqlite(pool.clone());
    database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    assert!(database.store::<()>().lookup(&BearerToken::new("a-token")).await.unwrap().is_some());
    let _taken = pool.acquire().await.unwrap();
    let late = database.import(TokenDigest::of("another"), &NewGrant::new("alice")).await;
    assert!(matches!(late, Err(SqlError::Timeout)), "{late:?}");
}

/// The changes of a process wait for each other as long as for those of another process.
#[tokio::test]
async fn a_change_that_waits_too_long_reports_a_lock() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    let (begin, begun) = tokio::sync::oneshot::channel();
    let (finish, finished) = std::sync::mpsc::channel::<()>();
    let mut begin = Some(begin);
    // Keeps the transaction open until the sender is dropped.
    let grants = std::iter::from_fn(move || {
        begin.take().unwrap().send(()).unwrap();
        _ = finished.recv();
        None
    });
    let importing = database.clone();
    let import = tokio::task::spawn_blocking(move || {
        let import = importing.import_all(grants, ImportOptions::new());
        tokio::runtime::Handle::current().block_on(import)
    });
    begun.await.unwrap();
    let issued = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await;
    assert!(matches!(issued, Err(SqlError::Locked)), "{issued:?}");
    drop(finish);
    import.await.unwrap().unwrap();
    database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
}

/// The first migration sets WAL mode. That fails immediately, without the `busy_timeout`, if a writer is about to commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_migration_waits_for_other_writers() {
    for _ in 0..10 {
        let home = Home::sqlite();
        let database = home.database().await;
        let mut writer = raw(&path(&home)).await;
        writer.execute("PRAGMA busy_timeout = 5000; CREATE TABLE other (value)").await.unwrap();
        let writing = tokio::spawn(async move {
            for _ in 0..100 {
                writer.execute("BEGIN IMMEDIATE; INSERT INTO other VALUES (1)").await.unwrap();
                while writer.execute("COMMIT").await.is_err() {}
            }
        });
        database.migrate().await.unwrap();
        writing.await.unwrap();
        database.check_tables().await.unwrap();
    }
}
