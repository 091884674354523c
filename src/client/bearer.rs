//! [`BearerLayer`]: adds a token to the requests to one origin.

use std::fmt;
use std::task::{Context, Poll};

use http::header::{AUTHORIZATION, Entry, HeaderValue};
use http::{Request, Uri};
use thiserror::Error;
use tower_layer::Layer;
use tower_service::Service;

use crate::extract::{TokenSyntax, TokenSyntaxError};
use crate::loopback::is_loopback;

/// A layer that adds `Authorization: Bearer` with a token to the requests to one origin.
///
/// - Requests to another origin do not get the token. So a layer that follows redirects can stand outside of this layer.
/// - The origin must be HTTPS, because a token that is sent without HTTPS is exposed (RFC 6750, section 5.3).
/// - `http` is allowed if the host is a loopback address, such as `127.0.0.1`. The name `localhost` is not allowed, because it may
///   resolve to any address.
/// - The header value is sensitive: `Debug` of requests omits it, and HTTP/2 does not index it.
/// - A request keeps the `Authorization` fields that it has, and all of them become sensitive.
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
    #[error("invalid origin: must be https or http, a host and an optional port, such as https://api.example")]
    Origin,
    /// The origin is neither HTTPS nor a loopback address.
    #[error("invalid origin: tokens are sent over HTTPS only, except to loopback addresses such as 127.0.0.1")]
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
    /// - [`Origin`](BearerError::Origin) if the origin has a path, a query or user information, or if its port is not a number of
    ///   at most 65535.
    /// - [`Plaintext`](BearerError::Plaintext) if the origin is neither HTTPS nor a loopback address.
    /// - [`Token`](BearerError::Token) if the token is malformed.
    pub fn new(origin: &str, token: &str) -> Result<Self, BearerError> {
        let uri: Uri = origin.parse().map_err(|_| BearerError::Origin)?;
        let is_origin = matches!(uri.path(), "" | "/") && uri.query().is_none() && !origin.contains(['@', '#']);
        let origin = Origin::of(&uri).filter(|_| is_origin).ok_or(BearerError::Origin)?;
        if !origin.is_https && !is_loopback(&origin.host) {
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
        let host = uri.host().filter(|host| !host.is_empty())?;
        // `port_u16` is `None` for an invalid port, too, which must not mean the default port.
        let authority = uri.authority()?.as_str();
        let host_and_port = authority.rsplit_once('@').map_or(authority, |(_, rest)| rest);
        let port = match host_and_port.strip_prefix(host)? {
            "" => default_port,
            port => port.strip_prefix(':')?.parse().ok()?,
        };
        Some(Self { is_https, host: host.to_ascii_lowercase(), port })
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
        if let Entry::Occupied(mut values) = headers.entry(AUTHORIZATION) {
            values.iter_mut().for_each(|value| value.set_sensitive(true));
        }
        self.inner.call(request)
    }
}
