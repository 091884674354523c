use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderName, Method, Request, Response, header};
use tower_service::Service;

use super::future::{AuthFuture, Caller, Step, Wait};
use super::settings::{Settings, Shared};
use super::unlimited::{Unlimited, is_unlimited};
use crate::authenticate::verdict;
use crate::caller::{CurrentGrant, Unauthenticated};
use crate::extract::{
    Extracted, InvalidRequest, allows_query_token, authorization, has_bearer, without_parameter, without_token,
};
use crate::limit::{Charge, Limiter};
use crate::pending::answer::Answer;
use crate::quota::decision::Decision;
use crate::rejection::store_error::StoreError;
use crate::rejection::{Rejection, RejectionKind};
use crate::request_head::RequestHead;
use crate::respond::ratelimit::{LimitHeaders, limit_headers};
use crate::respond::{Respond, keep_target};
use crate::store::{Lookup, TokenStore};
use crate::token::{Credential, TokenLocation};

/// The service of an [`AuthLayer`](crate::AuthLayer).
pub struct AuthService<S, T, L = Unlimited, R = crate::ProblemDetails> {
    inner: S,
    shared: Arc<Shared<T, L, R>>,
}

impl<S, T, L, R> AuthService<S, T, L, R> {
    pub(super) fn new(inner: S, shared: Arc<Shared<T, L, R>>) -> Self {
        Self { inner, shared }
    }
}

impl<S, T, L, R, ReqB, ResB> Service<Request<ReqB>> for AuthService<S, T, L, R>
where
    S: Service<Request<ReqB>, Response = Response<ResB>> + Clone,
    T: TokenStore,
    L: Limiter,
    R: Respond<ResB>,
{
    type Response = Response<ResB>;
    type Error = S::Error;
    type Future = AuthFuture<S, ReqB, T, L, R, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    /// The road: extract, authenticate, limit, respond.
    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        let shared = &*self.shared;
        let step = match shared.preflight(&mut request) {
            Some(pass) => pass,
            None => {
                let (presented, location) = shared.look(&request);
                let asked = shared.ask(presented, location);
                shared.step(asked, &mut request)
            }
        };
        AuthFuture::take(step, &mut self.inner, &self.shared, request)
    }
}

/// The answer of a store about a credential, and whether that [is cached](TokenStore::is_cached); or why it was not asked.
type Asked<T> = Result<(Answer<<T as TokenStore>::Future>, Credential, bool), NotAsked>;

/// Explains why there is no token to ask a store for.
pub(super) enum NotAsked {
    Missing,
    Malformed,
    Invalid(InvalidRequest),
}

impl From<NotAsked> for Rejection {
    fn from(why: NotAsked) -> Self {
        match why {
            NotAsked::Missing => Self::missing(),
            NotAsked::Malformed => Self::new(RejectionKind::MalformedToken),
            NotAsked::Invalid(reason) => Self::invalid_request(reason),
        }
    }
}

impl<T: TokenStore, L: Limiter, R> Shared<T, L, R> {
    /// The credential in the head of a request.
    #[inline]
    pub(super) fn look<'a, B>(&self, request: &'a Request<B>) -> (Extracted<'a>, TokenLocation) {
        match self.settings.doors.is_authorization_only() {
            true => (authorization(request.headers(), self.settings.form), TokenLocation::AuthorizationHeader),
            false => self.settings.doors.extract(&RequestHead::of(request), self.settings.form),
        }
    }

    /// Asks the store. From here on nothing of the request is borrowed.
    #[inline]
    pub(super) fn ask(&self, presented: Extracted<'_>, location: TokenLocation) -> Asked<T> {
        match presented {
            Extracted::Token(token) => {
                let credential = Credential { location, digest: Some(*token.digest()) };
                let store = &*self.store;
                let answer = store.lookup(&token);
                // Nobody else wants to know.
                let may_be_throttled = self.settings.throttle.is_some() && matches!(answer, Answer::Pending(_));
                let is_cached = may_be_throttled && store.is_cached(&token);
                Ok((answer, credential, is_cached))
            }
            Extracted::Nothing => Err(NotAsked::Missing),
            Extracted::Malformed => Err(NotAsked::Malformed),
            Extracted::Ambiguous(reason) => Err(NotAsked::Invalid(reason)),
        }
    }

    /// The step after the store was asked.
    #[inline]
    pub(super) fn step<B>(&self, asked: Asked<T>, request: &mut Request<B>) -> Step<T, L> {
        let location = asked.as_ref().ok().map(|(_, credential, _)| credential.location);
        self.guard_secrets(location, request);
        match asked {
            Ok((Answer::Ready(found), credential, _)) => {
                self.found(found.map_err(StoreError::new), credential, request)
            }
            Ok((Answer::Pending(future), credential, true)) => self.wait(future, credential, None),
            Ok((Answer::Pending(future), credential, false)) => self.look_up(future, credential, request),
            Err(NotAsked::Missing) if self.settings.anonymous => {
                self.unauthenticated(Unauthenticated::Anonymous, request)
            }
            Err(why) => self.failed(why.into(), request),
        }
    }
}

impl<T: TokenStore, L: Limiter, R> Shared<T, L, R> {
    /// Admits a CORS preflight, within the limits of anonymous callers: the inner service runs for it.
    #[inline]
    pub(super) fn preflight<B>(&self, request: &mut Request<B>) -> Option<Step<T, L>> {
        if !self.settings.preflight || !is_preflight(request) {
            return None;
        }
        self.strip_credentials(request);
        Some(self.unauthenticated(Unauthenticated::Preflight, request))
    }
}

/// Fetch standard, "CORS-preflight request". Other `OPTIONS` requests carry credentials like all others.
fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn remove_parameter<B>(request: &mut Request<B>, name: &str) {
    if let Some(uri) = without_parameter(request.uri(), name) {
        *request.uri_mut() = uri;
    }
}

#[inline]
fn guard_field(headers: &mut HeaderMap, name: &HeaderName, remove: bool) {
    if remove {
        headers.remove(name);
    } else {
        if let Some(line) = headers.get_mut(name) {
            line.set_sensitive(true);
        }
        // Where there are several lines the request is refused, or this door is closed: both times others look at it.
        if headers.len() > headers.keys_len() {
            mark_lines(headers, name);
        }
    }
}

fn mark_lines(headers: &mut HeaderMap, name: &HeaderName) {
    headers.iter_mut().filter(|(own, _)| *own == name).for_each(|(_, line)| line.set_sensitive(true));
}

impl<T, L, R> Shared<T, L, R> {
    /// Credentials do not belong into a preflight, and nobody has looked at them: they go, whatever door they are for.
    fn strip_credentials<B>(&self, request: &mut Request<B>) {
        let doors = &self.settings.doors;
        let headers = request.headers_mut();
        headers.remove(header::AUTHORIZATION);
        if let Some(name) = &doors.api_key {
            headers.remove(name);
        }
        if let Some(prefix) = &doors.websocket {
            without_token(headers, prefix);
        }
        if let Some(name) = &doors.query {
            remove_parameter(request, name);
        }
    }

    /// Sees to it that nothing behind the gate prints the token, or, by choice, has it at all.
    #[inline]
    fn guard_secrets<B>(&self, location: Option<TokenLocation>, request: &mut Request<B>) {
        if !self.settings.doors.is_authorization_only() {
            self.guard_other_doors(request);
        }
        // What is of another scheme is not this gate's to take; a token that was found there is not.
        let Settings { remove_credentials, doors, .. } = &self.settings;
        let is_bearer = || location == Some(TokenLocation::AuthorizationHeader) || has_bearer(request.headers());
        let remove = *remove_credentials && !doors.authorization_disabled && is_bearer();
        guard_field(request.headers_mut(), &header::AUTHORIZATION, remove);
    }

    fn guard_other_doors<B>(&self, request: &mut Request<B>) {
        let (doors, remove) = (&self.settings.doors, self.settings.remove_credentials);
        if let Some(name) = &doors.api_key {
            // What yields to Bearer is of another purpose and stays; it may be a secret all the same, in several lines.
            match doors.api_key_beside(request.headers(), self.settings.form) {
                Some(name) => guard_field(request.headers_mut(), name, remove),
                None => mark_lines(request.headers_mut(), name),
            }
        }
        if let Some(prefix) = &doors.websocket {
            without_token(request.headers_mut(), prefix);
        }
        match &doors.query {
            Some(name) if remove && allows_query_token(request.method()) => remove_parameter(request, name),
            _ => {}
        }
    }

    pub(super) fn reject<B>(&self, rejection: Rejection) -> Response<B>
    where
        R: Respond<B>,
    {
        let advert = rejection.decision().and_then(|decision| self.advert(decision));
        let mut response = self.responder.reject(rejection.with_challenges(&self.terms));
        if self.settings.doors.query.is_some() {
            keep_target(response.headers_mut());
        }
        if let Some(advert) = advert {
            advert.write(response.headers_mut());
        }
        response
    }

    #[inline]
    pub(super) fn advert(&self, decision: &Decision) -> Option<LimitHeaders> {
        limit_headers(self.settings.ratelimit, decision, || self.settings.wall_clock.now())
    }
}

pub(super) type Found<T> = Lookup<<T as TokenStore>::Principal, StoreError>;

impl<T: TokenStore, L: Limiter, R> Shared<T, L, R> {
    /// The store has answered at once.
    #[inline]
    fn found<B>(&self, found: Found<T>, credential: Credential, request: &mut Request<B>) -> Step<T, L> {
        match self.judge(found, credential) {
            Ok(grant) => self.known(grant, request),
            Err(rejection) => self.failed(rejection, request),
        }
    }

    /// Whether a grant was found that is valid.
    #[inline]
    pub(super) fn judge(&self, found: Found<T>, credential: Credential) -> Result<CurrentGrant, Rejection> {
        let grant = match found {
            Ok(Some(grant)) => grant,
            Ok(None) => return Err(Rejection::new(RejectionKind::UnknownToken)),
            Err(error) => return Err(Rejection::unavailable(error)),
        };
        let verdict = verdict(grant.head(), || self.settings.wall_clock.now());
        let grant = CurrentGrant::by(grant, credential);
        match verdict {
            Ok(()) => Ok(grant),
            Err(kind) => Err(Rejection::new(kind).of_grant(grant.id())),
        }
    }

    /// The caller is known, and pays.
    #[inline]
    pub(super) fn known<B>(&self, grant: CurrentGrant, request: &mut Request<B>) -> Step<T, L> {
        if is_unlimited::<L>() {
            return Caller::Known(grant).enter(request, None);
        }
        let answer = self.limiter.charge(&grant, Charge::Request(&RequestHead::of(request)));
        self.checked(Caller::Known(grant), answer, request)
    }

    /// Charges a request without a grant.
    fn unauthenticated<B>(&self, why: Unauthenticated, request: &mut Request<B>) -> Step<T, L> {
        let caller = Caller::Unauthenticated(why, Arc::clone(&self.terms));
        if is_unlimited::<L>() {
            return caller.enter(request, None);
        }
        let answer = self.limiter.charge_anonymous(Charge::Request(&RequestHead::of(request)));
        self.checked(caller, answer, request)
    }

    /// The limiter has answered, or is about to.
    #[inline]
    pub(super) fn checked<B>(
        &self,
        mut caller: Caller,
        answer: Answer<L::Future>,
        request: &mut Request<B>,
    ) -> Step<T, L> {
        let decision = match answer {
            Answer::Ready(decision) => decision,
            Answer::Pending(future) => return Step::Wait(Wait::Check { future, caller: Some(caller) }),
        };
        match decision.into_result() {
            Ok(decision) => {
                let advert = self.advert(&decision);
                caller.record(decision);
                caller.enter(request, advert)
            }
            Err(rejection) => Step::Refuse(match &caller {
                Caller::Known(grant) => rejection.of_grant(grant.id()),
                Caller::Unauthenticated(..) | Caller::Behind(_) => rejection,
            }),
        }
    }
}

impl<S: Clone, T, L, R> Clone for AuthService<S, T, L, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<S, T, L, R> fmt::Debug for AuthService<S, T, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.debug("AuthService", f).finish_non_exhaustive()
    }
}
