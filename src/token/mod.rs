//! Tokens: the bytes in a request, their digests, their locations, and new tokens.

mod bearer;
mod digest;
mod location;
#[cfg(feature = "mint")]
pub mod mint;

pub use bearer::BearerToken;
pub use digest::{TokenDigest, TokenDigestError};
pub use location::TokenLocation;

pub(crate) use location::Credential;
