//! Helpers for tests of tokens in bodies: gates, requests, scripted bodies and a handler that reads them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Debug;
use std::io;
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use proptest::sample::Index;
use tollgate::extract::Extracted;
use tollgate::gate::{BodyAuthLayer, BodyTokens, ReplayBody};
use tollgate::limit::RateLimits;
use tollgate::{
    AuthLayer, BoxStore, CurrentGrant, Limiter, MemoryStore, Quota, Rejection, RejectionKind, TokenLocation, TokenStore,
};
use tower::{Layer as _, Service, ServiceExt as _};

use crate::kit::*;

pub const TIMEOUT: Duration = Duration::from_secs(5);
pub const JSON: &str = "application/json";
pub const TEXT: &str = "text/plain";
pub const FORM: &str = "application/x-www-form-urlencoded";

/// Returns a configuration with all body locations enabled.
pub fn body_tokens() -> BodyTokens {
    BodyTokens::with_timeout(TIMEOUT)
        .with_json("key")
        .unwrap()
        .with_text("key")
        .unwrap()
        .with_form("access_token")
        .unwrap()
}

pub fn gate() -> BodyAuthLayer<MemoryStore<User>> {
    AuthLayer::new(memory()).with_body_tokens(body_tokens())
}

pub fn pending_gate() -> AuthLayer<BoxStore<User>> {
    AuthLayer::with_timeout(slow(), TIMEOUT)
}

pub fn json_with(token: &str) -> String {
    format!(r#"{{"qty": 1, "key": "{token}", "side": "buy"}}"#)
}

pub fn post<B>(content_type: &str, body: B) -> Request<B> {
    Request::post("/").header("content-type", content_type).body(body).unwrap()
}

pub fn authorized<B>(mut request: Request<B>) -> Request<B> {
    request.headers_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    request
}

/// Counts the runs of a handler.
#[derive(Clone, Default)]
pub struct Runs(Arc<AtomicUsize>);

impl Runs {
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// The trailers that a handler received.
#[derive(Clone, Debug, PartialEq)]
pub struct Trailers(pub Option<HeaderMap>);

/// Returns an inner service that reads the body and sends it back.
pub fn reader<B>(
    runs: &Runs,
) -> impl Service<Request<ReplayBody<B>>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ Sync
+ 'static
where
    B: http_body::Body + Send + 'static,
    B::Error: Debug,
{
    let runs = runs.clone();
    tower::service_fn(move |request: Request<ReplayBody<B>>| {
        runs.0.fetch_add(1, Ordering::SeqCst);
        async move {
            let (head, body) = request.into_parts();
            let collected = body.collect().await.unwrap();
            let trailers = collected.trailers().cloned();
            let mut response = Response::new(Body::from(collected.to_bytes()));
            if let Some(sum) = trailers.as_ref().and_then(|trailers| trailers.get("x-sum")) {
                response.headers_mut().insert("x-seen-sum", sum.clone());
            }
            *response.extensions_mut() = head.extensions;
            response.extensions_mut().insert(Trailers(trailers));
            Ok(response)
        }
    })
}

/// Sends a request to a gate around a [`reader`] and returns the response and the runs of the reader.
pub async fn respond<T: TokenStore, L: Limiter, B>(
    layer: &BodyAuthLayer<T, L>,
    request: Request<B>,
) -> (Response<Body>, usize)
where
    B: http_body::Body + Send + 'static,
    B::Error: Debug,
{
    let runs = Runs::default();
    let response = layer.layer(reader(&runs)).oneshot(request).await.unwrap_or_else(|never| match never {});
    (response, runs.count())
}

/// Returns why a gate rejects a request. Asserts that the handler did not run.
pub async fn rejection_kind<T: TokenStore, L: Limiter, B>(
    layer: &BodyAuthLayer<T, L>,
    request: Request<B>,
) -> RejectionKind
where
    B: http_body::Body + Send + 'static,
    B::Error: Debug,
{
    let (response, runs) = respond(layer, request).await;
    assert_eq!(runs, 0, "the handler ran");
    response.extensions().get::<Rejection>().unwrap_or_else(|| panic!("admitted: {response:?}")).kind()
}

/// Returns the location of the token and the bytes that the handler read.
pub async fn accepted<T: TokenStore, L: Limiter, B>(
    layer: &BodyAuthLayer<T, L>,
    request: Request<B>,
) -> (TokenLocation, Bytes)
where
    B: http_body::Body + Send + 'static,
    B::Error: Debug,
{
    let (response, runs) = respond(layer, request).await;
    assert_eq!((response.status().as_u16(), runs), (200, 1), "{:?}", response.extensions().get::<Rejection>());
    let location = response.extensions().get::<CurrentGrant>().expect("a grant").location();
    (location, response.into_body().collect().await.unwrap().to_bytes())
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pin_project_lite::pin_project! {
    /// A body that follows a script and counts the bytes taken from it. It is not `Unpin`.
    pub struct Script {
        steps: VecDeque<Step>,
        taken: Arc<AtomicUsize>,
        // The length, if the size hint reports it.
        pub length: Option<usize>,
        #[pin]
        pinned: PhantomPinned,
    }
}

#[derive(Clone, Debug)]
pub enum Step {
    Data(Vec<u8>),
    Trailers(HeaderMap),
    /// Pending once, woken immediately.
    Wait,
    /// Pending for this time.
    Pause(Duration),
    /// Pending forever.
    Silence,
    Fail,
}

impl Script {
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        let steps = steps.into_iter().collect();
        Self { steps, taken: Arc::default(), length: None, pinned: PhantomPinned }
    }

    pub fn of(body: impl AsRef<[u8]>) -> Self {
        Self::new([Step::Data(body.as_ref().to_vec())])
    }

    pub fn taken(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.taken)
    }
}

impl http_body::Body for Script {
    /// Not `Bytes`, and not contiguous.
    type Data = VecDeque<u8>;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<VecDeque<u8>>>>> {
        let this = self.project();
        Poll::Ready(match this.steps.pop_front() {
            None => None,
            Some(Step::Data(mut data)) => {
                this.taken.fetch_add(data.len(), Ordering::SeqCst);
                let mut ring = VecDeque::from(data.split_off(data.len() / 2));
                data.into_iter().rev().for_each(|byte| ring.push_front(byte));
                Some(Ok(Frame::data(ring)))
            }
            Some(Step::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Step::Fail) => Some(Err(io::Error::other("torn"))),
            Some(Step::Wait) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Step::Pause(time)) => {
                let waker = cx.waker().clone();
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    waker.wake();
                });
                return Poll::Pending;
            }
            Some(Step::Silence) => {
                this.steps.push_front(Step::Silence);
                return Poll::Pending;
            }
        })
    }

    fn size_hint(&self) -> SizeHint {
        let left = |length| SizeHint::with_exact((length - self.taken.load(Ordering::SeqCst)) as u64);
        self.length.map_or_else(SizeHint::default, left)
    }
}

/// Splits the bytes at these places. A place that occurs twice makes an empty piece.
pub fn pieces(bytes: &[u8], cuts: &[Index], waits: &[bool], trailers: Option<u8>) -> Vec<Step> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    let mut steps = Vec::new();
    for (nth, pair) in places.windows(2).enumerate() {
        if waits.get(nth).is_some_and(|&wait| wait) {
            steps.push(Step::Wait);
        }
        steps.push(Step::Data(bytes[pair[0]..pair[1]].to_vec()));
    }
    steps.extend(trailers.map(|sum| Step::Trailers(sums(sum))));
    steps
}

pub fn sums(sum: u8) -> HeaderMap {
    HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from(u16::from(sum)))])
}

pub fn cuts() -> impl Strategy<Value = Vec<Index>> {
    prop::collection::vec(any::<Index>(), 0..8)
        .prop_flat_map(|cuts| (Just(cuts), any::<bool>()))
        .prop_map(|(cuts, twice)| if twice { [cuts.clone(), cuts].concat() } else { cuts })
}

pub fn spaces() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "", " ", "\t", "\r\n", " \n\t "])
}

pub fn mark() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "\u{feff}"])
}

/// An [`Extracted`] that can be compared.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    Nothing,
    Token(Vec<u8>),
    Malformed,
    Ambiguous,
}

impl From<Extracted<'_>> for Found {
    fn from(extracted: Extracted<'_>) -> Self {
        match extracted {
            Extracted::Nothing => Self::Nothing,
            Extracted::Token(token) => Self::Token(token.expose().to_vec()),
            Extracted::Malformed => Self::Malformed,
            Extracted::Ambiguous(_) => Self::Ambiguous,
            other => panic!("unexpected result: {other:?}"),
        }
    }
}

pub fn plenty() -> RateLimits {
    RateLimits::new(Quota::per_second(1_000_000))
}
