//! Hand-written authentication, and limits by `tower-rate-limiter` with its headers, keyed by the caller. Its windows are longer than
//! a run: a window that ends would be another kind of request.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use tower::ServiceBuilder;
use tower_rate_limiter::{KeyExtractor, MemoryStore, RateLimitError, RateLimitLayer};

use super::Limit;
use super::hand_written::{AdmitLayer, User, users};
use super::tower_governor::{admit, middleware};
use crate::row::Row;

#[derive(Clone, Copy)]
struct ByUser;

impl KeyExtractor for ByUser {
    type Key = u32;

    fn extract<T>(&self, request: &http::Request<T>) -> Result<u32, RateLimitError> {
        let user = request.extensions().get().map(|User(id)| *id);
        user.ok_or_else(|| RateLimitError::Key("no_user".to_owned(), "no caller in the request".to_owned()))
    }
}

fn limits(limit: Limit) -> RateLimitLayer<ByUser, MemoryStore> {
    let most = match limit {
        Limit::Unlimited => 1_000_000_000,
        Limit::OnePerDay => 1,
    };
    let config = RateLimitLayer::builder(ByUser).limit(most).window(Duration::from_secs(86_400));
    config.with_store(MemoryStore::new()).build().expect("a window and a name")
}

pub fn routed(size: usize, limit: Limit) -> Row {
    let authentication = from_fn_with_state(Arc::new(users(size)), middleware);
    super::routed(ServiceBuilder::new().layer(authentication).layer(limits(limit)).into_inner())
}

pub fn plain(size: usize, limit: Limit) -> Row {
    let users = Arc::new(users(size));
    let authentication = AdmitLayer(move |request: &mut Request| admit(&users, request));
    super::plain(ServiceBuilder::new().layer(authentication).layer(limits(limit)).into_inner())
}
