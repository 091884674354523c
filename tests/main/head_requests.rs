//! Rejections of `HEAD` over HTTP/2: the header section of `GET` and no content (RFC 9110, section 9.3.2).
//!
//! hyper does not remove content over HTTP/2. axum removes it in its routes, but not around its routers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty as EmptyContent};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tollgate::gate::BodyTokens;
use tollgate::limit::RateLimits;
use tollgate::respond::Respond;
use tollgate::{AuthLayer, Authenticated, EmptyBody, Limit, ProblemDetails, Quota, Rejection, RequestHead, Scopes};
use tower::{Layer, Service};

use crate::kit::{Body, TOKEN, User, echo, field, memory, run, send, text};

/// Serves with hyper, over HTTP/1 and HTTP/2, on a free port.
async fn serve<S, B>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    addr
}

async fn ask(addr: SocketAddr, method: &Method, token: Option<&str>) -> (StatusCode, HeaderMap, Bytes) {
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<EmptyContent<Bytes>>();
    let mut request = Request::builder().method(method).uri(format!("http://{addr}/"));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let (mut head, body) = client.request(request.body(EmptyContent::new()).unwrap()).await.unwrap().into_parts();
    head.headers.remove("date");
    let body = body.collect().await.unwrap_or_else(|error| panic!("{method}, {token:?}: {error:?}"));
    (head.status, head.headers, body.to_bytes())
}

/// Compares the rejections of `HEAD` and `GET`.
async fn check<S, B>(service: S, token: Option<&str>, status: u16)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let addr = serve(service).await;
    let (get_status, get_headers, content) = ask(addr, &Method::GET, token).await;
    let (head_status, head_headers, nothing) = ask(addr, &Method::HEAD, token).await;
    assert_eq!((get_status.as_u16(), head_status.as_u16()), (status, status), "{token:?}");
    assert_eq!(head_headers, get_headers, "{token:?}");
    assert_eq!(field(&head_headers, "content-length"), Some(&*content.len().to_string()), "{token:?}");
    assert!(!content.is_empty() && nothing.is_empty(), "{token:?}");
}

fn router() -> Router {
    Router::new().fallback(|| async { "admitted" })
}

#[tokio::test]
async fn rejections_of_head_have_no_content_around_a_router() {
    let gate = AuthLayer::new(memory());
    check(gate.layer(router()), None, 401).await;
    check(gate.layer(router()), Some("unknown"), 401).await;
    let body_tokens = BodyTokens::with_timeout(Duration::from_secs(60)).with_json("key").unwrap();
    check(gate.clone().with_body_tokens(body_tokens).layer(router()), None, 401).await;

    let never = || RateLimits::new(Limit::new("never", Quota::per_hour(1)).unwrap().with_cost(|_| 2));
    check(gate.clone().with_rate_limit(never()).layer(router()), Some(TOKEN), 400).await;
    check(gate.layer(gate.route_rate_limit(never()).layer(router())), Some(TOKEN), 400).await;
    let spent = RateLimits::new(Quota::per_hour(1)).with_clock(|| Duration::ZERO);
    assert_eq!(
        send(&gate.clone().with_rate_limit(spent.clone()).layer(echo()), crate::kit::with_token(TOKEN)).await.status(),
        200
    );
    check(gate.clone().with_rate_limit(spent).layer(router()), Some(TOKEN), 429).await;

    let admin = gate.require_scopes(["admin"]).unwrap();
    check(gate.layer(admin.layer(router())), Some(TOKEN), 403).await;
    check(admin.layer(router()), None, 500).await;
}

#[tokio::test]
async fn rejections_of_head_have_no_content_in_a_router() {
    async fn private(_: Authenticated<User>) {}
    async fn rejecting() -> axum::response::Response {
        Rejection::insufficient_scope(Scopes::new(["admin"]).unwrap()).into_response()
    }
    let gate = AuthLayer::new(memory());
    check(router().layer(gate.clone()), None, 401).await;
    check(Router::new().fallback_service(gate.layer(router())), None, 401).await;
    check(Router::new().route_service("/", gate.layer(router())), None, 401).await;
    let anonymous = gate.allow_anonymous();
    check(anonymous.layer(Router::new().fallback(private)), None, 401).await;
    check(Router::new().fallback(private), None, 500).await;
    check(Router::new().fallback(rejecting), None, 403).await;
}

#[tokio::test]
async fn responders_send_no_content_to_head() {
    let head = || Request::head("/").body(Body::default()).unwrap();
    let gate = AuthLayer::new(memory());
    let boxed = gate.clone().with_responder(ProblemDetails.map_body(Body::new)).layer(echo());
    let response = send(&boxed, head()).await;
    assert_ne!(field(response.headers(), "content-length"), Some("0"));
    assert_eq!(text(response).await, "");
    let none = gate.clone().with_responder(EmptyBody).layer(echo());
    assert_eq!(field(send(&none, head()).await.headers(), "content-length"), None);

    // A closure must call `allows_content`.
    let own = gate.clone().with_response_fn(|rejection| {
        let response: Response<Body> = EmptyBody.respond(rejection);
        if rejection.allows_content() { response.map(|_| Body::from("no")) } else { response }
    });
    assert_eq!(text(send(&own.layer(echo()), head()).await).await, "");
    assert_eq!(text(send(&own.layer(echo()), crate::kit::get()).await).await, "no");

    // A handler must call `for_request`.
    let request = head();
    let rejection = || Rejection::missing().for_request(&RequestHead::of(&request));
    assert!(!rejection().allows_content() && Rejection::missing().allows_content());
    assert_eq!(text::<Body>(gate.reject(rejection())).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_reads_a_rejection_of_head() {
    let addr = serve(AuthLayer::new(memory()).layer(router())).await;
    let url = format!("http://{addr}/");
    let arguments = ["--silent", "--show-error", "--http2-prior-knowledge", "--head", &url, "--next", "--silent", &url];
    if let Some(responses) = run("curl", &arguments, "curl_reads_a_rejection_of_head").await {
        assert!(responses.starts_with("HTTP/2 401"), "{responses}");
        assert!(responses.ends_with('}'), "the connection is not broken: {responses}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_reads_a_rejection_of_head() {
    const SCRIPT: &str = "
        const session = require('node:http2').connect('http://127.0.0.1:' + process.argv[1]);
        const ask = method => new Promise((done, fail) => {
            const request = session.request({ ':path': '/', ':method': method });
            let status, length = 0;
            request.on('response', headers => { status = headers[':status']; });
            request.on('data', data => { length += data.length; });
            request.on('end', () => done([status, length > 0]));
            request.on('error', fail);
            request.end();
        });
        (async () => {
            console.log(JSON.stringify([await ask('HEAD'), await ask('GET'), await ask('HEAD')]));
            session.close();
        })();";
    let port = serve(AuthLayer::new(memory()).layer(router())).await.port().to_string();
    if let Some(seen) = run("node", &["-e", SCRIPT, &port], "node_reads_a_rejection_of_head").await {
        assert_eq!(seen.trim(), "[[401,false],[401,true],[401,false]]");
    }
}
