//! [`IntrospectionBuilder`]: the settings of an introspection store.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::auth::ClientAuth;
use super::error::IntrospectionConfigError;
use super::{Inner, IntrospectionStore, MakePrincipal, Reading};
use crate::quota::Quota;
use crate::store::claims::Claims;
use crate::store::client::ClientSettings;

/// The settings of an [`IntrospectionStore`]. [`build`](Self::build) checks them.
#[must_use = "a builder does nothing before `build`"]
pub struct IntrospectionBuilder<P = Claims> {
    endpoint: Box<str>,
    auth: ClientAuth,
    client: ClientSettings,
    max_answer: usize,
    reading: Reading<P>,
}

impl IntrospectionBuilder {
    pub(super) fn new(endpoint: &str, auth: ClientAuth) -> Self {
        Self {
            endpoint: endpoint.into(),
            auth,
            client: ClientSettings::default(),
            max_answer: 64 * 1_024,
            reading: Reading { audiences: Vec::new(), subject_prefix: "".into(), principal: Arc::new(Ok), quota: None },
        }
    }
}

impl<P> IntrospectionBuilder<P> {
    /// Sets the timeout of a request, from the first poll to the end of the response. Default: 2 seconds.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.client.timeout = timeout;
        self
    }

    /// Sets the timeout of a connection attempt, including TLS. It is part of the timeout of the request. Default: 2 seconds.
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.client.connect_timeout = timeout;
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
            client: self.client,
            max_answer: self.max_answer,
            reading: Reading { audiences, subject_prefix, principal, quota },
        }
    }

    /// Adds trusted root certificates in PEM, in addition to those of Mozilla.
    pub fn with_root_certificate_pem(mut self, pem: &[u8]) -> Self {
        self.client.roots.push(pem.into());
        self
    }

    /// Allows an `http` endpoint on another host. Anyone on the network path can then read tokens and the service's credentials, and
    /// forge responses. Use it only for a sidecar in another network namespace.
    pub fn with_insecure_http(mut self) -> Self {
        self.client.insecure_http = true;
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
        if self.max_answer == 0 {
            return Err(IntrospectionConfigError::MaxAnswer);
        }
        if self.reading.audiences.iter().any(|audience| audience.is_empty()) {
            return Err(IntrospectionConfigError::Audience);
        }
        let (client, endpoint) = self.client.build(&self.endpoint)?;
        Ok(IntrospectionStore(Arc::new(Inner {
            client,
            endpoint,
            authorization: self.auth.into_value(),
            max_answer: self.max_answer,
            reading: self.reading,
        })))
    }
}

impl<P> fmt::Debug for IntrospectionBuilder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IntrospectionBuilder(..)")
    }
}
