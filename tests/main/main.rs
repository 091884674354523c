//! The integration tests, a module a subject, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking that it failed")]
#![allow(unreachable_pub, reason = "one binary: what is `pub` is for the other subjects")]

mod axum_edge;
mod bodies;
mod challenge_properties;
mod challenges;
mod dialects;
mod doors;
mod gate;
#[cfg(feature = "introspection")]
mod introspection;
mod kit;
mod levels;
mod limits;
mod mint;
mod peppers;
mod quotas;
mod readiness;
mod secrets;
mod store_model;
mod stores;
