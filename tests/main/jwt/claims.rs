//! Grants from JWTs.

use std::error::Error as _;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use tollgate::store::contract::Contract;
use tollgate::store::{self, CachedStore};
use tollgate::{AuthLayer, BoxStore, Quota, StoreError};
use tower::Layer as _;

use crate::kit::jwt::*;
use crate::kit::{echo, field, send, with_token};

#[tokio::test]
async fn jwts_fulfil_the_contract() {
    let signer = Signer::ed25519("k");
    let alice = signer.token(&claims());
    let other = signer.token(&claims_with(json!({"jti": "t-2"})));
    let revoked = signer.token(&claims_with(json!({"jti": "t-3"})));
    let store = fixed(&signer).build().unwrap();
    store.revoke(&store::Invalidation::Grant("t-3".into()), UNIX_EPOCH + Duration::from_secs(now() + 3_600));
    let contract = |store| Contract::new(store).knows(&alice, "alice").knows(&other, "alice").has_revoked(&revoked);
    contract(BoxStore::new(store.clone())).check().await;
    contract(BoxStore::new(CachedStore::new(store, Duration::from_secs(60)).unwrap())).check().await;
}

#[tokio::test]
async fn claims_become_the_grant() {
    let signer = Signer::es256("k");
    let token = signer.token(&json!({
        "iss": ISSUER, "aud": ["other", AUDIENCE], "sub": "u-17", "client_id": "app", "jti": "t-1", "scope": "a b",
        "exp": 4_000_000_000_u64, "nbf": 1_000_000_000, "iat": 1_000_000_001, "plan": {"name": "pro"},
    }));
    let store = fixed(&signer).with_leeway(Duration::from_secs(7)).build().unwrap();
    let grant = ask(&store, &token).await.unwrap().unwrap();
    assert_eq!((grant.id().as_str(), grant.subject().as_str()), ("t-1", "u-17"));
    assert_eq!(grant.scopes().to_string(), "a b");
    let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!((grant.not_before(), grant.expires_at()), (at(999_999_994), at(4_000_000_007)));
    assert!(!grant.is_sender_constrained() && grant.quota().is_none());
    let claims = grant.principal();
    assert_eq!((claims.subject(), claims.client_id(), claims.token_id()), (Some("u-17"), Some("app"), Some("t-1")));
    assert_eq!((claims.issuer(), claims.issued_at()), (Some(ISSUER), at(1_000_000_001)));
    assert_eq!((claims.not_before(), claims.expires_at()), (at(1_000_000_000), at(4_000_000_000)));
    assert_eq!((claims.get("plan").unwrap()["name"].as_str(), claims.get("none")), (Some("pro"), None));
    assert!(!format!("{grant:?} {claims:?} {store:?}").contains(&token));
}

#[tokio::test]
async fn access_tokens_need_the_claims_of_the_profile() {
    let signer = Signer::ed25519("k");
    let (strict, plain) = (fixed(&signer).build().unwrap(), fixed(&signer).with_plain_jwts().build().unwrap());
    for (missing, is_needed_in_plain) in [
        ("iss", true),
        ("aud", true),
        ("exp", true),
        ("sub", false),
        ("client_id", false),
        ("iat", false),
        ("jti", false),
        ("scope", false),
    ] {
        let token = signer.token(&claims_with(json!({ missing: null })));
        assert_eq!(accepts(&strict, &token).await, missing == "scope", "{missing}");
        assert_eq!(accepts(&plain, &token).await, !is_needed_in_plain, "{missing}, plain");
    }
    // The subject is `client_id` where there is no `sub`, and the id is the subject where there is no `jti`.
    let token = signer.token(&claims_with(json!({"sub": null, "jti": null})));
    let grant = ask(&plain, &token).await.unwrap().unwrap();
    assert_eq!((grant.id().as_str(), grant.subject().as_str()), ("app", "app"));
    let neither = signer.token(&claims_with(json!({"sub": null, "client_id": null})));
    assert!(!accepts(&plain, &neither).await);
}

#[tokio::test]
async fn types_of_other_tokens_are_unknown() {
    let signer = Signer::ed25519("k");
    let (strict, plain) = (fixed(&signer).build().unwrap(), fixed(&signer).with_plain_jwts().build().unwrap());
    for (typ, is_access_token, is_plain) in [
        (json!("at+jwt"), true, true),
        (json!("AT+JWT"), true, true),
        (json!("application/at+jwt"), true, true),
        (json!("Application/AT+JWT"), true, true),
        (json!("JWT"), false, true),
        (json!("jwt"), false, true),
        (json!("application/jwt"), false, true),
        (json!("logout+jwt"), false, false),
        (json!("dpop+jwt"), false, false),
        (json!("application/application/at+jwt"), false, false),
        (json!("at+jwt "), false, false),
        (json!(""), false, false),
        (json!(null), false, false),
        (json!(["at+jwt"]), false, false),
    ] {
        let mut header = signer.header();
        header["typ"] = typ.clone();
        let token = signer.sign(&header.to_string(), &claims().to_string());
        assert_eq!(
            (accepts(&strict, &token).await, accepts(&plain, &token).await),
            (is_access_token, is_plain),
            "{typ}"
        );
    }
    let mut header = signer.header();
    header.as_object_mut().unwrap().remove("typ");
    let token = signer.sign(&header.to_string(), &claims().to_string());
    assert_eq!((accepts(&strict, &token).await, accepts(&plain, &token).await), (false, true), "no typ");
}

#[tokio::test]
async fn issuers_and_audiences_are_compared_exactly() {
    let signer = Signer::ed25519("k");
    let store = fixed(&signer).with_audience("second").build().unwrap();
    for (changes, is_ours) in [
        (json!({"aud": AUDIENCE}), true),
        (json!({"aud": ["x", AUDIENCE]}), true),
        (json!({"aud": ["second"]}), true),
        (json!({"aud": "https://api.example/"}), false),
        (json!({"aud": "HTTPS://API.EXAMPLE"}), false),
        (json!({"aud": []}), false),
        (json!({"aud": ""}), false),
        (json!({"aud": [AUDIENCE, 7]}), false),
        (json!({"aud": [[AUDIENCE]]}), false),
        (json!({"aud": {AUDIENCE: true}}), false),
        (json!({"iss": "https://id.example/"}), false),
        (json!({"iss": "https://ID.example"}), false),
        (json!({"iss": [ISSUER]}), false),
        (json!({"iss": ""}), false),
    ] {
        assert_eq!(accepts(&store, &signer.token(&claims_with(changes.clone()))).await, is_ours, "{changes}");
    }
}

#[tokio::test]
async fn scopes_are_those_of_scope_and_scp() {
    let signer = Signer::ed25519("k");
    let store = fixed(&signer).build().unwrap();
    for (changes, all) in [
        (json!({"scope": null}), Some("")),
        (json!({"scope": ""}), Some("")),
        (json!({"scope": " b  a "}), Some("b a")),
        (json!({"scope": null, "scp": "a b"}), Some("a b")),
        (json!({"scope": null, "scp": ["a", "b"]}), Some("a b")),
        (json!({"scope": "a b", "scp": ["b", "c"]}), Some("a b c")),
        (json!({"scope": null, "scp": []}), Some("")),
        (json!({"scope": ["a"]}), None),
        (json!({"scope": 7}), None),
        (json!({"scope": "a \"b\""}), None),
        (json!({"scope": null, "scp": ["a b"]}), None),
        (json!({"scope": null, "scp": ["a", 7]}), None),
        (json!({"scope": null, "scp": {}}), None),
    ] {
        let found = ask(&store, &signer.token(&claims_with(changes.clone()))).await.unwrap();
        assert_eq!(found.map(|grant| grant.scopes().to_string()).as_deref(), all, "{changes}");
    }
}

#[tokio::test]
async fn the_gate_checks_dates_with_leeway_and_the_sender_constraint() {
    let signer = Signer::ed25519("k");
    let store = fixed(&signer).with_leeway(Duration::from_secs(200)).build().unwrap();
    let gate = AuthLayer::with_timeout(store, Duration::from_secs(60)).layer(echo());
    // The margins are longer than any pause of the test.
    for (changes, status) in [
        (json!({}), 200),
        (json!({"exp": now() - 100}), 200),
        (json!({"exp": now() - 300}), 401),
        (json!({"exp": 0}), 401),
        (json!({"nbf": now() + 100}), 200),
        (json!({"nbf": now() + 400}), 401),
        (json!({"iat": now() + 100}), 200),
        (json!({"iat": now() + 400}), 401),
        (json!({"iat": now() + 400, "nbf": 0}), 401),
        (json!({"nbf": 1e300}), 401),
        (json!({"exp": 1e300}), 200),
        (json!({"exp": u64::MAX}), 200),
        (json!({"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}), 401),
        (json!({"cnf": {"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}}), 401),
        (json!({"cnf": {}}), 401),
    ] {
        let answer = send(&gate, with_token(&signer.token(&claims_with(changes.clone())))).await;
        assert_eq!(answer.status(), status, "{changes}");
        let challenge = field(answer.headers(), "www-authenticate").unwrap_or_default();
        assert_eq!(challenge.contains("error=\"invalid_token\""), status == 401, "{changes}: {challenge}");
    }
}

#[tokio::test]
async fn malformed_claims_make_the_token_unknown() {
    let signer = Signer::ed25519("k");
    let store = fixed(&signer).build().unwrap();
    let null = |name: &str| {
        let mut claims = claims();
        claims[name] = Value::Null;
        claims
    };
    for name in ["iss", "aud", "exp", "sub", "client_id", "iat", "jti", "nbf", "scope", "cnf"] {
        assert!(!accepts(&store, &signer.token(&null(name))).await, "{name}: null");
    }
    for changes in [
        json!({"exp": -1}),
        json!({"exp": "4000000000"}),
        json!({"exp": [4_000_000_000_u64]}),
        json!({"nbf": -0.5}),
        json!({"nbf": true}),
        json!({"iat": -1e300}),
        json!({"iat": {}}),
        json!({"sub": ""}),
        json!({"sub": 7}),
        json!({"client_id": ""}),
        json!({"jti": ""}),
        json!({"jti": 1}),
        json!({"cnf": "x"}),
        json!({"cnf": []}),
    ] {
        assert!(!accepts(&store, &signer.token(&claims_with(changes.clone()))).await, "{changes}");
    }
}

#[tokio::test]
async fn principals_subjects_and_quotas_come_from_functions() {
    let signer = Signer::ed25519("k");
    let token = signer.token(&claims_with(json!({"org": "acme", "plan": "pro"})));
    let quota = Quota::per_minute(600);
    let store = fixed(&signer)
        .with_subject(|claims| claims.get("org")?.as_str().map(str::to_owned))
        .with_subject_prefix("id:")
        .with_quota(move |claims| (claims.get("plan")? == "pro").then_some(quota))
        .with_principal(|claims| claims.subject().map(str::to_owned).ok_or("no subject"))
        .build()
        .unwrap();
    let grant = ask(&store, &token).await.unwrap().unwrap();
    assert_eq!((grant.subject().as_str(), grant.id().as_str()), ("id:acme", "id:t-1"));
    assert_eq!((grant.principal().as_str(), grant.quota()), ("alice", Some(quota)));
    assert!(!accepts(&store, &signer.token(&claims())).await, "without a subject, the token is unknown");

    type Failure = Box<dyn std::error::Error + Send + Sync>;
    let failures: [(bool, fn() -> Failure); 3] = [
        (true, || "no such user".into()),
        (false, || StoreError::new("down").into()),
        (false, || std::io::Error::other(StoreError::new("down")).into()),
    ];
    for (concerns_token, failure) in failures {
        let failing = fixed(&signer).with_principal(move |_| Err::<(), _>(failure()));
        let error = ask(&failing.build().unwrap(), &token).await.unwrap_err();
        assert_eq!(error.concerns_token(), concerns_token);
        assert_eq!(error.source().unwrap().to_string(), "the principal could not be created from the claims");
    }
}
