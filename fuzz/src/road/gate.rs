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
use tollgate::gate::{BodyAuthLayer, BodyTokens, ReplayBody};
use tollgate::store::{Lookup, TokenStore};
use tollgate::{Answer, AuthLayer, BearerToken, Grant, Quota, RateLimits};
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

/// What the inner service got, and the tokens that the store was asked for.
pub struct Seen {
    pub head: Parts,
    pub body: Bytes,
    pub asked: Vec<String>,
}

/// An answer, collected.
pub type Answered = Response<Bytes>;

type Body = BoxBody<Bytes, Infallible>;

impl Gate {
    pub fn new(options: &Options) -> Self {
        let (clock, asked) = (Arc::new(AtomicU64::new(0)), Arc::default());
        let (hands, doors) = (Arc::clone(&clock), &options.doors);
        let quota = Quota::try_per(1, Duration::from_nanos(INTERVAL_NS as u64)).expect("it is not 0");
        let mut limits = RateLimits::new(quota.with_burst(options.burst))
            .with_clock(move || Duration::from_nanos(hands.load(Ordering::Relaxed)));
        if options.partition_key {
            limits = limits.with_partition_key(|subject| subject.as_str().as_bytes()[..2].to_vec());
        }
        let store = Store { waits: options.waits, asked: Arc::clone(&asked) };
        let mut gate = AuthLayer::with_timer(store, Duration::from_secs(1), |_| std::future::pending())
            .with_max_token_len(doors.token.max_len)
            .with_charset(token_form(doors.token).alphabet)
            .with_wall_clock(wall_clock);
        if doors.api_key {
            let opened = match doors.api_key_yields {
                true => gate.with_api_key_header_unless_bearer(API_KEY),
                false => gate.with_api_key_header(API_KEY),
            };
            gate = opened.expect("no other purpose");
        }
        if doors.query {
            gate = gate.with_discouraged_query_token("access_token").expect("a name");
        }
        if let Some(prefix) = &doors.websocket {
            gate = gate.with_websocket_token(prefix).expect("an HTTP token");
        }
        if doors.other.is_some() {
            gate = gate.with_token_from(|head| Some(head.headers.get(HeaderName::from_static(OTHER))?.as_bytes().to_vec()));
        }
        if options.removes_credentials {
            gate = gate.with_credentials_removed();
        }
        if options.anonymous {
            gate = gate.allow_anonymous();
        }
        if !doors.preflight {
            gate = gate.without_preflight_bypass();
        }
        let layer = gate.with_rate_limit(limits).with_body_tokens(body_doors(options));
        Self { layer, clock, asked, chunked: options.chunked }
    }

    /// Sends a request, at a time.
    pub fn send(&self, sent: &Sent, now: i128) -> (Answered, Option<Seen>) {
        self.clock.store(now as u64, Ordering::Relaxed);
        self.asked.lock().expect("no panic").clear();
        let request = sent.to_http(self.body(&sent.body)).expect("it was checked");
        let inner = Mutex::new(None);
        let inner = Arc::new(inner);
        let seen = Arc::clone(&inner);
        let handler = service_fn(move |request: Request<ReplayBody<Body>>| {
            let seen = Arc::clone(&seen);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let before = seen.lock().expect("no panic").replace((head, body));
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
        let seen = inner.lock().expect("no panic").take().map(|(head, body)| Seen { head, body, asked });
        (Response::from_parts(head, body), seen)
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

fn body_doors(options: &Options) -> BodyTokens {
    let mut doors = BodyTokens::with_timer(Duration::from_secs(1), |_| std::future::pending());
    doors = doors.with_limit(options.doors.max_body);
    if options.doors.form {
        doors = doors.with_form("access_token").expect("a name");
    }
    if options.doors.json {
        doors = doors.with_json("key").expect("a name");
    }
    if options.doors.text {
        doors = doors.with_text("key").expect("a name");
    }
    if options.doors.sniff { doors.with_json_in_text() } else { doors }
}

fn wall_clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

/// Knows every token, by its beginning.
struct Store {
    waits: bool,
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
            Condition::Unavailable => Err("the store is down"),
        };
        let found = found.map(|grant| grant.map(Arc::new));
        self.asked.lock().expect("no panic").push(token);
        if self.waits { Answer::Pending(ready(found)) } else { Answer::Ready(found) }
    }
}
