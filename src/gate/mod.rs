//! The shell: tower layers that drive a request down the road. The only folder that knows tower.

mod admission;
mod future;
mod inner;
mod layer;
mod service;

pub use admission::{Admission, Limited, Metered, Stations};
pub use future::GateFuture;
pub use inner::{GuardFuture, RateLimitLayer, RateLimitService, RequireScope, RequireScopeLayer};
pub use layer::{AuthLayer, Sleep};
pub use service::AuthService;
