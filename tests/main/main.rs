//! The integration tests in one binary, one module for each subject.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]
#![allow(unreachable_pub, reason = "in one binary, `pub` items are for other modules")]

#[cfg(feature = "aide")]
mod aide;
mod anonymous_limits;
mod api_key;
mod axum_edge;
mod body_form;
mod body_json;
mod body_limits;
mod body_masking;
mod body_pipeline;
mod body_readiness;
mod body_replay;
mod body_selection;
mod body_sockets;
mod body_text;
#[cfg(feature = "test-util")]
mod breaker;
#[cfg(feature = "cache")]
mod cached;
mod challenge_properties;
mod challenges;
mod changing_quotas;
#[cfg(all(feature = "cli", feature = "sqlite", feature = "postgres"))]
mod cli;
#[cfg(all(feature = "cli", feature = "sqlite", feature = "postgres"))]
mod cli_changes;
#[cfg(all(feature = "cli", feature = "sqlite", feature = "postgres"))]
mod cli_check;
#[cfg(all(feature = "cli", feature = "sqlite", feature = "postgres"))]
mod cli_doctor;
#[cfg(all(feature = "cli", feature = "sqlite", feature = "postgres"))]
mod cli_guide;
#[cfg(all(feature = "cli", feature = "sqlite", feature = "postgres"))]
mod cli_import;
#[cfg(all(feature = "cli", feature = "sqlite", feature = "postgres"))]
mod cli_kit;
#[cfg(all(feature = "cli", feature = "redis", feature = "sqlite", feature = "postgres"))]
mod cli_limit;
#[cfg(all(feature = "cli", feature = "sqlite", feature = "postgres"))]
mod cli_outputs;
#[cfg(all(feature = "cache", feature = "cli", feature = "reveal", feature = "sqlite", feature = "postgres"))]
mod cli_sealing;
#[cfg(all(feature = "cli", feature = "sqlite", feature = "postgres"))]
mod cli_shell;
mod client_ip;
mod client_libraries;
#[cfg(feature = "client")]
mod client_retries;
#[cfg(all(feature = "cache", feature = "test-util"))]
mod combinators;
mod company_errors;
#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod connections;
mod details;
mod dialects;
mod features;
#[cfg(feature = "redis")]
mod fleet;
#[cfg(all(feature = "cache", feature = "sqlite", feature = "postgres"))]
mod follow;
mod gate;
mod grant_quotas;
mod head_requests;
mod https;
mod identity;
#[cfg(feature = "introspection")]
mod introspection;
mod invalid_requests;
#[cfg(all(feature = "jwt", feature = "cache", feature = "test-util"))]
mod jwt;
mod keep_alive;
mod kit;
mod language;
#[cfg(feature = "redis")]
mod leases;
mod levels;
mod limits;
#[cfg(any(feature = "redis", all(feature = "sqlite", feature = "postgres")))]
mod machine;
#[cfg(feature = "mint")]
mod mint;
#[cfg(any(feature = "metrics", feature = "tracing"))]
mod observe;
#[cfg(feature = "utoipa")]
mod openapi;
#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod outages;
#[cfg(all(feature = "pepper", feature = "test-util"))]
mod peppers;
mod policies;
mod preflights;
#[cfg(any(feature = "redis", all(feature = "sqlite", feature = "postgres")))]
#[allow(dead_code, reason = "not every fault is for every server")]
mod proxy;
mod query_token;
mod quotas;
mod readiness;
mod redaction;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod redis_addresses;
#[cfg(feature = "redis")]
mod redis_anonymous;
#[cfg(feature = "redis")]
mod redis_changes;
#[cfg(feature = "redis")]
mod redis_cluster;
#[cfg(feature = "redis")]
mod redis_contention;
#[cfg(feature = "redis")]
mod redis_contention_cases;
#[cfg(feature = "redis")]
mod redis_kit;
#[cfg(feature = "redis")]
mod redis_outages;
#[cfg(feature = "redis")]
#[allow(dead_code, reason = "servers offer what tests may need")]
mod redis_servers;
mod resets;
#[cfg(all(feature = "axum", feature = "body", feature = "resource-metadata"))]
mod resource_metadata;
#[cfg(all(feature = "cache", feature = "axum"))]
mod retry_after;
mod rpc;
#[cfg(all(feature = "cache", feature = "reveal", feature = "sqlite", feature = "postgres"))]
mod sealing;
#[cfg(all(feature = "mint", feature = "pepper", feature = "test-util"))]
mod secrets;
#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod servers;
#[cfg(feature = "redis")]
mod slow_wire;
#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod sql;
#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod sql_audit;
#[cfg(all(feature = "cache", feature = "sqlite", feature = "postgres"))]
mod sql_changes;
#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod sql_import;
#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod sql_issue;
#[cfg(all(feature = "cache", feature = "sqlite", feature = "postgres"))]
mod sql_last_used;
#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod sql_pages;
#[cfg(all(feature = "cache", feature = "sqlite", feature = "postgres"))]
mod sql_watchers;
#[cfg(all(feature = "sqlite", feature = "postgres"))]
mod sqlite_files;
#[cfg(all(
    feature = "introspection",
    feature = "cache",
    feature = "mint",
    feature = "pepper",
    feature = "sqlite",
    feature = "postgres"
))]
mod store_errors;
mod store_model;
#[cfg(feature = "test-util")]
mod stores;
#[cfg(all(feature = "cache", feature = "test-util"))]
mod tenants;
mod throttle;
mod token_locations;
#[cfg(feature = "tonic")]
mod tonic_status;
mod uncounted_requests;
mod usage;
mod websocket_token;
