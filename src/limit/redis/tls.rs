//! TLS to Redis. The client library is built without TLS, and gets the stream that this module makes.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::tls;

/// Connects, and verifies the server's certificate with Mozilla's roots.
pub(super) async fn connect(host: &str, port: u16) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    handshake(stream, host, tls::mozilla()).await
}

async fn handshake(stream: TcpStream, host: &str, roots: RootCertStore) -> std::io::Result<TlsStream<TcpStream>> {
    let config = tls::client_config(roots).map_err(std::io::Error::other)?;
    let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::process::Command;

    use redis::AsyncConnectionConfig;
    use rustls::ServerConfig;
    use rustls::crypto::ring;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::super::node::{Endpoint, Node};
    use super::*;

    /// Returns a self-signed certificate of `localhost` and its key.
    fn certificate() -> Option<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
        let arguments =
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout - -subj /CN=localhost";
        let extensions = ["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"];
        let output = Command::new("openssl").args(arguments.split(' ')).args(extensions).output().ok()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let pem = output.stdout;
        Some((CertificateDer::from_pem_slice(&pem).unwrap(), PrivateKeyDer::from_pem_slice(&pem).unwrap()))
    }

    #[test]
    fn tls_connections_require_a_trusted_certificate() {
        let test = "tls_connections_require_a_trusted_certificate";
        let Some((runtime, _)) = super::super::tests::redis(test) else { return };
        let Some((certificate, key)) = certificate() else {
            return super::super::tests::skip("openssl", test);
        };
        let url = std::env::var("TOLLGATE_TEST_REDIS").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
        runtime.block_on(async {
            let provider = Arc::new(ring::default_provider());
            let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            let config = config.with_no_client_auth().with_single_cert(vec![certificate.clone()], key).unwrap();
            let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await);
            let listener = listener.unwrap();
            let address = listener.local_addr().unwrap();
            let endpoint = Endpoint::parse(&url).unwrap();
            let (host, port) = endpoint.address().map(|(host, port)| (host.to_owned(), port)).unwrap();
            let bridge = tokio::spawn(async move {
                let mut rejected = 0;
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    let Ok(mut client) = acceptor.accept(client).await else {
                        rejected += 1;
                        continue;
                    };
                    let mut redis = TcpStream::connect((&*host, port)).await.unwrap();
                    // Until the client closes the connection, when its last clone is dropped.
                    _ = tokio::io::copy_bidirectional(&mut client, &mut redis).await;
                    return rejected;
                }
            });
            let mut ours = RootCertStore::empty();
            ours.add(certificate).unwrap();
            let handshake = async |host: &str, roots: &RootCertStore| {
                handshake(TcpStream::connect(address).await.unwrap(), host, roots.clone()).await
            };
            assert!(handshake("localhost", &tls::mozilla()).await.is_err(), "the certificate is not trusted");
            assert!(handshake("example.org", &ours).await.is_err(), "the certificate is for another server");
            let stream = handshake("localhost", &ours).await.unwrap();
            let mut node = Node::over(&endpoint, stream, AsyncConnectionConfig::new()).await.unwrap();
            assert_eq!(node.query::<String>(&redis::cmd("PING")).await.unwrap(), "PONG");
            drop(node.clone());
            assert_eq!(node.query::<String>(&redis::cmd("PING")).await.unwrap(), "PONG");
            drop(node);
            assert_eq!(bridge.await.unwrap(), 2);
        });
    }
}
