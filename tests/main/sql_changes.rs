//! Changes of grants in SQLite and PostgreSQL: fields, suspension, and the upgrade of the tables.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::{Connection as _, Executor as _, PgConnection};
use tollgate::store::CachedStore;
use tollgate::store::sql::{Database, GrantChange, GrantState, NewGrant, SqlError};
use tollgate::{AuthLayer, BearerToken, Quota, TokenDigest, TokenStore};
use tower::ServiceBuilder;

use crate::kit::*;
use crate::servers::{Home, on_each_database};
use crate::sql::{Clock, execute, find, format, knows};

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn suspended_grants_are_unknown_until_they_are_resumed() {
    on_each_database("suspended_grants_are_unknown_until_they_are_resumed", |home| async move {
        let database = home.database().await;
        let first = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let id = &first.grant.id;
        let second = database.rotate(id, &format(), HOUR).await.unwrap();
        let tokens = [first.secret.expose(), second.secret.expose()];

        assert!(database.suspend(id).await.unwrap());
        assert!(!database.suspend(id).await.unwrap(), "it is already suspended");
        let record = database.describe(id).await.unwrap().unwrap();
        assert_eq!(record.state(SystemTime::now()), GrantState::Suspended);
        assert!(record.suspended_at.is_some());
        for token in tokens {
            assert!(find(&database.store::<()>(), token).await.is_none());
        }
        // A suspended grant can be rotated. Its new token is rejected too.
        let third = database.rotate(id, &format(), HOUR).await.unwrap();
        assert!(!knows(&database, third.secret.expose()).await);

        assert!(database.resume(id).await.unwrap());
        assert!(!database.resume(id).await.unwrap(), "it is not suspended");
        for token in tokens.into_iter().chain([third.secret.expose()]) {
            assert!(knows(&database, token).await);
        }

        // A revocation is permanent.
        database.suspend(id).await.unwrap();
        database.revoke(id).await.unwrap();
        assert!(!database.resume(id).await.unwrap() && !database.suspend(id).await.unwrap());
        assert!(!knows(&database, third.secret.expose()).await);
        let unknown = "unknown".into();
        assert!(!database.resume(&unknown).await.unwrap() && !database.suspend(&unknown).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn gates_answer_suspended_and_unknown_tokens_alike() {
    on_each_database("gates_answer_suspended_and_unknown_tokens_alike", |home| async move {
        let database = home.database().await;
        let issued = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let gate = AuthLayer::with_timeout(database.store::<()>(), HOUR);
        let service = ServiceBuilder::new().layer(gate).service(echo());
        assert_eq!(send(&service, with_token(issued.secret.expose())).await.status(), 200);
        database.suspend(&issued.grant.id).await.unwrap();
        let suspended = send(&service, with_token(issued.secret.expose())).await;
        let unknown = send(&service, with_token(format().mint().unwrap().expose())).await;
        assert_eq!(suspended.status(), 401);
        assert_eq!((suspended.status(), suspended.headers()), (unknown.status(), unknown.headers()));
        assert_eq!(text(suspended).await, text(unknown).await);
    })
    .await;
}

#[tokio::test]
async fn caches_apply_suspensions_and_resumptions() {
    on_each_database("caches_apply_suspensions_and_resumptions", |home| async move {
        let database = home.database().await;
        let issued = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let cache = CachedStore::builder(database.store::<()>(), HOUR).with_unknown_ttl(HOUR).build().unwrap();
        let (watched, watcher) = (cache.clone(), home.database().await);
        let on_change = move |change| watched.invalidate(&change);
        let watching = tokio::spawn(async move { watcher.watch(Duration::from_millis(5), on_change).await });
        let token = BearerToken::new(issued.secret.expose());
        let until = async |expected: bool| {
            let wait = async {
                while cache.lookup(&token).await.unwrap().is_some() != expected {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the cache keeps an old answer");
        };
        for _ in 0..3 {
            until(true).await;
            database.suspend(&issued.grant.id).await.unwrap();
            // From now on, the cache has a negative entry.
            until(false).await;
            database.resume(&issued.grant.id).await.unwrap();
        }
        until(true).await;
        watching.abort();
    })
    .await;
}

/// The statements that version 1 of the tables was created with.
pub fn version_1(is_postgres: bool) -> String {
    let (own, bytes, json, keyed) = match is_postgres {
        true => (include_str!("../../src/store/sql/migrations/1.postgres.sql"), "BYTEA", "JSONB", ""),
        false => (include_str!("../../src/store/sql/migrations/1.sqlite.sql"), "BLOB", "TEXT", " WITHOUT ROWID"),
    };
    let scripts = [
        include_str!("../../src/store/sql/migrations/1.sql"),
        own,
        "CREATE TABLE {p}migrations (version BIGINT NOT NULL PRIMARY KEY, applied_ms BIGINT NOT NULL);",
        "INSERT INTO {p}migrations VALUES (1, 0);",
    ];
    let placeholders = [("{p}", "tollgate_"), ("{bytes}", bytes), ("{json}", json), ("{keyed}", keyed)];
    placeholders.into_iter().fold(scripts.join("\n"), |text, (name, value)| text.replace(name, value))
}

#[tokio::test]
async fn tables_of_version_1_are_upgraded_with_their_rows() {
    let test = "tables_of_version_1_are_upgraded_with_their_rows";
    for home in [Home::sqlite()].into_iter().chain(Home::postgres(test).await) {
        drop(home.database().await);
        execute(&home, version_1(home.is_postgres())).await;
        let digest = TokenDigest::of("a-token").to_hex();
        let bytes = if home.is_postgres() { format!("'\\x{digest}'") } else { format!("X'{digest}'") };
        execute(
            &home,
            format!(
                "INSERT INTO tollgate_grants (id, subject, label, scopes, created_ms, revoked_ms, token_prefix) \
                 VALUES ('one', 'alice', 'bot', 'trade', 5, NULL, 'acme'), ('two', 'bob', '', '', 6, 7, NULL); \
                 INSERT INTO tollgate_tokens (digest, grant_id, created_ms) VALUES ({bytes}, 'one', 5)"
            ),
        )
        .await;
        let database = home.database().await;
        assert!(matches!(database.check_tables().await, Err(SqlError::Older { found: 1, expected: 2 })));
        let migrated = database.migrate().await.unwrap();
        assert_eq!((migrated.from, migrated.to), (Some(1), 2));
        database.check_tables().await.unwrap();

        let [one, two] = &database.list(None).await.unwrap()[..] else { panic!("two grants") };
        assert_eq!((one.id.as_str(), one.subject.as_str(), one.label.as_str()), ("one", "alice", "bot"));
        assert_eq!((one.scopes.to_string(), one.token_prefix.as_deref()), ("trade".to_owned(), Some("acme")));
        assert_eq!((one.suspended_at, two.suspended_at), (None, None));
        assert_eq!(two.revoked_at, Some(UNIX_EPOCH + Duration::from_millis(7)));
        assert!(knows(&database, "a-token").await);
        assert!(database.suspend(&one.id).await.unwrap() && !knows(&database, "a-token").await);
        assert!(database.resume(&one.id).await.unwrap() && knows(&database, "a-token").await);
    }
}

/// While an upgrade waits for a lock on a table, lookups wait behind it.
#[tokio::test]
async fn an_upgrade_does_not_wait_long_for_transactions() {
    let test = "an_upgrade_does_not_wait_long_for_transactions";
    let Some(home) = Home::postgres(test).await else { return };
    execute(&home, version_1(true)).await;
    let mut reader = PgConnection::connect(home.url()).await.unwrap();
    reader.execute("BEGIN; SELECT * FROM tollgate_grants").await.unwrap();
    // The default timeout of administration would allow 30 seconds.
    let migrated = tokio::time::timeout(Duration::from_secs(15), home.database().await.migrate()).await.unwrap();
    assert!(matches!(migrated, Err(SqlError::Locked)), "{migrated:?}");
    reader.execute("COMMIT").await.unwrap();
    home.database().await.migrate().await.unwrap();
}

#[tokio::test]
async fn a_change_replaces_the_given_fields_only() {
    on_each_database("a_change_replaces_the_given_fields_only", |home| async move {
        type User = BTreeMap<String, u64>;
        let database = home.database().await;
        let quota = Quota::per_minute(600).with_burst(50);
        let end = UNIX_EPOCH + Duration::from_secs(4_000_000_000);
        let new = NewGrant::new("alice").with_label("old").with_scopes(["read"]).unwrap().with_sender_constraint();
        let issued = database.issue(&format(), &new).await.unwrap();
        let (id, token) = (&issued.grant.id, issued.secret.expose());
        let change = GrantChange::new()
            .with_label("new")
            .with_scopes(["trade"])
            .unwrap()
            .with_quota(quota)
            .with_expiry(end + Duration::from_nanos(1))
            .with_principal(&User::from([("plan".to_owned(), 7)]))
            .unwrap();
        let changed = database.change(id, &change).await.unwrap();
        assert_eq!(database.describe(id).await.unwrap(), Some(changed.clone()));
        assert_eq!((changed.label.as_str(), changed.scopes.to_string()), ("new", "trade".to_owned()));
        assert_eq!((changed.quota, changed.expires_at), (Some(quota), Some(end)));
        assert_eq!((changed.created_at, changed.sender_constrained), (issued.grant.created_at, true));
        let grant = find(&database.store::<User>(), token).await.unwrap();
        assert_eq!((grant.principal()["plan"], grant.expires_at(), grant.quota()), (7, Some(end), Some(quota)));

        let label = database.change(id, &GrantChange::new().with_label("")).await.unwrap();
        assert_eq!(
            (label.quota, label.expires_at, label.principal),
            (changed.quota, changed.expires_at, changed.principal)
        );
        assert_eq!(database.change(id, &GrantChange::new()).await.unwrap().label, "");
        database.set_expiry(id, None).await.unwrap();
        database.set_principal(id, &User::from([("plan".to_owned(), 8)])).await.unwrap();
        let grant = find(&database.store::<User>(), token).await.unwrap();
        assert_eq!((grant.principal()["plan"], grant.expires_at()), (8, None));
        database.remove_principal(id).await.unwrap();
        assert!(find(&database.store::<Option<User>>(), token).await.unwrap().principal().is_none());

        // The whole change is rejected.
        let invalid = GrantChange::new().with_quota(None).with_label("x".repeat(256));
        assert!(matches!(database.change(id, &invalid).await, Err(SqlError::Name)));
        assert_eq!(database.describe(id).await.unwrap().unwrap().quota, Some(quota));
        let unknown = "unknown".into();
        assert!(matches!(database.set_expiry(&unknown, None).await, Err(SqlError::NotFound)));
        assert!(matches!(database.set_principal(&unknown, &7).await, Err(SqlError::NotFound)));
        assert!(matches!(database.remove_principal(&unknown).await, Err(SqlError::NotFound)));
    })
    .await;
}

#[tokio::test]
async fn a_rotated_token_never_outlives_a_shortened_grant() {
    on_each_database("a_rotated_token_never_outlives_a_shortened_grant", |home| async move {
        let clock = Clock::new();
        let database = clock.install(home.database().await);
        let first = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let second = database.rotate(&first.grant.id, &format(), 10 * HOUR).await.unwrap();
        let end = clock.now() + HOUR;
        database.set_expiry(&first.grant.id, Some(end)).await.unwrap();
        for secret in [first.secret, second.secret] {
            assert_eq!(find(&database.store::<()>(), secret.expose()).await.unwrap().expires_at(), Some(end));
        }
    })
    .await;
}

#[tokio::test]
async fn a_change_of_a_subject_excludes_ended_grants() {
    on_each_database("a_change_of_a_subject_excludes_ended_grants", |home| async move {
        let clock = Clock::new();
        let database = clock.install(home.database().await);
        let import = async |id: &'static str, grant: NewGrant| {
            database.import(TokenDigest::of(id), &grant.with_id(id)).await.unwrap().id
        };
        let [valid, suspended, revoked, expired, other] = [
            import("valid", NewGrant::new("alice")).await,
            import("suspended", NewGrant::new("alice")).await,
            import("revoked", NewGrant::new("alice")).await,
            import("expired", NewGrant::new("alice").with_expiry(clock.now())).await,
            import("other", NewGrant::new("bob")).await,
        ];
        database.suspend(&suspended).await.unwrap();
        database.revoke(&revoked).await.unwrap();
        let quota = Some(Quota::per_second(20));
        assert_eq!(database.set_subject_quota(&"alice".into(), quota).await.unwrap(), 2);
        let end = clock.now() + HOUR;
        let changed = database.change_subject(&"alice".into(), &GrantChange::new().with_expiry(end)).await.unwrap();
        assert_eq!(changed.iter().map(|grant| grant.id.as_str()).collect::<Vec<_>>(), ["suspended", "valid"]);
        for (id, is_changed) in [(valid, true), (suspended, true), (revoked, false), (expired, false), (other, false)] {
            let grant = database.describe(&id).await.unwrap().unwrap();
            assert_eq!((grant.quota == quota, grant.expires_at == Some(end)), (is_changed, is_changed), "{id}");
        }
        assert_eq!(database.set_subject_quota(&"unknown".into(), quota).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_changes_of_a_subject_are_atomic() {
    on_each_database("concurrent_changes_of_a_subject_are_atomic", |home| async move {
        let database = home.database().await;
        for _ in 0..10 {
            database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        }
        let changes: Vec<_> = (1..=8)
            .map(|number| {
                let database: Database = database.clone();
                tokio::spawn(async move {
                    let change =
                        GrantChange::new().with_label(number.to_string()).with_quota(Quota::per_second(number));
                    database.change_subject(&"alice".into(), &change).await
                })
            })
            .collect();
        for change in changes {
            assert_eq!(change.await.unwrap().unwrap().len(), 10);
        }
        let grants = database.list(None).await.unwrap();
        let quota = grants[0].quota.unwrap();
        assert!(grants.iter().all(|grant| grant.quota == Some(quota) && grant.label == quota.burst().to_string()));
    })
    .await;
}
