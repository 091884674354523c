//! The first three steps of the pipeline: every decision of a gate about a request.
//!
//! The path of an admitted request is inlined into one function, down to the bucket (`inline(always)`). Otherwise each function
//! would return its result in memory, from which the next one would copy it.

use std::sync::Arc;

use http::{Method, Request, header};

use super::settings::Gate;
use super::state::{Admitted, Asked, Caller, Charged, Found, NoToken, Step, TokenLookup, Wait};
use super::unlimited::is_unlimited;
use crate::authenticate::verdict;
use crate::caller::{CurrentGrant, Unauthenticated, WithoutGrant};
use crate::extract::{Extracted, authorization};
use crate::grant::Grant;
use crate::limit::{Attempt, Charge, Limiter, WouldBeThrottled};
use crate::observe::{self, Timer};
use crate::pending::answer::Answer;
use crate::quota::decision::Decision;
use crate::rejection::store_error::StoreError;
use crate::rejection::{Rejection, RejectionKind};
use crate::request_head::RequestHead;
use crate::store::GateStore;
use crate::token::{Credential, TokenLocation};

/// Preflights, and requests without HTTPS. They skip extraction and authentication.
impl<T: GateStore, L: Limiter, R> Gate<T, L, R> {
    /// Admits a CORS preflight, or rejects a request without HTTPS. Returns `None` for other requests.
    #[inline]
    pub(super) fn decide_early<B>(&self, request: &mut Request<B>) -> Option<Step<T, L>> {
        // Without a `match` on the first result, which would move it.
        if self.is_bypassed(request) {
            return Some(self.charge_preflight(request));
        }
        match self.settings.is_secure {
            Some(_) => self.reject_without_https(request).map(Step::Reject),
            None => None,
        }
    }

    /// Admits a CORS preflight, charged like an anonymous caller. Returns `None` for other requests.
    #[inline]
    pub(super) fn bypass_preflight<B>(&self, request: &mut Request<B>) -> Option<Step<T, L>> {
        self.is_bypassed(request).then(|| self.charge_preflight(request))
    }

    #[inline]
    fn is_bypassed<B>(&self, request: &Request<B>) -> bool {
        self.settings.bypass_preflights && is_preflight(request)
    }

    /// Charges a preflight. A function of its own, because other requests are shorter without this code.
    #[cold]
    fn charge_preflight<B>(&self, request: &mut Request<B>) -> Step<T, L> {
        self.remove_credentials(request);
        self.charge_unauthenticated(Unauthenticated::Preflight, request)
    }
}

/// Returns whether the request is a "CORS-preflight request" of the Fetch standard. Other `OPTIONS` requests may have
/// credentials.
fn is_preflight<B>(request: &Request<B>) -> bool {
    matches!(*request.method(), Method::OPTIONS)
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Step 1: extract.
impl<T: GateStore, L: Limiter, R> Gate<T, L, R> {
    /// Returns the credential in the head of a request.
    #[inline]
    pub(super) fn extract<'a, B>(&self, request: &'a Request<B>) -> (Extracted<'a>, TokenLocation) {
        match self.settings.locations.is_authorization_only() {
            true => (authorization(request.headers(), self.settings.syntax), TokenLocation::AuthorizationHeader),
            false => self.settings.locations.extract(&RequestHead::of(request), self.settings.syntax),
        }
    }

    /// Looks up the token in the store. The result does not borrow the request.
    #[inline(always)]
    pub(super) fn look_up(
        &self,
        extracted: Extracted<'_>,
        location: TokenLocation,
        head: &RequestHead<'_>,
    ) -> TokenLookup<T> {
        match extracted {
            Extracted::Token(token) => {
                let token = token.with_location(location);
                let credential = Credential { location, digest: Some(*token.digest()) };
                let answer = self.store.lookup_for(&token, head);
                // Only the throttle uses `is_cached`.
                let may_be_throttled = self.settings.throttle.is_some() && matches!(answer, Answer::Pending(_));
                let is_cached = may_be_throttled && self.store.is_cached_for(&token, head);
                Ok(Asked { answer, credential, is_cached })
            }
            Extracted::Nothing => Err(NoToken::Missing),
            Extracted::Malformed => Err(NoToken::Malformed),
            Extracted::Ambiguous(reason) => Err(NoToken::Invalid(reason)),
        }
    }
}

/// Step 2: authenticate.
impl<T: GateStore, L: Limiter, R> Gate<T, L, R> {
    /// Continues with the store's answer, or waits for a pending one.
    #[inline(always)]
    pub(super) fn authenticate<B>(&self, lookup: TokenLookup<T>, request: &mut Request<B>) -> Step<T, L> {
        match lookup {
            Ok(Asked { answer: Answer::Ready(found), credential, .. }) => {
                match self.check_grant(found.map_err(StoreError::new)) {
                    Ok(grant) => self.charge(CurrentGrant::by(grant, credential), request),
                    Err(rejection) => self.reject_attempt(rejection, request),
                }
            }
            Ok(Asked { answer: Answer::Pending(future), credential, is_cached: true }) => {
                self.wait_for_store(future, credential, None)
            }
            // A throttled peer must not cause a lookup. The future is dropped before its first poll.
            Ok(Asked { answer: Answer::Pending(future), credential, is_cached: false }) => {
                match self.begin_attempt(request) {
                    Ok(attempt) => self.wait_for_store(future, credential, attempt),
                    Err(throttled) => Step::Reject(throttled),
                }
            }
            Err(NoToken::Missing) if self.settings.allow_anonymous => {
                self.charge_unauthenticated(Unauthenticated::Anonymous, request)
            }
            Err(reason) => self.reject_attempt(reason.into(), request),
        }
    }

    fn wait_for_store(&self, future: T::Future, credential: Credential, attempt: Option<Attempt>) -> Step<T, L> {
        let timeout = self.settings.timeout.as_ref();
        let attempt = match timeout {
            Some(timeout) => attempt.map(|attempt| attempt.with_timeout(timeout.duration)),
            None => attempt,
        };
        let timeout = timeout.map(|timeout| timeout.start());
        Step::Wait(Wait::Lookup { future, timeout, credential, timer: Timer::start(), attempt })
    }

    /// Continues after a pending lookup.
    pub(super) fn authenticate_after_wait<B>(
        &self,
        found: Found<T>,
        credential: Credential,
        attempt: Option<Attempt>,
        request: &mut Request<B>,
    ) -> Step<T, L> {
        match self.check_grant(found) {
            Ok(grant) => {
                if let Some(attempt) = attempt {
                    if attempt.would_be_throttled() {
                        request.extensions_mut().insert(WouldBeThrottled);
                    }
                    attempt.succeed();
                }
                self.charge(CurrentGrant::by(grant, credential), request)
            }
            Err(rejection) if attempt.is_some() => Step::Reject(end_attempt(attempt, rejection)),
            // There is no attempt yet, because the token is cached or the store answered immediately.
            Err(rejection) => self.reject_attempt(rejection, request),
        }
    }

    /// Ends the attempt of a lookup that has timed out.
    pub(super) fn reject_after_timeout(&self, attempt: Option<Attempt>) -> Step<T, L> {
        let timeout = self.settings.timeout.as_ref().map(|timeout| timeout.duration).unwrap_or_default();
        let rejection = Rejection::unavailable(StoreError::timeout(timeout));
        Step::Reject(end_attempt(attempt, rejection))
    }

    /// Returns the grant, if the store found one and it is valid.
    #[inline(always)]
    fn check_grant(&self, found: Found<T>) -> Result<Arc<Grant<T::Principal>>, Rejection> {
        let grant = match found {
            Ok(Some(grant)) => grant,
            Ok(None) => return Err(Rejection::new(RejectionKind::UnknownToken)),
            Err(error) => return Err(Rejection::unavailable(error)),
        };
        match verdict(grant.head(), || self.settings.wall_clock.now()) {
            Ok(()) => Ok(grant),
            Err(kind) => Err(Rejection::new(kind).of_grant(grant.id())),
        }
    }
}

/// The failure throttle, a part of step 2. Requests that are admitted without waiting never reach it.
impl<T: GateStore, L: Limiter, R> Gate<T, L, R> {
    /// Begins an attempt of the request's peer, or returns a rejection if the peer is throttled.
    ///
    /// Returns `None` if the gate has no throttle, or if the throttle does not count this peer.
    fn begin_attempt<B>(&self, request: &Request<B>) -> Result<Option<Attempt>, Rejection> {
        match &self.settings.throttle {
            Some(throttle) => throttle.begin(&RequestHead::of(request)),
            None => Ok(None),
        }
    }

    /// Rejects a request, and counts a failed attempt. Peers with too many failures get the throttle's rejection.
    #[inline]
    fn reject_attempt<B>(&self, rejection: Rejection, request: &Request<B>) -> Step<T, L> {
        if self.settings.throttle.is_none() || !is_failure(&rejection) {
            return Step::Reject(rejection);
        }
        self.count_failure(rejection, request)
    }

    #[cold]
    fn count_failure<B>(&self, rejection: Rejection, request: &Request<B>) -> Step<T, L> {
        match self.begin_attempt(request) {
            Ok(attempt) => Step::Reject(end_attempt(attempt, rejection)),
            Err(throttled) => Step::Reject(throttled),
        }
    }
}

/// Ends an attempt as a failure or as a success. Returns the rejection, marked if only a dry run admitted the attempt.
fn end_attempt(attempt: Option<Attempt>, rejection: Rejection) -> Rejection {
    let Some(attempt) = attempt else { return rejection };
    let rejection = match attempt.would_be_throttled() {
        true => rejection.with_would_be_throttled(),
        false => rejection,
    };
    match is_failure(&rejection) {
        true => attempt.fail(),
        false => attempt.succeed(),
    }
    rejection
}

/// Returns whether the rejection is a failed attempt to authenticate. A request without credentials is no attempt.
///
/// An outage of the store is not the client's failure. But the client may choose a token that a working store cannot check.
fn is_failure(rejection: &Rejection) -> bool {
    match rejection.kind() {
        RejectionKind::MalformedToken
        | RejectionKind::UnknownToken
        | RejectionKind::NotYetValid
        | RejectionKind::ExpiredToken
        | RejectionKind::SenderConstrained
        | RejectionKind::InvalidRequest => true,
        RejectionKind::StoreUnavailable => rejection.store_error().is_some_and(StoreError::concerns_token),
        _ => false,
    }
}

/// Step 3: limit.
impl<T: GateStore, L: Limiter, R> Gate<T, L, R> {
    /// Charges the authenticated caller.
    #[inline(always)]
    pub(super) fn charge<B>(&self, mut grant: CurrentGrant, request: &mut Request<B>) -> Step<T, L> {
        if is_unlimited::<L>() {
            return self.admit(grant, Charged::default(), request);
        }
        match self.limiter.charge(&grant, Charge::Request(&RequestHead::of(request))) {
            // The usual case does not move the grant into a `Caller`, which saves about 40 instructions.
            Answer::Ready(decision) => match self.record(decision, &mut grant) {
                Ok(charged) => self.admit(grant, charged, request),
                Err(rejection) => Step::Reject(rejection),
            },
            Answer::Pending(future) => Step::Wait(Wait::Charge { future, caller: Some(Caller::Authenticated(grant)) }),
        }
    }

    /// Charges a request without a grant.
    #[inline]
    pub(super) fn charge_unauthenticated<B>(&self, reason: Unauthenticated, request: &mut Request<B>) -> Step<T, L> {
        if is_unlimited::<L>() {
            return self.admit_unauthenticated(reason, Charged::default(), request);
        }
        let answer = self.limiter.charge_anonymous(Charge::Request(&RequestHead::of(request)));
        match &answer {
            // The usual case does not move the decision.
            Answer::Ready(decision) if decision.is_admitted() => {
                self.admit_unauthenticated(reason, self.charged(decision), request)
            }
            _ => self.limit(Caller::Unauthenticated(reason), answer, request),
        }
    }

    /// Continues with the limiter's decision, or waits for a pending one.
    #[inline]
    pub(super) fn limit<B>(&self, caller: Caller, answer: Answer<L::Future>, request: &mut Request<B>) -> Step<T, L> {
        let decision = match answer {
            Answer::Ready(decision) => decision,
            Answer::Pending(future) => return Step::Wait(Wait::Charge { future, caller: Some(caller) }),
        };
        match caller {
            Caller::Authenticated(mut grant) => match self.record(decision, &mut grant) {
                Ok(charged) => self.admit(grant, charged, request),
                Err(rejection) => Step::Reject(rejection),
            },
            Caller::Unauthenticated(reason) => match decision.into_result() {
                Ok(decision) => self.admit_unauthenticated(reason, self.charged(&decision), request),
                Err(rejection) => Step::Reject(rejection),
            },
            Caller::BehindGate => match decision.into_result() {
                Ok(decision) => {
                    let charged = self.charged(&decision);
                    if let Some(grant) = request.extensions_mut().get_mut::<CurrentGrant>() {
                        grant.record(decision);
                    }
                    // The gate around this layer protects the location of the token.
                    Step::Admit(self.admitted(TokenLocation::AuthorizationHeader, charged, request))
                }
                Err(rejection) => Step::Reject(match request.extensions().get::<CurrentGrant>() {
                    Some(caller) => rejection.of_grant(caller.id()),
                    None => rejection,
                }),
            },
        }
    }

    /// Adds the decision of this gate to the grant, or returns a rejection.
    #[inline(always)]
    fn record(&self, decision: Decision, grant: &mut CurrentGrant) -> Result<Charged, Rejection> {
        if !decision.is_admitted() {
            return Err(Rejection::over_limit(decision).of_grant(grant.id()));
        }
        let charged = self.charged(&decision);
        grant.record(decision);
        grant.set_limiter(self.limiter_id());
        Ok(charged)
    }

    /// Returns the address of the limiter, or 0 without a limiter. Changed copies of a gate have the same limiter.
    #[inline]
    fn limiter_id(&self) -> usize {
        if is_unlimited::<L>() { 0 } else { Arc::as_ptr(&self.limiter).addr() }
    }

    #[inline]
    fn admit_unauthenticated<B>(
        &self,
        reason: Unauthenticated,
        charged: Charged,
        request: &mut Request<B>,
    ) -> Step<T, L> {
        let is_plaintext = self.is_plaintext(request);
        let extensions = request.extensions_mut();
        // Remove the grant of an outer gate: this gate did not authenticate the request.
        let limiter = self.limiter_id();
        let outer_grant = extensions.remove::<CurrentGrant>().filter(|outer| outer.has_limiter(limiter));
        let terms = (!self.terms.is_default()).then(|| Arc::clone(&self.terms));
        let outer = extensions.insert(WithoutGrant { reason, terms, limiter, is_plaintext });
        if outer_grant.is_some() || outer.is_some_and(|outer| limiter != 0 && outer.limiter == limiter) {
            return Step::Reject(Rejection::misconfigured(TWICE));
        }
        observe::passed(reason);
        // Responses to requests without a token need no privacy fields.
        Step::Admit(self.admitted(TokenLocation::AuthorizationHeader, charged, request))
    }

    #[inline(always)]
    fn admit<B>(&self, grant: CurrentGrant, charged: Charged, request: &mut Request<B>) -> Step<T, L> {
        let location = grant.location();
        let outer = request.extensions_mut().insert(grant);
        if let Some(outer) = outer {
            let is_twice = |grant: &CurrentGrant| outer.has_limiter(grant.limiter());
            if request.extensions().get().is_some_and(is_twice) {
                return Step::Reject(Rejection::misconfigured(TWICE));
            }
        }
        observe::admitted(location);
        Step::Admit(self.admitted(location, charged, request))
    }

    /// Returns the properties of the request that its response needs.
    #[inline]
    fn admitted<B>(&self, location: TokenLocation, charged: Charged, request: &Request<B>) -> Admitted {
        let is_head = matches!(*request.method(), Method::HEAD);
        Admitted { charged, location, is_head, request_id: self.request_id(request) }
    }
}

/// The detail of a rejection if an outer gate has already charged the same limiter.
const TWICE: &str =
    "The same gate has already charged this request. Perhaps it is a layer of a router and of one of its routes.";
