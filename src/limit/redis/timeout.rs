//! A timeout that excludes time in which the process does not run.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::timeout;

/// The number of parts of a timeout.
const PARTS: u32 = 8;

/// The number of parts of a timeout that have begun.
#[derive(Default)]
pub(super) struct Begun(AtomicU32);

impl Begun {
    /// Returns whether half of the timeout has passed.
    pub(super) fn is_half_over(&self) -> bool {
        self.0.load(Ordering::Relaxed) > PARTS / 2
    }
}

/// Waits for a future, for at most `limit`. Returns `None` after that.
///
/// The time is rounded up to whole milliseconds, and measured in consecutive parts. A pause of the process costs at most one part,
/// however long it takes. In the remaining parts the task that reads the connection runs as often as this task, so a reply that has
/// arrived is read.
///
/// Takes a pinned future. An `async fn` that pins its argument holds it twice, and charges in Redis move and allocate their future.
pub(super) async fn within<F: Future>(limit: Duration, future: Pin<&mut F>) -> Option<F::Output> {
    within_counted(limit, future, &Begun::default()).await
}

/// Waits like [`within`] in the parts that have not begun, and counts those that begin. So all waits with one count share a timeout.
/// Each wait uses at least one part. After the last part, the future is polled once.
pub(super) async fn within_counted<F: Future>(
    limit: Duration,
    mut future: Pin<&mut F>,
    begun: &Begun,
) -> Option<F::Output> {
    for part in begun.0.load(Ordering::Relaxed) + 1..=PARTS {
        begun.0.store(part, Ordering::Relaxed);
        let length = length(limit, part);
        if length.is_zero() {
            continue;
        }
        if let Ok(done) = timeout(length, future.as_mut()).await {
            return Some(done);
        }
    }
    future.now_or_never()
}

/// Returns the length of a part: whole milliseconds, since a timer rounds up to them.
fn length(limit: Duration, part: u32) -> Duration {
    let ms = limit.as_nanos().div_ceil(1_000_000);
    let end_of = |part: u32| ms * u128::from(part) / u128::from(PARTS);
    Duration::from_millis(u64::try_from(end_of(part) - end_of(part - 1)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::pin;

    use tokio::time::{Instant, sleep};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(800);

    #[tokio::test(start_paused = true)]
    async fn waits_with_one_count_share_a_timeout() {
        for (first, both) in [(0, 700), (1, 701), (99, 799), (101, 701), (799, 799), (900, 800)] {
            let (begun, begin) = (Begun::default(), Instant::now());
            let done = within_counted(LIMIT, pin!(sleep(Duration::from_millis(first))), &begun).await;
            assert_eq!(done.is_some(), first < 800);
            assert_eq!(within_counted(LIMIT, pin!(pending::<()>()), &begun).await, None);
            assert_eq!(begin.elapsed().as_millis(), both);
            assert_eq!(within_counted(LIMIT, pin!(ready(1)), &begun).await, Some(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_is_rounded_up_to_milliseconds() {
        for (limit_us, ms) in [(0, 0), (1, 1), (1_000, 1), (5_000, 5), (250_000, 250), (250_001, 251)] {
            let (limit, begin) = (Duration::from_micros(limit_us), Instant::now());
            assert_eq!(within(limit, pin!(pending::<()>())).await, None);
            assert_eq!(begin.elapsed().as_millis(), ms, "{limit:?}");
            assert_eq!(within(limit, pin!(ready(1))).await, Some(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_a_timeout_is_over_after_four_parts() {
        for (ms, is_half_over) in [(0, false), (399, false), (401, true), (900, true)] {
            let begun = Begun::default();
            _ = timeout(Duration::from_millis(ms), within_counted(LIMIT, pin!(pending::<()>()), &begun)).await;
            assert_eq!(begun.is_half_over(), is_half_over, "{ms}");
        }
    }
}
