//! Errors about one token, and errors about the whole store: only the latter open a circuit breaker.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tollgate::limit::FailureThrottle;
use tollgate::mint::TokenFormat;
use tollgate::store::sql::{LastUsed, NewGrant};
use tollgate::store::{BreakerState, CachedStore, CheckedStore, CircuitBreaker, Pepper, PepperedStore, from_fn};
use tollgate::{Answer, AuthLayer, BearerToken, BoxStore, Grant, Quota, StoreError, TokenDigest, TokenStore};
use tower::{Layer, ServiceBuilder};

use crate::kit::introspection::{answer, builder, server};
use crate::kit::*;
use crate::servers::Home;

/// Long enough for a slow machine. No test waits for it.
const TIMEOUT: Duration = Duration::from_secs(60);
const HOLDERS: usize = 200;

fn holder(number: usize) -> String {
    format!("holder-token-{number}")
}

/// Sends the requests of all holders concurrently, and counts the responses other than 200.
async fn rejected_holders(service: &(impl AnyService + Clone + Send + 'static)) -> usize {
    let answers: Vec<_> = (0..HOLDERS)
        .map(|number| {
            let service = service.clone();
            tokio::spawn(async move { service.status(with_token(&holder(number))).await })
        })
        .collect();
    let mut rejected = 0;
    for answer in answers {
        rejected += usize::from(answer.await.unwrap() != 200);
    }
    rejected
}

/// A gate with an inner service of any type.
trait AnyService {
    fn status(&self, request: Request<Body>) -> impl Future<Output = u16> + Send;
}

type Boxed = tower::util::BoxCloneSyncService<Request<Body>, Response<Body>, std::convert::Infallible>;

impl AnyService for Boxed {
    async fn status(&self, request: Request<Body>) -> u16 {
        send(self, request).await.status().as_u16()
    }
}

/// Returns a gate with a cache and a circuit breaker in front of the store.
fn guarded<T: TokenStore>(store: T) -> (Boxed, CircuitBreaker<T>) {
    let breaker = CircuitBreaker::with_timeout(store, TIMEOUT).with_backoff(TIMEOUT, TIMEOUT).unwrap();
    let cache = CachedStore::new(breaker.clone(), TIMEOUT).unwrap();
    let gate = AuthLayer::with_timeout(cache, TIMEOUT * 2);
    (Boxed::new(ServiceBuilder::new().layer(gate).service(echo())), breaker)
}

#[derive(Deserialize)]
struct User {
    #[allow(dead_code, reason = "read from the row")]
    name: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_unreadable_row_does_not_affect_other_tokens() {
    let test = "one_unreadable_row_does_not_affect_other_tokens";
    let Some(home) = Home::postgres(test).await else { return };
    let database = home.database().await.with_timeout(TIMEOUT);
    database.migrate().await.unwrap();
    for number in 0..HOLDERS {
        let grant = NewGrant::new(format!("user-{number}")).with_principal(&json!({ "name": "A" })).unwrap();
        database.import(TokenDigest::of(holder(number)), &grant).await.unwrap();
    }
    let unreadable = NewGrant::new("mallory").with_principal("no object").unwrap();
    database.import(TokenDigest::of("unreadable-token"), &unreadable).await.unwrap();

    let (service, breaker) = guarded(database.store::<User>());
    for _ in 0..50 {
        assert_eq!(service.status(with_token("unreadable-token")).await, 503);
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
    assert_eq!(rejected_holders(&service).await, 0);
}

/// Starts an authorization server that knows the holders, and returns this response for all other tokens.
async fn authorization_server(junk: fn() -> Response<Body>) -> (SocketAddr, Arc<AtomicUsize>) {
    let junk_calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&junk_calls);
    let (address, _) = server(move |token| match token.strip_prefix("holder-token-") {
        Some(number) => answer(json!({"active": true, "sub": number}).to_string()),
        None => {
            count.fetch_add(1, Ordering::SeqCst);
            junk()
        }
    })
    .await;
    (address, junk_calls)
}

fn bad_request() -> Response<Body> {
    let mut response = answer(json!({"error": "invalid_request"}).to_string());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

fn active_without_subject() -> Response<Body> {
    answer(json!({"active": true}).to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn junk_that_the_endpoint_rejects_does_not_affect_other_tokens() {
    for junk in [bad_request, active_without_subject] {
        let (address, _) = authorization_server(junk).await;
        let (service, breaker) = guarded(builder(address).build().unwrap());
        let attack = |number: usize| {
            let service = service.clone();
            async move { service.status(with_token(&format!("junk-{number}"))).await }
        };
        for number in 0..50 {
            assert_eq!(attack(number).await, 503);
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
        // The attack continues during the requests of the holders.
        let stop = Arc::new(AtomicBool::new(false));
        let attacker = tokio::spawn({
            let (stop, service) = (Arc::clone(&stop), service.clone());
            async move {
                let mut number = 50;
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(service.status(with_token(&format!("junk-{number}"))).await, 503);
                    number += 1;
                }
            }
        });
        let rejected = rejected_holders(&service).await;
        stop.store(true, Ordering::SeqCst);
        attacker.await.unwrap();
        assert_eq!(rejected, 0);
    }
}

#[tokio::test]
async fn junk_costs_no_more_calls_of_the_endpoint_than_the_failure_throttle_allows() {
    for junk in [bad_request, active_without_subject] {
        let (address, calls) = authorization_server(junk).await;
        let throttle = FailureThrottle::new(Quota::per_hour(1).with_burst(20), |head| {
            head.headers.get("x-peer").map(|peer| peer.as_bytes().to_vec())
        });
        let gate = AuthLayer::with_timeout(builder(address).build().unwrap(), TIMEOUT)
            .with_failure_throttle(throttle.with_clock(|| Duration::ZERO));
        let service = Boxed::new(gate.layer(echo()));
        let mut statuses = Vec::new();
        for number in 0..500 {
            let mut request = with_token(&format!("junk-{number}"));
            request.headers_mut().insert("x-peer", "attacker".parse().unwrap());
            statuses.push(service.status(request).await);
        }
        assert_eq!(calls.load(Ordering::SeqCst), 20);
        assert_eq!(statuses[..20], [503; 20]);
        assert!(statuses[20..].iter().all(|status| *status == 429));
        let mut other = with_token(&holder(1));
        other.headers_mut().insert("x-peer", "holder".parse().unwrap());
        assert_eq!(service.status(other).await, 200);
    }
}

/// The authorization server never responds, and the clients give up before any timeout.
#[tokio::test]
async fn lookups_that_clients_abandon_late_open_the_breaker_and_are_not_charged_to_the_client() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            open.push(connection);
        }
    });
    let timeout = Duration::from_secs(2);
    let breaker = CircuitBreaker::with_timeout(builder(address).build().unwrap(), timeout)
        .with_backoff(TIMEOUT, TIMEOUT)
        .unwrap();
    let cache = CachedStore::new(breaker.clone(), TIMEOUT).unwrap();
    let throttle = FailureThrottle::new(Quota::per_hour(1).with_burst(5), |_| Some("the client"));
    let gate = AuthLayer::with_timeout(cache, timeout).with_failure_throttle(throttle);
    let service = Boxed::new(gate.layer(echo()));
    // As many concurrent requests as the burst allows.
    let clients: Vec<_> = (0..5)
        .map(|number| {
            let service = service.clone();
            let request = async move { service.status(with_token(&holder(number))).await };
            tokio::spawn(async move { tokio::time::timeout(timeout * 3 / 4, request).await })
        })
        .collect();
    for client in clients {
        // On a very slow machine, the timeout of the gate is first.
        assert!(matches!(client.await.unwrap(), Err(_) | Ok(503)));
    }
    assert_eq!(breaker.state(), BreakerState::Open);
    for number in 0..20 {
        assert_eq!(service.status(with_token(&holder(number))).await, 503, "not charged, or it would be 429");
    }
    connections.abort();
}

/// Returns a store with errors about one token and about the store.
fn failing() -> BoxStore<()> {
    BoxStore::new(from_fn(|digest| async move {
        Err::<Option<Grant<()>>, _>(match digest == TokenDigest::of("unreadable") {
            true => StoreError::for_token("a bad row"),
            false => StoreError::new("down"),
        })
    }))
}

/// The failure throttle calls `is_cached`.
#[tokio::test]
async fn every_wrapper_forwards_is_cached() {
    async fn check<T: TokenStore>(wrapper: &str, store: T) {
        let found = store.lookup(&BearerToken::new(TOKEN)).await;
        assert!(found.is_ok_and(|found| found.is_some()), "{wrapper}");
        assert!(
            store.is_cached(&BearerToken::new(TOKEN)) && !store.is_cached(&BearerToken::new("another")),
            "{wrapper}"
        );
    }
    let known = || from_fn(|_| std::future::ready(Ok::<_, StoreError>(Some(Grant::new("alice", ())))));
    let cache = || CachedStore::new(known(), TIMEOUT).unwrap();
    let home = Home::sqlite();
    let database = home.database().await;
    check("no wrapper", cache()).await;
    check("Arc", Arc::new(cache())).await;
    check("BoxStore", BoxStore::new(cache())).await;
    check("CircuitBreaker", CircuitBreaker::with_timeout(cache(), TIMEOUT)).await;
    check("CheckedStore", CheckedStore::new(cache(), TokenFormat::new("acme").unwrap()).with_imported_tokens()).await;
    let peppered = PepperedStore::new(cache(), Pepper::new([7; 32]).unwrap());
    check("PepperedStore", peppered.with_older(Pepper::new([8; 32]).unwrap())).await;
    check("LastUsedStore", LastUsed::new(&database).wrap(cache())).await;
    assert!(!known().is_cached(&BearerToken::new(TOKEN)), "a store is no cache");
}

#[tokio::test]
async fn every_wrapper_preserves_what_an_error_concerns() {
    async fn check<T: TokenStore>(wrapper: &str, store: T) {
        for token in ["unreadable", "another"] {
            let error = store.lookup(&BearerToken::new(token)).await.err().map(StoreError::new);
            assert_eq!(error.map(|error| error.concerns_token()), Some(token == "unreadable"), "{wrapper}");
        }
    }
    /// Replaces the peppered digest by the digest of the token.
    struct Unpeppered<T>(T);
    impl<T: TokenStore> TokenStore for Unpeppered<T> {
        type Principal = T::Principal;
        type Error = T::Error;
        type Future = T::Future;

        fn lookup(&self, token: &BearerToken<'_>) -> Answer<T::Future> {
            self.0.lookup(&BearerToken::new(token.expose()))
        }
    }
    let home = Home::sqlite();
    let database = home.database().await;
    check("no wrapper", failing()).await;
    check("Arc", Arc::new(failing())).await;
    check("BoxStore", BoxStore::new(failing())).await;
    check("CircuitBreaker", CircuitBreaker::with_timeout(failing(), TIMEOUT)).await;
    check("CachedStore", CachedStore::new(failing(), TIMEOUT).unwrap()).await;
    check("CheckedStore", CheckedStore::new(failing(), TokenFormat::new("acme").unwrap()).with_imported_tokens()).await;
    check("PepperedStore", PepperedStore::new(Unpeppered(failing()), Pepper::new([7; 32]).unwrap())).await;
    check("LastUsedStore", LastUsed::new(&database).wrap(failing())).await;
    let cache = CachedStore::new(CircuitBreaker::with_timeout(failing(), TIMEOUT), TIMEOUT).unwrap();
    check("all", BoxStore::new(Arc::new(LastUsed::new(&database).wrap(BoxStore::new(cache))))).await;
}
