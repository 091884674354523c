//! Hand-written authentication, and limits by `tower_governor` with its headers, keyed by the caller.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use governor::middleware::StateInformationMiddleware;
use tower::ServiceBuilder;
use tower_governor::governor::GovernorConfigBuilder;
use tower_governor::key_extractor::KeyExtractor;
use tower_governor::{GovernorError, GovernorLayer};

use super::hand_written::{AdmitLayer, User, Users, authenticate, unauthorized, users};
use super::{BURST, Limit};
use crate::row::Row;

#[derive(Clone, Copy)]
struct ByUser;

impl KeyExtractor for ByUser {
    type Key = User;

    fn extract<T>(&self, request: &http::Request<T>) -> Result<User, GovernorError> {
        request.extensions().get().copied().ok_or(GovernorError::UnableToExtractKey)
    }
}

fn limits(limit: Limit) -> GovernorLayer<ByUser, StateInformationMiddleware, Body> {
    let (period, burst) = match limit {
        Limit::Unlimited => (Duration::from_nanos(1), BURST.get()),
        Limit::OnePerDay => (Duration::from_secs(86_400), 1),
    };
    let mut config = GovernorConfigBuilder::default().period(period).burst_size(burst).key_extractor(ByUser);
    GovernorLayer::new(config.use_headers().finish().expect("a period and a burst"))
}

/// Inserts the caller into the request extensions, for `from_fn`.
pub async fn middleware(State(users): State<Arc<Users>>, mut request: Request, next: Next) -> Response {
    match admit(&users, &mut request) {
        Ok(()) => next.run(request).await,
        Err(rejection) => rejection,
    }
}

pub fn admit(users: &Users, request: &mut Request) -> Result<(), Response> {
    let user = authenticate(users, request.headers()).ok_or_else(unauthorized)?;
    request.extensions_mut().insert(user);
    Ok(())
}

/// Both layers in one `Router::layer`, which is cheaper than two, as the documentation of axum recommends.
pub fn routed(size: usize, limit: Limit) -> Row {
    let authentication = from_fn_with_state(Arc::new(users(size)), middleware);
    super::routed(ServiceBuilder::new().layer(authentication).layer(limits(limit)).into_inner())
}

pub fn plain(size: usize, limit: Limit) -> Row {
    let users = Arc::new(users(size));
    let authentication = AdmitLayer(move |request: &mut Request| admit(&users, request));
    super::plain(ServiceBuilder::new().layer(authentication).layer(limits(limit)).into_inner())
}
