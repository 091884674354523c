//! The circuit breaker that stores and Redis limits share.
//!
//! # Rules
//!
//! 1. A closed breaker lets all requests pass. It opens after a number of consecutive failures. A success resets that number.
//! 2. An open breaker rejects all requests until its pause ends. The next request is the probe. A successful probe closes the
//!    breaker. A failed probe opens it again, for twice the pause.
//! 3. A dropped request counts neither as a success nor as a failure. A dropped probe lets the next request probe. Exception: a
//!    [measured](Permit::start) request that waited for half of its timeout or longer counts as a failure.
//! 4. [`probe_now`](Breaker::probe_now) ends the pause: the next request probes. If that probe fails, the pauses start with the
//!    shortest one.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;

use crate::observe;
use crate::quota::clock::{Clock, MonotonicClock};

/// 5 failures.
const FAILURES: NonZeroU32 = NonZeroU32::MIN.saturating_add(4);
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(30) };
/// The shortest time after which a request may probe while another probe is pending.
const MIN_PROBE_TIME: Duration = Duration::from_secs(1);

/// The shared part of a circuit breaker. Clones share the state. A setter changes the settings of one clone only.
#[derive(Clone)]
pub(crate) struct Breaker {
    settings: Arc<Settings>,
    shared: Arc<SharedState>,
}

#[derive(Clone)]
struct Settings {
    name: &'static str,
    timeout: Duration,
    failure_threshold: NonZeroU32,
    backoff: Backoff,
    clock: Arc<dyn Clock>,
}

/// The pauses before a probe: the first one, and the maximum of the doubled ones.
#[derive(Clone, Copy)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

/// The error of a backoff whose longest pause is shorter than its first pause.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("invalid backoff: the longest pause must not be shorter than the first pause")]
pub struct BackoffError(());

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Result<Self, BackoffError> {
        if longest < first { Err(BackoffError(())) } else { Ok(Self { first, longest }) }
    }
}

/// The state that the clones of a circuit breaker share.
#[derive(Default)]
pub(crate) struct SharedState {
    /// The number of consecutive failures.
    failures: AtomicU32,
    /// True while the breaker is open or half-open. Spares requests the lock otherwise.
    tripped: AtomicBool,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Closed,
    Open {
        until: Duration,
        /// Zero after [`Breaker::probe_now`].
        pause: Duration,
    },
    HalfOpen {
        /// The time after which another request may probe, in case the probe is neither polled nor dropped.
        until: Duration,
        pause: Duration,
    },
    /// The server is not used any longer. Requests in flight change nothing.
    #[cfg(feature = "redis")]
    Retired,
}

impl State {
    fn is_tripped(self) -> bool {
        matches!(self, Self::Open { .. } | Self::HalfOpen { .. })
    }
}

#[cfg(feature = "redis")]
impl SharedState {
    /// Creates the state of a breaker that never opens.
    pub(crate) fn retired() -> Self {
        Self { state: Mutex::new(State::Retired), ..Self::default() }
    }
}

/// The state of a circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// All requests pass.
    Closed,
    /// No request passes until the end of a pause. Lookups fail immediately, and charges follow the outage policy.
    Open,
    /// One request, the probe, has passed. For all others the breaker is open.
    HalfOpen,
}

impl Breaker {
    /// Creates a breaker that opens after 5 consecutive failures, for 1 second at first and for 30 seconds at most. `timeout` is
    /// that of one request.
    pub(crate) fn new(timeout: Duration) -> Self {
        let settings = Settings {
            name: "default",
            timeout,
            failure_threshold: FAILURES,
            backoff: BACKOFF,
            clock: Arc::new(MonotonicClock::new()),
        };
        Self { settings: Arc::new(settings), shared: Arc::default() }
    }

    /// Sets the name in metrics and events.
    pub(crate) fn set_name(&mut self, name: &'static str) {
        self.settings().name = name;
    }

    #[cfg(feature = "redis")]
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.settings().timeout = timeout;
    }

    pub(crate) fn set_failure_threshold(&mut self, failures: NonZeroU32) {
        self.settings().failure_threshold = failures;
    }

    pub(crate) fn set_backoff(&mut self, backoff: Backoff) {
        self.settings().backoff = backoff;
    }

    pub(crate) fn set_clock(&mut self, clock: Arc<dyn Clock>) {
        self.settings().clock = clock;
    }

    /// Returns a breaker with the settings of this one and another state.
    #[cfg(feature = "redis")]
    pub(crate) fn with_state(&self, state: Arc<SharedState>) -> Self {
        Self { settings: Arc::clone(&self.settings), shared: state }
    }

    fn settings(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.settings)
    }

    pub(crate) fn state(&self) -> BreakerState {
        match *self.lock() {
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
            _ => BreakerState::Closed,
        }
    }

    /// Returns whether the breaker is open or half-open.
    #[inline]
    pub(crate) fn is_tripped(&self) -> bool {
        self.shared.tripped.load(Ordering::Acquire)
    }

    /// Returns a permit, or the time to wait if no request may pass.
    pub(crate) fn acquire(self) -> Result<Permit, Duration> {
        let is_probe = self.try_acquire()?;
        Ok(Permit::new(self, is_probe))
    }

    /// Returns whether the request is a probe, or the time to wait if it must not pass.
    #[inline]
    pub(crate) fn try_acquire(&self) -> Result<bool, Duration> {
        if self.is_tripped() { self.probe() } else { Ok(false) }
    }

    /// Returns the time to wait if no request may pass now. Takes no permit.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), Duration> {
        if self.is_tripped() { self.check_now() } else { Ok(()) }
    }

    #[cold]
    fn check_now(&self) -> Result<(), Duration> {
        let now = self.settings.clock.now();
        let state = *self.lock();
        self.check_at(state, now)
    }

    fn check_at(&self, state: State, now: Duration) -> Result<(), Duration> {
        match state {
            State::Open { until, .. } | State::HalfOpen { until, .. } if now >= until => Ok(()),
            State::Open { until, .. } => Err(until - now),
            State::HalfOpen { .. } => Err(self.settings.timeout),
            _ => Ok(()),
        }
    }

    #[cold]
    fn probe(&self) -> Result<bool, Duration> {
        let now = self.settings.clock.now();
        let state = self.lock();
        self.check_at(*state, now)?;
        let (State::Open { pause, .. } | State::HalfOpen { pause, .. }) = *state else { return Ok(false) };
        // Twice the timeout, because the timeout of a charge starts with its first poll.
        let until = now.saturating_add(self.settings.timeout.saturating_mul(2).max(MIN_PROBE_TIME));
        self.transition(state, State::HalfOpen { until, pause });
        Ok(true)
    }

    #[inline]
    pub(crate) fn count(&self, has_succeeded: bool, is_probe: bool) {
        match has_succeeded {
            true => self.succeeded(is_probe),
            false => self.failed(is_probe),
        }
    }

    #[inline]
    pub(crate) fn succeeded(&self, is_probe: bool) {
        // Read before writing: all requests share this counter, and it is usually 0.
        if self.shared.failures.load(Ordering::Relaxed) != 0 {
            self.shared.failures.store(0, Ordering::Relaxed);
        }
        if is_probe {
            self.close(State::Closed);
        }
    }

    /// Closes the breaker for good: its server is not used any longer.
    #[cfg(feature = "redis")]
    pub(crate) fn retire(&self) {
        self.close(State::Retired);
    }

    #[cold]
    fn close(&self, to: State) {
        let mut state = self.lock();
        if state.is_tripped() {
            self.transition(state, to);
        } else if matches!(*state, State::Closed) {
            *state = to;
        }
    }

    #[cold]
    pub(crate) fn failed(&self, is_probe: bool) {
        let failures = self.shared.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let now = self.settings.clock.now();
        let Settings { failure_threshold, backoff: Backoff { first, longest }, .. } = *self.settings;
        let state = self.lock();
        let pause = match *state {
            State::HalfOpen { pause, .. } if is_probe => pause.saturating_mul(2).clamp(first, longest),
            State::Closed if failures >= failure_threshold.get() => first,
            // The request began before the breaker opened.
            _ => return,
        };
        self.transition(state, State::Open { until: now.saturating_add(pause), pause });
    }

    /// Lets the next request probe, unless the breaker is closed. A pending probe may take until its timeout, so a second probe
    /// may run at the same time.
    pub(crate) fn probe_now(&self) {
        if !self.is_tripped() {
            return;
        }
        let next = State::Open { until: Duration::ZERO, pause: Duration::ZERO };
        let mut state = self.lock();
        match *state {
            // No transition, so nothing is reported.
            State::Open { .. } => *state = next,
            State::HalfOpen { .. } => _ = self.set(state, next),
            _ => {}
        }
    }

    /// Ignores poisoning: every write under this lock stores a complete value.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn transition(&self, state: MutexGuard<'_, State>, to: State) {
        let state = self.set(state, to);
        observe::breaker_changed(self.settings.name, state);
    }

    fn set(&self, mut state: MutexGuard<'_, State>, to: State) -> observe::Breaker {
        *state = to;
        self.shared.tripped.store(to.is_tripped(), Ordering::Release);
        let state = match to {
            State::Open { .. } => observe::Breaker::Open,
            State::HalfOpen { .. } => observe::Breaker::HalfOpen,
            _ => observe::Breaker::Closed,
        };
        observe::breaker_state(self.settings.name, state);
        state
    }
}

/// The permit of a pending request. Reports the result to the breaker.
pub(crate) struct Permit {
    breaker: Breaker,
    is_probe: bool,
    has_ended: bool,
    /// The start of the wait, if it is measured.
    since: Option<Duration>,
}

impl Permit {
    pub(crate) fn new(breaker: Breaker, is_probe: bool) -> Self {
        Self { breaker, is_probe, has_ended: false, since: None }
    }

    /// Starts to measure the wait.
    pub(crate) fn start(&mut self) {
        self.since = Some(self.breaker.settings.clock.now());
    }

    /// Returns whether half of the timeout has passed since the [start](Self::start).
    fn has_waited_long(&self) -> bool {
        let Settings { clock, timeout, .. } = &*self.breaker.settings;
        self.since.is_some_and(|since| clock.now().saturating_sub(since) >= *timeout / 2)
    }

    #[cfg(feature = "redis")]
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    #[cfg(feature = "redis")]
    pub(crate) fn is_of(&self, breaker: &Breaker) -> bool {
        Arc::ptr_eq(&self.breaker.shared, &breaker.shared)
    }

    /// Continues with another breaker. For the previous one the request counts neither as a success nor as a failure.
    #[cfg(feature = "redis")]
    pub(crate) fn move_to(&mut self, breaker: Breaker) {
        if !self.is_of(&breaker) {
            *self = Self::new(breaker, false);
        }
    }

    /// Checks the breaker again after a wait. Returns the time to wait if the breaker has opened meanwhile.
    #[cfg(feature = "redis")]
    pub(crate) fn renew(&mut self) -> Result<(), Duration> {
        if !self.is_probe {
            self.is_probe = self.breaker.try_acquire()?;
        }
        Ok(())
    }

    pub(crate) fn end(&mut self, has_succeeded: bool) {
        self.has_ended = true;
        self.breaker.count(has_succeeded, self.is_probe);
    }
}

impl Drop for Permit {
    /// Counts a failure after a long measured wait. Otherwise lets the next request probe if this was the probe.
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        if self.has_waited_long() {
            self.breaker.failed(self.is_probe);
        } else if self.is_probe {
            let state = self.breaker.lock();
            if let State::HalfOpen { pause, .. } = *state {
                // Reports no transition event: clients that give up could otherwise fill the log.
                self.breaker.set(state, State::Open { until: Duration::ZERO, pause });
            }
        }
    }
}
