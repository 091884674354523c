use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use reqwest::{Client, Response, Url};
use zeroize::Zeroizing;

use super::{Lookup, TokenStore};
use crate::grant::Grant;
use crate::pending::answer::Answer;
use crate::quota::Quota;
use crate::rejection::store_error::StoreError;
use crate::token::{BearerToken, TokenDigest};

mod auth;
mod builder;
mod claims;
mod error;

pub use auth::ClientAuth;
pub use builder::IntrospectionBuilder;
pub use claims::Claims;
pub use error::{IntrospectionConfigError, IntrospectionError};

use claims::Members;
use error::Why;

/// A store that asks an authorization server: token introspection (RFC 7662).
///
/// # Rules
///
/// 1. The token goes to the endpoint and nowhere else: by POST, in a form, over TLS but on loopback addresses. Redirects are not
///    followed, no proxy is used, and those that the environment names are not looked at.
/// 2. `"active": false` is a token that is not known: 401. Nothing else of such an answer is looked at, but that it is JSON
///    and names no member twice.
/// 3. Whatever is not an answer of this standard is an [`IntrospectionError`], which a gate answers by 503, never by 401: any
///    status but 200, another media type than `application/json` or `application/*+json`, no boolean `active`, a member
///    that is there twice or has another type than the standard gives it (`null` included), an answer that is too large,
///    is cut off or takes too long. So is a 401 or 403 of the endpoint: the service's own credentials are wrong.
/// 4. What the gate judges is handed to it: `scope`, `exp`, `nbf`. Times may have fractions; a token ends and begins at
///    a whole second, within its time: `exp` is rounded down, `nbf` up. Negative ones are errors.
/// 5. `cnf`, or the `token_type` DPoP, makes the grant sender constrained, so that it is refused as a Bearer token (RFC 9449,
///    section 7.2). `token_type` may be missing or, without regard to case, `Bearer`; any other is an error.
/// 6. With [audiences](IntrospectionBuilder::with_audience), a token whose `aud` has none of them is not known. `iss` is not
///    looked at: the endpoint answers for its own server.
/// 7. `"token_use": "refresh_token"`, as Ory Hydra writes it, is not known: refresh tokens are active too, and only the
///    authorization server takes them.
///
/// # Errors
///
/// | the endpoint | the error concerns |
/// |---|---|
/// | cannot be reached, or its answer is cut off or late | the store |
/// | answers 5xx, 429, 408, or any status below 400 but 200, such as a redirect | the store |
/// | answers 401, 403 or 407: the credentials of this service are wrong | the store |
/// | answers 405 or 415: it is no introspection endpoint | the store |
/// | answers something other than JSON | the store |
/// | answers any other 4xx, such as 400 to a token that it cannot parse | this token |
/// | answers JSON with a malformed, missing or repeated member, without a subject, or with too many bytes | this token |
/// | answers what [`with_principal`](IntrospectionBuilder::with_principal) rejects | this token, unless it returns [`StoreError::new`] |
///
/// An error about the store counts for a [`CircuitBreaker`](super::CircuitBreaker), and a cache may serve an older answer. An error about a
/// token does neither, so that a client cannot open the breaker by its choice of tokens; it counts for a
/// [`FailureThrottle`](crate::limit::FailureThrottle). The source of the [`StoreError`] is an [`IntrospectionError`].
///
/// If a filter (WAF) in front of the endpoint answers 403 to some tokens, exempt the endpoint from it, or put `CheckedStore` before
/// the store: otherwise such tokens look like wrong credentials.
///
/// # Whose budget
///
/// The subject is `sub`, or else `client_id`, or else `username`; an active token without any of them is an error. Where a
/// server leaves out `sub` at times, see to it that nobody can choose a user name that is another's `sub`. Two servers may
/// mean two people by one `sub`: give each store a [prefix](IntrospectionBuilder::with_subject_prefix).
///
/// The grant's id is `jti`, or else the subject. It is shown in logs, and so is never made of the token: a `jti` that
/// is the token itself is left aside, a subject that is one is an error.
///
/// # Deployment
///
/// - Every look-up is a request to the authorization server. Put a cache in front (feature `cache`), which must not keep a
///   grant beyond its `exp`, and a `CheckedStore` before it if tokens have a form that can be checked.
/// - It needs a tokio runtime with time and I/O enabled. Connections are kept and driven by tasks of the HTTP client.
/// - The gate's deadline should be longer than [the store's own](IntrospectionBuilder::with_timeout), whose error says more.
/// - The form with the token is overwritten when the request is done. The copies that the HTTP client and TLS write to the
///   connection are not.
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

/// How an answer becomes a grant.
struct Reading<P> {
    audiences: Vec<Box<str>>,
    subject_prefix: Box<str>,
    principal: MakePrincipal<P>,
    quota: Option<MakeQuota>,
}

type MakePrincipal<P> = Arc<dyn Fn(Claims) -> Result<P, Box<dyn Error + Send + Sync>> + Send + Sync>;
type MakeQuota = Arc<dyn Fn(&Claims) -> Option<Quota> + Send + Sync>;

impl IntrospectionStore {
    /// A store with the defaults of [`builder`](Self::builder), whose principals are the [`Claims`].
    ///
    /// # Errors
    ///
    /// As [`IntrospectionBuilder::build`].
    pub fn new(endpoint: &str, auth: ClientAuth) -> Result<Self, IntrospectionConfigError> {
        Self::builder(endpoint, auth).build()
    }

    /// Begins with the URL of the endpoint, and with what the service shows there to be answered.
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
        let digest = *token.digest();
        Answer::Pending(IntrospectionFuture(Box::pin(async move {
            let found = async { inner.reading.read(&inner.ask(form).await?, digest) };
            found.await.map_err(|why| IntrospectionError::from(why).into())
        })))
    }
}

/// What `application/x-www-form-urlencoded` leaves as it is, without the `+` for spaces, which all decoders read either way.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_');

/// The form that shows the token, in memory that is overwritten when the last of its owners is gone.
fn form(token: &[u8]) -> Bytes {
    let (before, after) = (&b"token="[..], &b"&token_type_hint=access_token"[..]);
    // With room for all of it, so that it does not grow and leave copies behind.
    let mut form = Zeroizing::new(Vec::with_capacity(before.len() + 3 * token.len() + after.len()));
    form.extend_from_slice(before);
    percent_encode(token, FORM).for_each(|part| form.extend_from_slice(part.as_bytes()));
    form.extend_from_slice(after);
    Bytes::from_owner(form)
}

impl<P> Inner<P> {
    async fn ask(&self, form: Bytes) -> Result<Vec<u8>, Why> {
        let request = self
            .client
            .post(self.endpoint.clone())
            .header(header::AUTHORIZATION, self.authorization.clone())
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form);
        let answer = request.send().await.map_err(Why::transport)?;
        match answer.status() {
            StatusCode::OK => {}
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => return Err(Why::Credentials(status)),
            status => return Err(Why::Status(status)),
        }
        if !is_json(answer.headers()) {
            return Err(Why::MediaType);
        }
        self.body(answer).await
    }

    /// The body, as long as it is not larger than it may be.
    async fn body(&self, mut answer: Response) -> Result<Vec<u8>, Why> {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(Why::transport)? {
            if chunk.len() > self.max_answer - body.len() {
                return Err(Why::TooLarge(self.max_answer));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// Whether there is one `Content-Type`, and it is `application/json` or `application/*+json`, whatever its parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Ok(value) = value.to_str() else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim_matches([' ', '\t']).to_ascii_lowercase();
    let Some(subtype) = essence.strip_prefix("application/") else { return false };
    subtype == "json" || subtype.strip_suffix("+json").is_some_and(|before| !before.is_empty())
}

impl<P> Reading<P> {
    fn read(&self, answer: &[u8], token: TokenDigest) -> Lookup<P, Why> {
        let members: Members = serde_json::from_slice(answer).map_err(|error| Why::json(&error))?;
        if !members.active()? {
            return Ok(None);
        }
        let claims = Claims::new(members)?;
        let is_meant_for_us = self.audiences.is_empty()
            || claims.audiences().any(|audience| self.audiences.iter().any(|own| **own == *audience));
        if !is_meant_for_us || claims.is_refresh_token() {
            return Ok(None);
        }
        self.grant(claims, token).map(|grant| Some(Arc::new(grant)))
    }

    fn grant(&self, claims: Claims, token: TokenDigest) -> Result<Grant<P>, Why> {
        let is_the_token = |text: &str| TokenDigest::of(text) == token;
        let name = claims.subject().or(claims.client_id()).or(claims.username()).ok_or(Why::NoSubject)?;
        if is_the_token(name) {
            return Err(Why::NoSubject);
        }
        let subject = format!("{}{name}", self.subject_prefix);
        let id = claims.token_id().filter(|id| !is_the_token(id));
        let id = id.map_or_else(|| subject.clone(), |id| format!("{}{id}", self.subject_prefix));
        let scopes = claims.scopes().clone();
        let (not_before, expiry) = (claims.not_before(), claims.expires_at());
        let (constrained, quota) =
            (claims.is_sender_constrained(), self.quota.as_ref().and_then(|quota| quota(&claims)));

        let principal = (self.principal)(claims).map_err(Why::Principal)?;
        let mut grant = Grant::new(id, principal).with_subject(subject);
        grant = grant.with_scopes(scopes.iter()).map_err(|_| Why::Member("scope"))?;
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
    /// Leaves out the credentials, and the endpoint's query, which may hold some.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut endpoint = self.0.endpoint.clone();
        endpoint.set_query(None);
        f.debug_struct("IntrospectionStore").field("endpoint", &endpoint.as_str()).finish_non_exhaustive()
    }
}

/// The future of an [`IntrospectionStore`]. The request begins when it is polled, and ends when it is dropped.
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
