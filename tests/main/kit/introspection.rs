//! An authorization server with an introspection endpoint, over real connections.

use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri, header};
use http_body_util::BodyExt as _;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tollgate::store::{Claims, ClientAuth, IntrospectionBuilder, IntrospectionError, IntrospectionStore};
use tollgate::{AuthLayer, BearerToken, Grant, StoreError, TokenStore};
use tower::Layer as _;

use super::{Body, TOKEN, echo, field, send, with_token};

/// A request that a server received.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: String,
}

pub type Log = Arc<Mutex<Vec<Seen>>>;

/// Starts a server whose response is a function of the token. Returns its address and the log of requests.
pub async fn server(answer: impl Fn(&str) -> Response<Body> + Send + Sync + 'static) -> (SocketAddr, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (log, answer) = (Log::default(), Arc::new(answer));
    let seen = Arc::clone(&log);
    let app = Router::new().fallback(move |request: Request<axum::body::Body>| {
        let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
        async move {
            let (head, body) = request.into_parts();
            let body = String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap();
            let token = body.strip_prefix("token=").and_then(|rest| rest.split('&').next()).unwrap_or_default();
            let token = percent_decode_str(token).decode_utf8_lossy().into_owned();
            log.lock().unwrap().push(Seen { method: head.method, uri: head.uri, headers: head.headers, body });
            answer(&token)
        }
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, seen)
}

pub fn answer(body: impl Into<Bytes>) -> Response<Body> {
    Response::builder().header(header::CONTENT_TYPE, "application/json").body(Body::new(body.into())).unwrap()
}

/// Starts a server that returns these claims for [`TOKEN`], and knows no other token.
pub async fn says(claims: Value) -> (SocketAddr, Log) {
    let claims = claims.to_string();
    server(move |token| answer(if token == TOKEN { claims.clone() } else { json!({"active": false}).to_string() }))
        .await
}

pub fn auth() -> ClientAuth {
    ClientAuth::basic("gate", "s3cret").unwrap()
}

pub fn builder(address: SocketAddr) -> IntrospectionBuilder {
    // Long enough for a slow machine.
    IntrospectionStore::builder(&format!("http://{address}/introspect"), auth()).with_timeout(Duration::from_secs(60))
}

pub fn store(address: SocketAddr) -> IntrospectionStore {
    builder(address).build().unwrap()
}

/// The error of a lookup. Dereferences to its source.
#[derive(Debug)]
pub struct Failure(StoreError);

impl std::ops::Deref for Failure {
    type Target = IntrospectionError;

    fn deref(&self) -> &IntrospectionError {
        self.0.source().and_then(|source| source.downcast_ref()).unwrap()
    }
}

pub async fn ask<P: Send + Sync + 'static>(store: &IntrospectionStore<P>) -> Result<Option<Arc<Grant<P>>>, Failure> {
    store.lookup(&BearerToken::new(TOKEN)).await.map_err(Failure)
}

/// Returns the grant that a response with these claims produces. The default subject is `alice`.
pub async fn grant(mut claims: Value) -> Arc<Grant<Claims>> {
    if claims.get("sub").is_none() {
        claims["sub"] = "alice".into();
    }
    claims["active"] = true.into();
    ask(&store(says(claims).await.0)).await.unwrap().unwrap()
}

/// Returns the response of a gate with this store.
pub async fn send_through_gate<T: TokenStore>(store: T) -> Response<Body> {
    let gate = AuthLayer::with_timeout(store, Duration::from_secs(60));
    send(&gate.layer(echo()), with_token(TOKEN)).await
}

pub fn printed_chain(error: &IntrospectionError) -> String {
    let mut printed = format!("{error} {error:?} {error:#?}");
    let mut source = error.source();
    while let Some(error) = source {
        printed.push_str(&format!(" {error} {error:?}"));
        source = error.source();
    }
    printed
}

/// Checks that a lookup fails and that a gate responds with 503. Returns the error.
pub async fn fails<P: Send + Sync + 'static>(store: IntrospectionStore<P>, what: &str) -> Failure {
    let Err(error) = ask(&store).await else { panic!("{what}: not an error") };
    let printed = format!("{} {:?} {}", error.0, error.0, printed_chain(&error));
    assert_eq!(error.0.concerns_token(), error.concerns_token(), "{what}");
    assert!(
        !printed.contains(TOKEN) && !printed.contains("s3cret") && !printed.contains("CANARY"),
        "{what}: {printed}"
    );
    let rejected = send_through_gate(store).await;
    assert_eq!(rejected.status(), 503, "{what}");
    assert_eq!(field(rejected.headers(), "www-authenticate"), None, "{what}");
    error
}

/// Starts a server that sends each connection to the test when its request is complete.
pub async fn manual_server() -> (SocketAddr, mpsc::UnboundedReceiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"token_type_hint=access_token") {
                if connection.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let _ = sender.send(connection);
        }
    });
    (address, receiver)
}

pub const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
