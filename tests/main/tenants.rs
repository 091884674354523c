//! Stores that are chosen by the head of a request.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::time::Duration;

use http::{Request, header};
use tollgate::store::contract::Contract;
use tollgate::store::{ByHead, CachedStore, GateStore, by_head, from_fn};
use tollgate::{
    Answer, AuthLayer, BearerToken, BoxStore, CurrentGrant, Grant, MemoryStore, RequestHead, TokenDigest, TokenStore,
};
use tower::Layer;

use crate::kit::*;

const TTL: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Looks tokens up for requests to one host, as a store for the contract.
#[derive(Debug)]
struct AtHost<T>(T, &'static str);

impl<T: GateStore> TokenStore for AtHost<T> {
    type Principal = T::Principal;
    type Error = T::Error;
    type Future = T::Future;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        self.0.lookup_for(token, &RequestHead::of(&to_host(self.1, "unused")))
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        self.0.is_cached_for(token, &RequestHead::of(&to_host(self.1, "unused")))
    }
}

fn to_host(host: &str, token: &str) -> Request<Body> {
    let mut request = with_token(token);
    request.headers_mut().insert(header::HOST, host.parse().unwrap());
    request
}

fn tenants<T: TokenStore + Clone>(
    stores: impl IntoIterator<Item = (&'static str, T)>,
) -> ByHead<impl Fn(&RequestHead<'_>) -> Option<T> + Send + Sync + 'static> {
    let stores: HashMap<_, _> = stores.into_iter().collect();
    by_head(move |head| stores.get(head.host()?).cloned())
}

fn with_one_token(token: &str, subject: &'static str) -> MemoryStore<User> {
    [(TokenDigest::of(token), Grant::new(subject, User(subject)))].into_iter().collect()
}

#[tokio::test]
async fn a_store_of_one_host_fulfils_the_contract() {
    async fn check<T: TokenStore + Debug>(store: T) {
        Contract::new(store).knows(TOKEN, "alice").has_revoked("tg_gone").check().await;
    }
    check(AtHost(tenants([("acme.test", memory())]), "acme.test")).await;
    check(AtHost(tenants([("acme.test", slow())]), "acme.test")).await;
    check(AtHost(tenants([("acme.test", CachedStore::new(slow(), TTL).unwrap())]), "acme.test")).await;
}

#[tokio::test]
async fn an_outage_of_one_tenant_affects_that_tenant_only() {
    let down = || BoxStore::new(from_fn(|_| async { Err::<Option<Grant<User>>, _>(io::Error::other("reset")) }));
    let stores = || tenants([("acme.test", slow()), ("beta.test", down())]);
    Contract::new(AtHost(stores(), "beta.test")).knows(TOKEN, "alice").check_outage().await;
    let service = AuthLayer::with_timeout(stores(), TIMEOUT).layer(echo());
    all_at_once(
        &service,
        [("acme.test", 200), ("beta.test", 503), ("gamma.test", 401)]
            .map(|(host, status)| (to_host(host, TOKEN), status)),
    )
    .await;
}

#[tokio::test]
async fn a_token_is_valid_for_its_tenant_only() {
    let (acme, beta) = (with_one_token("acme-token", "acme/alice"), with_one_token("beta-token", "beta/bob"));
    let behind_cache = |tokens| CachedStore::new(pending(tokens), TTL).unwrap();
    let immediate = AuthLayer::new(tenants([("acme.test", acme.clone()), ("beta.test", beta.clone())])).layer(echo());
    let cached = tenants([("acme.test", behind_cache(acme)), ("beta.test", behind_cache(beta))]);
    let cached = AuthLayer::with_timeout(cached, TIMEOUT).layer(echo());
    let requests = [
        ("acme.test", "acme-token", 200),
        ("acme.test:8443", "acme-token", 200),
        ("acme.test", "beta-token", 401),
        ("beta.test", "beta-token", 200),
        ("beta.test", "acme-token", 401),
        ("other.test", "acme-token", 401),
        ("", "acme-token", 401),
    ];
    // The second round finds its answers in the caches.
    for _ in 0..2 {
        for (host, token, status) in requests {
            assert_eq!(send(&immediate, to_host(host, token)).await.status(), status, "{host} {token}");
            assert_eq!(send(&cached, to_host(host, token)).await.status(), status, "{host} {token}");
        }
        assert_eq!(send(&immediate, with_token("acme-token")).await.status(), 401, "without a host");
    }
    let concurrent = (0..20).flat_map(|_| requests.map(|(host, token, status)| (to_host(host, token), status)));
    all_at_once(&cached, concurrent).await;
    let response = send(&cached, to_host("beta.test", "beta-token")).await;
    assert_eq!(response.extensions().get::<CurrentGrant>().unwrap().principal::<User>(), Some(&User("beta/bob")));
}

#[tokio::test]
async fn the_path_selects_a_store() {
    let stores = HashMap::from([("acme", with_one_token("a-token", "acme")), ("beta", with_one_token("b-token", "b"))]);
    let store = by_head(move |head| stores.get(head.uri.path().split('/').nth(1)?).cloned());
    let service = AuthLayer::new(store).layer(echo());
    for (path, status) in [("/acme/orders", 200), ("/acme", 200), ("/beta/orders", 401), ("/", 401), ("/x/acme", 401)] {
        let mut request = with_token("a-token");
        *request.uri_mut() = path.parse().unwrap();
        assert_eq!(send(&service, request).await.status(), status, "{path}");
    }
}

#[tokio::test]
async fn by_head_forwards_is_cached() {
    let cache = CachedStore::new(slow(), TTL).unwrap();
    cache.lookup(&BearerToken::new(TOKEN)).await.unwrap();
    let is_cached =
        |host, token: &str| AtHost(tenants([("acme.test", cache.clone())]), host).is_cached(&BearerToken::new(token));
    assert!(is_cached("acme.test", TOKEN) && !is_cached("acme.test", "another") && !is_cached("beta.test", TOKEN));
}

#[cfg(feature = "body")]
#[tokio::test]
async fn a_token_in_a_body_is_looked_up_in_the_store_of_the_host() {
    use tollgate::gate::BodyTokens;

    let stores = tenants([("acme.test", memory())]);
    let tokens = BodyTokens::with_timeout(TIMEOUT).with_json("token").unwrap();
    let service = AuthLayer::new(stores).with_body_tokens(tokens).layer(tower::service_fn(|_| async {
        Ok::<_, std::convert::Infallible>(http::Response::new(Body::default()))
    }));
    for (host, status) in [("acme.test", 200), ("beta.test", 401)] {
        let body = Body::from(format!(r#"{{"token": "{TOKEN}"}}"#));
        let request = Request::post("/").header("host", host).header("content-type", "application/json").body(body);
        assert_eq!(send(&service, request.unwrap()).await.status(), status, "{host}");
    }
}
