//! Opaque API tokens and a budget on each of them, for axum, hyper and tonic.
//!
//! A gate is a tower layer. It finds the caller's token, looks it up by digest, charges the caller's budget, and
//! refuses in the words of the standards:
//!
//! ```text
//! HeaderMap ──extract──▶ BearerToken ──authenticate──▶ Grant<P> ──limit──▶ Decision ──▶ inner service
//!                │                          │                          │
//!                └──────────────────────────┴─────── Rejection ◀───────┘
//!                                                        │
//!                                                     respond ──▶ Response<B>
//! ```
//!
//! Each station is pure and turns one type into the next; [`gate`] drives them and is the only part that knows tower.
//!
//! # Example
//!
//! ```
//! # #[cfg(feature = "axum")]
//! # fn app() -> axum::Router {
//! use axum::{Router, routing::get};
//! use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota, RateLimits};
//!
//! struct User { name: &'static str }
//!
//! let tokens = MemoryStore::from_iter([(TokenDigest::of("a-secret-token"), Grant::new("alice", User { name: "Alice" }))]);
//! let gate = AuthLayer::new(tokens).with_rate_limit(RateLimits::new(Quota::per_minute(180).with_burst(20)));
//! let app: Router = Router::new()
//!     .route("/", get(|who: Authenticated<User>| async move { format!("hello, {}", who.principal().name) }))
//!     .layer(gate);
//! # app
//! # }
//! ```
//!
//! hyper users write the same with `tower::ServiceBuilder` and find the grant in the request's extensions, as
//! [`CurrentGrant`]. tonic and boxed bodies choose the responder [`EmptyBody`] or [`ProblemDetails::map_body`].
//!
//! # The modules, along the road
//!
//! | | |
//! |---|---|
//! | [`extract`] | find the token, behind all open doors: bytes in, token out |
//! | [`store`] | find the grant: [`TokenStore`], [`MemoryStore`] and others |
//! | [`limit`] | charge the budget: [`RateLimits`], or a [`Limiter`] of your own; count failures: [`FailureThrottle`](limit::FailureThrottle) |
//! | [`respond`] | say no: [`Challenge`](respond::Challenge), [`ProblemDetails`], `RateLimit` headers |
//! | [`gate`] | the tower layers: [`AuthLayer`], [`RateLimitLayer`], [`RequireScopeLayer`] |
//! | [`mint`] | beside the road: new tokens, and a check of tokens that needs no store |
//! | [`observe`] | beside the road: every metric and every event, and what to be woken by |
//!
//! # Features
//!
//! No feature is on by default, and none changes what is there without it.
//!
//! | feature | adds |
//! |---|---|
//! | `body` | [`gate::BodyTokens`]: tokens in JSON, text and forms |
//! | `axum` | [`Authenticated`] as extractor, [`Rejection`] as response, `FailureThrottle::by_connect_info` |
//! | `cache` | [`store::CachedStore`]: a cache that can be told to forget |
//! | `cli` | the command line `tollgate`, with `sqlite`, `postgres` or both |
//! | `introspection` | [`store::IntrospectionStore`]: tokens that an authorization server knows (RFC 7662) |
//! | `metrics` | [counters, gauges and histograms](observe) by the crate `metrics` |
//! | `mint` | [`mint::TokenFormat`]: new tokens; [`store::CheckedStore`] |
//! | `pepper` | [`store::PepperedStore`]: HMAC-SHA-256 of digests |
//! | `postgres`, `sqlite` | [`store::sql`]: tokens in a database, and their administration |
//! | `redis` | [`limit::redis`]: budgets that several servers share, in Redis or Valkey |
//! | `serde` | `Serialize` and `Deserialize` for [`Quota`] |
//! | `test-util` | `store::contract`, checks that a store runs on itself |
//! | `tracing` | [an event for each refusal](observe) by the crate `tracing` |
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod caller;
mod grant;
mod pending;
mod quota;
mod rejection;
mod request_head;
mod sync;
mod token;

mod authenticate;
pub mod extract;
pub mod limit;
pub mod observe;
pub mod respond;
pub mod store;

pub mod gate;

#[cfg(feature = "axum")]
mod axum;

pub use caller::{Authenticated, CurrentGrant, Unauthenticated};
pub use gate::{
    AuthLayer, AuthService, RateLimitLayer, RateLimitService, RequireScopeLayer, RequireScopeService, Unlimited,
};
pub use grant::scopes::{ScopeError, Scopes};
pub use grant::{Grant, GrantId, Subject};
pub use limit::{Charge, Limit, LimitError, Limiter, RateLimits};
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

/// The README's code, compiled and run.
#[cfg(all(
    doctest,
    feature = "axum",
    feature = "body",
    feature = "cache",
    feature = "introspection",
    feature = "mint",
    feature = "redis",
    feature = "sqlite"
))]
#[doc = include_str!("../README.md")]
struct Readme;
