//! Published test vectors of signatures: Wycheproof, RFC 7515 and RFC 8037. Their payloads are not access tokens.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::algorithm::JwtAlgorithm;
use super::keys::{KeyError, KeySet};
use super::parsed::{Requirements, header_of, object, parts};

const ALL: [JwtAlgorithm; 9] = [
    JwtAlgorithm::Rs256,
    JwtAlgorithm::Rs384,
    JwtAlgorithm::Rs512,
    JwtAlgorithm::Ps256,
    JwtAlgorithm::Ps384,
    JwtAlgorithm::Ps512,
    JwtAlgorithm::Es256,
    JwtAlgorithm::Es384,
    JwtAlgorithm::EdDsa,
];

/// Returns whether the store would accept the header and the signature.
fn accepts(keys: &KeySet, token: &str) -> bool {
    let required = Requirements {
        issuer: "".into(),
        audiences: Vec::new(),
        algorithms: ALL.into(),
        plain: true,
        max_token: usize::MAX,
    };
    let verified = || {
        let [header, payload, signature] = parts(token.as_bytes())?;
        let (algorithm, kid) = header_of(&object(header)?, &required)?;
        let key = keys.find(algorithm, kid.as_deref())?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        Some(key.verify(algorithm, &token.as_bytes()[..header.len() + 1 + payload.len()], &signature))
    };
    verified().unwrap_or(false)
}

#[test]
fn wycheproof_vectors_have_the_published_results() {
    let vectors: Value = serde_json::from_str(include_str!("../../../tests/jws/wycheproof.json")).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in vectors["groups"].as_array().unwrap() {
        let set = group["set"].to_string();
        let comment = group["comment"].as_str().unwrap();
        let keys = KeySet::from_json(set.as_bytes(), &ALL);
        if comment == "jws_mixedSymmetryKeyset" {
            assert_eq!(keys.err(), Some(KeyError::NotPublic), "{comment}");
            continue;
        }
        let keys = keys.unwrap();
        // No ES512 (the vectors name it ES521), and no search for keys of chips with a weak generator. A key for PS256 does not
        // verify PS384.
        let differs = set.contains("P-521")
            || comment == "jws_rsa_roca_key"
            || (set.contains("PS256") && comment.starts_with("rfc7520"));
        for test in group["tests"].as_array().unwrap() {
            let expected = test["valid"].as_bool().unwrap();
            let accepted = accepts(&keys, test["jws"].as_str().unwrap());
            if differs {
                assert_ne!(accepted, expected, "{test}");
                continue;
            }
            assert_eq!(accepted, expected, "{test}");
            if expected { valid += 1 } else { invalid += 1 }
        }
    }
    assert_eq!((valid, invalid), (33, 334));
}

/// Appendix A.2 (RS256) and A.3 (ES256), and their keys without the private parts.
#[test]
fn rfc_7515_examples_are_verified() {
    let rsa = json!({"kty": "RSA", "e": "AQAB", "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"});
    let ec = json!({"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"});
    let payload = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let rs256 = format!(
        "eyJhbGciOiJSUzI1NiJ9.{payload}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
    );
    let es256 = format!(
        "eyJhbGciOiJFUzI1NiJ9.{payload}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
    );
    for (key, token, other) in [(&rsa, &rs256, &es256), (&ec, &es256, &rs256)] {
        let keys = KeySet::from_json(json!({"keys": [key]}).to_string().as_bytes(), &ALL).unwrap();
        assert!(accepts(&keys, token), "{token}");
        assert!(!accepts(&keys, other));
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(!accepts(&keys, std::str::from_utf8(&changed).unwrap()), "byte {at}");
        }
    }
}

/// Appendix A.4 and A.5.
#[test]
fn rfc_8037_example_is_verified() {
    let key = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let keys = KeySet::from_json(json!({"keys": [key]}).to_string().as_bytes(), &ALL).unwrap();
    assert!(accepts(&keys, token));
    assert!(!accepts(&keys, &token.replace("RXhh", "RXhi")));
}

/// Keys with private parts are errors, unusable keys are ignored, and none of them causes a panic.
#[test]
fn keys_that_cannot_be_used_are_ignored_or_rejected() {
    let parse = |keys: Value| KeySet::from_json(json!({ "keys": keys }).to_string().as_bytes(), &ALL);
    let ed = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "a"});
    let with = |name: &str, value: Value| {
        let mut key = ed.clone();
        key[name] = value;
        key
    };
    for (what, key) in [
        ("no type", json!({})),
        ("no object", json!(7)),
        ("unknown type", with("kty", json!("LWE"))),
        ("unknown curve", with("crv", json!("Ed448"))),
        ("for encryption", with("use", json!("enc"))),
        ("for signing only", with("key_ops", json!(["sign"]))),
        ("unknown algorithm", with("alg", json!("ES512"))),
        ("algorithm of another type", with("alg", json!("RS256"))),
        ("empty", with("x", json!(""))),
        ("short", with("x", json!("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcH"))),
        ("long", with("x", json!("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURoA"))),
        ("padded", with("x", json!("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo="))),
        ("a number", with("x", json!(11))),
        ("RSA without n", json!({"kty": "RSA", "e": "AQAB"})),
        ("RSA of zeros", json!({"kty": "RSA", "e": "AQAB", "n": "AAAA"})),
        ("RSA without digits", json!({"kty": "RSA", "e": "", "n": ""})),
        (
            "point of another curve",
            json!({"kty": "EC", "crv": "P-384", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}),
        ),
    ] {
        assert_eq!(parse(json!([key])).unwrap().with_a_key_for(&ALL).err(), Some(KeyError::NoneFits), "{what}");
        assert!(parse(json!([key, ed])).unwrap().with_a_key_for(&ALL).is_ok(), "{what}: other keys are used");
    }
    for (what, keys, error) in [
        (
            "a private key",
            json!([ed, with("d", json!("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"))]),
            KeyError::NotPublic,
        ),
        ("a symmetric key", json!([{"kty": "oct", "k": "AAAA"}, ed]), KeyError::NotPublic),
        ("one kid twice", json!([ed, ed]), KeyError::DuplicateKid),
    ] {
        assert_eq!(parse(keys).err(), Some(error), "{what}");
    }
    for text in ["", "[]", "{}", "{\"keys\":{}}", "{\"keys\":[],\"keys\":[]}", "{\"keys\":[]} x", "<html>"] {
        assert_eq!(KeySet::from_json(text.as_bytes(), &ALL).err(), Some(KeyError::Syntax), "{text}");
    }
    assert!(parse(json!([])).is_ok(), "an issuer may withdraw all keys");
}
