use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, Response};
use tower_layer::Layer;

use super::service::AuthService;
use super::settings::{Settings, Shared, WallClock};
use super::unlimited::Unlimited;
use crate::extract::{HeadLocations, TokenCharset, TokenLocationError, TokenSyntax, enable, location_name};
use crate::limit::{FailureThrottle, Limiter};
use crate::pending::timeout::{Sleep, Timeout};
use crate::rejection::Rejection;
use crate::rejection::terms::Challenges;
use crate::request_head::RequestHead;
use crate::respond::{Challenge, ChallengeError, ProblemDetails, RateLimitHeaders};
use crate::store::{ImmediateStore, TokenStore};

/// The gate: finds the caller's token, looks it up, charges the budget, and refuses in the words of the standards.
///
/// What it admits goes on with the grant in its extensions: handlers take [`Authenticated`](crate::Authenticated).
/// What it refuses never reaches the inner service, and never is an error: the answer is a response, with the
/// [`Rejection`] in its extensions.
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
/// # Where it stands
///
/// - Inside of CORS, so that refusals get its headers and preflights are not charged, and of anything that logs refusals.
/// - Browsers show scripts `WWW-Authenticate`, `Retry-After` and `RateLimit` only if the CORS layer names them in
///   `Access-Control-Expose-Headers`, and send `Authorization` only if it is named in `Access-Control-Allow-Headers`,
///   where `*` does not cover it. Expose `Grpc-Status`, `Grpc-Message` and `Grpc-Status-Details-Bin` to clients of gRPC-Web.
/// - Outside of everything that must not run for strangers, such as reading bodies.
/// - A request that waits for its store holds on to the inner service that was made ready for it, and to whatever
///   permit that has ([`ConcurrencyLimit`](https://docs.rs/tower/latest/tower/limit/concurrency/)): every wait for a
///   store has a deadline, therefore. Who is refused at once leaves the permit with the instance; who waited gives it back.
///
/// In axum, give two layers for one method router as a tuple or use `route_layer`: chained
/// `MethodRouter::layer(..).layer(..)` leaves the type between them open.
///
/// # Type parameters
///
/// `T` is the [`TokenStore`], `L` the [`Limiter`], `R` the [responder](crate::respond::Respond). `B` says where tokens may
/// be: [`HeadOnly`], or in bodies as well ([`with_body_tokens`](Self::with_body_tokens), feature `body`).
pub struct AuthLayer<T, L = Unlimited, R = ProblemDetails, B = HeadOnly> {
    shared: Arc<Shared<T, L, R>>,
    body: B,
}

/// Marks an [`AuthLayer`] that never reads request bodies.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadOnly;

impl<T: TokenStore> AuthLayer<T> {
    /// A gate for a store that never waits, such as [`MemoryStore`](crate::MemoryStore).
    ///
    /// It takes tokens from the `Authorization` header, speaks for the realm `api`, and refuses by [`ProblemDetails`].
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
        let settings = Settings {
            form: TokenSyntax::default(),
            timeout,
            anonymous: false,
            preflight: true,
            remove_credentials: false,
            doors: HeadLocations::default(),
            wall_clock: WallClock::System,
            throttle: None,
            ratelimit: RateLimitHeaders::default(),
        };
        let shared = Shared {
            store: Arc::new(store),
            limiter: Arc::new(Unlimited),
            responder: Arc::new(ProblemDetails),
            terms: Arc::default(),
            settings,
        };
        Self { shared: Arc::new(shared), body: HeadOnly }
    }
}

impl<T: TokenStore, R, B> AuthLayer<T, Unlimited, R, B> {
    /// Charges every request to its caller's subject. For the quota see [`RateLimits`](crate::RateLimits#whose-quota).
    ///
    /// The order is: authenticate, then charge. A request that is refused with 401 costs nobody anything.
    #[must_use]
    pub fn with_rate_limit<L: Limiter>(self, limiter: L) -> AuthLayer<T, L, R, B> {
        let Shared { store, responder, terms, settings, .. } = Arc::unwrap_or_clone(self.shared);
        let shared = Shared { store, limiter: Arc::new(limiter), responder, terms, settings };
        AuthLayer { shared: Arc::new(shared), body: self.body }
    }
}

impl<T, L, R, B> AuthLayer<T, L, R, B> {
    /// The same for another protection space than `api`. It is told in every challenge.
    ///
    /// # Errors
    ///
    /// If it is empty or has a control or a non-ASCII character.
    pub fn with_realm(self, realm: &str) -> Result<Self, ChallengeError> {
        let bearer = self.shared.terms.bearer().clone().with_realm(realm)?;
        Ok(self.map_terms(|terms| terms.with_bearer(bearer)))
    }

    /// The same with the URL of the service's protected resource metadata in every challenge (RFC 9728, section 5.1).
    ///
    /// It is configured and never made of the request's `Host`, which anybody can write.
    ///
    /// # Errors
    ///
    /// If it is no absolute URI.
    pub fn with_resource_metadata(self, uri: &str) -> Result<Self, ChallengeError> {
        let bearer = self.shared.terms.bearer().clone().with_resource_metadata(uri)?;
        Ok(self.map_terms(|terms| terms.with_bearer(bearer)))
    }

    /// The same with the challenge of another scheme that the service takes as well, in a field line of its own. It is told
    /// without an error, if it has one: whoever is refused here has not tried that scheme.
    #[must_use]
    pub fn with_challenge(self, challenge: Challenge) -> Self {
        self.map_terms(|terms| terms.with_other(challenge))
    }

    /// The same with another dialect of rate limit headers.
    #[must_use]
    pub fn with_rate_limit_headers(self, dialect: RateLimitHeaders) -> Self {
        self.map_settings(|settings| settings.ratelimit = dialect)
    }

    /// The same with another responder: [`EmptyBody`](crate::EmptyBody), [`ProblemDetails::map_body`], or one of your own. Where that leaves it
    /// out the gate adds `Cache-Control: no-store`, and to a 401 how to authenticate (RFC 9110, section 15.5.2).
    #[must_use]
    pub fn with_responder<R2>(self, responder: R2) -> AuthLayer<T, L, R2, B> {
        let Shared { store, limiter, terms, settings, .. } = Arc::unwrap_or_clone(self.shared);
        let shared = Shared { store, limiter, responder: Arc::new(responder), terms, settings };
        AuthLayer { shared: Arc::new(shared), body: self.body }
    }

    /// Sets a closure as the responder. It must follow [`Rejection::allows_content`].
    ///
    /// ```
    /// use http::Response;
    /// use tollgate::{AuthLayer, EmptyBody, Grant, MemoryStore, respond::Respond, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_response_fn(|rejection| {
    ///     let response: Response<String> = EmptyBody.respond(rejection);
    ///     if rejection.allows_content() { response.map(|_| rejection.detail().into_owned()) } else { response }
    /// });
    /// # let _ = gate;
    /// ```
    #[must_use]
    pub fn with_response_fn<ResB, F>(self, respond: F) -> AuthLayer<T, L, F, B>
    where
        F: Fn(&Rejection) -> Response<ResB> + Send + Sync + 'static,
    {
        self.with_responder(respond)
    }

    /// The same, and a peer whose authentications fail too often is refused with 429 before any store is waited for; see
    /// [`FailureThrottle`]. Who presents a token that is known at once and valid gets in all the same.
    ///
    /// The order is: ask the store; the throttle, before a wait and before a no; charge. Give clones of it to all gates.
    #[must_use]
    pub fn with_failure_throttle(self, failures: FailureThrottle) -> Self {
        self.map_settings(|settings| settings.throttle = Some(failures))
    }

    /// The same with another limit than 8192 on the bytes of a token. Longer ones are refused before any hashing.
    #[must_use]
    pub fn with_max_token_len(self, max_len: usize) -> Self {
        self.map_settings(|settings| settings.form = settings.form.with_max_len(max_len))
    }

    /// The same with another alphabet of tokens.
    #[must_use]
    pub fn with_charset(self, alphabet: TokenCharset) -> Self {
        self.map_settings(|settings| settings.form = settings.form.with_charset(alphabet))
    }

    /// The same, and a request that presents nothing goes on as [anonymous](crate::Unauthenticated::Anonymous).
    ///
    /// What is presented and bad is refused all the same. Anonymous callers are limited as the limiter says, see
    /// [`Limit::with_anonymous`](crate::Limit::with_anonymous). A handler takes
    /// `Option<Authenticated<P>>`.
    #[must_use]
    pub fn allow_anonymous(self) -> Self {
        self.map_settings(|settings| settings.anonymous = true)
    }

    /// The same, and CORS preflights have to authenticate as well, which browsers cannot do.
    ///
    /// For services behind a CORS layer that answers preflights by itself. By default a true preflight (`OPTIONS` with
    /// `Origin` and `Access-Control-Request-Method`) passes without a grant, marked as
    /// [`Unauthenticated::Preflight`](crate::Unauthenticated::Preflight). The limiter charges it like an anonymous caller.
    #[must_use]
    pub fn without_preflight_bypass(self) -> Self {
        self.map_settings(|settings| settings.preflight = false)
    }

    /// The same, and the credential is taken out of what the inner service sees: the header field or query parameter is
    /// removed, in a body it is overwritten with `*`.
    ///
    /// Under axum the `OriginalUri` extension keeps a query as it came: a router makes that copy before any route layer runs.
    ///
    /// Only the fields of open doors: of a body that no door looked into nothing is overwritten, whatever it holds.
    ///
    /// Header fields are marked sensitive in any case, so that nothing prints them; and a WebSocket's sub-protocol that
    /// holds a token is always removed.
    #[must_use]
    pub fn with_credentials_removed(self) -> Self {
        self.map_settings(|settings| settings.remove_credentials = true)
    }

    /// The same, and the `Authorization` header is not looked at: for routes whose callers present the token elsewhere, while
    /// the field is for somebody else, such as a proxy in front. What it holds neither counts nor hurts, and stays.
    ///
    /// Open another door, or nobody gets in. Who presents nothing is still asked for Bearer.
    #[must_use]
    pub fn without_authorization_header(self) -> Self {
        self.map_settings(|settings| settings.doors.authorization_disabled = true)
    }

    /// The same, and a token is also taken from this header field, such as `X-API-Key`. It holds nothing but the token.
    ///
    /// There is no standard for it, and no challenge: who presents nothing is still asked for Bearer.
    ///
    /// ```
    /// use http::HeaderName;
    /// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_api_key_header(HeaderName::from_static("x-api-key"))?;
    /// # let _ = gate;
    /// # Ok::<_, tollgate::extract::TokenLocationError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the field has another purpose, such as `Authorization`, or the door is open already.
    pub fn with_api_key_header(self, name: HeaderName) -> Result<Self, TokenLocationError> {
        self.open_door(|doors| doors.enable_api_key(name, false))
    }

    /// [`with_api_key_header`](Self::with_api_key_header) for services behind a gateway that uses the field for a purpose
    /// of its own: it is looked at only where there are no Bearer credentials, and is no second credential beside them.
    ///
    /// # Errors
    ///
    /// Those of [`with_api_key_header`](Self::with_api_key_header).
    pub fn with_api_key_header_unless_bearer(self, name: HeaderName) -> Result<Self, TokenLocationError> {
        self.open_door(|doors| doors.enable_api_key(name, true))
    }

    /// The same, and a token is also taken from the query parameter of this name (RFC 6750, section 2.3: `access_token`),
    /// of `GET` and `HEAD` requests.
    ///
    /// Discouraged, and against the best current practice: targets stand in logs, histories and `Referer` fields
    /// (RFC 9700, section 4.3.2: clients must not do this). Answers are marked `Cache-Control: private` and
    /// `Referrer-Policy: no-referrer`; whatever logs targets outside of the gate still logs the token.
    ///
    /// # Errors
    ///
    /// If the name is empty, or the door is open already.
    pub fn with_discouraged_query_token(self, parameter: &str) -> Result<Self, TokenLocationError> {
        self.open_door(|doors| enable(&mut doors.query, location_name(parameter)?))
    }

    /// The same, and a token is also taken from the sub-protocols that a WebSocket client offers, behind this prefix and
    /// in base64url without padding; see [`extract::websocket`](crate::extract::websocket).
    ///
    /// ```
    /// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_websocket_token("base64url.bearer.authorization.example.")?;
    /// # let _ = gate;
    /// # Ok::<_, tollgate::extract::TokenLocationError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the prefix is empty or has a character that a sub-protocol cannot have (RFC 9110, section 5.6.2: `token`), or
    /// the door is open already.
    pub fn with_websocket_token(self, prefix: &str) -> Result<Self, TokenLocationError> {
        self.open_door(|doors| doors.enable_websocket(prefix))
    }

    /// The same, and a token is also taken from wherever the closure finds one in the head of a request, such as a cookie
    /// or another scheme: all that it finds, so that an `Option` will do where there is one place. Nothing is "nothing
    /// presented"; what there is has to have the form of a token, and counts like any other credential: a second one makes
    /// the request wrong.
    ///
    /// The gate does not know where the credential stands, and can neither mark nor remove it.
    ///
    /// ```
    /// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_token_from(|head| {
    ///     let lines = head.headers.get_all("authorization").iter();
    ///     lines.filter_map(|line| line.as_bytes().strip_prefix(b"Token ")).map(<[u8]>::to_vec).collect::<Vec<_>>()
    /// });
    /// # let _ = gate;
    /// ```
    #[must_use]
    pub fn with_token_from<I>(self, find: impl Fn(&RequestHead<'_>) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item = Vec<u8>>,
    {
        let other = move |head: &RequestHead<'_>| {
            let mut found = find(head).into_iter();
            (found.next(), found.next().is_some())
        };
        self.map_settings(|settings| settings.doors.others.push(Arc::new(other)))
    }

    /// The same with another clock for expiry and for headers that tell the time: for tests.
    #[must_use]
    pub fn with_wall_clock(self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.map_settings(|settings| settings.wall_clock = WallClock::Given(Arc::new(now)))
    }

    pub(super) fn shared(&self) -> &Shared<T, L, R> {
        &self.shared
    }

    fn open_door(
        self,
        open: impl FnOnce(&mut HeadLocations) -> Result<(), TokenLocationError>,
    ) -> Result<Self, TokenLocationError> {
        let mut opened = Ok(());
        let gate = self.map_settings(|settings| opened = open(&mut settings.doors));
        opened.map(|()| gate)
    }

    fn map_settings(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut shared = Arc::unwrap_or_clone(self.shared);
        change(&mut shared.settings);
        Self { shared: Arc::new(shared), body: self.body }
    }

    fn map_terms(self, change: impl FnOnce(Challenges) -> Challenges) -> Self {
        let shared = Arc::unwrap_or_clone(self.shared);
        let terms = Arc::new(change(Arc::unwrap_or_clone(shared.terms)));
        Self { shared: Arc::new(Shared { terms, ..shared }), body: self.body }
    }
}

#[cfg(feature = "body")]
impl<T, L, R> AuthLayer<T, L, R> {
    /// Accepts tokens in request bodies as well; see [`BodyTokens`](super::BodyTokens). The inner service gets a
    /// [`ReplayBody`](super::ReplayBody).
    #[must_use]
    pub fn with_body_tokens(self, body: super::BodyTokens) -> AuthLayer<T, L, R, super::BodyTokens> {
        AuthLayer { shared: self.shared, body }
    }
}

impl<S, T, L, R> Layer<S> for AuthLayer<T, L, R> {
    type Service = AuthService<S, T, L, R>;

    fn layer(&self, inner: S) -> Self::Service {
        AuthService::new(inner, Arc::clone(&self.shared))
    }
}

#[cfg(feature = "body")]
impl<S, T, L, R> Layer<S> for AuthLayer<T, L, R, super::BodyTokens> {
    type Service = super::BodyAuthService<S, T, L, R>;

    fn layer(&self, inner: S) -> Self::Service {
        super::BodyAuthService::new(inner, Arc::clone(&self.shared), self.body.clone())
    }
}

impl<T, L, R, B: Clone> Clone for AuthLayer<T, L, R, B> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), body: self.body.clone() }
    }
}

impl<T, L, R, B: fmt::Debug> fmt::Debug for AuthLayer<T, L, R, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.debug("AuthLayer", f).field("body", &self.body).finish_non_exhaustive()
    }
}
