//! [`Timeout`] and [`Sleep`]: timeouts with the timer of any runtime.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// A timeout: its duration, and the timer that measures it.
#[derive(Clone)]
pub(crate) struct Timeout {
    pub(crate) duration: Duration,
    sleep: Arc<dyn Sleep>,
}

impl Timeout {
    pub(crate) fn new(duration: Duration, sleep: impl Sleep) -> Self {
        Self { duration, sleep: Arc::new(sleep) }
    }

    pub(crate) fn start(&self) -> BoxSleep {
        self.sleep.sleep(self.duration)
    }
}

pub(crate) type BoxSleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A timer of an async runtime. Every `Fn(Duration)` that returns a future implements this trait, such as
/// `tokio::time::sleep`.
pub trait Sleep: Send + Sync + 'static {
    /// Returns a future that completes after this duration.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

impl<F, Fut> Sleep for F
where
    F: Fn(Duration) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    fn sleep(&self, duration: Duration) -> BoxSleep {
        Box::pin(self(duration))
    }
}
