//! Tests of the rules of `GateDocs::apply`: the changes of operations, the components and the errors.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::Method;
use serde_json::{Value, json};
use tollgate::limit::{AnonymousLimits, ClientIp};
use tollgate::openapi::{GateDocs, GateDocsError};
use tollgate::{
    AuthLayer, EmptyBody, Grant, MemoryStore, ProblemDetails, Quota, RateLimitHeaders, RateLimits, RejectionKind,
};
use utoipa::ToSchema;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, ClientCredentials, Flow, OAuth2, Scopes, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::document::Document;
use crate::kit::location::{API_KEY, with_all_locations};
use crate::kit::*;

#[utoipa::path(get, path = "/orders", responses((status = 200), (status = 404, description = "No such order")))]
async fn list() {}

#[utoipa::path(post, path = "/orders", responses((status = 201)))]
async fn place() {}

/// Describes responses and security itself.
#[utoipa::path(
    delete,
    path = "/orders",
    responses((status = 204, headers(("ratelimit" = i32))), (status = 401, description = "Own"), (status = "4XX", description = "Own")),
    security(("bearer" = ["cancel"])),
)]
async fn cancel() {}

fn api() -> OpenApi {
    OpenApiRouter::<()>::default().routes(routes!(list, place, cancel)).into_openapi()
}

/// Returns a security scheme that no gate has.
fn session() -> SecurityScheme {
    SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::new("session")))
}

fn applied(docs: &GateDocs) -> Document {
    let mut api = api();
    docs.apply(&mut api).unwrap();
    Document::of(&api)
}

/// Returns the error of a document, which must stay unchanged.
fn error(docs: &GateDocs, mut api: OpenApi) -> GateDocsError {
    let before = api.clone();
    let error = docs.apply(&mut api).unwrap_err();
    assert!(api == before);
    error
}

fn security(document: &Document, method: &Method) -> Value {
    document.operation(method, "/orders")["security"].clone()
}

#[test]
fn each_location_is_an_alternative() {
    let gate = with_all_locations(AuthLayer::new(memory()));
    let document = applied(&gate.openapi());
    let all = json!([{ "bearer": [] }, { "api_key": [] }, { "query_token": [] }]);
    assert_eq!(security(&document, &Method::GET), all);
    // The query is read for `GET` and `HEAD` only.
    assert_eq!(security(&document, &Method::POST), json!([{ "bearer": [] }, { "api_key": [] }]));
    let schemes = &document.0["components"]["securitySchemes"];
    assert_eq!(
        (&schemes["bearer"]["scheme"], &schemes["bearer"]["bearerFormat"]),
        (&json!("bearer"), &json!("opaque"))
    );
    assert_eq!((&schemes["api_key"]["in"], &schemes["api_key"]["name"]), (&json!("header"), &json!("x-api-key")));
    assert_eq!(
        (&schemes["query_token"]["in"], &schemes["query_token"]["name"]),
        (&json!("query"), &json!("access_token"))
    );
    let gate = gate.allow_anonymous();
    assert_eq!(security(&applied(&gate.openapi()), &Method::POST), json!([{ "bearer": [] }, { "api_key": [] }, {}]));
}

#[test]
fn layers_with_alternative_scopes_make_alternatives() {
    let gate = AuthLayer::new(memory());
    let all = gate.require_scopes(["a", "b"]).unwrap();
    let any = gate.require_any_scope(["b", "c"]).unwrap();
    let both = applied(&gate.openapi().with_scopes(["place"], &all).with_scopes(["POST /orders"], &any));
    assert_eq!(security(&both, &Method::POST), json!([{ "bearer": ["a", "b"] }, { "bearer": ["a", "b", "c"] }]));
    let one = applied(&gate.openapi().with_scopes(["place"], &any));
    assert_eq!(security(&one, &Method::POST), json!([{ "bearer": ["b"] }, { "bearer": ["c"] }]));
    assert_eq!(security(&one, &Method::GET), json!([{ "bearer": [] }]));
    assert_eq!(one.rejections(&Method::POST, "/orders"), [400, 401, 403]);
}

#[test]
fn a_missing_token_is_charged_only_if_the_gate_admits_it() {
    let gate = AuthLayer::new(memory()).with_rate_limit(RateLimits::new(Quota::per_minute(60)));
    for (gate, is_charged) in [(gate.clone(), false), (gate.allow_anonymous(), true)] {
        let trade = gate.require_scopes(["trade"]).unwrap();
        let document = applied(&gate.openapi().with_scopes(["place"], &trade));
        let responses = &document.0["components"]["responses"];
        assert_eq!(!responses["Rejection401"]["headers"]["RateLimit"].is_null(), is_charged);
        assert!(!responses["Rejection403"]["headers"]["RateLimit"].is_null());
    }
}

#[test]
fn only_lookups_that_can_fail_or_wait_have_503() {
    let second = Duration::from_secs(1);
    for (docs, statuses) in [
        (AuthLayer::new(memory()).openapi(), &[400, 401, 404][..]),
        (AuthLayer::with_timeout(memory(), second).openapi(), &[400, 401, 404, 503]),
        (AuthLayer::new(Failing).openapi(), &[400, 401, 404, 503]),
        (AuthLayer::with_timeout(Failing, second).openapi(), &[400, 401, 404, 503]),
    ] {
        assert_eq!(applied(&docs).rejections(&Method::GET, "/orders"), statuses);
    }
}

#[test]
fn operations_keep_their_own_responses_headers_and_security() {
    let gate = AuthLayer::new(memory()).with_rate_limit(RateLimits::new(Quota::per_minute(60)));
    let document = applied(&gate.openapi());
    let own = document.operation(&Method::DELETE, "/orders");
    assert_eq!(own["security"], json!([{ "bearer": ["cancel"] }]));
    assert_eq!(
        (&own["responses"]["401"]["description"], &own["responses"]["4XX"]["description"]),
        (&json!("Own"), &json!("Own"))
    );
    // Its own scopes are a reason for 403.
    assert_eq!(own["responses"]["403"]["$ref"], "#/components/responses/Rejection403");
    let headers = own["responses"]["204"]["headers"].as_object().unwrap();
    assert_eq!(headers.keys().collect::<Vec<_>>(), ["RateLimit-Policy", "ratelimit"]);
    let listed = document.operation(&Method::GET, "/orders");
    assert_eq!(listed["responses"]["200"]["headers"]["RateLimit"]["example"], r#""default";r=19;t=1"#);
    assert_eq!(listed["responses"]["404"], json!({ "description": "No such order" }));
}

#[test]
fn a_second_application_changes_nothing() {
    let gate = AuthLayer::new(memory()).with_rate_limit(RateLimits::new(Quota::per_minute(60)));
    let trade = gate.require_scopes(["trade"]).unwrap();
    let docs = gate.openapi().with_scopes(["place"], &trade);
    let mut api = api();
    docs.apply(&mut api).unwrap();
    let once = api.clone();
    docs.apply(&mut api).unwrap();
    assert!(api == once);
}

#[test]
fn two_gates_need_prefixes_if_their_components_differ() {
    let public = AuthLayer::new(memory()).with_api_key_header(API_KEY).unwrap();
    let admin = AuthLayer::new(memory()).with_realm("admin").unwrap();
    let mut api = api();
    public.openapi().apply(&mut api).unwrap();
    assert_eq!(error(&admin.openapi(), api.clone()), GateDocsError::Component("Rejection400".to_owned()));
    let mut own = OpenApiRouter::<()>::default().routes(routes!(list)).into_openapi();
    admin.openapi().with_prefix("admin.").unwrap().apply(&mut own).unwrap();
    let document = Document::of(&own);
    assert_eq!(security(&document, &Method::GET), json!([{ "admin.bearer": [] }]));
    let reference = &document.operation(&Method::GET, "/orders")["responses"]["401"];
    assert_eq!(reference["$ref"], "#/components/responses/admin.Rejection401");
    let challenge = document.resolved(reference)["headers"]["WWW-Authenticate"].to_string();
    assert!(challenge.contains(r#"realm=\"admin\""#), "{challenge}");
}

/// Documents of one gate have other components if their rules differ: `apply` writes only the reasons that they use.
#[test]
fn one_document_of_merged_routers_has_the_reasons_of_all_rules() {
    let gate = AuthLayer::new(memory()).require_https(|_| true);
    let trade = gate.require_scopes(["trade"]).unwrap();
    let reads = || OpenApiRouter::<()>::default().routes(routes!(list));
    let orders = || OpenApiRouter::<()>::default().routes(routes!(place));
    let reasons = |api: &OpenApi, name: &str| {
        let response = &Document::of(api).0["components"]["responses"][name];
        let examples = response["content"]["application/problem+json"]["examples"].as_object();
        examples.map(|examples| examples.keys().cloned().collect::<Vec<_>>()).unwrap_or_default()
    };
    let mut first = reads().into_openapi();
    gate.openapi().apply(&mut first).unwrap();
    let mut second = orders().into_openapi();
    gate.openapi().with_prefix("orders.").unwrap().with_scopes(["place"], &trade).apply(&mut second).unwrap();
    first.merge(second);
    assert_eq!(reasons(&first, "Rejection403"), ["https_required"]);
    assert_eq!(reasons(&first, "orders.Rejection403"), ["https_required", "insufficient_scope"]);

    let mut merged = reads().merge(orders()).into_openapi();
    gate.openapi().with_scopes(["place"], &trade).apply(&mut merged).unwrap();
    assert_eq!(reasons(&merged, "Rejection403"), ["https_required", "insufficient_scope"]);
}

#[test]
fn own_schemes_and_schemas_keep_their_names_with_a_prefix() {
    let gate = AuthLayer::new(memory()).with_response_fn(|_| http::Response::new(Body::default()));
    let docs = gate.openapi_with_schema::<CompanyError>("application/json").with_prefix("admin.").unwrap();
    let document = applied(&docs.with_security_scheme("session", session()).unwrap());
    assert_eq!(security(&document, &Method::GET), json!([{ "admin.bearer": [] }, { "session": [] }]));
    let schemas = document.0["components"]["schemas"].as_object().unwrap();
    assert_eq!(schemas.keys().collect::<Vec<_>>(), ["Cause", "CompanyError"]);
}

#[test]
fn two_security_schemes_with_one_name_are_an_error() {
    let gate = with_all_locations(AuthLayer::new(memory()));
    for name in ["bearer", "api_key", "query_token"] {
        let docs = gate.openapi().with_security_scheme(name, session()).unwrap();
        assert_eq!(error(&docs, api()), GateDocsError::Component(name.to_owned()));
        // The schemes of the gate have other names with a prefix.
        let document = applied(&docs.with_prefix("gate.").unwrap());
        let requirements = security(&document, &Method::GET);
        assert!(requirements.as_array().unwrap().contains(&json!({ name: [] })), "{requirements}");
    }
    let docs = gate.openapi().with_security_scheme("session", session()).unwrap();
    let twice = docs.with_security_scheme("session", session()).unwrap();
    assert_eq!(error(&twice, api()), GateDocsError::Component("session".to_owned()));
    let prefixed = gate.openapi().with_prefix("gate.").unwrap().with_security_scheme("gate.bearer", session()).unwrap();
    assert_eq!(error(&prefixed, api()), GateDocsError::Component("gate.bearer".to_owned()));
}

#[test]
fn security_schemes_are_added_only_if_an_operation_uses_them() {
    let schemes = |gate: &AuthLayer<_>, api: OpenApiRouter| {
        let mut api = api.into_openapi();
        gate.openapi().apply(&mut api).unwrap();
        let schemes = Document::of(&api).0["components"]["securitySchemes"].clone();
        schemes.as_object().map(|schemes| schemes.keys().cloned().collect::<Vec<_>>()).unwrap_or_default()
    };
    let gate = with_all_locations(AuthLayer::new(memory()));
    let router = OpenApiRouter::default;
    assert_eq!(schemes(&gate, router().routes(routes!(list))), ["api_key", "bearer", "query_token"]);
    assert_eq!(schemes(&gate, router().routes(routes!(place))), ["api_key", "bearer"]);
    // Its own security names one scheme.
    assert_eq!(schemes(&gate, router().routes(routes!(cancel))), ["bearer"]);
    assert!(schemes(&gate, router()).is_empty());
}

#[test]
fn operations_that_require_no_token_need_no_scheme() {
    let gate = AuthLayer::new(memory()).without_authorization_header().allow_anonymous();
    let query = gate.clone().with_discouraged_query_token("t").unwrap();
    let document = applied(&query.openapi());
    assert_eq!(security(&document, &Method::GET), json!([{ "query_token": [] }, {}]));
    assert_eq!(security(&document, &Method::POST), json!([]));
    let required = query.openapi().with_rejection(["place"], RejectionKind::Missing);
    assert_eq!(error(&required, api()), GateDocsError::NoSecurityScheme("POST /orders".to_owned()));
    // The gate reads tokens, but no scheme describes it.
    let hidden = gate.with_websocket_token("token.").unwrap();
    assert_eq!(error(&hidden.openapi(), api()), GateDocsError::NoSecurityScheme("GET /orders".to_owned()));
}

#[test]
fn documents_do_not_depend_on_the_time() {
    let seconds = AtomicU64::new(1_000_000_000);
    let clock = move || SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.fetch_add(1, Ordering::Relaxed));
    let gate = AuthLayer::new(memory()).with_rate_limit(RateLimits::new(Quota::per_minute(60)));
    let gate = gate.with_rate_limit_headers(RateLimitHeaders::XEpoch).with_wall_clock(clock);
    let mut api = api();
    gate.openapi().apply(&mut api).unwrap();
    let once = api.clone();
    gate.openapi().apply(&mut api).unwrap();
    assert!(api == once);
    let headers = &Document::of(&api).0["components"]["responses"]["Rejection429"]["headers"];
    assert_eq!(headers["X-RateLimit-Reset"]["example"], 1_767_225_601);
}

#[test]
fn descriptions_that_do_not_fit_are_errors() {
    let gate = AuthLayer::new(memory());
    let trade = gate.require_scopes(["trade"]).unwrap();
    for name in ["delete_all", "GET /other", "get /orders"] {
        let docs = gate.openapi().with_rejection([name], RejectionKind::InsufficientScope);
        assert_eq!(error(&docs, api()), GateDocsError::UnknownOperation(name.to_owned()));
    }
    let mut twice = api();
    let item = twice.paths.paths.values().next().unwrap().clone();
    twice.paths.paths.insert("/copy".to_owned(), item.clone());
    let id = item.get.or(item.post).unwrap().operation_id.unwrap();
    let docs = gate.openapi().with_rejection([&*id], RejectionKind::InsufficientScope);
    assert_eq!(error(&docs, twice), GateDocsError::AmbiguousOperation(id));
    let docs = gate.openapi().with_scopes(["cancel"], &trade);
    assert_eq!(error(&docs, api()), GateDocsError::Security("DELETE /orders".to_owned()));
    for name in ["", "two words", "café"] {
        assert_eq!(gate.openapi().with_prefix(name).unwrap_err(), GateDocsError::ComponentName(name.to_owned()));
        let error = gate.openapi().with_security_scheme(name, session()).unwrap_err();
        assert_eq!(error, GateDocsError::ComponentName(name.to_owned()));
    }
    // A token in a sub-protocol only, or in the query of an operation whose query is not read.
    let hidden = gate.clone().without_authorization_header().with_websocket_token("token.").unwrap();
    assert_eq!(error(&hidden.openapi(), api()), GateDocsError::NoSecurityScheme("GET /orders".to_owned()));
    let query = gate.without_authorization_header().with_discouraged_query_token("t").unwrap();
    assert_eq!(error(&query.openapi(), api()), GateDocsError::NoSecurityScheme("POST /orders".to_owned()));
}

#[test]
fn own_schemes_are_alternatives_after_those_of_the_gate() {
    let scopes = Scopes::from_iter([("trade", "Place orders")]);
    let flow = Flow::ClientCredentials(ClientCredentials::new("https://login.example/token", scopes));
    let gate = AuthLayer::new(memory());
    let trade = gate.require_scopes(["trade"]).unwrap();
    let docs = gate.openapi().with_bearer_format("JWT").with_scopes(["place"], &trade);
    let document = applied(&docs.with_security_scheme("oauth2", SecurityScheme::OAuth2(OAuth2::new([flow]))).unwrap());
    assert_eq!(security(&document, &Method::POST), json!([{ "bearer": ["trade"] }, { "oauth2": ["trade"] }]));
    assert_eq!(document.0["components"]["securitySchemes"]["bearer"]["bearerFormat"], "JWT");
}

#[test]
fn gates_without_tokens_describe_limits_and_own_schemes() {
    let per_address = AnonymousLimits::by_client_ip(Quota::per_minute(60), ClientIp::peer()).unwrap();
    let public = AuthLayer::anonymous().with_rate_limit(per_address);
    let document = applied(&public.openapi());
    assert_eq!(security(&document, &Method::GET), json!([]));
    assert_eq!(document.rejections(&Method::GET, "/orders"), [404, 429]);

    let sessions = AuthLayer::identified_by(|_| None::<Grant<()>>);
    let docs = sessions.openapi().with_rejection(["place"], RejectionKind::Missing);
    assert_eq!(error(&docs, api()), GateDocsError::NoSecurityScheme("POST /orders".to_owned()));
    let document = applied(&docs.with_security_scheme("session", session()).unwrap());
    assert_eq!(document.rejections(&Method::GET, "/orders"), [401, 404], "a grant may have expired");
    assert_eq!(security(&document, &Method::GET), json!([{ "session": [] }, {}]));
    assert_eq!(security(&document, &Method::POST), json!([{ "session": [] }]));
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "a schema")]
struct Cause {
    code: String,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "a schema")]
struct CompanyError {
    cause: Cause,
}

#[test]
fn the_content_is_that_of_the_responder() {
    let content = |docs: &GateDocs| {
        let document = applied(docs);
        let response = document.resolved(&document.operation(&Method::GET, "/orders")["responses"]["401"]).clone();
        (response["content"].clone(), document.0["components"]["schemas"].clone())
    };
    let gate = AuthLayer::new(memory());
    let boxed = gate.clone().with_responder(ProblemDetails.map_body(Body::from));
    assert_eq!(content(&gate.openapi()), content(&boxed.openapi()));
    let schema = json!({ "$ref": "#/components/schemas/RejectionProblem" });
    assert_eq!(content(&gate.openapi()).0["application/problem+json"]["schema"], schema);

    assert_eq!(content(&gate.clone().with_responder(EmptyBody).openapi()), (Value::Null, Value::Null));

    let custom = gate.with_response_fn(|_| http::Response::new(Body::default()));
    let (content, schemas) = content(&custom.openapi_with_schema::<CompanyError>("application/json"));
    assert_eq!(content, json!({ "application/json": { "schema": { "$ref": "#/components/schemas/CompanyError" } } }));
    assert_eq!(schemas.as_object().unwrap().keys().collect::<Vec<_>>(), ["Cause", "CompanyError"]);
}

/// The gate answers requests for its metadata before it reads tokens.
#[cfg(feature = "resource-metadata")]
#[test]
fn metadata_changes_only_the_challenge() {
    use tollgate::gate::ProtectedResource;

    let gate = AuthLayer::new(memory()).with_body_tokens(body::body_tokens());
    let without = applied(&gate.openapi());
    let url = "https://api.example/.well-known/oauth-protected-resource";
    let with = applied(&gate.with_protected_resource(ProtectedResource::new("https://api.example").unwrap()).openapi());
    assert_eq!(with.rejections(&Method::POST, "/orders"), [400, 401, 408, 413]);
    let text = with.0.to_string();
    assert_eq!(text.replace(&format!(r#", resource_metadata=\"{url}\""#), ""), without.0.to_string());
    assert!(text.contains(url));
}

/// A description makes example rejections, which are none.
#[cfg(feature = "metrics")]
#[test]
fn a_description_is_not_counted_as_rejections() {
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        _ = AuthLayer::new(MemoryStore::<()>::new()).openapi().components();
        assert!(snapshotter.snapshot().into_vec().is_empty());
    });
}
