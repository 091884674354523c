//! [`IntrospectionBuilder`]: the settings of an introspection store.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Url, redirect};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::auth::ClientAuth;
use super::claims::Claims;
use super::error::IntrospectionConfigError;
use super::{Inner, IntrospectionStore, MakePrincipal, Reading};
use crate::quota::Quota;
use crate::tls;

/// The settings of an [`IntrospectionStore`]. [`build`](Self::build) checks them.
#[must_use = "a builder does nothing before `build`"]
pub struct IntrospectionBuilder<P = Claims> {
    endpoint: Box<str>,
    auth: ClientAuth,
    insecure_http: bool,
    roots: Vec<Box<[u8]>>,
    connect_timeout: Duration,
    timeout: Duration,
    max_answer: usize,
    reading: Reading<P>,
}

impl IntrospectionBuilder {
    pub(super) fn new(endpoint: &str, auth: ClientAuth) -> Self {
        Self {
            endpoint: endpoint.into(),
            auth,
            insecure_http: false,
            roots: Vec::new(),
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(2),
            max_answer: 64 * 1_024,
            reading: Reading { audiences: Vec::new(), subject_prefix: "".into(), principal: Arc::new(Ok), quota: None },
        }
    }
}

impl<P> IntrospectionBuilder<P> {
    /// Sets the timeout of a request, from the first poll to the end of the response. Default: 2 seconds.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the timeout of a connection attempt, including TLS. It is part of the timeout of the request. Default: 2 seconds.
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the maximum length of a response in bytes. Default: 65,536.
    pub fn with_max_answer(mut self, bytes: usize) -> Self {
        self.max_answer = bytes;
        self
    }

    /// Requires an audience: a token is unknown if its `aud` is missing or does not contain this audience. If called more than once,
    /// one of the audiences is enough.
    ///
    /// Without an audience, tokens for other services of the same authorization server are accepted, unless the server checks the
    /// audience.
    pub fn with_audience(mut self, audience: &str) -> Self {
        self.reading.audiences.push(audience.into());
        self
    }

    /// Sets a prefix for all subjects and ids, such as the name of the server. It separates the subjects of two servers, and with
    /// them their buckets.
    pub fn with_subject_prefix(mut self, prefix: &str) -> Self {
        self.reading.subject_prefix = prefix.into();
        self
    }

    /// Sets a function that returns the quota of a token, for example by a plan in the response. `None` means the default of the
    /// limiter.
    ///
    /// ```
    /// use tollgate::{Quota, store::{ClientAuth, IntrospectionStore}};
    ///
    /// let auth = ClientAuth::basic("trading-api", "s3cret")?;
    /// let store = IntrospectionStore::builder("https://id.example/introspect", auth)
    ///     .with_quota(|claims| (claims.get("plan")? == "pro").then(|| Quota::per_minute(600)))
    ///     .build()?;
    /// # let _ = store;
    /// # Ok::<_, tollgate::store::IntrospectionConfigError>(())
    /// ```
    pub fn with_quota(mut self, quota: impl Fn(&Claims) -> Option<Quota> + Send + Sync + 'static) -> Self {
        self.reading.quota = Some(Arc::new(quota));
        self
    }

    /// Sets the function that creates the principal. If it returns an error, the gate responds with 503. The error concerns this
    /// token, unless it is created by [`StoreError::new`](crate::StoreError::new).
    pub fn with_principal<Q, E>(
        self,
        principal: impl Fn(Claims) -> Result<Q, E> + Send + Sync + 'static,
    ) -> IntrospectionBuilder<Q>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let principal: MakePrincipal<Q> = Arc::new(move |claims| principal(claims).map_err(Into::into));
        let Reading { audiences, subject_prefix, quota, .. } = self.reading;
        IntrospectionBuilder {
            endpoint: self.endpoint,
            auth: self.auth,
            insecure_http: self.insecure_http,
            roots: self.roots,
            connect_timeout: self.connect_timeout,
            timeout: self.timeout,
            max_answer: self.max_answer,
            reading: Reading { audiences, subject_prefix, principal, quota },
        }
    }

    /// Adds trusted root certificates in PEM, in addition to those of Mozilla.
    pub fn with_root_certificate_pem(mut self, pem: &[u8]) -> Self {
        self.roots.push(pem.into());
        self
    }

    /// Allows an `http` endpoint on another host. Anyone on the network path can then read tokens and the service's credentials, and
    /// forge responses. Use it only for a sidecar in another network namespace.
    pub fn with_insecure_http(mut self) -> Self {
        self.insecure_http = true;
        self
    }

    /// Creates the store.
    ///
    /// # Errors
    ///
    /// - The endpoint is not an absolute URL, or contains a user, a password or a fragment.
    /// - The endpoint is not `https`. `http` is allowed if the host is a loopback address, such as `127.0.0.1`. The name `localhost`
    ///   is not allowed, because it may resolve to any address.
    /// - A timeout or the maximum length is 0.
    /// - An audience is empty.
    /// - A certificate cannot be read.
    pub fn build(self) -> Result<IntrospectionStore<P>, IntrospectionConfigError> {
        let endpoint = endpoint(&self.endpoint, self.insecure_http)?;
        if self.timeout.is_zero() || self.connect_timeout.is_zero() {
            return Err(IntrospectionConfigError::Timeout);
        }
        if self.max_answer == 0 {
            return Err(IntrospectionConfigError::MaxAnswer);
        }
        if self.reading.audiences.iter().any(|audience| audience.is_empty()) {
            return Err(IntrospectionConfigError::Audience);
        }
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .connect_timeout(self.connect_timeout)
            .timeout(self.timeout)
            .https_only(endpoint.scheme() == "https")
            .user_agent(concat!("tollgate/", env!("CARGO_PKG_VERSION")));
        let tls = tls::client_config(roots(&self.roots)?).map_err(|_| IntrospectionConfigError::Client)?;
        let client = client.tls_backend_preconfigured(tls).build().map_err(|_| IntrospectionConfigError::Client)?;
        Ok(IntrospectionStore(Arc::new(Inner {
            client,
            endpoint,
            authorization: self.auth.into_value(),
            max_answer: self.max_answer,
            reading: self.reading,
        })))
    }
}

/// Returns the roots of Mozilla and of these PEM files.
fn roots(files: &[Box<[u8]>]) -> Result<RootCertStore, IntrospectionConfigError> {
    let mut roots = tls::mozilla();
    for pem in files {
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().unwrap_or_default();
        let accepted = certificates.iter().all(|certificate| roots.add(certificate.clone()).is_ok());
        if certificates.is_empty() || !accepted {
            return Err(IntrospectionConfigError::RootCertificate);
        }
    }
    Ok(roots)
}

fn endpoint(text: &str, insecure_http: bool) -> Result<Url, IntrospectionConfigError> {
    // URL parsers remove or replace such characters silently.
    if text.bytes().any(|byte| byte <= b' ' || byte == b'\\' || byte == 0x7f) {
        return Err(IntrospectionConfigError::Endpoint);
    }
    let url = Url::parse(text).map_err(|_| IntrospectionConfigError::Endpoint)?;
    let Some(host) = url.host_str() else { return Err(IntrospectionConfigError::Endpoint) };
    match url.scheme() {
        "https" => {}
        "http" => {
            let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
            if !insecure_http && !address.is_ok_and(|address| address.is_loopback()) {
                return Err(IntrospectionConfigError::Insecure);
            }
        }
        _ => return Err(IntrospectionConfigError::Endpoint),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(IntrospectionConfigError::UserInfo);
    }
    if url.fragment().is_some() {
        return Err(IntrospectionConfigError::Fragment);
    }
    Ok(url)
}

impl<P> fmt::Debug for IntrospectionBuilder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IntrospectionBuilder(..)")
    }
}
