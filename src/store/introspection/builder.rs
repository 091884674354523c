use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Certificate, Client, Url, redirect};

use super::auth::ClientAuth;
use super::claims::Claims;
use super::error::IntrospectionConfigError;
use super::{Inner, IntrospectionStore, MakePrincipal, Reading};
use crate::quota::Quota;

/// An [`IntrospectionStore`] that is being put together. What is wrong is said by [`build`](Self::build).
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
    /// The same, where the whole request may take so long, from the first poll to the end of the answer. Two seconds unless
    /// this is said.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same, where connecting may take so long, TLS included. It is part of the whole. Two seconds unless this is said.
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The same, where an answer may have so many bytes: 65,536 unless this is said.
    pub fn with_max_answer(mut self, bytes: usize) -> Self {
        self.max_answer = bytes;
        self
    }

    /// The same for tokens that are meant for this service: one whose `aud` does not have this audience is not known, nor
    /// is one without `aud`. Said more than once, any of them will do.
    ///
    /// Without it, a token that was given for another service of the same authorization server is as good as one for this,
    /// unless the server itself sees to that.
    pub fn with_audience(mut self, audience: &str) -> Self {
        self.reading.audiences.push(audience.into());
        self
    }

    /// The same with this before every subject and id, such as the name of the server: budgets of two servers' subjects stay
    /// apart.
    pub fn with_subject_prefix(mut self, prefix: &str) -> Self {
        self.reading.subject_prefix = prefix.into();
        self
    }

    /// The same with quotas that the answer names, such as by a plan. `None` is the limiter's default.
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

    /// Sets how a principal of the service's own type is made. If it returns an error, the answer is 503. The error concerns
    /// this token, unless it is made by [`StoreError::new`](crate::StoreError::new).
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

    /// The same, and servers whose certificates were signed by one of these, in PEM, are trusted too, beside those that Mozilla
    /// trusts.
    pub fn with_root_certificate_pem(mut self, pem: &[u8]) -> Self {
        self.roots.push(pem.into());
        self
    }

    /// The same, where the endpoint may be `http`: everybody on the way reads tokens and the service's own credentials, and
    /// can say of any token that it is good. For a side car in another network namespace, if for anything.
    pub fn with_insecure_http(mut self) -> Self {
        self.insecure_http = true;
        self
    }

    /// The store.
    ///
    /// # Errors
    ///
    /// If the endpoint is no absolute URL, is not `https`, or has a user, a password or a fragment. `http` will do where the
    /// host is an address of this machine, such as `127.0.0.1`; `localhost` is a name that may be resolved to any other. If a
    /// time or the size is 0, an audience is empty, or a certificate cannot be read.
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
        let mut client = Client::builder()
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .connect_timeout(self.connect_timeout)
            .timeout(self.timeout)
            .https_only(endpoint.scheme() == "https")
            .user_agent(concat!("tollgate/", env!("CARGO_PKG_VERSION")));
        for pem in &self.roots {
            let roots = Certificate::from_pem_bundle(pem).map_err(|_| IntrospectionConfigError::RootCertificate)?;
            if roots.is_empty() {
                return Err(IntrospectionConfigError::RootCertificate);
            }
            client = roots.into_iter().fold(client, |client, root| client.add_root_certificate(root));
        }
        let client = client.build().map_err(|_| match self.roots.is_empty() {
            true => IntrospectionConfigError::Client,
            // They are looked into only now.
            false => IntrospectionConfigError::RootCertificate,
        })?;
        Ok(IntrospectionStore(Arc::new(Inner {
            client,
            endpoint,
            authorization: self.auth.into_value(),
            max_answer: self.max_answer,
            reading: self.reading,
        })))
    }
}

fn endpoint(text: &str, insecure_http: bool) -> Result<Url, IntrospectionConfigError> {
    // Parsers of URLs for browsers leave such characters out.
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
