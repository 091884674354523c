//! What the program prints when it is ready.

use std::net::SocketAddr;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};

use crate::app::{QUOTA, TOKEN_PROTOCOL};
use crate::stream::PROTOCOL;

pub(crate) fn text(addr: SocketAddr, trader: &str, reader: &str) -> String {
    // One curl for all requests of the last line: a process for each would give the budget time to refill.
    format!(
        r#"listening on http://{addr}/ until ctrl-c
two new tokens, both of the user demo; they work for a day, and those of earlier runs do as well:
  {trader} may trade
  {reader} may only read

# is it up? no token needed
curl -i 'http://{addr}/healthz'

# REST: the accounts, an order, the position that it made
curl -i -H 'Authorization: Bearer {trader}' 'http://{addr}/v1/api/accounts'
curl -i -H 'Authorization: Bearer {trader}' -H 'Content-Type: application/json' -d '{{"instrument":"ES 12-26","action":"BUY","qty":1,"order_type":"MARKET","tif":"DAY"}}' 'http://{addr}/v1/api/accounts/sim101/orders/place'
curl -i -H 'Authorization: Bearer {trader}' 'http://{addr}/v1/api/accounts/sim101/positions'

# 403: this token may not trade
curl -i -H 'Authorization: Bearer {reader}' -X POST 'http://{addr}/v1/api/accounts/sim101/positions/flatten'

# the webhook as TradingView calls it, with text; a second time within a minute: 429, as the alert itself asks
curl -i -H 'Content-Type: text/plain' -d 'key={trader};command=PLACE;account=sim101;instrument=NQ 12-26;action=BUY;qty=1;order_type=MARKET;tif=DAY;rate_limit=1;id=breakout;' 'http://{addr}/v1/webhook'

# the webhook with JSON
curl -i -H 'Content-Type: application/json' -d '{{"key":"{trader}","command":"FLATTENEVERYTHING"}}' 'http://{addr}/v1/webhook'

# {requests} requests in a row: 429 as soon as the burst of {burst} is spent, and fine again a third of a second later
curl -s -o /dev/null -w '%{{http_code}} ' -H 'Authorization: Bearer {trader}' 'http://{addr}/v1/api/accounts?[1-{requests}]'; echo

# the stream, from the console of a browser or of node
ws = new WebSocket('ws://{addr}/ws/stream', ['{PROTOCOL}', '{TOKEN_PROTOCOL}{encoded}']); ws.onmessage = (event) => console.log(event.data); ws.onopen = () => ws.send('{{"op":"rpc","id":1,"method":"positions","params":{{"account":"sim101"}}}}')
"#,
        burst = QUOTA.burst(),
        requests = QUOTA.burst() + 5,
        encoded = BASE64_URL_SAFE_NO_PAD.encode(trader),
    )
}
