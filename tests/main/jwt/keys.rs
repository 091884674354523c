//! Fixed keys, and the choice of the key.

use serde_json::json;
use tollgate::store::{JwtAlgorithm, JwtConfigError, JwtKeys, JwtStore};

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

/// A valid signature by an algorithm that the key supports, but the settings do not name.
#[tokio::test]
async fn only_the_algorithms_of_the_settings_are_accepted() {
    use JwtAlgorithm::{Ps256, Rs256, Rs384};
    for (algorithms, is_accepted) in
        [(&[Rs256][..], true), (&[Ps256], false), (&[Ps256, Rs384], false), (&[Ps256, Rs256], true)]
    {
        let builder = JwtStore::builder(ISSUER, AUDIENCE, algorithms.iter().copied(), JwtKeys::pem(RS256_KEY));
        assert_eq!(accepts(&builder.build().unwrap(), RS256_TOKEN).await, is_accepted, "{algorithms:?}");
    }
}

/// Signed by OpenSSL with the private part of [`RS256_KEY`], which was thrown away. It expires in 2100.
const RS256_TOKEN: &str = "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJSUzI1NiIsImtpZCI6ImJlbmNoIn0.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUiLCJhdWQiOiJodHRwczovL2FwaS5leGFtcGxlIiwic3ViIjoiMjQ4Mjg5NzYxMDAxIiwiY2xpZW50X2lkIjoiczZCaGRSa3F0MyIsImp0aSI6ImRiZTM5YmYzYTNiYTQyMzhhNTEzZjUxZDZlMTY5MWM0Iiwic2NvcGUiOiJvcmRlcnM6cmVhZCB0cmFkZSIsImlhdCI6MTczNTY4OTYwMCwiZXhwIjo0MTAyNDQ0ODAwfQ.SX2SemMtQIWuBdPucE_XmEU2QG6DXaFDw_8XraD-Qe9vaG5gnTaMrhN2S9YgcumkQLbKmreB85DPCOb5Zd2nwRBbiYkun25hdqTBJ3UYTC-Vc-4PvZA4H4i0smoWjFf6vngYRziPwXoMLOHH4Zynuq-WiqqmGcL1dl2YLg9mCtrsKyYlNuJ5IG7XhQ--6O2a0KPyHa5TPD44RhrvE-cYVnRe7eixg64UzmL4hpyTZYieX8Y2R40rwCGE5SbYdQw4u3-QsI7hxAnUaHXyr5qsv7IomjsEdvmHLW12vLnuPRX_OvvkZLtmnr2lY161Kwy_ReYd8eVgxLrrx04KjztHSw";
const RS256_KEY: &str = "\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA1jlFnEU3nqi033yaMqZi
L+r7mF4kB/PLqVTALHvnpt9kMnZ2OB1awVyOXS0Qx1aJTQobHJkxyGtSe35akSE6
5eEl6q2kYpCq81vrCym3p8BXISsRYMEfnXNmDAOs18ThuUWVOVEUieh9jlxEEsKp
H7eXpoom+VlK8AvOV1k9SaO37ufzHzIhCqlt1tqR2qVa1Mcqd1EjAZ4TSmVxPscu
OiKC/EzpR3WY7fSEua/cM37RNt2XRGcvdLaQtb1ptBieXOcQD+kxsaDjPcrZN1k5
tQwCKPM85Qzm2wlqUCu54TLhpyaE+PVzOKKLlVKLUXEmUcLntIdG30+jofExS+SU
UQIDAQAB
-----END PUBLIC KEY-----
";
