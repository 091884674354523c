//! The last step of the pipeline: the responses to rejected requests.

use std::time::SystemTime;

use http::{HeaderValue, Request, Response};

use super::settings::{Gate, RequestId};
use super::state::{Admitted, Charged, Refundable};
use crate::quota::decision::Decision;
use crate::rejection::Rejection;
use crate::request_head::RequestHead;
use crate::respond::ratelimit::{LimitHeaders, limit_headers};
use crate::respond::{Respond, keep_target};

/// Step 4: respond.
impl<T, L, R> Gate<T, L, R> {
    /// Returns the response to a rejected request.
    pub(super) fn reject_request<ReqB, B>(&self, rejection: Rejection, request: &Request<ReqB>) -> Response<B>
    where
        R: Respond<B>,
    {
        let rejection = rejection.for_request(&RequestHead::of(request));
        self.reject(match self.request_id(request) {
            Some(id) => rejection.with_request_id(*id),
            None => rejection,
        })
    }

    /// Returns the response of a rejection.
    pub(super) fn reject<B>(&self, rejection: Rejection) -> Response<B>
    where
        R: Respond<B>,
    {
        let advert = rejection.decision().and_then(|decision| self.advert(decision));
        let mut response = self.responder.reject(rejection.with_challenges(&self.terms));
        if self.settings.locations.query.is_some() {
            keep_target(response.headers_mut());
        }
        if let Some(advert) = advert {
            advert.write(response.headers_mut());
        }
        response
    }

    /// Returns the response to a rejection that the handler or an extractor returned.
    #[cold]
    pub(super) fn reject_returned<B>(&self, rejection: Rejection, admitted: &mut Admitted) -> Response<B>
    where
        R: Respond<B>,
    {
        self.reject(rejection.for_admitted(admitted.is_head, admitted.request_id.take()))
    }

    /// Returns the id of a request, if the gate has a function for it.
    #[inline]
    pub(super) fn request_id<B>(&self, request: &Request<B>) -> Option<Box<HeaderValue>> {
        #[cold]
        fn boxed(request_id: &RequestId, head: &RequestHead<'_>) -> Option<Box<HeaderValue>> {
            request_id(head).map(Box::new)
        }
        let request_id = self.settings.request_id.as_ref()?;
        boxed(request_id, &RequestHead::of(request))
    }

    /// Returns the data of a decision that the response to an admitted request needs.
    #[inline(always)]
    pub(super) fn charged(&self, decision: &Decision) -> Charged {
        let refundable = if decision.may_be_refundable() { self.refundable(decision) } else { None };
        Charged { headers: self.advert(decision), refundable }
    }

    #[cold]
    fn refundable(&self, decision: &Decision) -> Option<Box<Refundable>> {
        let decided_at = self.settings.wall_clock.now();
        decision.refundable().map(|decision| Box::new(Refundable { decision, decided_at }))
    }

    /// Renders the rate limit headers of a decision that was made at this time.
    pub(super) fn advert_of(&self, decision: &Decision, decided_at: SystemTime) -> Option<LimitHeaders> {
        limit_headers(self.settings.headers, decision, || decided_at)
    }

    /// Renders the rate limit headers of a decision.
    #[inline]
    pub(super) fn advert(&self, decision: &Decision) -> Option<LimitHeaders> {
        limit_headers(self.settings.headers, decision, || self.settings.wall_clock.now())
    }
}
