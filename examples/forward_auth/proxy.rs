//! The conventions of the proxies: where the original request is, and how the decision is sent back.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::Body as _;
use ipnet::{AddrParseError, IpNet};

use crate::target;

/// The kind of the proxy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Proxy {
    /// Sends `X-Original-Method` and `X-Original-URI`, which its configuration sets. It takes rejections as 403 with the true status
    /// and the body in header fields: nginx passes on no other statuses than 401 and 403.
    Nginx,
    /// Sends `X-Forwarded-Method` and `X-Forwarded-Uri`, which its configuration sets.
    Caddy,
    /// Sends `X-Forwarded-Method`, `X-Forwarded-Uri` and `X-Forwarded-Host`.
    Traefik,
    /// Sends the original method, target and host as they are.
    Envoy,
}

impl FromStr for Proxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "nginx" => Ok(Self::Nginx),
            "caddy" => Ok(Self::Caddy),
            "traefik" => Ok(Self::Traefik),
            "envoy" => Ok(Self::Envoy),
            _ => Err(format!("unknown proxy {text}: must be nginx, caddy, traefik or envoy")),
        }
    }
}

/// The proxy and its networks.
pub(crate) struct Front {
    proxy: Proxy,
    trusted: Vec<IpNet>,
}

impl Front {
    pub(crate) fn new<'a>(proxy: Proxy, trusted: impl Iterator<Item = &'a str>) -> Result<Arc<Self>, AddrParseError> {
        let network = |text: &str| text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse::<IpNet>());
        Ok(Arc::new(Self { proxy, trusted: trusted.map(network).collect::<Result<_, _>>()? }))
    }

    /// Returns the method and the target of the original request, or the status and the reason of a rejection.
    fn original(&self, peer: IpAddr, request: &Request) -> Result<(Method, Uri), (StatusCode, &'static str)> {
        if !self.trusted.iter().any(|network| network.contains(&peer.to_canonical())) {
            return Err((StatusCode::FORBIDDEN, "This service answers the proxy only."));
        }
        let bad = |detail| (StatusCode::BAD_REQUEST, detail);
        let (method, target) = match self.proxy {
            Proxy::Nginx => ("x-original-method", "x-original-uri"),
            Proxy::Caddy | Proxy::Traefik => ("x-forwarded-method", "x-forwarded-uri"),
            Proxy::Envoy => {
                let target = request.uri().path_and_query().map_or("", |target| target.as_str());
                return Ok((request.method().clone(), target::parse(target).map_err(bad)?));
            }
        };
        let field =
            |name| only(request.headers(), name).ok_or_else(|| bad("The proxy has not sent the original request."));
        let method = field(method)?.parse().map_err(|_| bad("The method is malformed."))?;
        Ok((method, target::parse(field(target)?).map_err(bad)?))
    }

    /// Returns the response in the form that the proxy understands.
    async fn answer(&self, response: Response) -> Response {
        let is_admitted = response.extensions().get::<Admitted>().is_some();
        let mut response = match response.status() {
            status if status.is_client_error() || status.is_server_error() => response,
            status if status.is_success() && is_admitted => return response,
            // Proxies would take a rejection with status 200, such as that of gRPC, for an admission.
            _ => problem(StatusCode::INTERNAL_SERVER_ERROR, "The gate has made no decision."),
        };
        // A response to `HEAD` has the length of the body that it lacks. The proxy sends `GET` and would wait for that body.
        if response.body().is_end_stream() {
            response.headers_mut().remove(header::CONTENT_LENGTH);
        }
        match self.proxy {
            Proxy::Nginx => in_header_fields(response).await,
            _ => response,
        }
    }
}

/// Passes the original request to the gate instead of the proxy's own one.
pub(crate) async fn check_original(
    State(front): State<Arc<Front>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let response = match front.original(peer.ip(), &request) {
        Ok((method, target)) => {
            *request.method_mut() = method;
            *request.uri_mut() = target;
            let headers = request.headers_mut();
            if let (Proxy::Traefik, Some(host)) = (front.proxy, headers.remove("x-forwarded-host")) {
                headers.insert(header::HOST, host);
            }
            // There is no content. And rejections of gRPC have status 200, which is an admission for a proxy. Those of Connect have a
            // content type of their own, which nginx does not get.
            headers.remove(header::CONTENT_TYPE);
            headers.remove("connect-protocol-version");
            next.run(request).await
        }
        Err((status, detail)) => problem(status, detail),
    };
    front.answer(response).await
}

/// Returns the value of a field that has exactly one line.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut lines = headers.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())?.to_str().ok()
}

/// Moves the status and the body of a rejection into header fields.
async fn in_header_fields(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    let body = to_bytes(body, 2_048).await.unwrap_or_default();
    let is_text = !body.is_empty() && body.iter().all(|byte| (b' '..=b'~').contains(byte));
    if let (true, Ok(body)) = (is_text, HeaderValue::from_bytes(&body)) {
        head.headers.insert("x-auth-body", body);
    }
    head.headers.insert("x-auth-status", head.status.as_u16().into());
    head.headers.remove(header::CONTENT_TYPE);
    head.headers.remove(header::CONTENT_LENGTH);
    head.status = StatusCode::FORBIDDEN;
    Response::from_parts(head, Body::empty())
}

/// Marks the response to an admitted request. No other response becomes a success.
#[derive(Clone)]
pub(crate) struct Admitted;

impl Admitted {
    /// Returns an admission without a caller.
    pub(crate) fn response() -> Response {
        let mut response = StatusCode::OK.into_response();
        response.extensions_mut().insert(Self);
        response
    }
}

/// Returns a rejection of this service itself, as problem details.
pub(crate) fn problem(status: StatusCode, detail: &str) -> Response {
    let title = status.canonical_reason().unwrap_or_default();
    let body =
        format!(r#"{{"type":"about:blank","title":"{title}","status":{},"detail":"{detail}"}}"#, status.as_u16());
    let fields = [(header::CONTENT_TYPE, "application/problem+json"), (header::CACHE_CONTROL, "no-store")];
    (status, fields, body).into_response()
}
