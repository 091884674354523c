//! Tokens: as a caller sends them, as a store keeps them, where they were, and new ones.

mod bearer;
mod digest;
mod location;
#[cfg(feature = "mint")]
pub mod mint;

pub use bearer::BearerToken;
pub use digest::{TokenDigest, TokenDigestError};
pub use location::TokenLocation;

pub(crate) use location::Credential;
