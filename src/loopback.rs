//! Whether connections to a host stay on this machine.

use std::net::IpAddr;

/// Returns whether the host of a URL is a loopback address, such as `127.0.0.1` or `[::1]`.
///
/// The name `localhost` is none: a resolver may return any address for it.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Returns whether the host of a database is this machine, by an operator's configuration. A path is the folder of a Unix socket.
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) fn is_local_host(host: &str) -> bool {
    host.starts_with('/') || host == "localhost" || is_loopback(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_loopback() {
        for host in ["127.0.0.1", "127.1.2.3", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "localhost",
            "127.1",
            "127.0.0.1.example",
            "10.0.0.1",
            "0.0.0.0",
            "[::2]",
            "[::1",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[cfg(any(feature = "postgres", feature = "redis"))]
    #[test]
    fn loopback_addresses_and_sockets_are_local() {
        for host in ["localhost", "127.0.0.1", "[::1]", "/var/run/postgresql"] {
            assert!(is_local_host(host), "{host}");
        }
        for host in ["", "db.example.com", "10.0.0.1", "2001:db8::1", "localhost.example.com"] {
            assert!(!is_local_host(host), "{host}");
        }
    }
}
