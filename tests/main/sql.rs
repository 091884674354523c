//! Grants in SQLite and PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sqlx::Executor as _;
use tollgate::mint::TokenFormat;
use tollgate::store::Lookup;
use tollgate::store::contract::Contract;
use tollgate::store::sql::{Database, GrantRecord, LastUsed, NewGrant, SqlError, SqlStore};
use tollgate::{BearerToken, BoxStore, Grant, GrantId, Quota, Scopes, StoreError, Subject, TokenDigest, TokenStore};

use crate::servers::{Home, on_each_database};

fn format() -> TokenFormat {
    TokenFormat::new("acme").unwrap()
}

async fn find<P: Send + Sync + 'static>(store: &SqlStore<P>, token: &str) -> Option<Arc<Grant<P>>> {
    store.lookup(&BearerToken::new(token)).await.unwrap()
}

/// Why a lookup failed, and whether that concerns only the token.
fn cause<P>(found: &Lookup<P, StoreError>) -> Option<(&SqlError, bool)> {
    let error = found.as_ref().err()?;
    let cause = std::error::Error::source(error).and_then(|source| source.downcast_ref::<SqlError>()).unwrap();
    assert_eq!(cause.concerns_token(), error.concerns_token());
    Some((cause, error.concerns_token()))
}

async fn knows(database: &Database, token: &str) -> bool {
    find(&database.store::<()>(), token).await.is_some_and(|grant| grant.is_valid_at(SystemTime::now()))
}

/// Hands that a test turns, in milliseconds.
#[derive(Clone)]
struct Hands(Arc<AtomicU64>);

impl Hands {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_700_000_000_000)))
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn pass(&self, time: Duration) {
        self.0.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
    }

    fn drive(&self, database: Database) -> Database {
        let hands = self.clone();
        database.with_wall_clock(move || hands.now())
    }
}

#[tokio::test]
async fn they_keep_the_contract() {
    on_each_database("they_keep_the_contract", |home| async move {
        let database = home.database().await;
        for (token, subject) in [("alice-token-1", "alice"), ("bob-token-1", "bob"), ("gone-token-1", "carol")] {
            database.import(TokenDigest::of(token), &NewGrant::new(subject)).await.unwrap();
        }
        database.revoke_subject(&"carol".into()).await.unwrap();
        let store = database.store::<()>();
        let contract = |contract: Contract<_>| {
            contract.knows("alice-token-1", "alice").knows("bob-token-1", "bob").has_revoked("gone-token-1")
        };
        contract(Contract::new(BoxStore::new(store.clone()))).check().await;
        Contract::new(store)
            .knows("alice-token-1", "alice")
            .knows("bob-token-1", "bob")
            .has_revoked("gone-token-1")
            .check()
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_database_that_is_down_is_no_verdict() {
    // Nobody listens on this port; nor is there such a folder.
    for url in ["postgres://nobody@127.0.0.1:9/nothing", "sqlite:///nowhere-at-all/tokens.db"] {
        let database = Database::connect_lazily(url).unwrap().with_timeout(Duration::from_millis(300));
        Contract::new(database.store::<()>()).knows("alice-token-1", "alice").check_outage().await;
        assert!(Database::connect(url).await.is_err());
    }
}

#[tokio::test]
async fn what_was_issued_is_found_as_it_was_issued() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct User {
        name: String,
    }
    on_each_database("what_was_issued_is_found_as_it_was_issued", |home| async move {
        let database = home.database().await;
        let quota = Quota::try_per(700, Duration::from_secs(7)).unwrap().with_burst(9);
        let (from, until) = (UNIX_EPOCH + Duration::from_millis(5), UNIX_EPOCH + Duration::from_secs(4_000_000_000));
        let new = NewGrant::new("alice ü '\"")
            .with_id("key-17")
            .with_label("the robot; DROP TABLE tollgate_grants --")
            .with_scopes(["trade", "read:all"])
            .unwrap()
            .with_quota(quota)
            .with_not_before(from)
            .with_expiry(until)
            .with_principal(&User { name: "Alice".to_owned() })
            .unwrap();
        let issued = database.issue(&format(), &new).await.unwrap();
        format().check(issued.secret.expose()).unwrap();

        let grant = find(&database.store::<User>(), issued.secret.expose()).await.unwrap();
        assert_eq!((grant.id().as_str(), grant.subject().as_str()), ("key-17", "alice ü '\""));
        assert_eq!(grant.scopes().to_string(), "trade read:all");
        assert_eq!(grant.quota(), Some(quota));
        assert_eq!((grant.not_before(), grant.expires_at()), (Some(from), Some(until)));
        assert_eq!(grant.principal().name, "Alice");
        assert!(!grant.is_sender_constrained() && !grant.is_rotated());

        let listed = database.list(Some(&"alice ü '\"".into())).await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].label, "the robot; DROP TABLE tollgate_grants --");
        assert!(database.list(Some(&"alice".into())).await.unwrap().is_empty());

        let bare = database.issue(&format(), &NewGrant::new("bob").with_sender_constraint()).await.unwrap();
        let grant = find(&database.store::<()>(), bare.secret.expose()).await.unwrap();
        assert!(grant.is_sender_constrained());
        assert_eq!((grant.quota(), grant.not_before(), grant.expires_at()), (None, None, None));
        assert_eq!(database.list(None).await.unwrap().len(), 2);
        assert!(database.describe(&"nobody".into()).await.unwrap().is_none());
    })
    .await;
}

#[tokio::test]
async fn moments_between_milliseconds_never_widen_a_grant() {
    on_each_database("moments_between_milliseconds_never_widen_a_grant", |home| async move {
        let database = home.database().await;
        let between = UNIX_EPOCH + Duration::from_nanos(5_000_001);
        let grant = NewGrant::new("alice").with_not_before(between).with_expiry(between);
        let record = database.import(TokenDigest::of("a-token"), &grant).await.unwrap();
        assert_eq!(record.not_before, Some(UNIX_EPOCH + Duration::from_millis(6)));
        assert_eq!(record.expires_at, Some(UNIX_EPOCH + Duration::from_millis(5)));
    })
    .await;
}

#[tokio::test]
async fn nothing_in_the_tables_is_a_token() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    let issued = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
    let next = database.rotate(&issued.grant.id, &format(), Duration::from_secs(60)).await.unwrap();
    let path = home.url().strip_prefix("sqlite://").unwrap();
    for file in [path.to_owned(), format!("{path}-wal")] {
        let bytes = std::fs::read(&file).unwrap();
        for secret in [&issued.secret, &next.secret] {
            // The body alone, in case that something was kept without the prefix.
            let body = &secret.expose().as_bytes()[5..40];
            assert!(!bytes.windows(body.len()).any(|window| window == body), "{file}");
        }
    }
    let shown = format!("{database:?} {:?} {issued:?}", database.store::<()>());
    assert!(!shown.contains(issued.secret.expose()) && !shown.contains(&issued.secret.digest().to_hex()));
}

#[tokio::test]
async fn a_rotation_leaves_the_old_token_its_grace() {
    on_each_database("a_rotation_leaves_the_old_token_its_grace", |home| async move {
        let hands = Hands::new();
        let database = hands.drive(home.database().await);
        let store = database.store::<()>();
        let end = hands.now() + Duration::from_secs(3_600);
        let new = NewGrant::new("alice").with_expiry(end);
        let first = database.issue(&format(), &new).await.unwrap();
        let id = first.grant.id.clone();
        let second = database.rotate(&id, &format(), Duration::from_secs(600)).await.unwrap();

        let outgoing = find(&store, first.secret.expose()).await.unwrap();
        assert!(outgoing.is_rotated());
        assert_eq!(outgoing.expires_at(), Some(hands.now() + Duration::from_secs(600)));
        let current = find(&store, second.secret.expose()).await.unwrap();
        assert_eq!((current.id(), current.subject(), current.expires_at()), (&id, outgoing.subject(), Some(end)));

        // A grace that is longer than the grant ends with it.
        let third = database.rotate(&id, &format(), Duration::MAX).await.unwrap();
        assert_eq!(find(&store, second.secret.expose()).await.unwrap().expires_at(), Some(end));
        // Without a grace it ends at once.
        let fourth = database.rotate(&id, &format(), Duration::ZERO).await.unwrap();
        assert!(find(&store, third.secret.expose()).await.is_none());
        // The first keeps its own.
        assert!(find(&store, first.secret.expose()).await.is_some());

        hands.pass(Duration::from_secs(3_600));
        assert!(matches!(database.rotate(&id, &format(), Duration::ZERO).await, Err(SqlError::Expired)));
        assert!(matches!(database.rotate(&"nobody".into(), &format(), Duration::ZERO).await, Err(SqlError::NotFound)));
        assert!(find(&store, fourth.secret.expose()).await.is_some(), "the gate, not the store, judges its expiry");

        let unbounded = database.issue(&format(), &NewGrant::new("bob")).await.unwrap();
        database.rotate(&unbounded.grant.id, &format(), Duration::MAX).await.unwrap();
        let outgoing = find(&store, unbounded.secret.expose()).await.unwrap();
        assert!(outgoing.is_rotated() && outgoing.is_valid_at(hands.now() + Duration::from_secs(1 << 33)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_at_once_leave_one_current_token() {
    on_each_database("rotations_at_once_leave_one_current_token", |home| async move {
        let database = home.database().await;
        let issued = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let rotations: Vec<_> = (0..8)
            .map(|_| {
                let (database, id) = (database.clone(), issued.grant.id.clone());
                tokio::spawn(async move { database.rotate(&id, &format(), Duration::from_secs(60)).await })
            })
            .collect();
        let mut secrets = Vec::new();
        for rotation in rotations {
            secrets.push(rotation.await.unwrap().unwrap().secret);
        }
        let mut current = 0;
        for secret in secrets {
            let grant = find(&database.store::<()>(), secret.expose()).await.unwrap();
            current += usize::from(!grant.is_rotated());
        }
        assert_eq!(current, 1);
    })
    .await;
}

#[tokio::test]
async fn the_revoked_are_unknown_for_ever() {
    on_each_database("the_revoked_are_unknown_for_ever", |home| async move {
        let database = home.database().await;
        let mut tokens = Vec::new();
        for subject in ["alice", "alice", "bob"] {
            tokens.push(database.issue(&format(), &NewGrant::new(subject)).await.unwrap());
        }
        let id = &tokens[2].grant.id;
        let next = database.rotate(id, &format(), Duration::from_secs(60)).await.unwrap();
        assert!(database.revoke(id).await.unwrap());
        assert!(!database.revoke(id).await.unwrap(), "it was");
        assert!(!knows(&database, tokens[2].secret.expose()).await && !knows(&database, next.secret.expose()).await);
        assert!(matches!(database.rotate(id, &format(), Duration::ZERO).await, Err(SqlError::Revoked)));

        assert!(knows(&database, tokens[0].secret.expose()).await);
        assert_eq!(database.revoke_subject(&"alice".into()).await.unwrap(), 2);
        assert_eq!(database.revoke_subject(&"alice".into()).await.unwrap(), 0);
        for issued in &tokens {
            assert!(!knows(&database, issued.secret.expose()).await);
            assert!(database.describe(&issued.grant.id).await.unwrap().unwrap().revoked_at.is_some());
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_changed_counts_at_the_next_look_up() {
    on_each_database("what_is_changed_counts_at_the_next_look_up", |home| async move {
        let database = home.database().await;
        let issued = database.issue(&format(), &NewGrant::new("alice").with_label("old")).await.unwrap();
        let id = &issued.grant.id;
        let quota = Quota::per_minute(600).with_burst(50);
        database.relabel(id, "new").await.unwrap();
        database.set_scopes(id, &Scopes::new(["trade"]).unwrap()).await.unwrap();
        database.set_quota(id, Some(quota)).await.unwrap();
        let grant = find(&database.store::<()>(), issued.secret.expose()).await.unwrap();
        assert_eq!((grant.scopes().to_string(), grant.quota()), ("trade".to_owned(), Some(quota)));
        assert_eq!(database.describe(id).await.unwrap().unwrap().label, "new");
        database.set_quota(id, None).await.unwrap();
        assert_eq!(find(&database.store::<()>(), issued.secret.expose()).await.unwrap().quota(), None);

        let nobody = GrantId::from("nobody");
        assert!(matches!(database.relabel(&nobody, "").await, Err(SqlError::NotFound)));
        assert!(matches!(database.set_scopes(&nobody, &Scopes::default()).await, Err(SqlError::NotFound)));
        assert!(matches!(database.set_quota(&nobody, None).await, Err(SqlError::NotFound)));
        assert!(!database.revoke(&nobody).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn names_that_are_taken_or_no_names_are_refused_whole() {
    on_each_database("names_that_are_taken_or_no_names_are_refused_whole", |home| async move {
        let database = home.database().await;
        database.import(TokenDigest::of("a-token"), &NewGrant::new("alice").with_id("one")).await.unwrap();
        let taken = database.import(TokenDigest::of("a-token"), &NewGrant::new("bob").with_id("two")).await;
        assert!(matches!(taken, Err(SqlError::AlreadyExists)));
        assert!(!format!("{taken:?}").contains(&TokenDigest::of("a-token").to_hex()));
        assert!(database.describe(&"two".into()).await.unwrap().is_none(), "a grant without a token");
        let again = database.import(TokenDigest::of("another-token"), &NewGrant::new("bob").with_id("one")).await;
        assert!(matches!(again, Err(SqlError::AlreadyExists)));
        for bad in ["", "a\nb", &"x".repeat(256)] {
            for grant in [NewGrant::new(bad), NewGrant::new("alice").with_id(bad)] {
                assert!(
                    matches!(database.import(TokenDigest::of("new"), &grant).await, Err(SqlError::Name)),
                    "{bad:?}"
                );
            }
        }
        let long = NewGrant::new("ü".repeat(255)).with_id("ü".repeat(255)).with_label("ü".repeat(255));
        database.import(TokenDigest::of("long"), &long).await.unwrap();
        assert!(database.revoke(&"ü".repeat(255).into()).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn the_purge_takes_what_has_ended_and_nothing_else() {
    on_each_database("the_purge_takes_what_has_ended_and_nothing_else", |home| async move {
        let hands = Hands::new();
        let database = hands.drive(home.database().await);
        let hour = Duration::from_secs(3_600);
        let alive = database.issue(&format(), &NewGrant::new("alive")).await.unwrap();
        hands.pass(Duration::from_millis(1));
        let later =
            database.issue(&format(), &NewGrant::new("later").with_expiry(hands.now() + 3 * hour)).await.unwrap();
        let revoked = database.issue(&format(), &NewGrant::new("revoked")).await.unwrap();
        database.issue(&format(), &NewGrant::new("expired").with_expiry(hands.now() + hour)).await.unwrap();
        database.revoke(&revoked.grant.id).await.unwrap();
        let next = database.rotate(&alive.grant.id, &format(), hour).await.unwrap();

        assert_eq!(database.purge(hands.now()).await.unwrap(), 0, "nothing ended before it");
        hands.pass(2 * hour);
        assert_eq!(database.purge(hands.now()).await.unwrap(), 2);
        let left: Vec<String> =
            database.list(None).await.unwrap().iter().map(|grant| grant.subject.to_string()).collect();
        assert_eq!(left, ["alive", "later"]);
        let store = database.store::<()>();
        assert!(find(&store, alive.secret.expose()).await.is_none(), "its grace has ended");
        assert!(find(&store, next.secret.expose()).await.is_some());
        assert!(find(&store, later.secret.expose()).await.is_some());
        assert!(find(&store, revoked.secret.expose()).await.is_none());
    })
    .await;
}

#[tokio::test]
async fn purge_deletes_more_than_one_batch() {
    on_each_database("purge_deletes_more_than_one_batch", |home| async move {
        let database = home.database().await;
        let alive = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
        let rows = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20001) \
             INSERT INTO tollgate_grants (id, subject, created_ms, expires_ms) SELECT 'g' || i, 'bob', 0, 1 FROM n";
        match home.is_postgres() {
            true => _ = sqlx::PgPool::connect(home.url()).await.unwrap().execute(rows).await.unwrap(),
            false => _ = sqlx::SqlitePool::connect(home.url()).await.unwrap().execute(rows).await.unwrap(),
        }
        assert_eq!(database.purge(SystemTime::now()).await.unwrap(), 20_001);
        assert_eq!(database.list(None).await.unwrap()[0].id, alive.id);
        assert!(knows(&database, "a-token").await);
    })
    .await;
}

#[tokio::test]
async fn principals_that_cannot_be_read_are_no_verdict() {
    on_each_database("principals_that_cannot_be_read_are_no_verdict", |home| async move {
        let database = home.database().await;
        database
            .import(TokenDigest::of("a-token"), &NewGrant::new("alice").with_principal("a text").unwrap())
            .await
            .unwrap();
        let found = database.store::<u64>().lookup(&BearerToken::new("a-token")).await;
        assert!(matches!(cause(&found), Some((SqlError::Principal(_), true))), "{:?}", found.err());
        assert_eq!(find(&database.store::<String>(), "a-token").await.unwrap().principal(), "a text");

        let own = database.store_with(|grant: GrantRecord| async move {
            match grant.subject.as_str() {
                "alice" => Ok(format!("{} of the service", grant.subject)),
                _ => Err("no such user"),
            }
        });
        assert_eq!(find(&own, "a-token").await.unwrap().principal(), "alice of the service");
        database.import(TokenDigest::of("bob-token"), &NewGrant::new("bob")).await.unwrap();
        assert!(own.lookup(&BearerToken::new("bob-token")).await.is_err());
    })
    .await;
}

/// A query for the principal fails because of its row, or because of the database.
#[tokio::test]
async fn errors_concern_the_database_or_one_row() {
    on_each_database("errors_concern_the_database_or_one_row", |home| async move {
        let database = home.database().await;
        database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
        async fn concerns_token<E>(database: &Database, error: impl Fn() -> E + Send + Sync + 'static) -> bool
        where
            E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
        {
            let store = database.store_with(move |_| std::future::ready(Err::<(), _>(error())));
            let found = store.lookup(&BearerToken::new("a-token")).await;
            let (cause, concerns_token) = cause(&found).unwrap();
            assert!(matches!(cause, SqlError::Principal(_)));
            concerns_token
        }
        let json = || serde_json::from_str::<u64>("x").unwrap_err();
        for (what, is_about_the_row) in [
            ("JSON", concerns_token(&database, json).await),
            ("no row", concerns_token(&database, || sqlx::Error::RowNotFound).await),
            ("a column", concerns_token(&database, || sqlx::Error::Decode("NULL".into())).await),
            ("by the service", concerns_token(&database, || StoreError::for_token("no such user")).await),
        ] {
            assert!(is_about_the_row, "{what}");
        }
        for (what, is_about_the_row) in [
            ("a text", concerns_token(&database, || "no connection").await),
            ("the pool", concerns_token(&database, || sqlx::Error::PoolTimedOut).await),
            ("the network", concerns_token(&database, || sqlx::Error::Io(std::io::Error::other("reset"))).await),
            ("by the service", concerns_token(&database, || StoreError::new("no connection")).await),
        ] {
            assert!(!is_about_the_row, "{what}");
        }

        // By real queries, of a value that cannot be converted and of a table that is not there.
        let wrong_value = "SELECT CAST(CAST(g.subject AS TEXT) AS INTEGER) FROM tollgate_grants g";
        for (query, is_about_the_row) in [(wrong_value, true), ("SELECT 1 FROM nothing_of_this_name", false)] {
            let url = home.url().to_owned();
            let store = database.store_with(move |_| {
                let url = url.clone();
                async move {
                    let pool = sqlx::PgPool::connect(&url).await?;
                    sqlx::query(query).execute(&pool).await.map(|_| ())
                }
            });
            if home.is_postgres() {
                let found = store.lookup(&BearerToken::new("a-token")).await;
                assert_eq!(cause(&found).unwrap().1, is_about_the_row, "{query}: {found:?}");
            }
        }
        // SQLite keeps a text in a column of numbers.
        if !home.is_postgres() {
            let pool = sqlx::SqlitePool::connect(home.url()).await.unwrap();
            sqlx::query("UPDATE tollgate_grants SET created_ms = 'yesterday'").execute(&pool).await.unwrap();
            let found = database.store::<()>().lookup(&BearerToken::new("a-token")).await;
            assert!(matches!(cause(&found), Some((SqlError::Database(_), true))), "{found:?}");
        }
        // The tables are gone.
        database
            .with_table_prefix("gone_")
            .unwrap()
            .store::<()>()
            .lookup(&BearerToken::new("a-token"))
            .await
            .map_or_else(|error| assert!(!error.concerns_token(), "{error:?}"), |found| panic!("{found:?}"));
    })
    .await;
}

#[tokio::test]
async fn rows_that_no_grant_can_have_are_no_verdict() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    let pool = sqlx::SqlitePool::connect(home.url()).await.unwrap();
    for wrong in [
        "scopes = 'a\"b'",
        "quota_interval_ns = 0, quota_burst = 1",
        "quota_interval_ns = 1, quota_burst = 4294967296",
        "quota_interval_ns = -1, quota_burst = 1",
        "expires_ms = -1",
        "created_ms = -1",
    ] {
        sqlx::query(&format!("UPDATE tollgate_grants SET {wrong}")).execute(&pool).await.unwrap();
        let found = database.store::<()>().lookup(&BearerToken::new("a-token")).await;
        assert!(matches!(cause(&found), Some((SqlError::Corrupt(_), true))), "{wrong}");
        let mend = "UPDATE tollgate_grants SET scopes = '', quota_interval_ns = NULL, quota_burst = NULL, \
             expires_ms = NULL, created_ms = 0";
        sqlx::query(mend).execute(&pool).await.unwrap();
        assert!(find(&database.store::<()>(), "a-token").await.is_some());
    }
    // A grace of before 1970 is none without an end.
    sqlx::query("UPDATE tollgate_tokens SET outgoing_until_ms = -1").execute(&pool).await.unwrap();
    let found = database.store::<()>().lookup(&BearerToken::new("a-token")).await;
    assert!(matches!(cause(&found), Some((SqlError::Corrupt(_), true))), "{found:?}");
}

/// A database that compares digests in its own way.
#[tokio::test]
async fn row_with_another_digest_is_an_error() {
    use sqlx::Connection as _;
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    let pool = sqlx::SqlitePool::connect(home.url()).await.unwrap();
    // SQLite evaluates the column of the view once for the comparison and once for the answer.
    let view = "ALTER TABLE tollgate_tokens RENAME TO real_tokens; CREATE VIEW tollgate_tokens AS \
         SELECT iif(random() % 2, digest, zeroblob(32)) AS digest, grant_id, outgoing_until_ms FROM real_tokens";
    pool.execute(view).await.unwrap();
    let mut wrong = 0;
    for _ in 0..200 {
        let found = database.store::<()>().lookup(&BearerToken::new("a-token")).await;
        match cause(&found) {
            Some((SqlError::Corrupt("digest"), true)) => wrong += 1,
            Some((error, _)) => panic!("{error}"),
            // The row was found, or the comparison failed as well.
            None => {}
        }
    }
    assert!(wrong > 0, "the other digest was taken for an unknown token");

    let Some(home) = Home::postgres("row_with_another_digest_is_an_error").await else { return };
    let database = home.database().await;
    database.migrate().await.unwrap();
    database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    let mut admin = sqlx::PgConnection::connect(home.url()).await.unwrap();
    let operator = "CREATE FUNCTION same(bytea, bytea) RETURNS boolean LANGUAGE sql AS 'SELECT true'; \
         CREATE OPERATOR = (FUNCTION = same, LEFTARG = bytea, RIGHTARG = bytea)";
    admin.execute(operator).await.unwrap();
    // The operator comes before the one of the system.
    let database = Database::connect(&format!("{},pg_catalog", home.url())).await.unwrap();
    let found = database.store::<()>().lookup(&BearerToken::new("another-token")).await;
    assert!(matches!(cause(&found), Some((SqlError::Corrupt("digest"), true))), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_run_from_empty_twice_and_at_once() {
    let mut homes = vec![Home::sqlite()];
    homes.extend(Home::postgres("migrations_run_from_empty_twice_and_at_once").await);
    for home in homes {
        // Each with connections of its own, as processes have.
        let at_once: Vec<_> = (0..6)
            .map(|_| {
                let home = home.clone();
                tokio::spawn(async move {
                    let database = home.database().await;
                    database.migrate().await?;
                    database.migrate().await
                })
            })
            .collect();
        for migration in at_once {
            migration.await.unwrap().unwrap();
        }
        let database = home.database().await;
        database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
        database.migrate().await.unwrap();
        assert!(knows(&database, "a-token").await);

        // Another prefix has tables of its own.
        let other = database.clone().with_table_prefix("other_").unwrap();
        assert!(other.store::<()>().lookup(&BearerToken::new("a-token")).await.is_err(), "no tables yet");
        other.migrate().await.unwrap();
        assert!(!knows(&other, "a-token").await && knows(&database, "a-token").await);
    }
}

#[tokio::test]
async fn tables_of_a_newer_version_are_left_alone() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    let pool = sqlx::SqlitePool::connect(home.url()).await.unwrap();
    sqlx::query("INSERT INTO tollgate_migrations VALUES (1000, 0)").execute(&pool).await.unwrap();
    assert!(matches!(database.migrate().await, Err(SqlError::Newer { found: 1000, .. })));
}

#[tokio::test]
async fn urls_and_prefixes_are_checked() {
    for url in ["", "tokens.db", "mysql://localhost/x", "http://localhost"] {
        assert!(matches!(Database::connect_lazily(url), Err(SqlError::Url(_))), "{url}");
    }
    let database = Database::connect("sqlite::memory:").await.unwrap();
    for prefix in ["", "1a", "a-b", "A", "a\"b", "ä", &"x".repeat(33)] {
        assert!(matches!(database.clone().with_table_prefix(prefix), Err(SqlError::Prefix)), "{prefix}");
    }
    let database = database.with_table_prefix(&"x".repeat(32)).unwrap();
    database.migrate().await.unwrap();
    database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    assert!(knows(&database, "a-token").await, "tables in memory last as long as the database");
    let with_password = Database::connect_lazily("postgres://alice:sesame@127.0.0.1:9/x").unwrap();
    assert!(!format!("{with_password:?}").contains("sesame"));
}

#[tokio::test]
async fn uses_are_noted_in_batches_and_only_forward() {
    on_each_database("uses_are_noted_in_batches_and_only_forward", |home| async move {
        let hands = Hands::new();
        let database = hands.drive(home.database().await);
        let last_used = LastUsed::new(&database);
        let store = last_used.wrap(database.store::<()>());
        let mut ids = Vec::new();
        for token in ["one", "two", "late"] {
            let grant = match token {
                "late" => NewGrant::new(token).with_not_before(hands.now() + Duration::from_secs(3_600)),
                _ => NewGrant::new(token),
            };
            ids.push(database.import(TokenDigest::of(token), &grant).await.unwrap().id);
        }
        let used = |id: GrantId| {
            let database = database.clone();
            async move { database.describe(&id).await.unwrap().unwrap().last_used }
        };
        for _ in 0..10 {
            for token in ["one", "unknown", "late"] {
                _ = store.lookup(&BearerToken::new(token)).await.unwrap();
            }
        }
        assert_eq!(used(ids[0].clone()).await, None, "nothing is written on the road");
        assert_eq!(last_used.flush().await.unwrap(), 1);
        let first = hands.now();
        assert_eq!(used(ids[0].clone()).await, Some(first));
        assert_eq!((used(ids[1].clone()).await, used(ids[2].clone()).await), (None, None));
        assert_eq!(last_used.flush().await.unwrap(), 0, "nothing new");

        // Another process, whose clock is behind.
        let behind = Hands::new();
        let other = LastUsed::new(&behind.drive(home.database().await));
        hands.pass(Duration::from_secs(120));
        _ = store.lookup(&BearerToken::new("one")).await.unwrap();
        _ = other.wrap(database.store::<()>()).lookup(&BearerToken::new("one")).await.unwrap();
        last_used.flush().await.unwrap();
        other.flush().await.unwrap();
        assert_eq!(used(ids[0].clone()).await, Some(hands.now()));
    })
    .await;
}

#[tokio::test]
async fn uses_that_could_not_be_written_are_kept() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    let record = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    let last_used = LastUsed::new(&database);
    _ = last_used.wrap(database.store::<()>()).lookup(&BearerToken::new("a-token")).await.unwrap();
    let pool = sqlx::SqlitePool::connect(home.url()).await.unwrap();
    sqlx::query("ALTER TABLE tollgate_grants RENAME COLUMN last_used_ms TO hidden").execute(&pool).await.unwrap();
    assert!(last_used.flush().await.is_err());
    sqlx::query("ALTER TABLE tollgate_grants RENAME COLUMN hidden TO last_used_ms").execute(&pool).await.unwrap();
    assert_eq!(last_used.flush().await.unwrap(), 1);
    assert!(database.describe(&record.id).await.unwrap().unwrap().last_used.is_some());
}

#[tokio::test]
async fn subjects_share_a_budget_over_a_rotation() {
    on_each_database("subjects_share_a_budget_over_a_rotation", |home| async move {
        use tollgate::CurrentGrant;
        use tollgate::limit::{Charge, RateLimits};
        let database = home.database().await;
        let limits = RateLimits::new(Quota::per_hour(2));
        let issued = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let next = database.rotate(&issued.grant.id, &format(), Duration::from_secs(60)).await.unwrap();
        let store = database.store::<()>();
        let mut admitted = 0;
        for secret in [&issued.secret, &next.secret, &issued.secret, &next.secret] {
            let grant = find(&store, secret.expose()).await.unwrap();
            let current = CurrentGrant::new(Grant::clone(&grant));
            admitted += usize::from(limits.charge(&current, Charge::Units(1)).is_admitted());
        }
        assert_eq!(admitted, 2);
        assert_eq!(Subject::from("alice"), *find(&store, next.secret.expose()).await.unwrap().subject());
    })
    .await;
}

#[tokio::test]
async fn who_may_only_read_finds_the_tables_as_they_should_be() {
    use sqlx::{Connection as _, PgConnection};
    let test = "who_may_only_read_finds_the_tables_as_they_should_be";
    let Some(home) = Home::postgres(test).await else { return };
    home.database().await.migrate().await.unwrap();
    let mut owner = PgConnection::connect(home.url()).await.unwrap();
    let schema: String = sqlx::query_scalar("SELECT current_schema()::text").fetch_one(&mut owner).await.unwrap();
    let role = format!("{schema}_reader");
    let grants = format!(
        "CREATE ROLE {role}; GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}"
    );
    owner.execute(&*grants).await.unwrap();

    let reader = Database::connect(&format!("{}&options[role]={role}", home.url())).await.unwrap();
    let (migrated, listed) = (reader.migrate().await, reader.list(None).await);
    let issued = reader.issue(&format(), &NewGrant::new("alice")).await;
    drop(reader);
    owner.execute(&*format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
    assert!(migrated.is_ok() && listed.unwrap().is_empty(), "{migrated:?}");
    assert!(matches!(issued, Err(SqlError::Database(_))), "it may only read");
}
