//! The state of a request between two steps of the pipeline.

use std::time::SystemTime;

use http::HeaderValue;

use crate::caller::{CurrentGrant, Unauthenticated};
use crate::extract::InvalidRequest;
use crate::limit::{Attempt, Limiter};
use crate::observe::Timer;
use crate::pending::answer::Answer;
use crate::pending::timeout::BoxSleep;
use crate::quota::decision::Decision;
use crate::rejection::store_error::StoreError;
use crate::rejection::{Rejection, RejectionKind};
use crate::respond::ratelimit::LimitHeaders;
use crate::store::{GateStore, Lookup};
use crate::token::{Credential, TokenLocation};

/// The next action for a request.
pub(super) enum Step<T: GateStore, L: Limiter> {
    /// Calls the inner service. The caller is in the request's extensions.
    Admit(Admitted),
    /// Sends a rejection.
    Reject(Rejection),
    /// Waits for a store or a limiter.
    Wait(Wait<T::Future, L::Future>),
}

/// The charge of an admitted request, as its response needs it.
#[derive(Default)]
pub(super) struct Charged {
    pub(super) headers: Option<LimitHeaders>,
    /// Present if the status of the response decides whether the request counts.
    pub(super) refundable: Option<Box<Refundable>>,
}

/// A charge that may be refunded by the status of the response.
pub(super) struct Refundable {
    pub(super) decision: Decision,
    /// The time of the decision, for headers that contain a date.
    pub(super) decided_at: SystemTime,
}

/// The properties of an admitted request that its response needs.
pub(super) struct Admitted {
    pub(super) charged: Charged,
    pub(super) location: TokenLocation,
    /// For the response to a rejection that the inner service returns.
    pub(super) is_head: bool,
    /// For the response to a rejection that the inner service returns.
    pub(super) request_id: Option<Box<HeaderValue>>,
}

pin_project_lite::pin_project! {
    /// The pending answer of a store or a limiter, and what the next step needs.
    #[project = WaitProj]
    pub(super) enum Wait<F, G> {
        Lookup { #[pin] future: F, timeout: Option<BoxSleep>, credential: Credential, timer: Timer, attempt: Option<Attempt> },
        Charge { #[pin] future: G, caller: Option<Caller> },
    }
}

/// The caller of a request that waits for a limiter.
pub(super) enum Caller {
    Authenticated(CurrentGrant),
    Unauthenticated(Unauthenticated),
    /// A gate around this layer has inserted the caller into the request's extensions.
    BehindGate,
}

/// The store's answer to the lookup of a token, or the reason why there was no lookup.
pub(super) type TokenLookup<T> = Result<Asked<T>, NoToken>;

/// The store's answer about a credential.
pub(super) struct Asked<T: GateStore> {
    pub(super) answer: Answer<T::Future>,
    pub(super) credential: Credential,
    /// [`GateStore::is_cached_for`] for a pending answer of a gate with a throttle, and else false.
    pub(super) is_cached: bool,
}

impl<T: GateStore> Asked<T> {
    pub(super) fn location(&self) -> TokenLocation {
        self.credential.location
    }
}

/// The reason why there is no token to look up.
pub(super) enum NoToken {
    Missing,
    Malformed,
    Invalid(InvalidRequest),
}

impl From<NoToken> for Rejection {
    fn from(reason: NoToken) -> Self {
        match reason {
            NoToken::Missing => Self::missing(),
            NoToken::Malformed => Self::new(RejectionKind::MalformedToken),
            NoToken::Invalid(reason) => Self::invalid_request(reason),
        }
    }
}

/// A store's answer, with the error type of all stores.
pub(super) type Found<T> = Lookup<<T as GateStore>::Principal, StoreError>;
