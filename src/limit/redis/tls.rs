//! TLS to Redis.
//!
//! The client library can do TLS, but makes its configuration by `rustls::ClientConfig::builder`, which installs a provider of
//! cryptography for the whole process, or panics if the build has several. That choice is the application's. So the client
//! library is built without TLS, and gets the stream that is made here.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Connects with the certificates that Mozilla trusts.
pub(super) async fn connect(host: &str, port: u16) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    shake_hands(stream, host, roots).await
}

async fn shake_hands(stream: TcpStream, host: &str, roots: RootCertStore) -> std::io::Result<TlsStream<TcpStream>> {
    // The application's provider if it has installed one. Nothing is installed here.
    let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()));
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(std::io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says by panicking that it failed")]
mod tests {
    use std::process::Command;

    use redis::AsyncConnectionConfig;
    use rustls::ServerConfig;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::super::node::{Endpoint, Node};
    use super::*;

    /// A certificate of `localhost` that it has signed itself, and its key.
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
    fn commands_go_through_tls_to_those_whose_certificate_is_trusted() {
        let test = "commands_go_through_tls_to_those_whose_certificate_is_trusted";
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
                let mut refused = 0;
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    let Ok(mut client) = acceptor.accept(client).await else {
                        refused += 1;
                        continue;
                    };
                    let mut redis = TcpStream::connect((&*host, port)).await.unwrap();
                    // Until the client has closed the connection, which it does when the last clone is gone.
                    _ = tokio::io::copy_bidirectional(&mut client, &mut redis).await;
                    return refused;
                }
            });
            let mozilla = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            let mut ours = RootCertStore::empty();
            ours.add(certificate).unwrap();
            let shake_hands = async |host: &str, roots: &RootCertStore| {
                shake_hands(TcpStream::connect(address).await.unwrap(), host, roots.clone()).await
            };
            assert!(shake_hands("localhost", &mozilla).await.is_err(), "nobody trusts it");
            assert!(shake_hands("example.org", &ours).await.is_err(), "it is of another server");
            let stream = shake_hands("localhost", &ours).await.unwrap();
            let mut node = Node::over(&endpoint, stream, AsyncConnectionConfig::new()).await.unwrap();
            assert_eq!(node.query::<String>(&redis::cmd("PING")).await.unwrap(), "PONG");
            drop(node.clone());
            assert_eq!(node.query::<String>(&redis::cmd("PING")).await.unwrap(), "PONG");
            drop(node);
            assert_eq!(bridge.await.unwrap(), 2);
        });
    }
}
