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
