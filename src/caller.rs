//! The caller of a request: in its extensions, and as the argument of a handler.

use std::fmt;
use std::sync::Arc;

use http::Extensions;

use crate::grant::erased::Erased;
use crate::grant::scopes::Scopes;
use crate::grant::{Grant, GrantId, Subject};
use crate::quota::Quota;
use crate::quota::decision::{Decision, Decisions};
use crate::rejection::Rejection;
use crate::rejection::terms::Terms;
use crate::token::{Credential, TokenDigest, TokenLocation};

/// The grant behind the request at hand, whatever the type of its principal: the one request extension that a gate
/// sets.
///
/// Handlers take the typed [`Authenticated`]; this is for layers, and for services that are not axum's. A test that
/// wants to call a handler without any gate puts one into the request:
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
}

impl CurrentGrant {
    /// A grant as if it had come in the `Authorization` header.
    pub fn new<P: Send + Sync + 'static>(grant: impl Into<Arc<Grant<P>>>) -> Self {
        Self::by(grant.into(), Credential::default())
    }

    pub(crate) fn by<P: Send + Sync + 'static>(grant: Arc<Grant<P>>, credential: Credential) -> Self {
        Self { grant, credential, decisions: Decisions::default() }
    }

    /// The name of the grant.
    #[must_use]
    pub fn id(&self) -> &GrantId {
        self.grant.head().id()
    }

    /// Whose budget it draws on.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        self.grant.head().subject()
    }

    /// What it allows.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        self.grant.head().scopes()
    }

    /// Its own quota; `None` is the limiter's default.
    #[must_use]
    pub fn quota(&self) -> Option<Quota> {
        self.grant.head().quota()
    }

    /// Where in the request the token was.
    #[must_use]
    pub fn location(&self) -> TokenLocation {
        self.credential.location
    }

    /// The digest of the token that was presented; `None` if no gate has seen one.
    ///
    /// For what outlives the request, such as a WebSocket: ask the store again, whether the token still has a grant.
    #[must_use]
    pub fn token_digest(&self) -> Option<TokenDigest> {
        self.credential.digest
    }

    /// The principal, if it is of this type.
    #[must_use]
    pub fn principal<P: 'static>(&self) -> Option<&P> {
        self.grant.principal().downcast_ref()
    }

    /// The typed form, if the principal is of this type.
    #[must_use]
    pub fn authenticated<P: Send + Sync + 'static>(&self) -> Option<Authenticated<P>> {
        // Asked first, so that the wrong type costs no reference count.
        self.principal::<P>()?;
        let grant = Arc::clone(&self.grant).into_any().downcast().ok()?;
        Some(Authenticated { grant, credential: self.credential, decisions: self.decisions.clone() })
    }

    /// What the limiters on the way decided about this request, outermost first. A gate begins anew: what one around it charged
    /// is not among them.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter()
    }

    /// Gives back what the limiters charged for this request, see [`Authenticated::refund`].
    pub async fn refund(&self) {
        self.decisions.refund().await;
    }

    pub(crate) fn record(&mut self, decision: Decision) {
        self.decisions.push(decision);
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

/// The caller of the request at hand, for handlers: proof that a gate let them in, and what its store knows of them.
///
/// With feature `axum` it is an extractor, and so is `Option<Authenticated<P>>`, behind a gate with optional authentication:
///
#[cfg_attr(feature = "axum", doc = "```")]
#[cfg_attr(not(feature = "axum"), doc = "```ignore")]
/// use axum::{Router, routing::get};
/// use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore};
///
/// #[derive(Debug)]
/// struct User { name: &'static str }
///
/// async fn private(who: Authenticated<User>) -> String {
///     format!("hello, {}", who.principal().name)
/// }
///
/// async fn public(who: Option<Authenticated<User>>) -> String {
///     format!("hello, {}", who.map_or("stranger", |who| who.principal().name))
/// }
///
/// let tokens = MemoryStore::from_iter([("a-token", Grant::new("alice", User { name: "Alice" }))]);
/// let gate = AuthLayer::new(tokens);
/// let app: Router = Router::new()
///     .route("/private", get(private).route_layer(gate.clone()))
///     .route("/public", get(public).route_layer(gate.allow_anonymous()));
/// ```
///
/// ```
/// use tollgate::{Authenticated, Grant};
///
/// // A handler is an ordinary function, and a test can call it as one.
/// async fn hello(who: Authenticated<String>) -> String {
///     format!("hello, {}", who.principal())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let who = Authenticated::new(Grant::new("alice", "Alice".to_owned()));
/// assert_eq!(hello(who).await, "hello, Alice");
/// # }
/// ```
pub struct Authenticated<P> {
    grant: Arc<Grant<P>>,
    credential: Credential,
    decisions: Decisions,
}

const NO_GATE: &str = "This handler asks who calls, and no gate has seen the request. Perhaps you forgot to add `AuthLayer`, or added it before the route.";
const OTHER_TYPE: &str =
    "This handler takes `Authenticated<P>`, and the principals of the gate's store are of another type than `P`.";

impl<P> Authenticated<P> {
    /// The caller, as if the token had come in the `Authorization` header.
    pub fn new(grant: impl Into<Arc<Grant<P>>>) -> Self {
        let grant = grant.into();
        Self { grant, credential: Credential::default(), decisions: Decisions::default() }
    }

    /// The caller of a request, by its extensions: for handlers that are not axum's.
    ///
    /// ```
    /// use http::{Request, Response};
    /// use tollgate::{Authenticated, ProblemDetails, respond::Respond};
    ///
    /// fn hello(request: &Request<()>) -> Response<bytes::Bytes> {
    ///     match Authenticated::<String>::from_extensions(request.extensions()) {
    ///         Ok(who) => Response::new(format!("hello, {}", who.principal()).into()),
    ///         Err(rejection) => ProblemDetails.reject(rejection),
    ///     }
    /// }
    /// # assert_eq!(hello(&Request::new(())).status(), 500);
    /// ```
    ///
    /// # Errors
    ///
    /// [`Missing`](crate::RejectionKind::Missing), in the gate's realm, for requests that the gate let pass without a grant
    /// (anonymous ones and CORS preflights). [`Misconfigured`](crate::RejectionKind::Misconfigured) if there is no gate, or the
    /// principal has another type: the answer says which.
    pub fn from_extensions(extensions: &Extensions) -> Result<Self, Rejection>
    where
        P: Send + Sync + 'static,
    {
        Self::from_extensions_if_any(extensions)?.ok_or_else(|| match extensions.get::<Arc<Terms>>() {
            Some(terms) => Rejection::missing().under(terms),
            None => Rejection::missing(),
        })
    }

    /// The caller of a request, or `None` if the gate let it pass without a grant.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](crate::RejectionKind::Misconfigured) if there is no gate, or the principal has another type: a
    /// missing gate is not an anonymous caller.
    pub fn from_extensions_if_any(extensions: &Extensions) -> Result<Option<Self>, Rejection>
    where
        P: Send + Sync + 'static,
    {
        match extensions.get::<CurrentGrant>() {
            Some(current) => match current.authenticated() {
                Some(who) => Ok(Some(who)),
                None => Err(Rejection::misconfigured(OTHER_TYPE)),
            },
            None if extensions.get::<Unauthenticated>().is_some() => Ok(None),
            None => Err(Rejection::misconfigured(NO_GATE)),
        }
    }

    /// Who calls, in the service's own words.
    #[must_use]
    pub fn principal(&self) -> &P {
        self.grant.principal()
    }

    /// The whole grant.
    #[must_use]
    pub fn grant(&self) -> &Arc<Grant<P>> {
        &self.grant
    }

    /// Where in the request the token was.
    #[must_use]
    pub fn location(&self) -> TokenLocation {
        self.credential.location
    }

    /// The digest of the token that was presented; `None` if no gate has seen one.
    ///
    /// For what outlives the request, such as a WebSocket: ask the store again, whether the token still has a grant.
    #[must_use]
    pub fn token_digest(&self) -> Option<TokenDigest> {
        self.credential.digest
    }

    /// What the limiters on the way decided about this request, outermost first. A gate begins anew: what one around it charged
    /// is not among them.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter()
    }

    /// Gives back what the limiters charged for this request, once: where its outcome should not count. Only limiters that
    /// [were told](crate::RateLimits::with_refunds) that this may be wanted can do so.
    pub async fn refund(&self) {
        self.decisions.refund().await;
    }

    /// The form without the principal's type, which limiters take.
    #[must_use]
    pub fn current(&self) -> CurrentGrant
    where
        P: Send + Sync + 'static,
    {
        let grant: Arc<Grant<P>> = Arc::clone(&self.grant);
        CurrentGrant { grant, credential: self.credential, decisions: self.decisions.clone() }
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

/// The request extension of a request that a gate let pass without a grant, so that nothing behind it mistakes the
/// absence of a grant for the absence of a gate. If a further gate behind that one found a grant, there is a [`CurrentGrant`] too,
/// which counts: ask for that first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unauthenticated {
    /// A CORS preflight, which never carries credentials (Fetch standard, "CORS-preflight request").
    Preflight,
    /// Nothing was presented, and the gate takes anonymous callers.
    Anonymous,
}
