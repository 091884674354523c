//! The reverse proxies in front of the service, and the clients behind them: `--behind-proxy NETWORKS`.
//!
//! A proxy appends the client's address to `X-Forwarded-For`, and overwrites `X-Forwarded-Proto`. Both fields count only on
//! connections from the proxies' networks.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use tollgate::RequestHead;
use tollgate::gate::ForwardedProto;
use tollgate::limit::{ClientIp, ClientIpError};

#[derive(Clone, Debug)]
pub(crate) struct Proxies {
    networks: Arc<[IpNet]>,
    client_ip: ClientIp,
    forwarded_proto: ForwardedProto,
}

impl Proxies {
    pub(crate) fn new(networks: &[IpNet]) -> Result<Self, ClientIpError> {
        let names: Vec<String> = networks.iter().map(ToString::to_string).collect();
        let names = || names.iter().map(String::as_str);
        Ok(Self {
            networks: networks.into(),
            client_ip: ClientIp::x_forwarded_for(names())?,
            forwarded_proto: ForwardedProto::x_forwarded_proto(names())?,
        })
    }

    /// Returns the source of client addresses.
    pub(crate) fn client_ip(&self) -> ClientIp {
        self.client_ip.clone()
    }

    pub(crate) fn contain(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address.to_canonical()))
    }

    /// Returns the address of the client behind a proxy. Returns `None` for requests of the proxies themselves, and for requests
    /// that do not come from a proxy.
    pub(crate) fn client(&self, head: &RequestHead<'_>) -> Option<IpAddr> {
        self.carried(head).then(|| self.client_ip.of(head)).flatten().filter(|client| !self.contain(*client))
    }

    /// Returns whether the client behind a proxy uses HTTPS. Returns `None` for requests that do not come from a proxy.
    pub(crate) fn is_https(&self, head: &RequestHead<'_>) -> Option<bool> {
        self.carried(head).then(|| self.forwarded_proto.is_https(head))
    }

    /// Returns whether a request comes from a proxy.
    fn carried(&self, head: &RequestHead<'_>) -> bool {
        head.extensions.get().is_some_and(|peer: &SocketAddr| self.contain(peer.ip()))
    }
}
