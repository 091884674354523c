//! Real servers: axum with a gate around the router or on its routes, hyper and tonic.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tokio::net::TcpListener;
use tollgate::gate::{BodyTokens, ProtectedResource};
use tollgate::{AuthLayer, EmptyBody};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tower::Layer;

use super::{TARGET, gate, metadata_of};
use crate::kit::{TOKEN, field, memory, run, serve};

async fn ask(address: SocketAddr, http2: bool, method: Method, target: &str) -> (StatusCode, HeaderMap, Bytes) {
    let client = Client::builder(TokioExecutor::new()).http2_only(http2).build_http::<Empty<Bytes>>();
    let request = Request::builder().method(method).uri(format!("http://{address}{target}"));
    let response = client.request(request.body(Empty::new()).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    (head.status, head.headers, body.collect().await.unwrap().to_bytes())
}

/// Checks that the server serves the metadata of a resource, and needs a token for all other paths.
async fn check(address: SocketAddr, http2: bool, resource: &str, target: &str) {
    let (status, headers, json) = ask(address, http2, Method::GET, target).await;
    assert_eq!((status, field(&headers, "content-type")), (StatusCode::OK, Some("application/json")), "{target}");
    assert_eq!(metadata_of(&json)["resource"], resource);
    let (status, head, content) = ask(address, http2, Method::HEAD, target).await;
    assert_eq!((status, content.len()), (StatusCode::OK, 0));
    assert_eq!(field(&head, "content-length"), Some(&*json.len().to_string()));
    let (status, _, _) = ask(address, http2, Method::OPTIONS, target).await;
    assert_eq!(status, 204);
    let (status, headers, _) = ask(address, http2, Method::POST, target).await;
    assert_eq!((status.as_u16(), field(&headers, "allow")), (405, Some("GET, HEAD, OPTIONS")));
}

async fn hello() -> &'static str {
    "hello"
}

#[tokio::test]
async fn axum_gate_around_the_router_serves_its_metadata() {
    let app = Router::new().route("/v1", get(hello)).layer(gate("https://api.example/v1"));
    let address = serve(app).await;
    for http2 in [false, true] {
        check(address, http2, "https://api.example/v1", &format!("{TARGET}/v1")).await;
        let (status, headers, _) = ask(address, http2, Method::GET, "/v1").await;
        assert_eq!(status, 401);
        let url = "https://api.example/.well-known/oauth-protected-resource/v1";
        assert_eq!(super::parameter(&headers, "resource_metadata").as_deref(), Some(url));
        assert_eq!(ask(address, http2, Method::GET, TARGET).await.0, 401);
    }
}

#[tokio::test]
async fn axum_route_is_reachable_inside_and_outside_of_the_gate() {
    let gate = gate("https://api.example/v1");
    let metadata = gate.resource_metadata();
    let outside = Router::new().route("/v1", get(hello)).layer(gate.clone());
    let outside = outside.route_service(metadata.path(), metadata.clone());
    let inside =
        Router::new().route("/v1", get(hello)).route_service(metadata.path(), metadata.clone()).layer(gate.clone());
    let by_route = Router::new().route("/v1", get(hello).route_layer(gate));
    let by_route = by_route.route_service(metadata.path(), metadata.clone());
    for app in [outside, inside, by_route] {
        let address = serve(app).await;
        check(address, false, "https://api.example/v1", &format!("{TARGET}/v1")).await;
        assert_eq!(ask(address, false, Method::GET, "/v1").await.0, 401);
    }
}

#[tokio::test]
async fn several_gates_have_a_well_known_path_each() {
    let orders = gate("https://api.example/orders");
    let prices = gate("https://api.example/prices");
    let routes = [orders.resource_metadata(), prices.resource_metadata()];
    let mut app = Router::new()
        .nest("/orders", Router::new().route("/", get(hello)).layer(orders))
        .nest("/prices", Router::new().route("/", get(hello)).layer(prices));
    for route in routes {
        app = app.route_service(route.path(), route.clone());
    }
    let address = serve(app).await;
    for name in ["orders", "prices"] {
        let resource = format!("https://api.example/{name}");
        check(address, false, &resource, &format!("{TARGET}/{name}")).await;
        let (status, headers, _) = ask(address, false, Method::GET, &format!("/{name}")).await;
        assert_eq!(status, 401);
        let url = format!("https://api.example{TARGET}/{name}");
        assert_eq!(super::parameter(&headers, "resource_metadata"), Some(url));
    }
}

/// Serves with hyper, over HTTP/1 and HTTP/2, on a free port.
async fn serve_hyper<S, B>(service: S) -> SocketAddr
where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn hyper_gates_with_and_without_body_tokens_serve_their_metadata() {
    let resource = "http://127.0.0.1:3000";
    let head_only = gate(resource).layer(tower::service_fn(|_| async { Ok(Response::new(Full::<Bytes>::default())) }));
    let tokens = BodyTokens::with_timeout(std::time::Duration::from_secs(60)).with_form("access_token").unwrap();
    let with_body = gate(resource)
        .with_body_tokens(tokens)
        .layer(tower::service_fn(|_| async { Ok(Response::new(Full::<Bytes>::default())) }));
    let (head_only, with_body) = (serve_hyper(head_only).await, serve_hyper(with_body).await);
    let alone = serve_hyper(gate(resource).resource_metadata()).await;
    for http2 in [false, true] {
        check(head_only, http2, resource, TARGET).await;
        check(with_body, http2, resource, TARGET).await;
        check(alone, http2, resource, TARGET).await;
        assert_eq!(ask(with_body, http2, Method::GET, "/").await.0, 401);
    }
}

#[tokio::test]
async fn tonic_gate_serves_its_metadata() {
    let resource = ProtectedResource::new("https://rpc.example").unwrap();
    let gate = AuthLayer::new(memory())
        .with_responder(EmptyBody)
        .with_protected_resource(resource)
        .with_metadata_body(|content| tonic::body::Body::new(Full::new(content)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder().layer(gate).add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    check(address, true, "https://rpc.example", TARGET).await;
    let (status, headers, _) = ask(address, true, Method::GET, "/grpc.health.v1.Health/Check").await;
    assert_eq!(status, 401);
    assert!(super::parameter(&headers, "resource_metadata").is_some());
}

/// Where a browser and a script of another origin meet the gate: curl sends what they send.
#[tokio::test]
async fn curl_reads_the_metadata_as_a_script_of_another_origin() {
    let test = "curl_reads_the_metadata_as_a_script_of_another_origin";
    let app = Router::new().route("/", get(hello)).layer(gate("https://api.example").without_preflight_bypass());
    let address = serve(app).await;
    let url = format!("http://{address}{TARGET}");
    let origin = ["-sS", "-i", "-H", "Origin: https://app.example"];
    let preflight = ["-X", "OPTIONS", "-H", "Access-Control-Request-Method: GET"];
    let headers = ["-H", "Access-Control-Request-Headers: mcp-protocol-version", &url];
    let Some(answer) = run("curl", &[&origin[..], &preflight, &headers].concat(), test).await else { return };
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert!(answer.contains("access-control-allow-origin: *\r\n"), "{answer}");
    let answer = run("curl", &[&origin[..], &[&url]].concat(), test).await.unwrap();
    let (head, json) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("access-control-allow-origin: *"), "{answer}");
    assert_eq!(serde_json::from_str::<Value>(json).unwrap()["resource"], "https://api.example");
    // A connection whose request body is not read is closed.
    let post = ["-sS", "-i", "-d", "a=b", &url, "-H", &format!("Authorization: Bearer {TOKEN}")];
    let answer = run("curl", &post, test).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("connection: close\r\n"), "{answer}");
}
