//! Rejections that methods of a tonic service return, and gates of single services.

use std::net::SocketAddr;

use http::Request;
use tokio::net::TcpListener;
use tollgate::limit::{Charge, RateLimits};
use tollgate::{AuthLayer, Authenticated, EmptyBody, Quota, Rejection, RejectionKind, Scopes};
use tonic::service::{LayerExt, Routes};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Response, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::StatusExt;
use tower::{Layer, ServiceExt};

use crate::kit::{Body, Hands, TOKEN, User, field, memory};

const SCOPE: &str = "orders:write";

/// A method that needs a scope, or charges two units, by the name of the service in the request.
struct Method {
    scopes: Scopes,
    limits: RateLimits,
}

#[tonic::async_trait]
impl Health for Method {
    type WatchStream = futures_util::stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let caller = Authenticated::<User>::from_extensions(request.extensions())?;
        match &*request.get_ref().service {
            "scope" => caller.require_scopes(&self.scopes)?,
            "no scopes" => caller.require_scopes(&Scopes::default())?,
            _ => _ = self.limits.charge(&caller.current(), Charge::Units(2)).into_result()?,
        }
        Ok(Response::new(HealthCheckResponse::default()))
    }

    async fn watch(&self, _: tonic::Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Rejection::missing().into())
    }
}

fn method() -> HealthServer<Method> {
    let limits = Hands::default().limits(Quota::per_minute(8).with_burst(2));
    HealthServer::new(Method { scopes: Scopes::new([SCOPE]).unwrap(), limits })
}

async fn serve(routes: Routes) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(Server::builder().add_routes(routes).serve_with_incoming(TcpIncoming::from(listener)));
    addr
}

async fn check(addr: SocketAddr, service: &str, token: Option<&str>) -> Result<Response<HealthCheckResponse>, Status> {
    let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
    let mut request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    HealthClient::new(channel).check(request).await
}

/// Returns the metadata without fields that the server, HTTP or the gate's limit adds.
fn metadata(status: &Status) -> http::HeaderMap {
    let mut headers = status.metadata().clone().into_headers();
    headers.remove("date");
    headers
}

#[tokio::test]
async fn missing_scope_in_a_method_equals_that_of_the_layer() {
    let gate = AuthLayer::new(memory()).with_responder(EmptyBody);
    let in_method = serve(Routes::new(gate.named_layer(method()))).await;
    let scope = gate.require_scopes([SCOPE]).unwrap();
    let in_layer = serve(Routes::new(gate.named_layer(scope.named_layer(method())))).await;

    let by_method = check(in_method, "scope", Some(TOKEN)).await.unwrap_err();
    let by_layer = check(in_layer, "scope", Some(TOKEN)).await.unwrap_err();
    assert_eq!(by_method.code(), Code::PermissionDenied);
    assert_eq!(by_method.message(), "The token does not have the required scope. Required: orders:write");
    assert_eq!((by_method.code(), by_method.message()), (by_layer.code(), by_layer.message()));
    assert_eq!((by_method.details(), metadata(&by_method)), (by_layer.details(), metadata(&by_layer)));

    let empty = check(in_method, "no scopes", Some(TOKEN)).await.unwrap_err();
    assert_eq!(empty.code(), Code::Internal);
    assert!(empty.message().contains("its list of scopes is empty"), "{}", empty.message());
}

#[tokio::test]
async fn charge_of_a_method_says_when_to_retry() {
    let limits = Hands::default().limits(Quota::per_minute(60));
    let gate = AuthLayer::new(memory()).with_rate_limit(limits).with_responder(EmptyBody);
    let addr = serve(Routes::new(gate.named_layer(method()))).await;
    check(addr, "charge", Some(TOKEN)).await.unwrap();
    let status = check(addr, "charge", Some(TOKEN)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "The rate limit is exhausted. Retry after 15 seconds.");
    let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert_eq!(wait, std::time::Duration::from_secs(15));
    let headers = metadata(&status);
    assert_eq!(field(&headers, "grpc-retry-pushback-ms"), Some("15000"));
    assert_eq!(field(&headers, "retry-after"), Some("15"));
    assert_eq!(field(&headers, "cache-control"), Some("no-store"));
    // The gate has added its own charges only.
    assert_eq!(field(&headers, "ratelimit"), Some(r#""default";r=58;t=1"#));
}

#[tokio::test]
async fn layer_of_one_service_leaves_other_paths_alone() {
    let gate = AuthLayer::new(memory()).with_responder(EmptyBody);
    let addr = serve(Routes::new(gate.named_layer(method()))).await;
    assert_eq!(check(addr, "charge", None).await.unwrap_err().code(), Code::Unauthenticated);
    let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
    let mut other =
        Request::post(format!("http://{addr}/other.Service/Call")).body(tonic::body::Body::empty()).unwrap();
    other.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let response = channel.oneshot(other).await.unwrap();
    assert_eq!(field(response.headers(), "grpc-status"), Some("12"), "unimplemented");
}

#[tokio::test]
async fn handler_without_a_gate_returns_the_cause() {
    let addr = serve(Routes::new(method())).await;
    let status = check(addr, "scope", Some(TOKEN)).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains("no gate has processed the request"), "{}", status.message());
}

#[tokio::test]
async fn grpc_web_client_gets_the_status_of_a_method() {
    let gate = AuthLayer::new(memory()).with_responder(EmptyBody);
    let service = gate.layer(tonic_web::GrpcWebLayer::new().layer(method()));
    // An empty message, and one with the name "scope".
    for (token, message, status) in [("unknown", &b"\0\0\0\0\0"[..], "16"), (TOKEN, b"\0\0\0\0\x07\x0a\x05scope", "7")]
    {
        let request = Request::post("/grpc.health.v1.Health/Check")
            .header("content-type", "application/grpc-web+proto")
            .header("authorization", format!("Bearer {token}"))
            .body(Body::from(message))
            .unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(field(response.headers(), "content-type"), Some("application/grpc-web+proto"));
        assert_eq!(field(response.headers(), "grpc-status"), Some(status));
    }
}

#[test]
fn status_has_the_rejection_as_its_source() {
    use std::error::Error as _;

    let status = Status::from(Rejection::missing());
    let rejection = status.source().and_then(|source| source.downcast_ref::<Rejection>());
    assert_eq!(rejection.map(Rejection::kind), Some(RejectionKind::Missing));
}
