//! Authentication by hand, limits by `tower_governor` with its headers, keyed by the caller that was found.

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
use super::{BURST, Budget};
use crate::row::Row;

#[derive(Clone, Copy)]
struct ByUser;

impl KeyExtractor for ByUser {
    type Key = User;

    fn extract<T>(&self, request: &http::Request<T>) -> Result<User, GovernorError> {
        request.extensions().get().copied().ok_or(GovernorError::UnableToExtractKey)
    }
}

fn limits(budget: Budget) -> GovernorLayer<ByUser, StateInformationMiddleware, Body> {
    let (period, burst) = match budget {
        Budget::Plenty => (Duration::from_nanos(1), BURST.get()),
        Budget::One => (Duration::from_secs(86_400), 1),
    };
    let mut config = GovernorConfigBuilder::default().period(period).burst_size(burst).key_extractor(ByUser);
    GovernorLayer::new(config.use_headers().finish().expect("a period and a burst"))
}

/// `from_fn` that puts the caller into the request's extensions.
pub async fn middleware(State(users): State<Arc<Users>>, mut request: Request, next: Next) -> Response {
    match admit(&users, &mut request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal,
    }
}

pub fn admit(users: &Users, request: &mut Request) -> Result<(), Response> {
    let user = authenticate(users, request.headers()).ok_or_else(unauthorized)?;
    request.extensions_mut().insert(user);
    Ok(())
}

/// Both in one `Router::layer`, which costs less than two, as axum's documentation recommends.
pub fn routed(size: usize, budget: Budget) -> Row {
    let authentication = from_fn_with_state(Arc::new(users(size)), middleware);
    super::routed(ServiceBuilder::new().layer(authentication).layer(limits(budget)).into_inner())
}

pub fn plain(size: usize, budget: Budget) -> Row {
    let users = Arc::new(users(size));
    let authentication = AdmitLayer(move |request: &mut Request| admit(&users, request));
    super::plain(ServiceBuilder::new().layer(authentication).layer(limits(budget)).into_inner())
}
