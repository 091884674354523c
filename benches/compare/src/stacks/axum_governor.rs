//! Hand-written authentication, and limits by `axum-governor`, keyed by the caller. It writes both `RateLimit` and
//! `X-RateLimit-*`. Its sweep is off: it would run between measurements and drop buckets.

use std::num::NonZeroU32;
use std::sync::Arc;

use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum_governor::{Extension, GovernorConfigBuilder, GovernorLayer, Quota};
use tower::ServiceBuilder;

use super::hand_written::{AdmitLayer, User, users};
use super::tower_governor::{admit, middleware};
use super::{BURST, Limit};
use crate::row::Row;

fn limits(limit: Limit) -> GovernorLayer<User> {
    let quota = match limit {
        Limit::Unlimited => Quota::requests_per_second(NonZeroU32::new(1_000_000_000).expect("not zero")).burst(BURST),
        Limit::OnePerDay => Quota::requests_per_hour(NonZeroU32::MIN),
    };
    let config = GovernorConfigBuilder::default().with_extractor(Extension::<User>::new()).quota_default(quota);
    GovernorLayer::new(config.gc_disable().finish().expect("an extractor and a quota"))
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
