//! [`CircuitBreaker`]: fails lookups immediately while a store is down.

use std::error::Error;
use std::fmt;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;

use super::{Lookup, TokenStore};
use crate::limit::Clock;
use crate::pending::answer::Answer;
use crate::pending::breaker::{Backoff, Breaker, Permit};
use crate::pending::timeout::{BoxSleep, Sleep, Timeout};
use crate::rejection::store_error::StoreError;
use crate::token::BearerToken;

pub use crate::pending::breaker::{BackoffError, BreakerState};

/// A circuit breaker around another store. Clones share the state.
///
/// While the store is down, lookups fail immediately, and the store gets no load.
///
/// | state | a lookup |
/// |---|---|
/// | [closed](BreakerState::Closed) | is sent to the store, and fails if it exceeds the timeout |
/// | [open](BreakerState::Open), after consecutive failures | fails immediately: 503 with `Retry-After`, never 401 |
/// | [half-open](BreakerState::HalfOpen), after a pause | one lookup, the probe, is sent to the store. If it succeeds, the breaker closes. If it fails, the breaker opens for twice as long. All other lookups fail immediately |
///
/// Several lookups may reach a store that answers immediately, until one of them has closed or opened the breaker.
///
/// # Successes and failures
///
/// | a lookup | counts as |
/// |---|---|
/// | a grant, or "unknown" | success |
/// | an error [about one token](StoreError::concerns_token) | success, because the store has answered |
/// | an error about the store, or the breaker's timeout | failure |
/// | dropped after half of the breaker's timeout or later, for example because the client gave up | failure |
/// | dropped earlier | nothing |
///
/// A lookup begins with its first poll: it becomes the probe then, and its time is measured from then. The gate has a timeout too,
/// which ends the wait of one request. Set it longer than the breaker's timeout.
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
/// Put a cache in front of the breaker: cached grants are returned in every state.
pub struct CircuitBreaker<T> {
    store: Arc<T>,
    breaker: Breaker,
    timeout: Arc<Timeout>,
}

/// The error of a lookup that the circuit breaker ended.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CircuitBreakerError {
    /// The breaker is open, because the store has failed.
    #[error("circuit breaker is open")]
    Open,
    /// The store did not answer within the breaker's timeout.
    #[error("the store did not answer within the timeout of the circuit breaker")]
    Timeout,
}

impl<T> CircuitBreaker<T> {
    /// Creates a circuit breaker. `timeout` is that of one lookup. Set a longer one for the gate.
    ///
    /// The breaker opens after 5 consecutive failures, for 1 second at first and for 30 seconds at most. It uses the timer of
    /// tokio. [`with_timer`](Self::with_timer) takes another one.
    #[cfg(feature = "tokio")]
    pub fn with_timeout(store: T, timeout: Duration) -> Self {
        Self::with_timer(store, timeout, tokio::time::sleep)
    }

    /// Creates a circuit breaker with the timer of any runtime. `sleep` returns a future that completes after the given time.
    pub fn with_timer(store: T, timeout: Duration, sleep: impl Sleep) -> Self {
        Self { store: Arc::new(store), breaker: Breaker::new(timeout), timeout: Arc::new(Timeout::new(timeout, sleep)) }
    }

    /// Sets the name in [metrics and events](crate::observe). Default: `default`.
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
        self.breaker.set_name(name);
        self
    }

    /// Sets the number of consecutive failures that open the breaker. Default: 5.
    ///
    /// ```
    /// use std::num::NonZeroU32;
    /// use std::time::Duration;
    /// use tollgate::MemoryStore;
    /// use tollgate::store::CircuitBreaker;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = CircuitBreaker::with_timeout(MemoryStore::<()>::new(), Duration::from_secs(1))
    ///     .with_failure_threshold(NonZeroU32::new(10).ok_or("at least 1")?)
    ///     .with_backoff(Duration::from_secs(2), Duration::from_secs(60))?;
    /// # let _ = store;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_failure_threshold(mut self, failures: NonZeroU32) -> Self {
        self.breaker.set_failure_threshold(failures);
        self
    }

    /// Sets the first pause before a probe, and the longest one. Each failed probe doubles the pause, up to the longest one.
    /// A first pause of zero stays zero. Default: 1 second and 30 seconds.
    ///
    /// # Errors
    ///
    /// If `longest` is shorter than `first`.
    pub fn with_backoff(mut self, first: Duration, longest: Duration) -> Result<Self, BackoffError> {
        self.breaker.set_backoff(Backoff::new(first, longest)?);
        Ok(self)
    }

    /// Sets the clock that measures pauses and waits. Default: the monotonic clock of the system.
    ///
    /// # Panics
    ///
    /// Panics if a clone exists. Both would read the times of the same pause from different clocks.
    #[must_use]
    #[track_caller]
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        assert!(
            Arc::strong_count(&self.store) == 1,
            "`CircuitBreaker::with_clock` must be called before the circuit breaker is cloned"
        );
        self.breaker.set_clock(Arc::new(clock));
        self
    }

    /// Lets the next lookup probe the store, instead of waiting for the end of the pause. Does nothing while the breaker is
    /// closed.
    ///
    /// If that lookup fails, the pauses start with the shortest one.
    pub fn probe_now(&self) {
        self.breaker.probe_now();
    }

    /// Returns the current state. After a pause the breaker stays open until a lookup begins, which is the probe.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.breaker.state()
    }
}

impl<T: TokenStore> TokenStore for CircuitBreaker<T> {
    type Principal = T::Principal;
    type Error = StoreError;
    type Future = CircuitBreakerFuture<T::Future>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        if let Err(wait) = self.breaker.check() {
            return Answer::Ready(Err(open(wait)));
        }
        match self.store.lookup(token) {
            Answer::Ready(found) => {
                let found = found.map_err(StoreError::new);
                // Another lookup may have become the probe meanwhile, or the breaker has opened. Then this result is not counted.
                if let Ok(is_probe) = self.breaker.try_acquire() {
                    self.breaker.count(has_answered(&found), is_probe);
                }
                Answer::Ready(found)
            }
            // A combination of stores creates lookups that it may never poll. So the permit is taken by the first poll.
            Answer::Pending(future) => Answer::Pending(CircuitBreakerFuture {
                future,
                sleep: None,
                timeout: Arc::clone(&self.timeout),
                breaker: self.breaker.clone(),
                permit: None,
            }),
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
        // Starts with the first poll, as the lookup does.
        sleep: Option<BoxSleep>,
        timeout: Arc<Timeout>,
        breaker: Breaker,
        permit: Option<Permit>,
    }
}

fn open(wait: Duration) -> StoreError {
    StoreError::new(CircuitBreakerError::Open).with_retry_after(wait)
}

/// Returns whether the store works: an error about one token is an answer.
fn has_answered<P>(found: &Lookup<P, StoreError>) -> bool {
    found.as_ref().err().is_none_or(StoreError::concerns_token)
}

impl<F, P, E> Future for CircuitBreakerFuture<F>
where
    F: Future<Output = Lookup<P, E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    type Output = Lookup<P, StoreError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let permit = match this.permit {
            Some(permit) => permit,
            None => match this.breaker.clone().acquire() {
                Ok(permit) => this.permit.insert(permit),
                Err(wait) => return Poll::Ready(Err(open(wait))),
            },
        };
        // First, because a timer of tokio stays pending after a lookup that should have yielded (`tokio::task::coop`).
        let mut is_over = this.sleep.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready());
        if let Poll::Ready(found) = this.future.poll(cx) {
            let found = found.map_err(StoreError::new);
            permit.end(has_answered(&found));
            return Poll::Ready(found);
        }
        if this.sleep.is_none() {
            permit.start();
            is_over = this.sleep.insert(this.timeout.start()).as_mut().poll(cx).is_ready();
        }
        if !is_over {
            return Poll::Pending;
        }
        permit.end(false);
        Poll::Ready(Err(StoreError::new(CircuitBreakerError::Timeout)))
    }
}

impl<T> Clone for CircuitBreaker<T> {
    fn clone(&self) -> Self {
        Self { store: Arc::clone(&self.store), breaker: self.breaker.clone(), timeout: Arc::clone(&self.timeout) }
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
