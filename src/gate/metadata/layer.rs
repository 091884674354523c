//! [`WithMetadata`]: an [`AuthLayer`] that serves the metadata of its protected resource.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tower_layer::Layer;

use super::document::{ACCESS_TOKEN, Document};
use super::resource::ProtectedResource;
use super::route::ResourceMetadata;
use super::service::MetadataService;
#[cfg(feature = "body")]
use crate::gate::BodyTokens;
#[cfg(feature = "body")]
use crate::gate::HeadOnly;
use crate::gate::layer::AuthLayer;
use crate::gate::marker::{ReadsTokens, WithoutMetadata, sealed::Sealed};

/// Marks an [`AuthLayer`] that serves the metadata of its resource, made by
/// [`with_protected_resource`](AuthLayer::with_protected_resource).
///
/// `B` is the marker of the gate before. `F` creates the body of the response.
#[derive(Clone)]
pub struct WithMetadata<B, F = FromBytes> {
    gate: B,
    resource: Arc<ProtectedResource>,
    body: F,
}

/// Creates the body of a response from the metadata. Closures from [`Bytes`] to a body implement this trait.
#[diagnostic::on_unimplemented(
    message = "the metadata of the protected resource cannot be written into a body of type `{B}`",
    note = "by default, `{B}: From<Bytes>` is needed; use `.with_metadata_body(|bytes| ..)` for another body"
)]
pub trait WriteMetadata<B> {
    /// Returns a body with this content.
    fn body(&self, content: Bytes) -> B;
}

/// Creates bodies by [`From<Bytes>`](From).
#[derive(Clone, Copy, Debug, Default)]
pub struct FromBytes;

// So that the message of the trait is shown.
#[diagnostic::do_not_recommend]
impl<B: From<Bytes>> WriteMetadata<B> for FromBytes {
    fn body(&self, content: Bytes) -> B {
        content.into()
    }
}

impl<B, F: Fn(Bytes) -> B> WriteMetadata<B> for F {
    fn body(&self, content: Bytes) -> B {
        self(content)
    }
}

impl<B: ReadsTokens, F> ReadsTokens for WithMetadata<B, F> {}

impl<B: Sealed, F> Sealed for WithMetadata<B, F> {
    fn reads_form_field(&self, name: &str) -> bool {
        self.gate.reads_form_field(name)
    }

    #[cfg(feature = "utoipa")]
    fn credential_kinds(&self) -> [&'static [crate::RejectionKind]; 2] {
        self.gate.credential_kinds()
    }
}

impl<T, L, R, B: ReadsTokens + WithoutMetadata> AuthLayer<T, L, R, B> {
    /// Serves the metadata of the protected resource (RFC 9728), and adds its URL to all challenges.
    ///
    /// The gate responds to requests for the well-known path of the resource itself, without a token. For
    /// these requests, the gate uses neither the store nor a limiter, and does not call the inner service. All other requests take
    /// the same path as before.
    ///
    #[cfg_attr(feature = "axum", doc = "```")]
    #[cfg_attr(not(feature = "axum"), doc = "```ignore")]
    /// use axum::{Router, routing::get};
    /// use tollgate::gate::ProtectedResource;
    /// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
    ///
    /// let resource =
    ///     ProtectedResource::new("https://api.example")?.with_authorization_server("https://id.example")?;
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_protected_resource(resource);
    /// // Also serves https://api.example/.well-known/oauth-protected-resource.
    /// let app: Router = Router::new().route("/orders", get(|| async { "none" })).layer(gate);
    /// # Ok::<_, tollgate::gate::ProtectedResourceError>(())
    /// ```
    ///
    /// The order of the builder methods does not matter: the metadata is written when the layer is added to a service.
    ///
    /// # Rules
    ///
    /// 1. Only the path and the query of the request count, neither its scheme nor its host.
    /// 2. `GET` and `HEAD` get the metadata, `OPTIONS` gets 204, and all other methods get 405.
    /// 3. Scripts of all origins can read the metadata. A CORS layer outside of the gate applies its own rules to it.
    /// 4. If the gate [requires HTTPS](Self::require_https), a request for the metadata without HTTPS is like any other request
    ///    without HTTPS: it is rejected with 403. A CORS preflight is admitted to the inner service, if the gate bypasses preflights.
    ///    So is a request without a token, if the gate allows anonymous callers.
    /// 5. The body of the response is [`From<Bytes>`](From), or made by [`with_metadata_body`](AuthLayer::with_metadata_body).
    ///
    /// Call this before [`require_scopes`](AuthLayer::require_scopes) and [`route_rate_limit`](AuthLayer::route_rate_limit): these
    /// layers copy the settings that the gate has at that moment. The URL of an earlier
    /// [`with_resource_metadata`](Self::with_resource_metadata) is replaced.
    ///
    /// A gate that gets some paths only, such as one of `route_layer` or of a nested router, never gets these requests. Add a
    /// route for [`resource_metadata`](Self::resource_metadata) then.
    #[must_use]
    pub fn with_protected_resource(self, resource: ProtectedResource) -> AuthLayer<T, L, R, WithMetadata<B>> {
        let bearer = self.gate.terms.bearer().clone().with_checked_resource_metadata(resource.url().as_str());
        let Self { gate, body } = self.map_terms(|terms| terms.with_bearer(bearer));
        AuthLayer { gate, body: WithMetadata { gate: body, resource: Arc::new(resource), body: FromBytes } }
    }
}

impl<T, L, R, B: ReadsTokens, F> AuthLayer<T, L, R, WithMetadata<B, F>> {
    /// Sets the function that creates the body of the metadata, for bodies that are not [`From<Bytes>`](From).
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http_body_util::{BodyExt, Full, combinators::BoxBody};
    /// use tollgate::gate::ProtectedResource;
    /// use tollgate::{AuthLayer, Grant, MemoryStore, ProblemDetails, TokenDigest};
    ///
    /// fn boxed(bytes: Bytes) -> BoxBody<Bytes, std::io::Error> {
    ///     Full::new(bytes).map_err(|never| match never {}).boxed()
    /// }
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens)
    ///     .with_protected_resource(ProtectedResource::new("https://api.example")?)
    ///     .with_metadata_body(boxed)
    ///     .with_responder(ProblemDetails.map_body(boxed));
    /// # let _ = gate;
    /// # Ok::<_, tollgate::gate::ProtectedResourceError>(())
    /// ```
    #[must_use]
    pub fn with_metadata_body<ResB, F2>(self, body: F2) -> AuthLayer<T, L, R, WithMetadata<B, F2>>
    where
        F2: Fn(Bytes) -> ResB,
    {
        let WithMetadata { gate, resource, .. } = self.body;
        AuthLayer { gate: self.gate, body: WithMetadata { gate, resource, body } }
    }

    /// Returns the metadata as a service, for a route outside of the gate.
    ///
    /// Build the gate first: the metadata lists the token locations that this gate accepts now.
    #[must_use]
    pub fn resource_metadata(&self) -> ResourceMetadata {
        ResourceMetadata::new(self.document())
    }

    fn document(&self) -> Arc<Document> {
        let has_form_token = self.body.reads_form_field(ACCESS_TOKEN);
        Arc::new(Document::new(&self.body.resource, &self.gate.settings, has_form_token))
    }
}

#[cfg(feature = "body")]
impl<T, L, R, F> AuthLayer<T, L, R, WithMetadata<HeadOnly, F>> {
    /// Accepts tokens in request bodies as well; see [`BodyTokens`]. The inner service gets a
    /// [`ReplayBody`](crate::gate::ReplayBody).
    #[must_use]
    pub fn with_body_tokens(self, tokens: BodyTokens) -> AuthLayer<T, L, R, WithMetadata<BodyTokens, F>> {
        let WithMetadata { resource, body, .. } = self.body;
        AuthLayer { gate: self.gate, body: WithMetadata { gate: tokens, resource, body } }
    }
}

impl<S, T, L, R, B, F> Layer<S> for AuthLayer<T, L, R, WithMetadata<B, F>>
where
    AuthLayer<T, L, R, B>: Layer<S>,
    B: ReadsTokens + Clone,
    F: Clone,
{
    type Service = MetadataService<<AuthLayer<T, L, R, B> as Layer<S>>::Service, F>;

    fn layer(&self, inner: S) -> Self::Service {
        let gate = AuthLayer { gate: Arc::clone(&self.gate), body: self.body.gate.clone() };
        MetadataService::new(gate.layer(inner), self.document(), self.body.body.clone())
    }
}

impl<B: fmt::Debug, F> fmt::Debug for WithMetadata<B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithMetadata")
            .field("gate", &self.gate)
            .field("resource", &self.resource)
            .finish_non_exhaustive()
    }
}
