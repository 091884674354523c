//! The shell: tower layers that drive a request down the road. The only folder that knows tower.

mod admission;
#[cfg(feature = "body")]
mod body;
mod future;
mod inner;
mod layer;
mod service;

pub use admission::{Admission, Limited, Metered, Stations};
#[cfg(feature = "body")]
pub use body::{BodyAuthLayer, BodyAuthService, BodyDoors, BodyFuture, ReplayBody};
pub use future::GateFuture;
pub use inner::{GuardFuture, RateLimitLayer, RateLimitService, RequireScope, RequireScopeLayer};
pub use layer::{AuthLayer, Sleep};
pub use service::AuthService;
