use tollgate::{AuthLayer, Grant, MemoryStore, Quota, RateLimitHeaders, RateLimits};

use super::Budget;
use crate::floor::{PLENTY, token};
use crate::row::Row;

type Gate = AuthLayer<MemoryStore<u32>, RateLimits>;

fn gate(size: usize, budget: Budget) -> Gate {
    let store: MemoryStore<u32> = (0..size).map(|i| (token(i), Grant::new(format!("user-{i}"), i as u32))).collect();
    let quota = match budget {
        Budget::Plenty => PLENTY,
        Budget::One => Quota::per_day(1),
    };
    AuthLayer::new(store).with_rate_limit(RateLimits::new(quota))
}

pub fn with_headers(size: usize, budget: Budget) -> Row {
    super::routed(gate(size, budget))
}

pub fn without_headers(size: usize, budget: Budget) -> Row {
    super::routed(gate(size, budget).with_rate_limit_headers(RateLimitHeaders::Off))
}

pub fn plain(size: usize, budget: Budget) -> Row {
    super::plain(gate(size, budget))
}
