//! The gate of this crate.

use tollgate::{AuthLayer, Grant, MemoryStore, Quota, RateLimitHeaders, RateLimits, TokenDigest};

use super::Limit;
use crate::floor::{PLENTY, token};
use crate::row::Row;

type Gate = AuthLayer<MemoryStore<u32>, RateLimits>;

fn gate(size: usize, limit: Limit) -> Gate {
    let store: MemoryStore<u32> = (0..size).map(|i| (TokenDigest::of(token(i)), grant(i))).collect();
    let quota = match limit {
        Limit::Unlimited => PLENTY,
        Limit::OnePerDay => Quota::per_day(1),
    };
    AuthLayer::new(store).with_rate_limit(RateLimits::new(quota))
}

/// Returns a typical grant: an id and a subject of 16 bytes each, two scopes, and the quota of the limiter.
fn grant(i: usize) -> Grant<u32> {
    Grant::new(format!("key-{i:012}"), i as u32)
        .with_subject(format!("user-{i:011}"))
        .with_scopes(["orders:read", "orders:write"])
        .expect("two scopes")
}

pub fn with_headers(size: usize, limit: Limit) -> Row {
    super::routed(gate(size, limit))
}

pub fn without_headers(size: usize, limit: Limit) -> Row {
    super::routed(gate(size, limit).with_rate_limit_headers(RateLimitHeaders::Off))
}

pub fn plain(size: usize, limit: Limit) -> Row {
    super::plain(gate(size, limit))
}
