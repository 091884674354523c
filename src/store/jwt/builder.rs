//! [`JwtBuilder`]: the settings of a store of JWTs.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use super::algorithm::JwtAlgorithm;
use super::error::JwtConfigError;
use super::keys::{JwtKeys, KeySet, Source};
use super::parsed::Requirements;
use super::remote::{Fetches, RemoteKeys};
use super::revoked::Revoked;
use super::{Inner, JwtStore, KeySource, MakePrincipal, Reading};
use crate::grant::Subject;
use crate::quota::Quota;
use crate::quota::clock::{Clock, Time};
use crate::store::claims::Claims;
use crate::store::client::ClientSettings;

const MAX_LEEWAY: Duration = Duration::from_secs(300);

/// The settings of a [`JwtStore`]. [`build`](Self::build) checks them.
#[must_use = "a builder does nothing before `build`"]
pub struct JwtBuilder<P = Claims> {
    keys: JwtKeys,
    required: Requirements,
    client: ClientSettings,
    max_answer: usize,
    min_interval: Duration,
    max_age: Duration,
    time: Time,
    reading: Reading<P>,
}

impl JwtBuilder {
    pub(super) fn new(
        issuer: &str,
        audience: &str,
        algorithms: impl IntoIterator<Item = JwtAlgorithm>,
        keys: JwtKeys,
    ) -> Self {
        Self {
            keys,
            required: Requirements {
                issuer: issuer.into(),
                audiences: vec![audience.into()],
                algorithms: algorithms.into_iter().collect(),
                plain: false,
                max_token: 8_192,
            },
            client: ClientSettings::default(),
            max_answer: 64 * 1_024,
            min_interval: Duration::from_secs(10),
            max_age: Duration::from_secs(600),
            time: Time::counter(),
            reading: Reading {
                leeway: Duration::from_secs(30),
                subject: Arc::new(|claims| claims.subject().or(claims.client_id()).map(Subject::from)),
                subject_prefix: "".into(),
                principal: Arc::new(Ok),
                quota: None,
            },
        }
    }
}

impl<P> JwtBuilder<P> {
    /// Accepts another audience. One of the audiences is enough.
    pub fn with_audience(mut self, audience: &str) -> Self {
        self.required.audiences.push(audience.into());
        self
    }

    /// Accepts JWTs that do not follow RFC 9068, from issuers that do not support it: `typ` may also be missing or `JWT`, and only
    /// `iss`, `aud`, `exp` and a subject are required.
    ///
    /// Without a `typ` of its own, an access token looks like other JWTs of the issuer. Make sure that the issuer uses this
    /// audience for access tokens only, and not for ID tokens.
    pub fn with_plain_jwts(mut self) -> Self {
        self.required.plain = true;
        self
    }

    /// Sets how far the clocks of the issuer and of this service may differ, at most 5 minutes. Default: 30 seconds.
    ///
    /// The grant begins earlier and ends later by this time. Gates and caches check the grant, so they respect it too.
    pub fn with_leeway(mut self, leeway: Duration) -> Self {
        self.reading.leeway = leeway;
        self
    }

    /// Sets the maximum length of a token in bytes. Longer tokens are unknown, and nothing of them is decoded. Default: 8,192.
    pub fn with_max_token(mut self, bytes: usize) -> Self {
        self.required.max_token = bytes;
        self
    }

    /// Sets the function that returns the subject, which owns the rate limit. Default: `sub`, or else `client_id`.
    ///
    /// A token for which it returns `None` is unknown.
    pub fn with_subject<S: Into<Subject>>(
        mut self,
        subject: impl Fn(&Claims) -> Option<S> + Send + Sync + 'static,
    ) -> Self {
        self.reading.subject = Arc::new(move |claims| subject(claims).map(Into::into));
        self
    }

    /// Sets a prefix for all subjects and ids, such as the name of the issuer. It separates the subjects of two issuers, and with
    /// them their buckets.
    pub fn with_subject_prefix(mut self, prefix: &str) -> Self {
        self.reading.subject_prefix = prefix.into();
        self
    }

    /// Sets a function that returns the quota of a token, for example by a plan in the claims. `None` means the default of the
    /// limiter.
    pub fn with_quota(mut self, quota: impl Fn(&Claims) -> Option<Quota> + Send + Sync + 'static) -> Self {
        self.reading.quota = Some(Arc::new(quota));
        self
    }

    /// Sets the function that creates the principal. If it returns an error, the gate responds with 503. The error concerns this
    /// token, unless it is created by [`StoreError::new`](crate::StoreError::new).
    pub fn with_principal<Q, E>(
        self,
        principal: impl Fn(Claims) -> Result<Q, E> + Send + Sync + 'static,
    ) -> JwtBuilder<Q>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let principal: MakePrincipal<Q> = Arc::new(move |claims| principal(claims).map_err(Into::into));
        let Reading { leeway, subject, subject_prefix, quota, .. } = self.reading;
        JwtBuilder {
            keys: self.keys,
            required: self.required,
            client: self.client,
            max_answer: self.max_answer,
            min_interval: self.min_interval,
            max_age: self.max_age,
            time: self.time,
            reading: Reading { leeway, subject, subject_prefix, principal, quota },
        }
    }

    /// Sets the timeout of a request for the JWK set, to the end of the response. Default: 2 seconds.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.client.timeout = timeout;
        self
    }

    /// Sets the timeout of a connection attempt, including TLS. It is part of the timeout of the request. Default: 2 seconds.
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.client.connect_timeout = timeout;
        self
    }

    /// Sets the maximum length of a JWK set in bytes. Default: 65,536.
    pub fn with_max_answer(mut self, bytes: usize) -> Self {
        self.max_answer = bytes;
        self
    }

    /// Sets the minimum time between two fetches of the JWK set, whatever tokens arrive. Default: 10 seconds.
    ///
    /// A token that is signed by a new key may be unknown for this time, unless the issuer publishes the key before it uses it.
    pub fn with_min_interval(mut self, interval: Duration) -> Self {
        self.min_interval = interval;
        self
    }

    /// Sets the age after which the next token makes the store fetch the keys again. Default: 10 minutes. A key that the issuer has
    /// removed is accepted for twice this time. During an outage of the issuer, it is accepted until a fetch succeeds.
    ///
    /// Requests do not wait for such a fetch, unless the keys are twice as old and no fetch has failed within this time.
    pub fn with_max_key_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// Adds trusted root certificates in PEM for the URL of the JWK set, in addition to those of Mozilla.
    pub fn with_root_certificate_pem(mut self, pem: &[u8]) -> Self {
        self.client.roots.push(pem.into());
        self
    }

    /// Allows an `http` URL of the JWK set on another host. Anyone on the network path can then replace the keys, and forge tokens.
    /// Use it only for a sidecar in another network namespace.
    pub fn with_insecure_http(mut self) -> Self {
        self.client.insecure_http = true;
        self
    }

    /// Sets the clock for the age of keys. Default: the counter of the processor. The dates of tokens are checked by the gate.
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.time = Time::Given(Arc::new(clock));
        self
    }

    /// Creates the store. It fetches no keys before the first token arrives.
    ///
    /// # Errors
    ///
    /// - The issuer or an audience is empty, or there is no algorithm.
    /// - Fixed keys cannot be parsed, contain a private or symmetric key or one `kid` twice, or fit no accepted algorithm.
    /// - The URL of the JWK set is not an absolute `https` URL, or contains a user, a password or a fragment. `http` is allowed if the
    ///   host is a loopback address, such as `127.0.0.1`, but not `localhost`.
    /// - The leeway is longer than 5 minutes.
    /// - A timeout, a maximum length, or the minimum interval is 0. The minimum interval is longer than the maximum age.
    /// - A root certificate cannot be read.
    pub fn build(self) -> Result<JwtStore<P>, JwtConfigError> {
        let Self { keys, required, client, max_answer, min_interval, max_age, time, reading } = self;
        if required.issuer.is_empty() {
            return Err(JwtConfigError::Issuer);
        }
        if required.audiences.iter().any(|audience| audience.is_empty()) {
            return Err(JwtConfigError::Audience);
        }
        if required.algorithms.is_empty() {
            return Err(JwtConfigError::Algorithms);
        }
        if required.max_token == 0 {
            return Err(JwtConfigError::MaxToken);
        }
        if reading.leeway > MAX_LEEWAY {
            return Err(JwtConfigError::Leeway);
        }
        if max_answer == 0 {
            return Err(JwtConfigError::MaxAnswer);
        }
        if min_interval.is_zero() || min_interval > max_age {
            return Err(JwtConfigError::Interval);
        }
        let algorithms = &required.algorithms;
        let keys = match keys.0 {
            Source::Pem(pem) => KeySource::Fixed(KeySet::from_pem(&pem, algorithms)?),
            Source::JwkSet(json) => KeySource::Fixed(KeySet::from_json(&json, algorithms)?.with_a_key_for(algorithms)?),
            Source::Url(url) => {
                let (client, url) = client.build(&url)?;
                KeySource::Remote(Arc::new(RemoteKeys {
                    client,
                    url,
                    max_answer,
                    algorithms: algorithms.clone(),
                    min_interval,
                    max_age,
                    time,
                    keys: ArcSwapOption::empty(),
                    fetches: Mutex::new(Fetches::default()),
                    completed: watch::Sender::new(0),
                }))
            }
        };
        Ok(JwtStore(Arc::new(Inner { keys, required, reading, revoked: Revoked::default() })))
    }
}

impl<P> fmt::Debug for JwtBuilder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JwtBuilder(..)")
    }
}
