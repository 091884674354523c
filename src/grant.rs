use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Extensions;
use thiserror::Error;

use crate::decision::{Decision, Decisions};
use crate::limit::accounts::Memo;
use crate::quota::Quota;
use crate::rejection::Rejection;
use crate::token::{Carrier, Credential, TokenDigest};

macro_rules! name {
    ($(#[$doc:meta])* $Name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $Name(Arc<str>);

        impl $Name {
            /// The text of it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<T: Into<Arc<str>>> From<T> for $Name {
            fn from(text: T) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// Names one grant in logs and in administration. It is no secret: never make it of a token.
    GrantId
}
name! {
    /// Whom a budget belongs to. All grants that name one subject draw on the same budget.
    Subject
}

/// A set of scopes: tokens of %x21 / %x23-5B / %x5D-7E (RFC 6749, section 3.3), case-sensitive.
///
/// ```
/// use tollgate::Scopes;
///
/// let scopes = Scopes::new(["orders:read", "orders:write"])?;
/// assert!(scopes.contains("orders:read"));
/// assert_eq!(scopes.to_string(), "orders:read orders:write");
/// assert!(Scopes::new(["two words"]).is_err());
/// # Ok::<_, tollgate::InvalidScope>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Scopes(Box<[Box<str>]>);

/// A scope that is empty or has a space, a quote, a backslash, a control or a non-ASCII character.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no scope: one or more of %x21 / %x23-5B / %x5D-7E")]
pub struct InvalidScope(Box<str>);

impl InvalidScope {
    /// For lists that must not be empty.
    pub(crate) fn empty() -> Self {
        Self("".into())
    }
}

impl Scopes {
    /// Checks and keeps scopes, in this order.
    ///
    /// # Errors
    ///
    /// If one of them is empty or has a character that RFC 6749 does not allow.
    pub fn new<I>(scopes: I) -> Result<Self, InvalidScope>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        scopes.into_iter().map(|scope| check_scope(scope.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether this scope is among them.
    #[must_use]
    pub fn contains(&self, scope: &str) -> bool {
        self.iter().any(|own| own == scope)
    }

    /// The scopes, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn check_scope(scope: &str) -> Result<Box<str>, InvalidScope> {
    match !scope.is_empty() && scope.bytes().all(|b| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e)) {
        true => Ok(scope.into()),
        false => Err(InvalidScope(scope.into())),
    }
}

impl fmt::Display for Scopes {
    /// The scopes with single spaces between, as the `scope` parameter has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// What a token stands for: who calls, what they may do, and how much.
///
/// A grant is its own subject unless it names another one, so that budgets are per token by default. Give all tokens
/// of one customer the same subject, the old and the new one of a rotation above all, and they share one budget.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tollgate::{Grant, Quota};
///
/// struct User { name: &'static str }
///
/// let grant = Grant::new("key-17", User { name: "Alice" })
///     .with_subject("alice")
///     .with_scopes(["trade"])?
///     .with_quota(Quota::per_minute(600).with_burst(50))
///     .with_expiry(SystemTime::now() + Duration::from_secs(3_600));
/// assert_eq!(grant.subject().as_str(), "alice");
/// # Ok::<_, tollgate::InvalidScope>(())
/// ```
#[derive(Clone)]
pub struct Grant<P> {
    head: Head,
    principal: P,
}

/// Everything about a grant that does not depend on the type of its principal. What each request reads comes first.
#[derive(Clone)]
pub(crate) struct Head {
    memo: Memo,
    quota: Option<Quota>,
    /// Nanoseconds since 1970; 0 is "always was".
    not_before_ns: u64,
    /// Nanoseconds since 1970; `u64::MAX` is "never".
    expires_ns: u64,
    sender_constrained: bool,
    subject: Subject,
    id: GrantId,
    scopes: Scopes,
}

impl<P> Grant<P> {
    /// A grant that is its own subject, may do what needs no scope, is valid at all times and has no quota of its own.
    pub fn new(id: impl Into<GrantId>, principal: P) -> Self {
        let id = id.into();
        let head = Head {
            memo: Memo::default(),
            quota: None,
            not_before_ns: 0,
            expires_ns: u64::MAX,
            sender_constrained: false,
            subject: Subject(id.0.clone()),
            id,
            scopes: Scopes::default(),
        };
        Self { head, principal }
    }

    /// The same under another subject, whose budget it will share.
    #[must_use]
    pub fn with_subject(mut self, subject: impl Into<Subject>) -> Self {
        self.head.subject = subject.into();
        // What was remembered is the budget of the former subject.
        self.head.memo = Memo::default();
        self
    }

    /// The same with these scopes.
    ///
    /// # Errors
    ///
    /// If one of them is empty or has a character that RFC 6749 does not allow.
    pub fn with_scopes<I>(mut self, scopes: I) -> Result<Self, InvalidScope>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        self.head.scopes = Scopes::new(scopes)?;
        Ok(self)
    }

    /// The same with a quota of its own, in place of the limiter's default.
    #[must_use]
    pub fn with_quota(mut self, quota: Quota) -> Self {
        self.head.quota = Some(quota);
        self
    }

    /// The same, valid from this moment on.
    #[must_use]
    pub fn with_not_before(mut self, not_before: SystemTime) -> Self {
        self.head.not_before_ns = unix_ns(not_before);
        self
    }

    /// The same, valid until just before this moment.
    #[must_use]
    pub fn with_expiry(mut self, expires_at: SystemTime) -> Self {
        self.head.expires_ns = unix_ns(expires_at);
        self
    }

    /// The same, bound to a key that its sender must prove (DPoP, mutual TLS). As a bare Bearer token it is refused
    /// (RFC 9449, section 7.2).
    #[must_use]
    pub fn with_sender_constraint(mut self) -> Self {
        self.head.sender_constrained = true;
        self
    }

    /// The name of the grant.
    #[must_use]
    pub fn id(&self) -> &GrantId {
        &self.head.id
    }

    /// Whose budget it draws on.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.head.subject
    }

    /// What it allows.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        &self.head.scopes
    }

    /// Its own quota; `None` is the limiter's default.
    #[must_use]
    pub fn quota(&self) -> Option<Quota> {
        self.head.quota
    }

    /// From when on it is valid, if that was said.
    #[must_use]
    pub fn not_before(&self) -> Option<SystemTime> {
        (self.head.not_before_ns != 0).then(|| UNIX_EPOCH + Duration::from_nanos(self.head.not_before_ns))
    }

    /// When it expires, if ever.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        (self.head.expires_ns != u64::MAX).then(|| UNIX_EPOCH + Duration::from_nanos(self.head.expires_ns))
    }

    /// Whether its sender must prove a key.
    #[must_use]
    pub fn is_sender_constrained(&self) -> bool {
        self.head.sender_constrained
    }

    /// Who calls, in the service's own words.
    pub fn principal(&self) -> &P {
        &self.principal
    }

    pub(crate) fn head(&self) -> &Head {
        &self.head
    }
}

impl Head {
    /// Whether there is any need to ask what time it is.
    pub(crate) fn is_bounded_in_time(&self) -> bool {
        self.not_before_ns != 0 || self.expires_ns != u64::MAX
    }

    pub(crate) fn is_expired(&self, now: SystemTime) -> bool {
        unix_ns(now) >= self.expires_ns && self.expires_ns != u64::MAX
    }

    pub(crate) fn is_not_yet_valid(&self, now: SystemTime) -> bool {
        unix_ns(now) < self.not_before_ns
    }

    pub(crate) fn is_sender_constrained(&self) -> bool {
        self.sender_constrained
    }
}

/// Nanoseconds since 1970; earlier is 0, after the year 2554 `u64::MAX`.
fn unix_ns(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

impl<P> fmt::Debug for Grant<P> {
    /// Leaves out the principal, which may hold what must not be printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("id", self.id())
            .field("subject", self.subject())
            .field("scopes", self.scopes())
            .field("quota", &self.quota())
            .field("not_before", &self.not_before())
            .field("expires_at", &self.expires_at())
            .finish_non_exhaustive()
    }
}

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

/// A grant without the type of its principal. (Trait upcasting would save `into_any`, but needs Rust 1.86.)
trait Erased: Send + Sync {
    fn head(&self) -> &Head;
    fn principal(&self) -> &dyn Any;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<P: Send + Sync + 'static> Erased for Grant<P> {
    fn head(&self) -> &Head {
        &self.head
    }

    fn principal(&self) -> &dyn Any {
        &self.principal
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
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
        &self.grant.head().id
    }

    /// Whose budget it draws on.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.grant.head().subject
    }

    /// What it allows.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        &self.grant.head().scopes
    }

    /// Its own quota; `None` is the limiter's default.
    #[must_use]
    pub fn quota(&self) -> Option<Quota> {
        self.grant.head().quota
    }

    /// Where in the request the token was.
    #[must_use]
    pub fn carrier(&self) -> Carrier {
        self.credential.carrier
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

    /// What the limiters on the way decided about this request, outermost first.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter()
    }

    pub(crate) fn record(&mut self, decision: Decision) {
        self.decisions.push(decision);
    }

    pub(crate) fn memo(&self) -> &Memo {
        &self.grant.head().memo
    }
}

impl fmt::Debug for CurrentGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CurrentGrant")
            .field("id", self.id())
            .field("subject", self.subject())
            .field("carrier", &self.carrier())
            .finish_non_exhaustive()
    }
}

/// The caller of the request at hand, for handlers: proof that a gate let them in, and what its store knows of them.
///
/// With feature `axum` it is an extractor, and so is `Option<Authenticated<P>>`.
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
    /// use tollgate::{Authenticated, Problem, respond::Respond};
    ///
    /// fn hello(request: &Request<()>) -> Response<bytes::Bytes> {
    ///     match Authenticated::<String>::from_extensions(request.extensions()) {
    ///         Ok(who) => Response::new(format!("hello, {}", who.principal()).into()),
    ///         Err(rejection) => Problem.refuse(rejection),
    ///     }
    /// }
    /// # assert_eq!(hello(&Request::new(())).status(), 500);
    /// ```
    ///
    /// # Errors
    ///
    /// [`Missing`](crate::RejectionKind::Missing) for requests that the gate let pass without a grant (anonymous ones
    /// and CORS preflights). [`Misconfigured`](crate::RejectionKind::Misconfigured) if there is no gate, or the
    /// principal has another type: the answer says which.
    pub fn from_extensions(extensions: &Extensions) -> Result<Self, Rejection>
    where
        P: Send + Sync + 'static,
    {
        Self::from_extensions_if_any(extensions)?.ok_or_else(Rejection::missing)
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
    pub fn carrier(&self) -> Carrier {
        self.credential.carrier
    }

    /// The digest of the token that was presented; `None` if no gate has seen one.
    ///
    /// For what outlives the request, such as a WebSocket: ask the store again, whether the token still has a grant.
    #[must_use]
    pub fn token_digest(&self) -> Option<TokenDigest> {
        self.credential.digest
    }

    /// What the limiters on the way decided about this request, outermost first.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter()
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
        f.debug_struct("Authenticated").field("grant", &self.grant).field("carrier", &self.carrier()).finish()
    }
}

/// The request extension of a request that a gate let pass without a grant, so that nothing behind it mistakes the
/// absence of a grant for the absence of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unauthenticated {
    /// A CORS preflight, which never carries credentials (Fetch standard, "CORS-preflight request").
    Preflight,
    /// Nothing was presented, and the gate takes anonymous callers.
    Anonymous,
}
