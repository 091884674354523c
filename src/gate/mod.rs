//! The tower layers, which run the pipeline: extract, authenticate, limit, respond.

#[cfg(feature = "body")]
mod body;
mod copies;
#[cfg(feature = "utoipa")]
mod description;
mod future;
mod https;
mod identity;
mod layer;
mod locations;
mod marker;
#[cfg(feature = "resource-metadata")]
mod metadata;
mod rate_limit;
mod redact;
mod reject;
mod require_scope;
mod responses;
mod service;
mod settings;
mod state;
mod steps;
mod unlimited;

#[cfg(feature = "utoipa")]
pub(crate) use {description::Description, marker::sealed::Sealed as GateMarker};

pub use crate::pending::timeout::Sleep;
#[cfg(feature = "body")]
pub use body::{BodyAuthFuture, BodyAuthLayer, BodyAuthService, BodyTokens, ReplayBody};
pub use future::AuthFuture;
pub use https::{ForwardedProto, HttpsConnection, is_https};
pub use identity::{Identity, IdentityLayer, IdentityService};
pub use layer::AuthLayer;
pub use marker::{HeadOnly, ReadsTokens, WithoutMetadata};
#[cfg(feature = "resource-metadata")]
pub use metadata::{
    FromBytes, MetadataBody, MetadataFuture, MetadataService, ProtectedResource, ProtectedResourceError,
    ResourceMetadata, WithMetadata, WriteMetadata,
};
pub use rate_limit::{RateLimitFuture, RateLimitLayer, RateLimitService};
pub use require_scope::{RequireScopeFuture, RequireScopeLayer, RequireScopeService};
pub use service::AuthService;
pub use unlimited::NoStore;
