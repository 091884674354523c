//! Quotas, policies (named quotas), buckets (their state), decisions and refunds.

pub(crate) mod bucket;
pub(crate) mod cell;
pub(crate) mod clock;
pub(crate) mod decision;
pub(crate) mod decisions;
pub(crate) mod policy;
#[allow(clippy::module_inception, reason = "the file of `Quota`")]
mod quota;
pub(crate) mod refund;
mod text;
mod verdict;

pub use quota::{Quota, QuotaError};
