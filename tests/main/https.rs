//! HTTPS only: requests without it are rejected, whatever the store says, and what proxies report.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use axum::routing::get as get_route;
use axum::{Extension, Router};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use tollgate::gate::{ForwardedProto, HttpsConnection, is_https};
use tollgate::limit::{ClientIpError, FailureThrottle, RateLimits};
use tollgate::store::{Lookup, from_fn};
use tollgate::{
    Answer, AuthLayer, Authenticated, BearerToken, Grant, MemoryStore, Quota, Rejection, RejectionKind, RequestHead,
    TokenDigest, TokenStore, Unauthenticated,
};
use tower::{Layer as _, ServiceExt as _};

use crate::kit::body::{JSON, Script, TEXT, body_tokens, json_with, post, reader};
use crate::kit::location::{HEAD_LOCATIONS, with_all_locations, with_token_at};
use crate::kit::*;

const UNKNOWN: &str = "tg_unknown_to_the_store_0000";
const DETAIL: &str =
    "Send this request over HTTPS. Replace a token that was sent without HTTPS, because others may have read it.";

fn over_tls<B>(mut request: Request<B>) -> Request<B> {
    request.extensions_mut().insert(HttpsConnection);
    request
}

/// Returns all that a client receives.
async fn received(response: Response<Body>) -> (StatusCode, Vec<(String, String)>, String) {
    let lines = response.headers().iter();
    let lines = lines.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    (response.status(), lines, text(response).await)
}

fn rejection<B>(response: &Response<B>) -> &Rejection {
    response.extensions().get().expect("a rejection")
}

/// Asserts the rejection of a request without HTTPS, and returns the grant in its report.
fn assert_rejected(response: &Response<Body>) -> Option<String> {
    assert_eq!((response.status().as_u16(), rejection(response).kind()), (403, RejectionKind::HttpsRequired));
    for absent in ["www-authenticate", "location", "retry-after"] {
        assert!(!response.headers().contains_key(absent), "{absent}");
    }
    assert_eq!(field(response.headers(), "cache-control"), Some("no-store"));
    rejection(response).grant().map(ToString::to_string)
}

#[tokio::test]
async fn a_token_at_any_location_is_rejected_without_https() {
    let layer = with_all_locations(AuthLayer::new(memory())).require_https(is_https);
    let service = layer.layer(echo());
    for location in HEAD_LOCATIONS {
        for (token, grant, status) in [(TOKEN, Some("alice"), 200), (UNKNOWN, None, 401), ("mal formed!", None, 401)] {
            let response = send(&service, with_token_at(get(), location, token)).await;
            assert_eq!(assert_rejected(&response).as_deref(), grant, "{location:?}");
            let response = send(&service, over_tls(with_token_at(get(), location, token))).await;
            assert_eq!(response.status(), status, "{location:?} over HTTPS");
        }
    }
    let both = with_token_at(with_token(TOKEN), HEAD_LOCATIONS[1], TOKEN);
    assert_rejected(&send(&service, both).await);
    assert_rejected(&send(&service, get()).await);
    assert_eq!(send(&service, over_tls(get())).await.status(), 401);
}

#[tokio::test]
async fn the_response_is_the_same_for_all_tokens() {
    let service = AuthLayer::new(memory()).require_https(is_https).layer(echo());
    let expired = AuthLayer::new(MemoryStore::from_iter([(
        TokenDigest::of(TOKEN),
        Grant::new("alice", User("Alice")).with_expiry(SystemTime::UNIX_EPOCH),
    )]));
    let expired = expired.require_https(is_https).layer(echo());
    let requests = |fields: &[(&'static str, &'static str)]| {
        let twice = || {
            let mut request = with_token(TOKEN);
            request.headers_mut().append("authorization", HeaderValue::from_static("Bearer another"));
            request
        };
        [with_token(TOKEN), with_token(UNKNOWN), with_token("mal formed!"), twice(), get()].map(|mut request| {
            *request.method_mut() = http::Method::POST;
            for (name, value) in fields {
                request.headers_mut().insert(*name, HeaderValue::from_static(value));
            }
            request
        })
    };
    for (fields, status, expected) in [
        (&[][..], 403, format!(r#"{{"type":"about:blank","title":"Forbidden","status":403,"detail":"{DETAIL}"}}"#)),
        (&[("content-type", "application/grpc")], 200, String::new()),
        (&[("content-type", "application/grpc-web+proto")], 200, String::new()),
        (
            &[("content-type", "application/json"), ("connect-protocol-version", "1")],
            403,
            format!(r#"{{"code":"permission_denied","message":"{DETAIL}"}}"#),
        ),
    ] {
        let first = received(send(&service, requests(fields)[0].clone()).await).await;
        assert_eq!((first.0.as_u16(), &first.2), (status, &expected), "{fields:?}");
        if status == 200 {
            assert!(first.1.contains(&("grpc-status".to_owned(), "7".to_owned())), "{first:?}");
            assert!(first.1.contains(&("grpc-message".to_owned(), DETAIL.to_owned())), "{first:?}");
        }
        for request in requests(fields) {
            assert_eq!(received(send(&service, request.clone()).await).await, first);
            assert_eq!(received(send(&expired, request).await).await, first);
        }
    }
    let stream = requests(&[("content-type", "application/connect+json")])[0].clone();
    let response = send(&service, stream).await;
    let status = response.status();
    let content = response.into_body().collect().await.unwrap().to_bytes();
    // The first five bytes are the envelope of the last message.
    let message: serde_json::Value = serde_json::from_slice(&content[5..]).unwrap();
    assert_eq!((status.as_u16(), &message["error"]["code"]), (200, &"permission_denied".into()));
    let mut head = with_token(TOKEN);
    *head.method_mut() = http::Method::HEAD;
    assert_eq!(received(send(&service, head).await).await.2, "");
}

/// A store that never answers. A lookup that is polled fails the test.
#[derive(Default)]
struct Unresponsive(AtomicUsize);

struct Unpolled;

impl Future for Unpolled {
    type Output = Lookup<User, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        panic!("the gate waits for the store")
    }
}

impl TokenStore for Unresponsive {
    type Principal = User;
    type Error = Infallible;
    type Future = Unpolled;

    fn lookup(&self, _: &BearerToken<'_>) -> Answer<Self::Future> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Answer::Pending(Unpolled)
    }
}

#[test]
fn the_gate_never_waits_for_the_store() {
    let store = Arc::new(Unresponsive::default());
    let no_timer = |_| -> std::future::Pending<()> { panic!("the gate waits for a timeout") };
    let layer = AuthLayer::with_timer(Arc::clone(&store), Duration::from_secs(9), no_timer).require_https(is_https);
    for (request, lookups) in
        [(with_token(TOKEN), 1), (with_token("mal formed!"), 1), (get(), 1), (with_token(TOKEN), 2)]
    {
        let response = pin!(layer.layer(echo()).oneshot(request)).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Ok(response)) = response else { panic!("not immediate") };
        assert_eq!(assert_rejected(&response), None);
        assert_eq!(store.0.load(Ordering::SeqCst), lookups);
    }
}

#[tokio::test]
async fn errors_of_the_store_do_not_change_the_response() {
    let service = AuthLayer::new(Failing).require_https(is_https).layer(echo());
    assert_eq!(assert_rejected(&send(&service, with_token(TOKEN)).await), None);
}

#[cfg(feature = "cache")]
#[tokio::test]
async fn a_cached_grant_is_reported() {
    let cache = tollgate::store::CachedStore::new(slow(), Duration::from_secs(60)).unwrap();
    let service = AuthLayer::with_timeout(cache, Duration::from_secs(9)).require_https(is_https).layer(echo());
    assert_eq!(assert_rejected(&send(&service, with_token(TOKEN)).await), None, "not cached yet");
    assert_eq!(send(&service, over_tls(with_token(TOKEN))).await.status(), 200);
    assert_eq!(assert_rejected(&send(&service, with_token(TOKEN)).await).as_deref(), Some("alice"));
    assert_eq!(assert_rejected(&send(&service, with_token(UNKNOWN)).await), None);
}

#[tokio::test]
async fn anonymous_callers_are_admitted_but_never_asked_for_a_token() {
    let gate = AuthLayer::new(memory()).with_realm("trading").unwrap().allow_anonymous().require_https(is_https);
    let app: Router = Router::new()
        .route("/", get_route(|caller: Option<Authenticated<User>>| async move { format!("{}", caller.is_some()) }))
        .route("/needs", get_route(|_: Authenticated<User>| async {}))
        .route("/scope", get_route(|| async {}).route_layer(gate.require_scopes(["trade"]).unwrap()))
        .route(
            "/limited",
            get_route(|| async {}).route_layer(gate.route_rate_limit(RateLimits::new(Quota::per_hour(9)))),
        )
        .layer(gate);
    let call = |path: &str, request: Request<Body>| {
        let (mut head, body) = request.into_parts();
        head.uri = path.parse().unwrap();
        app.clone().oneshot(Request::from_parts(head, axum::body::Body::new(body)))
    };
    assert_eq!(text(call("/", get()).await.unwrap()).await, "false");
    assert_eq!(text(call("/", over_tls(with_token(TOKEN))).await.unwrap()).await, "true");
    assert_eq!(call("/limited", get()).await.unwrap().status(), 200);
    for path in ["/needs", "/scope"] {
        let response = call(path, get()).await.unwrap();
        assert_eq!((response.status().as_u16(), rejection(&response).kind()), (403, RejectionKind::HttpsRequired));
        assert!(!response.headers().contains_key("www-authenticate"), "{path}");
        assert_eq!(call(path, over_tls(get())).await.unwrap().status(), 401, "{path} over HTTPS");
    }
    for token in [TOKEN, UNKNOWN, "mal formed!"] {
        assert_eq!(call("/", with_token(token)).await.unwrap().status(), 403);
    }
}

#[tokio::test]
async fn preflights_pass_unless_the_bypass_is_off() {
    let layer = AuthLayer::new(memory()).require_https(is_https);
    let response = send(&layer.layer(echo()), preflight()).await;
    assert_eq!(Unauthenticated::from_extensions(response.extensions()), Some(Unauthenticated::Preflight));
    assert_rejected(&send(&layer.without_preflight_bypass().layer(echo()), preflight()).await);
}

#[tokio::test]
async fn a_body_is_read_without_https_only_for_anonymous_callers() {
    let send = async |is_anonymous: bool, mut request: Request<Script>, has_header: bool| {
        let layer = AuthLayer::new(memory()).require_https(is_https);
        let layer = if is_anonymous { layer.allow_anonymous() } else { layer };
        if has_header {
            request.headers_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
        }
        let taken = request.body().taken();
        let service = layer.with_body_tokens(body_tokens()).layer(reader(&Default::default()));
        (service.oneshot(request).await.unwrap(), taken.load(Ordering::SeqCst))
    };
    for has_header in [false, true] {
        for is_anonymous in [false, true].into_iter().filter(|is_anonymous| has_header || !is_anonymous) {
            let (response, read) = send(is_anonymous, post(JSON, Script::of(json_with(TOKEN))), has_header).await;
            assert_eq!((assert_rejected(&response).as_deref(), read), (has_header.then_some("alice"), 0));
        }
    }
    let (response, _) = send(true, post(JSON, Script::of(json_with(TOKEN))), false).await;
    assert_eq!(assert_rejected(&response).as_deref(), Some("alice"));
    for (content_type, body) in [
        (JSON, json_with(UNKNOWN)),
        (JSON, json_with("mal formed")),
        (JSON, "{".to_owned()),
        ("application/json;charset=latin1", "{}".to_owned()),
        (TEXT, "key=a;key=b".to_owned()),
    ] {
        let (response, _) = send(true, post(content_type, Script::of(&body)), false).await;
        assert_eq!(assert_rejected(&response), None, "{body}");
    }
    for (content_type, body) in [(JSON, r#"{"qty": 1}"#), ("image/png", "key")] {
        let (response, _) = send(true, post(content_type, Script::of(body)), false).await;
        assert_eq!(text(response).await, body);
    }
    let (response, _) = send(false, over_tls(post(JSON, Script::of(json_with(TOKEN)))), false).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn requests_without_https_are_neither_charged_nor_counted_as_failures() {
    let failures = FailureThrottle::new(Quota::per_hour(1), |_| Some("a peer"));
    let layer = AuthLayer::new(memory()).with_rate_limit(RateLimits::new(Quota::per_hour(1)));
    let service = layer.with_failure_throttle(failures).require_https(is_https).layer(echo());
    for token in [TOKEN, UNKNOWN, "mal formed!", TOKEN, UNKNOWN] {
        assert_rejected(&send(&service, with_token(token)).await);
    }
    assert_eq!(send(&service, over_tls(with_token(UNKNOWN))).await.status(), 401);
    assert_eq!(send(&service, over_tls(with_token(UNKNOWN))).await.status(), 429);
    assert_rejected(&send(&service, with_token(UNKNOWN)).await);
    assert_eq!(send(&service, over_tls(with_token(TOKEN))).await.status(), 200);
}

#[tokio::test]
async fn the_setting_survives_later_settings_and_shows_in_debug_output() {
    let layer = AuthLayer::new(memory()).require_https(is_https).with_max_token_len(64);
    let layer = layer.with_rate_limit(RateLimits::new(Quota::per_hour(9)));
    assert_rejected(&send(&layer.layer(echo()), with_token(TOKEN)).await);
    assert!(format!("{layer:?}").contains("https_required: true"), "{layer:?}");
    let slow = from_fn(|_| async { Ok::<_, Infallible>(Some(Grant::new("alice", ()))) });
    let layer = AuthLayer::with_timeout(slow, Duration::from_secs(9)).require_https(|_| true);
    assert_eq!(send(&layer.layer(echo()), with_token(TOKEN)).await.status(), 200);
}

/// Real connections.
mod sockets {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::server::conn::auto::Builder;
    use hyper_util::service::TowerToHyperService;
    use tokio::io::{AsyncRead, AsyncWrite};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::rustls::crypto::ring::default_provider;
    use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
    impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

    fn tls() -> (TlsAcceptor, TlsConnector) {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        let provider = Arc::new(default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let server = server.unwrap().with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key).unwrap();
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        (Arc::new(server).into(), Arc::new(client).into())
    }

    /// Serves a router on a free port, over TLS if there is an acceptor.
    async fn listen(app: Router, tls: Option<TlsAcceptor>) -> SocketAddr {
        async fn connection(stream: impl Stream, app: Router) {
            let service = TowerToHyperService::new(app);
            _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (app, tls) = (app.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => connection(tls.accept(stream).await.unwrap(), app).await,
                        None => connection(stream, app).await,
                    }
                });
            }
        });
        address
    }

    async fn status(stream: impl Stream, is_http2: bool, target: &str) -> u16 {
        let request = Request::get(target)
            .header("host", "localhost")
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("x-forwarded-proto", "https")
            .header("forwarded", "for=203.0.113.7;proto=https")
            .body(Body::default())
            .unwrap();
        let stream = TokioIo::new(stream);
        if is_http2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap().status().as_u16()
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap().status().as_u16()
        }
    }

    #[tokio::test]
    async fn only_requests_over_tls_are_admitted_whatever_they_say() {
        let app = || {
            let gate = AuthLayer::new(memory()).require_https(is_https);
            Router::new().route("/", get_route(|| async {})).layer(gate)
        };
        let (acceptor, connector) = tls();
        let plain = listen(app(), None).await;
        let secure = listen(app().layer(Extension(HttpsConnection)), Some(acceptor)).await;
        for (is_http2, target) in [(false, "/"), (false, "https://localhost/"), (true, "https://localhost/")] {
            let tcp = TcpStream::connect(plain).await.unwrap();
            assert_eq!(status(tcp, is_http2, target).await, 403, "{target} without TLS");
            let tcp = TcpStream::connect(secure).await.unwrap();
            let stream = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
            assert_eq!(status(stream, is_http2, target).await, 200, "{target} over TLS");
        }
    }

    /// A proxy on the same machine, and the address of the connection from axum.
    #[tokio::test]
    async fn the_field_of_a_trusted_peer_counts() {
        for (network, expected) in [("127.0.0.0/8", 200), ("10.0.0.0/8", 403)] {
            let proxies = ForwardedProto::x_forwarded_proto([network]).unwrap();
            let gate = AuthLayer::new(memory()).require_https(move |head| is_https(head) || proxies.is_https(head));
            let app: Router = Router::new().route("/", get_route(|| async {})).layer(gate);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let service = app.into_make_service_with_connect_info::<SocketAddr>();
            tokio::spawn(async move { axum::serve(listener, service).await });
            let tcp = TcpStream::connect(address).await.unwrap();
            assert_eq!(status(tcp, false, "/").await, expected, "{network}");
        }
    }
}

const TRUSTED: [&str; 2] = ["10.0.0.0/8", "fd00::/8"];

/// Returns whether this peer reports HTTPS by these lines.
fn reported(proxies: &ForwardedProto, peer: Option<&str>, lines: &[(&'static str, &[u8])]) -> bool {
    let mut request = Request::new(());
    for (name, value) in lines {
        request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
    }
    if let Some(peer) = peer {
        request.extensions_mut().insert(SocketAddr::new(peer.parse().unwrap(), 40_000));
    }
    proxies.is_https(&RequestHead::of(&request))
}

#[test]
fn every_value_of_x_forwarded_proto_must_be_https() {
    let proxies = ForwardedProto::x_forwarded_proto(TRUSTED).unwrap();
    let of = |lines: &[&str]| {
        let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-proto", line.as_bytes())).collect();
        reported(&proxies, Some("10.0.0.1"), &lines)
    };
    for lines in [&["https"][..], &["HTTPS"], &[" https , wss"], &["https", "https"], &["https,"], &["", "Wss"]] {
        assert!(of(lines), "{lines:?}");
    }
    for lines in [
        &[][..],
        &[""],
        &[","],
        &["http"],
        &["https, http"],
        &["http, https"],
        &["https", "http"],
        &["http", "https"],
        &["\"https\""],
        &["https;q=1"],
        &["httpss"],
        &["ws"],
        &["https http"],
        &["https://"],
        &["https, \u{e9}"],
    ] {
        assert!(!of(lines), "{lines:?}");
    }
}

#[test]
fn the_element_of_the_client_in_forwarded_must_be_https() {
    let proxies = ForwardedProto::forwarded(TRUSTED).unwrap();
    let of = |lines: &[&str]| {
        let lines: Vec<_> = lines.iter().map(|line| ("forwarded", line.as_bytes())).collect();
        reported(&proxies, Some("10.0.0.1"), &lines)
    };
    for lines in [
        &["for=198.51.100.7;proto=https"][..],
        &["for=198.51.100.7;proto=\"https\""],
        &["Proto=HTTPS ; FOR=\"[2001:db8::7]:4711\";by=10.0.0.1"],
        &["for=198.51.100.7;proto=wss"],
        // Between trusted proxies.
        &["for=198.51.100.7;proto=https, for=10.0.0.2;proto=http"],
        &["for=198.51.100.7;proto=https", "for=\"[fd00::2]\""],
        // Written by the client.
        &["for=1.1.1.1;proto=http, for=198.51.100.7;proto=https"],
        &["for=\"1.1.1.1", "for=198.51.100.7;proto=https"],
        // All addresses are trusted.
        &["for=10.0.0.3;proto=https, for=10.0.0.2;proto=http"],
    ] {
        assert!(of(lines), "{lines:?}");
    }
    for lines in [
        &[][..],
        &[""],
        &["proto=https"],
        &["for=198.51.100.7"],
        &["for=198.51.100.7;proto=http"],
        &["for=unknown;proto=https"],
        &["for=_hidden;proto=https"],
        &["for=198.51.100.7;proto=https;proto=https"],
        &["for=198.51.100.7;for=198.51.100.7;proto=https"],
        &["for=198.51.100.7;proto=\"https"],
        &["for=198.51.100.7;proto=\"http\\s\""],
        &["for=198.51.100.7, proto=https"],
        &["for=198.51.100.7;proto=http, for=10.0.0.2;proto=https"],
        &["for=1.1.1.1;proto=https, for=198.51.100.7;proto=http"],
        &["for=1.1.1.1;proto=https", "for=198.51.100.7;proto=http"],
        &["for=1.1.1.1;proto=https;x=\", for=198.51.100.7;proto=http"],
        &["for=1.1.1.1;proto=https, unknown, for=10.0.0.2;proto=https"],
        &["for=10.0.0.3;proto=http, for=10.0.0.2;proto=https"],
    ] {
        assert!(!of(lines), "{lines:?}");
    }
}

#[test]
fn only_trusted_peers_report_https() {
    let both: &[(&str, &[u8])] = &[("x-forwarded-proto", b"https"), ("forwarded", b"for=198.51.100.7;proto=https")];
    for proxies in [ForwardedProto::x_forwarded_proto(TRUSTED), ForwardedProto::forwarded(TRUSTED)] {
        let proxies = proxies.unwrap();
        for peer in ["10.0.0.1", "10.255.0.1", "fd00::1", "::ffff:10.0.0.1"] {
            assert!(reported(&proxies, Some(peer), both), "{peer}");
        }
        for peer in [Some("11.0.0.1"), Some("203.0.113.7"), Some("2001:db8::1"), Some("::10.0.0.1"), None] {
            assert!(!reported(&proxies, peer, both), "{peer:?}");
        }
    }
    assert_eq!(ForwardedProto::forwarded([]).unwrap_err(), ClientIpError::NoNetwork);
    assert_eq!(ForwardedProto::x_forwarded_proto(["10.0.0.0/33"]).unwrap_err(), ClientIpError::Network);
}

/// Text that a client may write, with many separators and quotes.
fn written_by_a_client() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just(b"for=1.1.1.1;proto=https".to_vec()),
        Just(b"for=10.0.0.9;proto=https".to_vec()),
        Just(b"proto=https".to_vec()),
        Just(b"https".to_vec()),
        "[\",;=\\\\ ]".prop_map(String::into_bytes),
        prop::collection::vec(prop_oneof![Just(b'\t'), 0x20..=0x7e_u8, 0x80..=0xff_u8], 0..6),
    ];
    prop::collection::vec(part, 0..10).prop_map(|parts| parts.concat())
}

fn scheme() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["https", "HTTPS", "wss", "http", "ws", "\"https\"", "\"http\""])
}

/// The oracle: the scheme as the proxy meant it.
fn is_secure(scheme: &str) -> bool {
    ["https", "wss"].contains(&&*scheme.trim_matches('"').to_lowercase())
}

proptest! {
    /// A client writes anything, and then each proxy appends an element about the hop before it.
    #[test]
    fn no_client_can_forge_https(
        written in written_by_a_client(),
        client in any::<[u8; 2]>(),
        schemes in prop::collection::vec(scheme(), 1..4),
        same_line in any::<bool>(),
    ) {
        let lines = |name: &'static str, elements: Vec<String>| {
            let elements = elements.join(", ").into_bytes();
            let all = match same_line {
                true => vec![[&written, &b", "[..], &elements].concat()],
                false => vec![written.clone(), elements],
            };
            all.into_iter().map(move |line| (name, line)).collect::<Vec<_>>()
        };
        let found = |proxies: ForwardedProto, lines: Vec<(&'static str, Vec<u8>)>| {
            let lines: Vec<_> = lines.iter().map(|(name, line)| (*name, &line[..])).collect();
            reported(&proxies, Some("10.0.0.1"), &lines)
        };
        let address = |hop: usize| match hop {
            0 => IpAddr::from([198, 51, client[0], client[1]]),
            hop => IpAddr::from([10, 0, 1, hop as u8]),
        };
        let elements = schemes.iter().enumerate().map(|(hop, scheme)| format!("for={};proto={scheme}", address(hop)));
        let is_https = found(ForwardedProto::forwarded(TRUSTED).unwrap(), lines("forwarded", elements.collect()));
        prop_assert!(!is_https || is_secure(schemes[0]), "forged");
        prop_assert!(is_https || same_line || !is_secure(schemes[0]), "another line cannot make this one malformed");

        let values = schemes.iter().map(|scheme| scheme.trim_matches('"').to_owned()).collect::<Vec<_>>();
        let proxies = || ForwardedProto::x_forwarded_proto(TRUSTED).unwrap();
        let is_https = found(proxies(), lines("x-forwarded-proto", values.clone()));
        prop_assert!(!is_https || schemes.iter().all(|scheme| is_secure(scheme)), "forged");
        let overwritten = vec![("x-forwarded-proto", values.join(",").into_bytes())];
        prop_assert_eq!(found(proxies(), overwritten), schemes.iter().all(|scheme| is_secure(scheme)));
    }
}
