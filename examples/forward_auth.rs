//! A gate for services in any language: nginx, Caddy, Traefik or Envoy sends it a subrequest before the service gets the request.
//!
//! `cargo run --example forward_auth --features axum,mint -- --proxy nginx` answers on 127.0.0.1:4000, and prints a token. The guide
//! `forward_auth` has the configuration of each proxy. `nginx.conf` and `Caddyfile` in `examples/forward_auth` are tested.
//!
//! `--proxy` names the proxy: `nginx`, `caddy`, `traefik` or `envoy`. A gate that guessed would let clients choose the header fields
//! that count. `--listen ADDRESS:PORT` selects another address, `--trusted NETWORKS` the networks of the proxy (default:
//! 127.0.0.1,::1). `--require-https` rejects requests that reached the proxy without HTTPS.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::net::TcpListener;
use tollgate::gate::ForwardedProto;
use tollgate::limit::{ClientIp, FailureThrottle};
use tollgate::mint::TokenFormat;
use tollgate::{
    AuthLayer, Authenticated, Decision, Grant, Limit, MemoryStore, Quota, RateLimits, RequestHead, TokenDigest,
    Unauthenticated,
};

#[path = "forward_auth/options.rs"]
mod options;
#[path = "forward_auth/proxy.rs"]
mod proxy;
#[path = "forward_auth/target.rs"]
mod target;
#[cfg(test)]
#[path = "forward_auth/tests/mod.rs"]
mod tests;

use options::Options;
use proxy::{Admitted, Front, problem};

const QUOTA: Quota = Quota::per_minute(180).with_burst(20);
/// The failed attempts of an address.
const FAILURES: Quota = Quota::per_minute(30).with_burst(20);

/// The scope and the cost of a request.
struct Route {
    /// `GET` includes `HEAD`.
    method: &'static str,
    path: &'static str,
    scope: &'static str,
    cost: u32,
}

/// The service's routes. All other requests are rejected. The most specific path counts. Literal parts of a path have letters, digits
/// and `-._~` only.
const ROUTES: [Route; 3] = [
    Route { method: "GET", path: "/v1/{*path}", scope: "read", cost: 1 },
    Route { method: "GET", path: "/v1/orders", scope: "read", cost: 1 },
    Route { method: "POST", path: "/v1/orders", scope: "trade", cost: 10 },
];

/// Returns what the original request costs.
fn cost(head: &RequestHead<'_>) -> u32 {
    let path = head.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
    let method = if *head.method == Method::HEAD { "GET" } else { head.method.as_str() };
    let route = ROUTES.iter().find(|route| Some(route.path) == path && route.method == method);
    route.map_or(1, |route| route.cost)
}

fn limits() -> RateLimits {
    RateLimits::new(Limit::from(QUOTA).with_cost(cost))
}

/// Returns the gate around the routes. Each route answers with the caller, and never with content.
fn app(options: &Options, tokens: MemoryStore<()>, limits: RateLimits) -> Result<Router, Box<dyn Error>> {
    let trusted = || options.trusted.split(',');
    let failures = FailureThrottle::by_client_ip(FAILURES, ClientIp::x_forwarded_for(trusted())?);
    let mut gate = AuthLayer::new(tokens).with_rate_limit(limits).with_failure_throttle(failures);
    if options.require_https {
        let proxies = ForwardedProto::x_forwarded_proto(trusted())?;
        gate = gate.require_https(move |head| proxies.is_https(head));
    }
    let mut routes = Router::new();
    for Route { method, path, scope, .. } in ROUTES {
        if !target::is_unambiguous(path) {
            return Err(format!("the route {path} has a character that clients may percent-encode").into());
        }
        let method = MethodFilter::try_from(method.parse::<Method>()?)?;
        routes = routes.route(path, on(method, identity).route_layer(gate.require_scopes([scope])?));
    }
    let unknown = || async { problem(StatusCode::NOT_FOUND, "This service has no such path.") };
    let routes = routes.method_not_allowed_fallback(other_method).fallback(unknown).layer(gate);
    let front = Front::new(options.proxy, trusted())?;
    // A layer of its own router: axum selects a route before the layers of that route run.
    Ok(Router::new().fallback_service(routes).layer(middleware::from_fn_with_state(front, proxy::check_original)))
}

/// The characters of a subject that are percent-encoded, so that the value of the field is unambiguous.
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'@').remove(b':');

/// Admits the original request, and names its caller.
async fn identity(caller: Authenticated<()>) -> Result<Response, StatusCode> {
    let scopes: Vec<&str> = caller.grant().scopes().iter().collect();
    let text = |text: String| HeaderValue::try_from(text).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Admitted::response();
    let headers = response.headers_mut();
    headers
        .insert("x-auth-subject", text(utf8_percent_encode(caller.grant().subject().as_str(), ENCODED).to_string())?);
    headers.insert("x-auth-scopes", text(scopes.join(" "))?);
    if let Some(remaining) = caller.decisions().map(Decision::remaining).min() {
        headers.insert("x-auth-remaining", remaining.into());
    }
    Ok(response)
}

/// Admits CORS preflights, which have no caller, so that the service can answer them. Rejects other methods without a route.
async fn other_method(request: Request) -> Response {
    match Unauthenticated::from_extensions(request.extensions()) {
        Some(Unauthenticated::Preflight) => Admitted::response(),
        _ => problem(StatusCode::METHOD_NOT_ALLOWED, "This path does not have this method.").into_response(),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse(std::env::args().skip(1))?;
    let token = TokenFormat::new("tg")?.mint()?;
    let grant = Grant::new("alice", ()).with_scopes(["read", "trade"])?;
    let app = app(&options, MemoryStore::from_iter([(TokenDigest::of(token.expose()), grant)]), limits())?;
    let listener = TcpListener::bind(options.listen).await?;
    println!(
        "answers {:?} on {}

curl -i -H 'Authorization: Bearer {}' http://127.0.0.1:8080/v1/prices",
        options.proxy,
        listener.local_addr()?,
        token.expose()
    );
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    Ok(axum::serve(listener, app).with_graceful_shutdown(async { _ = tokio::signal::ctrl_c().await }).await?)
}
