use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A store could not find out whether a token is good.
///
/// Opaque, with the store's own error as [`source`](Error::source). A store must not put the token into its errors.
#[derive(Clone, Debug)]
pub struct StoreError {
    source: Arc<dyn Error + Send + Sync>,
    retry_after: Option<Duration>,
}

impl StoreError {
    /// Keeps what a store says. What is a `StoreError` already stays as it is.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        match error.into().downcast::<Self>() {
            Ok(same) => *same,
            Err(other) => Self { source: Arc::from(other), retry_after: None },
        }
    }

    /// The same, and callers are told, by `Retry-After`, not to come back before so long.
    #[must_use]
    pub fn with_retry_after(self, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..self }
    }

    /// When to come back, if the store knows.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    pub(crate) fn deadline(deadline: Duration) -> Self {
        Self::new(format!("no answer within {deadline:?}"))
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the store could not tell whether the token is good")
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
