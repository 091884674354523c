//! JWTs and opaque tokens on one gate.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use serde_json::json;
use tollgate::{AuthLayer, BoxStore, Grant, MemoryStore, Quota, RateLimits, TokenDigest, store};
use tower::{ServiceBuilder, ServiceExt as _, service_fn};

use crate::kit::jwt::*;

#[tokio::test]
async fn a_subject_has_one_limit_for_its_jwts_and_its_opaque_tokens() {
    let signer = Signer::ed25519("k");
    let jwts = fixed(&signer).with_principal(|_| Ok::<_, std::convert::Infallible>(())).build().unwrap();
    let opaque = Grant::new("key-1", ()).with_subject("alice");
    let opaque = MemoryStore::from_iter([(TokenDigest::of("acme_3f9a"), opaque)]);
    let stores = store::by_prefix([("ey", BoxStore::new(jwts)), ("acme_", BoxStore::new(opaque))]).unwrap();
    let limits = RateLimits::new(Quota::per_minute(1).with_burst(3)).with_clock(|| Duration::ZERO);
    let gate = AuthLayer::with_timeout(stores, Duration::from_secs(60)).with_rate_limit(limits);
    let service = ServiceBuilder::new()
        .layer(gate)
        .service(service_fn(async |_| Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::default()))));
    let ask = async |token: &str| {
        let request = Request::get("/").header("authorization", format!("Bearer {token}"));
        service.clone().oneshot(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap().status()
    };
    let of = |subject: &str| signer.token(&claims_with(json!({"sub": subject, "jti": subject})));
    let (alice, bob) = (of("alice"), of("bob"));
    assert_eq!(ask(&alice).await, StatusCode::OK);
    assert_eq!(ask("acme_3f9a").await, StatusCode::OK);
    assert_eq!(ask(&alice).await, StatusCode::OK);
    assert_eq!(ask("acme_3f9a").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(ask(&alice).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(ask(&bob).await, StatusCode::OK);
    // Each kind is looked up in its own store.
    assert_eq!(ask("ey").await, StatusCode::UNAUTHORIZED);
    assert_eq!(ask("other").await, StatusCode::UNAUTHORIZED);
}
