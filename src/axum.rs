//! Integration with axum (feature `axum`): the extractors, rejections as responses, and the address of the connection.

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use crate::caller::Authenticated;
use crate::limit::{ClientIp, FailureThrottle};
use crate::quota::Quota;
use crate::rejection::Rejection;
use crate::request_head::RequestHead;
use crate::respond::{ProblemDetails, Respond};

impl<S: Sync, P: Send + Sync + 'static> FromRequestParts<S> for Authenticated<P> {
    type Rejection = Rejection;

    /// Returns the caller, as [`Authenticated::from_extensions`] does.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        Self::from_extensions(&parts.extensions).map_err(|rejection| rejection.for_request(&RequestHead::from(&*parts)))
    }
}

impl<S: Sync, P: Send + Sync + 'static> OptionalFromRequestParts<S> for Authenticated<P> {
    type Rejection = Rejection;

    /// Returns the caller or `None`, as [`Authenticated::from_extensions_if_any`] does.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Rejection> {
        Self::from_extensions_if_any(&parts.extensions)
            .map_err(|rejection| rejection.for_request(&RequestHead::from(&*parts)))
    }
}

impl FailureThrottle {
    /// Creates a throttle by the client address of axum's [`ConnectInfo`](axum::extract::ConnectInfo), grouped by
    /// [`ip_prefix`](crate::limit::ip_prefix).
    ///
    /// Serve the router with `into_make_service_with_connect_info::<SocketAddr>()`. Tests can use
    /// [`MockConnectInfo`](axum::extract::connect_info::MockConnectInfo) as a layer around the gate. If the throttle needs the address
    /// and both are missing, the request is rejected with 500. The response names the cause.
    ///
    /// ```
    /// use std::net::SocketAddr;
    /// use axum::{Router, routing::get};
    /// use tollgate::limit::FailureThrottle;
    /// use tollgate::{AuthLayer, Grant, MemoryStore, Quota, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let failures = FailureThrottle::by_connect_info(Quota::per_minute(10).with_burst(30));
    /// let gate = AuthLayer::new(tokens).with_failure_throttle(failures);
    /// let app = Router::new().route("/", get(|| async { "hello" })).layer(gate);
    /// let service = app.into_make_service_with_connect_info::<SocketAddr>();
    /// # let _ = service;
    /// ```
    #[must_use]
    pub fn by_connect_info(quota: Quota) -> Self {
        let address = ClientIp::peer();
        Self::required(quota, move |head| address.of(head).map(Some).ok_or(NO_CONNECT_INFO))
    }
}

const NO_CONNECT_INFO: &str = "No `ConnectInfo` is in the request's extensions. Perhaps you forgot to serve the router with \
                               `into_make_service_with_connect_info::<SocketAddr>()`.";

impl IntoResponse for Rejection {
    /// Writes the rejection that a handler returns, or that an extractor of the handler made.
    ///
    /// The gate around the handler writes this response again, with its realm and its responder. Other header fields of the response
    /// stay. A response whose status the handler has changed is not written again. Without a gate, the response has
    /// [`ProblemDetails`] and the realm `api`.
    ///
    /// A handler of gRPC or Connect requests adapts its rejection by [`Rejection::for_request`]. Extractors do this themselves.
    fn into_response(self) -> Response {
        let mut response: Response = ProblemDetails.reject(self);
        if let Some(rejection) = response.extensions_mut().remove::<Rejection>() {
            let status = response.status();
            response.extensions_mut().insert(rejection.with_provisional(Some(status)));
        }
        response
    }
}
