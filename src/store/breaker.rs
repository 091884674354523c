use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;

use super::{Lookup, TokenStore};
use crate::limit::Clock;
use crate::pending::answer::Answer;
use crate::pending::breaker::{Pass, Switch};
use crate::pending::timeout::{BoxSleep, Sleep, Timeout};
use crate::rejection::store_error::StoreError;
use crate::token::BearerToken;

pub use crate::pending::breaker::BreakerState;

/// A store that is not asked while it is down, so that nobody waits for it, and it has time to come back.
///
/// | state | a look-up |
/// |---|---|
/// | [closed](BreakerState::Closed) | asks the store, and fails if it takes longer than the deadline |
/// | [open](BreakerState::Open), after failures in a row | fails at once: 503 with `Retry-After`, never 401 |
/// | [probing](BreakerState::HalfOpen), after a pause | one of them asks the store; its success closes the breaker, its failure opens it for twice as long |
///
/// # What counts
///
/// | a lookup | counts as |
/// |---|---|
/// | a grant, or "unknown" | success |
/// | an error [about one token](StoreError::concerns_token) | success, because the store has answered |
/// | an error about the store, or the breaker's own deadline | failure |
/// | dropped after half of the breaker's own deadline or later, for example because clients gave up | failure |
/// | dropped earlier | nothing |
///
/// The time of a lookup is measured from its first poll. The gate has a deadline too, which ends the wait of one request; it
/// should be longer than the breaker's.
///
/// # Recovery
///
/// [`probe_now`](Self::probe_now) ends a pause early. Call it when something else shows that the store is back, such as
/// `Database::watch`.
///
/// ```
/// use std::time::Duration;
/// use tollgate::store::{CircuitBreaker, from_fn};
/// use tollgate::{AuthLayer, Grant};
///
/// let database = from_fn(|_digest| async { Ok::<Option<Grant<()>>, std::io::Error>(None) });
/// let store = CircuitBreaker::with_timeout(database, Duration::from_millis(500));
/// let gate = AuthLayer::with_timeout(store, Duration::from_secs(2));
/// # let _ = gate;
/// ```
///
/// Put a cache outside of it: what is remembered is answered in all states.
pub struct CircuitBreaker<T> {
    store: Arc<T>,
    switch: Switch,
    timeout: Arc<Timeout>,
}

/// Why a look-up failed that the store did not answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CircuitBreakerError {
    /// The store has failed, and is given time.
    #[error("the store has failed, and is not asked for a while")]
    Open,
    /// The store did not answer within the deadline.
    #[error("the store did not answer in time")]
    Deadline,
}

impl<T> CircuitBreaker<T> {
    /// Creates a circuit breaker. `timeout` is that of one lookup; give the gate a longer one.
    ///
    /// The breaker opens after 5 failures in a row, for 1 second at first, and for 30 at most. The timer is tokio's;
    /// [`with_timer`](Self::with_timer) takes another.
    #[cfg(feature = "tokio")]
    pub fn with_timeout(store: T, timeout: Duration) -> Self {
        Self::with_timer(store, timeout, tokio::time::sleep)
    }

    /// Creates a circuit breaker with the timer of any runtime. `sleep` returns a future that is ready after the given time.
    pub fn with_timer(store: T, timeout: Duration, sleep: impl Sleep) -> Self {
        Self { store: Arc::new(store), switch: Switch::new(timeout), timeout: Arc::new(Timeout::new(timeout, sleep)) }
    }

    /// The same under a name of its own, by which [metrics and events](crate::observe) tell several breakers apart; `default`
    /// if this is never called.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tollgate::MemoryStore;
    /// use tollgate::store::CircuitBreaker;
    ///
    /// let store = CircuitBreaker::with_timeout(MemoryStore::<()>::new(), Duration::from_secs(1)).with_name("tokens");
    /// # let _ = store;
    /// ```
    #[must_use]
    pub fn with_name(mut self, name: &'static str) -> Self {
        self.switch.set_name(name);
        self
    }

    /// The same, open after so many failures in a row; 0 is taken as 1.
    #[must_use]
    pub fn with_failure_threshold(mut self, failures: u32) -> Self {
        self.switch.set_failures(failures);
        self
    }

    /// The same with other pauses before a look-up may probe the store: the first one, and the longest, to which it grows by
    /// doubling.
    #[must_use]
    pub fn with_backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.switch.set_pauses(first, longest);
        self
    }

    /// The same by another clock than the system's monotonic one.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.switch.set_clock(Arc::new(clock));
        self
    }

    /// Lets the next lookup probe the store, instead of waiting for the end of the pause. Does nothing while the breaker is
    /// closed.
    ///
    /// If that lookup fails, the pauses start anew with the shortest one.
    pub fn probe_now(&self) {
        self.switch.probe_now();
    }

    /// What it does now.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.switch.state()
    }
}

impl<T: TokenStore> TokenStore for CircuitBreaker<T> {
    type Principal = T::Principal;
    type Error = StoreError;
    type Future = CircuitBreakerFuture<T::Future>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        let is_probe = match self.switch.enter() {
            Ok(is_probe) => is_probe,
            Err(wait) => return Answer::Ready(Err(StoreError::new(CircuitBreakerError::Open).with_retry_after(wait))),
        };
        match self.store.lookup(token) {
            Answer::Ready(Ok(found)) => {
                self.switch.succeeded(is_probe);
                Answer::Ready(Ok(found))
            }
            Answer::Ready(Err(error)) => {
                let error = StoreError::new(error);
                match error.concerns_token() {
                    true => self.switch.succeeded(is_probe),
                    false => self.switch.failed(is_probe),
                }
                Answer::Ready(Err(error))
            }
            Answer::Pending(future) => {
                let pass = Pass::new(&self.switch, is_probe);
                Answer::Pending(CircuitBreakerFuture {
                    future,
                    deadline: None,
                    timeout: Arc::clone(&self.timeout),
                    pass,
                })
            }
        }
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        self.store.is_cached(token)
    }
}

pin_project_lite::pin_project! {
    /// The future of a [`CircuitBreaker`].
    pub struct CircuitBreakerFuture<F> {
        #[pin]
        future: F,
        // Starts with the first poll, as the look-up does.
        deadline: Option<BoxSleep>,
        timeout: Arc<Timeout>,
        pass: Pass,
    }
}

impl<F, P, E> Future for CircuitBreakerFuture<F>
where
    F: Future<Output = Lookup<P, E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    type Output = Lookup<P, StoreError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(found) = this.future.poll(cx) {
            let found = found.map_err(StoreError::new);
            this.pass.end(found.as_ref().err().is_none_or(StoreError::concerns_token));
            return Poll::Ready(found);
        }
        let deadline = this.deadline.get_or_insert_with(|| {
            this.pass.start();
            this.timeout.start()
        });
        match deadline.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                this.pass.end(false);
                Poll::Ready(Err(StoreError::new(CircuitBreakerError::Deadline)))
            }
        }
    }
}

impl<T> Clone for CircuitBreaker<T> {
    fn clone(&self) -> Self {
        Self { store: Arc::clone(&self.store), switch: self.switch.clone(), timeout: Arc::clone(&self.timeout) }
    }
}

impl<T: fmt::Debug> fmt::Debug for CircuitBreaker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("store", &self.store)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for CircuitBreakerFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CircuitBreakerFuture(..)")
    }
}
