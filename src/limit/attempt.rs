//! Attempts to authenticate, which a [`FailureThrottle`](super::FailureThrottle) counts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Time;
use super::sketch::{Peer, Sketch};

/// An attempt to authenticate in a handler, begun by [`FailureThrottle::begin_attempt`](super::FailureThrottle::begin_attempt).
///
/// An attempt that is dropped counts as a failure. Otherwise clients could disconnect early and guess without limit.
#[must_use = "an attempt that is dropped counts as a failure"]
pub struct AuthAttempt(Option<Attempt>);

impl AuthAttempt {
    /// Wraps an attempt, or `None` if the peer is not throttled.
    pub(super) fn of(attempt: Option<Attempt>) -> Self {
        Self(attempt)
    }

    /// Ends the attempt as a success. It is not counted.
    pub fn succeed(self) {
        if let Some(attempt) = self.0 {
            attempt.succeed();
        }
    }

    /// Ends the attempt as a failure.
    pub fn fail(self) {
        if let Some(attempt) = self.0 {
            attempt.fail();
        }
    }
}

impl fmt::Debug for AuthAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthAttempt(..)")
    }
}

/// A pending attempt to authenticate. Dropping it means that the client disconnected.
pub(crate) struct Attempt {
    sketch: Arc<Sketch>,
    time: Arc<Time>,
    /// `None` if the throttle would have rejected the attempt. Like a rejection, the attempt is not counted then.
    peer: Option<Peer>,
    /// From this time on, a disconnect is no failure.
    excused_from_ns: u64,
}

impl Attempt {
    pub(super) fn new(sketch: Arc<Sketch>, time: Arc<Time>, peer: Option<Peer>) -> Self {
        Self { sketch, time, peer, excused_from_ns: u64::MAX }
    }

    /// Sets the timeout of the lookup. A disconnect after half of this time is no failure.
    pub(crate) fn with_timeout(mut self, timeout: Duration) -> Self {
        let half = u64::try_from(timeout.as_nanos() / 2).unwrap_or(u64::MAX);
        self.excused_from_ns = self.time.now_ns().saturating_add(half);
        self
    }

    /// Ends the attempt as a success.
    pub(crate) fn succeed(mut self) {
        if let Some(peer) = self.peer.take() {
            self.sketch.succeed(peer);
        }
    }

    /// Ends the attempt as a failure.
    pub(crate) fn fail(mut self) {
        if let Some(peer) = self.peer.take() {
            self.sketch.fail(peer, self.time.now_ns());
        }
    }

    /// Returns whether the throttle would have rejected the attempt.
    pub(crate) fn would_be_throttled(&self) -> bool {
        self.peer.is_none()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some(peer) = self.peer.take() else { return };
        match self.time.now_ns() {
            now if now < self.excused_from_ns => self.sketch.fail(peer, now),
            _ => self.sketch.succeed(peer),
        }
    }
}
