use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, request};
use http_body::Body;
use tower_service::Service;

use super::doors::BodyTokens;
use super::future::{AuthFuture, Step, once};
use super::replay::ReplayBody;
use super::service::NotAsked;
use super::settings::Shared;
use super::unlimited::Unlimited;
use crate::extract::Extracted;
use crate::extract::body::BodyLocation;
use crate::limit::Limiter;
use crate::pending::timeout::BoxSleep;
use crate::rejection::protocol::BodyRead;
use crate::rejection::{Rejection, RejectionKind};
use crate::request_head::RequestHead;
use crate::respond::{ProblemDetails, Respond};
use crate::store::TokenStore;

/// An [`AuthLayer`](super::AuthLayer) that accepts tokens in request bodies as well, made by
/// [`AuthLayer::with_body_tokens`](super::AuthLayer::with_body_tokens).
pub type BodyAuthLayer<T, L = Unlimited, R = ProblemDetails> = super::AuthLayer<T, L, R, BodyTokens>;

/// The service of a [`BodyAuthLayer`], which accepts tokens in request bodies.
///
/// The inner service gets a [`ReplayBody`].
pub struct BodyAuthService<S, T, L = Unlimited, R = ProblemDetails> {
    inner: S,
    shared: Arc<Shared<T, L, R>>,
    doors: Arc<BodyTokens>,
}

impl<S, T, L, R> BodyAuthService<S, T, L, R> {
    pub(super) fn new(inner: S, shared: Arc<Shared<T, L, R>>, doors: BodyTokens) -> Self {
        Self { inner, shared, doors: Arc::new(doors) }
    }
}

impl<S, T, L, R, ReqB, ResB> Service<Request<ReqB>> for BodyAuthService<S, T, L, R>
where
    S: Service<Request<ReplayBody<ReqB>>, Response = Response<ResB>> + Clone,
    T: TokenStore,
    L: Limiter,
    R: Respond<ResB>,
    ReqB: Body,
{
    type Response = Response<ResB>;
    type Error = S::Error;
    type Future = BodyAuthFuture<S, ReqB, T, L, R, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    /// The same road, with a stop before it if a body door fits.
    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        let shared = &*self.shared;
        let step = match shared.preflight(&mut request) {
            Some(pass) => pass,
            None => match self.doors.doors.location_for(&RequestHead::of(&request)) {
                Ok(Some(door)) => return self.read(door, request),
                Ok(None) => {
                    let (presented, location) = shared.look(&request);
                    let asked = shared.ask(presented, location);
                    shared.step(asked, &mut request)
                }
                // Credentials are marked before anybody looks at the head.
                Err(reason) => shared.step(Err(NotAsked::Invalid(reason)), &mut request),
            },
        };
        BodyAuthFuture::gate(AuthFuture::take(step, &mut self.inner, &self.shared, request.map(ReplayBody::untouched)))
    }
}

impl<S: Clone, T, L, R> BodyAuthService<S, T, L, R> {
    fn read<ReqB, ResB>(&mut self, door: BodyLocation, request: Request<ReqB>) -> BodyAuthFuture<S, ReqB, T, L, R, ResB>
    where
        S: Service<Request<ReplayBody<ReqB>>, Response = Response<ResB>>,
        T: TokenStore,
        L: Limiter,
        ReqB: Body,
    {
        let not_ready_inner = self.inner.clone();
        let ready_inner = std::mem::replace(&mut self.inner, not_ready_inner);
        let (head, body) = request.into_parts();
        BodyAuthFuture {
            state: State::Reading {
                reading: Reading {
                    body,
                    read: Read::default(),
                    deadline: None,
                    door,
                    rest: Some((ready_inner, head)),
                    shared: Arc::clone(&self.shared),
                    doors: Arc::clone(&self.doors),
                },
            },
        }
    }
}

impl<S: Clone, T, L, R> Clone for BodyAuthService<S, T, L, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: Arc::clone(&self.shared), doors: Arc::clone(&self.doors) }
    }
}

impl<S, T, L, R> fmt::Debug for BodyAuthService<S, T, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.debug("BodyAuthService", f).field("body", &self.doors).finish_non_exhaustive()
    }
}

pin_project_lite::pin_project! {
    /// The future of a [`BodyAuthService`].
    ///
    /// # Panics
    ///
    /// If it is polled again after it was ready.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct BodyAuthFuture<S, ReqB, T, L, R, ResB>
    where
        S: Service<Request<ReplayBody<ReqB>>>,
        T: TokenStore,
        L: Limiter,
    {
        #[pin]
        state: State<S, ReqB, T, L, R, ResB>,
    }
}

pin_project_lite::pin_project! {
    #[project = StateProj]
    enum State<S, ReqB, T, L, R, ResB>
    where
        S: Service<Request<ReplayBody<ReqB>>>,
        T: TokenStore,
        L: Limiter,
    {
        Reading { #[pin] reading: Reading<S, ReqB, T, L, R> },
        Gate { #[pin] future: AuthFuture<S, ReplayBody<ReqB>, T, L, R, ResB> },
    }
}

pin_project_lite::pin_project! {
    /// A request whose body is being read.
    struct Reading<S, ReqB, T, L, R> {
        #[pin]
        body: ReqB,
        read: Read,
        // Most bodies come in one piece and are there at the first look: for those no timer is started.
        deadline: Option<BoxSleep>,
        door: BodyLocation,
        rest: Option<(S, request::Parts)>,
        shared: Arc<Shared<T, L, R>>,
        doors: Arc<BodyTokens>,
    }
}

/// How many frames are read before others get a turn.
const FRAMES_AT_ONCE: usize = 32;

/// What was read of a body. Bodies in one piece, as nearly all webhooks are, are not copied.
#[derive(Default)]
struct Read {
    first: Bytes,
    all: Option<BytesMut>,
    trailers: Option<HeaderMap>,
}

impl Read {
    fn len(&self) -> usize {
        self.all.as_ref().map_or(self.first.len(), BytesMut::len)
    }

    fn push(&mut self, mut data: impl Buf) {
        match &mut self.all {
            Some(all) => all.extend_from_slice(&data.copy_to_bytes(data.remaining())),
            None if self.first.is_empty() => self.first = data.copy_to_bytes(data.remaining()),
            None => {
                let mut all = BytesMut::with_capacity(2 * self.first.len() + data.remaining());
                all.extend_from_slice(&self.first);
                all.extend_from_slice(&data.copy_to_bytes(data.remaining()));
                self.all = Some(all);
            }
        }
    }

    fn finish(&mut self) -> Bytes {
        self.all.take().map_or_else(|| std::mem::take(&mut self.first), BytesMut::freeze)
    }
}

impl<S, ReqB, T, L, R, ResB> BodyAuthFuture<S, ReqB, T, L, R, ResB>
where
    S: Service<Request<ReplayBody<ReqB>>, Response = Response<ResB>>,
    T: TokenStore,
    L: Limiter,
{
    fn gate(future: AuthFuture<S, ReplayBody<ReqB>, T, L, R, ResB>) -> Self {
        Self { state: State::Gate { future } }
    }
}

impl<S, ReqB, T, L, R, ResB> Future for BodyAuthFuture<S, ReqB, T, L, R, ResB>
where
    S: Service<Request<ReplayBody<ReqB>>, Response = Response<ResB>> + Clone,
    T: TokenStore,
    L: Limiter,
    R: Respond<ResB>,
    ReqB: Body,
{
    type Output = Result<Response<ResB>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Gate { future } => return future.poll(cx),
                StateProj::Reading { mut reading } => {
                    let failed = ready!(reading.as_mut().poll_read(cx)).err();
                    reading.go_on(failed)
                }
            };
            state.set(State::Gate { future: next });
        }
    }
}

impl<S, ReqB, T, L, R> Reading<S, ReqB, T, L, R>
where
    ReqB: Body,
{
    /// Reads to the end, or to the limit, or until the deadline.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), RejectionKind>> {
        let deadline = self.as_mut().project().deadline;
        // Asked first, so that a body that comes in drops does not put the deadline off.
        if deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(RejectionKind::BodyTimeout));
        }
        if let Poll::Ready(read) = self.as_mut().poll_frames(cx) {
            return Poll::Ready(read);
        }
        let this = self.project();
        if this.deadline.is_none() {
            ready!(this.deadline.insert(this.doors.timeout.start()).as_mut().poll(cx));
            return Poll::Ready(Err(RejectionKind::BodyTimeout));
        }
        Poll::Pending
    }

    /// Takes the frames that are there.
    fn poll_frames(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), RejectionKind>> {
        let mut this = self.project();
        let limit = this.doors.limit;
        if this.body.size_hint().lower() > (limit - this.read.len().min(limit)) as u64 {
            return Poll::Ready(Err(RejectionKind::BodyTooLarge));
        }
        // A body that is always ready gets so many frames at a time: the deadline, and the thread, are others' too.
        for _ in 0..FRAMES_AT_ONCE {
            let frame = match ready!(this.body.as_mut().poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(_)) => return Poll::Ready(Err(RejectionKind::BodyUnreadable)),
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) if this.read.len() + data.remaining() > limit => {
                    return Poll::Ready(Err(RejectionKind::BodyTooLarge));
                }
                Ok(data) => this.read.push(data),
                Err(frame) => this.read.trailers = frame.into_trailers().ok().or(this.read.trailers.take()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Goes on down the road, with what was read or with why it was not.
    fn go_on<ResB>(
        self: Pin<&mut Self>,
        failed: Option<RejectionKind>,
    ) -> AuthFuture<S, ReplayBody<ReqB>, T, L, R, ResB>
    where
        S: Service<Request<ReplayBody<ReqB>>, Response = Response<ResB>> + Clone,
        T: TokenStore,
        L: Limiter,
        R: Respond<ResB>,
    {
        let this = self.project();
        let shared = &**this.shared;
        let (mut inner, head) = once(this.rest);
        let mut request = Request::from_parts(head, ReplayBody::read(this.read.finish(), this.read.trailers.take()));
        let step = match failed {
            Some(kind) => Step::Refuse(Rejection::new(kind)),
            None => {
                request.extensions_mut().insert(BodyRead);
                let (in_head, carrier_in_head) = shared.look(&request);
                let body = request.body().as_bytes();
                let (in_body, carrier_in_body, span) = this.doors.doors.extract(*this.door, body, shared.settings.form);
                let is_in_body = matches!(in_body, Extracted::Token(_));
                let (presented, location) = in_head.and(carrier_in_head, in_body, carrier_in_body);
                let asked = shared.ask(presented, location);
                if is_in_body && shared.settings.remove_credentials {
                    request.body_mut().mask(span);
                }
                shared.step(asked, &mut request)
            }
        };
        AuthFuture::take(step, &mut inner, this.shared, request)
    }
}

impl<S, ReqB, T, L, R, ResB> fmt::Debug for BodyAuthFuture<S, ReqB, T, L, R, ResB>
where
    S: Service<Request<ReplayBody<ReqB>>>,
    T: TokenStore,
    L: Limiter,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BodyAuthFuture(..)")
    }
}
