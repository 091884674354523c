//! [`IntrospectionStore`]: token introspection (RFC 7662).

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use reqwest::{Client, Url};
use serde_json::Value;
use zeroize::Zeroizing;

use super::claims::{self, Claims, Members};
use super::client;
use super::{Lookup, TokenStore};
use crate::grant::Grant;
use crate::pending::answer::Answer;
use crate::quota::Quota;
use crate::rejection::store_error::StoreError;
use crate::token::{BearerToken, TokenDigest};

mod auth;
mod builder;
mod error;

pub use auth::ClientAuth;
pub use builder::IntrospectionBuilder;
pub use error::{IntrospectionConfigError, IntrospectionError};

use error::Cause;

/// A store that looks tokens up at an authorization server by token introspection (RFC 7662).
///
/// # Rules
///
/// 1. The token is sent only to the endpoint: by POST, in a form, over TLS except on loopback addresses. Redirects are not followed.
///    No proxy is used, and the proxies of the environment are ignored.
/// 2. `"active": false` means that the token is unknown: 401. The rest of such a response is ignored, but it must be JSON without
///    duplicate members.
/// 3. Any other response that does not follow the standard is an [`IntrospectionError`]. The gate responds with 503, never with 401.
///    This includes:
///    - any status but 200. A 401 or 403 means that the credentials of this service are wrong;
///    - any media type but `application/json` or `application/*+json`;
///    - a response without a boolean `active`;
///    - a member that is duplicate or has the wrong type, `null` included;
///    - a response that is too long, truncated or late.
/// 4. `scope`, `exp` and `nbf` become part of the grant, and the gate checks them. Fractions of a second shorten the validity: `exp`
///    is rounded down and `nbf` up. Negative times are errors.
/// 5. `cnf`, or the `token_type` DPoP, makes the grant sender-constrained. The gate rejects it as a Bearer token (RFC 9449, section
///    7.2). `token_type` may be missing or `Bearer` in any case. Any other value is an error.
/// 6. With [audiences](IntrospectionBuilder::with_audience), a token is unknown if its `aud` contains none of them. `iss` is ignored,
///    because the endpoint answers for its own server.
/// 7. `"token_use": "refresh_token"`, which Ory Hydra sends, means that the token is unknown. Refresh tokens are active too, but only
///    the authorization server accepts them.
///
/// # Errors
///
/// | the endpoint | the error concerns |
/// |---|---|
/// | cannot be reached, or its response is truncated or late | the store |
/// | responds with 5xx, 429, 408, or any status below 400 but 200, such as a redirect | the store |
/// | responds with 401, 403 or 407: the credentials of this service are wrong | the store |
/// | responds with 405 or 415: it is no introspection endpoint | the store |
/// | responds with something that is not JSON, and does not begin with `{` | the store |
/// | responds with any other 4xx, such as 400 to a token that it cannot parse | this token |
/// | responds with other JSON than an object, or with an object that has a syntax error, a malformed, missing or duplicate member, no subject or too many bytes | this token |
/// | responds with JSON that [`with_principal`](IntrospectionBuilder::with_principal) rejects | this token, unless the function returns [`StoreError::new`] |
///
/// An error about the store counts for a [`CircuitBreaker`](super::CircuitBreaker), and a cache may serve an older grant. An error
/// about a token does neither, so a client cannot open the breaker by its choice of tokens. It counts for a
/// [`FailureThrottle`](crate::limit::FailureThrottle). The source of the [`StoreError`] is an [`IntrospectionError`].
///
/// A filter (WAF) in front of the endpoint may respond with 403 to some tokens, which look like wrong credentials. Exempt the
/// endpoint from the filter, or put `CheckedStore` in front of the store.
///
/// # Subjects and ids
///
/// The subject is `sub`, or else `client_id`, or else `username`. An active token without any of them is an error. If the server
/// sometimes omits `sub`, make sure that no user can choose a user name that is another user's `sub`. Two servers may use the same
/// `sub` for different users: give each store a [prefix](IntrospectionBuilder::with_subject_prefix).
///
/// The id of the grant is `jti`, or else the subject. Ids appear in logs, so an id is never the token: a `jti` that equals the token
/// is ignored, and a subject that equals the token is an error.
///
/// # Deployment
///
/// - Every lookup is a request to the authorization server. Put a cache in front of the store (feature `cache`), which must not serve
///   a grant after its `exp`. If the format of tokens can be checked, put a `CheckedStore` in front of the cache.
/// - The store needs a tokio runtime with time and I/O enabled. Tasks of the HTTP client drive its connections.
/// - Set the timeout of the gate longer than [the one of the store](IntrospectionBuilder::with_timeout), whose error is more precise.
/// - The form with the token is overwritten after the request. Copies in the buffers of the HTTP client and of TLS are not.
///
/// ```
/// use std::time::Duration;
/// use tollgate::{AuthLayer, store::{ClientAuth, IntrospectionStore}};
///
/// struct User { name: String }
///
/// # let secret = "s3cret";
/// let auth = ClientAuth::basic("trading-api", secret)?;
/// let store = IntrospectionStore::builder("https://id.example/oauth2/introspect", auth)
///     .with_audience("https://api.example")
///     .with_timeout(Duration::from_secs(1))
///     .with_principal(|claims| match claims.username() {
///         Some(name) => Ok(User { name: name.to_owned() }),
///         None => Err("the answer names no user"),
///     })
///     .build()?;
/// let gate = AuthLayer::with_timeout(store, Duration::from_secs(2));
/// # let _ = gate;
/// # Ok::<_, tollgate::store::IntrospectionConfigError>(())
/// ```
pub struct IntrospectionStore<P = Claims>(Arc<Inner<P>>);

struct Inner<P> {
    client: Client,
    endpoint: Url,
    authorization: HeaderValue,
    max_answer: usize,
    reading: Reading<P>,
}

/// The conversion of a response to a grant.
struct Reading<P> {
    audiences: Vec<Box<str>>,
    subject_prefix: Box<str>,
    principal: MakePrincipal<P>,
    quota: Option<MakeQuota>,
}

type MakePrincipal<P> = Arc<dyn Fn(Claims) -> Result<P, Box<dyn Error + Send + Sync>> + Send + Sync>;
type MakeQuota = Arc<dyn Fn(&Claims) -> Option<Quota> + Send + Sync>;

impl IntrospectionStore {
    /// Creates a store with the default settings. Its principals are the [`Claims`].
    ///
    /// # Errors
    ///
    /// See [`IntrospectionBuilder::build`].
    pub fn new(endpoint: &str, auth: ClientAuth) -> Result<Self, IntrospectionConfigError> {
        Self::builder(endpoint, auth).build()
    }

    /// Creates a builder from the URL of the endpoint and the credentials of the service.
    pub fn builder(endpoint: &str, auth: ClientAuth) -> IntrospectionBuilder {
        IntrospectionBuilder::new(endpoint, auth)
    }
}

impl<P: Send + Sync + 'static> TokenStore for IntrospectionStore<P> {
    type Principal = P;
    type Error = StoreError;
    type Future = IntrospectionFuture<P>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        let inner = Arc::clone(&self.0);
        let form = form(token.expose());
        // Not `token.digest()`, which is another one under a pepper.
        let digest = TokenDigest::of(token.expose());
        Answer::Pending(IntrospectionFuture(Box::pin(async move {
            let found = async { inner.reading.read(&inner.ask(form).await?, digest) };
            found.await.map_err(|cause| IntrospectionError::from(cause).into())
        })))
    }
}

/// The encoding of `application/x-www-form-urlencoded`, with `%20` for spaces, which all decoders accept.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_');

/// Returns the form with the token, in memory that is overwritten on drop.
fn form(token: &[u8]) -> Bytes {
    let (before, after) = (&b"token="[..], &b"&token_type_hint=access_token"[..]);
    // With the full capacity, because growth would leave copies in memory.
    let mut form = Zeroizing::new(Vec::with_capacity(before.len() + 3 * token.len() + after.len()));
    form.extend_from_slice(before);
    percent_encode(token, FORM).for_each(|part| form.extend_from_slice(part.as_bytes()));
    form.extend_from_slice(after);
    Bytes::from_owner(form)
}

impl<P> Inner<P> {
    async fn ask(&self, form: Bytes) -> Result<Vec<u8>, Cause> {
        let request = self
            .client
            .post(self.endpoint.clone())
            .header(header::AUTHORIZATION, self.authorization.clone())
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form);
        let answer = request.send().await.map_err(Cause::transport)?;
        match answer.status() {
            StatusCode::OK => {}
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => return Err(Cause::Credentials(status)),
            status => return Err(Cause::Status(status)),
        }
        if !is_json(answer.headers()) {
            return Err(Cause::MediaType);
        }
        Ok(client::body(answer, self.max_answer).await?)
    }
}

/// Returns whether there is exactly one `Content-Type`: `application/json` or `application/*+json`, with any parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Ok(value) = value.to_str() else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim_matches([' ', '\t']).to_ascii_lowercase();
    let Some(subtype) = essence.strip_prefix("application/") else { return false };
    subtype == "json" || subtype.strip_suffix("+json").is_some_and(|before| !before.is_empty())
}

/// Checks the members that have a meaning in introspection responses only, and the others.
fn claims_of(members: Members) -> Result<Claims, Cause> {
    claims::text(&members.0, "username")?;
    let scopes = claims::scopes(&members.0, "scope")?;
    let dpop = match members.0.get("token_type") {
        None => false,
        Some(Value::String(name)) if name.eq_ignore_ascii_case("Bearer") => false,
        Some(Value::String(name)) if name.eq_ignore_ascii_case("DPoP") => true,
        Some(Value::String(_)) => return Err(Cause::TokenType),
        Some(_) => return Err(Cause::Member("token_type")),
    };
    Ok(Claims::new(members, scopes, dpop)?)
}

impl<P> Reading<P> {
    fn read(&self, answer: &[u8], token: TokenDigest) -> Lookup<P, Cause> {
        let members: Members = serde_json::from_slice(answer).map_err(|error| Cause::json(&error, answer))?;
        if !members.0.get("active").and_then(Value::as_bool).ok_or(Cause::NoActive)? {
            return Ok(None);
        }
        let claims = claims_of(members)?;
        let has_audience = self.audiences.is_empty()
            || claims.audiences().any(|audience| self.audiences.iter().any(|accepted| **accepted == *audience));
        if !has_audience || claims.text("token_use") == Some("refresh_token") {
            return Ok(None);
        }
        self.grant(claims, token).map(|grant| Some(Arc::new(grant)))
    }

    fn grant(&self, claims: Claims, token: TokenDigest) -> Result<Grant<P>, Cause> {
        let is_the_token = |text: &str| TokenDigest::of(text) == token;
        let name = claims.subject().or(claims.client_id()).or(claims.username()).ok_or(Cause::NoSubject)?;
        if is_the_token(name) {
            return Err(Cause::NoSubject);
        }
        let subject = format!("{}{name}", self.subject_prefix);
        let id = claims.token_id().filter(|id| !is_the_token(id));
        let id = id.map_or_else(|| subject.clone(), |id| format!("{}{id}", self.subject_prefix));
        let scopes = claims.scopes().clone();
        let (not_before, expiry) = (claims.not_before(), claims.expires_at());
        let (constrained, quota) =
            (claims.is_sender_constrained(), self.quota.as_ref().and_then(|quota| quota(&claims)));

        let principal = (self.principal)(claims).map_err(Cause::Principal)?;
        let mut grant = Grant::new(id, principal).with_subject(subject);
        grant = grant.with_scopes(scopes.iter()).map_err(|_| Cause::Member("scope"))?;
        if let Some(not_before) = not_before {
            grant = grant.with_not_before(not_before);
        }
        if let Some(expiry) = expiry {
            grant = grant.with_expiry(expiry);
        }
        if constrained {
            grant = grant.with_sender_constraint();
        }
        if let Some(quota) = quota {
            grant = grant.with_quota(quota);
        }
        Ok(grant)
    }
}

impl<P> Clone for IntrospectionStore<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P> fmt::Debug for IntrospectionStore<P> {
    /// Omits the credentials, and the query of the endpoint, which may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut endpoint = self.0.endpoint.clone();
        endpoint.set_query(None);
        f.debug_struct("IntrospectionStore").field("endpoint", &endpoint.as_str()).finish_non_exhaustive()
    }
}

/// The future of an [`IntrospectionStore`]. The first poll sends the request. Dropping the future cancels it.
pub struct IntrospectionFuture<P>(Pin<Box<dyn Future<Output = Lookup<P, StoreError>> + Send>>);

impl<P> Future for IntrospectionFuture<P> {
    type Output = Lookup<P, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<P> fmt::Debug for IntrospectionFuture<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IntrospectionFuture(..)")
    }
}
