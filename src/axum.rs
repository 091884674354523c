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

use crate::grant::{Authenticated, CurrentGrant, Unauthenticated};
use crate::rejection::{Rejection, RejectionKind};
use crate::respond::{Problem, Respond};

const NO_GATE: &str = "This handler takes `Authenticated`, and no gate has seen the request. Perhaps you forgot to add `AuthLayer`, or added it before the route.";
const OTHER_TYPE: &str =
    "This handler takes `Authenticated<P>`, and the principals of the gate's store are of another type than `P`.";

impl<S: Sync, P: Send + Sync + 'static> FromRequestParts<S> for Authenticated<P> {
    type Rejection = Rejection;

    /// The caller.
    ///
    /// # Errors
    ///
    /// 401 for requests that the gate let pass without a grant (anonymous ones and CORS preflights). 500 if there is no
    /// gate, or the principal has another type: the answer says which.
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        <Self as OptionalFromRequestParts<S>>::from_request_parts(parts, state)
            .await?
            .ok_or_else(|| Rejection::new(RejectionKind::Missing))
    }
}

impl<S: Sync, P: Send + Sync + 'static> OptionalFromRequestParts<S> for Authenticated<P> {
    type Rejection = Rejection;

    /// The caller, or `None` if the gate let the request pass without a grant.
    ///
    /// # Errors
    ///
    /// 500 if there is no gate, or the principal has another type: a missing gate is not an anonymous caller.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Rejection> {
        match parts.extensions.get::<CurrentGrant>() {
            Some(current) => match current.authenticated() {
                Some(who) => Ok(Some(who)),
                None => Err(Rejection::misconfigured(OTHER_TYPE)),
            },
            None if parts.extensions.get::<Unauthenticated>().is_some() => Ok(None),
            None => Err(Rejection::misconfigured(NO_GATE)),
        }
    }
}

impl IntoResponse for Rejection {
    /// Writes the refusal by [`Problem`], for the realm `api` unless a gate has given it another. To refuse with the
    /// gate's own realm and responder use [`AuthLayer::refuse`](crate::AuthLayer::refuse).
    fn into_response(self) -> Response {
        Respond::<Body>::refuse(&Problem, self)
    }
}
