//! The open streams of an HTTP/2 connection, and how long the client may be idle or not read.
//!
//! hyper has no such limits for HTTP/2. [`TimedIo`](crate::io::TimedIo) does not see a client that keeps a stream's flow-control
//! window closed: nothing waits to be sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The streams of one connection. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<watch::Sender<Open>>);

#[derive(Default)]
struct Open {
    opened: u64,
    /// By number, the time of each response. `None` until there is one.
    responses: HashMap<u64, Option<Instant>>,
}

/// Counts a stream as open until it is dropped.
pub(crate) struct Stream {
    streams: Streams,
    number: u64,
}

/// Why a connection must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// No stream was open for this time.
    Idle,
    /// A client has not taken a response in time.
    Unread,
}

impl Streams {
    pub(crate) fn open(&self) -> Stream {
        let mut number = 0;
        self.0.send_modify(|open| {
            number = open.opened;
            open.opened += 1;
            open.responses.insert(number, None);
        });
        Stream { streams: self.clone(), number }
    }

    /// Waits until no stream was open for `idle`, or a response was not taken within `write`.
    pub(crate) async fn expired(&self, idle: Duration, write: Duration) -> Expired {
        let mut changes = self.0.subscribe();
        let mut idle_since = Instant::now();
        loop {
            let (is_idle, response) = {
                let open = changes.borrow_and_update();
                (open.responses.is_empty(), open.responses.values().copied().flatten().min())
            };
            let (deadline, expired) = match (is_idle, response) {
                (true, _) => (Some(idle_since + idle), Expired::Idle),
                (false, response) => (response.map(|since| since + write), Expired::Unread),
            };
            let changed = changes.changed();
            let changed = match deadline {
                Some(deadline) => timeout_at(deadline, changed).await,
                None => Ok(changed.await),
            };
            if changed.is_err() {
                return expired;
            }
            idle_since = Instant::now();
        }
    }
}

impl Stream {
    /// Starts the time in which the client must take the response.
    pub(crate) fn responding(&self) {
        self.streams.0.send_modify(|open| _ = open.responses.insert(self.number, Some(Instant::now())));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.streams.0.send_modify(|open| _ = open.responses.remove(&self.number));
    }
}
