//! The command line.

use std::net::{Ipv4Addr, SocketAddr};

const USAGE: &str = "usage: mcp [--listen ADDRESS:PORT] [--resource URL] [--issuer URL --jwks URL]

  --listen ADDRESS:PORT  an address of loopback; default: 127.0.0.1:8000
  --resource URL         the URL of this server for clients; default: http://ADDRESS:PORT/mcp
  --issuer URL           the authorization server, whose JWTs for this resource are accepted
  --jwks URL             the JWK set of the authorization server";

#[derive(Debug, PartialEq)]
pub(crate) struct Args {
    pub(crate) listen: SocketAddr,
    pub(crate) resource: Option<String>,
    pub(crate) authorization_server: Option<AuthorizationServer>,
}

#[derive(Debug, PartialEq)]
pub(crate) struct AuthorizationServer {
    pub(crate) issuer: String,
    /// The URL of the JWK set.
    pub(crate) jwks: String,
}

impl Args {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 8000));
        let (mut resource, mut issuer, mut jwks) = (None, None, None);
        while let Some(option) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{option} needs a value\n{USAGE}"));
            match &*option {
                "--listen" => listen = value()?.parse().map_err(|error| format!("--listen: {error}"))?,
                "--resource" => resource = Some(value()?),
                "--issuer" => issuer = Some(value()?),
                "--jwks" => jwks = Some(value()?),
                _ => return Err(format!("unknown option: {option}\n{USAGE}")),
            }
        }
        if !listen.ip().is_loopback() {
            return Err("--listen: tokens need TLS; listen on loopback, behind a proxy with TLS".to_owned());
        }
        let authorization_server = match (issuer, jwks) {
            (Some(issuer), Some(jwks)) => Some(AuthorizationServer { issuer, jwks }),
            (None, None) => None,
            _ => return Err(format!("--issuer and --jwks need each other\n{USAGE}")),
        };
        Ok(Self { listen, resource, authorization_server })
    }
}
