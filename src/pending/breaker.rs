//! A switch in front of what may be down, so that nobody waits for it, and it has time to come back.
//!
//! # Rules
//!
//! 1. Closed, it lets all pass. So many failures in a row open it, for a pause; a success in between starts the count anew.
//! 2. Open, it lets nobody pass. After the pause it lets one pass, the probe, whose success closes it, and whose failure
//!    opens it for twice as long.
//! 3. A request that is dropped counts neither way, and a probe that is dropped leaves its turn to the next. Exception: one
//!    that was [measured](Pass::start) and waited for half of its deadline or longer counts as a failure.
//! 4. [`probe_now`](Switch::probe_now) ends the pause: the next request probes. If that fails, the pauses start anew.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::observe;
use crate::quota::clock::{Clock, MonotonicClock};

const FAILURES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Clones share their state, and have settings of their own once these are changed.
#[derive(Clone)]
pub(crate) struct Switch {
    settings: Arc<Settings>,
    shared: Arc<Shared>,
}

#[derive(Clone)]
struct Settings {
    name: &'static str,
    deadline: Duration,
    failures: u32,
    pauses: (Duration, Duration),
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct Shared {
    /// How many in a row have failed.
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
        /// Zero after [`Switch::probe_now`].
        pause: Duration,
    },
    HalfOpen {
        /// When another may probe, because the one that does is not waited for, and not dropped either.
        until: Duration,
        pause: Duration,
    },
}

/// What a breaker does, for those who watch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// It asks what stands behind it.
    Closed,
    /// It answers in its place.
    Open,
    /// It answers in its place, but for one, which asks.
    HalfOpen,
}

impl Switch {
    /// Opens after 5 failures in a row, for 1 second at first, and for 30 at most. `deadline` is that of one who passes.
    pub(crate) fn new(deadline: Duration) -> Self {
        let settings = Settings {
            name: "default",
            deadline,
            failures: FAILURES,
            pauses: (FIRST_PAUSE, LONGEST_PAUSE),
            clock: Arc::new(MonotonicClock::new()),
        };
        Self { settings: Arc::new(settings), shared: Arc::default() }
    }

    /// By which metrics and events tell breakers apart.
    pub(crate) fn set_name(&mut self, name: &'static str) {
        self.settings().name = name;
    }

    #[cfg(feature = "redis")]
    pub(crate) fn set_deadline(&mut self, deadline: Duration) {
        self.settings().deadline = deadline;
    }

    /// 0 is taken as 1.
    pub(crate) fn set_failures(&mut self, failures: u32) {
        self.settings().failures = failures.max(1);
    }

    pub(crate) fn set_pauses(&mut self, first: Duration, longest: Duration) {
        self.settings().pauses = (first, longest.max(first));
    }

    pub(crate) fn set_clock(&mut self, clock: Arc<dyn Clock>) {
        self.settings().clock = clock;
    }

    fn settings(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.settings)
    }

    pub(crate) fn state(&self) -> BreakerState {
        match *self.phase() {
            Phase::Closed => BreakerState::Closed,
            Phase::Open { .. } => BreakerState::Open,
            Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Lets one pass, and says whether it is a probe, or when to come back.
    #[inline]
    pub(crate) fn enter(&self) -> Result<bool, Duration> {
        if self.shared.tripped.load(Ordering::Acquire) { self.probe() } else { Ok(false) }
    }

    #[cold]
    fn probe(&self) -> Result<bool, Duration> {
        let deadline = self.settings.deadline;
        let now = self.settings.clock.now();
        let phase = self.phase();
        match *phase {
            Phase::Closed => Ok(false),
            Phase::Open { until, pause } | Phase::HalfOpen { until, pause } if now >= until => {
                // Room to spare for one that is waited for: its deadline counts from its first poll.
                let until = now.saturating_add(deadline.saturating_mul(2).max(FIRST_PAUSE));
                self.turn(phase, Phase::HalfOpen { until, pause });
                Ok(true)
            }
            Phase::Open { until, .. } => Err(until - now),
            Phase::HalfOpen { .. } => Err(deadline),
        }
    }

    #[inline]
    pub(crate) fn succeeded(&self, is_probe: bool) {
        // Read first: all who pass share it, and it is 0 as a rule.
        if self.shared.failures.load(Ordering::Relaxed) != 0 {
            self.shared.failures.store(0, Ordering::Relaxed);
        }
        if is_probe {
            self.turn(self.phase(), Phase::Closed);
        }
    }

    #[cold]
    pub(crate) fn failed(&self, is_probe: bool) {
        let failures = self.shared.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let now = self.settings.clock.now();
        let (first, longest) = self.settings.pauses;
        let phase = self.phase();
        let pause = match *phase {
            Phase::HalfOpen { pause, .. } if is_probe => pause.saturating_mul(2).clamp(first, longest),
            Phase::Closed if failures >= self.settings.failures => first,
            // One that began before the breaker opened says nothing new.
            _ => return,
        };
        self.turn(phase, Phase::Open { until: now.saturating_add(pause), pause });
    }

    /// Lets the next request probe, if the breaker is not closed. A probe that is already waiting may take until its deadline,
    /// so that another one is let through beside it.
    pub(crate) fn probe_now(&self) {
        if !self.shared.tripped.load(Ordering::Acquire) {
            return;
        }
        let next = Phase::Open { until: Duration::ZERO, pause: Duration::ZERO };
        let mut phase = self.phase();
        match *phase {
            Phase::Closed => {}
            // No transition, and so nothing to count.
            Phase::Open { .. } => *phase = next,
            Phase::HalfOpen { .. } => _ = self.set(phase, next),
        }
    }

    /// Under this lock only whole values are moved.
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.shared.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn turn(&self, phase: MutexGuard<'_, Phase>, to: Phase) {
        let state = self.set(phase, to);
        observe::breaker_changed(self.settings.name, state);
    }

    fn set(&self, mut phase: MutexGuard<'_, Phase>, to: Phase) -> observe::Breaker {
        *phase = to;
        self.shared.tripped.store(!matches!(to, Phase::Closed), Ordering::Release);
        let state = match to {
            Phase::Closed => observe::Breaker::Closed,
            Phase::Open { .. } => observe::Breaker::Open,
            Phase::HalfOpen { .. } => observe::Breaker::HalfOpen,
        };
        observe::breaker_state(self.settings.name, state);
        state
    }
}

/// One that was let pass, and has to be waited for.
pub(crate) struct Pass {
    switch: Switch,
    is_probe: bool,
    has_ended: bool,
    /// When the wait began, if it is measured.
    since: Option<Duration>,
}

impl Pass {
    pub(crate) fn new(switch: &Switch, is_probe: bool) -> Self {
        Self { switch: switch.clone(), is_probe, has_ended: false, since: None }
    }

    /// Measures from now on how long this one waits.
    pub(crate) fn start(&mut self) {
        self.since = Some(self.switch.settings.clock.now());
    }

    /// Whether half of the deadline has passed since the [start](Self::start).
    fn has_waited_long(&self) -> bool {
        let Settings { clock, deadline, .. } = &*self.switch.settings;
        self.since.is_some_and(|since| clock.now().saturating_sub(since) >= *deadline / 2)
    }

    /// Asks the breaker again, for a caller that has waited since. Returns the time to wait if the breaker has opened meanwhile.
    #[cfg(feature = "redis")]
    pub(crate) fn renew(&mut self) -> Result<(), Duration> {
        if !self.is_probe {
            self.is_probe = self.switch.enter()?;
        }
        Ok(())
    }

    pub(crate) fn end(&mut self, has_succeeded: bool) {
        self.has_ended = true;
        match has_succeeded {
            true => self.switch.succeeded(self.is_probe),
            false => self.switch.failed(self.is_probe),
        }
    }
}

impl Drop for Pass {
    /// A probe that nobody waits for any more leaves the turn to the next.
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        if self.has_waited_long() {
            self.switch.failed(self.is_probe);
        } else if self.is_probe {
            let phase = self.switch.phase();
            if let Phase::HalfOpen { pause, .. } = *phase {
                // Nothing was learned, and so there is no event: whoever gives up could make as many as he likes.
                self.switch.set(phase, Phase::Open { until: Duration::ZERO, pause });
            }
        }
    }
}
