//! The text that the program prints at the start.

use std::net::SocketAddr;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};

use crate::app::{QUOTA, TOKEN_PROTOCOL};
use crate::stream::PROTOCOL;

pub(crate) fn text(addr: SocketAddr, trader: &str, reader: &str, password: &str) -> String {
    // The requests in a row use one curl process. Starting a process for each would give the bucket time to refill.
    format!(
        r#"listening on http://{addr}/ until ctrl-c
the account page: http://{addr}/account
  sign in as demo, guest or support; the password is {password}
the tokens of demo and guest, which the account page reveals too:
  {trader} may trade
  {reader} may only read

# health check, without a token
curl -i 'http://{addr}/healthz'

# REST: the accounts, an order, the resulting position
curl -i -H 'Authorization: Bearer {trader}' 'http://{addr}/v1/api/accounts'
curl -i -H 'Authorization: Bearer {trader}' -H 'Content-Type: application/json' -d '{{"instrument":"ES 12-26","action":"BUY","qty":1,"order_type":"MARKET","tif":"DAY"}}' 'http://{addr}/v1/api/accounts/sim101/orders/place'
curl -i -H 'Authorization: Bearer {trader}' 'http://{addr}/v1/api/accounts/sim101/positions'

# 403: this token may not trade
curl -i -H 'Authorization: Bearer {reader}' -X POST 'http://{addr}/v1/api/accounts/sim101/positions/flatten'

# the webhook with text, as TradingView sends it; a second time within a minute: 429, by the alert's own rate_limit
curl -i -H 'Content-Type: text/plain' -d 'key={trader};command=PLACE;account=sim101;instrument=NQ 12-26;action=BUY;qty=1;order_type=MARKET;tif=DAY;rate_limit=1;id=breakout;' 'http://{addr}/v1/webhook'

# the webhook with JSON
curl -i -H 'Content-Type: application/json' -d '{{"key":"{trader}","command":"FLATTENEVERYTHING"}}' 'http://{addr}/v1/webhook'

# {requests} requests in a row: 429 after the burst of {burst}; one more request passes every third of a second
curl -s -o /dev/null -w '%{{http_code}} ' -H 'Authorization: Bearer {trader}' 'http://{addr}/v1/api/accounts?[1-{requests}]'; echo

# the stream, from the console of a browser or Node.js
ws = new WebSocket('ws://{addr}/ws/stream', ['{PROTOCOL}', '{TOKEN_PROTOCOL}{encoded}']); ws.onmessage = (event) => console.log(event.data); ws.onopen = () => ws.send('{{"op":"rpc","id":1,"method":"positions","params":{{"account":"sim101"}}}}')
"#,
        burst = QUOTA.burst(),
        requests = QUOTA.burst() + 5,
        encoded = BASE64_URL_SAFE_NO_PAD.encode(trader),
    )
}
