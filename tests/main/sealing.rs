//! Tokens that are sealed in the database, and revealed again.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use sqlx::{Connection as _, Executor as _};
use tollgate::store::Invalidation;
use tollgate::store::sql::{
    AuditQuery, Database, GrantImport, GrantQuery, ImportOptions, NewGrant, Sealer, SealingKey, SqlError,
};
use tollgate::{GrantId, TokenDigest};

use crate::servers::{Home, on_each_database};
use crate::sql::{Clock, execute, format, knows};
use crate::sql_changes::tables_of;

const HOUR: Duration = Duration::from_secs(3_600);

/// Returns a key whose bytes depend on its id only.
fn key(id: &str) -> SealingKey {
    SealingKey::new(id, TokenDigest::of(id).to_bytes()).unwrap()
}

/// Returns a sealer whose keys have these ids. The first one seals.
pub fn sealer(ids: &[&str]) -> Sealer {
    ids[1..].iter().fold(Sealer::new(key(ids[0])), |sealer, id| sealer.with_previous_key(key(id)).unwrap())
}

/// Connects like another process, with these keys.
async fn sealing(home: &Home, ids: &[&str]) -> Database {
    home.database().await.with_sealer(sealer(ids))
}

async fn reveal(database: &Database, id: &GrantId) -> String {
    database.reveal(id).await.unwrap().expose().to_owned()
}

/// Returns the sealed texts of a grant's tokens, in the order of their issue.
async fn sealed(home: &Home, id: &GrantId) -> Vec<Option<String>> {
    let query = "SELECT sealed FROM tollgate_tokens WHERE grant_id = $1 ORDER BY created_ms, rotated_until_ms IS NULL";
    match home.is_postgres() {
        true => {
            let mut connection = sqlx::PgConnection::connect(home.url()).await.unwrap();
            sqlx::query_scalar(query).bind(id.as_str()).fetch_all(&mut connection).await.unwrap()
        }
        false => {
            let mut connection = sqlx::SqliteConnection::connect(home.url()).await.unwrap();
            sqlx::query_scalar(query).bind(id.as_str()).fetch_all(&mut connection).await.unwrap()
        }
    }
}

#[tokio::test]
async fn only_the_current_token_is_sealed_and_revealed() {
    on_each_database("only_the_current_token_is_sealed_and_revealed", |home| async move {
        let clock = Clock::new();
        let database = clock.install(sealing(&home, &["a"]).await);
        let issued = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let id = &issued.grant.id;
        assert_eq!(reveal(&database, id).await, issued.secret.expose());
        assert_eq!(reveal(&database, id).await, issued.secret.expose(), "as often as it is asked for");
        clock.advance(HOUR);
        let rotated = database.rotate(id, &format(), HOUR).await.unwrap();
        assert_eq!(reveal(&database, id).await, rotated.secret.expose());
        assert!(matches!(&sealed(&home, id).await[..], [None, Some(_)]));
        // A handle without keys rotates. The old token is erased, and the new one is not sealed.
        clock.advance(HOUR);
        home.database().await.rotate(id, &format(), HOUR).await.unwrap();
        assert_eq!(sealed(&home, id).await, [None, None, None]);
        assert!(matches!(database.reveal(id).await, Err(SqlError::NotSealed)));
        assert!(matches!(home.database().await.reveal(id).await, Err(SqlError::NoSealer)));
        assert!(matches!(home.database().await.reseal().await, Err(SqlError::NoSealer)));
        assert!(matches!(database.reveal(&"unknown".into()).await, Err(SqlError::NotFound)));
        let without_token = GrantImport::new(NewGrant::new("bob").with_id("none"));
        database.import_all([Ok(without_token)], ImportOptions::new()).await.unwrap();
        assert!(matches!(database.reveal(&"none".into()).await, Err(SqlError::NotSealed)));
    })
    .await;
}

#[tokio::test]
async fn tokens_of_ended_grants_are_not_revealed_and_revocations_erase_them() {
    on_each_database("tokens_of_ended_grants_are_not_revealed_and_revocations_erase_them", |home| async move {
        let clock = Clock::new();
        let database = clock.install(sealing(&home, &["a"]).await);
        let mut ids = Vec::new();
        for (id, subject) in [("one", "alice"), ("two", "alice"), ("three", "alice"), ("other", "bob")] {
            let grant = NewGrant::new(subject).with_id(id).with_expiry(clock.now() + HOUR);
            ids.push(database.issue(&format(), &grant).await.unwrap().grant.id);
        }
        database.suspend(&ids[0]).await.unwrap();
        assert!(database.reveal(&ids[0]).await.is_ok(), "a suspended grant can be resumed");
        // Handles without keys revoke too.
        assert!(home.database().await.revoke(&ids[0]).await.unwrap());
        assert_eq!(sealed(&home, &ids[0]).await, [None]);
        assert!(sealed(&home, &ids[1]).await[0].is_some());
        assert_eq!(home.database().await.revoke_subject(&"alice".into()).await.unwrap().len(), 2);
        for id in &ids[..3] {
            assert_eq!(sealed(&home, id).await, [None]);
            assert!(matches!(database.reveal(id).await, Err(SqlError::Revoked)));
            assert!(matches!(database.seal(id, "a-token").await, Err(SqlError::Revoked)));
        }
        // An expired grant can be extended, so its token stays sealed.
        clock.advance(HOUR);
        assert!(matches!(database.reveal(&ids[3]).await, Err(SqlError::Expired)));
        database.set_expiry(&ids[3], None).await.unwrap();
        assert!(database.reveal(&ids[3]).await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn each_reveal_is_in_the_audit_trail() {
    on_each_database("each_reveal_is_in_the_audit_trail", |home| async move {
        let database = sealing(&home, &["a"]).await;
        let alice = database.acting_as("customer:alice").unwrap();
        let id = database.issue(&format(), &NewGrant::new("alice")).await.unwrap().grant.id;
        reveal(&alice, &id).await;
        reveal(&database, &id).await;
        assert!(sealing(&home, &["b"]).await.reveal(&id).await.is_err());
        let entries = database.audit(&AuditQuery::new().with_action("reveal")).await.unwrap().entries;
        let actors: Vec<_> = entries.iter().map(|entry| entry.actor.as_deref()).collect();
        assert_eq!(actors, [None, Some("customer:alice")], "newest first, and none for the reveal that failed");
        assert!(entries.iter().all(|entry| entry.grant == id && entry.subject.as_str() == "alice"));
        assert!(entries.iter().all(|entry| entry.changes.is_none()));
        execute(&home, "DROP TABLE tollgate_audit".to_owned()).await;
        let unaudited = database.reveal(&id).await;
        assert!(matches!(unaudited, Err(SqlError::Database(_))), "{unaudited:?}");
    })
    .await;
}

#[tokio::test]
async fn a_token_that_cannot_be_opened_is_an_error() {
    on_each_database("a_token_that_cannot_be_opened_is_an_error", |home| async move {
        let database = sealing(&home, &["a"]).await;
        let [one, two] = ["one", "two"].map(|id| NewGrant::new("alice").with_id(id));
        let (one, two) =
            (database.issue(&format(), &one).await.unwrap(), database.issue(&format(), &two).await.unwrap());
        let id = &one.grant.id;
        let unknown = sealing(&home, &["b"]).await.reveal(id).await;
        assert!(matches!(&unknown, Err(SqlError::UnknownSealingKey { id }) if id == "a"), "{unknown:?}");
        let wrong = Sealer::new(SealingKey::new("a", [9; 32]).unwrap());
        let wrong = home.database().await.with_sealer(wrong).reveal(id).await;
        assert!(matches!(wrong, Err(SqlError::NotOpened)), "{wrong:?}");

        let by_digest = "UPDATE tollgate_tokens SET grant_id = CASE grant_id WHEN 'one' THEN 'two' ELSE 'one' END";
        let text = async |id: &GrantId| sealed(&home, id).await.remove(0).unwrap();
        let (first, second) = (text(id).await, text(&two.grant.id).await);
        let write = async |one: &str, two: &str| {
            let update = "UPDATE tollgate_tokens SET sealed";
            execute(&home, format!("{update} = '{one}'; {update} = '{two}' WHERE grant_id = 'two'")).await;
        };
        write(&second, &first).await;
        for id in [id, &two.grant.id] {
            assert!(matches!(database.reveal(id).await, Err(SqlError::NotOpened)));
        }
        write(&first, &second).await;
        assert_eq!(reveal(&database, id).await, one.secret.expose());
        // The tokens are moved to other grants. For the unique index, they are rotated meanwhile.
        let parts = [
            "UPDATE tollgate_tokens SET rotated_until_ms = 5",
            by_digest,
            "UPDATE tollgate_tokens SET rotated_until_ms = NULL",
        ];
        execute(&home, parts.join("; ")).await;
        // Each token still has its own sealed text.
        write(&second, &first).await;
        assert!(knows(&database, one.secret.expose()).await);
        for id in [id, &two.grant.id] {
            assert!(matches!(database.reveal(id).await, Err(SqlError::NotOpened)));
        }
        for text in ["", "v1", "v1.a.", "v2.a.AAAA", "v1.A.AAAA", "v1.a.\u{e9}", "acme_token"] {
            write(text, "").await;
            let error = database.reveal(id).await.unwrap_err();
            assert!(matches!(error, SqlError::NotOpened), "{text}: {error:?}");
        }
    })
    .await;
}

/// A service that stored tokens itself imports their digests and seals the tokens.
#[tokio::test]
async fn imported_tokens_are_sealed_on_request() {
    on_each_database("imported_tokens_are_sealed_on_request", |home| async move {
        let database = sealing(&home, &["a"]).await;
        let id = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap().id;
        assert!(matches!(database.reveal(&id).await, Err(SqlError::NotSealed)));
        assert!(matches!(database.seal(&id, "another-token").await, Err(SqlError::NotFound)));
        assert!(matches!(database.seal(&"unknown".into(), "a-token").await, Err(SqlError::NotFound)));
        assert!(matches!(home.database().await.seal(&id, "a-token").await, Err(SqlError::NoSealer)));
        database.seal(&id, "a-token").await.unwrap();
        assert_eq!(reveal(&database, &id).await, "a-token");
        sealing(&home, &["b"]).await.seal(&id, "a-token").await.unwrap();
        assert_eq!(reveal(&sealing(&home, &["b"]).await, &id).await, "a-token");
        database.rotate(&id, &format(), HOUR).await.unwrap();
        assert!(matches!(database.seal(&id, "a-token").await, Err(SqlError::NotFound)), "it is not the current token");
    })
    .await;
}

#[tokio::test]
async fn resealed_tokens_need_the_new_key_only() {
    on_each_database("resealed_tokens_need_the_new_key_only", |home| async move {
        let old = sealing(&home, &["old"]).await;
        let mut tokens = Vec::new();
        // More than two transactions of a thousand.
        let grants = (0..2_345).map(|number| {
            let id = format!("key-{number}");
            Ok(GrantImport::new(NewGrant::new("alice").with_id(id)).with_token(TokenDigest::of(number.to_string())))
        });
        old.import_all(grants, ImportOptions::new()).await.unwrap();
        for number in (0..2_345).step_by(2) {
            let id = GrantId::from(format!("key-{number}"));
            old.seal(&id, &number.to_string()).await.unwrap();
            tokens.push((id, number.to_string()));
        }
        let both = sealing(&home, &["new", "old"]).await;
        let already = both.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let unchanged = sealed(&home, &already.grant.id).await;
        assert_eq!(both.reseal().await.unwrap(), 1_173);
        assert_eq!(both.reseal().await.unwrap(), 0);
        assert_eq!(sealed(&home, &already.grant.id).await, unchanged);
        let new = sealing(&home, &["new"]).await;
        for (id, token) in &tokens {
            assert_eq!(reveal(&new, id).await, *token);
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_that_cannot_be_resealed_stops_no_other() {
    on_each_database("a_token_that_cannot_be_resealed_stops_no_other", |home| async move {
        let mut tokens = Vec::new();
        for (id, key) in [("1", "old"), ("2", "older"), ("3", "old"), ("4", "old"), ("5", "new")] {
            let database = sealing(&home, &[key]).await;
            tokens.push(database.issue(&format(), &NewGrant::new("alice").with_id(id)).await.unwrap());
        }
        execute(&home, "UPDATE tollgate_tokens SET sealed = 'v1.old.AAAA' WHERE grant_id = '3'".to_owned()).await;
        let error = sealing(&home, &["new", "old"]).await.reseal().await.unwrap_err();
        let SqlError::InvalidRow { id, source, .. } = &error else { panic!("{error:?}") };
        assert!(id.as_str() == "2" && matches!(&**source, SqlError::UnknownSealingKey { id } if id == "older"));
        let new = sealing(&home, &["new"]).await;
        for at in [0, 3, 4] {
            assert_eq!(reveal(&new, &tokens[at].grant.id).await, tokens[at].secret.expose());
        }
    })
    .await;
}

/// Resealing never brings an erased token back, never replaces a newer token, and ends in no deadlock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reseals_rotations_and_revocations_run_at_the_same_time() {
    on_each_database("reseals_rotations_and_revocations_run_at_the_same_time", |home| async move {
        const EACH: usize = 20;
        let old = sealing(&home, &["old", "new"]).await;
        for round in 0..4 {
            let mut ids = Vec::new();
            for number in 0..3 * EACH {
                // Every third grant is revoked by its subject.
                let subject = ["alice", "bob", "carol"][number % 3].to_owned() + &round.to_string();
                ids.push(old.issue(&format(), &NewGrant::new(subject)).await.unwrap().grant.id);
            }
            // Rows in another physical order than their ids.
            execute(&home, "UPDATE tollgate_grants SET label = 'moved' WHERE id > '8'".to_owned()).await;
            let mut tasks = Vec::new();
            for _ in 0..2 {
                let database = sealing(&home, &["new", "old"]).await;
                tasks.push(tokio::spawn(async move { database.reseal().await.map(drop) }));
            }
            let rotated = Arc::new(Mutex::new(Vec::new()));
            for id in ids.iter().skip(1).step_by(3).cloned() {
                let (database, rotated) = (old.clone(), rotated.clone());
                tasks.push(tokio::spawn(async move {
                    let secret = database.rotate(&id, &format(), HOUR).await?.secret;
                    rotated.lock().unwrap().push((id, secret.expose().to_owned()));
                    Ok(())
                }));
            }
            let database = old.clone();
            let subject = format!("alice{round}").into();
            tasks.push(tokio::spawn(async move { database.revoke_subject(&subject).await.map(drop) }));
            for task in tasks {
                task.await.unwrap().unwrap();
            }
            sealing(&home, &["new", "old"]).await.reseal().await.unwrap();
            let new = sealing(&home, &["new"]).await;
            let rotated = std::mem::take(&mut *rotated.lock().unwrap());
            assert_eq!(rotated.len(), EACH);
            for (id, token) in rotated {
                assert_eq!(reveal(&new, &id).await, token);
                assert_eq!(sealed(&home, &id).await.iter().filter(|sealed| sealed.is_some()).count(), 1);
            }
            for (number, id) in ids.iter().enumerate() {
                match number % 3 {
                    0 => assert_eq!(sealed(&home, id).await, [None], "a revoked token is erased"),
                    1 => {}
                    _ => assert!(knows(&new, &reveal(&new, id).await).await),
                }
            }
        }
    })
    .await;
}

/// Both lock the rows of expired grants, which stay sealed until they are purged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purges_and_reseals_of_the_same_grants_end_in_no_deadlock() {
    on_each_database("purges_and_reseals_of_the_same_grants_end_in_no_deadlock", |home| async move {
        let old = sealing(&home, &["old"]).await;
        for _ in 0..6 {
            for number in 0..300 {
                old.issue(&format(), &NewGrant::new(format!("user-{number}"))).await.unwrap();
            }
            // Rows in another physical order than their ids.
            for digit in ["7", "3", "b", "0"] {
                execute(&home, format!("UPDATE tollgate_grants SET expires_ms = 1 WHERE id LIKE '{digit}%'")).await;
            }
            execute(&home, "UPDATE tollgate_grants SET expires_ms = 1".to_owned()).await;
            let database = sealing(&home, &["new", "old"]).await;
            let tasks: Vec<_> = (0..4)
                .flat_map(|_| {
                    let (reseal, purge) = (database.clone(), database.clone());
                    [
                        tokio::spawn(async move { reseal.reseal().await.map(|_| 0) }),
                        tokio::spawn(async move { purge.purge(SystemTime::now()).await }),
                    ]
                })
                .collect();
            let mut purged = 0;
            for task in tasks {
                purged += task.await.unwrap().unwrap();
            }
            assert_eq!(purged, 300);
        }
    })
    .await;
}

/// An older version of this crate knows nothing of sealed tokens, and people change rows by hand.
#[tokio::test]
async fn other_programs_that_end_a_token_erase_its_sealed_text() {
    on_each_database("other_programs_that_end_a_token_erase_its_sealed_text", |home| async move {
        let database = sealing(&home, &["a"]).await;
        for (id, end) in [
            ("rotated", "UPDATE tollgate_tokens SET rotated_until_ms = 1 WHERE grant_id = 'rotated'"),
            ("revoked", "UPDATE tollgate_grants SET revoked_ms = 1 WHERE id = 'revoked'"),
        ] {
            for id in [id, "other"] {
                _ = database.issue(&format(), &NewGrant::new("alice").with_id(id)).await;
            }
            let id = GrantId::from(id);
            assert_eq!(sealed(&home, &id).await.iter().flatten().count(), 1);
            execute(&home, end.to_owned()).await;
            assert_eq!(sealed(&home, &id).await, [None], "{end}");
            assert_eq!(sealed(&home, &"other".into()).await.iter().flatten().count(), 1, "{end}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reveal_during_rotations_returns_a_token_that_was_current_meanwhile() {
    let test = "a_reveal_during_rotations_returns_a_token_that_was_current_meanwhile";
    on_each_database(test, |home| async move {
        let database = sealing(&home, &["a"]).await;
        let issued = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let tokens = Arc::new(Mutex::new(vec![issued.secret.expose().to_owned()]));
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (database, tokens, id) = (database.clone(), tokens.clone(), issued.grant.id.clone());
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    while tokens.lock().unwrap().len() < 40 {
                        let before = tokens.lock().unwrap().len();
                        let token = reveal(&database, &id).await;
                        // A rotation may be committed whose token is not in the list yet.
                        seen.push((before - 1, token, tokens.lock().unwrap().len()));
                    }
                    seen
                })
            })
            .collect();
        while tokens.lock().unwrap().len() < 40 {
            let rotated = database.rotate(&issued.grant.id, &format(), HOUR).await.unwrap();
            tokens.lock().unwrap().push(rotated.secret.expose().to_owned());
        }
        let mut count = 0;
        for reader in readers {
            for (oldest, token, newest) in reader.await.unwrap() {
                let tokens = tokens.lock().unwrap();
                let at = tokens.iter().position(|other| *other == token).expect("a token of this grant");
                assert!((oldest..=newest).contains(&at), "{oldest} <= {at} <= {newest}");
                count += 1;
            }
        }
        assert!(count >= 4);
    })
    .await;
}

#[tokio::test]
async fn sealing_invalidates_no_cache_entry() {
    on_each_database("sealing_invalidates_no_cache_entry", |home| async move {
        let old = sealing(&home, &["old"]).await;
        let id = old.issue(&format(), &NewGrant::new("alice").with_id("one")).await.unwrap().grant.id;
        let fence = old.issue(&format(), &NewGrant::new("alice").with_id("fence")).await.unwrap().grant.id;
        let (reported, changes) = (Arc::new(Mutex::new(Vec::new())), home.database().await);
        let push = {
            let reported = reported.clone();
            move |change| reported.lock().unwrap().push(change)
        };
        let watching = tokio::spawn(async move { changes.watch(Duration::from_millis(5), push).await });
        // The watch reports everything when it begins, and then each change in its order.
        let until = async |expected: Invalidation| {
            let wait = async {
                while !reported.lock().unwrap().contains(&expected) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the change is not reported");
        };
        until(Invalidation::Everything).await;
        let token = reveal(&old, &id).await;
        old.seal(&id, &token).await.unwrap();
        assert_eq!(sealing(&home, &["new", "old"]).await.reseal().await.unwrap(), 2);
        old.relabel(&fence, "a fence").await.unwrap();
        until(Invalidation::Grant("fence".into())).await;
        assert!(!reported.lock().unwrap().contains(&Invalidation::Grant("one".into())));
        // A revocation and a rotation are reported as before.
        old.rotate(&id, &format(), HOUR).await.unwrap();
        until(Invalidation::Grant("one".into())).await;
        reported.lock().unwrap().clear();
        old.revoke(&id).await.unwrap();
        until(Invalidation::Grant("one".into())).await;
        watching.abort();
    })
    .await;
}

#[tokio::test]
async fn exports_have_no_sealed_tokens() {
    on_each_database("exports_have_no_sealed_tokens", |home| async move {
        let database = sealing(&home, &["a"]).await;
        let issued = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let id = &issued.grant.id;
        let page = database.export(&GrantQuery::new()).await.unwrap();
        let text = sealed(&home, id).await.remove(0).unwrap();
        let printed = format!("{page:?} {database:?} {issued:?} {:?}", database.reveal(id).await);
        assert!(!printed.contains(&text[5..]) && !printed.contains(issued.secret.expose()), "{printed}");
        assert!(printed.contains("has_sealer: true"), "{printed}");
        assert!(format!("{:?}", home.database().await).contains("has_sealer: false"));
        let other_home = Home::sqlite();
        let other = sealing(&other_home, &["a"]).await;
        other.migrate().await.unwrap();
        other.import_all(page.grants.into_iter().map(|grant| Ok(grant.into())), ImportOptions::new()).await.unwrap();
        assert!(knows(&other, issued.secret.expose()).await);
        assert!(matches!(other.reveal(id).await, Err(SqlError::NotSealed)));
    })
    .await;
}

#[tokio::test]
async fn errors_contain_no_token_and_no_key() {
    on_each_database("errors_contain_no_token_and_no_key", |home| async move {
        let database = sealing(&home, &["a"]).await;
        let issued = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let id = &issued.grant.id;
        let text = sealed(&home, id).await.remove(0).unwrap();
        let mut printed = String::new();
        let wrong = Sealer::new(SealingKey::new("a", [9; 32]).unwrap());
        for database in [sealing(&home, &["b"]).await, home.database().await.with_sealer(wrong), home.database().await]
        {
            for error in [database.reveal(id).await.map(drop), database.seal(id, "another-token").await] {
                let error = error.unwrap_err();
                printed += &format!("{error} {error:?} {database:?}");
            }
        }
        let exposed = key("a").expose();
        for secret in [&text[5..], &issued.secret.expose()[5..], &exposed[2..], "another-token"] {
            assert!(!printed.contains(secret), "{printed}");
        }
        assert!(printed.contains("the token is sealed with the unknown key a"), "{printed}");
    })
    .await;
}

#[tokio::test]
async fn tokens_of_version_3_are_revealed_after_their_rotation() {
    let test = "tokens_of_version_3_are_revealed_after_their_rotation";
    for home in [Some(Home::sqlite()), Home::postgres(test).await].into_iter().flatten() {
        drop(home.database().await);
        execute(&home, tables_of(3, home.is_postgres())).await;
        let digest = TokenDigest::of("a-token").to_hex();
        let bytes = if home.is_postgres() { format!("'\\x{digest}'") } else { format!("X'{digest}'") };
        let rows = format!(
            "INSERT INTO tollgate_grants (id, subject, created_ms) VALUES ('one', 'alice', 5); \
             INSERT INTO tollgate_tokens (digest, grant_id, created_ms) VALUES ({bytes}, 'one', 5)"
        );
        execute(&home, rows).await;
        let database = sealing(&home, &["a"]).await;
        assert_eq!(database.migrate().await.unwrap().from, Some(3));
        assert!(knows(&database, "a-token").await);
        let id = GrantId::from("one");
        assert!(matches!(database.reveal(&id).await, Err(SqlError::NotSealed)));
        assert_eq!(database.reseal().await.unwrap(), 0);
        let rotated = database.rotate(&id, &format(), HOUR).await.unwrap();
        assert_eq!(reveal(&database, &id).await, rotated.secret.expose());
        database.purge(SystemTime::now() + 2 * HOUR).await.unwrap();
        assert_eq!(reveal(&database, &id).await, rotated.secret.expose());
    }
}

/// While another transaction holds the row of the grant, a reveal waits, and then fails without a token.
#[tokio::test]
async fn a_reveal_does_not_wait_long_for_a_lock() {
    on_each_database("a_reveal_does_not_wait_long_for_a_lock", |home| async move {
        let database = sealing(&home, &["a"]).await.with_admin_timeout(Duration::from_secs(2));
        let id = database.issue(&format(), &NewGrant::new("alice")).await.unwrap().grant.id;
        let revealed = if home.is_postgres() {
            let mut other = sqlx::PgConnection::connect(home.url()).await.unwrap();
            other.execute("BEGIN; SELECT * FROM tollgate_grants FOR UPDATE").await.unwrap();
            database.reveal(&id).await
        } else {
            let mut other = sqlx::SqliteConnection::connect(home.url()).await.unwrap();
            other.execute("BEGIN IMMEDIATE").await.unwrap();
            database.reveal(&id).await
        };
        assert!(matches!(revealed, Err(SqlError::Locked | SqlError::Timeout)), "{revealed:?}");
        assert!(database.audit(&AuditQuery::new().with_action("reveal")).await.unwrap().entries.is_empty());
    })
    .await;
}
