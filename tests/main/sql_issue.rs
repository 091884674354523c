//! Limits of new grants: the number of active grants of a subject, and the rights of the caller.

use std::time::Duration;

use tollgate::mint::TokenFormat;
use tollgate::store::sql::{Database, ExceedsCallerError, GrantQuery, NewGrant, SqlError};
use tollgate::{AuthLayer, CurrentGrant, Grant, Quota, Scopes, TokenDigest};
use tower::ServiceBuilder;

use crate::kit::*;
use crate::servers::{Home, on_each_database};
use crate::sql::{Clock, find, format};

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

/// Eight writers replace the token of a subject, each in its own way, as eight servers do. The rule "one token per subject" holds at
/// every moment: a token in its grace period and its successor are one grant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_per_subject_holds_under_concurrent_issues_rotations_and_revocations() {
    let test = "one_token_per_subject_holds_under_concurrent_issues_rotations_and_revocations";
    on_each_database(test, |home| async move {
        let mut writers = Vec::new();
        for writer in 0..8_usize {
            let database = home.database().await;
            writers.push(tokio::spawn(async move {
                let (subject, mut issued, mut rotated) = ("alice".into(), 0, 0);
                for round in 0..15_usize {
                    let grants = database.list(Some(&subject)).await.unwrap();
                    let active: Vec<_> = grants.iter().filter(|grant| grant.revoked_at.is_none()).collect();
                    assert!(active.len() <= 1, "{active:?}");
                    match ((writer + round) % 4, active.first()) {
                        // Revoke it seldom, so that most rotations find a grant.
                        (3, Some(_)) if round % 3 == 0 => _ = database.revoke_subject(&subject).await.unwrap(),
                        (1 | 2, Some(grant)) => match database.rotate(&grant.id, &format(), HOUR).await {
                            Ok(_) => rotated += 1,
                            Err(SqlError::Revoked) => {}
                            Err(error) => panic!("{error:?}"),
                        },
                        _ => match database.issue(&format(), &NewGrant::new("alice").with_max_active(1)).await {
                            Ok(_) => issued += 1,
                            Err(SqlError::TooManyGrants { max: 1 }) => {}
                            Err(error) => panic!("{error:?}"),
                        },
                    }
                }
                (issued, rotated)
            }));
        }
        let (mut issued, mut rotated) = (0, 0);
        for writer in writers {
            let (by_writer, rotations) = writer.await.unwrap();
            (issued, rotated) = (issued + by_writer, rotated + rotations);
        }
        assert!(issued > 1 && rotated > 1, "{issued} {rotated}");
        let database = home.database().await;
        let grants = database.list(Some(&"alice".into())).await.unwrap();
        assert_eq!(grants.len(), issued);
        assert!(grants.iter().filter(|grant| grant.revoked_at.is_none()).count() <= 1);
        // Each grant has one current token, and those in their grace periods.
        let mut tokens = 0;
        for grant in database.export(&GrantQuery::new()).await.unwrap().grants {
            assert_eq!(grant.tokens.iter().filter(|token| token.rotated_until.is_none()).count(), 1);
            tokens += grant.tokens.len();
        }
        assert_eq!(tokens, issued + rotated);
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

fn caller(quota: Option<Quota>) -> CurrentGrant {
    let grant = Grant::new("key-17", ()).with_subject("alice").with_scopes(["trade", "read"]).unwrap();
    CurrentGrant::new(match quota {
        Some(quota) => grant.with_quota(quota),
        None => grant,
    })
}

#[test]
fn a_grant_within_the_rights_of_the_caller_keeps_its_fields() {
    let plan = Quota::per_minute(600).with_burst(50);
    let alice = || NewGrant::new("alice").with_label("bot");
    for scopes in [&[][..], &["read"], &["read", "trade"], &["read", "read"]] {
        let grant = alice().with_scopes(scopes).unwrap();
        assert_eq!(grant.clone().within(&caller(Some(plan))), Ok(grant.clone().with_quota(plan)));
        assert_eq!(grant.clone().within(&caller(None)), Ok(grant));
    }
    for quota in [plan, Quota::per_minute(1), Quota::per_minute(599).with_burst(50), plan.with_burst(49)] {
        let grant = alice().with_quota(quota);
        assert_eq!(grant.clone().within(&caller(Some(plan))), Ok(grant));
    }
}

#[test]
fn a_grant_beyond_the_rights_of_the_caller_is_an_error() {
    let plan = Quota::per_minute(600).with_burst(50);
    let scopes = NewGrant::new("alice").with_scopes(["admin", "read", "TRADE"]).unwrap();
    let error = scopes.within(&caller(Some(plan))).unwrap_err();
    assert_eq!(error, ExceedsCallerError::Scopes(Scopes::new(["admin", "TRADE"]).unwrap()));
    assert_eq!(error.to_string(), "the caller lacks these scopes: admin TRADE");
    assert_eq!(NewGrant::new("bob").within(&caller(None)), Err(ExceedsCallerError::Subject));
    // A higher rate with a smaller burst, and a lower rate with a larger burst.
    for quota in [Quota::per_minute(601).with_burst(1), Quota::per_minute(1).with_burst(51)] {
        let grant = NewGrant::new("alice").with_quota(quota);
        assert_eq!(grant.within(&caller(Some(plan))), Err(ExceedsCallerError::Quota), "{quota:?}");
    }
    // The default quota of the rate limiter is not known.
    let slow = NewGrant::new("alice").with_quota(Quota::per_day(1));
    assert_eq!(slow.within(&caller(None)), Err(ExceedsCallerError::Quota));
}

/// A service behind a gate that issues the tokens which its callers ask for.
#[tokio::test]
async fn callers_issue_tokens_for_themselves() {
    on_each_database("callers_issue_tokens_for_themselves", |home| async move {
        let database = home.database().await;
        let plan = Quota::per_minute(600);
        let first = NewGrant::new("alice").with_scopes(["trade", "read"]).unwrap().with_quota(plan);
        let first = database.issue(&format(), &first).await.unwrap();
        let issuing = database.clone();
        let handler = tower::service_fn(move |request: http::Request<Body>| {
            let database = issuing.clone();
            async move {
                let caller = request.extensions().get::<CurrentGrant>().unwrap();
                let scopes: Scopes = request.uri().query().unwrap().replace('+', " ").parse().unwrap();
                let grant = NewGrant::new(caller.subject()).with_scopes(scopes.iter()).unwrap().with_max_active(2);
                let answer = match grant.within(caller) {
                    Err(exceeds) => exceeds.to_string(),
                    Ok(grant) => match database.issue(&TokenFormat::new("acme").unwrap(), &grant).await {
                        Err(error) => error.to_string(),
                        Ok(issued) => issued.secret.expose().to_owned(),
                    },
                };
                Ok::<_, std::convert::Infallible>(http::Response::new(Body::from(answer)))
            }
        });
        let service =
            ServiceBuilder::new().layer(AuthLayer::with_timeout(database.store::<()>(), HOUR)).service(handler);
        let ask = async |token: &str, scopes: &str| {
            let mut request = with_token(token);
            *request.uri_mut() = format!("/?{scopes}").parse().unwrap();
            text(send(&service, request).await).await
        };
        assert_eq!(ask(first.secret.expose(), "read+admin").await, "the caller lacks these scopes: admin");
        let second = ask(first.secret.expose(), "read").await;
        // The second token has fewer rights than the first, and so have its own tokens.
        assert_eq!(ask(&second, "trade").await, "the caller lacks these scopes: trade");
        assert_eq!(ask(&second, "read").await, "the subject already has 2 active grants or more");
        assert_eq!(find(&database.store::<()>(), &second).await.unwrap().quota(), Some(plan));
    })
    .await;
}
