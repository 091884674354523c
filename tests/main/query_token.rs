//! Tokens in the query.

use http::{Method, Request, Uri};
use proptest::prelude::*;
use tollgate::TokenDigest;
use tollgate::extract::{Extracted, TokenSyntax, query};
use tollgate::{AuthLayer, CurrentGrant, Grant, MemoryStore, RejectionKind, TokenLocation};
use tower::Layer as _;

use crate::kit::location::*;
use crate::kit::*;

#[tokio::test]
async fn query_parameters_are_compared_after_one_decoding() {
    let tokens = MemoryStore::from_iter(
        ["abc", "a+b", "a-b", "a=="].map(|token| (TokenDigest::of(token), Grant::new(token, ()))),
    );
    let layer = AuthLayer::new(tokens).with_discouraged_query_token("access_token").unwrap();
    let to = |method: Method, uri: &str| Request::builder().method(method).uri(uri).body(Body::default()).unwrap();
    for (uri, grant) in [
        ("/?access_token=abc", "abc"),
        ("/?access%5Ftoken=abc", "abc"),
        ("/?%61%63%63%65%73%73%5f%74%6f%6B%65%6e=%61%62%63", "abc"),
        ("/?a=1;access_token=2&access_token=abc", "abc"),
        ("/?Access_Token=x&access_token=abc", "abc"),
        ("/?xaccess_token=x&access_token=abc&access_tokenx=y", "abc"),
        ("/?%&%zz=%&access_token=abc", "abc"),
        ("/?access_token=a+b", "a+b"),
        ("/?access_token=a%2Bb", "a+b"),
        ("/?access_token=a%2Db", "a-b"),
        ("/?access_token=a==", "a=="),
        ("/?&&access_token=abc&&", "abc"),
        ("http://api.example/?access_token=abc", "abc"),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let response = send(&layer.layer(echo()), to(method, uri)).await;
            let current = response.extensions().get::<CurrentGrant>().unwrap_or_else(|| panic!("{uri} is rejected"));
            assert_eq!(current.id().as_str(), grant, "{uri}");
        }
    }
    for (uri, kind) in [
        ("/", RejectionKind::Missing),
        ("/?", RejectionKind::Missing),
        ("/?access%255Ftoken=abc", RejectionKind::Missing),
        ("/?ACCESS_TOKEN=abc", RejectionKind::Missing),
        ("/?a=1;access_token=abc", RejectionKind::Missing),
        ("/access_token=abc", RejectionKind::Missing),
        ("/?=access_token", RejectionKind::Missing),
        ("/?access_token", RejectionKind::MalformedToken),
        ("/?access_token=", RejectionKind::MalformedToken),
        ("/?access_token=a%2", RejectionKind::MalformedToken),
        ("/?access_token=a%252Db", RejectionKind::MalformedToken),
        ("/?access_token=a%20b", RejectionKind::MalformedToken),
        ("/?access_token=%61%C3", RejectionKind::MalformedToken),
        ("/?access_token=abc;", RejectionKind::MalformedToken),
        ("/?access_token=abc&access_token=abc", RejectionKind::InvalidRequest),
        ("/?access_token=abc&access%5Ftoken", RejectionKind::InvalidRequest),
        ("/?access_token=&access_token=", RejectionKind::InvalidRequest),
    ] {
        assert_eq!(rejection_kind(&layer, to(Method::GET, uri)).await, kind, "{uri}");
    }
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        assert_eq!(
            rejection_kind(&layer, to(method.clone(), "/?access_token=abc")).await,
            RejectionKind::Missing,
            "{method}"
        );
    }
}

/// Returns other query parameters, with any characters that a target can hold.
fn other_parameters() -> impl Strategy<Value = Vec<String>> {
    let parameter =
        "[a-zA-Z0-9=;:@/?!$'()*+,._~%-]{0,12}".prop_filter("a name other than access_token", |parameter: &String| {
            let name = parameter.split('=').next().unwrap_or_default();
            *name.as_bytes() != *b"access_token"
        });
    prop::collection::vec(parameter, 0..6)
}

proptest! {
    #[test]
    fn removing_the_token_keeps_the_rest_of_the_target_unchanged(
        others in other_parameters(),
        at in any::<prop::sample::Index>(),
        name in prop::sample::select(vec!["access_token", "access%5Ftoken", "%61ccess_toke%6E"]),
        base in prop::sample::select(vec![
            "/",
            "/a%2Fb/%c3%a9",
            "http://api.example:8080/x",
            "https://u@h/access_token=1",
        ]),
        waits in any::<bool>(),
    ) {
        let mut pairs = others.clone();
        pairs.insert(at.index(others.len() + 1), format!("{name}={TOKEN}"));
        let request = Request::get(format!("{base}?{}", pairs.join("&"))).body(Body::default()).unwrap();
        let expected = if others.is_empty() { base.to_owned() } else { format!("{base}?{}", others.join("&")) };
        let received_request = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
            if waits {
                received(&pending_gate().with_discouraged_query_token("access_token").unwrap().with_credentials_removed(), request).await
            } else {
                let layer = AuthLayer::new(memory()).with_discouraged_query_token("access_token").unwrap();
                received(&layer.with_credentials_removed(), request).await
            }
        });
        prop_assert_eq!(received_request.location, Some(TokenLocation::Query));
        prop_assert_eq!(received_request.uri.to_string(), expected);
    }

    /// Checks that names are compared after decoding.
    #[test]
    fn every_percent_encoding_of_the_name_matches(
        escaped in prop::collection::vec(any::<bool>(), 12),
        upper in any::<bool>(),
    ) {
        let name: String = "access_token"
            .bytes()
            .zip(escaped)
            .map(|(byte, escaped)| match (escaped, upper) {
                (false, _) => char::from(byte).to_string(),
                (true, true) => format!("%{byte:02X}"),
                (true, false) => format!("%{byte:02x}"),
            })
            .collect();
        let uri: Uri = format!("/?{name}=abc").parse().unwrap();
        let extracted = query(&Method::GET, &uri, "access_token", TokenSyntax::default());
        prop_assert!(matches!(extracted, Extracted::Token(token) if token.expose() == b"abc"));
        // The name is decoded once: an escape that decodes to an escape is not decoded again.
        let uri: Uri = format!("/?{}=abc", name.replace('%', "%25")).parse().unwrap();
        let extracted = query(&Method::GET, &uri, "access_token", TokenSyntax::default());
        prop_assert_eq!(matches!(extracted, Extracted::Nothing), name.contains('%'));
    }
}

#[tokio::test]
async fn a_target_of_maximum_length_is_read_completely() {
    // As many names as fit. Each one has to be decoded.
    let filler = "%61&".repeat(16_000);
    let layer =
        AuthLayer::new(memory()).with_discouraged_query_token("access_token").unwrap().with_credentials_removed();
    let request = Request::get(format!("/?{filler}access%5Ftoken={TOKEN}")).body(Body::default()).unwrap();
    let received_request = received(&layer, request).await;
    assert_eq!(received_request.uri.to_string(), format!("/?{}", filler.trim_end_matches('&')));
    let request = Request::get(format!("/?access_token=x&{filler}access%5Ftoken=x")).body(Body::default()).unwrap();
    assert_eq!(rejection_kind(&layer, request).await, RejectionKind::InvalidRequest);
}

#[tokio::test]
async fn query_parameters_of_other_methods_are_forwarded() {
    let layer =
        AuthLayer::new(memory()).with_discouraged_query_token("access_token").unwrap().with_credentials_removed();
    for (method, left) in [(Method::GET, "/?a=1"), (Method::POST, "/?access_token=other&a=1")] {
        let mut request = with_token(TOKEN);
        if method == Method::GET {
            request.headers_mut().remove("authorization");
        }
        let token = if method == Method::GET { TOKEN } else { "other" };
        *request.uri_mut() = format!("/?access_token={token}&a=1").parse().unwrap();
        *request.method_mut() = method;
        assert_eq!(received(&layer, request).await.uri, left);
    }
}
