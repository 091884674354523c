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

use crate::servers::{Home, Role, on_each_database};

pub fn format() -> TokenFormat {
    TokenFormat::new("acme").unwrap()
}

pub async fn find<P: Send + Sync + 'static>(store: &SqlStore<P>, token: &str) -> Option<Arc<Grant<P>>> {
    store.lookup(&BearerToken::new(token)).await.unwrap()
}

/// Returns the cause of a failed lookup, and whether the error concerns only the token.
fn cause<P>(found: &Lookup<P, StoreError>) -> Option<(&SqlError, bool)> {
    let error = found.as_ref().err()?;
    let cause = std::error::Error::source(error).and_then(|source| source.downcast_ref::<SqlError>()).unwrap();
    assert_eq!(cause.concerns_token(), error.concerns_token());
    Some((cause, error.concerns_token()))
}

pub async fn knows(database: &Database, token: &str) -> bool {
    find(&database.store::<()>(), token).await.is_some_and(|grant| grant.is_valid_at(SystemTime::now()))
}

/// Executes statements as another program does.
pub async fn execute(home: &Home, statements: String) {
    use sqlx::Connection as _;
    let statements = sqlx::AssertSqlSafe(statements);
    match home.is_postgres() {
        true => _ = sqlx::PgConnection::connect(home.url()).await.unwrap().execute(statements).await.unwrap(),
        false => _ = sqlx::SqliteConnection::connect(home.url()).await.unwrap().execute(statements).await.unwrap(),
    }
}

/// A manual clock in milliseconds.
#[derive(Clone)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_700_000_000_000)))
    }

    pub fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    pub fn advance(&self, time: Duration) {
        self.0.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn install(&self, database: Database) -> Database {
        let clock = self.clone();
        database.with_wall_clock(move || clock.now())
    }
}

#[tokio::test]
async fn stores_keep_the_contract() {
    on_each_database("stores_keep_the_contract", |home| async move {
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
async fn unreachable_databases_are_errors() {
    // No server listens on this port, and the folder does not exist.
    for url in ["postgres://user@127.0.0.1:9/nothing", "sqlite:///nowhere-at-all/tokens.db"] {
        let database = Database::connect_lazily(url).unwrap().with_timeout(Duration::from_millis(300));
        Contract::new(database.store::<()>()).knows("alice-token-1", "alice").check_outage().await;
        assert!(Database::connect(url).await.is_err());
    }
}

#[tokio::test]
async fn lookups_return_grants_as_issued() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct User {
        name: String,
    }
    on_each_database("lookups_return_grants_as_issued", |home| async move {
        let database = home.database().await;
        let quota = Quota::try_per(700, Duration::from_secs(7)).unwrap().with_burst(9);
        let (from, until) = (UNIX_EPOCH + Duration::from_millis(5), UNIX_EPOCH + Duration::from_secs(4_000_000_000));
        let new = NewGrant::new("alice ü '\"")
            .with_id("key-17")
            .with_label("bot; DROP TABLE tollgate_grants --")
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
        assert_eq!(listed[0].label, "bot; DROP TABLE tollgate_grants --");
        assert!(database.list(Some(&"alice".into())).await.unwrap().is_empty());

        let bare = database.issue(&format(), &NewGrant::new("bob").with_sender_constraint()).await.unwrap();
        let grant = find(&database.store::<()>(), bare.secret.expose()).await.unwrap();
        assert!(grant.is_sender_constrained());
        assert_eq!((grant.quota(), grant.not_before(), grant.expires_at()), (None, None, None));
        assert_eq!(database.list(None).await.unwrap().len(), 2);
        assert!(database.describe(&"unknown".into()).await.unwrap().is_none());
    })
    .await;
}

#[tokio::test]
async fn times_between_milliseconds_never_extend_a_grant() {
    on_each_database("times_between_milliseconds_never_extend_a_grant", |home| async move {
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
async fn tables_contain_no_token() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    let issued = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
    let next = database.rotate(&issued.grant.id, &format(), Duration::from_secs(60)).await.unwrap();
    let path = home.url().strip_prefix("sqlite://").unwrap();
    for file in [path.to_owned(), format!("{path}-wal")] {
        let bytes = std::fs::read(&file).unwrap();
        for secret in [&issued.secret, &next.secret] {
            // The random part alone, in case it is stored without the prefix.
            let body = &secret.expose().as_bytes()[5..40];
            assert!(!bytes.windows(body.len()).any(|window| window == body), "{file}");
        }
    }
    let shown = format!("{database:?} {:?} {issued:?}", database.store::<()>());
    assert!(!shown.contains(issued.secret.expose()) && !shown.contains(&issued.secret.digest().to_hex()));
}

#[tokio::test]
async fn rotated_tokens_are_valid_in_their_grace_period() {
    on_each_database("rotated_tokens_are_valid_in_their_grace_period", |home| async move {
        let clock = Clock::new();
        let database = clock.install(home.database().await);
        let store = database.store::<()>();
        let end = clock.now() + Duration::from_secs(3_600);
        let new = NewGrant::new("alice").with_expiry(end);
        let first = database.issue(&format(), &new).await.unwrap();
        let id = first.grant.id.clone();
        let second = database.rotate(&id, &format(), Duration::from_secs(600)).await.unwrap();

        let rotated = find(&store, first.secret.expose()).await.unwrap();
        assert!(rotated.is_rotated());
        assert_eq!(rotated.expires_at(), Some(clock.now() + Duration::from_secs(600)));
        let current = find(&store, second.secret.expose()).await.unwrap();
        assert_eq!((current.id(), current.subject(), current.expires_at()), (&id, rotated.subject(), Some(end)));

        // A grace period ends no later than the grant.
        let third = database.rotate(&id, &format(), Duration::MAX).await.unwrap();
        assert_eq!(find(&store, second.secret.expose()).await.unwrap().expires_at(), Some(end));
        // A later grace period does not extend an earlier one.
        let ten_minutes = Some(clock.now() + Duration::from_secs(600));
        assert_eq!(find(&store, first.secret.expose()).await.unwrap().expires_at(), ten_minutes);
        // A shorter one ends all older tokens.
        let fourth = database.rotate(&id, &format(), Duration::from_secs(60)).await.unwrap();
        for older in [&first, &second, &third] {
            let end = find(&store, older.secret.expose()).await.unwrap().expires_at();
            assert_eq!(end, Some(clock.now() + Duration::from_secs(60)));
        }
        // Without a grace period they end immediately.
        database.rotate(&id, &format(), Duration::ZERO).await.unwrap();
        for older in [&first, &second, &third, &fourth] {
            let ended = find(&store, older.secret.expose()).await.unwrap();
            // Also on a server whose clock is late.
            assert!(ended.is_rotated() && !ended.is_valid_at(clock.now() - Duration::from_secs(59)));
            let token = database.describe_token(TokenDigest::of(older.secret.expose())).await.unwrap().unwrap();
            assert_eq!(
                (token.grant.id, token.grace_ends_at),
                (id.clone(), Some(clock.now() - Duration::from_secs(60)))
            );
        }

        clock.advance(Duration::from_secs(3_600));
        assert!(matches!(database.rotate(&id, &format(), Duration::ZERO).await, Err(SqlError::Expired)));
        assert!(matches!(database.rotate(&"unknown".into(), &format(), Duration::ZERO).await, Err(SqlError::NotFound)));
        assert!(find(&store, fourth.secret.expose()).await.is_some(), "the gate, not the store, checks the expiry");

        let unbounded = database.issue(&format(), &NewGrant::new("bob")).await.unwrap();
        database.rotate(&unbounded.grant.id, &format(), Duration::MAX).await.unwrap();
        let rotated = find(&store, unbounded.secret.expose()).await.unwrap();
        assert!(rotated.is_rotated() && rotated.is_valid_at(clock.now() + Duration::from_secs(1 << 33)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_rotations_leave_one_current_token() {
    on_each_database("concurrent_rotations_leave_one_current_token", |home| async move {
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
async fn revoked_grants_are_unknown() {
    on_each_database("revoked_grants_are_unknown", |home| async move {
        let database = home.database().await;
        let mut tokens = Vec::new();
        for subject in ["alice", "alice", "bob"] {
            tokens.push(database.issue(&format(), &NewGrant::new(subject)).await.unwrap());
        }
        let id = &tokens[2].grant.id;
        let next = database.rotate(id, &format(), Duration::from_secs(60)).await.unwrap();
        assert!(database.revoke(id).await.unwrap());
        assert!(!database.revoke(id).await.unwrap(), "it is already revoked");
        assert!(!knows(&database, tokens[2].secret.expose()).await && !knows(&database, next.secret.expose()).await);
        assert!(matches!(database.rotate(id, &format(), Duration::ZERO).await, Err(SqlError::Revoked)));

        assert!(knows(&database, tokens[0].secret.expose()).await);
        let mut alice: Vec<_> = tokens[..2].iter().map(|issued| issued.grant.id.as_str()).collect();
        alice.sort_unstable();
        let revoked = database.revoke_subject(&"alice".into()).await.unwrap();
        assert_eq!(revoked.iter().map(|grant| grant.id.as_str()).collect::<Vec<_>>(), alice);
        assert!(revoked.iter().all(|grant| grant.revoked_at.is_some()));
        assert!(database.revoke_subject(&"alice".into()).await.unwrap().is_empty());
        for issued in &tokens {
            assert!(!knows(&database, issued.secret.expose()).await);
            assert!(database.describe(&issued.grant.id).await.unwrap().unwrap().revoked_at.is_some());
        }
    })
    .await;
}

#[tokio::test]
async fn changes_take_effect_at_the_next_lookup() {
    on_each_database("changes_take_effect_at_the_next_lookup", |home| async move {
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

        let unknown = GrantId::from("unknown");
        assert!(matches!(database.relabel(&unknown, "").await, Err(SqlError::NotFound)));
        assert!(matches!(database.set_scopes(&unknown, &Scopes::default()).await, Err(SqlError::NotFound)));
        assert!(matches!(database.set_quota(&unknown, None).await, Err(SqlError::NotFound)));
        assert!(!database.revoke(&unknown).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn duplicate_and_invalid_names_are_rejected_atomically() {
    on_each_database("duplicate_and_invalid_names_are_rejected_atomically", |home| async move {
        let database = home.database().await;
        database.import(TokenDigest::of("a-token"), &NewGrant::new("alice").with_id("one")).await.unwrap();
        let taken = database.import(TokenDigest::of("a-token"), &NewGrant::new("bob").with_id("two")).await;
        assert!(matches!(taken, Err(SqlError::AlreadyExists)));
        assert!(!format!("{taken:?}").contains(&TokenDigest::of("a-token").to_hex()));
        assert!(database.describe(&"two".into()).await.unwrap().is_none(), "the grant must not exist without a token");
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
async fn purge_deletes_only_ended_grants() {
    on_each_database("purge_deletes_only_ended_grants", |home| async move {
        let clock = Clock::new();
        let database = clock.install(home.database().await);
        let hour = Duration::from_secs(3_600);
        let active = database.issue(&format(), &NewGrant::new("active")).await.unwrap();
        clock.advance(Duration::from_millis(1));
        let later =
            database.issue(&format(), &NewGrant::new("later").with_expiry(clock.now() + 3 * hour)).await.unwrap();
        let revoked = database.issue(&format(), &NewGrant::new("revoked")).await.unwrap();
        database.issue(&format(), &NewGrant::new("expired").with_expiry(clock.now() + hour)).await.unwrap();
        database.revoke(&revoked.grant.id).await.unwrap();
        let next = database.rotate(&active.grant.id, &format(), hour).await.unwrap();

        assert_eq!(database.purge(clock.now()).await.unwrap(), 0, "no grant ended before now");
        clock.advance(2 * hour);
        assert_eq!(database.purge(clock.now()).await.unwrap(), 2);
        let left: Vec<String> =
            database.list(None).await.unwrap().iter().map(|grant| grant.subject.to_string()).collect();
        assert_eq!(left, ["active", "later"]);
        let store = database.store::<()>();
        assert!(find(&store, active.secret.expose()).await.is_none(), "its grace period has ended");
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
        let active = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
        let rows = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20001) \
             INSERT INTO tollgate_grants (id, subject, created_ms, expires_ms) SELECT 'g' || i, 'bob', 0, 1 FROM n";
        match home.is_postgres() {
            true => _ = sqlx::PgPool::connect(home.url()).await.unwrap().execute(rows).await.unwrap(),
            false => _ = sqlx::SqlitePool::connect(home.url()).await.unwrap().execute(rows).await.unwrap(),
        }
        assert_eq!(database.purge(SystemTime::now()).await.unwrap(), 20_001);
        assert_eq!(database.list(None).await.unwrap()[0].id, active.id);
        assert!(knows(&database, "a-token").await);
    })
    .await;
}

#[tokio::test]
async fn unreadable_principals_are_errors() {
    on_each_database("unreadable_principals_are_errors", |home| async move {
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

/// The query for a principal can fail because of its row or because of the database.
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

        // Real queries: a value that cannot be converted, and a missing table.
        let wrong_value = "SELECT CAST(CAST(g.subject AS TEXT) AS INTEGER) FROM tollgate_grants g";
        for (query, is_about_the_row) in [(wrong_value, true), ("SELECT 1 FROM missing_table", false)] {
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
        // SQLite stores text in a column of numbers.
        if !home.is_postgres() {
            let pool = sqlx::SqlitePool::connect(home.url()).await.unwrap();
            sqlx::query("UPDATE tollgate_grants SET created_ms = 'yesterday'").execute(&pool).await.unwrap();
            let found = database.store::<()>().lookup(&BearerToken::new("a-token")).await;
            assert!(matches!(cause(&found), Some((SqlError::InvalidRow { .. }, true))), "{found:?}");
        }
        // The tables do not exist.
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
async fn invalid_rows_are_errors() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    let id = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap().id;
    let pool = sqlx::SqlitePool::connect(home.url()).await.unwrap();
    for wrong in [
        "scopes = 'a\"b'",
        "quota_interval_ns = 0, quota_burst = 1",
        "quota_interval_ns = 1, quota_burst = 4294967296",
        "quota_interval_ns = -1, quota_burst = 1",
        "expires_ms = -1",
        "created_ms = -1",
    ] {
        sqlx::query(sqlx::AssertSqlSafe(format!("UPDATE tollgate_grants SET {wrong}"))).execute(&pool).await.unwrap();
        let found = database.store::<()>().lookup(&BearerToken::new("a-token")).await;
        assert!(matches!(cause(&found), Some((SqlError::InvalidRow { .. }, true))), "{wrong}");
        let error = found.unwrap_err();
        let text = tollgate::finding::with_sources(&error);
        assert!(text.contains(&format!("grant {id}: invalid value in column ")), "{text}");
        let repair = "UPDATE tollgate_grants SET scopes = '', quota_interval_ns = NULL, quota_burst = NULL, \
             expires_ms = NULL, created_ms = 0";
        sqlx::query(repair).execute(&pool).await.unwrap();
        assert!(find(&database.store::<()>(), "a-token").await.is_some());
    }
    // The end of a grace period before 1970 must not mean no end.
    sqlx::query("UPDATE tollgate_tokens SET rotated_until_ms = -1").execute(&pool).await.unwrap();
    let found = database.store::<()>().lookup(&BearerToken::new("a-token")).await;
    assert!(matches!(cause(&found), Some((SqlError::InvalidRow { .. }, true))), "{found:?}");
}

#[tokio::test]
async fn grants_are_revoked_although_a_row_is_invalid() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    let (alice, store) = ("alice".into(), database.store::<()>());
    for token in ["one-token", "a-token", "two-token"] {
        let grant = NewGrant::new("alice").with_id(format!("id-of-{token}"));
        database.import(TokenDigest::of(token), &grant).await.unwrap();
    }
    let pool = sqlx::SqlitePool::connect(home.url()).await.unwrap();
    let execute = async |sql: &'static str| sqlx::query(sql).execute(&pool).await.unwrap();
    execute("UPDATE tollgate_grants SET scopes = 'a\"b' WHERE id = 'id-of-a-token'").await;
    let are_found = async || {
        let found = [find(&store, "one-token").await, find(&store, "two-token").await];
        found.map(|found| found.is_some())
    };
    let is_invalid =
        |error: SqlError| matches!(error, SqlError::InvalidRow { id, .. } if id.as_str() == "id-of-a-token");
    assert!(is_invalid(database.suspend_subject(&alice).await.unwrap_err()));
    assert_eq!(are_found().await, [false; 2]);
    assert!(is_invalid(database.resume_subject(&alice).await.unwrap_err()));
    assert_eq!(are_found().await, [true; 2]);
    assert!(is_invalid(database.revoke_subject(&alice).await.unwrap_err()));
    assert_eq!(are_found().await, [false; 2]);
    assert!(database.revoke_subject(&alice).await.unwrap().is_empty());
    execute("UPDATE tollgate_grants SET scopes = ''").await;
    assert!(find(&store, "a-token").await.is_none(), "the invalid one is revoked, too");
}

#[tokio::test]
async fn a_store_without_principals_ignores_them() {
    on_each_database("a_store_without_principals_ignores_them", |home| async move {
        let database = home.database().await;
        for principal in [r#"{"plan":"pro"}"#, r#""sesame""#, "7", "[]", "null"] {
            let grant = NewGrant::new("alice").with_principal(&principal.parse::<serde_json::Value>().unwrap());
            let issued = database.issue(&format(), &grant.unwrap()).await.unwrap();
            assert!(find(&database.store::<()>(), issued.secret.expose()).await.is_some(), "{principal}");
        }
    })
    .await;
}

/// The database compares digests incorrectly.
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
         SELECT iif(random() % 2, digest, zeroblob(32)) AS digest, grant_id, rotated_until_ms FROM real_tokens";
    pool.execute(view).await.unwrap();
    let mut wrong = 0;
    for _ in 0..200 {
        let found = database.store::<()>().lookup(&BearerToken::new("a-token")).await;
        match cause(&found) {
            Some((SqlError::Corrupt("digest"), true)) => wrong += 1,
            Some((error, _)) => panic!("{error}"),
            // The row was found, or the comparison in the database failed too.
            None => {}
        }
    }
    assert!(wrong > 0, "another digest was treated as an unknown token");

    let Some(home) = Home::postgres("row_with_another_digest_is_an_error").await else { return };
    let database = home.database().await;
    database.migrate().await.unwrap();
    database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    let mut admin = sqlx::PgConnection::connect(home.url()).await.unwrap();
    let operator = "CREATE FUNCTION same(bytea, bytea) RETURNS boolean LANGUAGE sql AS 'SELECT true'; \
         CREATE OPERATOR = (FUNCTION = same, LEFTARG = bytea, RIGHTARG = bytea)";
    admin.execute(operator).await.unwrap();
    // The search path finds this operator before the built-in one.
    let database = Database::connect(&format!("{},pg_catalog", home.url())).await.unwrap();
    let found = database.store::<()>().lookup(&BearerToken::new("another-token")).await;
    assert!(matches!(cause(&found), Some((SqlError::Corrupt("digest"), true))), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_and_repeated_migrations_succeed() {
    let mut homes = vec![Home::sqlite()];
    homes.extend(Home::postgres("concurrent_and_repeated_migrations_succeed").await);
    for home in homes {
        // Each migration has its own connections, as a process has.
        let migrations: Vec<_> = (0..6)
            .map(|_| {
                let home = home.clone();
                tokio::spawn(async move {
                    let database = home.database().await;
                    database.migrate().await?;
                    database.migrate().await
                })
            })
            .collect();
        for migration in migrations {
            migration.await.unwrap().unwrap();
        }
        let database = home.database().await;
        database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
        database.migrate().await.unwrap();
        assert!(knows(&database, "a-token").await);

        // Another prefix means other tables.
        let other = database.clone().with_table_prefix("other_").unwrap();
        assert!(other.store::<()>().lookup(&BearerToken::new("a-token")).await.is_err(), "no tables yet");
        other.migrate().await.unwrap();
        assert!(!knows(&other, "a-token").await && knows(&database, "a-token").await);
    }
}

#[tokio::test]
async fn tables_of_a_newer_version_are_not_migrated() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    let pool = sqlx::SqlitePool::connect(home.url()).await.unwrap();
    sqlx::query("INSERT INTO tollgate_migrations VALUES (1000, 0)").execute(&pool).await.unwrap();
    assert!(matches!(database.migrate().await, Err(SqlError::Newer { found: 1000, .. })));
}

#[tokio::test]
async fn invalid_urls_and_prefixes_are_rejected() {
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
async fn uses_are_written_in_batches_and_never_decrease() {
    on_each_database("uses_are_written_in_batches_and_never_decrease", |home| async move {
        let clock = Clock::new();
        let database = clock.install(home.database().await);
        let last_used = LastUsed::new(&database);
        let store = last_used.wrap(database.store::<()>());
        let mut ids = Vec::new();
        for token in ["one", "two", "late"] {
            let grant = match token {
                "late" => NewGrant::new(token).with_not_before(clock.now() + Duration::from_secs(3_600)),
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
        assert_eq!(used(ids[0].clone()).await, None, "lookups write nothing");
        assert_eq!(last_used.flush().await.unwrap(), 1);
        let first = clock.now();
        assert_eq!(used(ids[0].clone()).await, Some(first));
        assert_eq!((used(ids[1].clone()).await, used(ids[2].clone()).await), (None, None));
        assert_eq!(last_used.flush().await.unwrap(), 0, "no new uses");

        // Another process whose clock is behind.
        let behind = Clock::new();
        let other = LastUsed::new(&behind.install(home.database().await));
        clock.advance(Duration::from_secs(120));
        _ = store.lookup(&BearerToken::new("one")).await.unwrap();
        _ = other.wrap(database.store::<()>()).lookup(&BearerToken::new("one")).await.unwrap();
        last_used.flush().await.unwrap();
        other.flush().await.unwrap();
        assert_eq!(used(ids[0].clone()).await, Some(clock.now()));
    })
    .await;
}

#[tokio::test]
async fn unwritten_uses_are_kept() {
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
async fn rotated_tokens_share_a_rate_limit() {
    on_each_database("rotated_tokens_share_a_rate_limit", |home| async move {
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
async fn read_only_roles_can_migrate_current_tables() {
    let test = "read_only_roles_can_migrate_current_tables";
    let Some(home) = Home::postgres(test).await else { return };
    home.database().await.migrate().await.unwrap();
    let role = Role::create(&home, "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}").await;

    let reader = Database::connect(role.url()).await.unwrap();
    let (migrated, listed) = (reader.migrate().await, reader.list(None).await);
    let issued = reader.issue(&format(), &NewGrant::new("alice")).await;
    drop(reader);
    role.remove().await;
    assert!(migrated.is_ok() && listed.unwrap().is_empty(), "{migrated:?}");
    assert!(matches!(issued, Err(SqlError::Database(_))), "the role may only read");
}

#[tokio::test]
async fn a_token_is_described_with_its_grant_in_any_state() {
    on_each_database("a_token_is_described_with_its_grant_in_any_state", |home| async move {
        let database = home.database().await;
        let issued = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let id = &issued.grant.id;
        let first = database.describe_token(&issued.secret).await.unwrap().unwrap();
        assert_eq!((&first.grant, first.created_at), (&issued.grant, issued.grant.created_at));
        assert_eq!(first.grace_ends_at, None);
        let rotated = database.rotate(id, &format(), Duration::from_secs(60)).await.unwrap();
        database.suspend(id).await.unwrap();
        let first = database.describe_token(&issued.secret).await.unwrap().unwrap();
        assert!(first.grant.suspended_at.is_some() && first.grace_ends_at > Some(SystemTime::now()));
        database.revoke(id).await.unwrap();
        let second = database.describe_token(&rotated.secret).await.unwrap().unwrap();
        assert!(second.grant.revoked_at.is_some() && second.grace_ends_at.is_none());
        assert!(second.created_at >= first.created_at);
        assert_eq!(database.describe_token(TokenDigest::of("another-token")).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_migration_returns_the_versions_before_and_after() {
    on_each_database("a_migration_returns_the_versions_before_and_after", |home| async move {
        let other = home.database().await.with_table_prefix("other_").unwrap();
        for from in [None, Some(4)] {
            let migrated = other.migrate().await.unwrap();
            assert_eq!((migrated.from, migrated.to), (from, 4));
        }
    })
    .await;
}
