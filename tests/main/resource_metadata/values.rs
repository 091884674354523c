//! The values of the metadata: what is valid, and the URLs of arbitrary resources.

use std::time::Duration;

use http::Method;
use proptest::prelude::*;
use serde_json::{Value, json};
use tollgate::gate::{ProtectedResource, ProtectedResourceError};
use tollgate::{AuthLayer, Scopes};
use tower::Layer;

use super::{gate, metadata_of, parameter, request};
use crate::kit::*;

fn new(resource: &str) -> Result<ProtectedResource, ProtectedResourceError> {
    ProtectedResource::new(resource)
}

fn document(resource: ProtectedResource) -> Value {
    metadata_of(AuthLayer::new(memory()).with_protected_resource(resource).resource_metadata().json())
}

/// RFC 9728, section 3.1. The second is its example.
#[test]
fn well_known_path_is_inserted_after_the_host() {
    for (resource, origin, target) in [
        ("https://resource.example.com", "https://resource.example.com", ""),
        ("https://resource.example.com/resource1", "https://resource.example.com", "/resource1"),
        ("https://resource.example.com/", "https://resource.example.com", ""),
        ("https://resource.example.com/a/b", "https://resource.example.com", "/a/b"),
        ("https://resource.example.com/a/", "https://resource.example.com", "/a/"),
        ("https://resource.example.com?q=1", "https://resource.example.com", "?q=1"),
        ("https://resource.example.com/?q=1", "https://resource.example.com", "?q=1"),
        ("https://resource.example.com/a?q=/", "https://resource.example.com", "/a?q=/"),
        ("https://a.example:8443/x", "https://a.example:8443", "/x"),
        ("http://127.0.0.1:3000/mcp", "http://127.0.0.1:3000", "/mcp"),
        ("http://[::1]/mcp", "http://[::1]", "/mcp"),
        ("http://localhost", "http://localhost", ""),
    ] {
        let metadata = gate(resource).resource_metadata();
        assert_eq!(metadata.url(), format!("{origin}/.well-known/oauth-protected-resource{target}"));
        let path = target.split('?').next().unwrap();
        assert_eq!(metadata.path(), format!("/.well-known/oauth-protected-resource{path}"));
        assert_eq!(metadata_of(metadata.json())["resource"], resource);
    }
}

#[test]
fn invalid_resources_are_rejected() {
    for resource in [
        "",
        "api.example",
        "/api",
        "https://",
        "https:///path",
        "https://?q",
        "https://:443",
        "urn:example:api",
        "ftp://api.example",
        "http://api.example",
        "http://localhost.example",
        "http://10.0.0.1",
        "http://128.0.0.1",
        "https://user@api.example",
        "https://user:password@api.example",
        "https://api.example/#fragment",
        "https://api.example#",
        "https://api.example?q#f",
        "https://api.example/a b",
        "https://api.example/\u{e9}",
        "https://\u{e9}.example",
        "https://api.example/\"",
        "https://api.example/\\",
        "https://api.example/{id}",
        "https://api.example/a\nb",
        "https://api.example/[",
        "https://api.example?[",
        " https://api.example",
        // URL parsers change these.
        "HTTPS://api.example",
        "https://API.example",
        "https://api.example:443",
        "http://localhost:80",
        "https://api.example:",
        "https://api.example:08443",
        "https://api.example:65536",
        "https://api.example/a/../b",
        "https://api.example/.",
        "https://api.example/a/%2E%2e",
        "https://api.example/%2",
        "https://api.example/%zz",
        "https://api.example?%",
        "https://api.example?it's",
        "https://127.1",
        "https://0x7f.0.0.1",
        "https://[0:0:0:0:0:0:0:1]",
        "https://[::ffff:1.2.3.4]",
        "https://[::ffff:102:304]",
        "https://[v1.x]",
        "https://[]",
    ] {
        assert_eq!(new(resource), Err(ProtectedResourceError::Resource), "{resource}");
    }
    let long = format!("https://api.example/{}", "a".repeat(100_000));
    assert_eq!(new(&long), Err(ProtectedResourceError::Resource));
}

#[test]
fn invalid_members_are_rejected() {
    let resource = || new("https://api.example").unwrap();
    for issuer in
        ["", "id.example", "http://id.example", "https://id.example?x", "https://id.example#x", "https://a@id.example"]
    {
        let error = resource().with_authorization_server(issuer).unwrap_err();
        assert_eq!(error, ProtectedResourceError::AuthorizationServer, "{issuer}");
    }
    for issuer in ["https://id.example", "https://id.example/", "https://ID.example/tenant", "http://127.0.0.1:9000"] {
        assert!(resource().with_authorization_server(issuer).is_ok(), "{issuer}");
    }
    for url in
        ["", "/docs", "docs.example", "mailto:a@b.example", "https://a b", "https://a\u{e9}", "javascript:alert(1)"]
    {
        assert_eq!(resource().with_documentation(url).unwrap_err(), ProtectedResourceError::Page, "{url}");
        assert_eq!(resource().with_policy(url).unwrap_err(), ProtectedResourceError::Page, "{url}");
        assert_eq!(resource().with_terms_of_service(url).unwrap_err(), ProtectedResourceError::Page, "{url}");
    }
    assert!(resource().with_documentation("http://docs.example/api?page=1#start").is_ok());
    for language in ["", "de-", "-de", "d_e", "abcdefghi", "d\u{e9}"] {
        let error = resource().with_name_in(language, "x").unwrap_err();
        assert_eq!(error, ProtectedResourceError::Language, "{language}");
        let error = resource().with_member(&format!("resource_tos_uri#{language}"), "x").unwrap_err();
        assert_eq!(error, ProtectedResourceError::Language, "{language}");
    }
    for algorithms in [["ES256", "none"], ["ES256", ""]] {
        let error = resource().with_signing_algorithms(algorithms).unwrap_err();
        assert_eq!(error, ProtectedResourceError::Algorithm);
    }
    for name in ["", "#de", "resource", "bearer_methods_supported", "scopes_supported", "resource_name"] {
        assert_eq!(resource().with_member(name, "x").unwrap_err(), ProtectedResourceError::Member, "{name}");
    }
    let twice = resource().with_member("x", 1).unwrap().with_member("x", 2);
    assert_eq!(twice.unwrap_err(), ProtectedResourceError::Member);
}

#[test]
fn every_member_is_written() {
    let resource = new("https://api.example")
        .unwrap()
        .with_authorization_server("https://id.example")
        .unwrap()
        .with_scopes(&Scopes::new(["read"]).unwrap())
        .with_name("API \"1\"")
        .with_name_in("de", "Schnittstelle")
        .unwrap()
        .with_documentation("https://api.example/docs")
        .unwrap()
        .with_policy("https://api.example/policy")
        .unwrap()
        .with_terms_of_service("https://api.example/terms")
        .unwrap()
        .with_signing_algorithms(["ES256"])
        .unwrap()
        .with_member("resource_tos_uri#de", "https://api.example/agb")
        .unwrap()
        .with_member("jwks_uri", "https://api.example/jwks.json")
        .unwrap();
    let expected = json!({
        "resource": "https://api.example",
        "authorization_servers": ["https://id.example"],
        "bearer_methods_supported": ["header"],
        "jwks_uri": "https://api.example/jwks.json",
        "scopes_supported": ["read"],
        "resource_name": "API \"1\"",
        "resource_name#de": "Schnittstelle",
        "resource_documentation": "https://api.example/docs",
        "resource_policy_uri": "https://api.example/policy",
        "resource_tos_uri": "https://api.example/terms",
        "resource_tos_uri#de": "https://api.example/agb",
        "resource_signing_alg_values_supported": ["ES256"]
    });
    assert_eq!(document(resource.clone()), expected);
    // Members without values are left out (RFC 9728, section 3.2).
    let without = resource.with_scopes(&Scopes::default()).with_signing_algorithms::<[&str; 0]>([]).unwrap();
    let without = document(without);
    assert!(
        without.get("scopes_supported").is_none() && without.get("resource_signing_alg_values_supported").is_none()
    );
}

#[tokio::test]
async fn maximum_age_is_sent_in_whole_seconds() {
    let resource = new("https://api.example").unwrap().with_max_age(Duration::from_millis(60_999));
    let service = AuthLayer::new(memory()).with_protected_resource(resource).layer(echo());
    let response = send(&service, request(Method::GET, super::TARGET)).await;
    assert_eq!(field(response.headers(), "cache-control"), Some("public, max-age=60"));
}

/// Valid resources, in the normal form of URL parsers.
pub fn resources() -> impl Strategy<Value = String> {
    let name = "[a-z][a-z0-9-]{0,8}[a-z](\\.[a-z]{2,5}){0,2}";
    let host = prop_oneof![
        name.prop_map(|name| format!("https://{name}")),
        (1..=255_u8).prop_map(|last| format!("http://127.0.0.{last}")),
        Just("http://[::1]".to_owned()),
    ];
    let port =
        prop::option::of(1024..=65_535_u16).prop_map(|port| port.map_or(String::new(), |port| format!(":{port}")));
    let segment = "/[a-zA-Z0-9_~!$&'()*+,;=:@-][a-zA-Z0-9._~!$&'()*+,;=:@-]{0,6}(%[2-7][0-9A-F])?";
    let path = prop_oneof![
        Just(String::new()),
        Just("/".to_owned()),
        (prop::collection::vec(segment, 1..4), prop::bool::ANY)
            .prop_map(|(segments, slash)| segments.concat() + if slash { "/" } else { "" }),
    ];
    let query = prop::option::of("[a-z0-9=&?/:@%!$()*+,;._~-]{1,12}")
        .prop_map(|query| query.map_or(String::new(), |query| format!("?{}", query.replace('%', "%25"))));
    (host, port, path, query).prop_map(|(host, port, path, query)| host + &port + &path + &query)
}

proptest! {
    #[test]
    fn the_url_of_the_challenge_is_served(resource in resources()) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let gate = gate(&resource);
            let service = gate.layer(echo());
            let rejected = send(&service, get()).await;
            let url = parameter(rejected.headers(), "resource_metadata").unwrap();
            assert_eq!(url, gate.resource_metadata().url());
            // In absolute form, as over HTTP/2.
            let response = send(&service, request(Method::GET, &url)).await;
            assert_eq!(response.status(), 200, "{url}");
            assert_eq!(json(response).await["resource"], *resource);
            // In origin form.
            let after_host = url.splitn(4, '/').nth(3).unwrap();
            let response = send(&service, request(Method::GET, &format!("/{after_host}"))).await;
            assert_eq!(response.status(), 200, "{url}");
        });
    }
}
