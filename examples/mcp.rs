//! An MCP server (streamable HTTP) with tokens, and with scopes and costs for each tool.
//!
//! `cargo run --example mcp --features axum,jwt,mint,resource-metadata,tokio` serves on 127.0.0.1:8000. It prints the
//! configuration of an MCP client with a token, and three curl lines to try.
//!
//! `-- --issuer URL --jwks URL` accepts the JWTs of an authorization server as well. MCP clients find this server by themselves.
//! `--listen ADDRESS:PORT` selects another address. `--resource URL` is the URL of this service for clients, if a proxy is in front.
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{RequestExt, Router};
use rmcp::handler::server::common::Extension;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, ServerCapabilities, ServerConfig};
use rmcp::schemars::JsonSchema;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, ServerHandler, tool, tool_handler, tool_router};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tollgate::gate::ProtectedResource;
use tollgate::limit::{Clock, MonotonicClock};
use tollgate::mint::TokenFormat;
use tollgate::respond::Respond as _;
use tollgate::store::{self, JwtAlgorithm, JwtKeys, JwtStore};
use tollgate::{
    AuthLayer, Authenticated, BoxStore, EmptyBody, Grant, Limit, MemoryStore, Quota, RateLimits, Rejection, Scopes,
};

#[path = "mcp/args.rs"]
mod args;
#[path = "mcp/sessions.rs"]
mod sessions;
#[cfg(test)]
#[path = "mcp/tests/mod.rs"]
#[allow(clippy::expect_used, clippy::unwrap_used)]
mod tests;

use args::{Args, AuthorizationServer};

/// The requests of a subject, in all of its sessions.
const REQUESTS: Quota = Quota::per_minute(300).with_burst(60);
/// The quota of a subject for calls of tools.
const TOOLS: Quota = Quota::per_minute(60).with_burst(30);
/// The scope of the first authorization. Clients get more scopes when they need them.
const FIRST_SCOPE: &str = "read";

/// The service's own data about a caller.
struct User {
    name: String,
}

/// The tools.
#[derive(Clone)]
struct Trading;

#[derive(Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
struct Stock {
    symbol: String,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
struct Order {
    symbol: String,
    quantity: u32,
}

#[tool_router]
impl Trading {
    #[tool(description = "Returns the price of a stock.")]
    fn quote(&self, Parameters(Stock { symbol }): Parameters<Stock>) -> String {
        format!("{symbol} costs 17.42")
    }

    /// The parts are those of the HTTP request of this call, with the extensions of the gate.
    #[tool(description = "Buys a stock.")]
    fn place_order(
        &self,
        Parameters(order): Parameters<Order>,
        Extension(parts): Extension<Parts>,
    ) -> Result<String, ErrorData> {
        let caller = Authenticated::<User>::from_extensions(&parts.extensions)
            .map_err(|rejection| ErrorData::internal_error(rejection.to_string(), None))?;
        Ok(format!("bought {} {} for {}", order.quantity, order.symbol, caller.principal().name))
    }
}

#[tool_handler]
impl ServerHandler for Trading {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }
}

/// The scopes that a tool requires, and its cost in units.
struct Rule {
    scopes: Scopes,
    cost: Cost,
}

/// A request extension.
#[derive(Clone, Copy)]
struct Cost(u32);

/// Returns the rules of all tools. A tool without a rule is an error at the start.
fn rules() -> Result<HashMap<String, Rule>, Box<dyn Error>> {
    let rule = |tool: rmcp::model::Tool| {
        let (scopes, cost): (&[&str], _) = match &*tool.name {
            "quote" => (&["read"], 1),
            // All scopes of the operation. Clients before MCP 2026-07-28 request those of the last challenge only.
            "place_order" => (&["read", "trade"], 10),
            other => return Err(format!("no scopes for the tool {other}").into()),
        };
        Ok((tool.name.into(), Rule { scopes: Scopes::new(scopes)?, cost: Cost(cost) }))
    };
    Trading::tool_router().list_all().into_iter().map(rule).collect()
}

/// Requires the scopes of the tool that a request calls, and adds the cost for the limit behind.
///
/// The tool itself cannot reject with status 403, because the response of a session has already begun with status 200.
async fn check_tool(
    State(rules): State<Arc<HashMap<String, Rule>>>,
    caller: Authenticated<User>,
    request: Request,
    next: Next,
) -> Result<Response, Response> {
    let (mut parts, body) = request.into_parts();
    let body =
        Request::from_parts(parts.clone(), body).extract::<Bytes, _>().await.map_err(IntoResponse::into_response)?;
    // The parser of the MCP service, so that both see the same tool. It accepts no batches.
    if let Ok(ClientJsonRpcMessage::Request(message)) = serde_json::from_slice(&body)
        && let ClientRequest::CallToolRequest(call) = message.request
        && let Some(rule) = rules.get(&*call.params.name)
    {
        caller.require_scopes(&rule.scopes).map_err(IntoResponse::into_response)?;
        parts.extensions.insert(rule.cost);
    }
    Ok(next.run(Request::from_parts(parts, Body::from(body))).await)
}

/// Returns the limits of requests and of tools. Both belong to the subject, so that more sessions give no more units.
fn limits(clock: impl Clock + Clone) -> Result<(RateLimits, RateLimits), Box<dyn Error>> {
    let cost = |head: &tollgate::RequestHead<'_>| head.extensions.get().map_or(0, |&Cost(units)| units);
    let tools = RateLimits::new(Limit::new("tools", TOOLS)?.with_cost(cost));
    Ok((RateLimits::new(Limit::new("requests", REQUESTS)?).with_clock(clock.clone()), tools.with_clock(clock)))
}

/// Returns the store of opaque tokens, and of the JWTs that the authorization server has issued for this resource.
fn store(
    opaque: MemoryStore<User>,
    url: &str,
    server: Option<&AuthorizationServer>,
) -> Result<store::ByPrefix<BoxStore<User>>, Box<dyn Error>> {
    let mut stores = vec![("tg_", BoxStore::new(opaque))];
    if let Some(server) = server {
        let algorithms = [JwtAlgorithm::Rs256, JwtAlgorithm::Es256, JwtAlgorithm::EdDsa];
        let jwts = JwtStore::builder(&server.issuer, url, algorithms, JwtKeys::url(&server.jwks))
            // An opaque token and a user of the authorization server never have the same subject.
            .with_subject_prefix("oauth/")
            .with_principal(|claims| claims.subject().map(|name| User { name: name.into() }).ok_or("no subject"))
            .build()?;
        stores.push(("ey", BoxStore::new(jwts)));
    }
    Ok(store::by_prefix(stores)?)
}

/// Responds with a JSON-RPC error, because MCP clients show its message.
fn respond(rejection: &Rejection) -> Response {
    let mut response: Response = EmptyBody.respond(rejection);
    if rejection.allows_content() {
        let error = json!({ "code": -32000, "message": rejection.detail() });
        *response.body_mut() = json!({ "jsonrpc": "2.0", "id": null, "error": error }).to_string().into();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}

fn app(
    opaque: MemoryStore<User>,
    url: &str,
    server: Option<&AuthorizationServer>,
    clock: impl Clock + Clone,
) -> Result<Router, Box<dyn Error>> {
    let mut resource = ProtectedResource::new(url)?.with_scopes(&Scopes::new(["read", "trade"])?);
    if let Some(server) = server {
        resource = resource.with_authorization_server(&server.issuer)?;
    }
    let (requests, tools) = limits(clock)?;
    let gate = AuthLayer::with_timeout(store(opaque, url, server)?, Duration::from_secs(3))
        .with_rate_limit(requests)
        .with_response_fn(respond)
        .with_challenge_scope([FIRST_SCOPE])?
        .with_protected_resource(resource);

    // Against DNS rebinding: a website cannot reach this server by a name of its own. Requests of all websites are rejected.
    let uri: Uri = url.parse()?;
    let hosts = ["127.0.0.1", "::1", "localhost"].into_iter().chain(uri.host());
    let config = StreamableHttpServerConfig::default().with_allowed_hosts(hosts).enforce_origin_validation();
    let service = StreamableHttpService::new(|| Ok(Trading), Arc::new(LocalSessionManager::default()), config);
    Ok(Router::new()
        .route_service(uri.path(), service)
        .layer(gate.route_rate_limit(tools))
        .layer(from_fn_with_state(Arc::new(rules()?), check_tool))
        .layer(DefaultBodyLimit::max(64 * 1_024))
        .layer(from_fn_with_state(Arc::new(sessions::Key::random()?), sessions::bind))
        .layer(gate))
}

/// Returns a command that calls a tool.
fn curl(url: &str, token: &str, tool: &str, arguments: &str) -> String {
    let meta =
        r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;
    format!(
        "curl -i -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' \\
  -H 'Accept: application/json, text/event-stream' \\
  -H 'MCP-Protocol-Version: 2026-07-28' -H 'Mcp-Method: tools/call' -H 'Mcp-Name: {tool}' \\
  -d '{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{{\"name\":\"{tool}\",\"arguments\":{arguments},\"_meta\":{meta}}}}}' \\
  {url}"
    )
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { listen, resource, authorization_server } =
        Args::parse(std::env::args().skip(1)).unwrap_or_else(|error| {
            eprintln!("{error}");
            std::process::exit(2)
        });
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let local = format!("http://{}/mcp", listener.local_addr()?);
    let url = resource.as_ref().unwrap_or(&local);
    let token = TokenFormat::new("tg")?.mint()?;
    let grant = Grant::new("local", User { name: "local".to_owned() }).with_scopes(["read", "trade"])?;
    let app = app(
        MemoryStore::from_iter([(token.digest(), grant)]),
        url,
        authorization_server.as_ref(),
        MonotonicClock::new(),
    )?;
    let token = token.expose();
    println!(
        "listening on {local} until ctrl-c; the token of this run is {token}

# the configuration of an MCP client
{}

# gets a price
{}

# buys, for 10 of 30 units: one of four in a row gets 429
{}

# without a token: 401, and a challenge with the URL of the metadata
curl -i {url}",
        json!({ "mcpServers": { "trading": { "type": "http", "url": url, "headers": { "Authorization": format!("Bearer {token}") } } } }),
        curl(url, token, "quote", r#"{"symbol":"ACME"}"#),
        curl(url, token, "place_order", r#"{"symbol":"ACME","quantity":3}"#),
    );
    Ok(axum::serve(listener, app).await?)
}
