//! Tokens that an authorization server knows, over real connections.

use std::error::Error;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tollgate::mint::TokenFormat;
use tollgate::store::contract::Contract;
use tollgate::store::{
    CheckedStore, Claims, ClientAuth, IntrospectionBuilder, IntrospectionConfigError, IntrospectionError,
    IntrospectionStore,
};
use tollgate::{Answer, AuthLayer, BearerToken, BoxStore, Grant, Quota, StoreError, TokenStore};
use tower::Layer;

use crate::kit::*;

/// What a server saw of a request.
#[derive(Clone, Debug)]
pub struct Seen {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: String,
}

pub type Log = Arc<Mutex<Vec<Seen>>>;

/// A server that answers by a function of the token, and what it saw.
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

/// A server that knows [`TOKEN`], of which it says this, and nothing else.
async fn says(claims: Value) -> (SocketAddr, Log) {
    let claims = claims.to_string();
    server(move |token| answer(if token == TOKEN { claims.clone() } else { json!({"active": false}).to_string() }))
        .await
}

fn auth() -> ClientAuth {
    ClientAuth::basic("gate", "s3cret").unwrap()
}

pub fn builder(address: SocketAddr) -> IntrospectionBuilder {
    // In case that a test hangs, this is not what ends it.
    IntrospectionStore::builder(&format!("http://{address}/introspect"), auth()).with_timeout(Duration::from_secs(60))
}

fn store(address: SocketAddr) -> IntrospectionStore {
    builder(address).build().unwrap()
}

/// The error of a lookup, which can be used as its cause.
#[derive(Debug)]
struct Failure(StoreError);

impl std::ops::Deref for Failure {
    type Target = IntrospectionError;

    fn deref(&self) -> &IntrospectionError {
        self.0.source().and_then(|source| source.downcast_ref()).unwrap()
    }
}

async fn ask<P: Send + Sync + 'static>(store: &IntrospectionStore<P>) -> Result<Option<Arc<Grant<P>>>, Failure> {
    store.lookup(&BearerToken::new(TOKEN)).await.map_err(Failure)
}

/// The grant of a token of which the server says this, of the subject `alice` unless that is said too.
async fn grant(mut claims: Value) -> Arc<Grant<Claims>> {
    if claims.get("sub").is_none() {
        claims["sub"] = "alice".into();
    }
    claims["active"] = true.into();
    ask(&store(says(claims).await.0)).await.unwrap().unwrap()
}

/// What a gate in front of it answers.
async fn through_a_gate<T: TokenStore>(store: T) -> Response<Body> {
    let gate = AuthLayer::with_timeout(store, Duration::from_secs(60));
    send(&gate.layer(echo()), with_token(TOKEN)).await
}

fn everything_printed(error: &IntrospectionError) -> String {
    let mut printed = format!("{error} {error:?} {error:#?}");
    let mut source = error.source();
    while let Some(error) = source {
        printed.push_str(&format!(" {error} {error:?}"));
        source = error.source();
    }
    printed
}

/// The look-up fails, and a gate answers that as an outage.
async fn fails<P: Send + Sync + 'static>(store: IntrospectionStore<P>, what: &str) -> Failure {
    let Err(error) = ask(&store).await else { panic!("{what}: not an error") };
    let printed = format!("{} {:?} {}", error.0, error.0, everything_printed(&error));
    assert_eq!(error.0.concerns_token(), error.concerns_token(), "{what}");
    assert!(
        !printed.contains(TOKEN) && !printed.contains("s3cret") && !printed.contains("CANARY"),
        "{what}: {printed}"
    );
    let refusal = through_a_gate(store).await;
    assert_eq!(refusal.status(), 503, "{what}");
    assert_eq!(field(refusal.headers(), "www-authenticate"), None, "{what}");
    error
}

#[tokio::test]
async fn introspection_keeps_the_contract() {
    let subjects = [(TOKEN, "alice"), ("tg_another_token_of_alice", "alice"), ("tg_token_of_bob", "bob")];
    let (address, _) = server(move |token| {
        let subject = subjects.iter().find(|(known, _)| *known == token).map(|(_, subject)| *subject);
        answer(match subject {
            Some(subject) => json!({"active": true, "sub": subject, "scope": "trade"}).to_string(),
            None => json!({"active": false}).to_string(),
        })
    })
    .await;
    async fn check<T: TokenStore + std::fmt::Debug>(store: T) {
        let contract = Contract::new(store).knows(TOKEN, "alice").knows("tg_another_token_of_alice", "alice");
        contract.knows("tg_token_of_bob", "bob").has_revoked("tg_gone_token").check().await;
    }
    check(store(address)).await;
    check(BoxStore::new(store(address))).await;
    check(CheckedStore::new(store(address), TokenFormat::new("acme").unwrap()).with_imported_tokens()).await;
    #[cfg(feature = "cache")]
    check(tollgate::store::CachedStore::new(store(address), Duration::from_secs(60)).unwrap()).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_outage() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    Contract::new(store(address)).knows(TOKEN, "alice").check_outage().await;
    let error = fails(store(address), "down").await;
    assert!(!error.is_timeout() && error.source().is_some());
    assert_eq!(error.to_string(), "the introspection endpoint could not be asked");
}

/// What is sent is this to the byte, and nothing else.
#[tokio::test]
async fn the_request_is_that_of_the_standard() {
    let (address, log) = says(json!({"active": false})).await;
    let url = format!("http://{address}/oauth2/introspect?tenant=1");
    let store = IntrospectionStore::new(&url, ClientAuth::basic("my gate:1", "p+s/é").unwrap()).unwrap();
    let tokens: [(&[u8], &str); 5] = [
        (b"abc-._~+/==", "abc-._%7E%2B%2F%3D%3D"),
        (b"", ""),
        (b"a&token=b", "a%26token%3Db"),
        (b" \0\xff%41", "%20%00%FF%2541"),
        (b"AZaz09*", "AZaz09*"),
    ];
    for (token, encoded) in tokens {
        assert!(store.lookup(&BearerToken::new(token)).await.unwrap().is_none());
        let seen = log.lock().unwrap().pop().unwrap();
        assert_eq!(seen.body, format!("token={encoded}&token_type_hint=access_token"));
        assert_eq!((seen.method.as_str(), seen.uri.to_string().as_str()), ("POST", "/oauth2/introspect?tenant=1"));
        let basic = BASE64_STANDARD.encode("my%20gate%3A1:p%2Bs%2F%C3%A9");
        let expected = [
            ("authorization", format!("Basic {basic}")),
            ("accept", "application/json".into()),
            ("content-type", "application/x-www-form-urlencoded".into()),
            ("user-agent", concat!("tollgate/", env!("CARGO_PKG_VERSION")).into()),
            ("content-length", seen.body.len().to_string()),
            ("host", address.to_string()),
        ];
        assert_eq!(seen.headers.len(), expected.len(), "{:?}", seen.headers);
        for (name, value) in expected {
            assert_eq!(field(&seen.headers, name), Some(&*value), "{name}");
        }
    }
}

#[tokio::test]
async fn a_service_can_have_a_token_of_its_own() {
    let (address, log) = says(json!({"active": false})).await;
    let auth = ClientAuth::bearer("own-token._~+/==").unwrap();
    let store = IntrospectionStore::new(&format!("http://{address}/"), auth).unwrap();
    assert!(ask(&store).await.unwrap().is_none());
    assert_eq!(field(&log.lock().unwrap()[0].headers, "authorization"), Some("Bearer own-token._~+/=="));
}

/// The proxies of the environment are for others: this runs a test again, with a proxy that is not there.
#[test]
fn no_proxy_of_the_environment_is_used() {
    let mut again = Command::new(std::env::current_exe().unwrap());
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        again.env(name, "http://127.0.0.1:1");
    }
    for name in ["no_proxy", "NO_PROXY", "REQUEST_METHOD"] {
        again.env_remove(name);
    }
    let run = again.args(["--exact", "introspection::a_service_can_have_a_token_of_its_own"]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn nothing_is_sent_before_the_first_poll() {
    let (address, log) = says(json!({"active": true, "sub": "alice"})).await;
    let store = store(address);
    let Answer::Pending(unpolled) = store.lookup(&BearerToken::new(TOKEN)) else { panic!("it has to be waited for") };
    assert_eq!(format!("{unpolled:?}"), "IntrospectionFuture(..)");
    assert!(ask(&store).await.unwrap().is_some());
    drop(unpolled);
    assert!(ask(&store).await.unwrap().is_some());
    assert_eq!(log.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn active_tokens_have_grants() {
    let grant = grant(json!({
        "sub": "u-17", "client_id": "app", "username": "Alice", "jti": "t-1", "iss": "https://id.example",
        "scope": "orders:read trade", "exp": 4_000_000_000_u64, "nbf": 1_000_000_000, "iat": 1_000_000_001,
        "token_type": "bearer", "aud": ["https://api.example", "other"], "plan": {"name": "pro"},
    }))
    .await;
    assert_eq!((grant.id().as_str(), grant.subject().as_str()), ("t-1", "u-17"));
    assert_eq!(grant.scopes().to_string(), "orders:read trade");
    let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!((grant.not_before(), grant.expires_at()), (at(1_000_000_000), at(4_000_000_000)));
    assert!(!grant.is_sender_constrained() && grant.quota().is_none());
    let claims = grant.principal();
    assert_eq!((claims.subject(), claims.client_id(), claims.username()), (Some("u-17"), Some("app"), Some("Alice")));
    assert_eq!((claims.issuer(), claims.token_id()), (Some("https://id.example"), Some("t-1")));
    assert!(claims.audiences().eq(["https://api.example", "other"]));
    assert_eq!((claims.not_before(), claims.expires_at()), (grant.not_before(), grant.expires_at()));
    assert_eq!(claims.issued_at(), at(1_000_000_001));
    assert_eq!((claims.scopes(), claims.is_sender_constrained()), (grant.scopes(), false));
    assert_eq!((claims.get("plan").unwrap()["name"].as_str(), claims.get("none")), (Some("pro"), None));
    assert_eq!(format!("{claims:?}"), "Claims(..)");
}

#[tokio::test]
async fn a_subject_is_looked_for_in_three_members() {
    async fn names(claims: Value) -> (String, String) {
        let grant = ask(&store(says(claims).await.0)).await.unwrap().unwrap();
        (grant.id().to_string(), grant.subject().to_string())
    }
    let two = |id: &str, subject: &str| (id.to_owned(), subject.to_owned());
    assert_eq!(names(json!({"active": true, "sub": "s", "client_id": "c", "username": "u"})).await, two("s", "s"));
    assert_eq!(names(json!({"active": true, "client_id": "c", "username": "u", "jti": "j"})).await, two("j", "c"));
    assert_eq!(names(json!({"active": true, "username": "u"})).await, two("u", "u"));
    // Ids are shown in logs.
    assert_eq!(names(json!({"active": true, "sub": "s", "jti": TOKEN})).await, two("s", "s"));

    let address = says(json!({"active": true, "sub": "s", "jti": "j"})).await.0;
    let grant = ask(&builder(address).with_subject_prefix("acme:").build().unwrap()).await.unwrap().unwrap();
    assert_eq!((grant.id().as_str(), grant.subject().as_str()), ("acme:j", "acme:s"));
    let nobody = builder(says(json!({"active": true, "jti": "j"})).await.0).with_subject_prefix("acme:");
    fails(nobody.build().unwrap(), "a prefix is no subject").await;
}

/// A member, and what it becomes.
#[tokio::test]
async fn members_are_read_by_their_rules() {
    for (scope, all) in [("", ""), ("a", "a"), ("b a", "b a"), (" a  b ", "a b"), ("!#[]~", "!#[]~")] {
        assert_eq!(grant(json!({ "scope": scope })).await.scopes().to_string(), all, "{scope:?}");
    }
    let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
    for (date, down, up) in [
        (json!(7), at(7), at(7)),
        (json!(7.0), at(7), at(7)),
        (json!(7.001), at(7), at(8)),
        (json!(7.999), at(7), at(8)),
        (json!(1.5e9), at(1_500_000_000), at(1_500_000_000)),
        (json!(18_446_744_073_u64), at(18_446_744_073), at(18_446_744_073)),
    ] {
        let grant = grant(json!({"exp": date, "nbf": date, "iat": date})).await;
        assert_eq!((grant.expires_at(), grant.not_before()), (down, up), "{date}");
        assert_eq!(grant.principal().issued_at(), down, "{date}");
    }
    let born = grant(json!({"exp": 0, "nbf": 0})).await;
    assert_eq!((born.expires_at(), born.not_before()), (at(0), None), "1970 is over");
    for late in [json!(u64::MAX), json!(i64::MAX), json!(1e300), json!(20_000_000_000_u64)] {
        let grant = grant(json!({"exp": late, "nbf": late})).await;
        assert_eq!(grant.expires_at(), None, "{late} is later than any clock shows");
        assert!(!grant.is_valid_at(SystemTime::now() + Duration::from_secs(15_000_000_000)), "and nothing begins then");
    }
    for (claims, constrained) in [
        (json!({"token_type": "Bearer"}), false),
        (json!({"token_type": "BEARER"}), false),
        (json!({"token_type": "DPoP"}), true),
        (json!({"token_type": "dpop"}), true),
        (json!({"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}), true),
        (json!({"cnf": {"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}, "token_type": "Bearer"}), true),
        (json!({"cnf": {}}), true),
    ] {
        let grant = grant(claims.clone()).await;
        let both = (grant.is_sender_constrained(), grant.principal().is_sender_constrained());
        assert_eq!(both, (constrained, constrained), "{claims}");
    }
}

#[tokio::test]
async fn the_gate_judges_what_the_server_says() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for (claims, status, error) in [
        (json!({"active": true, "sub": "a", "exp": now + 600, "nbf": now - 600}), 200, None),
        (json!({"active": true, "sub": "a", "exp": now - 1}), 401, Some("invalid_token")),
        (json!({"active": true, "sub": "a", "exp": 0}), 401, Some("invalid_token")),
        (json!({"active": true, "sub": "a", "nbf": now + 600}), 401, Some("invalid_token")),
        (json!({"active": true, "sub": "a", "cnf": {"jkt": "k"}}), 401, Some("invalid_token")),
        (json!({"active": true, "sub": "a", "token_type": "DPoP"}), 401, Some("invalid_token")),
        (json!({"active": true, "sub": "a", "token_use": "refresh_token"}), 401, Some("invalid_token")),
        (json!({"active": true, "sub": "a", "token_use": "access_token"}), 200, None),
        (json!({"active": false}), 401, Some("invalid_token")),
        // What is not active is not looked at any further.
        (json!({"active": false, "exp": "CANARY", "sub": 7}), 401, Some("invalid_token")),
    ] {
        let answer = through_a_gate(store(says(claims.clone()).await.0)).await;
        assert_eq!(answer.status(), status, "{claims}");
        let challenge = field(answer.headers(), "www-authenticate").unwrap_or_default();
        assert_eq!(challenge.contains("error=\"invalid_token\""), error.is_some(), "{claims}: {challenge}");
    }
}

#[tokio::test]
async fn tokens_for_others_are_not_known() {
    for (aud, is_ours) in [
        (json!("https://api.example"), true),
        (json!(["x", "https://api.example"]), true),
        (json!(["second"]), true),
        (json!("https://api.example/"), false),
        (json!("HTTPS://API.EXAMPLE"), false),
        (json!([]), false),
        (json!(""), false),
        (json!(["x", "y"]), false),
    ] {
        let address = says(json!({"active": true, "sub": "alice", "aud": aud})).await.0;
        let ours = builder(address).with_audience("https://api.example").with_audience("second").build().unwrap();
        assert_eq!(ask(&ours).await.unwrap().is_some(), is_ours, "{aud}");
        assert!(ask(&store(address)).await.unwrap().is_some(), "{aud}: nobody asked");
    }
    let without = says(json!({"active": true, "sub": "alice"})).await.0;
    assert!(ask(&builder(without).with_audience("a").build().unwrap()).await.unwrap().is_none());
}

#[tokio::test]
async fn principals_and_quotas_are_the_services_own() {
    let address = says(json!({"active": true, "sub": "alice", "username": "Alice", "plan": "pro"})).await.0;
    let quota = Quota::per_minute(600);
    let store = builder(address)
        .with_principal(|claims| claims.username().map(str::to_owned).ok_or("no name"))
        .with_quota(move |claims| (claims.get("plan")? == "pro").then_some(quota))
        .build()
        .unwrap();
    let found = ask(&store).await.unwrap().unwrap();
    assert_eq!((found.principal().as_str(), found.quota()), ("Alice", Some(quota)));

    let refusing = builder(address).with_quota(move |_| Some(quota)).with_principal(|_| Err::<(), _>("no such user"));
    let error = fails(refusing.build().unwrap(), "no principal").await;
    assert_eq!(error.source().unwrap().to_string(), "no such user");
}

#[tokio::test]
async fn malformed_answers_are_outages() {
    let active = |member: &str| format!(r#"{{"active":true,"sub":"alice",{member}}}"#);
    let mut bodies: Vec<String> = [
        "",
        " ",
        "null",
        "true",
        "[]",
        "\"CANARY\"",
        "{",
        "{}",
        "<html>CANARY</html>",
        "\u{feff}{\"active\":false}",
        r#"{"active":"true","sub":"CANARY"}"#,
        r#"{"active":1}"#,
        r#"{"active":null}"#,
        r#"{"Active":true,"sub":"alice"}"#,
        r#"{"active":true,"sub":"alice""#,
        r#"{"active":true,"sub":"alice"}x"#,
        r#"{"active":false,"active":true,"sub":"a"}"#,
        r#"{"active":true,"active":true,"sub":"a"}"#,
        r#"{"active":false,"active":false}"#,
        r#"{"active":false,"\u0061ctive":false}"#,
        r#"{"active":true}"#,
        r#"{"active":true,"sub":""}"#,
        r#"{"active":true,"sub":"alice","sub":"bob"}"#,
    ]
    .map(str::to_owned)
    .into();
    for name in ["sub", "client_id", "username", "jti", "iss"] {
        bodies.extend(
            ["null", "7", "[\"CANARY\"]", "{}", "\"\""].map(|v| format!(r#"{{"active":true,"{name}":{v},"x":0}}"#)),
        );
    }
    for wrong in ["null", "7", "[\"a\"]", "true", r#""a\tb""#, r#""CANARY\"""#, r#""a\\b""#, r#""é""#, r#""\u0000""#] {
        bodies.push(active(&format!("\"scope\":{wrong}")));
    }
    for name in ["exp", "nbf", "iat"] {
        for wrong in ["null", "-1", "-0.5", "\"4000000000\"", "true", "[]", "{}", "1e999", "-1e300", "NaN"] {
            bodies.push(active(&format!("\"{name}\":{wrong}")));
        }
    }
    for wrong in ["null", "7", "true", "\"CANARY\"", "[]"] {
        bodies.push(active(&format!("\"cnf\":{wrong}")));
    }
    for wrong in ["null", "7", "{}", "[7]", "[\"CANARY\",null]", "[[]]"] {
        bodies.push(active(&format!("\"aud\":{wrong}")));
    }
    for wrong in ["null", "7", "\"\"", "\"CANARY\"", "\"mac\"", "[\"Bearer\"]"] {
        bodies.push(active(&format!("\"token_type\":{wrong}")));
    }
    // A server that writes back what it was shown.
    bodies.push(format!(r#"{{"active":"{TOKEN}"}}"#));
    bodies.push(format!(r#"{{"active":true,"sub":"{TOKEN}"}}"#));
    bodies.push(active(&format!("\"scope\":\"{TOKEN}\\t\"")));
    for body in bodies {
        let sent = body.clone();
        fails(store(server(move |_| answer(sent.clone())).await.0), &body).await;
    }
    let (address, _) = server(|_| answer(&b"{\"active\":true,\"sub\":\"\xff\"}"[..])).await;
    fails(store(address), "no UTF-8").await;
}

#[tokio::test]
async fn other_heads_are_outages() {
    let good = || json!({"active": true, "sub": "alice"}).to_string();
    for (types, is_json) in [
        (&["application/json"][..], true),
        (&["Application/JSON ; charset=utf-8"], true),
        (&["application/vnd.acme+json"], true),
        (&[], false),
        (&["text/json"], false),
        (&["text/html"], false),
        (&["application/+json"], false),
        (&["application/jsonp"], false),
        (&["application/token-introspection+jwt"], false),
        (&["application/json", "application/json"], false),
        (&["application/json", "text/html"], false),
    ] {
        let (address, _) = server(move |_| {
            let mut answer = Response::new(Body::new(good().into()));
            for value in types {
                answer.headers_mut().append(header::CONTENT_TYPE, value.parse().unwrap());
            }
            answer
        })
        .await;
        if is_json {
            assert!(ask(&store(address)).await.unwrap().is_some(), "{types:?}");
        } else {
            fails(store(address), &format!("{types:?}")).await;
        }
    }
    for status in [201, 202, 203, 204, 206, 304, 400, 401, 403, 404, 405, 429, 500, 502, 503] {
        let (address, _) = server(move |_| {
            let mut answer = answer(good());
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            answer
        })
        .await;
        let error = fails(store(address), &status.to_string()).await;
        assert_eq!(error.status().map(|status| status.as_u16()), Some(status));
        assert_eq!(error.is_credentials(), status == 401 || status == 403, "{status}");
        assert!(error.to_string().contains(&status.to_string()) && !error.is_timeout());
    }
}

/// The table of the documentation.
#[tokio::test]
async fn errors_concern_the_store_or_one_token() {
    let about_the_token = [400, 402, 404, 409, 410, 413, 414, 422, 431, 451];
    let about_the_store = [201, 204, 301, 302, 401, 403, 405, 407, 408, 415, 429, 500, 501, 502, 503, 504];
    let statuses = about_the_token.map(|status| (status, true)).into_iter();
    for (status, concerns_token) in statuses.chain(about_the_store.map(|status| (status, false))) {
        let (address, _) = server(move |_| {
            let mut answer = answer(json!({"error": "invalid_request"}).to_string());
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            answer
        })
        .await;
        assert_eq!(fails(store(address), &status.to_string()).await.concerns_token(), concerns_token, "{status}");
    }
    for (body, concerns_token) in [
        (r#"{"active":true}"#, true),
        (r#"{"active":true,"sub":7}"#, true),
        (r#"{"active":true,"sub":"alice","exp":"tomorrow"}"#, true),
        (r#"{"active":true,"sub":"alice","sub":"bob"}"#, true),
        (r#"{"active":true,"sub":"alice","token_type":"mac"}"#, true),
        (r#"{"error":"invalid_token"}"#, true),
        ("[]", true),
        (r#"{"active":true,"sub":"a name that is much longer than the limit allows"}"#, true),
        ("", false),
        ("Internal error", false),
        (r#"{"active":true,"sub":"#, false),
    ] {
        let (address, _) = server(move |_| answer(body)).await;
        let store = builder(address).with_max_answer(64).build().unwrap();
        assert_eq!(fails(store, body).await.concerns_token(), concerns_token, "{body}");
    }
    let (address, _) = server(|_| Response::new(Body::new("<html>Maintenance</html>".into()))).await;
    assert!(!fails(store(address), "HTML").await.concerns_token());

    let address = says(json!({"active": true, "sub": "alice"})).await.0;
    let rejecting = builder(address).with_principal(|_| Err::<(), _>("no such user"));
    assert!(fails(rejecting.build().unwrap(), "a principal").await.concerns_token());
    let failing = builder(address).with_principal(|_| Err::<(), _>(StoreError::new("the directory is down")));
    assert!(!fails(failing.build().unwrap(), "a directory").await.concerns_token());
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let (other, log) = says(json!({"active": true, "sub": "mallory"})).await;
    for status in [301, 302, 303, 307, 308] {
        let (address, first) = server(move |_| {
            Response::builder()
                .status(status)
                .header("location", format!("http://{other}/"))
                .body(Body::default())
                .unwrap()
        })
        .await;
        assert_eq!(fails(store(address), "a redirect").await.status().unwrap(), status);
        assert_eq!(first.lock().unwrap().len(), 2, "asked, and asked by the gate");
    }
    assert!(log.lock().unwrap().is_empty(), "who is redirected to sees nothing");
}

/// A server that hands out its connections when a request has come in.
async fn by_hand() -> (SocketAddr, mpsc::UnboundedReceiver<TcpStream>) {
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

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";

/// Time is stopped as soon as the request has come in, so that it passes as nothing else happens.
#[tokio::test]
async fn who_never_answers_runs_into_the_time_limit() {
    for begin in ["", "HTTP/1.1 200 OK\r\n", &format!("{HEAD}content-length: 100\r\n\r\n{{\"active\":true")] {
        let (address, mut connections) = by_hand().await;
        let store = builder(address).with_timeout(Duration::from_secs(3)).build().unwrap();
        let asked = tokio::spawn(async move { ask(&store).await });
        let mut connection = connections.recv().await.unwrap();
        connection.write_all(begin.as_bytes()).await.unwrap();
        tokio::time::pause();
        let error = asked.await.unwrap().unwrap_err();
        assert!(error.is_timeout(), "{begin:?}: {error:?}");
        assert!(!everything_printed(&error).contains(TOKEN));
        tokio::time::resume();
    }
}

/// A byte now and then does not keep a look-up alive: the limit is for the whole.
#[tokio::test]
async fn who_drips_runs_into_the_time_limit() {
    let (address, mut connections) = by_hand().await;
    let store = builder(address).with_timeout(Duration::from_secs(3)).build().unwrap();
    let asked = tokio::spawn(async move { ask(&store).await });
    let mut connection = connections.recv().await.unwrap();
    connection.write_all(format!("{HEAD}content-length: 60000\r\n\r\n").as_bytes()).await.unwrap();
    tokio::time::pause();
    let drips = tokio::spawn(async move {
        let mut drips = 0;
        while connection.write_all(b" ").await.is_ok() && drips < 60_000 {
            drips += 1;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        drips
    });
    assert!(asked.await.unwrap().unwrap_err().is_timeout());
    drips.abort();
}

#[tokio::test]
async fn truncated_answers_are_outages() {
    let body = r#"{"active":true,"sub":"alice"}"#;
    for (head, end) in [("content-length: 1000", ""), ("transfer-encoding: chunked", "\r\n")] {
        let (address, mut connections) = by_hand().await;
        let store = store(address);
        let asked = tokio::spawn(async move { ask(&store).await });
        let mut connection = connections.recv().await.unwrap();
        let chunk = if end.is_empty() { String::new() } else { format!("{:x}\r\n", body.len()) };
        connection.write_all(format!("{HEAD}{head}\r\n\r\n{chunk}{body}{end}").as_bytes()).await.unwrap();
        drop(connection);
        let error = asked.await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the introspection endpoint could not be asked", "{head}");
    }
}

/// With and without a length that is told: what is too large is not read to its end, which never comes.
#[tokio::test]
async fn answers_are_bounded() {
    let exactly = |len: usize| {
        let start = r#"{"active":true,"sub":"alice","x":""#;
        format!("{start}{}\"}}", "x".repeat(len - start.len() - 2))
    };
    for (max, len, fits) in [(65_536, 65_536, true), (65_536, 65_537, false), (100, 100, true), (100, 101, false)] {
        let (address, _) = server(move |_| answer(exactly(len))).await;
        let store = builder(address).with_max_answer(max).build().unwrap();
        if fits {
            assert!(ask(&store).await.unwrap().is_some(), "{len} of {max}");
        } else {
            assert!(fails(store, "too large").await.to_string().ends_with(&format!("larger than {max} bytes")));
        }
    }
    let (address, _) = server(move |_| answer(exactly(65_537))).await;
    assert!(fails(store(address), "the default").await.to_string().ends_with("larger than 65536 bytes"));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let endless = Router::new().fallback(|| async {
        let chunks = futures_util::stream::repeat(Bytes::from_static(&[b' '; 1_000])).map(Ok::<_, std::io::Error>);
        ([("content-type", "application/json")], axum::body::Body::from_stream(chunks))
    });
    tokio::spawn(async move { axum::serve(listener, endless).await });
    fails(store(address), "endless").await;
}

/// The first that such a server sees is the beginning of TLS, and nothing goes on without.
#[tokio::test]
async fn https_is_not_http() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/introspect", listener.local_addr().unwrap());
    let store = IntrospectionStore::new(&url, auth()).unwrap();
    let asked = tokio::spawn(async move { ask(&store).await });
    let (mut connection, _) = listener.accept().await.unwrap();
    let mut seen = [0; 3];
    connection.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen[..2], [0x16, 3], "a handshake of TLS");
    connection.write_all(format!("{HEAD}content-length: 2\r\n\r\n{{}}").as_bytes()).await.unwrap();
    drop(connection);
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the introspection endpoint could not be asked");
}

/// A look-up that is dropped lets go of its connection, which is how the server knows.
#[tokio::test]
async fn a_dropped_look_up_ends_its_request() {
    let (address, mut connections) = by_hand().await;
    let store = builder(address).with_timeout(Duration::from_secs(3_600)).build().unwrap();
    let asked = tokio::spawn(async move { ask(&store).await });
    let mut connection = connections.recv().await.unwrap();
    asked.abort();
    // The end is seen at once; who never sees it has failed, and should not hang.
    let seen = tokio::time::timeout(Duration::from_secs(10), connection.read(&mut [0])).await;
    assert_eq!(seen.expect("the connection is still there").unwrap_or(0), 0);
}

#[test]
fn what_is_wrong_is_said_when_it_is_built() {
    use IntrospectionConfigError as Wrong;
    let build = |url: &str| IntrospectionStore::new(url, auth()).map(|_| ());
    for good in [
        "https://id.example/introspect",
        "HTTPS://id.example:8443/a?b=c",
        "http://127.0.0.1:8080/",
        "http://127.8.9.1/",
        "http://[::1]:8080/introspect",
    ] {
        assert_eq!(build(good), Ok(()), "{good}");
    }
    for (bad, why) in [
        ("", Wrong::Endpoint),
        ("/introspect", Wrong::Endpoint),
        ("id.example/introspect", Wrong::Endpoint),
        ("https:///", Wrong::Endpoint),
        ("ftp://id.example/", Wrong::Endpoint),
        ("mailto:a@id.example", Wrong::Endpoint),
        (" https://id.example/", Wrong::Endpoint),
        ("https://id.exa\nmple/", Wrong::Endpoint),
        ("https:\\\\id.example/", Wrong::Endpoint),
        ("http://id.example/", Wrong::Insecure),
        ("http://localhost/", Wrong::Insecure),
        ("http://127.0.0.1.example/", Wrong::Insecure),
        ("http://10.0.0.1/", Wrong::Insecure),
        ("https://user@id.example/", Wrong::UserInfo),
        ("https://:pass@id.example/", Wrong::UserInfo),
        ("https://id.example/#part", Wrong::Fragment),
        ("https://id.example/#", Wrong::Fragment),
    ] {
        assert_eq!(build(bad), Err(why), "{bad}");
    }
    let url = "https://id.example/";
    let with = || IntrospectionStore::builder(url, auth());
    assert!(IntrospectionStore::builder("http://id.example/", auth()).with_insecure_http().build().is_ok());
    let ftp = IntrospectionStore::builder("ftp://id.example/", auth()).with_insecure_http();
    assert_eq!(ftp.build().map(|_| ()), Err(Wrong::Endpoint));
    for (builder, why) in [
        (with().with_timeout(Duration::ZERO), Wrong::Timeout),
        (with().with_connect_timeout(Duration::ZERO), Wrong::Timeout),
        (with().with_max_answer(0), Wrong::MaxAnswer),
        (with().with_audience(""), Wrong::Audience),
        (with().with_root_certificate_pem(b""), Wrong::RootCertificate),
        (with().with_root_certificate_pem(b"no PEM"), Wrong::RootCertificate),
        (
            with().with_root_certificate_pem(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            Wrong::RootCertificate,
        ),
    ] {
        assert_eq!(builder.build().map(|_| ()), Err(why));
    }
    assert_eq!(ClientAuth::basic("", "s").map(|_| ()), Err(Wrong::ClientId));
    for bad in ["", "=", "a b", "a=b", "a\n", "é", "a\"b"] {
        assert_eq!(ClientAuth::bearer(bad).map(|_| ()), Err(Wrong::BearerToken), "{bad:?}");
    }
}

#[test]
fn nothing_prints_credentials() {
    let url = "https://id.example/introspect?key=s3cret";
    let auth = ClientAuth::basic("gate", "s3cret").unwrap();
    let builder = IntrospectionStore::builder(url, auth.clone());
    let mut printed = format!("{auth:?} {:?} {builder:?}", ClientAuth::bearer("s3cret").unwrap());
    let store = builder.build().unwrap();
    printed.push_str(&format!("{store:?} {:?}", store.clone()));
    assert!(printed.contains("https://id.example/introspect") && !printed.contains("s3cret"), "{printed}");
    assert!(!printed.contains(&BASE64_STANDARD.encode("gate:s3cret")), "{printed}");
}
