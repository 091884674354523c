//! Budgets that several servers share, in Redis (6 or later) or Valkey.
//!
//! # Rules
//!
//! 1. Redis decides, by its own clock, in one step a charge: over all servers together no more is admitted than
//!    [`RateLimits`](super::RateLimits) in one process would admit.
//! 2. What Redis has refused is refused here until the time that it named, or for 10 seconds, without asking again.
//! 3. [`OutagePolicy`] decides a charge only if Redis has failed: it made no connection within the deadline, did not reply to the
//!    command within the [deadline](RedisLimits::with_deadline), replied with an error, or the circuit breaker is open after
//!    such failures. [`Decision::is_local`](crate::Decision::is_local) returns true for such decisions. A wait in this process
//!    is no failure of Redis.
//! 4. Each wait is bounded (all defaults added, 1.25 seconds; with leases, 1.375 seconds):
//!
//!    | wait | bound | then |
//!    |---|---|---|
//!    | for another charge's purchase, with leases only | half of the deadline | the charge asks Redis itself |
//!    | for a connection, if there is none; and again if it fails before the next row is over | deadline | [`OutagePolicy`] |
//!    | for fewer commands in flight | [queue timeout](RedisLimits::with_queue_timeout), twice the deadline | 503 |
//!    | for the reply to the command | deadline | [`OutagePolicy`] |
//!
//!    Time in which the process stands still comes on top.
//! 5. With [leases](RedisLimits::with_leases) servers buy cells ahead, so that most charges are answered at once. No more is
//!    admitted by that.
//! 6. Redis sees no subject and no token (`key.rs`), and keeps nothing that is not owed: each key ends when its budget is
//!    full.

use thiserror::Error;

mod charge;
mod cluster;
mod connect;
mod denied;
mod gcra;
mod key;
mod lease;
#[cfg(test)]
mod lease_tests;
mod leased;
mod limits;
mod node;
mod outage;
mod refund;
mod script;
mod server;
mod stocks;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says by panicking that it failed")]
mod tests;
mod timeout;
mod tls;

pub use crate::pending::breaker::BreakerState;
pub use lease::Leases;
pub use limits::{RedisFuture, RedisLimits};
pub use outage::OutagePolicy;
pub use server::RedisServer;

/// Why no [`RedisLimits`] can be made of this.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisLimitsError {
    /// An address is no URL of Redis, or the addresses of one set do not fit together. It is not shown: it may hold a password.
    #[error("no URL of a Redis server, or URLs that do not belong together")]
    Url,
    /// The secret has fewer than 32 bytes.
    #[error("a secret has 32 bytes or more")]
    ShortSecret,
    /// A prefix has a brace.
    #[error("a prefix of keys has no braces")]
    Prefix,
    /// On a cluster, policies that all share stand beside policies of each subject.
    #[error("on a cluster a budget that all share cannot be charged in one step with one of a subject")]
    SharedOnCluster,
}
