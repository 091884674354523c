use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use tower_service::Service;

use super::settings::Shared;
use super::throttle::ended;
use crate::caller::{CurrentGrant, Unauthenticated};
use crate::limit::{Attempt, Limiter};
use crate::observe::{self, LookupOutcome, Timer};
use crate::pending::answer::Answer;
use crate::pending::timeout::BoxSleep;
use crate::quota::decision::Decision;
use crate::rejection::Rejection;
use crate::rejection::store_error::StoreError;
use crate::rejection::terms::Challenges;
use crate::request_head::RequestHead;
use crate::respond::ratelimit::LimitHeaders;
use crate::respond::{Respond, keep_private};
use crate::store::TokenStore;
use crate::token::{Credential, TokenLocation};

/// Where a request stands after a station.
pub(super) enum Step<T: TokenStore, L: Limiter> {
    /// The caller is in the request's extensions.
    Admit(TokenLocation, Option<LimitHeaders>),
    Refuse(Rejection),
    Wait(Wait<T::Future, L::Future>),
}

/// What the inner service will find in the request's extensions.
pub(super) enum Caller {
    Known(CurrentGrant),
    /// With how the gate speaks, for a handler that wants a grant after all.
    Unauthenticated(Unauthenticated, Arc<Challenges>),
    /// The request came through a gate before: its extensions have the caller. What this layer decided is added.
    Behind(Option<Decision>),
}

impl Caller {
    pub(super) fn record(&mut self, decision: Decision) {
        match self {
            Self::Known(grant) => grant.record(decision),
            Self::Unauthenticated(..) => {}
            Self::Behind(recorded) => *recorded = Some(decision),
        }
    }

    /// Puts the caller into the request, which is admitted herewith.
    #[inline]
    pub(super) fn enter<T: TokenStore, L: Limiter, B>(
        self,
        request: &mut Request<B>,
        advert: Option<LimitHeaders>,
    ) -> Step<T, L> {
        let extensions = request.extensions_mut();
        // Where there is no token, or another gate has seen to it, nothing is left to do for the location.
        let mut location = TokenLocation::AuthorizationHeader;
        match self {
            Self::Known(grant) => {
                location = grant.location();
                observe::admitted(location);
                extensions.insert(grant);
            }
            Self::Unauthenticated(why, terms) => {
                observe::passed(why);
                // What a gate around this one found is not what this one lets pass.
                extensions.remove::<CurrentGrant>();
                extensions.insert(why);
                extensions.insert(terms);
            }
            Self::Behind(decision) => {
                if let (Some(grant), Some(decision)) = (extensions.get_mut::<CurrentGrant>(), decision) {
                    grant.record(decision);
                }
            }
        }
        Step::Admit(location, advert)
    }
}

pin_project_lite::pin_project! {
    /// What a parked request waits for.
    #[project = WaitProj]
    pub(super) enum Wait<F, G> {
        Lookup { #[pin] future: F, deadline: Option<BoxSleep>, credential: Credential, timer: Timer, attempt: Option<Attempt> },
        Check { #[pin] future: G, caller: Option<Caller> },
    }
}

pin_project_lite::pin_project! {
    /// The future of an [`AuthService`](super::AuthService).
    ///
    /// # Panics
    ///
    /// If it is polled again after it was ready.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct AuthFuture<S, ReqB, T, L, R, ResB>
    where
        S: Service<Request<ReqB>>,
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
        S: Service<Request<ReqB>>,
        T: TokenStore,
        L: Limiter,
    {
        Refused { response: Option<Response<ResB>> },
        Running { #[pin] future: S::Future, advert: Option<LimitHeaders>, location: TokenLocation },
        Parked { parked: Pin<Box<Parked<S, ReqB, T, L, R>>> },
    }
}

pin_project_lite::pin_project! {
    struct Parked<S, ReqB, T, L, R>
    where
        T: TokenStore,
        L: Limiter,
    {
        #[pin]
        wait: Wait<T::Future, L::Future>,
        rest: Option<(S, Request<ReqB>)>,
        shared: Arc<Shared<T, L, R>>,
    }
}

impl<S, ReqB, T, L, R, ResB> AuthFuture<S, ReqB, T, L, R, ResB>
where
    S: Service<Request<ReqB>, Response = Response<ResB>>,
    T: TokenStore,
    L: Limiter,
    R: Respond<ResB>,
{
    /// Takes a step: calls the ready inner service, refuses, or parks the request.
    #[inline]
    pub(super) fn take(step: Step<T, L>, inner: &mut S, shared: &Arc<Shared<T, L, R>>, request: Request<ReqB>) -> Self
    where
        S: Clone,
    {
        match step {
            Step::Admit(location, advert) => Self::run(inner, request, location, advert),
            Step::Refuse(rejection) => Self::reject(shared, rejection, &request),
            Step::Wait(wait) => {
                // The instance that was made ready goes with the request; a clone, which nobody has asked whether it
                // is ready, stays behind.
                let not_ready_inner = inner.clone();
                let ready_inner = mem::replace(inner, not_ready_inner);
                let rest = Some((ready_inner, request));
                let parked = Box::pin(Parked { wait, rest, shared: Arc::clone(shared) });
                Self { state: State::Parked { parked } }
            }
        }
    }

    #[inline]
    fn run(inner: &mut S, request: Request<ReqB>, location: TokenLocation, advert: Option<LimitHeaders>) -> Self {
        Self { state: State::Running { future: inner.call(request), advert, location } }
    }

    fn reject(shared: &Shared<T, L, R>, rejection: Rejection, request: &Request<ReqB>) -> Self {
        // Behind a gate the caller is known by the request alone.
        let caller = request.extensions().get::<CurrentGrant>().filter(|_| rejection.decision().is_some());
        let rejection = match caller {
            Some(caller) if rejection.grant().is_none() => rejection.of_grant(caller.id()),
            _ => rejection,
        };
        let response = shared.reject(rejection.for_request(&RequestHead::of(request)));
        Self { state: State::Refused { response: Some(response) } }
    }
}

impl<S, ReqB, T, L, R, ResB> Future for AuthFuture<S, ReqB, T, L, R, ResB>
where
    S: Service<Request<ReqB>, Response = Response<ResB>>,
    T: TokenStore,
    L: Limiter,
    R: Respond<ResB>,
{
    type Output = Result<Response<ResB>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Refused { response } => return Poll::Ready(Ok(once(response))),
                StateProj::Running { future, advert, location } => {
                    let mut response = ready!(future.poll(cx))?;
                    if *location != TokenLocation::AuthorizationHeader {
                        keep_private(response.headers_mut(), *location);
                    }
                    if let Some(advert) = advert.take() {
                        advert.write(response.headers_mut());
                    }
                    return Poll::Ready(Ok(response));
                }
                StateProj::Parked { parked } => {
                    let step = ready!(parked.as_mut().poll_step(cx));
                    let mut parked = parked.as_mut().project();
                    match step {
                        Step::Wait(wait) => {
                            parked.wait.set(wait);
                            continue;
                        }
                        Step::Admit(location, advert) => {
                            let (mut inner, request) = once(parked.rest);
                            Self::run(&mut inner, request, location, advert)
                        }
                        Step::Refuse(rejection) => {
                            let (_, request) = once(parked.rest);
                            Self::reject(parked.shared, rejection, &request)
                        }
                    }
                }
            };
            state.set(next.state);
        }
    }
}

impl<S, ReqB, T: TokenStore, L: Limiter, R> Parked<S, ReqB, T, L, R> {
    /// Waits for a store or a limiter.
    fn poll_step(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step<T, L>> {
        let parked = self.project();
        match parked.wait.project() {
            WaitProj::Lookup { future, deadline, credential, timer, attempt } => match future.poll(cx) {
                Poll::Ready(found) => {
                    let found = found.map_err(StoreError::new);
                    timer.record_lookup(LookupOutcome::by(&found));
                    let Some((_, request)) = parked.rest else { completed() };
                    Poll::Ready(parked.shared.looked_up(found, *credential, attempt.take(), request))
                }
                Poll::Pending => {
                    let Some(sleep) = deadline else { return Poll::Pending };
                    ready!(sleep.as_mut().poll(cx));
                    timer.record_lookup(LookupOutcome::Deadline);
                    let timeout = parked.shared.settings.timeout.as_ref();
                    let deadline = timeout.map(|timeout| timeout.duration).unwrap_or_default();
                    let rejection = Rejection::unavailable(StoreError::deadline(deadline));
                    Poll::Ready(Step::Refuse(ended(attempt.take(), rejection)))
                }
            },
            WaitProj::Check { future, caller } => {
                let decision = ready!(future.poll(cx));
                let Some((_, request)) = parked.rest else { completed() };
                Poll::Ready(parked.shared.checked(once(caller), Answer::Ready(decision), request))
            }
        }
    }
}

/// Takes what a finished future no longer has.
pub(super) fn once<T>(value: &mut Option<T>) -> T {
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
    T: TokenStore,
    L: Limiter,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthFuture(..)")
    }
}
