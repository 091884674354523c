//! The audit trail in SQLite and PostgreSQL.

use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tollgate::store::sql::{AuditEntry, AuditQuery, Cursor, Database, GrantChange, NewGrant, SqlError};
use tollgate::{Quota, TokenDigest};

use crate::servers::{Home, Role, on_each_database};
use crate::sql::{Clock, execute, format};

const HOUR: Duration = Duration::from_secs(3_600);

/// Returns all entries, oldest first.
async fn trail(database: &Database, query: AuditQuery) -> Vec<AuditEntry> {
    let mut page = database.audit(&query.with_limit(NonZeroU32::new(1_000).unwrap())).await.unwrap();
    assert!(page.next.is_none());
    page.entries.reverse();
    page.entries
}

fn changes(entry: &AuditEntry) -> Value {
    entry.changes.as_deref().map_or(Value::Null, |changes| changes.parse().unwrap())
}

#[tokio::test]
async fn each_change_is_in_the_trail() {
    on_each_database("each_change_is_in_the_trail", |home| async move {
        let clock = Clock::new();
        let system = clock.install(home.database().await);
        let maria = system.acting_as("support:maria").unwrap();
        let end = clock.now() + 10 * HOUR;
        let end_ms = end.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
        let new = NewGrant::new("alice")
            .with_id("one")
            .with_label("bot")
            .with_scopes(["trade", "read"])
            .unwrap()
            .with_quota("180/min burst 20".parse::<Quota>().unwrap())
            .with_expiry(end)
            .with_principal(&json!({ "plan": "pro" }))
            .unwrap();
        let (one, two) = ("one".into(), "two".into());
        system.issue(&format(), &new).await.unwrap();
        maria.import(TokenDigest::of("a-token"), &NewGrant::new("alice").with_id("two")).await.unwrap();
        maria.rotate(&one, &format(), HOUR).await.unwrap();
        maria.rotate(&two, &format(), Duration::ZERO).await.unwrap();
        clock.advance(HOUR);
        let change = GrantChange::new().with_label("").with_quota(None).with_principal(&7).unwrap();
        maria.change(&one, &change).await.unwrap();
        // The first grant has this label already.
        maria
            .change_subject(&"alice".into(), &GrantChange::new().with_scopes(["trade", "read"]).unwrap())
            .await
            .unwrap();
        maria.change(&one, &GrantChange::new().with_principal(&7).unwrap()).await.unwrap();
        maria.set_expiry(&two, Some(end)).await.unwrap();
        maria.suspend(&one).await.unwrap();
        system.resume(&one).await.unwrap();
        maria.revoke_subject(&"alice".into()).await.unwrap();
        clock.advance(HOUR);
        maria.purge(clock.now()).await.unwrap();
        assert!(system.list(None).await.unwrap().is_empty());

        let entries = trail(&system, AuditQuery::new()).await;
        let from_to = |from: Value, to: Value| json!({ "from": from, "to": to });
        let null = || Value::Null;
        let issued = json!({
            "label": from_to(null(), json!("bot")),
            "scopes": from_to(null(), json!("trade read")),
            "quota": from_to(null(), json!("3/s burst 20")),
            "expires_ms": from_to(null(), json!(end_ms)),
            "principal": from_to(null(), json!({ "plan": "pro" })),
            "token_prefix": from_to(null(), json!("acme")),
        });
        let changed = json!({
            "label": from_to(json!("bot"), null()),
            "quota": from_to(json!("3/s burst 20"), null()),
            "principal": from_to(json!({ "plan": "pro" }), json!(7)),
        });
        let grace = json!({ "grace_ends_ms": from_to(null(), json!(end_ms - 9 * 3_600_000)) });
        // Without a grace period, the old token ends at the rotation.
        let prefix = json!({
            "grace_ends_ms": from_to(null(), json!(end_ms - 10 * 3_600_000)),
            "token_prefix": from_to(null(), json!("acme")),
        });
        let scopes = json!({ "scopes": from_to(null(), json!("trade read")) });
        let extended = json!({ "expires_ms": from_to(null(), json!(end_ms)) });
        let expected = [
            ("issue", "one", issued),
            ("import", "two", json!({})),
            ("rotate", "one", grace),
            ("rotate", "two", prefix),
            ("change", "one", changed),
            ("change", "two", scopes),
            ("change", "two", extended),
            ("suspend", "one", null()),
            ("resume", "one", null()),
            ("revoke", "one", null()),
            ("revoke", "two", null()),
            ("purge", "one", null()),
            ("purge", "two", null()),
        ];
        // One statement writes the entries of several grants. Their order is not defined.
        let sorted = |mut entries: Vec<(String, String, Value)>| {
            entries[9..].sort_by(|a, b| (b.0.as_str(), &a.1).cmp(&(a.0.as_str(), &b.1)));
            entries
        };
        let found = entries.iter().map(|entry| (entry.action.clone(), entry.grant.to_string(), changes(entry)));
        let expected = expected.map(|(action, grant, changes)| (action.to_owned(), grant.to_owned(), changes));
        assert_eq!(sorted(found.collect()), sorted(expected.into()));
        for entry in &entries {
            let by_system = entry.action == "issue" || entry.action == "resume";
            assert_eq!(entry.actor.as_deref(), if by_system { None } else { Some("support:maria") }, "{entry:?}");
            assert_eq!(entry.subject.as_str(), "alice");
        }
        assert_eq!((entries[0].at, entries[12].at), (clock.now() - 2 * HOUR, clock.now()));
        for name in ["", "a\nb", &"x".repeat(256)] {
            assert!(matches!(system.acting_as(name), Err(SqlError::Name)));
        }
    })
    .await;
}

#[tokio::test]
async fn changes_that_fail_or_change_nothing_leave_no_entry() {
    on_each_database("changes_that_fail_or_change_nothing_leave_no_entry", |home| async move {
        let database = home.database().await;
        let one = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap().id;
        database.revoke(&one).await.unwrap();
        let unknown = "unknown".into();
        assert!(database.import(TokenDigest::of("a-token"), &NewGrant::new("bob")).await.is_err());
        assert!(database.issue(&format(), &NewGrant::new("bob").with_max_active(0)).await.is_err());
        assert!(database.rotate(&one, &format(), HOUR).await.is_err());
        assert!(database.relabel(&unknown, "bot").await.is_err());
        database.relabel(&one, "").await.unwrap();
        for id in [&one, &unknown] {
            assert!(!database.suspend(id).await.unwrap() && !database.resume(id).await.unwrap());
            assert!(!database.revoke(id).await.unwrap());
        }
        database.revoke_subject(&"bob".into()).await.unwrap();
        database.purge(std::time::UNIX_EPOCH).await.unwrap();
        let actions: Vec<_> = trail(&database, AuditQuery::new()).await.into_iter().map(|entry| entry.action).collect();
        assert_eq!(actions, ["import", "revoke"]);
    })
    .await;
}

#[tokio::test]
async fn no_change_is_made_without_its_entry() {
    on_each_database("no_change_is_made_without_its_entry", |home| async move {
        let database = home.database().await;
        let grant = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
        execute(&home, "ALTER TABLE tollgate_audit RENAME TO hidden".to_owned()).await;
        assert!(database.issue(&format(), &NewGrant::new("bob")).await.is_err());
        assert!(database.rotate(&grant.id, &format(), HOUR).await.is_err());
        assert!(database.relabel(&grant.id, "bot").await.is_err());
        assert!(database.suspend(&grant.id).await.is_err());
        assert!(database.revoke(&grant.id).await.is_err());
        assert_eq!(database.list(None).await.unwrap(), std::slice::from_ref(&grant));
        execute(&home, "ALTER TABLE hidden RENAME TO tollgate_audit".to_owned()).await;
        database.revoke(&grant.id).await.unwrap();
        execute(&home, "ALTER TABLE tollgate_audit RENAME TO hidden".to_owned()).await;
        assert!(database.purge(std::time::SystemTime::now() + HOUR).await.is_err());
        assert_eq!(database.list(None).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn the_trail_contains_no_token_and_no_digest() {
    on_each_database("the_trail_contains_no_token_and_no_digest", |home| async move {
        let database = home.database().await;
        let first = database.issue(&format(), &NewGrant::new("alice").with_label("bot")).await.unwrap();
        let second = database.rotate(&first.grant.id, &format(), HOUR).await.unwrap();
        let digest = TokenDigest::of("an-imported-token");
        database.import(digest, &NewGrant::new("alice")).await.unwrap();
        database.revoke_subject(&"alice".into()).await.unwrap();
        let shown = format!("{:?}", trail(&database, AuditQuery::new()).await);
        for secret in [first.secret, second.secret] {
            // The random part alone, in case it is stored without the prefix.
            assert!(!shown.contains(&secret.expose()[5..40]) && !shown.contains(&secret.digest().to_hex()));
        }
        assert!(!shown.contains(&digest.to_hex()) && !shown.contains("an-imported-token"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_revocations_leave_one_entry() {
    on_each_database("concurrent_revocations_leave_one_entry", |home| async move {
        let database = home.database().await;
        let grant = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
        let revocations: Vec<_> = (0..8)
            .map(|_| {
                let (database, id) = (database.clone(), grant.id.clone());
                tokio::spawn(async move { database.revoke(&id).await.unwrap() })
            })
            .collect();
        let mut revoked = 0;
        for revocation in revocations {
            revoked += usize::from(revocation.await.unwrap());
        }
        let entries = trail(&database, AuditQuery::new()).await;
        assert_eq!((revoked, entries.iter().filter(|entry| entry.action == "revoke").count()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn the_trail_is_read_in_pages_and_purged_by_age() {
    on_each_database("the_trail_is_read_in_pages_and_purged_by_age", |home| async move {
        let clock = Clock::new();
        let database = clock.install(home.database().await);
        let issue = async |id: String, subject: &str| {
            let digest = TokenDigest::of(id.as_str());
            database.import(digest, &NewGrant::new(subject).with_id(id)).await.unwrap();
        };
        for number in 0..25 {
            issue(format!("old-{number}"), if number % 2 == 0 { "alice" } else { "bob" }).await;
        }
        let (mut query, mut found, mut pages) =
            (AuditQuery::new().with_limit(NonZeroU32::new(4).unwrap()), Vec::new(), 0);
        loop {
            let page = database.audit(&query).await.unwrap();
            found.extend(page.entries.into_iter().map(|entry| entry.grant.to_string()));
            pages += 1;
            let Some(next) = page.next else { break };
            issue(format!("new-{pages}"), "alice").await;
            query = query.after(next.to_string().parse().unwrap());
        }
        let newest_first: Vec<_> = (0..25).rev().map(|number| format!("old-{number}")).collect();
        assert_eq!((found, pages), (newest_first, 7));

        let query = AuditQuery::new;
        assert_eq!(trail(&database, query().with_subject("bob")).await.len(), 12);
        assert_eq!(trail(&database, query().with_grant("old-7")).await.len(), 1);
        assert_eq!(trail(&database, query().with_grant("old-7").with_subject("alice")).await.len(), 0);
        let foreign: Cursor = "MTpvbmU".parse().unwrap();
        assert!(matches!(database.audit(&query().after(foreign)).await, Err(SqlError::Cursor)));

        clock.advance(HOUR);
        database.revoke(&"old-7".into()).await.unwrap();
        assert_eq!(database.purge_audit(clock.now()).await.unwrap(), 31);
        let left = trail(&database, query()).await;
        assert_eq!((left.len(), left[0].action.as_str(), left[0].grant.as_str()), (1, "revoke", "old-7"));
    })
    .await;
}

/// With the rights that the guide names, a role changes grants and appends to the trail.
#[tokio::test]
async fn a_role_that_may_only_insert_cannot_change_the_trail() {
    let test = "a_role_that_may_only_insert_cannot_change_the_trail";
    let Some(home) = Home::postgres(test).await else { return };
    home.database().await.migrate().await.unwrap();
    let rights = "GRANT SELECT ON tollgate_migrations TO {role}; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON tollgate_grants, tollgate_tokens TO {role}; \
         GRANT SELECT, INSERT ON tollgate_audit TO {role}";
    let role = Role::create(&home, rights).await;

    let work = async {
        let service = Database::connect(role.url()).await?;
        service.check_tables().await?;
        service.migrate().await?;
        let issued = service.issue(&format(), &NewGrant::new("alice").with_max_active(1)).await?;
        service.rotate(&issued.grant.id, &format(), HOUR).await?;
        service.relabel(&issued.grant.id, "bot").await?;
        service.suspend(&issued.grant.id).await?;
        service.resume(&issued.grant.id).await?;
        service.revoke(&issued.grant.id).await?;
        service.purge(std::time::SystemTime::now() + HOUR).await?;
        let entries = service.audit(&AuditQuery::new()).await?.entries.len();
        let purged = service.purge_audit(std::time::SystemTime::now() + HOUR).await;
        Ok::<_, SqlError>((entries, purged))
    };
    let worked = work.await;
    let mut raw = PgConnection::connect(role.url()).await.unwrap();
    let mut rejected = 0;
    let statements = [
        "UPDATE tollgate_audit SET actor = 'mallory'",
        "DELETE FROM tollgate_audit",
        "TRUNCATE tollgate_audit",
        "ALTER TABLE tollgate_audit DISABLE TRIGGER ALL",
        "DROP TABLE tollgate_audit",
    ];
    for statement in statements {
        let code =
            raw.execute(statement).await.err().and_then(|error| Some(error.as_database_error()?.code()?.into_owned()));
        rejected += usize::from(code.as_deref() == Some("42501"));
    }
    drop(raw);
    let left = trail(&home.database().await, AuditQuery::new()).await.len();
    role.remove().await;
    let (entries, purged) = worked.unwrap();
    assert!(matches!(purged, Err(SqlError::Database(_))), "{purged:?}");
    assert_eq!((entries, left, rejected), (7, 7, statements.len()));
}
