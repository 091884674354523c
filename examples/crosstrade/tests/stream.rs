use axum::http::{HeaderValue, StatusCode};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use futures_util::{SinkExt, StreamExt};
use serde_json::json as value;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::{Request as Handshake, Response as Opened};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tollgate::store::Invalidation;

use super::live::short_steps;
use super::*;
use crate::sockets::MAX_SOCKETS;
use crate::stream::PING_EVERY;

type Client = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

pub(crate) struct Socket {
    client: Client,
    opened: Opened,
}

impl Socket {
    /// Opens a socket with the token in the header.
    pub(crate) async fn open(server: &Server, token: &str) -> Self {
        Self::connect(handshake(server, token)).await.unwrap()
    }

    /// Opens one as a script in a browser does, with the token among the sub-protocols.
    async fn open_by_protocol(server: &Server, protocols: &str) -> Result<Self, StatusCode> {
        let mut handshake = format!("ws://{}/ws/stream", server.addr).into_client_request().unwrap();
        let protocols = HeaderValue::from_str(protocols).unwrap();
        handshake.headers_mut().insert("sec-websocket-protocol", protocols);
        Self::connect(handshake).await
    }

    /// Returns the status of a rejected handshake.
    pub(crate) async fn rejected(server: &Server, token: &str) -> StatusCode {
        Self::connect(handshake(server, token)).await.err().expect("rejected")
    }

    async fn connect(handshake: Handshake) -> Result<Self, StatusCode> {
        match tokio_tungstenite::connect_async(handshake).await {
            Ok((client, opened)) => Ok(Self { client, opened }),
            Err(Error::Http(response)) => Err(response.status()),
            Err(error) => panic!("{error}"),
        }
    }

    fn protocol(&self) -> Option<&str> {
        Some(self.opened.headers().get("sec-websocket-protocol")?.to_str().unwrap())
    }

    pub(crate) async fn ask(&mut self, message: impl Into<Message>) -> Value {
        self.send(message).await;
        match self.next().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn send(&mut self, message: impl Into<Message>) {
        self.client.send(message.into()).await.unwrap();
    }

    /// The next message. Pings are answered on the way.
    async fn next(&mut self) -> Message {
        loop {
            // So that a test that waits in vain fails; none waits for this time to pass.
            let message = tokio::time::timeout(Duration::from_secs(600), self.client.next()).await;
            match message.expect("in time").expect("a Close frame comes first").unwrap() {
                Message::Ping(_) => {}
                message => return message,
            }
        }
    }

    /// The code with which the server closes.
    async fn closed(&mut self) -> u16 {
        match self.next().await {
            Message::Close(Some(CloseFrame { code, .. })) => code.into(),
            other => panic!("{other:?}"),
        }
    }
}

fn handshake(server: &Server, token: &str) -> Handshake {
    let mut handshake = format!("ws://{}/ws/stream", server.addr).into_client_request().unwrap();
    let bearer = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    handshake.headers_mut().insert("authorization", bearer);
    handshake
}

/// The sub-protocol that holds a token.
fn item(token: &str) -> String {
    format!("base64url.bearer.authorization.crosstrade.{}", BASE64_URL_SAFE_NO_PAD.encode(token))
}

pub(crate) fn ping() -> Message {
    Message::text(r#"{"op":"ping"}"#)
}

fn rpc(method: &str, params: &Value) -> Message {
    Message::text(value!({ "op": "rpc", "id": 7, "method": method, "params": params }).to_string())
}

#[tokio::test]
async fn a_token_in_the_header_opens() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, TRADER).await;
    assert_eq!(socket.protocol(), None, "none was offered");
    assert_eq!(socket.ask(ping()).await, value!({ "op": "pong" }));
    assert_eq!(Socket::rejected(&server, "ct_guess").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_token_in_a_sub_protocol_opens_and_never_comes_back() {
    let server = Server::start().await;
    let token = item(TRADER);
    for protocols in [format!("{token}, crosstrade.v1"), format!("crosstrade.v1,{token}")] {
        let mut socket = Socket::open_by_protocol(&server, &protocols).await.unwrap();
        assert_eq!(socket.protocol(), Some("crosstrade.v1"));
        assert!(socket.opened.headers().values().all(|value| value != token.as_str()));
        assert_eq!(socket.ask(ping()).await["op"], "pong");
    }
    for (protocols, status) in [
        ("crosstrade.v1".to_owned(), StatusCode::UNAUTHORIZED),
        (format!("{}, crosstrade.v1", item("ct_guess")), StatusCode::UNAUTHORIZED),
        (token.clone(), StatusCode::BAD_REQUEST),
        (format!("{token}, {token}, crosstrade.v1"), StatusCode::BAD_REQUEST),
        (format!("{token}%, crosstrade.v1"), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(Socket::open_by_protocol(&server, &protocols).await.err(), Some(status), "{protocols}");
    }
}

#[tokio::test]
async fn all_methods_are_answered() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, TRADER).await;
    let accounts = socket.ask(rpc("accounts", &Value::Null)).await;
    let expected =
        value!({ "op": "result", "id": 7, "method": "accounts", "result": { "accounts": ["sim101", "sim102"] } });
    assert_eq!(accounts, expected);

    let order = value!({ "account": "sim101", "instrument": "ES", "action": "BUY", "qty": 2 });
    assert_eq!(socket.ask(rpc("place", &order)).await["result"]["status"], "FILLED");
    let sim101 = value!({ "account": "sim101" });
    assert_eq!(socket.ask(rpc("positions", &sim101)).await["result"]["positions"][0]["qty"], 2);
    assert_eq!(socket.ask(rpc("orders", &sim101)).await["result"]["orders"][0]["qty"], 2);
    assert_eq!(socket.ask(rpc("flatten", &sim101)).await["result"]["orders"][0]["action"], "SELL");

    for (message, status) in [
        (rpc("positions", &value!({ "account": "nowhere" })), 404),
        (rpc("positions", &Value::Null), 400),
        (rpc("place", &value!({ "account": "sim101", "instrument": "ES", "action": "BUY", "qty": 0 })), 400),
        (rpc("dance", &Value::Null), 404),
        (Message::text("{"), 400),
        (Message::text(r#"{"op":"dance"}"#), 400),
    ] {
        let answer = socket.ask(message.clone()).await;
        assert_eq!((&answer["op"], &answer["status"]), (&"error".into(), &status.into()), "{message}: {answer}");
    }

    let mut reader = Socket::open(&server, READER).await;
    assert_eq!(reader.ask(rpc("place", &order)).await["status"], 403);
    assert_eq!(reader.ask(rpc("positions", &sim101)).await["result"]["positions"], value!([]));
}

#[tokio::test]
async fn sockets_end_when_the_token_is_revoked() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, TRADER).await;
    assert_eq!(socket.ask(ping()).await["op"], "pong");
    server.tokens.revoke(TokenDigest::of(TRADER));
    socket.send(ping()).await;
    assert_eq!(socket.closed().await, 1008);
}

#[tokio::test]
async fn sockets_end_when_the_token_expires_or_gets_another_grant() {
    let server = Server::start().await;
    let user = || User { name: "demo".to_owned() };
    server
        .tokens
        .insert(
            TokenDigest::of("ct_brief"),
            Grant::new("brief", user()).with_expiry(UNIX_EPOCH + Duration::from_secs(60)),
        )
        .unwrap();
    server.tokens.insert(TokenDigest::of("ct_sold"), Grant::new("seller", user())).unwrap();
    let mut brief = Socket::open(&server, "ct_brief").await;
    let mut sold = Socket::open(&server, "ct_sold").await;
    server.set_clocks(59);
    assert_eq!(brief.ask(ping()).await["op"], "pong");
    server.set_clocks(60);
    brief.send(ping()).await;
    assert_eq!(brief.closed().await, 1008);

    server.tokens.replace(TokenDigest::of("ct_sold"), Grant::new("buyer", user()));
    sold.send(ping()).await;
    assert_eq!(sold.closed().await, 1008);
}

/// Nothing is sent here. Time is the runtime's own, which jumps to the next timer when there is nothing else to do.
#[tokio::test(start_paused = true)]
async fn silent_sockets_end_with_their_token() {
    short_steps();
    let server = Server::start().await;
    let brief = Grant::new("brief", User { name: "demo".to_owned() }).with_expiry(UNIX_EPOCH + Duration::from_secs(60));
    server.tokens.insert(TokenDigest::of("ct_brief"), brief).unwrap();
    let mut revoked = Socket::open(&server, TRADER).await;
    let mut expired = Socket::open(&server, "ct_brief").await;
    let mut kept = Socket::open(&server, READER).await;
    server.tokens.revoke(TokenDigest::of(TRADER));
    server.live.refresh(&Invalidation::Grant("demo-1".into()));
    assert_eq!(revoked.closed().await, 1008);
    server.set_clocks(60);
    assert_eq!(expired.closed().await, 1008);
    assert_eq!(kept.ask(ping()).await["op"], "pong", "another token of the same user");
}

/// One client answers pings, and one is gone without a Close frame.
#[tokio::test(start_paused = true)]
async fn sockets_end_when_the_client_is_gone() {
    short_steps();
    let server = Server::start().await;
    let mut here = Socket::open(&server, TRADER).await;
    let mut gone = Socket::open(&server, TRADER).await;
    tokio::select! {
        message = here.next() => panic!("nothing was asked: {message:?}"),
        () = tokio::time::sleep(3 * PING_EVERY) => {}
    }
    // What it finds is the ping that it did not answer, and the end.
    let end = async { while let Some(Ok(Message::Ping(_))) = gone.client.next().await {} };
    tokio::time::timeout(3 * PING_EVERY, end).await.expect("the server closes");
    assert_eq!(here.ask(ping()).await["op"], "pong");
}

/// The sockets of all tokens of a user count, and those that have ended do not.
#[tokio::test]
async fn sockets_of_a_user_are_limited() {
    let server = Server::start().await;
    let open = |token| Socket::connect(handshake(&server, token));
    let mut sockets = Vec::new();
    for at in 0..MAX_SOCKETS {
        sockets.push(open([TRADER, READER][at % 2]).await.unwrap());
    }
    assert_eq!(open(TRADER).await.err(), Some(StatusCode::TOO_MANY_REQUESTS));
    assert!(open("ct_other").await.is_ok());
    let mut last = sockets.pop().unwrap();
    last.client.close(None).await.unwrap();
    while last.client.next().await.is_some_and(|message| message.is_ok()) {}
    // The bucket has units for three more.
    for _ in 0..3 {
        if open(TRADER).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("one has ended, and no other may take its place");
}

#[tokio::test]
async fn sockets_are_closed_when_the_service_stops() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, TRADER).await;
    server.close.send(true).unwrap();
    assert_eq!(socket.closed().await, 1001);
}

#[tokio::test]
async fn a_plain_request_gets_400() {
    let server = Server::start().await;
    assert_problem(&server.get(TRADER, "/ws/stream").await, StatusCode::BAD_REQUEST);
}
