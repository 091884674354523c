//! An axum service with an OpenAPI document that describes its gate, and a page to try it.
//!
//! `cargo run --example openapi --features axum,mint,utoipa` serves on 127.0.0.1:3000 and prints two tokens and the addresses
//! of the document and of Swagger UI. `-- ADDRESS:PORT` selects another address.
#![allow(clippy::print_stdout)]

use std::error::Error;

use axum::http::HeaderName;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tollgate::mint::TokenFormat;
use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota, RateLimits, TokenDigest};
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

const QUOTA: Quota = Quota::per_minute(180).with_burst(20);

#[derive(OpenApi)]
#[openapi(info(title = "Paper trading", version = "1.0.0", description = "Places orders that cost nothing."))]
struct Api;

#[derive(Serialize, ToSchema)]
struct Balance {
    account: String,
    cents: u64,
}

#[derive(Deserialize, Serialize, ToSchema)]
struct Order {
    symbol: String,
    quantity: u32,
}

/// Returns the balance of the caller's account.
#[utoipa::path(get, path = "/balance", responses((status = 200, description = "The balance", body = Balance)))]
async fn balance(caller: Authenticated<()>) -> Json<Balance> {
    Json(Balance { account: caller.grant().subject().to_string(), cents: 10_000 })
}

/// Places an order.
#[utoipa::path(post, path = "/orders", responses((status = 200, description = "The placed order", body = Order)))]
async fn place_order(_: Authenticated<()>, Json(order): Json<Order>) -> Json<Order> {
    Json(order)
}

/// Returns whether the service runs. It needs no token.
#[utoipa::path(get, path = "/health", responses((status = 200, description = "It runs", body = str)))]
async fn health() -> &'static str {
    "ok"
}

/// The digests of a token that may trade, and of one that may not.
struct Tokens {
    trader: TokenDigest,
    reader: TokenDigest,
}

fn app(tokens: &Tokens, limits: RateLimits) -> Result<Router, Box<dyn Error>> {
    let tokens = MemoryStore::from_iter([
        (tokens.trader, Grant::new("alice", ()).with_scopes(["trade"])?),
        (tokens.reader, Grant::new("bob", ())),
    ]);
    let gate =
        AuthLayer::new(tokens).with_api_key_header(HeaderName::from_static("x-api-key"))?.with_rate_limit(limits);
    let trade = gate.require_scopes(["trade"])?;

    let orders = OpenApiRouter::new().routes(routes!(place_order)).route_layer(trade.clone());
    let mut behind_gate = OpenApiRouter::new().routes(routes!(balance)).merge(orders);
    // The document gets the settings of the gate, and the scopes of the layer that requires them.
    gate.openapi().with_scopes(["place_order"], &trade).apply(behind_gate.get_openapi_mut())?;

    let (router, document) = OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(health))
        .merge(behind_gate.route_layer(gate))
        .split_for_parts();
    Ok(router.merge(SwaggerUi::new("/docs").url("/openapi.json", document)))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listen = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(&listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let format = TokenFormat::new("tg")?;
    let (trader, reader) = (format.mint()?, format.mint()?);
    println!(
        "listening on http://{at}/ until ctrl-c

the document:        http://{at}/openapi.json
a page to try it:    http://{at}/docs/
a token with trade:  {}
a token without:     {}",
        trader.expose(),
        reader.expose(),
        at = listener.local_addr()?,
    );
    let app = app(&Tokens { trader: trader.digest(), reader: reader.digest() }, RateLimits::new(QUOTA))?;
    Ok(axum::serve(listener, app).with_graceful_shutdown(async { _ = tokio::signal::ctrl_c().await }).await?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
#[path = "openapi/tests/mod.rs"]
mod tests;
