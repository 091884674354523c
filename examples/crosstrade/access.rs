//! How clients reach the service: their addresses, and whether they use HTTPS.

use std::sync::Arc;

use tollgate::RequestHead;
use tollgate::gate::is_https;
use tollgate::limit::ClientIp;

use crate::proxies::Proxies;

/// Returns whether a request came over HTTPS.
pub(crate) type IsHttps = Arc<dyn Fn(&RequestHead<'_>) -> bool + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Access {
    /// The source of client addresses.
    pub(crate) client_ip: ClientIp,
    /// Returns whether a request came over HTTPS. The gates reject others. `None` admits plaintext.
    pub(crate) is_https: Option<IsHttps>,
}

impl Access {
    /// Admits plaintext: the service listens on a loopback address.
    pub(crate) fn plaintext() -> Self {
        Self { client_ip: ClientIp::peer(), is_https: None }
    }

    /// Requires TLS connections to this service.
    pub(crate) fn tls() -> Self {
        Self { client_ip: ClientIp::peer(), is_https: Some(Arc::new(is_https)) }
    }

    /// Requires HTTPS between clients and the proxies, and TLS connections of clients that use no proxy.
    pub(crate) fn behind(proxies: Proxies) -> Self {
        let client_ip = proxies.client_ip();
        Self {
            client_ip,
            is_https: Some(Arc::new(move |head| proxies.is_https(head).unwrap_or_else(|| is_https(head)))),
        }
    }
}
