use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;

use super::{Lookup, TokenStore};
use crate::answer::Answer;
use crate::limit::{Clock, MonotonicClock};
use crate::observe;
use crate::patience::{BoxSleep, Patience, Sleep};
use crate::rejection::StoreError;
use crate::token::BearerToken;

/// A store that is not asked while it is down, so that nobody waits for it, and it has time to come back.
///
/// | state | a look-up |
/// |---|---|
/// | [closed](BreakerState::Closed) | asks the store, and fails if it takes longer than the deadline |
/// | [open](BreakerState::Open), after failures in a row | fails at once: 503 with `Retry-After`, never 401 |
/// | [probing](BreakerState::Probing), after a pause | one of them asks the store; its success closes the breaker, its failure opens it for twice as long |
///
/// A store that says "unknown" has not failed. A look-up that its caller drops counts neither way.
///
/// ```
/// use std::time::Duration;
/// use tollgate::store::{Breaker, from_fn};
/// use tollgate::{AuthLayer, Grant};
///
/// let database = from_fn(|_digest| async { Ok::<Option<Grant<()>>, std::io::Error>(None) });
/// let store = Breaker::new(database, Duration::from_millis(500), tokio::time::sleep);
/// let gate = AuthLayer::waiting(store, Duration::from_secs(2), tokio::time::sleep);
/// # let _ = gate;
/// ```
///
/// Put a cache outside of it: what is remembered is answered in all states.
pub struct Breaker<T> {
    store: Arc<T>,
    switch: Switch,
}

/// All of a breaker but its store.
#[derive(Clone)]
struct Switch {
    settings: Arc<Settings>,
    shared: Arc<Shared>,
}

#[derive(Clone)]
struct Settings {
    name: &'static str,
    patience: Patience,
    failures: u32,
    pauses: (Duration, Duration),
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct Shared {
    /// How many look-ups in a row have failed.
    failures: AtomicU32,
    /// Whether `phase` is anything but closed, so that a closed breaker costs no lock.
    tripped: AtomicBool,
    phase: Mutex<Phase>,
}

#[derive(Clone, Copy, Default)]
enum Phase {
    #[default]
    Closed,
    Open {
        until: Duration,
        pause: Duration,
    },
    Probing {
        /// When another may probe, because the one that does is not waited for, and not dropped either.
        until: Duration,
        pause: Duration,
    },
}

/// What a [`Breaker`] does with look-ups, for those who watch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// It asks the store.
    Closed,
    /// It answers in the store's place.
    Open,
    /// It answers in the store's place, but for one look-up, which asks.
    Probing,
}

/// Why a look-up failed that the store did not answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerError {
    /// The store has failed, and is given time.
    #[error("the store has failed, and is not asked for a while")]
    Open,
    /// The store did not answer within the deadline.
    #[error("the store did not answer in time")]
    Deadline,
}

const FAILURES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl<T> Breaker<T> {
    /// Opens after 5 failures in a row, for 1 second at first, and for 30 at most. `deadline` is that of one look-up; give the
    /// gate a longer one, since who is dropped cannot count.
    pub fn new(store: T, deadline: Duration, sleep: impl Sleep) -> Self {
        let settings = Settings {
            name: "default",
            patience: Patience::new(deadline, sleep),
            failures: FAILURES,
            pauses: (FIRST_PAUSE, LONGEST_PAUSE),
            clock: Arc::new(MonotonicClock::new()),
        };
        Self { store: Arc::new(store), switch: Switch { settings: Arc::new(settings), shared: Arc::default() } }
    }

    /// The same under a name of its own, by which [metrics and events](crate::observe) tell several breakers apart; `default`
    /// if this is never called.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::MemoryStore;
    /// use tollgate::store::Breaker;
    ///
    /// let store = Breaker::new(MemoryStore::<()>::new(), Duration::from_secs(1), tokio::time::sleep).with_name("tokens");
    /// # let _ = store;
    /// ```
    #[must_use]
    pub fn with_name(mut self, name: &'static str) -> Self {
        self.settings().name = name;
        self
    }

    /// The same, open after so many failures in a row; 0 is taken as 1.
    #[must_use]
    pub fn with_failures(mut self, failures: u32) -> Self {
        self.settings().failures = failures.max(1);
        self
    }

    /// The same with other pauses before a look-up may probe the store: the first one, and the longest, to which it grows by
    /// doubling.
    #[must_use]
    pub fn with_pauses(mut self, first: Duration, longest: Duration) -> Self {
        self.settings().pauses = (first, longest.max(first));
        self
    }

    /// The same by another clock than the system's monotonic one.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.settings().clock = Arc::new(clock);
        self
    }

    /// What it does now.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        match *self.switch.phase() {
            Phase::Closed => BreakerState::Closed,
            Phase::Open { .. } => BreakerState::Open,
            Phase::Probing { .. } => BreakerState::Probing,
        }
    }

    fn settings(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.switch.settings)
    }
}

impl Switch {
    /// Lets a look-up pass, and says whether it is a probe, or when to come back.
    #[inline]
    fn enter(&self) -> Result<bool, StoreError> {
        if self.shared.tripped.load(Ordering::Acquire) { self.probe() } else { Ok(false) }
    }

    #[cold]
    fn probe(&self) -> Result<bool, StoreError> {
        let deadline = self.settings.patience.deadline;
        let now = self.settings.clock.now();
        let phase = self.phase();
        let wait = match *phase {
            Phase::Closed => return Ok(false),
            Phase::Open { until, pause } | Phase::Probing { until, pause } if now >= until => {
                // Room to spare for one that is waited for: its deadline counts from its first poll.
                let until = now.saturating_add(deadline.saturating_mul(2).max(FIRST_PAUSE));
                self.turn(phase, Phase::Probing { until, pause });
                return Ok(true);
            }
            Phase::Open { until, .. } => until - now,
            Phase::Probing { .. } => deadline,
        };
        Err(StoreError::new(BreakerError::Open).with_retry_after(wait))
    }

    #[inline]
    fn succeeded(&self, is_probe: bool) {
        // Read first: all look-ups share it, and it is 0 as a rule.
        if self.shared.failures.load(Ordering::Relaxed) != 0 {
            self.shared.failures.store(0, Ordering::Relaxed);
        }
        if is_probe {
            self.turn(self.phase(), Phase::Closed);
        }
    }

    #[cold]
    fn failed(&self, is_probe: bool) {
        let failures = self.shared.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let now = self.settings.clock.now();
        let (first, longest) = self.settings.pauses;
        let phase = self.phase();
        let pause = match *phase {
            Phase::Probing { pause, .. } if is_probe => pause.saturating_mul(2).min(longest),
            Phase::Closed if failures >= self.settings.failures => first,
            // One that began before the breaker opened says nothing new.
            _ => return,
        };
        self.turn(phase, Phase::Open { until: now.saturating_add(pause), pause });
    }

    /// Under this lock only whole values are moved.
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.shared.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn turn(&self, mut phase: MutexGuard<'_, Phase>, to: Phase) {
        *phase = to;
        self.shared.tripped.store(!matches!(to, Phase::Closed), Ordering::Release);
        let state = match to {
            Phase::Closed => observe::Breaker::Closed,
            Phase::Open { .. } => observe::Breaker::Open,
            Phase::Probing { .. } => observe::Breaker::Probing,
        };
        observe::breaker_is(self.settings.name, state);
        drop(phase);
        observe::breaker_turned(self.settings.name, state);
    }

    #[inline]
    fn end<P, E: Into<Box<dyn Error + Send + Sync>>>(
        &self,
        is_probe: bool,
        found: Lookup<P, E>,
    ) -> Lookup<P, StoreError> {
        match found {
            Ok(found) => {
                self.succeeded(is_probe);
                Ok(found)
            }
            Err(error) => {
                self.failed(is_probe);
                Err(StoreError::new(error))
            }
        }
    }
}

/// A look-up that asks the store, and has to be waited for.
struct Pass {
    switch: Switch,
    is_probe: bool,
    has_ended: bool,
}

impl Pass {
    fn end<P, E: Into<Box<dyn Error + Send + Sync>>>(&mut self, found: Lookup<P, E>) -> Lookup<P, StoreError> {
        self.has_ended = true;
        self.switch.end(self.is_probe, found)
    }
}

impl Drop for Pass {
    /// A probe that nobody waits for any more leaves the turn to the next look-up.
    fn drop(&mut self) {
        if self.is_probe && !self.has_ended {
            let phase = self.switch.phase();
            if let Phase::Probing { pause, .. } = *phase {
                self.switch.turn(phase, Phase::Open { until: Duration::ZERO, pause });
            }
        }
    }
}

impl<T: TokenStore> TokenStore for Breaker<T> {
    type Principal = T::Principal;
    type Error = StoreError;
    type Future = BreakerFuture<T::Future>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        let is_probe = match self.switch.enter() {
            Ok(is_probe) => is_probe,
            Err(error) => return Answer::Ready(Err(error)),
        };
        match self.store.lookup(token) {
            Answer::Ready(found) => Answer::Ready(self.switch.end(is_probe, found)),
            Answer::Pending(future) => {
                let pass = Pass { switch: self.switch.clone(), is_probe, has_ended: false };
                Answer::Pending(BreakerFuture { future, deadline: None, pass })
            }
        }
    }
}

pin_project_lite::pin_project! {
    /// The future of a [`Breaker`].
    pub struct BreakerFuture<F> {
        #[pin]
        future: F,
        // Starts with the first poll, as the look-up does.
        deadline: Option<BoxSleep>,
        pass: Pass,
    }
}

impl<F, P, E> Future for BreakerFuture<F>
where
    F: Future<Output = Lookup<P, E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    type Output = Lookup<P, StoreError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(found) = this.future.poll(cx) {
            return Poll::Ready(this.pass.end(found));
        }
        let deadline = this.deadline.get_or_insert_with(|| this.pass.switch.settings.patience.start());
        match deadline.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(this.pass.end(Err(BreakerError::Deadline))),
        }
    }
}

impl<T> Clone for Breaker<T> {
    fn clone(&self) -> Self {
        Self { store: Arc::clone(&self.store), switch: self.switch.clone() }
    }
}

impl<T: fmt::Debug> fmt::Debug for Breaker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("name", &self.switch.settings.name)
            .field("store", &self.store)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for BreakerFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BreakerFuture(..)")
    }
}
