//! The settings of a store of JWTs.

use std::time::Duration;

use serde_json::json;
use tollgate::store::{JwtAlgorithm, JwtConfigError, JwtKeys, JwtStore};

use crate::kit::jwt::*;

#[test]
fn invalid_settings_return_errors() {
    use JwtConfigError as Invalid;
    let signer = Signer::ed25519("k");
    let keys = || JwtKeys::jwk_set(jwk_set([&signer]));
    let all = [JwtAlgorithm::EdDsa];
    let url = |url: &str| builder(JwtKeys::url(url));
    for (builder, why) in [
        (JwtStore::builder("", AUDIENCE, all, keys()), Invalid::Issuer),
        (JwtStore::builder(ISSUER, "", all, keys()), Invalid::Audience),
        (fixed(&signer).with_audience(""), Invalid::Audience),
        (JwtStore::builder(ISSUER, AUDIENCE, [], keys()), Invalid::Algorithms),
        (JwtStore::builder(ISSUER, AUDIENCE, [JwtAlgorithm::Es256], keys()), Invalid::NoKey),
        (fixed(&signer).with_leeway(Duration::from_secs(301)), Invalid::Leeway),
        (fixed(&signer).with_max_token(0), Invalid::MaxToken),
        (fixed(&signer).with_max_answer(0), Invalid::MaxAnswer),
        (fixed(&signer).with_min_interval(Duration::ZERO), Invalid::Interval),
        (fixed(&signer).with_max_key_age(Duration::from_secs(1)), Invalid::Interval),
        (url("https://id.example/").with_timeout(Duration::ZERO), Invalid::Timeout),
        (url("https://id.example/").with_root_certificate_pem(b"no PEM"), Invalid::RootCertificate),
        (url("id.example/jwks"), Invalid::Url),
        (url("ftp://id.example/jwks"), Invalid::Url),
        (url("http://id.example/jwks"), Invalid::Insecure),
        (url("http://localhost/jwks"), Invalid::Insecure),
        (url("https://user@id.example/jwks"), Invalid::UserInfo),
        (url("https://id.example/jwks#x"), Invalid::Fragment),
    ] {
        assert_eq!(builder.build().map(|_| ()), Err(why));
    }
    assert!(url("http://id.example/jwks").with_insecure_http().build().is_ok());
    assert!(url("https://id.example/jwks?x=y").build().is_ok());
    assert!(url("http://127.0.0.1:8080/jwks").build().is_ok());
}

#[test]
fn invalid_keys_return_errors() {
    use JwtConfigError as Invalid;
    let (signer, pair) = (Signer::ed25519("k"), rcgen::KeyPair::generate().unwrap());
    let mut private = signer.jwk();
    private["d"] = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A".into();
    // The key of `openssl ecparam -name secp256k1 -genkey`, whose point is as long as one of P-256.
    let other_curve = "-----BEGIN PUBLIC KEY-----\nMFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEeb5mfvncu6xVoGKVzocLBwKb/NstzijZ\nWfKBWxb4F5hIOtp3JqPEZV2k+/wOEQio/Re0SKaFVBmcR9CP+xDUuA==\n-----END PUBLIC KEY-----\n";
    for (keys, why) in [
        (JwtKeys::pem(""), Invalid::Keys),
        (JwtKeys::pem([0xff]), Invalid::Keys),
        (JwtKeys::pem("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"), Invalid::Keys),
        (JwtKeys::pem(other_curve), Invalid::Keys),
        (JwtKeys::pem(pair.serialize_pem()), Invalid::PrivateKey),
        (JwtKeys::pem(format!("{}{}", signer.pem, pair.serialize_pem())), Invalid::PrivateKey),
        (JwtKeys::pem(signer.pem.replace("PUBLIC KEY", "CERTIFICATE")), Invalid::Keys),
        (JwtKeys::jwk_set(&signer.pem), Invalid::Keys),
        (JwtKeys::jwk_set("{\"keys\":[]}"), Invalid::NoKey),
        (JwtKeys::jwk_set(json!({"keys": [private]}).to_string()), Invalid::PrivateKey),
        (JwtKeys::jwk_set(json!({"keys": [{"kty": "oct", "k": "AAAA"}]}).to_string()), Invalid::PrivateKey),
        (JwtKeys::jwk_set(jwk_set([&signer, &signer])), Invalid::DuplicateKid),
    ] {
        let built = builder(keys).build();
        assert_eq!(built.map(|_| ()), Err(why));
    }
}

#[test]
fn debug_output_contains_no_keys() {
    let pair = rcgen::KeyPair::generate().unwrap();
    let keys = [JwtKeys::pem(pair.serialize_pem()), JwtKeys::url("https://id.example/jwks?key=s3cret")];
    for keys in keys {
        let builder = builder(keys.clone());
        let printed = format!("{keys:?} {builder:?} {:?}", builder_error(keys.clone()));
        assert!(!printed.contains("BEGIN") && !printed.contains("s3cret") && !printed.contains("MC4"), "{printed}");
    }
}

/// Returns the printed store or error.
fn builder_error(keys: JwtKeys) -> String {
    match builder(keys).build() {
        Ok(store) => format!("{store:?}"),
        Err(error) => format!("{error:?} {error}"),
    }
}
