//! Pages and numbers of grants in SQLite and PostgreSQL.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::{Duration, UNIX_EPOCH};

use tollgate::TokenDigest;
use tollgate::store::sql::{Cursor, Database, GrantQuery, GrantState, NewGrant, SqlError};

use crate::servers::on_each_database;
use crate::sql::{Clock, execute, format};

const HOUR: Duration = Duration::from_secs(3_600);

/// Reads all pages. Calls `between` after each page. Returns the ids in order, and the number of pages.
async fn read_all(database: &Database, query: GrantQuery, mut between: impl AsyncFnMut(usize)) -> (Vec<String>, usize) {
    let (mut query, mut ids, mut pages) = (query, Vec::new(), 0);
    loop {
        let page = database.page(&query).await.unwrap();
        ids.extend(page.grants.iter().map(|grant| grant.id.to_string()));
        pages += 1;
        // The text of a cursor is what an application sends to its clients.
        let Some(next) = page.next else { return (ids, pages) };
        query = query.after(next.to_string().parse().unwrap());
        between(pages).await;
    }
}

#[tokio::test]
async fn each_old_grant_is_in_one_page_while_grants_are_issued_and_purged() {
    let test = "each_old_grant_is_in_one_page_while_grants_are_issued_and_purged";
    on_each_database(test, |home| async move {
        let database = home.database().await;
        // Groups of grants have the same time of creation. The grants `gone..` will be purged.
        let rows = |name: &str, count: u32, ends: &str| {
            format!(
                "INSERT INTO tollgate_grants (id, subject, created_ms, expires_ms) \
                 WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) \
                 SELECT '{name}' || i, 'alice', i / 7, {ends} FROM n"
            )
        };
        execute(&home, rows("old", 10_000, "NULL")).await;
        execute(&home, rows("gone", 500, "1")).await;
        let (ids, pages) =
            read_all(&database, GrantQuery::new().with_limit(NonZeroU32::new(300).unwrap()), async |page| {
                // Before, among and after the grants of the next pages.
                execute(&home, rows(&format!("new-{page}-"), 50, "NULL")).await;
                let late = NewGrant::new("alice").with_id(format!("late-{page}"));
                database.import(TokenDigest::of(format!("token-{page}").as_str()), &late).await.unwrap();
                if page == 5 {
                    assert_eq!(database.purge(UNIX_EPOCH + HOUR).await.unwrap(), 500);
                }
            })
            .await;
        assert!(pages >= 34, "{pages}");
        let mut times: HashMap<&str, usize> = HashMap::new();
        for id in &ids {
            *times.entry(id).or_default() += 1;
        }
        assert!(times.values().all(|times| *times == 1), "a grant is in two pages");
        assert_eq!(ids.iter().filter(|id| id.starts_with("old")).count(), 10_000);
    })
    .await;
}

#[tokio::test]
async fn filters_select_grants() {
    on_each_database("filters_select_grants", |home| async move {
        let clock = Clock::new();
        let database = clock.install(home.database().await);
        let issue = async |id: &str, grant: NewGrant| {
            clock.advance(Duration::from_millis(1));
            database.issue(&format(), &grant.with_id(id)).await.unwrap();
        };
        issue("valid", NewGrant::new("alice").with_label("Bot 1% of_all")).await;
        issue("later", NewGrant::new("alice").with_not_before(clock.now() + HOUR)).await;
        issue("suspended", NewGrant::new("alice").with_not_before(clock.now() + HOUR)).await;
        issue("expired", NewGrant::new("bob").with_expiry(clock.now())).await;
        issue("revoked", NewGrant::new("bob").with_label("robot").with_expiry(clock.now())).await;
        let imported = NewGrant::new("bob").with_id("imported").with_label("bot");
        clock.advance(Duration::from_millis(1));
        database.import(TokenDigest::of("a-token"), &imported).await.unwrap();
        for id in ["suspended", "expired"] {
            database.suspend(&id.into()).await.unwrap();
        }
        database.revoke(&"revoked".into()).await.unwrap();

        let ids = async |query: GrantQuery| read_all(&database, query, async |_| {}).await.0;
        let all = ["valid", "later", "suspended", "expired", "revoked", "imported"];
        let query = GrantQuery::new;
        assert_eq!(ids(query()).await, all);
        assert_eq!(ids(query().with_limit(NonZeroU32::MIN)).await, all);
        assert_eq!(ids(query().with_limit(NonZeroU32::MAX)).await, all);
        assert_eq!(ids(query().with_subject("alice")).await, all[..3]);
        assert_eq!(ids(query().with_label("bot")).await, ["revoked", "imported"]);
        assert_eq!(ids(query().with_label("1% of_")).await, ["valid"]);
        assert_eq!(ids(query().with_label("")).await, all);
        assert_eq!(ids(query().with_label("bot").with_subject("alice")).await, [""; 0]);
        assert_eq!(ids(query().with_token_prefix("acme")).await, all[..5]);
        assert_eq!(ids(query().with_token_prefix("acm")).await, [""; 0]);
        for (state, expected) in [
            (GrantState::Valid, &["valid", "imported"][..]),
            (GrantState::NotYetValid, &["later"]),
            (GrantState::Suspended, &["suspended"]),
            (GrantState::Expired, &["expired"]),
            (GrantState::Revoked, &["revoked"]),
        ] {
            assert_eq!(ids(query().with_state(state).with_limit(NonZeroU32::MIN)).await, expected, "{state}");
            // The database and the record agree.
            for grant in database.list(None).await.unwrap() {
                assert_eq!(grant.state(clock.now()) == state, expected.contains(&grant.id.as_str()), "{}", grant.id);
            }
        }

        let counts = database.count(&query()).await.unwrap();
        let numbers = [counts.valid, counts.not_yet_valid, counts.suspended, counts.expired, counts.revoked];
        assert_eq!(numbers, [2, 1, 1, 1, 1]);
        let of_bob =
            database.count(&query().with_subject("bob").with_label("bot").with_limit(NonZeroU32::MIN)).await.unwrap();
        assert_eq!((of_bob.valid, of_bob.expired, of_bob.revoked), (1, 0, 1));
        clock.advance(2 * HOUR);
        assert_eq!(ids(query().with_state(GrantState::NotYetValid)).await, [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn invalid_cursors_are_errors() {
    on_each_database("invalid_cursors_are_errors", |home| async move {
        let database = home.database().await;
        // The last one is the text `1:a\0b`.
        for text in ["!", "a", "_w", "MTphAGI"] {
            assert!(matches!(text.parse::<Cursor>(), Err(SqlError::Cursor)), "{text}");
        }
        // Base64 of texts that are no positions: `1`, `x:one` and an empty text.
        for text in ["MQ", "eDpvbmU", ""] {
            let query = GrantQuery::new().after(text.parse().unwrap());
            assert!(matches!(database.page(&query).await, Err(SqlError::Cursor)), "{text}");
        }
    })
    .await;
}
