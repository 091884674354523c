//! The shell: tower layers that drive a request down the road. The only folder that knows tower.

#[cfg(feature = "body")]
mod body;
#[cfg(feature = "body")]
mod doors;
mod future;
mod inner;
mod layer;
#[cfg(feature = "body")]
mod replay;
mod scope;
mod service;
mod settings;
mod throttle;
mod unlimited;

pub use crate::pending::timeout::Sleep;
#[cfg(feature = "body")]
pub use body::{BodyAuthFuture, BodyAuthLayer, BodyAuthService};
#[cfg(feature = "body")]
pub use doors::BodyTokens;
pub use future::AuthFuture;
pub use inner::{RateLimitFuture, RateLimitLayer, RateLimitService};
pub use layer::{AuthLayer, HeadOnly};
#[cfg(feature = "body")]
pub use replay::ReplayBody;
pub use scope::{RequireScopeFuture, RequireScopeLayer, RequireScopeService};
pub use service::AuthService;
pub use unlimited::Unlimited;
