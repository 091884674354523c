//! Limits of anonymous callers by their address, without authentication: `tower_governor` as its README shows it, and the gate of
//! this crate. The address of a request is derived from its token.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::extract::Request;
use axum::response::Response;
use http::header::AUTHORIZATION;
use tollgate::limit::{AnonymousLimits, ClientIp};
use tollgate::{AuthLayer, Quota};
use tower::ServiceBuilder;
use tower_governor::GovernorLayer;
use tower_governor::governor::GovernorConfigBuilder;

use super::hand_written::AdmitLayer;
use super::{BURST, Limit};
use crate::floor::PLENTY;
use crate::row::Row;

/// Inserts the address as `axum::serve` does. FNV-1a makes an address of each token.
fn insert_address(request: &mut Request) -> Result<(), Response> {
    let token = request.headers().get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    let hash = token.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let address = SocketAddr::from((Ipv4Addr::from_bits(hash), 40_000));
    request.extensions_mut().insert(ConnectInfo(address));
    Ok(())
}

pub fn tollgate(_: usize, limit: Limit) -> Row {
    let quota = match limit {
        Limit::Unlimited => PLENTY,
        Limit::OnePerDay => Quota::per_day(1),
    };
    let limits = AnonymousLimits::by_client_ip(quota, ClientIp::peer()).expect("a valid limit");
    let limits = limits.with_capacity(1 << 21).expect("a valid capacity");
    let gate = AuthLayer::anonymous().with_rate_limit(limits);
    super::routed(ServiceBuilder::new().layer(AdmitLayer(insert_address)).layer(gate).into_inner())
}

pub fn tower_governor(_: usize, limit: Limit) -> Row {
    let (period, burst) = match limit {
        Limit::Unlimited => (Duration::from_nanos(1), BURST.get()),
        Limit::OnePerDay => (Duration::from_secs(86_400), 1),
    };
    let config = GovernorConfigBuilder::default().period(period).burst_size(burst).finish();
    let limits = GovernorLayer::new(config.expect("a period and a burst"));
    super::routed(ServiceBuilder::new().layer(AdmitLayer(insert_address)).layer(limits).into_inner())
}

pub fn baseline(_: usize, _: Limit) -> Row {
    super::routed(AdmitLayer(insert_address))
}
