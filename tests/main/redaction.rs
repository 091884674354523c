//! Tokens after authentication: removed or marked sensitive, and never printed.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use http::{HeaderValue, Request, Response, Uri};
use tollgate::extract::{TokenSyntax, api_key, query, websocket};
use tollgate::gate::BodyTokens;
use tollgate::{AuthLayer, CurrentGrant, Quota, Rejection, RequestHead, TokenDigest, TokenLocation, TokenStore};
use tower::{Layer as _, Service};

use crate::kit::location::*;
use crate::kit::*;

#[tokio::test]
async fn with_credentials_removed_removes_the_token_from_every_location() {
    async fn check<T: TokenStore>(layer: AuthLayer<T>) {
        let layer = with_all_locations(layer).with_credentials_removed();
        for location in HEAD_LOCATIONS {
            let request = with_token_at(get(), location, TOKEN);
            let before =
                Received { uri: request.uri().clone(), headers: request.headers().clone(), location: Some(location) };
            let received_request = received(&layer, request).await;
            assert_eq!(received_request.location, before.location);
            let (mut headers, mut uri) = (before.headers, before.uri);
            match location {
                TokenLocation::AuthorizationHeader => _ = headers.remove("authorization"),
                TokenLocation::ApiKeyHeader => _ = headers.remove(API_KEY),
                TokenLocation::Query => uri = Uri::from_static("/?qty=1&side=buy"),
                TokenLocation::WebSocketProtocol => {
                    headers.insert("sec-websocket-protocol", HeaderValue::from_static("chat, v2"));
                }
                // The gate does not know where a closure finds its token.
                _ => {}
            }
            assert_eq!(
                (received_request.uri, received_request.headers),
                (uri, headers),
                "{location:?}: nothing else changes"
            );
        }
    }
    check(AuthLayer::new(memory())).await;
    check(pending_gate()).await;
}

#[tokio::test]
async fn forwarded_credentials_are_marked_sensitive() {
    let layer = with_all_locations(AuthLayer::new(memory()));
    for location in HEAD_LOCATIONS {
        let request = with_token_at(get(), location, TOKEN);
        let before = (request.uri().clone(), request.headers().clone());
        let received_request = received(&layer, request).await;
        for (name, value) in &received_request.headers {
            let secret = name == "authorization" || name == API_KEY;
            assert_eq!(value.is_sensitive(), secret, "{name}");
        }
        if location != TokenLocation::WebSocketProtocol {
            assert_eq!((received_request.uri, received_request.headers), before, "{location:?}");
        }
    }
}

#[tokio::test]
async fn preflights_forward_no_credentials() {
    let layer = with_all_locations(AuthLayer::new(memory()));
    for layer in [layer.clone(), layer.with_credentials_removed()] {
        for location in [TokenLocation::AuthorizationHeader, TokenLocation::ApiKeyHeader, TokenLocation::Query] {
            let received_request = received(&layer, with_token_at(preflight(), location, TOKEN)).await;
            assert_eq!(
                (received_request.location, received_request.headers),
                (None, preflight().headers().clone()),
                "{location:?}"
            );
            assert!(!received_request.uri.to_string().contains(TOKEN), "{location:?}");
        }
    }
}

#[tokio::test]
async fn no_debug_output_contains_a_token() {
    let mut printed = String::new();
    let layer = with_all_locations(AuthLayer::new(memory())).with_credentials_removed();
    let limited = layer.clone().with_rate_limit(Hands::default().limits(Quota::per_minute(60)));
    let body_tokens =
        BodyTokens::with_timeout(Duration::from_secs(1)).with_json("key").unwrap().with_text("key").unwrap();
    let with_body = layer.clone().with_body_tokens(body_tokens.clone());
    write!(printed, "{layer:?}{layer:#?}{limited:?}{body_tokens:?}{with_body:?}").unwrap();
    assert!(printed.contains("x-api-key") && printed.contains("access_token"), "the locations are printed");

    let printing = tower::service_fn(|request: Request<Body>| async move {
        Ok::<_, Infallible>(Response::new(Body::from(format!("{request:?}{request:#?}"))))
    });
    let service = layer.layer(printing);
    // Printing a request prints its cookies: the gate does not know where a closure finds its token.
    let known = &HEAD_LOCATIONS[..4];
    for &location in known {
        write!(printed, "{:?}{service:?}", service.clone().call(with_token_at(get(), location, TOKEN))).unwrap();
        let tokens = [TOKEN.to_owned(), format!("{TOKEN}x"), format!("{TOKEN} {TOKEN}")];
        for request in tokens.iter().map(|token| with_token_at(get(), location, token)).chain(
            known
                .iter()
                .filter(|&&other| other != location)
                .map(|&other| with_token_at(with_token_at(get(), location, TOKEN), other, TOKEN)),
        ) {
            let head = RequestHead::of(&request);
            let extracted = match location {
                TokenLocation::ApiKeyHeader => api_key(head.headers, &API_KEY, TokenSyntax::default()),
                TokenLocation::WebSocketProtocol => websocket(&head, PREFIX, TokenSyntax::default()),
                _ => query(head.method, head.uri, "access_token", TokenSyntax::default()),
            };
            write!(printed, "{extracted:?}").unwrap();
            drop(extracted);
            let response = send(&service, request).await;
            write!(printed, "{:?}", response.headers()).unwrap();
            if let Some(rejection) = response.extensions().get::<Rejection>() {
                write!(printed, "{rejection}{rejection:?}{rejection:#?}").unwrap();
            }
            if let Some(current) = response.extensions().get::<CurrentGrant>() {
                write!(printed, "{current:?}").unwrap();
            }
            printed += &text(response).await;
        }
    }
    let in_base64 = BASE64_URL_SAFE_NO_PAD.encode(TOKEN);
    let in_bytes = format!("{:?}", TOKEN.as_bytes());
    for secret in [TOKEN, &TOKEN[3..], &in_base64, in_bytes.trim_matches(['[', ']']), &TokenDigest::of(TOKEN).to_hex()]
    {
        assert!(!printed.contains(secret), "printed: {printed}");
    }
    assert!(printed.len() > 4_000, "too little was printed");
}
