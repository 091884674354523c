//! The caller of a request: [`CurrentGrant`] in the request extensions, and [`Authenticated`] as a handler argument.

use std::fmt;
use std::sync::Arc;

use http::Extensions;

use crate::grant::erased::Erased;
use crate::grant::scopes::Scopes;
use crate::grant::{Grant, GrantId, Subject};
use crate::quota::Quota;
use crate::quota::decision::Decision;
use crate::quota::decisions::Decisions;
use crate::rejection::terms::Challenges;
use crate::rejection::{Rejection, RejectionKind};
use crate::token::{Credential, TokenDigest, TokenLocation};

/// The grant of the current request, for principals of any type. Gates insert it into the request extensions.
///
/// Handlers take the typed [`Authenticated`]. This type is for layers, and for services without axum. Tests can insert it to
/// call a handler without a gate:
///
/// ```
/// use tollgate::{CurrentGrant, Grant};
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(CurrentGrant::new(Grant::new("alice", 17_u8)));
///
/// let current = request.extensions().get::<CurrentGrant>().expect("just inserted");
/// assert_eq!(current.subject().as_str(), "alice");
/// assert_eq!(current.principal::<u8>(), Some(&17));
/// ```
#[derive(Clone)]
pub struct CurrentGrant {
    grant: Arc<dyn Erased>,
    credential: Credential,
    decisions: Decisions,
    /// The address of the limiter of the gate, or 0 if the gate has none.
    limiter: usize,
}

impl CurrentGrant {
    /// Creates the current grant of a request whose token was in the `Authorization` header.
    pub fn new<P: Send + Sync + 'static>(grant: impl Into<Arc<Grant<P>>>) -> Self {
        Self::by(grant.into(), Credential::default())
    }

    pub(crate) fn by<P: Send + Sync + 'static>(grant: Arc<Grant<P>>, credential: Credential) -> Self {
        Self { grant, credential, decisions: Decisions::default(), limiter: 0 }
    }

    /// Returns the identifier of the grant.
    #[must_use]
    pub fn id(&self) -> &GrantId {
        self.grant.id()
    }

    /// Returns the subject, which owns the rate limit.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        self.grant.head().subject()
    }

    /// Returns the scopes.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        self.grant.head().scopes()
    }

    /// Returns the quota of the grant, or `None` for the default quota of the limiter.
    #[must_use]
    #[inline]
    pub fn quota(&self) -> Option<Quota> {
        self.grant.head().quota()
    }

    /// Returns the location of the token in the request.
    #[must_use]
    pub fn location(&self) -> TokenLocation {
        self.credential.location
    }

    /// Returns the digest of the token, or `None` if no gate has read a token.
    ///
    /// A handler that outlives the request, such as a WebSocket handler, can use the digest to look up the token again.
    #[must_use]
    pub fn token_digest(&self) -> Option<TokenDigest> {
        self.credential.digest
    }

    /// Returns the principal, if it has this type.
    #[must_use]
    pub fn principal<P: 'static>(&self) -> Option<&P> {
        self.grant.principal().downcast_ref()
    }

    /// Returns the typed form, if the principal has this type.
    #[must_use]
    pub fn authenticated<P: Send + Sync + 'static>(&self) -> Option<Authenticated<P>> {
        // Checked first, so that a wrong type changes no reference count.
        self.principal::<P>()?;
        let grant = Arc::clone(&self.grant).into_any().downcast().ok()?;
        Some(Authenticated { grant, credential: self.credential, decisions: self.decisions.clone() })
    }

    /// Returns the decisions of all limiters about this request, outermost first.
    ///
    /// Decisions of limiters outside of the innermost gate are not included.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter()
    }

    /// Refunds the charges of this request, see [`Authenticated::refund`].
    pub async fn refund(&self) {
        self.decisions.refund().await;
    }

    #[inline]
    pub(crate) fn record(&mut self, decision: Decision) {
        self.decisions.push(decision);
    }

    /// Sets the address of the limiter of the gate.
    #[inline]
    pub(crate) fn set_limiter(&mut self, limiter: usize) {
        self.limiter = limiter;
    }

    pub(crate) fn limiter(&self) -> usize {
        self.limiter
    }

    /// Returns whether the gate of this grant has a limiter with this address.
    pub(crate) fn has_limiter(&self, limiter: usize) -> bool {
        limiter != 0 && self.limiter == limiter
    }

    pub(crate) fn erased(&self) -> &Arc<dyn Erased> {
        &self.grant
    }
}

impl fmt::Debug for CurrentGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CurrentGrant")
            .field("id", self.id())
            .field("subject", self.subject())
            .field("location", &self.location())
            .finish_non_exhaustive()
    }
}

/// The authenticated caller of the current request, for handlers.
///
/// With the feature `axum`, this type is an extractor. `Option<Authenticated<P>>` is an extractor for gates that allow
/// anonymous callers:
///
#[cfg_attr(feature = "axum", doc = "```")]
#[cfg_attr(not(feature = "axum"), doc = "```ignore")]
/// use axum::{Router, routing::get};
/// use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, TokenDigest};
///
/// #[derive(Debug)]
/// struct User { name: &'static str }
///
/// async fn private(caller: Authenticated<User>) -> String {
///     format!("hello, {}", caller.principal().name)
/// }
///
/// async fn public(caller: Option<Authenticated<User>>) -> String {
///     format!("hello, {}", caller.map_or("anonymous", |caller| caller.principal().name))
/// }
///
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", User { name: "Alice" }))]);
/// let gate = AuthLayer::new(tokens);
/// let app: Router = Router::new()
///     .route("/private", get(private).route_layer(gate.clone()))
///     .route("/public", get(public).route_layer(gate.allow_anonymous()));
/// ```
///
/// Tests can call a handler directly:
///
/// ```
/// use tollgate::{Authenticated, Grant};
///
/// async fn hello(caller: Authenticated<String>) -> String {
///     format!("hello, {}", caller.principal())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let caller = Authenticated::new(Grant::new("alice", "Alice".to_owned()));
/// assert_eq!(hello(caller).await, "hello, Alice");
/// # }
/// ```
pub struct Authenticated<P> {
    grant: Arc<Grant<P>>,
    credential: Credential,
    decisions: Decisions,
}

const NO_GATE: &str = "This handler needs `Authenticated<P>`, but no gate has processed the request. Perhaps you forgot to add `AuthLayer`, or added it before the route.";
const OTHER_TYPE: &str =
    "This handler needs `Authenticated<P>`, but the principals of the gate's store are of another type than `P`.";
const NO_SCOPES: &str = "This handler requires scopes, but its list of scopes is empty.";

impl<P> Authenticated<P> {
    /// Creates a caller for tests of handlers, as if the token had been in the `Authorization` header.
    pub fn new(grant: impl Into<Arc<Grant<P>>>) -> Self {
        let grant = grant.into();
        Self { grant, credential: Credential::default(), decisions: Decisions::default() }
    }

    /// Returns the caller from the extensions of a request, for handlers without axum.
    ///
    /// ```
    /// use http::{Request, Response};
    /// use tollgate::{Authenticated, ProblemDetails, respond::Respond};
    ///
    /// fn hello(request: &Request<()>) -> Response<bytes::Bytes> {
    ///     match Authenticated::<String>::from_extensions(request.extensions()) {
    ///         Ok(caller) => Response::new(format!("hello, {}", caller.principal()).into()),
    ///         Err(rejection) => ProblemDetails.reject(rejection),
    ///     }
    /// }
    /// # assert_eq!(hello(&Request::new(())).status(), 500);
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Missing`](crate::RejectionKind::Missing), with the realm of the gate, if the gate admitted the request without a
    ///   grant (anonymous requests and CORS preflights). If the gate [requires HTTPS](crate::AuthLayer::require_https) and
    ///   the request came without it, [`HttpsRequired`](crate::RejectionKind::HttpsRequired).
    /// - [`Misconfigured`](crate::RejectionKind::Misconfigured) if there is no gate, or if the principal has another type. The
    ///   response names the cause.
    pub fn from_extensions(extensions: &Extensions) -> Result<Self, Rejection>
    where
        P: Send + Sync + 'static,
    {
        Self::from_extensions_if_any(extensions)?
            .ok_or_else(|| extensions.get().map_or_else(Rejection::missing, WithoutGrant::rejection))
    }

    /// Returns the caller of a request, or `None` if the gate admitted the request without a grant.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](crate::RejectionKind::Misconfigured) if there is no gate, or if the principal has another type. A
    /// request without a gate is not treated as anonymous.
    pub fn from_extensions_if_any(extensions: &Extensions) -> Result<Option<Self>, Rejection>
    where
        P: Send + Sync + 'static,
    {
        match extensions.get::<CurrentGrant>() {
            Some(current) => match current.authenticated() {
                Some(caller) => Ok(Some(caller)),
                None => Err(Rejection::misconfigured(OTHER_TYPE)),
            },
            None if extensions.get::<WithoutGrant>().is_some() => Ok(None),
            None => Err(Rejection::misconfigured(NO_GATE)),
        }
    }

    /// Returns the principal: the caller as a type of the service.
    #[must_use]
    pub fn principal(&self) -> &P {
        self.grant.principal()
    }

    /// Returns the grant.
    #[must_use]
    pub fn grant(&self) -> &Arc<Grant<P>> {
        &self.grant
    }

    /// Checks that the grant has all of these scopes, for handlers that find out later which scopes they need.
    ///
    /// # Errors
    ///
    /// [`InsufficientScope`](crate::RejectionKind::InsufficientScope) if a scope is missing.
    /// [`Misconfigured`](crate::RejectionKind::Misconfigured) if `scopes` is empty, which would admit every caller.
    pub fn require_scopes(&self, scopes: &Scopes) -> Result<(), Rejection> {
        match scopes.is_subset(self.grant.scopes()) {
            _ if scopes.is_empty() => Err(Rejection::misconfigured(NO_SCOPES)),
            true => Ok(()),
            false => Err(Rejection::insufficient_scope(scopes.clone()).of_grant(self.grant.id())),
        }
    }

    /// Returns the location of the token in the request.
    #[must_use]
    pub fn location(&self) -> TokenLocation {
        self.credential.location
    }

    /// Returns the digest of the token, or `None` if no gate has read a token.
    ///
    /// A handler that outlives the request, such as a WebSocket handler, can use the digest to look up the token again.
    #[must_use]
    pub fn token_digest(&self) -> Option<TokenDigest> {
        self.credential.digest
    }

    /// Returns the decisions of all limiters about this request, outermost first.
    ///
    /// Decisions of limiters outside of the innermost gate are not included.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter()
    }

    /// Refunds the charges of this request, at most once, for requests that should not count.
    ///
    /// Limiters support this only [with refunds](crate::RateLimits::with_refunds).
    pub async fn refund(&self) {
        self.decisions.refund().await;
    }

    /// Returns the form without the type of the principal, which limiters take.
    #[must_use]
    pub fn current(&self) -> CurrentGrant
    where
        P: Send + Sync + 'static,
    {
        let grant: Arc<Grant<P>> = Arc::clone(&self.grant);
        CurrentGrant { grant, credential: self.credential, decisions: self.decisions.clone(), limiter: 0 }
    }
}

impl<P> Clone for Authenticated<P> {
    fn clone(&self) -> Self {
        Self { grant: Arc::clone(&self.grant), credential: self.credential, decisions: self.decisions.clone() }
    }
}

impl<P> fmt::Debug for Authenticated<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticated").field("grant", &self.grant).field("location", &self.location()).finish()
    }
}

/// The reason why a gate admitted a request without a grant.
///
/// ```
/// use http::Extensions;
/// use tollgate::Unauthenticated;
///
/// assert_eq!(Unauthenticated::from_extensions(&Extensions::new()), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unauthenticated {
    /// A CORS preflight, which never contains credentials (Fetch standard, "CORS-preflight request").
    Preflight,
    /// A request without credentials. The gate allows anonymous callers.
    Anonymous,
}

impl Unauthenticated {
    /// Returns the reason from the extensions of a request, or `None` if no gate has admitted it without a grant. Handlers can
    /// thereby detect a missing gate.
    ///
    /// An inner gate may have inserted a [`CurrentGrant`] as well. Check for [`CurrentGrant`] first, because it takes
    /// precedence.
    #[must_use]
    pub fn from_extensions(extensions: &Extensions) -> Option<Self> {
        extensions.get::<WithoutGrant>().map(|without_grant| without_grant.reason)
    }
}

/// The request extension of requests that a gate admitted without a grant. One value, because each extension is an allocation.
#[derive(Clone)]
pub(crate) struct WithoutGrant {
    pub(crate) reason: Unauthenticated,
    /// For a handler that rejects the request because it has no grant. `None` for the default challenges.
    pub(crate) terms: Option<Arc<Challenges>>,
    /// The address of the limiter of the gate, or 0 if the gate has none.
    pub(crate) limiter: usize,
    /// `true` if the gate requires HTTPS and the request came without it.
    pub(crate) is_plaintext: bool,
}

impl WithoutGrant {
    /// Returns the rejection of this request by a handler or a layer that needs a grant.
    pub(crate) fn rejection(&self) -> Rejection {
        let rejection = match self.is_plaintext {
            // A challenge would invite the client to send its token without HTTPS.
            true => Rejection::new(RejectionKind::HttpsRequired),
            false => Rejection::missing(),
        };
        match &self.terms {
            Some(terms) => rejection.with_challenges(terms),
            None => rejection,
        }
    }
}
