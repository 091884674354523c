//! Hostile tokens. Each differs from an accepted token in one respect, and is signed where a signature is possible.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use tollgate::{AuthLayer, BearerToken, TokenStore as _};
use tower::Layer as _;

use crate::kit::jwt::*;
use crate::kit::{echo, send, text, with_token};

/// Returns the header of an access token with other members.
fn header_with(signer: &Signer, changes: Value) -> String {
    let mut header = signer.header();
    for (name, value) in changes.as_object().unwrap() {
        header[name] = value.clone();
    }
    header.to_string()
}

#[tokio::test]
async fn unsigned_tokens_and_symmetric_signatures_are_unknown() {
    let signer = Signer::es256("k");
    let store = fixed(&signer).build().unwrap();
    let payload = claims().to_string();
    assert!(accepts(&store, &signer.sign(&header_with(&signer, json!({})), &payload)).await);

    let signature = signer.token(&claims()).rsplit('.').next().unwrap().to_owned();
    for alg in ["none", "None", "NONE", "nOnE", "", "HS256", "ES256 ", "es256", "ES512", "ES256K", "RS256", "dir"] {
        let message = format!("{}.{}", encode(header_with(&signer, json!({"alg": alg}))), encode(&payload));
        for signature in ["", &signature, "AAAA"] {
            assert!(!accepts(&store, &format!("{message}.{signature}")).await, "{alg:?} {signature:?}");
        }
        // The private key has signed the wrong name.
        assert!(!accepts(&store, &signer.sign(&header_with(&signer, json!({"alg": alg})), &payload)).await, "{alg:?}");
    }
    // The public key in each of its forms as the secret of HMAC.
    let jwk = signer.jwk().to_string();
    for secret in [signer.pem.as_bytes(), signer.pem.trim().as_bytes(), &signer.point, jwk.as_bytes()] {
        let message = format!("{}.{}", encode(header_with(&signer, json!({"alg": "HS256"}))), encode(&payload));
        let secret = EncodingKey::from_secret(secret).unwrap();
        let mac = jsonwebtoken::crypto::sign(message.as_bytes(), &secret, Algorithm::HS256).unwrap();
        assert!(!accepts(&store, &format!("{message}.{mac}")).await);
    }
}

/// The key of one algorithm never verifies a token of another, whatever the store accepts.
#[tokio::test]
async fn algorithms_of_other_keys_are_unknown() {
    let signers = [Signer::ed25519("a"), Signer::es256("b"), Signer::es384("c")];
    let store = builder(tollgate::store::JwtKeys::jwk_set(jwk_set(&signers))).build().unwrap();
    for signer in &signers {
        assert!(accepts(&store, &signer.token(&claims())).await);
        for other in signers.iter().filter(|other| other.kid != signer.kid) {
            let alg = other.header()["alg"].clone();
            for changes in [json!({"alg": alg}), json!({"kid": other.kid}), json!({"alg": alg, "kid": other.kid})] {
                let token = signer.sign(&header_with(signer, changes.clone()), &claims().to_string());
                assert!(!accepts(&store, &token).await, "{changes}");
            }
        }
    }
}

/// The attacker signs with a key of their own, and names it in the header.
#[tokio::test]
async fn keys_in_the_header_are_never_used() {
    let (signer, attacker) = (Signer::ed25519("k"), Signer::ed25519("k"));
    let server = Jwks::serve(jwk_set([&attacker])).await;
    let store = fixed(&signer).build().unwrap();
    let url = format!("http://{}/jwks", server.address);
    for changes in [
        json!({}),
        json!({"jwk": attacker.jwk()}),
        json!({"jwk": signer.jwk()}),
        json!({"jku": url}),
        json!({"x5u": url}),
        json!({"x5c": ["MIIB"]}),
        json!({"kid": url}),
        json!({"kid": "../../../../dev/null"}),
        json!({"kid": "k' OR '1'='1"}),
        json!({"iss": ISSUER, "jku": url, "x5u": url, "jwk": attacker.jwk()}),
    ] {
        let token = attacker.sign(&header_with(&attacker, changes.clone()), &claims().to_string());
        assert!(!accepts(&store, &token).await, "{changes}");
    }
    assert_eq!(server.asked(), 0, "no address of a token is fetched");
    // The real issuer may name its keys. The store ignores them.
    let token = signer.sign(&header_with(&signer, json!({"jku": url, "x5t": "AAAA"})), &claims().to_string());
    assert!(accepts(&store, &token).await);
}

#[tokio::test]
async fn extensions_and_duplicate_members_are_unknown() {
    let signer = Signer::ed25519("k");
    let store = fixed(&signer).build().unwrap();
    let payload = claims().to_string();
    for changes in [
        json!({"crit": ["exp"], "exp": 7}),
        json!({"crit": ["b64"], "b64": true}),
        json!({"crit": []}),
        json!({"crit": null}),
        json!({"b64": false}),
        json!({"kid": 7}),
        json!({"kid": null}),
        json!({"alg": null}),
        json!({"alg": ["EdDSA"]}),
    ] {
        let token = signer.sign(&header_with(&signer, changes.clone()), &payload);
        assert!(!accepts(&store, &token).await, "{changes}");
    }
    for (header, payload) in [
        (r#"{"alg":"EdDSA","alg":"EdDSA","typ":"at+jwt","kid":"k"}"#.to_owned(), payload.clone()),
        (r#"{"alg":"EdDSA","typ":"at+jwt","typ":"at+jwt","kid":"k"}"#.to_owned(), payload.clone()),
        // The same name, written with an escape.
        (r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k","\u0061lg":"none"}"#.to_owned(), payload.clone()),
        (signer.header().to_string(), payload.replacen('{', r#"{"sub":"mallory","#, 1)),
        (signer.header().to_string(), payload.replacen('{', r#"{"x":1,"x":1,"#, 1)),
        (signer.header().to_string(), payload.replacen('{', r#"{"\u0073ub":"mallory","#, 1)),
    ] {
        assert!(!accepts(&store, &signer.sign(&header, &payload)).await, "{header}");
    }
}

#[tokio::test]
async fn unusual_numbers_are_unknown_or_rounded() {
    let signer = Signer::ed25519("k");
    let store = fixed(&signer).build().unwrap();
    let with_exp = |exp: &str| {
        let text = claims_with(json!({"exp": "PLACE"})).to_string().replace("\"PLACE\"", exp);
        signer.sign(&signer.header().to_string(), &text)
    };
    for exp in ["4000000000", "4000000000.5", "4e9", "4.0e9", "99999999999999999999999999", "1e308"] {
        assert!(accepts(&store, &with_exp(exp)).await, "{exp}");
    }
    for exp in [
        "NaN",
        "Infinity",
        "-Infinity",
        "-1",
        "-0.1",
        "1e400",
        "-1e400",
        "0x10",
        "+1",
        "01",
        "1.",
        ".5",
        "1e",
        "\"4e9\"",
        "[4e9]",
        "null",
        "true",
        "",
    ] {
        assert!(!accepts(&store, &with_exp(exp)).await, "{exp}");
    }
}

#[tokio::test]
async fn malformed_serializations_are_unknown() {
    let signer = Signer::ed25519("k");
    let store = fixed(&signer).build().unwrap();
    let good = signer.token(&claims());
    let [header, payload, signature] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let standard = |part: &str| part.replace('-', "+").replace('_', "/");
    for bad in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "...".to_owned(),
        format!("{header}.{payload}"),
        format!("{header}.{payload}."),
        format!("{header}..{signature}"),
        format!(".{payload}.{signature}"),
        format!("{good}."),
        format!(".{good}"),
        format!("{good}.{signature}"),
        format!("{header}.{payload}.{signature}.x.y"),
        format!("{good}="),
        format!("{header}=.{payload}.{signature}"),
        format!("{header}.{payload}=.{signature}"),
        format!(" {good}"),
        format!("{good}\n"),
        format!("{header}.{payload}.{}", &signature[1..]),
        format!("{header}.{payload}.{signature}AAAA"),
        format!("{header}.{payload}.{}", "A".repeat(86)),
        // The last character has spare bits, which must be zero.
        format!("{header}.{payload}.{}B", &signature[..85]),
        json!({"protected": header, "payload": payload, "signature": signature}).to_string(),
        signer.sign("", &claims().to_string()),
        signer.sign("[]", &claims().to_string()),
        signer.sign(&format!("{} x", signer.header()), &claims().to_string()),
        signer.sign(&format!("\u{feff}{}", signer.header()), &claims().to_string()),
        signer.sign(&signer.header().to_string(), ""),
        signer.sign(&signer.header().to_string(), "null"),
        signer.sign(&signer.header().to_string(), &format!("[{}]", claims())),
        signer.sign(&signer.header().to_string(), &good),
    ] {
        assert!(!accepts(&store, &bad).await, "{bad}");
    }
    let url_alphabet = (0..64).map(|at| signer.token(&claims_with(json!({"jti": format!("t-{at}")}))));
    let token = url_alphabet.into_iter().find(|token| token.contains(['-', '_'])).unwrap();
    assert!(accepts(&store, &token).await && !accepts(&store, &standard(&token)).await);
    let invalid_utf8 = [header.as_bytes(), b".", b"\xff\xfe", b".", signature.as_bytes()].concat();
    assert!(store.lookup(&BearerToken::new(&invalid_utf8)).await.unwrap().is_none());
}

#[tokio::test]
async fn long_tokens_and_deep_nesting_are_unknown_without_delay() {
    let signer = Signer::ed25519("k");
    let store = fixed(&signer).build().unwrap();
    // Signed by the issuer, so that only the length is wrong.
    let padded = |len: usize| {
        let unpadded = signer.token(&claims_with(json!({"x": ""}))).len();
        let mut x = "x".repeat((len - unpadded) * 3 / 4);
        loop {
            let token = signer.token(&claims_with(json!({ "x": x })));
            if token.len() >= len {
                return token;
            }
            x.push('x');
        }
    };
    let (fits, long) = (padded(8_190), padded(8_193));
    assert!(fits.len() <= 8_192 && accepts(&store, &fits).await);
    assert!(store.lookup(&BearerToken::new(&long)).ready().unwrap().unwrap().is_none(), "an immediate answer");
    let wide = fixed(&signer).with_max_token(long.len()).build().unwrap();
    assert!(accepts(&wide, &long).await, "only the length was wrong");
    for junk in ["A".repeat(1 << 20), ".".repeat(1 << 20), padded(1 << 20)] {
        assert!(store.lookup(&BearerToken::new(&junk)).ready().unwrap().unwrap().is_none());
    }
    let deep = |text: String| signer.sign(&signer.header().to_string(), &claims().to_string().replacen('{', &text, 1));
    let wide = fixed(&signer).with_max_token(1 << 20).build().unwrap();
    for (depth, is_accepted) in [(100, true), (1_000, false), (100_000, false)] {
        let arrays = deep(format!("{{\"x\":{}{},", "[".repeat(depth), "]".repeat(depth)));
        assert_eq!(accepts(&wide, &arrays).await, is_accepted, "{depth}");
        let open = deep(format!("{{\"x\":{}", "[".repeat(depth)));
        assert!(!accepts(&wide, &open).await, "{depth}");
        let header = signer.header().to_string().replacen('{', &format!("{{\"x\":{}", "{\"x\":".repeat(depth)), 1);
        assert!(!accepts(&wide, &signer.sign(&header, &claims().to_string())).await, "{depth}");
    }
}

/// An attacker must not learn from the response which check has failed.
#[tokio::test]
async fn responses_to_bad_tokens_are_the_same() {
    let (signer, attacker) = (Signer::ed25519("k"), Signer::ed25519("k"));
    let unknown = Signer::ed25519("unknown");
    let server = Jwks::serve(jwk_set([&signer])).await;
    let store = server.store(&crate::kit::Hands::default());
    let gate = AuthLayer::with_timeout(store, Duration::from_secs(60)).layer(echo());
    assert_eq!(send::<_, crate::kit::Body>(&gate, with_token(&signer.token(&claims()))).await.status(), 200);
    let mut responses = Vec::new();
    for token in [
        attacker.token(&claims()),
        unknown.token(&claims()),
        signer.token(&claims_with(json!({"aud": "other"}))),
        signer.token(&claims_with(json!({"iss": "other"}))),
        signer.sign(&header_with(&signer, json!({"alg": "none"})), &claims().to_string()),
        signer.sign(&header_with(&signer, json!({"typ": "JWT"})), &claims().to_string()),
        "junk".to_owned(),
    ] {
        let response = send::<_, crate::kit::Body>(&gate, with_token(&token)).await;
        responses.push((response.status(), response.headers().clone(), text(response).await));
    }
    assert_eq!(responses[0].0, 401);
    assert!(responses.iter().all(|response| *response == responses[0]), "{responses:?}");
}
