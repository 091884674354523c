//! `poll_ready` applies to one service instance: the gate calls the instance that it made ready.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tollgate::limit::RateLimits;
use tollgate::store::{GateStore, by_head, first_of, try_map};
use tollgate::{AuthLayer, BoxStore, MemoryStore, Quota};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_test::mock;

use crate::kit::*;

/// Panics if it is called without being ready, as `tower` permits. A clone is not ready.
struct Strict {
    ready: bool,
    made_ready: Arc<AtomicUsize>,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { ready: false, made_ready: Arc::clone(&self.made_ready) }
    }
}

impl Service<Request<Body>> for Strict {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if !self.ready {
            self.made_ready.fetch_add(1, Ordering::SeqCst);
        }
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without being ready");
        std::future::ready(Ok(Response::new(Body::default())))
    }
}

fn plenty() -> RateLimits {
    RateLimits::new(Quota::per_second(1_000_000))
}

/// Returns a store that waits for two stores and a function, and is chosen by the head.
fn combined() -> impl GateStore {
    let store = first_of(pending(MemoryStore::new()), slow());
    let store = try_map(store, |grant| async {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(Some(grant))
    });
    let store = BoxStore::new(store);
    by_head(move |_| Some(store.clone()))
}

macro_rules! in_all_branches {
    (|$layer:ident| $body:expr) => {{
        let $layer = AuthLayer::new(memory()).with_rate_limit(plenty());
        $body;
        let $layer = AuthLayer::with_timeout(slow(), Duration::from_secs(5)).with_rate_limit(plenty());
        $body;
        let $layer = AuthLayer::with_timeout(combined(), Duration::from_secs(5)).with_rate_limit(plenty());
        $body;
    }};
}

#[tokio::test]
async fn the_ready_instance_is_called() {
    in_all_branches!(|layer| {
        let made_ready = Arc::new(AtomicUsize::new(0));
        let mut service = layer.layer(Strict { ready: false, made_ready: Arc::clone(&made_ready) });
        for round in 1..=10 {
            let response = service.ready().await.unwrap().call(with_token(TOKEN)).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(made_ready.load(Ordering::SeqCst), round, "one `poll_ready` for each request");
        }
        // A rejection leaves the instance ready: the next request needs no `poll_ready` of the inner service.
        service.ready().await.unwrap().call(get()).await.unwrap();
        service.ready().await.unwrap().call(get()).await.unwrap();
        assert_eq!(made_ready.load(Ordering::SeqCst), 11);
        // Two requests at the same time.
        let first = service.ready().await.unwrap().call(with_token(TOKEN));
        let second = service.ready().await.unwrap().call(with_token(TOKEN));
        let (second, first) = (second.await.unwrap(), first.await.unwrap());
        assert_eq!((first.status(), second.status()), (http::StatusCode::OK, http::StatusCode::OK));
    });
}

#[tokio::test]
async fn a_request_uses_one_permit() {
    in_all_branches!(|layer| {
        let (mock, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
        handle.allow(1);
        let mut service = layer.layer(mock);
        let answer = tokio::spawn(service.ready().await.unwrap().call(with_token(TOKEN)));
        let (_, reply) = handle.next_request().await.unwrap();
        reply.send_response(Response::new(Body::default()));
        assert_eq!(answer.await.unwrap().unwrap().status(), 200);
        let mut next = poll_ready(&mut service);
        assert!(next.is_pending());
        handle.allow(1);
        next = poll_ready(&mut service);
        assert!(next.is_ready());
    });
}

fn poll_ready<S: Service<Request<Body>>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    service.poll_ready(&mut Context::from_waker(std::task::Waker::noop()))
}

#[tokio::test]
async fn works_above_buffer_and_concurrency_limit() {
    in_all_branches!(|layer| {
        let inner = ServiceBuilder::new().buffer(4).concurrency_limit(1).service(echo());
        let service = ServiceBuilder::new().layer(layer).service(inner);
        all_at_once(&service, (0..50).map(|_| (with_token(TOKEN), 200))).await;
    });
}

#[tokio::test]
async fn rejections_above_a_concurrency_limit_release_permits() {
    in_all_branches!(|layer| {
        let service = layer.layer(ServiceBuilder::new().concurrency_limit(2).service(echo()));
        let third = |i| if i % 3 == 0 { (with_token("unknown"), 401) } else { (with_token(TOKEN), 200) };
        all_at_once(&service, (0..60).map(third)).await;
    });
}

#[tokio::test]
async fn works_below_buffer_and_concurrency_limit() {
    in_all_branches!(|layer| {
        let service = ServiceBuilder::new().buffer(4).concurrency_limit(1).layer(layer).service(echo());
        all_at_once(&service, (0..50).map(|_| (with_token(TOKEN), 200))).await;
    });
}

#[tokio::test]
async fn works_above_and_below_load_shed() {
    in_all_branches!(|layer| {
        let above = ServiceBuilder::new().load_shed().layer(layer.clone()).concurrency_limit(1).service(echo());
        assert_eq!(above.oneshot(with_token(TOKEN)).await.unwrap().status(), 200);

        let below = layer.layer(ServiceBuilder::new().load_shed().concurrency_limit(1).service(echo()));
        let mut service = below.clone();
        assert_eq!(service.ready().await.unwrap().call(with_token(TOKEN)).await.unwrap().status(), 200);
        // Without a permit the request is shed, with the inner service's own error.
        let (never, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
        handle.allow(0);
        let shedding = layer.layer(ServiceBuilder::new().load_shed().service(never));
        let error = shedding.oneshot(with_token(TOKEN)).await.unwrap_err();
        assert!(error.is::<tower::load_shed::error::Overloaded>());
    });
}

#[tokio::test]
async fn works_in_boxed_services() {
    in_all_branches!(|layer| {
        let service: tower::util::BoxCloneSyncService<Request<Body>, Response<Body>, Infallible> =
            tower::util::BoxCloneSyncService::new(layer.layer(echo()));
        assert_eq!(service.clone().oneshot(with_token(TOKEN)).await.unwrap().status(), 200);
        assert_eq!(service.oneshot(get()).await.unwrap().status(), 401);
    });
}
