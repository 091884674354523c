//! Runs the conformance vectors against the real layers.
//!
//! Every `*.json` file of a folder is read: `tests/vectors`, or the folder in `TOLLGATE_VECTORS`. An unknown kind, key
//! or word fails its vector, because no code would check it. Vectors of [`PENDING`] groups are validated in the same
//! way, but not run. Each failure is printed with its reason. The last line is always `N vectors, F failed`. Vectors
//! that cannot be read count as one failure.
#![allow(clippy::print_stdout, reason = "this program prints a report")]
#![allow(clippy::unwrap_used, reason = "only where no vector can cause a failure")]

use std::fmt::Debug;
use std::future::{Ready, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{collections::BTreeMap, convert::Infallible, env, error::Error, fs, process::ExitCode};
use tollgate::TokenDigest;

use bytes::Bytes;
use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, request::Parts};
use http_auth::parser::ChallengeParser;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::{runtime, time};
use tollgate::gate::{BodyTokens, ReplayBody};
use tollgate::respond::{Challenge, ErrorCode, RateLimitHeaders};
use tollgate::store::{Lookup, MemoryStore, TokenStore};
use tollgate::{Answer, AuthLayer, BearerToken, Charge, CurrentGrant, Decision, Grant, Limit, Quota, TokenLocation};
use tollgate::{RateLimits, Rejection, RejectionKind, Scopes, Unauthenticated, Verdict};
use tower::util::{ServiceExt, ServiceFn, service_fn};
use tower::{Layer, Service, ServiceBuilder};

/// Groups of vectors for features that the crate does not have yet.
const PENDING: &[&str] = &[];

/// The allowed keys of objects, one row for each place. A place is one or several kinds, or `*` for all, and a path. In
/// a path, `*` is every item or member. The items of `input.challenges` have no row: any parameter may occur in a
/// challenge.
const KEYS: &str = "
    *: id kind group title rule level notes stage macros expect
    *.macros.*: repeat count
    request: request config store
    request.request: method target headers body body_hex
    request.request.headers.*: name value hex
    request.config: carriers ws_prefix realm max_token max_body max_depth
    request.expect: verdict status error www_authenticate headers absent inner_headers inner_status success_headers \
        forwarded_headers token source trailers_only body_empty
    request.expect.www_authenticate: scheme require forbid
    challenge limit-headers gcra gcra-count gcra-n shared-bucket self-limit: input
    challenge.input: realm error error_description error_uri scope resource_metadata acr_values max_age challenges
    challenge.expect: value lines builder forbid_substring forbid_value
    limit-headers.input: emission_interval_ns burst policy format nth unix_now_s pk_hex
    limit-headers.expect: status headers absent json builder
    gcra gcra-count.input: emission_interval_ns burst at_ns
    gcra.expect: decisions
    gcra.expect.decisions.*: at_ns allowed remaining t_s full_in_ns wait_ns retry_after_s
    gcra-count.expect: allowed
    gcra-n.input: emission_interval_ns burst cost
    gcra-n.expect: outcome not_status
    shared-bucket.input: emission_interval_ns burst http ws then_http token_a token_b invalid valid
    shared-bucket.expect: allowed denied
    self-limit.input: rate_limit rate_limit_hex id
    self-limit.expect: count window_s status error";

/// The allowed words of keys with fixed values, in the same format.
const WORDS: &str = "
    *.level: MUST SHOULD MAY CHOICE
    *.stage: layer wire
    *.expect.builder: error error_or_sanitised default_realm_or_error
    request.config.carriers.*: header query form api_key json text ws
    request.store.*: unknown revoked expired not_yet_valid sender_constrained insufficient_scope step_up rate_limited \
        unavailable
    request.expect.verdict: accept missing invalid_token invalid_request insufficient_scope step_up too_large \
        unavailable rate_limited transport_reject pass
    request.expect.source: header query form api_key json text ws
    limit-headers.input.format: draft-11 draft-10 draft-07 draft-06 draft-03 x-epoch x-delta
    gcra-n.expect.outcome: insufficient_capacity";

fn main() -> ExitCode {
    // Test runners pass `--list`, filters and options. The vectors always run together.
    if env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let own = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors"));
    let folder = env::var_os("TOLLGATE_VECTORS").map_or_else(own, PathBuf::from);
    let (mut count, mut failures, mut pending) = (0, Vec::new(), [0; PENDING.len()]);
    let vectors = load(&folder).unwrap_or_else(|error| {
        failures.push((folder.display().to_string(), error));
        Vec::new()
    });
    for vector in &vectors {
        let group = PENDING.iter().position(|group| vector["group"] == *group);
        match (check_vocabulary(vector), group) {
            (Ok(()), Some(group)) => pending[group] += 1,
            (vocabulary, _) => {
                count += 1;
                let failure = vocabulary.and_then(|()| run(&expand_macros(vector)?)).err();
                let id = vector["id"].as_str().unwrap_or("a vector without id");
                failures.extend(failure.map(|error| (id.to_owned(), error)));
            }
        }
    }
    for (what, why) in &failures {
        // Truncated, since some vectors have many kilobytes.
        println!("{what}: {:.300}", why.to_string());
    }
    let pending = PENDING.iter().zip(pending).filter(|(_, count)| *count > 0);
    let pending: Vec<_> = pending.map(|(group, count)| format!("{group} ({count})")).collect();
    if !pending.is_empty() {
        println!("pending: {}", pending.join(", "));
    }
    println!("{count} vectors, {} failed", failures.len());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The error is the reason for a failed vector.
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn load(folder: &Path) -> Outcome<Vec<Value>> {
    let files = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = files.collect::<Result<Vec<_>, _>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let mut vectors = Vec::new();
    for file in files {
        let read: Result<Vec<Value>, _> = serde_json::from_slice(&fs::read(&file)?);
        vectors.extend(read.map_err(|error| format!("{}: {error}", file.display()))?);
    }
    if vectors.is_empty() { Err("there are no vectors".into()) } else { Ok(vectors) }
}

/// Reads a value strictly as the wanted type. An absent value is null, and null is `None`.
macro_rules! read {
    ($value:expr) => {
        serde_json::from_value($value.clone()).map_err(|error| format!("{}: {error}", stringify!($value)))
    };
}

/// Kinds, path, and keys or words.
type Row = (&'static str, &'static str, &'static str);

/// Returns the rows of a table that apply to a kind.
fn rows(table: &'static str, kind: &str) -> impl Iterator<Item = Row> {
    let rows = table.lines().filter_map(|row| row.trim().split_once(": "));
    let rows = rows.map(|(place, words)| (place.split_once('.').unwrap_or((place, "")), words));
    let rows = rows.map(|((kinds, path), words)| (kinds, path, words));
    rows.filter(move |(kinds, ..)| kinds.split(' ').any(|own| own == "*" || own == kind))
}

fn check_vocabulary(vector: &Value) -> Outcome {
    let kind: String = read!(vector["kind"])?;
    if rows(KEYS, &kind).all(|(kinds, ..)| kinds == "*") {
        return Err(format!("unknown kind {kind:?}").into());
    }
    if at(vector, "expect.*").is_empty() {
        return Err("nothing is expected".into());
    }
    for (_, path, _) in rows(KEYS, &kind) {
        let is_known = |key: &str| {
            rows(KEYS, &kind).any(|(_, place, keys)| place == path && keys.split(' ').any(|known| known == key))
        };
        for value in at(vector, path).into_iter().filter(|value| !value.is_null()) {
            let object = value.as_object().ok_or_else(|| format!("{path:?} is no object but {value}"))?;
            if let Some(key) = object.keys().find(|key| !is_known(key)) {
                return Err(format!("unknown key {key:?} in {path:?}").into());
            }
        }
    }
    for (_, path, words) in rows(WORDS, &kind) {
        if let Some(word) = at(vector, path).into_iter().find(|word| words.split(' ').all(|known| *word != known)) {
            return Err(format!("unknown word {word} for {path:?}").into());
        }
    }
    Ok(())
}

/// Returns all values at a path, in which `*` is every item or member.
fn at<'a>(value: &'a Value, path: &str) -> Vec<&'a Value> {
    path.split_terminator('.').fold(vec![value], |values, step| {
        let inside = |value: &'a Value| match (step, value) {
            ("*", Value::Array(items)) => items.iter().collect(),
            ("*", Value::Object(members)) => members.values().collect(),
            _ => value.get(step).into_iter().collect::<Vec<_>>(),
        };
        values.into_iter().flat_map(inside).collect()
    })
}

/// Replaces `@N@` by the expansion of the macro `N`, in every string and key.
fn expand_macros(vector: &Value) -> Outcome<Value> {
    let mut expanded = vector.to_string();
    for (name, repeated) in vector["macros"].as_object().into_iter().flatten() {
        let (text, count): (String, usize) = (read!(repeated["repeat"])?, read!(repeated["count"])?);
        let quoted = Value::from(text.repeat(count)).to_string();
        expanded = expanded.replace(&format!("@{name}@"), &quoted[1..quoted.len() - 1]);
    }
    Ok(serde_json::from_str(&expanded)?)
}

/// Runs a vector. A vector that hangs or panics fails, and the others still run.
fn run(vector: &Value) -> Outcome {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (input, expect) = (&vector["input"], &vector["expect"]);
    let run = async {
        match vector["kind"].as_str() {
            Some("request") => request(vector, expect).await,
            Some("challenge") => challenge(input, expect).await,
            Some("limit-headers") => limit_headers(input, expect).await,
            Some("gcra") => gcra(input, expect),
            Some("gcra-count") => gcra_count(input, expect),
            Some("gcra-n") => gcra_n(input, expect).await,
            Some("shared-bucket") => shared_bucket(input, expect).await,
            Some("self-limit") => self_limit(input, expect),
            kind => Err(format!("kind {kind:?} is not supported").into()),
        }
    };
    let run = async { time::timeout(Duration::from_secs(20), run).await? };
    catch_unwind(AssertUnwindSafe(|| runtime.block_on(run))).unwrap_or_else(|_| Err("panicked".into()))
}

fn same<T: Debug + PartialEq>(what: &str, is: T, should_be: T) -> Outcome {
    if is == should_be { Ok(()) } else { Err(format!("{what} is {is:?}, not {should_be:?}").into()) }
}

/// Compares a value with the expectation for a key, if there is one.
fn check(expect: &Value, key: &str, is: impl Into<Value>) -> Outcome {
    let is = is.into();
    match expect.get(key) {
        Some(should_be) if *should_be != is => Err(format!("{key} is {is}, not {should_be}").into()),
        _ => Ok(()),
    }
}

/// Reads an object of strings or numbers. An absent object is empty.
fn members(object: &Value) -> Outcome<BTreeMap<String, String>> {
    let object: Option<BTreeMap<_, Value>> = read!(object)?;
    object.into_iter().flatten().map(|(name, value)| Ok((name, text(&value)?))).collect()
}

fn text(value: &Value) -> Outcome<String> {
    Ok(if value.is_number() { value.to_string() } else { read!(value)? })
}

/// Reads an array of strings. An absent array is empty.
fn texts(array: &Value) -> Outcome<Vec<String>> {
    Ok(read!(array).map(Option::unwrap_or_default)?)
}

/// Returns the bytes of a byte string, in which each character is one byte.
fn bytes(text: &str) -> Outcome<Vec<u8>> {
    Ok(text.chars().map(u8::try_from).collect::<Result<_, _>>()?)
}

/// Returns the bytes at a key, as a byte string or in hexadecimal. Hexadecimal takes precedence.
fn octets(object: &Value, key: &str, hex_key: &str) -> Outcome<Vec<u8>> {
    let (text, hex): (Option<String>, Option<String>) = (read!(object[key])?, read!(object[hex_key])?);
    let Some(hex) = hex else { return bytes(&text.unwrap_or_default()) };
    let digits: Option<Vec<_>> = hex.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0).ok_or("there is no hexadecimal")?;
    Ok(digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect())
}

fn byte_string(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Returns the value of a header, its lines joined.
fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines: Vec<_> = headers.get_all(name).iter().map(|line| byte_string(line.as_bytes())).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

fn check_headers(headers: &HeaderMap, wanted: &Value, unwanted: &Value) -> Outcome {
    for (name, value) in members(wanted)? {
        same(&name, header(headers, &name), Some(value))?;
    }
    texts(unwanted)?.iter().try_for_each(|name| same(name, header(headers, name), None))
}

/// A scheme and its parameters, all names in lower case.
type ParsedChallenge = (String, BTreeMap<String, String>);

/// Parses challenges with an independent parser.
fn parse_challenges<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> Outcome<Vec<ParsedChallenge>> {
    let mut parsed = Vec::new();
    for line in lines {
        for challenge in ChallengeParser::new(line.to_str()?) {
            let challenge = challenge.map_err(|error| error.to_string())?;
            let mut parameters = BTreeMap::new();
            for (name, value) in challenge.params {
                let earlier = parameters.insert(name.to_ascii_lowercase(), value.to_unescaped());
                same(&format!("an earlier {name} in a challenge"), earlier, None)?;
            }
            parsed.push((challenge.scheme.to_ascii_lowercase(), parameters));
        }
    }
    Ok(parsed)
}

/// Checks rules for every response of a gate: its challenges are valid, and a 4xx is not stored.
fn check_gate_answer(answer: &Response<Bytes>) -> Outcome {
    parse_challenges(answer.headers().get_all(WWW_AUTHENTICATE))?;
    let cache_control = header(answer.headers(), "cache-control");
    let is_stored = answer.status().is_client_error() && cache_control.as_deref() != Some("no-store");
    same("whether a rejection may be stored", is_stored, false)
}

/// The body of all requests and responses.
type Body = Full<Bytes>;

/// A service that responds to every request.
trait Server<B>: Service<Request<B>, Response = Response<Body>, Error = Infallible> + Clone {}
impl<B, S: Service<Request<B>, Response = Response<Body>, Error = Infallible> + Clone> Server<B> for S {}

async fn answer_of<B>(server: impl Server<B>, request: Request<B>) -> Outcome<Response<Bytes>> {
    let (head, body) = server.oneshot(request).await?.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

/// What was recorded of a request.
#[derive(Default)]
struct Seen {
    /// The tokens that the store was asked for.
    asked: Vec<String>,
    /// The request that the inner service received.
    inner: Option<Parts>,
    /// The reason of the rejection, by the gate or by the inner service through the gate.
    rejection: Option<RejectionKind>,
}

type Log = Arc<Mutex<Seen>>;

impl Seen {
    fn caller(&self) -> Option<&CurrentGrant> {
        self.inner.as_ref()?.extensions.get()
    }

    fn source(&self) -> Option<&'static str> {
        match self.caller()?.location() {
            TokenLocation::AuthorizationHeader => Some("header"),
            TokenLocation::ApiKeyHeader => Some("api_key"),
            TokenLocation::Query => Some("query"),
            TokenLocation::WebSocketProtocol => Some("ws"),
            TokenLocation::FormBody => Some("form"),
            TokenLocation::JsonBody => Some("json"),
            TokenLocation::TextBody => Some("text"),
            _ => None,
        }
    }

    fn verdict(&self) -> Outcome<&'static str> {
        use RejectionKind as Kind;
        Ok(match (self.rejection, &self.inner) {
            (None, None) => "transport_reject",
            (None, Some(_)) if self.caller().is_some() => "accept",
            (None, Some(inner)) if Unauthenticated::from_extensions(&inner.extensions).is_some() => "pass",
            (Some(Kind::Missing), _) => "missing",
            (Some(Kind::MalformedToken | Kind::UnknownToken | Kind::NotYetValid), _) => "invalid_token",
            (Some(Kind::ExpiredToken | Kind::SenderConstrained), _) => "invalid_token",
            (Some(Kind::InvalidRequest), _) => "invalid_request",
            (Some(Kind::InsufficientScope), _) => "insufficient_scope",
            (Some(Kind::InsufficientUserAuthentication), _) => "step_up",
            (Some(Kind::OverLimit), _) => "rate_limited",
            (Some(Kind::BodyTooLarge), _) => "too_large",
            (Some(Kind::StoreUnavailable), _) => "unavailable",
            (rejection, _) => return Err(format!("no verdict for this rejection: {rejection:?}").into()),
        })
    }
}

const SCOPE: &str = "orders:write";
const QUOTA: Quota = Quota::per_minute(180).with_burst(20);

fn wall_clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

/// Returns the grant of all tokens in a condition, with its own bucket. Its principal is the condition, which is empty
/// for a valid token.
fn grant(condition: &str) -> Grant<String> {
    let scopes = Some(SCOPE).filter(|_| condition != "insufficient_scope");
    let grant = Grant::new(format!("grant {condition}"), condition.to_owned()).with_scopes(scopes).unwrap();
    match condition {
        "expired" => grant.with_expiry(wall_clock() - Duration::from_secs(1)),
        "not_yet_valid" => grant.with_not_before(wall_clock() + Duration::from_secs(1)),
        "sender_constrained" => grant.with_sender_constraint(),
        _ => grant,
    }
}

/// A store with the token conditions of a vector. All other tokens are valid.
struct Script {
    conditions: BTreeMap<String, String>,
    /// Makes the answers pending.
    waits: bool,
    log: Log,
}

impl TokenStore for Script {
    type Principal = String;
    type Error = &'static str;
    type Future = Ready<Lookup<String, &'static str>>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        let token = byte_string(token.expose());
        let found = match self.conditions.get(&token).map_or("", String::as_str) {
            "unknown" | "revoked" => Ok(None),
            "unavailable" => Err("unavailable"),
            condition => Ok(Some(Arc::new(grant(condition)))),
        };
        self.log.lock().unwrap().asked.push(token);
        if self.waits { Answer::Pending(ready(found)) } else { Answer::Ready(found) }
    }
}

/// A timeout that is never reached.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Enables the token locations of a vector: those in the head on the gate, those in the body in the returned
/// configuration.
fn enable_locations<T, L>(mut gate: AuthLayer<T, L>, config: &Value) -> Outcome<(AuthLayer<T, L>, BodyTokens)> {
    let mut body_tokens = BodyTokens::with_timer(TIMEOUT, time::sleep);
    if let Some(limit) = read!(config["max_body"])? {
        body_tokens = body_tokens.with_limit(limit);
    }
    if let Some(depth) = read!(config["max_depth"])? {
        body_tokens = body_tokens.with_max_depth(depth);
    }
    let locations = texts(&config["carriers"])?;
    if config.get("carriers").is_some() && !locations.iter().any(|location| location == "header") {
        gate = gate.without_authorization_header();
    }
    for location in locations {
        match location.as_str() {
            "query" => gate = gate.with_discouraged_query_token("access_token")?,
            "api_key" => gate = gate.with_api_key_header(HeaderName::from_static("x-api-key"))?,
            "ws" => gate = gate.with_websocket_token(&text(&config["ws_prefix"])?)?,
            "form" => body_tokens = body_tokens.with_form("access_token")?,
            "json" => body_tokens = body_tokens.with_json("key")?,
            "text" => body_tokens = body_tokens.with_text("key")?,
            _ => {}
        }
    }
    Ok((gate, body_tokens))
}

/// Builds the real layers with the configuration of a vector.
fn gated<B: http_body::Body>(vector: &Value, waits: bool, log: &Log) -> Outcome<impl Server<B> + use<B>> {
    let (config, expect) = (&vector["config"], &vector["expect"]);
    let limits = RateLimits::new(QUOTA).with_clock(|| Duration::ZERO);
    let _decision = limits.charge(&CurrentGrant::new(grant("rate_limited")), Charge::Units(QUOTA.burst()));
    let (realm, max_token): (Option<String>, Option<_>) = (read!(config["realm"])?, read!(config["max_token"])?);
    let store = Script { conditions: members(&vector["store"])?, waits, log: Arc::clone(log) };
    let gate = AuthLayer::with_timer(store, TIMEOUT, time::sleep)
        .with_realm(realm.as_deref().unwrap_or("example"))?
        .with_rate_limit(limits)
        .with_wall_clock(wall_clock);
    let (mut gate, body_tokens) = enable_locations(gate, config)?;
    if let Some(max_token) = max_token {
        gate = gate.with_max_token_len(max_token);
    }

    let status: Option<u16> = read!(expect["inner_status"])?;
    let mut answer = Response::builder().status(status.unwrap_or(200));
    for (name, value) in members(&expect["inner_headers"])? {
        answer = answer.header(name, bytes(&value)?);
    }
    let answer = answer.body(Body::default())?;
    let step_up = Rejection::insufficient_user_authentication(["myACR"], Some(Duration::from_secs(5)))?;
    let (inner_gate, inner_log, outer_log) = (gate.clone(), Arc::clone(log), Arc::clone(log));
    let inner = move |request: Request<ReplayBody<B>>| {
        let mut seen = inner_log.lock().unwrap();
        seen.inner = Some(request.into_parts().0);
        let condition = seen.caller().and_then(|caller| caller.principal::<String>());
        let is_too_weak = condition.is_some_and(|condition| condition == "step_up");
        ready(Ok(if is_too_weak { inner_gate.reject(step_up.clone()) } else { answer.clone() }))
    };
    let record_rejection = move |answer: Response<Body>| {
        outer_log.lock().unwrap().rejection = answer.extensions().get().map(Rejection::kind);
        answer
    };
    let scopes = gate.require_scopes([SCOPE])?;
    let gate = gate.with_body_tokens(body_tokens);
    Ok(ServiceBuilder::new().map_response(record_rejection).layer(gate).layer(scopes).service_fn(inner))
}

fn http_request(sent: &Value) -> Outcome<Request<Body>> {
    let mut request = Request::new(Body::from(octets(sent, "body", "body_hex")?));
    *request.method_mut() = Method::from_bytes(&octets(sent, "method", "")?)?;
    *request.uri_mut() = Uri::try_from(octets(sent, "target", "")?)?;
    for header in at(sent, "headers.*") {
        let name = HeaderName::from_bytes(&octets(header, "name", "")?)?;
        request.headers_mut().append(name, HeaderValue::from_bytes(&octets(header, "value", "hex")?)?);
    }
    Ok(request)
}

/// Sends a request to a real server over a socket, as bytes that need not be valid HTTP.
async fn over_the_wire(server: impl Server<Incoming>, sent: &Value) -> Outcome<Response<Bytes>> {
    let body = octets(sent, "body", "body_hex")?;
    let mut request = [octets(sent, "method", "")?, octets(sent, "target", "")?].join(&b' ');
    request.extend(b" HTTP/1.1\r\nhost: example\r\nconnection: close\r\n");
    for header in at(sent, "headers.*") {
        request.extend([octets(header, "name", "")?, octets(header, "value", "hex")?].join(&b": "[..]));
        request.extend(b"\r\n");
    }
    request.extend(format!("content-length: {}\r\n\r\n", body.len()).bytes().chain(body));

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut client = TcpStream::connect(listener.local_addr()?).await?;
    let (socket, _) = listener.accept().await?;
    let mut answer = String::new();
    let exchange = async {
        client.write_all(&request).await?;
        client.read_to_string(&mut answer).await
    };
    let serve = http1::Builder::new().serve_connection(TokioIo::new(socket), TowerToHyperService::new(server));
    // The server returns an error for an invalid request. Only its response counts.
    let (_, exchange) = tokio::join!(serve, exchange);
    exchange?;

    let (head, body) = answer.split_once("\r\n\r\n").ok_or("there is no answer")?;
    let status = head.split(' ').nth(1).ok_or("the answer has no status")?;
    let headers = head.lines().filter_map(|line| line.split_once(": "));
    let answer = headers.fold(Response::builder().status(status), |answer, (name, value)| answer.header(name, value));
    Ok(answer.body(Bytes::copy_from_slice(body.as_bytes()))?)
}

async fn request(vector: &Value, expect: &Value) -> Outcome {
    // Immediate and pending stores must have the same result.
    for waits in [false, true] {
        let (log, sent) = (Log::default(), &vector["request"]);
        let answer = match vector["stage"] == "wire" {
            true => over_the_wire(gated(vector, waits, &log)?, sent).await?,
            false => answer_of(gated(vector, waits, &log)?, http_request(sent)?).await?,
        };
        check_request(expect, &answer, &log.lock().unwrap())?;
    }
    Ok(())
}

fn check_request(expect: &Value, answer: &Response<Bytes>, seen: &Seen) -> Outcome {
    let verdict = seen.verdict()?;
    same("verdict", Some(verdict), expect["verdict"].as_str())?;
    let (status, inner_status): (Option<u16>, Option<u16>) = (read!(expect["status"])?, read!(expect["inner_status"])?);
    same("status", answer.status().as_u16(), status.or(inner_status).unwrap_or(200))?;

    let (headers, is_empty) = (answer.headers(), answer.body().is_empty());
    check_headers(headers, &expect["headers"], &expect["absent"])?;
    check_headers(headers, &expect["success_headers"], &Value::Null)?;
    check_challenges(expect, &parse_challenges(headers.get_all(WWW_AUTHENTICATE))?)?;
    check(expect, "body_empty", is_empty)?;
    check(expect, "trailers_only", is_empty && headers.contains_key("grpc-status"))?;
    if seen.rejection.is_some() {
        check_gate_answer(answer)?;
    }

    let forwarded = seen.inner.as_ref().map(|inner| inner.headers.clone()).unwrap_or_default();
    check_headers(&forwarded, &expect["forwarded_headers"], &Value::Null)?;
    check(expect, "source", seen.source())?;
    check(expect, "token", seen.asked.join(" and "))?;
    if ["missing", "invalid_request", "too_large", "transport_reject", "pass"].contains(&verdict) {
        same("what the store was asked for", &seen.asked, &vec![])?;
    }
    Ok(())
}

fn check_challenges(expect: &Value, challenges: &[ParsedChallenge]) -> Outcome {
    let error = challenges.iter().find_map(|(_, parameters)| parameters.get("error"));
    same("error", error.map(String::as_str), expect["error"].as_str())?;
    match expect.get("www_authenticate") {
        None => Ok(()),
        Some(Value::Null) => same("www_authenticate", challenges, &[]),
        Some(wanted) => {
            let scheme: String = read!(wanted["scheme"])?;
            let with_scheme = challenges.iter().find(|(own, _)| own.eq_ignore_ascii_case(&scheme));
            let (_, parameters) = with_scheme.ok_or_else(|| format!("there is no {scheme} in {challenges:?}"))?;
            for (name, value) in members(&wanted["require"])? {
                same(&name, parameters.get(&name), Some(&value))?;
            }
            texts(&wanted["forbid"])?.iter().try_for_each(|name| same(name, parameters.get(name), None))
        }
    }
}

/// Returns the built value, or `None` if the builder rejected it as allowed.
fn built<T>(expect: &Value, result: Outcome<T>) -> Outcome<Option<T>> {
    match (expect["builder"].as_str(), result) {
        (Some("error"), Ok(_)) => Err("the builder did not return an error".into()),
        (None, Err(error)) => Err(error),
        (_, result) => Ok(result.ok()),
    }
}

/// The scheme and parameters of a challenge, unchecked. Only lists have more than one value.
type Described = BTreeMap<String, Vec<String>>;

fn describe(challenge: &Value) -> Outcome<Described> {
    let challenge: BTreeMap<_, Value> = read!(challenge)?;
    let values = |value: Value| if value.is_array() { texts(&value) } else { Ok(vec![text(&value)?]) };
    challenge.into_iter().map(|(name, value)| Ok((name, values(value)?))).collect()
}

fn build(described: &Described) -> Outcome<Challenge> {
    let described_as = |name| described.get(name).map(|values| values.concat());
    let begun = match described_as("scheme").as_deref() {
        None | Some("Bearer") => Challenge::bearer(&described_as("realm").unwrap_or_default())?,
        Some(other) => Challenge::new(other)?,
    };
    described.iter().try_fold(begun, |challenge, (name, values)| {
        let value = values.concat();
        Ok(match name.as_str() {
            "scheme" => challenge,
            "realm" => challenge.with_realm(&value)?,
            "error" => challenge.with_error(error_code(&value).ok_or("there is no such error code")?),
            "error_description" => challenge.with_error_description(&value)?,
            "error_uri" => challenge.with_error_uri(&value)?,
            "scope" => challenge.with_scope(&Scopes::new(values)?),
            "acr_values" => challenge.with_acr_values(values)?,
            "max_age" => challenge.with_max_age(Duration::from_secs(value.parse()?)),
            "resource_metadata" => challenge.with_resource_metadata(&value)?,
            _ => challenge.with_parameter(name, &value)?,
        })
    })
}

fn error_code(code: &str) -> Option<ErrorCode> {
    use ErrorCode as Code;
    let step_up = Code::InsufficientUserAuthentication;
    [Code::InvalidRequest, Code::InvalidToken, Code::InsufficientScope, step_up]
        .into_iter()
        .find(|own| own.as_str() == code)
}

/// Returns the challenge lines of a gate configured with these challenges, its own first.
async fn gate_lines(challenges: &[Described]) -> Outcome<Vec<HeaderValue>> {
    let (own, others) = challenges.split_first().ok_or("there is no challenge")?;
    let mut gate = AuthLayer::new(MemoryStore::<()>::new());
    let mut credentials = "";
    for (name, values) in own {
        match (name.as_str(), values.concat().as_str()) {
            ("scheme", scheme) => same("the first scheme", scheme, "Bearer")?,
            ("realm", realm) => gate = gate.with_realm(realm)?,
            ("resource_metadata", uri) => gate = gate.with_resource_metadata(uri)?,
            // A gate sends this error itself for a malformed token.
            ("error", "invalid_token") => credentials = "Bearer ?",
            other => return Err(format!("a gate has no setting for {other:?}").into()),
        }
    }
    for other in others {
        gate = gate.with_challenge(build(other)?);
    }
    Ok(ask(&gate, credentials).await?.headers().get_all(WWW_AUTHENTICATE).iter().cloned().collect())
}

async fn challenge(input: &Value, expect: &Value) -> Outcome {
    let lines = match input["challenges"].as_array() {
        None => build(&describe(input)?).map(|challenge| vec![challenge.to_header_value()]),
        Some(several) => gate_lines(&several.iter().map(describe).collect::<Outcome<Vec<_>>>()?).await,
    };
    let Some(lines) = built(expect, lines)? else { return Ok(()) };
    let parsed = parse_challenges(&lines)?;
    if expect["builder"] == "default_realm_or_error" {
        same("whether there is a realm", parsed.iter().all(|(_, parameters)| parameters.contains_key("realm")), true)?;
    }
    let lines: Vec<_> = lines.iter().map(|line| byte_string(line.as_bytes())).collect();
    let (value, part): (Option<String>, Option<String>) =
        (read!(expect["forbid_value"])?, read!(expect["forbid_substring"])?);
    let is_forbidden =
        |line: &&String| Some(*line) == value.as_ref() || part.as_ref().is_some_and(|part| line.contains(part));
    same("a forbidden challenge", lines.iter().find(is_forbidden), None)?;
    check(expect, "value", lines.join("\n"))?;
    check(expect, "lines", lines)
}

type Handler = ServiceFn<fn(Request<Body>) -> Ready<Result<Response<Body>, Infallible>>>;

/// Returns the response of a gate around an accepting inner service to these credentials.
async fn ask<L: Layer<Handler, Service: Server<Body>>>(gate: &L, credentials: &str) -> Outcome<Response<Bytes>> {
    let request = Request::get("/").header("authorization", credentials).body(Body::default())?;
    let answer = answer_of(gate.layer(service_fn(|_| ready(Ok(Response::default())))), request).await?;
    check_gate_answer(&answer)?;
    Ok(answer)
}

fn quota(input: &Value) -> Outcome<Quota> {
    let (interval_ns, burst): (u64, u32) = (read!(input["emission_interval_ns"])?, read!(input["burst"])?);
    Ok(Quota::try_per(1, Duration::from_nanos(interval_ns))?.try_with_burst(burst)?)
}

/// Returns a grant whose subject, and so bucket, is always the same.
fn alice(id: &str) -> Grant<()> {
    Grant::new(id, ()).with_subject("alice")
}

/// Returns a gate for the tokens `a` and `b`.
fn limited_gate(limits: &RateLimits) -> AuthLayer<MemoryStore<()>, RateLimits> {
    AuthLayer::new(MemoryStore::from_iter([
        (TokenDigest::of("a"), alice("first")),
        (TokenDigest::of("b"), alice("second")),
    ]))
    .with_rate_limit(limits.clone())
}

async fn limit_headers(input: &Value, expect: &Value) -> Outcome {
    let policy: String = read!(input["policy"])?;
    let limits = quota(input).and_then(|quota| Ok(RateLimits::new(Limit::new(&policy, quota)?)));
    let Some(mut limits) = built(expect, limits)? else { return Ok(()) };
    limits = limits.with_clock(|| Duration::ZERO);
    if input.get("pk_hex").is_some() {
        let key = octets(input, "", "pk_hex")?;
        limits = limits.with_partition_key(move |_| key.clone());
    }
    let mut gate = limited_gate(&limits).with_rate_limit_headers(match input["format"].as_str() {
        Some("draft-07") => RateLimitHeaders::Draft07,
        Some("draft-06") => RateLimitHeaders::Draft06,
        Some("draft-03") => RateLimitHeaders::Draft03,
        Some("x-epoch") => RateLimitHeaders::XEpoch,
        Some("x-delta") => RateLimitHeaders::XDelta,
        Some("draft-10") => RateLimitHeaders::Draft10,
        _ => RateLimitHeaders::Draft11,
    });
    if let Some(now) = read!(input["unix_now_s"])? {
        let now = UNIX_EPOCH + Duration::try_from_secs_f64(now)?;
        gate = gate.with_wall_clock(move || now);
    }
    let nth: Option<u64> = read!(input["nth"])?;
    for _ in 1..nth.unwrap_or(1) {
        ask(&gate, "Bearer a").await?;
    }
    let answer = ask(&gate, "Bearer a").await?;
    check(expect, "status", answer.status().as_u16())?;
    check_headers(answer.headers(), &expect["headers"], &expect["absent"])?;
    let members: Option<BTreeMap<String, Value>> = read!(expect["json"])?;
    members.into_iter().flatten().try_for_each(|(name, value)| {
        let body: Value = serde_json::from_slice(answer.body())?;
        same(&name, body.get(&name), Some(&value))
    })
}

fn decisions(input: &Value) -> Outcome<Vec<(u64, Decision)>> {
    let times: Vec<u64> = read!(input["at_ns"])?;
    let clock = Arc::new(AtomicU64::new(0));
    let reading = Arc::clone(&clock);
    let limits =
        RateLimits::new(quota(input)?).with_clock(move || Duration::from_nanos(reading.load(Ordering::Relaxed)));
    let caller = CurrentGrant::new(alice("first"));
    let decide = |at| {
        clock.store(at, Ordering::Relaxed);
        (at, limits.charge(&caller, Charge::Units(1)))
    };
    Ok(times.into_iter().map(decide).collect())
}

fn gcra(input: &Value, expect: &Value) -> Outcome {
    let ns = |time: Duration| time.as_nanos() as u64;
    let seconds_up = |time: Duration| ns(time).div_ceil(1_000_000_000);
    let (decisions, wanted): (_, Vec<BTreeMap<String, Value>>) = (decisions(input)?, read!(expect["decisions"])?);
    same("the number of decisions", decisions.len(), wanted.len())?;
    for (number, ((at_ns, decision), wanted)) in decisions.into_iter().zip(wanted).enumerate() {
        let is = json!({
            "at_ns": at_ns,
            "allowed": decision.is_admitted(),
            "remaining": decision.remaining(),
            "t_s": seconds_up(decision.more_in()),
            "full_in_ns": ns(decision.full_in()),
            "wait_ns": decision.retry_after().map(ns),
            "retry_after_s": decision.retry_after().map(|wait| seconds_up(wait).max(1)),
        });
        for (name, value) in wanted {
            same(&format!("{name} of decision {number}"), &is[&name], &value)?;
        }
    }
    Ok(())
}

fn gcra_count(input: &Value, expect: &Value) -> Outcome {
    check(expect, "allowed", decisions(input)?.iter().filter(|(_, decision)| decision.is_admitted()).count())
}

async fn gcra_n(input: &Value, expect: &Value) -> Outcome {
    let cost = read!(input["cost"])?;
    let limits = RateLimits::new(Limit::from(quota(input)?).with_cost(move |_| cost));
    let decision = limits.charge(&CurrentGrant::new(alice("first")), Charge::Units(cost));
    let outcome = (decision.verdict() == Verdict::CostAboveBurst).then_some("insufficient_capacity");
    check(expect, "outcome", outcome)?;
    let status = ask(&limited_gate(&limits), "Bearer a").await?.status().as_u16();
    let forbidden: Option<u16> = read!(expect["not_status"])?;
    same("a forbidden status", forbidden.filter(|forbidden| *forbidden == status), None)
}

async fn shared_bucket(input: &Value, expect: &Value) -> Outcome {
    let limits = RateLimits::new(quota(input)?).with_clock(|| Duration::ZERO);
    let gate = limited_gate(&limits);
    let on_socket = CurrentGrant::new(alice("first"));
    let (mut allowed, mut denied) = (0, 0);
    for key in ["http", "ws", "then_http", "token_a", "token_b", "invalid", "valid"] {
        let credentials = match key {
            "token_b" => "Bearer b",
            "invalid" => "Bearer c",
            _ => "Bearer a",
        };
        let count: Option<u64> = read!(input[key])?;
        for _ in 0..count.unwrap_or(0) {
            let status = match key {
                "ws" if limits.charge(&on_socket, Charge::Units(1)).is_admitted() => 200,
                "ws" => 429,
                _ => ask(&gate, credentials).await?.status().as_u16(),
            };
            match status {
                200 => allowed += 1,
                429 => denied += 1,
                status => same("an answer", (key, status), ("invalid", 401))?,
            }
        }
    }
    check(expect, "allowed", allowed)?;
    check(expect, "denied", denied)
}

/// The parser of the reference service for limits that alerts declare.
#[allow(dead_code, reason = "the vectors test the parser only")]
#[path = "../examples/crosstrade/self_limit.rs"]
mod alerts;

fn self_limit(input: &Value, expect: &Value) -> Outcome {
    let (rate_limit, id): (Option<String>, Option<String>) = (read!(input["rate_limit"])?, read!(input["id"])?);
    let rate_limit = match input.get("rate_limit_hex") {
        Some(_) => Some(octets(input, "", "rate_limit_hex")?),
        None => rate_limit.map(String::into_bytes),
    };
    let limit = alerts::parse(rate_limit.as_deref(), id.as_deref().map(str::as_bytes));
    let limited = limit.ok().flatten();
    check(expect, "count", limited.map(|limit| limit.count))?;
    check(expect, "window_s", limited.map(|limit| limit.window_s))?;
    // The service responds to all of these with 400, as the vectors require.
    check(expect, "status", limit.is_err().then_some(400))?;
    check(expect, "error", limit.is_err().then_some("invalid_request"))
}
