//! HTTPS only: the proxy says how its client came.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::setup::app;
use super::*;
use crate::options::Options;
use crate::proxy::Proxy;

with_each_proxy! {
    request_without_https_is_rejected
    request_with_https_is_admitted
}

fn options(proxy: Proxy) -> Options {
    Options { require_https: true, ..Options::new(proxy) }
}

async fn request_without_https_is_rejected(proxy: Proxy) {
    let setup = Setup::with(proxy, app(&options(proxy)), None);
    for field in ["x-forwarded-proto", "x-forwarded-ssl", "x-other"] {
        let response = setup.get("/v1/a", EVE, (field, "https")).await;
        assert_eq!((response.status.as_u16(), response.field("www-authenticate")), (403, ""), "{response:?}");
        assert!(response.body.contains("HTTPS"), "{response:?}");
    }
}

async fn request_with_https_is_admitted(proxy: Proxy) {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pair = (own.cert.pem(), own.signing_key.serialize_pem());
    let setup = Setup::with(proxy, app(&options(proxy)), Some((&pair.0, &pair.1)));

    let mut roots = RootCertStore::empty();
    roots.add(own.cert.der().clone()).unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(setup.proxy.addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    // The field of the client does not count here either.
    let request = "GET /v1/a HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-forwarded-proto: http\r\n";
    stream.write_all(format!("{request}authorization: {EVE}\r\n\r\n").as_bytes()).await.unwrap();
    let mut response = Vec::new();
    // Caddy and nginx may end the connection without a TLS message.
    _ = stream.read_to_end(&mut response).await;
    let response = String::from_utf8(response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 ") && response.contains(r#""eve@api.test""#), "{response}");
}
