//! Protected resource metadata (RFC 9728).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderName, Method, Request, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tollgate::gate::{BodyTokens, HeadOnly, ProtectedResource, WithMetadata};
use tollgate::limit::{Charge, Limiter};
use tollgate::{
    Answer, AuthLayer, BearerToken, CurrentGrant, Decision, Immediate, MemoryStore, Rejection, Scopes, TokenStore,
};
use tower::{Layer, ServiceExt};

use crate::challenges::{parameters, parse};
use crate::kit::*;

mod clients;
mod servers;
mod values;

type Gate<T = MemoryStore<User>> = AuthLayer<T, tollgate::Unlimited, tollgate::ProblemDetails, WithMetadata<HeadOnly>>;

fn gate(resource: &str) -> Gate {
    AuthLayer::new(memory()).with_protected_resource(ProtectedResource::new(resource).unwrap())
}

fn request(method: Method, target: &str) -> Request<Body> {
    Request::builder().method(method).uri(target).body(Body::default()).unwrap()
}

fn metadata_of(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap()
}

/// Returns the parameter of the first challenge.
fn parameter(headers: &http::HeaderMap, name: &str) -> Option<String> {
    let challenge = parse(field(headers, "www-authenticate")?);
    parameters(&challenge[0]).into_iter().find(|(own, _)| own == name).map(|(_, value)| value)
}

const TARGET: &str = "/.well-known/oauth-protected-resource";

/// The example of RFC 9728, section 3.2.
#[tokio::test]
async fn gate_serves_the_example_of_the_rfc() {
    let resource = ProtectedResource::new("https://resource.example.com")
        .unwrap()
        .with_authorization_server("https://as1.example.com")
        .unwrap()
        .with_authorization_server("https://as2.example.net")
        .unwrap()
        .with_scopes(&Scopes::new(["profile", "email", "phone"]).unwrap())
        .with_documentation("https://resource.example.com/resource_documentation.html")
        .unwrap();
    let body = BodyTokens::with_timeout(std::time::Duration::from_secs(60)).with_form("access_token").unwrap();
    let gate = AuthLayer::new(memory()).with_protected_resource(resource).with_body_tokens(body);
    let service = gate.layer(tower::service_fn(|_| async { panic!("the gate responds itself") }));
    let response: http::Response<Body> = send(&service, request(Method::GET, TARGET)).await;
    assert_eq!(response.status(), 200);
    for (name, value) in [
        ("content-type", "application/json"),
        ("cache-control", "public, max-age=3600"),
        ("access-control-allow-origin", "*"),
    ] {
        assert_eq!(field(response.headers(), name), Some(value), "{name}");
    }
    let expected = json!({
        "resource": "https://resource.example.com",
        "authorization_servers": ["https://as1.example.com", "https://as2.example.net"],
        "bearer_methods_supported": ["header", "body"],
        "scopes_supported": ["profile", "email", "phone"],
        "resource_documentation": "https://resource.example.com/resource_documentation.html"
    });
    assert_eq!(json(response).await, expected);
}

/// The example of RFC 9728, section 5.1, with our realm.
#[tokio::test]
async fn every_challenge_has_the_url_of_the_metadata() {
    let gate = gate("https://resource.example.com").with_realm("example").unwrap();
    let url = "https://resource.example.com/.well-known/oauth-protected-resource";
    assert_eq!(gate.resource_metadata().url(), url);
    let service = gate.layer(gate.require_scopes(["trade"]).unwrap().layer(echo()));
    let response = send(&service, get()).await;
    let expected = format!(r#"Bearer realm="example", resource_metadata="{url}""#);
    assert_eq!(field(response.headers(), "www-authenticate"), Some(&*expected));
    for (request, status) in [(with_token("unknown"), 401), (with_token("a,b"), 400), (with_token(TOKEN), 403)] {
        let response = send(&service, request).await;
        assert_eq!(response.status(), status);
        assert_eq!(parameter(response.headers(), "resource_metadata").as_deref(), Some(url), "{status}");
    }
    let rejected: http::Response<Body> = gate.reject(Rejection::missing());
    assert_eq!(parameter(rejected.headers(), "resource_metadata").as_deref(), Some(url));
}

#[tokio::test]
async fn each_method_has_its_response() {
    let service = gate("https://api.example").layer(echo());
    let get = send(&service, request(Method::GET, TARGET)).await;
    let head = send(&service, request(Method::HEAD, TARGET)).await;
    assert_eq!((head.status(), head.headers()), (StatusCode::OK, get.headers()));
    let content = text(get).await;
    assert_eq!(field(head.headers(), "content-length"), Some(&*content.len().to_string()));
    assert_eq!(text(head).await, "");

    let options = send(&service, request(Method::OPTIONS, TARGET)).await;
    assert_eq!(options.status(), 204);
    for (name, value) in [
        ("allow", "GET, HEAD, OPTIONS"),
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET, HEAD"),
        ("access-control-allow-headers", "*, authorization"),
        ("access-control-max-age", "3600"),
    ] {
        assert_eq!(field(options.headers(), name), Some(value), "{name}");
    }
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::TRACE] {
        let response = send(&service, request(method, TARGET)).await;
        assert_eq!(response.status(), 405);
        assert_eq!(field(response.headers(), "cache-control"), Some("no-store"));
        assert_eq!(field(response.headers(), "allow"), Some("GET, HEAD, OPTIONS"));
        assert_eq!(field(response.headers(), "access-control-allow-origin"), Some("*"));
        assert_eq!(text(response).await, "");
    }
}

#[tokio::test]
async fn other_paths_and_queries_need_a_token() {
    let service = gate("https://api.example/v1?tenant=1").layer(echo());
    let found = send(&service, request(Method::GET, &format!("{TARGET}/v1?tenant=1"))).await;
    assert_eq!(json(found).await["resource"], "https://api.example/v1?tenant=1");
    for target in [
        TARGET.to_owned(),
        format!("{TARGET}/v1"),
        format!("{TARGET}/v1?tenant=2"),
        format!("{TARGET}/v1?tenant=1&x"),
        format!("{TARGET}/v1/?tenant=1"),
        format!("{TARGET}/V1?tenant=1"),
        format!("/{TARGET}/v1?tenant=1"),
        "/v1?tenant=1".to_owned(),
        "*".to_owned(),
    ] {
        let method = if target == "*" { Method::OPTIONS } else { Method::GET };
        assert_eq!(send(&service, request(method, &target)).await.status(), 401, "{target}");
    }
}

#[tokio::test]
async fn host_and_scheme_of_the_request_do_not_matter() {
    let service = gate("https://api.example").layer(echo());
    for target in ["https://evil.example", "http://api.example:81", "http://[::1]"] {
        let mut request = request(Method::GET, &format!("{target}{TARGET}"));
        request.headers_mut().insert("host", "evil.example".parse().unwrap());
        request.headers_mut().insert("x-forwarded-host", "evil.example".parse().unwrap());
        let response = send(&service, request).await;
        assert_eq!(json(response).await["resource"], "https://api.example");
    }
}

/// A store and a limiter that count what they are asked.
#[derive(Clone, Default)]
struct Counting(Arc<AtomicUsize>);

impl TokenStore for Counting {
    type Principal = User;
    type Error = std::convert::Infallible;
    type Future = Immediate<tollgate::store::Lookup<User, Self::Error>>;

    fn lookup(&self, _: &BearerToken<'_>) -> Answer<Self::Future> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Answer::Ready(Ok(None))
    }
}

impl Limiter for Counting {
    type Future = Immediate<Decision>;

    fn charge(&self, _: &CurrentGrant, _: Charge<'_>) -> Answer<Self::Future> {
        self.charge_anonymous(Charge::Units(1))
    }

    fn charge_anonymous(&self, _: Charge<'_>) -> Answer<Self::Future> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Answer::Ready(Decision::unlimited())
    }
}

#[tokio::test]
async fn neither_store_nor_limiter_nor_handler_gets_the_request() {
    let asked = Counting::default();
    let resource = ProtectedResource::new("https://api.example").unwrap();
    let gate = AuthLayer::new(asked.clone()).allow_anonymous().with_rate_limit(asked.clone());
    let handler = asked.clone();
    let service = gate.with_protected_resource(resource).layer(tower::service_fn(move |_| {
        handler.0.fetch_add(1, Ordering::SeqCst);
        async { Ok(http::Response::new(Body::default())) }
    }));
    for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST] {
        let mut request = request(method, TARGET);
        for (name, value) in
            [("authorization", "Bearer a"), ("origin", "https://a.example"), ("access-control-request-method", "GET")]
        {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        assert_ne!(send(&service, request).await.status(), 401);
    }
    assert_eq!(asked.0.load(Ordering::SeqCst), 0);
    // The same gate asks both for another path.
    send(&service, get()).await;
    assert_eq!(asked.0.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn metadata_lists_the_methods_that_the_gate_accepts() {
    let body = || BodyTokens::with_timeout(std::time::Duration::from_secs(60));
    let methods = |json: &[u8]| metadata_of(json)["bearer_methods_supported"].clone();
    let api_key = HeaderName::from_static("x-api-key");

    let plain = gate("https://api.example");
    assert_eq!(methods(plain.resource_metadata().json()), json!(["header"]));
    let query = plain.clone().with_discouraged_query_token("access_token").unwrap();
    assert_eq!(methods(query.resource_metadata().json()), json!(["header", "query"]));
    let other_query = plain.clone().with_discouraged_query_token("token").unwrap();
    assert_eq!(methods(other_query.resource_metadata().json()), json!(["header"]));
    let no_method = plain.clone().without_authorization_header().with_api_key_header(api_key).unwrap();
    let no_method = no_method.with_websocket_token("bearer.").unwrap();
    assert_eq!(methods(no_method.resource_metadata().json()), json!([]));

    for (tokens, expected) in [
        (body().with_form("access_token").unwrap(), json!(["header", "body", "query"])),
        (body().with_form("key").unwrap(), json!(["header", "query"])),
        (body().with_json("access_token").unwrap(), json!(["header", "query"])),
        (body().with_text("access_token").unwrap(), json!(["header", "query"])),
    ] {
        assert_eq!(methods(query.clone().with_body_tokens(tokens).resource_metadata().json()), expected);
    }
}

#[tokio::test]
async fn order_of_the_builder_methods_does_not_matter() {
    let resource = || ProtectedResource::new("https://api.example/v1").unwrap();
    let tokens = || BodyTokens::with_timeout(std::time::Duration::from_secs(60)).with_form("access_token").unwrap();
    let first = AuthLayer::new(memory())
        .with_protected_resource(resource())
        .with_realm("r")
        .unwrap()
        .with_challenge_scope(["read"])
        .unwrap()
        .without_authorization_header()
        .with_body_tokens(tokens())
        .with_discouraged_query_token("access_token")
        .unwrap();
    let last = AuthLayer::new(memory())
        .with_discouraged_query_token("access_token")
        .unwrap()
        .with_body_tokens(tokens())
        .without_authorization_header()
        .with_challenge_scope(["read"])
        .unwrap()
        .with_realm("r")
        .unwrap()
        .with_protected_resource(resource());
    let (first, last) = (first.layer(body_echo()), last.layer(body_echo()));
    for target in ["/", "/.well-known/oauth-protected-resource/v1"] {
        let of = |service| {
            let request = request(Method::GET, target);
            async move {
                let response = send(service, request).await;
                (response.status(), response.headers().clone(), text(response).await)
            }
        };
        assert_eq!(of(&first).await, of(&last).await, "{target}");
    }
    let response = send(&first, request(Method::GET, "/.well-known/oauth-protected-resource/v1")).await;
    assert_eq!(json(response).await["bearer_methods_supported"], json!(["body", "query"]));
}

fn body_echo() -> impl tower::Service<
    Request<tollgate::gate::ReplayBody<Body>>,
    Response = http::Response<Body>,
    Error = std::convert::Infallible,
    Future: Send,
> + Clone {
    tower::service_fn(|_| async { Ok(http::Response::new(Body::default())) })
}

#[tokio::test]
async fn plain_requests_are_rejected_where_https_is_required() {
    let gate = gate("https://api.example").require_https(tollgate::gate::is_https);
    let service = gate.layer(echo());
    let plain = send(&service, request(Method::GET, TARGET)).await;
    assert_eq!((plain.status().as_u16(), field(plain.headers(), "www-authenticate")), (403, None));
    // Like all preflights, which carry no credentials.
    let mut preflight = request(Method::OPTIONS, TARGET);
    for (name, value) in [("origin", "https://a.example"), ("access-control-request-method", "GET")] {
        preflight.headers_mut().insert(name, value.parse().unwrap());
    }
    let admitted = send(&service, preflight).await;
    assert_eq!((admitted.status().as_u16(), field(admitted.headers(), "allow")), (200, None));
    // A route for the metadata does not check HTTPS.
    let route = ServiceExt::oneshot(gate.resource_metadata(), request(Method::GET, TARGET)).await.unwrap();
    assert_eq!(route.status(), 200);
    let mut over_tls = request(Method::GET, TARGET);
    over_tls.extensions_mut().insert(tollgate::gate::HttpsConnection);
    assert_eq!(send(&service, over_tls).await.status(), 200);
}

#[tokio::test]
async fn the_body_of_the_metadata_reports_its_length_and_its_end() {
    let metadata = gate("https://api.example").resource_metadata();
    let json = metadata.json().clone();
    let mut body = metadata.oneshot(request(Method::GET, TARGET)).await.unwrap().into_body();
    assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(json.len() as u64), false));
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), json);
    assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn challenges_have_the_scope_of_the_gate_or_of_the_route() {
    let gate = AuthLayer::new(memory()).with_challenge_scope(["read", "write"]).unwrap();
    let service = gate.layer(gate.require_scopes(["trade"]).unwrap().layer(echo()));
    for (request, status, scope) in [
        (get(), 401, Some("read write")),
        (with_token("unknown"), 401, Some("read write")),
        (with_token(TOKEN), 403, Some("trade")),
    ] {
        let response = send(&service, request).await;
        assert_eq!(response.status(), status);
        assert_eq!(parameter(response.headers(), "scope").as_deref(), scope, "{status}");
    }
    let missing = send(&service, get()).await;
    assert_eq!(parameter(missing.headers(), "error"), None, "scopes are not error information");

    let open = gate.clone().allow_anonymous();
    let service = open.layer(open.require_scopes(["trade"]).unwrap().layer(echo()));
    assert_eq!(parameter(send(&service, get()).await.headers(), "scope").as_deref(), Some("trade"));

    let step_up = Rejection::insufficient_user_authentication(["otp"], None).unwrap();
    let response: http::Response<Body> = gate.reject(step_up);
    assert_eq!(parameter(response.headers(), "scope").as_deref(), Some("read write"));

    assert!(gate.clone().with_challenge_scope(["two words"]).is_err());
    let none = gate.with_challenge_scope::<[&str; 0]>([]).unwrap();
    let response = send(&none.layer(echo()), get()).await;
    assert_eq!(field(response.headers(), "www-authenticate"), Some(r#"Bearer realm="api""#));
}
