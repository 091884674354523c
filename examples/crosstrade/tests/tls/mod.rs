//! Tests of TLS: handshakes, certificates, and what clients see.

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::plaintext;
use crate::tls::{CertificateFiles, HTTP1, HTTP2, Tls, TlsError};

mod clients;
mod files;
mod handshakes;
mod http2;
mod redirects;

/// Fails a test that waits in vain. No test waits for this time to pass.
const WATCHDOG: Duration = Duration::from_secs(60);
const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// A folder with a certificate and its key, which is removed when this is dropped.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let folder = std::env::temp_dir().join(format!("crosstrade-tls-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let folder = Self(folder);
        folder.write(&Pair::new());
        folder
    }

    pub(super) fn files(&self) -> CertificateFiles {
        CertificateFiles { cert: self.0.join("cert.pem"), key: self.0.join("key.pem") }
    }

    pub(super) fn write(&self, pair: &Pair) {
        std::fs::write(self.files().cert, &pair.cert).unwrap();
        std::fs::write(self.files().key, &pair.key).unwrap();
    }

    /// Returns a store with the certificate as the only root.
    pub(super) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.files().cert).unwrap()).unwrap();
        roots
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A certificate and its key in PEM.
pub(super) struct Pair {
    pub(super) cert: String,
    pub(super) key: String,
}

impl Pair {
    /// Creates a valid pair.
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let names = ["localhost", "127.0.0.1", "::1", "broker.example"].map(str::to_owned);
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Self { cert: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }
}

/// A service with TLS, and with a plaintext listener beside it.
struct Secure {
    server: Server,
    http: SocketAddr,
    tls: Arc<Tls>,
    folder: Folder,
}

impl Secure {
    async fn start() -> Self {
        Self::start_limited(limits()).await
    }

    async fn start_limited(limits: Limits) -> Self {
        let folder = Folder::new();
        let tls = Arc::new(Tls::open(folder.files()).await.unwrap());
        let (tcp, http) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (addr, http_addr) = (tcp.local_addr().unwrap(), http.local_addr().unwrap());
        let served = Arc::clone(&tls);
        let listeners = |app: axum::Router| {
            let redirects = plaintext::app(app.clone(), Arc::clone(&served), addr.port());
            vec![Listener::plaintext(http, redirects), Listener { tcp, app, tls: Some(served) }]
        };
        let tokens = demo_tokens();
        let (errors, access) = (Errors::ProblemDetails, Access::tls());
        let server = Server::start_on_all(addr, limits, tokens.clone().into(), errors, access, listeners);
        Self { server: Server { tokens, ..server }, http: http_addr, tls, folder }
    }

    /// Connects, and offers these protocols.
    async fn connect(&self, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        connect(self.server.addr, config(self.folder.roots(), protocols)).await.unwrap()
    }

    /// Opens an HTTP/2 connection, whose task ends with it.
    async fn http2(&self) -> (Sender, tokio::task::JoinHandle<hyper::Result<()>>) {
        let io = TokioIo::new(self.connect(&[HTTP2]).await);
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        (sender, tokio::spawn(connection))
    }
}

type Sender = hyper::client::conn::http2::SendRequest<axum::body::Body>;

pub(super) fn config(roots: RootCertStore, protocols: &[&[u8]]) -> ClientConfig {
    config_of(roots, protocols, &[&TLS12, &TLS13])
}

fn config_of(
    roots: RootCertStore,
    protocols: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let mut config =
        builder.with_protocol_versions(versions).unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|&protocol| protocol.into()).collect();
    config
}

pub(super) async fn connect(addr: SocketAddr, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    timeout(WATCHDOG, TlsConnector::from(Arc::new(config)).connect(name, stream)).await.expect("a handshake ends")
}

/// The answer until the server closes.
async fn rest(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    timeout(WATCHDOG, stream.read_to_end(&mut answer)).await.expect("the server closes").unwrap();
    String::from_utf8(answer).unwrap()
}

async fn get_http2(sender: &mut Sender, path: &str, token: &str) -> Response<String> {
    let request = Request::get(format!("https://broker.example{path}"));
    let request = request.header("authorization", format!("Bearer {token}")).body(axum::body::Body::empty()).unwrap();
    text(sender.send_request(request).await.unwrap()).await
}

async fn text(response: Response<hyper::body::Incoming>) -> Response<String> {
    let (head, body) = response.into_parts();
    Response::from_parts(head, String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap())
}
