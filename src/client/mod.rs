//! Clients of rate-limited APIs, as tower layers (feature `client`): a token for one origin, and retries that obey the server.
//!
//! ```
//! use bytes::Bytes;
//! use http_body_util::Full;
//! use hyper_util::client::legacy::Client;
//! use hyper_util::rt::TokioExecutor;
//! use tollgate::client::{BearerLayer, RetryPolicy};
//! use tower::ServiceBuilder;
//! use tower::retry::RetryLayer;
//!
//! let http = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
//! let api = ServiceBuilder::new()
//!     .layer(RetryLayer::new(RetryPolicy::new()))
//!     .layer(BearerLayer::new("http://127.0.0.1:3000", "a-secret-token")?)
//!     .service(http);
//! # let _ = api;
//! # Ok::<_, tollgate::client::BearerError>(())
//! ```
//!
//! [`guide::clients`](crate::guide::clients) has other HTTP clients, and shows what clients in other languages do.

mod bearer;
mod retry;
mod wait;

pub use bearer::{BearerError, BearerLayer, BearerService};
pub use retry::{JitterError, RetryPolicy};
pub use wait::retry_after;
