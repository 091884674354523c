//! Grants: the data that stores keep for a token.

pub(crate) mod erased;
#[allow(clippy::module_inception, reason = "the file of `Grant`")]
mod grant;
pub(crate) mod scopes;

pub(crate) use grant::GrantHead;
pub use grant::{Grant, GrantId, Subject};
