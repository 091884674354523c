//! Protected resource metadata (RFC 9728), which a gate serves without a token (feature `resource-metadata`).

mod document;
mod layer;
mod resource;
mod route;
mod service;
mod url;

pub use layer::{FromBytes, WithMetadata, WriteMetadata};
pub use resource::{ProtectedResource, ProtectedResourceError};
pub use route::{MetadataBody, ResourceMetadata};
pub use service::{MetadataFuture, MetadataService};
