use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::extract::{HeadLocations, TokenSyntax};
use crate::limit::FailureThrottle;
use crate::pending::timeout::Timeout;
use crate::rejection::terms::Challenges;
use crate::respond::RateLimitHeaders;

/// What a service needs, behind one pointer, because axum clones services at every request. Each part is shared again,
/// so that a builder can change one of them after the layer was cloned.
pub(super) struct Shared<T, L, R> {
    pub(super) store: Arc<T>,
    pub(super) limiter: Arc<L>,
    pub(super) responder: Arc<R>,
    pub(super) terms: Arc<Challenges>,
    pub(super) settings: Settings,
}

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) form: TokenSyntax,
    pub(super) timeout: Option<Timeout>,
    pub(super) anonymous: bool,
    pub(super) preflight: bool,
    pub(super) remove_credentials: bool,
    pub(super) doors: HeadLocations,
    pub(super) wall_clock: WallClock,
    pub(super) throttle: Option<FailureThrottle>,
    pub(super) ratelimit: RateLimitHeaders,
}

/// What tells whether a grant has expired.
#[derive(Clone)]
pub(super) enum WallClock {
    System,
    Given(Arc<dyn Fn() -> SystemTime + Send + Sync>),
}

impl WallClock {
    pub(super) fn now(&self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            Self::Given(now) => now(),
        }
    }
}

impl<T, L, R> Clone for Shared<T, L, R> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            limiter: Arc::clone(&self.limiter),
            responder: Arc::clone(&self.responder),
            terms: Arc::clone(&self.terms),
            settings: self.settings.clone(),
        }
    }
}

impl<T, L, R> Shared<T, L, R> {
    /// What all layers and services of a gate print.
    pub(super) fn debug<'a, 'f>(&self, name: &str, f: &'a mut fmt::Formatter<'f>) -> fmt::DebugStruct<'a, 'f> {
        let mut debug = f.debug_struct(name);
        debug
            .field("challenge", self.terms.bearer())
            .field("headers", &self.settings.ratelimit)
            .field("form", &self.settings.form)
            .field("doors", &self.settings.doors)
            .field("deadline", &self.settings.timeout.as_ref().map(|timeout| timeout.duration))
            .field("anonymous", &self.settings.anonymous)
            .field("failures", &self.settings.throttle);
        debug
    }
}
