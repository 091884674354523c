//! [`BodyAuthFuture`]: reads the body, and continues with the pipeline.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, request};
use http_body::Body;
use tower_service::Service;

use super::replay::ReplayBody;
use super::tokens::BodyTokens;
use crate::extract::Extracted;
use crate::extract::body::BodyLocation;
use crate::gate::future::{AuthFuture, take};
use crate::gate::settings::Gate;
use crate::gate::state::Step;
use crate::limit::Limiter;
use crate::pending::timeout::BoxSleep;
use crate::rejection::protocol::BodyRead;
use crate::rejection::{Rejection, RejectionKind};
use crate::respond::Respond;
use crate::store::GateStore;

pin_project_lite::pin_project! {
    /// The future of a [`BodyAuthService`](crate::gate::BodyAuthService).
    ///
    /// # Panics
    ///
    /// Panics if it is polled again after it was ready.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct BodyAuthFuture<S, ReqB, T, L, R, ResB>
    where
        S: Service<Request<ReplayBody<ReqB>>>,
        T: GateStore,
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
        T: GateStore,
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
        received: Received,
        // Starts when the body is pending for the first time. Most bodies are complete at the first poll and need no timer.
        timeout: Option<BoxSleep>,
        location: BodyLocation,
        rest: Option<(S, request::Parts)>,
        gate: Arc<Gate<T, L, R>>,
        tokens: Arc<BodyTokens>,
    }
}

impl<S, ReqB, T, L, R, ResB> BodyAuthFuture<S, ReqB, T, L, R, ResB>
where
    S: Service<Request<ReplayBody<ReqB>>, Response = Response<ResB>>,
    T: GateStore,
    L: Limiter,
{
    /// Reads the body before it continues with the pipeline. `inner` is ready.
    pub(super) fn read(
        location: BodyLocation,
        inner: S,
        gate: Arc<Gate<T, L, R>>,
        tokens: Arc<BodyTokens>,
        request: Request<ReqB>,
    ) -> Self {
        let (head, body) = request.into_parts();
        let (received, rest) = (Received::default(), Some((inner, head)));
        Self {
            state: State::Reading { reading: Reading { body, received, timeout: None, location, rest, gate, tokens } },
        }
    }

    /// Waits for a gate that does not read the body.
    pub(super) fn gate(future: AuthFuture<S, ReplayBody<ReqB>, T, L, R, ResB>) -> Self {
        Self { state: State::Gate { future } }
    }
}

impl<S, ReqB, T, L, R, ResB> Future for BodyAuthFuture<S, ReqB, T, L, R, ResB>
where
    S: Service<Request<ReplayBody<ReqB>>, Response = Response<ResB>> + Clone,
    T: GateStore,
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
                    let error = ready!(reading.as_mut().poll_read(cx)).err();
                    reading.finish(error)
                }
            };
            state.set(State::Gate { future: next });
        }
    }
}

/// The number of frames that one poll reads at most. A body that is always ready must not starve its timeout and other tasks.
const MAX_FRAMES_PER_POLL: usize = 32;

impl<S, ReqB, T, L, R> Reading<S, ReqB, T, L, R>
where
    ReqB: Body,
{
    /// Reads until the end, the size limit, or the timeout.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), RejectionKind>> {
        let timeout = self.as_mut().project().timeout;
        // Polled before the body: a slow body whose frames are always ready must not outlast the timeout.
        if timeout.as_mut().is_some_and(|timeout| timeout.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(RejectionKind::BodyTimeout));
        }
        if let Poll::Ready(result) = self.as_mut().poll_frames(cx) {
            return Poll::Ready(result);
        }
        let this = self.project();
        if this.timeout.is_none() {
            ready!(this.timeout.insert(this.tokens.start_timeout()).as_mut().poll(cx));
            return Poll::Ready(Err(RejectionKind::BodyTimeout));
        }
        Poll::Pending
    }

    /// Reads the frames that are available.
    fn poll_frames(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), RejectionKind>> {
        let mut this = self.project();
        let limit = this.tokens.limit();
        if this.body.size_hint().lower() > limit as u64 {
            return Poll::Ready(Err(RejectionKind::BodyTooLarge));
        }
        for _ in 0..MAX_FRAMES_PER_POLL {
            let frame = match ready!(this.body.as_mut().poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(_)) => return Poll::Ready(Err(RejectionKind::BodyUnreadable)),
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) if this.received.len() + data.remaining() > limit => {
                    return Poll::Ready(Err(RejectionKind::BodyTooLarge));
                }
                Ok(data) => this.received.push(data),
                Err(frame) => this.received.trailers = frame.into_trailers().ok().or(this.received.trailers.take()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Continues with the pipeline after the body was read, or rejects the request with the error.
    fn finish<ResB>(
        self: Pin<&mut Self>,
        error: Option<RejectionKind>,
    ) -> AuthFuture<S, ReplayBody<ReqB>, T, L, R, ResB>
    where
        S: Service<Request<ReplayBody<ReqB>>, Response = Response<ResB>> + Clone,
        T: GateStore,
        L: Limiter,
        R: Respond<ResB>,
    {
        let this = self.project();
        let gate = &**this.gate;
        let (mut inner, head) = take(this.rest);
        let body = ReplayBody::received(this.received.take_data(), this.received.trailers.take());
        let mut request = Request::from_parts(head, body);
        let step = match error {
            Some(kind) => Step::Reject(Rejection::new(kind)),
            None => {
                request.extensions_mut().insert(BodyRead);
                let (in_head, head_location) = gate.extract(&request);
                let (in_body, body_location, span) =
                    this.tokens.extract(*this.location, request.body().as_bytes(), gate.settings.syntax);
                let is_in_body = matches!(in_body, Extracted::Token(_));
                let (extracted, location) = in_head.and(head_location, in_body, body_location);
                match gate.look_up_over_https(extracted, location, &request) {
                    Ok(lookup) => {
                        if is_in_body && gate.settings.remove_credentials {
                            request.body_mut().mask(span);
                        }
                        gate.redact(&lookup, &mut request);
                        gate.authenticate(lookup, &mut request)
                    }
                    Err(rejection) => Step::Reject(rejection),
                }
            }
        };
        AuthFuture::after(step, &mut inner, this.gate, request)
    }
}

/// The data and trailers of a body. A body of one frame, which is the usual case, is not copied.
#[derive(Default)]
struct Received {
    first: Bytes,
    all: Option<BytesMut>,
    trailers: Option<HeaderMap>,
}

impl Received {
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

    fn take_data(&mut self) -> Bytes {
        self.all.take().map_or_else(|| std::mem::take(&mut self.first), BytesMut::freeze)
    }
}

impl<S, ReqB, T, L, R, ResB> fmt::Debug for BodyAuthFuture<S, ReqB, T, L, R, ResB>
where
    S: Service<Request<ReplayBody<ReqB>>>,
    T: GateStore,
    L: Limiter,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BodyAuthFuture(..)")
    }
}
