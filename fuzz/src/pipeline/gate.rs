//! The gate under test, with its store and inner service.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream;
use http::request::Parts;
use http::{HeaderName, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use tollgate::gate::{BodyTokens, ReplayBody};
use tollgate::store::{Lookup, TokenStore};
use tollgate::{Answer, AuthLayer, BearerToken, Grant, ProblemDetails, Quota, RateLimits};
use tower::{Layer, ServiceExt, service_fn};

use super::model::{Condition, condition, subject};
use super::options::{INTERVAL_NS, OTHER, Options};
use crate::check::{API_KEY, token_form};
use crate::oracle::latin_1;
use crate::request::Sent;

/// The real layers.
pub struct Gate {
    layer: AuthLayer<Store, RateLimits, ProblemDetails, BodyTokens>,
    clock: Arc<AtomicU64>,
    asked: Arc<Mutex<Vec<String>>>,
    chunked: bool,
}

/// The request that the inner service received, and the tokens that the store was asked for.
pub struct Received {
    pub head: Parts,
    pub body: Bytes,
    pub asked: Vec<String>,
}

/// A response with its collected body.
pub type Collected = Response<Bytes>;

type Body = BoxBody<Bytes, Infallible>;

impl Gate {
    pub fn new(options: &Options) -> Self {
        let (clock, asked) = (Arc::new(AtomicU64::new(0)), Arc::default());
        let (reading, locations) = (Arc::clone(&clock), &options.locations);
        let quota = Quota::try_per(1, Duration::from_nanos(INTERVAL_NS as u64)).expect("it is not 0");
        let mut limits = RateLimits::new(quota.with_burst(options.burst))
            .with_clock(move || Duration::from_nanos(reading.load(Ordering::Relaxed)));
        if options.partition_key {
            limits = limits.with_partition_key(|subject| subject.as_str().as_bytes()[..2].to_vec());
        }
        let store = Store { pending: options.pending, asked: Arc::clone(&asked) };
        let mut gate = AuthLayer::with_timer(store, Duration::from_secs(1), |_| std::future::pending())
            .with_max_token_len(locations.token.max_len)
            .with_charset(token_form(locations.token).charset())
            .with_wall_clock(wall_clock);
        if locations.api_key {
            let with_key = match locations.api_key_unless_bearer {
                true => gate.with_api_key_header_unless_bearer(API_KEY),
                false => gate.with_api_key_header(API_KEY),
            };
            gate = with_key.expect("an unused field");
        }
        if locations.query {
            gate = gate.with_discouraged_query_token("access_token").expect("a name");
        }
        if let Some(prefix) = &locations.websocket {
            gate = gate.with_websocket_token(prefix).expect("an HTTP token");
        }
        if locations.other.is_some() {
            gate = gate
                .with_token_from(|head| Some(head.headers.get(HeaderName::from_static(OTHER))?.as_bytes().to_vec()));
        }
        if options.removes_credentials {
            gate = gate.with_credentials_removed();
        }
        if options.anonymous {
            gate = gate.allow_anonymous();
        }
        if !locations.preflight {
            gate = gate.without_preflight_bypass();
        }
        let layer = gate.with_rate_limit(limits).with_body_tokens(body_tokens(options));
        Self { layer, clock, asked, chunked: options.chunked }
    }

    /// Sends a request at a time.
    pub fn send(&self, sent: &Sent, now: i128) -> (Collected, Option<Received>) {
        self.clock.store(now as u64, Ordering::Relaxed);
        self.asked.lock().expect("no panic").clear();
        let request = sent.to_http(self.body(&sent.body)).expect("a valid request");
        let inner = Mutex::new(None);
        let inner = Arc::new(inner);
        let received = Arc::clone(&inner);
        let handler = service_fn(move |request: Request<ReplayBody<Body>>| {
            let received = Arc::clone(&received);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let before = received.lock().expect("no panic").replace((head, body));
                assert!(before.is_none(), "the inner service was called twice");
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("inner")))
            }
        });
        let (head, body) = futures_executor::block_on(async {
            let Ok(answer) = self.layer.layer(handler).oneshot(request).await;
            let (head, body) = answer.into_parts();
            let Ok(body) = body.collect().await;
            (head, body.to_bytes())
        });
        let asked = self.asked.lock().expect("no panic").clone();
        let received = inner.lock().expect("no panic").take().map(|(head, body)| Received { head, body, asked });
        (Response::from_parts(head, body), received)
    }

    fn body(&self, bytes: &[u8]) -> Body {
        if !self.chunked {
            return Full::from(bytes.to_vec()).boxed();
        }
        let size = bytes.len() / 50 + 1;
        let frames: Vec<_> =
            bytes.chunks(size).map(|chunk| Ok(http_body::Frame::data(Bytes::copy_from_slice(chunk)))).collect();
        BodyExt::boxed(StreamBody::new(stream::iter(frames)))
    }
}

fn body_tokens(options: &Options) -> BodyTokens {
    let mut tokens = BodyTokens::with_timer(Duration::from_secs(1), |_| std::future::pending());
    tokens = tokens.with_limit(options.locations.max_body);
    if options.locations.form {
        tokens = tokens.with_form("access_token").expect("a name");
    }
    if options.locations.json {
        tokens = tokens.with_json("key").expect("a name");
    }
    if options.locations.text {
        tokens = tokens.with_text("key").expect("a name");
    }
    if options.locations.json_in_text { tokens.with_json_in_text() } else { tokens }
}

fn wall_clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

/// A store that knows every token by its beginning.
struct Store {
    pending: bool,
    asked: Arc<Mutex<Vec<String>>>,
}

impl TokenStore for Store {
    type Principal = ();
    type Error = &'static str;
    type Future = Ready<Lookup<(), &'static str>>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        let token = latin_1(token.expose());
        let grant = Grant::new("a grant", ()).with_subject(subject(&token));
        let second = Duration::from_secs(1);
        let found = match condition(&token) {
            Condition::Good => Ok(Some(grant)),
            Condition::Unknown => Ok(None),
            Condition::Expired => Ok(Some(grant.with_expiry(wall_clock() - second))),
            Condition::NotYetValid => Ok(Some(grant.with_not_before(wall_clock() + second))),
            Condition::SenderConstrained => Ok(Some(grant.with_sender_constraint())),
            Condition::Unavailable => Err("the store is unavailable"),
        };
        let found = found.map(|grant| grant.map(Arc::new));
        self.asked.lock().expect("no panic").push(token);
        if self.pending { Answer::Pending(ready(found)) } else { Answer::Ready(found) }
    }
}
