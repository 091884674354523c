//! [`ResourceMetadata`]: the metadata of a gate, as a service for a route.

use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tower_service::Service;

use super::document::Document;
use crate::request_head::RequestHead;

/// The metadata of a gate's protected resource, made by
/// [`AuthLayer::resource_metadata`](crate::AuthLayer::resource_metadata). It is a tower service.
///
/// A gate around a whole service needs no route for its metadata. This type is for gates that get some paths only:
///
#[cfg_attr(feature = "axum", doc = "```")]
#[cfg_attr(not(feature = "axum"), doc = "```ignore")]
/// use axum::{Router, routing::get};
/// use tollgate::gate::ProtectedResource;
/// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
///
/// let resource = ProtectedResource::new("https://api.example/orders")?;
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
/// let gate = AuthLayer::new(tokens).with_protected_resource(resource);
/// let metadata = gate.resource_metadata();
/// let app: Router = Router::new()
///     .route("/orders", get(|| async { "none" }).route_layer(gate))
///     .route_service(metadata.path(), metadata.clone());
/// # Ok::<_, tollgate::gate::ProtectedResourceError>(())
/// ```
///
/// On hyper, call it for requests whose path is [`path`](Self::path).
///
/// This service does not check HTTPS, even if the gate [requires it](crate::AuthLayer::require_https): the metadata is public.
///
/// # `bearer_methods_supported`
///
/// The metadata lists the methods of RFC 6750 that the gate accepts:
///
/// | method | is listed if |
/// |---|---|
/// | `header` | the gate reads the `Authorization` header, which is the default |
/// | `body` | `BodyTokens::with_form` has the field `access_token` |
/// | `query` | `with_discouraged_query_token` has the parameter `access_token` |
///
/// Other locations, such as an API-key header or a WebSocket sub-protocol, are no methods of RFC 6750. A gate without any of its
/// methods has an empty list.
#[derive(Clone, Debug)]
pub struct ResourceMetadata {
    document: Arc<Document>,
}

impl ResourceMetadata {
    pub(super) fn new(document: Arc<Document>) -> Self {
        Self { document }
    }

    /// Returns the URL of the metadata. The challenges of the gate have the same URL.
    #[must_use]
    pub fn url(&self) -> &str {
        self.document.resource.url().as_str()
    }

    /// Returns the path of the metadata: the path of the resource after `/.well-known/oauth-protected-resource`.
    ///
    /// axum's `route_service` panics if a segment of the path begins with `:` or `*`, unless `without_v07_checks` was called.
    #[must_use]
    pub fn path(&self) -> &str {
        self.document.resource.url().path()
    }

    /// Returns the metadata as JSON.
    #[must_use]
    pub fn json(&self) -> &Bytes {
        &self.document.json
    }
}

/// Responds to each request as one for the metadata. Which requests it gets is the decision of the router.
impl<B> Service<Request<B>> for ResourceMetadata {
    type Response = Response<MetadataBody>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(self.document.respond(&RequestHead::of(&request)).map(MetadataBody)))
    }
}

/// The body of a response of [`ResourceMetadata`].
#[derive(Clone, Default)]
pub struct MetadataBody(Bytes);

impl Body for MetadataBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let content = std::mem::take(&mut self.0);
        Poll::Ready((!content.is_empty()).then(|| Ok(Frame::data(content))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

impl fmt::Debug for MetadataBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MetadataBody").field(&self.0.len()).finish()
    }
}
