//! API-token authentication and per-customer rate limits for axum, hyper and tonic, with standards-compliant error responses.
//!
#![cfg_attr(feature = "axum", doc = "```")]
#![cfg_attr(not(feature = "axum"), doc = "```ignore")]
//! use axum::{Router, routing::get};
//! use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota, RateLimits, TokenDigest};
//!
//! struct User { name: &'static str }
//!
//! let alice = Grant::new("alice", User { name: "Alice" });
//! let tokens = MemoryStore::from_iter([(TokenDigest::of("a-secret-token"), alice)]);
//! let gate = AuthLayer::new(tokens).with_rate_limit(RateLimits::new(Quota::per_minute(180).with_burst(20)));
//! let app: Router = Router::new()
//!     .route("/", get(|caller: Authenticated<User>| async move { format!("hello, {}", caller.principal().name) }))
//!     .layer(gate);
//! ```
//!
//! The layer is called the *gate*: it checks the token, charges the limit, and rejects other requests.
//!
//! A handler that takes [`Authenticated`] runs only for callers with a valid token. Services on hyper call
//! [`Authenticated::from_extensions`]. [`guide::quick_start`] shows both, and tonic.
//!
//! # Guides
//!
//! | guide | question |
//! |---|---|
//! | [`quick_start`](guide::quick_start) | How do I protect a service on axum, hyper or tonic? |
//! | [`grpc`](guide::grpc) | How do I protect a tonic server, and call it with a token? |
//! | [`tokens`](guide::tokens), [`reveal`](guide::reveal) | How do I make, store, rotate and revoke tokens, and show one again? |
//! | [`databases`](guide::databases), [`introspection`](guide::introspection), [`jwt`](guide::jwt) | How do I keep tokens in SQLite, PostgreSQL or an authorization server, behind a cache? |
//! | [`protected_resource`](guide::protected_resource), [`mcp`](guide::mcp) | How do OAuth clients find out where they get a token, and how do I protect an MCP server? |
//! | [`administration`](guide::administration) | How do I help customers with their tokens, on the command line? |
//! | [`rate_limits`](guide::rate_limits), [`many_servers`](guide::many_servers) | How do I limit customers, on one server or on several? |
//! | [`public_routes`](guide::public_routes) | How do I limit clients without a token by their address? |
//! | [`webhooks`](guide::webhooks), [`websockets`](guide::websockets) | How do I accept tokens in bodies, and on sockets? |
//! | [`guessing`](guide::guessing), [`reverse_proxies`](guide::reverse_proxies), [`cors`](guide::cors) | How do I slow down guessing, run behind a proxy, and serve browsers? |
//! | [`clients`](guide::clients) | How do I call an API with a token, and which clients obey a 429? |
//! | [`forward_auth`](guide::forward_auth) | How do I put a gate in front of a service in another language? |
//! | [`rejections`](guide::rejections), [`custom_errors`](guide::custom_errors) | What does a client get, and how do I change the body? |
//! | [`openapi`](guide::openapi) | How do I describe the gate in my OpenAPI document? |
//! | [`testing`](guide::testing), [`observability`](guide::observability) | How do I test and watch my service? |
//! | [`faq`](guide::faq), [`migration`](guide::migration) | Short answers; how do I replace what I have? |
//!
//! # Modules
//!
//! A gate runs a pipeline of four steps. Each step takes the result of the step before. Only [`gate`] and `client` depend on tower.
//!
//! ```text
//! HeaderMap ──extract──▶ BearerToken ──authenticate──▶ Grant<P> ──limit──▶ Decision ──▶ inner service
//!                │                          │                          │
//!                └──────────────────────────┴─────── Rejection ◀───────┘
//!                                                        │
//!                                                     respond ──▶ Response<B>
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`gate`] | the tower layers [`AuthLayer`], [`RateLimitLayer`], [`RequireScopeLayer`] |
//! | [`extract`] | reads a token from a request |
//! | [`store`] | looks up the grant: [`TokenStore`], [`MemoryStore`] and others |
//! | [`limit`] | charges the rate limit: [`RateLimits`], [`Limiter`]; counts failures: [`FailureThrottle`](limit::FailureThrottle) |
//! | [`respond`] | writes rejections: [`ProblemDetails`], [`Challenge`](respond::Challenge), [`RateLimitHeaders`] |
//! | `client` | sends requests with a token, and retries rejected ones (feature `client`) |
//! | `mint` | makes new tokens, and checks their form without a store (feature `mint`) |
//! | `openapi` | describes gates in OpenAPI documents (feature `utoipa`) |
//! | [`observe`] | lists every metric, every event, and alerts |
//! | [`guide`] | the guides |
//!
//! # Features
//!
//! No feature is on by default. A feature adds items. No feature changes a decision or a response.
//!
#![doc = include_str!("features.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod caller;
#[cfg(any(feature = "redis", feature = "sql"))]
#[doc(hidden)]
pub mod finding;
mod grant;
mod list;
#[cfg(any(
    feature = "client",
    feature = "introspection",
    feature = "jwt",
    feature = "postgres",
    feature = "redis",
    feature = "resource-metadata"
))]
mod loopback;
mod pending;
mod quota;
mod rejection;
mod request_head;
mod sync;
#[cfg(any(feature = "introspection", feature = "jwt", feature = "redis"))]
mod tls;
mod token;

mod authenticate;
pub mod extract;
pub mod limit;
pub mod observe;
pub mod respond;
pub mod store;

#[cfg(feature = "client")]
pub mod client;
pub mod gate;

#[cfg(feature = "aide")]
mod aide;
#[cfg(feature = "axum")]
mod axum;
#[cfg(feature = "utoipa")]
pub mod openapi;
#[cfg(feature = "tonic")]
mod tonic;

// The doctests of the guides need all of these features.
#[cfg(any(
    not(doctest),
    all(
        feature = "axum",
        feature = "body",
        feature = "cache",
        feature = "client",
        feature = "introspection",
        feature = "jwt",
        feature = "mint",
        feature = "postgres",
        feature = "redis",
        feature = "resource-metadata",
        feature = "reveal",
        feature = "sqlite",
        feature = "test-util",
        feature = "tokio",
        feature = "tonic",
        feature = "utoipa"
    )
))]
pub mod guide;

pub use caller::{Authenticated, CurrentGrant, Unauthenticated};
pub use gate::{AuthLayer, AuthService, RateLimitLayer, RateLimitService, RequireScopeLayer, RequireScopeService};
pub use grant::scopes::{ScopeError, Scopes};
pub use grant::{Grant, GrantId, Subject};
pub use limit::{Charge, Limit, LimitError, Limiter, RateLimits, Unlimited};
pub use pending::answer::{Answer, AnswerFuture, Immediate};
pub use quota::decision::{Decision, Verdict};
pub use quota::policy::{Policy, PolicyNameError};
pub use quota::refund::Refund;
pub use quota::{Quota, QuotaError};
pub use rejection::store_error::StoreError;
pub use rejection::{Protocol, Rejection, RejectionKind};
pub use request_head::RequestHead;
pub use respond::{EmptyBody, ProblemDetails, RateLimitHeaders};
pub use store::{BoxStore, MemoryStore, TokenStore};
#[cfg(feature = "mint")]
pub use token::mint;
pub use token::{BearerToken, TokenDigest, TokenDigestError, TokenLocation};

#[cfg(doctest)]
mod misuse;

/// The code of the README, compiled and run.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../README.md")]
struct README;
