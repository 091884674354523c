//! Revocation, and a cache in front of the store.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tollgate::store::{CachedStore, Invalidation};
use tollgate::{BearerToken, TokenDigest, TokenStore as _};

use crate::kit::Hands;
use crate::kit::jwt::*;

fn in_an_hour() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3_600)
}

#[tokio::test]
async fn ids_subjects_and_tokens_can_be_revoked() {
    let signer = Signer::ed25519("k");
    let token =
        |jti: &str, sub: &str, iat: u64| signer.token(&claims_with(json!({"jti": jti, "sub": sub, "iat": iat})));
    let (first, second) = (token("t-1", "alice", now() - 60), token("t-2", "alice", now() - 60));
    let bob = token("t-1-of-bob", "bob", now() - 60);
    // Within the leeway, issued after the revocation.
    let later = token("t-3", "alice", now() + 20);
    let store = fixed(&signer).build().unwrap();
    let accepted = async || {
        let mut accepted = Vec::new();
        for token in [&first, &second, &later, &bob] {
            accepted.push(accepts(&store, token).await);
        }
        accepted
    };
    assert_eq!(accepted().await, [true, true, true, true]);
    store.revoke(&Invalidation::Added, in_an_hour());
    store.revoke(&Invalidation::Everything, in_an_hour());
    assert_eq!(accepted().await, [true, true, true, true]);
    // Clones share the revocations.
    store.clone().revoke(&Invalidation::Grant("t-1".into()), in_an_hour());
    assert_eq!(accepted().await, [false, true, true, true]);
    store.revoke(&Invalidation::Token(TokenDigest::of(&bob)), in_an_hour());
    assert_eq!(accepted().await, [false, true, true, false]);
    store.revoke(&Invalidation::Subject("alice".into()), in_an_hour());
    assert_eq!(accepted().await, [false, false, true, false]);
    // A shorter revocation does not replace a longer one.
    store.revoke(&Invalidation::Grant("t-1".into()), SystemTime::now());
    store.revoke(&Invalidation::Subject("carol".into()), in_an_hour());
    assert_eq!(accepted().await, [false, false, true, false]);
}

#[tokio::test]
async fn tokens_without_a_time_of_issue_are_revoked_with_their_subject() {
    let signer = Signer::ed25519("k");
    let store = fixed(&signer).with_plain_jwts().build().unwrap();
    let token = signer.token(&claims_with(json!({"iat": null})));
    assert!(accepts(&store, &token).await);
    store.revoke(&Invalidation::Subject("alice".into()), in_an_hour());
    assert!(!accepts(&store, &token).await);
}

#[tokio::test]
async fn revocations_that_have_ended_are_dropped() {
    let signer = Signer::ed25519("k");
    let store = fixed(&signer).build().unwrap();
    let token = signer.token(&claims());
    store.revoke(&Invalidation::Grant("t-1".into()), UNIX_EPOCH);
    store.revoke(&Invalidation::Grant("t-2".into()), in_an_hour());
    assert!(accepts(&store, &token).await);
}

/// The cache has the grant, until it is invalidated by the same change.
#[tokio::test]
async fn a_cache_remembers_verified_tokens_until_they_expire_or_are_revoked() {
    let signer = Signer::ed25519("a");
    let server = Jwks::serve(jwk_set([&signer])).await;
    let hands = Hands::default();
    let store = server.store(&hands);
    let wall = hands.clone();
    let start = now();
    let cache = CachedStore::builder(store.clone(), Duration::from_secs(86_400))
        .with_clock(hands.clock())
        .with_wall_clock(move || UNIX_EPOCH + Duration::from_secs(start) + Duration::from_nanos(wall.ns()))
        .build()
        .unwrap();
    let token = signer.token(&claims_with(json!({"exp": start + 600})));
    let cached = || cache.lookup(&BearerToken::new(&token)).ready().map(|found| found.unwrap().is_some());
    assert_eq!(cached(), None);
    assert!(cache.lookup(&BearerToken::new(&token)).await.unwrap().is_some());
    assert_eq!(cached(), Some(true), "remembered without a verification");
    // 600 seconds of validity and 30 of leeway.
    hands.advance(Duration::from_secs(629));
    assert_eq!(cached(), Some(true));
    hands.advance(Duration::from_secs(1));
    assert_eq!(cached(), None, "no grant is served from the cache after its expiry");

    let token = signer.token(&claims());
    let found = async || cache.lookup(&BearerToken::new(&token)).await.unwrap().is_some();
    assert!(found().await);
    let change = Invalidation::Grant("t-1".into());
    store.revoke(&change, in_an_hour());
    assert!(found().await, "the cache still has the grant");
    cache.invalidate(&change);
    assert!(!found().await);
}
