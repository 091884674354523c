//! [`Refund`]: returns the units of a charge to the bucket. [`RefundIf`]: for which responses.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use http::StatusCode;

/// A refund of one charge, for requests that should not count. The refund takes effect at most once.
///
/// Limiters with [`RateLimits::with_refunds`](crate::RateLimits::with_refunds) add a refund to their decisions. Clones share
/// one refund. Dropping a refund does not execute it.
///
/// ```
/// use tollgate::limit::{Charge, RateLimits};
/// use tollgate::{CurrentGrant, Grant, Quota};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let limits = RateLimits::new(Quota::per_minute(60)).with_refunds();
/// let alice = CurrentGrant::new(Grant::new("alice", ()));
///
/// let decision = limits.charge(&alice, Charge::Units(10));
/// assert_eq!(decision.remaining(), 50);
/// // The exchange did not respond, so the request should not count.
/// decision.refund().await;
/// assert_eq!(limits.peek(&alice).remaining(), 60);
/// # }
/// ```
#[derive(Clone)]
pub struct Refund(Arc<Mutex<Option<GiveBack>>>);

type GiveBack = Box<dyn FnOnce() -> BoxDone + Send>;
type BoxDone = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Refund {
    /// Creates a refund for a custom limiter. The closure is called at most once.
    pub fn new<F, Fut>(give_back: F) -> Self
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let give_back: GiveBack = Box::new(move || Box::pin(give_back()));
        Self(Arc::new(Mutex::new(Some(give_back))))
    }

    /// Executes several refunds at the same time.
    pub(crate) async fn give_back_all(refunds: impl IntoIterator<Item = Self>) {
        let mut pending: Vec<_> = refunds.into_iter().map(|refund| Box::pin(refund.give_back())).collect();
        poll_fn(|cx| {
            pending.retain_mut(|refund| refund.as_mut().poll(cx).is_pending());
            if pending.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Refunds the charge, unless it has already been refunded.
    pub async fn give_back(self) {
        let give_back = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(give_back) = give_back {
            give_back().await;
        }
    }
}

impl PartialEq for Refund {
    /// Returns whether both refund the same charge.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Refund {}

impl fmt::Debug for Refund {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Refund(..)")
    }
}

/// The statuses of responses whose requests do not count.
#[derive(Clone)]
pub(crate) struct RefundIf(Arc<dyn Fn(StatusCode) -> bool + Send + Sync>);

impl RefundIf {
    pub(crate) fn new(refund_if: impl Fn(StatusCode) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(refund_if))
    }

    pub(crate) fn includes(&self, status: StatusCode) -> bool {
        (self.0)(status)
    }
}

impl PartialEq for RefundIf {
    /// Returns whether both are the same setting.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for RefundIf {}

impl fmt::Debug for RefundIf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefundIf(..)")
    }
}
