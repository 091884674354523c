//! [`RetryPolicy`]: retries of rejected requests, after the time that the server names.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Request, Response, StatusCode};
use thiserror::Error;
use tokio::time::Instant;
use tower::retry::Policy;

use super::wait::retry_after;
use crate::pending::timeout::{BoxSleep, Sleep};

/// A policy for [`tower::retry`]: sends rejected requests again, after the time that the server names and a random time.
///
/// ```
/// use std::time::Duration;
/// use tollgate::client::RetryPolicy;
/// use tower::retry::RetryLayer;
///
/// let retry = RetryLayer::new(RetryPolicy::new().with_max_retries(5).with_total_timeout(Duration::from_secs(30)));
/// # let _ = retry;
/// ```
///
/// # Which requests are sent again
///
/// | response | idempotent methods | other methods |
/// |---|---|---|
/// | 429 with a time to wait | yes | [if enabled](Self::with_all_methods_on_429) |
/// | 503 with a time to wait | yes | no |
/// | 429 and 503 without a time, all other responses, and errors | no | no |
///
/// In particular, 401 and 403 are never retried. A response that is not retried is returned unchanged. [`retry_after`] lists the
/// fields that name a time.
///
/// A request is cloned before it is sent, with its body and its extensions. A large body in a shared buffer such as
/// `Full<Bytes>` is cheap to clone. Streaming bodies cannot be cloned and therefore do not compile.
///
/// # When
///
/// The pause is the server's time plus a random time. The random time is at most 1 second before the first retry. This maximum
/// doubles with each retry, up to the longest wait (or the jitter, if that is longer).
///
/// Clients that were rejected at the same time come back at different times. No retry is early if the server names a number of
/// seconds, or a date in a response with `Date`. For a date without `Date`, the clock of the client must be right.
///
/// A request whose pause would be too long is not sent again:
///
/// | setting | default |
/// |---|---|
/// | [`with_max_retries`](Self::with_max_retries) | 3 |
/// | [`with_max_wait`](Self::with_max_wait), for the server's time | 60 s |
/// | [`with_total_timeout`](Self::with_total_timeout), from the first attempt | 120 s |
/// | [`with_jitter`](Self::with_jitter), the first random time at most | 1 s |
#[derive(Clone)]
pub struct RetryPolicy {
    max_retries: u32,
    max_wait: Duration,
    total_timeout: Duration,
    jitter: Duration,
    all_methods_on_429: bool,
    sleep: Arc<dyn Sleep>,
    random: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// The retries of this request. Tower clones the policy for each request.
    retries: u32,
    /// The time of the first attempt of this request.
    started: Option<Instant>,
}

/// The error of a jitter that is so short that rejected clients come back at the same time.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("invalid jitter {0:?}: must be at least 100 ms, so that rejected clients do not come back at the same time")]
pub struct JitterError(Duration);

/// The shortest jitter.
const MIN_JITTER: Duration = Duration::from_millis(100);

impl RetryPolicy {
    /// Creates a policy with tokio's timer: a retry needs a runtime of tokio with its time driver, or another
    /// [timer](Self::with_timer).
    #[must_use]
    pub fn new() -> Self {
        Self {
            max_retries: 3,
            max_wait: Duration::from_secs(60),
            total_timeout: Duration::from_secs(120),
            jitter: Duration::from_secs(1),
            all_methods_on_429: false,
            sleep: Arc::new(tokio::time::sleep),
            random: Arc::new(random),
            retries: 0,
            started: None,
        }
    }

    /// Sets the maximum number of retries of a request. Default: 3.
    #[must_use]
    pub fn with_max_retries(self, max_retries: u32) -> Self {
        Self { max_retries, ..self }
    }

    /// Sets the longest server-named wait that the policy accepts. Default: 60 s. If the server names a longer time, the
    /// response is returned.
    #[must_use]
    pub fn with_max_wait(self, max_wait: Duration) -> Self {
        Self { max_wait, ..self }
    }

    /// Sets the time after the first attempt within which the last retry starts. Default: 120 s. A pause that would end later
    /// does not begin, and the response is returned.
    ///
    /// This does not limit the time of an attempt, nor the time until the inner service is ready for it. Put a timeout inside of the
    /// retries for the first, and one outside of them for both.
    #[must_use]
    pub fn with_total_timeout(self, total_timeout: Duration) -> Self {
        Self { total_timeout, ..self }
    }

    /// Sets the longest random time that is added to the first pause. Default: 1 s.
    ///
    /// The longest random time doubles with each retry, up to [`with_max_wait`](Self::with_max_wait), or up to this time if it is
    /// longer.
    ///
    /// # Errors
    ///
    /// Returns an error if the time is less than 100 ms.
    pub fn with_jitter(self, jitter: Duration) -> Result<Self, JitterError> {
        match jitter < MIN_JITTER {
            true => Err(JitterError(jitter)),
            false => Ok(Self { jitter, ..self }),
        }
    }

    /// Sends requests of all methods again on a 429, such as `POST`.
    ///
    /// This is for APIs that reject a request before it has an effect. A gate does. RFC 6585 does not promise it, and a handler
    /// that charges a limit itself may have done part of its work.
    #[must_use]
    pub fn with_all_methods_on_429(self) -> Self {
        Self { all_methods_on_429: true, ..self }
    }

    /// Sets the timer, for other runtimes than tokio. `sleep` returns a future that is ready after the given time.
    #[must_use]
    pub fn with_timer(self, sleep: impl Sleep) -> Self {
        Self { sleep: Arc::new(sleep), ..self }
    }

    /// Sets the source of random numbers, for tests. All values of `u64` must be equally likely.
    #[must_use]
    pub fn with_random(self, random: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self { random: Arc::new(random), ..self }
    }

    fn may_repeat<B>(&self, request: &Request<B>, status: StatusCode) -> bool {
        match status {
            StatusCode::TOO_MANY_REQUESTS => request.method().is_idempotent() || self.all_methods_on_429,
            StatusCode::SERVICE_UNAVAILABLE => request.method().is_idempotent(),
            _ => false,
        }
    }

    /// Returns a random time of at most the jitter, which doubles with each retry up to the longest wait.
    fn random_time(&self) -> Duration {
        let factor = 2_u32.checked_pow(self.retries).unwrap_or(u32::MAX);
        let longest = self.jitter.saturating_mul(factor).min(self.max_wait.max(self.jitter));
        let longest = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        let product = u128::from(longest) * u128::from((self.random)());
        Duration::from_nanos((product >> 64) as u64)
    }
}

/// Returns a random number. Each `RandomState` has other keys, and jitter needs no secrecy.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

impl<B: Clone, C, E> Policy<Request<B>, Response<C>, E> for RetryPolicy {
    type Future = BoxSleep;

    fn retry(&mut self, request: &mut Request<B>, result: &mut Result<Response<C>, E>) -> Option<BoxSleep> {
        let response = result.as_ref().ok()?;
        if self.retries >= self.max_retries || !self.may_repeat(request, response.status()) {
            return None;
        }
        let wait = retry_after(response.headers(), SystemTime::now()).filter(|wait| *wait <= self.max_wait)?;
        let pause = wait.saturating_add(self.random_time());
        let elapsed = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        if elapsed.saturating_add(pause) > self.total_timeout {
            return None;
        }
        self.retries += 1;
        Some(self.sleep.sleep(pause))
    }

    fn clone_request(&mut self, request: &Request<B>) -> Option<Request<B>> {
        if self.retries == 0 {
            self.started = Some(Instant::now());
        }
        self.may_repeat(request, StatusCode::TOO_MANY_REQUESTS).then(|| request.clone())
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy")
            .field("max_retries", &self.max_retries)
            .field("max_wait", &self.max_wait)
            .field("total_timeout", &self.total_timeout)
            .field("jitter", &self.jitter)
            .field("all_methods_on_429", &self.all_methods_on_429)
            .finish_non_exhaustive()
    }
}
