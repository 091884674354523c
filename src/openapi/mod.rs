//! Describes gates in OpenAPI documents of [`utoipa`] (feature `utoipa`).
//!
//! [`AuthLayer::openapi`] returns the description of a gate, made from the gate's own settings. [`GateDocs::apply`] adds it to
//! the operations behind the gate:
//!
#![cfg_attr(feature = "axum", doc = "```")]
#![cfg_attr(not(feature = "axum"), doc = "```ignore")]
//! use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, TokenDigest};
//! use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt as _};
//! use utoipa_axum::routes;
//!
//! #[utoipa::path(get, path = "/balance", responses((status = 200, description = "Success", body = str)))]
//! async fn balance(_: Authenticated<()>) -> &'static str {
//!     "100 EUR"
//! }
//!
//! #[utoipa::path(post, path = "/orders", responses((status = 200, description = "Success", body = str)))]
//! async fn place_order(_: Authenticated<()>) -> &'static str {
//!     "placed"
//! }
//!
//! #[utoipa::path(get, path = "/health", responses((status = 200, description = "Success", body = str)))]
//! async fn health() -> &'static str {
//!     "ok"
//! }
//!
//! let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
//! let gate = AuthLayer::new(tokens);
//! let trade = gate.require_scopes(["trade"])?;
//!
//! let mut behind = OpenApiRouter::new()
//!     .routes(routes!(balance))
//!     .routes(routes!(place_order).map(|route| route.route_layer(trade.clone())));
//! gate.openapi().with_scopes(["place_order"], &trade).apply(behind.get_openapi_mut())?;
//!
//! let (router, api) = OpenApiRouter::new().routes(routes!(health)).merge(behind.route_layer(gate)).split_for_parts();
//! let document = serde_json::to_value(&api)?;
//! assert_eq!(document["paths"]["/orders"]["post"]["security"][0]["bearer"][0], "trade");
//! assert_eq!(document["paths"]["/health"]["get"].get("security"), None);
//! # let _: axum::Router = router;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! The guide [`openapi`](crate::guide::openapi) has more.

mod apply;
mod components;
mod error;
mod problem;
mod response;

pub use error::GateDocsError;

use std::fmt;

use utoipa::ToSchema;
use utoipa::openapi::security::SecurityScheme;

use self::response::Content;
use crate::gate::{AuthLayer, Description, GateMarker, RateLimitLayer, RequireScopeLayer};
use crate::limit::Limiter;
use crate::rejection::RejectionKind;
use crate::respond::{EmptyBody, MappedBody, ProblemDetails};
use crate::store::GateStore;

/// A responder whose content is known: [`ProblemDetails`], [`ProblemDetails::map_body`] or [`EmptyBody`].
#[diagnostic::on_unimplemented(
    message = "the content of the responder `{Self}` is unknown",
    note = "use `openapi_with_schema::<S>(content_type)`, where `S` is the schema of its content"
)]
pub trait KnownContent: sealed::Sealed {}

mod sealed {
    pub trait Sealed {
        const IS_PROBLEM_DETAILS: bool;
    }
}

impl KnownContent for ProblemDetails {}
impl sealed::Sealed for ProblemDetails {
    const IS_PROBLEM_DETAILS: bool = true;
}

impl<F> KnownContent for MappedBody<F> {}
impl<F> sealed::Sealed for MappedBody<F> {
    const IS_PROBLEM_DETAILS: bool = true;
}

impl KnownContent for EmptyBody {}
impl sealed::Sealed for EmptyBody {
    const IS_PROBLEM_DETAILS: bool = false;
}

impl<T: GateStore, L: Limiter, R, B: GateMarker> AuthLayer<T, L, R, B> {
    /// Returns the description of this gate for OpenAPI documents. Set up the gate before.
    #[must_use]
    pub fn openapi(&self) -> GateDocs
    where
        R: KnownContent,
    {
        GateDocs::new(self.description(), R::IS_PROBLEM_DETAILS.then(Content::problem_details))
    }

    /// Returns the description of a gate with a custom responder. `S` is the schema of the content of its rejections.
    ///
    /// The status and the header fields are those of the default responder. If the responder changes them, describe the
    /// responses yourself.
    ///
    /// ```
    /// use http::Response;
    /// use tollgate::{AuthLayer, EmptyBody, Grant, MemoryStore, TokenDigest, respond::Respond};
    ///
    /// #[derive(utoipa::ToSchema)]
    /// struct CompanyError {
    ///     message: String,
    /// }
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_response_fn(|rejection| {
    ///     let response: Response<String> = EmptyBody.respond(rejection);
    ///     // ... with the content type and the body.
    /// #   response
    /// });
    /// let docs = gate.openapi_with_schema::<CompanyError>("application/json");
    /// assert!(docs.components().schemas.contains_key("CompanyError"));
    /// ```
    #[must_use]
    pub fn openapi_with_schema<S: ToSchema>(&self, content_type: &str) -> GateDocs {
        GateDocs::new(self.description(), Some(Content::of::<S>(content_type)))
    }
}

/// The description of a gate for OpenAPI documents, made by [`AuthLayer::openapi`].
///
/// # Rules
///
/// [`apply`](Self::apply) changes all operations of a document:
///
/// 1. *Security.* Each operation gets one requirement for each token location of the gate, of which one suffices. The query
///    parameter is described for `GET` and `HEAD` only, because the gate reads it there only. An empty requirement is added
///    if the gate allows anonymous callers. An operation that has `security` itself keeps it.
/// 2. *Responses.* Each operation gets a reference for each status that a rejection can have, and no other. A response that
///    the operation has itself stays. Rejections by the failure throttle and by limits are described during dry runs too.
///    Rejections by the token are described for all methods, also if the gate reads the query parameter only.
/// 3. *Rate limit headers.* They are added to the 2xx responses of the operation, if these are not references. Headers that
///    are described already stay. `Cache-Control` and `Referrer-Policy` of admitted requests depend on the handler too, and
///    are not described.
/// 4. *Components.* The security schemes `bearer`, `api_key` and `query_token`, the responses `Rejection401` and so on, and
///    the schema [`RejectionProblem`](ProblemDetails#impl-ToSchema-for-ProblemDetails) are added if they are used.
///
/// # What OpenAPI cannot describe
///
/// - Tokens in bodies, and tokens in WebSocket sub-protocols. Describe the field of a body in its schema.
/// - Tokens that a closure extracts ([`AuthLayer::with_token_from`]), and callers that something else authenticates. Describe
///   them by [`with_security_scheme`](Self::with_security_scheme).
/// - Rejections of gRPC and Connect requests, whose format is that of their protocol.
/// - 500 for layers that are missing or in the wrong order.
///
/// A gate whose only locations are among these has no security scheme, which is an error of `apply`.
#[derive(Clone)]
pub struct GateDocs {
    gate: Description,
    content: Option<Content>,
    bearer_format: String,
    schemes: Vec<(String, SecurityScheme)>,
    prefix: String,
    rules: Vec<Rule>,
}

/// The additions of a layer or a handler to some operations.
#[derive(Clone, Default)]
struct Rule {
    /// Operation ids, or methods and paths.
    operations: Vec<String>,
    kinds: Vec<RejectionKind>,
    /// The sets of scopes of which one suffices.
    scopes: Option<Vec<Vec<String>>>,
    is_limited: bool,
}

impl GateDocs {
    fn new(gate: Description, content: Option<Content>) -> Self {
        Self {
            gate,
            content,
            bearer_format: "opaque".to_owned(),
            schemes: Vec::new(),
            prefix: String::new(),
            rules: Vec::new(),
        }
    }

    /// Sets the format of Bearer tokens, a hint for people, such as `JWT`. Default: `opaque`.
    #[must_use]
    pub fn with_bearer_format(self, format: &str) -> Self {
        Self { bearer_format: format.to_owned(), ..self }
    }

    /// Adds another security scheme by which clients can authenticate: the OAuth2 flows that issue the tokens, a cookie of
    /// sessions, or a custom token location.
    ///
    /// ```
    /// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
    /// use utoipa::openapi::security::{ClientCredentials, Flow, OAuth2, Scopes, SecurityScheme};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let scopes = Scopes::from_iter([("trade", "Place orders")]);
    /// let flow = ClientCredentials::new("https://login.example.com/token", scopes);
    /// let oauth2 = SecurityScheme::OAuth2(OAuth2::new([Flow::ClientCredentials(flow)]));
    /// let docs = AuthLayer::new(tokens).openapi().with_security_scheme("oauth2", oauth2)?;
    /// # let _ = docs;
    /// # Ok::<_, tollgate::openapi::GateDocsError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if the name is not one or more letters, digits, `.`, `-` or `_`. [`apply`](Self::apply) returns an error
    /// if another scheme of the gate has this name.
    pub fn with_security_scheme(mut self, name: &str, scheme: SecurityScheme) -> Result<Self, GateDocsError> {
        self.schemes.push((component_name(name)?, scheme));
        Ok(self)
    }

    /// Sets a prefix of the names of the gate's security schemes and responses. Default: none.
    ///
    /// The schemes of [`with_security_scheme`](Self::with_security_scheme), and the schemas of
    /// [`openapi_with_schema`](AuthLayer::openapi_with_schema), keep their names.
    ///
    /// Set a prefix if one document describes several gates with different settings. utoipa's `merge` keeps only the first of
    /// two components with one name, and reports nothing.
    ///
    /// For one gate, merge the routers first, and call [`apply`](Self::apply) once. `apply` writes only the reasons that the
    /// document uses. If you merge documents afterwards, set a prefix also if their rules or methods differ.
    ///
    /// # Errors
    ///
    /// Returns an error if the prefix is not one or more letters, digits, `.`, `-` or `_`.
    pub fn with_prefix(self, prefix: &str) -> Result<Self, GateDocsError> {
        Ok(Self { prefix: component_name(prefix)?, ..self })
    }

    /// Adds the scopes that a layer requires to these operations.
    ///
    /// Pass the layer that is around the routes of these operations, so that the document has its scopes. Each operation is
    /// named by its id, which is the name of the function by default, or by method and path, such as `POST /orders`.
    #[must_use]
    pub fn with_scopes<I, R>(self, operations: I, layer: &RequireScopeLayer<R>) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut kinds = vec![RejectionKind::InsufficientScope];
        if self.gate.admits_anonymous() {
            kinds.push(RejectionKind::Missing);
        }
        self.with_rule(operations, Rule { kinds, scopes: Some(layer.alternatives()), ..Rule::default() })
    }

    /// Adds the rate limit of a layer to these operations, named as in [`with_scopes`](Self::with_scopes).
    #[must_use]
    pub fn with_route_rate_limit<I, L, R>(self, operations: I, layer: &RateLimitLayer<L, R>) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
        L: Limiter,
    {
        self.with_rule(operations, Rule { kinds: layer.kinds().to_vec(), is_limited: true, ..Rule::default() })
    }

    /// Adds a rejection that the handlers of these operations return, named as in [`with_scopes`](Self::with_scopes).
    ///
    /// [`RejectionKind::Missing`] is the rejection by the extractor [`Authenticated`](crate::Authenticated) behind a gate that
    /// allows anonymous callers: these operations then require a credential.
    #[must_use]
    pub fn with_rejection<I>(self, operations: I, kind: RejectionKind) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        self.with_rule(operations, Rule { kinds: vec![kind], ..Rule::default() })
    }

    fn with_rule<I>(mut self, operations: I, rule: Rule) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let operations = operations.into_iter().map(|operation| operation.as_ref().to_owned()).collect();
        self.rules.push(Rule { operations, ..rule });
        self
    }
}

/// Checks a name or the prefix of names (OpenAPI 3.1, section 4.8.7).
fn component_name(name: &str) -> Result<String, GateDocsError> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    match !name.is_empty() && name.bytes().all(is_allowed) {
        true => Ok(name.to_owned()),
        false => Err(GateDocsError::ComponentName(name.to_owned())),
    }
}

impl fmt::Debug for GateDocs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateDocs")
            .field("locations", &self.gate.locations)
            .field("kinds", &self.gate.kinds)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
