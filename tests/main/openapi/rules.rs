//! The rules of `GateDocs::apply`: what an operation gets, what it keeps, and the errors.

use http::Method;
use serde_json::{Value, json};
use tollgate::limit::{AnonymousLimits, ClientIp};
use tollgate::openapi::{GateDocs, GateDocsError};
use tollgate::{AuthLayer, EmptyBody, Grant, MemoryStore, ProblemDetails, Quota, RateLimits, RejectionKind};
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

#[test]
fn what_does_not_fit_is_an_error() {
    let gate = AuthLayer::new(memory());
    let trade = gate.require_scopes(["trade"]).unwrap();
    for name in ["delete_all", "GET /other", "get /orders"] {
        let docs = gate.openapi().with_rejection([name], RejectionKind::InsufficientScope);
        assert_eq!(error(&docs, api()), GateDocsError::UnknownOperation(name.to_owned()));
    }
    let docs = gate.openapi().with_scopes(["cancel"], &trade);
    assert_eq!(error(&docs, api()), GateDocsError::Security("DELETE /orders".to_owned()));
    for name in ["", "two words", "café"] {
        assert_eq!(gate.openapi().with_prefix(name).unwrap_err(), GateDocsError::ComponentName(name.to_owned()));
        let scheme = SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::new("session")));
        let error = gate.openapi().with_security_scheme(name, scheme).unwrap_err();
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
    let cookie = SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::new("session")));
    let docs = sessions.openapi().with_rejection(["place"], RejectionKind::Missing);
    assert_eq!(error(&docs, api()), GateDocsError::NoSecurityScheme("POST /orders".to_owned()));
    let document = applied(&docs.with_security_scheme("session", cookie).unwrap());
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
