//! Limits of anonymous callers by their address, without authentication: the gate of this crate, and `tower_governor` as its README
//! shows it and with its headers. The address of a request is derived from its token.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::Route;
use governor::middleware::NoOpMiddleware;
use http::header::AUTHORIZATION;
use tollgate::gate::IdentityLayer;
use tollgate::limit::{AnonymousLimits, ClientIp};
use tollgate::{AuthLayer, Quota, RateLimitHeaders};
use tower::{Layer, Service, ServiceBuilder};
use tower_governor::GovernorLayer;
use tower_governor::governor::GovernorConfigBuilder;
use tower_governor::key_extractor::PeerIpKeyExtractor;

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

/// The table has twice as many buckets as there are addresses, or more.
fn gate(size: usize, limit: Limit) -> IdentityLayer<AnonymousLimits> {
    let quota = match limit {
        Limit::Unlimited => PLENTY,
        Limit::OnePerDay => Quota::per_day(1),
    };
    let limits = AnonymousLimits::by_client_ip(quota, ClientIp::peer()).expect("a valid limit");
    let limits = limits.with_capacity((2 * size).max(DEFAULT_CAPACITY)).expect("a valid capacity");
    AuthLayer::anonymous().with_rate_limit(limits)
}

const DEFAULT_CAPACITY: usize = 65_536;

pub fn tollgate(size: usize, limit: Limit) -> Row {
    routed(gate(size, limit))
}

pub fn tollgate_without_headers(size: usize, limit: Limit) -> Row {
    routed(gate(size, limit).with_rate_limit_headers(RateLimitHeaders::Off))
}

fn config(limit: Limit) -> GovernorConfigBuilder<PeerIpKeyExtractor, NoOpMiddleware> {
    let (period, burst) = match limit {
        Limit::Unlimited => (Duration::from_nanos(1), BURST.get()),
        Limit::OnePerDay => (Duration::from_secs(86_400), 1),
    };
    let mut config = GovernorConfigBuilder::default();
    config.period(period).burst_size(burst);
    config
}

pub fn tower_governor(_: usize, limit: Limit) -> Row {
    routed(GovernorLayer::new(config(limit).finish().expect("a period and a burst")))
}

pub fn tower_governor_with_headers(_: usize, limit: Limit) -> Row {
    routed(GovernorLayer::new(config(limit).use_headers().finish().expect("a period and a burst")))
}

pub fn baseline(_: usize, _: Limit) -> Row {
    super::routed(AdmitLayer(insert_address))
}

fn routed<L>(layer: L) -> Row
where
    L: Layer<Route> + Clone + Send + Sync + 'static,
    L::Service: Service<Request, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    <L::Service as Service<Request>>::Future: Send + 'static,
{
    super::routed(ServiceBuilder::new().layer(AdmitLayer(insert_address)).layer(layer).into_inner())
}
