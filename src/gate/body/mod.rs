//! Tokens in request bodies (feature `body`).

mod future;
mod replay;
mod service;
mod tokens;

pub use future::BodyAuthFuture;
pub use replay::ReplayBody;
pub use service::{BodyAuthLayer, BodyAuthService};
pub use tokens::BodyTokens;
