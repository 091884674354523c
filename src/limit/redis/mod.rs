//! Rate limits that several servers share, in Redis (6 or later) or Valkey.
//!
//! # Rules
//!
//! 1. Redis decides by its own clock and charges atomically. All servers together admit no more than
//!    [`RateLimits`](super::RateLimits) in one process would admit.
//! 2. A rejection by Redis is cached locally until its retry time, for at most 10 seconds.
//! 3. [`OutagePolicy`] decides a charge only if Redis has failed. Redis has failed if there is no connection or no reply within
//!    the [timeout](RedisLimits::with_timeout), if it replies with an error, or if the circuit breaker is open after such
//!    failures. Each node of a cluster has its own circuit breaker. [`Decision::is_local`](crate::Decision::is_local) returns
//!    true for these decisions. A wait in this process is not a failure of Redis.
//! 4. Each wait is bounded. With the defaults the sum is 1 second, and 1.125 seconds with leases:
//!
//!    | wait | bound | then |
//!    |---|---|---|
//!    | for a concurrent lease request, with leases only | half of the timeout | the charge asks Redis itself |
//!    | for a connection, if there is none | timeout | [`OutagePolicy`] |
//!    | for fewer commands in flight, before and after the wait for a connection | [queue timeout](RedisLimits::with_queue_timeout), twice the timeout | 503 |
//!    | for the reply to the command | timeout | [`OutagePolicy`] |
//!    | for a refund by the [status of the response](crate::Limit::with_refund_if), before the response: the same waits again | 1 second | the request counts |
//!
//!    Time in which the process does not run comes on top.
//! 5. With [leases](RedisLimits::with_leases) a server charges units in advance, so most charges are decided immediately. The bound
//!    of rule 1 holds.
//! 6. Redis sees no subject and no token (`key.rs`). Each key expires when its bucket is full.

use thiserror::Error;

mod anonymous;
mod charge;
#[cfg(test)]
mod charge_tests;
mod cluster;
mod connect;
mod diagnose;
mod gcra;
mod key;
mod key_set;
mod lease;
mod lease_table;
#[cfg(test)]
mod lease_tests;
mod leased;
mod limits;
mod local_cache;
mod node;
mod outage;
mod refund;
mod rejection_cache;
mod script;
mod send;
mod server;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
mod timeout;
mod tls;
mod usage;
#[cfg(test)]
mod usage_tests;

pub use crate::pending::breaker::{BackoffError, BreakerState};
pub use anonymous::{RedisAnonymousFuture, RedisAnonymousLimits};
pub use lease::Leases;
pub use limits::{RedisFuture, RedisLimits};
pub use outage::OutagePolicy;
pub use server::RedisServer;
pub use usage::RedisUnavailable;

/// An error in the settings of [`RedisLimits`] or [`RedisServer`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisLimitsError {
    /// A URL is invalid, or the URLs of one set differ in user, password or TLS. The error does not contain the URL, which may hold
    /// a password.
    #[error("invalid Redis URL, or URLs that differ in user, password or TLS")]
    Url,
    /// The secret has fewer than 32 bytes.
    #[error("invalid secret: must have at least 32 bytes")]
    ShortSecret,
    /// The key prefix contains a brace.
    #[error("invalid key prefix: must not contain braces")]
    Prefix,
    /// Redis is a cluster, and there are both shared and per-subject policies.
    #[error("a Redis cluster cannot charge shared and per-subject limits in one step")]
    SharedOnCluster,
    /// Leases are combined with refunds.
    #[error("leases cannot be combined with refunds")]
    LeasesWithRefunds,
}
