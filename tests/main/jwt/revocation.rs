//! Revocation, and a cache in front of the store.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
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
async fn a_revocation_ends_without_another_call() {
    let signer = Signer::ed25519("k");
    let store = fixed(&signer).with_plain_jwts().build().unwrap();
    // Without a time of issue, and without an id, for which the subject stands.
    let token = |sub: &str| signer.token(&claims_with(json!({"iat": null, "jti": null, "sub": sub})));
    let subjects = ["alice", "bob", "carol"].map(|name| (name, token(name)));
    let end = SystemTime::now() + Duration::from_millis(1_500);
    let [alice, bob, carol] = &subjects;
    store.revoke(&Invalidation::Subject(alice.0.into()), end);
    store.revoke(&Invalidation::Grant(bob.0.into()), end);
    store.revoke(&Invalidation::Token(TokenDigest::of(&carol.1)), end);
    for (name, token) in &subjects {
        assert!(!accepts(&store, token).await || SystemTime::now() >= end, "{name}");
    }
    tokio::time::sleep(end.duration_since(SystemTime::now()).unwrap_or_default()).await;
    for (name, token) in &subjects {
        assert!(accepts(&store, token).await, "{name}");
    }
}

/// After a restart, a service loads the revocations from its database.
#[tokio::test]
async fn a_revocation_of_an_earlier_time_accepts_later_tokens() {
    let signer = Signer::ed25519("k");
    let token = |iat: u64| signer.token(&claims_with(json!({"iat": iat})));
    let store = fixed(&signer).build().unwrap();
    let now = now();
    let logged_out = UNIX_EPOCH + Duration::from_secs(now - 600);
    store.revoke_at(&Invalidation::Subject("alice".into()), logged_out, in_an_hour());
    for (age, is_accepted) in [(900, false), (601, false), (600, false), (599, true), (0, true)] {
        assert_eq!(accepts(&store, &token(now - age)).await, is_accepted, "{age}");
    }
    // An earlier revocation does not replace a later one.
    store.revoke_at(&Invalidation::Subject("alice".into()), UNIX_EPOCH, in_an_hour());
    assert!(!accepts(&store, &token(now - 900)).await);
}

/// Returns the token with the signature `(r, n - s)` instead of `(r, s)`.
fn with_other_signature(token: &str, order: &str) -> String {
    let (message, signature) = token.rsplit_once('.').unwrap();
    let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
    let order: Vec<i16> =
        (0..order.len()).step_by(2).map(|at| i16::from_str_radix(&order[at..at + 2], 16).unwrap()).collect();
    let (r, s) = signature.split_at(order.len());
    let (mut other, mut carry) = (Vec::new(), 0);
    for (order, s) in order.iter().zip(s).rev() {
        let digit = order - i16::from(*s) + carry;
        carry = digit.div_euclid(256);
        other.push(u8::try_from(digit.rem_euclid(256)).unwrap());
    }
    other.reverse();
    format!("{message}.{}", encode([r, &other].concat()))
}

/// Everyone who has a token with an ECDSA signature can write a second one, which is valid too.
#[tokio::test]
async fn a_revoked_token_is_not_valid_with_its_other_signature() {
    const P256: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    const P384: &str =
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973";
    for (signer, order) in [(Signer::es256("k"), P256), (Signer::es384("k"), P384)] {
        for _ in 0..20 {
            let store = fixed(&signer).build().unwrap();
            let token = signer.token(&claims());
            let other = with_other_signature(&token, order);
            assert_ne!(token, other);
            assert!(accepts(&store, &token).await && accepts(&store, &other).await);
            let bystander = signer.token(&claims_with(json!({"jti": "other"})));
            store.revoke(&Invalidation::Token(TokenDigest::of(&token)), in_an_hour());
            assert!(!accepts(&store, &token).await && !accepts(&store, &other).await);
            assert!(accepts(&store, &bystander).await);
        }
    }
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
