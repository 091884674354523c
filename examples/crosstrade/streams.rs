//! The open streams of an HTTP/2 connection, and how long the client may be idle or not read.
//!
//! hyper has no such limits for HTTP/2. [`TimedIo`](crate::io::TimedIo) does not see a client that keeps a stream's flow-control
//! window closed: nothing waits to be sent.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The streams of one connection. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<watch::Sender<Open>>);

#[derive(Default)]
struct Open {
    opened: u64,
    /// By number, since when the client must take each response. `None` until there is one, and while the service has nothing to
    /// send.
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
    /// Starts the time in which the client must take the response, and returns the response's body.
    pub(crate) fn respond(self, body: Body) -> ResponseBody {
        self.set_response(Some(Instant::now()));
        ResponseBody { body, stream: self, is_waiting: false, last: None }
    }

    fn set_response(&self, since: Option<Instant>) {
        self.streams.0.send_modify(|open| _ = open.responses.insert(self.number, since));
    }
}

/// The body of a response, which holds its stream.
///
/// hyper asks for more only when the client's window is open. So a client is not slow while the body itself waits, for example
/// for the next event.
pub(crate) struct ResponseBody {
    body: Body,
    stream: Stream,
    is_waiting: bool,
    /// The last byte of a body that has ended.
    last: Option<Bytes>,
}

impl ResponseBody {
    /// Keeps the last byte of the body for a frame of its own.
    ///
    /// hyper hands a whole frame to h2 when the client's window is open for one byte, and drops the body with the last frame. So
    /// the last byte waits until the client has taken all others.
    fn without_last(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_data() {
            Ok(mut data) => {
                if data.len() > 1 && self.body.is_end_stream() {
                    self.last = Some(data.split_off(data.len() - 1));
                }
                Frame::data(data)
            }
            Err(other) => other,
        }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if let Some(last) = this.last.take() {
            return Poll::Ready(Some(Ok(Frame::data(last))));
        }
        let polled = Pin::new(&mut this.body).poll_frame(cx).map_ok(|frame| this.without_last(frame));
        if this.is_waiting != polled.is_pending() {
            this.is_waiting = polled.is_pending();
            this.stream.set_response((!this.is_waiting).then(Instant::now));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.last {
            Some(last) => SizeHint::with_exact(last.len() as u64),
            None => self.body.size_hint(),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.streams.0.send_modify(|open| _ = open.responses.remove(&self.number));
    }
}
