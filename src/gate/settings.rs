//! [`Gate`] and [`Settings`]: the shared state of all services of a layer.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderValue;

use super::copies::Copies;
use crate::extract::{HeadLocations, TokenSyntax};
use crate::limit::FailureThrottle;
use crate::pending::timeout::Timeout;
use crate::rejection::terms::Challenges;
use crate::request_head::RequestHead;
use crate::respond::RateLimitHeaders;

/// The state of a gate. Services hold it behind one pointer, because axum clones services for each request.
///
/// Each part has its own pointer, so that a builder can change one part after the layer was cloned.
pub(super) struct Gate<T, L, R> {
    pub(super) store: Arc<T>,
    pub(super) limiter: Arc<L>,
    pub(super) responder: Arc<R>,
    pub(super) terms: Arc<Challenges>,
    pub(super) settings: Settings,
    pub(super) copies: Copies<T, L, R>,
}

/// The settings of a gate whose types do not depend on type parameters.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) syntax: TokenSyntax,
    /// The timeout of lookups, or `None` if the store never waits.
    pub(super) timeout: Option<Timeout>,
    pub(super) allow_anonymous: bool,
    pub(super) bypass_preflights: bool,
    pub(super) remove_credentials: bool,
    pub(super) locations: HeadLocations,
    pub(super) wall_clock: WallClock,
    pub(super) throttle: Option<FailureThrottle>,
    pub(super) headers: RateLimitHeaders,
    pub(super) request_id: Option<RequestId>,
    pub(super) is_secure: Option<IsSecure>,
}

/// Returns the id of a request.
pub(super) type RequestId = Arc<dyn Fn(&RequestHead<'_>) -> Option<HeaderValue> + Send + Sync>;

/// Returns whether a request came over HTTPS.
pub(super) type IsSecure = Arc<dyn Fn(&RequestHead<'_>) -> bool + Send + Sync>;

/// The clock for the expiry of grants and for headers with absolute times.
#[derive(Clone)]
pub(super) enum WallClock {
    System,
    Custom(Arc<dyn Fn() -> SystemTime + Send + Sync>),
}

impl WallClock {
    pub(super) fn now(&self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            Self::Custom(now) => now(),
        }
    }
}

impl<T, L, R> Clone for Gate<T, L, R> {
    fn clone(&self) -> Self {
        self.copy(Copies::new())
    }
}

impl<T, L, R> Gate<T, L, R> {
    /// Returns a gate with the same parts.
    pub(super) fn copy(&self, copies: Copies<T, L, R>) -> Self {
        Self {
            store: Arc::clone(&self.store),
            limiter: Arc::clone(&self.limiter),
            responder: Arc::clone(&self.responder),
            terms: Arc::clone(&self.terms),
            settings: self.settings.clone(),
            copies,
        }
    }

    /// Returns the debug output that all layers and services of a gate share.
    pub(super) fn debug<'a, 'f>(&self, name: &str, f: &'a mut fmt::Formatter<'f>) -> fmt::DebugStruct<'a, 'f> {
        let mut debug = f.debug_struct(name);
        debug
            .field("challenge", self.terms.bearer())
            .field("headers", &self.settings.headers)
            .field("syntax", &self.settings.syntax)
            .field("locations", &self.settings.locations)
            .field("timeout", &self.settings.timeout.as_ref().map(|timeout| timeout.duration))
            .field("anonymous", &self.settings.allow_anonymous)
            .field("failures", &self.settings.throttle)
            .field("https_required", &self.settings.is_secure.is_some());
        debug
    }
}
