//! Where the gate meets the throttle of failures. A request that is admitted at once never comes here.

use http::Request;

use super::future::{Step, Wait};
use super::service::Found;
use super::settings::Shared;
use crate::limit::{Attempt, Limiter, WouldBeThrottled};
use crate::observe::Timer;
use crate::rejection::store_error::StoreError;
use crate::rejection::{Rejection, RejectionKind};
use crate::request_head::RequestHead;
use crate::store::TokenStore;
use crate::token::Credential;

/// Returns whether this is a failed attempt to authenticate. A request without credentials is none. A store that fails says
/// nothing about the client, but a token that a working store cannot check may be the client's choice.
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

impl<T: TokenStore, L: Limiter, R> Shared<T, L, R> {
    /// An attempt of the request's peer, if it is throttled: the one place that knows who is refused, or would be.
    fn attempt<B>(&self, request: &Request<B>) -> Result<Option<Attempt>, Rejection> {
        match &self.settings.throttle {
            Some(throttle) => throttle.begin(&RequestHead::of(request)),
            None => Ok(None),
        }
    }

    /// Refuses, but who fails too often in other words.
    #[inline]
    pub(super) fn failed<B>(&self, rejection: Rejection, request: &Request<B>) -> Step<T, L> {
        if self.settings.throttle.is_none() || !is_failure(&rejection) {
            return Step::Refuse(rejection);
        }
        self.count(rejection, request)
    }

    #[cold]
    fn count<B>(&self, rejection: Rejection, request: &Request<B>) -> Step<T, L> {
        match self.attempt(request) {
            Ok(attempt) => Step::Refuse(ended(attempt, rejection)),
            Err(throttled) => Step::Refuse(throttled),
        }
    }

    /// Waits for the store, but not on behalf of who fails too often: then the future is dropped unpolled.
    pub(super) fn look_up<B>(&self, future: T::Future, credential: Credential, request: &Request<B>) -> Step<T, L> {
        match self.attempt(request) {
            Ok(attempt) => self.wait(future, credential, attempt),
            Err(throttled) => Step::Refuse(throttled),
        }
    }

    pub(super) fn wait(&self, future: T::Future, credential: Credential, attempt: Option<Attempt>) -> Step<T, L> {
        let timeout = self.settings.timeout.as_ref();
        let attempt = match timeout {
            Some(timeout) => attempt.map(|attempt| attempt.with_timeout(timeout.duration)),
            None => attempt,
        };
        let deadline = timeout.map(|timeout| timeout.start());
        Step::Wait(Wait::Lookup { future, deadline, credential, timer: Timer::start(), attempt })
    }

    /// The store has answered at last.
    pub(super) fn looked_up<B>(
        &self,
        found: Found<T>,
        credential: Credential,
        attempt: Option<Attempt>,
        request: &mut Request<B>,
    ) -> Step<T, L> {
        match self.judge(found, credential) {
            Ok(grant) => {
                if let Some(attempt) = attempt {
                    if attempt.would_be_throttled() {
                        request.extensions_mut().insert(WouldBeThrottled);
                    }
                    attempt.succeed();
                }
                self.known(grant, request)
            }
            Err(rejection) if attempt.is_some() => Step::Refuse(ended(attempt, rejection)),
            // It was not counted before.
            Err(rejection) => self.failed(rejection, request),
        }
    }
}

/// Ends an attempt, as the failure that it was or not.
pub(super) fn ended(attempt: Option<Attempt>, rejection: Rejection) -> Rejection {
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
