//! Rejections of gRPC, gRPC-Web and Connect.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tollgate::limit::RateLimits;
use tollgate::store::from_fn;
use tollgate::{AuthLayer, CurrentGrant, EmptyBody, Grant, Limit, Protocol, Quota, Rejection, RequestHead, StoreError};
use tonic::Code;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use tower::Layer;

use crate::kit::{Body, Hands, ONE, TOKEN, echo, field, json, memory, run, send, serve, skip, text};

#[test]
fn protocol_is_detected_from_the_request() {
    const VERSION: &str = "connect-protocol-version";
    for (method, target, name, value, expected) in [
        ("POST", "/", "content-type", "application/grpc", Protocol::Grpc),
        ("POST", "/", "content-type", "application/grpc+json;x=y", Protocol::Grpc),
        ("POST", "/", "content-type", "application/grpc-web", Protocol::GrpcWeb),
        ("POST", "/", "content-type", "Application/gRPC-Web+Proto", Protocol::GrpcWeb),
        ("POST", "/", "content-type", "application/grpc-web+thrift", Protocol::GrpcWeb),
        ("POST", "/", "content-type", " application/grpc-web-text ; x=y", Protocol::GrpcWeb),
        ("POST", "/", "content-type", "application/grpc-web-text+proto", Protocol::GrpcWeb),
        ("POST", "/", "content-type", "application/connect+proto", Protocol::ConnectStream),
        ("POST", "/", "content-type", "application/connect+JSON", Protocol::ConnectStream),
        ("POST", "/", VERSION, "1", Protocol::Connect),
        ("GET", "/?encoding=json&connect=v1", "accept", "*/*", Protocol::Connect),
        ("HEAD", "/?connect=v1", "accept", "*/*", Protocol::Connect),
        // Other content types, and unknown formats.
        ("POST", "/", "content-type", "application/grpc-webx", Protocol::Http),
        ("POST", "/", "content-type", "application/connect", Protocol::Http),
        ("POST", "/", "content-type", "application/connect+cbor", Protocol::Http),
        ("POST", "/", "content-type", "text/grpc", Protocol::Http),
        ("POST", "/", "content-type", "grpc", Protocol::Http),
        ("POST", "/", "content-type", "application/proto", Protocol::Http),
        ("POST", "/", VERSION, "2", Protocol::Http),
        ("PUT", "/", VERSION, "1", Protocol::Http),
        ("GET", "/", VERSION, "1", Protocol::Http),
        ("GET", "/?connect=v10", "accept", "*/*", Protocol::Http),
        ("GET", "/?xconnect=v1", "accept", "*/*", Protocol::Http),
        ("POST", "/?connect=v1", "accept", "*/*", Protocol::Http),
    ] {
        let request = Request::builder().method(method).uri(target).header(name, value).body(()).unwrap();
        assert_eq!(Protocol::of(&RequestHead::of(&request)), expected, "{method} {target} {name}: {value}");
    }
}

fn post(content_type: &str, token: &str) -> Request<Body> {
    let request = Request::post("/").header("content-type", content_type);
    request.header("authorization", format!("Bearer {token}")).body(Body::default()).unwrap()
}

/// Decodes the delay of `google.rpc.RetryInfo`.
fn retry_delay(headers: &HeaderMap) -> Option<Duration> {
    let encoded = field(headers, "grpc-status-details-bin")?;
    let details = BASE64_STANDARD_NO_PAD.decode(encoded).expect("base64 without padding");
    let status = tonic::Status::with_details(Code::Unknown, "", Bytes::from(details));
    status.check_error_details().unwrap().retry_info()?.retry_delay
}

/// Returns a gate with an exhausted bucket of one unit, and a fixed clock.
fn exhausted(quota: Quota) -> AuthLayer<tollgate::MemoryStore<crate::kit::User>, RateLimits> {
    let limits = Hands::default().limits(quota);
    let alice = CurrentGrant::new(Grant::new("alice", ()));
    assert!(limits.charge(&alice, ONE).is_admitted());
    AuthLayer::new(memory()).with_rate_limit(limits)
}

#[tokio::test]
async fn grpc_rejection_says_when_to_retry() {
    for (quota, millis, seconds) in [
        (Quota::per_second(1).with_burst(1), 1_000, "1"),
        (Quota::per_second(4).with_burst(1), 250, "1"),
        (Quota::per_second(7).with_burst(1), 143, "1"),
        (Quota::per_second(100_000).with_burst(1), 1, "1"),
        (Quota::per_minute(8).with_burst(1), 7_500, "8"),
    ] {
        let response = send(&exhausted(quota).layer(echo()), post("application/grpc", TOKEN)).await;
        let headers = response.headers();
        assert_eq!(field(headers, "grpc-status"), Some("8"));
        assert_eq!(field(headers, "grpc-retry-pushback-ms"), Some(&*millis.to_string()), "{quota:?}");
        assert_eq!(retry_delay(headers), Some(Duration::from_millis(millis)), "{quota:?}");
        assert_eq!(field(headers, "retry-after"), Some(seconds), "{quota:?}");
    }
    // Clients read a number of more than 32 bits as "do not retry".
    let later = |wait| {
        let down =
            from_fn(
                move |_| async move { Err::<Option<Grant<()>>, _>(StoreError::new("down").with_retry_after(wait)) },
            );
        AuthLayer::with_timeout(down, Duration::from_secs(60)).layer(echo())
    };
    for (wait, millis) in [
        (Duration::ZERO, "1"),
        (Duration::from_nanos(1_000_001), "2"),
        (Duration::from_secs(86_400 * 365), "2147483647"),
        (Duration::MAX, "2147483647"),
    ] {
        let response = send(&later(wait), post("application/grpc", TOKEN)).await;
        assert_eq!(field(response.headers(), "grpc-status"), Some("14"));
        assert_eq!(field(response.headers(), "grpc-retry-pushback-ms"), Some(millis));
    }
}

#[tokio::test]
async fn grpc_rejection_forbids_retries_that_cannot_succeed() {
    let pushback = |headers: &HeaderMap| {
        let field = |name| field(headers, name).map(str::to_owned);
        (field("grpc-status").unwrap(), field("grpc-retry-pushback-ms"), field("grpc-status-details-bin"))
    };
    let too_dear = RateLimits::new(Limit::from(Quota::per_hour(1)).with_cost(|_| 2));
    let service = AuthLayer::new(memory()).with_rate_limit(too_dear).layer(echo());
    let response = send(&service, post("application/grpc", TOKEN)).await;
    assert_eq!(pushback(response.headers()), ("8".to_owned(), Some("-1".to_owned()), None));
    // UNAUTHENTICATED: the client decides.
    let response = send(&service, post("application/grpc", "unknown")).await;
    assert_eq!(pushback(response.headers()), ("16".to_owned(), None, None));
    let down = from_fn(|_| async { Err::<Option<Grant<()>>, _>(std::io::Error::other("down")) });
    let down = AuthLayer::with_timeout(down, Duration::from_secs(60)).layer(echo());
    let response = send(&down, post("application/grpc", TOKEN)).await;
    let (status, pushback, _) = pushback(response.headers());
    assert_eq!((status.as_str(), pushback.as_deref()), ("14", Some("1000")), "the time of Retry-After");
}

#[tokio::test]
async fn message_names_the_required_scopes() {
    let gate = AuthLayer::new(memory());
    for (scopes, message) in [
        (&["orders:write"][..], "The token does not have the required scope. Required: orders:write"),
        (&["b", "a", "50%"], "The token does not have the required scope. Required: b a 50%25"),
    ] {
        let service = gate.layer(gate.require_scopes(scopes).unwrap().layer(echo()));
        let response = send(&service, post("application/grpc", TOKEN)).await;
        assert_eq!(field(response.headers(), "grpc-status"), Some("7"));
        assert_eq!(field(response.headers(), "grpc-message"), Some(message));
        assert_eq!(field(response.headers(), "grpc-retry-pushback-ms"), None);
    }
    let service = gate.layer(gate.require_scopes(["50%"]).unwrap().layer(echo()));
    let response = send(&service, post("application/connect+json", TOKEN)).await;
    let message = &json_of_stream(response).await["error"]["message"];
    assert_eq!(message, "The token does not have the required scope. Required: 50%");
}

#[tokio::test]
async fn grpc_web_rejection_has_the_content_type_of_the_request() {
    let service = exhausted(Quota::per_second(4).with_burst(1)).layer(echo());
    for (content_type, expected) in [
        ("application/grpc-web", "application/grpc-web"),
        ("application/grpc-web+proto", "application/grpc-web+proto"),
        ("Application/gRPC-Web+JSON", "application/grpc-web+json"),
        ("application/grpc-web+proto; x=<y>", "application/grpc-web+proto"),
        ("application/grpc-web+x-y", "application/grpc-web"),
        ("application/grpc-web-text", "application/grpc-web-text"),
        ("application/grpc-web-text+proto", "application/grpc-web-text+proto"),
    ] {
        for (token, status, pushback) in [(TOKEN, "8", Some("250")), ("unknown", "16", None)] {
            let response = send(&service, post(content_type, token)).await;
            assert_eq!(response.status(), 200);
            let headers = response.headers();
            assert_eq!(field(headers, "content-type"), Some(expected));
            assert_eq!(field(headers, "grpc-status"), Some(status));
            assert_eq!(field(headers, "grpc-retry-pushback-ms"), pushback);
            assert_eq!(field(headers, "cache-control"), Some("no-store"));
            assert_eq!(field(headers, "www-authenticate"), None);
            assert_eq!(text(response).await, "", "{content_type}");
        }
    }
    let by_hand: Response<Body> =
        AuthLayer::new(memory()).reject(Rejection::missing().with_protocol(Protocol::GrpcWeb));
    assert_eq!(field(by_hand.headers(), "content-type"), Some("application/grpc-web+proto"));
}

/// Decodes the only message of a Connect stream.
async fn json_of_stream(response: Response<Body>) -> serde_json::Value {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let (prefix, message) = bytes.split_at(5);
    assert_eq!(prefix[0], 2, "the message is the end of the stream and is not compressed");
    assert_eq!(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize, message.len());
    serde_json::from_slice(message).unwrap()
}

#[tokio::test]
async fn connect_errors_have_the_codes_of_grpc() {
    let gate = AuthLayer::new(memory());
    let scope = gate.layer(gate.require_scopes(["admin"]).unwrap().layer(echo()));
    let forgotten = gate.require_scopes(["admin"]).unwrap().layer(echo());
    let down = from_fn(|_| async { Err::<Option<Grant<()>>, _>(std::io::Error::other("down")) });
    let down = AuthLayer::with_timeout(down, Duration::from_secs(60)).layer(echo());
    let exhausted = exhausted(Quota::per_minute(1)).layer(echo());
    let unary = |token| {
        let mut request = post("application/json", token);
        request.headers_mut().insert("connect-protocol-version", "1".parse().unwrap());
        request
    };
    let stream = |token| post("application/connect+proto", token);
    let responses = [
        (send(&gate.layer(echo()), unary("unknown")).await, 401, "unauthenticated"),
        (send(&scope, unary(TOKEN)).await, 403, "permission_denied"),
        (send(&exhausted, unary(TOKEN)).await, 429, "resource_exhausted"),
        (send(&down, unary(TOKEN)).await, 503, "unavailable"),
        (send(&forgotten, unary(TOKEN)).await, 500, "internal"),
    ];
    for (response, status, code) in responses {
        assert_eq!(response.status(), status);
        assert_eq!(field(response.headers(), "content-type"), Some("application/json"));
        assert_eq!(field(response.headers(), "cache-control"), Some("no-store"));
        assert_eq!(response.headers().contains_key("www-authenticate"), status == 401 || status == 403);
        assert_eq!(json(response).await["code"], code);
    }
    let responses = [
        (send(&gate.layer(echo()), stream("unknown")).await, "unauthenticated"),
        (send(&scope, stream(TOKEN)).await, "permission_denied"),
        (send(&exhausted, stream(TOKEN)).await, "resource_exhausted"),
        (send(&down, stream(TOKEN)).await, "unavailable"),
        (send(&forgotten, stream(TOKEN)).await, "internal"),
    ];
    for (response, code) in responses {
        assert_eq!(response.status(), 200);
        assert_eq!(field(response.headers(), "content-type"), Some("application/connect+proto"));
        assert_eq!(field(response.headers(), "www-authenticate"), None);
        assert_eq!(json_of_stream(response).await["error"]["code"], code);
    }
    // Without content, clients derive the code from the HTTP status.
    let response = send(&AuthLayer::new(memory()).with_responder(EmptyBody).layer(echo()), stream("unknown")).await;
    assert_eq!((response.status().as_u16(), text(response).await), (401, String::new()));
}

/// Recorded requests of `@connectrpc/connect-node` 2.1. It reads the responses as RESOURCE_EXHAUSTED with the message and the
/// details.
#[tokio::test]
async fn recorded_connect_calls_get_connect_errors() {
    const COMMON: &str =
        "authorization: Bearer tg_W7xHq0fN3kLr9sVb2mZd8pTy\r\nuser-agent: connect-es/2.1.2\r\nHost: 127.0.0.1\r\n";
    // RetryInfo { retry_delay: Duration { seconds: 60 } }
    const ERROR: &str = r#"{"code":"resource_exhausted","message":"The rate limit is exhausted. Retry after 60 seconds.","details":[{"type":"google.rpc.RetryInfo","value":"CgIIPA"}]}"#;
    let app = axum::Router::new().fallback(|| async {}).layer(exhausted(Quota::per_minute(1)));
    let addr = serve(app).await;
    let end = format!("\u{2}\0\0\0{}{{\"error\":{ERROR}}}", char::from(u8::try_from(ERROR.len() + 10).unwrap()));
    for (request, status, content_type, content) in [
        (
            "POST /x.S/Unary HTTP/1.1\r\naccept-encoding: gzip,br\r\nconnect-protocol-version: 1\r\ncontent-type: application/proto\r\nTransfer-Encoding: chunked\r\n@\r\n0\r\n\r\n",
            "429 Too Many Requests",
            "application/json",
            ERROR,
        ),
        (
            "POST /x.S/Unary HTTP/1.1\r\naccept-encoding: gzip,br\r\nconnect-protocol-version: 1\r\ncontent-type: application/json\r\nTransfer-Encoding: chunked\r\n@\r\n2\r\n{}\r\n0\r\n\r\n",
            "429 Too Many Requests",
            "application/json",
            ERROR,
        ),
        (
            "GET /x.S/Unary?connect=v1&base64=1&encoding=proto&message= HTTP/1.1\r\n@\r\n",
            "429 Too Many Requests",
            "application/json",
            ERROR,
        ),
        (
            "POST /x.S/Stream HTTP/1.1\r\nconnect-accept-encoding: gzip,br\r\nconnect-protocol-version: 1\r\ncontent-type: application/connect+proto\r\nTransfer-Encoding: chunked\r\n@\r\n5\r\n\0\0\0\0\0\r\n0\r\n\r\n",
            "200 OK",
            "application/connect+proto",
            &end,
        ),
        (
            "POST /x.S/Stream HTTP/1.1\r\nconnect-accept-encoding: gzip,br\r\nconnect-protocol-version: 1\r\ncontent-type: application/connect+json\r\nTransfer-Encoding: chunked\r\n@\r\n7\r\n\0\0\0\0\u{2}{}\r\n0\r\n\r\n",
            "200 OK",
            "application/connect+json",
            &end,
        ),
    ] {
        let request = request.replace('@', &format!("{COMMON}connection: close\r\n"));
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        // A connection reset after the response is its end.
        _ = stream.read_to_end(&mut response).await;
        let response: String = response.into_iter().map(char::from).collect();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {head}");
        assert!(head.contains(&format!("\r\ncontent-type: {content_type}\r\n")), "{request}: {head}");
        assert!(head.contains("\r\nretry-after: 60\r\n"), "{request}: {head}");
        assert_eq!(body, content, "{request}");
    }
}

/// Serves tonic's health service, limited to four calls per second.
async fn health() -> std::net::SocketAddr {
    let gate = AuthLayer::new(memory()).with_rate_limit(RateLimits::new(Quota::per_second(4).with_burst(1)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder().layer(gate.with_responder(EmptyBody)).add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    addr
}

#[tokio::test]
async fn tonic_client_is_admitted_after_the_pushback() {
    let channel = Endpoint::from_shared(format!("http://{}", health().await)).unwrap().connect().await.unwrap();
    let call = || {
        let mut request = tonic::Request::new(HealthCheckRequest::default());
        request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
        let mut client = HealthClient::new(channel.clone());
        async move { client.check(request).await }
    };
    // Slow calls may find a full bucket again.
    for _ in 0..100 {
        let Err(status) = call().await else { continue };
        assert_eq!(status.code(), Code::ResourceExhausted);
        let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap();
        let wait = Duration::from_millis(pushback.parse().unwrap());
        assert!(wait <= Duration::from_millis(250), "{wait:?}");
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(wait));
        tokio::time::sleep(wait).await;
        call().await.expect("no other client uses the bucket");
        return;
    }
    panic!("none of 100 calls was rejected");
}

/// grpcio waits for the pushback before it retries. Without it, the retry policy would retry immediately. All six calls succeed.
#[tokio::test(flavor = "multi_thread")]
async fn grpcio_client_with_a_retry_policy_is_admitted() {
    const SCRIPT: &str = "
import json, sys
try:
    import grpc
except ImportError:
    sys.exit()
retry = {'maxAttempts': 5, 'initialBackoff': '0.001s', 'maxBackoff': '0.001s', 'backoffMultiplier': 1,
         'retryableStatusCodes': ['RESOURCE_EXHAUSTED']}
config = json.dumps({'methodConfig': [{'name': [{}], 'retryPolicy': retry}]})
channel = grpc.insecure_channel('127.0.0.1:' + sys.argv[1], options=[('grpc.service_config', config)])
check = channel.unary_unary('/grpc.health.v1.Health/Check', lambda it: it, lambda it: it)
for _ in range(6):
    check(b'', metadata=[('authorization', 'Bearer ' + sys.argv[2])])
print('admitted')";
    let test = "grpcio_client_with_a_retry_policy_is_admitted";
    let port = health().await.port().to_string();
    match run("python3", &["-c", SCRIPT, &port, TOKEN], test).await.as_deref() {
        None | Some("admitted\n") => {}
        Some(_) => skip("grpcio", test),
    }
}
