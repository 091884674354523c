//! [`LimitError`]: the error of the settings of limits.

use thiserror::Error;

use crate::quota::policy::PolicyNameError;

/// The error of an invalid limit, or of limits that cannot be combined.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitError {
    /// The name is empty, longer than 64 characters, or not printable ASCII.
    #[error(transparent)]
    InvalidName(#[from] PolicyNameError),
    /// Another limit of the same limiter has this name, or the name is `anonymous`, which is reserved for anonymous callers.
    #[error("duplicate limit name: another limit has this name, or the name is `anonymous`")]
    NameTaken,
    /// No limit of the limiter has this name, or the limit has no quota for anonymous callers.
    #[error("unknown limit: no limit has this name, or it has no quota for anonymous callers")]
    Unknown,
    /// The percentage of [`Limit::with_near_limit`](super::Limit::with_near_limit) is above 100.
    #[error("invalid near-limit percentage: must be from 0 to 100")]
    NearLimitPercent,
    /// A setting of the limit would have no effect in [`AnonymousLimits`](super::AnonymousLimits).
    #[error(
        "a limit for anonymous callers cannot be shared by all, have another anonymous quota, or follow grants' quotas"
    )]
    NotForAnonymous,
    /// The number of buckets of [`AnonymousLimits`](super::AnonymousLimits) is out of range.
    #[error("invalid number of buckets: must be from 64 to 2^24")]
    Capacity,
    /// A second limit of the same limiter has [`Limit::with_grant_quotas`](super::Limit::with_grant_quotas).
    #[error("grants' quotas can replace the quota of one limit only")]
    GrantQuotas,
}
