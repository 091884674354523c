//! TLS: the certificate and its key, from files that may change while the service runs.
//!
//! - Versions: TLS 1.2 and 1.3, by rustls with ring. No crypto provider is installed for the process.
//! - Protocols: HTTP/2 and HTTP/1.1, which clients choose from by ALPN (RFC 7301).
//! - Reloads: after SIGHUP, and after a change of the files. Open connections go on. A pair that cannot be used is logged, and
//!   the old one stays in use.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, client};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

pub(crate) const HTTP2: &[u8] = b"h2";
pub(crate) const HTTP1: &[u8] = b"http/1.1";
/// The interval at which the files are read.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The files of a certificate and its key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    /// The certificate of the service, and then those of its issuers.
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// Why a certificate and its key cannot be used. No text contains a path or a part of a file.
#[derive(Debug, Error)]
pub(crate) enum TlsError {
    #[error("cannot read the file of {option}")]
    Unreadable {
        option: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("invalid PEM in the file of {option}")]
    InvalidPem { option: &'static str },
    #[error("no certificate in the file of --tls-cert: must be PEM with BEGIN CERTIFICATE")]
    NoCertificate,
    #[error("no key in the file of --tls-key: must be PEM with BEGIN PRIVATE KEY, and not encrypted")]
    NoKey,
    #[error("the key of --tls-key does not match the first certificate of --tls-cert")]
    Mismatch,
    #[error("invalid certificate or key")]
    Invalid(#[source] rustls::Error),
}

/// The certificate in use. It is replaced when the files change.
pub(crate) struct Tls {
    files: CertificateFiles,
    current: ArcSwap<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    /// The same without HTTP/2.
    http1: Arc<ServerConfig>,
    /// The certificate of the service.
    end_entity: CertificateDer<'static>,
    /// The hash of the files.
    version: Version,
}

type Version = [u8; 32];

/// The contents of the two files.
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    /// Loads the files. Logs a warning if the certificate is not valid now.
    pub(crate) async fn open(files: CertificateFiles) -> Result<Self, TlsError> {
        let loaded = files.read().await?.load()?;
        Ok(Self { files, current: ArcSwap::from_pointee(loaded) })
    }

    /// Returns an acceptor with the current certificate.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.current.load().config).into()
    }

    /// Returns an acceptor that offers HTTP/1.1 only.
    pub(crate) fn http1_acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.current.load().http1).into()
    }

    /// Returns whether the current certificate is for this host: a DNS name, or an IP address without brackets.
    pub(crate) fn is_for(&self, host: &str) -> bool {
        let current = self.current.load();
        let (Ok(name), Ok(certificate)) =
            (ServerName::try_from(host), ParsedCertificate::try_from(&current.end_entity))
        else {
            return false;
        };
        client::verify_server_name(&certificate, &name).is_ok()
    }

    /// Loads the files again, and logs the result.
    pub(crate) async fn reload(&self) {
        let contents = self.files.read().await;
        self.replace(contents);
    }

    /// Reloads the files after each change, until the future is dropped.
    ///
    /// A change counts when two reads in a row agree: a certificate and its key are not replaced at the same moment.
    pub(crate) async fn watch(&self) {
        let (mut last, mut tried) = (None, None);
        loop {
            sleep(POLL_INTERVAL).await;
            let contents = self.files.read().await;
            let version = version(&contents);
            let is_complete = last.replace(version) == Some(version);
            if is_complete && version != self.current.load().version && tried != Some(version) {
                tried = Some(version);
                self.replace(contents);
            }
        }
    }

    fn replace(&self, contents: Result<Contents, TlsError>) {
        match contents.and_then(|contents| contents.load()) {
            Ok(loaded) => {
                self.current.store(Arc::new(loaded));
                tracing::info!("TLS certificate loaded");
            }
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, source, "TLS certificate not loaded: the old one stays in use");
            }
        }
    }
}

impl CertificateFiles {
    async fn read(&self) -> Result<Contents, TlsError> {
        let unreadable = |option| move |source| TlsError::Unreadable { option, source };
        Ok(Contents {
            cert: tokio::fs::read(&self.cert).await.map_err(unreadable("--tls-cert"))?,
            key: tokio::fs::read(&self.key).await.map_err(unreadable("--tls-key"))?,
        })
    }
}

impl Contents {
    fn load(&self) -> Result<Loaded, TlsError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.cert)
            .collect::<Result<_, _>>()
            .map_err(|_| TlsError::InvalidPem { option: "--tls-cert" })?;
        let end_entity = chain.first().ok_or(TlsError::NoCertificate)?.clone();
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsError::NoKey,
            _ => TlsError::InvalidPem { option: "--tls-key" },
        })?;
        let provider = Arc::new(ring::default_provider());
        let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsError::Mismatch,
            error => TlsError::Invalid(error),
        })?;
        warn_if_not_valid_now(&end_entity, &provider)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(TlsError::Invalid)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![HTTP1.into()];
        let http1 = Arc::new(config.clone());
        config.alpn_protocols = vec![HTTP2.into(), HTTP1.into()];
        Ok(Loaded { config: Arc::new(config), http1, end_entity, version: self.version() })
    }

    fn version(&self) -> Version {
        Sha256::new().chain_update(Sha256::digest(&self.cert)).chain_update(Sha256::digest(&self.key)).finalize().into()
    }
}

fn version(contents: &Result<Contents, TlsError>) -> Version {
    match contents {
        Ok(contents) => contents.version(),
        Err(error) => Sha256::digest(format!("{error:?}")).into(),
    }
}

/// Logs a warning if the certificate has expired, or is not valid yet.
fn warn_if_not_valid_now(certificate: &CertificateDer<'_>, provider: &CryptoProvider) -> Result<(), TlsError> {
    let certificate = ParsedCertificate::try_from(certificate).map_err(TlsError::Invalid)?;
    let algorithms = provider.signature_verification_algorithms.all;
    // Nothing issued it, but its time is checked before its issuer.
    let verified = client::verify_server_cert_signed_by_trust_anchor(
        &certificate,
        &RootCertStore::empty(),
        &[],
        UnixTime::now(),
        algorithms,
    );
    if let Err(rustls::Error::InvalidCertificate(error)) = verified {
        use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        if matches!(error, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }) {
            tracing::warn!(%error, "TLS certificate is not valid now: clients will reject it");
        }
    }
    Ok(())
}
