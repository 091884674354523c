//! [`JwtStore`]: JWT access tokens (RFC 9068).

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::claims::Claims;
use super::{Invalidation, Lookup, TokenStore};
use crate::grant::{Grant, GrantId, Subject};
use crate::pending::answer::Answer;
use crate::quota::Quota;
use crate::rejection::store_error::StoreError;
use crate::token::{BearerToken, TokenDigest};

mod algorithm;
mod builder;
mod error;
mod keys;
mod parsed;
mod remote;
mod revoked;
#[cfg(test)]
mod vectors;

pub use algorithm::JwtAlgorithm;
pub use builder::JwtBuilder;
pub use error::{JwtConfigError, JwtError};
pub use keys::JwtKeys;

use error::Cause;
use keys::{Key, KeySet};
use parsed::{Parsed, Requirements};
use remote::RemoteKeys;
use revoked::Revoked;

/// A store that verifies the signature and the claims of JWT access tokens (RFC 9068).
///
/// # Rules
///
/// 1. The issuer, the audience and the algorithms are required settings. The header of a token never chooses a key or an algorithm
///    that the settings do not name: `jwk`, `jku`, `x5c` and `x5u` are ignored, and tokens with `crit` or `b64` are unknown.
/// 2. `typ` must be `at+jwt`, and `iss`, `exp`, `aud`, `sub`, `client_id`, `iat` and `jti` are required.
///    [`with_plain_jwts`](JwtBuilder::with_plain_jwts) accepts other JWTs.
/// 3. A member of the header and a claim must occur once. A registered claim with another type than the standard says makes the
///    token unknown, `null` included.
/// 4. `scope` and `scp` become the scopes of the grant. `scope` is a string. `scp` is a string or an array of strings.
/// 5. `exp`, `nbf` and `iat` become the dates of the grant, with a [leeway](JwtBuilder::with_leeway), and the gate checks them. A token
///    is not valid before `nbf` and not before `iat`. Fractions of a second shorten the validity. Negative times are malformed.
/// 6. `cnf` makes the grant sender-constrained. The gate rejects it as a Bearer token (RFC 9449, section 7.2).
/// 7. A malformed token, a wrong signature, an unknown key and a wrong audience have the same answer: the token is unknown, 401.
///
/// # Keys
///
/// See [`JwtKeys`] for the choice of the key. The keys of a URL are fetched when the first token arrives, and again:
///
/// - when a token has an unknown `kid`, or a key that was not chosen by its `kid` does not verify it.
///   [`with_min_interval`](JwtBuilder::with_min_interval) limits these fetches. Only tokens with the right issuer, audience and
///   algorithm cause them;
/// - when they are older than [`with_max_key_age`](JwtBuilder::with_max_key_age). Requests wait for this fetch only if the
///   keys are twice as old and no fetch has failed within `with_max_key_age`, which is after a time without requests.
///
/// One fetch runs at a time, in a task of its own, and all tokens with unknown keys wait for it. A failed fetch changes no keys: tokens
/// of known keys are accepted, and tokens of unknown keys get 503. The source of the [`StoreError`] is a [`JwtError`]. The error
/// [concerns the token](StoreError::concerns_token) if keys are known, because clients choose the `kid`. It then counts for a
/// [`FailureThrottle`](crate::limit::FailureThrottle).
///
/// # Subjects and ids
///
/// The subject is `sub`, or else `client_id`, unless [`with_subject`](JwtBuilder::with_subject) says otherwise. The id of the grant is
/// `jti`, or else the subject. Two issuers may use the same `sub` for different users: give each store a
/// [prefix](JwtBuilder::with_subject_prefix). Ids appear in logs.
///
/// # Revocation
///
/// A JWT is valid until it expires, whatever its issuer decides later. [`revoke`](Self::revoke) rejects tokens earlier.
///
/// # Deployment
///
/// - A lookup verifies a signature. A cache in front of the store (feature `cache`) remembers verified tokens by their digests, and
///   serves no grant after its expiry. Revoke tokens in the store first, and then invalidate the cache.
/// - Unlike with introspection, issuers do not hear of the lookups, and an outage of the issuer rejects no token of a known key.
/// - The store needs a tokio runtime with time and I/O enabled if the keys have a URL.
/// - For tokens of several issuers, use [`first_of`](super::first_of), with a store for each issuer.
///
/// ```
/// use std::time::Duration;
/// use tollgate::{AuthLayer, store::{JwtAlgorithm, JwtKeys, JwtStore}};
///
/// struct User { name: String }
///
/// let keys = JwtKeys::url("https://id.example/jwks.json");
/// let store = JwtStore::builder("https://id.example", "https://api.example", [JwtAlgorithm::Es256], keys)
///     .with_leeway(Duration::from_secs(10))
///     .with_principal(|claims| match claims.get("name").and_then(|name| name.as_str()) {
///         Some(name) => Ok(User { name: name.to_owned() }),
///         None => Err("the token names no user"),
///     })
///     .build()?;
/// let gate = AuthLayer::with_timeout(store, Duration::from_secs(3));
/// # let _ = gate;
/// # Ok::<_, tollgate::store::JwtConfigError>(())
/// ```
pub struct JwtStore<P = Claims>(Arc<Inner<P>>);

struct Inner<P> {
    keys: KeySource,
    required: Requirements,
    reading: Reading<P>,
    revoked: Revoked,
}

enum KeySource {
    Fixed(KeySet),
    Remote(Arc<RemoteKeys>),
}

/// The conversion of claims to a grant.
struct Reading<P> {
    leeway: Duration,
    subject: MakeSubject,
    subject_prefix: Box<str>,
    principal: MakePrincipal<P>,
    quota: Option<MakeQuota>,
}

type MakeSubject = Arc<dyn Fn(&Claims) -> Option<Subject> + Send + Sync>;
type MakePrincipal<P> = Arc<dyn Fn(Claims) -> Result<P, Box<dyn Error + Send + Sync>> + Send + Sync>;
type MakeQuota = Arc<dyn Fn(&Claims) -> Option<Quota> + Send + Sync>;

impl JwtStore {
    /// Creates a builder from the issuer (`iss`), the audience of this service (`aud`), the accepted algorithms, and the keys.
    pub fn builder(
        issuer: &str,
        audience: &str,
        algorithms: impl IntoIterator<Item = JwtAlgorithm>,
        keys: JwtKeys,
    ) -> JwtBuilder {
        JwtBuilder::new(issuer, audience, algorithms, keys)
    }
}

impl<P> JwtStore<P> {
    /// Rejects tokens until a moment, which must be no earlier than the expiry of these tokens plus the leeway. The gate responds as
    /// to unknown tokens.
    ///
    /// | change | rejects |
    /// |---|---|
    /// | [`Grant`](Invalidation::Grant) | the token with this id, which is its `jti` |
    /// | [`Subject`](Invalidation::Subject) | the tokens of this subject that were issued until now. Newer tokens are accepted |
    /// | [`Token`](Invalidation::Token) | the token with this digest. An ECDSA token has a second valid signature; the token with that signature is rejected too |
    /// | [`Added`](Invalidation::Added), [`Everything`](Invalidation::Everything) | nothing: they concern caches only |
    ///
    /// The time of issue is by the issuer's clock, in whole seconds. If that clock is ahead, tokens of a subject that were issued
    /// shortly before this call are accepted. Revoke these by their ids. If that clock is behind, tokens that were issued shortly
    /// after this call are rejected. So are tokens of the same second.
    ///
    /// The ids and subjects are those of the grants, with the [prefix](JwtBuilder::with_subject_prefix) if there is one. A `jti` of
    /// another issuer's store is another id.
    ///
    /// All clones of the store share the revocations, in memory, one entry for each. Other processes need the same revocation, and so
    /// does this one after a restart: [`revoke_at`](Self::revoke_at). A cache in front of the store still has the grant: pass the same
    /// change to `CachedStore::invalidate` after this call. A cache may have an ECDSA token under its second signature, which has
    /// another digest. So invalidate the grant or the subject too.
    ///
    /// The digest is the SHA-256 of the token, also behind a `PepperedStore`.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// # use tollgate::store::JwtStore;
    /// use tollgate::store::Invalidation;
    ///
    /// # fn log_out(store: &JwtStore) {
    /// // The issuer's tokens live for an hour, and the leeway is 30 seconds.
    /// let end = SystemTime::now() + Duration::from_secs(3_600 + 30);
    /// store.revoke(&Invalidation::Subject("alice".into()), end);
    /// # }
    /// ```
    pub fn revoke(&self, change: &Invalidation, until: SystemTime) {
        self.revoke_at(change, SystemTime::now(), until);
    }

    /// Revokes as [`revoke`](Self::revoke) does, for a revocation that was made at the time `at`: by another process, or before a
    /// restart. The tokens of a subject that were issued later are accepted.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// # use tollgate::store::JwtStore;
    /// use tollgate::store::Invalidation;
    ///
    /// # fn load(store: &JwtStore, rows: Vec<(String, SystemTime)>) {
    /// // The issuer's tokens live for eight hours, and the leeway is 30 seconds.
    /// let longest_validity = Duration::from_secs(8 * 3_600 + 30);
    /// for (user, logged_out_at) in rows {
    ///     store.revoke_at(&Invalidation::Subject(user.into()), logged_out_at, logged_out_at + longest_validity);
    /// }
    /// # }
    /// ```
    pub fn revoke_at(&self, change: &Invalidation, at: SystemTime, until: SystemTime) {
        self.0.revoked.add(change, at, until, SystemTime::now());
    }
}

impl<P: Send + Sync + 'static> TokenStore for JwtStore<P> {
    type Principal = P;
    type Error = StoreError;
    type Future = JwtFuture<P>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        let Some(parsed) = Parsed::new(token.expose(), &self.0.required) else { return Answer::Ready(Ok(None)) };
        let inner = Arc::clone(&self.0);
        Answer::Pending(JwtFuture(Box::pin(async move { inner.verify(parsed).await })))
    }
}

impl<P> Inner<P> {
    async fn verify(&self, parsed: Parsed) -> Lookup<P, StoreError> {
        let Parsed { algorithm, kid, message, signature, claims } = parsed;
        let kid = kid.as_deref();
        let is_valid = |key: &Arc<Key>| key.verify(algorithm, &message, &signature);
        let is_verified = match &self.keys {
            KeySource::Fixed(keys) => keys.find(algorithm, kid).is_some_and(is_valid),
            KeySource::Remote(keys) => match keys.find(algorithm, kid).await? {
                Some(key) if is_valid(&key) => true,
                Some(key) if !key.is_named(kid) => {
                    keys.successor(&key, algorithm, kid).await.is_some_and(|key| is_valid(&key))
                }
                _ => false,
            },
        };
        if !is_verified {
            return Ok(None);
        }
        let issued_at = claims.issued_at();
        let Some(grant) = self.reading.grant(claims)? else { return Ok(None) };
        let digests = || digests(algorithm, &message, signature);
        let is_revoked = self.revoked.contains(digests, grant.id(), grant.subject(), issued_at, SystemTime::now());
        Ok((!is_revoked).then(|| Arc::new(grant)))
    }
}

/// Returns the digests of the texts of a token that are valid alike: the token itself, and that with the other signature.
fn digests(algorithm: JwtAlgorithm, message: &[u8], signature: Vec<u8>) -> Vec<TokenDigest> {
    let other = algorithm.other_signature(&signature);
    let digest = |signature: Vec<u8>| {
        let signature = BASE64_URL_SAFE_NO_PAD.encode(signature);
        TokenDigest::of(&*Zeroizing::new([message, b".", signature.as_bytes()].concat()))
    };
    std::iter::once(signature).chain(other).map(digest).collect()
}

impl<P> Reading<P> {
    fn grant(&self, claims: Claims) -> Result<Option<Grant<P>>, Cause> {
        let Some(subject) = (self.subject)(&claims) else { return Ok(None) };
        let subject = self.prefixed(subject.as_str());
        let id = claims.token_id().map_or_else(|| subject.clone(), |id| self.prefixed(id));
        let scopes = claims.scopes().clone();
        let start = claims.not_before().max(claims.issued_at());
        let (end, constrained) = (claims.expires_at(), claims.is_sender_constrained());
        let quota = self.quota.as_ref().and_then(|quota| quota(&claims));

        let principal = (self.principal)(claims).map_err(Cause::Principal)?;
        let mut grant = Grant::new(GrantId::from(id), principal).with_subject(subject).with_valid_scopes(scopes);
        if let Some(start) = start {
            grant = grant.with_not_before(start.checked_sub(self.leeway).unwrap_or(UNIX_EPOCH));
        }
        if let Some(end) = end {
            grant = grant.with_expiry(end + self.leeway);
        }
        if constrained {
            grant = grant.with_sender_constraint();
        }
        if let Some(quota) = quota {
            grant = grant.with_quota(quota);
        }
        Ok(Some(grant))
    }

    fn prefixed(&self, name: &str) -> String {
        format!("{}{name}", self.subject_prefix)
    }
}

impl<P> Clone for JwtStore<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P> fmt::Debug for JwtStore<P> {
    /// Omits the keys and their URL, whose query may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtStore")
            .field("issuer", &self.0.required.issuer)
            .field("audiences", &self.0.required.audiences)
            .field("algorithms", &self.0.required.algorithms)
            .finish_non_exhaustive()
    }
}

/// The future of a [`JwtStore`]: verifies the signature, and waits for the keys where they are unknown.
///
/// Dropping the future does not cancel a fetch of keys, for which other lookups may wait.
pub struct JwtFuture<P>(Pin<Box<dyn Future<Output = Lookup<P, StoreError>> + Send>>);

impl<P> Future for JwtFuture<P> {
    type Output = Lookup<P, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<P> fmt::Debug for JwtFuture<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JwtFuture(..)")
    }
}
