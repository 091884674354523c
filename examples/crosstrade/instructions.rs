//! The text that the program prints at the start.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};

use crate::app::{QUOTA, TOKEN_PROTOCOL};
use crate::stream::PROTOCOL;
use crate::tls::Tls;

/// Returns the host and port of the printed lines, for which the certificate must be valid.
pub(crate) fn authority(addr: SocketAddr, tls: Option<&Tls>) -> String {
    let ip = match addr.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    match tls {
        Some(tls) if !tls.is_for(&ip.to_string()) && tls.is_for("localhost") => format!("localhost:{}", addr.port()),
        _ => SocketAddr::new(ip, addr.port()).to_string(),
    }
}

/// Returns the text for this host and port. `cert` is the file of the certificate, for TLS.
pub(crate) fn text(addr: &str, cert: Option<&Path>, trader: &str, reader: &str, password: &str) -> String {
    let s = if cert.is_some() { "s" } else { "" };
    let cacert = cert.map_or_else(String::new, |file| {
        // Quoted for the shell.
        format!(" --cacert '{}'", file.display().to_string().replace('\'', r"'\''"))
    });
    // The requests in a row use one curl process. Starting a process for each would give the bucket time to refill.
    format!(
        r#"listening on http{s}://{addr}/ until ctrl-c
the account page: http{s}://{addr}/account
  sign in as demo, guest or support; the password is {password}
the tokens of demo and guest, which the account page reveals too:
  {trader} may trade
  {reader} may only read

# health check, without a token
curl -i{cacert} 'http{s}://{addr}/healthz'

# REST: the accounts, an order, the resulting position
curl -i{cacert} -H 'Authorization: Bearer {trader}' 'http{s}://{addr}/v1/api/accounts'
curl -i{cacert} -H 'Authorization: Bearer {trader}' -H 'Content-Type: application/json' -d '{{"instrument":"ES 12-26","action":"BUY","qty":1,"order_type":"MARKET","tif":"DAY"}}' 'http{s}://{addr}/v1/api/accounts/sim101/orders/place'
curl -i{cacert} -H 'Authorization: Bearer {trader}' 'http{s}://{addr}/v1/api/accounts/sim101/positions'

# 403: this token may not trade
curl -i{cacert} -H 'Authorization: Bearer {reader}' -X POST 'http{s}://{addr}/v1/api/accounts/sim101/positions/flatten'

# the webhook with text, as TradingView sends it; a second time within a minute: 429, by the alert's own rate_limit
curl -i{cacert} -H 'Content-Type: text/plain' -d 'key={trader};command=PLACE;account=sim101;instrument=NQ 12-26;action=BUY;qty=1;order_type=MARKET;tif=DAY;rate_limit=1;id=breakout;' 'http{s}://{addr}/v1/webhook'

# the webhook with JSON
curl -i{cacert} -H 'Content-Type: application/json' -d '{{"key":"{trader}","command":"FLATTENEVERYTHING"}}' 'http{s}://{addr}/v1/webhook'

# {requests} requests in a row: 429 after the burst of {burst}; one more request passes every third of a second
curl -s{cacert} -o /dev/null -w '%{{http_code}} ' -H 'Authorization: Bearer {trader}' 'http{s}://{addr}/v1/api/accounts?[1-{requests}]'; echo

# the stream, from the console of a browser or Node.js
ws = new WebSocket('ws{s}://{addr}/ws/stream', ['{PROTOCOL}', '{TOKEN_PROTOCOL}{encoded}']); ws.onmessage = (event) => console.log(event.data); ws.onopen = () => ws.send('{{"op":"rpc","id":1,"method":"positions","params":{{"account":"sim101"}}}}')
"#,
        burst = QUOTA.burst(),
        requests = QUOTA.burst() + 5,
        encoded = BASE64_URL_SAFE_NO_PAD.encode(trader),
    )
}
