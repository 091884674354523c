//! Fixed keys, and the choice of the key.

use serde_json::json;
use tollgate::store::{JwtConfigError, JwtKeys};

use crate::kit::jwt::*;

/// Returns a token with this `kid` or none.
fn token(signer: &Signer, kid: Option<&str>) -> String {
    let mut header = signer.header();
    match kid {
        Some(kid) => header["kid"] = kid.into(),
        None => _ = header.as_object_mut().unwrap().remove("kid"),
    }
    signer.sign(&header.to_string(), &claims().to_string())
}

#[tokio::test]
async fn a_key_in_pem_verifies_tokens_with_any_kid() {
    for signer in [Signer::ed25519("k"), Signer::es256("k"), Signer::es384("k")] {
        let store = builder(JwtKeys::pem(&signer.pem)).build().unwrap();
        for kid in [None, Some("k"), Some("other")] {
            assert!(accepts(&store, &token(&signer, kid)).await, "{kid:?}");
        }
    }
}

#[tokio::test]
async fn the_kid_chooses_the_key() {
    let (a, b, c) = (Signer::ed25519("a"), Signer::ed25519("b"), Signer::es256("c"));
    let store = builder(JwtKeys::jwk_set(jwk_set([&a, &b, &c]))).build().unwrap();
    for (signer, kid, is_accepted) in [
        (&a, Some("a"), true),
        (&b, Some("b"), true),
        (&a, Some("b"), false),
        (&a, Some("A"), false),
        (&a, Some(""), false),
        (&a, Some("c"), false),
        // Two keys fit, and none is tried.
        (&a, None, false),
        (&c, None, true),
    ] {
        assert_eq!(accepts(&store, &token(signer, kid)).await, is_accepted, "{} {kid:?}", signer.kid);
    }
    // A key without a `kid` is for the tokens that no other key names.
    let mut without = a.jwk();
    without.as_object_mut().unwrap().remove("kid");
    let store = builder(JwtKeys::jwk_set(json!({"keys": [without, b.jwk()]}).to_string())).build().unwrap();
    assert!(accepts(&store, &token(&a, Some("x"))).await && accepts(&store, &token(&b, Some("b"))).await);
    assert!(!accepts(&store, &token(&b, Some("x"))).await && !accepts(&store, &token(&a, None)).await);
}

#[tokio::test]
async fn the_algorithm_of_a_key_is_respected() {
    let signer = Signer::ed25519("k");
    for (alg, is_usable) in [("EdDSA", true), ("Ed25519", true), ("ES256", false), ("HS256", false), ("x", false)] {
        let mut jwk = signer.jwk();
        jwk["alg"] = alg.into();
        let store = builder(JwtKeys::jwk_set(json!({ "keys": [jwk] }).to_string())).build();
        assert_eq!(store.as_ref().err(), (!is_usable).then_some(&JwtConfigError::NoKey), "{alg}");
        if let Ok(store) = store {
            assert!(accepts(&store, &signer.token(&claims())).await);
        }
    }
    // The name of RFC 9864 in a token.
    let mut header = signer.header();
    header["alg"] = "Ed25519".into();
    let token = signer.sign(&header.to_string(), &claims().to_string());
    assert!(accepts(&fixed(&signer).build().unwrap(), &token).await);
}
