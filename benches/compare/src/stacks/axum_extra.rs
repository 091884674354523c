//! The header is parsed by `axum-extra`. The rest is hand-written.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum_extra::TypedHeader;
use axum_extra::headers::Authorization;
use axum_extra::headers::authorization::Bearer;

use super::Limit;
use super::hand_written::{Limits, Users, charge, limits, unauthorized, users};
use crate::row::Row;

struct Gate {
    users: Users,
    limits: Limits,
}

pub fn routed(size: usize, limit: Limit) -> Row {
    async fn middleware(
        State(gate): State<Arc<Gate>>,
        TypedHeader(authorization): TypedHeader<Authorization<Bearer>>,
        mut request: Request,
        next: Next,
    ) -> Response {
        let Some(user) = gate.users.get(authorization.token()).copied() else { return unauthorized() };
        if let Err(rejection) = charge(&gate.limits, user) {
            return rejection;
        }
        request.extensions_mut().insert(user);
        next.run(request).await
    }
    let gate = Gate { users: users(size), limits: limits(limit) };
    super::routed(from_fn_with_state(Arc::new(gate), middleware))
}
