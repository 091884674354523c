//! `poll_ready` with bodies: the gate calls the instance that it made ready before reading the body.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use tollgate::AuthLayer;
use tollgate::gate::ReplayBody;
use tower::{Layer as _, Service, ServiceBuilder, ServiceExt as _};
use tower_test::mock;

use crate::kit::body::*;
use crate::kit::*;

/// Panics if it is called without being ready. A clone is not ready.
struct Strict {
    ready: bool,
    made_ready: Arc<AtomicUsize>,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { ready: false, made_ready: Arc::clone(&self.made_ready) }
    }
}

impl Service<Request<ReplayBody<Script>>> for Strict {
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

    fn call(&mut self, _: Request<ReplayBody<Script>>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without being ready");
        std::future::ready(Ok(Response::new(Body::default())))
    }
}

macro_rules! in_both_branches {
    (|$layer:ident| $body:expr) => {{
        let $layer = AuthLayer::new(memory()).with_rate_limit(plenty()).with_body_tokens(body_tokens());
        $body;
        let $layer = pending_gate().with_body_tokens(body_tokens()).with_rate_limit(plenty());
        $body;
    }};
}

/// Returns a request whose body arrives in pieces, with waits between them.
fn in_pieces(token: &str) -> Request<Script> {
    let body = json_with(token).into_bytes();
    let steps = body.chunks(10).flat_map(|chunk| [Step::Wait, Step::Data(chunk.to_vec())]);
    post(JSON, Script::new(steps))
}

fn in_head(token: &str) -> Request<Script> {
    let request = Request::get("/").header("authorization", format!("Bearer {token}"));
    request.body(Script::new([])).unwrap()
}

#[tokio::test]
async fn the_ready_instance_is_called_after_the_body() {
    in_both_branches!(|layer| {
        let made_ready = Arc::new(AtomicUsize::new(0));
        let mut service = layer.layer(Strict { ready: false, made_ready: Arc::clone(&made_ready) });
        for round in 1..=10 {
            let request = if round % 2 == 0 { in_pieces(TOKEN) } else { in_head(TOKEN) };
            let response = service.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(made_ready.load(Ordering::SeqCst), round, "one `poll_ready` for each request");
        }
        // A rejection without reading leaves the instance ready. A rejection after reading has consumed it.
        let malformed = || in_head("mal formed");
        for (request, status, prepared) in
            [(malformed(), 401, 11), (malformed(), 401, 11), (in_pieces("mal formed"), 401, 11), (malformed(), 401, 12)]
        {
            let response = service.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!((response.status().as_u16(), made_ready.load(Ordering::SeqCst)), (status, prepared));
        }
        // Two requests at the same time.
        let first = service.ready().await.unwrap().call(in_pieces(TOKEN));
        let second = service.ready().await.unwrap().call(in_pieces(TOKEN));
        let (second, first) = (second.await.unwrap(), first.await.unwrap());
        assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    });
}

fn poll_ready<S: Service<Request<Script>>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    service.poll_ready(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_request_with_a_body_uses_one_permit() {
    in_both_branches!(|layer| {
        let (mock, mut handle) = mock::pair::<Request<ReplayBody<Script>>, Response<Body>>();
        handle.allow(1);
        let mut service = layer.layer(mock);
        let mut answer = tokio::spawn(service.ready().await.unwrap().call(in_pieces(TOKEN)));
        let (request, reply) = tokio::select! {
            request = handle.next_request() => request.unwrap(),
            answer = &mut answer => panic!("answered by the gate: {answer:?}"),
        };
        assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), json_with(TOKEN));
        reply.send_response(Response::new(Body::default()));
        assert_eq!(answer.await.unwrap().unwrap().status(), 200);
        assert!(poll_ready(&mut service).is_pending());
        handle.allow(1);
        assert!(poll_ready(&mut service).is_ready());
    });
}

#[tokio::test]
async fn works_above_a_concurrency_limit() {
    in_both_branches!(|layer| {
        let inner = ServiceBuilder::new().concurrency_limit(2).service(reader::<Script>(&Runs::default()));
        let service = layer.layer(inner);
        let sixth = |i| match i % 6 {
            0 => (in_pieces("unknown"), 401),
            1 => (post(JSON, Script::new([Step::Wait, Step::Fail])), 400),
            2 => (post(JSON, Script::new([Step::Wait, Step::Data(vec![b' '; 65_537])])), 413),
            3 => (in_head("unknown"), 401),
            4 => (in_head(TOKEN), 200),
            _ => (in_pieces(TOKEN), 200),
        };
        all_at_once(&service, (0..60).map(sixth)).await;
    });
}

#[tokio::test]
async fn works_below_buffer_and_concurrency_limit() {
    in_both_branches!(|layer| {
        let inner = reader::<Script>(&Runs::default());
        let service = ServiceBuilder::new().buffer(4).concurrency_limit(1).layer(layer).service(inner);
        all_at_once(&service, (0..20).map(|_| (in_pieces(TOKEN), 200))).await;
    });
}

#[tokio::test]
async fn a_dropped_request_releases_its_permit() {
    in_both_branches!(|layer| {
        let runs = Runs::default();
        let inner = ServiceBuilder::new().concurrency_limit(1).service(reader::<Script>(&runs));
        let mut service = layer.layer(inner);
        let silent = post(JSON, Script::new([Step::Data(b"{".to_vec()), Step::Silence]));
        let mut in_progress = Box::pin(service.ready().await.unwrap().call(silent));
        let mut context = Context::from_waker(Waker::noop());
        assert!(in_progress.as_mut().poll(&mut context).is_pending());
        assert!(poll_ready(&mut service).is_pending(), "the request holds the only permit");
        assert_eq!(format!("{in_progress:?}"), "BodyAuthFuture(..)");
        drop(in_progress);
        assert_eq!(service.ready().await.unwrap().call(in_pieces(TOKEN)).await.unwrap().status(), 200);
        assert_eq!(runs.count(), 1);
    });
}

#[tokio::test]
async fn works_in_boxed_services() {
    in_both_branches!(|layer| {
        let service: tower::util::BoxCloneSyncService<Request<Script>, Response<Body>, Infallible> =
            tower::util::BoxCloneSyncService::new(layer.layer(reader(&Runs::default())));
        assert_eq!(service.clone().oneshot(in_pieces(TOKEN)).await.unwrap().status(), 200);
        assert_eq!(service.oneshot(in_pieces("unknown")).await.unwrap().status(), 401);
    });
}
