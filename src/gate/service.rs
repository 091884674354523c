use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, Method, Request, Response, header};
use tower_service::Service;

use super::admission::{Admission, Stations};
use super::future::{Caller, GateFuture, Step, Wait};
use super::layer::Shared;
use crate::answer::Answer;
use crate::authenticate::verdict;
use crate::decision::{Decision, Verdict};
use crate::extract::{Presented, authorization};
use crate::grant::{CurrentGrant, Unauthenticated};
use crate::head::Head;
use crate::limit::{Charge, Limiter};
use crate::rejection::{Protocol, Rejection, RejectionKind, StoreError};
use crate::respond::ratelimit::{Advert, advert};
use crate::respond::{Respond, protocol};
use crate::store::{Lookup, TokenStore};
use crate::token::Carrier;

/// The service of an [`AuthLayer`](crate::AuthLayer).
pub struct AuthService<S, A, R = crate::Problem> {
    inner: S,
    shared: Arc<Shared<A, R>>,
}

impl<S, A, R> AuthService<S, A, R> {
    pub(super) fn new(inner: S, shared: Arc<Shared<A, R>>) -> Self {
        Self { inner, shared }
    }
}

impl<S, A, R, ReqB, ResB> Service<Request<ReqB>> for AuthService<S, A, R>
where
    S: Service<Request<ReqB>, Response = Response<ResB>> + Clone,
    A: Admission,
    R: Respond<ResB>,
{
    type Response = Response<ResB>;
    type Error = S::Error;
    type Future = GateFuture<S, ReqB, A, R, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    /// The road: extract, authenticate, limit, respond.
    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        let shared = &*self.shared;
        if shared.settings.preflight && is_preflight(&request) {
            // Credentials do not belong there, and nobody has looked at them.
            request.headers_mut().remove(header::AUTHORIZATION);
            let step = Step::Admit(Caller::Unauthenticated(Unauthenticated::Preflight), None);
            return GateFuture::take(step, &mut self.inner, &self.shared, request);
        }
        let presented = match authorization(request.headers(), shared.settings.form) {
            Presented::Token(token) => Ok(shared.stations.store().lookup(&token)),
            Presented::Nothing => Err(RejectionKind::Missing),
            Presented::Malformed => Err(RejectionKind::MalformedToken),
            Presented::Ambiguous => Err(RejectionKind::InvalidRequest),
        };
        shared.guard_secrets(request.headers_mut());
        let step = match presented {
            Ok(Answer::Ready(found)) => shared.found(found, &Head::of(&request)),
            Ok(Answer::Pending(future)) => {
                let deadline = shared.settings.patience.as_ref().map(|patience| patience.start());
                Step::Wait(Wait::Lookup { future, deadline })
            }
            Err(RejectionKind::Missing) if shared.settings.anonymous => shared.anonymous(&Head::of(&request)),
            Err(kind) => Step::Refuse(Rejection::new(kind)),
        };
        GateFuture::take(step, &mut self.inner, &self.shared, request)
    }
}

/// Fetch standard, "CORS-preflight request". Other `OPTIONS` requests carry credentials like all others.
fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

impl<A, R> Shared<A, R> {
    /// Sees to it that nothing behind the gate prints the token.
    #[inline]
    fn guard_secrets(&self, headers: &mut HeaderMap) {
        if self.settings.remove_authorization {
            headers.remove(header::AUTHORIZATION);
        } else if let Some(line) = headers.get_mut(header::AUTHORIZATION) {
            // There is only one: requests with more are refused.
            line.set_sensitive(true);
        }
    }

    pub(super) fn refuse<B>(&self, rejection: Rejection, protocol: Protocol) -> Response<B>
    where
        R: Respond<B>,
    {
        let advert = rejection.decision().and_then(|decision| self.advert(decision));
        let mut response = self.responder.refuse(rejection.under(&self.terms, protocol));
        if let Some(advert) = advert {
            advert.write(response.headers_mut());
        }
        response
    }

    pub(super) fn protocol(&self, headers: &HeaderMap) -> Protocol {
        protocol(headers)
    }

    #[inline]
    fn advert(&self, decision: &Decision) -> Option<Advert> {
        advert(self.terms.ratelimit(), decision, || self.settings.wall_clock.now())
    }
}

type Found<A> =
    Lookup<<<A as Stations>::Store as TokenStore>::Principal, <<A as Stations>::Store as TokenStore>::Error>;

impl<A: Stations, R> Shared<A, R> {
    /// The store has answered.
    #[inline]
    pub(super) fn found(&self, found: Found<A>, head: &Head<'_>) -> Step<A> {
        let grant = match found {
            Ok(Some(grant)) => grant,
            Ok(None) => return Step::Refuse(Rejection::new(RejectionKind::UnknownToken)),
            Err(error) => return Step::Refuse(Rejection::unavailable(StoreError::new(error))),
        };
        let verdict = verdict(grant.head(), || self.settings.wall_clock.now());
        let grant = CurrentGrant::by(grant, Carrier::AuthorizationHeader);
        match (verdict, self.stations.limiter()) {
            (Err(kind), _) => Step::Refuse(Rejection::new(kind).of_grant(&grant)),
            (Ok(()), None) => Step::Admit(Caller::Known(grant), None),
            (Ok(()), Some(limiter)) => {
                let answer = limiter.check(&grant, Charge::Request(head));
                self.checked(Caller::Known(grant), answer)
            }
        }
    }

    fn anonymous(&self, head: &Head<'_>) -> Step<A> {
        let caller = Caller::Unauthenticated(Unauthenticated::Anonymous);
        match self.stations.limiter() {
            None => Step::Admit(caller, None),
            Some(limiter) => self.checked(caller, limiter.check_anonymous(Charge::Request(head))),
        }
    }

    /// The limiter has answered, or is about to.
    #[inline]
    pub(super) fn checked(&self, mut caller: Caller, answer: Answer<<A::Limiter as Limiter>::Future>) -> Step<A> {
        let decision = match answer {
            Answer::Ready(decision) => decision,
            Answer::Pending(future) => return Step::Wait(Wait::Check { future, caller: Some(caller) }),
        };
        let kind = match decision.verdict() {
            Verdict::Admitted => {
                let advert = self.advert(&decision);
                caller.record(decision);
                return Step::Admit(caller, advert);
            }
            Verdict::OverLimit => RejectionKind::OverLimit,
            Verdict::CostAboveBurst => RejectionKind::CostAboveBurst,
        };
        let rejection = Rejection::over_limit(kind, decision);
        Step::Refuse(match &caller {
            Caller::Known(grant) => rejection.of_grant(grant),
            Caller::Unauthenticated(_) | Caller::Behind(_) => rejection,
        })
    }
}

impl<S: Clone, A, R> Clone for AuthService<S, A, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<S, A, R> fmt::Debug for AuthService<S, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt_as("AuthService", f)
    }
}
