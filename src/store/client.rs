//! The HTTP client of stores that ask an authorization server.

use std::error::Error;
use std::time::Duration;

use reqwest::{Client, Response, Url, redirect};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::loopback::is_loopback;
use crate::tls;

/// The settings of the client.
pub(super) struct ClientSettings {
    pub(super) insecure_http: bool,
    /// PEM files, in addition to the roots of Mozilla.
    pub(super) roots: Vec<Box<[u8]>>,
    pub(super) connect_timeout: Duration,
    pub(super) timeout: Duration,
}

impl Default for ClientSettings {
    fn default() -> Self {
        let timeout = Duration::from_secs(2);
        Self { insecure_http: false, roots: Vec::new(), connect_timeout: timeout, timeout }
    }
}

/// The error of invalid settings.
#[derive(Debug)]
pub(super) enum ClientError {
    Url,
    Insecure,
    UserInfo,
    Fragment,
    Timeout,
    RootCertificate,
    Client,
}

impl ClientSettings {
    /// Creates a client for one URL. It follows no redirects and uses no proxy.
    pub(super) fn build(&self, url: &str) -> Result<(Client, Url), ClientError> {
        let url = checked(url, self.insecure_http)?;
        if self.timeout.is_zero() || self.connect_timeout.is_zero() {
            return Err(ClientError::Timeout);
        }
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .connect_timeout(self.connect_timeout)
            .timeout(self.timeout)
            .https_only(url.scheme() == "https")
            .user_agent(concat!("tollgate/", env!("CARGO_PKG_VERSION")));
        let tls = tls::client_config(roots(&self.roots)?).map_err(|_| ClientError::Client)?;
        let client = client.tls_backend_preconfigured(tls).build().map_err(|_| ClientError::Client)?;
        Ok((client, url))
    }
}

/// Returns the roots of Mozilla and of these PEM files.
fn roots(files: &[Box<[u8]>]) -> Result<RootCertStore, ClientError> {
    let mut roots = tls::mozilla();
    for pem in files {
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().unwrap_or_default();
        let accepted = certificates.iter().all(|certificate| roots.add(certificate.clone()).is_ok());
        if certificates.is_empty() || !accepted {
            return Err(ClientError::RootCertificate);
        }
    }
    Ok(roots)
}

fn checked(text: &str, insecure_http: bool) -> Result<Url, ClientError> {
    // URL parsers remove or replace such characters silently.
    if text.bytes().any(|byte| byte <= b' ' || byte == b'\\' || byte == 0x7f) {
        return Err(ClientError::Url);
    }
    let url = Url::parse(text).map_err(|_| ClientError::Url)?;
    let Some(host) = url.host_str() else { return Err(ClientError::Url) };
    match url.scheme() {
        "https" => {}
        "http" if insecure_http || is_loopback(host) => {}
        "http" => return Err(ClientError::Insecure),
        _ => return Err(ClientError::Url),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ClientError::UserInfo);
    }
    if url.fragment().is_some() {
        return Err(ClientError::Fragment);
    }
    Ok(url)
}

/// The error of a response that could not be read.
#[derive(Debug)]
pub(super) enum BodyError {
    Timeout,
    Transport(Box<dyn Error + Send + Sync>),
    /// The maximum number of bytes.
    TooLarge(usize),
}

impl From<reqwest::Error> for BodyError {
    fn from(error: reqwest::Error) -> Self {
        // The query of the URL may contain secrets.
        if error.is_timeout() { Self::Timeout } else { Self::Transport(Box::new(error.without_url())) }
    }
}

/// Reads the body of a response, up to a maximum length in bytes.
pub(super) async fn body(mut answer: Response, max: usize) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if chunk.len() > max - body.len() {
            return Err(BodyError::TooLarge(max));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
