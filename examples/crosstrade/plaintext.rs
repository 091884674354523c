//! The plaintext listener beside TLS: `--http ADDRESS:PORT`.
//!
//! | request | answer |
//! |---|---|
//! | `/v1/..`, `/ws/..` | 403, usually by the gates: the client has sent its token in plaintext, and a redirect would hide that |
//! | `GET` or `HEAD` of any other path | 308 to HTTPS |
//! | others | 403 |

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use tollgate::RequestHead;

use crate::problem::ProblemDetails;
use crate::tls::Tls;

/// The paths of the API.
const API: [&str; 2] = ["/v1/", "/ws/"];
const HTTPS_PORT: u16 = 443;

/// Wraps the service for plaintext. Pages are redirected to the TLS listener at `port`.
pub(crate) fn app(app: Router, tls: Arc<Tls>, port: u16) -> Router {
    app.layer(from_fn(move |request: Request, next: Next| {
        let tls = Arc::clone(&tls);
        async move {
            let path = request.uri().path();
            if API.iter().any(|prefix| path.starts_with(prefix)) {
                let response = next.run(request).await;
                // No gate has judged requests that match no route.
                return match response.status() {
                    StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => use_https().into_response(),
                    _ => response,
                };
            }
            redirect(&request, &tls, port).unwrap_or_else(ProblemDetails::into_response)
        }
    }))
}

fn use_https() -> ProblemDetails {
    ProblemDetails::new(StatusCode::FORBIDDEN, "Use HTTPS.")
}

fn redirect(request: &Request, tls: &Tls, port: u16) -> Result<Response, ProblemDetails> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(use_https());
    }
    let authority = authority(&RequestHead::of(request))
        .ok_or_else(|| ProblemDetails::bad_request("Send one valid `Host` field."))?;
    let host = authority.host();
    // A host that the certificate is not for is not this service: the redirect must not lead elsewhere.
    if !tls.is_for(host.trim_matches(['[', ']'])) {
        return Err(ProblemDetails::new(StatusCode::MISDIRECTED_REQUEST, "This service is not that host."));
    }
    let port = if port == HTTPS_PORT { String::new() } else { format!(":{port}") };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    Ok((StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, format!("https://{host}{port}{path}"))]).into_response())
}

/// Returns the host and port that a request is for: of the request target, or else of the only `Host` field (RFC 9112,
/// section 3.2). Returns `None` if it is missing or invalid.
pub(crate) fn authority(head: &RequestHead<'_>) -> Option<Authority> {
    let mut fields = head.headers.get_all(header::HOST).iter();
    let authority = match (head.uri.authority(), fields.next(), fields.next()) {
        (Some(authority), _, None) => authority.clone(),
        (None, Some(host), None) => Authority::try_from(host.as_bytes()).ok()?,
        _ => return None,
    };
    // User information is not part of a host.
    (!authority.as_str().contains('@')).then_some(authority)
}
