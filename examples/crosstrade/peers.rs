//! Who fails too often to say who he is.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tollgate::Quota;
use tollgate::limit::{Clock, FailureThrottle, ip_prefix};

/// One every 2 seconds, 60 at once: of an address, at all doors. A household that has mistyped its token stays below it,
/// and so many look-ups of one address may be under way at the same time.
pub(crate) const FAILURES: Quota = Quota::per_minute(30).with_burst(60);

/// TradingView sends everybody's alerts from these, so that one user's wrong key would be everybody's failure:
/// <https://www.tradingview.com/support/solutions/43000529348>.
const TRADINGVIEW: [Ipv4Addr; 4] = [
    Ipv4Addr::new(52, 89, 214, 238),
    Ipv4Addr::new(34, 212, 75, 30),
    Ipv4Addr::new(54, 218, 53, 128),
    Ipv4Addr::new(52, 32, 178, 7),
];

/// Returns by what a peer is counted: an IPv4 address, or the network of an IPv6 address. `None` if it is not limited.
pub(crate) fn key(address: IpAddr) -> Option<IpAddr> {
    match ip_prefix(address) {
        IpAddr::V4(v4) if TRADINGVIEW.contains(&v4) => None,
        peer => Some(peer),
    }
}

/// By the address of the connection, which `server.rs` puts into each request.
pub(crate) fn throttle(clock: Arc<dyn Clock>) -> FailureThrottle {
    // Whoever came some other way is one peer, all together: nobody is let off.
    let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    FailureThrottle::new(FAILURES, move |head| {
        key(head.extensions.get().map_or(nowhere, |address: &SocketAddr| address.ip()))
    })
    .with_clock(move || clock.now())
}
