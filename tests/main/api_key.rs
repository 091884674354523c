//! Tokens in an API-key header.

use http::HeaderValue;
use tollgate::{AuthLayer, RejectionKind, TokenLocation};
use tower::Layer as _;

use crate::kit::location::*;
use crate::kit::*;

#[tokio::test]
async fn an_api_key_header_holds_exactly_the_token() {
    let layer = AuthLayer::new(memory()).with_api_key_header(API_KEY).unwrap();
    let with = |lines: &[&[u8]]| {
        let mut request = get();
        for line in lines {
            request.headers_mut().append(API_KEY, HeaderValue::from_bytes(line).unwrap());
        }
        request
    };
    let token = TOKEN.as_bytes();
    for good in [token.to_vec(), [b" \t", token, b"\t "].concat()] {
        let received_request = received(&layer, with(&[&good])).await;
        assert_eq!(received_request.location, Some(TokenLocation::ApiKeyHeader));
        assert!(received_request.headers[API_KEY].is_sensitive());
        assert_eq!(received_request.headers[API_KEY].as_bytes(), good, "forwarded unchanged");
    }
    let bearer = [b"Bearer ", token].concat();
    let no_break = [b"\xa0", token].concat();
    for (lines, kind) in [
        (&[&b""[..]][..], RejectionKind::MalformedToken),
        (&[b" \t"], RejectionKind::MalformedToken),
        (&[&bearer], RejectionKind::MalformedToken),
        (&[&no_break], RejectionKind::MalformedToken),
        (&[b"\xff"], RejectionKind::MalformedToken),
        (&[b"a,b"], RejectionKind::InvalidRequest),
        (&[token, token], RejectionKind::InvalidRequest),
        (&[b"", token], RejectionKind::InvalidRequest),
        (&[b"unknown"], RejectionKind::UnknownToken),
    ] {
        assert_eq!(rejection_kind(&layer, with(lines)).await, kind, "{lines:?}");
    }
    let response = send(&layer.layer(recorder(&[])), get()).await;
    assert_eq!(field(response.headers(), "www-authenticate"), Some("Bearer realm=\"api\""), "only the Bearer scheme");
}

#[tokio::test]
async fn unless_bearer_ignores_the_api_key_header_beside_bearer_credentials() {
    let layer = AuthLayer::new(memory()).with_api_key_header_unless_bearer(API_KEY).unwrap().with_credentials_removed();
    let both = with_token_at(with_token(TOKEN), TokenLocation::ApiKeyHeader, "of another purpose");
    let received_request = received(&layer, both).await;
    assert_eq!(received_request.location, Some(TokenLocation::AuthorizationHeader));
    assert_eq!(received_request.headers[API_KEY], "of another purpose", "not a credential, so not removed");

    let mut basic = with_token_at(get(), TokenLocation::ApiKeyHeader, TOKEN);
    basic.headers_mut().insert("authorization", HeaderValue::from_static("Basic Zm9v"));
    for request in [with_token_at(get(), TokenLocation::ApiKeyHeader, TOKEN), basic] {
        let received_request = received(&layer, request).await;
        assert_eq!(received_request.location, Some(TokenLocation::ApiKeyHeader));
        assert!(!received_request.headers.contains_key(API_KEY));
    }
    let malformed = with_token_at(with_token("mal formed"), TokenLocation::ApiKeyHeader, TOKEN);
    assert_eq!(send(&layer.layer(echo()), malformed).await.status(), 401, "a malformed Bearer credential counts too");

    // The repeated field is not a credential here and is not rejected. It must still be marked sensitive.
    let twice = with_token_at(with_token(TOKEN), TokenLocation::ApiKeyHeader, "one");
    let received_request = received(&layer, with_token_at(twice, TokenLocation::ApiKeyHeader, "two")).await;
    let lines: Vec<_> =
        received_request.headers.get_all(API_KEY).iter().map(|line| (line, line.is_sensitive())).collect();
    assert!(lines.len() == 2 && lines.iter().all(|(_, is_sensitive)| *is_sensitive), "{lines:?}");
}

#[tokio::test]
async fn without_authorization_header_ignores_and_forwards_it() {
    let closed = AuthLayer::new(memory()).without_authorization_header();
    assert_eq!(rejection_kind(&closed, with_token(TOKEN)).await, RejectionKind::Missing);
    let layer = AuthLayer::new(memory()).with_api_key_header_unless_bearer(API_KEY).unwrap();
    let layer = layer.without_authorization_header().with_credentials_removed();
    assert_eq!(rejection_kind(&layer, with_token(TOKEN)).await, RejectionKind::Missing);
    let mut request = with_token_at(with_token("of-a-proxy"), TokenLocation::ApiKeyHeader, TOKEN);
    request.headers_mut().append("authorization", "Bearer another".parse().unwrap());
    let received_request = received(&layer, request).await;
    assert_eq!(received_request.location, Some(TokenLocation::ApiKeyHeader));
    assert_eq!(
        values(&received_request.headers, "authorization"),
        ["Bearer of-a-proxy", "Bearer another"],
        "not a credential for this gate"
    );
    assert!(
        received_request.headers.get_all("authorization").iter().all(HeaderValue::is_sensitive),
        "still marked as secrets"
    );
    assert_eq!(values(&received_request.headers, "x-api-key"), [""; 0]);

    let mut request = preflight();
    request.headers_mut().insert("authorization", "Bearer of-a-proxy".parse().unwrap());
    let response = send(&layer.layer(echo()), request).await;
    assert_eq!(values(response.headers(), "authorization"), ["Bearer of-a-proxy"], "of a preflight");
}
