//! [`BearerLayer`]: adds a token to the requests to one origin.

use std::fmt;
use std::net::IpAddr;
use std::task::{Context, Poll};

use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, Uri};
use thiserror::Error;
use tower_layer::Layer;
use tower_service::Service;

use crate::extract::{TokenSyntax, TokenSyntaxError};

/// A layer that adds `Authorization: Bearer` with a token to the requests to one origin.
///
/// - Requests to another origin do not get the token. So a layer that follows redirects can stand outside of this layer.
/// - The origin must be HTTPS, or this machine: a token that was sent without HTTPS is exposed (RFC 6750, section 5.3).
/// - The header value is sensitive: `Debug` of requests omits it, and HTTP/2 does not index it.
/// - A request that has an `Authorization` field already keeps it, and it becomes sensitive.
///
/// A request needs an absolute URI. Requests over a connection of hyper, and those of tonic, have a path only, and get no token.
///
/// ```
/// use tollgate::client::{BearerError, BearerLayer};
///
/// let layer = BearerLayer::new("https://api.example", "a-secret-token")?;
/// assert!(!format!("{layer:?}").contains("secret"));
/// assert_eq!(BearerLayer::new("http://api.example", "a-secret-token").unwrap_err(), BearerError::Plaintext);
/// # Ok::<_, BearerError>(())
/// ```
#[derive(Clone)]
pub struct BearerLayer {
    origin: Origin,
    authorization: HeaderValue,
}

/// The error of a [`BearerLayer`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BearerError {
    /// The origin is not `https://` or `http://`, a host, and an optional port.
    #[error("invalid origin: must be a scheme, a host and an optional port, such as https://api.example")]
    Origin,
    /// The origin is neither HTTPS nor this machine.
    #[error("invalid origin: tokens are sent over HTTPS only, except to localhost")]
    Plaintext,
    /// The token cannot be sent as a bearer token (RFC 6750, section 2.1).
    #[error(transparent)]
    Token(#[from] TokenSyntaxError),
}

impl BearerLayer {
    /// Creates a layer for a token and the origin of the API, such as `https://api.example:8443`.
    ///
    /// # Errors
    ///
    /// Returns an error if the origin has a path or user information, if it is neither HTTPS nor this machine, or if the token
    /// is malformed.
    pub fn new(origin: &str, token: &str) -> Result<Self, BearerError> {
        let uri: Uri = origin.parse().map_err(|_| BearerError::Origin)?;
        let is_origin = matches!(uri.path(), "" | "/") && uri.query().is_none() && !origin.contains(['@', '#']);
        let origin = Origin::of(&uri).filter(|_| is_origin).ok_or(BearerError::Origin)?;
        if !origin.is_https && !origin.is_local() {
            return Err(BearerError::Plaintext);
        }
        TokenSyntax::default().check(token)?;
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        let mut authorization = value.map_err(|_| TokenSyntaxError::Charset)?;
        authorization.set_sensitive(true);
        Ok(Self { origin, authorization })
    }
}

/// A scheme, a host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    is_https: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let (is_https, default_port) = match uri.scheme_str()? {
            "https" => (true, 443),
            "http" => (false, 80),
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        Some(Self { is_https, host, port: uri.port_u16().unwrap_or(default_port) })
    }

    /// Returns whether the host is this machine, whose connections do not leave it.
    fn is_local(&self) -> bool {
        let address = self.host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

impl<S> Layer<S> for BearerLayer {
    type Service = BearerService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BearerService { inner, layer: self.clone() }
    }
}

impl fmt::Debug for BearerLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BearerLayer").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// The service of a [`BearerLayer`].
#[derive(Clone, Debug)]
pub struct BearerService<S> {
    inner: S,
    layer: BearerLayer,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for BearerService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        let is_own = Origin::of(request.uri()).is_some_and(|origin| origin == self.layer.origin);
        let headers = request.headers_mut();
        if is_own && !headers.contains_key(AUTHORIZATION) {
            headers.insert(AUTHORIZATION, self.layer.authorization.clone());
        }
        if let Some(value) = headers.get_mut(AUTHORIZATION) {
            value.set_sensitive(true);
        }
        self.inner.call(request)
    }
}
