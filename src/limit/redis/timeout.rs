//! A timeout that does not blame Redis for a process that stood still.

use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

/// The number of parts of a timeout.
const PARTS: u32 = 8;

/// Waits for a future, for at most `limit`. Returns `None` after that.
///
/// The time is measured in parts, one after the other. When the process stands still, or its tasks wait for the processor, that
/// costs one part, however long it takes. In the parts that are left the task that reads the connection runs as often as this
/// one, so that an answer which has arrived is found.
pub(super) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..PARTS {
        if let Ok(done) = timeout(limit / PARTS, &mut future).await {
            return Some(done);
        }
    }
    None
}
