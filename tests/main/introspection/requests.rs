//! Requests to the introspection endpoint.

use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::Response;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tollgate::store::{ClientAuth, IntrospectionStore};
use tollgate::{Answer, BearerToken, TokenStore as _};

use crate::kit::introspection::*;
use crate::kit::*;

/// Compares all bytes of the request.
#[tokio::test]
async fn requests_follow_the_standard() {
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
async fn bearer_credentials_are_sent() {
    let (address, log) = says(json!({"active": false})).await;
    let auth = ClientAuth::bearer("own-token._~+/==").unwrap();
    let store = IntrospectionStore::new(&format!("http://{address}/"), auth).unwrap();
    assert!(ask(&store).await.unwrap().is_none());
    assert_eq!(field(&log.lock().unwrap()[0].headers, "authorization"), Some("Bearer own-token._~+/=="));
}

/// Runs another test in a process whose environment names a proxy that does not exist.
#[test]
fn proxies_of_the_environment_are_ignored() {
    let mut again = Command::new(std::env::current_exe().unwrap());
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        again.env(name, "http://127.0.0.1:1");
    }
    for name in ["no_proxy", "NO_PROXY", "REQUEST_METHOD"] {
        again.env_remove(name);
    }
    let run = again.args(["--exact", "introspection::requests::bearer_credentials_are_sent"]).output().unwrap();
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && output.contains("1 passed"), "{output}");
}

#[tokio::test]
async fn nothing_is_sent_before_the_first_poll() {
    let (address, log) = says(json!({"active": true, "sub": "alice"})).await;
    let store = store(address);
    let Answer::Pending(unpolled) = store.lookup(&BearerToken::new(TOKEN)) else { panic!("a pending answer") };
    assert_eq!(format!("{unpolled:?}"), "IntrospectionFuture(..)");
    assert!(ask(&store).await.unwrap().is_some());
    drop(unpolled);
    assert!(ask(&store).await.unwrap().is_some());
    assert_eq!(log.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn redirects_are_not_followed() {
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
        assert_eq!(first.lock().unwrap().len(), 2, "one request of the store and one of the gate");
    }
    assert!(log.lock().unwrap().is_empty(), "the target of the redirect receives no request");
}

/// The first bytes that the server receives are a TLS handshake. The request fails without TLS.
#[tokio::test]
async fn https_endpoints_get_a_tls_handshake() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/introspect", listener.local_addr().unwrap());
    let store = IntrospectionStore::new(&url, auth()).unwrap();
    let asked = tokio::spawn(async move { ask(&store).await });
    let (mut connection, _) = listener.accept().await.unwrap();
    let mut seen = [0; 3];
    connection.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen[..2], [0x16, 3], "a TLS handshake");
    connection.write_all(format!("{HEAD}content-length: 2\r\n\r\n{{}}").as_bytes()).await.unwrap();
    drop(connection);
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the introspection request failed");
}

/// The server sees the end of the connection.
#[tokio::test]
async fn a_dropped_lookup_closes_its_connection() {
    let (address, mut connections) = manual_server().await;
    let store = builder(address).with_timeout(Duration::from_secs(3_600)).build().unwrap();
    let asked = tokio::spawn(async move { ask(&store).await });
    let mut connection = connections.recv().await.unwrap();
    asked.abort();
    // Limits the wait if the test fails.
    let seen = tokio::time::timeout(Duration::from_secs(10), connection.read(&mut [0])).await;
    assert_eq!(seen.expect("the connection is still there").unwrap_or(0), 0);
}
