//! The limit of failed authentications per peer.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use tollgate::Quota;
use tollgate::limit::{ClientIp, Clock, FailureThrottle, ip_prefix};

/// One failure every 2 seconds with a burst of 60, per address, for all routes. A household with a mistyped token stays
/// below it. The burst is also the maximum number of pending lookups of one address.
pub(crate) const FAILURES: Quota = Quota::per_minute(30).with_burst(60);

/// The addresses from which TradingView sends the alerts of all users. A limit would let one user's wrong key lock out all:
/// <https://www.tradingview.com/support/solutions/43000529348>.
const TRADINGVIEW: [Ipv4Addr; 4] = [
    Ipv4Addr::new(52, 89, 214, 238),
    Ipv4Addr::new(34, 212, 75, 30),
    Ipv4Addr::new(54, 218, 53, 128),
    Ipv4Addr::new(52, 32, 178, 7),
];

/// Returns the key of a peer: an IPv4 address, or the network of an IPv6 address. `None` exempts the peer.
pub(crate) fn key(address: IpAddr) -> Option<IpAddr> {
    match ip_prefix(address) {
        IpAddr::V4(v4) if TRADINGVIEW.contains(&v4) => None,
        peer => Some(peer),
    }
}

/// Returns the throttle, keyed by the client's address: that of the connection, which `protocol.rs` puts into each request, or
/// the one that a proxy has sent.
pub(crate) fn throttle(clock: Arc<dyn Clock>, client_ip: ClientIp) -> FailureThrottle {
    // Requests without an address count as one peer, so that none is exempt.
    let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    FailureThrottle::new(FAILURES, move |head| key(client_ip.of(head).unwrap_or(nowhere)))
        .with_clock(move || clock.now())
}
