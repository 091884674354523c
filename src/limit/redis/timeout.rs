//! A timeout that excludes time in which the process does not run.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::timeout;

/// The number of parts of a timeout.
const PARTS: u32 = 8;

/// The number of parts of a timeout that have passed.
#[derive(Default)]
pub(super) struct Passed(AtomicU32);

impl Passed {
    /// Returns whether half of the timeout has passed.
    pub(super) fn is_half(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= PARTS / 2
    }
}

/// Waits for a future, for at most `limit`. Returns `None` after that.
///
/// The time is measured in consecutive parts. A pause of the process costs at most one part, however long it takes. In the
/// remaining parts the task that reads the connection runs as often as this task, so a reply that has arrived is read.
///
/// Takes a pinned future. An `async fn` that pins its argument holds it twice, and charges in Redis move and allocate their future.
pub(super) async fn within<F: Future>(limit: Duration, future: Pin<&mut F>) -> Option<F::Output> {
    within_counted(limit, future, &Passed::default()).await
}

/// Waits like [`within`], and counts the parts that have passed.
pub(super) async fn within_counted<F: Future>(
    limit: Duration,
    mut future: Pin<&mut F>,
    passed: &Passed,
) -> Option<F::Output> {
    for part in 1..=PARTS {
        if let Ok(done) = timeout(limit / PARTS, future.as_mut()).await {
            return Some(done);
        }
        passed.0.store(part, Ordering::Relaxed);
    }
    None
}
