//! Quotas and what is decided by them: the numbers, their names, one decision, and the bucket that a subject owns.

pub(crate) mod bucket;
pub(crate) mod cell;
pub(crate) mod clock;
pub(crate) mod decision;
pub(crate) mod policy;
#[allow(clippy::module_inception, reason = "the file of `Quota`")]
mod quota;
pub(crate) mod refund;
mod text;

pub use quota::{Quota, QuotaError};
