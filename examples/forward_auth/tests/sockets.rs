//! WebSockets: the gate checks their handshake only.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::processes::{Backend, are_installed};
use super::setup::seen_fields;
use super::*;
use crate::proxy::Proxy;

with_each_proxy! {
    socket_is_checked_at_its_handshake
    other_protocols_are_not_passed_on
}

async fn other_protocols_are_not_passed_on(proxy: Proxy) {
    let setup = Setup::start(proxy);
    for protocols in [&["h2c"][..], &["websocket", "h2c"], &["h2c", "websocket"], &["websocket, h2c"]] {
        let mut upgrade = request("GET", "/v1/a", EVE).header("connection", "upgrade, http2-settings");
        upgrade = upgrade.header("http2-settings", "AAMAAABkAAQAAP__");
        for protocol in protocols {
            upgrade = upgrade.header("upgrade", *protocol);
        }
        // Without a key, the service does not accept a WebSocket.
        let response = setup.send(upgrade).await;
        let seen = response.seen_fields("upgrade");
        assert!(seen.is_empty() || seen == ["websocket"], "{protocols:?}: {seen:?}");
    }
}

#[tokio::test]
async fn service_accepts_no_socket_without_a_caller() {
    if !are_installed(Proxy::Nginx, "service_accepts_no_socket_without_a_caller") {
        return;
    }
    let backend = Backend::start();
    let request = format!("ws://{}/v1/stream", backend.addr).into_client_request().unwrap();
    let Err(Error::Http(rejection)) = connect_async(request).await else { panic!("the socket is open") };
    assert_eq!(rejection.status(), 403);
}

async fn socket_is_checked_at_its_handshake(proxy: Proxy) {
    let setup = Setup::start(proxy);
    let connect = async |authorization: &str| {
        let mut request = format!("ws://{}/v1/stream", setup.proxy.addr).into_client_request().unwrap();
        request.headers_mut().insert("authorization", authorization.parse().unwrap());
        request.headers_mut().insert("x-auth-subject", "admin".parse().unwrap());
        connect_async(request).await
    };
    let Err(Error::Http(rejection)) = connect("Bearer tg_guess").await else { panic!("the socket is open") };
    assert_eq!(rejection.status(), 401);
    assert_eq!(rejection.headers()["www-authenticate"], r#"Bearer realm="api", error="invalid_token""#);

    let (mut socket, _) = connect(EVE).await.unwrap();
    let seen = socket.next().await.unwrap().unwrap().into_text().unwrap();
    let seen = serde_json::from_str(&seen).unwrap();
    assert_eq!(seen_fields(&seen, "x-auth-subject"), ["eve@api.test"]);
    assert!(seen_fields(&seen, "authorization").is_empty(), "{seen}");
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
    }
    socket.close(None).await.unwrap();
    // The socket has cost one unit, and this request is the second.
    assert_eq!(setup.send(request("GET", "/v1/a", EVE)).await.field("ratelimit"), r#""default";r=18;t=1"#);
}
