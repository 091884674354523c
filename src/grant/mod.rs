//! Grants: the data that stores keep for a token.

pub(crate) mod erased;
#[allow(clippy::module_inception, reason = "the file of `Grant`")]
mod grant;
mod names;
pub(crate) mod scopes;

pub use grant::Grant;
pub(crate) use grant::GrantHead;
pub use names::{GrantId, Subject};
