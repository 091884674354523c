//! Guides, in the order in which most services need them.
//!
//! | guide | question |
//! |---|---|
//! | [`quick_start`] | How do I protect a service on axum, hyper or tonic? |
//! | [`grpc`] | How do I protect a tonic server, and return rejections from its methods? |
//! | [`tokens`] | How do I make tokens, and how do I store, rotate and revoke them? |
//! | [`reveal`] | How do I show customers their token again, on my account page? |
//! | [`databases`] | How do I keep tokens in SQLite or PostgreSQL, behind a cache? |
//! | [`administration`] | How do I help customers with their tokens, on the command line? |
//! | [`introspection`] | How do I accept the tokens of an authorization server? |
//! | [`jwt`] | How do I accept JWT access tokens? |
//! | [`protected_resource`] | How do OAuth clients, such as MCP clients, find out where they get a token? |
//! | [`mcp`] | How do I protect an MCP server, with scopes and costs for each tool? |
//! | [`rate_limits`] | How do I limit customers: plans, several limits, costs, refunds, dry run? |
//! | [`many_servers`] | How do several servers share one limit, and what happens when Redis is down? |
//! | [`public_routes`] | How do I limit callers by address, or callers of a session? |
//! | [`webhooks`] | How do I accept tokens in request bodies, or elsewhere? |
//! | [`websockets`] | How do I authenticate and limit WebSockets and streams? |
//! | [`guessing`] | How do I slow down clients that try tokens? |
//! | [`custom_errors`] | How do I answer with my company's error body? |
//! | [`openapi`] | How do I describe the gate in my OpenAPI document? |
//! | [`cors`] | What do browsers need? |
//! | [`clients`] | How do I call an API with a token, and which clients obey a 429? |
//! | [`reverse_proxies`] | What changes behind nginx, a load balancer or a CDN? |
//! | [`forward_auth`] | How do I put a gate in front of a service in another language? |
//! | [`testing`] | How do I test handlers and limits? |
//! | [`observability`] | What can I measure, and which alerts do I need? |
//! | [`rejections`] | What does a client receive, and when? |
//! | [`faq`] | Short answers |
//! | [`migration`] | How do I replace what I have? |

macro_rules! guides {
    ($($(#[$attribute:meta])* $name:ident $file:literal)+) => {
        $(
            $(#[$attribute])*
            // Some links point to items of features.
            #[cfg_attr(
                not(all(
                    feature = "axum",
                    feature = "body",
                    feature = "cache",
                    feature = "client",
                    feature = "introspection",
                    feature = "jwt",
                    feature = "mint",
                    feature = "pepper",
                    feature = "postgres",
                    feature = "redis",
                    feature = "resource-metadata",
                    feature = "reveal",
                    feature = "sqlite",
                    feature = "test-util",
                    feature = "tokio",
                    feature = "tonic",
                    feature = "utoipa"
                )),
                allow(rustdoc::broken_intra_doc_links)
            )]
            #[doc = include_str!($file)]
            pub mod $name {}
        )+
    };
}

guides! {
    quick_start "quick_start.md"
    grpc "grpc.md"
    tokens "tokens.md"
    // The picture in a form that documentation can show. The first definition of a link counts, and the guide has another one.
    #[cfg_attr(doc, doc = concat!("[account-page]: data:image/png;base64,", include_str!("account.b64"), "\n"))]
    reveal "reveal.md"
    databases "databases.md"
    administration "administration.md"
    introspection "introspection.md"
    jwt "jwt.md"
    protected_resource "protected_resource.md"
    mcp "mcp.md"
    rate_limits "rate_limits.md"
    many_servers "many_servers.md"
    public_routes "public_routes.md"
    webhooks "webhooks.md"
    websockets "websockets.md"
    guessing "guessing.md"
    custom_errors "custom_errors.md"
    openapi "openapi.md"
    cors "cors.md"
    clients "clients.md"
    reverse_proxies "reverse_proxies.md"
    forward_auth "forward_auth.md"
    testing "testing.md"
    observability "observability.md"
    rejections "rejections.md"
    faq "faq.md"
    migration "migration.md"
}
