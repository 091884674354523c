//! What trusted proxies write about the connection of their client: `X-Forwarded-For` and `Forwarded` (RFC 7239).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

#[cfg(feature = "axum")]
use axum::extract::{ConnectInfo, connect_info::MockConnectInfo};
use http::{HeaderValue, header};
use ipnet::IpNet;

use super::client_ip::ClientIpError;
use crate::list::{is_terminated, split};
use crate::request_head::RequestHead;

/// The networks of trusted proxies.
#[derive(Clone, Debug)]
pub(crate) struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    /// Parses addresses and networks.
    pub(crate) fn new<'a>(networks: impl IntoIterator<Item = &'a str>) -> Result<Self, ClientIpError> {
        let network = |text: &str| match text.parse::<IpAddr>() {
            Ok(address) => Ok(IpNet::from(address.to_canonical())),
            Err(_) => match text.parse() {
                // Peers have no such addresses: they count as IPv4.
                Ok(IpNet::V6(v6)) if v6.addr().to_ipv4_mapped().is_some() => Err(ClientIpError::Network),
                Ok(network) => Ok(network),
                Err(_) => Err(ClientIpError::Network),
            },
        };
        let networks = networks.into_iter().map(network).collect::<Result<Arc<[IpNet]>, _>>()?;
        match networks.is_empty() {
            true => Err(ClientIpError::NoNetwork),
            false => Ok(Self(networks)),
        }
    }

    /// Returns whether this address is one of the proxies.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Returns the elements that trusted proxies have written, from the peer on, each with the address that it names.
    ///
    /// `elements` are rightmost first. The last returned element is the client's: the first one whose address is not that of a
    /// trusted proxy, or that has no valid address.
    pub(crate) fn hops<'a>(
        &self,
        peer: IpAddr,
        elements: impl Iterator<Item = &'a [u8]>,
        node: impl Fn(&'a [u8]) -> &'a [u8],
    ) -> impl Iterator<Item = (Option<IpAddr>, &'a [u8])> {
        let mut writer = Some(peer);
        elements.map_while(move |element| {
            writer.filter(|writer| self.contains(*writer))?;
            writer = address(node(element));
            Some((writer, element))
        })
    }
}

/// Returns the address of the connection.
pub(crate) fn peer<'a>(head: &RequestHead<'a>) -> Option<&'a SocketAddr> {
    let address = head.extensions.get::<SocketAddr>();
    #[cfg(feature = "axum")]
    let address = address
        .or_else(|| head.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address))
        .or_else(|| head.extensions.get::<MockConnectInfo<SocketAddr>>().map(|MockConnectInfo(address)| address));
    address
}

/// Parses an address with or without a port, as proxies write it: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`
/// or `[2001:db8::1]:80`.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address = text.parse().ok().or_else(with_port).or_else(in_brackets)?;
    Some(IpAddr::to_canonical(&address))
}

/// Returns the elements of `Forwarded`, rightmost first.
///
/// A client could open a quoted string that swallows the element of the proxy. Such a line ends inside of a quoted string, because a
/// proxy writes an even number of quotes. It counts as malformed. A line with a backslash does too: an escaped quote would change the
/// number, and no node needs one. A malformed line is one empty element.
pub(crate) fn forwarded_elements<'a>(head: &RequestHead<'a>) -> impl Iterator<Item = &'a [u8]> {
    fn of_line(line: &HeaderValue) -> impl Iterator<Item = &[u8]> {
        let line = line.as_bytes();
        let elements: Vec<&[u8]> = match is_terminated(line) && !line.contains(&b'\\') {
            true => split(line, b',').collect(),
            false => vec![b""],
        };
        elements.into_iter().rev()
    }
    head.headers.get_all(header::FORWARDED).iter().rev().flat_map(of_line)
}

/// Returns the value of a parameter of a `Forwarded` element (RFC 7239, section 4), without quotes. Returns an empty text if the
/// parameter is missing, malformed, or occurs twice.
pub(crate) fn forwarded_parameter<'a>(element: &'a [u8], name: &str) -> &'a [u8] {
    let mut values = split(element, b';').filter_map(|pair| {
        let at = pair.iter().position(|&byte| byte == b'=')?;
        pair[..at].eq_ignore_ascii_case(name.as_bytes()).then(|| &pair[at + 1..])
    });
    match (values.next(), values.next()) {
        // No value has a character that needs an escape.
        (Some(value), None) => {
            value.strip_prefix(b"\"").map_or(value, |value| value.strip_suffix(b"\"").unwrap_or_default())
        }
        _ => b"",
    }
}
