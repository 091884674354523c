//! The integration tests, a module a subject, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking that it failed")]
#![allow(unreachable_pub, reason = "one binary: what is `pub` is for the other subjects")]

mod axum_edge;
mod bodies;
mod breaker;
#[cfg(feature = "cache")]
mod cached;
mod challenge_properties;
mod challenges;
#[cfg(all(feature = "cli", feature = "sqlite", feature = "postgres"))]
mod cli;
mod dialects;
mod doors;
mod gate;
#[cfg(feature = "introspection")]
mod introspection;
mod kit;
mod levels;
mod limits;
mod mint;
#[cfg(any(feature = "metrics", feature = "tracing"))]
mod observe;
#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod outages;
mod peppers;
mod policies;
#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod proxy;
mod quotas;
mod readiness;
mod secrets;
#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod servers;
#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod sql;
mod store_model;
mod stores;
mod throttle;
