//! [`StoreError`]: the error of a lookup.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

/// The error of a lookup: the store could not check whether a token is valid. The gate responds with 503.
///
/// An error concerns either the store or one token:
///
/// | | about the store | about one token |
/// |---|---|---|
/// | created by | [`new`](Self::new) | [`for_token`](Self::for_token) |
/// | for example | no connection, timeout, HTTP 500 | an unreadable row, a token that the authorization server rejects with HTTP 400 |
/// | [`CircuitBreaker`](crate::store::CircuitBreaker) | counts a failure | counts a success, because the store has answered |
/// | `CachedStore` | may serve an older answer | never serves an older answer |
/// | [`FailureThrottle`](crate::limit::FailureThrottle) | counts nothing | counts a failed attempt of the peer |
///
/// If a client can cause an error by its choice of token, the error concerns that token. Otherwise one client could open the
/// circuit breaker for all clients. When in doubt, use `for_token`.
///
/// The error of the store is the [`source`](Error::source). It must contain neither the token nor its digest.
///
/// ```
/// use tollgate::{Grant, StoreError, store};
///
/// # async fn query() -> std::io::Result<String> { Ok("17".to_owned()) }
/// let users = store::from_fn(|_digest| async {
///     let row = query().await.map_err(StoreError::new)?;
///     let user: u64 = row.parse().map_err(StoreError::for_token)?;
///     Ok::<_, StoreError>(Some(Grant::new("alice", user)))
/// });
/// # let _ = users;
/// ```
#[derive(Clone, Debug)]
pub struct StoreError {
    source: Arc<dyn Error + Send + Sync>,
    retry_after: Option<Duration>,
    concerns_token: bool,
}

impl StoreError {
    /// Wraps an error about the store.
    ///
    /// Returns a `StoreError` unchanged. If there is one among the [sources](Error::source), the new error has its
    /// [`concerns_token`](Self::concerns_token) and [`retry_after`](Self::retry_after).
    ///
    /// A wrapper of a `StoreError` must return it as its source. `#[source]` and `#[from]` of thiserror do so. A wrapper with
    /// `#[error(transparent)]` returns the source of the `StoreError` instead, and so does an `anyhow::Error` without a context: the
    /// new error is then one about the store.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let error = match error.into().downcast::<Self>() {
            Ok(same) => return *same,
            Err(other) => other,
        };
        let inner = Self::within(&*error);
        let (retry_after, concerns_token) = inner.map_or((None, false), |same| (same.retry_after, same.concerns_token));
        Self { source: Arc::from(error), retry_after, concerns_token }
    }

    /// Finds a `StoreError` in an error and its sources.
    pub(crate) fn within<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            let boxed = || error.downcast_ref::<Box<Self>>().map(|boxed| &**boxed);
            let shared = || error.downcast_ref::<Arc<Self>>().map(|shared| &**shared);
            if let Some(found) = error.downcast_ref().or_else(boxed).or_else(shared) {
                return Some(found);
            }
            // The source of an `io::Error` is that of its content.
            next = match error.downcast_ref().and_then(io::Error::get_ref) {
                Some(content) => Some(content),
                None => error.source(),
            };
        }
        None
    }

    /// Wraps an error about one token, such as an unreadable row. The store itself works.
    pub fn for_token(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { concerns_token: true, ..Self::new(error) }
    }

    /// Returns true if only this token could not be checked, and false if the store failed.
    #[must_use]
    pub fn concerns_token(&self) -> bool {
        self.concerns_token
    }

    /// Sets the time that `Retry-After` advertises. Default: 1 second.
    #[must_use]
    pub fn with_retry_after(self, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..self }
    }

    /// Returns the time for `Retry-After`, if the store has set one.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    pub(crate) fn timeout(timeout: Duration) -> Self {
        Self::new(format!("no answer within {timeout:?}"))
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.concerns_token {
            false => "the store failed",
            true => "the store could not check this token",
        })
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wrapped(StoreError);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("wrapped")
        }
    }

    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn wrapping_preserves_the_classification() {
        assert!(!StoreError::new("down").concerns_token());
        let second = Duration::from_secs(1);
        for (error, concerns_token) in [
            (StoreError::new("down").with_retry_after(second), false),
            (StoreError::for_token("a bad row").with_retry_after(second), true),
        ] {
            let once = StoreError::new(error.clone());
            let wrapped = StoreError::new(Wrapped(error.clone()));
            let twice = StoreError::new(Wrapped(wrapped.clone()));
            let (boxed, shared) = (StoreError::new(Box::new(error.clone())), StoreError::new(Arc::new(error.clone())));
            let by_io = StoreError::new(Wrapped(StoreError::new(io::Error::other(error.clone()))));
            for other in [&error, &once, &wrapped, &twice, &boxed, &shared, &by_io] {
                assert_eq!((other.concerns_token(), other.retry_after()), (concerns_token, Some(second)));
            }
            assert!(once.source().is_some_and(|source| source.to_string() != error.to_string()), "one level");
            assert!(wrapped.source().is_some_and(|source| source.is::<Wrapped>()));
            assert!(StoreError::for_token(Wrapped(error)).concerns_token());
        }
    }
}
