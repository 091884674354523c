//! The shell: tower layers that drive a request down the road. The only folder that knows tower.

mod admission;
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

pub use crate::patience::Sleep;
pub use admission::{Admission, Limited, Metered, Stations};
#[cfg(feature = "body")]
pub use body::{BodyAuthLayer, BodyAuthService, BodyFuture};
#[cfg(feature = "body")]
pub use doors::BodyTokens;
pub use future::AuthFuture;
pub use inner::{RateLimitLayer, RateLimitService};
pub use layer::AuthLayer;
#[cfg(feature = "body")]
pub use replay::ReplayBody;
pub use scope::{RequireScopeFuture, RequireScopeLayer, RequireScopeService};
pub use service::AuthService;
