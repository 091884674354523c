//! The command line.

use std::net::SocketAddr;

use crate::proxy::Proxy;

const USAGE: &str = "usage: forward_auth --proxy nginx|caddy|traefik|envoy [--listen ADDRESS:PORT] [--trusted NETWORKS] [--require-https]";

#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) proxy: Proxy,
    pub(crate) listen: SocketAddr,
    /// The networks of the proxy, separated by commas.
    pub(crate) trusted: String,
    pub(crate) require_https: bool,
}

impl Options {
    /// Parses the arguments without the name of the program.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut proxy = None;
        let mut options = Self::new(Proxy::Nginx);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value; {USAGE}"));
            match arg.as_str() {
                "--proxy" => proxy = Some(value()?.parse()?),
                "--listen" => options.listen = value()?.parse().map_err(|error| format!("--listen: {error}"))?,
                "--trusted" => options.trusted = value()?,
                "--require-https" => options.require_https = true,
                _ => return Err(format!("unknown argument {arg}; {USAGE}")),
            }
        }
        Ok(Self { proxy: proxy.ok_or_else(|| format!("--proxy is missing; {USAGE}"))?, ..options })
    }

    /// Returns the defaults.
    pub(crate) fn new(proxy: Proxy) -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 4000));
        Self { proxy, listen, trusted: "127.0.0.1,::1".to_owned(), require_https: false }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Options, String> {
        Options::parse(args.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn proxy_has_no_default() {
        assert!(parse("").unwrap_err().starts_with("--proxy is missing"));
        assert!(parse("--proxy").unwrap_err().starts_with("--proxy needs a value"));
        assert!(parse("--proxy apache").unwrap_err().contains("apache"));
        assert!(parse("--guess").unwrap_err().starts_with("unknown argument --guess"));
        assert_eq!(parse("--proxy caddy"), Ok(Options::new(Proxy::Caddy)));
        let options = parse("--proxy envoy --listen [::1]:1 --trusted 10.0.0.0/8 --require-https").unwrap();
        let expected = ("[::1]:1".parse().unwrap(), "10.0.0.0/8", true);
        assert_eq!((options.listen, options.trusted.as_str(), options.require_https), expected);
    }
}
