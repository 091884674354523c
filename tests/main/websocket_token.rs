//! Tokens in the WebSocket sub-protocol.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use http::{HeaderValue, Method, Request, Version};
use tollgate::{AuthLayer, RejectionKind, TokenLocation};

use crate::kit::location::*;
use crate::kit::*;

fn upgrade(protocols: &[&str]) -> Request<Body> {
    let mut request = get();
    request.headers_mut().insert("connection", HeaderValue::from_static("Upgrade"));
    request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    for line in protocols {
        request.headers_mut().append("sec-websocket-protocol", line.parse().unwrap());
    }
    request
}

fn protocol_item(token: &str) -> String {
    format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(token))
}

#[tokio::test]
async fn websocket_tokens_are_removed_from_the_offered_protocols() {
    let layer = AuthLayer::new(memory()).with_websocket_token(PREFIX).unwrap();
    let own = protocol_item(TOKEN);
    for (lines, left) in [
        (&[&*format!("chat, {own}")][..], "chat"),
        (&[&*format!("{own}, chat")], "chat"),
        (&[&*format!("{own},chat,superchat")], "chat, superchat"),
        (&["v2 , chat", &own, "superchat"], "v2, chat, superchat"),
        (&[&own, ",, chat ,"], "chat"),
    ] {
        let received_request = received(&layer, upgrade(lines)).await;
        assert_eq!(received_request.location, Some(TokenLocation::WebSocketProtocol));
        assert_eq!(values(&received_request.headers, "sec-websocket-protocol"), [left], "{lines:?}");
        assert_eq!(values(&received_request.headers, "upgrade"), ["websocket"]);
    }
    // Without a WebSocket handshake no protocol may remain.
    let mut request = with_token(TOKEN);
    request.headers_mut().insert("sec-websocket-protocol", own.parse().unwrap());
    assert_eq!(values(&received(&layer, request).await.headers, "sec-websocket-protocol"), [""; 0]);
    for (lines, kind) in [
        (vec!["chat".to_owned()], RejectionKind::Missing),
        (vec![], RejectionKind::Missing),
        (vec![own.clone()], RejectionKind::InvalidRequest),
        (vec![format!("{own},")], RejectionKind::InvalidRequest),
        (vec![format!("chat, {own}, {own}")], RejectionKind::InvalidRequest),
        (vec![format!("chat, {own}"), own.clone()], RejectionKind::InvalidRequest),
        (vec![format!("chat, {PREFIX}YWI=")], RejectionKind::InvalidRequest),
        (vec![format!("chat, {PREFIX}a+b/")], RejectionKind::InvalidRequest),
        (vec![format!("chat, {PREFIX}a")], RejectionKind::InvalidRequest),
        (vec![format!("chat, {PREFIX}")], RejectionKind::MalformedToken),
        (vec![format!("chat, {}", protocol_item("a b"))], RejectionKind::MalformedToken),
        (vec![format!("chat, {}", protocol_item("unknown"))], RejectionKind::UnknownToken),
        (vec![format!("chat, {}", own.to_uppercase())], RejectionKind::Missing),
    ] {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(rejection_kind(&layer, upgrade(&lines)).await, kind, "{lines:?}");
    }
}

#[tokio::test]
async fn only_websocket_handshakes_are_searched() {
    let layer = AuthLayer::new(memory()).with_websocket_token(PREFIX).unwrap();
    let offer = format!("chat, {}", protocol_item(TOKEN));
    let request = |method: Method, version: Version, upgrades: &[&'static str]| {
        let mut request = upgrade(&[&offer]);
        *request.method_mut() = method;
        *request.version_mut() = version;
        request.headers_mut().remove("upgrade");
        for upgrade in upgrades {
            request.headers_mut().append("upgrade", HeaderValue::from_static(upgrade));
        }
        request
    };
    for (method, version, upgrades) in [
        (Method::GET, Version::HTTP_11, &["WebSocket"][..]),
        (Method::GET, Version::HTTP_11, &["h2c, websocket"]),
        (Method::GET, Version::HTTP_11, &["h2c", " websocket\t"]),
        // HTTP/2 and HTTP/3 use `:protocol` for the upgrade.
        (Method::CONNECT, Version::HTTP_2, &[]),
        (Method::CONNECT, Version::HTTP_3, &[]),
    ] {
        let received_request = received(&layer, request(method.clone(), version, upgrades)).await;
        assert_eq!(
            received_request.location,
            Some(TokenLocation::WebSocketProtocol),
            "{method} {version:?} {upgrades:?}"
        );
        assert_eq!(values(&received_request.headers, "sec-websocket-protocol"), ["chat"]);
    }
    for (method, version, upgrades) in [
        (Method::GET, Version::HTTP_11, &[][..]),
        (Method::GET, Version::HTTP_11, &["h2c"]),
        (Method::GET, Version::HTTP_11, &["websockets"]),
        (Method::GET, Version::HTTP_2, &[]),
        (Method::POST, Version::HTTP_11, &["websocket"]),
        (Method::CONNECT, Version::HTTP_11, &["websocket"]),
    ] {
        let kind = rejection_kind(&layer, request(method.clone(), version, upgrades)).await;
        assert_eq!(kind, RejectionKind::Missing, "{method} {version:?} {upgrades:?}");
        // A location that is not searched does not conflict with another credential.
        let request = with_token_at(request(method, version, upgrades), TokenLocation::AuthorizationHeader, TOKEN);
        assert_eq!(received(&layer, request).await.location, Some(TokenLocation::AuthorizationHeader));
    }
}
