//! Changes of grants in SQLite and PostgreSQL: fields, suspension, and the upgrade of the tables.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::{Connection as _, Executor as _, PgConnection};
use tollgate::store::CachedStore;
use tollgate::store::sql::{
    AuditQuery, Database, GrantChange, GrantQuery, GrantRecord, GrantState, NewGrant, SqlError,
};
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

/// The statements that this version of the tables was created with.
pub fn tables_of(version: usize, is_postgres: bool) -> String {
    let (own, second, third) = match is_postgres {
        true => (
            include_str!("../../src/store/sql/migrations/1.postgres.sql"),
            include_str!("../../src/store/sql/migrations/2.postgres.sql"),
            include_str!("../../src/store/sql/migrations/3.postgres.sql"),
        ),
        false => (
            include_str!("../../src/store/sql/migrations/1.sqlite.sql"),
            include_str!("../../src/store/sql/migrations/2.sqlite.sql"),
            include_str!("../../src/store/sql/migrations/3.sqlite.sql"),
        ),
    };
    let (bytes, json, keyed, serial) = match is_postgres {
        true => ("BYTEA", "JSONB", "", "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"),
        false => ("BLOB", "TEXT", " WITHOUT ROWID", "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT"),
    };
    let first = [
        "CREATE TABLE {p}migrations (version BIGINT NOT NULL PRIMARY KEY, applied_ms BIGINT NOT NULL);",
        include_str!("../../src/store/sql/migrations/1.sql"),
        own,
        "INSERT INTO {p}migrations VALUES (1, 0);",
    ];
    let second =
        [include_str!("../../src/store/sql/migrations/2.sql"), second, "INSERT INTO {p}migrations VALUES (2, 0);"];
    let third = [third, "INSERT INTO {p}migrations VALUES (3, 0);"];
    let scripts: Vec<&str> = [&first[..], &second, &third].into_iter().take(version).flatten().copied().collect();
    let placeholders =
        [("{p}", "tollgate_"), ("{bytes}", bytes), ("{json}", json), ("{keyed}", keyed), ("{serial}", serial)];
    placeholders.into_iter().fold(scripts.join("\n"), |text, (name, value)| text.replace(name, value))
}

#[tokio::test]
async fn tables_of_older_versions_are_upgraded_with_their_rows() {
    let test = "tables_of_older_versions_are_upgraded_with_their_rows";
    let mut homes = Vec::new();
    for version in 1..=3 {
        homes.push((Home::sqlite(), version));
        homes.extend(Home::postgres(test).await.map(|home| (home, version)));
    }
    for (home, version) in homes {
        drop(home.database().await);
        execute(&home, tables_of(version, home.is_postgres())).await;
        let digest = TokenDigest::of("a-token").to_hex();
        let bytes = if home.is_postgres() { format!("'\\x{digest}'") } else { format!("X'{digest}'") };
        execute(
            &home,
            format!(
                "INSERT INTO tollgate_grants (id, subject, label, scopes, created_ms, revoked_ms, last_used_ms, token_prefix) \
                 VALUES ('one', 'alice', 'bot', 'trade', 5, NULL, 9, 'acme'), ('two', 'bob', '', '', 6, 7, NULL, NULL); \
                 INSERT INTO tollgate_tokens (digest, grant_id, created_ms) VALUES ({bytes}, 'one', 5)"
            ),
        )
        .await;
        let database = home.database().await;
        let older = database.check_tables().await;
        assert!(matches!(older, Err(SqlError::Older { found, expected: 4 }) if found == version as i64), "{older:?}");
        let migrated = database.migrate().await.unwrap();
        assert_eq!((migrated.from, migrated.to), (Some(version as i64), 4));
        database.check_tables().await.unwrap();

        let [one, two] = &database.list(None).await.unwrap()[..] else { panic!("two grants") };
        assert_eq!((one.id.as_str(), one.subject.as_str(), one.label.as_str()), ("one", "alice", "bot"));
        assert_eq!((one.scopes.to_string(), one.token_prefix.as_deref()), ("trade".to_owned(), Some("acme")));
        assert_eq!((one.suspended_at, two.suspended_at), (None, None));
        assert_eq!((one.last_used, one.last_used_location), (Some(UNIX_EPOCH + Duration::from_millis(9)), None));
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
    for version in 1..=3 {
        let Some(home) = Home::postgres(test).await else { return };
        execute(&home, tables_of(version, true)).await;
        let mut reader = PgConnection::connect(home.url()).await.unwrap();
        reader.execute("BEGIN; SELECT * FROM tollgate_grants, tollgate_tokens").await.unwrap();
        // The default timeout of administration would allow 30 seconds.
        let migrated = tokio::time::timeout(Duration::from_secs(15), home.database().await.migrate()).await.unwrap();
        assert!(matches!(migrated, Err(SqlError::Locked)), "{migrated:?}");
        reader.execute("COMMIT").await.unwrap();
        home.database().await.migrate().await.unwrap();
    }
}

/// A lookup of an older process locks the tokens, then the grants. An upgrade by several versions must not hold the grants
/// while it waits for the tokens.
#[tokio::test]
async fn an_upgrade_ends_in_no_deadlock_with_lookups() {
    let test = "an_upgrade_ends_in_no_deadlock_with_lookups";
    for version in 1..=3 {
        let Some(home) = Home::postgres(test).await else { return };
        execute(&home, tables_of(version, true)).await;
        let mut lookup = PgConnection::connect(home.url()).await.unwrap();
        lookup.execute("BEGIN; SELECT * FROM tollgate_tokens").await.unwrap();
        let database = home.database().await;
        let migrated = tokio::spawn(async move { database.migrate().await });
        let waits =
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'tollgate_tokens'::regclass)";
        while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut lookup).await.unwrap() {
            assert!(!migrated.is_finished(), "the upgrade waits for the lookup");
        }
        lookup.execute("SELECT * FROM tollgate_grants; COMMIT").await.unwrap();
        assert_eq!(migrated.await.unwrap().unwrap().to, 4);
    }
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
async fn an_equal_quota_with_another_text_is_no_change() {
    on_each_database("an_equal_quota_with_another_text_is_no_change", |home| async move {
        let database = home.database().await;
        let quota = |text: &str| GrantChange::new().with_quota(text.parse::<Quota>().unwrap());
        let new = NewGrant::new("alice").with_quota("20/s burst 100".parse::<Quota>().unwrap());
        let id = database.issue(&format(), &new).await.unwrap().grant.id;
        for change in [quota("1200/min burst 100"), quota("1200/min burst 100").with_label("")] {
            let grant = database.change(&id, &change).await.unwrap();
            assert_eq!(grant.quota.unwrap().to_string(), "20/s burst 100");
        }
        assert_eq!(database.audit(&AuditQuery::new()).await.unwrap().entries.len(), 1, "the issue");
    })
    .await;
}

#[tokio::test]
async fn scopes_are_added_and_removed() {
    on_each_database("scopes_are_added_and_removed", |home| async move {
        let database = home.database().await;
        for scopes in [&["trade", "read"][..], &["read"], &[]] {
            database.issue(&format(), &NewGrant::new("alice").with_scopes(scopes).unwrap()).await.unwrap();
        }
        let change = GrantChange::new().with_added_scopes(["stream", "read"]).unwrap();
        let change = change.with_removed_scopes(["trade", "none"]).unwrap();
        let changed = database.change_subject(&"alice".into(), &change).await.unwrap();
        let mut scopes: Vec<String> = changed.iter().map(|grant| grant.scopes.to_string()).collect();
        scopes.sort_unstable();
        assert_eq!(scopes, ["read stream", "read stream", "stream read"]);
        assert!(GrantChange::new().with_added_scopes(["open sesame"]).is_err());
        assert!(GrantChange::new().with_removed_scopes([""]).is_err());
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

#[tokio::test]
async fn all_grants_of_a_subject_are_suspended_and_resumed() {
    on_each_database("all_grants_of_a_subject_are_suspended_and_resumed", |home| async move {
        let clock = Clock::new();
        let database = clock.install(home.database().await);
        for (id, grant) in [
            ("valid", NewGrant::new("alice")),
            ("suspended", NewGrant::new("alice")),
            ("revoked", NewGrant::new("alice")),
            ("expired", NewGrant::new("alice").with_expiry(clock.now())),
            ("other", NewGrant::new("bob")),
        ] {
            database.import(TokenDigest::of(id), &grant.with_id(id)).await.unwrap();
        }
        database.suspend(&"suspended".into()).await.unwrap();
        database.revoke(&"revoked".into()).await.unwrap();
        clock.advance(HOUR);
        let ids = |grants: &[GrantRecord]| grants.iter().map(|grant| grant.id.to_string()).collect::<Vec<_>>();
        let suspended = database.suspend_subject(&"alice".into()).await.unwrap();
        assert_eq!(ids(&suspended), ["expired", "valid"]);
        assert!(suspended.iter().all(|grant| grant.suspended_at == Some(clock.now())));
        assert!(database.suspend_subject(&"alice".into()).await.unwrap().is_empty());
        let before = clock.now() - HOUR;
        assert_eq!(database.describe(&"suspended".into()).await.unwrap().unwrap().suspended_at, Some(before));
        for (token, is_known) in [("valid", false), ("suspended", false), ("revoked", false), ("other", true)] {
            assert_eq!(find(&database.store::<()>(), token).await.is_some(), is_known, "{token}");
        }
        let resumed = database.resume_subject(&"alice".into()).await.unwrap();
        assert_eq!(ids(&resumed), ["expired", "suspended", "valid"]);
        assert!(resumed.iter().all(|grant| grant.suspended_at.is_none()));
        assert!(database.resume_subject(&"alice".into()).await.unwrap().is_empty());
        for (token, is_known) in [("valid", true), ("suspended", true), ("revoked", false)] {
            assert_eq!(find(&database.store::<()>(), token).await.is_some(), is_known, "{token}");
        }
        let trail = database.audit(&AuditQuery::new().with_subject("alice")).await.unwrap().entries;
        let count = |action: &str| trail.iter().filter(|entry| entry.action == action).count();
        assert_eq!((count("suspend"), count("resume")), (3, 3));
    })
    .await;
}

/// Each of these operations locks all grants of the subject. With different orders, PostgreSQL would report deadlocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_operations_on_a_subject_do_not_wait_for_each_other_forever() {
    on_each_database("concurrent_operations_on_a_subject_do_not_wait_for_each_other_forever", |home| async move {
        let database = home.database().await;
        for _ in 0..50 {
            database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        }
        // Rows in another physical order than their ids.
        execute(&home, "UPDATE tollgate_grants SET label = 'moved' WHERE id > '8'".to_owned()).await;
        let operations: Vec<_> = (0..24)
            .map(|number| {
                let (database, alice) = (database.clone(), "alice".into());
                tokio::spawn(async move {
                    match number % 3 {
                        0 => database.suspend_subject(&alice).await.map(drop),
                        1 => database.resume_subject(&alice).await.map(drop),
                        _ => {
                            let change = GrantChange::new().with_label(number.to_string());
                            database.change_subject(&alice, &change).await.map(drop)
                        }
                    }
                })
            })
            .collect();
        for operation in operations {
            operation.await.unwrap().unwrap();
        }
        assert_eq!(database.revoke_subject(&"alice".into()).await.unwrap().len(), 50);
    })
    .await;
}

#[tokio::test]
async fn a_later_expiry_of_an_expired_grant_does_not_exceed_the_maximum() {
    on_each_database("a_later_expiry_of_an_expired_grant_does_not_exceed_the_maximum", |home| async move {
        let clock = Clock::new();
        let database = clock.install(home.database().await);
        let new = NewGrant::new("alice").with_max_active(2);
        let first = database.issue(&format(), &new.clone().with_expiry(clock.now() + HOUR)).await.unwrap().grant.id;
        let second =
            database.issue(&format(), &new.clone().with_expiry(clock.now() + 5 * HOUR)).await.unwrap().grant.id;
        let later = |clock: &Clock| GrantChange::new().with_expiry(clock.now() + 9 * HOUR).with_max_active(2);
        // The number of active grants stays the same.
        database.change(&second, &later(&clock)).await.unwrap();
        clock.advance(HOUR);
        let third = database.issue(&format(), &new).await.unwrap().grant.id;
        let full = database.change(&first, &later(&clock)).await;
        assert!(matches!(full, Err(SqlError::TooManyGrants { max: 2 })), "{full:?}");
        assert_eq!(database.describe(&first).await.unwrap().unwrap().expires_at, Some(clock.now()));
        // A suspended grant counts, so resuming it does not exceed the maximum.
        database.suspend(&third).await.unwrap();
        assert!(database.change(&first, &later(&clock)).await.is_err());
        database.resume(&third).await.unwrap();
        // Changes that do not make the grant active.
        database.change(&first, &GrantChange::new().with_label("old").with_max_active(0)).await.unwrap();
        database.change(&second, &later(&clock)).await.unwrap();
        database.revoke(&third).await.unwrap();
        database.change(&third, &later(&clock)).await.unwrap();
        database.change(&first, &later(&clock)).await.unwrap();
        assert!(matches!(database.issue(&format(), &new).await, Err(SqlError::TooManyGrants { max: 2 })));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_changes_and_issues_do_not_exceed_the_maximum() {
    on_each_database("concurrent_changes_and_issues_do_not_exceed_the_maximum", |home| async move {
        let clock = Clock::new();
        let databases = [clock.install(home.database().await), clock.install(home.database().await)];
        let mut expired = Vec::new();
        for _ in 0..10 {
            let grant = NewGrant::new("alice").with_expiry(clock.now());
            expired.push(databases[0].issue(&format(), &grant).await.unwrap().grant.id);
        }
        let operations: Vec<_> = (0..20)
            .map(|number: usize| {
                let (database, id, end) =
                    (databases[number % 2].clone(), expired[number / 2].clone(), clock.now() + HOUR);
                tokio::spawn(async move {
                    match number % 4 {
                        0 => database.issue(&format(), &NewGrant::new("alice").with_max_active(3)).await.map(drop),
                        _ => {
                            let later = GrantChange::new().with_expiry(end).with_max_active(3);
                            database.change(&id, &later).await.map(drop)
                        }
                    }
                })
            })
            .collect();
        for operation in operations {
            let outcome = operation.await.unwrap();
            assert!(matches!(outcome, Ok(()) | Err(SqlError::TooManyGrants { max: 3 })), "{outcome:?}");
        }
        let active = databases[0].count(&GrantQuery::new().with_subject("alice")).await.unwrap().valid;
        assert_eq!(active, 3);
    })
    .await;
}
