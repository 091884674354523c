//! Helpers that several modules need.

use std::convert::Infallible;
use std::fmt::Debug;
use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tollgate::TokenDigest;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::{BodyExt, Full};
use tokio::net::TcpListener;
use tokio::process::Command;
use tollgate::limit::{Charge, Clock, RateLimits};
use tollgate::store::{Lookup, from_fn_with};
use tollgate::{Answer, BearerToken, BoxStore, Grant, Immediate, Limit, MemoryStore, TokenStore};
use tower::{Service, ServiceExt};

pub mod body;
#[cfg(feature = "introspection")]
pub mod introspection;
#[cfg(all(feature = "jwt", feature = "cache", feature = "test-util"))]
pub mod jwt;
pub mod location;
#[cfg(feature = "cache")]
pub mod remote;

pub type Body = Full<Bytes>;

pub const TOKEN: &str = "tg_W7xHq0fN3kLr9sVb2mZd8pTy";

#[derive(Clone, Debug, PartialEq)]
pub struct User(pub &'static str);

/// Returns a store with [`TOKEN`] and a second token of the same subject.
pub fn memory() -> MemoryStore<User> {
    MemoryStore::from_iter([
        (TokenDigest::of(TOKEN), Grant::new("alice", User("Alice"))),
        (TokenDigest::of("tg_another_token_of_alice"), Grant::new("alice-2", User("Alice")).with_subject("alice")),
    ])
}

/// Returns the store of [`memory`] as a pending store.
pub fn slow() -> BoxStore<User> {
    pending(memory())
}

/// Returns a store with these tokens whose answers are pending.
pub fn pending(tokens: MemoryStore<User>) -> BoxStore<User> {
    BoxStore::new(from_fn_with(tokens, |memory, digest| async move {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(memory.get(digest).map(|grant| Grant::clone(&grant)))
    }))
}

/// A store whose lookups fail immediately.
pub struct Failing;

impl TokenStore for Failing {
    type Principal = ();
    type Error = std::io::Error;
    type Future = Immediate<Lookup<(), std::io::Error>>;

    fn lookup(&self, _: &BearerToken<'_>) -> Answer<Self::Future> {
        Answer::Ready(Err(std::io::Error::other("out of memory")))
    }
}

/// A clock that the test sets.
#[derive(Clone, Default)]
pub struct Hands(Arc<AtomicU64>);

impl Hands {
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_nanos()).unwrap(), Ordering::SeqCst);
    }

    pub fn set_ns(&self, ns: u64) {
        self.0.store(ns, Ordering::SeqCst);
    }

    pub fn ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub fn clock(&self) -> impl Clock + use<> {
        let hands = self.clone();
        move || Duration::from_nanos(hands.ns())
    }

    pub fn limits(&self, limit: impl Into<Limit>) -> RateLimits {
        RateLimits::new(limit).with_clock(self.clock())
    }
}

pub const ONE: Charge<'static> = Charge::Units(1);

pub fn get() -> Request<Body> {
    Request::get("/").body(Body::default()).unwrap()
}

pub fn with_token(token: &str) -> Request<Body> {
    let mut request = get();
    request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    request
}

pub fn preflight() -> Request<Body> {
    Request::options("/")
        .header("origin", "https://app.example")
        .header("access-control-request-method", "POST")
        .body(Body::default())
        .unwrap()
}

/// Returns an inner service that responds with the headers and extensions of the request.
pub fn echo() -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ Sync
+ 'static {
    tower::service_fn(|request: Request<Body>| async move {
        let mut response = Response::new(Body::default());
        *response.extensions_mut() = request.extensions().clone();
        for (name, value) in request.headers() {
            response.headers_mut().append(name.clone(), value.clone());
        }
        Ok(response)
    })
}

pub async fn send<S, B>(service: &S, request: Request<Body>) -> Response<B>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone,
{
    service.clone().oneshot(request).await.unwrap_or_else(|never| match never {})
}

/// Sends concurrent requests, each by a clone of the service, and checks the status of each response.
pub async fn all_at_once<S, B>(service: &S, requests: impl IntoIterator<Item = (Request<B>, u16)>)
where
    S: Service<Request<B>, Response = Response<Body>, Error: Debug + Send, Future: Send> + Clone + Send + 'static,
    B: Send + 'static,
{
    let mut answers = Vec::new();
    for (request, expected) in requests {
        let mut service = service.clone();
        answers.push(tokio::spawn(async move {
            let status = service.ready().await.unwrap().call(request).await.unwrap().status();
            assert_eq!(status, expected);
        }));
    }
    for answer in answers {
        answer.await.unwrap();
    }
}

pub async fn text<B>(response: Response<B>) -> String
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.into()).unwrap()
}

pub async fn json<B>(response: Response<B>) -> serde_json::Value
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    serde_json::from_str(&text(response).await).unwrap()
}

/// Returns the lines of a field.
pub fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

pub fn field<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

/// Serves HTTP/1 and HTTP/2 on a free port until the runtime of the test ends.
pub async fn serve(app: axum::Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    addr
}

/// Runs a client of another language and returns its output, or `None`, with a message, where its program is missing.
pub async fn run(program: &str, args: &[&str], test: &str) -> Option<String> {
    let output = Command::new(program).args(args).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(60), output).await.expect("a client that ends");
    match output {
        Ok(output) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            assert!(output.status.success(), "{test}: {program}: {}{}", text(&output.stdout), text(&output.stderr));
            Some(text(&output.stdout))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            skip(program, test);
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// Says that a test is skipped for lack of a client. Fails if `TOLLGATE_REQUIRE_CLIENTS` is set.
pub fn skip(client: &str, test: &str) {
    assert!(
        std::env::var_os("TOLLGATE_REQUIRE_CLIENTS").is_none(),
        "{test}: no {client}, and TOLLGATE_REQUIRE_CLIENTS is set"
    );
    say(&format!("skipped: no {client}: {test}"));
}

/// Writes past the capture of the test harness.
pub fn say(what: &str) {
    _ = writeln!(std::io::stderr(), "{what}");
}
