//! Grants from introspection responses.

use std::error::Error as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tollgate::mint::TokenFormat;
use tollgate::store::CheckedStore;
use tollgate::store::contract::Contract;
use tollgate::{BoxStore, Quota, TokenStore};

use crate::kit::introspection::*;
use crate::kit::*;

#[tokio::test]
async fn introspection_fulfils_the_contract() {
    let subjects = [(TOKEN, "alice"), ("tg_another_token_of_alice", "alice"), ("tg_token_of_bob", "bob")];
    let (address, _) = server(move |token| {
        let subject = subjects.iter().find(|(known, _)| *known == token).map(|(_, subject)| *subject);
        answer(match subject {
            Some(subject) => json!({"active": true, "sub": subject, "scope": "trade"}).to_string(),
            None => json!({"active": false}).to_string(),
        })
    })
    .await;
    async fn check<T: TokenStore + std::fmt::Debug>(store: T) {
        let contract = Contract::new(store).knows(TOKEN, "alice").knows("tg_another_token_of_alice", "alice");
        contract.knows("tg_token_of_bob", "bob").has_revoked("tg_gone_token").check().await;
    }
    check(store(address)).await;
    check(BoxStore::new(store(address))).await;
    check(CheckedStore::new(store(address), TokenFormat::new("acme").unwrap()).with_imported_tokens()).await;
    #[cfg(feature = "cache")]
    check(tollgate::store::CachedStore::new(store(address), Duration::from_secs(60)).unwrap()).await;
}

#[tokio::test]
async fn active_tokens_have_grants() {
    let grant = grant(json!({
        "sub": "u-17", "client_id": "app", "username": "Alice", "jti": "t-1", "iss": "https://id.example",
        "scope": "orders:read trade", "exp": 4_000_000_000_u64, "nbf": 1_000_000_000, "iat": 1_000_000_001,
        "token_type": "bearer", "aud": ["https://api.example", "other"], "plan": {"name": "pro"},
    }))
    .await;
    assert_eq!((grant.id().as_str(), grant.subject().as_str()), ("t-1", "u-17"));
    assert_eq!(grant.scopes().to_string(), "orders:read trade");
    let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!((grant.not_before(), grant.expires_at()), (at(1_000_000_000), at(4_000_000_000)));
    assert!(!grant.is_sender_constrained() && grant.quota().is_none());
    let claims = grant.principal();
    assert_eq!((claims.subject(), claims.client_id(), claims.username()), (Some("u-17"), Some("app"), Some("Alice")));
    assert_eq!((claims.issuer(), claims.token_id()), (Some("https://id.example"), Some("t-1")));
    assert!(claims.audiences().eq(["https://api.example", "other"]));
    assert_eq!((claims.not_before(), claims.expires_at()), (grant.not_before(), grant.expires_at()));
    assert_eq!(claims.issued_at(), at(1_000_000_001));
    assert_eq!((claims.scopes(), claims.is_sender_constrained()), (grant.scopes(), false));
    assert_eq!((claims.get("plan").unwrap()["name"].as_str(), claims.get("none")), (Some("pro"), None));
    assert_eq!(format!("{claims:?}"), "Claims(..)");
}

#[tokio::test]
async fn the_subject_is_sub_client_id_or_username() {
    async fn names(claims: Value) -> (String, String) {
        let grant = ask(&store(says(claims).await.0)).await.unwrap().unwrap();
        (grant.id().to_string(), grant.subject().to_string())
    }
    let two = |id: &str, subject: &str| (id.to_owned(), subject.to_owned());
    assert_eq!(names(json!({"active": true, "sub": "s", "client_id": "c", "username": "u"})).await, two("s", "s"));
    assert_eq!(names(json!({"active": true, "client_id": "c", "username": "u", "jti": "j"})).await, two("j", "c"));
    assert_eq!(names(json!({"active": true, "username": "u"})).await, two("u", "u"));
    // Ids appear in logs.
    assert_eq!(names(json!({"active": true, "sub": "s", "jti": TOKEN})).await, two("s", "s"));
    #[cfg(feature = "pepper")]
    {
        use tollgate::BearerToken;
        use tollgate::store::{Pepper, PepperedStore};
        let address = says(json!({"active": true, "sub": "s", "jti": TOKEN})).await.0;
        let peppered = PepperedStore::new(store(address), Pepper::new([7; 32]).unwrap());
        let grant = peppered.lookup(&BearerToken::new(TOKEN)).await.unwrap().unwrap();
        assert_eq!(grant.id().as_str(), "s", "an id is never the token");
    }

    let address = says(json!({"active": true, "sub": "s", "jti": "j"})).await.0;
    let grant = ask(&builder(address).with_subject_prefix("acme:").build().unwrap()).await.unwrap().unwrap();
    assert_eq!((grant.id().as_str(), grant.subject().as_str()), ("acme:j", "acme:s"));
    let without_subject = builder(says(json!({"active": true, "jti": "j"})).await.0).with_subject_prefix("acme:");
    fails(without_subject.build().unwrap(), "a prefix is no subject").await;
}

#[tokio::test]
async fn members_are_parsed() {
    for (scope, all) in [("", ""), ("a", "a"), ("b a", "b a"), (" a  b ", "a b"), ("!#[]~", "!#[]~")] {
        assert_eq!(grant(json!({ "scope": scope })).await.scopes().to_string(), all, "{scope:?}");
    }
    let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
    for (date, down, up) in [
        (json!(7), at(7), at(7)),
        (json!(7.0), at(7), at(7)),
        (json!(7.001), at(7), at(8)),
        (json!(7.999), at(7), at(8)),
        (json!(1.5e9), at(1_500_000_000), at(1_500_000_000)),
        (json!(18_446_744_073_u64), at(18_446_744_073), at(18_446_744_073)),
    ] {
        let grant = grant(json!({"exp": date, "nbf": date, "iat": date})).await;
        assert_eq!((grant.expires_at(), grant.not_before()), (down, up), "{date}");
        assert_eq!(grant.principal().issued_at(), down, "{date}");
    }
    let epoch = grant(json!({"exp": 0, "nbf": 0})).await;
    assert_eq!((epoch.expires_at(), epoch.not_before()), (at(0), None), "1970 has passed");
    for late in [json!(u64::MAX), json!(i64::MAX), json!(1e300), json!(20_000_000_000_u64)] {
        let grant = grant(json!({"exp": late, "nbf": late})).await;
        assert_eq!(grant.expires_at(), None, "{late} is treated as never");
        assert!(!grant.is_valid_at(SystemTime::now() + Duration::from_secs(15_000_000_000)), "{late}");
    }
    for (claims, constrained) in [
        (json!({"token_type": "Bearer"}), false),
        (json!({"token_type": "BEARER"}), false),
        (json!({"token_type": "DPoP"}), true),
        (json!({"token_type": "dpop"}), true),
        (json!({"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}), true),
        (json!({"cnf": {"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}, "token_type": "Bearer"}), true),
        (json!({"cnf": {}}), true),
    ] {
        let grant = grant(claims.clone()).await;
        let both = (grant.is_sender_constrained(), grant.principal().is_sender_constrained());
        assert_eq!(both, (constrained, constrained), "{claims}");
    }
}

#[tokio::test]
async fn the_gate_checks_expiry_and_sender_constraint() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for (claims, status, error) in [
        (json!({"active": true, "sub": "a", "exp": now + 600, "nbf": now - 600}), 200, None),
        (json!({"active": true, "sub": "a", "exp": now - 1}), 401, Some("invalid_token")),
        (json!({"active": true, "sub": "a", "exp": 0}), 401, Some("invalid_token")),
        (json!({"active": true, "sub": "a", "nbf": now + 600}), 401, Some("invalid_token")),
        (json!({"active": true, "sub": "a", "cnf": {"jkt": "k"}}), 401, Some("invalid_token")),
        (json!({"active": true, "sub": "a", "token_type": "DPoP"}), 401, Some("invalid_token")),
        (json!({"active": true, "sub": "a", "token_use": "refresh_token"}), 401, Some("invalid_token")),
        (json!({"active": true, "sub": "a", "token_use": "access_token"}), 200, None),
        (json!({"active": false}), 401, Some("invalid_token")),
        // The other members of an inactive token are ignored.
        (json!({"active": false, "exp": "CANARY", "sub": 7}), 401, Some("invalid_token")),
    ] {
        let answer = send_through_gate(store(says(claims.clone()).await.0)).await;
        assert_eq!(answer.status(), status, "{claims}");
        let challenge = field(answer.headers(), "www-authenticate").unwrap_or_default();
        assert_eq!(challenge.contains("error=\"invalid_token\""), error.is_some(), "{claims}: {challenge}");
    }
}

#[tokio::test]
async fn tokens_for_other_audiences_are_unknown() {
    for (aud, is_ours) in [
        (json!("https://api.example"), true),
        (json!(["x", "https://api.example"]), true),
        (json!(["second"]), true),
        (json!("https://api.example/"), false),
        (json!("HTTPS://API.EXAMPLE"), false),
        (json!([]), false),
        (json!(""), false),
        (json!(["x", "y"]), false),
    ] {
        let address = says(json!({"active": true, "sub": "alice", "aud": aud})).await.0;
        let ours = builder(address).with_audience("https://api.example").with_audience("second").build().unwrap();
        assert_eq!(ask(&ours).await.unwrap().is_some(), is_ours, "{aud}");
        assert!(ask(&store(address)).await.unwrap().is_some(), "{aud}: no audience is required");
    }
    let without = says(json!({"active": true, "sub": "alice"})).await.0;
    assert!(ask(&builder(without).with_audience("a").build().unwrap()).await.unwrap().is_none());
}

#[tokio::test]
async fn principals_and_quotas_come_from_functions() {
    let address = says(json!({"active": true, "sub": "alice", "username": "Alice", "plan": "pro"})).await.0;
    let quota = Quota::per_minute(600);
    let store = builder(address)
        .with_principal(|claims| claims.username().map(str::to_owned).ok_or("no name"))
        .with_quota(move |claims| (claims.get("plan")? == "pro").then_some(quota))
        .build()
        .unwrap();
    let found = ask(&store).await.unwrap().unwrap();
    assert_eq!((found.principal().as_str(), found.quota()), ("Alice", Some(quota)));

    let rejecting_store =
        builder(address).with_quota(move |_| Some(quota)).with_principal(|_| Err::<(), _>("no such user"));
    let error = fails(rejecting_store.build().unwrap(), "no principal").await;
    assert_eq!(error.source().unwrap().to_string(), "no such user");
}
