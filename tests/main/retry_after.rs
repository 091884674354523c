//! Every 503 response has `Retry-After`.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Response;
use tollgate::store::{CachedStore, CircuitBreaker, from_fn};
use tollgate::{
    Answer, AuthLayer, BoxStore, Charge, CurrentGrant, Decision, EmptyBody, Grant, Immediate, Limiter, MemoryStore,
    Rejection, RejectionKind, TokenDigest,
};
use tower::{Layer, ServiceBuilder};

use crate::kit::*;

const SECOND: Duration = Duration::from_secs(1);

/// Returns `Retry-After` of a response, if the status is 503 or its equivalent in gRPC.
fn unavailable(response: &Response<Body>) -> Option<Option<u64>> {
    let is_unavailable =
        response.status() == 503 || field(response.headers(), "grpc-status").is_some_and(|status| status == "14");
    is_unavailable.then(|| field(response.headers(), "retry-after").map(|seconds| seconds.parse().unwrap()))
}

/// A limiter whose server is unavailable.
#[derive(Clone)]
struct Unavailable(Duration);

impl Limiter for Unavailable {
    type Future = Immediate<Decision>;

    fn charge(&self, _: &CurrentGrant, _: Charge<'_>) -> Answer<Self::Future> {
        Answer::Ready(Decision::unavailable(self.0))
    }
}

fn grpc(mut request: http::Request<Body>) -> http::Request<Body> {
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    request
}

type Boxed = tower::util::BoxCloneSyncService<http::Request<Body>, Response<Body>, std::convert::Infallible>;

#[tokio::test]
async fn every_cause_of_a_503_has_retry_after() {
    let failing = || BoxStore::new(from_fn(|_| async { Err::<Option<Grant<()>>, _>("down") }));
    let silent = || BoxStore::new(from_fn(|_| std::future::pending::<Result<Option<Grant<()>>, &str>>()));
    let gate = |store| AuthLayer::with_timeout(store, SECOND / 50);
    let known = || AuthLayer::new(MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]));
    let tripped = CircuitBreaker::with_timeout(failing(), SECOND)
        .with_failure_threshold(NonZeroU32::MIN)
        .with_backoff(5 * SECOND, 5 * SECOND)
        .unwrap();
    let half_open = CircuitBreaker::with_timeout(silent(), SECOND / 100)
        .with_failure_threshold(NonZeroU32::MIN)
        .with_backoff(Duration::ZERO, Duration::ZERO)
        .unwrap();
    let own_response = |rejection: &Rejection| {
        assert_eq!(rejection.kind(), RejectionKind::StoreUnavailable);
        let mut response = Response::new(Body::default());
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        response
    };
    let services = [
        ("the store fails", Boxed::new(gate(failing()).layer(echo()))),
        ("the store fails, another responder", Boxed::new(gate(failing()).with_responder(EmptyBody).layer(echo()))),
        ("the store fails, custom response", Boxed::new(gate(failing()).with_response_fn(own_response).layer(echo()))),
        ("timeout of the gate", Boxed::new(gate(silent()).layer(echo()))),
        ("open breaker", Boxed::new(AuthLayer::with_timeout(tripped, SECOND).layer(echo()))),
        ("half-open breaker", Boxed::new(AuthLayer::with_timeout(half_open, SECOND).layer(echo()))),
        (
            "unavailable limiter without a retry time",
            Boxed::new(known().with_rate_limit(Unavailable(Duration::ZERO)).layer(echo())),
        ),
        ("unavailable limiter", Boxed::new(known().with_rate_limit(Unavailable(SECOND * 3 / 2)).layer(echo()))),
    ];
    for (cause, service) in services {
        for round in 0..3 {
            for request in [with_token(TOKEN), grpc(with_token(TOKEN))] {
                let retry_after = unavailable(&send(&service, request).await);
                assert!(matches!(retry_after, Some(Some(1..))), "{cause}, round {round}: {retry_after:?}");
            }
        }
    }
    // A handler that charges the limiter itself.
    let rejection = Decision::unavailable(Duration::ZERO).into_result().unwrap_err();
    let response = axum::response::IntoResponse::into_response(rejection);
    assert_eq!(field(response.headers(), "retry-after"), Some("1"));
}

#[tokio::test]
async fn a_custom_response_keeps_its_own_retry_after() {
    let own_response = |_: &Rejection| {
        let response = Response::builder().status(503).header("retry-after", "77");
        response.body(Body::default()).unwrap()
    };
    let store = from_fn(|_| async { Err::<Option<Grant<()>>, _>("down") });
    let service = AuthLayer::with_timeout(store, SECOND).with_response_fn(own_response).layer(echo());
    assert_eq!(unavailable(&send(&service, with_token(TOKEN)).await), Some(Some(77)));
}

/// The store fails, stops responding and recovers during many requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_503_has_retry_after_while_a_breaker_opens_probes_and_closes() {
    let mode = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&mode);
    let store = from_fn(move |_| {
        let now = Arc::clone(&now);
        async move {
            let mut random = [0];
            getrandom::fill(&mut random).unwrap();
            match now.load(Ordering::SeqCst) {
                0 => Ok(Some(Grant::new("alice", ()))),
                1 => Err("down"),
                2 => std::future::pending().await,
                _ => {
                    tokio::time::sleep(Duration::from_millis(u64::from(random[0]) / 4)).await;
                    if random[0] % 2 == 0 { Ok(None) } else { Err("down") }
                }
            }
        }
    });
    let breaker = CircuitBreaker::with_timeout(store, Duration::from_millis(30))
        .with_failure_threshold(NonZeroU32::new(3).unwrap())
        .with_backoff(Duration::from_millis(5), Duration::from_millis(40))
        .unwrap();
    let cache = CachedStore::new(breaker, Duration::from_millis(1)).unwrap();
    let services: Vec<Boxed> = [10, 45, 500]
        .map(|timeout| {
            let gate = AuthLayer::with_timeout(cache.clone(), Duration::from_millis(timeout));
            Boxed::new(ServiceBuilder::new().layer(gate).service(echo()))
        })
        .into();
    let (answered, rejected) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..64)
        .map(|client| {
            let (service, answered, rejected) =
                (services[client % services.len()].clone(), Arc::clone(&answered), Arc::clone(&rejected));
            tokio::spawn(async move {
                for number in 0..60 {
                    let request = with_token(&format!("token-{client}-{number}"));
                    let response = send(&service, if number % 2 == 0 { request } else { grpc(request) }).await;
                    answered.fetch_add(1, Ordering::SeqCst);
                    if let Some(retry_after) = unavailable(&response) {
                        rejected.fetch_add(1, Ordering::SeqCst);
                        let why = response.extensions().get::<Rejection>();
                        assert!(retry_after.is_some_and(|seconds| seconds >= 1), "{why:?}");
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    let changes = tokio::spawn(async move {
        for next in (0..4).cycle() {
            mode.store(next, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    });
    for client in clients {
        client.await.unwrap();
    }
    changes.abort();
    let (answered, rejected) = (answered.load(Ordering::SeqCst), rejected.load(Ordering::SeqCst));
    assert!(rejected > 0 && rejected < answered, "{rejected} of {answered}");
}
