//! Subscribers of one thread, for tests in several binaries.

use std::sync::LazyLock;

use tracing::subscriber::{DefaultGuard, NoSubscriber, set_default};
use tracing::{Dispatch, Subscriber};

/// Sets the subscriber of this thread while the guard lives.
///
/// tracing remembers for each event in the code whether a subscriber wants it. While only one subscriber exists, tracing asks
/// the thread that emits the event first. A test without a subscriber would disable the event for all tests. Two subscribers
/// that always exist prevent that: tracing then asks all subscribers.
pub(crate) fn set_subscriber(subscriber: impl Subscriber + Send + Sync + 'static) -> DefaultGuard {
    static OTHERS: LazyLock<[Dispatch; 2]> = LazyLock::new(|| [(); 2].map(|()| Dispatch::new(NoSubscriber::new())));
    LazyLock::force(&OTHERS);
    set_default(subscriber)
}
