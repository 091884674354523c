//! The edge to axum (feature `axum`): extractors, and refusals as responses.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore};
//!
//! #[derive(Debug)]
//! struct User { name: &'static str }
//!
//! async fn private(who: Authenticated<User>) -> String {
//!     format!("hello, {}", who.principal().name)
//! }
//!
//! async fn public(who: Option<Authenticated<User>>) -> String {
//!     format!("hello, {}", who.map_or("stranger", |who| who.principal().name))
//! }
//!
//! let tokens = MemoryStore::from_iter([("a-token", Grant::new("alice", User { name: "Alice" }))]);
//! let gate = AuthLayer::new(tokens);
//! let app: Router = Router::new()
//!     .route("/private", get(private).route_layer(gate.clone()))
//!     .route("/public", get(public).route_layer(gate.with_optional_authentication()));
//! ```

use axum_core::body::Body;
use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use crate::caller::Authenticated;
use crate::rejection::{Protocol, Rejection};
use crate::respond::{Problem, Respond};

impl<S: Sync, P: Send + Sync + 'static> FromRequestParts<S> for Authenticated<P> {
    type Rejection = Rejection;

    /// [`Authenticated::from_extensions`].
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        Self::from_extensions(&parts.extensions).map_err(|rejection| in_words_of(parts, rejection))
    }
}

impl<S: Sync, P: Send + Sync + 'static> OptionalFromRequestParts<S> for Authenticated<P> {
    type Rejection = Rejection;

    /// [`Authenticated::from_extensions_if_any`].
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Rejection> {
        Self::from_extensions_if_any(&parts.extensions).map_err(|rejection| in_words_of(parts, rejection))
    }
}

fn in_words_of(parts: &Parts, rejection: Rejection) -> Rejection {
    rejection.with_protocol(Protocol::of(&parts.headers))
}

impl IntoResponse for Rejection {
    /// Writes the refusal by [`Problem`], for the realm `api` unless a gate has given it another. To refuse with the
    /// gate's own realm and responder use [`AuthLayer::refuse`](crate::AuthLayer::refuse).
    fn into_response(self) -> Response {
        Respond::<Body>::refuse(&Problem, self)
    }
}
