//! A client, a proxy, the gate and the service.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tollgate::{Grant, MemoryStore, TokenDigest};

use super::processes::{Backend, Running};
use crate::options::Options;
use crate::proxy::Proxy;

/// A timeout that no gate reaches, also on a busy machine.
pub(super) const PATIENT: &str = "60s";

/// May read and trade. The subject needs an encoding.
pub(super) const ALICE: &str = "Bearer tg_alice";
/// May read.
pub(super) const EVE: &str = "Bearer tg_eve";

/// Returns the gate's service with the tokens of these tests. Buckets do not refill.
pub(super) fn app(options: &Options) -> Router {
    let alice = Grant::new("key-1", ()).with_subject("Ålice, 100%").with_scopes(["read", "trade"]).unwrap();
    let eve = Grant::new("eve@api.test", ()).with_scopes(["read"]).unwrap();
    let tokens = MemoryStore::from_iter([(TokenDigest::of("tg_alice"), alice), (TokenDigest::of("tg_eve"), eve)]);
    crate::app(options, tokens, crate::limits().with_clock(|| Duration::ZERO)).unwrap()
}

/// The gate on a runtime of its own: all of its connections end when this is dropped.
pub(super) struct Gate {
    pub(super) addr: SocketAddr,
    runtime: Option<Runtime>,
}

impl Gate {
    pub(super) fn start(app: Router) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        runtime.spawn(async move { axum::serve(TcpListener::from_std(listener).unwrap(), app).await });
        Self { addr, runtime: Some(runtime) }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Blocking is not allowed in a test, which is asynchronous.
        self.runtime.take().unwrap().shutdown_background();
    }
}

pub(super) struct Setup {
    pub(super) proxy: Running,
    pub(super) gate: Option<Gate>,
    _backend: Backend,
}

impl Setup {
    pub(super) fn start(proxy: Proxy) -> Self {
        Self::with(proxy, app(&Options::new(proxy)), None)
    }

    pub(super) fn with(proxy: Proxy, gate: Router, tls: Option<(&str, &str)>) -> Self {
        let (gate, backend) = (Gate::start(gate), Backend::start());
        let proxy = Running::start(proxy, gate.addr, backend.addr, tls, PATIENT);
        Self { proxy, gate: Some(gate), _backend: backend }
    }

    /// Starts a proxy that uses another server as its gate, with a timeout of that server.
    pub(super) fn with_gate_at(proxy: Proxy, gate: SocketAddr, timeout: &str) -> Self {
        let backend = Backend::start();
        Self { proxy: Running::start(proxy, gate, backend.addr, None, timeout), gate: None, _backend: backend }
    }

    /// Sends a request to the proxy.
    pub(super) async fn send(&self, request: http::request::Builder) -> Response {
        self.send_from(Ipv4Addr::LOCALHOST, request, "").await
    }

    /// Sends a request to the proxy, from an address of this machine.
    pub(super) async fn send_from(&self, from: Ipv4Addr, request: http::request::Builder, body: &str) -> Response {
        send(self.proxy.addr, from, request, body).await
    }

    /// Sends a `GET` with this target, and these values of `Authorization` and of another field.
    pub(super) async fn get(&self, target: &str, authorization: &str, field: (&str, &str)) -> Response {
        self.send(request("GET", target, authorization).header(field.0, field.1)).await
    }
}

/// Returns a request with a target and a value of `Authorization`, which is left out if it is empty.
pub(super) fn request(method: &str, target: &str, authorization: &str) -> http::request::Builder {
    let request = Request::builder().method(method).uri(target);
    if authorization.is_empty() { request } else { request.header("authorization", authorization) }
}

/// A response with the whole body.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Response {
    /// Returns a field, or an empty text if it is missing. Fails if there are several lines.
    pub(super) fn field(&self, name: &str) -> &str {
        assert!(self.headers.get_all(name).iter().count() < 2, "{name}: {self:?}");
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Returns the request that the service got. Fails if it got none.
    pub(super) fn seen(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// Returns the values of all fields with a name that the service got. As in some CGI servers, `-`, `_`, `.` and others are the same.
    pub(super) fn seen_fields(&self, name: &str) -> Vec<String> {
        seen_fields(&self.seen(), name)
    }
}

pub(super) fn seen_fields(seen: &Value, name: &str) -> Vec<String> {
    let fields = seen["headers"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let canonical = |name: String| name.to_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let found = fields.filter(|field| canonical(text(&field[0])) == name);
    found.map(|field| text(&field[1])).collect()
}

/// Sends a request on a connection of its own.
pub(super) async fn send(to: SocketAddr, from: Ipv4Addr, request: http::request::Builder, body: &str) -> Response {
    let mut request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
    let mut uri = request.uri().clone().into_parts();
    uri.scheme = Some("http".parse().unwrap());
    uri.authority = Some(to.to_string().parse().unwrap());
    *request.uri_mut() = http::Uri::from_parts(uri).unwrap();
    let mut connector = HttpConnector::new();
    connector.set_local_address(Some(IpAddr::V4(from)));
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let (head, body) = client.request(request).await.unwrap().into_parts();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap();
    Response { status: head.status, headers: head.headers, body }
}
