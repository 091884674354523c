//! [`Identity`]: a gate without tokens, whose callers are anonymous or were authenticated by something else.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::future::AuthFuture;
use super::layer::AuthLayer;
use super::settings::Gate;
use super::state::Step;
use super::unlimited::NoStore;
use crate::authenticate::verdict;
use crate::caller::{CurrentGrant, Unauthenticated};
use crate::grant::Grant;
use crate::limit::{Limiter, Unlimited};
use crate::rejection::Rejection;
use crate::request_head::RequestHead;
use crate::respond::{ProblemDetails, Respond};
use crate::token::{Credential, TokenLocation};

/// Marks an [`AuthLayer`] without tokens, made by [`AuthLayer::anonymous`] or [`AuthLayer::identified_by`].
#[derive(Clone)]
pub struct Identity(Option<Arc<Identify>>);

type Identify = dyn Fn(&RequestHead<'_>) -> Option<CurrentGrant> + Send + Sync;

/// A gate without tokens.
pub type IdentityLayer<L = Unlimited, R = ProblemDetails> = AuthLayer<NoStore, L, R, Identity>;

impl IdentityLayer {
    /// Creates a gate for public routes: all callers are [anonymous](Unauthenticated::Anonymous), and no token is read.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use tollgate::limit::{AnonymousLimits, ClientIp};
    /// use tollgate::{AuthLayer, Quota};
    ///
    /// let per_address = AnonymousLimits::by_client_ip(Quota::per_minute(60), ClientIp::peer())?;
    /// let public = AuthLayer::anonymous().with_rate_limit(per_address);
    /// let app: Router = Router::new().route("/prices", get(|| async { "1.08" })).layer(public);
    /// # Ok::<_, tollgate::LimitError>(())
    /// ```
    #[must_use]
    pub fn anonymous() -> Self {
        Self::without_tokens(Identity(None))
    }

    /// Creates a gate for callers that something else has authenticated, such as a session or a client certificate.
    ///
    /// `identify` returns the grant of the caller, or `None` for an anonymous caller. The grant has the subject that is charged,
    /// and optionally its quota and scopes. Handlers take [`Authenticated`](crate::Authenticated), which rejects anonymous
    /// callers with 401. [`TokenLocation::Other`](crate::TokenLocation::Other) is the location of these callers: like other responses to
    /// credentials outside of `Authorization`, theirs have `Cache-Control: private`.
    ///
    /// ```
    /// use tollgate::{AuthLayer, Grant, Quota, RateLimits};
    ///
    /// /// Inserted into the request extensions by the session layer, which must be outside of the gate.
    /// #[derive(Clone)]
    /// struct Session { user: String, is_pro: bool }
    ///
    /// let gate = AuthLayer::identified_by(|head| {
    ///     let session = head.extensions.get::<Session>()?;
    ///     let grant = Grant::new(session.user.as_str(), session.clone());
    ///     Some(if session.is_pro { grant.with_quota(Quota::per_minute(600)) } else { grant })
    /// });
    /// let gate = gate.with_rate_limit(RateLimits::new(Quota::per_minute(60)));
    /// # let _ = gate;
    /// ```
    ///
    /// # Responsibilities
    ///
    /// With a [`TokenStore`](crate::TokenStore), the types ensure that a bucket belongs to a subject that the store has returned.
    /// Here this is your responsibility:
    ///
    /// - The subject is authenticated. A client that chooses its subject resets its bucket, or uses up that of another one.
    /// - The number of subjects is bounded. Each subject in use takes memory.
    pub fn identified_by<P, G>(identify: impl Fn(&RequestHead<'_>) -> Option<G> + Send + Sync + 'static) -> Self
    where
        P: Send + Sync + 'static,
        G: Into<Arc<Grant<P>>>,
    {
        Self::without_tokens(Identity(Some(Arc::new(move |head| identify(head).map(identified)))))
    }
}

/// Returns the caller. Its credential is outside of `Authorization`, so that shared caches must not store the response.
fn identified<P: Send + Sync + 'static>(grant: impl Into<Arc<Grant<P>>>) -> CurrentGrant {
    CurrentGrant::by(grant.into(), Credential { location: TokenLocation::Other, digest: None })
}

impl<L: Limiter, R> Gate<NoStore, L, R> {
    /// Continues with the caller of a request.
    #[inline]
    fn identify<B>(&self, grant: Option<CurrentGrant>, request: &mut Request<B>) -> Step<NoStore, L> {
        let Some(grant) = grant else { return self.charge_unauthenticated(Unauthenticated::Anonymous, request) };
        match verdict(grant.erased().head(), || self.settings.wall_clock.now()) {
            Ok(()) => self.charge(grant, request),
            Err(kind) => Step::Reject(Rejection::new(kind).of_grant(grant.id())),
        }
    }
}

impl<S, L, R> Layer<S> for IdentityLayer<L, R> {
    type Service = IdentityService<S, L, R>;

    fn layer(&self, inner: S) -> Self::Service {
        IdentityService { inner, gate: Arc::clone(&self.gate), identity: self.body.clone() }
    }
}

/// The service of an [`IdentityLayer`].
pub struct IdentityService<S, L = Unlimited, R = ProblemDetails> {
    inner: S,
    gate: Arc<Gate<NoStore, L, R>>,
    identity: Identity,
}

impl<S, L, R, ReqB, ResB> Service<Request<ReqB>> for IdentityService<S, L, R>
where
    S: Service<Request<ReqB>, Response = Response<ResB>> + Clone,
    L: Limiter,
    R: Respond<ResB>,
{
    type Response = Response<ResB>;
    type Error = S::Error;
    type Future = AuthFuture<S, ReqB, NoStore, L, R, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        let gate = &*self.gate;
        let step = match gate.bypass_preflight(&mut request) {
            Some(step) => step,
            None => {
                let grant = self.identity.0.as_ref().and_then(|identify| identify(&RequestHead::of(&request)));
                gate.identify(grant, &mut request)
            }
        };
        match step {
            Step::Admit(admitted) => {
                let gate = self.gate.counted();
                AuthFuture::run(self.inner.call(request), admitted, gate)
            }
            step => AuthFuture::after(step, &mut self.inner, &self.gate, request),
        }
    }
}

impl<S: Clone, L, R> Clone for IdentityService<S, L, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), gate: self.gate.counted(), identity: self.identity.clone() }
    }
}

impl<S, L, R> fmt::Debug for IdentityService<S, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.gate.debug("IdentityService", f).finish_non_exhaustive()
    }
}

#[cfg(feature = "utoipa")]
impl Identity {
    /// Returns whether there are callers with a grant.
    pub(super) fn identifies(&self) -> bool {
        self.0.is_some()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}
