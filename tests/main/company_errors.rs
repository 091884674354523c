//! A responder of the service writes every rejection: of the gate, of layers behind it, of extractors and of handlers.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tollgate::limit::RateLimits;
use tollgate::respond::Respond;
use tollgate::{
    AuthLayer, Authenticated, Charge, Grant, Limit, MemoryStore, ProblemDetails, Quota, Rejection, Scopes, TokenDigest,
};
use tower::ServiceExt;

use crate::kit::{TOKEN, field, text};

fn company_error(rejection: &Rejection) -> Response<Body> {
    let (mut head, body) = Respond::<Body>::respond(&ProblemDetails, rejection).into_parts();
    if !rejection.allows_content() {
        return Response::from_parts(head, body);
    }
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let id = rejection.request_id().map_or("none", |id| id.to_str().unwrap());
    Response::from_parts(head, Body::from(format!("{} {id}", rejection.kind().as_str())))
}

async fn export(State(limits): State<RateLimits>, caller: Authenticated<()>) -> Result<(), Rejection> {
    limits.charge(&caller.current(), Charge::Units(1_000)).into_result()?;
    Ok(())
}

async fn delete(_: Authenticated<()>) -> Result<(), Rejection> {
    Err(Rejection::insufficient_scope(Scopes::new(["admin"]).unwrap()))
}

/// A response whose other fields an inner layer has set.
async fn decorated() -> impl IntoResponse {
    let other = [("x-handler", "1"), ("content-encoding", "gzip"), ("content-length", "9999")];
    (other, Rejection::missing())
}

/// A handler that hides whether a resource exists.
async fn hidden() -> impl IntoResponse {
    (StatusCode::NOT_FOUND, Rejection::insufficient_scope(Scopes::new(["admin"]).unwrap()))
}

async fn own() -> Response<Body> {
    ProblemDetails.reject(Rejection::missing())
}

fn app() -> Router {
    let tokens = MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]);
    let limits = RateLimits::new(Quota::per_hour(100).with_burst(100));
    let gate = AuthLayer::new(tokens)
        .with_realm("trading")
        .unwrap()
        .allow_anonymous()
        .with_rate_limit(limits.clone())
        .with_request_id(|head| head.headers.get("x-request-id").cloned())
        .with_response_fn(company_error);
    let one = Limit::new("one", Quota::per_hour(1)).unwrap().with_cost(|_| 2);
    Router::new()
        .route("/private", get(|_: Authenticated<()>| async {}))
        .route("/type", get(|_: Authenticated<String>| async {}))
        .route("/export", get(export))
        .route("/delete", get(delete))
        .route("/decorated", get(decorated))
        .route("/own", get(own))
        .route("/hidden", get(hidden))
        .route("/scope", get(|| async {}).route_layer(gate.require_scopes(["admin"]).unwrap()))
        .route("/limited", get(|| async {}).route_layer(gate.route_rate_limit(RateLimits::new(one))))
        .layer(gate)
        .with_state(limits)
}

async fn ask(method: Method, path: &str, token: Option<&str>) -> Response<Body> {
    let mut request = Request::builder().method(method).uri(path).header("x-request-id", "r-17");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    app().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn every_rejection_has_the_body_realm_and_request_id_of_the_gate() {
    let challenge = |parameters: &str| Some(format!(r#"Bearer realm="trading"{parameters}"#));
    let scope = || challenge(r#", error="insufficient_scope", scope="admin""#);
    for (path, token, status, kind, expected) in [
        ("/private", Some("unknown"), 401, "unknown_token", challenge(r#", error="invalid_token""#)),
        ("/private", None, 401, "missing", challenge("")),
        ("/type", Some(TOKEN), 500, "misconfigured", None),
        ("/export", Some(TOKEN), 400, "cost_above_burst", None),
        ("/delete", Some(TOKEN), 403, "insufficient_scope", scope()),
        ("/scope", Some(TOKEN), 403, "insufficient_scope", scope()),
        ("/limited", Some(TOKEN), 400, "cost_above_burst", None),
    ] {
        let response = ask(Method::GET, path, token).await;
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(field(response.headers(), "www-authenticate"), expected.as_deref(), "{path}");
        assert_eq!(field(response.headers(), "content-type"), Some("application/json"), "{path}");
        assert_eq!(field(response.headers(), "cache-control"), Some("no-store"), "{path}");
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!((rejection.kind().as_str(), rejection.realm()), (kind, Some("trading")), "{path}");
        assert_eq!(text(response).await, format!("{kind} r-17"), "{path}");
    }
}

#[tokio::test]
async fn a_returned_rejection_keeps_the_protocol_of_the_request() {
    let head = ask(Method::HEAD, "/delete", Some(TOKEN)).await;
    assert_eq!(head.status(), 403);
    assert_eq!(text(head).await, "");

    let request = Request::get("/private").header("content-type", "application/grpc");
    let grpc = app().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(field(grpc.headers(), "grpc-status"), Some("16"));
    assert_eq!(grpc.extensions().get::<Rejection>().unwrap().realm(), Some("trading"));
}

#[tokio::test]
async fn fields_of_inner_layers_are_kept_unless_they_describe_the_replaced_body() {
    let response = ask(Method::GET, "/decorated", Some(TOKEN)).await;
    assert_eq!(field(response.headers(), "x-handler"), Some("1"));
    assert_eq!(field(response.headers(), "content-encoding"), None);
    assert_eq!(field(response.headers(), "content-length"), Some("12"));
    assert_eq!(text(response).await, "missing r-17");
}

#[tokio::test]
async fn a_response_whose_status_a_handler_has_changed_is_not_replaced() {
    let response = ask(Method::GET, "/hidden", Some(TOKEN)).await;
    assert_eq!(response.status(), 404);
    assert_eq!(field(response.headers(), "content-type"), Some("application/problem+json"));
}

/// The gate has no limit of its own, so it advertises nothing else.
#[tokio::test]
async fn a_returned_rejection_advertises_the_limit_of_the_handler() {
    let limits = RateLimits::new(Quota::per_hour(1));
    let tokens = MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]);
    let charge = |State(limits): State<RateLimits>, caller: Authenticated<()>| async move {
        limits.charge(&caller.current(), Charge::Units(1)).into_result().map(drop)
    };
    let app = Router::new().route("/", get(charge)).layer(AuthLayer::new(tokens)).with_state(limits);
    let ask = || {
        let request = Request::get("/").header("authorization", format!("Bearer {TOKEN}"));
        app.clone().oneshot(request.body(Body::empty()).unwrap())
    };
    assert_eq!(ask().await.unwrap().status(), 200);
    let over = ask().await.unwrap();
    assert_eq!(over.status(), 429);
    assert_eq!(field(over.headers(), "ratelimit-policy"), Some(r#""default";q=1;w=3600"#));
}

#[tokio::test]
async fn a_response_that_a_handler_wrote_itself_is_not_replaced() {
    let response = ask(Method::GET, "/own", Some(TOKEN)).await;
    assert_eq!(field(response.headers(), "content-type"), Some("application/problem+json"));
}

/// The innermost gate writes the rejection, once.
#[tokio::test]
async fn an_outer_gate_does_not_replace_the_rejection_of_an_inner_one() {
    let tokens = || MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]);
    let inner = AuthLayer::new(tokens()).with_realm("inner").unwrap();
    let outer = AuthLayer::new(tokens()).with_response_fn(company_error);
    let app: Router = Router::new().route("/delete", get(delete)).layer(inner).layer(outer);
    let request = Request::get("/delete").header("authorization", format!("Bearer {TOKEN}"));
    let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let challenge = field(response.headers(), "www-authenticate").unwrap();
    assert!(challenge.starts_with(r#"Bearer realm="inner""#), "{challenge}");
    assert_eq!(field(response.headers(), "content-type"), Some("application/problem+json"));
}
