//! [`AuthFuture`]: waits for stores, limiters and the inner service, and completes the response.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use tower_service::Service;

use super::settings::Gate;
use super::state::{Admitted, Step, Wait, WaitProj};
use crate::limit::Limiter;
use crate::observe::LookupOutcome;
use crate::pending::answer::Answer;
use crate::quota::refund::Refund;
use crate::rejection::Rejection;
use crate::rejection::store_error::StoreError;
use crate::respond::{Respond, keep_private, provisional, rewrite};
use crate::store::GateStore;
use crate::token::TokenLocation;

pin_project_lite::pin_project! {
    /// The future of an [`AuthService`](super::AuthService).
    ///
    /// # Panics
    ///
    /// Panics if it is polled again after it was ready.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct AuthFuture<S, ReqB, T, L, R, ResB>
    where
        S: Service<Request<ReqB>>,
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
        S: Service<Request<ReqB>>,
        T: GateStore,
        L: Limiter,
    {
        Rejected { response: Option<Response<ResB>> },
        Running {
            #[pin]
            future: S::Future,
            admitted: Admitted,
            gate: Arc<Gate<T, L, R>>,
        },
        Refunding { refunding: Box<Refunding<ResB>> },
        // Boxed, because few requests wait and every request moves this enum.
        Waiting { waiting: Pin<Box<Waiting<S, ReqB, T, L, R>>> },
    }
}

/// A response that waits for the refunds of its request.
struct Refunding<ResB> {
    refund: Pin<Box<dyn Future<Output = ()> + Send>>,
    response: Option<Response<ResB>>,
}

impl<ResB> Refunding<ResB> {
    #[cold]
    fn new(refunds: Vec<Refund>, response: Response<ResB>) -> Box<Self> {
        Box::new(Self { refund: Box::pin(Refund::give_back_all(refunds)), response: Some(response) })
    }
}

pin_project_lite::pin_project! {
    /// A request that waits for a store or a limiter.
    struct Waiting<S, ReqB, T, L, R>
    where
        T: GateStore,
        L: Limiter,
    {
        #[pin]
        wait: Wait<T::Future, L::Future>,
        rest: Option<(S, Request<ReqB>)>,
        gate: Arc<Gate<T, L, R>>,
    }
}

impl<S, ReqB, T, L, R, ResB> AuthFuture<S, ReqB, T, L, R, ResB>
where
    S: Service<Request<ReqB>, Response = Response<ResB>>,
    T: GateStore,
    L: Limiter,
    R: Respond<ResB>,
{
    /// Calls the inner service, which is ready, or rejects the request, or waits.
    #[inline]
    pub(super) fn after(step: Step<T, L>, inner: &mut S, gate: &Arc<Gate<T, L, R>>, request: Request<ReqB>) -> Self
    where
        S: Clone,
    {
        match step {
            Step::Admit(admitted) => {
                let gate = gate.counted();
                Self::run(inner.call(request), admitted, gate)
            }
            Step::Reject(rejection) => Self::reject(gate, rejection, &request),
            Step::Wait(wait) => {
                // The instance that was made ready must serve this request. A clone may not be ready.
                let not_ready_inner = inner.clone();
                let ready_inner = mem::replace(inner, not_ready_inner);
                let rest = Some((ready_inner, request));
                let waiting = Box::pin(Waiting { wait, rest, gate: gate.counted() });
                Self { state: State::Waiting { waiting } }
            }
        }
    }

    /// Waits for the inner service.
    ///
    /// Services call it themselves for an admitted request, because `after` would copy the request twice more. They count the
    /// reference to the gate before the call of the inner service. Otherwise the future would be moved once more.
    #[inline]
    pub(super) fn run(future: S::Future, admitted: Admitted, gate: Arc<Gate<T, L, R>>) -> Self {
        Self { state: State::Running { future, admitted, gate } }
    }

    fn reject(gate: &Gate<T, L, R>, rejection: Rejection, request: &Request<ReqB>) -> Self {
        Self { state: State::Rejected { response: Some(gate.reject_request(rejection, request)) } }
    }
}

impl<S, ReqB, T, L, R, ResB> Future for AuthFuture<S, ReqB, T, L, R, ResB>
where
    S: Service<Request<ReqB>, Response = Response<ResB>>,
    T: GateStore,
    L: Limiter,
    R: Respond<ResB>,
{
    type Output = Result<Response<ResB>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Rejected { response } => return Poll::Ready(Ok(take(response))),
                StateProj::Refunding { refunding } => {
                    ready!(refunding.refund.as_mut().poll(cx));
                    return Poll::Ready(Ok(take(&mut refunding.response)));
                }
                StateProj::Running { future, admitted, gate } => {
                    let mut response = ready!(future.poll(cx))?;
                    if let Some(rejection) = provisional(&response) {
                        let written = gate.reject_returned(rejection.clone(), admitted);
                        response = rewrite(response, written);
                    }
                    if admitted.location != TokenLocation::AuthorizationHeader {
                        keep_private(response.headers_mut(), admitted.location);
                    }
                    let now = || gate.settings.wall_clock.now();
                    if let Some(charge) = admitted.charged.refundable.take() {
                        if let Some((refunds, decision)) = charge.decision.refunded(response.status()) {
                            if let Some(headers) = gate.advert_of(&decision, charge.decided_at) {
                                headers.write_response(&mut response, now);
                            }
                            let refunding = Refunding::new(refunds, response);
                            state.set(State::Refunding { refunding });
                            continue;
                        }
                    }
                    if let Some(headers) = &admitted.charged.headers {
                        headers.write_response(&mut response, now);
                    }
                    return Poll::Ready(Ok(response));
                }
                StateProj::Waiting { waiting } => {
                    let step = ready!(waiting.as_mut().poll_step(cx));
                    let mut waiting = waiting.as_mut().project();
                    match step {
                        Step::Wait(wait) => {
                            waiting.wait.set(wait);
                            continue;
                        }
                        Step::Admit(admitted) => {
                            let (mut inner, request) = take(waiting.rest);
                            let gate = waiting.gate.counted();
                            Self::run(inner.call(request), admitted, gate)
                        }
                        Step::Reject(rejection) => {
                            let (_, request) = take(waiting.rest);
                            Self::reject(waiting.gate, rejection, &request)
                        }
                    }
                }
            };
            state.set(next.state);
        }
    }
}

impl<S, ReqB, T: GateStore, L: Limiter, R> Waiting<S, ReqB, T, L, R> {
    /// Polls the store or the limiter, and returns the next step.
    fn poll_step(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step<T, L>> {
        let this = self.project();
        let Some((_, request)) = this.rest else { completed() };
        match this.wait.project() {
            WaitProj::Lookup { future, timeout, credential, timer, attempt } => {
                // First, because a timer of tokio stays pending after a lookup that should have yielded (`tokio::task::coop`).
                let is_over = timeout.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready());
                match future.poll(cx) {
                    Poll::Ready(found) => {
                        let found = found.map_err(StoreError::new);
                        timer.record_lookup(LookupOutcome::by(&found));
                        Poll::Ready(this.gate.authenticate_after_wait(found, *credential, attempt.take(), request))
                    }
                    Poll::Pending if is_over => {
                        timer.record_lookup(LookupOutcome::Timeout);
                        Poll::Ready(this.gate.reject_after_timeout(attempt.take()))
                    }
                    Poll::Pending => Poll::Pending,
                }
            }
            WaitProj::Charge { future, caller } => {
                let decision = ready!(future.poll(cx));
                Poll::Ready(this.gate.limit(take(caller), Answer::Ready(decision), request))
            }
        }
    }
}

pin_project_lite::pin_project! {
    /// A response of a layer, or the future of the service inside of it.
    #[project = ResponseOrProj]
    pub(super) enum ResponseOr<F, B> {
        Response { response: Option<Response<B>> },
        Future { #[pin] future: F },
    }
}

impl<F, B, E> Future for ResponseOr<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            ResponseOrProj::Response { response } => Poll::Ready(Ok(take(response))),
            ResponseOrProj::Future { future } => future.poll(cx),
        }
    }
}

/// Takes the value, which is there until the future has completed.
pub(super) fn take<T>(value: &mut Option<T>) -> T {
    match value.take() {
        Some(value) => value,
        None => completed(),
    }
}

#[cold]
fn completed() -> ! {
    panic!("polled after completion")
}

impl<S, ReqB, T, L, R, ResB> fmt::Debug for AuthFuture<S, ReqB, T, L, R, ResB>
where
    S: Service<Request<ReqB>>,
    T: GateStore,
    L: Limiter,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthFuture(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::Ready;

    use bytes::Bytes;

    use super::*;
    use crate::caller::CurrentGrant;
    use crate::limit::{Decision, RateLimits};
    use crate::respond::ProblemDetails;
    use crate::store::MemoryStore;

    struct Inner;

    impl Service<Request<()>> for Inner {
        type Response = Response<Bytes>;
        type Error = Infallible;
        type Future = Ready<Result<Response<Bytes>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            std::future::ready(Ok(Response::default()))
        }
    }

    /// Every admitted request moves these values, some of them several times.
    #[test]
    fn values_of_each_request_are_small() {
        type Gated = AuthFuture<Inner, (), MemoryStore<()>, RateLimits, ProblemDetails, Bytes>;

        let beyond_inner = size_of::<Gated>() - size_of::<<Inner as Service<Request<()>>>::Future>();
        assert!(beyond_inner <= 64, "{beyond_inner} bytes beyond the inner future");
        assert!(size_of::<Admitted>() <= 56, "{} bytes", size_of::<Admitted>());
        assert!(size_of::<CurrentGrant>() <= 128, "{} bytes", size_of::<CurrentGrant>());
        assert!(size_of::<Decision>() <= 48, "{} bytes", size_of::<Decision>());
    }
}
