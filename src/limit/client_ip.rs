//! [`ClientIp`]: the address of a client, also behind proxies.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderName, HeaderValue};
use thiserror::Error;

use super::forwarded::{TrustedProxies, forwarded_elements, forwarded_parameter, peer};
use crate::request_head::RequestHead;

/// The source of client addresses, for [`AnonymousLimits`](super::AnonymousLimits) and
/// [`FailureThrottle::by_client_ip`](super::FailureThrottle::by_client_ip).
///
/// ```
/// use tollgate::limit::ClientIp;
///
/// // A service that clients reach directly.
/// let direct = ClientIp::peer();
/// // A service behind load balancers in these networks, which append to `X-Forwarded-For`.
/// let proxied = ClientIp::x_forwarded_for(["10.0.0.0/8", "fd00::/8"])?;
/// # let _ = (direct, proxied);
/// # Ok::<_, tollgate::limit::ClientIpError>(())
/// ```
///
/// # Rules
///
/// 1. The *peer* is the address of the connection: the [`SocketAddr`](std::net::SocketAddr) in the request extensions, or else axum's `ConnectInfo`
///    (feature `axum`). A server behind a proxy with the PROXY protocol inserts the address that the proxy has sent.
/// 2. A header field counts only if the peer is in a trusted network. Otherwise the client is the peer.
/// 3. In a list, the client is the rightmost address that is not in a trusted network. Each proxy appends the address from
///    which it got the request, so all addresses further left may be forged.
/// 4. A missing or malformed value ends the list: the client is the last address that a trusted proxy has written, or the peer.
///    `unknown` and obfuscated identifiers (RFC 7239, section 6) count as malformed. If all addresses are trusted, the client
///    is the leftmost one.
/// 5. IPv6 addresses are reduced to a [prefix](Self::with_ipv6_prefix). An IPv4-mapped IPv6 address counts as IPv4.
///
/// So a client cannot choose an address, unless it is in a trusted network, or a trusted proxy passes on what the client has written.
/// List the networks of your proxies only, and check that they append to the field or overwrite it.
#[derive(Clone)]
pub struct ClientIp {
    source: Source,
    ipv6_prefix: u8,
}

#[derive(Clone, Debug)]
enum Source {
    Peer,
    XForwardedFor(TrustedProxies),
    Forwarded(TrustedProxies),
    Single(HeaderName, TrustedProxies),
}

/// The error of an invalid setting of a [`ClientIp`] or a [`ForwardedProto`](crate::gate::ForwardedProto).
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientIpError {
    /// A trusted network is not an address, or an address with a prefix length. IPv4-mapped IPv6 networks are not supported.
    #[error("invalid trusted network: must be an IP address or a network, such as 10.0.0.0/8")]
    Network,
    /// There is no trusted network, so that the header field would never count.
    #[error("no trusted network: the header field would never count")]
    NoNetwork,
    /// The prefix length of IPv6 addresses is out of range.
    #[error("invalid IPv6 prefix: must be from 1 to 128 bits")]
    Ipv6Prefix,
}

/// The smallest IPv6 prefix that a customer usually has.
const DEFAULT_PREFIX: u8 = 64;
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl ClientIp {
    /// Uses the address of the connection, for services that clients reach directly.
    #[must_use]
    pub fn peer() -> Self {
        Self { source: Source::Peer, ipv6_prefix: DEFAULT_PREFIX }
    }

    /// Uses `X-Forwarded-For`, to which each proxy in these networks appends an address.
    ///
    /// # Errors
    ///
    /// If a network is invalid, or if there is none.
    pub fn x_forwarded_for<'a>(trusted: impl IntoIterator<Item = &'a str>) -> Result<Self, ClientIpError> {
        Ok(Self::behind(Source::XForwardedFor(TrustedProxies::new(trusted)?)))
    }

    /// Uses `Forwarded` (RFC 7239), to which each proxy in these networks appends an element.
    ///
    /// # Errors
    ///
    /// If a network is invalid, or if there is none.
    pub fn forwarded<'a>(trusted: impl IntoIterator<Item = &'a str>) -> Result<Self, ClientIpError> {
        Ok(Self::behind(Source::Forwarded(TrustedProxies::new(trusted)?)))
    }

    /// Uses a field with one address that proxies in these networks overwrite, such as `X-Real-IP` or `CF-Connecting-IP`.
    ///
    /// Several lines of the field count as malformed.
    ///
    /// ```
    /// use http::HeaderName;
    /// use tollgate::limit::ClientIp;
    ///
    /// let proxied = ClientIp::header(HeaderName::from_static("x-real-ip"), ["192.0.2.7"])?;
    /// # let _ = proxied;
    /// # Ok::<_, tollgate::limit::ClientIpError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If a network is invalid, or if there is none.
    pub fn header<'a>(name: HeaderName, trusted: impl IntoIterator<Item = &'a str>) -> Result<Self, ClientIpError> {
        Ok(Self::behind(Source::Single(name, TrustedProxies::new(trusted)?)))
    }

    fn behind(source: Source) -> Self {
        Self { source, ..Self::peer() }
    }

    /// Sets the length of the prefix to which IPv6 addresses are reduced, in bits. Default: 64.
    ///
    /// A customer usually gets a /64, and often a /56 or a /48. With a longer prefix, such a customer has many addresses. With
    /// a shorter one, neighbours may share a limit.
    ///
    /// # Errors
    ///
    /// If the length is not from 1 to 128.
    pub fn with_ipv6_prefix(self, bits: u8) -> Result<Self, ClientIpError> {
        match (1..=128).contains(&bits) {
            true => Ok(Self { ipv6_prefix: bits, ..self }),
            false => Err(ClientIpError::Ipv6Prefix),
        }
    }

    /// Returns the address of the client of a request, reduced to its prefix. Returns `None` if the request has no address of
    /// the connection.
    ///
    /// ```
    /// use std::net::{IpAddr, SocketAddr};
    /// use http::Request;
    /// use tollgate::RequestHead;
    /// use tollgate::limit::ClientIp;
    ///
    /// let proxied = ClientIp::x_forwarded_for(["10.0.0.0/8"])?;
    /// let mut request = Request::get("/").header("x-forwarded-for", "203.0.113.9, 198.51.100.1, 10.0.0.2").body(())?;
    /// request.extensions_mut().insert(SocketAddr::from(([10, 0, 0, 1], 40_000)));
    /// assert_eq!(proxied.of(&RequestHead::of(&request)), Some(IpAddr::from([198, 51, 100, 1])));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn of(&self, head: &RequestHead<'_>) -> Option<IpAddr> {
        self.bits_of(head).map(from_bits)
    }

    /// Returns the address as a number, which is hashed faster than an enum.
    #[inline]
    pub(super) fn bits_of(&self, head: &RequestHead<'_>) -> Option<u128> {
        let peer = peer(head)?;
        let client = match &self.source {
            Source::Peer => bits(peer.ip()),
            source => bits(Self::behind_proxies(source, peer.ip().to_canonical(), head)),
        };
        Some(prefix(client, self.ipv6_prefix))
    }

    // Not inlined: a gate without proxies is shorter without this code.
    #[inline(never)]
    fn behind_proxies(source: &Source, peer: IpAddr, head: &RequestHead<'_>) -> IpAddr {
        match source {
            Source::Peer => peer,
            Source::Single(name, proxies) => client(proxies, peer, only(head, name).into_iter()),
            Source::XForwardedFor(proxies) => {
                let lines = head.headers.get_all(X_FORWARDED_FOR).iter().rev();
                client(proxies, peer, lines.flat_map(elements))
            }
            Source::Forwarded(proxies) => {
                let nodes = forwarded_elements(head).map(|element| forwarded_parameter(element, "for"));
                client(proxies, peer, nodes)
            }
        }
    }
}

/// Returns the first address that is not trusted, from the peer on. Ends at an element that is no address.
fn client<'a>(proxies: &TrustedProxies, peer: IpAddr, elements: impl Iterator<Item = &'a [u8]>) -> IpAddr {
    proxies.hops(peer, elements, |element| element).map_while(|(address, _)| address).last().unwrap_or(peer)
}

/// Returns the prefix of an address that belongs to one peer.
///
/// - An IPv4 address is returned as it is. An IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) is returned as IPv4.
/// - An IPv6 address is reduced to its /64, the smallest prefix that a customer usually has.
///
/// ```
/// use tollgate::limit::ip_prefix;
///
/// let peer = |address: &str| address.parse().map(ip_prefix);
/// assert_eq!(peer("2001:db8:1:2:3:4:5:6")?, peer("2001:db8:1:2::")?);
/// assert_ne!(peer("2001:db8:1:3::1")?, peer("2001:db8:1:2::1")?);
/// assert_eq!(peer("::ffff:192.0.2.1")?, peer("192.0.2.1")?);
/// # Ok::<_, std::net::AddrParseError>(())
/// ```
#[must_use]
pub fn ip_prefix(address: IpAddr) -> IpAddr {
    from_bits(prefix(bits(address), DEFAULT_PREFIX))
}

/// Returns an address as a number. An IPv4 address has the bits of its IPv4-mapped IPv6 address.
#[inline]
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Returns the first bits of an IPv6 address, or an IPv4 address as it is.
#[inline]
fn prefix(bits: u128, ipv6_prefix: u8) -> u128 {
    let is_ipv4_mapped = bits >> 32 == 0xffff;
    if is_ipv4_mapped { bits } else { bits & (!0 << (128 - u32::from(ipv6_prefix))) }
}

fn from_bits(bits: u128) -> IpAddr {
    Ipv6Addr::from_bits(bits).to_canonical()
}

/// Returns the value of a field that has exactly one line.
fn only<'a>(head: &RequestHead<'a>, name: &HeaderName) -> Option<&'a [u8]> {
    let mut lines = head.headers.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none()).map(|line| line.as_bytes().trim_ascii())
}

/// Returns the elements of a line of `X-Forwarded-For`, rightmost first.
fn elements(line: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    line.as_bytes().rsplit(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

impl fmt::Debug for ClientIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIp").field("source", &self.source).field("ipv6_prefix", &self.ipv6_prefix).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_addresses_are_grouped_by_64_bit_prefix() {
        let peer = |address: &str| ip_prefix(address.parse().unwrap()).to_string();
        for (address, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::"),
            ("2001:db8:1:3::", "2001:db8:1:3::"),
            ("::1", "::"),
            // IPv4-compatible, not IPv4-mapped.
            ("::192.0.2.1", "::"),
        ] {
            assert_eq!(peer(address), expected);
        }
    }
}
