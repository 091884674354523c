//! The third station: charge the caller's budget.
//!
//! [`RateLimits`] is the limiter in memory: one GCRA cell a subject, decided by `governor`. Whoever keeps budgets
//! elsewhere implements [`Limiter`]. Beside it stands the [`FailureThrottle`], for who is nobody yet.
//!
//! # Rules
//!
//! 1. A budget belongs to a [`Subject`](crate::Subject) that a store has vouched for. There is no way to key it by a
//!    header, a token or an address, so that strangers can neither reset a budget nor grow the memory.
//! 2. Over any time `t` no more than `burst + rate x t` is admitted, with the largest burst and rate of all quotas that
//!    the subject had meanwhile: a change of plan carries what is owed, counted in cells. (What would take more than 438
//!    years to pay off is cut to that.)
//! 3. A refused charge costs nothing. Who waits [`Decision::retry_after`] and comes alone is admitted; who comes a
//!    nanosecond earlier is not.
//! 4. Where a limiter has several policies, a charge meets all of them or none: what one refuses costs none of the others.
//! 5. Memory is bounded by the subjects whose grants are alive or in debt. No task runs. A grant that its store has dropped
//!    may be kept, with its principal, until the next [sweep](RateLimits::sweep), which happens while new subjects come.

mod all_or_nothing;
mod buckets;
mod failures;
#[cfg(all(test, tollgate_shuttle))]
mod interleavings;
mod memory;
#[cfg(feature = "redis")]
pub mod redis;
mod refund_totals;
mod rule;
mod sketch;
mod state;

pub(crate) use crate::quota::clock::Time;
pub use crate::quota::clock::{Clock, MonotonicClock};
pub(crate) use failures::Attempt;
pub use failures::{FailureThrottle, WouldBeThrottled, ip_prefix};
pub use memory::RateLimits;

pub use crate::quota::decision::{Decision, Verdict};
pub use crate::quota::policy::{Policy, PolicyNameError};
pub use crate::quota::refund::Refund;

use crate::caller::CurrentGrant;
use crate::pending::answer::Answer;
use crate::request_head::RequestHead;

/// What is to be paid for.
#[derive(Clone, Copy, Debug)]
pub enum Charge<'a> {
    /// A number of units, for what is no request: messages on a socket, rows of an export. 0 charges nothing and
    /// reads the state of the budget.
    Units(u32),
    /// A request; the limiter knows what it costs.
    Request(&'a RequestHead<'a>),
}

/// Decides whether a caller may go on, and charges them if so.
///
/// # Contract
///
/// - The budget is found by [`CurrentGrant::subject`] and nothing else.
/// - [`Answer::Pending`] is lazy: nothing is charged before the first poll, and a dropped future may or may not have
///   charged.
/// - A limiter that waits bounds its own wait, because only it knows what to do when its server is gone.
///
/// # Security
///
/// A false "admitted" costs capacity, a false "refused" locks a paying caller out: decide, and document, which one
/// your limiter prefers when it cannot tell.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a limiter",
    note = "use `RateLimits::new(Quota::per_minute(180).with_burst(20))` or implement `Limiter`"
)]
pub trait Limiter: Send + Sync + 'static {
    /// The future of a decision that has to be waited for; [`Immediate`](crate::Immediate) if there is none.
    type Future: Future<Output = Decision> + Send + 'static;

    /// Charges the budget of the grant's subject.
    fn charge(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future>;

    /// Charges what all anonymous callers and CORS preflights share. They pass without limit unless a limiter says otherwise.
    fn charge_anonymous(&self, charge: Charge<'_>) -> Answer<Self::Future> {
        let _ = charge;
        Answer::Ready(Decision::unlimited())
    }

    /// Returns the form of this limiter that [`AuthLayer::rate_limit`](crate::AuthLayer::rate_limit) puts on a route.
    ///
    /// A limiter on a route limits by its own quota, and not by the [quotas of grants](crate::Grant::with_quota). A limiter that
    /// follows these returns a form that does not, unless its configuration asks for it explicitly. A limiter that wraps
    /// another one passes the call on. By default the limiter stays as it is.
    #[must_use]
    fn for_route(self) -> Self
    where
        Self: Sized,
    {
        self
    }
}
