//! [`AuthLayer`]: the gate and its settings.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tower_layer::Layer;

use super::copies::Copies;
use super::identity::Identity;
use super::marker::{HeadOnly, ReadsTokens};
use super::service::AuthService;
use super::settings::{Gate, Settings, WallClock};
use super::unlimited::NoStore;
use crate::extract::{HeadLocations, TokenCharset, TokenSyntax};
use crate::limit::{FailureThrottle, Limiter, Unlimited};
use crate::pending::timeout::{Sleep, Timeout};
use crate::request_head::RequestHead;
use crate::respond::{ProblemDetails, RateLimitHeaders};
use crate::store::{GateStore, ImmediateStore};

/// The gate: a tower layer that authenticates requests by their token and applies rate limits.
///
/// Admitted requests reach the inner service with the grant in their extensions. Handlers take
/// [`Authenticated`](crate::Authenticated). Rejected requests never reach the inner service. Their response has the
/// [`Rejection`](crate::Rejection) in its extensions; the layer returns no errors of its own.
///
/// ```
/// use tollgate::limit::RateLimits;
/// use tollgate::{AuthLayer, Grant, MemoryStore, Quota, TokenDigest};
///
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", "Alice"))]);
/// let gate = AuthLayer::new(tokens)
///     .with_realm("trading")?
///     .with_rate_limit(RateLimits::new(Quota::per_minute(180).with_burst(20)));
/// # let _ = gate;
/// # Ok::<_, tollgate::respond::ChallengeError>(())
/// ```
///
/// # Order of layers
///
/// - Put the gate inside of CORS layers: rejections need CORS headers. Put it inside of layers that log rejections.
/// - Put the gate outside of all work that unauthenticated clients must not cause, such as reading bodies.
/// - In axum, give two layers for one method router as a tuple, or use `route_layer`. Chained
///   `MethodRouter::layer(..).layer(..)` leaves the type between the layers undetermined.
///
/// # CORS
///
/// - Add `Authorization` to `Access-Control-Allow-Headers`. The value `*` does not include it.
/// - Scripts see `WWW-Authenticate`, `Retry-After` and `RateLimit` only if `Access-Control-Expose-Headers` lists them.
/// - For gRPC-Web, expose `Grpc-Status`, `Grpc-Message` and `Grpc-Status-Details-Bin` as well.
///
/// # Readiness
///
/// A request that waits for its store keeps the inner service that was made ready for it, with its permits
/// ([`ConcurrencyLimit`](https://docs.rs/tower/latest/tower/limit/concurrency/)). Therefore every lookup has a timeout.
/// A request that is rejected immediately leaves the permit with the service. After a wait, a rejection releases the permit.
///
/// # Type parameters
///
/// `T` is the [`GateStore`], `L` the [`Limiter`], `R` the [responder](crate::respond::Respond). `B` is [`HeadOnly`], or
/// `BodyTokens` for a gate that accepts tokens in bodies as well (`with_body_tokens`, feature `body`), or [`Identity`] for a gate
/// [without tokens](Self::anonymous). `WithMetadata` around one of them is for a gate that serves the metadata of its resource
/// (`with_protected_resource`, feature `resource-metadata`).
pub struct AuthLayer<T, L = Unlimited, R = ProblemDetails, B = HeadOnly> {
    pub(super) gate: Arc<Gate<T, L, R>>,
    pub(super) body: B,
}

impl<T: GateStore> AuthLayer<T> {
    /// Creates a gate for a store that never waits, such as [`MemoryStore`](crate::MemoryStore).
    ///
    /// By default, a gate extracts tokens from the `Authorization` header, has the realm `api`, and responds with
    /// [`ProblemDetails`].
    #[must_use]
    pub fn new(store: T) -> Self
    where
        T: ImmediateStore,
    {
        Self::with_optional_timeout(store, None)
    }

    /// Creates a gate for a store that may have to wait. Lookups that take longer than `timeout` are rejected with 503.
    ///
    /// The timer is tokio's; [`with_timer`](Self::with_timer) takes another.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::{AuthLayer, Grant, store};
    ///
    /// let store = store::from_fn(|_digest| async { Ok::<Option<Grant<()>>, std::io::Error>(None) });
    /// let gate = AuthLayer::with_timeout(store, Duration::from_millis(500));
    /// # let _ = gate;
    /// ```
    #[cfg(feature = "tokio")]
    #[must_use]
    pub fn with_timeout(store: T, timeout: Duration) -> Self {
        Self::with_timer(store, timeout, tokio::time::sleep)
    }

    /// Creates a gate for a store that may have to wait, with the timer of any runtime.
    ///
    /// Lookups that take longer than `timeout` are rejected with 503. `sleep` returns a future that is ready after the given
    /// time.
    #[must_use]
    pub fn with_timer(store: T, timeout: Duration, sleep: impl Sleep) -> Self {
        Self::with_optional_timeout(store, Some(Timeout::new(timeout, sleep)))
    }

    fn with_optional_timeout(store: T, timeout: Option<Timeout>) -> Self {
        Self { gate: Arc::new(new_gate(store, timeout)), body: HeadOnly }
    }
}

impl AuthLayer<NoStore, Unlimited, ProblemDetails, Identity> {
    pub(super) fn without_tokens(identity: Identity) -> Self {
        let layer = Self { gate: Arc::new(new_gate(NoStore, None)), body: identity };
        layer.map_settings(|settings| {
            settings.allow_anonymous = true;
            settings.locations.authorization_disabled = true;
        })
    }
}

/// Returns a gate with the default settings.
fn new_gate<T>(store: T, timeout: Option<Timeout>) -> Gate<T, Unlimited, ProblemDetails> {
    let settings = Settings {
        syntax: TokenSyntax::default(),
        timeout,
        allow_anonymous: false,
        bypass_preflights: true,
        remove_credentials: false,
        locations: HeadLocations::default(),
        wall_clock: WallClock::System,
        throttle: None,
        headers: RateLimitHeaders::default(),
        request_id: None,
        is_secure: None,
    };
    Gate {
        store: Arc::new(store),
        limiter: Arc::new(Unlimited),
        responder: Arc::new(ProblemDetails),
        terms: Arc::default(),
        settings,
        copies: Copies::new(),
    }
}

impl<T: GateStore, R, B> AuthLayer<T, Unlimited, R, B> {
    /// Adds a rate limit. Each request is charged to the subject of its grant.
    ///
    /// For the quota see [`Limit`](crate::Limit#grants-quotas). Charges follow authentication, so requests that are
    /// rejected with 401 are not charged.
    #[must_use]
    pub fn with_rate_limit<L: Limiter>(self, limiter: L) -> AuthLayer<T, L, R, B> {
        let Gate { store, responder, terms, settings, .. } = Gate::clone(&self.gate);
        let gate = Gate { store, limiter: Arc::new(limiter), responder, terms, settings, copies: Copies::new() };
        AuthLayer { gate: Arc::new(gate), body: self.body }
    }
}

impl<T, L, R, B: ReadsTokens> AuthLayer<T, L, R, B> {
    /// Rejects peers with too many failed authentications with 429, before the gate waits for a store.
    ///
    /// See [`FailureThrottle`]. Valid tokens that the store finds immediately are admitted even from a throttled peer. If the
    /// store's answer is pending or a rejection, the throttle decides next. The limiter is last. Give clones of one throttle to
    /// all gates.
    #[must_use]
    pub fn with_failure_throttle(self, failures: FailureThrottle) -> Self {
        self.map_settings(|settings| settings.throttle = Some(failures))
    }

    /// Requires HTTPS: a token that came without it is rejected with 403, whether it is valid or not.
    ///
    /// `is_secure` returns whether a request came over HTTPS. A gate cannot see the connection, so the server or a trusted
    /// proxy must report it:
    ///
    /// | the connection of the client ends | closure |
    /// |---|---|
    /// | at this server | [`gate::is_https`](super::is_https), with [`HttpsConnection`](super::HttpsConnection) in the request's extensions |
    /// | at a proxy | [`ForwardedProto::is_https`](super::ForwardedProto::is_https) |
    /// | at either of them | `move \|head\| is_https(head) \|\| proxies.is_https(head)` |
    ///
    /// ```
    /// use tollgate::gate::{ForwardedProto, is_https};
    /// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let proxies = ForwardedProto::x_forwarded_proto(["10.0.0.0/8"])?;
    /// let gate = AuthLayer::new(tokens).require_https(move |head| is_https(head) || proxies.is_https(head));
    /// # let _ = gate;
    /// # Ok::<_, tollgate::limit::ClientIpError>(())
    /// ```
    ///
    /// # Rules
    ///
    /// A request without HTTPS gets this response:
    ///
    /// 1. With a credential in any enabled location: 403, [`HttpsRequired`](crate::RejectionKind::HttpsRequired). Malformed
    ///    credentials, and more than one, are credentials too.
    /// 2. Without a credential: 403 as well, because the challenge of a 401 would invite the client to send its token without
    ///    HTTPS. The body is not read. A gate that [allows anonymous callers](Self::allow_anonymous) admits the request, after
    ///    it has found no credential in the body either. If a handler or a layer behind the gate then needs a grant, the
    ///    response is the same 403.
    /// 3. A CORS preflight is admitted, unless the [bypass is off](Self::without_preflight_bypass). Browsers send no
    ///    credentials with it.
    ///
    /// The response is never a redirect, which would invite the client to send its token again, and has no challenge. It is the
    /// same for valid, unknown and missing tokens. The failure throttle does not count it.
    ///
    /// # Reports
    ///
    /// A token that came without HTTPS may have been read by others (RFC 6750, section 5.2), so an operator must replace it. If
    /// the store answers immediately, as [`MemoryStore`](crate::MemoryStore) and a cache do, the
    /// [`Rejection`](crate::Rejection) has the id of the grant, and the event has level WARN. This grant may be expired.
    /// The gate never waits for a store here: a pending lookup is dropped before its first poll. Errors of the store are ignored.
    ///
    /// This lookup has the effects of any other lookup: a cache counts it, and may refresh an expired entry in the background;
    /// `sql::LastUsed` records a use if the store around it answers immediately.
    ///
    /// The closure must not block. It may be called more than once for a request.
    #[must_use]
    pub fn require_https(self, is_secure: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.map_settings(|settings| settings.is_secure = Some(Arc::new(is_secure)))
    }

    /// Sets the maximum length of a token in bytes. Default: 8192. Longer tokens are rejected before hashing.
    #[must_use]
    pub fn with_max_token_len(self, max_len: usize) -> Self {
        self.map_settings(|settings| settings.syntax = settings.syntax.with_max_len(max_len))
    }

    /// Sets the characters that a token may have. Default: [`TokenCharset::B64Token`].
    #[must_use]
    pub fn with_charset(self, charset: TokenCharset) -> Self {
        self.map_settings(|settings| settings.syntax = settings.syntax.with_charset(charset))
    }

    /// Admits requests without credentials as [anonymous](crate::Unauthenticated::Anonymous).
    ///
    /// Invalid credentials are still rejected. The limiter decides about anonymous callers; see
    /// [`Limit::with_anonymous`](crate::Limit::with_anonymous) and [`AnonymousLimits`](crate::limit::AnonymousLimits). Handlers take
    /// `Option<Authenticated<P>>`. A handler that takes `Authenticated<P>` answers 401 to anonymous callers.
    #[must_use]
    pub fn allow_anonymous(self) -> Self {
        self.map_settings(|settings| settings.allow_anonymous = true)
    }

    /// Removes credentials from the request before the inner service gets it.
    ///
    /// Header fields and query parameters are removed. In a body, the token is overwritten with `*`. Only token locations
    /// that are enabled are changed. A body that the gate does not read stays as it is.
    ///
    /// axum's `OriginalUri` extension keeps the query: a router copies the URI before any route layer runs.
    ///
    /// Without this setting, header fields are only marked sensitive, so that debug output omits them. A WebSocket sub-protocol
    /// with a token is always removed.
    #[must_use]
    pub fn with_credentials_removed(self) -> Self {
        self.map_settings(|settings| settings.remove_credentials = true)
    }
}

impl<T, L, R, B> AuthLayer<T, L, R, B> {
    /// Requires authentication for CORS preflights, too. Browsers cannot authenticate preflights.
    ///
    /// Use this behind a CORS layer that answers preflights itself. By default, preflights (`OPTIONS` with `Origin` and
    /// `Access-Control-Request-Method`) are admitted without a grant, marked as
    /// [`Unauthenticated::Preflight`](crate::Unauthenticated::Preflight). The limiter charges them like anonymous callers.
    #[must_use]
    pub fn without_preflight_bypass(self) -> Self {
        self.map_settings(|settings| settings.bypass_preflights = false)
    }

    /// Sets the clock for expiry and for headers with absolute times. For tests.
    #[must_use]
    pub fn with_wall_clock(self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.map_settings(|settings| settings.wall_clock = WallClock::Custom(Arc::new(now)))
    }

    /// Returns a gate for a layer behind this one. It has no store, and this gate's responder, terms and settings.
    pub(super) fn behind<M>(&self, limiter: M) -> Gate<NoStore, M, R> {
        let Gate { responder, terms, settings, .. } = &*self.gate;
        Gate {
            store: Arc::new(NoStore),
            limiter: Arc::new(limiter),
            responder: Arc::clone(responder),
            terms: Arc::clone(terms),
            settings: settings.clone(),
            copies: Copies::new(),
        }
    }

    pub(super) fn map_settings(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut gate = Gate::clone(&self.gate);
        change(&mut gate.settings);
        Self { gate: Arc::new(gate), body: self.body }
    }
}

#[cfg(feature = "body")]
impl<T, L, R> AuthLayer<T, L, R> {
    /// Accepts tokens in request bodies as well; see [`BodyTokens`](super::BodyTokens). The inner service gets a
    /// [`ReplayBody`](super::ReplayBody).
    #[must_use]
    pub fn with_body_tokens(self, body: super::BodyTokens) -> AuthLayer<T, L, R, super::BodyTokens> {
        AuthLayer { gate: self.gate, body }
    }
}

impl<S, T, L, R> Layer<S> for AuthLayer<T, L, R> {
    type Service = AuthService<S, T, L, R>;

    fn layer(&self, inner: S) -> Self::Service {
        AuthService::new(inner, Arc::clone(&self.gate))
    }
}

#[cfg(feature = "body")]
impl<S, T, L, R> Layer<S> for AuthLayer<T, L, R, super::BodyTokens> {
    type Service = super::BodyAuthService<S, T, L, R>;

    fn layer(&self, inner: S) -> Self::Service {
        super::BodyAuthService::new(inner, Arc::clone(&self.gate), self.body.clone())
    }
}

impl<T, L, R, B: Clone> Clone for AuthLayer<T, L, R, B> {
    fn clone(&self) -> Self {
        Self { gate: Arc::clone(&self.gate), body: self.body.clone() }
    }
}

impl<T, L, R, B: fmt::Debug> fmt::Debug for AuthLayer<T, L, R, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.gate.debug("AuthLayer", f).field("body", &self.body).finish_non_exhaustive()
    }
}
