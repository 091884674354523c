//! HTTPS only: detects requests that came without HTTPS, and rejects them.

use http::{HeaderName, Request};

use super::settings::{Gate, IsSecure};
#[cfg(feature = "body")]
use super::state::TokenLookup;
use crate::extract::Extracted;
use crate::limit::forwarded::{TrustedProxies, forwarded_elements, forwarded_parameter, peer};
use crate::limit::{ClientIpError, Limiter};
use crate::list::members;
use crate::rejection::{Rejection, RejectionKind};
use crate::request_head::RequestHead;
use crate::store::GateStore;
use crate::token::TokenLocation;

/// A request extension that marks a request of a TLS connection. A server that terminates TLS itself inserts it.
///
/// With axum, add it to the router that the TLS listener serves, as the last layer:
///
#[cfg_attr(feature = "axum", doc = "```")]
#[cfg_attr(not(feature = "axum"), doc = "```ignore")]
/// use axum::{Extension, Router, routing::get};
/// use tollgate::gate::{HttpsConnection, is_https};
/// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
///
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
/// let gate = AuthLayer::new(tokens).require_https(is_https);
/// let app: Router = Router::new().route("/", get(|| async { "hello" })).layer(gate);
///
/// let over_tls = app.clone().layer(Extension(HttpsConnection));
/// // axum_server::bind_rustls(([0, 0, 0, 0], 443).into(), tls).serve(over_tls.into_make_service())
/// // axum_server::bind(([0, 0, 0, 0], 80).into()).serve(app.into_make_service())
/// # let _ = (app, over_tls);
/// ```
///
/// With hyper, insert it in the service of a TLS connection:
///
/// ```
/// use http::Request;
/// use tollgate::gate::HttpsConnection;
///
/// fn over_tls<B>(mut request: Request<B>) -> Request<B> {
///     request.extensions_mut().insert(HttpsConnection);
///     request
/// }
/// # let _ = over_tls::<()>;
/// ```
///
/// If the extension is missing, such as behind a layer in the wrong order, requests are rejected.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpsConnection;

/// Returns whether the server has marked the request as one of a TLS connection, for
/// [`AuthLayer::require_https`](crate::AuthLayer::require_https).
///
/// Only the extension [`HttpsConnection`] counts. The scheme of the request target does not (`:scheme` in HTTP/2, an absolute
/// URI in HTTP/1), because the client writes it.
#[must_use]
pub fn is_https(head: &RequestHead<'_>) -> bool {
    head.extensions.get::<HttpsConnection>().is_some()
}

/// Reads from a field of trusted proxies whether their client used HTTPS.
///
/// ```
/// use std::net::SocketAddr;
/// use http::Request;
/// use tollgate::RequestHead;
/// use tollgate::gate::ForwardedProto;
///
/// let proxies = ForwardedProto::x_forwarded_proto(["10.0.0.0/8"])?;
/// let mut request = Request::get("/").header("x-forwarded-proto", "https").body(())?;
/// assert!(!proxies.is_https(&RequestHead::of(&request)));
/// request.extensions_mut().insert(SocketAddr::from(([10, 0, 0, 1], 40_000)));
/// assert!(proxies.is_https(&RequestHead::of(&request)));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// # Rules
///
/// 1. The field counts only if the peer is in a trusted network. The peer is that of [`ClientIp`](crate::limit::ClientIp):
///    the [`SocketAddr`](std::net::SocketAddr) in the request extensions, or else axum's `ConnectInfo`.
/// 2. The value is `https` or `wss`, without regard to case. Traefik writes `wss` for WebSockets.
/// 3. A missing or malformed value is not HTTPS.
///
/// The proxy must overwrite the field, or append to it, for every request. A proxy that sets the field only for TLS connections
/// passes on what a client without TLS has written.
#[derive(Clone, Debug)]
pub struct ForwardedProto {
    source: Source,
    proxies: TrustedProxies,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    XForwardedProto,
    Forwarded,
}

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

impl ForwardedProto {
    /// Uses `X-Forwarded-Proto`, which proxies in these networks overwrite or append to.
    ///
    /// The field does not say which hop a value belongs to. So if there are several values, each of them must be HTTPS.
    ///
    /// # Errors
    ///
    /// If a network is invalid, or if there is none.
    pub fn x_forwarded_proto<'a>(trusted: impl IntoIterator<Item = &'a str>) -> Result<Self, ClientIpError> {
        Ok(Self { source: Source::XForwardedProto, proxies: TrustedProxies::new(trusted)? })
    }

    /// Uses the parameter `proto` of `Forwarded` (RFC 7239, section 5.4), to which each proxy in these networks appends an
    /// element.
    ///
    /// The element of the client counts, which is found by the parameter `for` as in
    /// [`ClientIp::forwarded`](crate::limit::ClientIp::forwarded). Connections between trusted proxies need no TLS. An element
    /// in which `for` is missing or is no address is not HTTPS.
    ///
    /// # Errors
    ///
    /// If a network is invalid, or if there is none.
    pub fn forwarded<'a>(trusted: impl IntoIterator<Item = &'a str>) -> Result<Self, ClientIpError> {
        Ok(Self { source: Source::Forwarded, proxies: TrustedProxies::new(trusted)? })
    }

    /// Returns whether a trusted proxy reports that its client used HTTPS, for
    /// [`AuthLayer::require_https`](crate::AuthLayer::require_https).
    #[must_use]
    pub fn is_https(&self, head: &RequestHead<'_>) -> bool {
        let Some(peer) = peer(head).map(|peer| peer.ip().to_canonical()) else { return false };
        match self.source {
            Source::XForwardedProto => {
                let name = X_FORWARDED_PROTO;
                let mut values = members(head.headers, &name).peekable();
                self.proxies.contains(peer) && values.peek().is_some() && values.all(is_secure)
            }
            Source::Forwarded => {
                let node = |element| forwarded_parameter(element, "for");
                let hops = self.proxies.hops(peer, forwarded_elements(head), node);
                hops.last().is_some_and(|(client, element)| {
                    client.is_some() && is_secure(forwarded_parameter(element, "proto"))
                })
            }
        }
    }
}

fn is_secure(scheme: &[u8]) -> bool {
    scheme.eq_ignore_ascii_case(b"https") || scheme.eq_ignore_ascii_case(b"wss")
}

/// Requests without HTTPS.
impl<T: GateStore, L: Limiter, R> Gate<T, L, R> {
    /// Returns whether the gate requires HTTPS, and the request came without it.
    #[inline]
    pub(super) fn is_plaintext<B>(&self, request: &Request<B>) -> bool {
        // Not inlined: gates without the setting are shorter without this code.
        #[inline(never)]
        fn is_plaintext(is_secure: &IsSecure, head: &RequestHead<'_>) -> bool {
            !is_secure(head)
        }
        let is_secure = self.settings.is_secure.as_ref();
        is_secure.is_some_and(|is_secure| is_plaintext(is_secure, &RequestHead::of(request)))
    }

    /// Returns the rejection of a request without HTTPS by its head, before its body is read.
    #[inline(never)]
    pub(super) fn reject_without_https<B>(&self, request: &Request<B>) -> Option<Rejection> {
        if !self.is_plaintext(request) {
            return None;
        }
        let (extracted, location) = self.extract(request);
        self.reject_credential(extracted, location, request).err()
    }

    /// Looks up the token after the body was read. Rejects a credential that came without HTTPS.
    #[cfg(feature = "body")]
    pub(super) fn look_up_over_https<B>(
        &self,
        extracted: Extracted<'_>,
        location: TokenLocation,
        request: &Request<B>,
    ) -> Result<TokenLookup<T>, Rejection> {
        let extracted = match self.is_plaintext(request) {
            true => self.reject_credential(extracted, location, request)?,
            false => extracted,
        };
        Ok(self.look_up(extracted, location, &RequestHead::of(request)))
    }

    /// Returns the rejection of a request without HTTPS, unless it has no credential and the gate allows anonymous callers.
    ///
    /// The store does not change the decision. It is asked for the report only: no operator could find the exposed token by the
    /// rejection otherwise. A pending lookup is dropped before its first poll, which costs the store nothing.
    #[cold]
    fn reject_credential<'a, B>(
        &self,
        extracted: Extracted<'a>,
        location: TokenLocation,
        request: &Request<B>,
    ) -> Result<Extracted<'a>, Rejection> {
        let rejection = Rejection::new(RejectionKind::HttpsRequired);
        match extracted {
            Extracted::Nothing if self.settings.allow_anonymous => Ok(Extracted::Nothing),
            Extracted::Token(token) => {
                let found = self.store.lookup_for(&token.with_location(location), &RequestHead::of(request)).ready();
                Err(match found {
                    Some(Ok(Some(grant))) => rejection.of_grant(grant.id()),
                    _ => rejection,
                })
            }
            Extracted::Nothing | Extracted::Malformed | Extracted::Ambiguous(_) => Err(rejection),
        }
    }
}
