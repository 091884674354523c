//! Grants: the data that stores keep for a token.

pub(crate) mod bucket_cache;
pub(crate) mod by_subject;
pub(crate) mod erased;
#[allow(clippy::module_inception, reason = "the file of `Grant`")]
mod grant;
mod names;
pub(crate) mod scopes;
pub(crate) mod terms;

pub use grant::Grant;
pub(crate) use grant::GrantHead;
pub use names::{GrantId, Subject};
