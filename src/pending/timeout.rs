//! Timeouts by the timer of any runtime.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// How long to wait, and how.
#[derive(Clone)]
pub(crate) struct Patience {
    pub(crate) deadline: Duration,
    sleep: Arc<dyn Sleep>,
}

impl Patience {
    pub(crate) fn new(deadline: Duration, sleep: impl Sleep) -> Self {
        Self { deadline, sleep: Arc::new(sleep) }
    }

    pub(crate) fn start(&self) -> BoxSleep {
        self.sleep.sleep(self.deadline)
    }
}

pub(crate) type BoxSleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Sleeps, without a runtime of ours: every `Fn(Duration)` that returns a future does, `tokio::time::sleep` first.
pub trait Sleep: Send + Sync + 'static {
    /// A future that is over after this time.
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
