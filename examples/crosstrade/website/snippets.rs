//! Lines to copy, with the user's own values.

use axum::http::request::Parts;
use maud::{Markup, html};
use tollgate::RequestHead;

use super::Site;
use crate::app::TOKEN_PROTOCOL;
use crate::plaintext::authority;
use crate::stream::PROTOCOL;

/// The text in place of a token that is not shown.
const PLACEHOLDER: &str = "YOUR_TOKEN";

/// The address of this service, as the browser uses it: `https` or `http`, and the host with its port.
pub(crate) struct Origin {
    is_https: bool,
    host: String,
}

impl Origin {
    pub(crate) fn of(site: &Site, parts: &Parts) -> Self {
        let host = authority(&RequestHead::from(parts)).map_or_else(|| "localhost".to_owned(), |host| host.to_string());
        // Where HTTPS is required, pages came over it.
        Self { is_https: site.service.access.is_https.is_some(), host }
    }

    fn http(&self) -> String {
        format!("{}://{}", if self.is_https { "https" } else { "http" }, self.host)
    }

    fn websocket(&self) -> String {
        format!("{}://{}", if self.is_https { "wss" } else { "ws" }, self.host)
    }
}

/// Renders all snippets. Without a token they have a placeholder.
pub(crate) fn snippets(origin: &Origin, token: Option<&str>, account: &str) -> Markup {
    let http = origin.http();
    // A browser removes the token with everything else that is secret.
    let key = html! {
        @match token {
            Some(token) => span.secret data-mask=(PLACEHOLDER) { (token) },
            None => (PLACEHOLDER),
        }
    };
    let order = "instrument=ES 12-26;action=BUY;qty=1;order_type=MARKET;tif=DAY;";
    html! {
        (snippet("curl", "REST API with curl", html! {
            "curl -H 'Authorization: Bearer " (key) "' '" (http) "/v1/api/accounts'"
        }))
        (snippet("alert-text", "TradingView alert, text", html! {
            "key=" (key) ";command=PLACE;account=" (account) ";" (order)
        }))
        (snippet("alert-json", "TradingView alert, JSON", html! {
            "{\"key\": \"" (key) "\", \"command\": \"PLACE\", \"account\": \"" (account) "\", \"instrument\": \"ES 12-26\", "
            "\"action\": \"BUY\", \"qty\": 1, \"order_type\": \"MARKET\", \"tif\": \"DAY\"}"
        }))
        p.hint { "The webhook address for TradingView is " code { (http) "/v1/webhook" } "." }
        (snippet("websocket", "WebSocket in JavaScript", html! {
            "const token = btoa('" (key) "').replace(/=+$/, '');\n"
            "const socket = new WebSocket('" (origin.websocket()) "/ws/stream', ['" (PROTOCOL) "', '" (TOKEN_PROTOCOL) "' + token]);\n"
            "socket.onmessage = (event) => console.log(event.data);\n"
            "socket.onopen = () => socket.send('{\"op\":\"rpc\",\"id\":1,\"method\":\"positions\",\"params\":{\"account\":\""
            (account) "\"}}');"
        }))
    }
}

fn snippet(id: &str, title: &str, text: Markup) -> Markup {
    html! {
        div.snippet {
            div.snippet-head {
                h3 id={ (id) "-title" } { (title) }
                button.copy.quiet type="button" data-copy=(id) hidden { "Copy" span.visually-hidden { " " (title) } }
            }
            pre tabindex="0" role="region" aria-labelledby={ (id) "-title" } { code id=(id) { (text) } }
        }
    }
}
