//! Rejections: the reason why a request is rejected, and the challenges that say how to authenticate.

pub(crate) mod challenge;
mod decision;
pub(crate) mod invalid_request;
mod kind;
pub(crate) mod protocol;
#[allow(clippy::module_inception, reason = "the file of `Rejection`")]
mod rejection;
pub(crate) mod store_error;
pub(crate) mod terms;

pub use kind::RejectionKind;
pub use protocol::Protocol;
pub use rejection::Rejection;
