//! Import and export of grants in SQLite and PostgreSQL.

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tollgate::store::sql::{
    AuditQuery, Database, GrantImport, GrantQuery, GrantState, ImportCounts, ImportOptions, LastUsed, NewGrant,
    SqlError, StoredToken,
};
use tollgate::{BearerToken, Quota, TokenDigest, TokenLocation, TokenStore};

use crate::servers::{Home, on_each_database};
use crate::sql::{Clock, find, format, knows};

const HOUR: Duration = Duration::from_secs(3_600);

fn import(token: &str, grant: NewGrant) -> Result<GrantImport, SqlError> {
    Ok(GrantImport::new(grant).with_token(TokenDigest::of(token)))
}

fn with_id(id: &str) -> Result<GrantImport, SqlError> {
    import(id, NewGrant::new("alice").with_id(id))
}

/// Returns the position of the record and its error.
fn record(result: Result<ImportCounts, SqlError>) -> (u64, SqlError) {
    match result {
        Err(SqlError::Import { record, source }) => (record, *source),
        other => panic!("{other:?}"),
    }
}

async fn counts(result: Result<ImportCounts, SqlError>) -> (u64, u64) {
    let counts = result.unwrap();
    (counts.imported, counts.skipped)
}

#[tokio::test]
async fn imported_grants_have_all_fields_and_entries() {
    on_each_database("imported_grants_have_all_fields_and_entries", |home| async move {
        let clock = Clock::new();
        let database = clock.install(home.database().await).acting_as("migration").unwrap();
        let (before, end) = (clock.now() - HOUR, clock.now() + HOUR);
        let grant = NewGrant::new("alice ü '\"")
            .with_id("key-17")
            .with_label("bot; DROP TABLE tollgate_grants --")
            .with_scopes(["trade", "read:all"])
            .unwrap()
            .with_quota("180/min burst 20".parse::<Quota>().unwrap())
            .with_not_before(before + Duration::from_nanos(1))
            .with_expiry(end + Duration::from_nanos(1))
            .with_sender_constraint()
            .with_principal(&json!({ "plan": "pro", "text": "'\"\\" }))
            .unwrap();
        let first = GrantImport::new(grant)
            .with_token(TokenDigest::of("new-token"))
            .with_token(StoredToken::new(TokenDigest::of("old-token")).with_rotation(clock.now() + HOUR / 2))
            .with_created_at(before)
            .with_last_used(before, Some(TokenLocation::Query))
            .with_token_prefix("acme");
        let ended = NewGrant::new("bob").with_id("ended");
        let ended = GrantImport::new(ended).with_suspended_at(before).with_revoked_at(clock.now());
        let bare = import("bare-token", NewGrant::new("bob"));
        let done = database.import_all([Ok(first), Ok(ended), bare], ImportOptions::new()).await;
        assert_eq!(counts(done).await, (3, 0));

        let record = database.describe(&"key-17".into()).await.unwrap().unwrap();
        assert_eq!(
            (record.subject.as_str(), record.label.as_str()),
            ("alice ü '\"", "bot; DROP TABLE tollgate_grants --")
        );
        assert_eq!((record.scopes.to_string(), record.sender_constrained), ("trade read:all".to_owned(), true));
        assert_eq!(record.quota, Some("180/min burst 20".parse().unwrap()));
        assert_eq!((record.not_before, record.expires_at), (Some(before + Duration::from_millis(1)), Some(end)));
        assert_eq!((record.created_at, record.last_used), (before, Some(before)));
        assert_eq!(record.last_used_location, Some(TokenLocation::Query));
        assert_eq!(record.token_prefix.as_deref(), Some("acme"));
        let principal = find(&database.store::<Value>(), "new-token").await.unwrap().principal().clone();
        assert_eq!(principal, json!({ "plan": "pro", "text": "'\"\\" }));
        let old = find(&database.store::<Value>(), "old-token").await.unwrap();
        assert!(old.is_rotated() && old.expires_at() == Some(clock.now() + HOUR / 2));
        let ended = database.describe(&"ended".into()).await.unwrap().unwrap();
        assert_eq!((ended.revoked_at, ended.suspended_at), (Some(clock.now()), Some(before)));
        let bare = find(&database.store::<()>(), "bare-token").await.unwrap();
        let bare = database.describe(bare.id()).await.unwrap().unwrap();
        assert_eq!((bare.created_at, bare.quota, bare.token_prefix), (clock.now(), None, None));

        let entries = database.audit(&AuditQuery::new()).await.unwrap().entries;
        assert_eq!(entries.len(), 3);
        assert!(entries.iter().all(|entry| entry.action == "import" && entry.actor.as_deref() == Some("migration")));
        let entry = entries.iter().find(|entry| entry.grant.as_str() == "ended").unwrap();
        let changes: Value = entry.changes.as_deref().unwrap().parse().unwrap();
        let ms = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let expected = json!({
            "suspended_ms": { "from": null, "to": ms(before) },
            "revoked_ms": { "from": null, "to": ms(clock.now()) },
        });
        assert_eq!(changes, expected);
    })
    .await;
}

#[tokio::test]
async fn an_import_with_an_error_imports_nothing_and_names_the_record() {
    on_each_database("an_import_with_an_error_imports_nothing_and_names_the_record", |home| async move {
        let database = home.database().await;
        database.import(TokenDigest::of("known"), &NewGrant::new("alice").with_id("known")).await.unwrap();
        // Conflicts in the first statement and in a later one.
        for before in [0, 2, 5_100] {
            let good = || (0..before).map(|number| with_id(&format!("new-{number}"))).collect::<Vec<_>>();
            let last = before + 1;
            let number_of_cases = if before > 2 { 2 } else { usize::MAX };
            let cases = [
                import("other", NewGrant::new("alice").with_id("known")),
                import("known", NewGrant::new("alice").with_id("other")),
                import("known", NewGrant::new("alice")),
                import("new-token", NewGrant::new("")),
                import("new-token", NewGrant::new("alice").with_label("a\nb")),
                import("new-token", NewGrant::new("alice")).map(|grant| grant.with_token(TokenDigest::of("another"))),
                import("new-token", NewGrant::new("alice")).map(|grant| grant.with_token_prefix("a-b")),
                import("new-token", NewGrant::new("alice").with_max_active(1)),
                Err(SqlError::Input("a disk error".into())),
            ];
            for bad in cases.into_iter().take(number_of_cases) {
                let result = database.import_all(good().into_iter().chain([bad]), ImportOptions::new()).await;
                let text = format!("{result:?}");
                assert!(!text.contains(&TokenDigest::of("known").to_hex()), "{text}");
                assert_eq!(record(result).0, last, "{text}");
            }
            // The same id and the same token twice.
            if before > 0 {
                for bad in [
                    import("other", NewGrant::new("alice").with_id("new-0")),
                    import("new-0", NewGrant::new("alice").with_id("other")),
                ] {
                    let (number, error) =
                        record(database.import_all(good().into_iter().chain([bad]), ImportOptions::new()).await);
                    assert!(matches!(error, SqlError::AlreadyExists), "{error:?}");
                    assert_eq!(number, last);
                }
            }
        }
        assert_eq!(database.list(None).await.unwrap().len(), 1);
        assert_eq!(database.audit(&AuditQuery::new()).await.unwrap().entries.len(), 1);
    })
    .await;
}

/// PostgreSQL stores no null character and no huge number in JSON.
#[tokio::test]
async fn a_principal_that_the_database_cannot_store_names_the_record() {
    on_each_database("a_principal_that_the_database_cannot_store_names_the_record", |home| async move {
        let database = home.database().await;
        let huge: Box<serde_json::value::RawValue> = serde_json::from_str("1e999999").unwrap();
        for bad in [
            NewGrant::new("alice").with_principal("a null character: \0").unwrap(),
            NewGrant::new("alice").with_principal(&huge).unwrap(),
        ] {
            let good = NewGrant::new("alice").with_principal("text").unwrap();
            let grants = [import("one", good.clone()), import("two", bad), import("three", good)];
            let imported = database.import_all(grants, ImportOptions::new().with_dry_run()).await;
            match home.is_postgres() {
                true => {
                    let (number, error) = record(imported);
                    assert!(number == 2 && matches!(error, SqlError::Principal(_)), "{number} {error:?}");
                }
                false => assert_eq!(counts(imported).await, (3, 0)),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_repeated_import_skips_existing_grants() {
    on_each_database("a_repeated_import_skips_existing_grants", |home| async move {
        let database = home.database().await;
        let all = || {
            let without_id = (0..600).map(|number| import(&format!("token-{number}"), NewGrant::new("bob")));
            (0..600).map(|number| with_id(&format!("id-{number}"))).chain(without_id)
        };
        let skip = ImportOptions::new().with_skip_existing();
        assert_eq!(counts(database.import_all(all().take(650), skip).await).await, (650, 0));
        assert_eq!(counts(database.import_all(all(), skip.with_dry_run()).await).await, (550, 650));
        assert_eq!(counts(database.import_all(all(), skip).await).await, (550, 650));
        assert_eq!(counts(database.import_all(all(), skip).await).await, (0, 1_200));
        assert_eq!(database.list(None).await.unwrap().len(), 1_200);

        // An existing grant is not changed, and its old token stays invalid.
        let id = "id-0".into();
        let next = database.rotate(&id, &format(), Duration::ZERO).await.unwrap();
        database.relabel(&id, "changed").await.unwrap();
        assert_eq!(counts(database.import_all(all(), skip).await).await, (0, 1_200));
        assert!(!knows(&database, "id-0").await && knows(&database, next.secret.expose()).await);
        assert_eq!(database.describe(&id).await.unwrap().unwrap().label, "changed");

        // The token of another grant is a conflict.
        let other = import("token-5", NewGrant::new("alice").with_id("other"));
        let (number, error) = record(database.import_all([with_id("id-1"), other], skip).await);
        assert!(number == 2 && matches!(error, SqlError::AlreadyExists), "{error:?}");
        // The same token twice in one import.
        let twice = [import("twice", NewGrant::new("alice")), import("twice", NewGrant::new("alice"))];
        assert_eq!(counts(database.import_all(twice, skip).await).await, (1, 1));
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_reports_conflicts_and_imports_nothing() {
    on_each_database("a_dry_run_reports_conflicts_and_imports_nothing", |home| async move {
        let database = home.database().await;
        let dry_run = ImportOptions::new().with_dry_run();
        assert_eq!(counts(database.import_all([with_id("one"), with_id("two")], dry_run).await).await, (2, 0));
        assert!(database.list(None).await.unwrap().is_empty());
        assert!(database.audit(&AuditQuery::new()).await.unwrap().entries.is_empty());
        database.import_all([with_id("two")], ImportOptions::new()).await.unwrap();
        assert_eq!(record(database.import_all([with_id("one"), with_id("two")], dry_run).await).0, 2);
        assert_eq!(database.list(None).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_import_does_not_exceed_the_maximum_of_active_grants() {
    on_each_database("an_import_does_not_exceed_the_maximum_of_active_grants", |home| async move {
        let database = home.database().await;
        let grants = |number: u32| {
            (0..number).map(|number| import(&format!("token-{number}"), NewGrant::new("alice").with_max_active(3)))
        };
        let (_, error) = record(database.import_all(grants(4), ImportOptions::new()).await);
        assert!(matches!(error, SqlError::TooManyGrants { max: 3 }), "{error:?}");
        assert_eq!(counts(database.import_all(grants(3), ImportOptions::new()).await).await, (3, 0));
    })
    .await;
}

/// A lock for each subject would exhaust the memory of a PostgreSQL server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_with_maximums_locks_out_other_counts_with_one_lock() {
    let Some(home) = Home::postgres("an_import_with_maximums_locks_out_other_counts_with_one_lock").await else {
        return;
    };
    let database = home.database().await;
    database.migrate().await.unwrap();
    let issue = database.clone().with_admin_timeout(Duration::from_millis(400));
    let mut admin = PgConnection::connect(home.url()).await.unwrap();
    let one = |number| NewGrant::new(format!("subject-{number}")).with_max_active(1);
    let mut number = 0;
    let grants = std::iter::from_fn(move || {
        number += 1;
        if number == 5_001 {
            // The first statements have been sent.
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = (SELECT pid FROM pg_locks \
                         WHERE locktype = 'advisory' AND objid = 'tollgate_grants'::regclass)";
                    let locks: i64 = sqlx::query_scalar(locks).fetch_one(&mut admin).await.unwrap();
                    assert_eq!(locks, 1);
                    for subject in [7, 5_001] {
                        let issued = issue.issue(&format(), &one(subject)).await;
                        assert!(matches!(issued, Err(SqlError::Locked)), "{issued:?}");
                    }
                    issue.issue(&format(), &NewGrant::new("without-maximum")).await.unwrap();
                });
            });
        }
        (number <= 5_001).then(|| import(&format!("token-{number}"), one(number)))
    });
    assert_eq!(counts(database.import_all(grants, ImportOptions::new()).await).await, (5_001, 0));
    for subject in [7, 5_001] {
        let issued = database.issue(&format(), &one(subject)).await;
        assert!(matches!(issued, Err(SqlError::TooManyGrants { max: 1 })), "{issued:?}");
    }
}

/// Imports and issues that lock the same subjects in different orders do not end in a deadlock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_imports_with_maximums_do_not_deadlock() {
    on_each_database("concurrent_imports_with_maximums_do_not_deadlock", |home| async move {
        const SUBJECTS: usize = 300;
        let mut imports = Vec::new();
        for process in 0..4 {
            let database = home.database().await;
            imports.push(tokio::spawn(async move {
                let grants = (0..SUBJECTS).map(|number| {
                    let number = if process % 2 == 0 { number } else { SUBJECTS - 1 - number };
                    let grant = NewGrant::new(format!("subject-{number}")).with_max_active(2);
                    import(&format!("token-{process}-{number}"), grant)
                });
                database.import_all(grants, ImportOptions::new()).await
            }));
        }
        let database = home.database().await;
        let issues = tokio::spawn(async move {
            for number in 0..SUBJECTS {
                let grant = NewGrant::new(format!("subject-{number}")).with_max_active(3);
                match database.issue(&format(), &grant).await {
                    Ok(_) | Err(SqlError::TooManyGrants { max: 3 }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        });
        for import in imports {
            // At most two imports succeed.
            match import.await.unwrap() {
                Ok(_) => {}
                Err(SqlError::Import { source, .. }) if matches!(*source, SqlError::TooManyGrants { max: 2 }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        issues.await.unwrap();
        let database = home.database().await;
        for number in 0..SUBJECTS {
            assert!(database.list(Some(&format!("subject-{number}").into())).await.unwrap().len() <= 3);
        }
    })
    .await;
}

/// Processes that import the same grants at the same time import each of them once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_imports_import_each_grant_once() {
    on_each_database("concurrent_imports_import_each_grant_once", |home| async move {
        let mut imports = Vec::new();
        for _ in 0..4 {
            let database = home.database().await;
            imports.push(tokio::spawn(async move {
                let grants = (0..800).map(|number| with_id(&format!("id-{number}")));
                database.import_all(grants, ImportOptions::new().with_skip_existing()).await
            }));
        }
        let mut imported = 0;
        for import in imports {
            // On PostgreSQL, an import can find a token that another one has inserted after its check.
            match import.await.unwrap() {
                Ok(counts) => imported += counts.imported,
                Err(SqlError::Import { source, .. }) if matches!(*source, SqlError::AlreadyExists) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        assert_eq!(imported, 800);
        assert_eq!(home.database().await.audit(&AuditQuery::new().with_grant("id-7")).await.unwrap().entries.len(), 1);
    })
    .await;
}

/// Writes grants in all states, with rotated tokens. Returns the tokens.
async fn fill(clock: &Clock, database: &Database) -> Vec<String> {
    let mut tokens = Vec::new();
    for (number, subject) in (0..12).map(|number| (number, format!("user-{}", number % 5))) {
        let mut grant =
            NewGrant::new(subject).with_label("ü, \"x\"\ny".replace('\n', " ")).with_scopes(["a", "b"]).unwrap();
        if number % 2 == 0 {
            grant = grant.with_quota(format!("{}/7s burst 3", number + 1).parse().unwrap());
        }
        if number % 3 == 0 {
            grant = grant.with_principal(&json!({ "number": number, "list": [1, "x"] })).unwrap();
        }
        if number % 4 == 1 {
            grant = grant.with_expiry(clock.now() + HOUR * number).with_sender_constraint();
        }
        if number == 5 {
            grant = grant.with_not_before(clock.now() + HOUR);
        }
        let issued = database.issue(&format(), &grant).await.unwrap();
        let id = issued.grant.id;
        tokens.push(issued.secret.expose().to_owned());
        for grace in [0, 1, 2].into_iter().take(number as usize % 4) {
            let next = database.rotate(&id, &format(), HOUR * grace).await.unwrap();
            tokens.push(next.secret.expose().to_owned());
        }
        if number == 2 || number == 6 {
            database.suspend(&id).await.unwrap();
        }
        if number == 7 {
            database.revoke(&id).await.unwrap();
        }
        clock.advance(Duration::from_millis(1));
    }
    let last_used = LastUsed::new(database);
    let store = last_used.wrap(database.store::<Option<Value>>());
    for token in &tokens {
        _ = store.lookup(&BearerToken::new(token)).await.unwrap();
    }
    last_used.flush().await.unwrap();
    tokens
}

async fn copy(from: &Database, to: &Database) {
    let mut query = GrantQuery::new().with_limit(NonZeroU32::new(5).unwrap());
    loop {
        let page = from.export(&query).await.unwrap();
        let grants = page.grants.into_iter().map(|grant| Ok(grant.into()));
        to.import_all(grants, ImportOptions::new()).await.unwrap();
        let Some(next) = page.next else { break };
        query = query.after(next);
    }
}

#[tokio::test]
async fn an_export_imports_into_another_database_with_equal_behavior() {
    let test = "an_export_imports_into_another_database_with_equal_behavior";
    let Some(postgres) = Home::postgres(test).await else { return };
    for (from, to) in [(Home::sqlite(), postgres.clone()), (postgres, Home::sqlite())] {
        let clock = Clock::new();
        let (source, target) = (clock.install(from.database().await), clock.install(to.database().await));
        for database in [&source, &target] {
            database.migrate().await.unwrap();
            database.revoke_subject(&"user-0".into()).await.unwrap();
            for number in 0..5 {
                database.revoke_subject(&format!("user-{number}").as_str().into()).await.unwrap();
            }
            database.purge(clock.now() + HOUR * 1_000_000).await.unwrap();
        }
        let tokens = fill(&clock, &source).await;
        copy(&source, &target).await;
        let (before, after) = (source.list(None).await.unwrap(), target.list(None).await.unwrap());
        assert_eq!((before.len(), after.len()), (12, 12));
        for (before, mut after) in before.into_iter().zip(after) {
            // JSON may be written differently.
            let json = |text: &Option<String>| text.as_deref().map(|text| text.parse::<Value>().unwrap());
            assert_eq!(json(&before.principal), json(&after.principal));
            after.principal.clone_from(&before.principal);
            assert_eq!(before, after);
        }
        let states: Vec<_> = target.list(None).await.unwrap().iter().map(|grant| grant.state(clock.now())).collect();
        for state in [GrantState::Valid, GrantState::NotYetValid, GrantState::Suspended, GrantState::Revoked] {
            assert!(states.contains(&state), "{state}");
        }
        // The tokens, at several times. Some are in their grace period.
        let mut rotated = 0;
        for _ in 0..4 {
            for token in &tokens {
                let [a, b] = [&source, &target].map(|database| database.store::<Option<Value>>());
                let (a, b) = (find(&a, token).await, find(&b, token).await);
                let behavior = |grant: &tollgate::Grant<Option<Value>>| {
                    let grant = (
                        grant.id().clone(),
                        grant.is_rotated(),
                        grant.expires_at(),
                        grant.quota(),
                        grant.principal().clone(),
                        grant.is_valid_at(clock.now()),
                    );
                    format!("{grant:?}")
                };
                rotated += usize::from(b.as_ref().is_some_and(|grant| grant.is_rotated()));
                assert_eq!(a.as_deref().map(behavior), b.as_deref().map(behavior));
            }
            clock.advance(HOUR);
        }
        assert!(rotated > 0);
        // A rotation and a purge treat the imported tokens as before.
        for database in [&source, &target] {
            database.purge(clock.now()).await.unwrap();
        }
        let remaining = async |database: &Database| {
            let page = database.export(&GrantQuery::new()).await.unwrap();
            page.grants.into_iter().map(|stored| (stored.grant.id, stored.tokens)).collect::<Vec<_>>()
        };
        assert_eq!(remaining(&source).await, remaining(&target).await);
    }
}

/// Several statements. Prints the time, which is not checked.
#[tokio::test]
async fn large_imports_are_possible() {
    const ROWS: u64 = 20_000;
    on_each_database("large_imports_are_possible", |home| async move {
        let database = home.database().await.with_admin_timeout(HOUR);
        let grants =
            (0..ROWS).map(|number| import(&format!("token-{number}"), NewGrant::new(format!("user-{}", number / 3))));
        let began = std::time::Instant::now();
        assert_eq!(counts(database.import_all(grants, ImportOptions::new()).await).await, (ROWS, 0));
        let database_name = if home.is_postgres() { "PostgreSQL" } else { "SQLite" };
        crate::machine::say(format_args!("{ROWS} grants imported into {database_name} in {:?}", began.elapsed()));
        assert!(knows(&database, "token-19999").await);
    })
    .await;
}
