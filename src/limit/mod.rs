//! Rate limits: the third step of the pipeline charges the caller.
//!
//! [`RateLimits`] is the limiter in memory. It uses GCRA, computed by `governor`. Implement [`Limiter`] to keep buckets
//! elsewhere. [`AnonymousLimits`] limits clients without a token by their address, and [`FailureThrottle`] the failed
//! authentications of a peer.
//!
//! # Rules
//!
//! 1. A bucket belongs to a [`Subject`](crate::Subject) that a store returned, so clients can neither reset a bucket nor grow
//!    the memory. Only [`AnonymousLimits`] has buckets by address, in a table of fixed size.
//! 2. In any time `t`, at most `burst + rate x t` units are admitted. The largest burst and rate of all quotas that the subject
//!    had meanwhile count. A change of plan carries the used units over, capped at units that take 438 years to regain.
//! 3. A rejected charge costs nothing. A retry after exactly [`Decision::retry_after`] is admitted if no other request charges
//!    the bucket meanwhile. A retry one nanosecond earlier is rejected.
//! 4. A limiter with several limits charges all of them or none. A charge that one limit rejects costs nothing in the others.
//! 5. The number of buckets is bounded by the subjects whose grants exist or whose buckets are not full. No background task
//!    runs. A grant that its store has dropped may stay in memory, with its principal, until the next
//!    [sweep](RateLimits::sweep). New subjects cause sweeps.

mod all_or_nothing;
mod anonymous;
mod attempt;
mod bucket_map;
mod buckets;
mod client_ip;
mod error;
mod failures;
pub(crate) mod forwarded;
#[cfg(all(test, tollgate_shuttle))]
mod interleavings;
mod key_table;
#[cfg(all(test, tollgate_shuttle))]
mod lease_interleavings;
#[allow(clippy::module_inception, reason = "the file of `Limit`")]
mod limit;
mod memory;
#[cfg(feature = "redis")]
pub mod redis;
mod refunds;
mod sketch;
mod state;
mod unlimited;

pub(crate) use crate::quota::clock::Time;
pub use crate::quota::clock::{Clock, MonotonicClock};
pub use anonymous::AnonymousLimits;
pub(crate) use attempt::Attempt;
pub use attempt::AuthAttempt;
pub use client_ip::{ClientIp, ClientIpError, ip_prefix};
pub use error::LimitError;
pub use failures::{FailureThrottle, FailureThrottleError, WouldBeThrottled};
pub use limit::Limit;
pub use memory::RateLimits;
pub use unlimited::Unlimited;

pub use crate::quota::decision::{Decision, Verdict};
pub use crate::quota::policy::{Policy, PolicyNameError};
pub use crate::quota::refund::Refund;

use crate::caller::CurrentGrant;
use crate::pending::answer::Answer;
use crate::request_head::RequestHead;

/// A charge: a request, or a number of units.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Charge<'a> {
    /// A number of units that are not requests, such as messages on a socket or rows of an export. 0 units charge nothing
    /// and read the state of the bucket.
    Units(u32),
    /// A request. The limiter determines its cost.
    Request(&'a RequestHead<'a>),
}

/// Decides whether a caller is admitted, and charges admitted callers.
///
/// # Contract
///
/// - The limiter finds the bucket by [`CurrentGrant::subject`] only.
/// - [`Answer::Pending`] is lazy: nothing is charged before the first poll. A dropped future may or may not have charged.
/// - A limiter that waits has its own timeout, because only the limiter can decide what to do without its server.
///
/// # Security
///
/// A wrong admission uses capacity. A wrong rejection locks out a legitimate caller. Decide and document which of the two your
/// limiter prefers when it cannot determine the state of a bucket.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a limiter",
    note = "use `RateLimits::new(Quota::per_minute(180).with_burst(20))` or implement `Limiter`"
)]
pub trait Limiter: Send + Sync + 'static {
    /// The future of a pending decision. Use [`Immediate`](crate::Immediate) if decisions are always immediate.
    type Future: Future<Output = Decision> + Send + 'static;

    /// Charges the bucket of the grant's subject.
    fn charge(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future>;

    /// Charges for a request without a grant: of an anonymous caller, or a CORS preflight. By default it is not limited.
    fn charge_anonymous(&self, charge: Charge<'_>) -> Answer<Self::Future> {
        let _ = charge;
        Answer::Ready(Decision::unlimited())
    }

    /// Returns the form of this limiter for a [route](crate::AuthLayer::route_rate_limit). Default: the limiter itself.
    ///
    /// A limiter on a route limits by its own quota, and not by the [quotas of grants](crate::Grant::with_quota). A limiter that
    /// follows grants' quotas returns a form that does not, unless its configuration requests them explicitly. A limiter that
    /// wraps another one passes the call on.
    #[must_use]
    fn for_route(self) -> Self
    where
        Self: Sized,
    {
        self
    }
}
