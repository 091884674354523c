//! Helpers for tests of token locations in the head: gates, requests and a handler that records them.

use std::convert::Infallible;
use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use tollgate::{AuthLayer, BoxStore, CurrentGrant, Rejection, RejectionKind, TokenLocation, TokenStore};
use tower::{Layer as _, Service};

use crate::kit::*;

pub const PREFIX: &str = "base64url.bearer.authorization.example.";
pub const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Enables all locations in the head.
pub fn with_all_locations<T, L>(layer: AuthLayer<T, L>) -> AuthLayer<T, L> {
    layer
        .with_api_key_header(API_KEY)
        .unwrap()
        .with_discouraged_query_token("access_token")
        .unwrap()
        .with_websocket_token(PREFIX)
        .unwrap()
        .with_token_from(|head| {
            let cookies = head.headers.get_all("cookie").iter();
            cookies.filter_map(|cookie| Some(cookie.as_bytes().strip_prefix(b"session=")?.to_vec())).collect::<Vec<_>>()
        })
}

pub const HEAD_LOCATIONS: [TokenLocation; 5] = [
    TokenLocation::AuthorizationHeader,
    TokenLocation::ApiKeyHeader,
    TokenLocation::Query,
    TokenLocation::WebSocketProtocol,
    TokenLocation::Other,
];

/// Adds a token to a request, at this location.
pub fn with_token_at(mut request: Request<Body>, location: TokenLocation, token: &str) -> Request<Body> {
    let line = |value: String| HeaderValue::try_from(value).unwrap();
    match location {
        TokenLocation::AuthorizationHeader => {
            request.headers_mut().append("authorization", line(format!("Bearer {token}")));
        }
        TokenLocation::ApiKeyHeader => {
            request.headers_mut().append(API_KEY, line(token.to_owned()));
        }
        TokenLocation::Query => {
            let encoded = token.replace('!', "%21").replace(' ', "%20");
            *request.uri_mut() = format!("/?qty=1&access_token={encoded}&side=buy").parse().unwrap();
        }
        TokenLocation::WebSocketProtocol => {
            let protocol_item = format!("chat, {PREFIX}{}, v2", BASE64_URL_SAFE_NO_PAD.encode(token));
            request.headers_mut().append("sec-websocket-protocol", line(protocol_item));
            request.headers_mut().append("connection", HeaderValue::from_static("Upgrade"));
            request.headers_mut().append("upgrade", HeaderValue::from_static("websocket"));
        }
        TokenLocation::Other => {
            request.headers_mut().append("cookie", line(format!("session={token}")));
        }
        other => panic!("{other:?} is no location in the head"),
    }
    request
}

/// The request as the inner service received it.
#[derive(Clone, Debug)]
pub struct Received {
    pub uri: Uri,
    pub headers: HeaderMap,
    pub location: Option<TokenLocation>,
}

/// Returns an inner service that responds with what it received, under these header fields.
pub fn recorder(
    fields: &'static [(&'static str, &'static str)],
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static> + Clone {
    tower::service_fn(move |request: Request<Body>| async move {
        let location = request.extensions().get::<CurrentGrant>().map(CurrentGrant::location);
        let mut response = Response::new(Body::default());
        for (name, value) in fields {
            response.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        let (head, _) = request.into_parts();
        response.extensions_mut().insert(Received { uri: head.uri, headers: head.headers, location });
        Ok(response)
    })
}

pub async fn received<T: TokenStore>(layer: &AuthLayer<T>, request: Request<Body>) -> Received {
    let response = send(&layer.layer(recorder(&[])), request).await;
    response.extensions().get::<Received>().unwrap_or_else(|| panic!("rejected: {response:?}")).clone()
}

/// Returns why a gate rejects a request.
pub async fn rejection_kind<T: TokenStore>(layer: &AuthLayer<T>, request: Request<Body>) -> RejectionKind {
    let response = send(&layer.layer(recorder(&[])), request).await;
    response.extensions().get::<Rejection>().unwrap_or_else(|| panic!("admitted: {response:?}")).kind()
}

pub fn pending_gate() -> AuthLayer<BoxStore<User>> {
    AuthLayer::with_timeout(slow(), Duration::from_secs(5))
}
