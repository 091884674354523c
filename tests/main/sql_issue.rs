//! Limits of new grants in SQLite and PostgreSQL: the number of active grants of a subject.

use std::time::Duration;

use tollgate::TokenDigest;
use tollgate::store::sql::{Database, NewGrant, SqlError};

use crate::servers::{Home, on_each_database};
use crate::sql::{Clock, format};

const HOUR: Duration = Duration::from_secs(3_600);

/// Issues grants with a maximum of three at the same time, through several pools, as processes do. Returns the number of grants.
async fn issue_concurrently(databases: &[Database]) -> usize {
    let issues: Vec<_> = (0..20)
        .map(|number: usize| {
            let database = databases[number % databases.len()].clone();
            tokio::spawn(async move { database.issue(&format(), &NewGrant::new("alice").with_max_active(3)).await })
        })
        .collect();
    let mut issued = 0;
    for issue in issues {
        match issue.await.unwrap() {
            Ok(_) => issued += 1,
            Err(SqlError::TooManyGrants { max: 3 }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    let listed = databases[0].list(Some(&"alice".into())).await.unwrap();
    assert_eq!(listed.len(), issued);
    issued
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_issues_do_not_exceed_the_maximum() {
    on_each_database("concurrent_issues_do_not_exceed_the_maximum", |home| async move {
        for _ in 0..5 {
            let databases = [home.database().await, home.database().await];
            assert_eq!(issue_concurrently(&databases).await, 3);
            databases[0].revoke_subject(&"alice".into()).await.unwrap();
            databases[0].purge(std::time::SystemTime::now() + HOUR).await.unwrap();
        }
    })
    .await;
}

/// With these defaults, a statement after the wait for the lock would not see the grants that others have committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_maximum_holds_with_other_isolation_levels() {
    let test = "the_maximum_holds_with_other_isolation_levels";
    for level in ["repeatable%20read", "serializable"] {
        let Some(home) = Home::postgres(test).await else { return };
        home.database().await.migrate().await.unwrap();
        let url = format!("{}&options[default_transaction_isolation]={level}", home.url());
        assert_eq!(issue_concurrently(&[Database::connect(&url).await.unwrap()]).await, 3, "{level}");
    }
}

#[tokio::test]
async fn grants_that_have_not_ended_count() {
    on_each_database("grants_that_have_not_ended_count", |home| async move {
        let clock = Clock::new();
        let database = clock.install(home.database().await);
        let new = NewGrant::new("alice").with_max_active(2);
        let first = database.issue(&format(), &new.clone().with_expiry(clock.now() + HOUR)).await.unwrap();
        // A token in its grace period and its successor belong to one grant.
        database.rotate(&first.grant.id, &format(), HOUR).await.unwrap();
        let second = database.issue(&format(), &new.clone().with_not_before(clock.now() + HOUR)).await.unwrap();
        let is_full = async || match database.import(TokenDigest::of("a-token"), &new).await {
            Err(SqlError::TooManyGrants { max: 2 }) => true,
            imported => panic!("{imported:?}"),
        };
        assert!(is_full().await);
        database.suspend(&second.grant.id).await.unwrap();
        assert!(is_full().await, "a suspended grant counts");

        // Grants without a maximum, and grants of other subjects.
        database.issue(&format(), &NewGrant::new("alice").with_expiry(clock.now())).await.unwrap();
        database.issue(&format(), &NewGrant::new("bob").with_max_active(1)).await.unwrap();
        database.revoke(&second.grant.id).await.unwrap();
        let third = database.issue(&format(), &new).await.unwrap();
        assert!(is_full().await);
        clock.advance(HOUR);
        database.issue(&format(), &new).await.unwrap();
        assert!(is_full().await, "the first grant has expired");
        database.revoke(&third.grant.id).await.unwrap();
        database.issue(&format(), &new).await.unwrap();
        let none = NewGrant::new("carol").with_max_active(0);
        assert!(matches!(database.issue(&format(), &none).await, Err(SqlError::TooManyGrants { max: 0 })));
    })
    .await;
}
