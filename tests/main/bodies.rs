//! The body_tokens in the body: what they find, what the inner service gets, and what happens when a body does not come.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::{self, Debug};
use std::io;
use std::marker::PhantomPinned;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use proptest::prelude::*;
use proptest::sample::Index;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tollgate::extract::{self, Extracted, TokenSyntax};
use tollgate::gate::{BodyAuthLayer, BodyTokens, ReplayBody};
use tollgate::limit::RateLimits;
use tollgate::store::from_fn;
use tollgate::{
    AuthLayer, BoxStore, CurrentGrant, Grant, Limiter, MemoryStore, Quota, Rejection, RejectionKind, TokenLocation,
    TokenStore, Unauthenticated,
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_test::mock;

use crate::kit::*;

const TIMEOUT: Duration = Duration::from_secs(5);
const JSON: &str = "application/json";
const TEXT: &str = "text/plain";
const FORM: &str = "application/x-www-form-urlencoded";

/// Returns a configuration with all body locations enabled.
fn body_tokens() -> BodyTokens {
    BodyTokens::with_timeout(TIMEOUT)
        .with_json("key")
        .unwrap()
        .with_text("key")
        .unwrap()
        .with_form("access_token")
        .unwrap()
}

fn gate() -> BodyAuthLayer<MemoryStore<User>> {
    AuthLayer::new(memory()).with_body_tokens(body_tokens())
}

fn pending_gate() -> AuthLayer<BoxStore<User>> {
    AuthLayer::with_timeout(slow(), TIMEOUT)
}

fn json_with(token: &str) -> String {
    format!(r#"{{"qty": 1, "key": "{token}", "side": "buy"}}"#)
}

fn post<B>(content_type: &str, body: B) -> Request<B> {
    Request::post("/").header("content-type", content_type).body(body).unwrap()
}

fn authorized<B>(mut request: Request<B>) -> Request<B> {
    request.headers_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    request
}

/// Counts the runs of a handler.
#[derive(Clone, Default)]
struct Runs(Arc<AtomicUsize>);

impl Runs {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// The trailers that a handler received.
#[derive(Clone, Debug, PartialEq)]
struct Trailers(Option<HeaderMap>);

/// Returns an inner service that reads the body and sends it back.
fn reader<B>(
    runs: &Runs,
) -> impl Service<Request<ReplayBody<B>>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ Sync
+ 'static
where
    B: http_body::Body + Send + 'static,
    B::Error: Debug,
{
    let runs = runs.clone();
    tower::service_fn(move |request: Request<ReplayBody<B>>| {
        runs.0.fetch_add(1, Ordering::SeqCst);
        async move {
            let (head, body) = request.into_parts();
            let collected = body.collect().await.unwrap();
            let trailers = collected.trailers().cloned();
            let mut response = Response::new(Body::from(collected.to_bytes()));
            if let Some(sum) = trailers.as_ref().and_then(|trailers| trailers.get("x-sum")) {
                response.headers_mut().insert("x-seen-sum", sum.clone());
            }
            *response.extensions_mut() = head.extensions;
            response.extensions_mut().insert(Trailers(trailers));
            Ok(response)
        }
    })
}

/// Sends a request to a gate around a [`reader`] and returns the response and the runs of the reader.
async fn respond<T: TokenStore, L: Limiter, B>(layer: &BodyAuthLayer<T, L>, request: Request<B>) -> (Response<Body>, usize)
where
    B: http_body::Body + Send + 'static,
    B::Error: Debug,
{
    let runs = Runs::default();
    let response = layer.layer(reader(&runs)).oneshot(request).await.unwrap_or_else(|never| match never {});
    (response, runs.count())
}

/// Returns why a gate rejects a request. Asserts that the handler did not run.
async fn rejection_kind<T: TokenStore, L: Limiter, B>(layer: &BodyAuthLayer<T, L>, request: Request<B>) -> RejectionKind
where
    B: http_body::Body + Send + 'static,
    B::Error: Debug,
{
    let (response, runs) = respond(layer, request).await;
    assert_eq!(runs, 0, "the handler ran");
    response.extensions().get::<Rejection>().unwrap_or_else(|| panic!("admitted: {response:?}")).kind()
}

/// Returns the location of the token and the bytes that the handler read.
async fn accepted<T: TokenStore, L: Limiter, B>(
    layer: &BodyAuthLayer<T, L>,
    request: Request<B>,
) -> (TokenLocation, Bytes)
where
    B: http_body::Body + Send + 'static,
    B::Error: Debug,
{
    let (response, runs) = respond(layer, request).await;
    assert_eq!((response.status().as_u16(), runs), (200, 1), "{:?}", response.extensions().get::<Rejection>());
    let location = response.extensions().get::<CurrentGrant>().expect("a grant").location();
    (location, response.into_body().collect().await.unwrap().to_bytes())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pin_project_lite::pin_project! {
    /// A body that follows a script and counts the bytes taken from it. It is not `Unpin`.
    struct Script {
        steps: VecDeque<Step>,
        taken: Arc<AtomicUsize>,
        // The length, if the size hint reports it.
        length: Option<usize>,
        #[pin]
        pinned: PhantomPinned,
    }
}

#[derive(Clone, Debug)]
enum Step {
    Data(Vec<u8>),
    Trailers(HeaderMap),
    /// Pending once, woken immediately.
    Wait,
    /// Pending for this time.
    Pause(Duration),
    /// Pending forever.
    Silence,
    Fail,
}

impl Script {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        let steps = steps.into_iter().collect();
        Self { steps, taken: Arc::default(), length: None, pinned: PhantomPinned }
    }

    fn of(body: impl AsRef<[u8]>) -> Self {
        Self::new([Step::Data(body.as_ref().to_vec())])
    }

    fn taken(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.taken)
    }
}

impl http_body::Body for Script {
    /// Not `Bytes`, and not contiguous.
    type Data = VecDeque<u8>;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<VecDeque<u8>>>>> {
        let this = self.project();
        Poll::Ready(match this.steps.pop_front() {
            None => None,
            Some(Step::Data(mut data)) => {
                this.taken.fetch_add(data.len(), Ordering::SeqCst);
                let mut ring = VecDeque::from(data.split_off(data.len() / 2));
                data.into_iter().rev().for_each(|byte| ring.push_front(byte));
                Some(Ok(Frame::data(ring)))
            }
            Some(Step::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Step::Fail) => Some(Err(io::Error::other("torn"))),
            Some(Step::Wait) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Step::Pause(time)) => {
                let waker = cx.waker().clone();
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    waker.wake();
                });
                return Poll::Pending;
            }
            Some(Step::Silence) => {
                this.steps.push_front(Step::Silence);
                return Poll::Pending;
            }
        })
    }

    fn size_hint(&self) -> SizeHint {
        let left = |length| SizeHint::with_exact((length - self.taken.load(Ordering::SeqCst)) as u64);
        self.length.map_or_else(SizeHint::default, left)
    }
}

/// Splits the bytes at these places. A place that occurs twice makes an empty piece.
fn pieces(bytes: &[u8], cuts: &[Index], waits: &[bool], trailers: Option<u8>) -> Vec<Step> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    let mut steps = Vec::new();
    for (nth, pair) in places.windows(2).enumerate() {
        if waits.get(nth).is_some_and(|&wait| wait) {
            steps.push(Step::Wait);
        }
        steps.push(Step::Data(bytes[pair[0]..pair[1]].to_vec()));
    }
    steps.extend(trailers.map(|sum| Step::Trailers(sums(sum))));
    steps
}

fn sums(sum: u8) -> HeaderMap {
    HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from(u16::from(sum)))])
}

// Replay.

const LIMIT: usize = 96;

fn cuts() -> impl Strategy<Value = Vec<Index>> {
    prop::collection::vec(any::<Index>(), 0..8)
        .prop_flat_map(|cuts| (Just(cuts), any::<bool>()))
        .prop_map(|(cuts, twice)| if twice { [cuts.clone(), cuts].concat() } else { cuts })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_handler_reads_the_sent_body_up_to_the_limit(
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..=LIMIT + 40),
            prop::collection::vec(any::<u8>(), LIMIT - 1..=LIMIT + 1),
        ],
        cuts in cuts(),
        waits in prop::collection::vec(any::<bool>(), 0..10),
        trailers in any::<Option<u8>>(),
        hinted in any::<bool>(),
        slowly in any::<bool>(),
        removed in any::<bool>(),
    ) {
        let steps = pieces(&body, &cuts, &waits, trailers);
        let largest = steps.iter().map(|step| if let Step::Data(data) = step { data.len() } else { 0 }).max();
        let mut script = Script::new(steps);
        script.length = hinted.then_some(body.len());
        let taken = script.taken();
        let body_tokens = body_tokens().with_limit(LIMIT);
        let request = authorized(post(FORM, script));
        let (response, runs) = block_on(async {
            // With the token in the head, nothing in the body is masked either.
            match (slowly, removed) {
                (false, false) => respond(&AuthLayer::new(memory()).with_body_tokens(body_tokens), request).await,
                (false, true) => {
                    respond(&AuthLayer::new(memory()).with_credentials_removed().with_body_tokens(body_tokens), request).await
                }
                (true, _) => respond(&pending_gate().with_body_tokens(body_tokens), request).await,
            }
        });
        if body.len() > LIMIT {
            prop_assert_eq!((response.status().as_u16(), runs), (413, 0));
            let taken = taken.load(Ordering::SeqCst);
            prop_assert!(taken <= if hinted { 0 } else { LIMIT + largest.unwrap_or_default() }, "{} were read", taken);
        } else {
            prop_assert_eq!((response.status().as_u16(), runs), (200, 1));
            let seen = response.extensions().get::<Trailers>().unwrap().clone();
            prop_assert_eq!(seen, Trailers(trailers.map(sums)));
            prop_assert_eq!(block_on(response.into_body().collect()).unwrap().to_bytes(), body);
        }
    }
}

/// A token with all characters that `b64token` allows.
const ODD: &str = "tg/a+b-C.9_~==";

/// A body with a token, in one of many spellings.
#[derive(Clone, Debug)]
struct Document {
    content_type: &'static str,
    location: TokenLocation,
    before: String,
    secret: String,
    after: String,
}

fn spaces() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "", " ", "\t", "\r\n", " \n\t "])
}

fn mark() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "\u{feff}"])
}

fn join(parts: Vec<&'static str>, separator: &str) -> (String, String) {
    let joined = parts.join(separator);
    if parts.is_empty() {
        (String::new(), String::new())
    } else {
        (format!("{joined}{separator}"), format!("{separator}{joined}"))
    }
}

fn others(of: &[&'static str]) -> impl Strategy<Value = Vec<&'static str>> + use<> {
    prop::collection::vec(prop::sample::select(of.to_vec()), 0..4)
}

fn json_documents() -> impl Strategy<Value = Document> {
    let members = || {
        others(&[
            r#""a":1"#,
            r#" "nested" : {"key":"inner","more":["key"]} "#,
            r#""Key":"x""#,
            r#""text":"\"key\":\"evil\" \\""#,
            r#""deep":[[[[{}]]]]"#,
            r#""n":-1.5e999999"#,
            "\"\u{e9}\":\"\u{1f600}\\ud83d\\ude00\"",
        ])
    };
    let names = prop::sample::select(vec!["key", "\\u006bey", "k\\u0065\\u0079", "\\u006B\\u0065y"]);
    let spelling = prop::collection::vec(0..4_u8, 1..15);
    let spaces = [spaces(), spaces(), spaces(), spaces(), spaces()];
    (mark(), spaces, members(), names, spelling, members()).prop_map(|(mark, spaces, before, name, spelling, after)| {
        let [a, b, c, d, e] = spaces;
        let secret: String = ODD
            .chars()
            .zip(spelling.into_iter().cycle())
            .map(|(char, way)| match (way, char) {
                (1, _) => format!("\\u{:04x}", u32::from(char)),
                (2, _) => format!("\\u{:04X}", u32::from(char)),
                (3, '/') => "\\/".to_owned(),
                _ => char.to_string(),
            })
            .collect();
        Document {
            content_type: JSON,
            location: TokenLocation::JsonBody,
            before: format!("{mark}{a}{{{}{b}\"{name}\"{c}:{d}\"", join(before, ",").0),
            secret,
            after: format!("\"{e}{}}}{a}", join(after, ",").1),
        }
    })
}

fn text_documents() -> impl Strategy<Value = Document> {
    let fields =
        || others(&["a=b", "command = PLACE", "comment=key=evil", "", "\r\n", "keys=x", "\u{e9}=\u{fc}", "plain"]);
    let names = prop::sample::select(vec!["key", "KEY", " kEy\t", "\r\nkey "]);
    let last = prop::sample::select(vec!["", ";", ";\r\n"]);
    (mark(), fields(), names, spaces(), spaces(), fields(), last).prop_map(
        |(mark, before, name, left, right, after, last)| Document {
            content_type: TEXT,
            location: TokenLocation::TextBody,
            before: format!("{mark}{}{name}={left}", join(before, ";").0),
            secret: ODD.to_owned(),
            after: format!("{right}{}{last}", join(after, ";").1),
        },
    )
}

fn form_documents() -> impl Strategy<Value = Document> {
    let fields =
        || others(&["a=b", "", "=", "Access_token=x", "c=access_token=evil", "\u{e9}=%zz", "a;access_token=1", "+"]);
    let names = prop::sample::select(vec!["access_token", "access%5Ftoken", "%61ccess_token"]);
    (fields(), names, prop::collection::vec(0..3_u8, 1..15), fields()).prop_map(|(before, name, spelling, after)| {
        let secret: String = ODD
            .bytes()
            .zip(spelling.into_iter().cycle())
            .map(|(byte, way)| match (way, byte) {
                (1, _) | (_, b'+') => format!("%{byte:02x}"),
                (2, _) => format!("%{byte:02X}"),
                _ => char::from(byte).to_string(),
            })
            .collect();
        Document {
            content_type: FORM,
            location: TokenLocation::FormBody,
            before: format!("{}{name}=", join(before, "&").0),
            secret,
            after: join(after, "&").1,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(768))]

    #[test]
    fn with_credentials_removed_masks_exactly_the_token(
        document in prop_oneof![json_documents(), text_documents(), form_documents()],
        cuts in cuts(),
        waits in prop::collection::vec(any::<bool>(), 0..10),
        trailers in any::<Option<u8>>(),
    ) {
        let Document { content_type, location, before, secret, after } = document;
        let sent = format!("{before}{secret}{after}");
        let masked = format!("{before}{}{after}", "*".repeat(secret.len()));
        let tokens = || MemoryStore::from_iter([(ODD, Grant::new("odd", ()))]);
        for (layer, expected) in [
            (AuthLayer::new(tokens()), &sent),
            (AuthLayer::new(tokens()).with_credentials_removed(), &masked),
        ] {
            let steps = pieces(sent.as_bytes(), &cuts, &waits, trailers);
            let request = post(content_type, Script::new(steps));
            let (response, runs) = block_on(respond(&layer.with_body_tokens(body_tokens()), request));
            prop_assert_eq!((response.status().as_u16(), runs), (200, 1));
            prop_assert_eq!(response.extensions().get::<CurrentGrant>().unwrap().location(), location);
            prop_assert_eq!(response.extensions().get::<Trailers>().unwrap(), &Trailers(trailers.map(sums)));
            let read = block_on(response.into_body().collect()).unwrap().to_bytes();
            prop_assert_eq!(&read, expected.as_bytes());
        }
    }
}

#[tokio::test]
async fn shared_bytes_are_copied_before_masking() {
    let sent = Bytes::from(json_with(TOKEN));
    let layer = AuthLayer::new(memory()).with_credentials_removed().with_body_tokens(body_tokens());
    let (location, read) = accepted(&layer, post(JSON, Body::from(sent.clone()))).await;
    assert_eq!(location, TokenLocation::JsonBody);
    assert_eq!(read, json_with(&"*".repeat(TOKEN.len())));
    assert_eq!(sent, json_with(TOKEN));
}

#[tokio::test]
async fn a_replayed_body_reports_its_length_and_prints_no_content() {
    let inspect = tower::service_fn(|request: Request<ReplayBody<Script>>| async move {
        let mut body = Box::pin(request.into_body());
        let mut lines = Vec::new();
        loop {
            lines.push(format!(
                "{:?} {}",
                http_body::Body::size_hint(&body).exact(),
                http_body::Body::is_end_stream(&body)
            ));
            match body.frame().await {
                Some(frame) => lines.push(if frame.unwrap().is_data() { "data" } else { "trailers" }.to_owned()),
                None => break,
            }
        }
        lines.push(format!("{body:?} {body:#?}"));
        Ok::<_, Infallible>(Response::new(Body::from(lines.join("; "))))
    });
    let body = json_with(TOKEN);
    let steps = |trailers| pieces(body.as_bytes(), &[], &[], trailers);
    let len = body.len();
    for (trailers, expected) in [
        (None, format!("Some({len}) false; data; Some(0) true; ReplayBody(read) ReplayBody(read)")),
        (
            Some(1),
            format!(
                "Some({len}) false; data; Some(0) false; trailers; Some(0) true; ReplayBody(read) ReplayBody(read)"
            ),
        ),
    ] {
        let service = gate().layer(inspect);
        let response = service.oneshot(post(JSON, Script::new(steps(trailers)))).await.unwrap();
        assert_eq!(text(response).await, expected);
    }
    let response = gate().layer(inspect).oneshot(authorized(post("image/png", Script::of("x")))).await.unwrap();
    assert!(text(response).await.ends_with("ReplayBody(untouched) ReplayBody(untouched)"));
    let never = gate().layer(inspect).oneshot(post(JSON, Script::of(json_with("unknown")))).await.unwrap();
    assert!(!format!("{never:?}").contains("unknown\""));
}

// JSON.

/// An [`Extracted`] that can be compared.
#[derive(Clone, Debug, PartialEq)]
enum Found {
    Nothing,
    Token(Vec<u8>),
    Malformed,
    Ambiguous,
}

impl From<Extracted<'_>> for Found {
    fn from(extracted: Extracted<'_>) -> Self {
        match extracted {
            Extracted::Nothing => Self::Nothing,
            Extracted::Token(token) => Self::Token(token.expose().to_vec()),
            Extracted::Malformed => Self::Malformed,
            Extracted::Ambiguous(_) => Self::Ambiguous,
        }
    }
}

/// A complete document with all members in order.
enum Tree {
    Object(Vec<(String, Tree)>),
    Array(Vec<Tree>),
    String(String),
    Null,
    Other,
}

impl Tree {
    fn depth(&self) -> usize {
        match self {
            Self::Object(members) => 1 + members.iter().map(|(_, value)| value.depth()).max().unwrap_or(0),
            Self::Array(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            _ => 0,
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Builder;

        impl<'de> Visitor<'de> for Builder {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Null)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
                Ok(Tree::String(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Tree::Array(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Tree::Object(members))
            }
        }

        deserializer.deserialize_any(Builder)
    }
}

/// Checks RFC 6750, section 2.1, character by character.
fn is_b64token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    !body.is_empty() && body.chars().all(|char| char.is_ascii_alphanumeric() || "-._~+/".contains(char))
}

/// Applies the extraction rules to a parsed document. Returns `None` where the parser rejects large numbers.
fn oracle(body: &[u8]) -> Option<Found> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let Ok(text) = std::str::from_utf8(body) else { return Some(Found::Ambiguous) };
    if text.bytes().all(|byte| b" \t\r\n".contains(&byte)) {
        return Some(Found::Nothing);
    }
    let tree: Tree = match serde_json::from_str(text) {
        Ok(tree) => tree,
        Err(error) if error.to_string().starts_with("number out of range") => return None,
        Err(_) => return Some(Found::Ambiguous),
    };
    if tree.depth() > 64 {
        return Some(Found::Ambiguous);
    }
    let Tree::Object(members) = tree else { return Some(Found::Nothing) };
    let mut found = members.iter().filter(|(name, _)| name == "key").map(|(_, value)| value);
    Some(match (found.next(), found.next()) {
        (None, _) => Found::Nothing,
        (Some(_), Some(_)) => Found::Ambiguous,
        (Some(Tree::Null), None) => Found::Nothing,
        (Some(Tree::String(text)), None) if is_b64token(text) => Found::Token(text.clone().into_bytes()),
        (Some(Tree::String(_)), None) => Found::Malformed,
        (Some(_), None) => Found::Ambiguous,
    })
}

/// Returns JSON strings with their quotes.
fn json_strings() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => "[a-zA-Z0-9._~+/=-]{1,4}".boxed(),
        2 => prop::sample::select(vec![
            "\\n", "\\\"", "\\\\", "\\/", "\\u0041", "\\u00e9", "\\u0000", "\\ud83d\\ude00", "\\uDBFF\\uDFFF",
            "\\\\ud800", "\u{e9}", "\u{1f600}", "{", "]", ",", ":", "\\\\\\\\", "key", "\u{7f}",
        ]).prop_map(str::to_owned).boxed(),
        1 => prop::sample::select(vec![
            "\\ud800", "\\udc00", "\\ud83d\\n", "\\udc00\\ud800", "\\ud800\\ud800", "\\ud83dx", "\\u12", "\\x", "\n",
            "\\ud83d\\\\ude00", "\\", "\"", "\t", "\\ud83d\\u0041", "\\uD83D\\udE", "\\ug000",
        ]).prop_map(str::to_owned).boxed(),
    ];
    // Invalid pieces are rare, since one invalid piece makes the whole document invalid.
    let wrong = prop::collection::vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat()));
    let right = "[a-zA-Z0-9._~+/-]{0,6}={0,2}".prop_map(|text| format!("\"{text}\""));
    prop_oneof![12 => right, 1 => wrong]
}

/// Returns a spelling of the member name that is searched for.
fn spelled() -> impl Strategy<Value = String> {
    let spellings = ["\"key\"", "\"\\u006bey\"", "\"k\\u0065y\"", "\"ke\\u0079\"", "\"\\u006B\\u0065\\u0079\""];
    prop::sample::select(spellings.map(str::to_owned).to_vec())
}

/// Returns other member names. Some look similar.
fn names() -> impl Strategy<Value = String> {
    let alike =
        ["Key", "key ", "", "ke", "keys", "\\\\u006bey", "k\\u0435y", "k\\u0000ey", "$serde_json::private::RawValue"];
    prop_oneof![
        4 => prop::sample::select(alike.map(|name| format!("\"{name}\"")).to_vec()),
        8 => "\"[a-d]{1,3}\"",
        1 => spelled(),
    ]
}

fn values() -> impl Strategy<Value = String> {
    let words = ["null", "true", "false", "0", "-0", "-1.5e3", "1E-7", "18446744073709551616", "{}", "[]"];
    let finite = any::<f64>().prop_filter("JSON has no others", |number| number.is_finite());
    let leaf = prop_oneof![
        6 => json_strings(),
        2 => prop::sample::select(words.map(str::to_owned).to_vec()),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        1 => finite.prop_map(|number| number.to_string()),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec((inner.clone(), spaces()), 0..4).prop_map(|items| {
                let items: Vec<String> =
                    items.into_iter().map(|(item, space)| format!("{space}{item}{space}")).collect();
                format!("[{}]", items.join(","))
            }),
            members(inner).prop_map(object),
        ]
    })
}

type Member = (String, &'static str, String);

fn members(values: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<Member>> {
    prop::collection::vec((names(), spaces(), values), 0..4)
}

fn object(members: Vec<Member>) -> String {
    let members: Vec<String> =
        members.into_iter().map(|(name, space, value)| format!("{space}{name}{space}:{space}{value}")).collect();
    format!("{{{}}}", members.join(","))
}

/// Returns values nested about as deep as allowed.
fn deep_values() -> impl Strategy<Value = String> {
    (values(), prop_oneof![58..68_usize, 120..130_usize], any::<bool>()).prop_map(|(value, depth, object)| {
        let (open, close) = if object { ("{\"key\":", "}") } else { ("[", "]") };
        format!("{}{value}{}", open.repeat(depth), close.repeat(depth))
    })
}

/// Returns documents, most of them valid objects with exactly one matching member.
fn documents() -> impl Strategy<Value = String> {
    let value = prop_oneof![30 => values(), 1 => deep_values()].boxed();
    let counts = (any::<Index>(), spelled(), prop_oneof![3 => json_strings().boxed(), 1 => value.clone()]);
    let number = prop_oneof![8 => Just(1..=1_usize), 1 => Just(0..=2_usize)];
    let counts = (number, prop::collection::vec(counts, 2))
        .prop_flat_map(|(number, counts)| number.prop_map(move |number| counts[..number].to_vec()));
    let whole = (members(value.clone()), counts).prop_map(|(mut members, counts)| {
        for (at, name, value) in counts {
            members.insert(at.index(members.len() + 1), (name, " ", value));
        }
        object(members)
    });
    let document = prop_oneof![10 => whole, 1 => value];
    let rest = prop_oneof![20 => Just(""), 1 => prop::sample::select(vec!["{}", ",", "\u{a0}", "\u{feff}", "\0"])];
    (document, mark(), spaces(), spaces(), rest)
        .prop_map(|(document, mark, before, after, rest)| format!("{mark}{before}{document}{after}{rest}"))
}

const MEANINGFUL: &[u8] = b"\"\\{}[]:,u0e1-+.ntd8 \n\xff\xc3\x00";

fn mutated(document: String, mutations: &[(u8, Index, u8)]) -> Vec<u8> {
    let mut bytes = document.into_bytes();
    for (how, at, byte) in mutations {
        // Prefer bytes that have a meaning in JSON.
        let byte = MEANINGFUL.get(usize::from(*byte) / 4).unwrap_or(byte);
        let at = at.index(bytes.len().max(1));
        match how % 4 {
            0 => bytes.insert(at, *byte),
            1 if at < bytes.len() => bytes[at] = *byte,
            2 if at < bytes.len() => _ = bytes.remove(at),
            _ => bytes.truncate(at + 1),
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6_000))]

    #[test]
    fn json_extraction_matches_a_parser_of_the_whole_document(
        document in documents(),
        mutations in prop_oneof![
            3 => Just(vec![]),
            2 => prop::collection::vec((any::<u8>(), any::<Index>(), any::<u8>()), 1..3),
        ],
    ) {
        let body = mutated(document, &mutations);
        if let Some(expected) = oracle(&body) {
            let extracted = Found::from(extract::json(&body, "key", TokenSyntax::default()));
            prop_assert_eq!(extracted, expected, "{}", String::from_utf8_lossy(&body));
        }
    }
}

/// Checks that the generator covers all results.
#[test]
fn the_generator_reaches_every_result() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (strategy, mut seen) = (documents(), [0_usize; 4]);
    for _ in 0..2_000 {
        let document = strategy.new_tree(&mut runner).unwrap().current();
        match oracle(document.as_bytes()) {
            Some(Found::Nothing) => seen[0] += 1,
            Some(Found::Token(_)) => seen[1] += 1,
            Some(Found::Malformed) => seen[2] += 1,
            Some(Found::Ambiguous) => seen[3] += 1,
            None => {}
        }
    }
    assert!(seen.iter().all(|&count| count > 100), "{seen:?}");
}

#[test]
fn json_edge_cases() {
    let verdict = |body: &[u8]| Found::from(extract::json(body, "key", TokenSyntax::default()));
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let member = |depth: usize| format!(r#"{{"a":{},"key":"abc"}}"#, nested(depth));
    let abc = Found::Token(b"abc".to_vec());
    assert_eq!(verdict(member(63).as_bytes()), abc);
    assert_eq!(verdict(member(64).as_bytes()), Found::Ambiguous);
    assert_eq!(verdict(nested(64).as_bytes()), Found::Nothing);
    assert_eq!(verdict(nested(65).as_bytes()), Found::Ambiguous);
    assert_eq!(verdict("[".repeat(1_000_000).as_bytes()), Found::Ambiguous, "no stack is used up");
    // Brackets in strings and closed brackets do not count as depth.
    assert_eq!(verdict(format!(r#"{{"a":"{}","key":"abc"}}"#, "[".repeat(999)).as_bytes()), abc);
    assert_eq!(verdict(format!(r#"{{"a":[{}1],"key":"abc"}}"#, "[],{},".repeat(999)).as_bytes()), abc);
    // Objects count as depth too. Escapes do not change the limit.
    let objects = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
    assert_eq!(verdict(objects(64).as_bytes()), Found::Nothing);
    assert_eq!(verdict(objects(65).as_bytes()), Found::Ambiguous);
    let escaped = |depth: usize| format!(r#"{{"a":"\u0061","b":{},"key":"abc"}}"#, nested(depth));
    assert_eq!(verdict(escaped(63).as_bytes()), abc);
    assert_eq!(verdict(escaped(64).as_bytes()), Found::Ambiguous);
    for (body, expected) in [
        (&br#"{"key":"abc","n":1e999999,"m":-123456789012345678901234567890.5E+99999}"#[..], abc.clone()),
        (b"\xef\xbb\xbf{\"key\":\"abc\"}", abc.clone()),
        (b"\xef\xbb\xbf\xef\xbb\xbf{\"key\":\"abc\"}", Found::Ambiguous),
        (b" \r\n\t", Found::Nothing),
        (b"\xef\xbb\xbf", Found::Nothing),
        (b"\x0b{\"key\":\"abc\"}", Found::Ambiguous),
        (b"\xc2\xa0", Found::Ambiguous),
        (br#"{"key":"abc"}{"key":"abc"}"#, Found::Ambiguous),
        (br#"{"key":"abc",}"#, Found::Ambiguous),
        (br#"{"key":null,"key":null}"#, Found::Ambiguous),
        (br#"{"key":null,"\u006bey":"abc"}"#, Found::Ambiguous),
        (br#"{"x":"\ud800","key":"abc"}"#, Found::Ambiguous),
        (br#"{"\udc00":1,"key":"abc"}"#, Found::Ambiguous),
        (br#"{"x":"\udc00","key":"abc"}"#, Found::Ambiguous),
        (br#"{"some name":"\\\ud800","key":"abc"}"#, Found::Ambiguous),
        (br#"{"x":["\ud83d\ude00"],"key":"abc"}"#, abc.clone()),
        (br#"{"x":"\\ud800","key":"abc"}"#, abc),
        (br#"{"key":" abc"}"#, Found::Malformed),
        (br#"{"key":""}"#, Found::Malformed),
        (br#"{"key":"caf\u00e9"}"#, Found::Malformed),
        (br#"{"key":["abc"]}"#, Found::Ambiguous),
        (br#"{"key":1}"#, Found::Ambiguous),
        (br#"{"key":NaN}"#, Found::Ambiguous),
        (br#"{"key":01}"#, Found::Ambiguous),
        (br#"{"a":{"key":"abc"}}"#, Found::Nothing),
        (br#"[{"key":"abc"}]"#, Found::Nothing),
        (br#""key""#, Found::Nothing),
        (b"{\"a\":\"\xff\",\"key\":\"abc\"}", Found::Ambiguous),
        (b"{\"a\":\"\xed\xa0\x80\",\"key\":\"abc\"}", Found::Ambiguous),
        (b"{\"a\":\"\x01\",\"key\":\"abc\"}", Found::Ambiguous),
        (br#"{"key":"abc"#, Found::Ambiguous),
        (br#"{"$serde_json::private::RawValue":"1","key":"abc"}"#, Found::Token(b"abc".to_vec())),
    ] {
        assert_eq!(verdict(body), expected, "{}", String::from_utf8_lossy(body));
    }
}

#[test]
fn form_edge_cases() {
    let verdict = |body: &[u8], name: &str| Found::from(extract::form(body, name, TokenSyntax::default()));
    let abc = || Found::Token(b"abc".to_vec());
    for (body, name, expected) in [
        (&b"access_token=abc"[..], "access_token", abc()),
        (b"&&access_token=abc&", "access_token", abc()),
        (b"a=\xff%zz&access_token=%61bc", "access_token", abc()),
        (b"access_token=a%2Bb", "access_token", Found::Token(b"a+b".to_vec())),
        // A plus is a space in a form, in names too.
        (b"access_token=a+b", "access_token", Found::Malformed),
        (b"access+token=abc", "access token", abc()),
        (b"access%2Btoken=abc", "access token", Found::Nothing),
        (b"access_token=%2561bc", "access_token", Found::Malformed),
        (b"access_token=ab%6", "access_token", Found::Malformed),
        (b"access_token=abc\r\n", "access_token", Found::Malformed),
        (b"access_token", "access_token", Found::Malformed),
        (b"access_token=&x", "access_token", Found::Malformed),
        (b"access_token=abc&access_token=abc", "access_token", Found::Ambiguous),
        (b"access_token&access%5ftoken=abc", "access_token", Found::Ambiguous),
        (b"a=1;access_token=abc", "access_token", Found::Nothing),
        (b"Access_Token=abc", "access_token", Found::Nothing),
        (b"", "access_token", Found::Nothing),
    ] {
        assert_eq!(verdict(body, name), expected, "{}", String::from_utf8_lossy(body));
    }
}

#[test]
fn text_edge_cases() {
    let verdict = |body: &[u8]| Found::from(extract::text(body, "key", TokenSyntax::default()));
    let abc = || Found::Token(b"abc".to_vec());
    for (body, expected) in [
        (&b"key=abc"[..], abc()),
        (b"\xef\xbb\xbfKEY = abc ;", abc()),
        (b"a=1;\r\n key\t=\n abc\r\n;qty=1", abc()),
        (b";;key=abc;;", abc()),
        (b"key=ab==;", Found::Token(b"ab==".to_vec())),
        (b"key=%61bc;", Found::Malformed),
        (b"key=\"abc\";", Found::Malformed),
        (b"key=a=b;", Found::Malformed),
        (b"key=;", Found::Malformed),
        (b"key= \r\n;", Found::Malformed),
        (b"key=a\nqty=1;", Found::Malformed),
        (b"key=\xc2\xa0abc;", Found::Malformed),
        (b"key;", Found::Ambiguous),
        (b"key=abc;comment=;Key=abc", Found::Ambiguous),
        (b"key=abc;key", Found::Ambiguous),
        (b"key=abc;x=\xff", Found::Ambiguous),
        (b"a=1;\xef\xbb\xbfkey=abc", Found::Nothing),
        (b"comment=key=abc", Found::Nothing),
        (b"", Found::Nothing),
    ] {
        assert_eq!(verdict(body), expected, "{}", String::from_utf8_lossy(body));
    }
}

// Which requests.

#[tokio::test]
async fn a_body_is_searched_only_with_its_method_and_content_type() {
    let sniffing = AuthLayer::new(memory()).with_body_tokens(body_tokens().with_json_in_text());
    let json = || json_with(TOKEN);
    let (in_text, in_form) = (format!("key={TOKEN};"), format!("access_token={TOKEN}"));
    for method in [Method::POST, Method::PUT, Method::PATCH] {
        for (content_type, body, location) in [
            (JSON, json(), TokenLocation::JsonBody),
            ("Application/JSON;charset=UTF-8", json(), TokenLocation::JsonBody),
            ("application/json ; charset=\"utf-8\" ; v=1", json(), TokenLocation::JsonBody),
            ("application/vnd.api+json", json(), TokenLocation::JsonBody),
            ("application/ld+JSON; profile=x", json(), TokenLocation::JsonBody),
            (TEXT, in_text.clone(), TokenLocation::TextBody),
            ("text/plain; charset=us-ascii", in_text.clone(), TokenLocation::TextBody),
            (TEXT, json(), TokenLocation::JsonBody),
            (TEXT, format!("\u{feff} {}", json()), TokenLocation::JsonBody),
            (FORM, in_form.clone(), TokenLocation::FormBody),
            ("application/x-www-form-urlencoded;charset=utf-8", in_form.clone(), TokenLocation::FormBody),
        ] {
            let mut request = post(content_type, Script::of(&body));
            *request.method_mut() = method.clone();
            let (found, read) = accepted(&sniffing, request).await;
            assert_eq!(found, location, "{method} {content_type}");
            assert_eq!(read, body);
        }
    }
    for method in [Method::GET, Method::HEAD, Method::DELETE, Method::OPTIONS] {
        let mut request = post(JSON, Script::of(json()));
        *request.method_mut() = method.clone();
        assert_eq!(rejection_kind(&gate(), request).await, RejectionKind::Missing, "{method}");
    }
    // Bodies of gRPC are framed, whatever the frames contain.
    let other =
        ["application/jsonp", "json", "+json", "+json/x", "text/plainer", "multipart/form-data; boundary=x", ""];
    let framed = [
        "application/grpc+json",
        "Application/GRPC+json; x=y",
        "application/grpc-web+json",
        "Application/gRPC-Web+json",
        "application/connect+json",
    ];
    for content_type in [&other[..], &framed].concat() {
        let kind = rejection_kind(&gate(), post(content_type, Script::of(json()))).await;
        assert_eq!(kind, RejectionKind::Missing, "{content_type}");
    }
    assert_eq!(rejection_kind(&gate(), post(TEXT, Script::of(json()))).await, RejectionKind::Missing, "text is not searched for JSON by default");
    let mut untyped = post(JSON, Script::of(json()));
    untyped.headers_mut().remove("content-type");
    assert_eq!(rejection_kind(&gate(), untyped).await, RejectionKind::Missing);
}

#[tokio::test]
async fn bodies_without_an_enabled_location_are_not_read() {
    let json_only = AuthLayer::new(memory())
        .with_body_tokens(BodyTokens::with_timeout(TIMEOUT).with_json("key").unwrap().with_limit(8));
    // Longer than the limit, endless and full of tokens.
    let endless = || Script::new([Step::Data(format!("access_token={TOKEN}&key={TOKEN};").into()), Step::Silence]);
    let ignoring = tower::service_fn(|request: Request<ReplayBody<Script>>| async move {
        drop(request);
        Ok::<_, Infallible>(Response::new(Body::default()))
    });
    for (content_type, encoding) in [(FORM, None), (TEXT, None), ("application/grpc+json", None), (JSON, Some("gzip"))]
    {
        let body = endless();
        let taken = body.taken();
        let mut request = authorized(post(content_type, body));
        if let Some(encoding) = encoding {
            request.headers_mut().insert("content-encoding", HeaderValue::from_static(encoding));
        }
        let response = json_only.layer(ignoring).oneshot(request).await.unwrap();
        assert_eq!((response.status().as_u16(), taken.load(Ordering::SeqCst)), (200, 0), "{content_type}");
    }
    // Forwarded piece by piece, beyond the limit.
    let steps = pieces(&[b'x'; 100], &[], &[], Some(7));
    let (response, _) = respond(&json_only, authorized(post(TEXT, Script::new(steps)))).await;
    assert_eq!(response.extensions().get::<Trailers>(), Some(&Trailers(Some(sums(7)))));
    assert_eq!(text(response).await, "x".repeat(100));
}

#[tokio::test]
async fn encoded_bodies_are_not_searched() {
    for (lines, open) in [
        (&["identity"][..], true),
        (&["Identity , "], true),
        (&[""], true),
        (&["gzip"], false),
        (&["identity, br"], false),
        (&["identity", "zstd"], false),
        (&["x-unknown"], false),
    ] {
        let request = || {
            let mut request = post(JSON, Script::of(json_with(TOKEN)));
            for line in lines {
                request.headers_mut().append("content-encoding", HeaderValue::from_static(line));
            }
            request
        };
        if open {
            assert_eq!(accepted(&gate(), request()).await.0, TokenLocation::JsonBody, "{lines:?}");
        } else {
            assert_eq!(rejection_kind(&gate(), request()).await, RejectionKind::Missing, "{lines:?}");
            // The body is not searched, so it does not conflict with another credential.
            assert_eq!(
                accepted(&gate(), authorized(request())).await.0,
                TokenLocation::AuthorizationHeader,
                "{lines:?}"
            );
        }
    }
}

#[tokio::test]
async fn two_content_types_pass_when_no_body_location_is_enabled() {
    let closed = AuthLayer::new(memory()).with_body_tokens(BodyTokens::with_timeout(TIMEOUT));
    let mut twice = post(JSON, Body::default());
    twice.headers_mut().append("content-type", HeaderValue::from_static(TEXT));
    assert_eq!(rejection_kind(&closed, twice.clone()).await, RejectionKind::Missing);
    assert_eq!(accepted(&closed, authorized(twice)).await.0, TokenLocation::AuthorizationHeader);
}

#[tokio::test]
async fn contradictory_content_types_are_rejected_before_reading() {
    let mut twice = post(JSON, Script::of(json_with(TOKEN)));
    twice.headers_mut().append("content-type", HeaderValue::from_static(TEXT));
    let mut equal = post(JSON, Script::of(json_with(TOKEN)));
    equal.headers_mut().append("content-type", HeaderValue::from_static(JSON));
    let of_type = |content_type: &str| post(content_type, Script::of(json_with(TOKEN)));
    for request in [
        twice,
        equal,
        of_type("application/json; charset=iso-8859-1"),
        of_type("application/json;v=1;CHARSET=\"UTF-16\""),
        of_type("text/plain; charset=windows-1252"),
        of_type("application/x-www-form-urlencoded; charset=latin1"),
        of_type("application/json; charset=utf-8; charset=utf-16"),
        of_type("application/json; charset="),
    ] {
        let content_type = format!("{:?}", request.headers());
        let taken = request.body().taken();
        let kind = rejection_kind(&gate(), authorized(request)).await;
        assert_eq!(kind, RejectionKind::InvalidRequest, "{content_type}");
        assert_eq!(taken.load(Ordering::SeqCst), 0);
    }
    // The charset does not matter where no location is enabled.
    let request = authorized(of_type("text/html; charset=iso-8859-1"));
    assert_eq!(accepted(&gate(), request).await.0, TokenLocation::AuthorizationHeader);
}

#[tokio::test]
async fn a_second_credential_in_the_body_is_rejected() {
    let layers = [gate(), AuthLayer::new(memory()).allow_anonymous().with_body_tokens(body_tokens())];
    for layer in layers {
        for (content_type, body) in [
            (JSON, json_with(TOKEN)),
            (JSON, json_with("mal formed")),
            (TEXT, format!("key={TOKEN}")),
            (TEXT, "key=".to_owned()),
            (FORM, format!("access_token={TOKEN}")),
            (FORM, "access_token".to_owned()),
            (JSON, format!(r#"{{"key":"{TOKEN}","key":"{TOKEN}"}}"#)),
            (TEXT, format!("key={TOKEN};KEY={TOKEN}")),
            (TEXT, "key".to_owned()),
            (FORM, format!("access_token={TOKEN}&access_token={TOKEN}")),
            (JSON, "{".to_owned()),
        ] {
            let request = authorized(post(content_type, Script::of(&body)));
            assert_eq!(rejection_kind(&layer, request).await, RejectionKind::InvalidRequest, "{body}");
        }
        let mut malformed = post(JSON, Script::of(json_with(TOKEN)));
        malformed.headers_mut().insert("authorization", HeaderValue::from_static("Bearer"));
        assert_eq!(rejection_kind(&layer, malformed).await, RejectionKind::InvalidRequest);
    }
    for (content_type, body) in [(JSON, r#"{"key":null}"#), (JSON, ""), (TEXT, "a=b"), (FORM, "key=x"), (JSON, "[]")] {
        let (location, read) = accepted(&gate(), authorized(post(content_type, Script::of(body)))).await;
        assert_eq!((location, &read[..]), (TokenLocation::AuthorizationHeader, body.as_bytes()));
    }
}

// Bodies that do not come.

#[tokio::test(start_paused = true)]
async fn a_body_beyond_the_timeout_gets_408() {
    let begun = || Step::Data(b"{\"key\":".to_vec());
    let drops = std::iter::repeat_n([Step::Data(b" ".to_vec()), Step::Pause(Duration::from_millis(100))], 10_000);
    for script in [Script::new([Step::Silence]), Script::new([begun(), Step::Silence]), Script::new(drops.flatten())] {
        let begin = tokio::time::Instant::now();
        let (response, runs) = respond(&gate(), authorized(post(JSON, script))).await;
        assert_eq!((response.status().as_u16(), runs), (408, 0));
        assert_eq!(begin.elapsed(), TIMEOUT, "single bytes do not extend the timeout");
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert!(!response.headers().contains_key("www-authenticate"));
        assert_eq!(json(response).await["status"], 408);
    }
    // A slow body within the timeout is accepted.
    let body = json_with(TOKEN);
    let slowly = body.bytes().flat_map(|byte| [Step::Pause(Duration::from_millis(50)), Step::Data(vec![byte])]);
    assert_eq!(accepted(&gate(), post(JSON, Script::new(slowly))).await, (TokenLocation::JsonBody, body.into()));
}

#[tokio::test]
async fn an_interrupted_body_never_reaches_the_handler() {
    for steps in [
        vec![Step::Fail],
        vec![Step::Data(json_with(TOKEN).into()), Step::Fail],
        vec![Step::Data(json_with(TOKEN).into()), Step::Trailers(sums(1)), Step::Fail],
    ] {
        let (response, runs) = respond(&gate(), authorized(post(JSON, Script::new(steps)))).await;
        assert_eq!((response.status().as_u16(), runs), (400, 0));
        assert_eq!(response.extensions().get::<Rejection>().unwrap().kind(), RejectionKind::BodyUnreadable);
        assert_eq!(response.headers()["cache-control"], "no-store");
    }
}

#[tokio::test]
async fn the_default_limit_is_64_kib() {
    let filled = |bytes: usize| {
        let body = json_with(TOKEN);
        body.clone() + &" ".repeat(bytes - body.len())
    };
    assert_eq!(BodyTokens::DEFAULT_LIMIT, 65_536);
    let (location, read) = accepted(&gate(), post(JSON, Script::of(filled(65_536)))).await;
    assert_eq!((location, read.len()), (TokenLocation::JsonBody, 65_536));
    let (response, runs) = respond(&gate(), post(JSON, Script::of(filled(65_537)))).await;
    assert_eq!((response.status().as_u16(), runs), (413, 0));
    assert!(!response.headers().contains_key("www-authenticate"));
    assert_eq!(json(response).await["title"], "Content Too Large");
    // An endless body is read only until the limit is exceeded.
    let endless = Script::new(std::iter::repeat_n(Step::Data(vec![b' '; 1_000]), 1_000));
    let taken = endless.taken();
    assert_eq!(rejection_kind(&gate(), post(JSON, endless)).await, RejectionKind::BodyTooLarge);
    assert_eq!(taken.load(Ordering::SeqCst), 66_000);
}

// Sockets.

pin_project_lite::pin_project! {
    /// A body that counts the bytes read from the connection.
    struct Counted {
        #[pin]
        body: Incoming,
        read: Arc<AtomicUsize>,
        begun: Arc<Notify>,
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.project();
        let polled = this.body.poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            this.read.fetch_add(frame.data_ref().map_or(0, Bytes::len), Ordering::SeqCst);
            this.begun.notify_one();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A server for one connection.
struct Server {
    addr: SocketAddr,
    runs: Runs,
    read: Arc<AtomicUsize>,
    /// Notified when the first bytes of a body were read.
    begun: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start<T: TokenStore, L: Limiter>(layer: BodyAuthLayer<T, L>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (runs, read, begun) = (Runs::default(), Arc::<AtomicUsize>::default(), Arc::<Notify>::default());
        let counting = {
            let (read, begun) = (Arc::clone(&read), Arc::clone(&begun));
            move |request: Request<Incoming>| {
                request.map(|body| Counted { body, read: Arc::clone(&read), begun: Arc::clone(&begun) })
            }
        };
        let service = ServiceBuilder::new().map_request(counting).layer(layer).service(reader(&runs));
        let task = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service);
            let connection =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
            // Some tests interrupt the connection on purpose.
            drop(connection.await);
        });
        Self { addr, runs, read, begun, task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Waits for the end of the connection and returns the runs of the handler.
    async fn end(self) -> usize {
        self.task.await.unwrap();
        self.runs.count()
    }
}

fn head(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{fields}\r\n\r\n")
}

fn in_chunks(body: &str) -> String {
    let chunks: String = body
        .as_bytes()
        .chunks(7)
        .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap()))
        .collect();
    format!("{chunks}0\r\nx-sum: 42\r\n\r\n")
}

async fn read_to_end(mut stream: impl tokio::io::AsyncRead + Unpin) -> String {
    let mut answer = Vec::new();
    // Bytes read before an error count.
    _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn bodies_over_sockets_are_read_in_any_framing() {
    let body = json_with(TOKEN);
    let server = Server::start(gate()).await;
    let mut client = server.connect().await;
    let sized = format!("{}{body}", head(&format!("content-length: {}", body.len())));
    let chunked = format!("{}{}", head("transfer-encoding: chunked\r\ntrailer: x-sum"), in_chunks(&body));
    let unknown =
        format!("{}{}", head("transfer-encoding: chunked\r\nconnection: close"), in_chunks(&json_with("tg_no")));
    for request in [sized, chunked, unknown] {
        client.write_all(request.as_bytes()).await.unwrap();
    }
    let answers = read_to_end(client).await;
    let statuses: Vec<_> = answers.match_indices("HTTP/1.1 ").map(|(at, _)| &answers[at + 9..at + 12]).collect();
    let read: Vec<_> = answers.match_indices(&body).collect();
    assert_eq!(statuses, ["200", "200", "401"], "{answers}");
    assert_eq!(read.len(), 2, "{answers}");
    assert!(answers.contains("x-seen-sum: 42"), "{answers}");
    assert_eq!(server.end().await, 2);
}

#[tokio::test]
async fn a_silent_client_gets_408() {
    let hasty = BodyTokens::with_timeout(Duration::from_millis(300)).with_json("key").unwrap();
    for (framing, body) in [
        ("content-length: 1000", ""),
        ("content-length: 1000", "{\"key\":"),
        ("transfer-encoding: chunked", ""),
        ("transfer-encoding: chunked", "3\r\n{\"k\r\n"),
        ("transfer-encoding: chunked", "3\r\n{\"k\r\n3\r\ney"),
    ] {
        let server = Server::start(AuthLayer::new(memory()).with_body_tokens(hasty.clone())).await;
        let mut client = server.connect().await;
        client.write_all(format!("{}{body}", head(framing)).as_bytes()).await.unwrap();
        let answer = read_to_end(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{framing} {body:?}: {answer}");
        drop(client);
        assert_eq!(server.end().await, 0);
    }
}

#[tokio::test]
async fn a_client_that_disconnects_mid_body_never_reaches_the_handler() {
    let body = json_with(TOKEN);
    let sized = format!("content-length: {}", body.len() + 1);
    let chunk = format!("{:x}\r\n{body}\r\n", body.len());
    for (framing, sent) in [(&*sized, &body), ("transfer-encoding: chunked", &chunk)] {
        let request = format!("{}{sent}", head(framing));

        let server = Server::start(gate()).await;
        let mut half = server.connect().await;
        half.write_all(request.as_bytes()).await.unwrap();
        half.shutdown().await.unwrap();
        let answer = read_to_end(&mut half).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert_eq!(server.end().await, 0, "{framing}, half closed");

        let server = Server::start(gate()).await;
        let mut reset = server.connect().await;
        reset.write_all(request.as_bytes()).await.unwrap();
        server.begun.notified().await;
        reset.set_zero_linger().unwrap();
        drop(reset);
        assert_eq!(server.end().await, 0, "{framing}, reset");
    }
}

#[tokio::test]
async fn bodies_above_the_limit_are_not_read() {
    // With a `content-length`, nothing is read.
    let server = Server::start(gate()).await;
    let mut client = server.connect().await;
    client.write_all(head("content-length: 10000000").as_bytes()).await.unwrap();
    assert!(read_to_end(&mut client).await.starts_with("HTTP/1.1 413 "));
    drop(client);
    assert_eq!(server.read.load(Ordering::SeqCst), 0);
    assert_eq!(server.end().await, 0);

    // Without a `content-length`, about the limit is read. hyper may read a piece more.
    let server = Server::start(gate()).await;
    let (client, mut writer) = server.connect().await.into_split();
    let sending = tokio::spawn(async move {
        writer.write_all(head("transfer-encoding: chunked").as_bytes()).await?;
        let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
        for _ in 0..4_096 {
            writer.write_all(chunk.as_bytes()).await?;
        }
        writer.flush().await
    });
    assert!(read_to_end(client).await.starts_with("HTTP/1.1 413 "));
    assert!(sending.await.unwrap().is_err(), "the server has closed the connection");
    let read = Arc::clone(&server.read);
    assert_eq!(server.end().await, 0);
    let read = read.load(Ordering::SeqCst);
    assert!(read <= BodyTokens::DEFAULT_LIMIT + 512 * 1024, "{read} bytes were read");
}

#[tokio::test]
async fn axum_handlers_receive_the_body_and_the_caller() {
    use axum::routing::post as route;
    async fn handler(caller: tollgate::Authenticated<User>, axum::Json(body): axum::Json<serde_json::Value>) -> String {
        format!("{} {} {:?}", caller.principal().0, body["key"], caller.location())
    }
    let layer = AuthLayer::new(memory()).with_credentials_removed();
    let app = axum::Router::new()
        .route("/fast", route(handler).route_layer(layer.with_body_tokens(body_tokens())))
        .route("/slow", route(handler).route_layer(pending_gate().with_body_tokens(body_tokens()).with_rate_limit(plenty())));
    let respond = |path: &str, body: String| {
        let mut request = post(JSON, axum::body::Body::from(body));
        *request.uri_mut() = path.parse().unwrap();
        app.clone().oneshot(request)
    };
    let masked = format!("Alice {:?} JsonBody", "*".repeat(TOKEN.len()));
    assert_eq!(text(respond("/fast", json_with(TOKEN)).await.unwrap()).await, masked);
    assert_eq!(text(respond("/slow", json_with(TOKEN)).await.unwrap()).await, format!("Alice {TOKEN:?} JsonBody"));
    for path in ["/fast", "/slow"] {
        assert_eq!(respond(path, json_with("unknown")).await.unwrap().status(), 401);
        assert_eq!(respond(path, "{".to_owned()).await.unwrap().status(), 400);
        assert_eq!(respond(path, " ".repeat(65_537)).await.unwrap().status(), 413);
    }
}

// The rest of the road.

#[tokio::test(start_paused = true)]
async fn pending_stores_are_awaited_after_the_body() {
    let layer = pending_gate().with_body_tokens(body_tokens());
    let body = json_with(TOKEN);
    let steps = || pieces(body.as_bytes(), &[], &[true], Some(3));
    let (response, _) = respond(&layer, post(JSON, Script::new(steps()))).await;
    assert_eq!(response.extensions().get::<Trailers>(), Some(&Trailers(Some(sums(3)))));
    assert_eq!(response.extensions().get::<CurrentGrant>().unwrap().location(), TokenLocation::JsonBody);
    assert_eq!(response.headers()["cache-control"], "private");
    assert_eq!(text(response).await, body);
    assert_eq!(rejection_kind(&layer, post(JSON, Script::of(json_with("unknown")))).await, RejectionKind::UnknownToken);

    let masking = pending_gate().with_credentials_removed().with_body_tokens(body_tokens());
    let (_, read) = accepted(&masking, post(JSON, Script::new(steps()))).await;
    assert_eq!(read, json_with(&"*".repeat(TOKEN.len())));

    // A store that never answers gets 503 after its own timeout.
    let silent = from_fn(|_| std::future::pending::<Result<Option<Grant<()>>, Infallible>>());
    let timeout = Duration::from_secs(1);
    let layer = AuthLayer::with_timeout(silent, timeout).with_body_tokens(body_tokens());
    let slowly = [Step::Pause(Duration::from_secs(4)), Step::Data(body.into())];
    let begin = tokio::time::Instant::now();
    assert_eq!(rejection_kind(&layer, post(JSON, Script::new(slowly))).await, RejectionKind::StoreUnavailable);
    assert_eq!(begin.elapsed(), Duration::from_secs(5), "the timeout of the store starts with the lookup");
}

#[tokio::test]
async fn allow_anonymous_reads_bodies() {
    for layer in [
        AuthLayer::with_timeout(BoxStore::new(memory()), TIMEOUT),
        AuthLayer::with_timeout(BoxStore::new(slow()), TIMEOUT),
    ] {
        let layer = layer.allow_anonymous().with_credentials_removed().with_body_tokens(body_tokens());
        for (content_type, body) in [
            (JSON, r#"{"qty": 1, "Key": "x"}"#),
            (JSON, r#"{"key": null}"#),
            (JSON, ""),
            (JSON, "[1]"),
            (TEXT, "qty=1"),
            (FORM, "key=1"),
            ("image/png", "key"),
        ] {
            let (response, runs) = respond(&layer, post(content_type, Script::of(body))).await;
            assert_eq!((response.status().as_u16(), runs), (200, 1), "{body}");
            assert_eq!(response.extensions().get::<Unauthenticated>(), Some(&Unauthenticated::Anonymous));
            assert!(!response.headers().contains_key("cache-control"));
            assert_eq!(text(response).await, body);
        }
        assert_eq!(accepted(&layer, post(JSON, Script::of(json_with(TOKEN)))).await.0, TokenLocation::JsonBody);
        for (content_type, body, kind) in [
            (JSON, json_with("unknown"), RejectionKind::UnknownToken),
            (JSON, json_with("mal formed"), RejectionKind::MalformedToken),
            (JSON, r#"{"key": 1}"#.to_owned(), RejectionKind::InvalidRequest),
            (JSON, "{".to_owned(), RejectionKind::InvalidRequest),
            (TEXT, "key=".to_owned(), RejectionKind::MalformedToken),
            (TEXT, "key".to_owned(), RejectionKind::InvalidRequest),
            (FORM, "access_token=".to_owned(), RejectionKind::MalformedToken),
            (JSON, " ".repeat(65_537), RejectionKind::BodyTooLarge),
        ] {
            assert_eq!(rejection_kind(&layer, post(content_type, Script::of(&body))).await, kind, "{content_type}");
        }
    }
}

#[tokio::test]
async fn bodies_of_preflights_are_not_read() {
    let service = gate().layer(reader::<Body>(&Runs::default()));
    let mut request = preflight();
    request.headers_mut().insert("content-type", HeaderValue::from_static(JSON));
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.extensions().get::<Unauthenticated>(), Some(&Unauthenticated::Preflight));
}

fn plenty() -> RateLimits {
    RateLimits::new(Quota::per_second(1_000_000))
}

#[tokio::test]
async fn rate_limits_work_before_and_after_with_body_tokens() {
    let limits = || Hands::default().limits(Quota::per_minute(60).with_burst(2));
    for layer in [
        AuthLayer::new(memory()).with_rate_limit(limits()).with_body_tokens(body_tokens()),
        AuthLayer::new(memory()).with_body_tokens(body_tokens()).with_rate_limit(limits()),
    ] {
        let request = || post(JSON, Script::of(json_with(TOKEN)));
        // These requests charge no bucket.
        assert_eq!(rejection_kind(&layer, post(JSON, Script::of(json_with("unknown")))).await, RejectionKind::UnknownToken);
        assert_eq!(rejection_kind(&layer, post(JSON, Script::of("{"))).await, RejectionKind::InvalidRequest);
        assert_eq!(
            rejection_kind(&layer, authorized(post(JSON, Script::new([Step::Fail])))).await,
            RejectionKind::BodyUnreadable
        );
        for left in [1, 0] {
            let (response, _) = respond(&layer, request()).await;
            assert_eq!(field(response.headers(), "ratelimit"), Some(&*format!("\"default\";r={left};t=1")));
        }
        let (response, runs) = respond(&layer, request()).await;
        assert_eq!((response.status().as_u16(), runs), (429, 0));
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.extensions().get::<Rejection>().unwrap().grant().unwrap().as_str(), "alice");
    }
    // A limiter set later does not affect an earlier clone.
    let layer = gate();
    let limited = layer.clone().with_rate_limit(limits());
    for _ in 0..3 {
        assert_eq!(accepted(&layer, post(JSON, Script::of(json_with(TOKEN)))).await.0, TokenLocation::JsonBody);
        respond(&limited, post(JSON, Script::of(json_with(TOKEN)))).await;
    }
    assert_eq!(rejection_kind(&limited, post(JSON, Script::of(json_with(TOKEN)))).await, RejectionKind::OverLimit);
}

// Readiness.

/// Panics if it is called without being ready. A clone is not ready.
struct Strict {
    ready: bool,
    made_ready: Arc<AtomicUsize>,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { ready: false, made_ready: Arc::clone(&self.made_ready) }
    }
}

impl Service<Request<ReplayBody<Script>>> for Strict {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if !self.ready {
            self.made_ready.fetch_add(1, Ordering::SeqCst);
        }
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<ReplayBody<Script>>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without being ready");
        std::future::ready(Ok(Response::new(Body::default())))
    }
}

macro_rules! in_both_branches {
    (|$layer:ident| $body:expr) => {{
        let $layer = AuthLayer::new(memory()).with_rate_limit(plenty()).with_body_tokens(body_tokens());
        $body;
        let $layer = pending_gate().with_body_tokens(body_tokens()).with_rate_limit(plenty());
        $body;
    }};
}

/// Returns a request whose body arrives in pieces, with waits between them.
fn in_pieces(token: &str) -> Request<Script> {
    let body = json_with(token).into_bytes();
    let steps = body.chunks(10).flat_map(|chunk| [Step::Wait, Step::Data(chunk.to_vec())]);
    post(JSON, Script::new(steps))
}

fn in_head(token: &str) -> Request<Script> {
    let request = Request::get("/").header("authorization", format!("Bearer {token}"));
    request.body(Script::new([])).unwrap()
}

#[tokio::test]
async fn the_ready_instance_is_called_after_the_body() {
    in_both_branches!(|layer| {
        let made_ready = Arc::new(AtomicUsize::new(0));
        let mut service = layer.layer(Strict { ready: false, made_ready: Arc::clone(&made_ready) });
        for round in 1..=10 {
            let request = if round % 2 == 0 { in_pieces(TOKEN) } else { in_head(TOKEN) };
            let response = service.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(made_ready.load(Ordering::SeqCst), round, "one `poll_ready` for each request");
        }
        // A rejection without reading leaves the instance ready. A rejection after reading has consumed it.
        let malformed = || in_head("mal formed");
        for (request, status, prepared) in
            [(malformed(), 401, 11), (malformed(), 401, 11), (in_pieces("mal formed"), 401, 11), (malformed(), 401, 12)]
        {
            let response = service.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!((response.status().as_u16(), made_ready.load(Ordering::SeqCst)), (status, prepared));
        }
        // Two requests at the same time.
        let first = service.ready().await.unwrap().call(in_pieces(TOKEN));
        let second = service.ready().await.unwrap().call(in_pieces(TOKEN));
        let (second, first) = (second.await.unwrap(), first.await.unwrap());
        assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    });
}

fn poll_ready<S: Service<Request<Script>>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    service.poll_ready(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_request_with_a_body_uses_one_permit() {
    in_both_branches!(|layer| {
        let (mock, mut handle) = mock::pair::<Request<ReplayBody<Script>>, Response<Body>>();
        handle.allow(1);
        let mut service = layer.layer(mock);
        let mut answer = tokio::spawn(service.ready().await.unwrap().call(in_pieces(TOKEN)));
        let (request, reply) = tokio::select! {
            request = handle.next_request() => request.unwrap(),
            answer = &mut answer => panic!("answered by the gate: {answer:?}"),
        };
        assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), json_with(TOKEN));
        reply.send_response(Response::new(Body::default()));
        assert_eq!(answer.await.unwrap().unwrap().status(), 200);
        assert!(poll_ready(&mut service).is_pending());
        handle.allow(1);
        assert!(poll_ready(&mut service).is_ready());
    });
}

#[tokio::test]
async fn works_above_a_concurrency_limit() {
    in_both_branches!(|layer| {
        let inner = ServiceBuilder::new().concurrency_limit(2).service(reader::<Script>(&Runs::default()));
        let service = layer.layer(inner);
        let sixth = |i| match i % 6 {
            0 => (in_pieces("unknown"), 401),
            1 => (post(JSON, Script::new([Step::Wait, Step::Fail])), 400),
            2 => (post(JSON, Script::new([Step::Wait, Step::Data(vec![b' '; 65_537])])), 413),
            3 => (in_head("unknown"), 401),
            4 => (in_head(TOKEN), 200),
            _ => (in_pieces(TOKEN), 200),
        };
        all_at_once(&service, (0..60).map(sixth)).await;
    });
}

#[tokio::test]
async fn works_below_buffer_and_concurrency_limit() {
    in_both_branches!(|layer| {
        let inner = reader::<Script>(&Runs::default());
        let service = ServiceBuilder::new().buffer(4).concurrency_limit(1).layer(layer).service(inner);
        all_at_once(&service, (0..20).map(|_| (in_pieces(TOKEN), 200))).await;
    });
}

#[tokio::test]
async fn a_dropped_request_releases_its_permit() {
    in_both_branches!(|layer| {
        let runs = Runs::default();
        let inner = ServiceBuilder::new().concurrency_limit(1).service(reader::<Script>(&runs));
        let mut service = layer.layer(inner);
        let silent = post(JSON, Script::new([Step::Data(b"{".to_vec()), Step::Silence]));
        let mut in_progress = Box::pin(service.ready().await.unwrap().call(silent));
        let mut context = Context::from_waker(Waker::noop());
        assert!(in_progress.as_mut().poll(&mut context).is_pending());
        assert!(poll_ready(&mut service).is_pending(), "the request holds the only permit");
        assert_eq!(format!("{in_progress:?}"), "BodyAuthFuture(..)");
        drop(in_progress);
        assert_eq!(service.ready().await.unwrap().call(in_pieces(TOKEN)).await.unwrap().status(), 200);
        assert_eq!(runs.count(), 1);
    });
}

#[tokio::test]
async fn works_in_boxed_services() {
    in_both_branches!(|layer| {
        let service: tower::util::BoxCloneSyncService<Request<Script>, Response<Body>, Infallible> =
            tower::util::BoxCloneSyncService::new(layer.layer(reader(&Runs::default())));
        assert_eq!(service.clone().oneshot(in_pieces(TOKEN)).await.unwrap().status(), 200);
        assert_eq!(service.oneshot(in_pieces("unknown")).await.unwrap().status(), 401);
    });
}

/// A body that is always ready and never ends or yields data.
struct Empties;

impl http_body::Body for Empties {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::new()))))
    }
}

#[tokio::test]
async fn a_body_that_is_always_ready_cannot_extend_the_timeout() {
    // Completes at the third poll, so that the test does not wait in real time.
    let sleep = |_| {
        let mut polls = 0;
        std::future::poll_fn(move |_| {
            polls += 1;
            if polls < 3 { Poll::Pending } else { Poll::Ready(()) }
        })
    };
    let body_tokens = BodyTokens::with_timer(TIMEOUT, sleep).with_json("key").unwrap();
    let runs = Runs::default();
    let service = AuthLayer::new(memory()).with_body_tokens(body_tokens).layer(reader::<Empties>(&runs));
    let response = service.oneshot(post(JSON, Empties)).await.unwrap();
    assert_eq!(response.status(), 408);
    assert_eq!(runs.count(), 0);
}

#[tokio::test]
async fn the_maximum_json_depth_can_be_set() {
    let nested = |depth: usize| {
        let arrays = (1..depth).map(|_| '[').chain((1..depth).map(|_| ']')).collect::<String>();
        format!(r#"{{"deep": {}, "key": "{TOKEN}"}}"#, if arrays.is_empty() { "0" } else { &arrays })
    };
    for (set, limit) in [(None, 64), (Some(1), 1), (Some(2), 2), (Some(200), 200)] {
        let body_tokens = match set {
            None => body_tokens(),
            Some(depth) => body_tokens().with_max_depth(depth),
        };
        let layer = AuthLayer::new(memory()).with_body_tokens(body_tokens);
        for (depth, status) in [(limit, 200), (limit + 1, 400)] {
            let (response, _) = respond(&layer, post(JSON, Script::of(nested(depth)))).await;
            assert_eq!(response.status(), status, "{depth} of {limit}");
        }
    }
}

#[tokio::test]
async fn an_immediate_body_starts_no_timer() {
    let started = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&started);
    let sleep = move |duration| {
        counting.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(duration)
    };
    let layer =
        AuthLayer::new(memory()).with_body_tokens(BodyTokens::with_timer(TIMEOUT, sleep).with_json("key").unwrap());
    let (response, runs) = respond(&layer, post(JSON, Body::from(json_with(TOKEN)))).await;
    assert_eq!((response.status().as_u16(), runs, started.load(Ordering::SeqCst)), (200, 1, 0));
    // The first wait starts one timer. Further waits start no other.
    let steps = [Step::Wait, Step::Data(json_with(TOKEN).into()), Step::Wait, Step::Wait];
    let (response, runs) = respond(&layer, post(JSON, Script::new(steps))).await;
    assert_eq!((response.status().as_u16(), runs, started.load(Ordering::SeqCst)), (200, 1, 1));
}

#[tokio::test]
async fn text_that_looks_like_json_is_text_without_a_json_location() {
    let body_tokens = BodyTokens::with_timeout(TIMEOUT).with_text("key").unwrap().with_json_in_text();
    let service = AuthLayer::new(memory()).with_body_tokens(body_tokens).layer(reader::<Script>(&Runs::default()));
    let mut request = post(TEXT, Script::of("{;key=other;"));
    request.headers_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    // A second credential, which must not be overlooked.
    assert_eq!(service.oneshot(request).await.unwrap().status(), 400);
}
